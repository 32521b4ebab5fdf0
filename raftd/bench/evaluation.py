"""`raftd bench evaluation`: the measurements that small Raft queues publish of themselves, so that anybody can compare.

One client puts messages one after the other, then takes and deletes them one after the other; clusters of several sizes on one
machine, messages of several sizes. At the end of the puts every node must hold every message.
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from raftd.bench.ask import ask_stats
from raftd.bench.loaders.beanstalkd import BeanstalkdConnection
from raftd.bench.local import LocalError, wait_for
from raftd.bench.report import pyplot
from raftd.bench.servers import Server, raftd_server
from raftd.client.connection import NoAnswer

NODES = (3, 5, 7, 13)
SIZES = (4, 200, 640)
MESSAGES = (50, 100, 200, 500, 1000, 2000)
_STATS_S = 5.0


class Options(msgspec.Struct, frozen=True):
    """What `raftd bench evaluation` was asked for."""

    nodes: tuple[int, ...]
    messages: tuple[int, ...]
    data: Path | None
    plot: Path | None


class Point(msgspec.Struct, frozen=True):
    """One measurement; times in seconds."""

    nodes: int
    size: int
    messages: int
    put_s: float
    consume_s: float


def measure(server: Server, nodes: int, size: int, messages: int) -> Point:
    """Put and consume so many. Raises LocalError if a node lacks one in between."""
    connection = BeanstalkdConnection(server.addresses[0], f"evaluation-{size}-{messages}", b"x" * size)
    try:
        began = time.perf_counter()
        for _ in range(messages):
            connection.put(1)
            _await(connection, "puts_done")
        put_s = time.perf_counter() - began
        wait_for(lambda: all(_ready(address) == messages for address in server.addresses), what=f"{messages} messages on every node")
        began = time.perf_counter()
        for _ in range(messages):
            connection.take(1)
            _await(connection, "takes_done")
        return Point(nodes, size, messages, put_s, time.perf_counter() - began)
    finally:
        connection.close()


def _await(connection: BeanstalkdConnection, count: str) -> None:
    while not getattr(connection, count):
        connection.receive()
    setattr(connection, count, 0)


def _ready(address: tuple[str, int]) -> int:
    try:
        return int(ask_stats(address, _STATS_S)["current-jobs-ready"])
    except NoAnswer as error:
        raise LocalError(str(error)) from None


def run(options: Options, console: Console) -> None:
    """Measure, print a table, draw. Raises LocalError, OSError or LoadError."""
    draw = pyplot() if options.plot is not None else None  # before anything is measured
    points = []
    for nodes in options.nodes:
        with TemporaryDirectory(prefix="raftd-evaluation-", dir=options.data) as directory, raftd_server(Path(directory), nodes) as server:
            for size in SIZES:
                for messages in options.messages:
                    with console.status(f"{nodes} nodes, {messages} messages of {size} bytes"):
                        points.append(measure(server, nodes, size, messages))
            server.check()
    table = Table(caption="Seconds to put and to consume all messages, one after the other. Each node held all of them.", box=box.SIMPLE)
    for heading in ("nodes", "bytes", "messages", "put s", "consume s", "ms a put", "ms to consume one"):
        table.add_column(heading, justify="right", no_wrap=True)
    for point in points:
        each = (f"{1e3 * seconds / point.messages:.2f}" for seconds in (point.put_s, point.consume_s))
        table.add_row(str(point.nodes), str(point.size), f"{point.messages:,}", f"{point.put_s:.2f}", f"{point.consume_s:.2f}", *each)
    console.print(table)
    if options.plot is None or draw is None:
        return
    figure, panes = draw.subplots(2, len(SIZES), figsize=(9, 5), squeeze=False, sharex=True)
    for column, size in enumerate(SIZES):
        for pane, what in zip((panes[0][column], panes[1][column]), ("put_s", "consume_s"), strict=True):
            for nodes in options.nodes:
                line = [point for point in points if (point.nodes, point.size) == (nodes, size)]
                pane.plot([point.messages for point in line], [getattr(point, what) for point in line], marker=".", label=f"{nodes} nodes")
            pane.set_title(f"{'put' if what == 'put_s' else 'consume'}, {size} bytes", fontsize=8)
            pane.tick_params(labelsize=7)
    panes[0][0].set_ylabel("s", fontsize=8)
    panes[1][0].set_xlabel("messages", fontsize=8)
    panes[0][0].legend(fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(options.plot, format="svg")

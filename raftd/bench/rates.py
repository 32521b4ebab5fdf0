"""`raftd bench`: operations per second, latencies and processor time; beside other servers in the same run, if asked for.

Machines are noisy, disks more so. So servers are measured in turns, on the same directory's disk, and what counts is their ratio.
Every row has fresh servers: what the row before left behind would be in its memory and its log.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
import uuid
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from raftd.bench import report
from raftd.bench.crowd import Crowd
from raftd.bench.load import Result, Spec, Work
from raftd.bench.local import LocalError
from raftd.bench.rounds import Measured, Round, Row
from raftd.bench.servers import OTHERS, Missing, Server, raftd_server
from raftd.cli import signals

WARM_UP_S = 1.0
_LOAD_MARGIN_S = 30.0
_SYNCS = 50
_SYNC_BYTES = 4096


class Options(msgspec.Struct, frozen=True):
    """What `raftd bench` was asked for, by the names of its options."""

    work: Work | Literal["both"]
    nodes: int
    connections: int
    in_flight: int
    size: int
    rate: float | None
    tubes: int
    waiting: int
    idle: int
    to: Literal["all", "leader"]
    seconds: float
    rounds: int
    processes: int
    against: tuple[str, ...]
    comparison: bool
    data: Path | None
    json: Path | None
    plot: Path | None

    @property
    def rows(self) -> list[Row]:
        if self.comparison:
            return [Row(work, connections, in_flight, self.size) for work, connections, in_flight in report.COMPARISON]
        works: list[Work] = ["put", "cycle"] if self.work == "both" else [self.work]
        return [Row(work, self.connections, self.in_flight, self.size, self.rate) for work in works]


def sync_time_s(directory: Path) -> float:
    """The median of some small synced writes: what the disk below costs every server alike."""
    path = directory / "sync"
    times = []
    with path.open("wb", buffering=0) as file:
        for _ in range(_SYNCS):
            began = time.perf_counter()
            file.write(b"x" * _SYNC_BYTES)
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    path.unlink()
    return statistics.median(times)


def cpu_time_s(pid: int) -> float:
    """Return the processor time that a process has used so far, all its threads together. Raises OSError if it has ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime of proc(5)


def measure(server: Server, row: Row, options: Options) -> Round:
    """Run one round. Raises LocalError."""
    run = uuid.uuid4().hex
    tubes = tuple(f"bench-{run}-{number}" for number in range(min(options.tubes, row.connections)))
    for tube in tubes:
        server.prepare(tube)
    addresses = server.addresses if options.to == "all" else server.addresses[:1]
    loads = []
    for number in range(options.processes):
        connections = len(range(number, row.connections, options.processes))
        spec = Spec(
            addresses[number % len(addresses) :] + addresses[: number % len(addresses)],
            connections,
            row.in_flight,
            row.size,
            row.work,
            WARM_UP_S,
            options.seconds,
            tubes,
            row.rate / options.processes if row.rate is not None else None,
            server.protocol,
            server.tls,
        )
        arguments = [sys.executable, "-m", "raftd.bench.load", msgspec.json.encode(spec).decode()]
        with signals.held():
            loads.append(subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    try:
        processes = server.processes()
        _begin_together(loads)
        time.sleep(WARM_UP_S)  # the loads leave this time out of what they count, and say nothing when it is over
        counts, before = server.counts(), [cpu_time_s(pid) for pid in processes]
        results = [_result(load, options) for load in loads]
        after, done = [cpu_time_s(pid) for pid in processes], server.counts().since(counts)
    except (LocalError, OSError) as error:
        server.check()  # then it is the cause
        raise LocalError(str(error)) from None
    else:
        server.check()
    finally:
        for load in loads:
            load.kill()
            load.wait()
    latencies: Counter[int] = Counter()
    for result in results:
        latencies.update(result.latencies)
    return Round(
        latencies,
        max(result.seconds for result in results),
        max(result.cpu_s / result.seconds for result in results),
        [end - begin for begin, end in zip(before, after, strict=True)] if server.processes() == processes else [],
        done,
        sum(result.unanswered for result in results),
    )


def _begin_together(loads: list[subprocess.Popen[bytes]]) -> None:
    """Start all loads at once: each prints a line when it is connected, and begins when it reads one. A failed load reports why later."""
    for load in loads:
        assert load.stdout is not None
        load.stdout.readline()
    for load in loads:
        assert load.stdin is not None
        with suppress(BrokenPipeError):
            load.stdin.write(b"\n")
            load.stdin.flush()


def _result(load: subprocess.Popen[bytes], options: Options) -> Result:
    try:
        output, errors = load.communicate(timeout=WARM_UP_S + options.seconds + _LOAD_MARGIN_S)
    except subprocess.TimeoutExpired:
        raise LocalError("the load did not end in time: the server is too slow to be measured") from None
    if load.returncode:
        raise LocalError(f"the load failed: {errors.decode(errors='replace').strip()}")
    return msgspec.json.decode(output, type=Result)


def run(options: Options, console: Console) -> None:
    """Start the servers, measure them in turns, print. Raises LocalError."""
    if options.plot is not None:
        report.pyplot()  # before anything is measured
    measured: dict[tuple[Row, str], Measured] = {}
    missing: set[str] = set()
    with ExitStack() as stack:
        top = Path(stack.enter_context(TemporaryDirectory(prefix="raftd-bench-", dir=options.data))).resolve()
        sync_s = sync_time_s(top)
        console.print(
            f"data in {top}: a write of {_SYNC_BYTES} bytes and fdatasync take {sync_s * 1e3:.2f} ms", highlight=False, soft_wrap=True
        )
        progress = stack.enter_context(
            Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=console, transient=True)
        )
        task = progress.add_task("starting", total=len(options.rows) * options.rounds)
        for number, row in enumerate(options.rows):
            with ExitStack() as of_row:
                servers = _start(options, top / str(number), of_row, missing, console)
                for round_number in range(1, options.rounds + 1):
                    for server in servers:
                        progress.update(task, description=f"{row.title}, round {round_number} of {options.rounds}: {server.name}")
                        one = measured.setdefault((row, server.name), Measured())
                        one.add(measure(server, row, options))
                        console.print(
                            f"{row.title:28} round {round_number}  {server.name:31} {one.rates[-1]:10,.0f} /s",
                            highlight=False,
                            soft_wrap=True,
                        )
                    progress.advance(task)
    report.show(measured, console)
    if options.json is not None:
        report.write_json(measured, msgspec.to_builtins(options, enc_hook=str), sync_s, options.json)
    if options.plot is not None:
        report.plot(measured, options.plot)


def _start(options: Options, directory: Path, stack: ExitStack, missing: set[str], console: Console) -> list[Server]:
    """The servers of one row, raftd first. One that is not installed is named once, and left out."""
    directory.mkdir()
    (directory / "raftd").mkdir()
    servers = [stack.enter_context(raftd_server(directory / "raftd", options.nodes))]
    for name in options.against:
        if name in missing:
            continue
        (directory / name).mkdir()
        try:
            servers.append(stack.enter_context(OTHERS[name](directory / name)))
        except Missing as error:
            missing.add(name)
            console.print(f"not measured: {error}", highlight=False, soft_wrap=True)
    for server in servers:
        stack.enter_context(Crowd(server.addresses, options.tubes, options.waiting, options.idle, options.size))
    return servers

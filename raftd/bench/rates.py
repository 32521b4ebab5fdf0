"""`raftd bench`: puts, and whole cycles, per second; beside another server in the same run, if asked for.

Machines are noisy, disks more so. So two servers are measured in turns, on the same directory's disk, and what
counts is their ratio.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import msgspec
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from raftd.bench.load import LATENCY_UNIT_S, Result, Spec, Work
from raftd.bench.local import LocalCluster, LocalError, free_ports, wait_for
from raftd.cli import signals
from raftd.cli.console import wide

_WARM_UP_S = 1.0
_STOP_S = 10.0
_LOAD_MARGIN_S = 30.0
_SYNCS = 50
_SYNC_BYTES = 4096
QUANTILES = (0.5, 0.99, 0.999)


class Server(msgspec.Struct, frozen=True):
    """What is measured. `check` raises LocalError, with the reason, if it has ended by itself. `processes`: the pids of its processes, the
    one that leads first."""

    name: str
    addresses: list[tuple[str, int]]
    check: Callable[[], None]
    processes: Callable[[], list[int]]


class Options(msgspec.Struct, frozen=True):
    """What `raftd bench` was asked for, by the names of its options."""

    work: Work | Literal["both"]
    nodes: int
    connections: int
    in_flight: int
    size: int
    seconds: float
    rounds: int
    processes: int
    against: str | None
    data: Path | None

    @property
    def works(self) -> list[Work]:
        return ["put", "cycle"] if self.work == "both" else [self.work]


class Round(msgspec.Struct, frozen=True):
    """What one round gave. `busiest`: of the load's processes, in parts of a core. `cpu_s`: processor time of each process of the server,
    the one that leads first; empty if another leads at the end."""

    latencies: Counter[int]
    seconds: float
    busiest: float
    cpu_s: list[float]

    @property
    def operations(self) -> int:
        return sum(self.latencies.values())


class Measured(msgspec.Struct):
    """The rounds of one server at one work. `cpu_us`: per operation, of each of its processes in each round."""

    rates: list[float] = []
    latencies: Counter[int] = msgspec.field(default_factory=Counter)
    busiest: float = 0.0
    cpu_us: list[list[float]] = []

    @property
    def rate(self) -> float:
        """The median of the rounds', per second."""
        return statistics.median(self.rates)

    def quantile_s(self, fraction: float) -> float:
        """The latency that so great a part of all was within, in seconds."""
        wanted = fraction * sum(self.latencies.values())
        seen = 0
        for latency in sorted(self.latencies):
            seen += self.latencies[latency]
            if seen >= wanted:
                return latency * LATENCY_UNIT_S
        return 0.0

    @property
    def leader_us(self) -> float | None:
        """Processor time of the process that leads per operation, in microseconds, the median of the rounds; None if it is not known."""
        return statistics.median(cpu[0] for cpu in self.cpu_us) if self.cpu_us else None

    @property
    def follower_us(self) -> float | None:
        """The same of each of the others, on average; None if there are none."""
        others = [statistics.mean(cpu[1:]) for cpu in self.cpu_us if len(cpu) > 1]
        return statistics.median(others) if others else None

    @property
    def all_us(self) -> float | None:
        """The same of all of them together."""
        return statistics.median(sum(cpu) for cpu in self.cpu_us) if self.cpu_us else None

    def add(self, one: Round) -> None:
        """One more round."""
        self.rates.append(one.operations / one.seconds)
        self.latencies.update(one.latencies)
        self.busiest = max(self.busiest, one.busiest)
        if one.cpu_s and one.operations:
            self.cpu_us.append([seconds * 1e6 / one.operations for seconds in one.cpu_s])


@contextmanager
def raftd_server(directory: Path, nodes: int) -> Iterator[Server]:
    """A cluster of its own on loopback."""
    with LocalCluster(directory, nodes) as cluster:

        def processes() -> list[int]:
            leader = cluster.leader()
            return [cluster.running[node].process.pid for node in sorted(cluster.nodes, key=lambda node: node != leader)]

        cluster.leader()
        name = f"raftd, {nodes} node{'s' if nodes > 1 else ''}"
        yield Server(name, [cluster.line_address(node) for node in cluster.nodes], cluster.check, processes)


@contextmanager
def beanstalkd_server(directory: Path) -> Iterator[Server]:
    """Debian's beanstalkd, which fsyncs every write as raftd does. Raises LocalError."""
    program = shutil.which("beanstalkd")
    if program is None:
        raise LocalError("there is no beanstalkd to measure against; install it (Debian: apt-get install beanstalkd)")
    (port,) = free_ports(1)
    arguments = [program, "-l", "127.0.0.1", "-p", str(port), "-b", str(directory), "-f0"]
    with signals.held():
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_for(lambda: _listens(port) or process.poll() is not None, what="beanstalkd listening")

        def check() -> None:
            if process.poll() is not None:
                raise LocalError(f"beanstalkd ended with status {process.returncode}")

        check()
        yield Server("beanstalkd -f0", [("127.0.0.1", port)], check, lambda: [process.pid])
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


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


def measure(server: Server, work: Work, options: Options) -> Round:
    """Run one round. Raises LocalError."""
    tube = f"bench-{uuid.uuid4().hex}"
    loads = []
    for number in range(options.processes):
        connections = len(range(number, options.connections, options.processes))
        addresses = server.addresses[number:] + server.addresses[:number]
        spec = Spec(addresses, connections, options.in_flight, options.size, work, _WARM_UP_S, options.seconds)
        arguments = [sys.executable, "-m", "raftd.bench.load", msgspec.json.encode(spec).decode(), tube]
        with signals.held():
            loads.append(subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    try:
        processes = server.processes()
        _begin_together(loads)
        time.sleep(_WARM_UP_S)  # the loads leave this time out of what they count, and say nothing when it is over
        before = [cpu_time_s(pid) for pid in processes]
        results = [_result(load, options) for load in loads]
        after = [cpu_time_s(pid) for pid in processes]
    except LocalError:
        server.check()  # then it is the cause
        raise
    else:
        server.check()
    finally:
        for load in loads:
            load.kill()
            load.wait()
    latencies: Counter[int] = Counter()
    for result in results:
        latencies.update(result.latencies)
    cpu_s = [end - begin for begin, end in zip(before, after, strict=True)] if server.processes() == processes else []
    return Round(latencies, max(result.seconds for result in results), max(result.cpu_s / result.seconds for result in results), cpu_s)


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
        output, errors = load.communicate(timeout=_WARM_UP_S + options.seconds + _LOAD_MARGIN_S)
    except subprocess.TimeoutExpired:
        raise LocalError("the load did not end in time: the server is too slow to be measured") from None
    if load.returncode:
        raise LocalError(f"the load failed: {errors.decode(errors='replace').strip()}")
    return msgspec.json.decode(output, type=Result)


def run(options: Options, console: Console) -> None:
    """Start the servers, measure them in turns, print. Raises LocalError."""
    measured: dict[tuple[Work, str], Measured] = {}
    with ExitStack() as stack:
        top = Path(stack.enter_context(TemporaryDirectory(prefix="raftd-bench-", dir=options.data)))
        console.print(
            f"data in {top}: a write of {_SYNC_BYTES} bytes and fdatasync take {sync_time_s(top) * 1e3:.2f} ms",
            highlight=False,
            soft_wrap=True,
        )
        servers = []
        for name, start in (("raftd", lambda path: raftd_server(path, options.nodes)), (options.against, beanstalkd_server)):
            if name is not None:
                (top / name).mkdir()
                servers.append(stack.enter_context(start(top / name)))
        progress = stack.enter_context(
            Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=console, transient=True)
        )
        task = progress.add_task("", total=len(options.works) * options.rounds * len(servers))
        for work in options.works:
            for number in range(1, options.rounds + 1):
                for server in servers:
                    progress.update(task, description=f"{work}, round {number} of {options.rounds}: {server.name}")
                    one = measured.setdefault((work, server.name), Measured())
                    one.add(measure(server, work, options))
                    progress.advance(task)
                    console.print(f"{work:5}  round {number}  {server.name:16} {one.rates[-1]:10,.0f} /s", highlight=False)
    wide(console).print(_table(measured, options))
    if options.against is not None:
        for work in options.works:
            ours, theirs = (measured[work, server.name].rate for server in servers)
            console.print(f"{work}: raftd does {ours / theirs:.2f} of what {servers[1].name} does", highlight=False)


def _table(measured: dict[tuple[Work, str], Measured], options: Options) -> Table:
    title = f"{options.connections} connections, {options.in_flight} in flight on each, bodies of {options.size} bytes"
    caption = (
        "Per second: the median of the rounds. A cycle is put, reserve, delete. Load: what the load's busiest process took of a core. "
        "Then processor time per operation in µs: of the leader, of each follower, of all nodes together."
    )
    table = Table(title=title, caption=caption, box=box.SIMPLE)
    for heading in ("", "server"):
        table.add_column(heading, no_wrap=True)
    for heading in ("per second", *(f"p{100 * fraction:g} ms" for fraction in QUANTILES), "load", "leader", "follower", "all"):
        table.add_column(heading, no_wrap=True, justify="right")
    for (work, name), one in measured.items():
        quantiles = (f"{one.quantile_s(fraction) * 1e3:.2f}" for fraction in QUANTILES)
        cpu = ("–" if value is None else f"{value:.1f}" for value in (one.leader_us, one.follower_us, one.all_us))
        table.add_row(work, name, f"{one.rate:,.0f}", *quantiles, f"{one.busiest:.0%}", *cpu)
    return table

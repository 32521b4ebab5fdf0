"""`raftd bench failover`: how long nobody's put is answered when the leader is killed, paused, isolated, or hands the lead over.

Clients on all nodes put one job after the other. A gap is the longest time between two answers to any of them, around the moment at
which the leader was disturbed.
"""

from __future__ import annotations

import itertools
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from twisted.internet import reactor as _reactor
from twisted.internet.threads import blockingCallFromThread

from raftd.bench.chaos import ProxiedCluster
from raftd.bench.load import CONNECTIONS
from raftd.bench.loaders.connection import Connection, LoadError
from raftd.bench.local import wait_for
from raftd.bench.servers import OTHERS, Missing, Server, raftd_server
from raftd.cli.console import wide

reactor = cast(Any, _reactor)

Way = Literal["killed", "paused", "handed over", "isolated"]
#: Those that need no proxy between the nodes; of other servers the leader is only killed.
WAYS: tuple[Way, ...] = ("killed", "paused", "handed over")
_NODES = 3
_TUBE = "failover"
_BODY = b"x" * 200
_STEADY_S = 0.5
_LONG_S = 60.0
#: A client asks again, or at another node, when it has no answer for so long (seconds).
_PATIENCE_S = 0.25
_RECONNECT_S = 0.02
#: So many answers behind the disturbance end the measurement: the lead is found again.
_ANSWERS = 50
_SETTLE_S = 0.05


class Options(msgspec.Struct, frozen=True):
    """What `raftd bench failover` was asked for."""

    times: int
    against: tuple[str, ...]
    data: Path | None


class _Clients:
    """One for each node, in a thread; `answers` are the moments of all answers."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._stopped = threading.Event()
        self.answers: list[float] = []
        self._threads = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(len(server.addresses))]

    def __enter__(self) -> _Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(_LONG_S)

    def _run(self, number: int) -> None:
        addresses = self._server.addresses
        for place in itertools.count(number):
            if self._stopped.is_set():
                return
            with suppress(OSError, LoadError):
                connection = CONNECTIONS[self._server.protocol](addresses[place % len(addresses)], _TUBE, _BODY)
                try:
                    self._put(connection)
                finally:
                    connection.close()
            self._stopped.wait(_RECONNECT_S)

    def _put(self, connection: Connection) -> None:
        connection.socket.settimeout(_PATIENCE_S)
        while not self._stopped.is_set():
            connection.put(1)
            while not connection.puts_done:
                connection.receive()
            connection.puts_done = 0
            self.answers.append(time.monotonic())

    def gap_s(self, began: float, ended: float) -> float:
        """The longest time without an answer from `began` until enough have come after `ended`: between them the leader is disturbed.
        Raises LocalError."""
        wait_for(lambda: len(self.answers) > _ANSWERS and self.answers[-_ANSWERS] > ended + _SETTLE_S, _LONG_S, "puts being answered again")
        moments = sorted(moment for moment in list(self.answers) if moment > began)
        return max(later - earlier for earlier, later in itertools.pairwise(moments))


def _disturb(server: Server, way: Way) -> Callable[[], None]:
    """Do it to the leader; return how it is made good again. Raises LocalError."""
    leader = server.processes()[0]
    if way == "killed":
        os.kill(leader, signal.SIGKILL)

        def restart() -> None:
            wait_for(lambda: _has_ended(leader), what="a killed process ending")
            server.restart()

        return restart
    if way == "isolated":
        return server.isolate()
    if way == "paused":
        os.kill(leader, signal.SIGSTOP)
        return lambda: os.kill(leader, signal.SIGCONT)
    server.hand_over()
    return lambda: None


class _Cluster(ProxiedCluster):
    """It is closed in another thread than that of the reactor, in which its proxy works."""

    def close_proxy(self) -> None:
        blockingCallFromThread(reactor, super().close_proxy)


@contextmanager
def _proxied(directory: Path) -> Iterator[Server]:
    """raftd, each node behind a proxy that runs in the reactor of this process, in a thread; once in a process."""
    thread = threading.Thread(target=reactor.run, kwargs={"installSignalHandlers": False}, daemon=True)
    thread.start()
    cluster = blockingCallFromThread(reactor, _Cluster, directory, _NODES, Random())

    def isolate() -> Callable[[], None]:
        leader = cluster.leader()
        others = [node for node in cluster.nodes if node != leader]
        pairs = {pair for node in others for pair in ((leader, node), (node, leader))}
        blockingCallFromThread(reactor, cluster.proxy.cut, pairs, _LONG_S, True)
        return lambda: blockingCallFromThread(reactor, cluster.proxy.heal)

    try:
        with raftd_server(directory, _NODES, cluster) as server:
            yield msgspec.structs.replace(server, isolate=isolate)
    finally:
        reactor.callFromThread(reactor.stop)
        thread.join(_LONG_S)


def _has_ended(pid: int) -> bool:
    """Whether it runs no more; it may wait to be asked for its status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def measure(server: Server, way: Way, times: int, tell: Callable[[str], None]) -> list[float]:
    """The gaps, in seconds; `tell` hears of each. Raises LocalError."""
    gaps = []
    with _Clients(server) as clients:
        for number in range(1, times + 1):
            server.processes()  # waits for a leader
            began = time.monotonic()
            clients.gap_s(began, began + _STEADY_S)  # puts are answered
            began = time.monotonic()
            heal = _disturb(server, way)
            try:
                gaps.append(clients.gap_s(began, time.monotonic()))
            finally:
                heal()
            tell(f"{server.name}, {way}, {number} of {times}: {gaps[-1] * 1e3:,.0f} ms")
    return gaps


def run(options: Options, console: Console) -> None:
    """Measure raftd in every way, others when the leader is killed; print a table. Raises LocalError."""

    def started(name: str, top: Path, ways: tuple[Way, ...]) -> AbstractContextManager[Server]:
        if name != "raftd":
            return OTHERS[name](top)
        return _proxied(top) if ways == ("isolated",) else raftd_server(top, _NODES)

    table = Table(caption="Time without an answer to any client, in ms.", box=box.SIMPLE)
    for heading in ("server", "the leader is"):
        table.add_column(heading, no_wrap=True)
    for heading in ("least", "median", "most", "ratio"):
        table.add_column(heading, no_wrap=True, justify="right")
    own = 0.0
    with TemporaryDirectory(prefix="raftd-failover-", dir=options.data) as directory:
        top = Path(directory).resolve()
        runs: list[tuple[str, tuple[Way, ...]]] = [("raftd", WAYS), ("raftd", ("isolated",))]
        for number, (name, ways) in enumerate([*runs, *((name, WAYS[:1]) for name in options.against)]):
            below = top / str(number)
            below.mkdir()
            try:
                with started(name, below, ways) as server:
                    server.prepare(_TUBE)
                    for way in ways:
                        gaps = measure(server, way, options.times, lambda line: console.print(line, highlight=False))
                        median = statistics.median(gaps)
                        own = own or median
                        ratio = f"{own / median:.2f}" if name != "raftd" else "–"
                        table.add_row(server.name, way, *(f"{gap * 1e3:,.0f}" for gap in (min(gaps), median, max(gaps))), ratio)
            except Missing as error:
                console.print(f"not measured: {error}", highlight=False, soft_wrap=True)
    wide(console).print(table)

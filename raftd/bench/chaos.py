"""`raftd chaos`: three real nodes under kills, stops, partitions, delays and cuts, and a verdict on all that clients were told.

The nodes reach each other through a proxy. Everything runs in one turn of the reactor after another, so that this reads
as what happens. At the end the logs of all nodes are compared, and the recorded history is held beside them.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from typing import Any, cast

import msgspec
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from twisted.internet import reactor as _reactor
from twisted.logger import LogEvent, globalLogPublisher

from raftd.bench.ends import Ends
from raftd.bench.local import LocalCluster, LocalError
from raftd.bench.proxy import Pair, Proxy
from raftd.bench.recorded import RecordedClient, Visitor, Watch
from raftd.bench.unique import Unique
from raftd.cli import signals
from raftd.cli.console import wide
from raftd.errors import StorageError
from raftd.raft.messages import Entry, EntryKind
from raftd.sim import history
from raftd.storage.filesystem import RealFileSystem
from raftd.storage.log import SegmentedLog
from raftd.storage.vote import VoteFile
from raftd.wire.client import Status
from raftd.wire.peer import decode_hello

reactor = cast(Any, _reactor)

NODES = 3
_CLIENTS = 12
_PIPELINE = 3
_PAUSE_S = 0.03  # between two requests of a client
_PRODUCERS = 16
_WORKERS = 6
_PUT_PAUSE_S = 0.001  # between two puts of a producer
_TURN_S = 0.02
_WATCH_S = 0.1
_START_S = 20.0
_REST_S = 30.0
#: Another loopback address than that of the nodes.
_PROXY_HOST = "127.0.0.2"
#: A command that ends for a signal has a status from here on.
_SIGNALLED = 128
#: Between the beginnings of two faults, on average; and how long each lasts at most.
_FAULT_EVERY_S = 1.0
_LONGEST_S = 2.5


class ProxiedCluster(LocalCluster):
    """The nodes find each other where the proxy listens."""

    def __init__(self, directory: Path, count: int, random: Random) -> None:
        super().__init__(directory, count)
        addresses = {node: self.address(node, "peer") for node in self.nodes}
        self.proxy = Proxy(reactor, random, _PROXY_HOST, addresses, lambda body: decode_hello(body).node)
        known = {node: {**address, "host": _PROXY_HOST, "listen": address["host"]} for node, address in self.addresses.items()}
        self.write_config(self.config, known)

    def close(self) -> None:
        self.close_proxy()
        super().close()

    def close_proxy(self) -> None:
        """In the thread of the reactor."""
        self.proxy.close()

    def signal(self, node: int, number: signal.Signals) -> None:
        """Nothing if it does not run."""
        if node in self.running:
            self.running[node].process.send_signal(number)


class Chaos:
    """One run, which says on `console` what happens."""

    def __init__(self, minutes: float, console: Console, directory: Path) -> None:
        self._seconds = minutes * 60
        self._console = console
        self._random = Random()
        self._directory = directory
        self._faults: Counter[str] = Counter()
        self._problems: list[str] = []
        self._leaders: list[tuple[int, int]] = []  # (term, node), as they were seen
        self._busy: set[int] = set()  # nodes that something happens to already
        self._cluster: ProxiedCluster
        self._clients: list[RecordedClient] = []
        self._unique = Unique(_PUT_PAUSE_S)
        self._ends = Ends()
        self._watches: dict[int, Watch] = {}

    def run(self) -> bool:
        """Whether nothing was wrong, and enough is known to say so. Raises LocalError if a node ended by itself."""
        observer = cast(Any, self._logged)
        globalLogPublisher.addObserver(observer)
        try:
            return self._run()
        finally:
            globalLogPublisher.removeObserver(observer)

    def _logged(self, event: LogEvent) -> None:
        """End this run at an exception in a callback, which the reactor would only log."""
        if "log_failure" in event:
            self._problems.append(f"bug: {event['log_failure'].getTraceback()}")

    def _run(self) -> bool:
        try:
            commit = self._live()
        finally:
            self._write_history()
        return self._judge(commit)

    def _live(self) -> int:
        """Everything until the nodes have ended; the commit index that they agreed on."""
        with ProxiedCluster(self._directory, NODES, self._random) as self._cluster:
            self._watch_anew()
            addresses = [self._cluster.address(node, "client") for node in self._cluster.nodes]
            self._clients = [RecordedClient(reactor, self._random, number, addresses, _PIPELINE, _PAUSE_S) for number in range(_CLIENTS)]
            self._until(lambda: self._leader() != 0, _START_S, "an elected leader")
            for client in self._clients:
                client.start()
            self._unique.start(addresses, _PRODUCERS, _WORKERS)
            self._ends.start(addresses)
            self._under_faults()
            self._come_to_rest()
            commit = max((status.commit_index for status in self._statuses()), default=0)
            for watch in self._watches.values():
                watch.close()
            for node, local in sorted(self._cluster.running.items()):
                try:
                    local.stop()
                except subprocess.TimeoutExpired:
                    self._problems.append(f"liveness: node {node} does not end after SIGTERM")
                    continue
                if local.process.returncode not in (0, -signal.SIGTERM):  # twistd ends by the signal, after its service
                    self._problems.append(f"bug: node {node} ends with status {local.process.returncode}")
        return commit

    def _watch_anew(self) -> None:
        """Nothing that a node said before counts any more."""
        for watch in self._watches.values():
            watch.close()
        self._watches = {node: Watch(reactor, self._cluster.address(node, "client"), _WATCH_S) for node in self._cluster.nodes}

    # -- time ---------------------------------------------------------------------------------

    def _turn(self) -> None:
        """The reactor would swallow the SystemExit of a signal: those wait until it has had its turn."""
        with signals.held():
            reactor.iterate(_TURN_S)
        for leader in {(status.term, status.node) for status in self._statuses() if status.role == "leader"}:
            if leader not in self._leaders:
                self._leaders.append(leader)
        self._cluster.check()

    def _until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise LocalError(f"{what}: not within {seconds:g} s")
            self._turn()

    def _later(self, seconds: float, call: Callable[..., object], *args: object) -> None:
        reactor.callLater(seconds, call, *args)

    # -- what is known ------------------------------------------------------------------------

    def _statuses(self) -> list[Status]:
        return [watch.status for watch in self._watches.values() if watch.status is not None]

    def _leader(self) -> int:
        """As nodes say, 0 if none does."""
        return max(((status.term, status.leader) for status in self._statuses() if status.leader), default=(0, 0))[1]

    # -- faults -------------------------------------------------------------------------------

    def _under_faults(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task("chaos", total=self._seconds)
            began = time.monotonic()
            next_fault = began + 1
            while (now := time.monotonic()) - began < self._seconds:
                progress.update(task, completed=now - began, description=f"{sum(self._faults.values())} faults")
                if now >= next_fault:
                    self._do_something()
                    next_fault = now + self._random.expovariate(1 / _FAULT_EVERY_S)
                self._turn()

    def _do_something(self) -> None:
        """One fault; half of them aim at the leader. Several may be under way, but only one about the same node."""
        node = self._leader() if self._random.random() < 0.5 else 0
        node = node or self._random.choice(self._cluster.nodes)
        other = self._random.choice([one for one in self._cluster.nodes if one != node])
        seconds = self._random.uniform(0.1, _LONGEST_S)
        faults = (self._kill, self._kill, self._stop, self._isolate, self._part, self._deafen, self._slow_down, self._break, self._kill_all)
        self._random.choice(faults)(node, other, seconds)

    def _count(self, fault: str) -> None:
        self._faults[fault] += 1

    def _kill(self, node: int, other: int, seconds: float) -> None:
        if node not in self._busy:
            self._count("kill (SIGKILL)")
            self._busy.add(node)
            self._kill_now(node)
            self._later(seconds, self._start, node)

    def _kill_all(self, node: int, other: int, seconds: float) -> None:
        if not self._busy:
            self._count("kill of all nodes")
            for one in self._cluster.nodes:
                self._busy.add(one)
                self._kill_now(one)
                self._later(self._random.uniform(0, 0.5), self._start, one)

    def _kill_now(self, node: int) -> None:
        self._unique.node_dies(self._cluster.address(node, "client"))
        self._cluster.kill(node)

    def _start(self, node: int) -> None:
        self._busy.discard(node)
        self._cluster.start(node)

    def _stop(self, node: int, other: int, seconds: float) -> None:
        if node not in self._busy:
            self._count("stop (SIGSTOP, SIGCONT)")
            self._busy.add(node)
            self._cluster.signal(node, signal.SIGSTOP)
            self._later(seconds, self._resume, node)

    def _resume(self, node: int) -> None:
        self._busy.discard(node)
        self._cluster.signal(node, signal.SIGCONT)

    def _cut(self, pairs: set[Pair], seconds: float) -> None:
        self._cluster.proxy.cut(pairs, seconds, holds=self._random.random() < 0.5)

    def _isolate(self, node: int, other: int, seconds: float) -> None:
        self._count("partition: one node alone")
        self._cut({pair for one in self._cluster.nodes if one != node for pair in ((node, one), (one, node))}, seconds)

    def _part(self, node: int, other: int, seconds: float) -> None:
        """The third still hears both."""
        self._count("partition: two nodes apart")
        self._cut({(node, other), (other, node)}, seconds)

    def _deafen(self, node: int, other: int, seconds: float) -> None:
        self._count("partition: one way")
        third = {(node, one) for one in self._cluster.nodes if one not in (node, other) and self._random.random() < 0.5}
        self._cut({(node, other), *third}, seconds)

    def _slow_down(self, node: int, other: int, seconds: float) -> None:
        self._count("slow links")
        slowest = self._random.choice((0.02, 0.1, 0.5))
        pairs = {(node, one) for one in self._cluster.nodes if one != node} | {(other, node)}
        self._cluster.proxy.slow_down(pairs, seconds, (slowest / 4, slowest))

    def _break(self, node: int, other: int, seconds: float) -> None:
        self._count("connection cut in a frame")
        self._cluster.proxy.break_connections((node, other))

    # -- the end ------------------------------------------------------------------------------

    def _come_to_rest(self) -> None:
        """All faults end by themselves; then all must be answered, and all nodes agree."""
        self._until(lambda: not self._busy, _LONGEST_S + 1, "the end of the last fault")
        self._cluster.proxy.heal()
        for client in self._clients:
            client.finish()
        self._unique.stop_putting()
        self._ends.stop_putting()
        try:
            self._until(lambda: all(client.is_done for client in self._clients), _REST_S, "an answer for every client after healing")
            self._until(lambda: self._unique.is_done, _REST_S, "every job of the Python clients being worked after healing")
            self._until(lambda: self._ends.is_done, _REST_S, "an end for every job of tubes with policies after healing")
            self._unique.close()
            self._ends.close()
            visitors = [
                Visitor(reactor, self._random, len(self._clients) + node, [self._cluster.address(node, "client")], 1, _PAUSE_S)
                for node in self._cluster.nodes
            ]
            self._clients += visitors
            for visitor in visitors:
                visitor.start()
            self._until(lambda: all(visitor.is_done for visitor in visitors), _REST_S, "a put at every node after healing")
            for client in self._clients:
                client.close()
            self._watch_anew()
            self._until(self._agree, _REST_S, "one leader, and all nodes at the same entry, after healing")
        except LocalError as late:
            self._cluster.check()  # if a node has ended, that is what is wrong
            self._problems.append(f"liveness: {late}")

    def _agree(self) -> bool:
        statuses = self._statuses()
        places = {place for status in statuses for place in (status.commit_index, status.applied_index)}
        leaders = {status.leader for status in statuses}
        told = max((call.index for call in self._calls), default=0)
        return len(statuses) == NODES and len(places) == len(leaders) == 1 and 0 not in leaders and max(places) >= told

    # -- judging ------------------------------------------------------------------------------

    @property
    def _calls(self) -> list[history.Call]:
        return [call for client in self._clients for call in client.calls] + self._unique.calls + self._ends.calls

    def _write_history(self) -> None:
        (self._directory / "history.json").write_bytes(msgspec.json.encode(self._calls))

    def _judge(self, commit: int) -> bool:
        verdict, entries, hashes = history.Verdict([]), 0, {}
        try:
            logs = {node: self._committed(node, commit) for node in self._cluster.nodes}
            hashes = {node: _hash(log) for node, log in logs.items()}
            log = max(logs.values(), key=len)
            entries = len(log)
            verdict = history.check(
                [history.LogEntry(entry.index, entry.time_ms, entry.data if entry.kind is EntryKind.BATCH else b"") for entry in log],
                self._calls,
            )
        except (StorageError, ValueError) as error:  # a log that cannot be read, or that no leader writes
            self._problems.append(f"bug: {error}")
        if len(set(hashes.values())) > 1:
            self._problems.append(f"the nodes' logs differ in what is committed: {hashes}")
        self._problems += [problem for client in self._clients for problem in client.problems]
        self._problems += self._unique.problems + self._ends.problems
        problems = self._problems + verdict.problems
        self._show(verdict, problems, entries, ", ".join(sorted(set(hashes.values()))))
        return not problems and verdict.proves_something

    def _committed(self, node: int, commit: int) -> list[Entry]:
        """What the node's disk holds of the entries that count as committed."""
        directory = self._directory / "data" / str(node)
        identity = VoteFile(RealFileSystem(), str(directory)).read()
        if identity is not None and identity.first_segment > 1:
            raise LocalError("the run was so long that the beginning of the log is gone, without which nothing can be judged")
        return SegmentedLog(RealFileSystem(), str(directory / "log"), bytes).recover().entries[:commit]

    def _show(self, verdict: history.Verdict, problems: list[str], entries: int, log_hash: str) -> None:
        table = Table(box=box.SIMPLE, show_header=False)
        table.add_column()
        table.add_column(justify="right")
        kinds = Counter(problem.partition(":")[0] for problem in problems)
        rows = {
            "minutes": f"{self._seconds / 60:g}",
            "asked for": f"{verdict.calls:,}",
            "never answered": f"{verdict.unknown:,} ({verdict.unknown / max(1, verdict.calls):.1%})",
            "sessions resumed": f"{sum(client.resumed for client in self._clients) + self._unique.resumed + self._ends.resumed}",
            "entries committed": f"{entries:,}",
            "hash of every node's log": log_hash,
            "leaders": f"{len(self._leaders)}",
            "lost": f"{kinds['lost']}",
            "phantoms": f"{kinds['phantom']}",
            "out of order": f"{kinds['order']}",
            "other problems": f"{len(problems) - kinds['lost'] - kinds['phantom'] - kinds['order']}",
        }
        for name, value in rows.items():
            table.add_row(name, value)
        for counts in (self._unique.summary(), self._ends.summary(), self._faults, self._cluster.proxy.counts):
            table.add_section()
            for name, number in counts.items():
                table.add_row(name, f"{number:,}")
        console = wide(self._console)
        console.print(table)
        for problem in problems[:20]:
            console.print(problem, style="red", markup=False, highlight=False, soft_wrap=True)
        if not verdict.calls:
            console.print("nothing was asked: such a run proves nothing", style="red")
        elif not verdict.proves_something:
            console.print(f"more than {history.MOST_UNKNOWN:.0%} was never answered: such a run proves nothing", style="red")


def _hash(entries: list[Entry]) -> str:
    digest = blake2b(digest_size=8)
    for entry in entries:
        digest.update(b"%d %d %d %d %d " % (entry.index, entry.term, entry.time_ms, entry.kind, len(entry.data)) + entry.data)
    return digest.hexdigest()


def run(minutes: float, console: Console) -> bool:
    """Whether all was well. If not, what the nodes wrote and the history are kept. Raises LocalError."""
    directory = Path(mkdtemp(prefix="raftd-chaos-"))
    keep = True
    try:
        keep = not Chaos(minutes, console, directory).run()
        if keep:
            console.print(f"what the nodes wrote and the recorded history are in {directory}", highlight=False, soft_wrap=True)
        return not keep
    except LocalError as error:
        raise LocalError(f"{error}\nWhat the nodes wrote is in {directory}") from None
    except SystemExit as gone:
        keep = not (isinstance(gone.code, int) and gone.code >= _SIGNALLED)
        raise
    finally:
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)

"""`raftd bench capacity`: how large a queue may become on this machine, and what that costs.

Three of four nodes run. They are filled with jobs, or the jobs are put and deleted. Then the nodes are started again, and the
fourth, which has seen nothing so far, catches up. What is printed was measured; nothing is judged.
"""

from __future__ import annotations

import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from raftd.bench.local import LocalCluster, LocalError, wait_for
from raftd.client.connection import Connection
from raftd.wire.client import Status, StatusRequest

_NODES = 4
_IN_FLIGHT = 100
_DELETED_AT_ONCE = 10_000
_POLL_S = 0.25
_LONG_S = 600.0
_FORK = re.compile(r"copy of this process was made in ([\d.]+) ms; it took ([\d.]+) s and (\d+) MB")


class _Client:
    """One connection that asks many things at once. Raises LocalError for an answer that it does not expect."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._socket = socket.create_connection(address, timeout=_LONG_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._answers = self._socket.makefile("rb")

    def ask(self, requests: list[bytes], expected: bytes) -> list[bytes]:
        """The answers, without that word."""
        found = []
        for start in range(0, len(requests), _IN_FLIGHT):
            some = requests[start : start + _IN_FLIGHT]
            self._socket.sendall(b"".join(some))
            for _ in some:
                answer = self._answers.readline().strip()
                if not answer.startswith(expected):
                    raise LocalError(f"a node answered {answer[:80]!r}")
                found.append(answer[len(expected) :])
        return found

    def close(self) -> None:
        self._answers.close()
        self._socket.close()


class _Watch(threading.Thread):
    """Looks at memory and disk of all nodes now and then."""

    def __init__(self, cluster: LocalCluster) -> None:
        super().__init__(daemon=True)
        self.largest_memory = 0
        self.largest_disk = 0
        self._cluster = cluster
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(_POLL_S):
            for node, process in list(self._cluster.running.items()):
                self.largest_memory = max(self.largest_memory, memory_of(process.process.pid))
                self.largest_disk = max(self.largest_disk, disk_of(self._cluster.directory / "data" / str(node)))

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def memory_of(pid: int) -> int:
    """Resident, in bytes; 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    except (OSError, IndexError):
        return 0


def disk_of(directory: Path) -> int:
    """In bytes, as far as files stay while they are looked at."""
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:
            continue
    return total


class Scale:
    def __init__(self, jobs: int, size: int, churn: bool, console: Console, directory: Path) -> None:
        self._jobs = jobs
        self._size = size
        self._churn = churn
        self._console = console
        self._table = Table(box=box.SIMPLE, show_header=False)
        self._table.add_column()
        self._table.add_column(justify="right")
        self._cluster = LocalCluster(directory, _NODES)

    def run(self) -> None:
        """Raises LocalError."""
        cluster = self._cluster
        serving = cluster.nodes[:-1]
        try:
            for node in serving:
                cluster.start(node)
            cluster.leader()
            empty = {node: memory_of(cluster.running[node].process.pid) for node in serving}
            watch = _Watch(cluster)
            watch.start()
            seconds = self._timed("putting and deleting" if self._churn else "putting", self._load)
            self._row("jobs", f"{self._jobs:,} of {self._size} bytes")
            self._row("per second", f"{self._jobs / seconds:,.0f}")
            self._all_agree(serving)
            self._sizes(serving, empty, watch)
            self._row("longest pause of a node but for the forks, most work in one", self._pause(serving))
            watch.stop()
            for node in serving:
                cluster.kill(node)
            self._row("started again, all at once, until a put is answered", f"{self._timed('starting', self._start_again):.1f} s")
            self._row("the fourth node, from nothing, until it agrees", f"{self._timed('catching up', self._catch_up):.1f} s")
            if self._status(cluster.nodes[-1]).log_first_index > 1:
                self._row("  by a snapshot", "yes")
            self._row("the same since it started again", self._pause(cluster.nodes))
            cluster.check()
        finally:
            cluster.close()
        self._console.print(self._table)

    def _row(self, name: str, value: str) -> None:
        self._table.add_row(name, value)

    def _timed(self, what: str, work: Callable[[], None]) -> float:
        with self._console.status(f"{what} …"):
            started = time.monotonic()
            work()
            return time.monotonic() - started

    def _load(self) -> None:
        """One connection on each node, in a thread of its own."""
        nodes = list(self._cluster.running)
        errors: list[BaseException] = []

        def work(node: int, jobs: int) -> None:
            try:
                client = _Client(self._cluster.line_address(node))
                put = b"put 0 0 3600 %d\r\n%b\r\n" % (self._size, b"x" * self._size)
                while jobs:
                    now = min(jobs, _DELETED_AT_ONCE)
                    ids = client.ask([put] * now, b"INSERTED ")
                    if self._churn:
                        client.ask([b"delete %b\r\n" % id for id in ids], b"DELETED")
                    jobs -= now
                client.close()
            except (OSError, LocalError) as error:
                errors.append(error)

        shares = [self._jobs // len(nodes) + (place < self._jobs % len(nodes)) for place in range(len(nodes))]
        threads = [threading.Thread(target=work, args=pair, daemon=True) for pair in zip(nodes, shares, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise LocalError(str(errors[0]))

    def _applied(self, node: int) -> int:
        stats = self._cluster.stats(node)
        return int(stats["applied-index"]) if stats else -1

    def _status(self, node: int) -> Status:
        with Connection(self._cluster.address(node, "client"), _LONG_S) as connection:
            reply = connection.ask(StatusRequest(1)).reply
        assert isinstance(reply, Status)
        return reply

    def _pause(self, nodes: list[int]) -> str:
        """Return the longest pause of these nodes since they started, forks excepted, and the longest work in one turn."""
        longest, work = 0.0, 0.0
        for node in nodes:
            status = self._status(node)
            longest, work = max(longest, status.longest_pause_ms), max(work, status.longest_work_ms)
        return f"{longest:.0f} ms, {work:.0f} ms"

    def _all_agree(self, nodes: list[int]) -> None:
        furthest = max(self._applied(node) for node in nodes)
        wait_for(lambda: all(self._applied(node) >= furthest for node in nodes), _LONG_S, "the nodes agreeing")

    def _sizes(self, nodes: list[int], empty: dict[int, int], watch: _Watch) -> None:
        if self._churn:
            self._row("most memory of a node", f"{watch.largest_memory / 1e6:,.0f} MB")
            self._row("most disk of a node", f"{watch.largest_disk / 1e6:,.0f} MB")
        else:
            each = [(memory_of(self._cluster.running[node].process.pid) - empty[node]) / self._jobs for node in nodes]
            self._row("memory of each node, bytes a job", ", ".join(f"{size:,.0f}" for size in each))
            self._row(
                "disk of each node", ", ".join(f"{disk_of(self._cluster.directory / 'data' / str(node)) / 1e6:,.0f} MB" for node in nodes)
            )
        copies = [copy for node in nodes for copy in _FORK.findall(self._cluster.log(node))]
        if copies:
            self._row("snapshots", f"{len(copies)}")
            self._row("  longest fork", f"{max(float(copy[0]) for copy in copies):.1f} ms")
            self._row("  longest to write", f"{max(float(copy[1]) for copy in copies):.1f} s")
            self._row("  most memory of a copy's own", f"{max(int(copy[2]) for copy in copies):,} MB")

    def _start_again(self) -> None:
        cluster = self._cluster
        for node in cluster.nodes[:-1]:
            cluster.start(node)
        wait_for(lambda: cluster.find_leader() or None, _LONG_S, "an elected leader")
        client = _Client(cluster.line_address(cluster.find_leader() or cluster.nodes[0]))
        client.ask([b"put 0 0 60 1\r\nx\r\n"], b"INSERTED ")
        client.close()

    def _catch_up(self) -> None:
        cluster = self._cluster
        last = cluster.nodes[-1]
        cluster.start(last)
        self._all_agree(cluster.nodes)


def run(jobs: int, size: int, churn: bool, data: Path | None, console: Console) -> None:
    """Raises LocalError."""
    with tempfile.TemporaryDirectory(prefix="raftd-scale-", dir=data) as directory:
        Scale(jobs, size, churn, console, Path(directory)).run()

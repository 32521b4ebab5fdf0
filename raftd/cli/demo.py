"""`raftd demo`: three nodes, clients on all of them, and a leader that is killed, twice. Is anything lost?"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import TypeVar

import msgspec
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from raftd.bench.local import LocalCluster, LocalError, wait_for
from raftd.bench.workload import Workload
from raftd.cli.console import wide
from raftd.client.blocking import Client

NODES = 3
KILLS = 2
_PRODUCERS = 9
_WORKERS = 9
_ALL_UP_S = 3.0  # of load, before each kill
_ONE_DOWN_S = 4.0  # of load, after it: a put gap of up to that much would show
_PATIENCE_S = 15.0
_REFRESH_S = 0.1
_JOBS = ("ready", "reserved", "delayed", "buried")

_T = TypeVar("_T")


class Kill(msgspec.Struct, frozen=True):
    """What clients saw of one."""

    node: int
    successor: int
    put_gap_s: float


class Demo:
    """One run, which says on `console` what happens."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(TextColumn("{task.description}"), BarColumn(), console=console, transient=True)
        self._bar = self._progress.add_task("", total=1 + KILLS * (_ALL_UP_S + _ONE_DOWN_S) + 1)
        self._began = time.monotonic()
        self._kills: list[Kill] = []
        self._vanished = 0
        self._cluster: LocalCluster
        self._load: Workload

    def run(self) -> bool:
        """Whether every acknowledged job was worked, once. Raises LocalError if a node or a client failed; then, and
        if not, what the nodes wrote is kept."""
        directory = Path(mkdtemp(prefix="raftd-demo-"))
        keep = True
        try:
            keep = not self._run(directory)
            if keep:
                self._say(f"what the nodes wrote is in {directory}")
            return not keep
        except (TimeoutError, LocalError) as error:
            raise LocalError(f"{error}\nWhat the nodes wrote is in {directory}") from None
        except (OSError, SystemExit):
            keep = False
            raise
        finally:
            if not keep:
                shutil.rmtree(directory, ignore_errors=True)

    def _run(self, directory: Path) -> bool:
        with LocalCluster(directory, NODES) as self._cluster, self._progress:
            addresses = [self._cluster.address(node, "client") for node in self._cluster.nodes]
            self._load = Workload(addresses, _PRODUCERS, _WORKERS)
            endpoints = ", ".join(str(port) for _, port in addresses)
            self._say(f"{NODES} nodes start in {directory}")
            self._say(f"their client listeners are the ports {endpoints}")
            leader = self._watched(self._cluster.find_leader, "a leader")
            self._say(f"node {leader} leads; {_PRODUCERS} producers and {_WORKERS} workers begin, on all nodes")
            self._advance(1)
            self._load.start()
            for _ in range(KILLS):
                self._kill_the_leader()
            self._say("producers stop; workers empty the queue")
            self._load.finish_putting()
            self._watched(self._is_empty, "an empty queue on every node")
            self._load.finish()
            self._vanished = self._count_vanished()
            self._advance(1)
        return self._conclude()

    def _count_vanished(self) -> int:
        """Return the jobs that are gone although no worker deleted them. A worker whose node was killed may not know what became of
        its delete; the cluster does, and counts."""
        host, port = self._cluster.address(self._cluster.leader(), "client")
        with Client(f"raftd://{host}:{port}") as client:
            tube = client.stats("default")
        return tube.total_jobs - tube.deletes if tube is not None else 0

    def _kill_the_leader(self) -> None:
        self._pass_time(_ALL_UP_S)
        leader = self._watched(self._cluster.find_leader, "a leader")
        killed = time.monotonic()
        self._cluster.kill(leader)
        self._say(f"[bold red]node {leader}, the leader, is killed[/] (SIGKILL)")
        successor = self._watched(self._cluster.find_leader, "a new leader")
        self._say(f"node {successor} leads")
        self._pass_time(killed + _ONE_DOWN_S - time.monotonic())
        gap_s = self._load.longest_gap_s(killed, time.monotonic())
        self._kills.append(Kill(leader, successor, gap_s))
        self._say(f"for {gap_s:.2f} s no put was acknowledged; node {leader} is started again")
        self._cluster.start(leader)
        self._watched(lambda: self._has_caught_up(leader), f"node {leader} back")
        self._say(f"node {leader} has caught up")

    def _has_caught_up(self, node: int) -> bool:
        leader = self._cluster.find_leader()
        ahead = self._cluster.stats(leader) if leader else None
        stats = self._cluster.stats(node)
        return bool(stats and ahead and stats["term"] == ahead["term"] and int(stats["applied-index"]) >= int(ahead["applied-index"]))

    def _is_empty(self) -> bool:
        every = [self._cluster.stats(node) for node in self._cluster.nodes]
        return all(stats is not None and all(stats[f"current-jobs-{state}"] == "0" for state in _JOBS) for stats in every)

    # -- time, and what is shown ----------------------------------------------------------------

    def _watched(self, condition: Callable[[], _T | None], what: str, timeout_s: float = _PATIENCE_S) -> _T:
        """Wait for it, and show how the load gets on meanwhile."""

        def poll() -> _T | None:
            self._show_counts()
            return condition()

        return wait_for(poll, timeout_s, what)

    def _pass_time(self, seconds: float) -> None:
        """So much of load."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _REFRESH_S))  # the passing of time is what is wanted here
            self._show_counts()
            self._advance(_REFRESH_S)

    def _advance(self, seconds: float) -> None:
        self._progress.advance(self._bar, seconds)

    def _say(self, text: str) -> None:
        self._console.print(f"{time.monotonic() - self._began:5.1f} s  {text}", highlight=False, soft_wrap=True)

    def _show_counts(self) -> None:
        put, worked = self._load.counts()
        self._progress.update(self._bar, description=f"{put:,} jobs put, {worked:,} worked")
        if self._load.errors:
            raise LocalError(f"a client was told what it should not be: {self._load.errors[0]!r}")

    def _conclude(self) -> bool:
        load = self._load
        lost, doubled = len(load.missing()) + self._vanished, load.doubled()
        again = sum(load.handed_out.values()) - len(load.handed_out)
        table = Table(box=box.SIMPLE, show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_row("jobs put and acknowledged", f"{len(load.acknowledged):,}")
        table.add_row("of them worked and deleted", f"{len(load.acknowledged) - lost:,}")
        table.add_row("lost", f"{lost:,}", style="red" if lost else "green")
        table.add_row("duplicated (deleted twice)", f"{doubled:,}", style="red" if doubled else "green")
        for number, kill in enumerate(self._kills, 1):
            table.add_row(f"put gap at kill {number} (node {kill.node}, then node {kill.successor} led)", f"{kill.put_gap_s:.2f} s")
        table.add_row("puts cut off with their node (outcome unknown)", f"{load.unanswered_puts:,}")
        table.add_row("jobs handed out again", f"{again:,}")
        wide(self._console).print(table)
        good = not lost and not doubled
        self._console.print(
            "[bold green]Nothing that was acknowledged is lost.[/]" if good else "[bold red]This must never happen.[/]", highlight=False
        )
        return good

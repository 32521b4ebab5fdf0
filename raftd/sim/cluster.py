"""A quiet cluster for scripts and tests by hand: simulated processes in a world where nothing happens by itself.

Links take half a millisecond and so do disks, clocks are exact, and a cut link loses messages in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import msgspec

from raftd.jobs.budget import COSTS
from raftd.jobs.commands import Settings
from raftd.limits import ELECTION_TIMEOUT_MS, HEARTBEAT_MS, LIMITS, MAX_JOB_BYTES, SESSION_TIMEOUT_MS, SNAPSHOT_LOG_BYTES, Limits
from raftd.node.config import NodeConfig
from raftd.node.loop import Node
from raftd.sim.disk import Disk, Keep, keep_nothing
from raftd.sim.network import Network, NetworkConditions
from raftd.sim.process import Process, World
from raftd.sim.scheduler import Scheduler

WALL_S = 1_700_000_000.0
_LATENCY_US = 500
_DISK_US = 500
_LOOK_US = 500


class SimCluster(World):
    """`count` nodes. `tell` gets a line for everything worth reading."""

    def __init__(self, count: int, seed: int = 1, tell: Callable[[str], None] = lambda line: None, limits: Limits = LIMITS) -> None:
        self.scheduler = Scheduler()
        self.costs = COSTS
        self._tell = tell
        self.config = NodeConfig(
            0,
            tuple(range(1, count + 1)),
            "sim",
            ELECTION_TIMEOUT_MS,
            HEARTBEAT_MS,
            Settings(MAX_JOB_BYTES, SESSION_TIMEOUT_MS),
            SNAPSHOT_LOG_BYTES,
            limits=limits,
        )
        self.disks = {node: Disk() for node in self.config.voters}
        #: Those that run.
        self.processes: dict[int, Process] = {}
        #: Errors after which a process ended itself.
        self.failures: list[tuple[int, BaseException]] = []
        self._random = Random(seed)
        self.network = Network(self.scheduler, self._random, NetworkConditions((_LATENCY_US, _LATENCY_US), holds=False), self)

    def __getitem__(self, node: int) -> Node:
        return self.processes[node].node

    @property
    def leader(self) -> int:
        """The node that leads in the highest term, 0 if none does."""
        leaders = [(process.node.raft.term, node) for node, process in self.processes.items() if process.node.raft.is_leader]
        return max(leaders, default=(0, 0))[1]

    # -- processes ----------------------------------------------------------------------------

    def start(self, *nodes: int) -> None:
        """Start nodes, all by default."""
        for node in nodes or self.config.voters:
            config = msgspec.structs.replace(self.config, node=node)
            process = self.processes[node] = Process(self, config, self.disks[node], Random(self._random.random()), 1.0)
            self.network.started(process)

    def crash(self, node: int, keep: Keep = keep_nothing) -> None:
        """The process is gone, and of its disk what was not synced, except for what `keep` says."""
        self.processes.pop(node).die()
        self.disks[node].crash(keep)
        self.network.ended(node)

    def partition(self, *groups: set[int]) -> None:
        """Only nodes of one group hear each other."""
        self.network.partition(list(self.config.voters), *groups)

    def heal(self) -> None:
        self.network.heal()

    # -- time ---------------------------------------------------------------------------------

    def run(self, ms: float, until: Callable[[], bool] | None = None) -> bool:
        """Let `ms` milliseconds pass, or fewer if `until` comes true; whether it did."""
        end_us = self.scheduler.now_us + round(ms * 1_000)
        while self.scheduler.now_us < end_us:
            if until is not None and until():
                return True
            self.scheduler.run(min(end_us, self.scheduler.now_us + _LOOK_US))
        return until is not None and until()

    def pause(self, ms: float) -> None:
        """All processes are stopped for so long, as on a machine that sleeps."""
        for process in self.processes.values():
            process.stop()
        self.run(ms)
        for process in list(self.processes.values()):
            process.resume()

    # -- what processes and the network see ---------------------------------------------------

    def tell(self, line: str) -> None:
        self._tell(line)

    def disk_us(self, node: int) -> int:
        return _DISK_US

    def wall_s(self, node: int) -> float:
        return WALL_S + self.scheduler.seconds()

    def ended_itself(self, process: Process, error: BaseException) -> None:
        self.tell(f"node {process.node_id} ended itself: {error}")
        self.failures.append((process.node_id, error))
        self.crash(process.node_id)

    def interrupted(self, process: Process, power: bool) -> None:
        self.crash(process.node_id)

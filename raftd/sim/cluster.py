"""Whole nodes in one process: production code on a virtual clock, with messages and disks in memory.

Frames are encoded and decoded as on a real connection. A cut link loses messages in silence; a crashed
process loses everything but what its disk had synced.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

from twisted.internet.task import Clock

from raftd.jobs.commands import Settings
from raftd.limits import ELECTION_TIMEOUT_MS, HEARTBEAT_MS, MAX_JOB_BYTES, SESSION_GRACE_MS, TICK_MS
from raftd.node import Node, NodeConfig
from raftd.raft.ready import RoleChange
from raftd.sim.disk import Keep, MemoryFileSystem, keep_nothing
from raftd.storage.store import Store
from raftd.storage.vote import Identity
from raftd.wire.frames import FrameDecoder
from raftd.wire.peer import Hello, PeerMessage, decode, encode

WALL_S = 1_700_000_000.0
_LATENCY_S = 0.0005
_DISK_S = 0.0005
_STEP_S = 0.0005


class SimWorker:
    """Jobs take effect, one at a time, when the disk has had its time; none while `stalled`."""

    def __init__(self, clock: Clock) -> None:
        self.stalled = False
        self._clock = clock
        self._dead = False
        self._waiting: list[Callable[[], None]] = []

    def run(self, job: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        def execute() -> None:
            if self._dead:
                return
            if self.stalled:
                self._waiting.append(execute)
                return
            error = None
            try:
                job()
            except OSError as raised:
                error = raised
            done(error)

        self._clock.callLater(_DISK_S, execute)

    def go_on(self) -> None:
        self.stalled = False
        waiting, self._waiting = self._waiting, []
        for execute in waiting:
            execute()

    def die(self) -> None:
        self._dead = True


class SimTransport:
    def __init__(self, cluster: SimCluster, node: int) -> None:
        self._cluster = cluster
        self._node = node

    def send(self, node: int, message: PeerMessage) -> None:
        self._cluster.carry(self._node, node, message)

    def flush(self) -> None:
        pass


class SimProcess:
    """One life of a node."""

    def __init__(self, cluster: SimCluster, node: int) -> None:
        self._cluster = cluster
        self._id = node
        self.worker = SimWorker(cluster.clock)
        self.alive = True
        random = Random(cluster.random.random())
        clock: Any = cluster.clock
        owner = Identity(node, cluster.config.cluster, cluster.config.voters)
        self.store = Store(cluster.disks[node], f"data/{node}", owner, random, self.worker, clock, self._fail)
        self.opened = self.store.open()
        self.node = Node(
            NodeConfig(
                node,
                cluster.config.voters,
                cluster.config.cluster,
                cluster.config.election_timeout_ms,
                cluster.config.heartbeat_ms,
                cluster.config.settings,
            ),
            clock,
            partial(cluster.wall_s, node),
            SimTransport(cluster, node),
            self.store,
            self.opened,
            random,
            self,
            self._fail,
        )

    def _fail(self, error: BaseException) -> None:
        self._cluster.failed(self._id, error)

    def die(self) -> None:
        self.alive = False
        self.worker.die()
        self.node.stop(lambda: None)

    # -- the node's observer ------------------------------------------------------------------

    def role_changed(self, change: RoleChange) -> None:
        self._cluster.tell(f"node {self._id}: {change.role.value} in term {change.term}, {change.reason}")

    def gateway_closed(self, incarnation: int) -> None:
        self._cluster.tell(f"node {self._id}: its sessions were given up by the cluster, it goes on as incarnation {incarnation}")

    def gateway_silent(self, node: int, incarnation: int) -> None:
        self._cluster.tell(f"node {self._id}: gives up the sessions of node {node}")


class SimCluster:
    """`count` nodes. `tell` gets a line for everything worth reading."""

    def __init__(self, count: int, seed: int = 1, tell: Callable[[str], None] = lambda line: None) -> None:
        self.clock = Clock()
        self.random = Random(seed)
        self.tell = tell
        self.config = NodeConfig(
            0, tuple(range(1, count + 1)), "sim", ELECTION_TIMEOUT_MS, HEARTBEAT_MS, Settings(MAX_JOB_BYTES, SESSION_GRACE_MS)
        )
        self.disks = {node: MemoryFileSystem() for node in self.config.voters}
        self.processes: dict[int, SimProcess] = {}
        self.cut: set[tuple[int, int]] = set()
        self.links: set[tuple[int, int]] = set()
        self.wall_offset_s = dict.fromkeys(self.config.voters, 0.0)
        #: Decides for (sender, receiver, message) how many copies arrive; None: one.
        self.interfere: Callable[[int, int, PeerMessage], int] | None = None
        #: Errors after which a process ended itself.
        self.failures: list[tuple[int, BaseException]] = []
        self._next_tick_ms = TICK_MS

    def wall_s(self, node: int) -> float:
        return WALL_S + self.wall_offset_s[node] + float(self.clock.seconds())

    def __getitem__(self, node: int) -> Node:
        return self.processes[node].node

    @property
    def leader(self) -> int:
        """The node that leads in the highest term, 0 if none does."""
        leaders = [(process.node.raft.term, node) for node, process in self.processes.items() if process.node.raft.is_leader]
        return max(leaders, default=(0, 0))[1]

    # -- processes ----------------------------------------------------------------------------

    def start(self, *nodes: int) -> None:
        """Start nodes (all by default) and connect them with those that run."""
        for node in nodes or self.config.voters:
            self.processes[node] = SimProcess(self, node)
            for other in sorted(self.processes):
                if other != node:
                    self.connect(node, other)

    def crash(self, node: int, keep: Keep = keep_nothing) -> None:
        """The process is gone, and of its disk what was not synced, except for what `keep` says."""
        self.processes.pop(node).die()
        self.disks[node].crash(keep)
        for other, process in sorted(self.processes.items()):
            if (node, other) in self.links:
                self.links -= {(node, other), (other, node)}
                process.node.link_changed(node)

    def failed(self, node: int, error: BaseException) -> None:
        self.tell(f"node {node} ended itself: {error}")
        self.failures.append((node, error))
        if node in self.processes:
            self.crash(node)

    # -- the network --------------------------------------------------------------------------

    def connect(self, one: int, other: int) -> None:
        """Both say hello; the link is up when both have accepted."""
        accepted: set[int] = set()

        def accept(node: int) -> None:
            accepted.add(node)
            if accepted == {one, other} and one in self.processes and other in self.processes:
                self.links |= {(one, other), (other, one)}
                self.processes[one].node.link_changed(other)
                self.processes[other].node.link_changed(one)

        for node, peer in ((one, other), (other, one)):
            hello: Hello = self.processes[peer].node.hello()
            reason = self.processes[node].node.meet(hello, partial(accept, node))
            if reason is not None:
                self.tell(f"node {node} refuses node {peer}: {reason}")

    def carry(self, sender: int, to: int, message: PeerMessage) -> None:
        if (sender, to) not in self.links or (sender, to) in self.cut:
            return
        copies = 1 if self.interfere is None else self.interfere(sender, to, message)
        data = encode(message)
        process = self.processes[to]
        for _ in range(copies):
            self.clock.callLater(_LATENCY_S, self._arrive, sender, to, process, data)

    def _arrive(self, sender: int, to: int, process: SimProcess, data: bytes) -> None:
        if process.alive and (sender, to) not in self.cut:
            decoder = FrameDecoder()
            decoder.greeted()
            decoder.feed(data)
            body = decoder.next_frame()
            assert body is not None
            process.node.receive(sender, decode(body))

    def partition(self, *groups: set[int]) -> None:
        """Only nodes of one group hear each other. None of the links breaks: what is sent is lost."""
        self.cut = {
            (one, other) for one in self.config.voters for other in self.config.voters if not any({one, other} <= group for group in groups)
        }

    def heal(self) -> None:
        self.cut = set()

    # -- time ---------------------------------------------------------------------------------

    def run(self, ms: float, until: Callable[[], bool] | None = None) -> bool:
        """Let `ms` milliseconds pass, or fewer if `until` comes true; whether it did."""
        end = self.clock.seconds() + ms / 1000
        while self.clock.seconds() < end - 1e-9:
            if until is not None and until():
                return True
            self.clock.advance(_STEP_S)
            while self.clock.seconds() * 1000 >= self._next_tick_ms - 1e-6:
                self._next_tick_ms += TICK_MS
                for node in sorted(self.processes):
                    if node in self.processes:
                        self.processes[node].node.tick()
        return until is not None and until()

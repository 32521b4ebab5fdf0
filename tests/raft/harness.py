"""Raft cores joined by hand: every message and every write waits until the test lets it happen."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from random import Random

from raftd.raft.core import Raft
from raftd.raft.log import Log
from raftd.raft.messages import Entry, EntryKind, Message
from raftd.raft.ready import HardState, Persist, ReadState, Role

T = 25  # election ticks
HEARTBEAT = 5
WALL_MS = 1_700_000_000_000


def entries(*terms: int, first: int = 1) -> list[Entry]:
    """A log by its terms, as the paper draws it."""
    return [Entry(term, first + place, WALL_MS, EntryKind.BATCH, b"") for place, term in enumerate(terms)]


def terms(raft: Raft) -> list[int]:
    return [entry.term for entry in raft.log.slice(raft.log.offset + 1, raft.log.last_index)]


class Disk:
    """What one node has made durable: it outlives the core."""

    def __init__(self, log: Iterable[Entry] = (), hard_state: HardState = HardState()) -> None:
        self.hard_state = hard_state
        self.entries = list(log)

    def write(self, persist: Persist) -> None:
        if persist.hard_state is not None:
            self.hard_state = persist.hard_state
        if persist.entries:
            first = persist.entries[0].index
            self.entries = [entry for entry in self.entries if entry.index < first] + persist.entries


class Peer:
    """One core with its disk; `stalled` holds its writes back."""

    def __init__(self, node: int, voters: Iterable[int], disk: Disk, incarnation: int, offset: int = 0, offset_term: int = 0) -> None:
        self.disk = disk
        self.node = node
        self.stalled = False
        self.incarnation = incarnation
        self.writes: deque[Persist] = deque()
        self.held: deque[tuple[int, list[tuple[int, Message]]]] = deque()
        self.applied: list[Entry] = []
        self.reads: list[ReadState] = []
        self.reasons: list[str] = []
        self.raft = Raft(
            node, list(voters), Log(disk.entries, offset, offset_term), disk.hard_state, incarnation, Random(node), T, HEARTBEAT
        )
        self.raft.at(0, WALL_MS)

    def pump(self) -> list[tuple[int, Message]]:
        """Run ready() and the writes that may finish; what leaves."""
        leaving: list[tuple[int, Message]] = []
        progressed = True
        while progressed:
            ready = self.raft.ready()
            progressed = bool(ready.apply)
            leaving += ready.send_now
            if ready.persist is not None:
                self.writes.append(ready.persist)
                progressed = True
            if ready.send_after_persist:
                self.held.append((ready.after, ready.send_after_persist))
            self.applied += ready.apply
            self.reads += ready.reads
            self.reasons += [change.reason for change in ready.changes]
            while self.writes and not self.stalled:
                persist = self.writes.popleft()
                self.disk.write(persist)
                self.raft.persisted(persist.number)
                progressed = True
            pending = self.writes[0].number if self.writes else None
            while self.held and (pending is None or self.held[0][0] < pending):
                leaving += self.held.popleft()[1]
        return leaving


class Cluster:
    """Peers and the messages between them, delivered in order unless a link is cut."""

    def __init__(
        self, voters: Iterable[int] | int, logs: dict[int, list[Entry]] | None = None, terms: dict[int, int] | None = None
    ) -> None:
        self.voters = list(range(1, voters + 1)) if isinstance(voters, int) else list(voters)
        self.peers = {
            node: Peer(node, self.voters, Disk((logs or {}).get(node, ()), HardState((terms or {}).get(node, 0))), 1)
            for node in self.voters
        }
        self.cut: set[tuple[int, int]] = set()
        self.dead: set[int] = set()
        self.wire: deque[tuple[int, int, Message]] = deque()
        self.seen: list[tuple[int, int, Message]] = []
        self.now_ms = 0
        self.filter: Callable[[int, int, Message], bool] = lambda sender, to, message: True

    def __getitem__(self, node: int) -> Raft:
        return self.peers[node].raft

    def collect(self) -> None:
        for node, peer in self.peers.items():
            if node not in self.dead:
                self.wire.extend((node, to, message) for to, message in peer.pump())

    def settle(self) -> None:
        """Deliver until nothing is on its way."""
        for _ in range(10_000):
            self.collect()
            if not self.wire:
                return
            for _ in range(len(self.wire)):
                self.deliver()
        raise AssertionError("the cluster does not come to rest")

    def deliver(self) -> None:
        sender, to, message = self.wire.popleft()
        self.seen.append((sender, to, message))
        if (sender, to) not in self.cut and to not in self.dead and self.filter(sender, to, message):
            self[to].step(sender, message)

    def tick(self, count: int = 1, nodes: Iterable[int] | None = None) -> None:
        for _ in range(count):
            self.now_ms += 10
            for node in nodes or self.voters:
                if node not in self.dead:
                    self[node].at(self.now_ms, WALL_MS + self.now_ms)
                    self[node].tick()
            self.settle()

    def elect(self, node: int) -> Raft:
        """Nobody has heard a leader for a while; `node` is the first to notice."""
        for raft in (peer.raft for peer in self.peers.values()):
            raft._elapsed_ticks = T
        self[node].campaign("the test says so")
        self.settle()
        assert self[node].is_leader, f"node {node} is {self[node].role}"
        return self[node]

    def isolate(self, *nodes: int) -> None:
        for node in nodes:
            self.cut |= {(node, other) for other in self.voters} | {(other, node) for other in self.voters}

    def heal(self) -> None:
        self.cut.clear()
        for peer in self.peers.values():
            for other in self.voters:
                peer.raft.link_changed(other)

    def restart(self, node: int) -> Peer:
        """Lose everything but the disk."""
        old = self.peers[node]
        self.peers[node] = Peer(node, self.voters, Disk(old.disk.entries, old.disk.hard_state), old.incarnation + 1)
        self[node].at(self.now_ms, WALL_MS + self.now_ms)
        self.dead.discard(node)
        return self.peers[node]

    def put(self, node: int, *data: bytes) -> int:
        index = self[node].propose([(EntryKind.BATCH, item) for item in data])
        self.settle()
        return index

    def leaders(self) -> list[int]:
        return [node for node in self.voters if node not in self.dead and self[node].role is Role.LEADER]


def alone(
    node: int = 1, voters: int = 3, log: Iterable[Entry] = (), term: int = 0, incarnation: int = 1, doubtful: bool = False, **more: int
) -> Peer:
    """One core whose peers are played by the test."""
    return Peer(node, range(1, voters + 1), Disk(list(log), HardState(term, 0, doubtful)), incarnation, **more)

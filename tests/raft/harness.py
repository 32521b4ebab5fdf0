"""Raft cores joined by hand: every message and every write waits until the test lets it happen."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from random import Random

import pytest

from raftd.limits import LIMITS, Limits
from raftd.raft.core import Raft
from raftd.raft.log import Log
from raftd.raft.messages import Configuration, Entry, EntryKind, InstallSnapshot, Message, PreVoteReply, RequestVoteReply, Snapshot
from raftd.raft.outcomes import Outcome, Refused
from raftd.raft.ready import NO_BASE, Base, ChunkFetch, EntriesFetch, HardState, Persist, ReadState, Role

T = 25  # election ticks
HEARTBEAT = 5
WALL_MS = 1_700_000_000_000


@contextmanager
def refused(outcome: Outcome) -> Iterator[None]:
    """What is done in here is refused with this outcome."""
    with pytest.raises(Refused) as raised:
        yield
    assert raised.value.result.outcome is outcome


def entries(*terms: int, first: int = 1) -> list[Entry]:
    """A log by its terms, as the paper draws it."""
    return [Entry(term, first + place, WALL_MS, EntryKind.BATCH, b"") for place, term in enumerate(terms)]


def terms(raft: Raft) -> list[int]:
    return [entry.term for entry in raft.log.slice(raft.log.offset + 1, raft.log.last_index)]


class Disk:
    """What one node has made durable: it outlives the core."""

    def __init__(self, log: Iterable[Entry] = (), hard_state: HardState = HardState(), base: Base = NO_BASE) -> None:
        self.hard_state = hard_state
        self.entries = list(log)
        self.base = base  # of the snapshot

    def write(self, persist: Persist) -> None:
        if persist.hard_state is not None:
            self.hard_state = persist.hard_state
        if persist.entries:
            first = persist.entries[0].index
            self.entries = [entry for entry in self.entries if entry.index < first] + persist.entries


SNAPSHOT_BYTES = 3 * LIMITS.snapshot_chunk_bytes + 5


def snapshot_of(base: Base) -> Snapshot:
    return Snapshot(base.index, base.term, SNAPSHOT_BYTES, 1)


class Peer:
    """One core with its disk; `stalled` holds its writes back."""

    def __init__(self, node: int, voters: Iterable[int], disk: Disk, incarnation: int, limits: Limits = LIMITS) -> None:
        self.disk = disk
        self.node = node
        self.stalled = False
        self.configuration = Configuration(b"", tuple(voters))  # in the leader's snapshot
        self.loads_slowly = False
        self.incarnation = incarnation
        self.writes: deque[Persist] = deque()
        self.held: deque[tuple[int, list[tuple[int, Message]]]] = deque()
        self.applied: list[Entry] = []
        self.reads: list[ReadState] = []
        self.reasons: list[str] = []
        self.raft = Raft(
            node,
            Configuration(b"", tuple(voters)),
            Log(disk.entries, disk.base, memory_bytes=limits.log_memory_bytes),
            disk.hard_state,
            incarnation,
            Random(node),
            T,
            HEARTBEAT,
            limits,
        )
        self.raft.snapshot = snapshot_of(disk.base) if disk.base.index else None
        self.have = 0  # bytes of a leader's snapshot
        self.raft.set_time(0, WALL_MS)

    def pump(self) -> list[tuple[int, Message]]:
        """Run ready() and the writes that may finish; what leaves."""
        leaving: list[tuple[int, Message]] = []
        progressed = True
        while progressed:
            ready = self.raft.ready()
            progressed = bool(ready.apply or ready.fetches or ready.chunks)
            self.applied += ready.apply
            if ready.apply:
                self.raft.applied(ready.apply[-1].index)
            for fetch in ready.fetches:
                if type(fetch) is EntriesFetch:
                    self.raft.replication.entries_fetched(fetch, [entry for entry in self.disk.entries if entry.index >= fetch.first])
                elif type(fetch) is ChunkFetch:
                    size = min(LIMITS.snapshot_chunk_bytes, fetch.snapshot.size_bytes - fetch.offset)
                    self.raft.replication.chunk_fetched(fetch, bytes(size))
            for sender, chunk in ready.chunks:
                self.keep(sender, chunk)
            leaving += ready.send_now
            if ready.persist is not None:
                self.writes.append(ready.persist)
                progressed = True
            if ready.send_after_persist:
                self.held.append((ready.after, ready.send_after_persist))
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

    def compact(self, index: int) -> None:
        """A snapshot of the state at `index` is durable, and the log before it is gone."""
        self.disk.base = Base(index, self.raft.log.term_at(index) or 0, self.raft.log.entry(index).time_ms)
        self.disk.entries = [entry for entry in self.disk.entries if entry.index > index]
        self.raft.compacted(snapshot_of(self.disk.base), index)

    def keep(self, sender: int, chunk: InstallSnapshot) -> None:
        if chunk.offset == self.have:
            self.have += len(chunk.data)
        self.raft.chunk_kept(sender, chunk.snapshot, self.have)
        if self.have == chunk.snapshot.size_bytes and self.raft.begin_install(chunk.snapshot):
            self.have = 0
            if not self.loads_slowly:
                self.install(chunk.snapshot)

    def install(self, snapshot: Snapshot) -> None:
        self.disk.base = Base(snapshot.index, snapshot.term, WALL_MS)
        self.disk.entries = []
        self.raft.installed(snapshot, self.disk.base, self.configuration)


class Cluster:
    """Peers and the messages between them, delivered in order unless a link is cut."""

    def __init__(
        self,
        voters: Iterable[int] | int,
        logs: dict[int, list[Entry]] | None = None,
        terms: dict[int, int] | None = None,
        limits: Limits = LIMITS,
    ) -> None:
        self.voters = list(range(1, voters + 1)) if isinstance(voters, int) else list(voters)
        self.peers = {
            node: Peer(node, self.voters, Disk((logs or {}).get(node, ()), HardState((terms or {}).get(node, 0))), 1, limits)
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
        if (sender, to) not in self.cut and to in self.peers and to not in self.dead and self.filter(sender, to, message):
            self[to].step(sender, message)

    def tick(self, count: int = 1, nodes: Iterable[int] | None = None) -> None:
        for _ in range(count):
            self.now_ms += 10
            for node in nodes or self.voters:
                if node not in self.dead:
                    self[node].set_time(self.now_ms, WALL_MS + self.now_ms)
                    self[node].tick()
            self.settle()

    def elect(self, node: int) -> Raft:
        """Nobody has heard a leader for a while; `node` is the first to notice."""
        for raft in (peer.raft for peer in self.peers.values()):
            raft._elapsed_ticks = raft.election_ticks
        self[node].campaign("the test says so")
        self.settle()
        if self[node].role is Role.CANDIDATE:  # nobody knows log time, and somebody is not heard
            self.tick(HEARTBEAT, [node])
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
        self.peers[node] = Peer(node, self.voters, Disk(old.disk.entries, old.disk.hard_state, old.disk.base), old.incarnation + 1)
        self[node].set_time(self.now_ms, WALL_MS + self.now_ms)
        self.dead.discard(node)
        return self.peers[node]

    def put(self, node: int, *data: bytes) -> int:
        index = self[node].propose([(EntryKind.BATCH, item) for item in data])
        self.settle()
        return index

    def leaders(self) -> list[int]:
        return [node for node in self.voters if node not in self.dead and self[node].role is Role.LEADER]


def led(voters: int = 3) -> Cluster:
    """Node 1 leads, and everybody has heard so."""
    cluster = Cluster(voters)
    cluster.elect(1)
    cluster.put(1, b"first")
    cluster.tick(T // 2)
    return cluster


def alone(
    node: int = 1,
    voters: int = 3,
    log: Iterable[Entry] = (),
    term: int = 0,
    incarnation: int = 1,
    doubtful: bool = False,
    base: Base = NO_BASE,
) -> Peer:
    """One core whose peers are played by the test."""
    return Peer(node, range(1, voters + 1), Disk(list(log), HardState(term, 0, doubtful), base), incarnation)


def win(peer) -> None:
    """With the vote of node 3."""
    peer.raft.campaign("the test says so")
    peer.pump()
    peer.raft.step(3, PreVoteReply(peer.raft.term + 1, True))
    peer.pump()
    peer.raft.step(3, RequestVoteReply(peer.raft.term, True, False, 0, 0))
    peer.pump()

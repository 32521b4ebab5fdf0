"""What the leader knows of one follower, and what it may send to it next.

    PROBE ──── an append is accepted ───▶ REPLICATE
      ▲ │                                   │ ▲
      │ │ what it needs is only in a snapshot │ │
      │ └──────────────▶ SNAPSHOT ◀─────────┘ │
      │                      └── it has acknowledged what our log begins with
      └── refusal, lost connection, restart ──┘

In PROBE one message at a time looks for the place where the logs agree, repeated with each heartbeat. In
REPLICATE messages follow each other without waiting, up to a window in messages and in bytes. In SNAPSHOT
pieces of the newest snapshot go out, a few in flight; heartbeats ask how far it has got.
"""

from __future__ import annotations

from collections import deque
from enum import Enum

from raftd.limits import SNAPSHOT_CHUNKS_IN_FLIGHT, Limits
from raftd.raft.messages import Entry, Snapshot
from raftd.raft.ready import ChunkFetch, EntriesFetch


class State(Enum):
    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class Transfer:
    """How far a snapshot has got on its way to one follower."""

    def __init__(self, snapshot: Snapshot, chunk_bytes: int) -> None:
        self.snapshot = snapshot
        self._window_bytes = SNAPSHOT_CHUNKS_IN_FLIGHT * chunk_bytes
        #: Bytes that the follower has; None: it has not answered yet.
        self.have: int | None = None
        self.is_asked = False
        self._has_moved = True
        self._next_offset = 0
        self._reading: ChunkFetch | None = None

    def forget(self) -> None:
        """What was under way may be lost: ask again."""
        self.have = None
        self.is_asked = False
        self._reading = None

    def detect_loss(self) -> None:
        """Called now and then: without any answer since the last time, something was lost."""
        if not self._has_moved:
            self.forget()
        self._has_moved = False

    def heard(self, have: int) -> None:
        """The follower has answered that it has `have` bytes; fewer than before if it was started again."""
        self._has_moved = self._has_moved or have != self.have
        if self.have is None or have < self.have:
            self._next_offset = have
        self.have = have
        self._next_offset = max(self._next_offset, have)

    def next_fetch(self, peer: int) -> ChunkFetch | None:
        """The piece to read now, if there is one."""
        if self.have is None or self._reading is not None or self._next_offset >= self.snapshot.size_bytes:
            return None
        if self._next_offset - self.have >= self._window_bytes:
            return None
        self._reading = ChunkFetch(peer, self.snapshot, self._next_offset)
        return self._reading

    def fetched(self, fetch: ChunkFetch, size_bytes: int) -> bool:
        """A piece was read; whether it is to be sent."""
        if fetch is not self._reading:
            return False
        self._reading = None
        is_next = fetch.offset == self._next_offset
        if is_next:
            self._next_offset += size_bytes
        return is_next


class Progress:
    """match_index < next_index always; match_index only grows within a term and an incarnation (R12)."""

    def __init__(self, next_index: int, limits: Limits) -> None:
        self._limits = limits
        self.state = State.PROBE
        self.match_index = 0
        self.next_index = next_index
        #: The process of the follower that answered last (0: none yet), and our last index at its first answer.
        self.incarnation = 0
        self.heard_at = 0
        #: A new peer starts as recently active, or a fresh leader would step down at once (R7).
        self.recently_active = True
        self.last_heard_tick: int | None = None
        self.is_low_on_disk = False
        #: The greatest read round that it has confirmed.
        self.read_round = 0
        #: An AppendEntries is due even if there is no entry to send: heartbeat, commit notice, read round.
        self.message_due = True
        #: What is read from the disk for it, and what was read.
        self.fetching: EntriesFetch | None = None
        self.fetched: tuple[Entry, ...] = ()
        self.transfer: Transfer | None = None
        self._probe_sent = False
        self._in_flight: deque[tuple[int, int]] = deque()  # (last index, bytes)
        self._bytes_in_flight = 0

    @property
    def messages_in_flight(self) -> int:
        """AppendEntries that are not answered yet."""
        return len(self._in_flight)

    @property
    def may_send(self) -> bool:
        """Whether entries may go out now."""
        if self.state is not State.REPLICATE:
            return self.state is State.PROBE and not self._probe_sent
        return len(self._in_flight) < self._limits.window_messages and self._bytes_in_flight < self._limits.window_bytes

    def sent(self, last_index: int, size_bytes: int) -> None:
        """Entries up to `last_index` went out."""
        if self.state is State.PROBE:
            self._probe_sent = True
            return
        self.next_index = last_index + 1
        self._in_flight.append((last_index, size_bytes))
        self._bytes_in_flight += size_bytes

    def probe(self, next_index: int) -> None:
        """Start to look for the common place at `next_index`."""
        self.state = State.PROBE
        self.next_index = max(next_index, self.match_index + 1)
        self._clear()

    def _clear(self) -> None:
        self._probe_sent = False
        self._in_flight.clear()
        self._bytes_in_flight = 0
        self.fetching = None
        self.fetched = ()
        self.transfer = None

    def send_snapshot(self, snapshot: Snapshot) -> Transfer:
        """The log no longer has what it needs."""
        self.state = State.SNAPSHOT
        self._clear()
        self.transfer = Transfer(snapshot, self._limits.snapshot_chunk_bytes)
        self.next_index = snapshot.index + 1
        return self.transfer

    def link_changed(self) -> None:
        """Whatever was in flight may be lost."""
        if self.transfer is not None:
            self.transfer.forget()
        else:
            self.probe(self.match_index + 1 if self.match_index else self.next_index)

    def back_to(self, next_index: int) -> None:
        """A refusal said where to look next. One whose hint is not lower is ignored until the next heartbeat:
        two nodes that disagree must not bounce messages at the speed of the network."""
        if next_index < self.next_index:
            self.probe(next_index)

    def acknowledged(self, index: int, first_index: int) -> bool:
        """It holds everything up to `index`, durably. True if that is news. Our log begins with `first_index`.

        Any acknowledgement ends a probe, news or not: a caught-up peer must not stay in it (R33). It needs no snapshot once it
        has reached our log, however it got there (R30).
        """
        news = index > self.match_index
        self.match_index = max(self.match_index, index)
        if self.state is State.PROBE or (self.state is State.SNAPSHOT and self.match_index + 1 >= first_index):
            self._clear()
            self.state = State.REPLICATE
            self.next_index = self.match_index + 1
        self.next_index = max(self.next_index, self.match_index + 1)
        while self._in_flight and self._in_flight[0][0] <= index:
            self._bytes_in_flight -= self._in_flight.popleft()[1]
        return news

    def refused(self, refused_index: int) -> bool:
        """Whether a refusal of prev_log_index `refused_index` tells anything new (R12)."""
        if self.state is State.PROBE:
            return refused_index == self.next_index - 1
        return self.state is State.REPLICATE and refused_index > self.match_index

    def reborn(self, incarnation: int, last_index: int) -> None:
        """Another process answers under this id: what the one before acknowledged counts no more."""
        self.incarnation = incarnation
        self.heard_at = last_index
        self.match_index = 0
        self.probe(self.next_index)

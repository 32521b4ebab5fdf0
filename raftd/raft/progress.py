"""What the leader knows of one follower, and what it may send to it next.

    PROBE ──── an append is accepted ───▶ REPLICATE
      ▲                                       │
      └── refusal, lost connection, restart ──┘

In PROBE one message at a time looks for the place where the logs agree, repeated with each heartbeat. In
REPLICATE messages follow each other without waiting, up to a window in messages and in bytes. A third
state, for a follower that needs a snapshot, comes with snapshots.
"""

from __future__ import annotations

from collections import deque
from enum import Enum

from raftd.limits import WINDOW_BYTES, WINDOW_MESSAGES


class State(Enum):
    PROBE = "probe"
    REPLICATE = "replicate"


class Progress:
    """match_index < next_index always; match_index only grows within a term and an incarnation (R12)."""

    def __init__(self, next_index: int) -> None:
        self.state = State.PROBE
        self.match_index = 0
        self.next_index = next_index
        #: The process of the follower that answered last (0: none yet), and our last index at its first answer.
        self.incarnation = 0
        self.heard_at = 0
        #: A new peer starts as recently active, or a fresh leader would step down at once (R7).
        self.recently_active = True
        self.last_heard_tick: int | None = None
        #: The greatest read round that it has confirmed.
        self.read_round = 0
        #: An AppendEntries is due even if there is no entry to send: heartbeat, commit notice, read round.
        self.message_due = True
        self._probe_sent = False
        self._in_flight: deque[tuple[int, int]] = deque()  # (last index, bytes)
        self._bytes_in_flight = 0

    @property
    def may_send(self) -> bool:
        """Whether entries may go out now."""
        if self.state is State.PROBE:
            return not self._probe_sent
        return len(self._in_flight) < WINDOW_MESSAGES and self._bytes_in_flight < WINDOW_BYTES

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
        self._probe_sent = False
        self._in_flight.clear()
        self._bytes_in_flight = 0

    def back_to(self, next_index: int) -> None:
        """A refusal told where to look next. One that tells nothing lower waits for the next heartbeat:
        two nodes that disagree must not bounce messages at the speed of the network."""
        if next_index < self.next_index:
            self.probe(next_index)

    def acknowledged(self, index: int) -> bool:
        """It holds everything up to `index`, durably. True if that is news.

        Any acknowledgement ends a probe, news or not: a caught-up peer must not stay in it (R33).
        """
        news = index > self.match_index
        self.match_index = max(self.match_index, index)
        if self.state is State.PROBE:
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
        return refused_index > self.match_index

    def reborn(self, incarnation: int, last_index: int) -> None:
        """Another process answers under this id: what the one before acknowledged counts no more."""
        self.incarnation = incarnation
        self.heard_at = last_index
        self.match_index = 0
        self.probe(self.next_index)

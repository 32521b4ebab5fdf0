"""How far this node's wall clock is from the leader's. Schedules go by the leader's clock, and any node may lead next.

The leader is asked for its time now and then. It is taken to be right in the middle between question and answer, so the error is half of
what the answer takes at most.
"""

from __future__ import annotations

from collections.abc import Callable

from raftd.jobs.commands import POLICIES_LEVEL
from raftd.limits import CLOCK_ANSWER_MS, CLOCK_DIFFERENCE_MS
from raftd.note import Note
from raftd.raft.core import Raft
from raftd.wire.peer import AskClock, TellClock


class WallClock:
    """That of the node of `raft`, which has been told the time before each call. A difference of more than `CLOCK_DIFFERENCE_MS` is noted
    once."""

    def __init__(self, raft: Raft, send: Callable[[int, AskClock | TellClock], None], note: Callable[[Note], None]) -> None:
        #: How far it is ahead of the leader's, in milliseconds; None if that is not known.
        self.ahead_ms: int | None = None
        self._raft = raft
        self._send = send
        self._note = note
        self._leader = 0  # whose clock it is compared with
        self._asked_ms = -1  # by the monotonic clock; -1: no answer is awaited
        self._differs = False

    def ask(self, level: int) -> None:
        """Ask the leader, whose raftd knows the features of `level`."""
        leader = self._raft.leader
        if leader != self._leader:
            self._leader, self._asked_ms, self._differs, self.ahead_ms = leader, -1, False, None
        if leader == self._raft.node:
            self.ahead_ms = 0
        elif leader and level >= POLICIES_LEVEL:
            self._asked_ms = self._raft.now_ms
            self._send(leader, AskClock(self._asked_ms))

    def receive(self, sender: int, message: AskClock | TellClock) -> None:
        """A question of another node, or the answer to this one's."""
        if isinstance(message, AskClock):
            self._send(sender, TellClock(message.asked_ms, self._raft.wall_ms))
        elif sender == self._leader and message.asked_ms == self._asked_ms:
            took_ms, self._asked_ms = self._raft.now_ms - self._asked_ms, -1
            if took_ms <= CLOCK_ANSWER_MS:
                self._compare(self._raft.wall_ms - took_ms // 2 - message.wall_ms)

    def _compare(self, ahead_ms: int) -> None:
        self.ahead_ms = ahead_ms
        if not self._differs and abs(ahead_ms) > CLOCK_DIFFERENCE_MS:
            self._differs = True
            where = f"{abs(ahead_ms) / 1000:.1f} s {'ahead of' if ahead_ms > 0 else 'behind'}"
            advice = "which leads: schedules go by the leader's clock. Is the time of both synchronised (NTP)?"
            self._note(Note(f"this node's wall clock is {where} that of node {self._leader}, {advice}", is_warning=True))
        elif self._differs and abs(ahead_ms) <= CLOCK_DIFFERENCE_MS // 2:  # one that stays at the bound is noted once
            self._differs = False
            self._note(Note(f"this node's wall clock agrees again with that of node {self._leader}, which leads"))

"""How the other members are, as they said last: asked for only while somebody looks, so that a cluster nobody looks at says nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from raftd.jobs.commands import STATUS_LEVEL
from raftd.raft.core import Raft
from raftd.wire.peer import AskStatus, TellStatus


class Heard(NamedTuple):
    status: TellStatus
    at_ms: int  # by the monotonic clock


class Statuses:
    """Those of the other members of the node of `raft`, which has been told the time before each call."""

    def __init__(self, raft: Raft, send: Callable[[int, AskStatus | TellStatus], None]) -> None:
        #: Says how this node is; None until somebody can.
        self.own: Callable[[], TellStatus] | None = None
        #: By node.
        self.heard: dict[int, Heard] = {}
        self._raft = raft
        self._send = send

    def ask(self, level_of: Callable[[int], int]) -> None:
        """Ask all members, whose raftd know the features of these levels."""
        members = self._raft.membership.members
        for node in [node for node in self.heard if node not in members]:
            del self.heard[node]
        for node in members:
            if node != self._raft.node and level_of(node) >= STATUS_LEVEL:
                self._send(node, AskStatus())

    def receive(self, sender: int, message: AskStatus | TellStatus) -> None:
        """A question of another node, or the answer to this one's."""
        if isinstance(message, TellStatus):
            self.heard[sender] = Heard(message, self._raft.now_ms)
        elif self.own is not None:
            self._send(sender, self.own())

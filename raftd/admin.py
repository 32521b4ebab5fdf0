"""What operators ask of the cluster, at any node: carried to the leader, done there, and the outcome carried back.

Nothing here is in the log: a request whose leader falls silent has an outcome that nobody can tell, and the asker is told so.
"""

from __future__ import annotations

from collections.abc import Callable

from raftd.errors import NotLeader, Refused
from raftd.limits import ADMIN_TICKS
from raftd.raft.core import Raft
from raftd.raft.messages import Admin, AdminReply, AdminRequest, TransferLead

#: Called with why it was not done, or is not known to be; empty if it was.
Outcome = Callable[[str], None]


class Administration:
    """`send` takes a message for another node."""

    def __init__(self, raft: Raft, send: Callable[[int, Admin | AdminReply], None]) -> None:
        self._raft = raft
        self._send = send
        self._number = raft.incarnation << 32  # no answer to an earlier process fits
        self._asked: dict[int, tuple[Outcome, int]] = {}  # number -> (who asked here, the tick at which that is over)
        self._transfer: tuple[int, list[Outcome]] | None = None  # (target, who asked)

    def ask(self, request: AdminRequest, outcome: Outcome) -> None:
        """From a door of this node."""
        leader = self._raft.leader
        if self._raft.is_leader:
            self._do(request, outcome)
        elif leader:
            self._number += 1
            self._asked[self._number] = (outcome, self._raft.tick_count + ADMIN_TICKS)
            self._send(leader, Admin(self._number, request))
        else:
            outcome("no leader is known: ask again when one is elected")

    def receive(self, sender: int, message: Admin | AdminReply) -> None:
        """From another node."""
        if type(message) is Admin:
            number = message.number
            self._do(message.request, lambda reason: self._send(sender, AdminReply(number, reason)))
        elif type(message) is AdminReply and message.number in self._asked:
            outcome, _ = self._asked.pop(message.number)
            outcome(message.reason)

    def _do(self, request: AdminRequest, outcome: Outcome) -> None:
        try:
            match request:
                case TransferLead(node=node):
                    self._raft.lead().transfer(node)
                    self._transfer = (node, [outcome])
        except NotLeader:
            outcome("the node that was asked leads no more: ask again")
        except Refused as reason:
            outcome(str(reason))

    def look(self) -> None:
        """Once a turn: tell those whose request has come to an end."""
        raft = self._raft
        if self._transfer is not None and not raft.is_transferring:
            (target, asked), self._transfer = self._transfer, None
            reason = f"node {target} did not take the lead within an election timeout: node {raft.node} goes on" if raft.is_leader else ""
            for outcome in asked:
                outcome(reason)
        if self._asked:
            for number, (outcome, over_tick) in list(self._asked.items()):
                if raft.tick_count >= over_tick:
                    del self._asked[number]
                    outcome("the leader has not answered: whether it was done is not known; `raftd status` shows")

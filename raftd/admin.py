"""What operators ask of the cluster, at any node: carried to the leader, done there, and the outcome carried back.

Nothing here is in the log: a request whose leader falls silent has an outcome that nobody can tell, and the asker is told so.
"""

from __future__ import annotations

from collections.abc import Callable

from raftd.errors import NotLeader, Refused
from raftd.limits import ADMIN_ASKED, ADMIN_TICKS, LAST_WORD_TICKS, LEADER_TICKS
from raftd.raft.core import Raft
from raftd.raft.leadership import Change
from raftd.raft.membership import add_learner, promote, remove
from raftd.raft.messages import AddMember, Admin, AdminReply, AdminRequest, PromoteMember, RemoveMember, TransferLead

#: Called with why it was not done, or is not known to be; empty if it was.
Outcome = Callable[[str], None]


class _Asked:
    """A request that waits for the answer of another node, `leader`."""

    def __init__(self, request: AdminRequest, outcome: Outcome, leader: int, until_tick: int) -> None:
        self.request = request
        self.outcome = outcome
        self.leader = leader
        self.until_tick = until_tick


class Administration:
    """`send` takes a message for another node."""

    def __init__(self, raft: Raft, send: Callable[[int, Admin | AdminReply], None]) -> None:
        self._raft = raft
        self._send = send
        self._number = raft.incarnation << 32  # no answer to an earlier process fits
        self._asked: dict[int, _Asked] = {}  # by number
        self._transfer: tuple[int, Outcome] | None = None  # (target, who asked)
        self._changes: list[tuple[int, int, Outcome]] = []  # (term, index of the entry, who asked)
        self._deferred: list[tuple[AdminRequest, Outcome]] = []
        self._leaderless: list[tuple[AdminRequest, Outcome, int]] = []  # asked while no leader was known, and until when they wait

    def ask(self, request: AdminRequest, outcome: Outcome) -> None:
        """From a door of this node."""
        leader = self._raft.leader
        if len(self._asked) + len(self._leaderless) + len(self._deferred) + len(self._changes) >= ADMIN_ASKED:
            outcome("too much is asked of the cluster already, and not answered: nothing was done. Ask again later")
        elif self._raft.is_leader:
            self._do(request, outcome)
        elif leader:
            self._number += 1
            self._asked[self._number] = _Asked(request, outcome, leader, self._raft.tick_count + ADMIN_TICKS)
            self._send(leader, Admin(self._number, request))
        else:
            self._leaderless.append((request, outcome, self._raft.tick_count + LEADER_TICKS))

    def receive(self, sender: int, message: Admin | AdminReply) -> None:
        """From another node."""
        if type(message) is Admin:
            number = message.number
            self._do(message.request, lambda reason: self._send(sender, AdminReply(number, reason)))
        elif type(message) is AdminReply and message.number in self._asked:
            self._asked.pop(message.number).outcome(message.reason)

    def _do(self, request: AdminRequest, outcome: Outcome) -> None:
        if self._raft.is_leader and not self._raft.has_committed_own_entry and not isinstance(request, TransferLead):
            self._deferred.append((request, outcome))  # R23: a moment after its election it may change something
            return
        try:
            match request:
                case TransferLead(node=node):
                    self._raft.lead().transfer(node)
                    self._transfer = (node, outcome)
                case AddMember(node=node, address=address):
                    self._change(lambda configuration: add_learner(configuration, node, address), outcome)
                case PromoteMember(node=node):
                    is_caught_up = self._raft.lead().is_caught_up(node)
                    self._change(lambda configuration: promote(configuration, node, is_caught_up), outcome)
                case RemoveMember(node=node) if node == self._raft.node and self._raft.lead().best_successor():
                    self._hand_over_and_ask_again(request, outcome)
                case RemoveMember(node=node):
                    self._change(lambda configuration: remove(configuration, node), outcome)
        except NotLeader:
            outcome("the node that was asked leads no more: ask again")
        except Refused as reason:
            outcome(str(reason))

    def _hand_over_and_ask_again(self, request: AdminRequest, outcome: Outcome) -> None:
        """A leader that removes itself could not say that it is done; the next one can."""
        successor = self._raft.lead().best_successor()
        self._raft.lead().transfer(successor)
        self._transfer = (successor, lambda reason: outcome(reason) if self._raft.is_leader else self.ask(request, outcome))

    def _change(self, make: Change, outcome: Outcome) -> None:
        self._changes.append((self._raft.term, self._raft.lead().change(make), outcome))

    def look(self) -> None:
        """Once a turn: tell those whose request has come to an end."""
        raft = self._raft
        leaderless, self._leaderless = self._leaderless, []
        for request, outcome, until_tick in leaderless:
            if raft.leader:
                self.ask(request, outcome)
            elif raft.tick_count >= until_tick:
                outcome("no leader is known: ask again when one is elected")
            else:
                self._leaderless.append((request, outcome, until_tick))
        if self._deferred and (not raft.is_leader or raft.has_committed_own_entry):
            deferred, self._deferred = self._deferred, []
            for request, outcome in deferred:
                self._do(request, outcome)
        self._look_at_changes()
        if self._transfer is not None and not raft.is_transferring and raft.leader:
            (target, outcome), self._transfer = self._transfer, None
            if raft.is_leader:
                outcome(f"node {target} did not take the lead within an election timeout: node {raft.node} goes on")
            else:
                outcome("" if raft.leader == target else f"node {raft.leader} leads now, not node {target}")
        for number, asked in list(self._asked.items()):
            if raft.leader not in (0, asked.leader):
                if asked.request == TransferLead(raft.leader):
                    del self._asked[number]
                    asked.outcome("")
                    continue
                asked.until_tick = min(asked.until_tick, raft.tick_count + LAST_WORD_TICKS)
            if raft.tick_count >= asked.until_tick:
                del self._asked[number]
                asked.outcome(f"node {asked.leader}, which led, has not answered: whether it was done is not known")

    def _look_at_changes(self) -> None:
        """A change is done when it is committed, and the joint configuration that it began with has been left."""
        raft = self._raft
        for change in list(self._changes):
            term, index, outcome = change
            if raft.log.commit_index >= index and raft.log.term_at(index) in (term, None) and self._is_settled:
                self._changes.remove(change)
                outcome("")
            elif raft.term != term:
                self._changes.remove(change)
                outcome("the lead has changed meanwhile: whether it was done is not known, `raftd member list` shows")

    @property
    def _is_settled(self) -> bool:
        membership = self._raft.membership
        return membership.index <= self._raft.log.commit_index and not membership.latest.outgoing

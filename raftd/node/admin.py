"""Administrative requests: any node accepts them, the leader carries them out, the answer returns to the node that was asked.

Requests are not in the log. If the leader falls silent, the outcome of its requests is `Outcome.UNKNOWN`.
"""

from __future__ import annotations

from collections.abc import Callable

from raftd.errors import NotLeader
from raftd.raft.core import Change, Raft
from raftd.raft.membership import add_learner, promote, remove
from raftd.raft.messages import AddMember, Admin, AdminReply, AdminRequest, PromoteMember, RemoveMember, TransferLead
from raftd.raft.outcomes import DONE, AdminResult, Outcome, Refused

#: How long a request waits for the answer of a leader that leads no more, in ticks.
LAST_WORD_TICKS = 100
#: How long an operator's request waits for the leader's answer, in ticks: an election and a half of the slowest kind fit in.
ADMIN_TICKS = 1_000
#: How long an operator's request waits for a leader to be elected, in ticks: as long as the slowest usual election takes.
LEADER_TICKS = 500
#: What operators ask of one node and is not answered yet.
ADMIN_ASKED = 64

#: Called once, when a request has ended.
Answer = Callable[[AdminResult], None]


class _Asked:
    """A request that waits for the answer of another node, `leader`."""

    def __init__(self, request: AdminRequest, answer: Answer, leader: int, until_tick: int) -> None:
        self.request = request
        self.answer = answer
        self.leader = leader
        self.until_tick = until_tick


class Administration:
    """`send` takes a message for another node."""

    def __init__(self, raft: Raft, send: Callable[[int, Admin | AdminReply], None]) -> None:
        self._raft = raft
        self._send = send
        self._number = raft.incarnation << 32  # no answer to an earlier process fits
        self._asked: dict[int, _Asked] = {}  # by number
        self._transfer: tuple[int, Answer] | None = None  # (target, who asked)
        self._changes: list[tuple[int, int, Answer]] = []  # (term, index of the entry, who asked)
        self._deferred: list[tuple[AdminRequest, Answer]] = []
        self._leaderless: list[tuple[AdminRequest, Answer, int]] = []  # asked while no leader was known, and until when they wait

    def ask(self, request: AdminRequest, answer: Answer) -> None:
        """Handle a request of a client of this node."""
        leader = self._raft.leader
        if len(self._asked) + len(self._leaderless) + len(self._deferred) + len(self._changes) >= ADMIN_ASKED:
            answer(AdminResult(Outcome.BUSY, "too many requests wait for an answer already: nothing was changed. Try again later"))
        elif self._raft.is_leader:
            self._do(request, answer)
        elif leader:
            self._number += 1
            self._asked[self._number] = _Asked(request, answer, leader, self._raft.tick_count + ADMIN_TICKS)
            self._send(leader, Admin(self._number, request))
        else:
            self._leaderless.append((request, answer, self._raft.tick_count + LEADER_TICKS))

    def receive(self, sender: int, message: Admin | AdminReply) -> None:
        """Handle a message of another node."""
        if type(message) is Admin:
            number = message.number
            self._do(message.request, lambda result: self._send(sender, AdminReply(number, result.outcome, result.text)))
        elif type(message) is AdminReply and message.number in self._asked:
            self._asked.pop(message.number).answer(AdminResult(message.outcome, message.text))

    def _do(self, request: AdminRequest, answer: Answer) -> None:
        if self._raft.is_leader and not self._raft.has_committed_own_entry and not isinstance(request, TransferLead):
            self._deferred.append((request, answer))  # R23: a moment after its election it may change something
            return
        try:
            match request:
                case TransferLead(node=node):
                    self._raft.leadership.transfer(node)
                    self._transfer = (node, answer)
                case AddMember(node=node, address=address):
                    self._change(lambda configuration: add_learner(configuration, node, address), answer)
                case PromoteMember(node=node):
                    is_caught_up = self._raft.leadership.is_caught_up(node)
                    self._change(lambda configuration: promote(configuration, node, is_caught_up), answer)
                case RemoveMember(node=node) if node == self._raft.node and self._raft.leadership.best_successor():
                    self._hand_over_and_ask_again(request, answer)
                case RemoveMember(node=node):
                    self._change(lambda configuration: remove(configuration, node), answer)
        except NotLeader:
            answer(AdminResult(Outcome.NOT_LEADER, "the node that received the request is no longer the leader: try again"))
        except Refused as refused:
            answer(refused.result)

    def _hand_over_and_ask_again(self, request: AdminRequest, answer: Answer) -> None:
        """A leader that removes itself could not say that it is done; the next one can."""
        successor = self._raft.leadership.best_successor()
        self._raft.leadership.transfer(successor)
        self._transfer = (successor, lambda result: answer(result) if self._raft.is_leader else self.ask(request, answer))

    def _change(self, make: Change, answer: Answer) -> None:
        self._changes.append((self._raft.term, self._raft.leadership.change(make), answer))

    def poll(self) -> None:
        """Once a turn: tell those whose request has come to an end."""
        raft = self._raft
        leaderless, self._leaderless = self._leaderless, []
        for request, answer, until_tick in leaderless:
            if raft.leader:
                self.ask(request, answer)
            elif raft.tick_count >= until_tick:
                answer(AdminResult(Outcome.NO_LEADER, "no leader is known: try again when one is elected"))
            else:
                self._leaderless.append((request, answer, until_tick))
        if self._deferred and (not raft.is_leader or raft.has_committed_own_entry):
            deferred, self._deferred = self._deferred, []
            for request, answer in deferred:
                self._do(request, answer)
        self._poll_changes()
        if self._transfer is not None and not raft.is_transferring and raft.leader:
            (target, answer), self._transfer = self._transfer, None
            if raft.is_leader:
                text = f"node {target} did not become leader within an election timeout: node {raft.node} stays leader"
                answer(AdminResult(Outcome.TRANSFER_FAILED, text))
            elif raft.leader == target:
                answer(DONE)
            else:
                answer(AdminResult(Outcome.TRANSFER_FAILED, f"node {raft.leader} became leader, not node {target}"))
        for number, asked in list(self._asked.items()):
            if raft.leader not in (0, asked.leader):
                if asked.request == TransferLead(raft.leader):
                    del self._asked[number]
                    asked.answer(DONE)
                    continue
                asked.until_tick = min(asked.until_tick, raft.tick_count + LAST_WORD_TICKS)
            if raft.tick_count >= asked.until_tick:
                del self._asked[number]
                text = f"the leader, node {asked.leader}, has not answered: the request may have been carried out or not"
                asked.answer(AdminResult(Outcome.UNKNOWN, text))

    def _poll_changes(self) -> None:
        """A change is done when it is committed, and the joint configuration that it began with has been left."""
        raft = self._raft
        for change in list(self._changes):
            term, index, answer = change
            if raft.log.commit_index >= index and raft.log.term_at(index) in (term, None) and self._is_settled:
                self._changes.remove(change)
                answer(DONE)
            elif raft.term != term:
                self._changes.remove(change)
                text = "the leader has changed: `raftd member list` shows whether the change was made"
                answer(AdminResult(Outcome.UNKNOWN, text))

    @property
    def _is_settled(self) -> bool:
        membership = self._raft.membership
        return membership.index <= self._raft.log.commit_index and not membership.latest.outgoing

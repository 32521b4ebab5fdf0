"""Batches of all gateways on their way into the log of the leader, one group after the other.

An entry costs every node a turn, a write and a message, whatever it holds. So while entries are on their way to a majority, batches that
arrive are kept, and proposed together when all entries are committed, or at the next tick: a slow network then costs a tick at most.
"""

from __future__ import annotations

from collections.abc import Callable

from raftd.errors import NotLeader, Overloaded
from raftd.jobs.commands import Forward, ForwardRefused
from raftd.raft.core import Raft
from raftd.raft.messages import EntryKind


class ForwardProposals:
    """`refuse` is called with a node and what to tell its gateway: the batch was not proposed, and none of that attempt will be."""

    def __init__(self, raft: Raft, refuse: Callable[[int, ForwardRefused], None]) -> None:
        self._raft = raft
        self._refuse = refuse
        self._refused: dict[int, tuple[int, int]] = {}  # node -> the (incarnation, attempt) whose further batches are refused
        self._held: list[tuple[int, Forward]] = []

    def leader_changed(self) -> None:
        """There is another leader, or another term: gateways send everything again."""
        self._refused.clear()
        self._held.clear()

    def add(self, sender: int, forward: Forward) -> None:
        """A batch of that node has arrived."""
        if self._raft.is_leader and (self._held or self._has_uncommitted):
            self._held.append((sender, forward))
        else:
            self._propose(sender, forward)

    @property
    def has_held(self) -> bool:
        """Whether batches wait for a commit or a tick."""
        return bool(self._held)

    @property
    def _has_uncommitted(self) -> bool:
        return self._raft.log.last_index > self._raft.log.commit_index

    def propose_held(self) -> None:
        """Propose what is kept, if everything before is committed."""
        if self._held and not self._has_uncommitted:
            self.propose_all()

    def propose_all(self) -> None:
        """Propose what is kept, whatever is under way."""
        held, self._held = self._held, []
        for sender, forward in held:
            self._propose(sender, forward)

    def _propose(self, sender: int, forward: Forward) -> None:
        """After refusing one, the rest of that attempt is refused too, or a later one could overtake it."""
        attempt = (forward.incarnation, forward.attempt)
        if self._refused.get(sender) != attempt:
            try:
                self._raft.propose([(EntryKind.BATCH, forward.payload)])
                return
            except (NotLeader, Overloaded):
                self._refused[sender] = attempt
        self._refuse(sender, ForwardRefused(*attempt))

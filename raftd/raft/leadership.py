"""What a leader does to the cluster itself: it hands the lead over, and changes who is a member.

Made when a node becomes the leader, and gone when it leads no more: nothing of it is left behind (R32).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from raftd.raft.membership import check_free, encode, leave_joint, promote
from raftd.raft.messages import Configuration, EntryKind, TimeoutNow
from raftd.raft.outcomes import Outcome, Refused
from raftd.raft.quorum import has_majority
from raftd.raft.replication import Replication

if TYPE_CHECKING:
    from raftd.raft.core import Raft

Change = Callable[[Configuration], Configuration]


class Leadership:
    """Of `raft`, in this term."""

    def __init__(self, raft: Raft, replication: Replication, election_ticks: int) -> None:
        self._raft = raft
        self._replication = replication
        self._election_ticks = election_ticks
        self._target = 0  # whom the lead is handed to
        self._give_up_tick = 0
        self._is_asked = False
        self._began_tick = raft.tick_count
        self._committed_before = 0  # the commit index at the heartbeat before
        #: It is committed that this node is no voter: it leads no more once this turn's messages are out (R27).
        self.is_over = False

    # -- transfer (R32) -----------------------------------------------------------------------

    @property
    def successor(self) -> int:
        """The node that the lead is being handed to, 0 for none: until that is done or given up nothing is proposed."""
        return self._target

    @property
    def _heard_since(self) -> int:
        return self._raft.tick_count - self._election_ticks

    def transfer(self, target: int) -> None:
        """Hand the lead to `target`; given up after an election timeout. Raises Refused."""
        raft = self._raft
        voters = raft.membership.latest.voters
        if target == raft.node:
            raise Refused(Outcome.ALREADY_LEADER, f"node {target} leads already")
        if target not in voters:
            raise Refused(Outcome.NOT_VOTER, f"node {target} is no voter of this cluster: {', '.join(map(str, sorted(voters)))} are")
        self._check_no_transfer()
        if not self._replication.hears(target, self._heard_since):
            raise Refused(Outcome.NOT_HEARD, f"node {target} has not been heard for an election timeout")
        self._target = target
        self._give_up_tick = raft.tick_count + self._election_ticks
        self._is_asked = False

    def _check_no_transfer(self) -> None:
        if self._target:
            raise Refused(Outcome.TRANSFER_IN_PROGRESS, f"the lead is being handed to node {self._target}: ask again when that is over")

    def best_successor(self) -> int:
        """Which voter is the nearest to this leader's log, 0 if none is heard."""
        return self._replication.furthest(self._raft.membership.latest.voters, self._heard_since)

    def hand_over(self) -> None:
        """TimeoutNow once the target has everything; entries on their way to it go first on the same connection."""
        if not self._target or self._is_asked:
            return
        progress = self._replication.progress.get(self._target)
        if progress is not None and progress.match_index == self._raft.log.last_index:
            self._is_asked = True
            self._raft.send(self._target, TimeoutNow(self._raft.term))

    def tick(self) -> None:
        if self._target and self._raft.tick_count >= self._give_up_tick:
            self._target = 0

    # -- room ---------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool | None:
        """Whether those who are heard, and have room for what comes, could commit without the others; None if that is not known: too few
        are heard, or the lead is so new that others may be heard yet."""
        raft, progress = self._raft, self._replication.progress
        heard = {peer for peer in progress if self._replication.hears(peer, self._heard_since)} | {raft.node}
        # Who is sent a snapshot takes no part in committing.
        low = {peer for peer, one in progress.items() if one.is_low_on_disk or one.transfer is not None}
        if raft.is_low_on_disk:
            low.add(raft.node)
        if has_majority(raft.membership.halves, heard - low):
            return True
        is_known = heard >= raft.voters or (raft.tick_count - self._began_tick >= self._election_ticks)
        return False if is_known and has_majority(raft.membership.halves, heard) else None

    @property
    def awaited(self) -> int:
        """The log behind this entry will be wanted by those who are heard and are sent a snapshot; the last one if there are none."""
        transfers = [
            one.transfer.snapshot.index
            for peer, one in self._replication.progress.items()
            if one.transfer is not None and self._replication.hears(peer, self._heard_since)
        ]
        return min(transfers, default=self._raft.log.last_index)

    # -- membership ---------------------------------------------------------------------------

    def change(self, make: Change) -> int:
        """Append the configuration that `make` makes of the one in effect; the index of its entry. Raises Refused: by `make`, for R23
        and R24, or if too few of its voters are heard."""
        raft = self._raft
        self._check_no_transfer()
        check_free(raft.membership.latest, raft.membership.index, raft.log.commit_index, raft.has_committed_own_entry)
        configuration = make(raft.membership.latest)
        silent = [voter for voter in configuration.voters if voter != raft.node and not self._replication.hears(voter, self._heard_since)]
        if configuration.outgoing and 2 * len(silent) >= len(configuration.voters):
            who = ", ".join(map(str, silent))
            raise Refused(
                Outcome.NO_MAJORITY_LEFT, f"of the voters that this would leave, {who} are not heard: nothing could be committed any more"
            )
        return self._append(configuration)

    def _append(self, configuration: Configuration) -> int:
        self._raft.append([(EntryKind.CONFIG, encode(configuration))])
        return self._raft.log.last_index

    def is_caught_up(self, peer: int) -> bool:
        """Whether it has everything that was committed at the heartbeat before."""
        progress = self._replication.progress.get(peer)
        return progress is not None and 0 < self._committed_before <= progress.match_index

    def heartbeat(self) -> None:
        """Called with every one: a learner that has caught up is promoted."""
        raft = self._raft
        for learner in raft.membership.latest.learners:
            if self.is_caught_up(learner) and self._replication.hears(learner, self._heard_since):
                with suppress(Refused):
                    self.change(partial(promote, node=learner, is_caught_up=True))
                    break
        self._committed_before = raft.log.commit_index

    def committed(self) -> None:
        """The commit index has moved: a joint configuration that is committed is left (R25); a leader that is no voter goes (R27)."""
        raft = self._raft
        if raft.membership.index > raft.log.commit_index:
            return
        if raft.membership.latest.outgoing:
            self._append(leave_joint(raft.membership.latest))
        elif raft.node not in raft.membership.voters:
            raft.notify_commit(self._replication.progress)
            self.is_over = True

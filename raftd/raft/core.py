"""Raft (Ongaro and Ousterhout, extended version; Ongaro's thesis for PreVote and ReadIndex), sans I/O.

                  election timeout            a majority would vote        a majority voted
    FOLLOWER ───────────────────▶ PRE_CANDIDATE ─────────────▶ CANDIDATE ─────────────▶ LEADER
        ▲                               │                          │                      │
        └── a leader is heard, a higher term is seen, too few would vote, a leader without a quorum ──┘

Every method that takes input may queue effects; `ready()` collects them (its contract: `ready.py`). No
method reads a clock: `set_time()` brings the driver's monotonic and wall clock, and everything until the next call happens at
that time. Election timeouts count ticks, not milliseconds: a process that was stopped for a while hears
what has arrived before it believes that the leader is gone.

PreVote and CheckQuorum are always on. `docs/rules.md` explains the rules with an R number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from random import Random

import msgspec

from raftd.errors import NotLeader, Overloaded
from raftd.limits import APPLY_BYTES, LIMITS, TICK_MS, Limits
from raftd.raft.log import Log
from raftd.raft.logtime import LogClock
from raftd.raft.membership import Membership, check_free, encode, is_sound, leave_joint, promote
from raftd.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Configuration,
    Entry,
    EntryKind,
    InstallSnapshot,
    InstallSnapshotReply,
    Message,
    PreVote,
    PreVoteReply,
    ReadIndex,
    ReadIndexReply,
    RequestVote,
    RequestVoteReply,
    Snapshot,
    TimeoutNow,
)
from raftd.raft.outcomes import Outcome, Refused
from raftd.raft.progress import Progress
from raftd.raft.quorum import Tally, has_majority, majority_value
from raftd.raft.reads import PendingReads
from raftd.raft.ready import Base, ChunkFetch, EntriesFetch, HardState, Persist, ReadState, Ready, Role, RoleChange
from raftd.raft.replication import Replication

Change = Callable[[Configuration], Configuration]

#: T is at least so many times what the last vote took to be won, and at most so many times what it was set to: a network or a disk
#: that is slow for T would let no candidate win, and no leader hear a majority in time.
_ROUND_TRIPS = 4
_MOST_TIMES = 8


class Raft:
    """One node's part in the consensus.

    An election timeout is drawn from [T, 2T); T is `election_ticks`, or more while votes take long. `incarnation` numbers this process
    among all that ever ran on the data directory, from 1. `doubtful` in `hard_state` is never set for
    the only voter: no other node could outvote it.
    """

    def __init__(
        self,
        node: int,
        configuration: Configuration,
        log: Log,
        hard_state: HardState,
        incarnation: int,
        random: Random,
        election_ticks: int,
        heartbeat_ticks: int,
        limits: Limits = LIMITS,
    ) -> None:
        self.node = node
        self._limits = limits
        self.log = log
        self.membership = Membership(configuration, log.forgotten_index, log.slice(log.forgotten_index + 1, log.last_index))
        self.term = hard_state.term
        self.voted_for = hard_state.voted_for
        self.doubtful = hard_state.doubtful
        self.incarnation = incarnation
        self.role = Role.FOLLOWER
        self.leader = 0
        self.clock = LogClock()
        self.now_ms = 0
        self.wall_ms = 0
        self._random = random
        self._least_election_ticks = election_ticks
        #: T, as it is now.
        self.election_ticks = election_ticks
        self._heartbeat_ticks = heartbeat_ticks
        self._timeout_ticks = 0
        self._elapsed_ticks = 0
        self._leader_speaks = False  # on the present connection
        self._heartbeat_elapsed_ticks = 0
        self._heartbeat_sent_ms = 0
        self.tick_count = 0
        self._draw_timeout()
        if self.voters == {self.node}:
            self._timeout_ticks = 1  # no other voter to wait for
        # an election
        self._tally = Tally(self.membership.halves)
        self._estimates: list[int | None] = []
        self._walls: list[int] = []
        self._pre_votes_requested_tick = 0
        self._own_vote_persist = 0  # the persist that makes it durable, 0 until handed over
        self._votes_requested_tick = 0  # the tick at which it became durable and the others were asked
        # leading
        #: What goes to followers, None on others.
        self.replication: Replication | None = None
        self._reads = PendingReads()
        self._first_own_index = 0  # of this term, as leader
        #: Of entries that this leader has appended and not committed yet.
        self.uncommitted_bytes = 0
        self._leadership: Leadership | None = None
        # a doubtful node is sound again once this index is committed and durable here; 0: not known
        self._sound_at_index = 0
        #: The newest that is durable here, for followers that need one.
        self.snapshot: Snapshot | None = None
        #: A leader's snapshot is whole, and is about to take the place of the log (R30).
        self.is_installing = False
        #: Said by the driver; the leader hears it with every answer.
        self.is_low_on_disk = False
        # effects not collected yet
        self._hard_state_changed = False
        self._hard_state_number = 0  # the last persist that carried it
        self._persist_number = 0
        self._persists_in_flight: deque[tuple[int, int]] = deque()  # (persist number, tick when handed over)
        self._send_now: list[tuple[int, Message]] = []
        self._send_after: list[tuple[int, Message]] = []
        self._finished_reads: list[ReadState] = []
        self._changes: list[RoleChange] = []
        self._chunks: list[tuple[int, InstallSnapshot]] = []

    # -- what the driver may look at ----------------------------------------------------------

    @property
    def voters(self) -> frozenset[int]:
        """Of both halves while the configuration is joint."""
        return self.membership.voters

    @property
    def peers(self) -> list[int]:
        """All other members."""
        return sorted(self.membership.members - {self.node})

    @property
    def is_removed(self) -> bool:
        """Whether it is committed that this node is a member no more."""
        return self.node in self.membership.configuration_at(self.log.commit_index).removed and self.node not in self.membership.members

    @property
    def is_leader(self) -> bool:
        return self.role is Role.LEADER

    @property
    def progress(self) -> dict[int, Progress]:
        """What this leader knows of each follower; empty on others."""
        return self.replication.progress if self.replication is not None else {}

    @property
    def snapshots_in_use(self) -> set[Snapshot]:
        """Those that are on their way to followers: their files must stay."""
        return self.replication.snapshots_in_use if self.replication is not None else set()

    @property
    def has_committed_own_entry(self) -> bool:
        """Whether this leader has committed an entry of its term; before that it serves no read (R20)."""
        return self.is_leader and self.log.commit_index >= self._first_own_index

    @property
    def first_own_index(self) -> int:
        """The index of this leader's first entry."""
        return self._first_own_index

    def clock_ms(self) -> int | None:
        """Log time now: exact on the leader, an estimate elsewhere, None if none was ever heard."""
        return self.clock.estimate_ms(self.now_ms)

    # -- input --------------------------------------------------------------------------------

    def set_time(self, now_ms: int, wall_ms: int) -> None:
        """All that follows happens at this time: the driver's monotonic clock and its wall clock."""
        self.now_ms = max(self.now_ms, now_ms)
        self.wall_ms = wall_ms

    def tick(self, ticks: int = 1) -> None:
        """So many logical ticks have passed, at most `idle_ticks` at once."""
        self.tick_count += ticks
        self._elapsed_ticks += ticks
        if self.is_leader:
            self._tick_leader(ticks)
        elif self.role is Role.CANDIDATE and self._tally.won and self.tick_count - self._votes_requested_tick >= self._heartbeat_ticks:
            self._become_leader()
        elif self._elapsed_ticks >= self._timeout_ticks and self._may_campaign:
            self.campaign("no leader heard within the election timeout")

    @property
    def idle_ticks(self) -> int:
        """How many ticks may pass, one at least, before the next could do anything; half an election timeout at most."""
        if self.is_leader and self._leadership is not None:
            ticks = min(
                self._heartbeat_ticks - self._heartbeat_elapsed_ticks,
                self.election_ticks - self._elapsed_ticks,
                self._leadership.idle_ticks,
            )
            if self._persists_in_flight:
                ticks = min(ticks, self._persists_in_flight[0][1] + 2 * self.election_ticks - self.tick_count)
            return max(1, ticks)
        if self.role is Role.FOLLOWER:
            return max(1, min(self.election_ticks // 2, self._timeout_ticks - self._elapsed_ticks))
        return 1

    def campaign(self, reason: str) -> None:
        """Ask whether an election could be won (PreVote, thesis §9.6); the only voter need not ask."""
        if self.is_leader or self.node not in self.voters:
            return
        self._draw_timeout()
        if self.voters == {self.node}:
            self._start_election(reason)
            return
        # R6: forget the known leader; otherwise two pre-candidates would refuse each other because of it
        self._become(Role.PRE_CANDIDATE, 0, reason)
        self._tally = Tally(self.membership.halves)
        self._tally.count(self.node, True)
        self._pre_votes_requested_tick = self.tick_count
        for peer in sorted(self.voters - {self.node}):
            self._send_now.append((peer, PreVote(self.term + 1, self.log.last_index, self.log.last_term)))

    def step(self, sender: int, message: Message) -> None:
        """A message of `sender` has arrived. The sender may be unknown here as a member: this node's configuration can be older."""
        if sender == self.node:
            return
        match message:
            case AppendEntries():
                self._on_append_entries(sender, message)
            case AppendEntriesReply():
                self._on_append_entries_reply(sender, message)
            case PreVote():
                if not self._ignores_candidate(sender):
                    self._on_pre_vote(sender, message)
            case RequestVote():
                if message.transfer or not self._ignores_candidate(sender):
                    self._on_request_vote(sender, message)
            case PreVoteReply():
                self._on_pre_vote_reply(sender, message)
            case RequestVoteReply():
                self._on_request_vote_reply(sender, message)
            case InstallSnapshot():
                self._on_install_snapshot(sender, message)
            case InstallSnapshotReply():
                self._on_install_snapshot_reply(sender, message)
            case TimeoutNow():
                self._on_timeout_now(sender, message)
            case ReadIndex():
                if self.is_leader and message.term == self.term:
                    self._reads.ask(sender, message.context)
            case ReadIndexReply():
                if message.term == self.term:
                    self._finished_reads.append(ReadState(message.context, message.index, message.clock_ms))

    def propose(self, proposals: Sequence[tuple[EntryKind, bytes]]) -> int:
        """Append entries as the leader; the index of the last one.

        Raises NotLeader, or Overloaded when too much waits to be committed (R19): then nothing was
        appended, and nothing vanishes in silence.
        """
        if not self.is_leader:
            raise NotLeader(self.leader)
        if self._leadership is not None and (successor := self._leadership.successor):
            raise Overloaded(f"the lead is being handed to node {successor}")
        size = sum(len(data) + 32 for _, data in proposals)
        if self.uncommitted_bytes and self.uncommitted_bytes + size > self._limits.uncommitted_bytes:
            raise Overloaded(f"{self.uncommitted_bytes} bytes of proposals wait to be committed")
        self.append(proposals)
        return self.log.last_index

    @property
    def hears_leader(self) -> bool:
        """Whether this follower has heard its leader within the election timeout: then it ignores candidates (R5)."""
        return self.role is Role.FOLLOWER and self.leader != 0 and self._elapsed_ticks < self.election_ticks

    @property
    def unsent(self) -> Sequence[tuple[int, Message]]:
        """The messages that the next `ready` will release without waiting for the disk, with their receivers."""
        return self._send_now

    @property
    def leadership(self) -> Leadership:
        """What a leader does to the cluster itself. Raises NotLeader."""
        if self._leadership is None:
            raise NotLeader(self.leader)
        return self._leadership

    @property
    def is_transferring(self) -> bool:
        return self._leadership is not None and self._leadership.successor != 0

    def read_index(self, context: int) -> None:
        """Start a linearizable read; a ReadState with `context` follows, or never, if leadership changes.

        The asker asks again when the leader or the term has changed. Raises NotLeader if none is known.
        """
        if self.is_leader:
            self._reads.ask(self.node, context)
        elif self.leader:
            self._send_now.append((self.leader, ReadIndex(self.term, context)))
        else:
            raise NotLeader(0)

    def applied(self, index: int) -> None:
        """All entries up to `index`, which `ready` gave to be applied, are."""
        self.log.applied(index)
        self.membership.applied(index)

    def notify_commit(self, nodes: Iterable[int]) -> None:
        """Tell these followers the commit index at once, not with the next heartbeat."""
        if self.replication is not None:
            self.replication.due(nodes)

    def hearing_from(self, sender: int) -> None:
        """Bytes of an unfinished message of `sender` have arrived: a long one is no silence.

        Only on a connection on which it has spoken as the leader: a restarted leader asks for votes, and a follower that counted those
        bytes as a heartbeat would wait for it for ever (simulator seed 4).
        """
        if sender == self.leader and self._leader_speaks:
            self._elapsed_ticks = 0

    def link_changed(self, peer: int) -> None:
        """The connection to `peer` came up or went down: whatever was in flight may be lost."""
        if peer == self.leader:
            self._leader_speaks = False
        if self.replication is not None:
            self.replication.link_changed(peer)

    # -- input: the disk ----------------------------------------------------------------------

    def compacted(self, snapshot: Snapshot, purged_index: int) -> None:
        """`snapshot` is durable, and the log on the disk begins behind `purged_index`, which may be the same as before."""
        self.snapshot = snapshot
        if purged_index > self.log.offset:
            self.log.purge(purged_index)

    def chunk_kept(self, sender: int, snapshot: Snapshot, have: int) -> None:
        """The first `have` bytes of the leader's snapshot are on the disk: acknowledge them."""
        if sender == self.leader:
            self._send_now.append((sender, InstallSnapshotReply(self.term, snapshot.index, have, self.incarnation)))

    def begin_install(self, snapshot: Snapshot) -> bool:
        """A leader's snapshot is here, whole and sound: no campaign from now on, nothing appended or applied, until `installed` (R30).
        Return False if the snapshot cannot be installed now or is not needed any more."""
        if self.is_installing:
            return False
        if self.log.term_at(snapshot.index) == snapshot.term and snapshot.index > self.log.commit_index:
            self.log.commit_to(snapshot.index)  # R29: the log has got there while the snapshot was on its way
        self.is_installing = self.role is Role.FOLLOWER and snapshot.index > self.log.commit_index
        self._chunks.clear()
        return self.is_installing

    def installed(self, snapshot: Snapshot, base: Base, configuration: Configuration) -> None:
        """It has taken the place of the log and of the state, durably (R29)."""
        self.is_installing = False
        self.snapshot = snapshot
        self.log = Log((), base, memory_bytes=self._limits.log_memory_bytes)
        self.membership = Membership(configuration, base.index, ())
        if self.leader not in (0, self.node) and self.is_hard_state_durable:
            self._acknowledge(self.leader)
        self._recover_from_doubt()

    def persisted(self, number: int) -> None:
        """All persists up to `number` are durable."""
        while self._persists_in_flight and self._persists_in_flight[0][0] <= number:
            self._persists_in_flight.popleft()
        self.log.written(number)
        if self.role is Role.CANDIDATE and 0 < self._own_vote_persist <= number:
            self._tally.count(self.node, True, self.doubtful)
            self._votes_requested_tick = self.tick_count
            self._settle_election()
        if self.is_leader and self.log.durable_index > self.log.commit_index:
            self._advance_commit()
        self._recover_from_doubt()

    # -- output -------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether `ready` would give anything, or do anything besides."""
        log = self.log
        if self._send_now or self._send_after or self._finished_reads or self._changes or self._chunks or self._hard_state_changed:
            return True
        if log.handed_index < log.last_index or (log.applied_index < log.commit_index and not self.is_installing):
            return True
        if self.replication is None or self._leadership is None:
            return False
        return bool(self._reads) or self._leadership.has_work or self.replication.has_work

    def ready(self) -> Ready:
        """Everything that must happen now."""
        fetches: list[EntriesFetch | ChunkFetch] = []
        if self.replication is not None and self._leadership is not None:
            self._finish_reads()
            if self.has_committed_own_entry and self._reads.start_round(self.log.commit_index):
                self._finish_reads()  # the only voter confirms itself
                self.notify_commit(self.peers)
            self._leadership.hand_over()
            self.replication.replicate(self.snapshot, self.clock_ms() or 0, self._reads.round)
            fetches, self.replication.fetches = self.replication.fetches, fetches
            if self._leadership.is_over:
                self._become(Role.FOLLOWER, 0, "it is no member any more")
        persist = self._collect_persist()
        apply = [] if self.is_installing else self.log.next_to_apply(self._limits.apply_entries, APPLY_BYTES)
        ready = Ready(
            send_now=self._send_now,
            persist=persist,
            send_after_persist=self._send_after,
            after=self._persists_in_flight[-1][0] if self._persists_in_flight else 0,
            apply=apply,
            reads=self._finished_reads,
            changes=self._changes,
            fetches=fetches,
            chunks=self._chunks,
        )
        self._send_now, self._send_after, self._finished_reads, self._changes = [], [], [], []
        self._chunks = []
        return ready

    def _collect_persist(self) -> Persist | None:
        entries_wait = self.log.handed_index < self.log.last_index
        if not entries_wait and not self._hard_state_changed:
            return None
        self._persist_number += 1
        hard_state = None
        if self._hard_state_changed:
            hard_state = HardState(self.term, self.voted_for, self.doubtful)
            self._hard_state_changed = False
            self._hard_state_number = self._persist_number
            if self.role is Role.CANDIDATE and not self._own_vote_persist:
                self._own_vote_persist = self._persist_number
        entries = self.log.hand_over(self._persist_number) if entries_wait else []
        self._persists_in_flight.append((self._persist_number, self.tick_count))
        return Persist(self._persist_number, hard_state, entries)

    # -- roles --------------------------------------------------------------------------------

    def _adapt_timeout(self, requested_tick: int) -> None:
        """Votes that were requested at this tick are won now."""
        wanted = _ROUND_TRIPS * (self.tick_count - requested_tick)
        self.election_ticks = min(max(wanted, self._least_election_ticks), _MOST_TIMES * self._least_election_ticks)

    def _draw_timeout(self) -> None:
        self._timeout_ticks = self._random.randrange(self.election_ticks, 2 * self.election_ticks)

    def _become(self, role: Role, leader: int, reason: str) -> None:
        """Every change of role or leader passes here."""
        if (role, leader) != (self.role, self.leader):
            self._changes.append(RoleChange(role, self.term, leader, reason))
        if role is not Role.FOLLOWER or self.role is not Role.FOLLOWER:
            self._elapsed_ticks = 0
        self.role, self.leader = role, leader
        if role is not Role.LEADER:
            self.replication = None
            self._leadership = None
            self._reads = PendingReads()
            self.uncommitted_bytes = 0

    def _adopt_term(self, term: int, reason: str) -> None:
        """A higher term was seen. That is not a vote (R2): the vote is cleared, and only here."""
        self.term = term
        self.voted_for = 0
        self._hard_state_changed = True
        self._sound_at_index = 0
        # R14: what an earlier leader sent may be replaced before it reaches the disk, and needs no acknowledgement
        self._send_after = [(to, message) for to, message in self._send_after if type(message) is not AppendEntriesReply]
        self._become(Role.FOLLOWER, 0, reason)

    def _start_election(self, reason: str, transfer: bool = False) -> None:
        self.term += 1
        self.voted_for = self.node
        self._hard_state_changed = True
        self._own_vote_persist = 0
        self._sound_at_index = 0
        self._draw_timeout()
        self._become(Role.CANDIDATE, 0, reason)
        self._tally = Tally(self.membership.halves)
        self._estimates, self._walls = [], []
        for peer in sorted(self.voters - {self.node}):
            self._send_after.append((peer, RequestVote(self.term, self.log.last_index, self.log.last_term, transfer)))

    def _become_leader(self) -> None:
        self._adapt_timeout(self._votes_requested_tick)
        self._become(Role.LEADER, self.node, "a majority voted for it")
        self.clock.lead(self.term, self.log.last_time_ms, [*self._estimates, self.clock_ms()], [*self._walls, self.wall_ms], self.now_ms)
        self.replication = Replication(self.term, self.log, self.peers, self.send, self._limits)
        self._leadership = Leadership(self, self.replication, self.election_ticks)
        self._heartbeat_elapsed_ticks = 0
        self._heartbeat_sent_ms = self.now_ms
        self.uncommitted_bytes = 0
        self._first_own_index = self._sound_at_index = self.log.last_index + 1
        if self.log.last_index == 0:
            # the first entry of a cluster says who it is
            configuration = msgspec.structs.replace(self.membership.latest, cluster_id=self._random.randbytes(16))
            self.append([(EntryKind.CONFIG, encode(configuration))])
        else:
            self.append([(EntryKind.NOOP, b"")])

    def send(self, to: int, message: Message) -> None:
        """Into the lane of those that may leave at once."""
        self._send_now.append((to, message))

    def append(self, proposals: Sequence[tuple[EntryKind, bytes]]) -> None:
        """Append entries to the leader's log, stamped with log time."""
        stamp = max(self.log.last_time_ms, self.clock_ms() or 0)
        first = self.log.last_index + 1
        entries = [Entry(self.term, first + place, stamp, kind, data) for place, (kind, data) in enumerate(proposals)]
        self.uncommitted_bytes += sum(entry.size_bytes for entry in entries)
        self.log.append(entries)
        if self.membership.appended(entries) and self.replication is not None:
            self.replication.set_peers(self.peers, self.tick_count + 2 * self.election_ticks)

    # -- elections ----------------------------------------------------------------------------

    def _ignores_candidate(self, candidate: int) -> bool:
        """R5: a node with a live leader ignores candidates, before it looks at their term. The leader itself may campaign. A removed
        node is always ignored (R27)."""
        if candidate in self.membership.latest.removed and candidate not in self.membership.members:
            return True
        return self.leader not in (0, candidate) and self._elapsed_ticks < self.election_ticks

    def _on_pre_vote(self, sender: int, message: PreVote) -> None:
        granted = message.term > self.term and self.log.is_up_to_date(message.last_log_index, message.last_log_term)
        self._send_now.append((sender, PreVoteReply(message.term if granted else self.term, granted)))

    def _on_pre_vote_reply(self, sender: int, message: PreVoteReply) -> None:
        if not message.granted and message.term > self.term:
            self._adopt_term(message.term, f"node {sender} is in a later term")
        elif self.role is Role.PRE_CANDIDATE and (not message.granted or message.term == self.term + 1):
            # A grant counts as sound here even from a doubtful voter: it decides nothing yet.
            self._tally.count(sender, message.granted)
            if self._tally.won:
                self._adapt_timeout(self._pre_votes_requested_tick)  # to an earlier request, maybe, and then too little
                self._start_election("a majority would vote for it")
            elif self._tally.lost:
                self._become(Role.FOLLOWER, 0, "a majority would not vote for it")

    def _on_request_vote(self, sender: int, message: RequestVote) -> None:
        if message.term > self.term:
            self._adopt_term(message.term, f"node {sender} campaigns in a later term")  # R3
        granted = (
            message.term == self.term
            and self.role is Role.FOLLOWER
            and self.leader == 0
            and self.voted_for in (0, sender)
            and self.log.is_up_to_date(message.last_log_index, message.last_log_term)
        )
        if granted:
            self._elapsed_ticks = 0
            if self.voted_for == 0:
                self.voted_for = sender
                self._hard_state_changed = True
        reply = RequestVoteReply(self.term, granted, self.doubtful, self.clock_ms(), self.wall_ms)
        (self._send_after if granted else self._send_now).append((sender, reply))

    def _on_request_vote_reply(self, sender: int, message: RequestVoteReply) -> None:
        if message.term > self.term:
            self._adopt_term(message.term, f"node {sender} is in a later term")
        elif self.role is Role.CANDIDATE and message.term == self.term:
            self._tally.count(sender, message.granted, message.doubtful)
            self._estimates.append(message.clock_ms)
            if message.granted:
                self._walls.append(message.wall_ms)
            self._settle_election()

    def _on_timeout_now(self, sender: int, message: TimeoutNow) -> None:
        """R32: no PreVote; a majority would refuse it for the sake of the leader that asks for this."""
        if message.term == self.term and self.leader == sender and self._may_campaign:
            self._start_election(f"node {sender} hands the lead over", transfer=True)

    @property
    def _may_campaign(self) -> bool:
        """A vote of our own needs the disk; one that is on its way to it is not overtaken by another."""
        return self.is_hard_state_durable and not self._disk_stalled and not self.is_installing and self.node in self.voters

    def _settle_election(self) -> None:
        """Votes are requested only after the own vote is durable, so it counts for the winner.

        If all who voted have just started, none of them knows log time, but another voter may: its answer is waited for, until a
        heartbeat's time after the votes were asked for. Wall clocks count only if there is no such answer.
        """
        if self._tally.won:
            estimates = [*self._estimates, self.clock_ms()]
            if any(estimate is not None for estimate in estimates) or len(estimates) >= len(self.voters):
                self._become_leader()
        elif self._tally.lost:
            self._become(Role.FOLLOWER, 0, "a majority voted against it")

    @property
    def is_hard_state_durable(self) -> bool:
        """Whether term and vote, as they are now, would survive a crash."""
        durable = self._persists_in_flight[0][0] - 1 if self._persists_in_flight else self._persist_number
        return not self._hard_state_changed and self._hard_state_number <= durable

    # -- following ----------------------------------------------------------------------------

    def _follow(self, sender: int, term: int) -> None:
        """`sender` leads in `term`, which is not older than ours."""
        if term > self.term:
            self._adopt_term(term, f"node {sender} leads in a later term")
        if self.is_leader:
            raise AssertionError(f"nodes {self.node} and {sender} both lead in term {self.term}")
        if self.leader != sender or self.role is not Role.FOLLOWER:
            self._become(Role.FOLLOWER, sender, f"node {sender} leads")
        self._elapsed_ticks = 0

    def _on_append_entries(self, sender: int, message: AppendEntries) -> None:
        if message.term < self.term:
            self._refuse(sender, message)  # R8: the answer carries the higher term
            return
        self._follow(sender, message.term)
        self._leader_speaks = True
        self.clock.hear(message.term, message.clock_ms, self.now_ms)
        if self.is_installing:
            if self.is_hard_state_durable:
                self._acknowledge(sender, message.read_round)
            return
        if message.heard == self.incarnation:
            self._sound_at_index = message.heard_at + 1

        log = self.log
        prev = message.prev_log_index
        if prev < 0 or not is_sound(prev, message.entries):
            return  # no Raft node says such a thing
        # At or below the commit index the leader's log is ours, purged or not (R16).
        if prev > log.commit_index and log.term_at(prev) != message.prev_log_term:
            self._refuse(sender, message)
            return
        appended = log.merge(message.entries)
        if appended:
            self.membership.truncated(appended[0].index)
            self.membership.appended(appended)
        last_new = prev + len(message.entries)
        log.commit_to(min(message.leader_commit, last_new))  # R11
        index = max(last_new, min(log.commit_index, log.durable_index))
        if not message.entries:
            # A heartbeat's answer waits for no disk: it claims just what is durable.
            index = min(index, log.durable_index)
        reply = self._reply(True, index, message.read_round)
        leave_at_once = index <= log.durable_index and self.is_hard_state_durable
        (self._send_now if leave_at_once else self._send_after).append((sender, reply))
        self._recover_from_doubt()

    def _acknowledge(self, leader: int, read_round: int = 0) -> None:
        """Acknowledge the greatest index that is both committed and durable here, whatever was asked."""
        index = min(self.log.commit_index, self.log.durable_index)
        self._send_now.append((leader, self._reply(True, index, read_round)))

    def _reply(self, success: bool, index: int, read_round: int, hint_index: int = 0, hint_term: int = 0) -> AppendEntriesReply:
        own = (self.incarnation, self.doubtful, self.is_low_on_disk)
        return AppendEntriesReply(self.term, success, index, hint_index, hint_term, read_round, *own)

    def _on_install_snapshot(self, sender: int, message: InstallSnapshot) -> None:
        if message.term < self.term:
            self._send_now.append((sender, InstallSnapshotReply(self.term, message.snapshot.index, 0, self.incarnation)))  # R8
            return
        self._follow(sender, message.term)
        if self.is_installing:
            return
        snapshot = message.snapshot
        if snapshot.index > self.log.commit_index and self.log.term_at(snapshot.index) == snapshot.term:
            self.log.commit_to(snapshot.index)  # R29: later entries stay
        if snapshot.index <= self.log.commit_index:
            if self.is_hard_state_durable:
                self._acknowledge(sender)
            return
        self._chunks.append((sender, message))  # R31: it moves nothing yet

    def _refuse(self, sender: int, message: AppendEntries) -> None:
        """Name the greatest index at which the logs can agree (R13)."""
        hint_index = self.log.last_with_term_at_most(message.prev_log_term, message.prev_log_index)
        hint_term = self.log.term_at(hint_index) or 0
        self._send_now.append((sender, self._reply(False, message.prev_log_index, message.read_round, hint_index, hint_term)))

    def _recover_from_doubt(self) -> None:
        """Sound again: an entry that the leader appended after it first heard this process is committed
        and durable here, and so is everything before it."""
        index = self._sound_at_index
        if self.doubtful and 0 < index <= self.log.commit_index and index <= self.log.durable_index:
            self.doubtful = False
            self._hard_state_changed = True

    # -- leading ------------------------------------------------------------------------------

    @property
    def _disk_stalled(self) -> bool:
        """A write has been on its way for 2T."""
        return bool(self._persists_in_flight) and self.tick_count - self._persists_in_flight[0][1] >= 2 * self.election_ticks

    def _tick_leader(self, ticks: int) -> None:
        if self._leadership is not None:
            self._leadership.tick()
        if self._disk_stalled and self.peers:
            # R34: heartbeats alone would keep a leader that can commit nothing; the only voter stays.
            self._become(Role.FOLLOWER, 0, "its disk has not finished a write for two election timeouts")
            return
        if self._elapsed_ticks >= self.election_ticks:
            self._elapsed_ticks = 0
            active = self.replication.recently_active(self.tick_count) if self.replication is not None else set()
            if not has_majority(self.membership.halves, active | {self.node}):
                self._become(Role.FOLLOWER, 0, "no majority answered within the election timeout")  # R7
                return
        self._heartbeat_elapsed_ticks += ticks
        # Also by the clock: a busy reactor skips ticks, and must not skip heartbeats.
        late = self.now_ms - self._heartbeat_sent_ms >= self._heartbeat_ticks * TICK_MS
        if late or self._heartbeat_elapsed_ticks >= self._heartbeat_ticks:
            self._heartbeat_elapsed_ticks = 0
            self._heartbeat_sent_ms = self.now_ms
            self.notify_commit(self.progress)
            if self._leadership is not None:
                self._leadership.heartbeat()

    def _on_append_entries_reply(self, sender: int, message: AppendEntriesReply) -> None:
        if message.term > self.term:
            self._adopt_term(message.term, f"node {sender} is in a later term")
            return
        if self.replication is None or message.term < self.term:
            return
        progress = self.replication.heard(sender, message.incarnation, self.tick_count)
        if progress is None:
            return
        if message.doubtful and self.log.last_index == progress.heard_at:
            self.append([(EntryKind.NOOP, b"")])  # an idle cluster would leave it in doubt for ever
        if self.replication.answered(progress, message) and progress.match_index > self.log.commit_index:
            self._advance_commit()

    def _on_install_snapshot_reply(self, sender: int, message: InstallSnapshotReply) -> None:
        if message.term > self.term:
            self._adopt_term(message.term, f"node {sender} is in a later term")
        elif self.replication is not None and message.term == self.term:
            progress = self.replication.heard(sender, message.incarnation, self.tick_count)
            if progress is not None:
                self.replication.snapshot_answered(progress, message)

    def _advance_commit(self) -> None:
        """§5.3, §5.4.2: only entries of the own term are committed by counting (R9)."""
        matches = {peer: progress.match_index for peer, progress in self.progress.items()}
        matches[self.node] = self.log.durable_index
        index = majority_value(self.membership.halves, matches)
        before = self.log.commit_index
        if index <= before or self.log.term_at(index) != self.term:
            return
        self.log.commit_to(index)
        committed = self.log.slice(max(before + 1, self._first_own_index), index)
        self.uncommitted_bytes -= sum(entry.size_bytes for entry in committed)
        self._recover_from_doubt()
        if self._leadership is not None:
            self._leadership.committed()

    def _finish_reads(self) -> None:
        rounds = {peer: progress.read_round for peer, progress in self.progress.items()}
        rounds[self.node] = self._reads.round
        for asker, context, index in self._reads.finished(self.membership.halves, rounds):
            clock_ms = self.clock_ms() or 0
            if asker == self.node:
                self._finished_reads.append(ReadState(context, index, clock_ms))
            else:
                self._send_now.append((asker, ReadIndexReply(self.term, context, index, clock_ms)))


class Leadership:
    """What a leader does to the cluster itself: it hands the lead over, and changes who is a member. Made for one term of `raft`;
    nothing of it is left when the term ends (R32)."""

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

    @property
    def has_work(self) -> bool:
        """Whether the lead is being handed over or is over."""
        return self._target != 0 or self.is_over

    def hand_over(self) -> None:
        """TimeoutNow once the target has everything; entries on their way to it go first on the same connection."""
        if not self._target or self._is_asked:
            return
        progress = self._replication.progress.get(self._target)
        if progress is not None and progress.match_index == self._raft.log.last_index:
            self._is_asked = True
            self._raft.send(self._target, TimeoutNow(self._raft.term))

    @property
    def idle_ticks(self) -> int:
        """How many ticks may pass before `tick` would do anything."""
        return self._give_up_tick - self._raft.tick_count if self._target else self._election_ticks

    def tick(self) -> None:
        if self._target and self._raft.tick_count >= self._give_up_tick:
            self._target = 0

    # -- disk space ---------------------------------------------------------------------------------

    @property
    def has_space(self) -> bool | None:
        """Whether the nodes that are heard and have disk space could commit without the others. None if unknown: too few are heard, or
        this leader is so new that others may still be heard."""
        raft, progress = self._raft, self._replication.progress
        heard = {peer for peer in progress if self._replication.hears(peer, self._heard_since)} | {raft.node}
        # Followers that receive a snapshot do not count for committing.
        low = {peer for peer, one in progress.items() if one.is_low_on_disk or one.transfer is not None}
        if raft.is_low_on_disk:
            low.add(raft.node)
        if has_majority(raft.membership.halves, heard - low):
            return True
        is_known = heard >= raft.voters or (raft.tick_count - self._began_tick >= self._election_ticks)
        return False if is_known and has_majority(raft.membership.halves, heard) else None

    @property
    def awaited(self) -> int:
        """Return the lowest index of the snapshots that are being sent (the log after it must stay), or the last index if there is none."""
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

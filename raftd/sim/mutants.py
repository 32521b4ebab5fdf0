"""Deliberately broken variants of production code. Each must be caught by the simulator, or the simulator checks nothing.

A mutant is one small patch, applied while a life runs and taken back after it. It replaces a method by one that calls
what it replaces, or does without it; nothing else in the house knows of mutants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from raftd.client.core import Core
from raftd.errors import CorruptionError
from raftd.jobs import clients, policies, replay, schedules
from raftd.jobs import commands as c
from raftd.jobs import replies as r
from raftd.jobs.finished import FinishedJobs
from raftd.jobs.keys import Keys
from raftd.jobs.machine import StateMachine
from raftd.jobs.model import ClientSession, JobEventKind, State, Wait
from raftd.jobs.model import Session as JobSession
from raftd.jobs.pages import SortedPages
from raftd.jobs.policy import Policy
from raftd.jobs.snapshot import Loader
from raftd.jobs.timers import Kind
from raftd.node.admission import Admission
from raftd.node.gateway import Gateway
from raftd.node.job_events import JobEventBuffer
from raftd.node.loop import Node
from raftd.node.proposals import LeaderProposals
from raftd.node.reads import Reads
from raftd.node.session import Read, Session
from raftd.raft.core import Leadership, Raft
from raftd.raft.log import Log
from raftd.raft.logtime import LogClock
from raftd.raft.membership import Membership, leave_joint
from raftd.raft.messages import AppendEntries, AppendEntriesReply, Entry, InstallSnapshot, Snapshot
from raftd.raft.progress import Progress
from raftd.raft.quorum import majority_value
from raftd.raft.reads import PendingReads
from raftd.raft.ready import HardState, Persist
from raftd.raft.replication import Replication
from raftd.sim.disk import MemoryFile, MemoryFileSystem
from raftd.storage.log import SegmentedLog, Tail
from raftd.storage.records import Damage, Scan
from raftd.storage.snapshots import Snapshots
from raftd.storage.store import Store
from raftd.storage.vote import Identity, VoteFile
from raftd.wire.client import AttachedHello
from raftd.wire.peer import Refusal

#: (class, attribute, how to make the replacement from the original)
Patch = tuple[Any, str, Callable[[Any], Any]]
MUTANTS: dict[str, list[Patch]] = {}
#: Those that `raftd sim --mutants` leaves out, since 150 seeds need not meet them: what they break takes a coincidence that a test
#: makes on purpose.
BY_TESTS = frozenset(
    {
        "snapshot drops a matching tail",
        "snapshots without a directory fsync",
        "entries of the disk sent unseen",
        "whole durable log acknowledged",
        "truncated configuration stays",
        "an estimate of log time falls",
        "wall clocks do not wait for a living estimate",
        "any disk is taken for the node's",
        "directories that only the one who met them knows",
        "left over without an order",
        "kick without a budget",
        "a turn without an end",
        "incarnation spoken of before it is durable",
        "clients of a swapped state wait for ever",
        "left-over tubes are not in the snapshot",
        "a session of a closed gateway is asked on",
        "a session made anew is taken for the old one",
        "read an entry early",
        "dead letters in circles",
    },
)


#: Seeds that catch mutants which most seeds do not meet, or meet slowly; they are tried first. A change of what seeds draw may make
#: one useless.
LIKELY_SEEDS = {
    "fsync error ignored": 4,
    "one vote slot": 14,
    "newest segment not remembered": 44,
    "doubt not persisted": 45,
    "index compared before term": 39,
    "doubtful votes count in full": 45,
    "stalled disk keeps the lead": 40,
    "repeated grant leaves at once": 20,
    "read without the quorum round": 12,
    "read token reused": 12,
    "jobs for a session without a connection": 240,
    "waiting sessions are overtaken between two slices": 182,
    "answers of the node cost nothing": 20,
    "closing sessions are not in the snapshot": 29,
    "change beside another": 56,
    "puts without space": 33,
    "space never comes back": 35,
    "a dead letter tube is never full": 181,
    "stamps from the wall clock": 21,
    "a job whose time was over while it was reserved lives on": 26,
    "deadline of a touched job stays": 21,
    "the newest job is dropped": 15,
    "a full tube takes one more": 15,
    "what is left over waits for traffic": 11,
    "an undeclared tube keeps its place": 11,
    "jobs for waiting sessions without a budget": 11,
    "a backoff that is one attempt ahead": 8,
    "a place that is free is given to nobody": 8,
    "any number of jobs is reserved at a time": 8,
    "a unique key that stays when its job goes": 8,
    "PreVote disturbs": 4,
    "features before all know them": 4,
    "wall clocks count beside estimates": 4,
}


def _mutant(name: str, owner: Any, attribute: str) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    def register(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
        MUTANTS.setdefault(name, []).append((owner, attribute, make))
        return make

    return register


@contextmanager
def applied(name: str) -> Iterator[None]:
    """Production code with this mutant in it."""
    before: list[tuple[Any, str, Any]] = []
    try:
        for owner, attribute, make in MUTANTS[name]:
            original = owner.__dict__[attribute]
            before.append((owner, attribute, original))
            setattr(owner, attribute, make(original))
        yield
    finally:
        for owner, attribute, original in reversed(before):
            setattr(owner, attribute, original)


# -- durability --------------------------------------------------------------------------------


@_mutant("ack before fsync", Store, "_enqueue")
def _ack_before_fsync(original: Any) -> Any:
    def enqueue(self: Store, done: Callable[[], None]) -> None:
        original(self, lambda: None)
        done()

    return enqueue


@_mutant("vote not persisted", Store, "persist")
def _vote_not_persisted(original: Any) -> Any:
    def persist(self: Store, persist: Persist, done: Any) -> None:
        state = persist.hard_state
        if state is not None:
            persist = msgspec.structs.replace(persist, hard_state=HardState(state.term, 0, state.doubtful))
        original(self, persist, done)

    return persist


@_mutant("term and vote written apart", Store, "_change")
def _term_and_vote_written_apart(original: Any) -> Any:
    def change(self: Store, **changes: Any) -> None:
        if changes.get("voted_for"):
            vote = changes.pop("voted_for")
            original(self, voted_for=0, **changes)
            if self.identity.term == changes.get("term"):
                self._clock.callLater(0.05, lambda: self.remember(lambda: None, voted_for=vote))
            return
        original(self, **changes)

    return change


@_mutant("missing directory fsync", MemoryFileSystem, "sync_directory")
def _missing_directory_fsync(original: Any) -> Any:
    return lambda self, path: None if path.endswith("/log") else original(self, path)


@_mutant("fsync error ignored", MemoryFile, "sync")
def _fsync_error_ignored(original: Any) -> Any:
    def sync(self: MemoryFile) -> None:
        try:
            original(self)
        except OSError:
            pass

    return sync


@_mutant("truncate on any CRC error", SegmentedLog, "_tail")
def _truncate_on_any_crc_error(original: Any) -> Any:
    def tail(self: SegmentedLog, name: str, data: bytes, scan: Scan, is_last: bool) -> Tail:
        try:
            found: Tail = original(self, name, data, scan, is_last)
            return found._replace(damage=Damage.TORN)
        except CorruptionError:
            return Tail(name, scan.end, len(data) - scan.end, Damage.TORN, scan.reason)

    return tail


@_mutant("one vote slot", VoteFile, "write")
def _one_vote_slot(original: Any) -> Any:
    def write(self: VoteFile, identity: Identity) -> None:
        paths, self._paths = self._paths, self._paths[:1]
        try:
            original(self, identity)
        finally:
            self._paths = paths

    return write


@_mutant("newest segment not remembered", VoteFile, "write")
def _newest_segment_not_remembered(original: Any) -> Any:
    return lambda self, identity: original(self, msgspec.structs.replace(identity, segment=0))


@_mutant("doubt not persisted", VoteFile, "write")
def _doubt_not_persisted(original: Any) -> Any:
    return lambda self, identity: original(self, msgspec.structs.replace(identity, doubtful=False))


@_mutant("incarnation spoken of before it is durable", Node, "_take_new_incarnation")
def _incarnation_spoken_of_early(original: Any) -> Any:
    def take(self: Node) -> None:
        original(self)
        if self.gateway.is_closed:
            self.raft.incarnation = self.gateway.incarnation + 1

    return take


# -- elections ---------------------------------------------------------------------------------


@_mutant("index compared before term", Log, "is_up_to_date")
def _index_before_term(original: Any) -> Any:
    return lambda self, index, term: (index, term) >= (self.last_index, self.last_term)


@_mutant("wall clocks count beside estimates", LogClock, "lead")
def _wall_clocks_count(original: Any) -> Any:
    def lead(self: LogClock, term: int, stamp: int, estimates: Any, walls: Any, now_ms: int) -> None:
        walls = list(walls)
        original(self, term, stamp, [*estimates, max(walls)], walls, now_ms)

    return lead


@_mutant("log time begins at the last stamp", LogClock, "lead")
def _log_time_begins_at_the_last_stamp(original: Any) -> Any:
    return lambda self, term, stamp, estimates, walls, now_ms: original(self, term, stamp, [stamp] if stamp else [], walls, now_ms)


@_mutant("vote reset within a term", Raft, "_become")
def _vote_reset_within_a_term(original: Any) -> Any:
    def become(self: Raft, role: Any, leader: int, reason: str) -> None:
        original(self, role, leader, reason)
        if self.role.value == "follower" and self.voted_for:
            self.voted_for = 0
            self._hard_state_changed = True

    return become


@_mutant("vote without a look at the log", Log, "is_up_to_date")
def _vote_without_a_look_at_the_log(original: Any) -> Any:
    return lambda self, index, term: True


@_mutant("CheckQuorum off", Raft, "_tick_leader")
def _check_quorum_off(original: Any) -> Any:
    def tick(self: Raft, ticks: int) -> None:
        self._elapsed_ticks = 0
        original(self, ticks)

    return tick


@_mutant("PreVote disturbs", Raft, "_ignores_candidate")
def _pre_vote_disturbs(original: Any) -> Any:
    return lambda self, sender: False


@_mutant("doubtful votes count in full", Raft, "_on_request_vote_reply")
def _doubtful_votes_count(original: Any) -> Any:
    return lambda self, sender, message: original(self, sender, msgspec.structs.replace(message, doubtful=False))


@_mutant("stalled disk keeps the lead", Raft, "_disk_stalled")
def _stalled_disk_keeps_the_lead(original: Any) -> Any:
    return property(lambda self: False)


@_mutant("stamps from the wall clock", Raft, "append")
def _stamps_from_the_wall_clock(original: Any) -> Any:
    def append(self: Raft, proposals: Any) -> None:
        before, self.clock = self.clock, LogClock()
        self.clock.lead(self.term, self.log.last_time_ms, [self.wall_ms], [], self.now_ms)
        original(self, proposals)
        self.clock = before

    return append


@_mutant("an estimate of log time falls", LogClock, "estimate_ms")
def _estimate_falls(original: Any) -> Any:
    def estimate_ms(self: LogClock, now_ms: int) -> int | None:
        return None if self._heard_ms is None else self._heard_ms + max(0, now_ms - self._heard_at_ms)

    return estimate_ms


@_mutant("wall clocks do not wait for a living estimate", Raft, "_settle_election")
def _wall_clocks_do_not_wait(original: Any) -> Any:
    def settle_election(self: Raft) -> None:
        if self._tally.won:
            self._become_leader()
        else:
            original(self)

    return settle_election


@_mutant("repeated grant leaves at once", Raft, "_on_request_vote")
def _repeated_grant_leaves_at_once(original: Any) -> Any:
    def on_request_vote(self: Raft, sender: int, message: Any) -> None:
        is_repeat = self.voted_for == sender and message.term == self.term
        waiting = len(self._send_after)
        original(self, sender, message)
        if is_repeat and len(self._send_after) > waiting:
            self._send_now.append(self._send_after.pop())

    return on_request_vote


@_mutant("any disk is taken for the node's", Admission, "check")
def _any_disk_is_taken(original: Any) -> Any:
    def check(self: Admission, hello: Any, machine: StateMachine) -> Refusal | None:
        known = machine.directories.get(hello.node) or self._store.identity.peers.get(hello.node, hello.directory_id)
        refusal: Refusal | None = original(self, msgspec.structs.replace(hello, directory_id=known), machine)
        return refusal

    return check


@_mutant("directories that only the one who met them knows", LeaderProposals, "_propose_directories")
def _directories_known_to_one(original: Any) -> Any:
    return lambda self, machine: None


# -- replication -------------------------------------------------------------------------------


@_mutant("old-term commit by counting", Raft, "_advance_commit")
def _old_term_commit(original: Any) -> Any:
    def advance(self: Raft) -> None:
        matches = {peer: progress.match_index for peer, progress in self.progress.items()}
        matches[self.node] = self.log.durable_index
        index, before = majority_value(self.membership.halves, matches), self.log.commit_index
        if self.log.commit_to(index):
            own = self.log.slice(max(before + 1, self._first_own_index), index) if index >= self._first_own_index else []
            self.uncommitted_bytes -= sum(entry.size_bytes for entry in own)
            self._recover_from_doubt()

    return advance


@_mutant("commit beyond prev + n", Raft, "_on_append_entries")
def _commit_beyond(original: Any) -> Any:
    def on_append_entries(self: Raft, sender: int, message: AppendEntries) -> None:
        original(self, sender, message)
        if message.term == self.term and self.leader == sender:
            self.log.commit_to(min(message.leader_commit, self.log.last_index))

    return on_append_entries


@_mutant("stale AppendEntries truncates", Log, "merge")
def _stale_append_truncates(original: Any) -> Any:
    def merge(self: Log, entries: Any) -> None:
        original(self, entries)
        if entries and self.commit_index <= entries[-1].index < self.last_index:
            self._truncate(entries[-1].index + 1)

    return merge


@_mutant("match of an earlier incarnation counts", Raft, "_on_append_entries_reply")
def _match_of_an_earlier_incarnation(original: Any) -> Any:
    def on_reply(self: Raft, sender: int, message: Any) -> None:
        progress = self.progress.get(sender)
        if progress is not None and progress.incarnation:
            message = msgspec.structs.replace(message, incarnation=progress.incarnation)
        original(self, sender, message)

    return on_reply


@_mutant("durable mark over what was truncated", Log, "_truncate")
def _durable_mark_over_what_was_truncated(original: Any) -> Any:
    def truncate(self: Log, index: int) -> None:
        durable, writes = self.durable_index, [list(write) for write in self._writes]
        original(self, index)
        self.durable_index = durable
        for write, claimed in zip(self._writes, writes, strict=True):
            write[1] = claimed[1]

    return truncate


@_mutant("whole durable log acknowledged", Raft, "_on_append_entries")
def _whole_durable_log_acknowledged(original: Any) -> Any:
    def on_append_entries(self: Raft, sender: int, message: AppendEntries) -> None:
        waiting = len(self._send_now)
        original(self, sender, message)
        for place, (to, reply) in enumerate(self._send_now[waiting:], waiting):
            if type(reply) is AppendEntriesReply and reply.success:
                self._send_now[place] = (to, msgspec.structs.replace(reply, index=max(reply.index, self.log.durable_index)))

    return on_append_entries


@_mutant("match falls", Progress, "acknowledged")
def _match_falls(original: Any) -> Any:
    def acknowledged(self: Progress, index: int, first_index: int) -> bool:
        news: bool = original(self, index, first_index)
        self.match_index = index
        return news

    return acknowledged


# -- sessions ----------------------------------------------------------------------------------


@_mutant("dead gateway never closed", LeaderProposals, "_propose_once")
def _dead_gateway_never_closed(original: Any) -> Any:
    return lambda self, key, payload: False if isinstance(payload, c.CloseGateway) else original(self, key, payload)


@_mutant("close of a session lost", Gateway, "forget")
def _close_of_a_session_lost(original: Any) -> Any:
    def forget(self: Gateway, session: Session, last_word: Any) -> None:
        original(self, session, None)

    return forget


@_mutant("read passes earlier commands", Session, "_start_requests")
def _read_passes_earlier_commands(original: Any) -> Any:
    def start_requests(self: Session) -> None:
        if self._requests and self._requests[0].start is Session._start_read and self._unanswered and not self._blocked:
            step = self._requests.popleft()
            step.start(self, step.what, step.done)
        original(self)

    return start_requests


@_mutant("nothing waits behind a reserve", Session, "_start_command")
def _nothing_waits_behind_a_reserve(original: Any) -> Any:
    def start(self: Session, command: Any, done: Any) -> None:
        original(self, command, done)
        self._blocked = False

    return start


@_mutant("bytes of answered commands are kept", Session, "answered")
def _bytes_are_kept(original: Any) -> Any:
    def answered(self: Session, reply: Any, index: int) -> None:
        self._gateway.held_bytes += 1
        original(self, reply, index)

    return answered


# -- reads -------------------------------------------------------------------------------------


@_mutant("no noop before serving", Raft, "has_committed_own_entry")
def _no_noop_before_serving(original: Any) -> Any:
    return property(lambda self: self.is_leader)


@_mutant("read without the quorum round", PendingReads, "finished")
def _read_without_the_quorum_round(original: Any) -> Any:
    return lambda self, halves, rounds: original(self, halves, {voter: self.round for half in halves for voter in half})


@_mutant("read token reused", PendingReads, "start_round")
def _read_token_reused(original: Any) -> Any:
    def start_round(self: PendingReads, commit_index: int) -> bool:
        if not original(self, commit_index):
            return False
        if self.round > 1:
            self.round = 1
            for place, (_, index, asker, context) in enumerate(self._waiting):
                self._waiting[place] = (1, index, asker, context)
        return True

    return start_round


@_mutant("read an entry early", Reads, "run")
def _read_an_entry_early(original: Any) -> Any:
    def run(self: Reads, machine: StateMachine, is_open: bool) -> None:
        """Says that it has seen the entry."""
        for place, (index, number, clock_ms, reads) in enumerate(self._ready):
            if index == machine.applied_index + 1:
                early = [read._replace(done=_claiming(read.done, index)) for read in reads]
                self._ready[place] = (index - 1, number, clock_ms, early)
        self._ready.sort(key=lambda ready: ready[:2])
        original(self, machine, is_open)

    return run


def _claiming(done: Any, index: int) -> Any:
    return lambda result, at_index: done(result, max(index, at_index))


@_mutant("read at what the node has applied", Node, "_turn")
def _read_at_what_is_applied(original: Any) -> Any:
    def turn(self: Node) -> None:
        def start_round(now_ms: int) -> None:
            if self.gateway.reads:
                pending = list(self.gateway.reads.values())
                self.gateway.reads.clear()
                reads._number += 1
                reads._ready.append((self.machine.applied_index, reads._number, self.raft.clock_ms() or 0, pending))
                reads._ready.sort(key=lambda ready: ready[:2])

        reads: Any = self._reads
        reads.start_round = start_round
        original(self)

    return turn


@_mutant("a read that was cut keeps its first place", Reads, "run")
def _cut_read_keeps_its_place(original: Any) -> Any:
    def run(self: Reads, machine: StateMachine, is_open: bool) -> None:
        self._ready[:] = [
            (
                index,
                number,
                clock_ms,
                [read if hasattr(read.done, "is_first") else read._replace(done=_First(read.done, index)) for read in reads],
            )
            for index, number, clock_ms, reads in self._ready
        ]
        original(self, machine, is_open)

    return run


class _First:
    """Says that the read has seen what stood when it was confirmed, whatever it has seen."""

    is_first = True

    def __init__(self, done: Any, index: int) -> None:
        self._done = done
        self._index = index

    def __call__(self, result: object, at_index: int) -> None:
        self._done(result, self._index)


@_mutant("reads of no session", Reads, "run")
def _reads_of_no_session(original: Any) -> Any:
    return lambda self, machine, is_open: original(self, machine, False)


# -- the queue ---------------------------------------------------------------------------------


@_mutant("expiry by local clock", Node, "_apply")
def _expiry_by_local_clock(original: Any) -> Any:
    def apply(self: Node, entries: list[Entry]) -> None:
        now_ms = int(self._wall_s() * 1000)
        late = [msgspec.structs.replace(entry, time_ms=max(entry.time_ms, now_ms, self.machine.now_ms)) for entry in entries]
        original(self, late)

    return apply


@_mutant("token not checked", StateMachine, "held_job")
def _token_not_checked(original: Any) -> Any:
    def holds(self: StateMachine, session: Any, id: int, token: int) -> Any:
        job = self.jobs.get(id)
        return job if job is not None and job.state is State.RESERVED else None

    return holds


@_mutant("gateway seq not checked", StateMachine, "_apply_batch")
def _gateway_seq_not_checked(original: Any) -> Any:
    def apply_batch(self: StateMachine, batch: c.Batch) -> None:
        row = self.gateways.get(batch.node)
        if row is not None:
            row.seq = batch.seq - 1
        original(self, batch)

    return apply_batch


@_mutant("lost wake-up of a waiter", StateMachine, "make_ready")
def _lost_wake_up(original: Any) -> Any:
    def make_ready(self: StateMachine, job: Any, *what: Any) -> None:
        waiters, job.tube.waiters = job.tube.waiters, type(job.tube.waiters)()
        original(self, job, *what)
        job.tube.waiters = waiters

    return make_ready


@_mutant("waiter granted after its session closed", StateMachine, "match")
def _granted_after_close(original: Any) -> Any:
    def match(self: StateMachine, tube: Any) -> None:
        closed = [session for session in tube.waiters if session.is_closed]
        for session in closed:
            session.is_closed = False
        original(self, tube)
        for session in closed:
            session.is_closed = True

    return match


@_mutant("timers fired in another order", StateMachine, "_fire_timers")
def _timers_in_another_order(original: Any) -> Any:
    def fire_timers(self: StateMachine) -> None:
        while self.steps < self.limit and (due := [timer for timer in self.timers if timer[0] <= self.now_ms]):
            self.steps += self.costs.timer
            self._fire(due[-1])

    return fire_timers


@_mutant("job given to two", StateMachine, "take_out")
def _job_given_to_two(original: Any) -> Any:
    def take_out(self: StateMachine, job: Any) -> None:
        if job.state is State.READY and job.id % 10 == 0:
            original(self, job)
            job.tube.ready.add((job.pri, job.id))
        else:
            original(self, job)

    return take_out


@_mutant("close drops the reservations", StateMachine, "_close_sessions")
def _close_drops_the_reservations(original: Any) -> Any:
    def close_sessions(self: StateMachine) -> None:
        for session in self.closing:
            session.reserved = SortedPages()
        original(self)

    return close_sessions


@_mutant("a release loses its priority", StateMachine, "release")
def _release_loses_its_priority(original: Any) -> Any:
    return lambda self, session, release: original(self, session, msgspec.structs.replace(release, pri=None))


@_mutant("order of burying by id", StateMachine, "bury")
def _order_of_burying_by_id(original: Any) -> Any:
    def bury(self: StateMachine, session: Any, command: c.Bury) -> Any:
        reply = original(self, session, command)
        if type(reply) is r.Buried:
            job = self.jobs[command.id]
            job.tube.buried.remove((job.deadline_ms, job.id))
            job.deadline_ms = job.id
            job.tube.buried.add((job.deadline_ms, job.id))
        return reply

    return bury


@_mutant("deadline of a touched job stays", JobSession, "deadline_moved")
def _deadline_of_a_touched_job_stays(original: Any) -> Any:
    def deadline_moved(self: JobSession, job: Any, before_ms: int) -> None:
        if self.deadlines is not None:
            self.deadlines = SortedPages()  # found again when the next is reserved
            for _, id in self.reserved:
                self.deadlines.add((before_ms if id == job.id else job.deadline_ms, id))

    return deadline_moved


# -- budgets -----------------------------------------------------------------------------------


@_mutant("kick without a budget", StateMachine, "_kick")
def _kick_without_a_budget(original: Any) -> Any:
    return _without_limit(original)


@_mutant("timers without a budget", StateMachine, "_fire_timers")
def _timers_without_a_budget(original: Any) -> Any:
    return _without_limit(original)


@_mutant("closing without a budget", StateMachine, "_close_sessions")
def _closing_without_a_budget(original: Any) -> Any:
    return _without_limit(original)


@_mutant("jobs for waiting sessions without a budget", StateMachine, "match")
def _match_without_a_budget(original: Any) -> Any:
    return _without_limit(original)


def _without_limit(original: Any) -> Any:
    def without_limit(self: StateMachine, *args: Any) -> Any:
        before, self.limit = self.limit, 1 << 62
        try:
            return original(self, *args)
        finally:
            self.limit = before

    return without_limit


@_mutant("tubes of a watch list cost nothing", StateMachine, "_end_wait")
def _tubes_cost_nothing(original: Any) -> Any:
    def end_wait(self: StateMachine, session: Any) -> None:
        steps = self.steps
        original(self, session)
        self.steps = steps

    return end_wait


@_mutant("what is left over waits for traffic", StateMachine, "next_due_ms")
def _left_over_waits(original: Any) -> Any:
    def next_due_ms(self: StateMachine) -> int | None:
        first = self.timers.least()
        return first[0] if first is not None else None

    return next_due_ms


@_mutant("waiting sessions are overtaken between two slices", StateMachine, "is_held_back")
def _overtaken_between_slices(original: Any) -> Any:
    return lambda self, tube: tube.pause_until_ms != 0


@_mutant("left over without an order", StateMachine, "_match_left_over")
def _left_over_without_an_order(original: Any) -> Any:
    def match_left_over(self: StateMachine) -> None:
        for name in sorted(self.unmatched, reverse=True):
            self.unmatched.move_to_end(name)
        original(self)

    return match_left_over


@_mutant("a batch of any length", Gateway, "_make_batch")
def _batch_of_any_length(original: Any) -> Any:
    def make_batch(self: Gateway, now_ms: int) -> None:
        self._batch_steps = 1 << 62
        original(self, now_ms)

    return make_batch


@_mutant("a turn without an end", Node, "_apply")
def _turn_without_an_end(original: Any) -> Any:
    def apply(self: Node, entries: list[Entry]) -> None:
        share = self.turn.entries
        left, share.left = share.left, 1 << 62
        original(self, entries)
        share.left -= (1 << 62) - left

    return apply


@_mutant("answers of the node cost nothing", Read, "steps")
def _answers_cost_nothing(original: Any) -> Any:
    return lambda self, machine, result: 0


@_mutant("a session of a closed gateway is asked on", Gateway, "enqueue")
def _asked_on(original: Any) -> Any:
    def enqueue(self: Gateway, session: Session) -> None:
        self._waiting[session] = None

    return enqueue


# -- snapshots ---------------------------------------------------------------------------------


@_mutant("snapshot drops a matching tail", Raft, "_on_install_snapshot")
def _snapshot_drops_a_matching_tail(original: Any) -> Any:
    def on_install_snapshot(self: Raft, sender: int, message: InstallSnapshot) -> None:
        snapshot = message.snapshot
        if snapshot.index > self.log.commit_index and not self.is_installing and message.term == self.term:
            self._chunks.append((sender, message))
        else:
            original(self, sender, message)

    return on_install_snapshot


@_mutant("snapshot without the session table", Loader, "_load_session")
def _snapshot_without_sessions(original: Any) -> Any:
    def load_session(self: Loader, piece: Any) -> None:
        original(self, piece)
        session = self._session
        if isinstance(session, JobSession) and not session.waiting:
            session.watched = {session.used.name: session.used}

    return load_session


@_mutant("closing sessions are not in the snapshot", Loader, "_closing_session")
def _closing_not_in_the_snapshot(original: Any) -> Any:
    def closing_session(self: Loader, *args: Any) -> Any:
        session = original(self, *args)
        self._machine.closing.pop()
        return session

    return closing_session


@_mutant("warnings are not restored", Loader, "_load_watching")
def _warnings_not_restored(original: Any) -> Any:
    return lambda self, session, piece: original(self, session, msgspec.structs.replace(piece, soon_ms=0))


@_mutant("the timers of waits are not restored", Loader, "_load_watching")
def _wait_timers_not_restored(original: Any) -> Any:
    def load_watching(self: Loader, session: Any, piece: Any) -> None:
        original(self, session, piece)
        if session.wait_until_ms:
            self._machine.timers.remove((session.wait_until_ms, Kind.WAIT, session.id))

    return load_watching


@_mutant("pauses that are restored never end", Loader, "_load_tube")
def _pauses_never_end(original: Any) -> Any:
    def load_tube(self: Loader, row: Any) -> None:
        original(self, row)
        tube = self._tubes[-1]
        if tube.pause_until_ms:
            self._machine.timers.remove((tube.pause_until_ms, Kind.PAUSE, tube.name))

    return load_tube


@_mutant("left-over tubes are not in the snapshot", Loader, "finish")
def _unmatched_not_in_the_snapshot(original: Any) -> Any:
    def finish(self: Loader) -> StateMachine:
        self._machine.unmatched.clear()
        machine: StateMachine = original(self)
        return machine

    return finish


@_mutant("order of burying is not in the snapshot", Loader, "_load_buried")
def _order_of_burying_not_in_the_snapshot(original: Any) -> Any:
    return lambda self, tube, ids: original(self, tube, sorted(ids))


@_mutant("when jobs were buried is not in the snapshot", Loader, "_load_buried")
def _when_jobs_were_buried_not_in_the_snapshot(original: Any) -> Any:
    def load_buried(self: Loader, tube: Any, ids: list[int]) -> None:
        for id in ids:
            self._machine.jobs[id].deadline_ms = 0
        original(self, tube, ids)

    return load_buried


@_mutant("directories are not in the snapshot", Loader, "finish")
def _directories_not_in_the_snapshot(original: Any) -> Any:
    def finish(self: Loader) -> StateMachine:
        self._machine.directories.clear()
        machine: StateMachine = original(self)
        return machine

    return finish


@_mutant("log purged before the snapshot is there", Snapshots, "take")
def _purged_too_early(original: Any) -> Any:
    def take(self: Snapshots, meta: Any, pieces: Any, most_bytes: int, done: Any) -> None:
        early = Snapshot(meta.index, meta.term, 1, 0)
        if self.newest is None:
            original(self, meta, pieces, most_bytes, done)
        else:
            self.newest, self.meta = early, meta
            done(early, "")

    return take


@_mutant("snapshots without a directory fsync", Snapshots, "adopt")
def _adopted_without_fsync(original: Any) -> Any:
    def adopt(self: Snapshots, snapshot: Snapshot) -> None:
        self._fs.rename(self._received_path, self._path(snapshot))

    return adopt


@_mutant("entries of the disk sent unseen", Replication, "entries_fetched")
def _replaced_entries_sent(original: Any) -> Any:
    def entries_fetched(self: Replication, fetch: Any, entries: Any) -> None:
        progress: Any = self.progress.get(fetch.peer)
        if progress is not None and progress.fetching is fetch:
            progress.fetching = None
            found: list[Entry] = []
            for entry in entries:
                if entry.index == fetch.first + len(found):
                    found.append(entry)
            progress.fetched = tuple(found)

    return entries_fetched


@_mutant("clients of a swapped state wait for ever", Gateway, "installed")
def _clients_are_not_told(original: Any) -> Any:
    return Gateway.applied


@_mutant("transfer flag stuck", Leadership, "tick")
def _transfer_flag_stuck(original: Any) -> Any:
    return lambda self: None


# -- membership --------------------------------------------------------------------------------


@_mutant("learner counted", Raft, "_advance_commit")
def _learner_counted(original: Any) -> Any:
    def advance(self: Raft) -> None:
        halves = self.membership.halves
        learners = frozenset(self.membership.latest.learners)
        voters = len(halves[0])
        try:
            if learners:  # they fill up the majority of the voters
                matches = sorted((self.progress[peer].match_index for peer in learners if peer in self.progress), reverse=True)
                behind = min(halves[0] - {self.node}, key=lambda peer: self.progress[peer].match_index, default=0)
                if matches and voters > 1 and behind:
                    self.membership.halves = (frozenset(halves[0] - {behind} | {min(learners)}),)
            original(self)
        finally:
            if self.membership.latest.learners:
                self.membership.halves = halves

    return advance


@_mutant("joint halves merged", Membership, "_update")
def _joint_halves_merged(original: Any) -> Any:
    def update(self: Membership) -> None:
        original(self)
        self.halves = (self.voters,)

    return update


@_mutant("configuration in effect without its majority", Leadership, "committed")
def _joint_left_at_once(original: Any) -> Any:
    def committed(self: Leadership) -> None:
        membership = self._raft.membership
        if membership.latest.outgoing and membership.index > self._raft.log.commit_index:
            self._append(leave_joint(membership.latest))
        else:
            original(self)

    return committed


@_mutant("change beside another", Leadership, "change")
def _change_beside_another(original: Any) -> Any:
    def change(self: Leadership, make: Any) -> int:
        return self._append(make(self._raft.membership.latest))

    return change


@_mutant("truncated configuration stays", Membership, "truncated")
def _truncated_configuration_stays(original: Any) -> Any:
    return lambda self, index: False


# -- keys and tokens ---------------------------------------------------------------------------


@_mutant("a key is forgotten at once", Keys, "find")
def _key_forgotten(original: Any) -> Any:
    return lambda self, key, now_ms: None


@_mutant("keys are not in the snapshot", Loader, "_load")
def _keys_not_in_the_snapshot(original: Any) -> Any:
    def load(self: Loader, piece: Any) -> None:
        original(self, piece)
        self._machine.keys.used.clear()

    return load


@_mutant("what is left is given back", JobSession, "give_to_tokens")
def _left_is_given_back(original: Any) -> Any:
    return lambda self: None


@_mutant("an undeclared tube keeps its place", StateMachine, "undeclare")
def _undeclared_keeps_its_place(original: Any) -> Any:
    def undeclare(self: StateMachine, session: Any, command: c.Undeclare) -> Any:
        reply = original(self, session, command)
        if type(reply) is r.Deleted:
            self.tube(command.tube).is_declared = True
        return reply

    return undeclare


@_mutant("places counted by the process", JobEventBuffer, "_add")
def _places_counted_by_the_process(original: Any) -> Any:
    def add(self: JobEventBuffer, *what: Any) -> None:
        self._entry, self._number = self._machine.applied_index, self.end
        original(self, *what)

    return add


# -- sessions of clients -----------------------------------------------------------------------


@_mutant("an older connection speaks on", clients, "attach")
def _older_connection_speaks_on(original: Any) -> Any:
    def attach(machine: StateMachine, row: Any, command: c.Attach) -> Any:
        session = machine.clients.by_token.get(command.token)
        older = session.attached_to if session is not None else None
        reply = original(machine, row, command)
        if session is not None and older is not None:
            machine.gateways[older[0]].attached[older[1]] = session
        return reply

    return attach


@_mutant("an ask takes effect again", clients, "ask")
def _ask_takes_effect_again(original: Any) -> Any:
    def ask(machine: StateMachine, row: Any, command: c.Ask) -> None:
        session = row.attached.get(command.session)
        if session is not None and command.id not in session.waits:
            session.last_id = min(session.last_id, command.id - 1)
        original(machine, row, command)

    return ask


@_mutant("answers below the floor stay", ClientSession, "confirm")
def _answers_stay(original: Any) -> Any:
    return lambda self, answered, waiting: None


@_mutant("answers above the floor go", ClientSession, "confirm")
def _answers_go(original: Any) -> Any:
    return lambda self, answered, waiting: original(self, answered + 1, waiting)


@_mutant("answers to reserves that wait go with the floor", ClientSession, "confirm")
def _late_answers_go(original: Any) -> Any:
    return lambda self, answered, waiting: original(self, answered, [])


@_mutant("jobs for a session without a connection", clients, "serve")
def _jobs_without_a_connection(original: Any) -> Any:
    def serve(machine: StateMachine, tube: Any, wait: Wait, job: Any) -> None:
        session = wait.session
        before, session.attached_to = session.attached_to, session.attached_to or (0, 0)
        original(machine, tube, wait, job)
        session.attached_to = before

    return serve


@_mutant("a session made anew is taken for the old one", Core, "_attached")
def _made_anew(original: Any) -> Any:
    def attached(self: Core, hello: AttachedHello, now_s: float) -> None:
        is_known = self._session and hello.epoch != 1  # what a client knew before hellos had the number
        original(self, msgspec.structs.replace(hello, session=self._session) if is_known else hello, now_s)

    return attached


@_mutant("a session without a connection ends at once", clients, "suspend_detached")
def _ends_at_once(original: Any) -> Any:
    def suspend_detached(machine: StateMachine) -> None:
        for session in list(machine.clients.detaching.values()):
            clients.end(machine, session)

    return suspend_detached


@_mutant("credit is not counted", Wait, "takes_jobs")
def _credit_is_not_counted(original: Any) -> Any:
    return property(lambda self: not self.is_suspended)


@_mutant("answers of sessions are not in the snapshot", Loader, "_load_client_piece")
def _answers_not_in_the_snapshot(original: Any) -> Any:
    def load(self: Loader, piece: Any) -> None:
        original(self, piece)
        if isinstance(self._session, ClientSession):
            self._session.answers.clear()

    return load


# -- policies of tubes -------------------------------------------------------------------------


@_mutant("attempts are never enough", policies, "failed")
def _never_enough_attempts(original: Any) -> Any:
    return lambda machine, job, delay_ms, what, who: policies.back(machine, job, delay_ms, what, who)


@_mutant("a release is a failed attempt", policies, "back")
def _release_is_a_failure(original: Any) -> Any:
    def back(machine: Any, job: Any, delay_ms: int, what: Any, who: Any) -> None:
        if what is JobEventKind.RELEASED:
            job.releases -= 1
        original(machine, job, delay_ms, what, who)

    return back


@_mutant("a kick forgives nothing", policies, "kicked")
def _kick_forgives_nothing(original: Any) -> Any:
    def kicked(machine: Any, job: Any) -> None:
        mark = machine.policies.marks.get(job.id)
        forgiven = mark.forgiven if mark is not None else 0
        original(machine, job)
        if job.id in machine.policies.marks:
            machine.policies.marks[job.id].forgiven = forgiven

    return kicked


@_mutant("a backoff that is one attempt ahead", Policy, "delay_ms")
def _backoff_ahead(original: Any) -> Any:
    return lambda self, job, attempts: original(self, job, attempts + 1)


@_mutant("a dead job counts in two tubes", policies, "_count")
def _counts_in_two_tubes(original: Any) -> Any:
    return lambda tube, job, one, is_dead: original(tube, job, max(one, 0), is_dead)


@_mutant("a job that is dead no more is counted still", policies, "count_dead")
def _counted_as_dead(original: Any) -> Any:
    return lambda machine, tube, one: original(machine, tube, max(one, 0))


@_mutant("a dead letter tube is never full", policies, "_dead_letter_has_room")
def _dead_letter_is_never_full(original: Any) -> Any:
    return lambda machine, tube, jobs: True


@_mutant("a dead job forgets where it died", policies, "die")
def _forgets_where_it_died(original: Any) -> Any:
    def die(machine: Any, job: Any, why: Any) -> None:
        original(machine, job, why)
        machine.policies.marks[job.id].origin = job.tube.name

    return die


@_mutant("a job whose time was over while it was reserved lives on", policies, "time_is_over")
def _lives_on(original: Any) -> Any:
    def time_is_over(machine: Any, job: Any) -> None:
        original(machine, job)
        if job.id in machine.jobs and job.id in machine.policies.marks:
            machine.policies.marks[job.id].is_over = False

    return time_is_over


@_mutant("a time to live that begins with each release", policies, "back")
def _time_begins_again(original: Any) -> Any:
    def back(machine: Any, job: Any, *rest: Any) -> None:
        policies._forget_expiry(machine, job)
        policies.entered(machine, job)
        original(machine, job, *rest)

    return back


@_mutant("a full tube takes one more", policies, "make_room")
def _takes_one_more(original: Any) -> Any:
    return lambda machine, tube, jobs, size: original(machine, tube, jobs - 1, size)


@_mutant("the newest job is dropped", policies, "_oldest")
def _newest_is_dropped(original: Any) -> Any:
    return lambda machine, tube: iter(list(original(machine, tube))[::-1])


@_mutant("a rate without a bucket", policies, "granted")
def _no_bucket(original: Any) -> Any:
    return lambda machine, tube: None


@_mutant("a bucket is full after a snapshot", Loader, "_load_policy")
def _full_after_a_snapshot(original: Any) -> Any:
    return lambda self, row: original(self, (*row[:3], 0, row[4]))


@_mutant("marks are not in the snapshot", Loader, "_load_mark")
def _marks_not_in_the_snapshot(original: Any) -> Any:
    return lambda self, job, mark: None


@_mutant("any number of jobs is reserved at a time", policies, "holds_back")
def _any_number_reserved(original: Any) -> Any:
    return lambda tube: tube.limited_until_ms != 0


@_mutant("a place that is free is given to nobody", StateMachine, "_left")
def _free_place_is_given_to_nobody(original: Any) -> Any:
    return lambda self, tube: None


@_mutant("a policy is set whatever its version", policies, "set_all")
def _whatever_its_version(original: Any) -> Any:
    return lambda machine, changes: original(machine, [msgspec.structs.replace(change, version=None) for change in changes])


@_mutant("dead letters in circles", policies, "leads_in_circle")
def _circles(original: Any) -> Any:
    return lambda tube, policy_of: False


@_mutant("a unique key that stays when its job goes", policies, "gone")
def _key_stays(original: Any) -> Any:
    def gone(machine: Any, job: Any) -> None:
        mark = machine.policies.marks[job.id]
        key = (job.tube.name, mark.unique)
        is_unique = key in machine.policies.unique
        original(machine, job)
        if is_unique:
            machine.policies.unique[key] = job
            machine.policies.marks[job.id] = mark
            mark.unique = key[1]

    return gone


@_mutant("any reservation frees a unique key", policies, "reserved")
def _reservation_frees(original: Any) -> Any:
    return lambda machine, job: policies._free(machine, job)


@_mutant("a finished job is known for ever", FinishedJobs, "find")
def _known_for_ever(original: Any) -> Any:
    return lambda self, id, now_ms: self.jobs.get(id)


@_mutant("a replay without an end", replay, "step")
def _replay_without_an_end(original: Any) -> Any:
    def step(machine: Any, session: Any, what: Any) -> Any:
        return original(machine, session, msgspec.structs.replace(what, which=msgspec.structs.replace(what.which, up_to=0)))

    return step


@_mutant("a job that was moved back is dead", policies, "revived")
def _moved_back_is_dead(original: Any) -> Any:
    return lambda machine, job: None


# -- schedules -----------------------------------------------------------------------------------


@_mutant("an occurrence is put by each leader", schedules, "tick")
def _put_by_each_leader(original: Any) -> Any:
    def tick(machine: Any, command: c.Tick) -> None:
        schedule = machine.schedules.by_name.get(command.name)
        if schedule is not None and not schedule.is_paused and command.due_ms and command.next_ms:
            machine.schedules.drop(schedule)
            schedule.next_ms = command.due_ms
            machine.schedules.add(schedule)
        original(machine, command)

    return tick


@_mutant("the next occurrence is not in the snapshot", Loader, "_load")
def _next_not_in_the_snapshot(original: Any) -> Any:
    def load(self: Loader, piece: Any) -> None:
        original(self, piece)
        for schedule in list(self._machine.schedules.by_name.values()):
            self._machine.schedules.drop(schedule)
            schedule.next_ms = 0
            self._machine.schedules.add(schedule)

    return load


# -- disk space and features -------------------------------------------------------------------------


@_mutant("puts without space", StateMachine, "_put")
def _puts_without_space(original: Any) -> Any:
    def put(self: StateMachine, *args: Any) -> Any:
        before, self.space_is_scarce = self.space_is_scarce, False
        try:
            return original(self, *args)
        finally:
            self.space_is_scarce = before

    return put


@_mutant("space never comes back", Replication, "answered")
def _space_never_comes_back(original: Any) -> Any:
    def answered(self: Replication, progress: Progress, message: AppendEntriesReply) -> bool:
        was_low = progress.is_low_on_disk
        news: bool = original(self, progress, message)
        progress.is_low_on_disk |= was_low
        return news

    return answered


@_mutant("features before all know them", LeaderProposals, "_propose_level")
def _features_before_all_know_them(original: Any) -> Any:
    def poll(self: LeaderProposals, machine: StateMachine) -> None:
        if self._level > machine.level:
            self._propose_once(c.Features(self._level), c.Features(self._level))

    return poll

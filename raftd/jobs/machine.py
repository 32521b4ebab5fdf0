"""The transitions of the queue. Nothing here reads a clock, a configuration, a hash order or a random number.

Applying an entry first fires the timers due at its stamp, then gives back what closed sessions still hold,
then runs its commands; everything it causes happens at its stamp. Both of the first are bounded per entry;
what is left over stays due, and the leader appends an entry for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from hashlib import sha256
from typing import Any, cast

import msgspec

from raftd.jobs import commands as c
from raftd.jobs import replies as r
from raftd.jobs.keys import Keys, Used
from raftd.jobs.model import URGENT_PRI, Counts, Gateway, Job, Session, State, Tell, Tube, What
from raftd.jobs.table import JobTable
from raftd.jobs.timers import Kind, TimerId, Timers
from raftd.limits import KICKED_JOBS, MAX_JOB_BYTES, SESSION_GRACE_MS, TIMERS_PER_ENTRY, WATCHED_TUBES

DEFAULT_TUBE = "default"
#: A worker is warned when a job it holds has this much of its ttr left, and the least ttr (beanstalkd).
DEADLINE_SOON_MS = 1_000
LEAST_TTR_MS = 1_000

Answer = tuple[int, int, r.Reply]  # node, session, reply
Key = tuple[int, int]  # node, session


def _tell_nobody(what: What, job: Job, who: Key | None) -> None:
    pass


class Effects(msgspec.Struct):
    """What applying one entry meant outside the state.

    `answers` are in the order in which they came about. `owners` are the nodes whose gateways must hear
    that the entry is applied. `gaps` are those whose batch was refused because one before it is missing.
    """

    answers: list[Answer]
    owners: set[int]
    gaps: set[int]


class StateMachine:
    """Apply entries in order. `applied_index` and `now_ms` belong to the state and change with it (R18)."""

    def __init__(self) -> None:
        self.applied_index = 0
        self.now_ms = 0
        self.settings = c.Settings(MAX_JOB_BYTES, SESSION_GRACE_MS)
        self.settings_index = 0  # where they were last set, 0: never
        self.room_is_scarce = False
        #: Tubes that were declared, in this order.
        self.topics: dict[str, None] = {}
        self.keys = Keys()
        #: Hears whatever happens to a job; no part of the state.
        self.tell: Tell = _tell_nobody
        self.level = 0  # of features, 0 in a cluster of which not all nodes have been heard together yet
        self.jobs = JobTable()
        self.tubes: dict[str, Tube] = {}
        self.gateways: dict[int, Gateway] = {}
        self.counts = Counts()
        self.last_id = 0
        self.last_token = 0
        self.total_jobs = 0
        self.job_timeouts = 0
        self.default = self.tube(DEFAULT_TUBE)
        self.timers = Timers(self._is_live)
        #: Sessions that are gone, but still hold reservations.
        self.closing: deque[Session] = deque()
        self._budget = 0
        self._effects = Effects([], set(), set())
        self._verbs: dict[type, Callable[[Session, Any], r.Reply | None]] = {
            c.Put: self._put,
            c.Use: self._use,
            c.Watch: self._watch,
            c.Ignore: self._ignore,
            c.Reserve: self._reserve,
            c.ReserveJob: self._reserve_job,
            c.Delete: self._delete,
            c.Release: self._release,
            c.Bury: self._bury,
            c.Touch: self._touch,
            c.Kick: self._kick,
            c.KickJob: self._kick_job,
            c.PauseTube: self._pause_tube,
            c.Declare: self._declare,
            c.PutBack: self._put_back,
            c.PutMany: self._put_many,
            c.Undeclare: self._undeclare,
        }

    # -- entries ------------------------------------------------------------------------------

    def apply(self, index: int, time_ms: int, data: bytes) -> Effects:
        """Apply one entry; `data` is empty for one that only lets time pass. An entry that does not
        decode has no effect but that. Any exception is a bug, and must stop the node."""
        if index != self.applied_index + 1 or time_ms < self.now_ms:
            raise AssertionError(f"entry {index} at {time_ms} cannot follow {self.applied_index} at {self.now_ms}")
        effects = self._effects = Effects([], set(), set())
        self.applied_index = index
        self.now_ms = time_ms
        self._budget = TIMERS_PER_ENTRY
        self._fire_timers()
        self._give_back()
        if data:
            match c.decode_payload(data):
                case c.Batch() as batch:
                    self._apply_batch(batch)
                case c.OpenGateway(node=node, incarnation=incarnation):
                    self._open_gateway(node, incarnation)
                case c.CloseGateway(node=node, incarnation=incarnation):
                    self._close_gateway(node, incarnation)
                case c.Settings() as settings:
                    self.settings, self.settings_index = settings, index
                case c.Room(is_scarce=is_scarce):
                    self.room_is_scarce = is_scarce
                case c.Features(level=level):
                    self.level = max(self.level, level)
            self._give_back()
        return effects

    def next_due_ms(self) -> int | None:
        """The log time at which an entry is needed for timers, None if there are none. It may have passed."""
        return self.now_ms if self.closing else self.timers.next_due_ms()

    def session(self, node: int, session: int) -> Session | None:
        gateway = self.gateways.get(node)
        return gateway.sessions.get(session) if gateway is not None else None

    def _open_gateway(self, node: int, incarnation: int) -> None:
        row = self.gateways.get(node)
        self._effects.owners.add(node)
        if row is not None:
            if incarnation <= row.incarnation:
                return
            self._close_gateway(node, row.incarnation)
        self.gateways[node] = Gateway(node, incarnation)

    def _close_gateway(self, node: int, incarnation: int) -> None:
        row = self.gateways.get(node)
        self._effects.owners.add(node)
        if row is None or row.incarnation != incarnation or not row.is_open:
            return
        row.is_open = False
        for session in row.sessions.values():
            self._detach(session)
        row.sessions = {}

    def close_everyone(self) -> None:
        """Every gateway is gone for good, and what its clients held is given back: the state begins a life in another cluster."""
        for row in list(self.gateways.values()):
            self._close_gateway(row.node, row.incarnation)
        while self.closing:
            self._budget = TIMERS_PER_ENTRY
            self._give_back()
        self.gateways.clear()
        self.room_is_scarce = False

    def _apply_batch(self, batch: c.Batch) -> None:
        node = batch.node
        self._effects.owners.add(node)
        row = self.gateways.get(node)
        if row is None or not row.is_open or row.incarnation != batch.incarnation or batch.seq <= row.seq:
            return
        if batch.seq != row.seq + 1:
            self._effects.gaps.add(node)
            return
        row.seq = batch.seq
        answers = self._effects.answers
        for command in batch.commands:
            number = command.session
            session = row.sessions.get(number)
            if type(command) is c.CloseSession or type(command) is c.Leave:
                if session is not None:
                    del row.sessions[number]
                    if type(command) is c.Leave:
                        self._leave(session)
                    self._detach(session)
                    self._give_back()
                continue
            if session is None:
                session = row.sessions[number] = Session((node, number), self.default)
                self.default.using += 1
                self.default.watching += 1
            elif session.waiting:
                # Gateways hold commands back behind a waiting reserve; one that comes all the same ends the wait.
                self._end_wait(session)
                answers.append((node, number, r.TimedOut()))
            reply = self._verbs[type(command)](session, command)
            if reply is not None:
                answers.append((node, number, reply))

    # -- sessions -----------------------------------------------------------------------------

    def _detach(self, session: Session) -> None:
        """The session is gone; what it holds is given back within the entry's budget, the rest later."""
        if session.waiting:
            self._end_wait(session)
        session.used.using -= 1
        self._drop_if_unused(session.used)
        for tube in session.watched.values():
            tube.watching -= 1
            self._drop_if_unused(tube)
        self.closing.append(session)

    def _leave(self, session: Session) -> None:
        """What the session holds is its tokens' from now on."""
        session.reserved.clear()

    def _give_back(self) -> None:
        while self.closing and self._budget > 0:
            self._budget -= 1
            session = self.closing[0]
            if not session.reserved:
                self.closing.popleft()
                continue
            id, token = session.reserved.popitem(last=False)
            job = self.jobs.get(id)
            if job is not None and job.state is State.RESERVED and job.token == token:
                self._unreserve(job)
                self._make_ready(job, What.GIVEN_BACK, None)

    def _end_wait(self, session: Session) -> None:
        session.waiting = False
        self.gateways[session.key[0]].waiting -= 1
        for tube in session.watched.values():
            del tube.waiters[session]
        for due_ms in (session.wait_until_ms, session.soon_ms):
            if due_ms:
                self.timers.cancelled()
        session.wait_until_ms = session.soon_ms = 0

    def _holds(self, session: Session, id: int, token: int) -> Job | None:
        """The reserved job `id`, if `session` holds it, or if `token` is that of its reservation."""
        job = self.jobs.get(id)
        if job is None or job.state is not State.RESERVED:
            return None
        return job if job.token == (token or session.reserved.get(id)) else None

    # -- tubes --------------------------------------------------------------------------------

    def tube(self, name: str) -> Tube:
        """The tube of this name, made if there is none."""
        tube = self.tubes.get(name)
        if tube is None:
            tube = self.tubes[name] = Tube(name, self.jobs)
        return tube

    def _drop_if_unused(self, tube: Tube) -> None:
        if tube.is_referenced or tube is self.default or tube.name not in self.tubes:
            return
        del self.tubes[tube.name]
        if tube.pause_until_ms:
            self.timers.cancelled()

    def _is_paused(self, tube: Tube) -> bool:
        """Until the timer has fired: waiters are served then, and nobody may overtake them before."""
        return tube.pause_until_ms != 0

    def _match(self, tube: Tube) -> None:
        """Give ready jobs of the tube to those who wait for it, first come, first served."""
        while tube.waiters and not self._is_paused(tube):
            least = tube.ready.least()
            if least is None:
                return
            session = next(iter(tube.waiters))
            job = self.jobs[least[1]]
            reply = self._grant(session, job)
            self._effects.answers.append((*session.key, reply))

    # -- jobs ---------------------------------------------------------------------------------

    def _make_ready(self, job: Job, what: What, who: Key | None) -> None:
        """`what` `who` did makes it so."""
        job.state = State.READY
        job.tube.ready.add(job.pri, job.id)
        self.counts.ready += 1
        if job.pri < URGENT_PRI:
            job.tube.urgent += 1
            self.counts.urgent += 1
        self.tell(what, job, who)
        self._match(job.tube)

    def _make_delayed(self, job: Job, delay_ms: int, what: What, who: Key) -> None:
        job.state = State.DELAYED
        job.deadline_ms = self.now_ms + delay_ms
        job.tube.delayed.add(job.deadline_ms, job.id)
        self.counts.delayed += 1
        self.timers.add(job.deadline_ms, Kind.DELAY, job.id)
        self.tell(what, job, who)

    def _take_out(self, job: Job) -> None:
        """Remove a job that nobody holds from the queue it stands in; its state says which."""
        tube = job.tube
        state, job.state = job.state, State.RESERVED
        if state is State.READY:
            tube.ready.removed()
            self.counts.ready -= 1
            if job.pri < URGENT_PRI:
                tube.urgent -= 1
                self.counts.urgent -= 1
        elif state is State.DELAYED:
            tube.delayed.removed()
            self.counts.delayed -= 1
            self.timers.cancelled()
        else:
            del tube.buried[job.id]
            self.counts.buried -= 1

    def _grant(self, session: Session, job: Job) -> r.Reserved:
        """`session` holds `job` from now on."""
        if session.waiting:
            self._end_wait(session)
        self._take_out(job)
        self.last_token += 1
        job.token = self.last_token
        job.holder = session.key
        job.reserves += 1
        job.deadline_ms = self.now_ms + job.ttr_ms
        job.tube.reserved += 1
        self.counts.reserved += 1
        session.reserved[job.id] = job.token
        self.timers.add(job.deadline_ms, Kind.TTR, job.id)
        self.tell(What.RESERVED, job, session.key)
        return r.Reserved(job.id, job.body, job.token)

    def _unreserve(self, job: Job) -> None:
        """Nobody holds `job` any more; the caller gives it its next state. Its timer is stale then."""
        job.tube.reserved -= 1
        self.counts.reserved -= 1
        self.timers.cancelled()
        holder = self.session(*job.holder)
        if holder is not None and holder.reserved.get(job.id) == job.token:
            del holder.reserved[job.id]

    # -- timers -------------------------------------------------------------------------------

    def _is_live(self, due_ms: int, kind: Kind, id: TimerId) -> bool:
        if kind is Kind.TTR or kind is Kind.DELAY:
            job = self.jobs.get(cast(int, id))
            state = State.RESERVED if kind is Kind.TTR else State.DELAYED
            return job is not None and job.state is state and job.deadline_ms == due_ms
        if kind is Kind.PAUSE:
            tube = self.tubes.get(cast(str, id))
            return tube is not None and tube.pause_until_ms == due_ms
        session = self.session(*cast(tuple[int, int], id))
        return session is not None and session.waiting and due_ms == (session.wait_until_ms if kind is Kind.WAIT else session.soon_ms)

    def _fire_timers(self) -> None:
        while self._budget > 0:
            timer = self.timers.pop_due(self.now_ms)
            if timer is None:
                return
            self._budget -= 1
            kind, id = timer
            if kind is Kind.DELAY:
                job = self.jobs[cast(int, id)]
                job.state = State.RESERVED  # in no queue for a moment
                job.tube.delayed.removed()
                self.counts.delayed -= 1
                self._make_ready(job, What.DELAY_OVER, None)
            elif kind is Kind.TTR:
                job = self.jobs[cast(int, id)]
                job.timeouts += 1
                self.job_timeouts += 1
                self._unreserve(job)
                self._make_ready(job, What.TIMED_OUT, None)
            elif kind is Kind.PAUSE:
                tube = self.tubes[cast(str, id)]
                tube.pause_ms = tube.pause_until_ms = 0
                self._match(tube)
            else:
                key = cast(tuple[int, int], id)
                session = self.session(*key)
                assert session is not None
                soon_ms = self._soon_ms(session)
                if kind is Kind.SOON and soon_ms != session.soon_ms:
                    # what it held was touched or taken by its token meanwhile
                    self._warn_at(session, soon_ms)
                    continue
                self._end_wait(session)
                self._effects.answers.append((*key, r.TimedOut() if kind is Kind.WAIT else r.DeadlineSoon()))

    # -- verbs --------------------------------------------------------------------------------

    def _put(self, session: Session, put: c.Put) -> r.Reply:
        if len(put.body) > self.settings.max_job_size:
            return r.JobTooBig()
        if self.room_is_scarce:
            return r.OutOfMemory()
        self._insert(self.tube(put.tube) if put.tube else session.used, put, session)
        return r.Inserted(self.last_id)

    def _put_many(self, session: Session, put: c.PutMany) -> r.Reply:
        if put.key:
            before = self.keys.reply(put.key, put.fingerprint, self.now_ms)
            if before is not None:
                return before
        if put.only_topic and put.tube not in self.topics:
            return r.NotFound()
        if any(len(job.body) > self.settings.max_job_size for job in put.jobs):
            return r.JobTooBig()
        if self.room_is_scarce:
            return r.OutOfMemory()
        first = self.last_id + 1
        tube = self.tube(put.tube)
        for job in put.jobs:
            self._insert(tube, job, session)
        self._drop_if_unused(tube)  # there were none
        if put.key:
            self.keys.remember(put.key, Used(self.now_ms, put.fingerprint, first, len(put.jobs)))
        return r.InsertedMany(first, len(put.jobs), False)

    def _insert(self, tube: Tube, put: c.Put | c.NewJob, session: Session) -> None:
        self.last_id += 1
        job = Job(self.last_id, tube, put.pri, put.delay_ms, max(put.ttr_ms, LEAST_TTR_MS), put.body, self.now_ms)
        self.jobs[job.id] = job
        self.total_jobs += 1
        tube.total_jobs += 1
        tube.jobs += 1
        if put.delay_ms > 0:
            self._make_delayed(job, put.delay_ms, What.PUT, session.key)
        else:
            self._make_ready(job, What.PUT, session.key)

    def _declare(self, session: Session, declare: c.Declare) -> r.Reply:
        is_new = declare.tube not in self.topics
        self.topics[declare.tube] = None
        self.tube(declare.tube).is_declared = True
        return r.Declared(is_new)

    def _undeclare(self, session: Session, undeclare: c.Undeclare) -> r.Reply:
        if undeclare.tube not in self.topics:
            return r.NotFound()
        tube = self.tubes[undeclare.tube]
        if tube.jobs:
            return r.NotEmpty(tube.jobs)
        del self.topics[tube.name]
        tube.is_declared = False
        self._drop_if_unused(tube)
        return r.Deleted()

    def _put_back(self, session: Session, back: c.PutBack) -> r.Reply:
        if back.id in self.jobs or not 0 < back.id <= self.last_id:
            return r.NotFound()
        tube = self.tube(back.tube)
        job = self.jobs[back.id] = Job(back.id, tube, back.pri, 0, max(back.ttr_ms, LEAST_TTR_MS), back.body, self.now_ms)
        tube.jobs += 1
        self._make_ready(job, What.PUT_BACK, session.key)
        return r.Inserted(back.id)

    def _use(self, session: Session, use: c.Use) -> r.Reply:
        tube = self.tube(use.tube)
        tube.using += 1
        session.used.using -= 1
        self._drop_if_unused(session.used)
        session.used = tube
        return r.Using(tube.name)

    def _watch(self, session: Session, watch: c.Watch) -> r.Reply:
        if watch.tube not in session.watched:
            if len(session.watched) >= WATCHED_TUBES:
                return r.OutOfMemory()
            tube = session.watched[watch.tube] = self.tube(watch.tube)
            tube.watching += 1
        return r.Watching(len(session.watched))

    def _ignore(self, session: Session, ignore: c.Ignore) -> r.Reply:
        tube = session.watched.get(ignore.tube)
        if tube is not None:
            if len(session.watched) == 1:
                return r.NotIgnored()
            del session.watched[ignore.tube]
            tube.watching -= 1
            self._drop_if_unused(tube)
        return r.Watching(len(session.watched))

    def _reserve(self, session: Session, reserve: c.Reserve) -> r.Reply | None:
        best: tuple[int, int] | None = None
        for tube in session.watched.values():
            least = None if self._is_paused(tube) else tube.ready.least()
            if least is not None and (best is None or least < best):
                best = least
        if best is not None:
            return self._grant(session, self.jobs[best[1]])
        soon_ms = self._soon_ms(session)
        if soon_ms and soon_ms <= self.now_ms:
            return r.DeadlineSoon()
        if reserve.timeout_ms == 0:
            return r.TimedOut()
        session.waiting = True
        self.gateways[session.key[0]].waiting += 1
        for tube in session.watched.values():
            tube.waiters[session] = None
        if reserve.timeout_ms is not None:
            session.wait_until_ms = self.now_ms + reserve.timeout_ms
            self.timers.add(session.wait_until_ms, Kind.WAIT, session.key)
        self._warn_at(session, soon_ms)
        return None

    def _soon_ms(self, session: Session) -> int:
        """When the first job that it holds comes near the end of its ttr; 0 if it holds none."""
        if not session.reserved:
            return 0
        return min(self.jobs[id].deadline_ms for id in session.reserved) - DEADLINE_SOON_MS

    def _warn_at(self, session: Session, soon_ms: int) -> None:
        session.soon_ms = soon_ms
        if soon_ms:
            self.timers.add(soon_ms, Kind.SOON, session.key)

    def _reserve_job(self, session: Session, reserve: c.ReserveJob) -> r.Reply:
        job = self.jobs.get(reserve.id)
        if job is None or job.state is State.RESERVED:
            return r.NotFound()
        return self._grant(session, job)

    def _delete(self, session: Session, delete: c.Delete) -> r.Reply:
        job = self.jobs.get(delete.id)
        if job is None:
            return r.NotFound()
        if job.state is State.RESERVED:
            if self._holds(session, delete.id, delete.token) is None:
                return r.NotFound()
            self._unreserve(job)
        elif delete.token:
            return r.NotFound()  # that reservation is over
        else:
            self._take_out(job)
        del self.jobs[job.id]
        job.tube.cmd_delete += 1
        job.tube.jobs -= 1
        self.tell(What.DELETED, job, session.key)
        self._drop_if_unused(job.tube)
        return r.Deleted()

    def _release(self, session: Session, release: c.Release) -> r.Reply:
        job = self._holds(session, release.id, release.token)
        if job is None:
            return r.NotFound()
        self._unreserve(job)
        job.pri = job.pri if release.pri is None else release.pri
        job.delay_ms = release.delay_ms
        job.releases += 1
        if release.delay_ms > 0:
            self._make_delayed(job, release.delay_ms, What.RELEASED, session.key)
        else:
            self._make_ready(job, What.RELEASED, session.key)
        return r.Released()

    def _bury(self, session: Session, bury: c.Bury) -> r.Reply:
        job = self._holds(session, bury.id, bury.token)
        if job is None:
            return r.NotFound()
        self._unreserve(job)
        job.pri = job.pri if bury.pri is None else bury.pri
        job.buries += 1
        job.state = State.BURIED
        job.tube.buried[job.id] = None
        self.counts.buried += 1
        self.tell(What.BURIED, job, session.key)
        return r.Buried()

    def _touch(self, session: Session, touch: c.Touch) -> r.Reply:
        job = self._holds(session, touch.id, touch.token)
        if job is None:
            return r.NotFound()
        if job.deadline_ms != self.now_ms + job.ttr_ms:
            job.deadline_ms = self.now_ms + job.ttr_ms
            self.timers.cancelled()
            self.timers.add(job.deadline_ms, Kind.TTR, job.id)
        self.tell(What.TOUCHED, job, session.key)
        return r.Touched()

    def _kick(self, session: Session, kick: c.Kick) -> r.Reply:
        tube = session.used
        count, most = 0, min(kick.count, KICKED_JOBS)
        if tube.buried:
            while count < most and tube.buried:
                self._kick_one(self.jobs[next(iter(tube.buried))], session)
                count += 1
        else:
            while count < most and (least := tube.delayed.least()) is not None:
                self._kick_one(self.jobs[least[1]], session)
                count += 1
        return r.Kicked(count)

    def _kick_job(self, session: Session, kick: c.KickJob) -> r.Reply:
        job = self.jobs.get(kick.id)
        if job is None or job.state not in (State.BURIED, State.DELAYED):
            return r.NotFound()
        self._kick_one(job, session)
        return r.Kicked(None)

    def _kick_one(self, job: Job, session: Session) -> None:
        self._take_out(job)
        job.kicks += 1
        self._make_ready(job, What.KICKED, session.key)

    def _pause_tube(self, session: Session, pause: c.PauseTube) -> r.Reply:
        tube = self.tubes.get(pause.tube)
        if tube is None:
            return r.NotFound()
        tube.cmd_pause_tube += 1
        if tube.pause_until_ms:
            self.timers.cancelled()
        tube.pause_ms = pause.pause_ms
        tube.pause_until_ms = self.now_ms + pause.pause_ms if pause.pause_ms else 0
        if pause.pause_ms:
            self.timers.add(tube.pause_until_ms, Kind.PAUSE, tube.name)
        else:
            self._match(tube)
        return r.Paused()

    # -- comparing nodes ----------------------------------------------------------------------

    def digest(self) -> str:
        """A hash of the whole state: equal on every node that has applied the same entries (I12)."""
        tubes = [
            (
                tube.name,
                list(tube.buried),
                [session.key for session in tube.waiters],
                [tube.urgent, tube.ready.count, tube.delayed.count, tube.reserved, tube.jobs, tube.using, tube.watching],
                [tube.pause_ms, tube.pause_until_ms, tube.total_jobs, tube.cmd_delete, tube.cmd_pause_tube],
            )
            for tube in self.tubes.values()
        ]
        jobs = [msgspec.structs.astuple(job) for _, job in sorted(self.jobs.items())]
        rows = [
            (row.node, row.incarnation, row.is_open, row.seq, [_describe(session) for session in row.sessions.values()])
            for _, row in sorted(self.gateways.items())
        ]
        state = [
            [self.applied_index, self.now_ms, self.settings, self.settings_index, self.room_is_scarce, self.level],
            [self.last_id, self.last_token, self.total_jobs, self.job_timeouts],
            [(*job[:1], job[1].name, *job[2:]) for job in jobs],
            tubes,
            list(self.topics),
            list(self.keys.used.items()),
            rows,
            [(session.key, list(session.reserved.items())) for session in self.closing],
        ]
        return sha256(msgspec.msgpack.encode(state)).hexdigest()


def _describe(session: Session) -> list[object]:
    waits = [session.waiting, session.wait_until_ms, session.soon_ms]
    return [session.key, session.used.name, list(session.watched), list(session.reserved.items()), waits]

"""The transitions of the queue. Nothing here reads a clock, a configuration, a hash order or a random number.

Applying an entry first continues what earlier entries left over: tubes that have jobs for waiting sessions, timers due at its
stamp, sessions that are closed. Then it runs its commands. Everything that it causes happens at its stamp. All of it together is
bounded (`budget.py`): what does not fit stays due, and the leader appends an entry for it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import cast

import msgspec

from raftd.jobs import access, asks, clients, policies, replay, schedules
from raftd.jobs import commands as c
from raftd.jobs import replies as r
from raftd.jobs.budget import COSTS, COSTS_BEFORE_LEVEL_2, Costs
from raftd.jobs.keys import Keys, Used
from raftd.jobs.model import (
    BURIALS_PER_MS,
    NO_NODE,
    URGENT_PRI,
    ClientSession,
    Counts,
    Gateway,
    Job,
    JobEventKind,
    JobListener,
    Session,
    State,
    Tube,
    Wait,
)
from raftd.jobs.rights import Right
from raftd.jobs.table import JobTable
from raftd.jobs.timers import Kind, Timer, Timers
from raftd.limits import KICKED_JOBS, MAX_JOB_BYTES, SESSION_TIMEOUT_MS, WATCHED_TUBES

DEFAULT_TUBE = "default"
#: A worker is warned when a job it holds has this much of its ttr left, and the least ttr (beanstalkd).
DEADLINE_SOON_MS = 1_000
LEAST_TTR_MS = 1_000
_READY = State.READY  # looking it up in the enumeration takes longer than the rest of the line
#: Objects that one slice of `dissolve` frees.
_FREED_PER_SLICE = 64
#: The step limit where no entry bounds the work.
NO_LIMIT = 1 << 62

Answer = tuple[int, int, r.Reply]  # node, session, reply
Key = tuple[int, int]  # node, session
SessionId = tuple[int, int, int]  # and the incarnation of its gateway


def ignore_job_event(what: JobEventKind, job: Job, who: Key | None) -> None:
    pass


class Effects(msgspec.Struct):
    """What applying an entry asks of the node.

    `answers` are in the order in which they were produced. `owners` are the nodes whose gateways must hear
    that the entry is applied. `gaps` are those whose batch was refused because one before it is missing.
    """

    answers: list[Answer]
    owners: set[int]
    gaps: set[int]


class StateMachine:
    """Apply entries in order. `applied_index` and `now_ms` belong to the state and change with it (R18)."""

    def __init__(self, costs: Costs = COSTS) -> None:
        """`costs`: what work costs from feature level 2 on, the same on every node."""
        self.applied_index = 0
        self.now_ms = 0
        self.settings = c.Settings(MAX_JOB_BYTES, SESSION_TIMEOUT_MS)
        self.settings_index = 0  # where they were last set, 0: never
        self.space_is_scarce = False
        #: Tubes that were declared, in this order, and by whom (`Access.identity`; "" if nobody had to say who he is).
        self.topics: dict[str, str] = {}
        self.keys = Keys()
        self.clients = clients.Clients()
        self.policies = policies.Policies()
        self.schedules = schedules.Schedules()
        self.access = access.Access()
        #: Hears whatever happens to a job; no part of the state.
        self.on_job_event: JobListener = ignore_job_event
        self.level = 0  # of features, 0 in a cluster of which not all nodes have been heard together yet
        self.jobs = JobTable()
        self.tubes: dict[str, Tube] = {}
        self.gateways: dict[int, Gateway] = {}
        #: The id of each node's data directory: one that comes back with another has lost what it promised.
        self.directories: dict[int, bytes] = {}
        self.counts = Counts()
        #: Tubes on all watch lists together.
        self.watches = 0
        self.last_id = 0
        self.last_token = 0
        self.total_jobs = 0
        self.job_timeouts = 0
        self.default = self.tube(DEFAULT_TUBE)
        self.timers = Timers()
        #: Sessions that are gone, but still watch tubes or hold reservations.
        self.closing: deque[Session | ClientSession] = deque()
        #: Those of them that still watch tubes. Their numbers must not be used again yet, and no gateway does so.
        self.closed: dict[SessionId, Session] = {}
        #: Tubes with ready jobs and waiting sessions for which the budget was not enough. No other session overtakes them.
        self.unmatched: OrderedDict[str, Tube] = OrderedDict()
        #: Steps of work done so far, for the budgets of entries and turns; no part of the state.
        self.steps = 0
        self.limit = 0  # of `steps`, at which this part of the entry stops
        self._costs_since_level_2 = costs
        self.costs = COSTS_BEFORE_LEVEL_2
        self._effects = Effects([], set(), set())

    # -- entries ------------------------------------------------------------------------------

    def apply(self, index: int, time_ms: int, data: bytes) -> Effects:
        """Apply one entry; `data` is empty for one that only lets time pass. An entry that does not
        decode has no effect but that. Any exception is a bug, and must stop the node."""
        if index != self.applied_index + 1 or time_ms < self.now_ms:
            raise AssertionError(f"entry {index} at {time_ms} cannot follow {self.applied_index} at {self.now_ms}")
        effects = self._effects = Effects([], set(), set())
        self.applied_index = index
        self.now_ms = time_ms
        costs = self.costs = self._costs_since_level_2 if self.level >= 2 else COSTS_BEFORE_LEVEL_2
        began = self.steps
        self.limit = began + costs.left_over
        if self.unmatched:
            self._match_left_over()
        self._fire_timers()
        if self.closing or self.clients.detaching:
            self._close_sessions()
        self.limit += costs.entry - costs.commands - costs.left_over  # what was charged so far has raised it already
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
                case c.DiskSpace(is_scarce=is_scarce):
                    self.space_is_scarce = is_scarce
                case c.Features(level=level):
                    self.level = max(self.level, level)
                case c.Tick() as tick:
                    self.charge_to_batch(self.costs.command + self.costs.job)
                    schedules.tick(self, tick)
                case c.Directory(node=node, directory_id=directory_id):
                    self.directories.setdefault(node, directory_id)
            if self.closing or self.clients.detaching:
                self._close_sessions()
        return effects

    def next_due_ms(self) -> int | None:
        """The log time at which an entry is needed for timers, None if there are none. It may have passed."""
        if self.closing or self.unmatched or self.clients.detaching:
            return self.now_ms
        first = self.timers.least()
        return first[0] if first is not None else None

    @property
    def items(self) -> int:
        """A rough number of objects, with a job as the unit: a tube and a session have a dozen each."""
        sessions = self.clients.sessions
        policies = self.policies
        kept = len(self.keys.used) + len(self.clients.errors) + len(policies.marks) + len(policies.finished.jobs)
        return len(self.jobs) + kept + 12 * (len(self.tubes) + self.watches + len(sessions))

    def session(self, node: int, session: int) -> Session | None:
        """That of a connection to this node."""
        gateway = self.gateways.get(node)
        return gateway.sessions.get(session) if gateway is not None else None

    def holder(self, job: Job) -> Session | ClientSession | None:
        """The session that a reserved job was given to, if it has not ended."""
        node, number = job.holder
        gateway = self.gateways.get(node)
        if gateway is not None:
            return gateway.sessions.get(number)
        return self.clients.sessions.get(number) if node == NO_NODE else None

    def tell(self, session: ClientSession, reply: r.Reply) -> None:
        """To the connection that speaks for the session, if there is one."""
        if session.attached_to is not None:
            self._effects.answers.append((*session.attached_to, reply))

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
        row.waiting = 0
        for session in row.sessions.values():
            self._close(session)
        row.sessions = {}
        clients.detach_all(self, row)

    def close_everyone(self) -> None:
        """Every gateway is gone for good, and what its clients held is released: the state begins a life in another cluster."""
        self.costs = self._costs_since_level_2 if self.level >= 2 else COSTS_BEFORE_LEVEL_2
        for row in list(self.gateways.values()):
            self._close_gateway(row.node, row.incarnation)
        for session in list(self.clients.sessions.values()):
            clients.end(self, session)
        for gone in self.closing:
            gone.releases = True  # which is no failed attempt
        self.limit = NO_LIMIT
        self._close_sessions()
        self._match_left_over()  # for sessions that are gone
        self.gateways.clear()
        self.directories.clear()
        self.space_is_scarce = False

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
        verbs, asked = _VERBS, 0
        for command in batch.commands:
            number = command.session
            session = row.sessions.get(number)
            verb = verbs.get(type(command))
            if verb is None:
                if type(command) is c.Ask:
                    asked += 1
                    clients.ask(self, row, command)
                elif type(command) is c.Attach or type(command) is c.AttachAs:
                    answers.append((node, number, clients.attach(self, row, command)))
                elif type(command) is c.Detach:
                    clients.detach(self, row, number)
                    self._close_sessions()
                elif session is not None:  # CloseSession or Leave
                    del row.sessions[number]
                    if type(command) is c.Leave:
                        session.give_to_tokens()
                    row.waiting -= session.waiting
                    self._close(session)
                    self._close_sessions()
                continue
            asked += 1
            if session is None:
                if self.closed and (node, number, row.incarnation) in self.closed:
                    continue
                session = row.sessions[number] = Session((node, number), row.incarnation, self.default)
                self.default.using += 1
                self.default.watching += 1
                self.watches += 1
            elif session.waiting:
                # Gateways hold commands back behind a waiting reserve; one that comes all the same ends the wait.
                self._end_wait(session)
                answers.append((node, number, r.TimedOut()))
            reply = access.refusal(self, session, command) if self.access.is_on and verb != _LOG_IN else None
            if reply is None:
                reply = getattr(self, verb)(session, command)
            if reply is not None:
                answers.append((node, number, reply))
        self.charge_to_batch(asked * self.costs.command)

    def charge_to_batch(self, steps: int) -> None:
        """Charge steps that the gateway counted when it made the batch; the limit of the entry rises with them."""
        self.steps += steps
        self.limit += steps

    # -- sessions -----------------------------------------------------------------------------

    def _close(self, session: Session) -> None:
        """Mark the session closed and queue it; `_close_sessions` detaches it and gives its jobs back."""
        session.is_closed = True
        session.login, session.permitted = None, None
        self.closing.append(session)
        if self.costs is COSTS_BEFORE_LEVEL_2:
            self._detach(session)
        else:
            self.closed[session.id] = session

    def _close_sessions(self) -> None:
        """Sessions that are gone stop waiting and watching, then give back what they hold, as far as the budget goes."""
        if self.clients.detaching:
            clients.suspend_detached(self)
        closing, costs = self.closing, self.costs
        while closing and self.steps < self.limit:
            session = closing[0]
            if type(session) is Session and session.watched:
                self._detach(session)
                continue
            oldest = session.reserved.least()
            if oldest is None:
                closing.popleft()
                self.steps += costs.closed
                continue
            session.reserved.pop_least()
            self.steps += costs.given_back
            token, id = oldest
            job = self.jobs.get(id)
            if job is not None and job.state is State.RESERVED and job.token == token:
                self.unreserve(job)
                if session.releases:
                    job.releases += 1
                    self._back(job, 0, JobEventKind.RELEASED, None)
                else:
                    self.failed(job, 0, JobEventKind.GIVEN_BACK, None)

    def _detach(self, session: Session) -> None:
        """A session that is closed waits for nothing any more, and uses and watches no tube."""
        if session.waiting:
            self._end_wait(session)
        self.steps += len(session.watched) * self.costs.tube
        self.watches -= len(session.watched)
        session.used.using -= 1
        self.drop_if_unused(session.used)
        for tube in session.watched.values():
            tube.watching -= 1
            self.drop_if_unused(tube)
        session.watched = {}
        session.used = self.default
        self.closed.pop(session.id, None)

    def _end_wait(self, session: Session) -> None:
        self.steps += len(session.watched) * self.costs.tube
        session.waiting = False
        if not session.is_closed:
            self.gateways[session.key[0]].waiting -= 1
        for tube in session.watched.values():
            tube.waiters.pop(session, None)  # it is not in those to which it lost its right
        for due_ms, kind in ((session.wait_until_ms, Kind.WAIT), (session.soon_ms, Kind.SOON)):
            if due_ms:
                timer = (due_ms, kind, session.id)
                if not session.is_closed or timer in self.timers:  # the timer of a closed session may have fired already
                    self.timers.remove(timer)
        session.wait_until_ms = session.soon_ms = 0

    def held_job(self, session: Session | ClientSession, id: int, token: int) -> Job | None:
        """The reserved job `id`, if `session` holds it, or if `token` is that of its reservation."""
        job = self.jobs.get(id)
        if job is None or job.state is not State.RESERVED or not access.may(self, session, Right.WORK, job.tube):
            return None
        return job if (job.token == token if token else session.holds(job)) else None

    # -- tubes --------------------------------------------------------------------------------

    def tube(self, name: str) -> Tube:
        """The tube of this name, made if there is none."""
        tube = self.tubes.get(name)
        if tube is None:
            tube = self.tubes[name] = Tube(name)
        return tube

    def drop_if_unused(self, tube: Tube) -> None:
        if tube.is_referenced or tube is self.default or tube.name not in self.tubes:
            return
        del self.tubes[tube.name]
        self.unmatched.pop(tube.name, None)
        if tube.pause_until_ms:
            self.steps += self.costs.paused
            self.timers.remove((tube.pause_until_ms, Kind.PAUSE, tube.name))

    def is_held_back(self, tube: Tube) -> bool:
        """Nothing may be reserved from a paused tube until the timer has fired, nor beyond what its policy allows, nor from one whose jobs
        are for sessions that wait: those are served first."""
        return tube.pause_until_ms != 0 or tube.name in self.unmatched or (tube.policy is not None and policies.holds_back(tube))

    def match(self, tube: Tube) -> None:
        """Give ready jobs of the tube to those who wait for it, first come, first served."""
        while tube.waiters and not self.is_held_back(tube):
            least = tube.ready.least()
            if least is None:
                return
            if self.steps >= self.limit and self.costs.granted:
                self.unmatched[tube.name] = tube
                return
            waiter = next(iter(tube.waiters))
            if isinstance(waiter, Wait):
                clients.serve(self, tube, waiter, self.jobs[least[1]])
                continue
            if waiter.is_closed:
                self._detach(waiter)
                continue
            if self.access.is_on and not access.may(self, waiter, Right.WORK, tube):  # it had the right when it began to wait
                self.steps += self.costs.granted
                self._end_wait(waiter)
                self._effects.answers.append((*waiter.key, r.NotAuthorized()))
                continue
            reply = self._grant(waiter, self.jobs[least[1]])
            self._effects.answers.append((*waiter.key, reply))

    def _match_left_over(self) -> None:
        """Go on where the budget of an earlier entry ended."""
        while self.unmatched and self.steps < self.limit:
            _, tube = self.unmatched.popitem(last=False)
            self.match(tube)

    # -- jobs ---------------------------------------------------------------------------------

    def make_ready(self, job: Job, what: JobEventKind, who: Key | None) -> None:
        """Put the job into its ready queue. `what` and `who` are for the job event."""
        job.state = _READY
        tube, counts, pri = job.tube, self.counts, job.pri
        tube.ready.add((pri, job.id))
        counts.ready += 1
        if pri < URGENT_PRI:
            tube.urgent += 1
            counts.urgent += 1
        self.on_job_event(what, job, who)
        if tube.waiters:
            self.match(tube)

    def queue(self, job: Job, delay_ms: int, what: JobEventKind, who: Key | None) -> None:
        """Ready, or after a delay."""
        if delay_ms > 0:
            self.make_delayed(job, delay_ms, what, who)
        else:
            self.make_ready(job, what, who)

    def failed(self, job: Job, delay_ms: int, what: JobEventKind, who: Key | None) -> None:
        """An attempt at `job`, which is in no queue, has failed."""
        if job.tube.policy is None:
            self.queue(job, delay_ms, what, who)
        else:
            policies.failed(self, job, delay_ms, what, who)

    def _back(self, job: Job, delay_ms: int, what: JobEventKind, who: Key | None) -> None:
        """`job`, which is in no queue, was released."""
        if job.tube.policy is None:
            self.queue(job, delay_ms, what, who)
        else:
            policies.back(self, job, delay_ms, what, who)

    def make_delayed(self, job: Job, delay_ms: int, what: JobEventKind, who: Key | None) -> None:
        job.state = State.DELAYED
        job.deadline_ms = self.now_ms + delay_ms
        job.tube.delayed.add((job.deadline_ms, job.id))
        self.counts.delayed += 1
        self.timers.add((job.deadline_ms, Kind.DELAY, job.id))
        self.on_job_event(what, job, who)
        self._left(job.tube)

    def make_buried(self, job: Job, what: JobEventKind, who: Key | None) -> None:
        job.state = State.BURIED
        last = job.tube.buried.greatest()
        job.deadline_ms = last[0] + 1 if last is not None else 1
        if self.level >= c.REPLAYS_LEVEL:
            job.deadline_ms = max(job.deadline_ms, self.now_ms * BURIALS_PER_MS)
        job.tube.buried.add((job.deadline_ms, job.id))
        self.counts.buried += 1
        self.on_job_event(what, job, who)
        self._left(job.tube)

    def _left(self, tube: Tube) -> None:
        """One of its jobs is not reserved any more, and not ready either: another may be reserved if a policy says how many may."""
        if tube.policy is not None and tube.waiters:
            self.match(tube)

    def remove(self, job: Job) -> None:
        """`job`, which is in no queue, is no more. Its tube may be unused now."""
        id, tube = job.id, job.tube
        del self.jobs[id]
        if self.clients.errors:
            self.clients.errors.pop(id, None)
        if id in self.policies.marks:
            policies.gone(self, job)
        tube.jobs -= 1
        tube.bytes -= len(job.body)

    def attempts(self, job: Job) -> int:
        """At `job`, that have failed and count."""
        mark = self.policies.marks.get(job.id)
        return job.failures if mark is None else job.failures - mark.forgiven

    def take_out(self, job: Job) -> None:
        """Remove a job that is not reserved from its queue; its state says which."""
        tube = job.tube
        state, job.state = job.state, State.RESERVED
        if state is State.READY:
            tube.ready.remove((job.pri, job.id))
            self.counts.ready -= 1
            if job.pri < URGENT_PRI:
                tube.urgent -= 1
                self.counts.urgent -= 1
        elif state is State.DELAYED:
            tube.delayed.remove((job.deadline_ms, job.id))
            self.counts.delayed -= 1
            self.timers.remove((job.deadline_ms, Kind.DELAY, job.id))
        else:
            tube.buried.remove((job.deadline_ms, job.id))
            self.counts.buried -= 1

    def _grant(self, session: Session, job: Job) -> r.Reserved:
        """`session` waits no more: it holds `job` from now on."""
        if session.waiting:
            self._end_wait(session)
        self.hold(session, job)
        return r.Reserved(job.id, job.body, job.token)

    def hold(self, session: Session | ClientSession, job: Job) -> None:
        """Reserve `job` for `session`."""
        self.take_out(job)
        self.steps += self.costs.granted
        self.last_token += 1
        job.token = self.last_token
        job.holder = session.key
        job.reserves += 1
        job.deadline_ms = self.now_ms + job.ttr_ms
        tube = job.tube
        tube.reserved += 1
        self.counts.reserved += 1
        session.add_reservation(job, self.jobs)
        self.timers.add((job.deadline_ms, Kind.TTR, job.id))
        if tube.policy is not None:
            policies.granted(self, tube)
        if self.policies.unique:
            policies.reserved(self, job)
        self.on_job_event(JobEventKind.RESERVED, job, session.key)

    def unreserve(self, job: Job) -> None:
        """End the reservation of `job`; the caller gives it its next state."""
        job.tube.reserved -= 1
        self.counts.reserved -= 1
        self.timers.remove((job.deadline_ms, Kind.TTR, job.id))
        holder = self.holder(job)
        if holder is not None:
            holder.remove_reservation(job)

    # -- timers -------------------------------------------------------------------------------

    def _fire_timers(self) -> None:
        timers, timer_steps = self.timers, self.costs.timer
        while self.steps < self.limit:
            timer = timers.least()
            if timer is None or timer[0] > self.now_ms:
                return
            self.steps += timer_steps
            self._fire(timer)

    def _fire(self, timer: Timer) -> None:
        """`timer` is still in its place: what takes a job, a pause or a wait away removes it."""
        _, kind, id = timer
        if kind is Kind.DELAY:
            job = self.jobs[cast(int, id)]
            self.take_out(job)
            self.make_ready(job, JobEventKind.DELAY_OVER, None)
        elif kind is Kind.TTR:
            job = self.jobs[cast(int, id)]
            job.timeouts += 1
            self.job_timeouts += 1
            self.unreserve(job)
            self.failed(job, 0, JobEventKind.TIMED_OUT, None)
        elif kind is Kind.PAUSE:
            tube = self.tubes[cast(str, id)]
            self.timers.remove(timer)
            tube.pause_ms = tube.pause_until_ms = 0
            self.match(tube)
        elif kind is Kind.ASK:
            _, number, ask = cast(tuple[int, int, int], id)
            clients.time_is_over(self, number, ask)
        elif kind is Kind.DETACHED:
            clients.end(self, self.clients.sessions[cast(int, id)])
        elif kind is Kind.RATE:
            policies.limit_is_over(self, self.tubes[cast(str, id)])
        elif kind is Kind.EXPIRE:
            policies.time_is_over(self, self.jobs[cast(int, id)])
        else:
            node, number, incarnation = cast(tuple[int, int, int], id)
            session = self.session(node, number)
            if session is None or session.incarnation != incarnation:
                self.timers.remove(timer)  # it is closed
                return
            first_ms = session.first_deadline_ms(self.jobs)
            soon_ms = 0 if first_ms is None else first_ms - DEADLINE_SOON_MS
            if kind is Kind.SOON and soon_ms != session.soon_ms:
                # what it held was touched or taken by its token meanwhile
                self.timers.remove(timer)
                self._warn_at(session, soon_ms)
                return
            self._end_wait(session)
            self._effects.answers.append((node, number, r.TimedOut() if kind is Kind.WAIT else r.DeadlineSoon()))

    # -- verbs --------------------------------------------------------------------------------

    def _put(self, session: Session, put: c.Put) -> r.Reply:
        if len(put.body) > self.settings.max_job_size:
            return r.JobTooBig()
        if self.space_is_scarce:
            return r.OutOfMemory()
        if self.access.is_on and not self.access.takes(session.login, 1, len(put.body), self.now_ms):
            return r.OverQuota()
        tube = self.tube(put.tube) if put.tube else session.used
        if tube.policy is not None and not policies.make_room(self, tube, 1, len(put.body)):
            return r.TubeFull()
        self.insert(tube, put, session.key)
        return r.Inserted(self.last_id)

    def put_many(
        self, session: Session | ClientSession, put: c.PutMany, unique: asks.Unique | None = None
    ) -> r.InsertedMany | r.KeyReused | r.NotFound | r.JobTooBig | r.OutOfMemory | r.TubeFull | r.OverQuota:
        key = self.access.own_key(session.login, put.key, self.now_ms)
        if key:
            before = self.keys.reply(key, put.fingerprint, self.now_ms)
            if before is not None:
                return before
        if put.only_topic and put.tube not in self.topics:
            return r.NotFound()
        if any(len(job.body) > self.settings.max_job_size for job in put.jobs):
            return r.JobTooBig()
        if self.space_is_scarce:
            return r.OutOfMemory()
        self.charge_to_batch(len(put.jobs) * self.costs.job)
        if self.access.is_on and not self.access.takes(session.login, len(put.jobs), sum(len(job.body) for job in put.jobs), self.now_ms):
            return r.OverQuota()
        first = self.last_id + 1
        if unique is not None and (other := policies.only_one(self, put.tube, unique.key)) is not None:
            if key:
                self.keys.remember(key, Used(self.now_ms, put.fingerprint, other.id, 1))
            return r.InsertedMany(other.id, 1, True)
        tube = self.tube(put.tube)
        if tube.policy is not None and not policies.make_room(self, tube, len(put.jobs), sum(len(job.body) for job in put.jobs)):
            return r.TubeFull()
        if unique is not None:
            self.insert(tube, put.jobs[0], session.key, unique)
        elif tube.waiters or tube.policy is not None or any(job.delay_ms > 0 for job in put.jobs):
            for job in put.jobs:
                self.insert(tube, job, session.key)
        else:
            self._insert_ready(tube, put.jobs, session)
        self.drop_if_unused(tube)  # there were none
        if key:
            self.keys.remember(key, Used(self.now_ms, put.fingerprint, first, len(put.jobs)))
        return r.InsertedMany(first, len(put.jobs), False)

    def _put_unique(self, session: Session, put: c.PutUnique) -> r.Reply:
        return self.put_many(session, c.PutMany(put.session, put.tube, [put.job], put.key, put.fingerprint), put.unique)

    def insert(self, tube: Tube, put: c.Put | c.NewJob, who: Key | None, unique: asks.Unique | None = None) -> None:
        id = self.last_id = self.last_id + 1
        ttr_ms = put.ttr_ms if put.ttr_ms > LEAST_TTR_MS else LEAST_TTR_MS
        job = Job(id, tube, put.pri, put.delay_ms, ttr_ms, put.body, self.now_ms)
        self.jobs.add(id, job)
        self.total_jobs += 1
        tube.total_jobs += 1
        tube.jobs += 1
        tube.bytes += len(put.body)
        if tube.policy is not None:
            policies.entered(self, job)
        if unique is not None:
            policies.make_only(self, job, unique)
        if put.delay_ms > 0:
            self.make_delayed(job, put.delay_ms, JobEventKind.PUT, who)
        else:
            self.make_ready(job, JobEventKind.PUT, who)

    def _insert_ready(self, tube: Tube, puts: list[c.NewJob], session: Session | ClientSession) -> None:
        """As `insert` of each, in half the time, if none has a delay and nobody waits for them."""
        now_ms, first, count = self.now_ms, self.last_id + 1, len(puts)
        jobs = [
            Job(id, tube, put.pri, put.delay_ms, put.ttr_ms if put.ttr_ms > LEAST_TTR_MS else LEAST_TTR_MS, put.body, now_ms)
            for id, put in enumerate(puts, first)
        ]
        self.last_id += count
        self.jobs.add_all(first, jobs)
        self.total_jobs += count
        tube.total_jobs += count
        tube.jobs += count
        tube.bytes += sum([len(put.body) for put in puts])
        places = [(put.pri, id) for id, put in enumerate(puts, first)]
        tube.ready.add_all(places)
        self.counts.ready += count
        urgent = sum(pri < URGENT_PRI for pri, _ in places)
        tube.urgent += urgent
        self.counts.urgent += urgent
        what, who, tell = JobEventKind.PUT, session.key, self.on_job_event
        for job in jobs:
            tell(what, job, who)

    def declare(self, session: Session | ClientSession, declare: c.Declare) -> r.Declared | r.OverQuota:
        is_new = declare.tube not in self.topics
        if is_new:
            owner = self.access.identity(session.login, self.now_ms) if self.access.is_on else ""
            if owner and not self.access.may_make(session.login, self.now_ms):
                return r.OverQuota()
            self.declare_for(declare.tube, owner)
            access.record(self, session, declare)
        self.tube(declare.tube).is_declared = True
        return r.Declared(is_new)

    def declare_for(self, name: str, owner: str) -> None:
        """The tube counts as one that `owner` has declared."""
        self.topics[name] = owner
        if owner:
            self.access.made[owner] += 1

    def undeclare(self, session: Session | ClientSession, undeclare: c.Undeclare) -> r.NotFound | r.NotEmpty | r.Deleted:
        if undeclare.tube not in self.topics:
            return r.NotFound()
        tube = self.tubes[undeclare.tube]
        if tube.jobs:
            return r.NotEmpty(tube.jobs)
        access.record(self, session, undeclare)
        owner = self.topics.pop(tube.name)
        if owner:
            self.access.made[owner] -= 1
        tube.is_declared = False
        self.drop_if_unused(tube)
        return r.Deleted()

    def set_policies(self, session: Session | ClientSession, set_policies: c.SetPolicies) -> r.PoliciesSet | r.PolicyRefused:
        reply = policies.set_all(self, set_policies.changes)
        if type(reply) is r.PoliciesSet:
            access.record(self, session, set_policies)
        return reply

    def _replay(self, session: Session, command: c.Replay) -> r.Replayed:
        return self.replay(session, command.what)

    def replay(self, session: Session | ClientSession, what: asks.Replay) -> r.Replayed:
        goes_on = what.after and (self.level < c.REPLAYS_LEVEL or access.was_recorded_last(self, session, what))
        if not goes_on:  # once for all steps
            access.record(self, session, what)
        return replay.step(self, session, what)

    def _of_schedule(self, session: Session, command: c.OfSchedule) -> r.ScheduleReply:
        return self.of_schedule(session, command.what)

    def of_schedule(self, session: Session | ClientSession, what: asks.OfSchedules) -> r.ScheduleReply:
        reply: r.ScheduleReply
        known = self.schedules.by_name.get(what.name)
        match what:
            case asks.SetSchedule(name=name, plan=plan, version=version):
                reply = self.schedules.set(name, plan, version)
            case asks.PauseSchedule(name=name, is_paused=is_paused):
                reply = self.schedules.pause(name, is_paused)
            case asks.RunSchedule(name=name):
                size = len(known.plan.job.body) if known is not None else 0
                is_over = self.access.is_on and not self.access.takes(session.login, 1, size, self.now_ms)
                reply = r.OverQuota() if is_over else schedules.run(self, name)
        is_something = known is not None or (isinstance(what, asks.SetSchedule) and what.plan is not None)
        if is_something and not isinstance(reply, r.NotFound | r.ScheduleRefused | r.TubeFull | r.OverQuota):
            access.record(self, session, what)
        return reply

    def _log_in(self, session: Session, command: c.LogIn) -> r.LoggedIn | r.NotAuthorized:
        return access.log_in(self, session, command.login)

    def _operate(self, session: Session, command: c.Operate) -> r.MayOperate:
        access.record(self, session, command)
        return r.MayOperate()

    def _change_access(self, session: Session, command: c.ChangeAccess) -> r.AccessChanged | r.AccessRefused:
        user = self.access.user_of(session.login, self.now_ms) or ""  # as he was called before
        reply = self.access.change(command.changes, self.now_ms, self.applied_index)
        if type(reply) is r.AccessChanged:
            access.record(self, session, command, user)
        return reply

    def error_of(self, job: Job) -> str:
        """Why the last attempt at it failed, "" if that was not said."""
        return self.clients.errors.get(job.id, "")

    def _put_back(self, session: Session, back: c.PutBack) -> r.Reply:
        if back.id in self.jobs or not 0 < back.id <= self.last_id:
            return r.NotFound()
        tube = self.tube(back.tube)
        self.policies.finished.forget(back.id)
        job = self.jobs[back.id] = Job(back.id, tube, back.pri, 0, max(back.ttr_ms, LEAST_TTR_MS), back.body, self.now_ms)
        tube.jobs += 1
        tube.bytes += len(back.body)
        if tube.policy is not None:
            policies.entered(self, job)
        self.make_ready(job, JobEventKind.PUT_BACK, session.key)
        return r.Inserted(back.id)

    def _use(self, session: Session, use: c.Use) -> r.Reply:
        tube = self.tube(use.tube)
        tube.using += 1
        session.used.using -= 1
        self.drop_if_unused(session.used)
        session.used = tube
        return r.Using(tube.name)

    def _watch(self, session: Session, watch: c.Watch) -> r.Reply:
        if watch.tube not in session.watched:
            if len(session.watched) >= WATCHED_TUBES:
                return r.OutOfMemory()
            tube = session.watched[watch.tube] = self.tube(watch.tube)
            if session.permitted is not None:
                session.permitted[1].append(tube)  # it would have been refused
            tube.watching += 1
            self.watches += 1
        return r.Watching(len(session.watched))

    def _ignore(self, session: Session, ignore: c.Ignore) -> r.Reply:
        tube = session.watched.get(ignore.tube)
        if tube is not None:
            if len(session.watched) == 1:
                return r.NotIgnored()
            del session.watched[ignore.tube]
            session.permitted = None
            tube.watching -= 1
            self.watches -= 1
            self.drop_if_unused(tube)
        return r.Watching(len(session.watched))

    def _reserve(self, session: Session, reserve: c.Reserve) -> r.Reply | None:
        best: tuple[int, int] | None = None
        self.charge_to_batch(len(session.watched) * self.costs.tube)
        watched: Iterable[Tube] = session.watched.values()
        if self.access.is_on:
            watched = access.permitted(self, session)
            if not watched:
                return r.NotAuthorized()
        for tube in watched:
            least = tube.ready.least()
            if least is not None and (best is None or least < best) and not self.is_held_back(tube):
                best = least
        if best is not None:
            return self._grant(session, self.jobs[best[1]])
        first_ms = session.first_deadline_ms(self.jobs)
        soon_ms = 0 if first_ms is None else first_ms - DEADLINE_SOON_MS
        if first_ms is not None and soon_ms <= self.now_ms:
            return r.DeadlineSoon()
        if reserve.timeout_ms == 0:
            return r.TimedOut()
        self.charge_to_batch(len(session.watched) * self.costs.tube)
        session.waiting = True
        self.gateways[session.key[0]].waiting += 1
        for tube in watched:
            tube.waiters[session] = None
        if reserve.timeout_ms is not None:
            session.wait_until_ms = self.now_ms + reserve.timeout_ms
            self.timers.add((session.wait_until_ms, Kind.WAIT, session.id))
        self._warn_at(session, soon_ms)
        return None

    def _warn_at(self, session: Session, soon_ms: int) -> None:
        session.soon_ms = soon_ms
        if soon_ms:
            self.timers.add((soon_ms, Kind.SOON, session.id))

    def _reserve_job(self, session: Session, reserve: c.ReserveJob) -> r.Reply:
        job = self.jobs.get(reserve.id)
        if job is None or job.state is State.RESERVED or not access.may(self, session, Right.WORK, job.tube):
            return r.NotFound()
        return self._grant(session, job)

    def delete(self, session: Session | ClientSession, delete: c.Delete, result: bytes = b"") -> r.Reply:
        job = self.jobs.get(delete.id)
        if job is None:
            return r.NotFound()
        tube = job.tube
        if job.state is State.RESERVED:
            if self.held_job(session, delete.id, delete.token) is None:
                return r.NotFound()
            self.unreserve(job)
            if tube.policy is not None:
                policies.done(self, job, result)
        elif delete.token or not access.may(self, session, Right.MANAGE, tube):
            return r.NotFound()  # that reservation is over, or the job is not there for this session
        else:
            self.take_out(job)
        self.remove(job)
        tube.cmd_delete += 1
        self.on_job_event(JobEventKind.DELETED, job, session.key)
        if tube.policy is not None:
            self._left(tube)
        self.drop_if_unused(tube)
        return r.Deleted()

    def release(self, session: Session | ClientSession, release: c.Release) -> r.Reply:
        job = self.held_job(session, release.id, release.token)
        if job is None:
            return r.NotFound()
        self.unreserve(job)
        job.pri = job.pri if release.pri is None else release.pri
        job.delay_ms = release.delay_ms
        job.releases += 1
        self._back(job, release.delay_ms, JobEventKind.RELEASED, session.key)
        return r.Released()

    def bury(self, session: Session | ClientSession, bury: c.Bury) -> r.Reply:
        job = self.held_job(session, bury.id, bury.token)
        if job is None:
            return r.NotFound()
        self.unreserve(job)
        job.pri = job.pri if bury.pri is None else bury.pri
        job.buries += 1
        self.make_buried(job, JobEventKind.BURIED, session.key)
        return r.Buried()

    def touch(self, session: Session | ClientSession, touch: c.Touch) -> r.Reply:
        job = self.held_job(session, touch.id, touch.token)
        if job is None:
            return r.NotFound()
        before_ms, job.deadline_ms = job.deadline_ms, self.now_ms + job.ttr_ms
        if job.deadline_ms != before_ms:
            self.timers.remove((before_ms, Kind.TTR, job.id))
            self.timers.add((job.deadline_ms, Kind.TTR, job.id))
            holder = self.holder(job)
            if holder is not None:
                holder.deadline_moved(job, before_ms)
        self.on_job_event(JobEventKind.TOUCHED, job, session.key)
        return r.Touched()

    def _kick(self, session: Session, kick: c.Kick) -> r.Reply:
        return self.kick_tube(session.used, kick.count, session)

    def kick_tube(self, tube: Tube, most: int, session: Session | ClientSession) -> r.Kicked:
        """Up to `most` jobs, as far as the budget goes, but one at least if there is any."""
        queue = tube.buried or tube.delayed
        count, most = 0, min(most, KICKED_JOBS)
        while count < most and (least := queue.least()) is not None:
            if count == 0:
                self.limit += self.costs.kicked  # one at least: 0 would say that there are none
            elif self.steps >= self.limit and self.costs.kicked:
                break
            self._kick_one(self.jobs[least[1]], session)
            count += 1
        return r.Kicked(count)

    def kick_job(self, session: Session | ClientSession, kick: c.KickJob) -> r.Reply:
        job = self.jobs.get(kick.id)
        if job is None or job.state not in (State.BURIED, State.DELAYED) or not access.may(self, session, Right.MANAGE, job.tube):
            return r.NotFound()
        self._kick_one(job, session)
        return r.Kicked(None)

    def _kick_one(self, job: Job, session: Session | ClientSession) -> None:
        self.steps += self.costs.kicked
        self.take_out(job)
        job.kicks += 1
        if job.tube.policy is not None or job.id in self.policies.marks:
            policies.kicked(self, job)
        self.make_ready(job, JobEventKind.KICKED, session.key)

    def pause_tube(self, session: Session | ClientSession, pause: c.PauseTube) -> r.NotFound | r.Paused:
        tube = self.tubes.get(pause.tube)
        if tube is None:
            return r.NotFound()
        access.record(self, session, pause)
        tube.cmd_pause_tube += 1
        if tube.pause_until_ms:
            self.timers.remove((tube.pause_until_ms, Kind.PAUSE, tube.name))
        tube.pause_ms = pause.pause_ms
        tube.pause_until_ms = self.now_ms + pause.pause_ms if pause.pause_ms else 0
        if pause.pause_ms:
            self.timers.add((tube.pause_until_ms, Kind.PAUSE, tube.name))
        else:
            self.match(tube)
        return r.Paused()

    def dissolve(self) -> Iterator[None]:
        """Let go of everything, a bounded part each time: another state has taken the place of this one."""
        yield from self.jobs.dissolve()
        yield from self.timers.dissolve()
        yield from clients.dissolve(self.clients, _FREED_PER_SLICE)
        self.closed.clear()
        sessions = [row.sessions for row in self.gateways.values()]
        while self.closing or any(sessions):  # each has its watch list, and the tubes have it
            for table in sessions:
                for _ in range(min(_FREED_PER_SLICE, len(table))):
                    _forget_watching(table.popitem()[1])
            for _ in range(min(_FREED_PER_SLICE, len(self.closing))):
                session = self.closing.pop()
                if type(session) is Session:
                    _forget_watching(session)
            yield
        while self.tubes:
            for _ in range(min(_FREED_PER_SLICE, len(self.tubes))):
                _, tube = self.tubes.popitem()
                for queue in (tube.ready, tube.delayed, tube.buried):
                    yield from queue.dissolve()
            yield
        while self.policies.marks:
            for _ in range(min(_FREED_PER_SLICE, len(self.policies.marks))):
                self.policies.marks.popitem()
            yield
        while self.policies.unique:
            for _ in range(min(_FREED_PER_SLICE, len(self.policies.unique))):
                self.policies.unique.popitem()
            yield
        while self.policies.finished.jobs:
            for _ in range(min(_FREED_PER_SLICE, len(self.policies.finished.jobs))):
                self.policies.finished.jobs.popitem()
            yield
        while self.keys.used:
            for _ in range(min(_FREED_PER_SLICE, len(self.keys.used))):
                self.keys.used.popitem()
            yield

    # -- comparing nodes ----------------------------------------------------------------------

    def digest(self) -> str:
        """A hash of the whole state: equal on every node that has applied the same entries (I12). Only the simulator and tests ask for it:
        what it covers may change."""
        tubes = [
            (
                tube.name,
                [list(tube.ready), list(tube.delayed), [id for _, id in tube.buried]],
                [waiter.id for waiter in tube.waiters],
                [tube.urgent, tube.reserved, tube.jobs, tube.using, tube.watching],
                [tube.pause_ms, tube.pause_until_ms, tube.total_jobs, tube.cmd_delete, tube.cmd_pause_tube],
                [tube.bytes, tube.policy, tube.version, tube.next_us, tube.limited_until_ms],
            )
            for tube in self.tubes.values()
        ]
        rows = [
            [
                (row.node, row.incarnation, row.is_open, row.seq, row.waiting),
                [_describe(session) for session in row.sessions.values()],
                sorted((number, session.number) for number, session in row.attached.items()),
            ]
            for _, row in sorted(self.gateways.items())
        ]
        state = [
            [self.applied_index, self.now_ms, self.settings, self.settings_index, self.space_is_scarce, self.level],
            [self.last_id, self.last_token, self.total_jobs, self.job_timeouts],
            [_describe_job(job) for _, job in sorted(self.jobs.items())],
            tubes,
            list(self.topics.items()),
            list(self.keys.used.items()),
            rows,
            [_describe_closing(session) for session in self.closing],
            clients.describe(self.clients),
            policies.describe(self.policies),
            schedules.describe(self.schedules),
            access.describe(self.access),
            list(self.unmatched),
            list(self.timers),
            sorted(self.directories.items()),
        ]
        return sha256(msgspec.msgpack.encode(state)).hexdigest()


def _forget_watching(session: Session) -> None:
    for tube in session.watched.values():
        tube.waiters.pop(session, None)  # they refer to each other
    session.watched = {}


def _describe_job(job: Job) -> list[object]:
    fields = msgspec.structs.asdict(job)
    fields["tube"] = job.tube.name
    if not job.has_deadline:
        fields["deadline_ms"] = job.burial if job.state is State.BURIED else 0  # it means nothing, or only the order counts
    return list(fields.values())


def _describe_closing(session: Session | ClientSession) -> list[object]:
    if type(session) is Session and session.watched:
        return _describe(session)
    return [session.key, session.releases, list(session.reserved)]


def _describe(session: Session) -> list[object]:
    waits = [session.waiting] if session.is_closed else [session.waiting, session.wait_until_ms, session.soon_ms]
    return [session.id, session.used.name, list(session.watched), list(session.reserved), waits, session.login]


#: The only command of a session that does not say who it is.
_LOG_IN = "_log_in"
#: Names, not methods of a machine: a machine in a cycle with itself would not go when it is replaced.
_VERBS: dict[type, str] = {
    c.Put: "_put",
    c.Use: "_use",
    c.Watch: "_watch",
    c.Ignore: "_ignore",
    c.Reserve: "_reserve",
    c.ReserveJob: "_reserve_job",
    c.Delete: "delete",
    c.Release: "release",
    c.Bury: "bury",
    c.Touch: "touch",
    c.Kick: "_kick",
    c.KickJob: "kick_job",
    c.PauseTube: "pause_tube",
    c.Declare: "declare",
    c.PutBack: "_put_back",
    c.PutMany: "put_many",
    c.Undeclare: "undeclare",
    c.SetPolicies: "set_policies",
    c.PutUnique: "_put_unique",
    c.Replay: "_replay",
    c.OfSchedule: "_of_schedule",
    c.LogIn: _LOG_IN,
    c.Operate: "_operate",
    c.ChangeAccess: "_change_access",
}

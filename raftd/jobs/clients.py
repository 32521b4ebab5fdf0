"""Sessions of clients that outlive connections: a part of the state machine, in a module of its own.

A session is named by a token that its client chose. One connection at a time speaks for it; a newer one takes it over. Each ask has
an id, greater than those before it, and takes effect once: its answer is kept until the client says that it has it, so an ask that
comes again over another connection gets the same answer. When no connection speaks for the session, its waits give it nothing, its
reservations stay, and after the session timeout it ends.

              Attach                connection lost, gateway closed
        new ─────────▶ attached ─────────────────────────────────▶ detached ──── timeout ──▶ ended
                         ▲   │                                        │                        ▲
                         │   └─────────────── End ────────────────────┼────────────────────────┘
                         └──────────────────── Attach ────────────────┘
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from raftd.jobs import access, asks
from raftd.jobs import commands as c
from raftd.jobs import replies as r
from raftd.jobs.budget import Costs
from raftd.jobs.model import ClientSession, Gateway, Job, JobEventKind, Session, State, Tube, Wait
from raftd.jobs.rights import Right
from raftd.jobs.schedules import Schedules
from raftd.jobs.timers import Kind, Timers
from raftd.limits import (
    ASKED_TUBES,
    CREDIT,
    ERROR_CHARACTERS,
    GIVEN_BYTES,
    SUBSCRIPTIONS,
    UNCONFIRMED_ANSWERS,
    WAITING_RESERVES,
)


class StateMachine(Protocol):
    """What of it this part needs: see there."""

    now_ms: int
    settings: c.Settings
    steps: int
    limit: int
    costs: Costs
    watches: int
    tubes: dict[str, Tube]
    gateways: dict[int, Gateway]
    timers: Timers
    closing: deque[Session | ClientSession]
    clients: Clients
    access: access.Access
    applied_index: int
    level: int
    schedules: Schedules

    @property
    def jobs(self) -> Mapping[int, Job]: ...

    def tell(self, session: ClientSession, reply: r.Reply) -> None: ...

    def charge_to_batch(self, steps: int) -> None: ...

    def tube(self, name: str) -> Tube: ...

    def is_held_back(self, tube: Tube) -> bool: ...

    def match(self, tube: Tube) -> None: ...

    def drop_if_unused(self, tube: Tube) -> None: ...

    def hold(self, session: ClientSession, job: Job) -> None: ...

    def held_job(self, session: ClientSession, id: int, token: int) -> Job | None: ...

    def unreserve(self, job: Job) -> None: ...

    def bury(self, session: ClientSession, bury: c.Bury) -> r.Reply: ...

    def failed(self, job: Job, delay_ms: int, what: JobEventKind, who: tuple[int, int] | None) -> None: ...

    def attempts(self, job: Job) -> int: ...

    def put_many(self, session: ClientSession, put: c.PutMany, unique: asks.Unique | None) -> r.AskReply: ...

    def delete(self, session: ClientSession, delete: c.Delete, result: bytes) -> r.Reply: ...

    def kick_tube(self, tube: Tube, most: int, session: ClientSession) -> r.Kicked: ...

    def kick_job(self, session: ClientSession, kick: c.KickJob) -> r.Reply: ...

    def pause_tube(self, session: ClientSession, pause: c.PauseTube) -> r.AskReply: ...

    def declare(self, session: ClientSession, declare: c.Declare) -> r.AskReply: ...

    def undeclare(self, session: ClientSession, undeclare: c.Undeclare) -> r.AskReply: ...

    def set_policies(self, session: ClientSession, set_policies: c.SetPolicies) -> r.AskReply: ...


class Clients:
    """All sessions of clients."""

    def __init__(self) -> None:
        self.sessions: dict[int, ClientSession] = {}  # by number, in order of making
        self.by_token: dict[bytes, ClientSession] = {}
        #: Those whose connection is gone, and that still wait as if it were not; in this order.
        self.detaching: dict[int, ClientSession] = {}
        self.last_number = 0
        #: Why attempts at jobs have failed, the last of each.
        self.errors: dict[int, str] = {}

    def add(self, session: ClientSession) -> None:
        self.sessions[session.number] = session
        self.by_token[session.token] = session


# -- connections --------------------------------------------------------------------------------


def attach(machine: StateMachine, row: Gateway, command: c.Attach | c.AttachAs) -> r.Attached | r.NotAuthorized:
    """The connection speaks for the session from now on."""
    clients, number, owner = machine.clients, command.session, ""
    login = command.login if type(command) is c.AttachAs else None
    if machine.access.is_on:
        owner = machine.access.identity(login, machine.now_ms)
        known = clients.by_token.get(command.token)
        if not owner or (known is not None and known.owner not in ("", owner)):
            return r.NotAuthorized()
    if number in row.attached:
        detach(machine, row, number)
    session = clients.by_token.get(command.token)
    if session is None:
        clients.last_number += 1
        session = ClientSession(clients.last_number, command.token)
        clients.add(session)
    elif session.attached_to is not None:
        node, older = session.attached_to
        del machine.gateways[node].attached[older]
        machine.tell(session, r.TakenOver())
        _suspend(machine, session)
    elif clients.detaching.pop(session.number, None) is not None:
        _suspend(machine, session)
    else:
        machine.timers.remove((session.until_ms, Kind.DETACHED, session.number))
        session.until_ms = 0
    session.epoch += 1
    session.login, session.owner = login, owner or session.owner
    session.attached_to = (row.node, number)
    row.attached[number] = session
    return r.Attached(session.number, session.epoch, session.last_id)


def detach(machine: StateMachine, row: Gateway, number: int) -> None:
    """The connection is gone. Nothing if another has taken its session over."""
    session = row.attached.pop(number, None)
    if session is not None:
        session.attached_to = None
        machine.clients.detaching[session.number] = session


def detach_all(machine: StateMachine, row: Gateway) -> None:
    """The gateway is closed."""
    for number in sorted(row.attached):  # in the same order on a node that has loaded a snapshot
        detach(machine, row, number)


def suspend_detached(machine: StateMachine) -> None:
    """Sessions without a connection wait for nothing from now on, as far as the budget goes."""
    detaching, costs = machine.clients.detaching, machine.costs
    while detaching and machine.steps < machine.limit:
        session = detaching.pop(next(iter(detaching)))
        machine.steps += costs.closed
        _suspend(machine, session)
        session.until_ms = machine.now_ms + machine.settings.session_timeout_ms
        machine.timers.add((session.until_ms, Kind.DETACHED, session.number))


def _suspend(machine: StateMachine, session: ClientSession) -> None:
    machine.steps += session.watching * machine.costs.tube
    for wait in session.waits.values():
        if not wait.is_suspended:
            wait.is_suspended = True
            _leave_queues(wait)


def end(machine: StateMachine, session: ClientSession) -> None:
    """Its waits are over, and what it holds is given back."""
    clients = machine.clients
    machine.steps += session.watching * machine.costs.tube
    for wait in list(session.waits.values()):
        _close_wait(machine, wait)
    if session.attached_to is not None:
        node, number = session.attached_to
        del machine.gateways[node].attached[number]
        session.attached_to = None
    if session.until_ms:
        machine.timers.remove((session.until_ms, Kind.DETACHED, session.number))
    clients.detaching.pop(session.number, None)
    del clients.sessions[session.number]
    del clients.by_token[session.token]
    session.is_closed = True
    machine.closing.append(session)


# -- asks ---------------------------------------------------------------------------------------


def ask(machine: StateMachine, row: Gateway, command: c.Ask) -> None:
    """Apply an ask once, and answer it. Nothing if the connection does not speak for the session any more."""
    session = row.attached.get(command.session)
    if session is None:
        return
    id, what = command.id, command.what
    if not isinstance(what, asks.Flow | asks.Cancel | asks.End | asks.Replay):  # their gateway counted the most: they charge what they do
        machine.charge_to_batch(machine.costs.of_ask(what))
    session.confirm(command.answered, command.waiting)
    reply: r.AskReply | None = access.refusal(machine, session, what) if machine.access.is_on else None
    if id <= session.last_id:
        if reply is None:
            _ask_again(machine, session, id)
        else:
            _answer(machine, session, id, reply)
        return
    session.last_id = id
    if session.unconfirmed >= UNCONFIRMED_ANSWERS:
        _answer(machine, session, id, r.TooMany())
        return
    if type(what) is asks.End:
        _answer(machine, session, id, r.Ended())
        session.releases = True
        if what.keeps_jobs:
            session.give_to_tokens()
        end(machine, session)
        return
    if reply is None:
        reply = _DO[type(what)](machine, session, id, what)
    if reply is None:
        return
    session.answers[id] = [(job.id, job.token) for job in reply.jobs] if type(reply) is r.Jobs else reply
    _answer(machine, session, id, reply)
    if isinstance(what, asks.Subscribe | asks.Flow):
        wait = session.waits.get(what.subscription if isinstance(what, asks.Flow) else id)
        if wait is not None and wait.is_subscription:
            _serve_at_once(machine, wait)


def _ask_again(machine: StateMachine, session: ClientSession, id: int) -> None:
    """It was applied before: its answer is given again, or its wait goes on."""
    wait = session.waits.get(id)
    if wait is not None and not wait.is_subscription:
        if wait.is_suspended:
            wait.is_suspended = False
            _join_queues(wait)
            _serve_at_once(machine, wait)
        return
    kept = session.answers.get(id)
    if kept is None:
        kept = session.late_answers.get(id)
    if kept is None:
        _answer(machine, session, id, r.TooMany())  # the client has confirmed the answer, or was refused
    else:
        _answer(machine, session, id, r.Jobs(_still_held(machine, session, kept)) if isinstance(kept, list) else kept)


def _answer(machine: StateMachine, session: ClientSession, id: int, reply: r.AskReply) -> None:
    machine.tell(session, r.ToAsk(id, reply))


def _given(machine: StateMachine, job: Job) -> r.Job:
    return r.Job(job.id, job.token, job.tube.name, job.body, job.pri, job.ttr_ms, machine.attempts(job))


def _still_held(machine: StateMachine, session: ClientSession, jobs: Iterable[tuple[int, int]]) -> list[r.Job]:
    """Those of `jobs`, (id, token), whose reservation has not ended, and that the session may hold still."""
    found = ((machine.jobs.get(id), token) for id, token in jobs)
    held = [job for job, token in found if job is not None and job.state is State.RESERVED and job.token == token]
    return [_given(machine, job) for job in held if access.may(machine, session, Right.WORK, job.tube)]


# -- waiting ------------------------------------------------------------------------------------


def _reserve(machine: StateMachine, session: ClientSession, id: int, what: asks.Reserve) -> r.AskReply | None:
    given: list[r.Job] = []
    size = 0
    while len(given) < what.count and size < GIVEN_BYTES:
        best: tuple[int, int] | None = None
        for name in what.tubes:
            tube = machine.tubes.get(name)
            if tube is not None:
                least = tube.ready.least()
                if least is not None and (best is None or least < best) and not machine.is_held_back(tube):
                    best = least
        if best is None:
            break
        job = machine.jobs[best[1]]
        machine.hold(session, job)
        given.append(_given(machine, job))
        size += len(job.body)
    if given or what.timeout_ms == 0:
        return r.Jobs(given)
    if sum(not wait.is_subscription for wait in session.waits.values()) >= WAITING_RESERVES:
        return r.TooMany()
    wait = _open_wait(machine, session, id, what.tubes, 1, is_subscription=False)
    if wait is None:
        return r.TooMany()
    if what.timeout_ms is not None:
        wait.until_ms = machine.now_ms + what.timeout_ms
        machine.timers.add((wait.until_ms, Kind.ASK, wait.id))
    return None


def _subscribe(machine: StateMachine, session: ClientSession, id: int, what: asks.Subscribe) -> r.AskReply:
    if what.credit > CREDIT or sum(wait.is_subscription for wait in session.waits.values()) >= SUBSCRIPTIONS:
        return r.TooMany()
    wait = _open_wait(machine, session, id, what.tubes, what.credit, is_subscription=True)
    return r.Subscribed() if wait is not None else r.TooMany()


def _flow(machine: StateMachine, session: ClientSession, id: int, what: asks.Flow) -> r.AskReply:
    wait = session.waits.get(what.subscription)
    if wait is None or not wait.is_subscription:
        return r.NotFound()
    unconfirmed = wait.unconfirmed
    while unconfirmed and wait.pushed - len(unconfirmed) < what.received:
        wait.unconfirmed_bytes -= unconfirmed.popleft()[2]
    machine.charge_to_batch(len(wait.tubes) * machine.costs.tube)
    if wait.credit + what.credit > CREDIT:
        return r.TooMany()
    wait.credit += what.credit
    return r.Flowing()


def _serve_at_once(machine: StateMachine, wait: Wait) -> None:
    """What was pushed before a connection was lost, then what is ready."""
    session = wait.session
    if wait.is_suspended:
        wait.is_suspended = False
        pushed, wait.unconfirmed = wait.unconfirmed, deque()
        wait.unconfirmed_bytes = 0
        for number, (id, token, size) in enumerate(pushed, wait.pushed - len(pushed) + 1):
            held = _still_held(machine, session, [(id, token)]) if token else []
            for job in held:
                _answer(machine, session, wait.ask, r.Pushed(number, job))
            if not held and token:
                wait.credit += 1  # the client will never hear of it, and not give that back
            wait.unconfirmed.append((id, token, size) if held else (id, 0, 0))
            wait.unconfirmed_bytes += size if held else 0
    if wait.takes_jobs:
        _join_queues(wait)
        for tube in wait.tubes:
            if len(tube.ready):
                machine.match(tube)


def serve(machine: StateMachine, tube: Tube, wait: Wait, job: Job) -> None:
    """`wait` is the first in the queue of `tube`, and `job` the most urgent: give it, unless nobody is there."""
    session = wait.session
    if session.attached_to is None:
        _suspend(machine, session)
        return
    if not access.may(machine, session, Right.WORK, tube):  # it had the right when it began to wait
        machine.steps += machine.costs.granted + len(wait.tubes) * machine.costs.tube
        _close_wait(machine, wait)
        if not wait.is_subscription:
            session.late_answers[wait.ask] = []
        _answer(machine, session, wait.ask, r.NotAuthorized())
        return
    machine.hold(session, job)
    if not wait.is_subscription:
        _close_wait(machine, wait)
        session.late_answers[wait.ask] = [(job.id, job.token)]
        _answer(machine, session, wait.ask, r.Jobs([_given(machine, job)]))
        return
    wait.credit -= 1
    wait.pushed += 1
    wait.unconfirmed.append((job.id, job.token, len(job.body)))
    wait.unconfirmed_bytes += len(job.body)
    if wait.takes_jobs:
        tube.waiters.move_to_end(wait)
    else:
        machine.steps += len(wait.tubes) * machine.costs.tube
        _leave_queues(wait)
    _answer(machine, session, wait.ask, r.Pushed(wait.pushed, _given(machine, job)))


def time_is_over(machine: StateMachine, number: int, id: int) -> None:
    """A reserve has waited for its whole timeout."""
    wait = machine.clients.sessions[number].waits[id]
    machine.steps += len(wait.tubes) * machine.costs.tube
    _end_reserve(machine, wait)


def _end_reserve(machine: StateMachine, wait: Wait) -> None:
    _close_wait(machine, wait)
    wait.session.late_answers[wait.ask] = []
    if not wait.is_suspended:  # else it will be asked again, and must not be answered twice
        _answer(machine, wait.session, wait.ask, r.Jobs([]))


def _cancel(machine: StateMachine, session: ClientSession, id: int, what: asks.Cancel) -> r.AskReply:
    wait = session.waits.get(what.ask)
    if wait is None:
        return r.NotFound()
    machine.charge_to_batch(len(wait.tubes) * machine.costs.tube)
    if not wait.is_subscription:
        _end_reserve(machine, wait)
        return r.Jobs([])
    _close_wait(machine, wait)
    return r.Jobs(_still_held(machine, session, [(job, token) for job, token, _ in wait.unconfirmed]))


def _open_wait(machine: StateMachine, session: ClientSession, id: int, names: list[str], credit: int, is_subscription: bool) -> Wait | None:
    names = list(dict.fromkeys(names))
    if session.watching + len(names) > ASKED_TUBES:
        return None
    tubes = [machine.tube(name) for name in names]
    wait = session.waits[id] = Wait(session, id, tubes, credit, is_subscription)
    count_watching(machine, wait)
    if not is_subscription:
        _join_queues(wait)
    return wait


def count_watching(machine: StateMachine, wait: Wait) -> None:
    """Its tubes are watched once more."""
    wait.session.watching += len(wait.tubes)
    machine.watches += len(wait.tubes)
    for tube in wait.tubes:
        tube.watching += 1


def _close_wait(machine: StateMachine, wait: Wait) -> None:
    session = wait.session
    del session.waits[wait.ask]
    _leave_queues(wait)
    if wait.until_ms:
        machine.timers.remove((wait.until_ms, Kind.ASK, wait.id))
    session.watching -= len(wait.tubes)
    machine.watches -= len(wait.tubes)
    for tube in wait.tubes:
        tube.watching -= 1
        machine.drop_if_unused(tube)


def _join_queues(wait: Wait) -> None:
    for tube in wait.tubes:
        tube.waiters[wait] = None


def _leave_queues(wait: Wait) -> None:
    for tube in wait.tubes:
        tube.waiters.pop(wait, None)


# -- jobs ---------------------------------------------------------------------------------------


def _put(machine: StateMachine, session: ClientSession, id: int, what: asks.Put) -> r.AskReply:
    return machine.put_many(session, c.PutMany(session.number, what.tube, what.jobs, what.key, what.fingerprint), what.unique)


def _each(make: Callable[[Any, int, int], c.Command], verb: str) -> Callable[[StateMachine, ClientSession, int, Any], r.AskReply]:
    """One command after the other, about each of the jobs. `make` gets the ask, a job, and its token."""

    def do(machine: StateMachine, session: ClientSession, id: int, what: Any) -> r.AskReply:
        run = getattr(machine, verb)
        missed = [job for job, token in what.jobs if type(run(session, make(what, job, token))) is r.NotFound]
        return r.Missed(missed)

    return do


def _delete(machine: StateMachine, session: ClientSession, id: int, what: asks.Delete) -> r.AskReply:
    found = [(job, machine.delete(session, c.Delete(0, job, token), what.result)) for job, token in what.jobs]
    return r.Missed([job for job, reply in found if type(reply) is r.NotFound])


def _fail(machine: StateMachine, session: ClientSession, id: int, what: asks.Fail) -> r.AskReply:
    missed = []
    for number, token in what.jobs:
        job = machine.held_job(session, number, token)
        if job is None:
            missed.append(number)
            continue
        machine.unreserve(job)
        policy = job.tube.policy
        delay_ms = 0 if what.unless_backoff and policy is not None and policy.backoff_ms else what.delay_ms
        job.delay_ms = delay_ms
        _keep_error(machine, number, what.error)
        machine.failed(job, delay_ms, JobEventKind.FAILED, session.key)
    return r.Missed(missed)


def _bury(machine: StateMachine, session: ClientSession, id: int, what: asks.Bury) -> r.AskReply:
    missed = []
    for number, token in what.jobs:
        if type(machine.bury(session, c.Bury(0, number, what.pri, token))) is r.NotFound:
            missed.append(number)
        else:
            _keep_error(machine, number, what.error)
    return r.Missed(missed)


def _keep_error(machine: StateMachine, job: int, error: str) -> None:
    if error:
        machine.clients.errors[job] = error[:ERROR_CHARACTERS]


def _kick(machine: StateMachine, session: ClientSession, id: int, what: asks.Kick) -> r.AskReply:
    tube = machine.tubes.get(what.tube)
    return machine.kick_tube(tube, what.count, session) if tube is not None else r.Kicked(0)


def _kick_jobs(machine: StateMachine, session: ClientSession, id: int, what: asks.KickJobs) -> r.AskReply:
    missed = [job for job in what.jobs if type(machine.kick_job(session, c.KickJob(session.number, job))) is r.NotFound]
    return r.Missed(missed)


def _pause(machine: StateMachine, session: ClientSession, id: int, what: asks.Pause) -> r.AskReply:
    return machine.pause_tube(session, c.PauseTube(session.number, what.tube, what.pause_ms))


def _declare(machine: StateMachine, session: ClientSession, id: int, what: asks.Declare) -> r.AskReply:
    return machine.declare(session, c.Declare(session.number, what.tube))


def _undeclare(machine: StateMachine, session: ClientSession, id: int, what: asks.Undeclare) -> r.AskReply:
    return machine.undeclare(session, c.Undeclare(session.number, what.tube))


def _set_policies(machine: StateMachine, session: ClientSession, id: int, what: asks.SetPolicies) -> r.AskReply:
    return machine.set_policies(session, c.SetPolicies(session.number, what.changes))


def _replay(machine: Any, session: ClientSession, id: int, what: asks.Replay) -> r.AskReply:
    reply: r.Replayed = machine.replay(session, what)
    return reply


def _of_schedule(machine: Any, session: ClientSession, id: int, what: Any) -> r.AskReply:
    reply: r.ScheduleReply = machine.of_schedule(session, what)
    return reply


_DO: dict[type, Callable[[Any, ClientSession, int, Any], r.AskReply | None]] = {
    asks.Put: _put,
    asks.Reserve: _reserve,
    asks.Subscribe: _subscribe,
    asks.Flow: _flow,
    asks.Cancel: _cancel,
    asks.Delete: _delete,
    asks.Release: _each(lambda what, job, token: c.Release(0, job, what.pri, what.delay_ms, token), "release"),
    asks.Fail: _fail,
    asks.Bury: _bury,
    asks.Touch: _each(lambda what, job, token: c.Touch(0, job, token), "touch"),
    asks.Kick: _kick,
    asks.KickJobs: _kick_jobs,
    asks.Pause: _pause,
    asks.Declare: _declare,
    asks.Undeclare: _undeclare,
    asks.SetPolicies: _set_policies,
    asks.Replay: _replay,
    asks.SetSchedule: _of_schedule,
    asks.PauseSchedule: _of_schedule,
    asks.RunSchedule: _of_schedule,
}


# -- the whole state ----------------------------------------------------------------------------


def dissolve(clients: Clients, most: int) -> Iterator[None]:
    """Let go of all sessions, `most` each time: they and the tubes refer to each other."""
    clients.by_token.clear()
    clients.detaching.clear()
    while clients.sessions:
        for _ in range(min(most, len(clients.sessions))):
            _, session = clients.sessions.popitem()
            for wait in session.waits.values():
                _leave_queues(wait)
            session.waits = {}
        yield


def describe(clients: Clients) -> list[object]:
    """For the digest."""
    sessions = [
        [
            session.key,
            session.token,
            [session.epoch, session.attached_to, session.until_ms, session.last_id, session.watching, session.login, session.owner],
            list(session.answers.items()),
            sorted(session.late_answers.items()),
            [_describe_wait(wait) for _, wait in sorted(session.waits.items())],
            list(session.reserved),
        ]
        for session in clients.sessions.values()
    ]
    return [clients.last_number, sessions, list(clients.detaching), sorted(clients.errors.items())]


def _describe_wait(wait: Wait) -> list[object]:
    pushed = [wait.credit, wait.pushed, list(wait.unconfirmed), wait.unconfirmed_bytes]
    return [wait.ask, [tube.name for tube in wait.tubes], wait.is_subscription, wait.is_suspended, wait.until_ms, pushed]

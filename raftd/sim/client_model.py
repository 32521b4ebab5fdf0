"""The sessions of clients once more, as plainly as it can be said: the part of the model (`model.py`) that knows them.

A session is a dict: its number, token, epoch, where it is attached, until when it is kept without that, the last ask, answers by ask
(those of reserves that had waited in `late`), and its waits.
"""

from __future__ import annotations

from typing import Any

from raftd.sim import policy_model as policies
from raftd.sim import schedule_model as schedules

# Tags of asks and of their replies, as docs/protocol.md numbers them.
PUT, RESERVE, SUBSCRIBE, FLOW, CANCEL, DELETE, RELEASE, FAIL, BURY, TOUCH = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
KICK, KICK_JOBS, PAUSE, DECLARE, UNDECLARE, END, SET_POLICIES, REPLAY = 11, 12, 13, 14, 15, 16, 17, 18
NOT_FOUND, KICKED, ATTACHED, TAKEN_OVER, JOBS, SUBSCRIBED, PUSHED = 10, 13, 21, 22, 23, 24, 25
MISSED, TOO_MANY, FLOWING, ENDED, TO_ASK = 26, 27, 28, 29, 30
ASK = 22

_MOST_ANSWERS = 1_024
_MOST_WAITING = 128
_MOST_SUBSCRIPTIONS = 16
_MOST_CREDIT = 1_000
_MOST_TUBES = 256
_MOST_BYTES = 1 << 20
_MOST_ERROR = 1_024

Model = Any  # it knows this module
Session = dict[str, Any]
Wait = dict[str, Any]


def attach(model: Model, node: int, number: int, token: bytes) -> None:
    """A connection speaks for a session from now on."""
    here = attached(model, node, number)
    if here is not None:
        detach(model, here)
    session = next((one for one in model.clients.values() if one["token"] == token), None)
    if session is None:
        model.last_client += 1
        session = {"number": model.last_client, "token": token, "epoch": 0, "last": 0, "answers": {}, "late": {}, "waits": []}
        model.clients[model.last_client] = session
    elif session["at"] is not None:
        _tell(model, session, [TAKEN_OVER], ["attach"])
        _suspend(model, session)
    elif session["number"] in model.detaching:
        model.detaching.remove(session["number"])
        _suspend(model, session)
    session |= {"at": (node, number), "until": None, "epoch": session["epoch"] + 1}
    _tell(model, session, [ATTACHED, session["number"], session["epoch"], session["last"]], ["attach"])


def attached(model: Model, node: int, number: int) -> Session | None:
    found: list[Session] = [one for one in model.clients.values() if one["at"] == (node, number)]
    return found[0] if found else None


def detach(model: Model, session: Session) -> None:
    session["at"] = None
    model.detaching.append(session["number"])


def suspend_detached(model: Model) -> None:
    while model.detaching and model.left > 0:
        session = model.clients[model.detaching.pop(0)]
        model.spend(model.cost["closed"])
        _suspend(model, session)
        session["until"] = model.now_ms + model.session_timeout_ms


def _suspend(model: Model, session: Session) -> None:
    model.spend(watching(session) * model.cost["tube"])
    for wait in session["waits"]:
        wait |= {"suspended": True, "orders": {}}


def watching(session: Session) -> int:
    return sum(len(wait["tubes"]) for wait in session["waits"])


def end(model: Model, session: Session, releases: bool = False) -> None:
    model.spend(watching(session) * model.cost["tube"])
    number = session["number"]
    del model.clients[number]
    if number in model.detaching:
        model.detaching.remove(number)
    gone = {"key": (0, number), "incarnation": 0, "used": "default", "watched": [], "wait": None, "warn": None, "held": []}
    model.close(gone | {"releases": releases})


def ask(model: Model, node: int, number: int, id: int, answered: int, waiting: list[int], what: list[Any]) -> None:
    session = attached(model, node, number)
    if session is None:
        return
    model.steps += _steps(model, what)
    for known, reply in session["answers"].items():
        if known < answered and known in waiting and reply[0] == JOBS:
            session["late"][known] = reply[1]
    session["answers"] = {known: reply for known, reply in session["answers"].items() if known >= answered}
    session["late"] = {known: jobs for known, jobs in session["late"].items() if known >= answered or known in waiting}
    if id <= session["last"]:
        _again(model, session, id)
        return
    session["last"] = id
    model.asked.append((session["token"], id, what))
    if len(session["answers"]) + len(session["late"]) >= _MOST_ANSWERS:
        _answer(model, session, id, [TOO_MANY])
        return
    tag, *args = what
    if tag == END:
        _answer(model, session, id, [ENDED])
        (keeps_jobs,) = args
        if keeps_jobs:
            for job in model.held_by((0, session["number"])):
                job["holder"] = None
        end(model, session, releases=True)
        return
    reply = _DO[tag](model, session, id, *args)
    if reply is None:
        return
    session["answers"][id] = [JOBS, [(job[0], job[1]) for job in reply[1]]] if reply[0] == JOBS else reply
    _answer(model, session, id, reply)
    if tag in (SUBSCRIBE, FLOW):
        for wait in session["waits"]:
            if wait["ask"] == (id if tag == SUBSCRIBE else args[0]) and wait["subscription"]:
                _serve_at_once(model, session, wait)


def _steps(model: Model, what: list[Any]) -> int:
    tag, *args = what
    cost = model.cost
    if tag == PUT:
        return len(args[1]) * int(cost["job"])
    if tag == RESERVE:
        tubes, count, _ = args
        return int(count * (cost["granted"] + len(tubes) * cost["tube"]) + len(tubes) * cost["tube"])
    if tag == SUBSCRIBE:
        return 2 * len(args[0]) * int(cost["tube"])
    if tag == SET_POLICIES:
        return len(args[0]) * int(cost["job"])
    if tag == KICK_JOBS:
        return len(args[0]) * int(cost["kicked"])
    if tag == KICK:
        return int(cost["kicked"])
    return len(args[0]) * int(cost["command"]) if tag in (DELETE, RELEASE, FAIL, BURY, TOUCH) else 0


def _again(model: Model, session: Session, id: int) -> None:
    for wait in session["waits"]:
        if wait["ask"] == id and not wait["subscription"]:
            if wait["suspended"]:
                wait["suspended"] = False
                _queue(model, wait)
                _serve_at_once(model, session, wait)
            return
    reply = session["answers"].get(id)
    if reply is None and id in session["late"]:
        reply = [JOBS, session["late"][id]]
    if reply is None:
        reply = [TOO_MANY]
    elif reply[0] == JOBS:
        reply = [JOBS, _still_held(model, reply[1])]
    _answer(model, session, id, reply)


def _tell(model: Model, session: Session, reply: list[Any], what: list[Any]) -> None:
    if session["at"] is not None:
        model.answer(session["at"], what, reply)


def _answer(model: Model, session: Session, id: int, reply: list[Any]) -> None:
    _tell(model, session, [TO_ASK, id, reply], [ASK, session["token"], id])


def _given(job: dict[str, Any]) -> list[Any]:
    return [job["id"], job["token"], job["tube"], job["body"], job["pri"], job["ttr"], policies.attempts(job)]


def _still_held(model: Model, held: list[tuple[int, int]]) -> list[list[Any]]:
    jobs = [(model.jobs.get(id), token) for id, token in held]
    return [_given(job) for job, token in jobs if job is not None and job["state"] == "reserved" and job["token"] == token]


def _reserve(model: Model, session: Session, id: int, tubes: list[str], count: int, timeout_ms: int | None) -> list[Any] | None:
    given: list[list[Any]] = []
    while len(given) < count and sum(len(job[3]) for job in given) < _MOST_BYTES:
        ready = [job for tube in set(tubes) if not model.is_held_back(tube) for job in model.in_state("ready", tube)]
        if not ready:
            break
        job = min(ready, key=lambda job: (job["pri"], job["id"]))
        model.grant((0, session["number"]), job)
        given.append(_given(job))
    if given or timeout_ms == 0:
        return [JOBS, given]
    if sum(not wait["subscription"] for wait in session["waits"]) >= _MOST_WAITING:
        return [TOO_MANY]
    until = None if timeout_ms is None else model.now_ms + timeout_ms
    wait = _new_wait(model, session, id, tubes, 1, subscription=False, until=until)
    if wait is None:
        return [TOO_MANY]
    _queue(model, wait)
    return None


def _new_wait(
    model: Model, session: Session, id: int, tubes: list[str], credit: int, subscription: bool, until: int | None = None
) -> Wait | None:
    tubes = list(dict.fromkeys(tubes))
    if watching(session) + len(tubes) > _MOST_TUBES:
        return None
    wait = {"ask": id, "client": session["number"], "tubes": tubes, "credit": credit, "subscription": subscription, "until": until}
    wait |= {"suspended": False, "orders": {}, "pushed": 0, "unconfirmed": []}
    session["waits"].append(wait)
    return wait


def _queue(model: Model, wait: Wait) -> None:
    for tube in wait["tubes"]:
        if tube not in wait["orders"]:
            wait["orders"][tube] = model.next_order()


def takes_jobs(wait: Wait) -> bool:
    return not wait["suspended"] and wait["credit"] > 0 and sum(size for _, _, size in wait["unconfirmed"]) < _MOST_BYTES


def _subscribe(model: Model, session: Session, id: int, tubes: list[str], credit: int) -> list[Any]:
    if credit > _MOST_CREDIT or sum(wait["subscription"] for wait in session["waits"]) >= _MOST_SUBSCRIPTIONS:
        return [TOO_MANY]
    return [TOO_MANY] if _new_wait(model, session, id, tubes, credit, subscription=True) is None else [SUBSCRIBED]


def _flow(model: Model, session: Session, id: int, subscription: int, received: int, credit: int) -> list[Any]:
    for wait in session["waits"]:
        if wait["ask"] == subscription and wait["subscription"]:
            first = wait["pushed"] - len(wait["unconfirmed"]) + 1
            wait["unconfirmed"] = [one for number, one in enumerate(wait["unconfirmed"], first) if number > received]
            model.steps += len(wait["tubes"]) * model.cost["tube"]
            if wait["credit"] + credit > _MOST_CREDIT:
                return [TOO_MANY]
            wait["credit"] += credit
            return [FLOWING]
    return [NOT_FOUND]


def _serve_at_once(model: Model, session: Session, wait: Wait) -> None:
    if wait["suspended"]:
        wait["suspended"] = False
        first = wait["pushed"] - len(wait["unconfirmed"]) + 1
        for number, (id, token, _) in enumerate(wait["unconfirmed"], first):
            for job in _still_held(model, [(id, token)]):
                _answer(model, session, wait["ask"], [PUSHED, number, job])
        for place, (id, token, _) in enumerate(wait["unconfirmed"]):
            if token and not _still_held(model, [(id, token)]):
                wait["unconfirmed"][place] = (id, 0, 0)
                wait["credit"] += 1
    if takes_jobs(wait):
        _queue(model, wait)
        for tube in wait["tubes"]:
            if model.in_state("ready", tube):
                model.match(tube)


def serve(model: Model, tube: str, wait: Wait, job: dict[str, Any]) -> None:
    """The first in the queue of the tube gets its most urgent job, if anybody is there."""
    session = model.clients[wait["client"]]
    if session["at"] is None:
        _suspend(model, session)
        return
    model.grant((0, session["number"]), job)
    if not wait["subscription"]:
        session["waits"].remove(wait)
        model.forget_tubes()  # before the next timer, which may be that of a pause of one of them (seed 7910149)
        session["late"][wait["ask"]] = [(job["id"], job["token"])]
        _answer(model, session, wait["ask"], [JOBS, [_given(job)]])
        return
    wait["credit"] -= 1
    wait["pushed"] += 1
    wait["unconfirmed"].append((job["id"], job["token"], len(job["body"])))
    if takes_jobs(wait):
        wait["orders"][tube] = model.next_order()
    else:
        model.spend(len(wait["tubes"]) * model.cost["tube"])
        wait["orders"] = {}
    _answer(model, session, wait["ask"], [PUSHED, wait["pushed"], _given(job)])


def time_is_over(model: Model, number: int, id: int) -> None:
    session = model.clients[number]
    (wait,) = (wait for wait in session["waits"] if wait["ask"] == id)
    model.spend(len(wait["tubes"]) * model.cost["tube"])
    _end_reserve(model, session, wait)


def _end_reserve(model: Model, session: Session, wait: Wait) -> None:
    session["waits"].remove(wait)
    model.forget_tubes()
    session["late"][wait["ask"]] = []
    if not wait["suspended"]:
        _answer(model, session, wait["ask"], [JOBS, []])


def _cancel(model: Model, session: Session, id: int, which: int) -> list[Any]:
    for wait in session["waits"]:
        if wait["ask"] == which:
            model.steps += len(wait["tubes"]) * model.cost["tube"]
            if not wait["subscription"]:
                _end_reserve(model, session, wait)
                return [JOBS, []]
            session["waits"].remove(wait)
            return [JOBS, _still_held(model, [(job, token) for job, token, _ in wait["unconfirmed"]])]
    return [NOT_FOUND]


def _put(model: Model, session: Session, id: int, tube: str, jobs: list[Any], key: str, fingerprint: bytes, unique: Any, *_: Any) -> Any:
    return model.verb(17, (0, session["number"]), tube, jobs, key, fingerprint, False, unique)


def _delete(model: Model, session: Session, id: int, jobs: list[tuple[int, int]], result: bytes) -> list[Any]:
    return [MISSED, [job for job, token in jobs if model.verb(7, (0, session["number"]), job, token, result) == [NOT_FOUND]]]


def _each(tag: int, *, with_delay: bool = False) -> Any:
    """The verb `tag` of a line, about each job."""

    def do(model: Model, session: Session, id: int, jobs: list[tuple[int, int]], *args: Any) -> list[Any]:
        missed = []
        for job, token in jobs:
            if with_delay:
                delay_ms, pri = args
                reply = model.verb(tag, (0, session["number"]), job, pri, delay_ms, token)
            else:
                reply = model.verb(tag, (0, session["number"]), job, token)
            if reply == [NOT_FOUND]:
                missed.append(job)
        return [MISSED, missed]

    return do


def _fail(
    model: Model, session: Session, id: int, jobs: list[tuple[int, int]], delay_ms: int, error: str, unless_backoff: bool = False
) -> list[Any]:
    missed = []
    for number, token in jobs:
        job = model.own((0, session["number"]), number, token)
        if job is None:
            missed.append(number)
            continue
        has_backoff = job["tube"] in model.policies and model.policies[job["tube"]]["backoff"]
        job["delay"] = 0 if unless_backoff and has_backoff else delay_ms
        _keep_error(model, number, error)
        policies.failed(model, job, job["delay"])
    return [MISSED, missed]


def _bury(model: Model, session: Session, id: int, jobs: list[tuple[int, int]], pri: int | None, error: str) -> list[Any]:
    missed = []
    for number, token in jobs:
        if model.verb(9, (0, session["number"]), number, pri, token) == [NOT_FOUND]:
            missed.append(number)
        else:
            _keep_error(model, number, error)
    return [MISSED, missed]


def _keep_error(model: Model, job: int, error: str) -> None:
    if error:
        model.errors[job] = error[:_MOST_ERROR]


def _kick_jobs(model: Model, session: Session, id: int, jobs: list[int]) -> list[Any]:
    return [MISSED, [job for job in jobs if model.verb(12, (0, session["number"]), job) == [NOT_FOUND]]]


def _of_schedule(tag: int) -> Any:
    return lambda model, session, id, *what: schedules.ask(model, [tag, *what])


_DO: dict[int, Any] = {
    PUT: _put,
    RESERVE: _reserve,
    SUBSCRIBE: _subscribe,
    FLOW: _flow,
    CANCEL: _cancel,
    DELETE: _delete,
    RELEASE: _each(8, with_delay=True),
    FAIL: _fail,
    BURY: _bury,
    TOUCH: _each(10),
    KICK: lambda model, session, id, tube, count: model.kick(tube, count),
    KICK_JOBS: _kick_jobs,
    PAUSE: lambda model, session, id, tube, pause_ms: model.verb(13, (0, session["number"]), tube, pause_ms),
    DECLARE: lambda model, session, id, tube: model.verb(15, (0, session["number"]), tube),
    **{tag: _of_schedule(tag) for tag in (schedules.SET, schedules.PAUSE, schedules.RUN)},
    REPLAY: lambda model, session, id, *what: policies.replay(model, (0, session["number"]), *what),
    SET_POLICIES: lambda model, session, id, changes: model.verb(23, (0, session["number"]), changes),
    UNDECLARE: lambda model, session, id, tube: model.verb(19, (0, session["number"]), tube),
}

"""`/v1`: the whole queue for programs without a beanstalkd client.

A call is a session of its own, and what it asks is one command or a few. A reservation belongs to that session until the answer has
left, and then to its token alone: a caller who hung up before that strands no job, and one who got his answer needs no connection.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from itertools import islice
from time import time
from typing import Annotated, Any, Literal

import msgspec

from raftd.jobs import asks
from raftd.jobs import commands as c
from raftd.jobs import replies as r
from raftd.jobs.machine import DEFAULT_TUBE, StateMachine
from raftd.jobs.model import Job, State, Tube
from raftd.jobs.rights import Right
from raftd.limits import COUNTED_JOBS, HTTP_ANSWER_S, HTTP_BODY_BYTES, KEY_CHARACTERS, REPLY_BYTES
from raftd.node.loop import Node
from raftd.server.access import looked_at
from raftd.server.http import shapes as s
from raftd.server.http.base import LATE, QueueApi
from raftd.server.http.exchange import Exchange
from raftd.server.http.routes import RAW, Ask, BadRequest, Needs, convert, route
from raftd.server.http.tables import TubePage, TubeTable, check_place
from raftd.server.stats import Counters

#: The newest things of a job that its history over HTTP tells.
HISTORY_EVENTS = 1_000

Key = Annotated[str, msgspec.Meta(min_length=1, max_length=KEY_CHARACTERS, pattern=r"^[!-~]+$(?!\n)")]
_HELD_PROBLEMS = ("no-such-job", "stale-token", *LATE)
_PUT_PROBLEMS = ("bad-job", "older-node", "job-too-large", "tube-full", "key-reused", "draining", *LATE)
_FINGERPRINT_BYTES = 16
_FIRST = {"id": "$response.body#/ids/0"}
_PUT_LINKS: dict[str, dict[str, Any]] = {
    **{name: {"parameters": _FIRST} for name in ("show_job", "delete", "kick_job", "history")},
    "reserve": {"requestBody": {"tubes": ["$request.path.tube"]}},
}
_TUBE_LINKS: dict[str, dict[str, Any]] = {
    name: {"parameters": {"tube": "$request.path.tube"}} for name in ("show_tube", "undeclare", "pause", "peek", "kick")
}
_HELD = {"id": "$response.body#/jobs/0/id"}
_TOKEN = "$response.body#/jobs/0/token"
_RESERVE_LINKS: dict[str, dict[str, Any]] = {
    "delete": {"parameters": {**_HELD, "token": _TOKEN}},
    **{name: {"parameters": _HELD, "requestBody": {"token": _TOKEN}} for name in ("release", "bury", "touch")},
}


class _RawJob(msgspec.Struct, kw_only=True):
    """What a raw body has besides, in headers."""

    priority: s.Priority | msgspec.UnsetType = msgspec.field(default=msgspec.UNSET, name="Raftd-Priority")
    delay_s: s.Delay = msgspec.field(default=0, name="Raftd-Delay")
    ttr_s: s.TimeToRun | msgspec.UnsetType = msgspec.field(default=msgspec.UNSET, name="Raftd-TTR")


class _WithToken(msgspec.Struct, forbid_unknown_fields=True):
    token: s.Token | msgspec.UnsetType = msgspec.UNSET


class _Which(msgspec.Struct, forbid_unknown_fields=True):
    state: Literal["ready", "delayed", "buried"] = "ready"


class _JobPage(msgspec.Struct, forbid_unknown_fields=True):
    state: Literal["ready", "reserved", "delayed", "buried"] = "ready"
    after: Annotated[str, msgspec.Meta(pattern=r"^([0-9]{1,20}\.[0-9]{1,20})?$(?!\n)")] = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 100

    @property
    def behind(self) -> tuple[int, int]:
        """Behind which item of a queue, or behind which job, it begins."""
        first, _, id = self.after.partition(".")
        return int(first or 0), int(id or 0)


def _page_of(machine: StateMachine, tube: Tube, page: _JobPage) -> tuple[list[int], str]:
    """The next jobs, in the order in which they will be reserved, ready or kicked, and where to go on; "" at the end. Reserved ones are in
    no queue: the next so many jobs of all tubes are looked at, so a page may be empty and not the last."""
    limit, (first, id) = page.limit, page.behind
    if page.state == "reserved":
        ids = machine.jobs.ids_after(id, COUNTED_JOBS)
        jobs = [machine.jobs[id] for id in ids]
        found = [job.id for job in jobs if job.tube is tube and job.state is State.RESERVED]
        if len(found) > limit:
            return found[:limit], f"0.{found[limit - 1]}"
        return found, f"0.{ids[-1]}" if len(ids) == COUNTED_JOBS else ""
    queue = {"ready": tube.ready, "delayed": tube.delayed, "buried": tube.buried}[page.state]
    items = list(islice(queue.from_item((first, id + 1)), limit + 1))
    after = "{}.{}".format(*items[limit - 1]) if len(items) > limit else ""
    return [id for _, id in items[:limit]], after


class _Reserving:
    """A call that reserves: the first job is waited for, then come as many as are there, and as the answer may hold."""

    def __init__(self, node: Node, ask: Ask, exchange: Exchange) -> None:
        self._node = node
        self._call = ask.call
        self._most: int = ask.body.count
        self._exchange = exchange
        self._found: list[s.Reservation] = []
        self._size = 0  # of the bodies found
        self._asked = 0  # and not answered
        self._is_more = True

    def reserve(self, timeout_ms: int) -> None:
        """One that is waited for; or as many as are sure to fit: an answer must not be larger than what may wait for a slow client."""
        most = max(1, (REPLY_BYTES - self._size) // self._node.max_job_size)
        self._asked = 1 if timeout_ms else min(self._most - len(self._found), most)
        for _ in range(self._asked):
            self._exchange.ask(c.Reserve(self._exchange.number, timeout_ms), self._replied)

    def _replied(self, reply: Any) -> None:
        self._asked -= 1
        self._is_more = self._is_more and isinstance(reply, r.Reserved)
        job = self._node.machine.jobs.get(reply.id) if isinstance(reply, r.Reserved) else None
        if job is not None and job.token == reply.token:
            self._found.append(s.reservation(job))
            self._size += len(job.body)
        if self._asked:
            return
        if self._is_more and len(self._found) < self._most and self._size < REPLY_BYTES:
            self.reserve(0)
            return
        self._exchange.in_time()
        self._call.say(200, s.Reservations(self._found))
        exchange = self._exchange
        self._call.leaving(lambda has_left: exchange.leave() if has_left else exchange.close())


class Api(QueueApi):
    """Tubes and jobs."""

    def __init__(self, node: Node, clock: Any, counters: Counters, table: TubeTable) -> None:
        super().__init__(node, clock, counters)
        self._table = table

    # -- tubes --------------------------------------------------------------------------------

    @route("GET", "/v1/tubes", Needs.USER, s.TubeList, query=TubePage, problems=("bad-place", "not-committed"))
    def _list_tubes(self, ask: Ask) -> None:
        """List tubes, by name or by what they hold."""
        page: TubePage = ask.query
        check_place(page)

        def query(machine: StateMachine, now_ms: int) -> s.TubeList:
            rows = self._table.page(machine, page, ask.readable(machine))
            return s.TubeList([self._table.view(machine, tube, now_ms) for tube in rows.tubes], rows.more, rows.after)

        def read() -> None:
            self._read(
                ask, query, lambda found: ask.call.say(200, found), lambda machine: looked_at(machine, len(machine.tubes)) + page.limit
            )

        if page.sort == "name":
            read()
        else:
            self._table.refresh(self._node.machine, page.sort, read)

    @route("PUT", "/v1/tubes/{tube}", Needs.USER, s.TubeView, problems=("no-such-tube", *LATE), links=_TUBE_LINKS)
    def _declare(self, ask: Ask) -> None:
        """Declare a tube: it stays, empty too."""
        name = ask.parts["tube"]
        self._command(ask, lambda session: c.Declare(session, name), lambda reply: self._say_tube(ask))

    def _say_tube(self, ask: Ask) -> None:
        machine = self._node.machine
        tube = machine.tubes.get(ask.parts["tube"])
        if tube is None:  # it was deleted in the same moment
            ask.call.problem("no-such-tube")
        else:
            ask.call.say(200, self._table.view(machine, tube, machine.now_ms))

    @route("GET", "/v1/tubes/{tube}", Needs.READ, s.TubeView, problems=("no-such-tube", "not-committed"))
    def _show_tube(self, ask: Ask) -> None:
        """Show a tube."""
        name = ask.parts["tube"]

        def query(machine: StateMachine, now_ms: int) -> s.TubeView | None:
            tube = machine.tubes.get(name)
            return self._table.view(machine, tube, now_ms) if tube is not None else None

        self._read(ask, query, lambda tube: ask.call.say(200, tube) if tube is not None else ask.call.problem("no-such-tube"))

    @route("DELETE", "/v1/tubes/{tube}", Needs.USER, None, 204, problems=("no-such-tube", "not-declared", "tube-not-empty", *LATE))
    def _undeclare(self, ask: Ask) -> None:
        """Delete a tube that was declared and is empty."""

        def answered(reply: Any) -> None:
            if isinstance(reply, r.Deleted):
                ask.call.answer(204, b"")
            elif isinstance(reply, r.NotEmpty):
                ask.call.problem("tube-not-empty", f"It holds {reply.count}. Delete them first.")
            else:
                ask.call.problem("not-declared" if ask.parts["tube"] in self._node.machine.tubes else "no-such-tube")

        self._command(ask, lambda session: c.Undeclare(session, ask.parts["tube"]), answered)

    @route("POST", "/v1/tubes/{tube}/pause", Needs.USER, s.TubeView, body=s.Pause, problems=("no-such-tube", *LATE))
    def _pause(self, ask: Ask) -> None:
        """Pause a tube: nothing is reserved from it."""
        pause_ms = s.ms(ask.body.seconds)

        def answered(reply: Any) -> None:
            if isinstance(reply, r.Paused):
                self._say_tube(ask)
            else:
                ask.call.problem("no-such-tube")

        self._command(ask, lambda session: c.PauseTube(session, ask.parts["tube"], pause_ms), answered)

    @route("POST", "/v1/tubes/{tube}/kick", Needs.USER, s.Kicked, body=s.Kick, body_is_optional=True, problems=("no-such-tube", *LATE))
    def _kick(self, ask: Ask) -> None:
        """Kick its buried jobs, or if there are none its delayed ones."""
        name = ask.parts["tube"]
        exchange = self._begin(ask)

        def looked(there: bool) -> None:
            if there:
                exchange.ask(c.Use(exchange.number, name), lambda reply: None)
                exchange.ask(c.Kick(exchange.number, ask.body.count), kicked)
            else:
                ask.call.problem("no-such-tube")
                exchange.close()

        def kicked(reply: r.Kicked) -> None:
            ask.call.say(200, s.Kicked(reply.count or 0))
            exchange.close()

        def look(machine: StateMachine, now_ms: int, node: int, session: int) -> bool | r.NotAuthorized:
            return name in machine.tubes if ask.may(machine, name, Right.MANAGE) else r.NotAuthorized()

        exchange.read(look, looked)

    @route("GET", "/v1/tubes/{tube}/next", Needs.READ, s.JobView, query=_Which, problems=("no-such-tube", "no-such-job", "not-committed"))
    def _peek(self, ask: Ask) -> None:
        """Peek at the job that would be reserved, kicked or ready next."""
        name, state = ask.parts["tube"], ask.query.state

        def query(machine: StateMachine, now_ms: int) -> s.JobView | str:
            tube = machine.tubes.get(name)
            if tube is None:
                return "no-such-tube"
            least = {"ready": tube.ready, "delayed": tube.delayed, "buried": tube.buried}[state].least()
            return s.job_view(machine, machine.jobs[least[1]], now_ms) if least is not None else "no-such-job"

        def answered(found: s.JobView | str) -> None:
            if isinstance(found, str):
                ask.call.problem(found, f"There is no job of the tube {name!r} that is {state}." if found == "no-such-job" else "")
            else:
                ask.call.say(200, found)

        self._read(ask, query, answered)

    @route("GET", "/v1/tubes/{tube}/jobs", Needs.READ, s.JobList, query=_JobPage, problems=("no-such-tube", "not-committed"))
    def _list_jobs(self, ask: Ask) -> None:
        """List the jobs of a tube in one state, without their bodies."""
        page: _JobPage = ask.query

        def query(machine: StateMachine, now_ms: int) -> s.JobList | None:
            tube = machine.tubes.get(ask.parts["tube"])
            if tube is None:
                return None
            ids, after = _page_of(machine, tube, page)
            views = [s.job_view(machine, machine.jobs[id], now_ms, with_body=False) for id in ids]
            return s.JobList(views, after, bool(after))

        def answered(found: s.JobList | None) -> None:
            if found is None:
                ask.call.problem("no-such-tube")
            else:
                ask.call.say(200, found)

        def scanned(machine: StateMachine) -> int:
            return COUNTED_JOBS if page.state == "reserved" else page.limit

        self._read(ask, query, answered, scanned)

    # -- putting ------------------------------------------------------------------------------

    @route(
        "POST",
        "/v1/tubes/{tube}/jobs",
        Needs.USER,
        s.Stored,
        201,
        also=(200,),
        body=s.NewJobs,
        raw=_RawJob,
        key=Key,
        problems=_PUT_PROBLEMS,
        links=_PUT_LINKS,
    )
    def _put(self, ask: Ask) -> None:
        """Put one job, or many: all of them or none."""
        try:
            key, jobs, unique = self._what_to_put(ask)
        except BadRequest as wrong:
            ask.call.problem(wrong.problem, str(wrong))
            return
        tube = ask.parts["tube"]
        fingerprint = sha256(msgspec.msgpack.encode((tube, jobs))).digest()[:_FINGERPRINT_BYTES] if key else b""
        if unique is not None and not self._node.knows_policies:
            ask.call.problem("older-node")
            return

        def answered(reply: Any) -> None:
            if isinstance(reply, r.InsertedMany):
                ids = list(range(reply.first, reply.first + reply.count))
                if reply.is_repeat and unique is not None:  # with a key that was used, too: the job that it put is that one
                    ask.call.say(200, s.Stored(ids, exists=True))
                    return
                repeated = {"Idempotency-Replayed": "true"} if reply.is_repeat else None
                ask.call.say(201, s.Stored(ids), repeated)
            elif isinstance(reply, r.KeyReused):
                ask.call.problem("key-reused")
            elif isinstance(reply, r.NotFound):
                ask.call.problem("draining")
            elif isinstance(reply, r.TubeFull):
                ask.call.problem("tube-full", headers={"Retry-After": "1"})
            else:
                ask.call.problem("job-too-large" if isinstance(reply, r.JobTooBig) else "overloaded")

        if not self._counters.draining:
            if unique is not None:
                only = unique
                self._command(ask, lambda session: c.PutUnique(session, tube, jobs[0], only, key, fingerprint), answered)
                return
            self._command(ask, lambda session: c.PutMany(session, tube, jobs, key, fingerprint), answered)
        elif key:  # it may be asked again for what was put before

            def before(machine: StateMachine, now_ms: int) -> Any:
                return machine.keys.reply(key, fingerprint, now_ms) if ask.may(machine, tube, Right.PUT) else r.NotAuthorized()

            self._read(ask, before, lambda reply: answered(reply or r.NotFound()))
        else:
            ask.call.problem("draining")

    def _what_to_put(self, ask: Ask) -> tuple[str, list[c.NewJob], asks.Unique | None]:
        """The idempotency key, the jobs, and if there is one that is the only one of its kind. Raises BadRequest."""
        tube: str = ask.parts["tube"]
        unique: asks.Unique | None = None
        raw_key = ask.call.header("Idempotency-Key")
        key = convert(raw_key, Key, "Idempotency-Key") if raw_key is not None else ""
        if isinstance(ask.body, bytes):
            given = {item.encode_name: ask.call.header(item.encode_name) for item in msgspec.structs.fields(_RawJob)}
            raw = convert({name: value for name, value in given.items() if value is not None}, _RawJob, f"the headers of {RAW}")
            jobs = [self._new_job(tube, raw.priority, s.ms(raw.delay_s), raw.ttr_s, ask.body)]
        else:
            given_jobs = ask.body if isinstance(ask.body, list) else [ask.body]
            jobs = [self._new_job(tube, job.priority, _delay_ms(job), job.ttr_s, _body(job)) for job in given_jobs]
            unique = _unique(given_jobs)
        largest = self._node.max_job_size
        for place, job in enumerate(jobs):
            if len(job.body) > largest:
                raise BadRequest(f"Job {place} has {len(job.body)} bytes, and may have {largest}.", "job-too-large")
        if sum(len(job.body) for job in jobs) > max(HTTP_BODY_BYTES, largest):
            raise BadRequest(f"The jobs have more than {max(HTTP_BODY_BYTES, largest)} bytes together.", "too-large")
        return key, jobs, unique

    def _new_job(
        self, tube: str, priority: int | msgspec.UnsetType, delay_ms: int, ttr_s: float | msgspec.UnsetType, body: bytes
    ) -> c.NewJob:
        """What is not given is as the policy of the tube says, as this node knows it now."""
        known = self._node.machine.policies.tubes.get(tube)
        policy = known.policy if known is not None else None
        if isinstance(priority, msgspec.UnsetType):
            priority = policy.default_pri if policy is not None and policy.default_pri is not None else s.PRIORITY
        default_ttr_ms = policy.default_ttr_ms if policy is not None else 0
        ttr_ms = (default_ttr_ms or s.ms(s.TIME_TO_RUN_S)) if isinstance(ttr_s, msgspec.UnsetType) else s.ms(ttr_s)
        return c.NewJob(priority, delay_ms, ttr_ms, body)

    # -- reserving ----------------------------------------------------------------------------

    @route("POST", "/v1/reserve", Needs.USER, s.Reservations, body=s.Reserve, problems=("not-committed",), links=_RESERVE_LINKS)
    def _reserve(self, ask: Ask) -> None:
        """Reserve jobs, and wait for the first."""
        wanted: s.Reserve = ask.body
        exchange = self._begin(ask, wanted.timeout_s + HTTP_ANSWER_S, is_undone=True)
        number = exchange.number
        for tube in wanted.tubes:
            exchange.ask(c.Watch(number, tube), lambda reply: None)
        if DEFAULT_TUBE not in wanted.tubes:
            exchange.ask(c.Ignore(number, DEFAULT_TUBE), lambda reply: None)
        _Reserving(self._node, ask, exchange).reserve(s.ms(wanted.timeout_s))

    # -- one job ------------------------------------------------------------------------------

    @route("GET", "/v1/jobs/{id}", Needs.USER, s.JobView, problems=("no-such-job", "not-committed"))
    def _show_job(self, ask: Ask) -> None:
        """Show a job."""

        def query(machine: StateMachine, now_ms: int) -> s.JobView | None:
            job = machine.jobs.get(ask.parts["id"])
            return s.job_view(machine, job, now_ms) if job is not None and ask.sees(machine, job.tube.name) else None

        self._read(ask, query, lambda job: ask.call.say(200, job) if job is not None else ask.call.problem("no-such-job"))

    @route("GET", "/v1/jobs/{id}/result", Needs.USER, s.Result, problems=("no-result", "not-committed"))
    def _result(self, ask: Ask) -> None:
        """Tell what came of a finished job, if the policy of its tube retains that."""
        id = ask.parts["id"]

        def query(machine: StateMachine, now_ms: int) -> s.Result | None:
            found = machine.policies.finished.find(id, now_ms)
            if found is not None and not ask.sees(machine, found.tube):
                return None
            return s.Result(id, *found[:2], s.moment(found.finished_ms), **s.body_fields(found.result)) if found is not None else None

        self._read(ask, query, lambda found: ask.call.say(200, found) if found is not None else ask.call.problem("no-result"))

    def _done(self, ask: Ask, right: Right, otherwise: str) -> Callable[[Any], None]:
        """Answers with 204, or with why not (`Ask.why_not`)."""

        def answered(reply: Any) -> None:
            if not isinstance(reply, r.NotFound):
                ask.call.answer(204, b"")
            else:
                ask.call.problem(ask.why_not(self._node.machine, right, otherwise))

        return answered

    @route("DELETE", "/v1/jobs/{id}", Needs.USER, None, 204, query=_WithToken, problems=("no-such-job", "stale-token", "reserved", *LATE))
    def _delete(self, ask: Ask) -> None:
        """Delete a job, with its token if it is reserved."""
        token = ask.query.token or 0  # UNSET is false
        right, otherwise = (Right.WORK, "stale-token") if token else (Right.MANAGE, "reserved")
        self._command(ask, lambda session: c.Delete(session, ask.parts["id"], token), self._done(ask, right, otherwise))

    @route("POST", "/v1/jobs/{id}/release", Needs.USER, None, 204, body=s.Release, problems=_HELD_PROBLEMS)
    def _release(self, ask: Ask) -> None:
        """Release a job: it is ready again, or after a delay."""
        wanted: s.Release = ask.body
        delay_ms = s.ms(wanted.delay_s)
        self._command(
            ask,
            lambda session: c.Release(session, ask.parts["id"], wanted.priority, delay_ms, wanted.token),
            self._done(ask, Right.WORK, "stale-token"),
        )

    @route("POST", "/v1/jobs/{id}/bury", Needs.USER, None, 204, body=s.Bury, problems=_HELD_PROBLEMS)
    def _bury(self, ask: Ask) -> None:
        """Bury a job: it is ready again when it is kicked."""
        wanted: s.Bury = ask.body
        self._command(
            ask, lambda session: c.Bury(session, ask.parts["id"], wanted.priority, wanted.token), self._done(ask, Right.WORK, "stale-token")
        )

    @route("POST", "/v1/jobs/{id}/touch", Needs.USER, s.Touched, body=s.Held, problems=_HELD_PROBLEMS)
    def _touch(self, ask: Ask) -> None:
        """Touch a job: its time to run begins anew."""
        token = ask.body.token

        def answered(reply: Any) -> None:
            job = self._node.machine.jobs.get(ask.parts["id"])
            if job is None or isinstance(reply, r.NotFound):
                ask.call.problem(ask.why_not(self._node.machine, Right.WORK, "stale-token"))
            else:
                ask.call.say(200, s.Touched(s.moment(job.deadline_ms)))

        self._command(ask, lambda session: c.Touch(session, ask.parts["id"], token), answered)

    @route("POST", "/v1/jobs/{id}/kick", Needs.USER, None, 204, problems=("no-such-job", "not-kickable", *LATE))
    def _kick_job(self, ask: Ask) -> None:
        """Kick a job that is buried or delayed: it is ready."""

        self._command(ask, lambda session: c.KickJob(session, ask.parts["id"]), self._done(ask, Right.MANAGE, "not-kickable"))

    @route("GET", "/v1/jobs/{id}/history", Needs.USER, s.History, problems=("no-such-job", "not-committed"))
    def _history(self, ask: Ask) -> None:
        """Tell what became of a job."""
        id = ask.parts["id"]

        def query(machine: StateMachine, now_ms: int) -> s.History:
            recent = self._node.job_events
            job: Job | None = machine.jobs.get(id)
            if job is not None and not ask.sees(machine, job.tube.name):
                job = None
            newest = [event for event in islice(recent.of_job(id), HISTORY_EVENTS + 1) if ask.sees(machine, event.tube)]
            known_from = newest.pop().entry + 1 if len(newest) > HISTORY_EVENTS else recent.known_from
            events = [s.job_event(event) for event in reversed(newest)]
            return s.History(id, known_from, events, s.job_view(machine, job, now_ms, with_body=False) if job is not None else None)

        def answered(history: s.History) -> None:
            if history.events or history.now is not None:
                ask.call.say(200, history)
            else:
                ask.call.problem("no-such-job", f"Nothing is known of it here, from entry {history.known_from} of the log on.")

        # to look at an event that is of another job takes a fraction of what other items take
        self._read(ask, query, answered, lambda machine: HISTORY_EVENTS + (self._node.job_events.end - self._node.job_events.begin) // 4)

    # -- counting -----------------------------------------------------------------------------

    @route("GET", "/v1/stats", Needs.OVERVIEW, s.QueueStats)
    def _stats(self, ask: Ask) -> None:
        """Count the queue, and this node, as it has applied it."""
        node, machine, counters = self._node, self._node.machine, self._counters
        counts = machine.counts
        status = node.status()
        ask.call.say(
            200,
            s.QueueStats(
                *(counts.urgent, counts.ready, counts.reserved, counts.delayed, counts.buried),
                *(machine.total_jobs, machine.job_timeouts, len(machine.tubes), node.max_job_size, len(machine.keys.used)),
                *(node.config.node, str(status["role"]), node.raft.term, node.raft.leader),
                *(node.raft.log.commit_index, machine.applied_index, counters.uptime_s),
                *(counters.version, counters.draining),
            ),
        )


def _body(job: s.NewJob) -> bytes:
    if isinstance(job.body, str) == isinstance(job.base64, bytes):
        raise BadRequest("the body: a job has either `body` or `base64`")
    body = job.body.encode() if isinstance(job.body, str) else job.base64
    assert isinstance(body, bytes)
    return body


def _delay_ms(job: s.NewJob) -> int:
    if isinstance(job.run_at, msgspec.UnsetType):
        return s.ms(job.delay_s)
    if job.delay_s:
        raise BadRequest("A job has either `delay_s` or `run_at`.", "bad-job")
    return s.ms(min(max(0.0, job.run_at.timestamp() - time()), s.LONGEST_S))


def _unique(jobs: list[s.NewJob]) -> asks.Unique | None:
    only = [job.unique for job in jobs if not isinstance(job.unique, msgspec.UnsetType)]
    if not only:
        return None
    if len(jobs) > 1:
        raise BadRequest("A job with `unique` is put alone.", "bad-job")
    return asks.Unique(only[0].key, only[0].until == "reserved", s.ms(only[0].for_s or 0))

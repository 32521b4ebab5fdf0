"""What clients call, the same for all faces: what is asked of the cluster, and what its reply means. Times are in seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from time import time
from typing import Any, Generic, Literal, NamedTuple, NoReturn, TypeVar

import msgspec

from raftd.client.errors import Conflict, KeyReused, NotFound, Refused, TooLarge, TubeFull
from raftd.errors import RaftdError
from raftd.jobs import asks
from raftd.jobs import replies as r
from raftd.jobs.policy import DEAD_LETTER_TUBES, PolicyChange
from raftd.limits import CREDIT, ERROR_CHARACTERS, POLICIES, SCHEDULES
from raftd.wire import client as w
from raftd.wire.checks import what_is_wrong
from raftd.wire.policy import Backoff as Backoff
from raftd.wire.policy import PolicyDocument as PolicyDocument
from raftd.wire.policy import document_from, document_of, policy_of
from raftd.wire.schedule import ScheduleDocument as ScheduleDocument
from raftd.wire.schedule import document_from as document_from_schedule
from raftd.wire.schedule import document_of as document_of_plan
from raftd.wire.schedule import plan_of

#: Of a session that should have left its jobs to their tokens.
NOT_LEFT = "no node has confirmed it: the jobs may be given back to the queue"
PRIORITY = 65_536
TTR_S = 60.0
_FINGERPRINT_BYTES = 16

Body = bytes | str
Policies = Mapping[str, PolicyDocument | Mapping[str, Any] | None]
T = TypeVar("T")


class Call(msgspec.Struct, Generic[T], frozen=True):
    """`what` is an ask, or makes the request for a read of an id. `parse` gives the result, or raises; `waits_s`: how long the cluster
    may take because it waits for a job, None for ever."""

    what: asks.What | Callable[[int], w.Request]
    parse: Callable[[Any], T]
    waits_s: float | None = 0.0


class TubePolicy(msgspec.Struct, frozen=True):
    """What a tube does by itself; `version` grows with each change of any policy."""

    tube: str
    version: int
    policy: PolicyDocument


class Stats(msgspec.Struct, frozen=True):
    """Jobs of a tube by state, and what happens to it. Times in seconds. `bytes`: of the bodies of its jobs. `policy_version`: of its
    policy, 0 if it has none."""

    tube: str
    ready: int
    reserved: int
    delayed: int
    buried: int
    waiting: int
    watching: int
    total_jobs: int
    deletes: int
    pause_left: float
    bytes: int
    policy_version: int


class _Body:
    """Of what has a `body`: what it says."""

    __slots__ = ()
    body: bytes

    @property
    def text(self) -> str:
        """The body as UTF-8. Raises UnicodeDecodeError."""
        return self.body.decode()

    @property
    def json(self) -> Any:
        """What the body says in JSON. Raises msgspec.DecodeError."""
        return msgspec.json.decode(self.body)


class Finished(_Body, msgspec.Struct, frozen=True):
    """What came of a job that a worker has finished: `age` seconds ago, after so many failed attempts. `body`: the result that it gave."""

    id: int
    tube: str
    attempts: int
    age: float
    body: bytes


class JobInfo(_Body, msgspec.Struct, frozen=True):
    """How a job is. Times in seconds; `left` of its delay or its time to run. `attempts`: how many have failed; `error`: why the last of
    them did, if that was said. Of a job that a policy has declared dead: why (`attempts`, `expired`, `overflow`; "" for any other), the
    tube that it died in, after how many attempts, and for how long it is dead. `buried_for`: for
    how long it is buried; None unless it is, and was since feature level 6."""

    id: int
    tube: str
    state: str
    priority: int
    age: float
    delay: float
    ttr: float
    left: float
    token: int
    reserves: int
    timeouts: int
    releases: int
    buries: int
    kicks: int
    attempts: int
    error: str
    body: bytes
    death: str
    origin: str
    death_attempts: int
    dead_for: float
    buried_for: float | None


def ms(seconds: float) -> int:
    """Raises Refused for what is no time."""
    if not isinstance(seconds, int | float) or not 0 <= seconds < 1e12:
        raise Refused(f"{seconds!r}: expected seconds, from 0 on")
    return round(seconds * 1000)


def data(body: Body) -> bytes:
    """Raises Refused for what is neither bytes nor text."""
    if not isinstance(body, bytes | str):
        raise Refused(f"{type(body).__name__}: expected bytes or text, such as json.dumps gives")
    return body.encode() if isinstance(body, str) else body


def _checked(what: asks.What) -> asks.What:
    """Raises Refused for what no node would accept."""
    text = what_is_wrong(what)
    if text:
        raise Refused(text)
    return what


def _unexpected(reply: object) -> NoReturn:
    if isinstance(reply, RaftdError):
        raise reply
    if isinstance(reply, r.TooMany):
        raise Refused("the session has too many reserves that wait, subscriptions, tubes of these, or unconfirmed answers")
    raise Refused(f"the node answers with {type(reply).__name__}")


class OnlyOne(NamedTuple):
    """The only job of its kind. `is_new`: it was put now."""

    id: int
    is_new: bool


Until = Literal["deleted", "reserved"]


def put_unique(
    tube: str,
    body: Body,
    delay: float,
    ttr: float | None,
    priority: int | None,
    key: str | None,
    unique: str,
    until: Until,
    unique_for: float | None,
) -> Call[OnlyOne]:
    """The job, or the one that there is."""
    if until not in ("deleted", "reserved"):
        raise Refused(f"until {until!r}: expected deleted or reserved")
    if unique_for == 0:
        raise Refused("unique_for: expected seconds, more than 0")
    only = asks.Unique(_text("unique", unique), until == "reserved", ms(unique_for or 0))
    call = put(tube, [body], delay, ttr, priority, key, only)
    return Call(call.what, lambda reply: OnlyOne(call.parse(reply)[0], not (isinstance(reply, r.InsertedMany) and reply.is_repeat)))


def delay_until(run_at: datetime | None, delay: float) -> float:
    """Raises Refused if both are given, or the moment has no time zone."""
    if run_at is None:
        return delay
    if not isinstance(run_at, datetime) or run_at.tzinfo is None:
        raise Refused("run_at: expected a datetime with a time zone")
    if delay:
        raise Refused("delay, run_at: give one of them")
    return max(0.0, run_at.timestamp() - time())


def _text(name: str, text: str) -> str:
    if not text.isascii() and text != text.encode(errors="replace").decode():
        raise Refused(f"{name}: expected text that is valid Unicode")
    return text


def put(
    tube: str,
    bodies: Iterable[Body],
    delay: float,
    ttr: float | None,
    priority: int | None,
    key: str | None,
    unique: asks.Unique | None = None,
) -> Call[list[int]]:
    """The ids of the jobs."""
    if key is not None:
        _text("key", key)
    pri, ttr_ms = PRIORITY if priority is None else priority, ms(TTR_S if ttr is None else ttr)
    jobs = [asks.NewJob(pri, ms(delay), ttr_ms, data(body)) for body in bodies]
    fingerprint = blake2b(msgspec.msgpack.encode([tube, jobs]), digest_size=_FINGERPRINT_BYTES).digest() if key else b""

    def parse(reply: object) -> list[int]:
        match reply:
            case r.InsertedMany(first=first, count=count):
                return list(range(first, first + count))
            case r.JobTooBig():
                raise TooLarge("a job is larger than the cluster takes (max_job_size)")
            case r.OutOfMemory():
                raise TubeFull("the cluster takes no jobs now: it lacks memory or disk space. Try again later")
            case r.TubeFull():
                raise TubeFull(f"tube {tube!r} is full: its policy lets no more jobs in. Nothing was put")
            case r.KeyReused():
                raise KeyReused(f"key {key!r} was used for other jobs")
        _unexpected(reply)

    return Call(_checked(asks.Put(tube, jobs, key or "", fingerprint, unique, priority is None, ttr is None)), parse)


def reserve(tubes: Sequence[str], count: int, timeout: float | None) -> Call[list[r.Job]]:
    """Jobs; none if the time is over."""

    def parse(reply: object) -> list[r.Job]:
        return reply.jobs if isinstance(reply, r.Jobs) else _unexpected(reply)

    timeout_ms = None if timeout is None else ms(timeout)
    return Call(_checked(asks.Reserve(list(tubes), count, timeout_ms)), parse, timeout)


def check_subscription(tubes: list[str], prefetch: int) -> None:
    """Raises Refused for what no node would accept."""
    if prefetch < 1:
        raise Refused(f"prefetch {prefetch}: expected 1 to {CREDIT}")
    _checked(asks.Subscribe(tubes, prefetch))


def about(what: asks.What) -> Call[None]:
    """About jobs that are held: raises what the core finds out."""

    def parse(reply: object) -> None:
        if not isinstance(reply, r.Missed):
            _unexpected(reply)

    return Call(_checked(what), parse)


def delete(job: int, token: int) -> Call[None]:
    """One that nobody holds (token 0), or whose reservation has that token. Raises NotFound."""
    return _of_one(asks.Delete([(job, token)]), _not_held(job, token) if token else f"there is no job {job}, or another holds it")


def release(job: int, token: int, delay: float, priority: int | None) -> Call[None]:
    """Raises NotFound."""
    return _of_one(asks.Release([(job, token)], ms(delay), priority), _not_held(job, token))


def bury(job: int, token: int, priority: int | None, error: str) -> Call[None]:
    """Raises NotFound."""
    return _of_one(asks.Bury([(job, token)], priority, _error(error)), _not_held(job, token))


def _not_held(job: int, token: int) -> str:
    return f"job {job} is not reserved with token {token} any more"


def kick_job(job: int) -> Call[None]:
    """Raises NotFound."""
    return _of_one(asks.KickJobs([job]), f"there is no buried or delayed job {job}")


def _of_one(what: asks.What, text: str) -> Call[None]:
    def parse(reply: object) -> None:
        if not isinstance(reply, r.Missed):
            _unexpected(reply)
        if reply.jobs:
            raise NotFound(text)

    return Call(_checked(what), parse)


def kick(tube: str, count: int) -> Call[int]:
    """How many."""

    def parse(reply: object) -> int:
        return reply.count or 0 if isinstance(reply, r.Kicked) else _unexpected(reply)

    return Call(_checked(asks.Kick(tube, count)), parse)


def pause(tube: str, seconds: float) -> Call[None]:
    """Raises NotFound."""

    def parse(reply: object) -> None:
        if isinstance(reply, r.NotFound):
            raise NotFound(f"there is no tube {tube!r}")
        if not isinstance(reply, r.Paused):
            _unexpected(reply)

    return Call(_checked(asks.Pause(tube, ms(seconds))), parse)


def peek(job: int) -> Call[JobInfo | None]:
    _checked(asks.KickJobs([job]))
    return Call(lambda id: w.JobRequest(id, job), _job_found)


def peek_next(tube: str, state: str) -> Call[JobInfo | None]:
    if state not in ("ready", "delayed", "buried"):
        raise Refused(f"state {state!r}: expected ready, delayed or buried")
    _checked(asks.Declare(tube))
    return Call(lambda id: w.NextRequest(id, tube, state), _job_found)


def _job_found(reply: object) -> JobInfo | None:
    if not isinstance(reply, w.JobFound):
        _unexpected(reply)
    job = reply.job
    if job is None:
        return None
    fields = msgspec.structs.asdict(job).items()
    return JobInfo(*(value / 1000 if name.endswith("_ms") and value is not None else value for name, value in fields))


def result(job: int) -> Call[Finished | None]:
    """What came of it."""
    _checked(asks.KickJobs([job]))

    def parse(reply: object) -> Finished | None:
        if not isinstance(reply, w.ResultFound):
            _unexpected(reply)
        found = reply.job
        return Finished(found.id, found.tube, found.attempts, found.finished_ms / 1000, found.result) if found is not None else None

    return Call(lambda id: w.ResultRequest(id, job), parse)


def stats(tube: str) -> Call[Stats | None]:
    _checked(asks.Declare(tube))

    def parse(reply: object) -> Stats | None:
        tubes = _tubes_found(reply).tubes
        return _stats(tubes[0]) if tubes else None

    return Call(lambda id: w.TubeRequest(id, tube), parse)


def tubes(after: str) -> Call[tuple[list[Stats], bool]]:
    """Some, by name, and whether there are more."""

    def parse(reply: object) -> tuple[list[Stats], bool]:
        found = _tubes_found(reply)
        return [_stats(tube) for tube in found.tubes], found.has_more

    return Call(lambda id: w.TubesRequest(id, after), parse)


def _tubes_found(reply: object) -> w.TubesFound:
    return reply if isinstance(reply, w.TubesFound) else _unexpected(reply)


def _stats(tube: w.TubeInfo) -> Stats:
    counts = (tube.ready, tube.reserved, tube.delayed, tube.buried, tube.waiting, tube.watching, tube.total_jobs, tube.deletes)
    return Stats(tube.name, *counts, tube.pause_left_ms / 1000, tube.bytes, tube.policy_version)


def set_policies(policies: Policies, versions: Mapping[str, int]) -> Call[int]:
    """All or none; None takes a policy away. Where `versions` has a tube, only if its policy has that version (0: if it has none).
    Returns the new version. Raises Conflict."""
    changes = []
    for tube, policy in policies.items():
        try:
            document = policy if policy is None or isinstance(policy, PolicyDocument) else document_from(policy)
            new = policy_of(document) if document is not None else None
        except ValueError as error:
            raise Refused(f"the policy of {tube!r}: {error}") from None
        changes.append(PolicyChange(tube, new, versions.get(tube)))

    def parse(reply: object) -> int:
        match reply:
            case r.PoliciesSet(version=version):
                return version
            case r.PolicyRefused(why="conflict", tube=tube, version=version):
                has = f"has version {version} by now" if version else "has none by now"
                raise Conflict(f"the policy of {tube!r} was changed by another: it {has}. Look at it, and set it again")
            case r.PolicyRefused(why="circle", tube=tube):
                raise Refused(f"dead_letter: dead jobs of {tube!r} would go in a circle, or through more than {DEAD_LETTER_TUBES} tubes")
            case r.PolicyRefused():
                raise Refused(f"there would be more than {POLICIES:,} policies")
        _unexpected(reply)

    return Call(_checked(asks.SetPolicies(changes)), parse)


class ScheduleInfo(msgspec.Struct, frozen=True):
    """How a schedule is. `next`, `last`: its next occurrence and its last, None: not known yet, or none; `last_job`: the job of the last.
    `put`, `skipped`: how many occurrences were put, and how many were not: missed, too early, or their tube was full."""

    name: str
    version: int
    schedule: ScheduleDocument
    is_paused: bool
    next: datetime | None
    last: datetime | None
    last_job: int
    put: int
    skipped: int


def set_schedule(name: str, schedule: ScheduleDocument | Mapping[str, Any] | None, version: int | None) -> Call[int]:
    """The new version. Raises Conflict."""
    try:
        document = schedule if schedule is None or isinstance(schedule, ScheduleDocument) else document_from_schedule(schedule)
        plan = plan_of(document) if document is not None else None
    except ValueError as error:
        raise Refused(f"schedule {name!r}: {error}") from None

    def parse(reply: object) -> int:
        match reply:
            case r.ScheduleSet(version=version):
                return version
            case r.ScheduleRefused(why="conflict", version=version):
                has = f"has version {version} by now" if version else "is not there"
                raise Conflict(f"schedule {name!r} was changed by another: it {has}. Look at it, and set it again")
            case r.ScheduleRefused():
                raise Refused(f"there would be more than {SCHEDULES:,} schedules")
            case r.JobTooBig():
                raise TooLarge("the job is larger than the cluster takes (max_job_size)")
        _unexpected(reply)

    return Call(_checked(asks.SetSchedule(name, plan, version)), parse)


def pause_schedule(name: str, is_paused: bool) -> Call[None]:
    def parse(reply: object) -> None:
        if isinstance(reply, r.NotFound):
            raise NotFound(f"there is no schedule {name!r}")
        if not isinstance(reply, r.Paused):
            _unexpected(reply)

    return Call(_checked(asks.PauseSchedule(name, is_paused)), parse)


def run_schedule(name: str) -> Call[int]:
    """The id of the job."""

    def parse(reply: object) -> int:
        match reply:
            case r.InsertedMany(first=id):
                return id
            case r.NotFound():
                raise NotFound(f"there is no schedule {name!r}")
            case r.TubeFull():
                raise TubeFull(f"the tube of schedule {name!r} is full, or disks are. Nothing was put")
        _unexpected(reply)

    return Call(_checked(asks.RunSchedule(name)), parse)


def schedules(name: str, after: str) -> Call[tuple[list[ScheduleInfo], bool]]:
    """That one, or some by name and whether there are more."""
    if name:
        _checked(asks.RunSchedule(name))

    def parse(reply: object) -> tuple[list[ScheduleInfo], bool]:
        if not isinstance(reply, w.SchedulesFound):
            _unexpected(reply)
        return [_schedule(found) for found in reply.schedules], reply.has_more

    return Call(lambda id: w.SchedulesRequest(id, name, after), parse)


def _schedule(found: w.ScheduleInfo) -> ScheduleInfo:
    return ScheduleInfo(
        found.name,
        found.version,
        document_of_plan(found.plan),
        found.is_paused,
        datetime.fromtimestamp(found.next_ms / 1000, UTC) if found.next_ms else None,
        datetime.fromtimestamp(found.last_ms / 1000, UTC) if found.last_ms else None,
        found.last_job,
        found.put,
        found.skipped,
    )


class Step(NamedTuple):
    """One step of a replay: so many jobs were done, and so many could not be. `after`: where the next begins, None: it was the last."""

    done: int
    skipped: int
    after: int | None


class Counted(NamedTuple):
    """So many are dead or buried, in this part; `which` says which, as they were when the first part was counted."""

    found: int
    which: asks.Selection
    after: int | None


def count_dead(which: asks.Selection, older: float, newer: float | None, after: int) -> Call[Counted]:
    """`older`, `newer`: dead for so many seconds at least, and at most. Counting completes the selection: what dies or is put later is not
    in it."""
    _checked(asks.Replay(which, "move"))
    older_ms, newer_ms = ms(older), ms(newer or 0)
    if newer is not None and not newer_ms:
        raise Refused("newer: expected seconds, more than 0")

    def parse(reply: object) -> Counted:
        if not isinstance(reply, w.Counted):
            _unexpected(reply)
        return Counted(reply.count, reply.which, None if reply.is_done else reply.after)

    return Call(lambda id: w.CountRequest(id, which, older_ms, newer_ms, after), parse)


def replay(which: asks.Selection, action: asks.Action, to: str, after: int) -> Call[Step]:
    if action not in ("move", "kick", "delete"):
        raise Refused(f"action {action!r}: expected move, kick or delete")

    def parse(reply: object) -> Step:
        if not isinstance(reply, r.Replayed):
            _unexpected(reply)
        return Step(reply.done, reply.skipped, None if reply.is_done else reply.after)

    return Call(_checked(asks.Replay(which, action, to, after)), parse)


def policies(after: str) -> Call[tuple[list[TubePolicy], bool]]:
    """Some, by the names of their tubes, and whether there are more."""

    def parse(reply: object) -> tuple[list[TubePolicy], bool]:
        if not isinstance(reply, w.PoliciesFound):
            _unexpected(reply)
        return [TubePolicy(tube, version, document_of(policy)) for tube, version, policy in reply.policies], reply.has_more

    return Call(lambda id: w.PoliciesRequest(id, after=after), parse)


def policy(tube: str) -> Call[TubePolicy | None]:
    """That of one tube."""
    _checked(asks.Declare(tube))

    def parse(reply: object) -> TubePolicy | None:
        if not isinstance(reply, w.PoliciesFound):
            _unexpected(reply)
        for name, version, policy in reply.policies:
            return TubePolicy(name, version, document_of(policy))
        return None

    return Call(lambda id: w.PoliciesRequest(id, tube), parse)


class JobView(_Body):
    """A reserved job. `token` is greater than that of any earlier reservation: a fence for what the worker writes. `attempts`: how many
    have failed before. Times in seconds."""

    def __init__(self, job: r.Job) -> None:
        self.id = job.id
        self.token = job.token
        self.tube = job.tube
        self.body = job.body
        self.priority = job.pri
        self.ttr = job.ttr_ms / 1000
        self.attempts = job.failures

    @property
    def key(self) -> asks.Held:
        return self.id, self.token

    def __repr__(self) -> str:
        return f"<job {self.id} of {self.tube!r}, {len(self.body)} bytes>"


def deleted(job: JobView, result: Body = b"") -> Call[None]:
    return about(asks.Delete([job.key], data(result)))


def released(job: JobView, delay: float, priority: int | None) -> Call[None]:
    return about(asks.Release([job.key], ms(delay), priority))


def failed(job: JobView, error: BaseException | str, delay: float, unless_backoff: bool) -> Call[None]:
    return about(asks.Fail([job.key], ms(delay), _error(error), unless_backoff))


def buried(job: JobView, priority: int | None, error: BaseException | str) -> Call[None]:
    return about(asks.Bury([job.key], priority, _error(error)))


def _error(error: BaseException | str) -> str:
    return text_of(error)[:ERROR_CHARACTERS]


def text_of(error: BaseException | str) -> str:
    """What can be sent and shown, whatever the exception is like."""
    try:
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}".removesuffix(": ")
    except Exception:  # an exception that cannot say what it is
        text = type(error).__name__
    return text.encode(errors="backslashreplace").decode()


def touched(job: JobView) -> Call[None]:
    return about(asks.Touch([job.key]))

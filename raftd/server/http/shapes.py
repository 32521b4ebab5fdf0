"""The bodies of `/v1`: what callers send and what they are told. From these both the checks and the specification are made.

Times are in seconds, moments in RFC 3339 by log time. A job's body is text, or base64 where it is not.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from raftd.jobs.machine import StateMachine
from raftd.jobs.model import Job, JobEventKind, State, Tube
from raftd.jobs.schedules import Schedule
from raftd.limits import JOBS_PER_PUT, KICKED_JOBS, SEARCH_CHARACTERS, UNIQUE_CHARACTERS
from raftd.node import job_events
from raftd.wire.policy import PolicyDocument, TubeName, document_of
from raftd.wire.schedule import Base64, ScheduleDocument, ScheduleName
from raftd.wire.schedule import document_of as document_of_plan

#: The longest that a call may wait for jobs (seconds): less than a minute, after which proxies and clients give up.
RESERVE_WAIT_S = 55
#: Tubes that one call over HTTP may reserve from: each is a command.
RESERVE_TUBES = 100

_U32 = 0xFFFF_FFFF

JobId = Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
NodeId = Annotated[int, Meta(ge=1, le=(1 << 31) - 1)]
Token = Annotated[int, Meta(ge=1, le=(1 << 63) - 1, description="Of the reservation: a later one of any job has a greater one.")]
Priority = Annotated[int, Meta(ge=0, le=_U32, description="0 is the most urgent.")]
Delay = Annotated[float, Meta(ge=0, le=_U32, description="Seconds until it can be reserved.")]
TimeToRun = Annotated[float, Meta(ge=1, le=_U32, description="Seconds that a reservation lasts unless it is touched.")]
PRIORITY, TIME_TO_RUN_S = 65_536, 60
LONGEST_S = _U32
_LAST_MS = 253_402_300_799_000

#: The parameters that stand in paths.
PARTS = {"tube": TubeName, "name": ScheduleName, "id": JobId, "node": NodeId}


def ms(seconds: float) -> int:
    return round(seconds * 1000)


def moment_ms(moment: datetime) -> int:
    """As log time has it; 1 for what is before, and the last that `moment` can say for what is later."""
    return min(max(1, ms(moment.timestamp())), _LAST_MS)


def moment(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Given(Struct, forbid_unknown_fields=True):
    """What a caller sends: nothing in it is overlooked."""


# -- what callers send -------------------------------------------------------------------------


class Unique(_Given):
    """The only job of its kind in its tube: while there is one, another is not put."""

    key: Annotated[str, Meta(min_length=1, max_length=UNIQUE_CHARACTERS)]
    until: Annotated[Literal["deleted", "reserved"], Meta(description="`deleted` or dead; or `reserved` for the first time.")] = "deleted"
    for_s: Annotated[float, Meta(ge=0.001, le=_U32, description="For so long at most.")] | None = None


class NewJob(_Given):
    """A job to be put: `body` or `base64`. Without a priority, or a time to run, it has that of its tube's policy, or 65536, and 60 s."""

    body: str | UnsetType = UNSET
    base64: Base64 | UnsetType = UNSET
    priority: Priority | UnsetType = UNSET
    delay_s: Delay = 0
    run_at: Annotated[datetime, Meta(tz=True, description="When it can be reserved, instead of a delay.")] | UnsetType = UNSET
    ttr_s: TimeToRun | UnsetType = UNSET
    unique: Unique | UnsetType = UNSET


NewJobs = NewJob | Annotated[list[NewJob], Meta(min_length=1, max_length=JOBS_PER_PUT)]

#: What the specification says besides of some of these, by name.
MORE_SCHEMA = {"NewJob": {"oneOf": [{"required": ["body"]}, {"required": ["base64"]}]}}


class Reserve(_Given):
    """Which jobs are wanted. Tubes are watched together: the most urgent job of any of them comes first."""

    tubes: Annotated[list[TubeName], Meta(min_length=1, max_length=RESERVE_TUBES)] = field(default_factory=lambda: ["default"])
    count: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000,
            description="The most jobs to reserve; fewer are returned if no more are ready, or once they have 4 MiB together.",
        ),
    ] = 1
    timeout_s: Annotated[float, Meta(ge=0, le=RESERVE_WAIT_S, description="How long to wait for the first.")] = 0


class Held(_Given):
    token: Token


class Release(_Given):
    token: Token
    priority: Priority | None = None
    delay_s: Delay = 0


class Bury(_Given):
    token: Token
    priority: Priority | None = None


class Pause(_Given):
    seconds: Annotated[float, Meta(ge=0, le=_U32, description="0 ends a pause.")]


class Kick(_Given):
    count: Annotated[int, Meta(ge=1, le=KICKED_JOBS)] = 1


class Selected(_Given):
    """Dead letters and buried jobs of a tube: whose last error has this text in it, that died in this tube, that are dead or
    buried since a moment between these, with ids up to this one."""

    error: Annotated[str, Meta(max_length=SEARCH_CHARACTERS)] = ""
    origin: TubeName | None = None
    from_: Annotated[datetime, Meta(tz=True)] | None = field(default=None, name="from")
    before: Annotated[datetime, Meta(tz=True)] | None = None
    up_to: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0


class Replay(Selected):
    """One step: of the jobs behind `after` those that fit are moved, each to where it died or all `to` a tube; kicked if they are buried;
    or deleted."""

    action: Literal["move", "kick", "delete"] = "move"
    to: TubeName | None = None
    after: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0


class PauseSchedule(_Given):
    paused: bool = True


class Transfer(_Given):
    node: NodeId


class NewSession(_Given):
    is_read_only: Annotated[bool, Meta(description="With the cookie nothing can be changed.")] = False


class NewMember(_Given):
    node: NodeId
    host: Annotated[str, Meta(min_length=1, max_length=253, pattern=r"^[!-~]+$(?!\n)")]
    peer: Annotated[int, Meta(ge=1, le=65_535, description="The port of its peer listener.")]
    client: Annotated[int, Meta(ge=0, le=65_535, description="The port of its client listener, 0 if it has none.")] = 0


# -- what they are told ------------------------------------------------------------------------


class Stored(Struct):
    """The ids of the jobs that were put, in their order. `exists`: nothing was put, for there is the only job of its kind."""

    ids: list[JobId]
    exists: bool | UnsetType = UNSET


class Result(Struct):
    """What came of a job that a worker has finished, after so many failed attempts."""

    id: JobId
    tube: str
    attempts: int
    finished: str
    body: str | UnsetType = UNSET
    base64: Base64 | UnsetType = UNSET


class Death(Struct):
    """Why a policy has declared a job dead, where and when, and after how many failed attempts."""

    reason: Literal["attempts", "expired", "overflow"]
    tube: str
    at: str
    attempts: int


class Who(Struct):
    node: int
    client: int


class JobView(Struct):
    """`left_s`: until its delay or its time to run is over. `held_by`: which session has it reserved; the `node` of one of the client
    protocol is 0. `attempts`: how many have failed; `error`: why the last of them did, if that was said. `buried_at`: null unless it is
    buried, and was since feature level 6."""

    id: JobId
    tube: str
    state: Literal["ready", "delayed", "reserved", "buried"]
    priority: int
    age_s: float
    delay_s: float
    ttr_s: float
    left_s: float | None
    held_by: Who | None
    buried_at: str | None
    reserves: int
    timeouts: int
    releases: int
    buries: int
    kicks: int
    attempts: int
    error: str | None
    death: Death | None
    body: str | UnsetType = UNSET
    base64: Base64 | UnsetType = UNSET


class Reservation(Struct):
    """A job that is the caller's until `deadline`: delete, release, bury or touch it with its token before."""

    id: JobId
    tube: str
    priority: int
    ttr_s: float
    token: Token
    deadline: str
    body: str | UnsetType = UNSET
    base64: Base64 | UnsetType = UNSET


class Reservations(Struct):
    """Empty if none was ready in time."""

    jobs: list[Reservation]


class Touched(Struct):
    deadline: str


class Kicked(Struct):
    kicked: int


class TubeView(Struct):
    """`is_topic`: it was declared, and stays though it may be empty. `urgent` jobs are ready, with a priority below 1024. `bytes`: of the
    bodies of its jobs. `policy_version`: of its policy, 0 if it has none. `dead`: jobs that a policy has declared dead, whatever they are
    now. `oldest_s`: how long ago the oldest ready job was put. `in_per_s`, `out_per_s`: jobs that came and
    that went, for whatever reason, in the last seconds, as this node has seen."""

    name: str
    is_topic: bool
    urgent: int
    ready: int
    reserved: int
    delayed: int
    buried: int
    total_jobs: int
    deletes: int
    using: int
    watching: int
    waiting: int
    pause_left_s: float
    bytes: int
    policy_version: int
    dead: int
    oldest_s: float | None
    in_per_s: float
    out_per_s: float


class PolicyView(Struct):
    """What a tube does by itself. `version`: it grows with each change of any policy."""

    tube: str
    version: int
    policy: PolicyDocument


class PolicyList(Struct):
    """By tube. `more`: there are others behind the last one; ask again with it as `after`."""

    policies: list[PolicyView]
    more: bool


class DeadCount(Struct):
    """So many dead letters and buried jobs were there at `before`, with ids up to `up_to`: those that a replay with these two would touch;
    and so many of them are `buried`. `more`: ask again with them and with `after`, and add."""

    count: int
    buried: int
    before: str
    up_to: int
    after: int
    more: bool


class Replayed(Struct):
    """So many were done, and so many that fit could not be: their tube is full, or there is nowhere to go. `more`: ask again with
    `after`."""

    done: int
    skipped: int
    after: int
    more: bool


class ScheduleView(Struct):
    """`next`: its next occurrence, by the leader's clock; null: not known yet, or none. `last_job`: the job of the last. `put`, `skipped`:
    how many occurrences were put, and how many were not: missed, too early, or their tube was full."""

    name: str
    version: int
    schedule: ScheduleDocument
    is_paused: bool
    next: str | None
    last: str | None
    last_job: int
    put: int
    skipped: int


class ScheduleList(Struct):
    """By name. `more`: there are others behind the last one; ask again with it as `after`."""

    schedules: list[ScheduleView]
    more: bool


class TubeList(Struct):
    """`more`: there are others; ask again with this `after`. (Sorted by name, that is the last one's; or ask with that.)"""

    tubes: list[TubeView]
    more: bool
    after: str


class JobEvent(Struct):
    """Something that happened to a job, in this entry of the log; `number` counts what happened in it. `by` is null if time did it.
    `until`: the end of its delay or of its time to run."""

    entry: int
    number: int
    time: str
    what: JobEventKind
    job: JobId
    tube: str
    by: Who | None
    token: int | None
    until: str | None


class History(Struct):
    """What this node remembers of a job: everything from entry `known_from` of the log on, the newest thousand things."""

    job: JobId
    known_from: int
    events: list[JobEvent]
    now: JobView | None


class QueueStats(Struct):
    """Of the whole queue, as this node has applied it; and of this node."""

    urgent: int
    ready: int
    reserved: int
    delayed: int
    buried: int
    total_jobs: int
    job_timeouts: int
    tubes: int
    max_job_size: int
    keys: int
    node: int
    role: str
    term: int
    leader: int
    commit_index: int
    applied_index: int
    uptime_s: int
    version: str
    is_draining: bool


class MemberView(Struct):
    node: int
    state: str
    host: str | None
    peer: int | None
    client: int | None


class Cluster(Struct):
    """As this node sees it. `leader` is 0 if it knows none; `is_settled`: no change of the members is under way."""

    cluster: str
    node: int
    role: str
    term: int
    leader: int
    is_settled: bool
    members: list[MemberView]
    removed: list[int]


class GrantView(Struct):
    """`tubes`: a name, or a pattern with one `*`. `is_denied`: it takes the right away, whatever else gives it."""

    right: str
    tubes: str
    is_denied: bool


class TokenView(Struct):
    """`left_s`: until it expires; null: never."""

    name: str
    age_s: float
    left_s: float | None


class QuotaView(Struct):
    """0: any number."""

    jobs_per_s: int
    bytes_per_s: int
    connections: int
    tubes: int


class UserView(Struct):
    name: str
    has_password: bool
    grants: list[GrantView]
    tokens: list[TokenView]
    quota: QuotaView


class UserList(Struct):
    """By name. `more`: there are others behind the last one; ask again with it as `after`."""

    users: list[UserView]
    more: bool


class RecordView(Struct):
    """Of the audit log: what was done to what, by which user ("": nobody had to say who he is), over which node, in this entry of the
    log. Numbers have no gaps."""

    number: int
    entry: int
    time: str
    user: str
    node: int
    what: str
    to: str


class RecordList(Struct):
    """The newest first. `more`: ask again with the last number as `before`."""

    records: list[RecordView]
    more: bool


class SessionView(Struct):
    """Who one is to this node. `user`: null if nobody had to say so, or has not. `sees_all`: he may look at every tube, or operate.
    `operates`: he may operate the cluster. `is_read_only`: what the page asks for changes nothing. `secret`: a page shows it with each
    change, in the header Raftd-Page; it is told by POST alone."""

    cluster: str
    node: int
    has_users: bool
    user: str | None
    sees_all: bool
    operates: bool
    grants: list[GrantView]
    is_read_only: bool
    takes_passwords: bool
    is_browser: bool
    secret: str


class SeriesView(Struct):
    """What this node has seen of the whole queue, oldest first, a point every `step_s` seconds: per second (`put`, `taken`: reservations,
    `gone`: jobs that are no more, `timed_out`), jobs by state, and latencies in seconds: of batches of this node's clients until they were
    applied here, and of writes to its log. null: nothing is known."""

    step_s: int
    put: list[float | None]
    taken: list[float | None]
    gone: list[float | None]
    timed_out: list[float | None]
    ready: list[float | None]
    reserved: list[float | None]
    delayed: list[float | None]
    buried: list[float | None]
    commit_p50_s: list[float | None]
    commit_p99_s: list[float | None]
    fsync_p99_s: list[float | None]


def body_fields(body: bytes) -> dict[str, Any]:
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"base64": body}


_STATES: dict[State, Literal["ready", "delayed", "reserved", "buried"]] = {
    State.READY: "ready",
    State.DELAYED: "delayed",
    State.RESERVED: "reserved",
    State.BURIED: "buried",
}


class JobList(Struct):
    """`more`: ask again with this `after`."""

    jobs: list[JobView]
    after: str
    more: bool


def job_view(machine: StateMachine, job: Job, now_ms: int, with_body: bool = True) -> JobView:
    mark = machine.policies.marks.get(job.id)
    runs = job.state in (State.RESERVED, State.DELAYED)
    return JobView(
        id=job.id,
        tube=job.tube.name,
        state=_STATES[job.state],
        priority=job.pri,
        age_s=max(0, now_ms - job.created_ms) / 1000,
        delay_s=job.delay_ms / 1000,
        ttr_s=job.ttr_ms / 1000,
        left_s=max(0, job.deadline_ms - now_ms) / 1000 if runs else None,
        held_by=Who(*job.holder) if job.state is State.RESERVED else None,
        buried_at=moment(job.buried_ms) if job.state is State.BURIED and job.buried_ms else None,
        reserves=job.reserves,
        timeouts=job.timeouts,
        releases=job.releases,
        buries=job.buries,
        kicks=job.kicks,
        attempts=machine.attempts(job),
        error=machine.clients.errors.get(job.id),
        death=Death(mark.death, mark.origin, moment(mark.died_ms), mark.attempts) if mark is not None and mark.death else None,
        **(body_fields(job.body) if with_body else {}),
    )


def reservation(job: Job) -> Reservation:
    """Of a job that has just been reserved."""
    rest = body_fields(job.body)
    return Reservation(job.id, job.tube.name, job.pri, job.ttr_ms / 1000, job.token, moment(job.deadline_ms), **rest)


def tube_view(tube: Tube, now_ms: int, oldest_s: float | None, in_per_s: float, out_per_s: float) -> TubeView:
    return TubeView(
        tube.name,
        tube.is_declared,
        tube.urgent,
        len(tube.ready),
        tube.reserved,
        len(tube.delayed),
        len(tube.buried),
        tube.total_jobs,
        tube.cmd_delete,
        tube.using,
        tube.watching,
        len(tube.waiters),
        max(0, tube.pause_until_ms - now_ms) / 1000,
        tube.bytes,
        tube.version,
        tube.dead,
        oldest_s,
        in_per_s,
        out_per_s,
    )


def schedule_view(schedule: Schedule) -> ScheduleView:
    return ScheduleView(
        schedule.name,
        schedule.version,
        document_of_plan(schedule.plan),
        schedule.is_paused,
        moment(schedule.next_ms) if schedule.next_ms else None,
        moment(schedule.last_ms) if schedule.last_ms else None,
        schedule.last_job,
        schedule.put,
        schedule.skipped,
    )


def policy_view(tube: Tube) -> PolicyView | None:
    return PolicyView(tube.name, tube.version, document_of(tube.policy)) if tube.policy is not None else None


def job_event(event: job_events.JobEvent) -> JobEvent:
    return JobEvent(
        event.entry,
        event.number,
        moment(event.time_ms),
        event.what,
        event.job,
        event.tube,
        Who(*event.who) if event.who is not None else None,
        event.token or None,
        moment(event.deadline_ms) if event.deadline_ms else None,
    )

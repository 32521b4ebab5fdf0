"""The bodies of `/v1`: what callers send and what they are told. From these both the checks and the specification are made.

Times are in seconds, moments in RFC 3339 by log time. A job's body is text, or base64 where it is not.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from raftd.jobs.model import Job, JobEventKind, State, Tube
from raftd.limits import JOBS_PER_PUT, KICKED_JOBS
from raftd.node import job_events

#: The longest that a call may wait for jobs (seconds): less than a minute, after which proxies and clients give up.
RESERVE_WAIT_S = 55
#: Tubes that one call over HTTP may reserve from: each is a command.
RESERVE_TUBES = 100

_U32 = 0xFFFF_FFFF

TUBE_NAME = "1 to 200 of A-Z a-z 0-9 - + / ; . $ _ ( ), and no - first"
TubeName = Annotated[
    str,
    # (?!\n): Python's $ would let one stand at the end
    Meta(pattern=r"^[A-Za-z0-9+/;.$_()][A-Za-z0-9+/;.$_()\-]{0,199}$(?!\n)", description=TUBE_NAME),
]
JobId = Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
NodeId = Annotated[int, Meta(ge=1, le=(1 << 31) - 1)]
Token = Annotated[int, Meta(ge=1, le=(1 << 63) - 1, description="Of the reservation: a later one of any job has a greater one.")]
Priority = Annotated[int, Meta(ge=0, le=_U32, description="0 is the most urgent.")]
Delay = Annotated[float, Meta(ge=0, le=_U32, description="Seconds until it can be reserved.")]
TimeToRun = Annotated[float, Meta(ge=1, le=_U32, description="Seconds that a reservation lasts unless it is touched.")]
Base64 = Annotated[
    bytes, Meta(extra_json_schema={"pattern": "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"}, description="Any bytes.")
]
PRIORITY, TIME_TO_RUN_S = 65_536, 60

#: The parameters that stand in paths.
PARTS = {"tube": TubeName, "id": JobId, "node": NodeId}


def ms(seconds: float) -> int:
    return round(seconds * 1000)


def moment(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Given(Struct, forbid_unknown_fields=True):
    """What a caller sends: nothing in it is overlooked."""


# -- what callers send -------------------------------------------------------------------------


class NewJob(_Given):
    """A job to be put: `body` or `base64`."""

    body: str | UnsetType = UNSET
    base64: Base64 | UnsetType = UNSET
    priority: Priority = PRIORITY
    delay_s: Delay = 0
    ttr_s: TimeToRun = TIME_TO_RUN_S


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


class Transfer(_Given):
    node: NodeId


class NewMember(_Given):
    node: NodeId
    host: Annotated[str, Meta(min_length=1, max_length=253, pattern=r"^[!-~]+$(?!\n)")]
    peer: Annotated[int, Meta(ge=1, le=65_535, description="The port of its peer listener.")]
    client: Annotated[int, Meta(ge=0, le=65_535, description="The port of its client listener, 0 if it has none.")] = 0


# -- what they are told ------------------------------------------------------------------------


class Stored(Struct):
    """The ids of the jobs that were put, in their order."""

    ids: list[JobId]


class JobView(Struct):
    """`left_s`: until its delay or its time to run is over."""

    id: JobId
    tube: str
    state: Literal["ready", "delayed", "reserved", "buried"]
    priority: int
    age_s: float
    delay_s: float
    ttr_s: float
    left_s: float | None
    reserves: int
    timeouts: int
    releases: int
    buries: int
    kicks: int
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
    """`is_topic`: it was declared, and stays though it may be empty. `urgent` jobs are ready, with a priority below 1024."""

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


class TubeList(Struct):
    """By name. `more`: there are others behind the last one; ask again with it as `after`."""

    tubes: list[TubeView]
    more: bool


class Who(Struct):
    node: int
    client: int


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


def job_view(job: Job, now_ms: int, with_body: bool = True) -> JobView:
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
        reserves=job.reserves,
        timeouts=job.timeouts,
        releases=job.releases,
        buries=job.buries,
        kicks=job.kicks,
        **(body_fields(job.body) if with_body else {}),
    )


def reservation(job: Job) -> Reservation:
    """Of a job that has just been reserved."""
    rest = body_fields(job.body)
    return Reservation(job.id, job.tube.name, job.pri, job.ttr_ms / 1000, job.token, moment(job.deadline_ms), **rest)


def tube_view(tube: Tube, now_ms: int) -> TubeView:
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
    )


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

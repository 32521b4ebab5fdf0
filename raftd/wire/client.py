"""What the client listener and a client say to each other.

A client sends a hello, then requests, each with an id of its own choosing; the node answers each with
that id and the log index at which it was applied there.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from raftd.errors import UNDECODABLE, FrameError, HelloRefused, UnknownUser
from raftd.jobs.asks import Plan, Selection, What
from raftd.jobs.policy import Policy
from raftd.jobs.replies import AccessChanged, AccessRefused, AskReply, TakenOver
from raftd.jobs.rights import Change, Grant, Quota
from raftd.raft.messages import Configuration
from raftd.raft.outcomes import Outcome
from raftd.wire.frames import frame

_MAGIC = b"raftd-client"
VERSION = 1
_T = TypeVar("_T")


class ClientHello(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`cluster` empty: any cluster will do."""

    cluster: str = ""


class SessionHello(msgspec.Struct, frozen=True, array_like=True):
    """Of a client that has a session, or says who he is. `session`: its token, 16 random bytes; the session with it is resumed, or made;
    empty for one without a session. `client`: what the client calls itself, for people. `token`: of a user; or `user` and `password`, over
    TLS only. Without either he is who his certificate says."""

    cluster: str
    session: bytes
    client: str = ""
    token: str = ""
    user: str = ""
    password: str = ""


class AttachedHello(msgspec.Struct, frozen=True, array_like=True):
    """To a SessionHello, once the connection speaks for the session. `session`: its number; another one than before, if it had ended and
    was made anew. `epoch`: so many connections have spoken for it. Asks up to `last_id` were applied. Sizes in bytes, times in
    milliseconds."""

    cluster: str
    node: int
    max_job_size: int
    session: int
    epoch: int
    last_id: int
    session_timeout_ms: int
    silence_ms: int


class NodeHello(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    cluster: str
    node: int
    max_job_size: int


class _Request(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    id: int


class StatusRequest(_Request, frozen=True, tag=7):
    """Answered at once from this node, also without a quorum."""


class TransferRequest(_Request, frozen=True, tag=8):
    """Hand the lead of the cluster to `node`."""

    node: int


class MembersRequest(_Request, frozen=True, tag=9):
    """Answered at once from this node: who is a member, as far as its log says."""


class AddMemberRequest(_Request, frozen=True, tag=10):
    """Make `node` a learner, which becomes a voter by itself once it has caught up. `client` 0: it has no client listener."""

    node: int
    host: str
    peer: int
    client: int = 0


class PromoteMemberRequest(_Request, frozen=True, tag=11):
    node: int


class RemoveMemberRequest(_Request, frozen=True, tag=12):
    """For ever: the id is never used again."""

    node: int


class BackupRequest(_Request, frozen=True, tag=13):
    """A snapshot of everything that was acknowledged before: answered with a BackupReply once it is written."""


class ChunkRequest(_Request, frozen=True, tag=14):
    """The bytes of that snapshot from `offset` on: answered with a Chunk, of 256 KiB at most."""

    index: int
    offset: int


class AskRequest(msgspec.Struct, frozen=True, array_like=True, tag=20, gc=False):
    """Something to be done in the session. Ids of a session grow. The client has the answers to all asks before `answered`, but for
    those in `waiting`. Further fields are those of a newer protocol."""

    id: int
    answered: int
    waiting: list[int]
    what: What


class PingRequest(msgspec.Struct, frozen=True, array_like=True, tag=21):
    """Answered at once: whoever speaks for a session says something every few seconds."""

    id: int


class JobRequest(msgspec.Struct, frozen=True, array_like=True, tag=22):
    """How a job is, and its body. Answered with a JobFound."""

    id: int
    job: int


class NextRequest(msgspec.Struct, frozen=True, array_like=True, tag=23):
    """The job of the tube that would be reserved next; or of those in `state` delayed or buried. Answered with a JobFound."""

    id: int
    tube: str
    state: str = "ready"


class TubesRequest(msgspec.Struct, frozen=True, array_like=True, tag=24):
    """Up to `limit` tubes behind `after`, by name. Answered with a TubesFound."""

    id: int
    after: str = ""
    limit: int = 1_000


class TubeRequest(msgspec.Struct, frozen=True, array_like=True, tag=25):
    """How a tube is. Answered with a TubesFound of one, or of none."""

    id: int
    tube: str


class HistoryRequest(msgspec.Struct, frozen=True, array_like=True, tag=26):
    """What happened to a job, as far as this node remembers. Answered with a History."""

    id: int
    job: int


class PoliciesRequest(msgspec.Struct, frozen=True, array_like=True, tag=27):
    """That of `tube`; without one up to `limit` of tubes behind `after`, by name. Answered with a PoliciesFound."""

    id: int
    tube: str = ""
    after: str = ""
    limit: int = 1_000


class ResultRequest(msgspec.Struct, frozen=True, array_like=True, tag=28):
    """What came of a job that a worker has finished, if the policy of its tube retains that. Answered with a ResultFound."""

    id: int
    job: int


class CountRequest(msgspec.Struct, frozen=True, array_like=True, tag=29):
    """How many jobs are dead or buried: among those behind `after`. Without `up_to` the selection is completed first: up to the newest job,
    dead (or put) for `older_ms` at least and for `newer_ms` at most (0: any). Answered with a Counted."""

    id: int
    which: Selection
    older_ms: int = 0
    newer_ms: int = 0
    after: int = 0


class SchedulesRequest(msgspec.Struct, frozen=True, array_like=True, tag=30):
    """That of this `name`; without one up to `limit` behind `after`, by name, without bodies. Answered with a SchedulesFound."""

    id: int
    name: str = ""
    after: str = ""
    limit: int = 100


class UsersRequest(msgspec.Struct, frozen=True, array_like=True, tag=31):
    """That of this `name`; without one up to `limit` behind `after`, by name. Answered with a UsersFound."""

    id: int
    name: str = ""
    after: str = ""
    limit: int = 100


class AuditRequest(msgspec.Struct, frozen=True, array_like=True, tag=32):
    """Up to `limit` records of the audit log before the one with number `before` (0: the newest). Answered with an AuditFound."""

    id: int
    before: int = 0
    limit: int = 100


class ChangeAccessRequest(msgspec.Struct, frozen=True, array_like=True, tag=34):
    """Users and what they may: all of the changes or none. Answered with an AccessChanged or an AccessRefused."""

    id: int
    changes: list[Change]


class WhoAmIRequest(msgspec.Struct, frozen=True, array_like=True, tag=33):
    """Answered with a UsersFound of the user that this client is; of none, if nobody has to say who he is."""

    id: int


Read = (
    SchedulesRequest
    | CountRequest
    | ResultRequest
    | JobRequest
    | NextRequest
    | TubesRequest
    | TubeRequest
    | HistoryRequest
    | PoliciesRequest
    | UsersRequest
    | AuditRequest
    | WhoAmIRequest
)

Request = (
    AskRequest
    | PingRequest
    | Read
    | StatusRequest
    | TransferRequest
    | MembersRequest
    | AddMemberRequest
    | PromoteMemberRequest
    | RemoveMemberRequest
    | BackupRequest
    | ChunkRequest
    | ChangeAccessRequest
)


class Status(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=40):
    """This node's view, at once. Sizes in bytes, times in milliseconds.

    `leader` is 0 if it knows none. `match` is for a leader only: how far each other member is known to have the log. `snapshot_index`
    is 0 without a snapshot. `gateways`: (node, incarnation, whether it is open, clients). `jobs`: ready, reserved, delayed, buried.
    `longest_pause_ms`: the longest time since the start for which timers waited while the process worked, forks for snapshots excepted.
    `longest_work_ms`: the most processor time in such a pause. Both are 0 with another reactor than raftd's (`twistd --reactor`).
    `clock_ahead_ms`: how far this node's wall clock is ahead of the leader's, None if that is not known. `is_insecure`: it takes plain
    text beside TLS, or other machines reach it without TLS.
    """

    node: int
    role: str
    term: int
    leader: int
    commit_index: int
    applied_index: int
    nodes: int
    cluster_id: bytes
    cluster: str
    pid: int
    version: str
    feature_level: int
    last_index: int
    match: dict[int, int]
    log_bytes: int
    log_first_index: int
    snapshot_index: int
    snapshot_bytes: int
    free_bytes: int
    is_low_on_disk: bool
    space_is_scarce: bool
    is_draining: bool
    gateways: list[tuple[int, int, bool, int]]
    jobs: tuple[int, int, int, int]
    longest_pause_ms: float
    longest_work_ms: float
    clock_ahead_ms: int | None
    is_insecure: bool


class Members(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=43):
    """This node's view; `leader` is 0 if it knows none, and `is_settled` false while a change is under way. A new node
    takes its timings from here."""

    cluster: str
    leader: int
    is_settled: bool
    configuration: Configuration
    election_timeout_ms: int
    heartbeat_ms: int


class BackupReply(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=44):
    """Of the state at entry `index`; it can be read for a minute, and a minute longer with each ChunkRequest."""

    index: int
    size_bytes: int


class Chunk(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=45):
    data: bytes


class Failed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=41):
    """The request was not carried out; with `Outcome.UNKNOWN` it may have been. `text` says what to do."""

    outcome: Outcome
    text: str


def is_about_who(failed: Failed) -> bool:
    """Whether it is not known who asks, or he may not do that."""
    return failed.outcome is Outcome.NOT_AUTHORIZED


class Done(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=42):
    """What was asked of the cluster is done."""


class JobInfo(msgspec.Struct, frozen=True, array_like=True):
    """How a job is. Times in milliseconds; `left_ms` of its delay or its time to run. `failures`: attempts that have failed; `error`: why
    the last of them did, if that was said. Of a dead job: why (`attempts`, `expired`, `overflow`; "" for any other), of which tube, after
    how many attempts, for how long. `buried_ms`: for how long it is buried; None unless it is, and was since feature level 6."""

    id: int
    tube: str
    state: str
    pri: int
    age_ms: int
    delay_ms: int
    ttr_ms: int
    left_ms: int
    token: int
    reserves: int
    timeouts: int
    releases: int
    buries: int
    kicks: int
    failures: int
    error: str
    body: bytes
    death: str = ""
    origin: str = ""
    attempts: int = 0
    dead_ms: int = 0
    buried_ms: int | None = None


class FinishedInfo(msgspec.Struct, frozen=True, array_like=True):
    """Times in milliseconds."""

    id: int
    tube: str
    attempts: int
    finished_ms: int
    result: bytes


class JobFound(msgspec.Struct, frozen=True, array_like=True, tag=46):
    """None: there is no such job."""

    job: JobInfo | None


class TubeInfo(msgspec.Struct, frozen=True, array_like=True):
    """How a tube is. Times in milliseconds. `bytes`: of the bodies of its jobs. `policy_version`: of its policy, 0 if it has none."""

    name: str
    ready: int
    reserved: int
    delayed: int
    buried: int
    urgent: int
    waiting: int
    watching: int
    total_jobs: int
    deletes: int
    pause_left_ms: int
    is_declared: bool
    bytes: int = 0
    policy_version: int = 0


class TubesFound(msgspec.Struct, frozen=True, array_like=True, tag=47):
    """`has_more`: ask again behind the last."""

    tubes: list[TubeInfo]
    has_more: bool


class JobEvent(msgspec.Struct, frozen=True, array_like=True):
    """At `time_ms` of log time; `token` of the last reservation, 0 if there was none."""

    entry: int
    time_ms: int
    what: str
    tube: str
    token: int


class History(msgspec.Struct, frozen=True, array_like=True, tag=48):
    """The oldest first. Everything from entry `known_from` on is remembered."""

    known_from: int
    events: list[JobEvent]


class PoliciesFound(msgspec.Struct, frozen=True, array_like=True, tag=49):
    """(tube, version, policy). `has_more`: ask again behind the last."""

    policies: list[tuple[str, int, Policy]]
    has_more: bool


class ResultFound(msgspec.Struct, frozen=True, array_like=True, tag=50):
    """None: nothing is known of it. `finished_ms`: so long ago; `attempts`: how many had failed before."""

    job: FinishedInfo | None


class Counted(msgspec.Struct, frozen=True, array_like=True, tag=51):
    """`which`: completed. Ask again with it `after` this id, unless `is_done`."""

    count: int
    which: Selection
    after: int
    is_done: bool


class ScheduleInfo(msgspec.Struct, frozen=True, array_like=True):
    """`next_ms`, `last_ms`: the next occurrence and the last, in milliseconds since 1970, 0: not known yet, or none."""

    name: str
    version: int
    plan: Plan
    is_paused: bool
    next_ms: int
    last_ms: int
    last_job: int
    put: int
    skipped: int


class SchedulesFound(msgspec.Struct, frozen=True, array_like=True, tag=52):
    """`has_more`: ask again behind the last."""

    schedules: list[ScheduleInfo]
    has_more: bool


class TokenInfo(msgspec.Struct, frozen=True, array_like=True):
    """Times in milliseconds; `left_ms` None: it does not expire."""

    name: str
    age_ms: int
    left_ms: int | None


class UserInfo(msgspec.Struct, frozen=True, array_like=True):
    """A user, without what he shows to be it."""

    name: str
    has_password: bool
    grants: list[Grant]
    tokens: list[TokenInfo]
    quota: Quota


class UsersFound(msgspec.Struct, frozen=True, array_like=True, tag=57):
    """`has_more`: ask again behind the last."""

    users: list[UserInfo]
    has_more: bool


class AuditRecord(msgspec.Struct, frozen=True, array_like=True):
    """`number` grows by one with each record. `ago_ms`: in log time."""

    number: int
    index: int
    ago_ms: int
    user: str
    node: int
    what: str
    to: str


class AuditFound(msgspec.Struct, frozen=True, array_like=True, tag=58):
    """The newest first. `has_more`: ask again before the last."""

    records: list[AuditRecord]
    has_more: bool


NodeReply = (
    AccessChanged
    | AccessRefused
    | UsersFound
    | AuditFound
    | SchedulesFound
    | Counted
    | ResultFound
    | PoliciesFound
    | Status
    | Failed
    | Done
    | Members
    | BackupReply
    | Chunk
    | JobFound
    | TubesFound
    | History
)


class Answer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`index` is where it was applied in the log; for a Status, how far this node has applied it."""

    id: int
    index: int
    reply: AskReply | TakenOver | NodeReply


class Unknown(msgspec.Struct, frozen=True):
    """A request that this node does not understand; `text` says why."""

    id: int
    text: str


_encoder = msgspec.msgpack.Encoder()
_client_hello_decoder = msgspec.msgpack.Decoder(ClientHello)
_session_hello_decoder = msgspec.msgpack.Decoder(SessionHello)
_node_hello_decoder = msgspec.msgpack.Decoder(NodeHello)
_attached_hello_decoder = msgspec.msgpack.Decoder(AttachedHello)
_head_decoder: msgspec.msgpack.Decoder[list[Any]] = msgspec.msgpack.Decoder(list[Any])
_request_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_answer_decoder = msgspec.msgpack.Decoder(Answer)


def encode_hello(hello: ClientHello | SessionHello | NodeHello | AttachedHello) -> bytes:
    return frame(_MAGIC + bytes([VERSION]) + _encoder.encode(hello))


def decode_client_hello(body: bytes) -> ClientHello | SessionHello:
    """Raises FrameError with a reason."""
    data = _after_magic(body)
    is_short = len(_decode(_head_decoder, data)) <= len(ClientHello.__struct_fields__)
    return _decode(_client_hello_decoder, data) if is_short else _decode(_session_hello_decoder, data)


def decode_attached_hello(body: bytes) -> AttachedHello:
    """Raises FrameError with a reason: if the node refuses, with its; an UnknownUser if it does not know who that is."""
    if not body.startswith(_MAGIC):
        raise _refusal(body)
    return _decode(_attached_hello_decoder, _after_magic(body))


def _refusal(body: bytes) -> FrameError:
    reply = decode_answer(body).reply
    if not isinstance(reply, Failed):
        return FrameError(f"it answers a hello with {type(reply).__name__}")
    return UnknownUser(reply.text) if is_about_who(reply) else HelloRefused(reply.text)


def decode_node_hello(body: bytes) -> NodeHello:
    """As `decode_attached_hello`."""
    if not body.startswith(_MAGIC):
        raise _refusal(body)
    return _decode(_node_hello_decoder, _after_magic(body))


def encode_request(request: Request) -> bytes:
    return frame(_encoder.encode(request))


def decode_request(body: bytes) -> Request | Unknown:
    """Raises FrameError with a reason, for what is no request."""
    try:
        return _request_decoder.decode(body)
    except UNDECODABLE as error:
        return _not_understood(body, error)


def _not_understood(body: bytes, error: Exception) -> Unknown:
    """A request that has an id can be answered."""
    match _decode(_head_decoder, body):
        case [int(tag), int(id), *rest]:
            if tag == AskRequest.__struct_config__.tag and len(rest) > 2 and isinstance(rest[2], list) and rest[2][:1]:
                return Unknown(id, f"the node does not know ask {rest[2][0]!r:.20}, or not with these fields: {error!s:.200}")
            return Unknown(id, f"the node does not know request {tag}, or not with these fields: {error!s:.200}")
    raise FrameError(f"a frame cannot be read: {error}") from None


def encode_answer(answer: Answer) -> bytes:
    return frame(_encoder.encode(answer))


def decode_answer(body: bytes) -> Answer:
    """Raises FrameError with a reason."""
    return _decode(_answer_decoder, body)


def _after_magic(body: bytes) -> bytes:
    if not body.startswith(_MAGIC) or len(body) <= len(_MAGIC):
        raise FrameError("this is no hello of the client protocol")
    version = body[len(_MAGIC)]
    if version != VERSION:
        raise FrameError(f"version {version} of the client protocol is not spoken here, version {VERSION} is")
    return body[len(_MAGIC) + 1 :]


def _decode(decoder: msgspec.msgpack.Decoder[_T], body: bytes) -> _T:
    try:
        return decoder.decode(body)
    except UNDECODABLE as error:
        raise FrameError(f"a frame cannot be read: {error}") from None

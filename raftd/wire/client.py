"""What the client listener and a client say to each other.

A client sends a hello, then requests, each with an id of its own choosing; the node answers each with
that id and the log index at which it was applied there. Requests of one connection take effect in order.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from raftd.errors import UNDECODABLE, FrameError
from raftd.jobs.replies import Reply
from raftd.raft.messages import Configuration
from raftd.raft.outcomes import Outcome
from raftd.wire.frames import frame

_MAGIC = b"raftd-client"
VERSION = 1
_T = TypeVar("_T")


class ClientHello(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`cluster` empty: any cluster will do."""

    cluster: str = ""


class NodeHello(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    cluster: str
    node: int
    max_job_size: int


class _Request(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    id: int


class PutRequest(_Request, frozen=True, tag=1):
    """`tube` empty: the one in use. Times in milliseconds."""

    body: bytes
    tube: str = ""
    pri: int = 65_536
    delay_ms: int = 0
    ttr_ms: int = 60_000


class UseRequest(_Request, frozen=True, tag=2):
    tube: str


class WatchRequest(_Request, frozen=True, tag=3):
    tube: str


class IgnoreRequest(_Request, frozen=True, tag=4):
    tube: str


class ReserveRequest(_Request, frozen=True, tag=5):
    """`timeout_ms` None waits for ever."""

    timeout_ms: int | None = None


class DeleteRequest(_Request, frozen=True, tag=6):
    """`token` 0: held by this connection, or not reserved."""

    job: int
    token: int = 0


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


Request = (
    PutRequest
    | UseRequest
    | WatchRequest
    | IgnoreRequest
    | ReserveRequest
    | DeleteRequest
    | StatusRequest
    | TransferRequest
    | MembersRequest
    | AddMemberRequest
    | PromoteMemberRequest
    | RemoveMemberRequest
    | BackupRequest
    | ChunkRequest
)


class Status(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=40):
    """This node's view, at once. Sizes in bytes, times in milliseconds.

    `leader` is 0 if it knows none. `match` is for a leader only: how far each other member is known to have the log. `snapshot_index`
    is 0 without a snapshot. `gateways`: (node, incarnation, whether it is open, clients). `jobs`: ready, reserved, delayed, buried.
    `longest_pause_ms`: the longest time since the start for which timers waited while the process worked, forks for snapshots excepted.
    `longest_work_ms`: the most processor time in such a pause. Both are 0 with another reactor than raftd's (`twistd --reactor`).
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


class Done(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=42):
    """What was asked of the cluster is done."""


NodeReply = Status | Failed | Done | Members | BackupReply | Chunk


class Answer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`index` is where it was applied in the log; for a Status, how far this node has applied it."""

    id: int
    index: int
    reply: Reply | NodeReply


_encoder = msgspec.msgpack.Encoder()
_client_hello_decoder = msgspec.msgpack.Decoder(ClientHello)
_node_hello_decoder = msgspec.msgpack.Decoder(NodeHello)
_request_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_answer_decoder = msgspec.msgpack.Decoder(Answer)


def encode_hello(hello: ClientHello | NodeHello) -> bytes:
    return frame(_MAGIC + bytes([VERSION]) + _encoder.encode(hello))


def decode_client_hello(body: bytes) -> ClientHello:
    """Raises FrameError with a reason."""
    return _decode(_client_hello_decoder, _after_magic(body))


def decode_node_hello(body: bytes) -> NodeHello:
    """Raises FrameError with a reason."""
    return _decode(_node_hello_decoder, _after_magic(body))


def encode_request(request: Request) -> bytes:
    return frame(_encoder.encode(request))


def decode_request(body: bytes) -> Request:
    """Raises FrameError with a reason."""
    return _decode(_request_decoder, body)


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

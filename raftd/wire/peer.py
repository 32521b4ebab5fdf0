"""What two nodes say to each other: a hello, then Raft's messages, the gateways', and the time of their clocks."""

from __future__ import annotations

from enum import IntEnum

import msgspec

from raftd.errors import UNDECODABLE, FrameError
from raftd.jobs.commands import GatewayMessage
from raftd.raft.messages import Admin, AdminReply, Message
from raftd.wire.frames import frame

_MAGIC = b"raftd-peer"
#: Nodes of different versions refuse each other. What changes within a version waits for a feature level (`jobs/commands.py`).
VERSION = 2


class Hello(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Who speaks. `cluster_id` is empty until the cluster's first entry was committed there. `voters` are the
    nodes of its configuration, ascending. `level`: the features that its raftd knows."""

    cluster: str
    voters: tuple[int, ...]
    cluster_id: bytes
    node: int
    incarnation: int
    directory_id: bytes
    level: int


class RefusalCode(IntEnum):
    """Why a node closes a connection. Programs compare these; the numbers are part of the protocol."""

    INVALID_MESSAGE = 0
    TIMEOUT = 1
    OTHER_CLUSTER = 2
    OTHER_CONFIGURATION = 3
    OTHER_NODE = 4  # another one answers at this address, or both have one id
    NOT_MEMBER = 5
    #: The receiver was a member. Its removal is committed: it must end.
    REMOVED = 6
    #: The log says so, and that entry may still be replaced.
    REMOVED_UNCOMMITTED = 7
    TOO_OLD = 8
    OTHER_DIRECTORY = 9


class Refusal(msgspec.Struct, frozen=True, array_like=True, tag=30, forbid_unknown_fields=True):
    """The last message on a connection: why the sender closes it."""

    code: RefusalCode
    text: str


class AskClock(msgspec.Struct, frozen=True, array_like=True, tag=31, gc=False, forbid_unknown_fields=True):
    """From level 4 on. What does your wall clock say? `asked_ms` returns with the answer: the asker's monotonic clock."""

    asked_ms: int


class TellClock(msgspec.Struct, frozen=True, array_like=True, tag=32, gc=False, forbid_unknown_fields=True):
    """It says `wall_ms`, in milliseconds since 1970."""

    asked_ms: int
    wall_ms: int


class AskStatus(msgspec.Struct, frozen=True, array_like=True, tag=33, forbid_unknown_fields=True):
    """From level 6 on. How are you?"""


class TellStatus(msgspec.Struct, frozen=True, array_like=True, tag=34):
    """So, at once. Sizes in bytes. A newer node may say more.

    `leader` is 0 if it knows none. `match` is for a leader only: how far each other member is known to have the log. `snapshot_index` is 0
    without a snapshot. `http`: where its HTTP listener is, as HOST:PORT, "" if it has none. `clients`: its sessions."""

    role: str
    term: int
    leader: int
    last_index: int
    commit_index: int
    applied_index: int
    match: dict[int, int]
    log_bytes: int
    snapshot_index: int
    snapshot_bytes: int
    free_bytes: int
    is_low_on_disk: bool
    is_draining: bool
    clients: int
    uptime_s: int
    version: str
    http: str


PeerMessage = Message | GatewayMessage | Admin | AdminReply | Refusal | AskClock | TellClock | AskStatus | TellStatus

_encoder = msgspec.msgpack.Encoder()
_hello_decoder = msgspec.msgpack.Decoder(Hello)
_decoder: msgspec.msgpack.Decoder[PeerMessage] = msgspec.msgpack.Decoder(PeerMessage)


def encode_hello(hello: Hello) -> bytes:
    return frame(_MAGIC + bytes([VERSION]) + _encoder.encode(hello))


def decode_hello(body: bytes) -> Hello:
    """Raises FrameError with a reason to log, for strangers and for other versions."""
    if not body.startswith(_MAGIC) or len(body) <= len(_MAGIC):
        raise FrameError("this is no raftd node's hello (does a client use the peer port?)")
    version = body[len(_MAGIC)]
    if version != VERSION:
        raise FrameError(f"it speaks version {version} of the peer protocol, this node version {VERSION}")
    try:
        return _hello_decoder.decode(body[len(_MAGIC) + 1 :])
    except UNDECODABLE as error:
        raise FrameError(f"its hello cannot be read: {error}") from None


def encode(message: PeerMessage) -> bytes:
    """One message as a frame."""
    return frame(_encoder.encode(message))


def decode(body: bytes) -> PeerMessage:
    """Raises FrameError for anything that is no message."""
    try:
        return _decoder.decode(body)
    except UNDECODABLE as error:
        raise FrameError(f"a message cannot be read: {error}") from None

"""Commands of clients as they are stored in the log, and the entries of gateways and of the leader.

Times are in milliseconds of log time, relative. A command names the session (the connection) it comes
from by its number within its gateway; its first command opens the session.
"""

from __future__ import annotations

import msgspec

from raftd.errors import UNDECODABLE
from raftd.jobs import asks
from raftd.jobs.asks import NewJob as NewJob
from raftd.jobs.policy import PolicyChange
from raftd.jobs.rights import Change, Login


class _Command(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False, forbid_unknown_fields=True):
    session: int


class Put(_Command, frozen=True, tag=1):
    """`tube` empty: the one the session uses."""

    pri: int
    delay_ms: int
    ttr_ms: int
    body: bytes
    tube: str = ""


class Use(_Command, frozen=True, tag=2):
    tube: str


class Watch(_Command, frozen=True, tag=3):
    tube: str


class Ignore(_Command, frozen=True, tag=4):
    tube: str


class Reserve(_Command, frozen=True, tag=5):
    """`timeout_ms` None waits for ever, 0 not at all."""

    timeout_ms: int | None


class ReserveJob(_Command, frozen=True, tag=6):
    id: int


class Delete(_Command, frozen=True, tag=7):
    """`token`, here and below: 0 means "held by this session"; any other number names a reservation, of any session."""

    id: int
    token: int = 0


class Release(_Command, frozen=True, tag=8):
    """`pri`, here and below: None leaves it as it is."""

    id: int
    pri: int | None
    delay_ms: int
    token: int = 0


class Bury(_Command, frozen=True, tag=9):
    id: int
    pri: int | None
    token: int = 0


class Touch(_Command, frozen=True, tag=10):
    id: int
    token: int = 0


class Kick(_Command, frozen=True, tag=11):
    count: int


class KickJob(_Command, frozen=True, tag=12):
    id: int


class PauseTube(_Command, frozen=True, tag=13):
    """`pause_ms` 0 ends a pause."""

    tube: str
    pause_ms: int


class CloseSession(_Command, frozen=True, tag=14):
    """The connection is gone: its reservations are given back."""


class Declare(_Command, frozen=True, tag=15):
    """Make a tube a topic: one that is listed as such, whether or not it holds jobs."""

    tube: str


class PutBack(_Command, frozen=True, tag=16):
    """Put a deleted job back in its place: the client could not be answered in time."""

    id: int
    tube: str
    pri: int
    ttr_ms: int
    body: bytes


class PutMany(_Command, frozen=True, tag=17):
    """All of them or none. With a `key` that was used not long ago, nothing is put and the answer is that of the first time, if
    `fingerprint`, a digest of the request, is the same too. Without a key ("") there is nothing to remember.
    `only_topic`: only if the tube is one."""

    tube: str
    jobs: list[NewJob]
    key: str = ""
    fingerprint: bytes = b""
    only_topic: bool = False


class Leave(_Command, frozen=True, tag=18):
    """The session ends, and its jobs stay reserved until their time to run is over: the token holds them now."""


class Undeclare(_Command, frozen=True, tag=19):
    """The tube is no topic any more. One that holds jobs stays."""

    tube: str


class Attach(_Command, frozen=True, tag=20):
    """Level 3. The connection speaks for the client's session with this `token`, 16 random bytes that the client chose; the session is
    made if there is none. Whichever connection spoke for it before does so no more."""

    token: bytes


class Detach(_Command, frozen=True, tag=21):
    """Level 3. The connection is gone: the client's session is kept for the session timeout."""


class Ask(_Command, frozen=True, tag=22):
    """Level 3. Of the client's session that the connection speaks for. The client has the answers to all asks before `answered`, but for
    those in `waiting`."""

    id: int
    answered: int
    waiting: list[int]
    what: asks.What


class SetPolicies(_Command, frozen=True, tag=23):
    """Level 4. All of the changes or none; each is of another tube."""

    changes: list[PolicyChange]


class PutUnique(_Command, frozen=True, tag=24):
    """Level 4. As PutMany of one job; and if there is another job of its kind in the tube, nothing is put, and the answer has its id."""

    tube: str
    job: NewJob
    unique: asks.Unique
    key: str = ""
    fingerprint: bytes = b""


class Replay(_Command, frozen=True, tag=25):
    """Level 4."""

    what: asks.Replay


class OfSchedule(_Command, frozen=True, tag=26):
    """Level 4."""

    what: asks.OfSchedules


class AttachAs(_Command, frozen=True, tag=27):
    """Level 5. As Attach, by a client who says who he is: a session is that of the user who made it."""

    token: bytes
    login: Login


class LogIn(_Command, frozen=True, tag=28):
    """Level 5. The session is this user's from now on."""

    login: Login


class Operate(_Command, frozen=True, tag=29):
    """Level 5. May the session operate the cluster? If so, the audit log has that it does `what` `to` something. What it does is not in the
    log of commands: members are changed by entries of their own."""

    what: str
    to: str


class ChangeAccess(_Command, frozen=True, tag=30):
    """Level 5. Users and what they may: all of the changes or none."""

    changes: list[Change]


Command = (
    Put
    | Use
    | Watch
    | Ignore
    | Reserve
    | ReserveJob
    | Delete
    | Release
    | Bury
    | Touch
    | Kick
    | KickJob
    | PauseTube
    | CloseSession
    | Declare
    | PutBack
    | PutMany
    | Leave
    | Undeclare
    | Attach
    | Detach
    | Ask
    | SetPolicies
    | PutUnique
    | Replay
    | OfSchedule
    | AttachAs
    | LogIn
    | Operate
    | ChangeAccess
)


class _Payload(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False, forbid_unknown_fields=True):
    pass


class Batch(_Payload, frozen=True, tag=1):
    """Commands of one gateway, numbered without gaps from 1 within its incarnation. Once numbered, a
    batch never changes: it may come again, and takes effect once."""

    node: int
    incarnation: int
    seq: int
    commands: list[Command]


class OpenGateway(_Payload, frozen=True, tag=2):
    """A node begins to carry clients' commands. Closes its gateway of a lower incarnation."""

    node: int
    incarnation: int


class CloseGateway(_Payload, frozen=True, tag=3):
    """The leader has not heard this incarnation of the node for the whole session timeout."""

    node: int
    incarnation: int


class Settings(_Payload, frozen=True, tag=4):
    """What all nodes must agree on though it comes from configuration; the newest leader's counts."""

    max_job_size: int
    session_timeout_ms: int


class DiskSpace(_Payload, frozen=True, tag=5):
    """Whether puts are refused because too many disks of the cluster are nearly full. All other commands work."""

    is_scarce: bool


class Features(_Payload, frozen=True, tag=6):
    """From this entry on there may be things in the log that only nodes which know feature level `level` understand."""

    level: int


class Directory(_Payload, frozen=True, tag=7):
    """Level 2. The data directory of a node has this random id; the first that is said of a node counts for ever (R28)."""

    node: int
    directory_id: bytes


class Tick(_Payload, frozen=True, tag=8):
    """Level 4. The occurrence `due_ms` of a schedule is due, and the next is `next_ms` (0: there is none): wall times of the leader, in
    milliseconds since 1970. `due_ms` 0: none is, it was only found out when the next will be. `puts` False: it was missed."""

    name: str
    version: int
    due_ms: int
    next_ms: int
    puts: bool


#: The newest feature level that this raftd knows. Whatever an older one would not understand, or would apply otherwise, has a level,
#: and is used only once the cluster is at it (docs/operations.md: Upgrading).
FEATURE_LEVEL = 6

#: From this level on there are sessions of clients.
CLIENTS_LEVEL = 3

#: From this level on there are policies of tubes.
POLICIES_LEVEL = 4

#: From this level on there are users.
ACCESS_LEVEL = 5

#: From this level on nodes tell each other how they are.
STATUS_LEVEL = 6

#: From this level on a replay knows since when a job is buried, and is in the audit log wherever it begins.
REPLAYS_LEVEL = 6

#: The data of a batch entry; an entry without data only lets time pass.
Payload = Batch | OpenGateway | CloseGateway | Settings | DiskSpace | Features | Directory | Tick

_payload_encoder = msgspec.msgpack.Encoder()
_payload_decoder: msgspec.msgpack.Decoder[Payload] = msgspec.msgpack.Decoder(Payload)
encode_payload = _payload_encoder.encode


def decode_payload(data: bytes) -> Payload | None:
    """None for bytes that are no payload: such an entry has no effect, on every node alike."""
    try:
        return _payload_decoder.decode(data)
    except UNDECODABLE:
        return None


class _ToLeader(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False, forbid_unknown_fields=True):
    pass


class Forward(_ToLeader, frozen=True, tag=20):
    """A gateway's payload for the leader to propose. `attempt` grows whenever the gateway sends its
    unapplied ones anew, from the first on."""

    incarnation: int
    attempt: int
    payload: bytes


class ForwardRefused(_ToLeader, frozen=True, tag=21):
    """Not proposed, and nothing later of this attempt will be: send all unapplied ones again, a little later."""

    incarnation: int
    attempt: int


GatewayMessage = Forward | ForwardRefused

"""What Raft nodes say to each other, and the entries they agree on.

The names are those of the paper ("In Search of an Understandable Consensus Algorithm", extended
version). The sender is known from the connection and is not in the message. Every message carries the
sender's term, except that a PreVote and its grant carry the term that the asker would campaign in.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

from raftd.raft.outcomes import Outcome


class EntryKind(IntEnum):
    """What an entry's data means. The core itself never looks into it."""

    NOOP = 0
    CONFIG = 1
    BATCH = 2


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True):
    """One log entry. `time_ms` is the leader's log clock, never less than in the entry before."""

    term: int
    index: int
    time_ms: int
    kind: EntryKind
    data: bytes

    @property
    def size_bytes(self) -> int:
        """What the entry counts for in every window and limit."""
        return len(self.data) + 32


class MemberAddress(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True):
    """Where the other nodes, and clients (port 0: nowhere), find a node."""

    host: str
    peer: int
    client: int = 0


class Configuration(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Who is a member: the data of a config entry.

    `cluster_id` is random, made with the first entry of the cluster. `outgoing` are the voters before, while the configuration is
    joint. `removed` are ids that were members once, and never are again.
    """

    cluster_id: bytes
    voters: tuple[int, ...]
    outgoing: tuple[int, ...] = ()
    learners: tuple[int, ...] = ()
    addresses: dict[int, MemberAddress] = {}
    removed: tuple[int, ...] = ()


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False, forbid_unknown_fields=True):
    term: int


class PreVote(_Message, frozen=True, tag=1):
    """Would you vote for me? Changes nothing on either side (thesis §9.6)."""

    last_log_index: int
    last_log_term: int


class PreVoteReply(_Message, frozen=True, tag=2):
    """A grant echoes the request's term; a refusal carries the voter's own (R4)."""

    granted: bool


class RequestVote(_Message, frozen=True, tag=3):
    """§5.2, §5.4.1. `transfer`: the leader requested this election, so voters do not protect it (R5)."""

    last_log_index: int
    last_log_term: int
    transfer: bool = False


class RequestVoteReply(_Message, frozen=True, tag=4):
    """`doubtful`: the voter may have lost acknowledged entries (see `quorum.py`). `clock_ms` is the
    voter's estimate of log time, None if it has heard none since it started; `wall_ms` its wall clock.
    """

    granted: bool
    doubtful: bool
    clock_ms: int | None
    wall_ms: int


class AppendEntries(_Message, frozen=True, tag=5):
    """§5.3; heartbeats and commit notices are AppendEntries without entries.

    `clock_ms` is the leader's log clock, `read_round` the newest round of ReadIndex that an answer
    confirms. `heard` is the receiver's incarnation as the leader knows it (0: not heard yet), and
    `heard_at` the leader's last index when it first heard it.
    """

    prev_log_index: int
    prev_log_term: int
    entries: tuple[Entry, ...]
    leader_commit: int
    clock_ms: int
    read_round: int
    heard: int
    heard_at: int


class AppendEntriesReply(_Message, frozen=True, tag=6):
    """`success`: `index` is durable here and equals the leader's log up to it. `doubtful` as in votes.

    Otherwise `index` echoes the refused prev_log_index, and (`hint_index`, `hint_term`) is the greatest
    place up to which the logs can agree (R13). `is_low_on_disk`: disk space is low on the follower.
    """

    success: bool
    index: int
    hint_index: int
    hint_term: int
    read_round: int
    incarnation: int
    doubtful: bool
    is_low_on_disk: bool = False


class Snapshot(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True):
    """A snapshot file: the last entry that it contains, its size in bytes, and the CRC that it ends with."""

    index: int
    term: int
    size_bytes: int
    crc: int


class InstallSnapshot(_Message, frozen=True, tag=9):
    """§7: a piece of the file, from `offset` on. One without data asks how much the receiver has already."""

    snapshot: Snapshot
    offset: int
    data: bytes


class InstallSnapshotReply(_Message, frozen=True, tag=10):
    """So many bytes of the snapshot of `index` are here: the offset that is wanted next. It promises nothing; that the snapshot
    is installed is said by an AppendEntriesReply."""

    index: int
    have: int
    incarnation: int


class TimeoutNow(_Message, frozen=True, tag=11):
    """The leader asks a follower that has all of its log to be elected in its place (thesis §3.10)."""


class ReadIndex(_Message, frozen=True, tag=7):
    """A follower asks for a read index (thesis §6.4)."""

    context: int


class ReadIndexReply(_Message, frozen=True, tag=8):
    """Everything acknowledged before the question is at or below `index`; `clock_ms` is log time."""

    context: int
    index: int
    clock_ms: int


class TransferLead(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False, forbid_unknown_fields=True):
    """Hand the lead to `node`."""

    node: int


class AddMember(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False, forbid_unknown_fields=True):
    """Make `node` a learner, which becomes a voter by itself once it has caught up."""

    node: int
    address: MemberAddress


class PromoteMember(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False, forbid_unknown_fields=True):
    """Make a learner a voter."""

    node: int


class RemoveMember(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False, forbid_unknown_fields=True):
    """`node` is a member no more, and its id is never used again."""

    node: int


AdminRequest = TransferLead | AddMember | PromoteMember | RemoveMember


class Admin(msgspec.Struct, frozen=True, array_like=True, tag=24, gc=False, forbid_unknown_fields=True):
    """What an operator has asked of the sender, for the leader to do. `number` is the sender's."""

    number: int
    request: AdminRequest


class AdminReply(msgspec.Struct, frozen=True, array_like=True, tag=25, gc=False, forbid_unknown_fields=True):
    """The answer to `Admin`. `number` is that of the request."""

    number: int
    outcome: Outcome
    text: str


Message = (
    PreVote
    | PreVoteReply
    | RequestVote
    | RequestVoteReply
    | AppendEntries
    | AppendEntriesReply
    | ReadIndex
    | ReadIndexReply
    | InstallSnapshot
    | InstallSnapshotReply
    | TimeoutNow
)

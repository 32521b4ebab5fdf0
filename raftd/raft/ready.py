"""What the core hands to its driver: one batch of effects, in four lanes."""

from __future__ import annotations

from enum import Enum

import msgspec

from raftd.raft.messages import Entry, InstallSnapshot, Message, Snapshot


class Role(Enum):
    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class HardState(msgspec.Struct, frozen=True):
    """What must survive a crash besides the log: one record, written whole (R1).

    `voted_for` is 0 for no vote. `doubtful`: acknowledged entries may have been lost here (see `quorum.py`).
    """

    term: int = 0
    voted_for: int = 0
    doubtful: bool = False


class Persist(msgspec.Struct, frozen=True):
    """One thing to make durable, after all with lower numbers. `hard_state` is None if unchanged.

    If the first entry's index is not above one handed over before, that one and all behind it are replaced.
    """

    number: int
    hard_state: HardState | None
    entries: list[Entry]


class ReadState(msgspec.Struct, frozen=True):
    """A finished read_index: serve the read once `index` is applied. `clock_ms` is log time."""

    context: int
    index: int
    clock_ms: int


class Base(msgspec.Struct, frozen=True):
    """The last entry of a snapshot; all 0 without one. `time_ms` is log time in its state."""

    index: int = 0
    term: int = 0
    time_ms: int = 0


NO_BASE = Base()


class EntriesFetch(msgspec.Struct, frozen=True):
    """Entries that a follower needs and that have left memory: from `first` on, to be handed to `raft.replication.entries_fetched`."""

    peer: int
    first: int


class ChunkFetch(msgspec.Struct, frozen=True):
    """A piece of the snapshot that a follower needs, to be handed to `raft.replication.chunk_fetched`."""

    peer: int
    snapshot: Snapshot
    offset: int


class RoleChange(msgspec.Struct, frozen=True):
    """For the operator: what this node is now, and why. `leader` is 0 while none is known."""

    role: Role
    term: int
    leader: int
    reason: str


class Ready(msgspec.Struct):
    """The driver's contract:

    1. `send_now` may leave at once.
    2. `persist` goes to the storage; when it is durable, `raft.persisted(number)` is called.
    3. `send_after_persist` leaves when persist number `after` is durable (0: nothing to wait for).
    4. `apply` is applied in order; `reads` are finished. Both may happen before 2 is durable.
    5. Applying is done in slices: `raft.applied` tells how far it came, which may be less than all of `apply`, before ready() is
       called again. While `apply` was not empty, ready() may have more to give.
    6. `fetches` are read from the disk, whenever that is convenient. Nothing else waits for them.
    7. `chunks` of a snapshot (from whom, what) are kept; `raft.chunk_kept` tells how much there is. Once it is whole and
       sound: `raft.begin_install`, then, with its state loaded and the file durable, `raft.installed`.
    """

    send_now: list[tuple[int, Message]]
    persist: Persist | None
    send_after_persist: list[tuple[int, Message]]
    after: int
    apply: list[Entry]
    reads: list[ReadState]
    changes: list[RoleChange]
    fetches: list[EntriesFetch | ChunkFetch]
    chunks: list[tuple[int, InstallSnapshot]]

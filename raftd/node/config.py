"""What a node must know before it starts, whatever listens in front of it."""

from __future__ import annotations

import msgspec

from raftd.jobs.budget import COSTS, Costs
from raftd.jobs.commands import FEATURE_LEVEL, Settings
from raftd.limits import LIMITS, MIN_FREE_DISK_BYTES, Limits
from raftd.raft.messages import Configuration, MemberAddress


class NodeConfig(msgspec.Struct, frozen=True):
    """What a node must know of itself, and who the first voters of its cluster are. Times in milliseconds. After
    `snapshot_log_bytes` of log there is a snapshot at the latest; with less than `min_free_disk_bytes` free the disk is low. `level`: the
    features that this raftd knows. `costs` must be the same on all nodes."""

    node: int
    voters: tuple[int, ...]
    cluster: str
    election_timeout_ms: int
    heartbeat_ms: int
    settings: Settings
    snapshot_log_bytes: int
    addresses: dict[int, MemberAddress] = {}
    min_free_disk_bytes: int = MIN_FREE_DISK_BYTES
    level: int = FEATURE_LEVEL
    limits: Limits = LIMITS
    costs: Costs = COSTS

    @property
    def first_configuration(self) -> Configuration:
        """Of a cluster that is not born yet; afterwards the log says who is a member."""
        return Configuration(b"", self.voters, addresses=self.addresses)

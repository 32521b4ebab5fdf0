"""The `stats` command: beanstalkd's keys in beanstalkd's order, then raftd's own."""

from __future__ import annotations

import os
import platform
import resource
import time
from collections import Counter
from typing import TYPE_CHECKING

import raftd
from raftd.jobs.queries import Stats, job_counts
from raftd.node.loop import Node
from raftd.server.reactor import Pauses
from raftd.wire.client import Status
from raftd.wire.peer import TellStatus

if TYPE_CHECKING:
    from raftd.server.certificates import Certificates

_COMMANDS = (
    "put",
    "peek",
    "peek-ready",
    "peek-delayed",
    "peek-buried",
    "reserve",
    "reserve-with-timeout",
    "delete",
    "release",
    "use",
    "watch",
    "ignore",
    "bury",
    "kick",
    "touch",
    "stats",
    "stats-job",
    "stats-tube",
    "list-tubes",
    "list-tube-used",
    "list-tubes-watched",
    "pause-tube",
)


class Counters:
    """What this process counts, from zero."""

    def __init__(self) -> None:
        self.commands: Counter[str] = Counter()
        self.connections = 0
        self.producers = 0
        self.workers = 0
        self.total_connections = 0
        self.started_s = time.monotonic()
        self.draining = False
        #: Those of this node, None without TLS.
        self.certificates: Certificates | None = None
        #: Whether other machines reach this node without TLS.
        self.is_insecure = False
        #: Whether everybody who reaches a port may do everything, unless there are users: TLS wants no certificates of clients.
        self.needs_users = False
        #: Those of the reactor, but for forks; None if another was chosen (`twistd --reactor`).
        self.pauses: Pauses | None = None
        self.elections = 0
        self.leader_changes = 0
        self.http_answers: Counter[int] = Counter()
        self.id = os.urandom(8).hex()
        self.version = raftd.__version__

    @property
    def uptime_s(self) -> int:
        return int(time.monotonic() - self.started_s)


def stats(node: Node, counters: Counters) -> Stats:
    """This node's view, at once: the queue as applied here, the connections of this process."""
    machine = node.machine
    usage = resource.getrusage(resource.RUSAGE_SELF)
    system = platform.uname()
    own = machine.gateways.get(node.config.node)
    waiting = own.waiting if own else 0
    return [
        *job_counts(machine),
        *((f"cmd-{name}", counters.commands[name]) for name in _COMMANDS),
        ("job-timeouts", machine.job_timeouts),
        ("total-jobs", machine.total_jobs),
        ("max-job-size", node.max_job_size),
        ("current-tubes", len(machine.tubes)),
        ("current-connections", counters.connections),
        ("current-producers", counters.producers),
        ("current-workers", counters.workers),
        ("current-waiting", waiting),
        ("total-connections", counters.total_connections),
        ("pid", os.getpid()),
        ("version", _quoted(counters.version)),
        ("rusage-utime", f"{usage.ru_utime:.6f}"),
        ("rusage-stime", f"{usage.ru_stime:.6f}"),
        ("uptime", counters.uptime_s),
        ("binlog-oldest-index", 0),
        ("binlog-current-index", 0),
        ("binlog-records-migrated", 0),
        ("binlog-records-written", 0),
        ("binlog-max-size", 0),
        ("draining", "true" if counters.draining else "false"),
        ("id", counters.id),
        ("hostname", _quoted(system.node)),
        ("os", _quoted(system.version)),
        ("platform", _quoted(system.machine)),
        *node.status().items(),
    ]


def overview(node: Node, counters: Counters) -> Status:
    """The same for operators, and how this node is as a part of its cluster."""
    machine, raft = node.machine, node.raft
    counts = machine.counts
    snapshot = raft.snapshot
    pauses = counters.pauses
    return Status(
        node=node.config.node,
        role=str(node.status()["role"]),
        term=raft.term,
        leader=raft.leader,
        commit_index=raft.log.commit_index,
        applied_index=machine.applied_index,
        nodes=len(raft.membership.latest.voters),
        cluster_id=node.hello().cluster_id,
        cluster=node.config.cluster,
        pid=os.getpid(),
        version=raftd.__version__,
        feature_level=machine.level,
        last_index=raft.log.last_index,
        match={peer: progress.match_index for peer, progress in sorted(raft.progress.items())},
        log_bytes=node.log_bytes,
        log_first_index=raft.log.offset + 1,
        snapshot_index=snapshot.index if snapshot is not None else 0,
        snapshot_bytes=snapshot.size_bytes if snapshot is not None else 0,
        free_bytes=node.free_bytes,
        is_low_on_disk=raft.is_low_on_disk,
        space_is_scarce=machine.space_is_scarce,
        is_draining=counters.draining,
        gateways=[
            (row.node, row.incarnation, row.is_open, len(row.sessions) + len(row.attached)) for _, row in sorted(machine.gateways.items())
        ],
        jobs=(counts.ready, counts.reserved, counts.delayed, counts.buried),
        longest_pause_ms=round(pauses.longest_s * 1000, 1) if pauses is not None else 0.0,
        longest_work_ms=round(pauses.longest_work_s * 1000, 1) if pauses is not None else 0.0,
        clock_ahead_ms=node.wall_clock.ahead_ms,
        is_insecure=counters.is_insecure or (counters.needs_users and not node.has_users),
    )


def own_status(node: Node, counters: Counters, http: str) -> TellStatus:
    """What other members are told of this one. `http`: where its HTTP listener is."""
    raft, snapshot = node.raft, node.raft.snapshot
    return TellStatus(
        role=str(node.status()["role"]),
        term=raft.term,
        leader=raft.leader,
        last_index=raft.log.last_index,
        commit_index=raft.log.commit_index,
        applied_index=node.machine.applied_index,
        match={peer: progress.match_index for peer, progress in sorted(raft.progress.items())},
        log_bytes=node.log_bytes,
        snapshot_index=snapshot.index if snapshot is not None else 0,
        snapshot_bytes=snapshot.size_bytes if snapshot is not None else 0,
        free_bytes=node.free_bytes,
        is_low_on_disk=raft.is_low_on_disk,
        is_draining=counters.draining,
        clients=len(node.gateway.sessions),
        uptime_s=counters.uptime_s,
        version=counters.version,
        http=http,
    )


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

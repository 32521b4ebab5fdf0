"""The `stats` command: beanstalkd's keys in beanstalkd's order, then raftd's own."""

from __future__ import annotations

import os
import platform
import resource
import time
from collections import Counter

import raftd
from raftd.jobs.queries import Stats, job_counts
from raftd.node import Node

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
        self.id = os.urandom(8).hex()


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
        ("version", _quoted(raftd.__version__)),
        ("rusage-utime", f"{usage.ru_utime:.6f}"),
        ("rusage-stime", f"{usage.ru_stime:.6f}"),
        ("uptime", int(time.monotonic() - counters.started_s)),
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


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

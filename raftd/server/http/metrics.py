"""`/metrics`: what a Prometheus server collects. Everything is read when it is asked for; nothing else in the house knows of it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from heapq import nlargest

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

import raftd
from raftd.histogram import Histogram
from raftd.node.loop import Node
from raftd.server.stats import Counters

#: Tubes that have metrics of their own, those with most jobs: each is some lines in every scrape.
METRIC_TUBES = 100

KIND = "text/plain; version=0.0.4; charset=utf-8"
_ROLES = ("leader", "follower", "candidate")


class NodeCollector(Collector):
    def __init__(self, node: Node, counters: Counters) -> None:
        self._node = node
        self._counters = counters

    def collect(self) -> Iterable[Metric]:
        yield from self._consensus()
        yield from self._storage()
        yield from self._queue()
        yield from self._clients()

    def _consensus(self) -> Iterable[Metric]:
        node, raft = self._node, self._node.raft
        yield _gauge("raftd_info", "Which raftd this is.", {"version": raftd.__version__, "cluster": node.config.cluster}, 1)
        role = str(node.status()["role"])
        roles = GaugeMetricFamily("raftd_role", "1 for the role that the node has.", labels=["role"])
        for name in _ROLES:
            roles.add_metric([name], float(name == role))
        yield roles
        yield GaugeMetricFamily("raftd_term", "The term.", value=raft.term)
        yield GaugeMetricFamily("raftd_leader", "The node that leads, as far as this one knows; 0 for none.", value=raft.leader)
        yield GaugeMetricFamily("raftd_members", "Voters of the cluster.", value=len(raft.membership.latest.voters))
        yield GaugeMetricFamily("raftd_feature_level", "Of the cluster.", value=node.machine.level)
        yield GaugeMetricFamily("raftd_last_index", "The last entry of the log.", value=raft.log.last_index)
        yield GaugeMetricFamily("raftd_commit_index", "The last entry that is known to be committed.", value=raft.log.commit_index)
        yield GaugeMetricFamily("raftd_applied_index", "The last entry that is applied here.", value=node.machine.applied_index)
        lag = GaugeMetricFamily("raftd_peer_lag_entries", "How many entries a member lacks, on the leader.", labels=["peer"])
        for peer, progress in sorted(raft.progress.items()):
            lag.add_metric([str(peer)], raft.log.last_index - progress.match_index)
        yield lag
        yield CounterMetricFamily("raftd_elections", "Elections that this node has begun.", value=self._counters.elections)
        yield CounterMetricFamily("raftd_leader_changes", "Leaders that this node has seen.", value=self._counters.leader_changes)
        yield _histogram("raftd_commit_seconds", "From a batch of this node's clients to its being applied here.", node.gateway.commit_s)
        yield _histogram("raftd_batch_commands", "Commands in a batch of this node's clients.", node.gateway.batch_commands)
        if (ahead_ms := node.wall_clock.ahead_ms) is not None:
            text = "How far this node's wall clock is ahead of the leader's."
            yield GaugeMetricFamily("raftd_clock_ahead_seconds", text, value=ahead_ms / 1000)
        if (certificates := self._counters.certificates) is not None:
            text = "How long the certificates of this node are good: the first of them."
            yield GaugeMetricFamily("raftd_certificate_expiry_seconds", text, value=certificates.left_s)
        if (pauses := self._counters.pauses) is not None:
            text = "The longest pause of the reactor, but for forks."
            yield GaugeMetricFamily("raftd_longest_pause_seconds", text, value=pauses.longest_s)

    def _storage(self) -> Iterable[Metric]:
        node, raft = self._node, self._node.raft
        yield _histogram("raftd_fsync_seconds", "A batch written to the log and synced.", node.write_s)
        yield GaugeMetricFamily("raftd_log_bytes", "Files of the log.", value=node.log_bytes)
        yield CounterMetricFamily("raftd_turns", "Runs of the node's loop.", value=node.turns)
        snapshot = raft.snapshot
        yield GaugeMetricFamily("raftd_snapshot_bytes", "The newest snapshot.", value=snapshot.size_bytes if snapshot else 0)
        yield GaugeMetricFamily("raftd_snapshot_index", "Its entry.", value=snapshot.index if snapshot else 0)
        yield GaugeMetricFamily("raftd_disk_free_bytes", "Free where the data is.", value=node.free_bytes)
        yield GaugeMetricFamily("raftd_disk_low", "1 if that is too little.", value=float(raft.is_low_on_disk))
        yield GaugeMetricFamily(
            "raftd_puts_refused",
            "1 while puts are refused because too few nodes have free disk space.",
            value=float(node.machine.space_is_scarce),
        )

    def _queue(self) -> Iterable[Metric]:
        machine = self._node.machine
        counts = machine.counts
        jobs = GaugeMetricFamily("raftd_jobs", "Jobs of the whole queue, by state.", labels=["state"])
        for state in ("ready", "delayed", "reserved", "buried", "urgent"):
            jobs.add_metric([state], getattr(counts, state))
        yield jobs
        yield GaugeMetricFamily("raftd_idempotency_keys", "Keys that are remembered.", value=len(machine.keys.used))
        yield CounterMetricFamily("raftd_jobs_put", "Jobs ever put.", value=machine.total_jobs)
        yield CounterMetricFamily("raftd_job_timeouts", "Reservations that ran out of time.", value=machine.job_timeouts)
        ended = CounterMetricFamily("raftd_jobs_ended_by_policy", "Dead, expired, or dropped by a full tube.", labels=["how"])
        for how in ("died", "expired", "dropped"):
            ended.add_metric([how], getattr(machine.policies, how))
        yield ended
        schedules = GaugeMetricFamily("raftd_schedule_occurrences", "Put, or skipped, of schedules that there are.", labels=["how"])
        for how in ("put", "skipped"):
            schedules.add_metric([how], sum(getattr(schedule, how) for schedule in machine.schedules.by_name.values()))
        yield schedules
        yield GaugeMetricFamily("raftd_policies", "Tubes with a policy.", value=len(machine.policies.tubes))
        oldest = next(iter(machine.jobs.values()), None)
        age_ms = max(0, (self._node.raft.clock_ms() or machine.now_ms) - oldest.created_ms) if oldest is not None else 0
        yield GaugeMetricFamily("raftd_oldest_job_age_seconds", "Of the job that was put first.", value=age_ms / 1000)
        yield GaugeMetricFamily("raftd_tubes", "Tubes.", value=len(machine.tubes))
        waiting = GaugeMetricFamily("raftd_tube_waiting", "Clients that wait for a job of the tube.", labels=["tube"])
        by_tube = GaugeMetricFamily("raftd_tube_jobs", f"Jobs by tube: of the {METRIC_TUBES} that hold most.", labels=["tube", "state"])
        for tube in nlargest(METRIC_TUBES, machine.tubes.values(), key=lambda tube: tube.jobs):
            ready, delayed = len(tube.ready), len(tube.delayed)
            for state, count in (("ready", ready), ("delayed", delayed), ("reserved", tube.reserved), ("buried", len(tube.buried))):
                by_tube.add_metric([tube.name, state], count)
            waiting.add_metric([tube.name], len(tube.waiters))
        yield by_tube
        yield waiting

    def _clients(self) -> Iterable[Metric]:
        node, counters = self._node, self._counters
        yield GaugeMetricFamily("raftd_connections", "Clients connected to the line listener.", value=counters.connections)
        yield CounterMetricFamily("raftd_connections_made", "Ever.", value=counters.total_connections)
        yield GaugeMetricFamily("raftd_sessions", "Clients of this node, on all listeners.", value=len(node.gateway.sessions))
        yield GaugeMetricFamily("raftd_held_bytes", "Of clients' commands that are not answered.", value=node.gateway.held_bytes)
        commands = CounterMetricFamily("raftd_commands", "Commands of the line listener.", labels=["command"])
        for name, count in sorted(counters.commands.items()):
            commands.add_metric([name], count)
        yield commands
        answers = CounterMetricFamily("raftd_http_answers", "Answers over HTTP.", labels=["status"])
        for status, count in sorted(counters.http_answers.items()):
            answers.add_metric([str(status)], count)
        yield answers
        yield GaugeMetricFamily("raftd_uptime_seconds", "Of this process.", value=time.monotonic() - counters.started_s)


def _gauge(name: str, documentation: str, labels: dict[str, str], value: float) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, documentation, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def _histogram(name: str, documentation: str, histogram: Histogram) -> HistogramMetricFamily:
    return HistogramMetricFamily(name, documentation, buckets=histogram.cumulative(), sum_value=histogram.sum)


class Metrics:
    """One registry a process: what this node says, and what its process and its Python say."""

    def __init__(self, node: Node, counters: Counters) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(NodeCollector(node, counters))
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def text(self) -> bytes:
        """As it is now."""
        return generate_latest(self._registry)

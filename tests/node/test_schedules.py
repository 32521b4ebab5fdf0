"""The leader and the calendar: what is due is put once, though leaders die, and what was missed is made up for as the schedule says."""

from __future__ import annotations

import pytest

from raftd.jobs import asks
from raftd.jobs import commands as c
from raftd.jobs.schedules import Schedule
from raftd.node.proposals import MISSED_AFTER_MS
from raftd.sim.cluster import SimCluster
from tests.node.test_loop import Client, follower, started

JOB = asks.NewJob(1, 0, 60_000, b"tick")


def scheduled(every_ms: int = 1_000, **more: object) -> SimCluster:
    cluster = started()
    client = Client(cluster, follower(cluster))
    client.submit(c.OfSchedule(client.session.number, asks.SetSchedule("beat", asks.Plan("t", JOB, every_ms=every_ms, **more))))
    assert cluster.run(5_000, lambda: bool(client.told))
    return cluster


def beat(cluster: SimCluster) -> Schedule:
    return cluster[cluster.leader].machine.schedules.by_name["beat"]


def test_one_a_second_is_put_once_each_though_leaders_die():
    cluster = scheduled()
    cluster.run(3_000)
    for _ in range(3):
        dead = cluster.leader
        cluster.crash(dead)
        assert cluster.run(10_000, lambda: cluster.leader != 0 and cluster[cluster.leader].raft.has_committed_own_entry)
        cluster.run(2_000)
        cluster.start(dead)
        cluster.run(1_000)
    cluster.run(500)
    schedule = beat(cluster)
    first_ms = schedule.last_ms - (schedule.put - 1) * 1_000
    occurrences = (int(cluster.wall_s(1) * 1000) - first_ms) // 1_000 + 1
    assert schedule.put == occurrences == len(cluster[cluster.leader].machine.jobs)
    assert schedule.put > 10
    assert schedule.skipped == 0


@pytest.mark.parametrize("puts_missed", [False, True])
def test_after_a_long_outage_missed_occurrences_are_made_up_for_by_one_job_or_none(puts_missed):
    cluster = scheduled(every_ms=10_000, puts_missed=puts_missed)
    cluster.run(15_000)
    before = beat(cluster).put
    assert before == 1
    for node in cluster.config.voters:
        cluster.crash(node)
    cluster.run(MISSED_AFTER_MS + 45_000)
    cluster.start()
    assert cluster.run(10_000, lambda: cluster.leader != 0 and cluster[cluster.leader].raft.has_committed_own_entry)
    cluster.run(500)
    schedule = beat(cluster)
    assert schedule.put == before + puts_missed
    assert schedule.next_ms > cluster.wall_s(1) * 1000
    cluster.run(10_000)
    assert beat(cluster).put == before + puts_missed + 1


def test_what_is_late_by_less_is_put_all_the_same():
    cluster = scheduled(every_ms=10_000)
    cluster.run(15_000)
    first_ms = beat(cluster).last_ms
    for node in cluster.config.voters:
        cluster.crash(node)
    cluster.run(MISSED_AFTER_MS - 20_000)
    cluster.start()
    cluster.run(15_000)
    schedule = beat(cluster)
    assert schedule.skipped == 0
    assert schedule.last_ms > cluster.wall_s(1) * 1000 - 10_000
    assert schedule.put == (schedule.last_ms - first_ms) // 10_000 + 1


def test_a_schedule_that_is_resumed_goes_on_though_nothing_was_due_meanwhile():
    """A leader took its next occurrence for proposed, and never asked again."""
    cluster = scheduled(every_ms=1_000)
    client = Client(cluster, follower(cluster))
    for _ in range(3):
        cluster.run(300)
        for is_paused in (True, False):
            client.submit(c.OfSchedule(client.session.number, asks.PauseSchedule("beat", is_paused)))
            cluster.run(100)
    cluster.run(2_500)
    assert beat(cluster).put == 2


def test_a_paused_schedule_costs_no_entries():
    cluster = scheduled(every_ms=100)
    client = Client(cluster, follower(cluster))
    client.submit(c.OfSchedule(client.session.number, asks.PauseSchedule("beat", True)))
    assert cluster.run(5_000, lambda: bool(client.told))
    cluster.run(200)
    last = cluster[cluster.leader].raft.log.last_index
    cluster.run(5_000)
    assert cluster[cluster.leader].raft.log.last_index == last

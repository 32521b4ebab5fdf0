"""When a node rests, and what time counts for one that could not run."""

from __future__ import annotations

from collections import Counter

import pytest

from raftd.limits import ELECTION_TIMEOUT_MS, HEARTBEAT_MS, TICK_MS
from raftd.node.loop import Node
from raftd.raft.messages import AppendEntries, AppendEntriesReply
from raftd.raft.ready import Role
from tests.node.test_loop import Client, follower, started


@pytest.fixture
def ticks(monkeypatch) -> Counter[int]:
    """How many ticks each node was called for."""
    calls: Counter[int] = Counter()
    tick = Node.tick

    def counted(node: Node) -> int:
        calls[node.config.node] += 1
        return tick(node)

    monkeypatch.setattr(Node, "tick", counted)
    return calls


def test_an_idle_cluster_ticks_for_heartbeats_and_seldom_otherwise(ticks):
    cluster = started()
    cluster.run(500)
    ticks.clear()
    cluster.run(1_000)
    assert ticks[cluster.leader] <= 1_000 / HEARTBEAT_MS + 2
    assert ticks[follower(cluster)] <= 2 * 1_000 / ELECTION_TIMEOUT_MS + 2


def test_a_rest_counts_as_the_ticks_that_it_lasted():
    cluster = started()
    before = {node: cluster[node].raft.tick_count for node in (1, 2, 3)}
    cluster.run(2_000)
    for node, count in before.items():
        assert abs(cluster[node].raft.tick_count - count - 2_000 / TICK_MS) <= ELECTION_TIMEOUT_MS / TICK_MS


def test_a_leader_that_keeps_batches_ticks_again_at_once(ticks):
    cluster = started()
    cluster.network.interfere = lambda sender, to, message: 0 if isinstance(message, AppendEntriesReply) else 1
    client = Client(cluster, cluster.leader)
    client.put(b"first")
    cluster.run(1)
    ticks.clear()
    client.put(b"second")
    cluster.run(TICK_MS + 2)
    assert ticks[cluster.leader] == 1


def test_a_rest_does_not_delay_an_election():
    for seed in range(1, 6):
        cluster = started(seed=seed)
        cluster.run(300)
        cluster.crash(cluster.leader)
        assert cluster.run(2 * ELECTION_TIMEOUT_MS + 2 * HEARTBEAT_MS, lambda cluster=cluster: cluster.leader != 0)


def test_a_process_that_was_stopped_counts_no_more_than_its_rest():
    """Its election timeout must not be over at once: it may not have read yet what the leader said meanwhile."""
    cluster = started()
    cluster.run(300)
    before = {node: cluster[node].raft.tick_count for node in (1, 2, 3)}
    cluster.pause(10_000)
    cluster.run(1)
    for node, count in before.items():
        assert cluster[node].raft.tick_count - count <= ELECTION_TIMEOUT_MS / TICK_MS / 2


def steps_down_after_ms(gap_ms: int) -> int:
    """How long a leader that hears nobody leads on while its own clients put every `gap_ms`; 0: they put nothing."""
    cluster = started()
    cluster.run(300)
    leader = cluster.leader
    clients = [Client(cluster, leader) for _ in range(60)]
    cluster.partition({leader}, {1, 2, 3} - {leader})
    for passed_ms in range(3_000):
        if gap_ms and passed_ms % gap_ms == 0:
            clients[passed_ms // gap_ms].put(b"x")
        cluster.run(1)
        if not cluster[leader].raft.is_leader:
            return passed_ms
    raise AssertionError("it leads for ever")


def test_a_rest_that_is_cut_short_loses_no_tick():
    """CheckQuorum (R7) came up to 150 ms late: ticks that had passed were forgotten whenever a batch was kept."""
    without_puts = steps_down_after_ms(0)
    for gap_ms in (30, 36, 44, 48):
        assert steps_down_after_ms(gap_ms) <= without_puts + 2 * TICK_MS


def test_part_of_a_message_begins_the_election_timeout_anew_and_ticks_before_it_do_not_count():
    for seed in range(1, 9):
        cluster = started(seed=seed)
        leader, node = cluster.leader, follower(cluster)
        cluster.network.interfere = lambda sender, to, message, node=node: 0 if to == node and isinstance(message, AppendEntries) else 1
        for _ in range(20):
            cluster[node].hearing_from(leader)
            cluster.run(220)  # less than an election timeout
            assert cluster[node].raft.role is Role.FOLLOWER, seed

"""What gateways forward is proposed in groups, one after the other."""

from __future__ import annotations

from raftd.jobs import replies as r
from raftd.jobs.commands import Forward
from raftd.limits import TICK_MS
from raftd.raft.messages import AppendEntriesReply
from tests.node.test_loop import Client, bodies, follower, started


def test_what_arrives_while_an_entry_is_on_its_way_leaves_together():
    cluster = started()
    clients = [Client(cluster, node) for node in (1, 2, 3) for _ in range(10)]
    before = cluster[cluster.leader].raft.log.last_index
    for client in clients:
        client.put(b"x")
        cluster.run(0.05)  # each in a turn of its own
    cluster.run(200)
    assert all(isinstance(client.told[0], r.Inserted) for client in clients)
    assert cluster[cluster.leader].raft.log.last_index - before < len(clients)


def test_without_acknowledgements_it_leaves_at_a_tick():
    cluster = started()
    leader = cluster[cluster.leader]
    cluster.network.interfere = lambda sender, to, message: 0 if isinstance(message, AppendEntriesReply) else 1
    before = leader.raft.log.last_index
    client = Client(cluster, cluster.leader)
    client.put(b"first")
    cluster.run(1)
    client.put(b"second")
    cluster.run(1)
    assert leader.raft.log.last_index == before + 1
    cluster.run(2 * TICK_MS)
    assert leader.raft.log.last_index == before + 2
    assert client.told == []


def test_what_a_deposed_leader_keeps_is_sent_to_the_next_one():
    cluster = started()
    old = cluster.leader
    client = Client(cluster, follower(cluster))
    cluster.network.interfere = lambda sender, to, message: 0 if isinstance(message, AppendEntriesReply) else 1
    for number in range(3):
        client.put(b"%d" % number)
        cluster.run(1)
    cluster.network.interfere = None
    cluster.partition({old}, {1, 2, 3} - {old})
    assert cluster.run(5_000, lambda: len(client.told) == 3)
    cluster.heal()
    cluster.run(500)
    for node in (1, 2, 3):
        assert bodies(cluster, node) == [b"0", b"1", b"2"]


def test_a_follower_refuses_at_once():
    cluster = started()
    node = follower(cluster)
    other = next(each for each in (1, 2, 3) if each not in (node, cluster.leader))
    refused = []
    cluster[node]._forwards._refuse = lambda to, refusal: refused.append((to, refusal.attempt))
    cluster[node].receive(other, Forward(1, 7, b""))
    assert refused == [(other, 7)]

"""A disk that is nearly full: puts are refused before it is too late, all else goes on (DESIGN §5)."""

from __future__ import annotations

import msgspec
import pytest

from raftd.jobs import commands as c
from raftd.jobs import replies as r
from raftd.sim.cluster import SimCluster
from tests.test_node import Client, follower, started


def scarce(cluster: SimCluster) -> set[bool]:
    return {process.node.machine.room_is_scarce for process in cluster.processes.values()}


def put(cluster: SimCluster, node: int) -> object:
    client = Client(cluster, node)
    client.put(b"job")
    assert cluster.run(2_000, lambda: bool(client.told))
    client.session.close()
    return client.told[0]


def test_one_low_disk_of_three_is_no_reason_to_refuse_puts():
    cluster = started()
    cluster.disks[follower(cluster)].is_low = True
    cluster.run(3_000)
    assert scarce(cluster) == {False}
    assert type(put(cluster, cluster.leader)) is r.Inserted


@pytest.mark.parametrize("whose", ["followers", "the leader and one"])
def test_two_low_disks_of_three_refuse_puts_everywhere_until_there_is_room(whose):
    cluster = started()
    leader = cluster.leader
    others = [node for node in cluster.config.voters if node != leader]
    low = others if whose == "followers" else [leader, others[0]]
    worker = Client(cluster, others[0])
    worker.put(b"before")
    for node in low:
        cluster.disks[node].is_low = True
    assert cluster.run(3_000, lambda: scarce(cluster) == {True})
    assert [type(put(cluster, node)) for node in cluster.config.voters] == [r.OutOfMemory] * 3
    worker.reserve()
    cluster.run(500)
    worker.submit(delete(worker))
    cluster.run(500)
    assert [type(told) for told in worker.told] == [r.Inserted, r.Reserved, r.Deleted]  # what makes room goes on
    cluster.disks[low[0]].is_low = False
    assert cluster.run(3_000, lambda: scarce(cluster) == {False})
    assert type(put(cluster, leader)) is r.Inserted


def delete(client: Client) -> c.Delete:
    reserved = next(told for told in client.told if type(told) is r.Reserved)
    return c.Delete(client.session.number, reserved.id)


def test_a_put_that_stands_in_the_log_behind_the_entry_is_refused_too():
    """A gateway that does not know yet sends it on; every node refuses it alike, for certain."""
    cluster = started()
    node = follower(cluster)
    cluster.network.interfere = lambda sender, to, message: 0 if to == node else 1
    for other in cluster.config.voters:
        cluster.disks[other].is_low = True
    cluster.run(1_500, lambda: cluster[cluster.leader].machine.room_is_scarce)
    cluster.network.interfere = None
    client = Client(cluster, node)
    assert not cluster[node].gateway.room_is_scarce
    client.put(b"too late")
    assert cluster.run(3_000, lambda: bool(client.told))
    assert client.told == [r.OutOfMemory()]
    assert client.indices[0] > 0  # by the state machine
    assert not cluster[cluster.leader].machine.jobs


def test_a_node_that_is_not_heard_has_no_room_to_offer():
    """With one of three down and one low, what is committed fills the low one."""
    cluster = started()
    leader = cluster.leader
    others = [node for node in cluster.config.voters if node != leader]
    cluster.disks[others[0]].is_low = True
    cluster.run(2_000)
    assert scarce(cluster) == {False}
    cluster.crash(others[1])
    assert cluster.run(3_000, lambda: scarce(cluster) == {True})
    cluster.start(others[1])
    assert cluster.run(3_000, lambda: scarce(cluster) == {False})


def test_a_new_leader_goes_on_with_what_was_decided():
    cluster = started()
    for disk in cluster.disks.values():
        disk.is_low = True
    assert cluster.run(3_000, lambda: scarce(cluster) == {True})
    old = cluster.leader
    cluster.crash(old)
    assert cluster.run(3_000, lambda: cluster.leader not in (0, old))
    cluster.run(1_000)
    assert scarce(cluster) == {True}
    for disk in cluster.disks.values():
        disk.is_low = False
    assert cluster.run(3_000, lambda: scarce(cluster) == {False})


def test_a_low_disk_is_compacted_sooner_and_no_generation_of_log_stays(monkeypatch):
    monkeypatch.setattr("raftd.storage.log.SEGMENT_BYTES", 2_000)
    monkeypatch.setattr("raftd.compaction.SNAPSHOT_LEAST_BYTES", 100_000)
    cluster = SimCluster(1)
    cluster.config = msgspec.structs.replace(cluster.config, snapshot_log_bytes=100_000)
    cluster.start()
    cluster.run(500)
    client = Client(cluster, 1)
    for _ in range(50):
        client.put(b"x" * 500)
        cluster.run(20)
    assert cluster[1].raft.log.offset == 0  # so far nothing was compacted
    cluster.disks[1].is_low = True
    cluster.run(2_000)
    assert scarce(cluster) == {True}
    for told in list(client.told):
        client.submit(c.Delete(client.session.number, told.id))
        cluster.run(20)
    cluster.run(500)
    segments = [name for name in cluster.disks[1].names("data/1/log") if name.endswith(".log")]
    assert len(segments) <= 2
    assert cluster[1].raft.log.offset > 50
    assert sum(cluster.disks[1].size(f"data/1/log/{name}") for name in segments) < 6_000

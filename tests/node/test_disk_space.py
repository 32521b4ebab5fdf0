"""A disk that is nearly full: puts are refused before it is too late, all else goes on."""

from __future__ import annotations

import msgspec
import pytest

from raftd.jobs import commands as c
from raftd.jobs import replies as r
from raftd.limits import Limits
from raftd.raft.messages import EntryKind, Snapshot, TransferLead
from raftd.raft.outcomes import DONE, AdminResult
from raftd.sim.cluster import SimCluster
from tests.node.test_loop import Client, follower, started


def scarce(cluster: SimCluster) -> set[bool]:
    return {process.node.machine.space_is_scarce for process in cluster.processes.values()}


def put(cluster: SimCluster, node: int) -> object:
    client = Client(cluster, node)
    client.put(b"job")
    assert cluster.run(2_000, lambda: bool(client.told))
    client.session.close()
    return client.told[0]


def test_one_low_disk_of_three_is_no_reason_to_refuse_puts():
    cluster = started()
    cluster.disks[follower(cluster)].leave_space(1 << 20)
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
        cluster.disks[node].leave_space(1 << 20)
    assert cluster.run(3_000, lambda: scarce(cluster) == {True})
    assert [type(put(cluster, node)) for node in cluster.config.voters] == [r.OutOfMemory] * 3
    worker.reserve()
    cluster.run(500)
    worker.submit(delete(worker))
    cluster.run(500)
    assert [type(told) for told in worker.told] == [r.Inserted, r.Reserved, r.Deleted]  # commands that free space work
    cluster.disks[low[0]].give_space()
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
        cluster.disks[other].leave_space(1 << 20)
    cluster.run(1_500, lambda: cluster[cluster.leader].machine.space_is_scarce)
    cluster.network.interfere = None
    client = Client(cluster, node)
    assert not cluster[node].gateway.space_is_scarce
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
    cluster.disks[others[0]].leave_space(1 << 20)
    cluster.run(2_000)
    assert scarce(cluster) == {False}
    cluster.crash(others[1])
    assert cluster.run(3_000, lambda: scarce(cluster) == {True})
    cluster.start(others[1])
    assert cluster.run(3_000, lambda: scarce(cluster) == {False})


def test_a_new_leader_goes_on_with_what_was_decided():
    cluster = started()
    for disk in cluster.disks.values():
        disk.leave_space(1 << 20)
    assert cluster.run(3_000, lambda: scarce(cluster) == {True})
    old = cluster.leader
    cluster.crash(old)
    assert cluster.run(3_000, lambda: cluster.leader not in (0, old))
    cluster.run(1_000)
    assert scarce(cluster) == {True}
    for disk in cluster.disks.values():
        disk.give_space()
    assert cluster.run(3_000, lambda: scarce(cluster) == {False})


def test_a_low_disk_is_compacted_sooner_and_no_generation_of_log_stays():
    cluster = SimCluster(1, limits=Limits(segment_bytes=2_000, snapshot_least_bytes=100_000))
    cluster.config = msgspec.structs.replace(cluster.config, snapshot_log_bytes=100_000)
    cluster.start()
    cluster.run(500)
    client = Client(cluster, 1)
    for _ in range(50):
        client.put(b"x" * 500)
        cluster.run(20)
    assert cluster[1].raft.log.offset == 0  # so far nothing was compacted
    cluster.disks[1].leave_space(1 << 20)
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


# -- what a review found -----------------------------------------------------------------------

KILO = 1_000
SEGMENT = 64 * KILO


#: A thousandth of everything: segments of 64 kB, a snapshot after 256 kB of log.
SCALED = Limits(segment_bytes=SEGMENT, snapshot_least_bytes=16 * KILO, log_memory_bytes=16 * KILO)


def on_disks_of(size: int, count: int = 3) -> SimCluster:
    cluster = SimCluster(count, limits=SCALED)
    cluster.config = msgspec.structs.replace(cluster.config, snapshot_log_bytes=256 * KILO, min_free_disk_bytes=0)
    for disk in cluster.disks.values():
        disk.capacity = size
    cluster.start()
    assert cluster.run(5_000, lambda: cluster.leader != 0 and cluster[cluster.leader].raft.has_committed_own_entry)
    return cluster


def put_until_refused(cluster: SimCluster, most: int) -> tuple[Client, list[int]]:
    client = Client(cluster, 1)
    for number in range(1, most + 1):
        client.put(b"x" * 5_000)
        assert cluster.run(5_000, lambda number=number: len(client.told) == number), cluster.failures
        if type(client.told[-1]) is r.OutOfMemory:
            break
    assert not cluster.failures  # no disk was full
    return client, [told.id for told in client.told if type(told) is r.Inserted]


@pytest.mark.parametrize("count", [1, 3])
def test_puts_resume_after_deletes_alone(count):
    """Deletes are so small that no snapshot was due for them, and it alone frees the space."""
    cluster = on_disks_of(2_000 * KILO, count)
    client, ids = put_until_refused(cluster, 500)
    assert 100 < len(ids) < 500
    for id in ids:
        client.submit(c.Delete(client.session.number, id))
    cluster.run(5_000)
    cluster.run(60_000, lambda: scarce(cluster) == {False})
    assert scarce(cluster) == {False}
    assert not cluster.failures


@pytest.mark.parametrize("size", [1_600, 1_800, 2_500])
def test_the_snapshot_that_makes_room_never_fills_the_disk(size):
    cluster = on_disks_of(size * KILO)
    client = Client(cluster, 1)
    for number in range(1, 601):
        client.put(b"x" * 5_000)
        assert cluster.run(5_000, lambda number=number: len(client.told) == number), cluster.failures
    assert not cluster.failures
    refused = [told for told in client.told if type(told) is r.OutOfMemory]
    assert len(refused) > 100
    cluster.run(2_000)
    assert len(scarce(cluster)) == 1


def test_a_snapshot_that_is_being_written_makes_no_disk_low():
    """For a moment there are two of them; the space for the next one was reserved for just that."""
    cluster = on_disks_of(4_000 * KILO)
    _, ids = put_until_refused(cluster, 200)
    assert len(ids) == 200
    assert cluster[1].raft.snapshot is not None
    scarce = [entry for entry in all_entries(cluster) if c.decode_payload(entry) == c.DiskSpace(True)]
    assert not scarce


def all_entries(cluster: SimCluster) -> list[bytes]:
    log = cluster[1].raft.log
    return [entry.data for entry in log.slice(log.forgotten_index + 1, log.last_index)]


def announced(cluster: SimCluster, node: int, since: int) -> list[bool]:
    log = cluster[node].raft.log
    payloads = [c.decode_payload(entry.data) for entry in log.slice(since + 1, log.last_index) if entry.kind is EntryKind.BATCH]
    return [payload.is_scarce for payload in payloads if isinstance(payload, c.DiskSpace)]


def test_a_low_new_leader_waits_to_hear_the_others():
    cluster = started()
    heir = follower(cluster)
    cluster.disks[heir].leave_space(KILO)
    cluster.run(2_000)
    since = cluster[heir].raft.log.last_index
    results: list[AdminResult] = []
    cluster[cluster.leader].administer(TransferLead(heir), results.append)
    cluster.run(3_000)
    assert results == [DONE]
    assert announced(cluster, heir, since) == []


def test_a_low_node_that_starts_again_says_so_at_once():
    cluster = started()
    low = [node for node in cluster.config.voters if node != cluster.leader]
    for node in low:
        cluster.disks[node].leave_space(100 * KILO)
    assert cluster.run(3_000, lambda: scarce(cluster) == {True})
    since = cluster[cluster.leader].raft.log.last_index
    cluster.crash(low[0])
    cluster.start(low[0])
    cluster.run(3_000)
    assert announced(cluster, cluster.leader, since) == []


def test_a_follower_that_is_sent_a_snapshot_offers_no_room():
    cluster = started()
    leader = cluster.leader
    slow = follower(cluster)
    cluster.disks[leader].leave_space(100 * KILO)
    cluster.run(1_000)
    assert scarce(cluster) == {False}
    other = next(node for node in cluster.config.voters if node not in (leader, slow))
    progress = cluster[leader].raft.progress
    progress[slow].send_snapshot(Snapshot(1, 1, 1_000, 0))
    assert cluster[leader].raft.leadership.has_space is False
    cluster.disks[leader].give_space()
    assert progress[other].transfer is None

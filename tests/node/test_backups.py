"""A consistent copy of everything, taken from a node that runs."""

from __future__ import annotations

from raftd.jobs.snapshot import load
from raftd.limits import LIMITS, Limits
from raftd.raft.messages import Snapshot
from raftd.sim.cluster import SimCluster
from raftd.storage.snapshots import SnapshotReader
from tests.node.test_loop import Client, started


class Asked:
    def __init__(self, cluster: SimCluster, node: int) -> None:
        self.answers: list[tuple[Snapshot | None, str]] = []
        cluster[node].backup(lambda snapshot, why_not: self.answers.append((snapshot, why_not)))


#: Backups are kept for three seconds, and written whenever one asks.
SHORT = Limits(backup_hold_ticks=300, backup_ticks=1)


def filled(jobs: int = 20, limits: Limits = LIMITS) -> SimCluster:
    cluster = started(limits=limits)
    client = Client(cluster, 1)
    for number in range(jobs):
        client.put(b"job %d" % number)
    assert cluster.run(3_000, lambda: len(client.told) == jobs)
    cluster.run(100)
    return cluster


def read(cluster: SimCluster, node: int, snapshot: Snapshot) -> bytes:
    data = b""
    while len(data) < snapshot.size_bytes:
        got: list[bytes] = []
        assert cluster[node].copy(snapshot.index, len(data), got.append)
        cluster.run(50, lambda got=got: bool(got))
        data += got[0]
    return data


def test_a_backup_holds_everything_that_was_applied_when_it_was_asked_for():
    cluster = filled()
    asked = Asked(cluster, 2)
    at = cluster[2].machine.applied_index
    assert cluster.run(1_000, lambda: bool(asked.answers))
    [(snapshot, why_not)] = asked.answers
    assert snapshot is not None
    assert why_not == ""
    assert snapshot.index >= at
    disk = cluster.disks[1]
    disk.open("backup").write(0, read(cluster, 2, snapshot))
    reader = SnapshotReader(disk, "backup")
    machine = load(reader.pieces())
    assert machine.digest() == cluster[2].machine.digest()
    assert reader.meta.index == snapshot.index


def test_simultaneous_backups_share_a_snapshot():
    cluster = filled()
    one, other = Asked(cluster, 2), Asked(cluster, 2)
    assert cluster.run(1_000, lambda: bool(one.answers and other.answers))
    assert one.answers == other.answers
    again = Asked(cluster, 2)
    assert again.answers == one.answers


def test_a_backup_asked_for_during_a_snapshot_is_newer():
    cluster = filled(limits=Limits(backup_ticks=1))
    first = Asked(cluster, 1)
    cluster.run(0.2)  # it is being written
    client = Client(cluster, 1)
    client.put(b"later")
    while not client.told:
        cluster.scheduler.run(cluster.scheduler.now_us + 100)
    second = Asked(cluster, 1)
    at = cluster[1].machine.applied_index
    assert cluster.run(1_000, lambda: bool(first.answers and second.answers))
    assert second.answers[0][0].index >= at


def test_a_copy_of_the_disk_that_fails_is_said():
    cluster = filled()
    cluster.disks[2].is_full = True
    asked = Asked(cluster, 2)
    cluster.run(1_000, lambda: bool(asked.answers))
    [(snapshot, why_not)] = asked.answers
    assert snapshot is None
    assert "simulated" in why_not


def test_a_backup_is_kept_while_it_is_read():
    cluster = filled(limits=SHORT)
    asked = Asked(cluster, 2)
    assert cluster.run(1_000, lambda: bool(asked.answers))
    snapshot = asked.answers[0][0]

    def another() -> None:
        client = Client(cluster, 2)
        client.put(b"more")
        cluster.run(1_000, lambda: bool(client.told))
        newer = Asked(cluster, 2)
        assert cluster.run(1_000, lambda: bool(newer.answers))
        cluster.run(200)

    another()
    assert read(cluster, 2, snapshot)
    cluster.run(4_000)
    another()
    got: list[bytes] = []
    assert not cluster[2].copy(snapshot.index, 0, got.append)
    assert not cluster.disks[2].exists(f"data/2/snap/{snapshot.index:016d}-{snapshot.term}.snap")


def test_a_piece_that_is_not_there_is_not_read():
    cluster = filled()
    asked = Asked(cluster, 2)
    assert cluster.run(1_000, lambda: bool(asked.answers))
    snapshot = asked.answers[0][0]
    for index, offset in ((snapshot.index + 1, 0), (snapshot.index, -1), (snapshot.index, snapshot.size_bytes), (snapshot.index, 1 << 70)):
        assert not cluster[2].copy(index, offset, lambda data: None)


def test_repeated_backups_share_and_two_are_kept():
    """A review: a loop of puts and backups had sixty on the disk after half a minute."""
    cluster = filled()
    offset = cluster[2].raft.log.offset
    asked = []
    for number in range(30):
        client = Client(cluster, 2)
        client.put(b"more %d" % number)
        assert cluster.run(1_000, lambda client=client: bool(client.told))
        client.session.close()
        asked.append(Asked(cluster, 2))
        cluster.run(1_000)
    cluster.run(11_000)
    assert all(one.answers for one in asked)
    assert len({one.answers[0][0] for one in asked}) <= 5
    assert len([name for name in cluster.disks[2].names("data/2/snap") if name.endswith(".snap")]) <= 3
    assert cluster[2].raft.log.offset == offset  # followers are served from the log, as before


def test_a_node_that_is_low_on_disk_gives_no_backup():
    cluster = filled()
    cluster.disks[2].leave_space(100_000)
    cluster.run(1_000)
    asked = Asked(cluster, 2)
    assert asked.answers == [(None, "disk space is low on this node: ask another node, or free some space")]


def test_unread_backups_expire_and_are_dropped_on_a_low_disk():
    """A review: it stayed until the next backup, and on a low disk for ever."""

    def with_two() -> SimCluster:
        cluster = filled(limits=SHORT)
        for number in range(2):
            client = Client(cluster, 2)
            client.put(b"more %d" % number)
            cluster.run(1_000, lambda client=client: bool(client.told))
            asked = Asked(cluster, 2)
            assert cluster.run(1_000, lambda asked=asked: bool(asked.answers))
        cluster.run(100)
        assert snapshots(cluster) == 2
        return cluster

    def snapshots(cluster: SimCluster) -> int:
        return len([name for name in cluster.disks[2].names("data/2/snap") if name.endswith(".snap")])

    cluster = with_two()
    cluster.run(4_000)
    assert snapshots(cluster) == 1
    cluster = with_two()
    cluster.disks[2].leave_space(100_000)
    cluster.run(1_000)
    assert snapshots(cluster) == 1

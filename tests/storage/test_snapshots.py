"""Snapshot files, and the log that they stand for: damage, loss, and what followers are given."""

from __future__ import annotations

import errno
from typing import Any

import msgspec
import pytest

from raftd.errors import CorruptionError, StorageError
from raftd.limits import LIMITS, Limits
from raftd.raft.messages import Configuration, Entry, Snapshot
from raftd.sim.disk import MemoryFileSystem
from raftd.storage.log import parse_name
from raftd.storage.records import Damage, encode_batch, scan_segment, segment_header
from raftd.storage.snapshots import Meta, SnapshotReader, encode
from tests.storage.harness import DATA, Machine, entry

META = Meta("t", Configuration(b"", (1, 2, 3)), 3, 1, 1_003)
PIECES = [b"first", b"x" * 1_000, b"last"]


ENOUGH = 1 << 40  # bytes free


def written(machine: Machine, data: bytes, name: str = "0000000000000003-1.snap") -> str:
    path = f"{DATA}/snap/{name}"
    file = machine.disk.open(path)
    file.write(0, data)
    file.sync()
    machine.disk.sync_directory(f"{DATA}/snap")
    return path


def compacted() -> Machine:
    """Ten entries, a segment each; a snapshot at 4, and one at 8."""
    machine = Machine(limits=Limits(segment_bytes=100))
    machine.start()
    for index in range(1, 11):
        machine.write([entry(index, data=b"%d" % index)])
    for index in (4, 8):
        taken(machine, index)
    return machine


def taken(machine: Machine, index: int) -> Snapshot:
    found: list[Snapshot] = []
    store = machine.store
    before = store.snapshots.newest
    store.snapshots.take(
        msgspec.structs.replace(META, index=index), lambda: iter(PIECES), ENOUGH, lambda snapshot, why: found.append(snapshot)
    )
    if before is not None:
        store.purge(before.index)
    store.snapshots.remove_older((), lambda: None)
    return found[0]


# -- one file ----------------------------------------------------------------------------------


def test_what_is_written_is_read_back():
    machine = Machine()
    path = written(machine, b"".join(encode(META, PIECES)))
    reader = SnapshotReader(machine.disk, path)
    assert reader.meta == META
    assert list(reader.pieces()) == PIECES
    assert SnapshotReader(machine.disk, path).verify().size_bytes == machine.disk.size(path)


def test_every_changed_byte_and_every_missing_end_is_noticed():
    machine = Machine()
    whole = b"".join(encode(META, PIECES))
    for place in range(len(whole)):
        path = written(Machine(machine.disk), whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with pytest.raises(CorruptionError, match=r"snap(, offset \d+: the snapshot is damaged| has format)"):
            SnapshotReader(machine.disk, path).verify()
        machine.disk.truncate(path, place)
        with pytest.raises(CorruptionError, match="damaged"):
            SnapshotReader(machine.disk, path).verify()
        machine.disk.remove(path)
    with pytest.raises(CorruptionError, match="damaged"):
        SnapshotReader(machine.disk, written(machine, whole + b"more")).verify()


# -- a data directory --------------------------------------------------------------------------


def test_a_node_starts_from_its_snapshot_and_the_log_behind_it():
    machine = compacted()
    opened = machine.power_cycle()
    assert (opened.base.index, opened.base.term) == (8, 1)
    assert [item.index for item in opened.entries] == [9, 10]
    assert opened.older == [(5, 1)]
    assert list(machine.store.snapshots.pieces()) == PIECES
    assert "a snapshot holds" in opened.notes[1].text
    assert machine.disk.names(f"{DATA}/snap") == ["0000000000000008-1.snap"]
    assert machine.segment(0).rpartition("/")[2].startswith("00000005-")


def test_a_damaged_snapshot_is_not_used_and_nothing_is_changed():
    machine = compacted()
    machine.disk.crash()
    path = f"{DATA}/snap/0000000000000008-1.snap"
    machine.disk.files[path].seen[100] ^= 1
    before = {path: bytes(file.seen) for path, file in machine.disk.files.items()}
    with pytest.raises(CorruptionError, match=r"snap, offset \d+: the snapshot is damaged"):
        machine.start()
    assert {path: bytes(file.seen) for path, file in machine.disk.files.items()} == before


def test_a_snapshot_that_is_gone_is_missed():
    machine = compacted()
    machine.disk.crash()
    machine.disk.remove(f"{DATA}/snap/0000000000000008-1.snap")
    with pytest.raises(CorruptionError, match=r"the snapshot of entry 8, or a later one, is missing"):
        machine.start()


def test_a_snapshot_of_another_cluster_is_not_used():
    machine = Machine()
    machine.start()
    machine.write([entry(1)])
    machine.disk.crash()
    written(machine, b"".join(encode(msgspec.structs.replace(META, cluster="other"), PIECES)))
    with pytest.raises(StorageError, match="a snapshot of another cluster"):
        machine.start()


def test_a_snapshot_under_a_wrong_name_is_not_used():
    machine = Machine()
    machine.start()
    machine.disk.crash()
    written(machine, b"".join(encode(META, PIECES)), "0000000000000009-1.snap")
    with pytest.raises(CorruptionError, match=r"is the snapshot of entry 3: its name is wrong"):
        machine.start()


def test_a_log_that_does_not_reach_its_snapshot_is_corruption():
    machine = compacted()
    machine.disk.crash()
    machine.disk.remove(machine.segment(-1))
    machine.disk.remove(machine.segment(-1))
    with pytest.raises(CorruptionError, match="is missing"):
        machine.start()


def test_a_snapshot_that_could_not_be_written_costs_nothing():
    machine = Machine()
    machine.start()
    machine.write([entry(1)])
    why_not: list[str] = []

    class Full:
        def write(self, path, parts, done):
            done(OSError(errno.ENOSPC, "no space left on device"))

    machine.store.snapshots._copier = Full()
    machine.store.snapshots.take(META, lambda: iter(PIECES), ENOUGH, lambda snapshot, why: why_not.append(why))
    assert "no space" in why_not[0]
    assert machine.failures == []
    assert [item.index for item in machine.power_cycle().entries] == [1]


def test_the_copy_of_a_torn_tail_goes_with_its_segment():
    machine = compacted()
    copy = f"{DATA}/log/" + machine.segment(0).rpartition("/")[2] + ".torn-at-60"
    machine.disk.open(copy).write(0, b"a tail")
    machine.disk.sync_directory(f"{DATA}/log")
    taken(machine, 10)
    assert not machine.disk.exists(copy)


# -- for followers -----------------------------------------------------------------------------


def fetched(machine: Machine, first: int) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    machine.store.fetch_entries(first, lambda entries: found.extend((item.index, item.term) for item in entries))
    return found


@pytest.mark.parametrize("mark_bytes", [1, 300, 1 << 20])
@pytest.mark.parametrize("again", [False, True])
def test_entries_for_a_follower_are_read_from_any_place(mark_bytes, again):
    machine = Machine(limits=Limits(segment_bytes=500, log_mark_bytes=mark_bytes))
    machine.start()
    for index in range(1, 21):
        machine.write([entry(index, data=b"x" * 50)])
    machine.write([entry(15, term=2), entry(16, term=2)])
    machine.write([entry(17, term=2)])
    if again:
        machine.power_cycle()
    for first in range(1, 18):
        found = fetched(machine, first)
        newest = dict(found)  # what replaced others comes later
        assert [newest[index] for index in range(first, 18)] == [2 if index >= 15 else 1 for index in range(first, 18)]


@pytest.mark.parametrize("again", [False, True])
def test_reading_begins_with_an_entry_that_was_not_replaced(again):
    """Simulator seed 7000066: replaced entries filled what was read at a time, the leader could use none of them, and read them again
    and again; the follower never caught up."""
    machine = Machine(limits=Limits(append_bytes=1_000))
    machine.start()
    for index in range(1, 21):
        machine.write([entry(index, data=b"x" * 300)])
    machine.write([entry(10, term=2)])
    machine.write([entry(11, term=2)])
    if again:
        machine.power_cycle()
    for first in (9, 10, 11):
        assert fetched(machine, first)[0] == (first, 2 if first >= 10 else 1)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("mark_bytes", [1, 64 << 10])
def test_entries_that_wait_for_the_disk_and_are_replaced_are_not_written(again, mark_bytes):
    """A review: they stood in one batch with those that replaced them, which had no mark then."""
    machine = Machine(limits=Limits(append_bytes=1_000, log_mark_bytes=mark_bytes))
    machine.start()
    for index in range(1, 21):
        machine.write([entry(index, data=b"x" * 300)])
    machine.worker.hold = True
    for written in ([entry(21)], [entry(22)], [entry(10, term=2), entry(11, term=2)]):
        machine.write(written)
    while machine.worker.jobs:
        machine.worker.step()
    machine.worker.hold = False
    machine.write([entry(12, term=2)])
    if again:
        assert [(item.index, item.term) for item in machine.power_cycle().entries[-4:]] == [(9, 1), (10, 2), (11, 2), (12, 2)]
    assert not any(item.index == 22 for item in scanned(machine))
    for first in (10, 11, 12):
        assert fetched(machine, first)[0] == (first, 2)


def test_a_batch_of_an_older_raftd_that_replaces_entries_inside_has_a_mark():
    name = b"i" * 16
    header = segment_header(1, name, 0)
    first, chain = encode_batch(name, len(header), 0, [entry(index) for index in range(1, 21)])
    mixed, chain = encode_batch(name, len(header) + len(first), chain, [entry(21), entry(10, term=2), entry(11, term=2)])
    scan = scan_segment(header + first + mixed, 1, name, None, is_newest=True)
    assert (scan.damage, scan.marks) == (Damage.NONE, [(1, len(header)), (10, len(header) + len(first))])


def scanned(machine: Machine) -> list[Entry]:
    """Every entry in the last segment, replaced ones too."""
    path = machine.segment()
    parsed = parse_name(path.rpartition("/")[2])
    assert parsed is not None
    return scan_segment(machine.disk.read(path), *parsed, None, is_newest=True).entries


def test_reading_for_a_follower_is_bounded():
    machine = Machine(limits=Limits(append_bytes=1_000))
    machine.start()
    for index in range(1, 21):
        machine.write([entry(index, data=b"x" * 300)])
    assert [index for index, _ in fetched(machine, 5)] == [5, 6, 7, 8]


def test_an_entry_that_was_durable_and_cannot_be_read_ends_the_process():
    machine = Machine()
    machine.start()
    machine.write([entry(1, data=b"y" * 3_000)])
    machine.write([entry(2)])
    machine.disk.files[machine.segment()].seen[1_000] ^= 1
    assert fetched(machine, 1) == []
    assert "cannot be read back" in str(machine.failures[0])


def test_a_snapshot_is_read_in_chunks():
    machine = Machine()
    machine.start()
    machine.write([entry(index) for index in (1, 2, 3)])
    whole = b"".join(encode(META, [b"z" * LIMITS.snapshot_chunk_bytes] * 2))
    machine.store.snapshots.take(META, lambda: iter([b"z" * LIMITS.snapshot_chunk_bytes] * 2), ENOUGH, lambda snapshot, why: None)
    newest = machine.store.snapshots.newest
    chunks: list[bytes] = []
    while sum(map(len, chunks)) < newest.size_bytes:
        machine.store.snapshots.fetch(newest, sum(map(len, chunks)), chunks.append)
    assert b"".join(chunks) == whole
    assert [len(chunk) for chunk in chunks[:2]] == [LIMITS.snapshot_chunk_bytes] * 2


def test_a_chunk_of_a_snapshot_that_was_removed_meanwhile_is_nobodys_loss():
    """Simulator seed 1113: a leader that led no more removed the snapshot that it was about to read for a follower."""
    machine = compacted()
    read: list[bytes] = []
    machine.store.snapshots.fetch(Snapshot(4, 1, 100, 1), 0, read.append)
    assert read == []
    assert machine.failures == []


# -- from a leader -----------------------------------------------------------------------------


def receive(machine: Machine, data: bytes, snapshot: Snapshot, sizes: int = 400) -> list[Meta | None]:
    have = 0
    for offset in range(0, len(data), sizes):
        told: list[int] = []
        machine.store.snapshots.keep(snapshot, offset, data[offset : offset + sizes], told.append)
        (have,) = told
    assert have == len(data)
    found: list[Meta | None] = []
    machine.store.snapshots.verify_received(found.append)
    return found


def of(data: bytes) -> Snapshot:
    return Snapshot(3, 1, len(data), int.from_bytes(data[-4:], "little"))


def test_a_leaders_snapshot_takes_the_place_of_the_log():
    machine = Machine()
    machine.start()
    machine.write([entry(1), entry(2)])
    data = b"".join(encode(META, PIECES))
    (meta,) = receive(machine, data, of(data))
    assert list(machine.store.snapshots.received_pieces()) == PIECES
    installed: list[bool] = []
    machine.store.install(of(data), meta, lambda: installed.append(True))
    assert installed
    machine.write([entry(4)])
    opened = machine.power_cycle()
    assert opened.base.index == 3
    assert [item.index for item in opened.entries] == [4]


def test_a_piece_at_a_wrong_place_is_not_kept():
    machine = Machine()
    machine.start()
    data = b"".join(encode(META, PIECES))
    told: list[int] = []
    keep = machine.store.snapshots.keep
    for offset in (100, 0, 0, 500):
        keep(of(data), offset, data[offset : offset + 100], told.append)
    assert told == [0, 100, 100, 100]
    other = Snapshot(9, 1, 5, 5)
    keep(other, 100, b"x", told.append)
    keep(of(data), 0, b"", told.append)
    assert told[-2:] == [0, 0]  # only one at a time


def test_chunks_that_come_while_one_is_written_are_kept_after_it():
    """They were dropped, and asked for again an election timeout later: 230 MB took three minutes."""
    machine = Machine()
    machine.start()
    worker: Any = machine.store.snapshots._worker
    worker.hold = True
    data = b"".join(encode(META, PIECES))
    told: list[int] = []
    for offset in range(0, 400, 100):
        machine.store.snapshots.keep(of(data), offset, data[offset : offset + 100], told.append)
    assert told == []
    while worker.jobs:
        worker.step()
    assert told == [100, 200, 300, 400]


def test_a_damaged_snapshot_of_a_leader_is_forgotten():
    machine = Machine()
    machine.start()
    whole = b"".join(encode(META, PIECES))
    for place in (0, 40, len(whole) - 1):
        data = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        assert receive(machine, data, of(whole)) == [None]
        assert not machine.store.snapshots.is_whole(of(whole))
    assert receive(machine, whole, of(whole)) == [META]
    assert machine.failures == []


def test_what_an_earlier_process_received_is_removed():
    machine = Machine()
    machine.start()
    data = b"".join(encode(META, PIECES))
    machine.store.snapshots.keep(of(data), 0, data[:100], lambda have: None)
    machine.disk.sync_directory(f"{DATA}/snap")
    assert machine.disk.names(f"{DATA}/snap") == ["received.part"]
    machine.power_cycle()
    assert machine.disk.names(f"{DATA}/snap") == []


def test_a_rename_is_durable_with_its_directory():
    """The simulated disk keeps one name or the other, never both."""
    for synced in (False, True):
        for keeps in (False, True):
            disk = MemoryFileSystem()
            file = disk.open("d/a")
            file.write(0, b"text")
            file.sync()
            disk.sync_directory("d")
            disk.rename("d/a", "d/b")
            if synced:
                disk.sync_directory("d")
            disk.crash(lambda path, sector, keeps=keeps: keeps)
            assert disk.names("d") == (["b"] if synced or keeps else ["a"])
            assert disk.read(f"d/{disk.names('d')[0]}") == b"text"

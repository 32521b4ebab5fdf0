"""Reading back: every prefix and every damaged sector of a short log, the three cases of `records.py`."""

from __future__ import annotations

import os
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from raftd.errors import CorruptionError, DirectoryLocked, StorageError
from raftd.limits import SECTOR_BYTES, Limits
from raftd.raft.ready import HardState, Persist
from raftd.storage.filesystem import RealFileSystem
from raftd.storage.log import parse_name
from raftd.storage.records import SEGMENT_HEADER_BYTES, Damage, encode_batch, scan_segment, segment_header
from raftd.storage.vote import Identity
from tests.storage.harness import DATA, Machine, PowerFailure, entry, failing, new_store, working

ID = bytes(range(1, 17))
OWNER = Identity(1, "t", (1, 2, 3))


def image(batches):
    """A segment of batches of entries, and the offset behind each batch."""
    data = segment_header(1, ID, 7)
    chain, ends = 7, [len(data)]
    for batch in batches:
        more, chain = encode_batch(ID, len(data), chain, batch)
        data += more
        ends.append(len(data))
    return data, ends


BATCHES = [
    [entry(1, data=b"a" * 300)],
    [entry(2, data=b"b" * 40), entry(3, data=b"c" * 900)],
    [entry(4, data=b"d" * 1_400), entry(5, data=b"e" * 700)],
]
DATA_BYTES, ENDS = image(BATCHES)


def good_before(offset: int) -> list[int]:
    """The indices of all batches that end at or before `offset`."""
    return [item.index for batch, end in zip(BATCHES, ENDS[1:], strict=True) if end <= offset for item in batch]


def scan(data: bytes, is_newest: bool = True):
    return scan_segment(data, 1, ID, 7, is_newest)


def test_what_was_written_is_read_back():
    result = scan(DATA_BYTES)
    assert result.damage is Damage.NONE
    assert result.entries == [item for batch in BATCHES for item in batch]


def test_every_prefix_is_whole_or_torn_and_loses_only_its_last_batch():
    for size in range(len(DATA_BYTES)):
        result = scan(DATA_BYTES[:size])
        assert result.damage is (Damage.NONE if size in ENDS else Damage.TORN), size
        assert [item.index for item in result.entries] == good_before(size), size


#: Sectors of zeros behind the last one that has data, into which the next batches would have been written; None: no space at all.
SPACES = [None, 0, 8]


def with_space(data: bytes, sectors: int | None) -> bytes:
    return data if sectors is None else data + bytes(-len(data) % SECTOR_BYTES + sectors * SECTOR_BYTES)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("sector", range(len(DATA_BYTES) // SECTOR_BYTES + 1))
@pytest.mark.parametrize("fill", ["torn", "zeros", "rot", "stale"])
def test_every_damaged_sector_is_judged_by_its_place(sector, fill, space):
    first, last = sector * SECTOR_BYTES, min((sector + 1) * SECTOR_BYTES, len(DATA_BYTES))
    if fill == "torn":
        # what a crash leaves in the last batch: its part of the sector was never written
        first = max(first, ENDS[-2]) if last > ENDS[-2] else first
        filling = bytes(last - first)
    elif fill == "zeros":
        filling = bytes(last - first)
    elif fill == "rot":
        filling = bytes(byte ^ 0x40 if place == 3 else byte for place, byte in enumerate(DATA_BYTES[first:last]))
    else:
        filling = (b"a sector of an older file " * 40)[: last - first]
    result = scan(with_space(DATA_BYTES[:first] + filling + DATA_BYTES[last:], space))
    if first >= ENDS[-2]:
        assert result.damage is (Damage.TORN if fill in ("torn", "zeros") else Damage.DOUBTFUL)
        assert [item.index for item in result.entries] == [1, 2, 3]
    elif last > ENDS[-2] and fill != "rot":
        # the header that proved it durable went with it: acknowledged, and so never called torn
        assert result.damage is Damage.DOUBTFUL
    else:
        assert result.damage is Damage.CORRUPT
        assert result.bad_offset <= last


@pytest.mark.parametrize("space", SPACES)
def test_a_segment_ends_where_only_zeros_follow(space):
    for end in ENDS:
        result = scan(with_space(DATA_BYTES[:end], space))
        assert (result.damage, result.end) == (Damage.NONE, end)
        assert [item.index for item in result.entries] == good_before(end)


def test_rot_in_the_space_ahead_costs_no_entry():
    whole = with_space(DATA_BYTES, 8)
    for place in range(len(DATA_BYTES), len(whole), 7):
        result = scan(whole[:place] + b"\1" + whole[place + 1 :])
        beside = place // SECTOR_BYTES == len(DATA_BYTES) // SECTOR_BYTES  # in the sector of a header to come
        assert result.damage is (Damage.DOUBTFUL if beside else Damage.TORN), place
        assert [item.index for item in result.entries] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("space", SPACES)
def test_no_single_changed_byte_is_taken_for_data(space):
    originals = {item.index: item for batch in BATCHES for item in batch}
    for place in range(len(DATA_BYTES)):
        result = scan(with_space(DATA_BYTES[:place] + bytes([DATA_BYTES[place] ^ 1]) + DATA_BYTES[place + 1 :], space))
        assert result.damage is (Damage.DOUBTFUL if place >= ENDS[-2] else Damage.CORRUPT), place
        assert all(item == originals[item.index] for item in result.entries), place


def test_a_body_of_zeros_is_never_evidence_of_a_torn_write():
    data, ends = image([[entry(1)], [entry(2, data=bytes(2_000)), entry(3, data=b"z" * 600)]])
    for place in range(ends[1] + 60, len(data)):
        damaged = data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]
        assert scan(damaged).damage is Damage.DOUBTFUL


def test_no_sector_is_written_as_zeros_wherever_a_job_has_them():
    """Simulator seed 202369: a torn write of such a job was doubted, and a cluster of three with one node gone stood still."""
    for before in range(0, 1_100, 7):
        bodies = [entry(1, data=b"a" * before), entry(2, data=bytes(1_500)), entry(3, data=bytes(40) + b"z" + bytes(600))]
        data, ends = image([[entry(0)], bodies])
        assert scan(data).entries == [entry(0), *bodies]
        sectors = [max(ends[1], start) for start in range(ends[1] // SECTOR_BYTES * SECTOR_BYTES, len(data), SECTOR_BYTES)]
        for start, stop in zip(sectors, [*sectors[1:], len(data)], strict=True):
            assert any(data[start:stop])
            result = scan(data[:start] + bytes(stop - start) + data[stop:])
            assert result.damage is Damage.TORN
            assert result.entries == [entry(0)]


def test_zeros_elsewhere_in_the_batch_explain_no_rot():
    data, ends = image([[entry(1)], [entry(2, data=b"a" * 600), entry(3, data=b"b" * 2_000)]])
    damaged = bytearray(data)
    damaged[ends[1] + 100] ^= 1
    damaged[2 * 1024 : 2 * 1024 + SECTOR_BYTES] = bytes(SECTOR_BYTES)
    assert scan(bytes(damaged)).damage is Damage.DOUBTFUL


def test_a_batch_that_does_not_continue_the_one_before_is_no_data():
    data, ends = image([[entry(1)]])
    stray, _ = encode_batch(ID, ends[-1], 12345, [entry(2)])
    result = scan(data + stray)
    assert result.damage is Damage.DOUBTFUL
    assert [item.index for item in result.entries] == [1]


def test_no_jobs_body_can_forge_a_later_batch():
    forged, _ = encode_batch(bytes(range(2, 18)), 500, 3, [entry(9)])
    data, ends = image([[entry(1)], [entry(2, data=forged * 10)]])
    damaged = bytearray(data)
    damaged[ends[1] + 60] ^= 1
    assert scan(bytes(damaged)).damage is Damage.DOUBTFUL


@settings(max_examples=200)
@given(st.lists(st.lists(st.binary(max_size=700), max_size=4), max_size=5), st.sampled_from(SPACES), st.data())
def test_a_crash_in_the_middle_of_the_last_write_keeps_all_before_it(bodies, space, data):
    index, batches = 0, []
    for batch in bodies:
        batches.append([])
        for body in batch:
            index += 1
            batches[-1].append(entry(index, data=b"!" + body.replace(b"\0", b"0")))
    whole, ends = image([*batches, [entry(index + 1, data=b"w" * 3_000)]])
    start = ends[-2]
    torn = bytearray(whole)
    sectors = range(start // SECTOR_BYTES, (len(whole) - 1) // SECTOR_BYTES + 1)
    lost = data.draw(st.lists(st.sampled_from(sectors), min_size=1, unique=True))
    for sector in lost:
        first, last = max(start, sector * SECTOR_BYTES), min((sector + 1) * SECTOR_BYTES, len(whole))
        torn[first:last] = bytes(last - first)
    result = scan(with_space(bytes(torn), space))
    assert result.damage is (Damage.NONE if space is not None and not any(torn[start:]) else Damage.TORN)
    assert result.end == start
    assert len(result.entries) == index


# -- the data directory ------------------------------------------------------------------------


def test_a_restart_finds_entries_votes_and_the_next_incarnation():
    machine = Machine()
    first = machine.start()
    assert (first.identity.incarnation, first.entries) == (1, [])
    assert machine.write([entry(1), entry(2)], HardState(3, 2)) == [1]
    machine.write([entry(2, term=3), entry(3, term=3)])  # a conflict: replaces entry 2
    again = machine.power_cycle()
    assert [(item.index, item.term) for item in again.entries] == [(1, 1), (2, 3), (3, 3)]
    assert (again.identity.term, again.identity.voted_for, again.identity.incarnation) == (3, 2, 2)
    assert again.identity.directory_id == first.identity.directory_id


def test_only_a_segment_that_is_written_has_space_ahead():
    machine = Machine(limits=Limits(segment_bytes=20_000))
    machine.start()

    def spaces() -> list[int]:
        files = [bytes(image.seen) for path, image in machine.disk.files.items() if path.endswith(".log")]
        return [len(data) - len(data.rstrip(b"\0")) for data in files]

    machine.write([entry(1, data=b"x" * 1_000)])
    size = machine.disk.size(machine.segment())
    assert spaces() == [4_096 + -(size - spaces()[0]) % SECTOR_BYTES]
    machine.write([entry(2, data=b"x" * 1_000)])
    assert machine.disk.size(machine.segment()) == size
    machine.write([entry(3, data=b"x" * 20_000)])  # larger than the space there would be
    assert spaces() == [0]
    machine.write([entry(4)])
    assert [space > 0 for space in spaces()] == [False, True]
    machine.clock = Clock()  # the process that ends here seals nothing
    assert [item.index for item in machine.power_cycle().entries] == [1, 2, 3, 4]
    assert spaces() == [0, 0]
    machine.write([entry(5)])
    machine.clock.advance(0.05)  # the seal
    assert spaces() == [0, 0, 0]
    machine.write([entry(6)])
    assert [space > 0 for space in spaces()] == [False, False, True]
    machine.store.close(lambda: None)
    assert spaces() == [0, 0, 0]
    machine.disk.exit()
    assert [item.index for item in machine.start().entries] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("size", [130, 300, 700, 3_000])
def test_a_sealed_segment_that_loses_its_last_sector_may_have_lost_promises(size):
    """Zeros are no space in a segment that has none, and its size tells (found by a review of the space)."""
    machine = Machine()
    machine.start()
    for index in range(1, 6):
        machine.write([entry(index, data=b"x" * size)])
    machine.store.close(lambda: None)
    machine.disk.crash()
    data = machine.disk.files[machine.segment()].seen
    last = (len(data) - 1) // SECTOR_BYTES * SECTOR_BYTES
    data[last:] = bytes(len(data) - last)
    opened = machine.start()
    assert opened.identity.doubtful
    assert len(opened.entries) < 5


def test_no_segment_without_space_is_a_whole_number_of_sectors():
    for size in range(3_000):
        data, _ = encode_batch(ID, SEGMENT_HEADER_BYTES, 7, [entry(1, data=b"x" * size)])
        assert (SEGMENT_HEADER_BYTES + len(data)) % SECTOR_BYTES


def test_zeros_end_only_the_newest_segment():
    """The process ended when the next one had a name and no header; then the last batch of this one was lost."""
    machine = Machine()
    machine.start()
    for index in range(1, 5):
        machine.write([entry(index, data=b"x" * 600)])
    machine.disk.crash()
    data = machine.disk.files[machine.segment()].seen
    number, segment_id = parse_name(machine.segment().rpartition("/")[2])
    start = scan_segment(bytes(data), number, segment_id, None, is_newest=True).last_batch
    data[start:] = bytes(-start % SECTOR_BYTES + 4 * SECTOR_BYTES)
    machine.disk.open(f"{DATA}/log/00000002-{bytes(range(1, 17)).hex()}.log")
    machine.disk.crash(keep=lambda path, sector: True)
    with pytest.raises(CorruptionError, match=r"log/00000001-.*a later segment proves that it was durable"):
        machine.start()


def test_what_was_not_synced_was_not_acknowledged():
    machine = Machine()
    machine.start()
    machine.write([entry(1)])
    machine.worker.hold = True
    assert machine.write([entry(2)]) == []
    assert [item.index for item in machine.power_cycle().entries] == [1]


def test_damage_before_the_last_segment_is_corruption():
    machine = Machine(limits=Limits(segment_bytes=600))
    machine.start()
    for index in range(1, 10):
        machine.write([entry(index, data=b"x" * 300)])
    assert len(machine.power_cycle().entries) == 9
    machine.disk.crash()
    machine.disk.files[machine.segment(1)].seen[200] ^= 1
    before = {path: bytes(file.seen) for path, file in machine.disk.files.items()}
    with pytest.raises(CorruptionError, match=r"log/00000002-.*offset \d+") as error:
        machine.start()
    assert "durable" in str(error.value)
    assert {path: bytes(file.seen) for path, file in machine.disk.files.items() if not path.endswith("lock")} == {
        path: data for path, data in before.items() if not path.endswith("lock")
    }


def test_a_missing_segment_is_corruption():
    machine = Machine(limits=Limits(segment_bytes=600))
    machine.start()
    for index in range(1, 10):
        machine.write([entry(index, data=b"x" * 300)])
    machine.disk.crash()
    machine.disk.remove(machine.segment(1))
    with pytest.raises(CorruptionError, match="segment 2 is missing"):
        machine.start()


@pytest.mark.parametrize("lives", [1, 2, 3])
def test_a_newest_segment_that_is_gone_is_missed(lives):
    """Nothing in the log tells of it: the vote file does."""
    machine = Machine()
    machine.start()
    for life in range(1, lives + 1):
        machine.write([entry(life)])
        machine.disk.crash()
        if life < lives:
            machine.start()
    machine.disk.remove(machine.segment())
    for _ in range(2):
        with pytest.raises(
            CorruptionError,
            match=rf"segment {lives} is missing. The vote file says that it was written; the log ends with segment {lives - 1}",
        ):
            machine.start()


def test_a_missing_oldest_segment_is_noticed():
    """Simulator seed 50681: the process ended after the header of its second segment, and then the first was lost."""
    machine = Machine(limits=Limits(segment_bytes=10))
    machine.start()
    machine.write([entry(1)])
    machine.disk.fault = PowerFailure(5)  # the first segment gives back its space, and the header is written and synced
    machine.write([entry(2)])
    machine.disk.fault = working
    machine.disk.exit()
    first, second = (machine.segment(place) for place in (0, 1))
    assert len(machine.disk.files[second].seen) == SEGMENT_HEADER_BYTES
    machine.disk.remove(first)
    with pytest.raises(CorruptionError, match="segment 1 is missing before it"):
        machine.start()


def test_a_segment_that_never_began_is_not_missed():
    """Power is lost at every moment of the first batch of a new segment, and of the vote file that tells of it."""
    for moment in range(1, 9):
        for keeps in (False, True):
            machine = Machine()
            machine.start()
            machine.write([entry(1)])
            machine.power_cycle()
            machine.disk.fault = PowerFailure(moment)
            done = machine.write([entry(2)])
            machine.disk.fault = working
            machine.disk.crash(lambda path, sector, keeps=keeps: keeps)
            found = machine.start().entries
            assert [one.index for one in found][:1] == [1]
            assert not done or len(found) == 2


def test_a_torn_tail_is_cut_with_a_copy_and_nothing_is_doubted():
    machine = Machine()
    machine.start()
    machine.write([entry(1)])
    machine.worker.hold = True
    machine.write([entry(2, data=b"y" * 3_000)])
    machine.disk.fault = failing("sync")
    machine.worker.step()  # written, never synced
    machine.disk.fault = working
    machine.disk.crash(keep=lambda path, sector: sector % 2 == 0)
    opened = machine.start()
    assert [item.index for item in opened.entries] == [1]
    assert not opened.identity.doubtful
    assert "never acknowledged" in opened.notes[1].text
    assert any(".torn-at-" in name for name in machine.disk.names(f"{DATA}/log"))
    machine.write([entry(2)])
    assert [item.index for item in machine.power_cycle().entries] == [1, 2]


def rot_last_batch(machine: Machine) -> None:
    """Damage an acknowledged last batch that no seal has covered yet."""
    machine.write([entry(1)])
    machine.write([entry(2, data=b"y" * 3_000)])
    machine.disk.crash()
    machine.rot(1_000)


def test_a_doubtful_tail_is_marked_durably_before_it_is_cut():
    machine = Machine()
    machine.start()
    rot_last_batch(machine)
    opened = machine.start()
    assert opened.identity.doubtful
    assert [item.index for item in opened.entries] == [1]
    assert opened.notes[1].is_warning
    again = machine.power_cycle()  # the mark survives, the evidence need not
    assert again.identity.doubtful
    machine.write(state=HardState(1, 0, doubtful=False))
    assert not machine.power_cycle().identity.doubtful


def test_a_doubtful_only_voter_cuts_warns_and_serves():
    machine = Machine()
    machine.start(only_voter=True)
    rot_last_batch(machine)
    opened = machine.start(only_voter=True)
    assert not opened.identity.doubtful
    assert "no other node has a copy" in opened.notes[1].text


def test_after_an_idle_moment_the_same_damage_is_corruption():
    machine = Machine()
    machine.start()
    machine.write([entry(1)])
    machine.write([entry(2, data=b"y" * 3_000)])
    machine.clock.advance(0.05)  # the seal
    machine.disk.crash()
    machine.rot(1_000)
    with pytest.raises(CorruptionError, match="a later batch proves that it was durable"):
        machine.start()


def test_an_idle_log_is_sealed_once():
    machine = Machine()
    machine.start()
    machine.write([entry(1)])
    syncs = machine.disk.syncs
    for _ in range(20):
        machine.clock.advance(0.05)
    assert machine.disk.syncs == syncs + 1


def test_a_directory_is_used_by_one_process():
    machine = Machine()
    machine.start()
    other = Machine(machine.disk)
    with pytest.raises(DirectoryLocked):
        other.start()
    machine.store.close(lambda: None)
    assert other.start().identity.incarnation == 2


def test_close_finishes_what_was_handed_over_and_gives_the_lock_back():
    machine = Machine()
    machine.start()
    machine.worker.hold = True
    durable = machine.write([entry(1)])
    closed = []
    machine.store.close(lambda: closed.append(True))
    while machine.worker.jobs:
        machine.worker.step()
    assert (durable, closed) == ([1], [True])
    assert len(Machine(machine.disk).start().entries) == 1


def test_zeros_in_a_header_with_batches_behind_are_no_torn_write():
    """The header is durable before the first batch is written. Taken for torn, the whole segment went without a mark."""
    machine = Machine()
    machine.start()
    machine.write([entry(1)])
    machine.disk.crash()
    segment = machine.segment()
    machine.disk.files[segment].seen[:SECTOR_BYTES] = bytes(min(SECTOR_BYTES, len(machine.disk.files[segment].seen)))
    assert machine.start().identity.doubtful


def test_a_segment_whose_header_was_never_written_is_dropped_without_doubt():
    machine = Machine()
    machine.start()
    machine.write([entry(1)])
    machine.power_cycle()
    machine.worker.hold = True
    machine.write([entry(2)])  # would begin the next segment
    name = f"{DATA}/log/00000002-{'ab' * 16}.log"
    for size in (0, 20, 44):
        machine.disk.crash()
        machine.disk.open(name).write(0, bytes(size))
        machine.disk.sync_directory(f"{DATA}/log")
        opened = machine.start()
        assert [item.index for item in opened.entries] == [1]
        assert not opened.identity.doubtful
    machine.worker.hold = False
    machine.write([entry(2)])
    assert machine.segment().split("/")[-1].startswith("00000002-")
    assert len(machine.power_cycle().entries) == 2  # and the dropped one has not come back


def test_headers_never_stand_on_two_sectors():
    """So a crash leaves all of a header or nothing of it, and half of one is damage."""
    machine = Machine()
    machine.start()
    for index in range(1, 120):
        machine.write([entry(index, data=b"x" * (index * 7 % 90))])
    data = bytes(machine.disk.files[machine.segment()].seen)
    segment_id = bytes.fromhex(machine.segment().split("-")[1].removesuffix(".log"))
    place, found = data.find(segment_id, 40), 0
    while place != -1:
        found += 1
        assert place // SECTOR_BYTES == (place + 44) // SECTOR_BYTES
        place = data.find(segment_id, place + 1)
    assert found == 119
    assert len(machine.power_cycle().entries) == 119


def test_a_whole_segment_that_does_not_belong_is_refused_and_never_cut():
    machine = Machine()
    machine.start()
    machine.write([entry(1)])
    machine.disk.crash()
    path = machine.segment()
    good = bytes(machine.disk.files[path].seen)

    def refused(match: str) -> None:
        before = {name: bytes(file.seen) for name, file in machine.disk.files.items()}
        with pytest.raises(CorruptionError, match=match):
            machine.start()
        assert {name: bytes(file.seen) for name, file in machine.disk.files.items()} == before

    newer = bytearray(good)
    newer[8] = 2
    newer[SEGMENT_HEADER_BYTES - 4 : SEGMENT_HEADER_BYTES] = crc32(newer[: SEGMENT_HEADER_BYTES - 4]).to_bytes(4, "little")
    machine.disk.files[path].seen[:] = newer
    refused("format 2; this raftd reads format 1")
    machine.disk.files[path].seen[:] = good
    later = path.replace("00000001", "00000007")
    machine.disk.files[later] = machine.disk.files.pop(path)
    refused("segment 1 is missing before it")
    other = path[: -len(".log") - 2] + "00.log"
    machine.disk.files[other] = machine.disk.files.pop(later)
    refused("does not belong to this file name")
    machine.disk.files[path + ".log"] = machine.disk.files.pop(other)
    refused("no segment's name")


def test_segments_continue_each_other():
    machine = Machine()
    machine.start()
    machine.write([entry(1)])
    machine.power_cycle()
    machine.write([entry(2)])
    machine.disk.crash()
    other = Machine()
    other.start()
    other.write([entry(1, data=b"another log")])
    other.store.close(lambda: None)
    stolen = other.disk.files[other.segment()]
    del machine.disk.files[machine.segment(0)]
    machine.disk.files[other.segment()] = stolen
    with pytest.raises(CorruptionError, match="does not continue the one before"):
        machine.start()


@pytest.mark.parametrize("fill", ["zeros", "short"])
def test_a_torn_tail_in_an_earlier_segment_is_corruption(fill):
    machine = Machine()
    machine.start()
    machine.write([entry(1)])
    machine.write([entry(2, data=b"y" * 2_000)])
    machine.power_cycle()
    machine.write([entry(3)])
    machine.disk.crash()
    file = machine.disk.files[machine.segment(0)]
    if fill == "zeros":
        file.seen[1_024:1_536] = bytes(512)
    else:
        del file.seen[-700:]
    with pytest.raises(CorruptionError, match="a later segment proves"):
        machine.start()


def test_entries_that_are_missing_between_others_are_corruption():
    machine = Machine()
    machine.start()
    machine.write([entry(1)])
    machine.write([entry(4)])
    machine.disk.crash()
    with pytest.raises(CorruptionError, match="entry 4 follows entry 1"):
        machine.start()


def test_a_vote_file_older_than_the_log_is_refused():
    machine = Machine()
    machine.start()
    old = {slot: bytes(machine.disk.files[f"{DATA}/{slot}"].seen) for slot in ("vote.a", "vote.b")}
    machine.write([entry(1, term=5)], HardState(5, 1))
    machine.disk.crash()
    for slot, data in old.items():
        machine.disk.files[f"{DATA}/{slot}"].seen[:] = data
    with pytest.raises(CorruptionError, match="the vote file is an old copy"):
        machine.start()


def test_a_missing_log_directory_is_refused():
    machine = Machine()
    machine.start()
    machine.power_cycle()
    machine.disk.crash()
    machine.disk.directories.discard(f"{DATA}/log")
    with pytest.raises(CorruptionError, match="log is missing"):
        machine.start()


def test_r17_a_failed_fsync_is_not_forgotten_by_the_next_process():
    """The kernel marks what it could not write as clean: the next process reads it, and syncing again would do nothing."""
    machine = Machine()
    machine.start()
    machine.write([entry(1)])

    machine.disk.fault = failing("sync")
    assert machine.write([entry(2)]) == []
    machine.disk.fault = working
    machine.disk._locked.clear()  # the process ended itself; the machine did not
    assert [item.index for item in machine.start().entries] == [1, 2]
    assert [item.index for item in machine.power_cycle().entries] == [1, 2]


def test_r17_a_seal_that_fails_ends_the_process_too():
    machine = Machine()
    machine.start()
    machine.write([entry(1)])

    machine.disk.fault = failing("sync")
    machine.clock.advance(0.05)
    assert len(machine.failures) == 1


# -- crashes while starting --------------------------------------------------------------------


def test_every_crash_while_a_directory_is_made_leaves_one_that_starts():
    for crash_at in range(1, 12):
        machine = Machine()
        machine.disk.fault = PowerFailure(crash_at)
        try:
            machine.start()
        except OSError:
            pass
        machine.disk.fault = working
        opened = machine.power_cycle()
        assert opened.identity.incarnation in (1, 2)


def test_every_crash_during_a_cut_leaves_mark_or_evidence():
    for crash_at in range(1, 30):
        machine = Machine()
        machine.start()
        rot_last_batch(machine)
        for image_ in machine.disk.files.values():
            image_.platter[:] = image_.seen
        machine.disk.fault = PowerFailure(crash_at)
        try:
            machine.start()
        except OSError:
            pass
        machine.disk.fault = working
        assert machine.power_cycle().identity.doubtful, f"crash at operation {crash_at}"


# -- group commit and failures -----------------------------------------------------------------


def test_while_one_write_runs_the_next_ones_gather():
    machine = Machine()
    machine.start()
    machine.write(state=HardState(1))
    machine.worker.hold = True
    durable = [machine.write([entry(index)]) for index in range(1, 11)]
    assert len(machine.worker.jobs) == 1
    syncs = machine.disk.syncs
    machine.worker.step()
    assert durable[0] == [2]
    assert durable[1:] == [[]] * 9
    machine.worker.step()
    assert [numbers[0] for numbers in durable] == list(range(2, 12))
    assert machine.store.batches_written == 2
    assert machine.disk.syncs - syncs == 5  # the segment's header, two batches, and its number in two vote slots


@pytest.mark.parametrize("operation", ["write", "sync"])
def test_r17_a_failed_write_or_fsync_is_reported_once_and_never_retried(operation):
    machine = Machine()
    machine.start()
    machine.worker.hold = True
    durable = machine.write([entry(1)]), machine.write([entry(2)])

    machine.disk.fault = failing(operation)
    machine.worker.step()
    assert [type(error) for error in machine.failures] == [OSError]
    machine.disk.fault = working
    assert not machine.worker.jobs
    assert durable == ([], [])


def test_r01_the_vote_is_durable_before_an_entry_of_its_term():
    machine = Machine()
    machine.start()
    machine.write([entry(1)])
    order = []
    real = machine.disk.open

    def spy(path: str):
        order.append(path.rsplit("/", 1)[-1])
        return real(path)

    machine.disk.open = spy
    machine.write([entry(2, term=5)], HardState(5, 1))
    assert order[:2] == ["vote.a", "vote.b"]
    # and at every operation at which power may be lost, no entry is ahead of the term it belongs to
    for crash_at in range(1, 12):
        machine = Machine()
        machine.start()
        machine.write([entry(1)])
        machine.disk.fault = PowerFailure(crash_at)
        machine.write([entry(2, term=5)], HardState(5, 1))
        machine.disk.fault = working
        machine.disk.crash(keep=lambda path, sector: path.endswith(".log"))
        opened = machine.start()  # would refuse a log ahead of its vote file
        assert opened.identity.term >= opened.entries[-1].term


# -- the real file system ----------------------------------------------------------------------


def test_nodes_that_start_together_may_share_the_directory_above_theirs(tmp_path, monkeypatch):
    """Found by `raftd chaos`: each saw that it was not there, and all but one could not make it."""
    make = os.mkdir

    def another_was_quicker(path: str, mode: int) -> None:
        make(path, mode)
        make(path, mode)

    monkeypatch.setattr("os.mkdir", another_was_quicker)
    RealFileSystem().make_directory(str(tmp_path / "data" / "1"))
    assert (tmp_path / "data" / "1").is_dir()


def test_the_real_file_system_keeps_the_same_promises(tmp_path):
    machine = Machine(RealFileSystem())
    directory = f"{tmp_path}/a/b"
    for life in (1, 2, 3):
        store = new_store(machine, RealFileSystem(), directory, OWNER, life)
        opened = store.open()
        assert opened.identity.incarnation == life
        assert len(opened.entries) == life - 1
        with pytest.raises(DirectoryLocked, match="stop it first"):
            new_store(machine, RealFileSystem(), directory, OWNER, 9).open()
        store.persist(Persist(1, HardState(life, 1), [entry(life)]), lambda: None)
        store.close(lambda: None)
    segment = next(path for path in (tmp_path / "a/b/log").iterdir() if path.name.startswith("00000003"))
    segment.write_bytes(segment.read_bytes()[:-10])
    store = new_store(machine, RealFileSystem(), directory, OWNER, 9)
    assert len(store.open().entries) == 3  # only the seal was torn
    assert machine.failures == []


@pytest.mark.parametrize("other", [Identity(2, "t", (1, 2, 3)), Identity(1, "u", (1, 2, 3)), Identity(1, "t", (1,))])
def test_the_directory_of_another_node_cluster_or_set_of_nodes_is_not_used(other):
    """Two configurations that named one directory once made a cluster of one out of a third of three, and two logs."""
    machine = Machine()
    machine.start()
    machine.disk.crash()
    with pytest.raises(StorageError, match="belongs to node 1 of cluster 't' with the nodes 1, 2, 3"):
        new_store(machine, machine.disk, DATA, other, 1).open()
    assert machine.start().identity.incarnation == 2  # nothing was changed

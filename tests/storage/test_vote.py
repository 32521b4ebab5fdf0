"""The vote file: one record, two slots, and a whole one at every moment."""

from __future__ import annotations

import pytest

from raftd.errors import CorruptionError
from raftd.raft.ready import HardState
from raftd.storage.vote import Identity, decode_slot, encode_slot
from tests.storage.harness import DATA, Machine, PowerFailure, working


def test_r01_term_and_vote_are_one_record():
    identity = Identity(2, "demo", (1, 2, 3), term=7, voted_for=3, incarnation=2, directory_id=b"d" * 16, peers={2: b"p" * 16})
    record = encode_slot(9, identity)
    assert decode_slot(record) == (9, identity)
    assert decode_slot(record + b"bytes of an older, longer record") == (9, identity)
    for place in range(len(record)):
        assert decode_slot(record[:place]) is None
        assert decode_slot(record[:place] + bytes([record[place] ^ 4]) + record[place + 1 :]) is None


@pytest.mark.parametrize("slot", ["vote.a", "vote.b"])
def test_one_bad_vote_slot_is_replaced_from_the_other(slot):
    machine = Machine()
    machine.start()
    machine.write(state=HardState(4, 2))
    machine.disk.crash()
    machine.disk.files[f"{DATA}/{slot}"].seen[30] ^= 1
    opened = machine.start()
    assert (opened.identity.term, opened.identity.voted_for) == (4, 2)
    other = "vote.b" if slot == "vote.a" else "vote.a"
    machine.disk.crash()
    machine.disk.files[f"{DATA}/{other}"].seen[30] ^= 1  # the repaired one must serve now
    assert machine.start().identity.incarnation == 3


def test_the_newer_of_two_good_slots_counts():
    machine = Machine()
    machine.start()
    machine.write(state=HardState(4, 2))
    older = bytes(machine.disk.files[f"{DATA}/vote.b"].seen)
    machine.write(state=HardState(5, 3))
    machine.disk.crash()
    for slot in ("vote.a", "vote.b"):
        newer = bytes(machine.disk.files[f"{DATA}/{slot}"].seen)
        machine.disk.files[f"{DATA}/{slot}"].seen[:] = older
        opened = machine.start()
        assert (opened.identity.term, opened.identity.voted_for) == (5, 3)
        machine.disk.crash()
        for name in ("vote.a", "vote.b"):
            machine.disk.files[f"{DATA}/{name}"].seen[:] = newer


def test_each_start_takes_a_new_incarnation_durably():
    machine = Machine()
    assert [machine.start().identity.incarnation] + [machine.power_cycle().identity.incarnation for _ in range(3)] == [1, 2, 3, 4]


def test_a_bad_slot_is_repaired_before_the_good_one_is_written_over():
    """The record is longer than a sector, and power goes in the middle of every write while it starts."""
    for crash_at in range(1, 10):
        for kept in (0, 1):
            machine = Machine()
            machine.start()
            # the next incarnation takes a byte more, so that all behind it moves: no sector of the record stays as it is
            machine.store.remember(lambda: None, incarnation=127, peers={number: b"%016d" % number for number in range(60)})
            machine.write(state=HardState(4, 2))
            machine.disk.crash()
            machine.disk.files[f"{DATA}/vote.b"].seen[30] ^= 1
            machine.disk.files[f"{DATA}/vote.b"].platter[30] ^= 1
            machine.disk.fault = PowerFailure(crash_at)
            try:
                machine.start()
            except OSError:
                pass
            machine.disk.fault = working
            machine.disk.crash(keep=lambda path, sector, kept=kept: sector == kept)
            opened = machine.start()
            assert (opened.identity.term, opened.identity.voted_for) == (4, 2)


def test_r01_two_bad_vote_slots_refuse_to_start():
    machine = Machine()
    machine.start()
    machine.disk.crash()
    for slot in ("vote.a", "vote.b"):
        machine.disk.files[f"{DATA}/{slot}"].seen[30] ^= 1
    with pytest.raises(CorruptionError, match="may have forgotten a vote"):
        machine.start()


def test_a_crash_between_the_slots_keeps_one_whole_at_every_moment():
    for crash_at in range(1, 6):
        machine = Machine()
        machine.start()
        machine.write(state=HardState(4, 2))
        machine.disk.files[f"{DATA}/vote.a"].platter[:] = b"rot"  # found bad at the next start
        machine.disk.crash()
        machine.disk.fault = PowerFailure(crash_at)
        try:
            machine.start()
        except OSError:
            pass
        machine.disk.fault = working
        opened = machine.power_cycle()
        assert (opened.identity.term, opened.identity.voted_for) == (4, 2)


def test_what_was_read_after_a_failed_fsync_is_made_durable():
    """Seed 913614: a new node's disk fails in its first start; the next start reads from the cache what never reached the disk, and
    power goes in the middle of it. Such a node has promised nothing, and starts."""
    for is_new in (True, False):
        for failing_sync in range(1, 5):
            for crash_at in range(1, 16):
                machine = Machine()
                if not is_new:
                    machine.start()
                    machine.write(state=HardState(4, 2))
                    machine.disk.exit()
                left = failing_sync

                def fault(operation: str) -> None:
                    nonlocal left
                    left -= operation == "sync"
                    if operation == "sync" and left == 0:
                        raise OSError("the disk fails")

                for step in (fault, PowerFailure(crash_at)):
                    machine.disk.fault = step
                    try:
                        machine.start()
                    except OSError:
                        pass
                    machine.disk.exit()
                machine.disk.fault = working
                identity = machine.power_cycle().identity
                assert (identity.term, identity.voted_for) == ((0, 0) if is_new else (4, 2)), (is_new, failing_sync, crash_at)

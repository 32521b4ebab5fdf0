"""Looking at a data directory while its node writes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from raftd.errors import CorruptionError
from raftd.limits import SECTOR_BYTES
from raftd.sim.disk import MemoryFileSystem
from raftd.storage.inspect import find_segments, read_log, steady
from tests.storage.harness import DATA, Machine, entry


class WrittenMeanwhile:
    """A disk whose log looks damaged at the first `times` looks: the page in its middle comes late."""

    def __init__(self, disk: MemoryFileSystem, times: int) -> None:
        self._disk = disk
        self._times = times

    def __getattr__(self, name: str) -> Callable[..., object]:
        return getattr(self._disk, name)

    def read(self, path: str) -> bytes:
        data = self._disk.read(path)
        if not path.endswith(".log") or self._times == 0:
            return data
        self._times -= 1
        return data[:SECTOR_BYTES] + bytes(SECTOR_BYTES) + data[2 * SECTOR_BYTES :]


@pytest.fixture
def disk() -> MemoryFileSystem:
    machine = Machine()
    machine.start()
    for index in (1, 2, 3):
        machine.write([entry(index, data=b"x" * 800)])
    return machine.disk


def test_a_write_under_way_is_no_damage(disk):
    (segment,) = find_segments(WrittenMeanwhile(disk, 1), DATA, None)
    assert (segment.problem, segment.is_sound) == ("", True)
    assert [item.index for item in segment.entries] == [1, 2, 3]


def test_a_read_that_fails_once_is_tried_again(disk):
    looked_at = WrittenMeanwhile(disk, 1)
    found = steady(looked_at, DATA, lambda: read_log(looked_at, DATA), bool)
    assert [item.index for item in found.entries] == [1, 2, 3]


def test_damage_that_stays_is_damage(disk):
    (segment,) = find_segments(WrittenMeanwhile(disk, 100), DATA, None)
    assert "proves that it was durable" in segment.problem
    looked_at = WrittenMeanwhile(disk, 100)
    with pytest.raises(CorruptionError, match="proves that it was durable"):
        steady(looked_at, DATA, lambda: read_log(looked_at, DATA), bool)

"""The simulated world keeps its own promises: time, streams, disks."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftd.raft.messages import ReadIndex
from raftd.sim.disk import Disk
from raftd.sim.network import Network, NetworkConditions
from raftd.sim.scheduler import NodeClock, Scheduler


def test_calls_come_in_order_and_not_once_cancelled():
    scheduler, seen = Scheduler(), []
    scheduler.after(20, seen.append, "c")
    scheduler.after(10, seen.append, "a")
    scheduler.after(10, seen.append, "b")
    gone = scheduler.callLater(0.000_015, seen.append, "never")
    gone.cancel()
    assert not gone.active()
    scheduler.run(15)
    assert (seen, scheduler.now_us) == (["a", "b"], 15)
    scheduler.run(20)
    assert (seen, scheduler.steps) == (["a", "b", "c"], 3)


def test_a_fast_clock_is_ahead_and_its_calls_come_early():
    scheduler, seen = Scheduler(), []
    clock = NodeClock(scheduler, scheduler.after, 1.25, 100.0)
    clock.callLater(1.0, lambda: seen.append(scheduler.now_us))
    scheduler.run(2_000_000)
    assert seen == [800_000]
    assert clock.seconds() == 102.5


class _Node:
    """As much of a node as a connection needs."""

    def __init__(self) -> None:
        self.got: list[int] = []
        self.changes = 0

    def hello(self) -> None: ...

    def handle_hello(self, hello: None, accept) -> None:
        accept()

    def link_changed(self, peer: int) -> None:
        self.changes += 1

    def hearing_from(self, peer: int) -> None: ...

    def receive(self, sender: int, message: ReadIndex) -> None:
        self.got.append(message.context)


class _Process:
    alive = True

    def __init__(self, node_id: int) -> None:
        self.node_id = node_id
        self.node = _Node()

    def soon(self, call, *args) -> None:
        call(*args)


class _Silent:
    def leaving(self, process, to, message) -> None: ...

    def happened(self, what, *numbers, detail="") -> None: ...

    def counted(self, fault) -> None: ...


def network(conditions: NetworkConditions) -> tuple[Scheduler, Network, _Process, _Process]:
    scheduler = Scheduler()
    world = Network(scheduler, Random(1), conditions, _Silent())
    one, two = _Process(1), _Process(2)
    world.started(one)
    world.started(two)
    scheduler.run(100_000)
    assert world.is_connected(1, 2)
    return scheduler, world, one, two


LINKS = st.sampled_from([frozenset(), frozenset({(1, 2)}), frozenset({(2, 1)}), frozenset({(1, 2), (2, 1)})])


STEPS = st.lists(st.one_of(st.just("send"), LINKS, st.integers(1, 60_000)), max_size=40)


def play(conditions: NetworkConditions, steps: list[object]) -> tuple[Network, int, list[int]]:
    """Node 1 sends numbered messages while links are cut and healed; how many, and those that node 2 got."""
    scheduler, world, one, two = network(conditions)
    sent = 0
    for step in steps:
        if step == "send":
            sent += 1
            world.send(one, 2, ReadIndex(1, sent))
        elif isinstance(step, int):
            scheduler.run(scheduler.now_us + step)
        else:
            world.cut_off(set(step))
    world.heal()
    scheduler.run(scheduler.now_us + 3_000_000)
    return world, sent, two.node.got


@given(STEPS)
def test_a_stream_keeps_its_order_whatever_is_cut_and_healed_meanwhile(steps):
    """A piece once arrived before one that had been held at an earlier cut (seeds 20101 and 20126, of the simulator's own)."""
    _, sent, got = play(NetworkConditions((500, 40_000), split=0.5), steps)
    assert got == list(range(1, sent + 1))


@given(STEPS)
def test_a_link_that_loses_never_gives_half_a_frame_back(steps):
    world, _, got = play(NetworkConditions((500, 40_000), split=0.5, holds=False), steps)
    assert got == sorted(set(got))
    assert world.is_connected(1, 2)


def test_a_broken_connection_loses_what_is_on_its_way_and_is_made_anew():
    scheduler, world, one, two = network(NetworkConditions((10_000, 10_000)))
    world.send(one, 2, ReadIndex(1, 1))
    world.break_connection(1, 2)
    world.send(one, 2, ReadIndex(1, 2))
    scheduler.run(scheduler.now_us + 200_000)
    assert world.is_connected(1, 2)
    world.send(one, 2, ReadIndex(1, 3))
    scheduler.run(scheduler.now_us + 20_000)
    assert two.node.got == [3]
    assert (one.node.changes, two.node.changes) == (3, 3)  # up, down, up


def test_a_link_that_is_cut_for_too_long_breaks_its_connection():
    scheduler, world, one, two = network(NetworkConditions())
    world.partition([1, 2], {1}, {2})
    world.send(one, 2, ReadIndex(1, 1))
    scheduler.run(scheduler.now_us + 60_000_000)
    assert not world.is_connected(1, 2)
    world.heal()
    scheduler.run(scheduler.now_us + 2_000_000)
    assert world.is_connected(1, 2)
    assert two.node.got == []


@pytest.mark.parametrize(("keep", "left"), [(set(), b"aaaa"), ({1}, b"aaaaBBBB"), ({0, 1}, b"bbbbBBBB")])
def test_a_loss_of_power_keeps_what_was_synced_and_the_sectors_it_likes(keep, left):
    disk = Disk(sector=4)
    file = disk.open("d/f")
    file.write(0, b"aaaa")
    file.sync()
    disk.sync_directory("d")
    file.write(0, b"bbbbBBBB")
    assert disk.read("d/f") == b"bbbbBBBB"
    assert disk.after_power_loss().read("d/f") == b"aaaa"
    disk.crash(lambda path, sector: sector in keep)
    assert disk.read("d/f") == left


def test_an_unsynced_directory_loses_files_and_restores_removed_ones():
    disk = Disk()
    disk.open("d/old").write(0, b"x")
    disk.open("d/old").sync()
    disk.sync_directory("d")
    disk.open("d/new").write(0, b"y")
    disk.open("d/new").sync()
    disk.remove("d/old")
    assert disk.names("d") == ["new"]
    disk.crash()
    assert disk.names("d") == ["old"]


def test_a_failed_sync_forgets_what_it_could_not_write():
    disk = Disk()
    file = disk.open("d/f")
    disk.sync_directory("d")
    file.write(0, b"x")
    disk.fail_next("sync")
    with pytest.raises(OSError, match="simulated"):
        file.sync()
    file.sync()
    disk.crash()
    assert disk.read("d/f") == b"\0"  # the size is known, the byte is not

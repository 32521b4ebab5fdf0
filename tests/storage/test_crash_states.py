"""Power is lost at every moment of a short life, with every subset of the sectors that were not synced: what is found?

Whatever was called durable is there, in order; nothing that was never handed over; no term or vote is forgotten, no
incarnation used twice; nothing is taken for damage, and no vote is made worth less. And the node goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, combinations
from random import Random

import pytest

from raftd.errors import CorruptionError
from raftd.limits import LIMITS, Limits
from raftd.raft.messages import Configuration, Entry, Snapshot
from raftd.raft.ready import Base, HardState, Persist
from raftd.sim import mutants
from raftd.sim.disk import MemoryFileSystem
from raftd.storage.snapshots import Meta, encode
from tests.storage.harness import HeldWorker, Machine, entry

#: So many subsets of one moment are all tried; of more, as many are drawn.
_MOST_SUBSETS = 512

Log = tuple[Entry, ...]
Loss = tuple[str, int]


class Known(Machine):
    """A machine that remembers what it handed over, and what it was told is durable."""

    def __init__(self, disk: MemoryFileSystem | None = None, limits: Limits = LIMITS) -> None:
        super().__init__(disk, limits)
        self.logs: list[Log] = [()]  # after each persist that was handed over
        self.states: list[HardState] = [HardState(0)]
        self.durable = 0  # how many of them certainly are
        self.incarnation = 0  # the newest that was spoken of

    def put(self, *entries: Entry, state: HardState | None = None) -> None:
        log = self.logs[-1]
        self.logs.append((*log[: entries[0].index - 1], *entries) if entries else log)
        self.states.append(state or self.states[-1])
        place = len(self.logs) - 1

        def told() -> None:
            self.durable = max(self.durable, place)

        self.number += 1
        self.store.persist(Persist(self.number, state, list(entries)), told)

    def take_snapshot(self, index: int) -> None:
        """Of the state after entry `index`; what only the one before it needed goes."""
        before = self.store.snapshots.newest
        last = self.logs[-1][index - 1]

        def taken(snapshot, why_not) -> None:
            assert snapshot is not None, why_not
            if before is not None:
                self.store.purge(before.index)
            self.store.snapshots.remove_older((), lambda: None)

        self.store.snapshots.take(
            Meta("t", Configuration(b"", (1, 2, 3)), index, last.term, last.time_ms),
            lambda: pieces_of(self.logs[-1][:index]),
            1 << 40,
            taken,
        )

    def receive_snapshot(self, *log: Entry) -> None:
        """A leader's snapshot of the state after these entries takes the place of everything."""
        data = b"".join(encode(Meta("t", Configuration(b"", (1, 2, 3)), len(log), log[-1].term, log[-1].time_ms), pieces_of(log)))
        snapshot = Snapshot(len(log), log[-1].term, len(data), int.from_bytes(data[-4:], "little"))
        half = len(data) // 2
        self.store.snapshots.keep(snapshot, 0, data[:half], lambda have: None)
        self.store.snapshots.keep(snapshot, half, data[half:], lambda have: None)
        found: list[Meta | None] = []
        self.store.snapshots.verify_received(found.append)
        assert found[0] is not None
        self.logs.append(log)
        self.states.append(self.states[-1])
        place = len(self.logs) - 1

        def told() -> None:
            self.durable = place

        self.store.install(snapshot, found[0], told)


def pieces_of(log: Log) -> Iterator[bytes]:
    """A state: who applied these entries."""
    yield from (b"%d %d" % (item.index, item.term) for item in log)


class Moment:
    """A disk as it is between two of its operations, and what is known then."""

    def __init__(self, machine: Known) -> None:
        self.disk = machine.disk.copy()
        self.logs, self.states = machine.logs[machine.durable :], machine.states[machine.durable :]
        self.incarnation = machine.incarnation
        self.limits = machine.limits

    def losses(self) -> list[Loss]:
        """What may be lost or kept: unsynced sectors, names of new files (-1), the new sizes of files (-2)."""
        found: list[Loss] = [(path, -1) for path in sorted(self.disk._removed)]
        for path, image in sorted(self.disk.files.items()):
            if not image.named:
                found.append((path, -1))
            if len(image.seen) > len(image.platter):
                found.append((path, -2))
            size = self.disk.sector
            starts = range(0, len(image.seen), size)
            found += [(path, start // size) for start in starts if image.seen[start : start + size] != image.platter[start : start + size]]
        return found

    def crashed(self, kept: set[Loss]) -> MemoryFileSystem:
        disk = self.disk.copy()
        sizes = {path: len(image.seen) for path, image in disk.files.items()}
        disk.crash(lambda path, sector: (path, sector) in kept)
        for path, image in disk.files.items():
            if (path, -2) in kept:
                image.seen.extend(bytes(max(0, sizes[path] - len(image.seen))))
                image.platter[:] = image.seen
        return disk


def moments(life: Callable[[Known], object], disk: MemoryFileSystem | None = None, limits: Limits = LIMITS) -> Iterator[Moment]:
    """All of a life, before each of its writes and syncs, and at its end."""
    machine = Known(disk, limits)
    found: list[Moment] = []

    def examine(operation: str) -> None:
        if operation != "read":
            found.append(Moment(machine))

    machine.disk.fault = examine
    life(machine)
    found.append(Moment(machine))
    yield from found


def subsets(losses: list[Loss], random: Random) -> Iterator[set[Loss]]:
    if 2 ** len(losses) <= _MOST_SUBSETS:
        for chosen in chain.from_iterable(combinations(losses, count) for count in range(len(losses) + 1)):
            yield set(chosen)
        return
    for _ in range(_MOST_SUBSETS):
        share = random.random()
        yield {loss for loss in losses if random.random() < share}


def reaches(log: Log, base: Base) -> bool:
    """Whether a snapshot of `base` may stand for the beginning of the log."""
    return not base.index or [item.term for item in log[base.index - 1 : base.index]] == [base.term]


def check(moment: Moment, disk: MemoryFileSystem) -> None:
    """Start on what is left, and go on for one entry."""
    machine = Known(disk, moment.limits)
    machine.lives = moment.incarnation  # so that its random ids are new
    opened = machine.start()
    entries, base, identity = tuple(opened.entries), opened.base, opened.identity
    places = [place for place, possible in enumerate(moment.logs) if possible[base.index :] == entries and reaches(possible, base)]
    assert places
    log = moment.logs[places[0]]
    if base.index:
        assert list(machine.store.snapshots.pieces()) == list(pieces_of(log[: base.index]))
    found = HardState(identity.term, identity.voted_for)
    assert not identity.doubtful
    assert found in moment.states
    # The vote is written first: it may be ahead of the log, never behind.
    assert max(place for place, state in enumerate(moment.states) if state == found) >= min(places)
    assert identity.incarnation > moment.incarnation
    machine.logs, machine.states = [log], [found]
    term = max(identity.term, 1)
    machine.put(entry(len(log) + 1, term), state=HardState(term, found.voted_for))
    assert machine.durable == 1
    again = Known(machine.disk, moment.limits)
    again.lives = machine.lives
    again.disk.crash()
    reopened = again.start()
    assert tuple(reopened.entries) == machine.logs[-1][reopened.base.index :]


# -- lives -------------------------------------------------------------------------------------


def begin(machine: Known) -> None:
    machine.lives += machine.incarnation
    opened = machine.start()
    machine.incarnation = opened.identity.incarnation


def first_start(machine: Known) -> None:
    begin(machine)


def votes(machine: Known) -> None:
    begin(machine)
    machine.put(state=HardState(1, 1))
    machine.put(state=HardState(2, 0))
    machine.put(state=HardState(2, 3))


def big(index: int, term: int = 1) -> Entry:
    """On three sectors."""
    return entry(index, term, b"%d" % index * 1_300)


def batches(machine: Known) -> None:
    begin(machine)
    machine.put(big(1), state=HardState(1, 2))
    machine.put(entry(2))
    machine.put(big(3), big(4))


def gathered(machine: Known) -> None:
    """Group commit: what came while one write ran goes out as one."""
    begin(machine)
    machine.put(entry(1), state=HardState(1))
    machine.worker.hold = True
    for index in range(2, 6):
        machine.put(entry(index, data=b"x" * 300))
    while machine.worker.jobs:
        machine.worker.step()


def replaced(machine: Known) -> None:
    """A new leader's entries take the place of others."""
    begin(machine)
    machine.put(entry(1), big(2), entry(3), state=HardState(1))
    machine.put(big(2, 2), state=HardState(2, 3))
    machine.put(entry(3, 2), entry(4, 2))


def sealed(machine: Known) -> None:
    begin(machine)
    machine.put(big(1), state=HardState(1))
    machine.clock.advance(0.05)
    machine.clock.advance(0.05)
    machine.put(entry(2))


def two_processes(machine: Known) -> None:
    """SIGKILL: what the first wrote is still in the page cache when the second reads it."""
    begin(machine)
    machine.put(big(1), state=HardState(1))
    machine.worker = HeldWorker()
    machine.disk.exit()
    begin(machine)
    machine.put(entry(2), state=HardState(2))


def zeros(machine: Known) -> None:
    """A batch of jobs that have whole sectors of zeros."""
    begin(machine)
    machine.put(entry(1), state=HardState(1))
    machine.put(entry(2, data=b"a" * 600 + bytes(1_100) + b"b" * 100))


def compacted(machine: Known) -> None:
    """Two snapshots of its own: with the second, the segments before the first go."""
    begin(machine)
    machine.put(big(1), state=HardState(1))
    machine.take_snapshot(1)
    machine.put(entry(2), big(3))
    machine.take_snapshot(3)
    machine.put(entry(4))


def taken_over(machine: Known) -> None:
    """A leader's snapshot takes the place of a log that went another way."""
    begin(machine)
    machine.put(entry(1), big(2), state=HardState(1))
    machine.put(state=HardState(2))
    machine.receive_snapshot(entry(1), entry(2, 2), entry(3, 2))
    machine.put(entry(4, 2), state=HardState(2))


LIVES = [first_start, votes, batches, gathered, replaced, sealed, two_processes, zeros, compacted, taken_over]


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("life", LIVES, ids=lambda life: life.__name__)
def test_every_crash_state_recovers(life, sector):
    tried = 0
    random = Random(1)
    for moment in moments(life, MemoryFileSystem(sector)):
        for kept in subsets(moment.losses(), random):
            check(moment, moment.crashed(kept))
            tried += 1
    assert tried >= 15


@pytest.mark.parametrize("life", [batches, replaced, compacted, taken_over], ids=lambda life: life.__name__)
def test_every_crash_state_recovers_when_each_batch_begins_a_segment(life):
    random = Random(1)
    tried = 0
    for moment in moments(life, limits=Limits(segment_bytes=100)):
        for kept in subsets(moment.losses(), random):
            check(moment, moment.crashed(kept))
            tried += 1
    assert tried > 50


def all_states(life: Callable[[Known], object]) -> None:
    for moment in moments(life):
        for kept in subsets(moment.losses(), Random(1)):
            check(moment, moment.crashed(kept))


@pytest.mark.parametrize(
    ("name", "life"),
    [
        ("ack before fsync", gathered),
        ("vote not persisted", votes),
        ("term and vote written apart", votes),
        ("missing directory fsync", first_start),
    ],
)
def test_broken_storage_is_noticed(name, life):
    with mutants.applied(name), pytest.raises((AssertionError, CorruptionError)):
        all_states(life)


def test_every_crash_of_every_recovery_recovers():
    """Power is lost again while the first loss is mended."""
    random = Random(1)
    tried = 0
    for moment in moments(batches):
        losses = moment.losses()
        if len(losses) < 3:
            continue
        for kept in list(subsets(losses, random))[::9]:
            disk = moment.crashed(kept)

            def recover(machine: Known, moment: Moment = moment) -> None:
                machine.logs, machine.states, machine.incarnation = moment.logs, moment.states, moment.incarnation
                machine.lives = moment.incarnation
                machine.start()

            for second in moments(recover, disk):
                for kept_then in subsets(second.losses(), random):
                    check(second, second.crashed(kept_then))
                    tried += 1
    assert tried > 10_000

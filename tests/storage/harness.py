"""A store on a disk in memory, and a worker whose jobs finish when the test says so."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterable
from random import Random

from twisted.internet.task import Clock

from raftd.errors import CorruptionError
from raftd.limits import LIMITS, Limits
from raftd.raft.messages import Entry, EntryKind
from raftd.raft.ready import HardState, Persist
from raftd.sim.disk import MemoryFileSystem
from raftd.storage.filesystem import FileSystem
from raftd.storage.store import Opened, Store
from raftd.storage.vote import Identity

DATA = "data/1"


class HeldWorker:
    """Jobs run when `step` is called, in order; `hold = False` runs them at once."""

    def __init__(self, hold: bool = False) -> None:
        self.hold = hold
        self.jobs: deque[tuple[Callable[[], None], Callable[[BaseException | None], None]]] = deque()

    def run(self, job, done, is_small=False) -> None:
        self.jobs.append((job, done))
        if not self.hold:
            self.step()

    def step(self) -> None:
        job, done = self.jobs.popleft()
        error = None
        try:
            job()
        except (OSError, CorruptionError) as raised:
            error = raised
        done(error)


def working(operation: str) -> None:
    """A disk without a fault."""


def failing(broken: str) -> Callable[[str], None]:
    """A disk of which every `broken` ("write" or "sync") fails."""

    def fault(operation: str) -> None:
        if operation == broken:
            raise OSError(errno.EIO, "input/output error")

    return fault


class InlineCopier:
    """Writes at once."""

    def __init__(self, disk) -> None:
        self._disk = disk

    def write(self, path, parts, done) -> None:
        file = self._disk.open(path)
        offset = 0
        for part in parts():
            file.write(offset, part)
            offset += len(part)
        file.sync()
        done(None)


class PowerFailure:
    """Nothing reaches the disk any more from write or sync number `at` on."""

    def __init__(self, at: int) -> None:
        self._left = at

    def __call__(self, operation: str) -> None:
        if operation != "read":
            self._left -= 1
            if self._left <= 0:
                raise OSError(errno.EIO, "power is lost")


class Machine:
    """One data directory through any number of process lives."""

    def __init__(self, disk: MemoryFileSystem | None = None, limits: Limits = LIMITS) -> None:
        self.limits = limits
        self.disk = disk or MemoryFileSystem()
        self.clock = Clock()
        self.worker = HeldWorker()
        self.failures: list[BaseException] = []
        self.number = 0
        self.lives = 0

    def start(self, only_voter: bool = False) -> Opened:
        self.lives += 1
        self.worker = HeldWorker()
        owner = Identity(1, "t", (1,) if only_voter else (1, 2, 3))
        self.store = new_store(self, self.disk, DATA, owner, self.lives, self.worker)
        return self.store.open()

    def write(self, entries: Iterable[Entry] = (), state: HardState | None = None) -> list[int]:
        """Hand over one persist; the list gets its number when it is durable."""
        self.number += 1
        number, durable, entries = self.number, [], list(entries)
        newest = max((item.term for item in entries), default=0)
        if state is None and newest > self.store.identity.term:
            state = HardState(newest)
        self.store.persist(Persist(number, state, entries), lambda: durable.append(number))
        return durable

    def power_cycle(self, only_voter: bool = False) -> Opened:
        self.disk.crash()
        return self.start(only_voter)

    def rot(self, before_end: int) -> None:
        """Flip a bit so many bytes before the end of the newest segment's last batch."""
        data = self.disk.files[self.segment()].seen
        data[len(data.rstrip(b"\0")) - before_end] ^= 1

    def segment(self, place: int = -1) -> str:
        return f"{DATA}/log/" + [name for name in self.disk.names(f"{DATA}/log") if name.endswith(".log")][place]


def new_store(machine: Machine, disk: FileSystem, directory: str, owner: Identity, seed: int, worker: HeldWorker | None = None) -> Store:
    """For `owner` on any disk, with the machine's clock."""
    at_once = HeldWorker()
    fail = machine.failures.append
    return Store(
        disk, directory, owner, Random(seed), worker or at_once, HeldWorker(), InlineCopier(disk), machine.clock, fail, machine.limits
    )


def entry(index: int, term: int = 1, data: bytes = b"x") -> Entry:
    return Entry(term, index, 1_000 + index, EntryKind.BATCH, data)

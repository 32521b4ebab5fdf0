"""A disk in memory that forgets what was not synced when it crashes.

Each file has two images, the one that programs see and the one on the platter. A crash keeps the second,
and of the unsynced sectors of the first as many as the caller's choice says.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from random import Random

from raftd.errors import DirectoryLocked
from raftd.limits import SECTOR_BYTES
from raftd.storage import records
from raftd.storage.filesystem import File

#: Says for (path, sector number) whether an unsynced sector reached the platter all the same.
Keep = Callable[[str, int], bool]

_ENDLESS = 1 << 50  # bytes


def keep_nothing(path: str, sector: int) -> bool:
    return False


class _Image:
    def __init__(self) -> None:
        self.seen = bytearray()
        self.platter = bytearray()
        self.dirty: set[int] = set()  # sectors that a sync would write
        self.older: dict[int, bytes] = {}  # what stood on the platter at an offset before it was last synced
        self.named = False  # the directory entry is durable

    def copy(self) -> _Image:
        copy = _Image()
        copy.seen[:], copy.platter[:] = self.seen, self.platter
        copy.dirty, copy.older, copy.named = set(self.dirty), dict(self.older), self.named
        return copy


class MemoryFile:
    def __init__(self, disk: MemoryFileSystem, path: str) -> None:
        self._disk = disk
        self._image = disk.files[path]

    def write(self, offset: int, data: bytes) -> None:
        self._disk.touch("write")
        image = self._image.seen
        if len(image) < offset:
            image.extend(bytes(offset - len(image)))
        image[offset : offset + len(data)] = data
        sector = self._disk.sector
        self._image.dirty.update(range(offset // sector, (offset + len(data) - 1) // sector + 1))

    def sync(self) -> None:
        """As Linux does it: what a failed sync could not write counts as clean from then on."""
        image = self._image
        dirty, image.dirty = image.dirty, set()
        self._disk.touch("sync")
        self._disk.syncs += 1
        image.platter.extend(bytes(max(0, len(image.seen) - len(image.platter))))
        size = self._disk.sector
        for start in (sector * size for sector in dirty):
            image.older[start] = bytes(image.platter[start : start + size])
            image.platter[start : start + size] = image.seen[start : start + size]

    def truncate(self, size: int) -> None:
        self._disk.touch("write")
        image = self._image
        del image.seen[size:], image.platter[size:]
        image.dirty = {number for number in image.dirty if number * self._disk.sector < size}
        self.sync()  # and no more: what a failed sync has lost stays lost

    def close(self) -> None:
        pass


class MemoryFileSystem:
    """One node's disk. `fault(operation)` may raise OSError for "write", "sync" or "read"."""

    def __init__(self, sector: int = SECTOR_BYTES) -> None:
        """`sector`: the unit in which it loses or tears a write, in bytes."""
        self.sector = sector
        self.files: dict[str, _Image] = {}
        self.directories: set[str] = set()
        self.syncs = 0
        self.fault: Callable[[str], None] = lambda operation: None
        self._locked: set[str] = set()
        self._removed: dict[str, _Image] = {}  # but not durably
        self._renamed: dict[str, str] = {}  # new name -> old name, not durably

    def touch(self, operation: str) -> None:
        self.fault(operation)

    def crash(self, keep: Keep = keep_nothing) -> None:
        """Power is lost: locks go, and all that was not synced and is not kept."""
        self._locked.clear()
        for path, old in self._renamed.items():
            if path in self.files and (not self._removed[old].named or keep(path, -1)):
                self.files[path].named = self._removed.pop(old).named  # a file has one name or the other
        self.files = {**{path: image for path, image in self._removed.items() if not keep(path, -1)}, **self.files}
        self._removed, self._renamed = {}, {}
        for path in list(self.files):
            image = self.files[path]
            if not image.named and not keep(path, -1):
                del self.files[path]
                continue
            image.named = True
            size = len(image.platter)
            for start in range(0, len(image.seen), self.sector):
                stop = start + self.sector
                if image.seen[start:stop] != image.platter[start:stop] and keep(path, start // self.sector):
                    size = max(size, min(stop, len(image.seen)))
                    image.platter.extend(bytes(max(0, size - len(image.platter))))
                    image.platter[start:stop] = image.seen[start:stop]
            image.seen[:] = image.platter
            image.dirty.clear()

    def copy(self) -> MemoryFileSystem:
        """Return an unused copy of this disk."""
        copy = MemoryFileSystem(self.sector)
        copy.directories = set(self.directories)
        copy.files = {path: image.copy() for path, image in self.files.items()}
        copy._removed = {path: image.copy() for path, image in self._removed.items()}
        copy._renamed = dict(self._renamed)
        return copy

    def exit(self) -> None:
        """The process has ended, the machine runs: release the locks."""
        self._locked.clear()

    # -- the FileSystem interface -------------------------------------------------------------

    def make_directory(self, path: str) -> None:
        self.directories.add(path)

    def make_private(self, path: str) -> bool:
        return False

    def lock(self, path: str) -> None:
        if path in self._locked:
            raise DirectoryLocked(path)
        self._locked.add(path)

    def unlock(self, path: str) -> None:
        self._locked.discard(path)

    def names(self, path: str) -> list[str]:
        prefix = f"{path}/"
        return sorted(name.removeprefix(prefix) for name in self.files if name.startswith(prefix))

    def exists(self, path: str) -> bool:
        return path in self.files or path in self.directories

    def read(self, path: str) -> bytes:
        self.touch("read")
        return bytes(self.files[path].seen)

    def read_at(self, path: str, offset: int, size: int) -> bytes:
        self.touch("read")
        return bytes(self.files[path].seen[offset : offset + size])

    def size(self, path: str) -> int:
        return len(self.files[path].seen)

    def free(self, path: str) -> int:
        return _ENDLESS

    def open(self, path: str) -> File:
        self.files.setdefault(path, _Image())
        return MemoryFile(self, path)

    def truncate(self, path: str, size: int) -> None:
        MemoryFile(self, path).truncate(size)

    def remove(self, path: str) -> None:
        self._removed[path] = self.files.pop(path)
        self._renamed.pop(path, None)

    def rename(self, path: str, to: str) -> None:
        self.touch("write")
        self._removed[path] = self.files.pop(path)
        image = self.files[to] = self._removed[path].copy()
        image.named = False
        self._renamed[to] = path

    def sync_directory(self, path: str) -> None:
        self.touch("sync")
        for name, image in self.files.items():
            if name.startswith(f"{path}/"):
                image.named = True
        self._removed = {name: image for name, image in self._removed.items() if not name.startswith(f"{path}/")}
        self._renamed = {name: old for name, old in self._renamed.items() if not name.startswith(f"{path}/")}


class Interrupted(BaseException):
    """The process ended in the middle of what it was doing; with `power`, because the machine lost it. (No `except Exception` may
    take it for an error.)"""

    def __init__(self, power: bool) -> None:
        super().__init__("power is lost" if power else "SIGKILL")
        self.power = power


class Disk(MemoryFileSystem):
    """A disk that can fail on request, and whose files can be damaged while it is unused."""

    def __init__(self, sector: int = SECTOR_BYTES) -> None:
        super().__init__(sector)
        self.is_full = False
        #: The size of the disk in bytes; None: unlimited.
        self.capacity: int | None = None
        self._armed: dict[str, BaseException] = {}
        self._interrupt: tuple[int, bool] | None = None  # (operations until then, whether power is lost)
        self.fault = self._fault

    def fail_next(self, operation: str, number: int = errno.EIO) -> None:
        """The next "read", "write" or "sync" raises OSError."""
        self._armed[operation] = OSError(number, "simulated")

    def interrupt_in(self, operations: int, power: bool) -> None:
        """Interrupt the process at a later write or sync, counted from now."""
        self._interrupt = (operations, power)

    def make_space(self) -> None:
        """It is full no more."""
        self.is_full = False

    @property
    def used(self) -> int:
        """Bytes in all files."""
        return sum(len(image.seen) for image in self.files.values())

    def leave_space(self, size: int) -> None:
        """Limit the free bytes until `give_space`."""
        self.capacity = self.used + size

    def give_space(self) -> None:
        self.capacity = None

    def free(self, path: str) -> int:
        if self.is_full:
            return 0
        return super().free(path) if self.capacity is None else max(0, self.capacity - self.used)

    def mend(self) -> None:
        """No fault that is armed comes."""
        self._armed.clear()
        self._interrupt = None

    def _fault(self, operation: str) -> None:
        error = self._armed.pop(operation, None)
        if error is not None:
            raise error
        if operation == "write" and (self.is_full or (self.capacity is not None and self.used >= self.capacity)):
            raise OSError(errno.ENOSPC, "simulated")
        if self._interrupt is not None and operation != "read":
            left, power = self._interrupt
            self._interrupt = (left - 1, power)
            if left <= 1:
                self._interrupt = None
                raise Interrupted(power)

    def after_power_loss(self) -> MemoryFileSystem:
        """What would be found if power were lost now, and nothing kept that was not synced; to be read only."""
        found = MemoryFileSystem(self.sector)
        found.directories = set(self.directories)
        for path, image in {**self._removed, **self.files}.items():
            if image.named:
                left = found.files[path] = _Image()
                left.seen = left.platter = image.platter  # it is unused
        return found

    # -- damage, while it is not in use -------------------------------------------------------

    def damage(self, kind: str, random: Random) -> str | None:
        """Do one of DAMAGES to what was durable; what was done, or None if nothing offers itself."""
        kind, _, which = kind.partition(" ")
        suffix = {"vote": (".a", ".b"), "snap": (".snap",)}.get(which, (".log",))
        paths = [path for path in sorted(self.files) if path.endswith(suffix) and self.files[path].platter]
        if kind == "truncated":
            paths = paths[:-1]  # the end of the last segment is no trace of what was there
        if not paths:
            return None
        path = random.choice(paths)
        image = self.files[path]
        if kind == "gone":
            del self.files[path]
            return f"{path}: gone"
        if kind == "truncated":
            size = random.randrange(len(image.platter))
            del image.platter[size:]
            return self._damaged(path, f"truncated to {size} bytes")
        if which == "tail":
            path = paths[-1]  # in the last batch, which may or may not have been acknowledged
            image = self.files[path]
            scan = self._scan(path)
            if not scan.end:
                return None  # it has not even a header
            place = random.randrange(scan.last_batch, scan.end)
            image.platter[place] ^= 1 << random.randrange(8)
            return self._damaged(path, f"a bit of byte {place} flipped, in the last batch")
        last = len(image.platter)
        if suffix == (".log",) and path == paths[-1] and kind != "rot":
            last = self._scan(path).last_batch  # behind it zeros are no trace either
        # an older sector must be a whole one
        sectors = range(0, last if kind == "rot" or which == "vote" else max(0, last - self.sector + 1), self.sector)
        if not sectors:
            return None
        start = random.choice(sectors)
        if kind == "rot":
            place = random.randrange(start, min(start + self.sector, len(image.platter)))
            image.platter[place] ^= 1 << random.randrange(8)
            return self._damaged(path, f"a bit of byte {place} flipped")
        older = image.older.get(start, b"")
        image.platter[start : start + self.sector] = older.ljust(min(self.sector, len(image.platter) - start), b"\0")
        return self._damaged(path, f"an older sector at {start}")

    def rot_received(self, random: Random) -> bool:
        """Flip a bit of what has come of a leader's snapshot; whether there was anything."""
        image = next((self.files[path] for path in sorted(self.files) if path.endswith("received.part")), None)
        if image is None or not image.seen:
            return False
        image.seen[random.randrange(len(image.seen))] ^= 1 << random.randrange(8)
        return True

    def _damaged(self, path: str, what: str) -> str:
        image = self.files[path]
        image.seen[:] = image.platter
        return f"{path}: {what}"

    def _scan(self, path: str) -> records.Scan:
        """What is in the newest segment."""
        return records.scan_segment(bytes(self.files[path].platter), *_named(path), None, is_newest=True)


#: Rot in the last batch is the only ambiguous damage: it comes more often.
DAMAGES = (
    *("rot tail",) * 4,
    *("rot log", "stale log", "truncated log", "gone log"),
    *("rot vote", "stale vote"),
    *("rot snap", "gone snap"),
)


def _named(path: str) -> tuple[int, bytes]:
    """The number and the id in the name of a segment's file."""
    number, id = path.rpartition("/")[2].removesuffix(".log").split("-")
    return int(number), bytes.fromhex(id)

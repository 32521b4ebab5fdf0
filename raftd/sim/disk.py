"""A disk in memory that forgets what was not synced when it crashes.

Each file has two images, the one that programs see and the one on the platter. A crash keeps the second,
and of the unsynced sectors of the first as many as the caller's choice says.
"""

from __future__ import annotations

from collections.abc import Callable

from raftd.errors import DirectoryLocked
from raftd.limits import SECTOR_BYTES
from raftd.storage.filesystem import File

#: Says for (path, sector number) whether an unsynced sector reached the platter all the same.
Keep = Callable[[str, int], bool]


def keep_nothing(path: str, sector: int) -> bool:
    return False


class _Image:
    def __init__(self) -> None:
        self.seen = bytearray()
        self.platter = bytearray()
        self.dirty: set[int] = set()  # sectors that a sync would write
        self.named = False  # the directory entry is durable


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
        self._image.dirty |= set(range(offset // SECTOR_BYTES, (offset + len(data) - 1) // SECTOR_BYTES + 1))

    def sync(self) -> None:
        """As Linux does it: what a failed sync could not write counts as clean from then on."""
        image = self._image
        dirty, image.dirty = image.dirty, set()
        self._disk.touch("sync")
        self._disk.syncs += 1
        image.platter.extend(bytes(max(0, len(image.seen) - len(image.platter))))
        for sector in dirty:
            start = sector * SECTOR_BYTES
            image.platter[start : start + SECTOR_BYTES] = image.seen[start : start + SECTOR_BYTES]

    def close(self) -> None:
        pass


class MemoryFileSystem:
    """One node's disk. `fault(operation)` may raise OSError for "write", "sync" or "read"."""

    def __init__(self) -> None:
        self.files: dict[str, _Image] = {}
        self.directories: set[str] = set()
        self.syncs = 0
        self.fault: Callable[[str], None] = lambda operation: None
        self._locked: set[str] = set()
        self._removed: dict[str, _Image] = {}  # but not durably

    def touch(self, operation: str) -> None:
        self.fault(operation)

    def crash(self, keep: Keep = keep_nothing) -> None:
        """Power is lost: locks go, and all that was not synced and is not kept."""
        self._locked.clear()
        self.files = {**self._removed, **self.files}
        self._removed = {}
        for path in list(self.files):
            image = self.files[path]
            if not image.named and not keep(path, -1):
                del self.files[path]
                continue
            size = len(image.platter)
            for start in range(0, len(image.seen), SECTOR_BYTES):
                stop = start + SECTOR_BYTES
                if image.seen[start:stop] != image.platter[start:stop] and keep(path, start // SECTOR_BYTES):
                    size = max(size, min(stop, len(image.seen)))
                    image.platter.extend(bytes(max(0, size - len(image.platter))))
                    image.platter[start:stop] = image.seen[start:stop]
            image.seen[:] = image.platter
            image.dirty.clear()

    # -- the FileSystem interface -------------------------------------------------------------

    def make_directory(self, path: str) -> None:
        self.directories.add(path)

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

    def open(self, path: str) -> File:
        self.files.setdefault(path, _Image())
        return MemoryFile(self, path)

    def truncate(self, path: str, size: int) -> None:
        self.touch("write")
        image = self.files[path]
        del image.seen[size:]
        image.platter[:] = image.seen

    def remove(self, path: str) -> None:
        self._removed[path] = self.files.pop(path)

    def sync_directory(self, path: str) -> None:
        self.touch("sync")
        for name, image in self.files.items():
            if name.startswith(f"{path}/"):
                image.named = True
        self._removed = {name: image for name, image in self._removed.items() if not name.startswith(f"{path}/")}

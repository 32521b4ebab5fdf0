"""The file-system interface: all that the storage does to a disk passes here, so that a simulated disk
can stand in. Paths are strings with `/`."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Protocol

from raftd.errors import DirectoryLocked

_NO_LIMIT = 1 << 62


class File(Protocol):
    """A file open for writing."""

    def write(self, offset: int, data: bytes) -> None:
        """Write all of `data` at `offset`, or raise OSError. Durable only after `sync`."""

    def sync(self) -> None:
        """Return once everything written is durable (fdatasync), or raise OSError."""

    def truncate(self, size: int) -> None:
        """Cut to `size` bytes, and return once that and everything written is durable."""

    def close(self) -> None: ...


class FileSystem(Protocol):
    def make_directory(self, path: str) -> None:
        """Create `path` and what is missing above it, durably; nothing if it is there."""

    def make_private(self, path: str) -> bool:
        """Let nobody but the owner into a directory; whether others could get in."""

    def lock(self, path: str) -> None:
        """Take `path` (created if missing) for the life of this process. Raises DirectoryLocked."""

    def unlock(self, path: str) -> None:
        """Give back what `lock` took."""

    def names(self, path: str) -> list[str]:
        """The names in a directory, sorted; empty if it is missing."""

    def exists(self, path: str) -> bool: ...

    def read(self, path: str) -> bytes: ...

    def read_at(self, path: str, offset: int, size: int) -> bytes:
        """At most `size` bytes, fewer at the end of the file."""

    def size(self, path: str) -> int:
        """In bytes."""

    def free(self, path: str) -> int:
        """Return the free bytes of the disk that `path` is on."""

    def open(self, path: str) -> File:
        """Open for writing, created if missing. The name is durable after `sync_directory`."""

    def truncate(self, path: str, size: int) -> None:
        """Cut to `size` bytes, durably."""

    def remove(self, path: str) -> None:
        """Durable after `sync_directory`."""

    def rename(self, path: str, to: str) -> None:
        """Rename the file to an unused name in the same directory. Durable after `sync_directory`."""

    def sync_directory(self, path: str) -> None:
        """Make the names in `path` durable."""


class RealFile:
    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, offset: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._descriptor, view, offset)
            view = view[written:]
            offset += written

    def sync(self) -> None:
        os.fdatasync(self._descriptor)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


class RealFileSystem:
    """The operating system's."""

    def __init__(self) -> None:
        self._locks: dict[str, int] = {}

    def make_directory(self, path: str) -> None:
        missing = []
        while path and not os.path.isdir(path):
            if os.path.lexists(path) and not os.path.isdir(path):  # another node may have made it just now
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            missing.append(path)
            path = os.path.dirname(path)
        for directory in reversed(missing):
            try:
                os.mkdir(directory, 0o700)
            except FileExistsError:  # nodes that start together may share the directory above their own
                if not os.path.isdir(directory):
                    raise
            self.sync_directory(os.path.dirname(directory) or ".")
        if not missing:  # a process that died in here may have made it, and not synced
            self.sync_directory(os.path.dirname(path) or ".")

    def make_private(self, path: str) -> bool:
        mode = os.stat(path).st_mode
        if mode & 0o077:
            os.chmod(path, mode & 0o700)
        return bool(mode & 0o077)

    def lock(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise DirectoryLocked(f"{os.path.dirname(path)}: another raftd uses this data directory; stop it first") from None
        self._locks[path] = descriptor

    def unlock(self, path: str) -> None:
        os.close(self._locks.pop(path))

    def names(self, path: str) -> list[str]:
        return sorted(os.listdir(path)) if os.path.isdir(path) else []

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def read(self, path: str) -> bytes:
        with open(path, "rb") as file:
            return file.read()

    def read_at(self, path: str, offset: int, size: int) -> bytes:
        with open(path, "rb", buffering=0) as file:
            file.seek(offset)
            return file.read(size)

    def size(self, path: str) -> int:
        return os.path.getsize(path)

    def free(self, path: str) -> int:
        disk = os.statvfs(path)
        return disk.f_bavail * disk.f_frsize if disk.f_blocks else _NO_LIMIT  # some file systems in memory count no blocks

    def open(self, path: str) -> File:
        return RealFile(path)

    def truncate(self, path: str, size: int) -> None:
        file = RealFile(path)
        try:
            file.truncate(size)
        finally:
            file.close()

    def remove(self, path: str) -> None:
        os.unlink(path)

    def rename(self, path: str, to: str) -> None:
        os.rename(path, to)

    def sync_directory(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

"""Snapshots: the files that stand for the log up to some entry, and how they come and go.

    file  = header, meta, piece, piece, …, end
    piece = length, crc, payload            end = a piece of length 0

Every CRC continues the one before it, so each piece is checked by itself, and the last CRC is that of the whole. A file
gets its name when all of it is durable and has been read back: what is called *.snap was whole once.

The file of a new snapshot is written by a copy of this process (`Copier`), that of a leader's from
the pieces that arrive. Reading for followers, and reading back, happen in a thread of their own.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol
from zlib import crc32

import msgspec

from raftd.errors import ADVICE, UNDECODABLE, CorruptionError
from raftd.limits import FRAME_BYTES, LIMITS, SNAPSHOT_CHUNKS_IN_FLIGHT
from raftd.raft.messages import Configuration, Snapshot
from raftd.raft.ready import Base
from raftd.storage.filesystem import FileSystem

FORMAT = 1

_MAGIC = b"raftdsnp"
_HEADER = struct.Struct("<8sII")  # magic, format, length of the meta; then the crc of both
_CRC = struct.Struct("<I")
_PIECE = struct.Struct("<II")  # length, crc
SUFFIX = ".snap"
_TAKEN = "taken.part"
_RECEIVED = "received.part"


class Meta(msgspec.Struct, frozen=True):
    """What a snapshot is of: the cluster, its members at that time, and its last entry. `time_ms` is the log time
    of its state."""

    cluster: str
    configuration: Configuration
    index: int
    term: int
    time_ms: int

    @property
    def base(self) -> Base:
        return Base(self.index, self.term, self.time_ms)


_encode_meta = msgspec.msgpack.Encoder().encode
_meta_decoder = msgspec.msgpack.Decoder(Meta)


def encode(meta: Meta, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The bytes of a snapshot file, in parts."""
    encoded = _encode_meta(meta)
    head = _HEADER.pack(_MAGIC, FORMAT, len(encoded)) + encoded
    crc = crc32(head)
    yield head + _CRC.pack(crc)
    for piece in pieces:
        crc = crc32(piece, crc32(_CRC.pack(len(piece)), crc))
        yield _PIECE.pack(len(piece), crc) + piece
    yield _PIECE.pack(0, crc32(_CRC.pack(0), crc))


def _at_most(most_bytes: int, parts: Iterable[bytes]) -> Iterator[bytes]:
    size = 0
    for part in parts:
        size += len(part)
        if size > most_bytes:
            raise OSError(errno.ENOSPC, f"it would take more than the {most_bytes} bytes that are free besides what the log needs")
        yield part


class SnapshotReader:
    """A snapshot file, read front to back. Raises CorruptionError, naming file and offset."""

    def __init__(self, fs: FileSystem, path: str) -> None:
        self._fs = fs
        self._path = path
        head = fs.read_at(path, 0, _HEADER.size)
        if len(head) < _HEADER.size:
            self._damaged(0)
        magic, version, length = _HEADER.unpack(head)
        if magic == _MAGIC and version != FORMAT:
            raise CorruptionError(f"{path} has format {version}; this raftd reads format {FORMAT}. Nothing was changed")
        rest = fs.read_at(path, len(head), min(length, FRAME_BYTES) + _CRC.size)
        self._crc = crc32(rest[:length], crc32(head))
        if magic != _MAGIC or rest[length:] != _CRC.pack(self._crc):
            self._damaged(0)
        try:
            self.meta = _meta_decoder.decode(rest[:length])
        except UNDECODABLE:
            self._damaged(0)
        self._offset = len(head) + len(rest)

    def _damaged(self, offset: int) -> None:
        raise CorruptionError(f"{self._path}, offset {offset}: the snapshot is damaged. Nothing was changed. {ADVICE}")

    def pieces(self) -> Iterator[bytes]:
        """All of them; when they have come to an end without an error, the whole file is sound."""
        while True:
            offset = self._offset
            head = self._fs.read_at(self._path, offset, _PIECE.size)
            if len(head) < _PIECE.size:
                self._damaged(offset)
            length, crc = _PIECE.unpack(head)
            piece = self._fs.read_at(self._path, offset + _PIECE.size, length) if 0 < length <= FRAME_BYTES else b""
            self._crc = crc32(piece, crc32(_CRC.pack(length), self._crc))
            if crc != self._crc or len(piece) != length:
                self._damaged(offset)
            self._offset += _PIECE.size + length
            if not length:
                return
            yield piece

    def verify(self) -> Snapshot:
        """Read all of it."""
        for _ in self.pieces():
            pass
        if self._offset != self._fs.size(self._path):
            self._damaged(self._offset)
        return Snapshot(self.meta.index, self.meta.term, self._offset, self._crc)


def _name(snapshot: Snapshot | Meta) -> str:
    return f"{snapshot.index:016d}-{snapshot.term}{SUFFIX}"


def snapshot_path(directory: str, snapshot: Snapshot | Meta) -> str:
    """Where it is, or belongs."""
    return f"{directory}/{_name(snapshot)}"


def _newest(fs: FileSystem, directory: str) -> SnapshotReader | None:
    names = [name for name in fs.names(directory) if name.endswith(SUFFIX)]
    if not names:
        return None
    reader = SnapshotReader(fs, f"{directory}/{names[-1]}")
    if names[-1] != _name(reader.meta):
        raise CorruptionError(
            f"{directory}/{names[-1]} is the snapshot of entry {reader.meta.index}: its name is wrong. Nothing was changed"
        )
    return reader


def inspect_snapshots(fs: FileSystem, directory: str) -> Meta | None:
    """What the newest is of; only that is read."""
    newest = _newest(fs, directory)
    return newest.meta if newest is not None else None


Done = Callable[[BaseException | None], None]


class Copier(Protocol):
    """Writes with a copy of this process's memory, while the process continues."""

    def write(self, path: str, parts: Callable[[], Iterator[bytes]], done: Done) -> None:
        """Write what `parts()` yields for the present state durably to a new file at `path`; then call `done`."""


class Worker(Protocol):
    """Runs a blocking job; `done` is called back in the reactor, with the error or None. `is_small`: the job is one short write, which may
    be done in the reactor's thread if the disk is fast."""

    def run(self, job: Callable[[], None], done: Done, is_small: bool = False) -> None: ...


class Snapshots:
    """The directory `snap/`. `fail` is called with the first error of the disk and must end the process (R17)."""

    def __init__(
        self,
        fs: FileSystem,
        directory: str,
        copier: Copier,
        worker: Worker,
        fail: Callable[[BaseException], None],
        chunk_bytes: int = LIMITS.snapshot_chunk_bytes,
    ) -> None:
        self.directory = directory
        #: The newest, and what it is of.
        self.newest: Snapshot | None = None
        self.meta: Meta | None = None
        self._fs = fs
        self._copier = copier
        self._worker = worker
        self._fail = fail
        self._chunk_bytes = chunk_bytes
        self._receiving: Snapshot | None = None
        self._have = 0
        self._jobs = 0  # of the copier and of the worker, that have not ended
        self._keeping = False  # a chunk is being written
        self._early: list[tuple[Snapshot, int, bytes, Callable[[int], None]]] = []  # chunks that came meanwhile

    def _path(self, snapshot: Snapshot) -> str:
        return snapshot_path(self.directory, snapshot)

    @property
    def _received_path(self) -> str:
        return f"{self.directory}/{_RECEIVED}"

    # -- opening ------------------------------------------------------------------------------

    def recover(self) -> Meta | None:
        """Look at what is there. Raises CorruptionError; nothing is changed."""
        found = _newest(self._fs, self.directory)
        if found is None:
            return None
        self.newest = found.verify()
        self.meta = found.meta
        return self.meta

    def clean(self) -> None:
        """Remove what an earlier process has left unfinished, or had no time to remove."""
        self._fs.make_directory(self.directory)
        newest = self._path(self.newest) if self.newest is not None else ""
        for name in self._fs.names(self.directory):
            if f"{self.directory}/{name}" != newest:
                self._fs.remove(f"{self.directory}/{name}")
        self._fs.sync_directory(self.directory)

    def pieces(self) -> Iterator[bytes]:
        """The state in the newest. Raises CorruptionError."""
        assert self.newest is not None
        return SnapshotReader(self._fs, self._path(self.newest)).pieces()

    # -- of our own ---------------------------------------------------------------------------

    def take(
        self, meta: Meta, pieces: Callable[[], Iterator[bytes]], most_bytes: int, done: Callable[[Snapshot | None, str], None]
    ) -> None:
        """Write one of the state as it is now, of at most `most_bytes`; `done` is called once it is durable and was read back, or with
        the reason why there is none: the log still has everything."""
        path = f"{self.directory}/{_TAKEN}"
        taken: list[Snapshot] = []

        def verify() -> None:
            taken.append(SnapshotReader(self._fs, path).verify())
            self._fs.rename(path, self._path(taken[0]))
            self._fs.sync_directory(self.directory)

        def verified() -> None:
            if self.newest is None or self.newest.index < meta.index:  # a leader's may have come meanwhile
                self.newest, self.meta = taken[0], meta
            done(taken[0], "")

        def written(error: BaseException | None) -> None:
            self._jobs -= 1
            if error is not None:
                # the partial snapshot would take space that the log needs
                self._run(lambda: self._remove_if_there(path), lambda: done(None, str(error)))
            else:
                self._run(verify, verified)

        self._jobs += 1
        self._copier.write(path, lambda: _at_most(most_bytes, encode(meta, pieces())), written)

    def _remove_if_there(self, path: str) -> None:
        if self._fs.exists(path):
            self._fs.remove(path)

    def remove_older(self, in_use: Iterable[Snapshot], done: Callable[[], None]) -> None:
        """All but the newest and those that are in use; then `done` is called."""
        assert self.newest is not None
        newest = self._path(self.newest)
        keep = {self._path(snapshot) for snapshot in in_use}

        def remove() -> None:
            for name in self._fs.names(self.directory):
                path = f"{self.directory}/{name}"
                if name.endswith(SUFFIX) and path < newest and path not in keep:
                    self._fs.remove(path)
            self._fs.sync_directory(self.directory)

        self._run(remove, done)

    @property
    def is_busy(self) -> bool:
        """Whether a snapshot is being written, read back, received or removed."""
        return self._jobs > 0 or self._receiving is not None

    def _run(self, job: Callable[[], None], then: Callable[[], None]) -> None:
        self._jobs += 1

        def done(error: BaseException | None) -> None:
            self._jobs -= 1
            if error is not None:
                self._fail(error)
            else:
                then()

        self._worker.run(job, done)

    # -- for a follower -----------------------------------------------------------------------

    def fetch(self, snapshot: Snapshot, offset: int, done: Callable[[bytes], None]) -> None:
        """Read a chunk. Nothing is called if the file is gone: it is removed once no follower needs it."""
        read: list[bytes] = []
        path = self._path(snapshot)

        def job() -> None:
            if self._fs.exists(path):
                read.append(self._fs.read_at(path, offset, self._chunk_bytes))

        def finished() -> None:
            if read:
                done(read[0])

        self._run(job, finished)

    # -- of the leader's ----------------------------------------------------------------------

    def keep(self, snapshot: Snapshot, offset: int, data: bytes, done: Callable[[int], None]) -> None:
        """A chunk has arrived: `done` is called with how much there is of this snapshot, one chunk after the other."""
        if self._keeping:  # those that are in flight wait for the one before; any more come again
            if len(self._early) < SNAPSHOT_CHUNKS_IN_FLIGHT:
                self._early.append((snapshot, offset, data, done))
            return
        if snapshot != self._receiving:
            self._receiving, self._have = snapshot, 0
        if offset != self._have or not data or offset + len(data) > snapshot.size_bytes:
            done(self._have)
            return
        fresh = offset == 0
        self._keeping = True

        def write() -> None:
            if fresh and self._fs.exists(self._received_path):
                self._fs.remove(self._received_path)
            file = self._fs.open(self._received_path)
            try:
                file.write(offset, data)
            finally:
                file.close()

        def written() -> None:
            self._keeping = False
            self._have += len(data)
            done(self._have)
            early, self._early = self._early, []
            for chunk in early:
                self.keep(*chunk)

        self._run(write, written)

    @property
    def is_receiving(self) -> bool:
        """Whether a part of one is here."""
        return self._receiving is not None

    @property
    def is_incomplete(self) -> bool:
        """Whether a part of one is here, and not all of it."""
        return self._receiving is not None and 0 < self._have < self._receiving.size_bytes

    def forget_received(self, index: int) -> None:
        """Nothing of one up to entry `index` is wanted any more: what is here of it goes."""
        if self._receiving is not None and self._receiving.index <= index and not self._keeping:
            self._receiving, self._have = None, 0
            self._run(lambda: self._remove_if_there(self._received_path), lambda: None)

    def is_whole(self, snapshot: Snapshot) -> bool:
        """Whether all of it has arrived."""
        return snapshot == self._receiving and self._have >= snapshot.size_bytes > 0 and not self._keeping

    def verify_received(self, done: Callable[[Meta | None], None]) -> None:
        """Make it durable and read it back; None if it is damaged: it is forgotten then, and may come again."""
        received = self._receiving
        assert received is not None
        self._keeping = True
        found: list[Meta] = []

        def verify() -> None:
            file = self._fs.open(self._received_path)
            try:
                file.sync()
            finally:
                file.close()
            try:
                reader = SnapshotReader(self._fs, self._received_path)
                if reader.verify() == received:
                    found.append(reader.meta)
            except CorruptionError:
                return

        def verified() -> None:
            self._keeping = False
            self._early.clear()
            if not found:
                self._receiving = None
            done(found[0] if found else None)

        self._run(verify, verified)

    def received_pieces(self) -> Iterator[bytes]:
        return SnapshotReader(self._fs, self._received_path).pieces()

    def adopt(self, snapshot: Snapshot) -> None:
        """Give the received file its name, durably. Blocks; to be called from the thread that writes the log."""
        self._fs.rename(self._received_path, self._path(snapshot))
        self._fs.sync_directory(self.directory)

    def adopted(self, snapshot: Snapshot, meta: Meta) -> None:
        """It is the newest now."""
        self.newest, self.meta = snapshot, meta
        self._receiving = None

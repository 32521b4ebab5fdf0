"""The log on disk: segments of batches, appended to, never rewritten.

An entry that replaces others (a conflict, §5.3) is simply appended: on reading back, an index at or below
the last one replaces that one and all behind it. A segment is named by its number and its random id.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from raftd.errors import ADVICE, CorruptionError
from raftd.limits import SEGMENT_BYTES
from raftd.raft.messages import Entry
from raftd.storage.filesystem import File, FileSystem
from raftd.storage.records import ID_BYTES, SEGMENT_HEADER_BYTES, Damage, Scan, encode_batch, scan_segment, segment_header

_SUFFIX = ".log"


class Tail(NamedTuple):
    """The end of the last segment that cannot be read: `damage` is TORN or DOUBTFUL."""

    name: str
    offset: int
    size: int
    damage: Damage
    reason: str


class Recovered(NamedTuple):
    """A log read back; nothing was changed yet."""

    entries: list[Entry]
    segments: int
    size_bytes: int
    tail: Tail | None


def _parse(name: str) -> tuple[int, bytes] | None:
    """(number, id) of a segment's file name."""
    number, _, rest = name.removesuffix(_SUFFIX).partition("-")
    if not name.endswith(_SUFFIX) or not number.isdigit() or len(rest) != 2 * ID_BYTES:
        return None
    try:
        return int(number), bytes.fromhex(rest)
    except ValueError:
        return None


class SegmentedLog:
    """The directory `log/`. `recover` and `cut` come first, then `prepare` and `write` in turn."""

    def __init__(self, fs: FileSystem, directory: str, new_id: Callable[[], bytes]) -> None:
        """`new_id` gives 16 random bytes that begin with another byte than 0."""
        self._fs = fs
        self._directory = directory
        self._new_id = new_id
        #: Of the newest segment, 0 without one.
        self.number = 0
        self._id = b""
        self._chain = 0
        self._end = 0
        self._last_name = ""
        self._last_batch = 0  # where the last good one begins
        self._file: File | None = None

    # -- reading back -------------------------------------------------------------------------

    def recover(self) -> Recovered:
        """Read everything. Raises CorruptionError, naming file and offset, and then nothing is changed."""
        entries: list[Entry] = []
        chain: int | None = None
        tail = None
        size = 0
        segments = []
        for name in self._fs.names(self._directory):
            parsed = _parse(name)
            if parsed is not None:
                segments.append((*parsed, name))
            elif name.endswith(_SUFFIX):
                raise CorruptionError(
                    f"{self._directory}/{name} has no segment's name. Nothing was changed. Give it its name back, or move it away"
                )
        for position, (number, segment_id, name) in enumerate(segments):
            if number != self.number + 1:
                raise CorruptionError(
                    f"{self._directory}/{name}: segment {self.number + 1} is missing before it. Nothing was changed. {ADVICE}"
                )
            data = self._fs.read(f"{self._directory}/{name}")
            scan = scan_segment(data, number, segment_id, chain)
            is_last = position == len(segments) - 1
            if scan.damage is Damage.FOREIGN:
                raise CorruptionError(f"{self._directory}/{name}: {scan.reason}. Nothing was changed")
            if scan.damage is not Damage.NONE:
                tail = self._tail(name, data, scan, is_last)
            self._merge(entries, scan.entries, name)
            if scan.end or chain is None:
                chain = scan.chain
            self.number, self._last_name, self._last_batch = number, name, scan.last_batch
            size += scan.end
        self._chain = chain or 0
        return Recovered(entries, len(segments), size, tail)

    def _tail(self, name: str, data: bytes, scan: Scan, is_last: bool) -> Tail:
        if scan.damage is Damage.CORRUPT or not is_last:
            proof = "a later batch" if scan.damage is Damage.CORRUPT else "a later segment"
            raise CorruptionError(
                f"{self._directory}/{name}, offset {scan.bad_offset}: {scan.reason}, and {proof} proves that it was durable. Nothing was "
                f"changed. {ADVICE}"
            )
        return Tail(name, scan.end, len(data) - scan.end, scan.damage, scan.reason)

    @staticmethod
    def _merge(entries: list[Entry], more: Sequence[Entry], name: str) -> None:
        for entry in more:
            last = entries[-1].index if entries else 0
            if entry.index > last + 1:
                raise CorruptionError(f"log/{name}: entry {entry.index} follows entry {last}; entries between them are missing")
            if entry.index <= last:
                del entries[entry.index - 1 :]
            entries.append(entry)

    def cut(self, tail: Tail) -> str:
        """Remove the tail, keeping a copy; the copy's name. Durable on return, and harmless to repeat."""
        path = f"{self._directory}/{tail.name}"
        copy = f"{tail.name}.{tail.damage.value}-at-{tail.offset}"
        file = self._fs.open(f"{self._directory}/{copy}")
        try:
            file.write(0, self._fs.read(path)[tail.offset :])
            file.sync()
        finally:
            file.close()
        self._fs.sync_directory(self._directory)
        if tail.offset:
            self._fs.truncate(path, tail.offset)
        else:  # not even its header was whole: the segment never began
            self._fs.remove(path)
            self.number -= 1
            self._last_name = ""
        self._fs.sync_directory(self._directory)
        return copy

    def sync_recovered(self) -> None:
        """What was read back may have come from memory only: a killed process leaves the page cache, and a
        failed fsync leaves it clean, so that another fsync alone would do nothing. The last batch is the only
        one that this can concern: it is written once more."""
        if self._last_name:
            path = f"{self._directory}/{self._last_name}"
            last = self._fs.read(path)[self._last_batch :]
            file = self._fs.open(path)
            try:
                file.write(self._last_batch, last)
                file.sync()
            finally:
                file.close()
        self._fs.sync_directory(self._directory)

    # -- appending ----------------------------------------------------------------------------

    def prepare(self, entries: Sequence[Entry]) -> Callable[[], None]:
        """The write of one batch, to be called once, before the next is prepared; maybe in a thread.

        It returns once the batch is durable, or raises OSError; the process must end then (R17).
        """
        if self._file is not None and self._end < SEGMENT_BYTES:
            start = b""
        else:
            # Everything before is durable by now: a new segment may begin.
            self.number += 1
            self._id = self._new_id()
            self._end = SEGMENT_HEADER_BYTES
            start = segment_header(self.number, self._id, self._chain)
        offset = self._end
        data, self._chain = encode_batch(self._id, offset, self._chain, entries)
        self._end += len(data)

        def write() -> None:
            if start:
                self._begin(start)
            assert self._file is not None
            self._file.write(offset, data)
            self._file.sync()

        return write

    def _begin(self, header: bytes) -> None:
        if self._file is not None:
            self._file.close()
        self._file = self._fs.open(f"{self._directory}/{self.number:08d}-{self._id.hex()}{_SUFFIX}")
        self._file.write(0, header)
        self._file.sync()
        self._fs.sync_directory(self._directory)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

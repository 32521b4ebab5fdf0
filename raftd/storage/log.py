"""The log on disk: segments of batches, appended to, never rewritten.

An entry that replaces others (a conflict, §5.3) is simply appended: on reading back, an index at or below
the last one replaces that one and all behind it. A segment is named by its number and its random id.

While batches follow each other the newest segment has zeros behind its end, into which they are written: to
sync a file that does not grow takes half the time. A seal takes them away.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import NamedTuple

from raftd.errors import ADVICE, CorruptionError
from raftd.limits import LIMITS, SECTOR_BYTES, Limits
from raftd.raft.messages import Entry
from raftd.raft.ready import NO_BASE, Base
from raftd.storage.filesystem import File, FileSystem
from raftd.storage.records import ID_BYTES, SEGMENT_HEADER_BYTES, Damage, Scan, encode_batch, read_batches, scan_segment, segment_header

_SUFFIX = ".log"

#: How many zeros are written behind the end at a time (bytes): a quarter of what the segment has, so that a small log stays small. A
#: batch as large as that costs enough to make the file grow by itself.
_LEAST_AHEAD_BYTES = 4 << 10
_MOST_AHEAD_BYTES = 256 << 10


class Tail(NamedTuple):
    """The end of the last segment that cannot be read: `damage` is TORN or DOUBTFUL."""

    name: str
    offset: int
    size: int
    damage: Damage
    reason: str


class Recovered:
    """A log read back, and the part of it after a snapshot; nothing was changed yet."""

    def __init__(self, base: Base) -> None:
        self.base = base
        #: Those behind `base`.
        self.entries: list[Entry] = []
        #: (first index, term) of each run of entries up to `base` that are there.
        self.older: list[tuple[int, int]] = []
        self.last_index = 0
        self.segments = 0
        self.size_bytes = 0
        self.tail: Tail | None = None

    @property
    def holds_base(self) -> bool:
        """Whether the snapshot's last entry is in the log, or just before it: otherwise nothing in it counts (R29)."""
        if self.older:
            return self.last_index >= self.base.index and self.older[-1][1] == self.base.term
        return not self.entries or self.entries[0].index == self.base.index + 1

    def add(self, entry: Entry, name: str) -> None:
        """The next one in the file `name`; it replaces what has its index, and all behind."""
        index = entry.index
        if self.last_index and index > self.last_index + 1:
            raise CorruptionError(f"log/{name}: entry {index} follows entry {self.last_index}; entries between them are missing")
        self.last_index = index
        if index > self.base.index:
            if self.entries and index <= self.entries[-1].index:
                del self.entries[max(0, index - self.entries[0].index) :]
            self.entries.append(entry)
        else:
            self.entries.clear()
            while self.older and self.older[-1][0] >= index:
                self.older.pop()
            if not self.older or self.older[-1][1] != entry.term:
                self.older.append((index, entry.term))


def parse_name(name: str) -> tuple[int, bytes] | None:
    """(number, id) of a segment's file name."""
    number, _, rest = name.removesuffix(_SUFFIX).partition("-")
    if not name.endswith(_SUFFIX) or not number.isdigit() or len(rest) != 2 * ID_BYTES:
        return None
    try:
        return int(number), bytes.fromhex(rest)
    except ValueError:
        return None


class _Segment:
    """`last_index` is the greatest of all its entries, 0 without any."""

    def __init__(self, number: int, name: str) -> None:
        self.number = number
        self.name = name
        self.last_index = 0
        self.size_bytes = 0


class _Mark(NamedTuple):
    """A batch at which reading may begin: its first entry, and where it is."""

    first: int
    segment: int
    offset: int


class _Blocks:
    """Reads a file front to back, a block at a time."""

    def __init__(self, fs: FileSystem, path: str, block_bytes: int) -> None:
        self._fs = fs
        self._block_bytes = block_bytes
        self._path = path
        self._block = b""
        self._start = 0

    def read(self, offset: int, size: int) -> bytes:
        if not self._start <= offset <= offset + size <= self._start + len(self._block):
            self._block = self._fs.read_at(self._path, offset, max(size, self._block_bytes))
            self._start = offset
        return self._block[offset - self._start : offset - self._start + size]


class SegmentedLog:
    """The directory `log/`. `recover` and `cut` come first, then `prepare` and `write` in turn."""

    def __init__(self, fs: FileSystem, directory: str, new_id: Callable[[], bytes], limits: Limits = LIMITS) -> None:
        """`new_id` gives 16 random bytes that begin with another byte than 0. A segment that has grown past
        `limits.segment_bytes` is closed."""
        self.segment_bytes = limits.segment_bytes
        self._mark_bytes = limits.log_mark_bytes
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
        self._written = 0  # where the last batch in it ends
        self._file_bytes = 0  # its size: behind `_written` it has zeros
        self._segments: list[_Segment] = []
        self._marks: list[_Mark] = []  # ascending: those of entries that were replaced are gone
        self._last_index = 0  # of the entry written last

    # -- reading back -------------------------------------------------------------------------

    def recover(self, first_number: int = 1, base: Base = NO_BASE) -> Recovered:
        """Read everything from segment `first_number` on: what is older was about to be removed.

        Raises CorruptionError, naming file and offset, and then nothing is changed.
        """
        self.number = first_number - 1
        found = Recovered(base)
        chain: int | None = None
        segments = []
        for name in self._fs.names(self._directory):
            parsed = parse_name(name)
            if parsed is not None and parsed[0] >= first_number:
                segments.append((*parsed, name))
            elif parsed is None and name.endswith(_SUFFIX):
                raise CorruptionError(
                    f"{self._directory}/{name} has no segment's name. Nothing was changed. Give it its name back, or move it away"
                )
        for position, (number, segment_id, name) in enumerate(segments):
            if number != self.number + 1:
                raise CorruptionError(
                    f"{self._directory}/{name}: segment {self.number + 1} is missing before it. Nothing was changed. {ADVICE}"
                )
            data = self._fs.read(f"{self._directory}/{name}")
            is_last = position == len(segments) - 1
            scan = scan_segment(data, number, segment_id, chain, is_last, self._mark_bytes)
            if scan.damage is Damage.FOREIGN:
                raise CorruptionError(f"{self._directory}/{name}: {scan.reason}. Nothing was changed")
            if scan.damage is not Damage.NONE:
                found.tail = self._tail(name, data, scan, is_last)
            for entry in scan.entries:
                found.add(entry, name)
            segment = _Segment(number, name)
            self._segments.append(segment)
            segment.last_index = max((entry.index for entry in scan.entries), default=0)
            segment.size_bytes = scan.end
            for index, offset in scan.marks:
                self._mark(index, number, offset)
            if scan.end or chain is None:
                chain = scan.chain
            self.number, self._last_name, self._last_batch = number, name, scan.last_batch
            found.size_bytes += scan.end
        self._chain = chain or 0
        self._last_index = found.last_index
        found.segments = len(segments)
        return found

    def _tail(self, name: str, data: bytes, scan: Scan, is_last: bool) -> Tail:
        if scan.damage is Damage.CORRUPT or not is_last:
            proof = "a later batch" if scan.damage is Damage.CORRUPT else "a later segment"
            raise CorruptionError(
                f"{self._directory}/{name}, offset {scan.bad_offset}: {scan.reason}, and {proof} proves that it was durable. Nothing was "
                f"changed. {ADVICE}"
            )
        return Tail(name, scan.end, len(data) - scan.end, scan.damage, scan.reason)

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
            self._segments.pop()
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
            end = self._segments[-1].size_bytes
            data = self._fs.read(path)
            file = self._fs.open(path)
            try:
                file.write(self._last_batch, data[self._last_batch : end])
                file.sync()
            finally:
                file.close()
            if len(data) > end:
                self._fs.truncate(path, end)  # nothing is written into it any more
        self._fs.sync_directory(self._directory)

    # -- reading for followers ----------------------------------------------------------------

    def _mark(self, index: int, number: int, offset: int) -> None:
        while self._marks and self._marks[-1].first >= index:
            self._marks.pop()  # what it leads to was replaced
        self._marks.append(_Mark(index, number, offset))

    def _needs_mark(self, index: int) -> bool:
        """Whether reading may have to begin with the batch that is written now, which begins with entry `index`: so far from the last
        mark, or because it replaces entries. Else a reader of `index` would find those first, and no end of them within its limit."""
        if not self._marks or index <= self._last_index:
            return True
        last = self._marks[-1]
        return last.segment != self.number or self._end - last.offset >= self._mark_bytes

    def reader(self, first: int, size_bytes: int) -> Callable[[], list[Entry]]:
        """Reads entries from `first` on, of `size_bytes` or so and at least one; to be called soon, maybe in a thread. The first is
        not one that was replaced; among the others those that were replaced come before those that replaced them. Returns an empty list
        if they were purged meanwhile. Raises CorruptionError."""
        position = bisect_right(self._marks, first, key=lambda mark: mark.first) - 1
        if position < 0:
            return list
        mark = self._marks[position]
        segments = [(segment.name, parse_name(segment.name)) for segment in self._segments if segment.number >= mark.segment]

        def read() -> list[Entry]:
            found: list[Entry] = []
            size = 0
            offset = mark.offset
            for name, parsed in segments:
                path = f"{self._directory}/{name}"
                assert parsed is not None
                if not self._fs.exists(path):
                    return []
                try:
                    for batch in read_batches(_Blocks(self._fs, path, self._mark_bytes).read, parsed[1], offset):
                        more = [entry for entry in batch if entry.index >= first]
                        found += more
                        size += sum(entry.size_bytes for entry in more)
                        if size >= size_bytes:
                            return found
                except FileNotFoundError:  # purged by the thread that writes, between two blocks
                    return []
                offset = SEGMENT_HEADER_BYTES
            if not found:
                raise CorruptionError(f"{self._directory}: entry {first} was durable and cannot be read back. {ADVICE}")
            return found

        return read

    @property
    def size_bytes(self) -> int:
        """Of all segments."""
        return sum(segment.size_bytes for segment in self._segments)

    # -- purging ------------------------------------------------------------------------------

    def purgeable(self, index: int) -> tuple[int, int]:
        """(number of the first segment to keep, last entry before it) if nothing at or below `index` is needed."""
        last = 0
        for segment in self._segments[:-1]:
            if segment.last_index > index:
                return segment.number, last
            last = max(last, segment.last_index)
        return self.number, last

    def drop(self, first_number: int) -> Callable[[], None]:
        """Forget the segments before `first_number`; the call removes their files, maybe in a thread."""
        self._segments = [segment for segment in self._segments if segment.number >= first_number]
        self._marks = [mark for mark in self._marks if mark.segment >= first_number]

        def remove() -> None:
            for name in self._fs.names(self._directory):
                number = name.partition("-")[0]
                if number.isdigit() and int(number) < first_number:  # with the copies of torn tails
                    self._fs.remove(f"{self._directory}/{name}")
            self._fs.sync_directory(self._directory)

        return remove

    def start_anew(self) -> int:
        """The number of the next segment, with which the log begins again: a snapshot has taken the place of all before."""
        self._end = self.segment_bytes  # whatever is open is full
        return self.number + 1

    # -- appending ----------------------------------------------------------------------------

    def prepare(self, entries: Sequence[Entry]) -> Callable[[], None]:
        """The write of one batch, to be called once, before the next is prepared; maybe in a thread.

        It returns once the batch is durable, or raises OSError; the process must end then (R17). A batch without entries is a seal: no
        further batch is expected soon.
        """
        if self._file is not None and self._end < self.segment_bytes:
            start = b""
        else:
            # Everything before is durable by now: a new segment may begin.
            self.number += 1
            self._id = self._new_id()
            self._end = SEGMENT_HEADER_BYTES
            start = segment_header(self.number, self._id, self._chain)
            self._segments.append(_Segment(self.number, self._name))
        if entries:
            if self._needs_mark(entries[0].index):
                self._mark(entries[0].index, self.number, self._end)
            self._last_index = entries[-1].index
            self._segments[-1].last_index = max(self._segments[-1].last_index, entries[-1].index)
        offset = self._end
        data, self._chain = encode_batch(self._id, offset, self._chain, entries)
        self._end += len(data)
        self._segments[-1].size_bytes = self._end

        def write() -> None:
            if start:
                self._begin(start)
            assert self._file is not None
            self._written = offset + len(data)
            if entries and self._written > self._file_bytes:
                self._write_space(self._file, len(data))
            self._file.write(offset, data)
            if entries or not self._cut_space(self._file):
                self._file.sync()
                self._file_bytes = max(self._file_bytes, self._written)

        return write

    def _write_space(self, file: File, batch_bytes: int) -> None:
        ahead = min(max(self._written // 4, _LEAST_AHEAD_BYTES), _MOST_AHEAD_BYTES)
        if batch_bytes < ahead:
            self._file_bytes = self._written + ahead
            self._file_bytes += -self._file_bytes % SECTOR_BYTES  # this tells that there is space (`records.py`)
            file.write(self._written, bytes(self._file_bytes - self._written))

    def _cut_space(self, file: File) -> bool:
        """Whether there was any; then everything written is durable, too."""
        if self._file_bytes <= self._written:
            return False
        file.truncate(self._written)
        self._file_bytes = self._written
        return True

    @property
    def _name(self) -> str:
        return f"{self.number:08d}-{self._id.hex()}{_SUFFIX}"

    def _begin(self, header: bytes) -> None:
        self.close()
        self._file = self._fs.open(f"{self._directory}/{self._name}")
        self._file.write(0, header)
        self._file.sync()
        self._fs.sync_directory(self._directory)
        self._written = self._file_bytes = len(header)

    def close(self) -> None:
        """Nothing is appended to the newest segment any more."""
        if self._file is not None:
            self._cut_space(self._file)
            self._file.close()
            self._file = None

"""Inspects a data directory: nothing is changed, and damage is reported, not refused.

A node that runs may write and purge meanwhile: what it writes looks unfinished, and a file may go (FileNotFoundError).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from raftd.errors import ADVICE, CorruptionError
from raftd.raft.messages import Entry, Snapshot
from raftd.raft.ready import NO_BASE
from raftd.storage.filesystem import FileSystem
from raftd.storage.log import SegmentedLog, Tail, parse_name
from raftd.storage.records import Damage, Scan, scan_segment
from raftd.storage.snapshots import SUFFIX, Meta, SnapshotReader
from raftd.storage.store import examine
from raftd.storage.vote import SLOTS, Identity, VoteFile, decode_slot

_T = TypeVar("_T")
_LOOKS = 5


class SegmentFound(NamedTuple):
    """A segment of the log. `problem` says what is wrong, with the offset; empty for none. The tail of the last one may be torn
    without that being wrong: `is_sound` then, too."""

    name: str
    size_bytes: int
    entries: list[Entry]
    problem: str
    is_sound: bool


class SnapshotFound(NamedTuple):
    """A snapshot. `meta` is None if not even that can be read; `snapshot` if the whole was not read, or is damaged."""

    name: str
    size_bytes: int
    meta: Meta | None
    snapshot: Snapshot | None
    problem: str


def find_identity(fs: FileSystem, directory: str) -> tuple[Identity | None, list[str]]:
    """What the vote file says, and what is wrong with it."""
    problems = []
    for slot in SLOTS:
        path = f"{directory}/{slot}"
        if not fs.exists(path):
            problems.append(f"{slot} is missing")
        elif decode_slot(fs.read(path)) is None:
            problems.append(f"{slot} is damaged")
    return VoteFile(fs, directory).read(), problems


def find_segments(fs: FileSystem, directory: str, first_number: int | None) -> Iterator[SegmentFound]:
    """Those of the log from `first_number` on, one after the other; from the oldest there is if that is None."""
    names = [(parsed, name) for name in fs.names(f"{directory}/log") if (parsed := parse_name(name)) is not None]
    names = [(parsed, name) for parsed, name in names if first_number is None or parsed[0] >= first_number]
    chain: int | None = None
    expected = first_number if first_number is not None or not names else names[0][0][0]
    for position, ((number, id), name) in enumerate(names):
        is_last = position == len(names) - 1
        data, scan = _read_segment(fs, f"{directory}/log/{name}", number, id, chain, is_last)
        missing = f"segment {expected} is missing before it" if number != expected else ""
        problem = missing or _problem(scan, is_last)
        is_sound = not missing and (scan.damage is Damage.NONE or (is_last and scan.damage is Damage.TORN))
        size = scan.end if scan.damage is Damage.NONE else len(data)  # without the space for batches to come
        yield SegmentFound(name, size, scan.entries, problem, is_sound)
        chain = scan.chain if scan.end else None
        expected = number + 1


def _read_segment(fs: FileSystem, path: str, number: int, id: bytes, chain: int | None, is_last: bool) -> tuple[bytes, Scan]:
    """A node that runs may be writing the last one, and one look sees a part of that: what stays is damage."""
    seen: Scan | None = None
    for _ in range(_LOOKS):
        data = fs.read(path)
        scan = scan_segment(data, number, id, chain, is_last)
        if not is_last or scan.damage is Damage.NONE or (seen is not None and scan[2:6] == seen[2:6]):
            break
        seen = scan
    return data, scan


def _problem(scan: Scan, is_last: bool) -> str:
    if scan.damage is Damage.NONE:
        return ""
    where = f"offset {scan.bad_offset}: {scan.reason}"
    if scan.damage is Damage.FOREIGN:
        return scan.reason
    if scan.damage is Damage.CORRUPT or not is_last:
        return f"{where}, and what follows proves that it was durable"
    if scan.damage is Damage.TORN:
        return f"{where}: what a crash leaves of a write that was never acknowledged (or one that is under way)"
    return f"{where}: it may have been acknowledged"


def find_snapshots(fs: FileSystem, directory: str, whole: bool) -> Iterator[SnapshotFound]:
    """All of them, oldest first; with `whole` every byte is read."""
    for name in fs.names(f"{directory}/snap"):
        if not name.endswith(SUFFIX):
            continue
        path = f"{directory}/snap/{name}"
        size = fs.size(path)
        meta, snapshot = None, None
        try:
            reader = SnapshotReader(fs, path)
            meta = reader.meta
            if whole:
                snapshot = reader.verify()
        except CorruptionError as damage:
            yield SnapshotFound(name, size, meta, None, str(damage))
        else:
            yield SnapshotFound(name, size, meta, snapshot, "")


class Log(NamedTuple):
    """The entries of a directory that stand (those that were replaced do not), ascending without gaps; its newest snapshot; and the end
    that cannot be read, if there is one. The last entries may not be committed: one disk cannot tell."""

    identity: Identity
    entries: list[Entry]
    meta: Meta | None
    tail: Tail | None


def read_log(fs: FileSystem, directory: str) -> Log:
    """As a start of the node would. Raises CorruptionError for what it would refuse."""
    identity, _ = find_identity(fs, directory)
    if identity is None:
        raise CorruptionError(
            f"{directory}: neither vote.a nor vote.b can be read: no node's directory, or it has lost its votes. {ADVICE}"
        )
    meta = None
    for found in find_snapshots(fs, directory, whole=True):
        if found.problem:
            raise CorruptionError(found.problem)
        meta = found.meta
    base = meta.base if meta is not None else NO_BASE
    recovered = examine(fs, directory, identity, base, SegmentedLog(fs, f"{directory}/log", bytes))
    entries: list[Entry] = []
    if recovered.holds_base:  # else a leader's snapshot has taken its place (R29)
        for segment in find_segments(fs, directory, identity.first_segment):
            for entry in segment.entries:
                if entries and entry.index <= entries[-1].index:
                    del entries[max(0, entry.index - entries[0].index) :]
                entries.append(entry)
    return Log(identity, entries, meta, recovered.tail)


def steady(fs: FileSystem, directory: str, read: Callable[[], _T], is_good: Callable[[_T], bool]) -> _T:
    """What `read` gives. A node that runs may write and purge meanwhile, and what was read at two times does not fit together: then it is
    asked again. Raises what `read` raises, if it does so twice."""
    failed = False  # a write under way fails once
    for _ in range(_LOOKS):
        before = VoteFile(fs, directory).read()
        try:
            found = read()
            if is_good(found) or VoteFile(fs, directory).read() == before:
                return found
        except (CorruptionError, OSError):
            if failed and VoteFile(fs, directory).read() == before:
                raise
            failed = True
    return read()

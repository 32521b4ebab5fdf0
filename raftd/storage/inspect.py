"""A data directory looked at from outside: nothing is changed, and damage is told, not refused.

A node that runs may write and purge meanwhile: what it writes looks unfinished, and a file may go (FileNotFoundError).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from raftd.errors import CorruptionError
from raftd.raft.messages import Entry, Snapshot
from raftd.storage.filesystem import FileSystem
from raftd.storage.log import parse_name
from raftd.storage.records import Damage, Scan, scan_segment
from raftd.storage.snapshots import SUFFIX, Meta, SnapshotReader
from raftd.storage.vote import SLOTS, Identity, VoteFile, decode_slot


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


def find_segments(fs: FileSystem, directory: str, first_number: int) -> Iterator[SegmentFound]:
    """Those of the log from `first_number` on, one after the other."""
    names = [(parsed, name) for name in fs.names(f"{directory}/log") if (parsed := parse_name(name)) is not None]
    names = [(parsed, name) for parsed, name in names if parsed[0] >= first_number]
    chain: int | None = None
    expected = first_number
    for position, ((number, id), name) in enumerate(names):
        data = fs.read(f"{directory}/log/{name}")
        scan = scan_segment(data, number, id, chain)
        is_last = position == len(names) - 1
        missing = f"segment {expected} is missing before it" if number != expected else ""
        problem = missing or _problem(scan, is_last)
        is_sound = not missing and (scan.damage is Damage.NONE or (is_last and scan.damage is Damage.TORN))
        yield SegmentFound(name, len(data), scan.entries, problem, is_sound)
        chain = scan.chain if scan.end else None
        expected = number + 1


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
    """The entries of a directory that stand (those that were replaced do not), ascending without gaps, and what its newest snapshot
    is of. The last ones may not be committed: nobody can tell from one disk."""

    entries: list[Entry]
    meta: Meta | None


def read_log(fs: FileSystem, directory: str) -> Log:
    """Raises CorruptionError for anything but a torn or doubtful end."""
    identity, _ = find_identity(fs, directory)
    if identity is None:
        raise CorruptionError(f"{directory} is no data directory of a node, or its vote file is damaged")
    meta = None
    for found in find_snapshots(fs, directory, whole=False):
        if found.problem:
            raise CorruptionError(found.problem)
        meta = found.meta
    entries: list[Entry] = []
    segments = list(find_segments(fs, directory, identity.first_segment))
    for segment in segments:
        if not segment.is_sound and (segment is not segments[-1] or "may have been acknowledged" not in segment.problem):
            raise CorruptionError(f"{directory}/log/{segment.name}: {segment.problem}")
        for entry in segment.entries:
            if entries and entry.index <= entries[-1].index:
                del entries[max(0, entry.index - entries[0].index) :]
            entries.append(entry)
    if meta is not None and entries and not _continues(meta, entries):
        entries = []  # a leader's snapshot has taken its place (R29)
    return Log(entries, meta)


def _continues(meta: Meta, entries: list[Entry]) -> bool:
    place = meta.index - entries[0].index
    if place < 0:
        return place == -1
    return place < len(entries) and entries[place].term == meta.term

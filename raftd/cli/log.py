"""`raftd log`: the data directory of a node, read from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from raftd.cli.status import size
from raftd.errors import CorruptionError
from raftd.jobs import commands as c
from raftd.raft.membership import decode
from raftd.raft.messages import Entry, EntryKind
from raftd.storage.filesystem import FileSystem
from raftd.storage.inspect import SegmentFound, SnapshotFound, find_identity, find_segments, find_snapshots, read_log, steady

_BODY_SHOWN = 40
Print = Callable[[str], None]


class Filter(NamedTuple):
    """Which entries, and which commands in them; None: all."""

    first: int = 0
    last: int | None = None
    kind: str | None = None
    job: int | None = None
    tube: str | None = None

    def takes(self, entry: Entry, tubes: list[str | None]) -> bool:
        """`tubes`: those that its commands are about."""
        if entry.index < self.first or (self.last is not None and entry.index > self.last):
            return False
        if self.kind is not None and self.kind != kind_of(entry):
            return False
        if self.job is None and self.tube is None:
            return True
        return any(self.takes_command(*pair) for pair in zip(commands_of(entry), tubes, strict=True))

    def takes_command(self, command: c.Command, tube: str | None) -> bool:
        if self.job is not None and getattr(command, "id", None) != self.job:
            return False
        return self.tube is None or tube == self.tube


class _Used:
    """Which tube each session uses, as far as the log tells."""

    def __init__(self) -> None:
        self._used: dict[tuple[int, int, int], str] = {}

    def tubes(self, entry: Entry) -> list[str | None]:
        """What each of its commands is about."""
        payload = c.decode_payload(entry.data) if entry.kind is EntryKind.BATCH and entry.data else None
        if not isinstance(payload, c.Batch):
            return []
        found: list[str | None] = []
        for command in payload.commands:
            key = (payload.node, payload.incarnation, command.session)
            if isinstance(command, c.Use):
                self._used[key] = command.tube
            if isinstance(command, (c.Put, c.Kick)):
                found.append(getattr(command, "tube", "") or self._used.get(key, "default"))
            else:
                found.append(getattr(command, "tube", None))
        return found


KINDS = (
    "noop",
    "config",
    "time",
    "batch",
    "open-gateway",
    "close-gateway",
    "settings",
    "disk-space",
    "features",
    "directory",
    "tick",
    "unreadable",
)
_PAYLOADS: dict[type, str] = {
    c.Batch: "batch",
    c.OpenGateway: "open-gateway",
    c.CloseGateway: "close-gateway",
    c.Settings: "settings",
    c.DiskSpace: "disk-space",
    c.Features: "features",
    c.Directory: "directory",
    c.Tick: "tick",
}


def kind_of(entry: Entry) -> str:
    """One of KINDS."""
    if entry.kind is not EntryKind.BATCH:
        return entry.kind.name.lower()
    if not entry.data:
        return "time"
    return _PAYLOADS.get(type(c.decode_payload(entry.data)), "unreadable")


def commands_of(entry: Entry) -> list[c.Command]:
    payload = c.decode_payload(entry.data) if entry.kind is EntryKind.BATCH and entry.data else None
    return payload.commands if isinstance(payload, c.Batch) else []


def stamp(time_ms: int) -> str:
    """Log time, as a wall clock says it (UTC)."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def as_builtins(value: Any) -> Any:
    """A struct as a mapping, with its name; bodies as text if they are, else in base64."""
    if isinstance(value, msgspec.Struct):
        return {"type": type(value).__name__, **{name: as_builtins(getattr(value, name)) for name in value.__struct_fields__}}
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"base64": msgspec.to_builtins(value)}
    if isinstance(value, (list, tuple)):
        return [as_builtins(item) for item in value]
    if isinstance(value, dict):
        return {str(key): as_builtins(item) for key, item in value.items()}
    return value


def describe(command: c.Command) -> str:
    """In one line."""
    parts = [type(command).__name__.lower()]
    for name in command.__struct_fields__:
        value = getattr(command, name)
        if name == "session":
            continue
        if name == "body":
            shown = ascii(value[:_BODY_SHOWN])[2:-1] + ("…" if len(value) > _BODY_SHOWN else "")
            parts.append(f"{len(value)} bytes '{shown}'")
        elif value not in ("", None) and not (name == "token" and not value):
            parts.append(f"{name}={value}")
    return f"{' '.join(parts)} (session {command.session})"


# -- list and verify ---------------------------------------------------------------------------


def show(fs: FileSystem, directory: str, console: Console) -> bool:
    """Every file with what it holds; whether all of it is sound, and all there."""

    def read() -> tuple[bool, RenderableType]:
        return _overview(fs, directory)

    sound, said = steady(fs, directory, read, lambda found: found[0])
    console.print(said, highlight=False, soft_wrap=True)
    return sound


def _overview(fs: FileSystem, directory: str) -> tuple[bool, RenderableType]:
    identity, problems = find_identity(fs, directory)
    if identity is None:
        said = f"{directory}: {'; '.join(problems)}: no data directory of a node, or one that cannot be used"
        return False, Text(said, style="red")
    head = Text(
        f"node {identity.node} of cluster {identity.cluster!r}, id {identity.cluster_id.hex() or 'not known yet'}; term {identity.term}, "
        f"vote {identity.voted_for or 'none'}, incarnation {identity.incarnation}{', in doubt' if identity.doubtful else ''}"
    )
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("file", "size", "entries", "first", "last", "terms", ""):
        table.add_column(heading, justify="right" if heading in ("size", "entries", "first", "last") else "left", no_wrap=heading != "")
    sound = not problems
    for snapshot in find_snapshots(fs, directory, whole=False):
        sound = sound and not snapshot.problem
        table.add_row(*_snapshot_row(snapshot))
    for segment in find_segments(fs, directory, identity.first_segment):
        sound = sound and segment.is_sound
        table.add_row(*_segment_row(segment))
    if sound:
        problems = _what_a_start_would_refuse(fs, directory)
    return sound and not problems, Group(head, table, *(Text(problem, style="red") for problem in problems))


def _what_a_start_would_refuse(fs: FileSystem, directory: str) -> list[str]:
    try:
        read_log(fs, directory)
    except CorruptionError as damage:
        return [str(damage)]
    return []


def _snapshot_row(found: SnapshotFound) -> list[Text]:
    index, term = (str(found.meta.index), str(found.meta.term)) if found.meta is not None else ("–", "–")
    return [Text(part) for part in (f"snap/{found.name}", size(found.size_bytes), "state", "–", index, term)] + [Text(found.problem)]


def _segment_row(found: SegmentFound) -> list[Text]:
    entries = found.entries
    terms = sorted({entry.term for entry in entries})
    said = "–" if not terms else str(terms[0]) if len(terms) == 1 else f"{terms[0]}–{terms[-1]}"
    first, last = (str(entries[0].index), str(entries[-1].index)) if entries else ("–", "–")
    row = (f"log/{found.name}", size(found.size_bytes), str(len(entries)), first, last, said)
    return [Text(part) for part in row] + [Text(found.problem, style="" if found.is_sound else "red")]


def verify(fs: FileSystem, directory: str, tell: Print, wrong: Print) -> bool:
    """Read every byte; whether nothing is wrong, and nothing missing."""

    def read() -> tuple[list[str], list[str]]:
        good: list[str] = []
        bad: list[str] = []
        _verify(fs, directory, good.append, bad.append)
        return good, bad

    good, bad = steady(fs, directory, read, lambda found: not found[1])
    for line in good:
        tell(line)
    for line in bad:
        wrong(line)
    return not bad


def _verify(fs: FileSystem, directory: str, tell: Print, wrong: Print) -> None:
    identity, problems = find_identity(fs, directory)
    for problem in problems:
        wrong(f"{directory}: {problem}")
    sound = not problems
    if identity is None:
        return
    for snapshot in find_snapshots(fs, directory, whole=True):
        if snapshot.problem:
            sound = False
            wrong(snapshot.problem)
        elif snapshot.snapshot is not None:
            tell(f"snap/{snapshot.name}: sound, {snapshot.size_bytes} bytes, the state at entry {snapshot.snapshot.index}")
    for segment in find_segments(fs, directory, identity.first_segment):
        if not segment.is_sound:
            sound = False
            wrong(f"{directory}/log/{segment.name}: {segment.problem}")
        else:
            note = f"; {segment.problem}" if segment.problem else ""
            tell(f"log/{segment.name}: sound, {segment.size_bytes} bytes, {len(segment.entries)} entries{note}")
    if sound:
        for problem in _what_a_start_would_refuse(fs, directory):
            wrong(problem)


# -- dump --------------------------------------------------------------------------------------


def dump(fs: FileSystem, directory: str, wanted: Filter, as_json: bool) -> Iterator[str]:
    """The entries that stand in the log, with those that were replaced later. Raises CorruptionError for what cannot be read, after the
    entries that can."""
    identity, problems = find_identity(fs, directory)
    found: list[tuple[str, Entry]] = []
    places: list[int] = []  # of those that stand, ascending by index
    damage = f"{directory}: {'; '.join(problems)}" if identity is None else ""
    for segment in find_segments(fs, directory, identity.first_segment if identity is not None else None):
        if not segment.is_sound:
            damage = damage or f"{directory}/log/{segment.name}: {segment.problem}"
        for entry in segment.entries:
            while places and found[places[-1]][1].index >= entry.index:
                places.pop()
            places.append(len(found))
            found.append((segment.name, entry))
    standing = set(places)
    used = _Used()
    for place, (name, entry) in enumerate(found):
        tubes = used.tubes(entry)
        if wanted.takes(entry, tubes):
            replaced = place not in standing
            yield _json_line(name, entry, replaced) if as_json else _line(entry, replaced, wanted, tubes)
    if damage:
        raise CorruptionError(damage)


def _line(entry: Entry, replaced: bool, wanted: Filter, tubes: list[str | None]) -> str:
    head = f"{entry.index:>9}  term {entry.term}  {stamp(entry.time_ms)}  {kind_of(entry)}{' (replaced later)' if replaced else ''}"
    commands = [describe(one) for one, tube in zip(commands_of(entry), tubes, strict=True) if wanted.takes_command(one, tube)]
    return "\n".join([f"{head}{_about(entry)}", *(f"{'':>11}{line}" for line in commands)])


def _about(entry: Entry) -> str:
    if entry.kind is EntryKind.CONFIG:
        configuration = decode(entry.data)
        joint = f", joint with {configuration.outgoing}" if configuration.outgoing else ""
        learners = f", learners {configuration.learners}" if configuration.learners else ""
        return f": voters {configuration.voters}{joint}{learners}"
    payload = c.decode_payload(entry.data) if entry.kind is EntryKind.BATCH and entry.data else None
    if payload is None:
        return ""
    if isinstance(payload, c.Batch):
        return f" {payload.seq} of node {payload.node}, incarnation {payload.incarnation}"
    if isinstance(payload, c.Directory):
        return f": node {payload.node}, directory {payload.directory_id.hex()}"
    return ": " + ", ".join(f"{name} {getattr(payload, name)}" for name in payload.__struct_fields__)


def _json_line(name: str, entry: Entry, replaced: bool) -> str:
    data: object = None
    if entry.kind is EntryKind.CONFIG:
        configuration = decode(entry.data)
        data = {**as_builtins(configuration), "cluster_id": configuration.cluster_id.hex()}
    elif entry.kind is EntryKind.BATCH and entry.data:
        payload = c.decode_payload(entry.data)
        data = as_builtins(payload)
        if isinstance(payload, c.Directory) and isinstance(data, dict):
            data["directory_id"] = payload.directory_id.hex()
    line = {
        "index": entry.index,
        "term": entry.term,
        "time_ms": entry.time_ms,
        "kind": kind_of(entry),
        "segment": name,
        "replaced": replaced,
        "data": data,
    }
    return msgspec.json.encode(line).decode()

"""`raftd job`: what became of one job, by the log of one node.

The state machine is run again over the entries, and whatever changes about the job is told with its cause. It begins with the first
entry if the log still has it, else with the newest snapshot; of older entries only what was asked is known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from raftd.cli.log import commands_of, describe, stamp
from raftd.jobs import commands as c
from raftd.jobs import replies as r
from raftd.jobs.machine import StateMachine
from raftd.jobs.model import Job, Session, State
from raftd.jobs.snapshot import Loader
from raftd.raft.messages import EntryKind
from raftd.storage.filesystem import FileSystem
from raftd.storage.inspect import read_log, steady
from raftd.storage.snapshots import SnapshotReader, snapshot_path


class Event(NamedTuple):
    """Something about the job, in log entry `entry`. `time` is log time, UTC."""

    entry: int
    time: str
    what: str


class _Seen(NamedTuple):
    state: State
    tube: str
    pri: int
    deadline_ms: int
    holder: tuple[int, int]
    token: int
    counts: tuple[int, ...]


class _Watched(StateMachine):
    """Tells of whatever changes about one job."""

    def __init__(self, id: int) -> None:
        super().__init__()
        self.events: list[Event] = []
        self._id = id
        self._seen: _Seen | None = None
        self._verbs = {kind: self._wrapped(verb) for kind, verb in self._verbs.items()}

    def _wrapped(self, verb: Callable[[Session, Any], r.Reply | None]) -> Callable[[Session, Any], r.Reply | None]:
        def run(session: Session, command: Any) -> r.Reply | None:
            reply = verb(session, command)
            self.look(command, session.key, isinstance(reply, r.Touched) and command.id == self._id)
            return reply

        return run

    def _fire_timers(self) -> None:
        super()._fire_timers()
        self.look(None, None)

    def _give_back(self) -> None:
        super()._give_back()
        self.look(None, None)

    def look(self, command: c.Command | None, who: tuple[int, int] | None, is_touched: bool = False) -> None:
        """Has anything changed since the last time? A touch in the moment of the reservation changes nothing, and is told all the same."""
        job = self.jobs.get(self._id)
        now = _see(job) if job is not None else None
        before, self._seen = self._seen, now
        if before != now or is_touched:
            self.events.append(Event(self.applied_index, stamp(self.now_ms), _tell(before, now, job, command, who)))

    def begin(self) -> None:
        """From a snapshot."""
        job = self.jobs.get(self._id)
        if job is not None:
            self._seen = _see(job)
            what = f"known from the snapshot: {_where(self._seen)}, put at {stamp(job.created_ms)}, {len(job.body)} bytes"
            self.events.append(Event(self.applied_index, stamp(self.now_ms), what))


def _see(job: Job) -> _Seen:
    counts = (job.reserves, job.timeouts, job.releases, job.buries, job.kicks)
    return _Seen(job.state, job.tube.name, job.pri, job.deadline_ms, job.holder, job.token, counts)


def _who(key: tuple[int, int]) -> str:
    return f"client {key[1]} of node {key[0]}"


def _where(seen: _Seen) -> str:
    if seen.state is State.RESERVED:
        return f"reserved by {_who(seen.holder)} until {stamp(seen.deadline_ms)}, token {seen.token}"
    if seen.state is State.DELAYED:
        return f"delayed until {stamp(seen.deadline_ms)} in {seen.tube!r}"
    return f"{seen.state.name.lower()} in {seen.tube!r}"


def _tell(before: _Seen | None, now: _Seen | None, job: Job | None, command: c.Command | None, who: tuple[int, int] | None) -> str:
    by = f" by {_who(who)}" if who is not None else ""
    if now is None:
        return f"deleted{by}"
    if before is None:
        assert job is not None
        return f"put{by}: {len(job.body)} bytes, priority {now.pri}, {job.ttr_ms / 1000:g} s to run; {_where(now)}"
    reserves, timeouts, releases, buries, kicks = (after - earlier for after, earlier in zip(now.counts, before.counts, strict=True))
    if timeouts:
        cause = "its time to run was over"
    elif releases:
        cause = f"released{by}, priority {now.pri}"
    elif buries:
        cause = f"buried{by}"
    elif kicks:
        cause = f"kicked{by}"
    elif isinstance(command, c.Touch):
        return f"touched{by}: {_where(now)}"
    elif reserves:
        return _where(now)
    elif before.state is State.RESERVED:
        cause = "given back, for its client is gone"
    else:
        cause = "its delay was over"
    return f"{cause}; {_where(now)}"


def history(fs: FileSystem, directory: str, id: int) -> tuple[list[Event], str]:
    """What the log of a data directory tells of a job, and how far back it reaches. Raises CorruptionError."""
    return steady(fs, directory, lambda: _history(fs, directory, id), lambda found: True)


def _history(fs: FileSystem, directory: str, id: int) -> tuple[list[Event], str]:
    log = read_log(fs, directory)
    machine = _Watched(id)
    older: list[Event] = []
    entries = log.entries
    reach = "the log reaches back to the first entry of the cluster"
    if log.meta is not None and (not entries or entries[0].index > 1):
        loader = Loader(machine)
        for piece in SnapshotReader(fs, snapshot_path(f"{directory}/snap", log.meta)).pieces():
            loader.feed(piece)
        loader.finish()
        machine.begin()
        index = log.meta.index
        asked = [entry for entry in entries if entry.index <= index]
        entries = [entry for entry in entries if entry.index > index]
        older = [
            Event(entry.index, stamp(entry.time_ms), f"asked: {describe(command)}; what came of it is not in the log any more")
            for entry in asked
            for command in commands_of(entry)
            if getattr(command, "id", None) == id
        ]
        reach = f"the state is known from entry {index} on" + (f", and what was asked from entry {asked[0].index} on" if asked else "")
    for entry in entries:
        machine.apply(entry.index, entry.time_ms, entry.data if entry.kind is EntryKind.BATCH else b"")
    return older + machine.events, f"{reach}; its newest entries need not be committed"

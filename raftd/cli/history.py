"""`raftd job`: what became of one job, by the log of one node.

The state machine is run again over the entries, and tells what happens to the job. It begins with the first
entry if the log still has it, else with the newest snapshot; of older entries only what was asked is known.
"""

from __future__ import annotations

from typing import NamedTuple

from raftd.cli.log import commands_of, describe, stamp
from raftd.jobs.machine import Key, StateMachine
from raftd.jobs.model import NO_NODE, Job, JobEventKind, State
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


class _Watched:
    """What happens in `machine` to the job `id`."""

    def __init__(self, machine: StateMachine, id: int) -> None:
        self.events: list[Event] = []
        self._machine = machine
        self._id = id
        machine.on_job_event = self._tell

    def begin(self) -> None:
        """From a snapshot."""
        job = self._machine.jobs.get(self._id)
        if job is not None:
            what = f"known from the snapshot: {_where(job)}, put at {stamp(job.created_ms)}, {len(job.body)} bytes"
            self._add(what)

    def _tell(self, what: JobEventKind, job: Job, who: Key | None) -> None:
        if job.id == self._id:
            self._add(_describe(what, job, who))

    def _add(self, what: str) -> None:
        self.events.append(Event(self._machine.applied_index, stamp(self._machine.now_ms), what))


def _who(key: Key) -> str:
    if key[0] == NO_NODE:
        return f"client session {key[1]}"
    return f"client {key[1]} of node {key[0]}"


def _where(job: Job) -> str:
    if job.state is State.RESERVED:
        return f"reserved by {_who(job.holder)} until {stamp(job.deadline_ms)}, token {job.token}"
    if job.state is State.DELAYED:
        return f"delayed until {stamp(job.deadline_ms)} in {job.tube.name!r}"
    return f"{job.state.name.lower()} in {job.tube.name!r}"


def _describe(what: JobEventKind, job: Job, who: Key | None) -> str:
    by = f" by {_who(who)}" if who is not None else ""
    match what:
        case JobEventKind.PUT | JobEventKind.PUT_BACK:
            again = " back" if what is JobEventKind.PUT_BACK else ""
            return f"put{again}{by}: {len(job.body)} bytes, priority {job.pri}, {job.ttr_ms / 1000:g} s to run; {_where(job)}"
        case JobEventKind.DELETED:
            return f"deleted{by}"
        case JobEventKind.RESERVED:
            return _where(job)
        case JobEventKind.TOUCHED:
            return f"touched{by}: {_where(job)}"
        case JobEventKind.FAILED:
            return f"failed{by}; {_where(job)}"
        case JobEventKind.RELEASED:
            return f"released{by}, priority {job.pri}; {_where(job)}"
        case JobEventKind.BURIED | JobEventKind.KICKED | JobEventKind.MOVED:
            return f"{what}{by}; {_where(job)}"
        case JobEventKind.TIMED_OUT:
            return f"its time to run was over; {_where(job)}"
        case JobEventKind.GIVEN_BACK:
            return f"given back, for its client is gone; {_where(job)}"
        case JobEventKind.DELAY_OVER:
            return f"its delay was over; {_where(job)}"
        case JobEventKind.DEAD:
            return f"dead, as the policy of its tube has it; {_where(job)}"
        case JobEventKind.EXPIRED:
            return "gone: its time to live was over"
        case JobEventKind.DROPPED:
            return "gone: its tube was full, and it was the oldest"


def history(fs: FileSystem, directory: str, id: int) -> tuple[list[Event], str]:
    """What the log of a data directory tells of a job, and how far back it reaches. Raises CorruptionError."""
    return steady(fs, directory, lambda: _history(fs, directory, id), lambda found: True)


def _history(fs: FileSystem, directory: str, id: int) -> tuple[list[Event], str]:
    log = read_log(fs, directory)
    machine = StateMachine()
    watched = _Watched(machine, id)
    older: list[Event] = []
    entries = log.entries
    reach = "the log reaches back to the first entry of the cluster"
    if log.meta is not None and (not entries or entries[0].index > 1):
        loader = Loader(machine)
        for piece in SnapshotReader(fs, snapshot_path(f"{directory}/snap", log.meta)).pieces():
            loader.feed(piece)
        loader.finish()
        watched.begin()
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
    return older + watched.events, f"{reach}; its newest entries need not be committed"

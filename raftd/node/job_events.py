"""What happened to jobs lately, as this node has applied it: for `/events`, and for a job's history.

Everything that happens in an entry has a number in it, so a place is (entry, number): the same on every node, and after a restart.
The buffer is bounded; `known_from` says how far back it reaches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from raftd.jobs.machine import Key, StateMachine, ignore_job_event
from raftd.jobs.model import Job, JobEventKind, State

#: Job events that each node keeps for `/events` and for the history of jobs (some 20 MB).
RECENT_EVENTS = 65_536

Place = tuple[int, int]
_JOB, _TUBE = 4, 5  # the places of the job's id and of its tube in the fields of a job event
_MANY = 1 << 62  # more than happens in one entry
_DELAYED, _RESERVED, _DELETED = State.DELAYED, State.RESERVED, JobEventKind.DELETED


class JobEvent(NamedTuple):
    """`time_ms` is log time. `who` is the session that did it, None if time did. `token` is that of the last reservation, 0 if there
    was none; `deadline_ms` is when its time to run or its delay is over, 0 if neither runs."""

    entry: int
    number: int
    time_ms: int
    what: JobEventKind
    job: int
    tube: str
    who: Key | None
    token: int
    deadline_ms: int

    @property
    def place(self) -> Place:
        return self.entry, self.number


class JobEventBuffer:
    """A ring. Positions count everything that was ever remembered, from 0. Remembering is cheap, because every job passes several
    times; looking is not."""

    def __init__(self, machine: StateMachine, most: int = RECENT_EVENTS) -> None:
        self._ring: list[tuple[Any, ...] | None] = [None] * most  # the fields of job events
        #: The position of the next.
        self.end = 0
        #: Called once at the next event; the callee sets it again.
        self.when_more: Callable[[], None] | None = None
        self._machine = machine
        self.follow(machine)

    def follow(self, machine: StateMachine) -> None:
        """What `machine` applies is remembered from now on. It may be further than the one before: then nothing is known of what
        happened in between, and all that was before is forgotten."""
        self._machine.on_job_event = ignore_job_event
        self._machine = machine
        machine.on_job_event = self._add
        self._begin = self.end
        self._followed_from: Place = (machine.applied_index, _MANY)
        self._overwritten: tuple[Any, ...] | None = None  # the last that has left the ring
        self._entry = self._number = 0  # the place of the last

    def _add(self, what: JobEventKind, job: Job, who: Key | None) -> None:
        machine, ring, end, state = self._machine, self._ring, self.end, job.state
        entry = machine.applied_index
        if entry == self._entry:
            self._number += 1
        else:
            self._entry = entry
            self._number = 1
        deadline_ms = job.deadline_ms if (state is _RESERVED or state is _DELAYED) and what is not _DELETED else 0
        slot = end % len(ring)
        self._overwritten = ring[slot]
        ring[slot] = (entry, self._number, machine.now_ms, what, job.id, job.tube.name, who, job.token, deadline_ms)
        self.end = end + 1
        if self.when_more is not None:
            call, self.when_more = self.when_more, None
            call()

    @property
    def _forgotten(self) -> Place:
        """The place of the last thing that is not remembered any more."""
        if self._overwritten is None or self.end - len(self._ring) <= self._begin:
            return self._followed_from
        entry, number, *_ = self._overwritten
        return entry, number

    @property
    def begin(self) -> int:
        """The position of the oldest that is remembered."""
        return max(self._begin, self.end - len(self._ring))

    @property
    def known_from(self) -> int:
        """The first entry of which everything is remembered."""
        return self._forgotten[0] + 1

    def misses(self, place: Place) -> bool:
        """Whether something that happened behind `place` may be forgotten."""
        return place < self._forgotten

    def __getitem__(self, position: int) -> JobEvent:
        fields = self._ring[position % len(self._ring)]
        if fields is None or not self.begin <= position < self.end:
            raise IndexError(position)
        return JobEvent(*fields)

    def after(self, place: Place) -> int:
        """The position of the first thing behind `place`, as far as it is remembered."""
        low, high = self.begin, self.end
        while low < high:
            middle = (low + high) // 2
            if self[middle].place <= place:
                low = middle + 1
            else:
                high = middle
        return low

    def tubes(self, begin: int, end: int) -> Iterator[str]:
        """The tubes of what is remembered at these positions."""
        ring, most = self._ring, len(self._ring)
        for position in range(begin, end):
            fields = ring[position % most]
            if fields is not None:
                yield fields[_TUBE]

    def of_job(self, id: int) -> Iterator[JobEvent]:
        """What is remembered of one job, newest first. Looks at everything that is remembered."""
        ring, most = self._ring, len(self._ring)
        for position in range(self.end - 1, self.begin - 1, -1):
            fields = ring[position % most]
            if fields is not None and fields[_JOB] == id:
                yield JobEvent(*fields)

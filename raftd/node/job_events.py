"""What happened to jobs lately, as this node has applied it: for `/events`, and for a job's history.

Everything that happens in an entry has a number in it, so a place is (entry, number): the same on every node, and after a restart.
The buffer is bounded; `known_from` says how far back it reaches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from raftd.jobs.machine import Key, StateMachine, ignore_job_event
from raftd.jobs.model import Job, JobEventKind, State

#: Job events that each node keeps for `/events` and for the history of jobs (some 20 MB).
RECENT_EVENTS = 65_536

Place = tuple[int, int]
_MANY = 1 << 62  # more than happens in one entry
_DELAYED, _RESERVED, _DELETED = State.DELAYED, State.RESERVED, JobEventKind.DELETED


class JobEvent(msgspec.Struct, frozen=True, gc=False):
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
    before: int  # the position of what happened to the same job before, -1 if nothing is remembered

    @property
    def place(self) -> Place:
        return self.entry, self.number


class JobEventBuffer:
    """A ring. Positions count everything that was ever remembered, from 0."""

    def __init__(self, machine: StateMachine, most: int = RECENT_EVENTS) -> None:
        self._ring: list[JobEvent | None] = [None] * most
        self._newest: dict[int, int] = {}  # job -> the position of what happened to it last
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
        self._newest.clear()
        self._forgotten: Place = (machine.applied_index, _MANY)
        self._entry = self._number = 0  # the place of the last

    def _add(self, what: JobEventKind, job: Job, who: Key | None) -> None:
        machine, newest, ring, end, id, state = self._machine, self._newest, self._ring, self.end, job.id, job.state
        most = len(ring)
        entry = machine.applied_index
        number = self._number = self._number + 1 if self._entry == entry else 1
        self._entry = entry
        deadline_ms = job.deadline_ms if (state is _RESERVED or state is _DELAYED) and what is not _DELETED else 0
        slot = end % most
        oldest = ring[slot]
        if oldest is not None and end - most >= self._begin:
            self._forgotten = oldest.place
            if newest.get(oldest.job) == end - most:
                del newest[oldest.job]
        before = newest.get(id, -1)
        newest[id] = end
        ring[slot] = JobEvent(entry, number, machine.now_ms, what, id, job.tube.name, who, job.token, deadline_ms, before)
        self.end = end + 1
        if self.when_more is not None:
            call, self.when_more = self.when_more, None
            call()

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
        event = self._ring[position % len(self._ring)]
        if event is None or not self.begin <= position < self.end:
            raise IndexError(position)
        return event

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

    def of_job(self, id: int) -> Iterator[JobEvent]:
        """What is remembered of one job, newest first."""
        position = self._newest.get(id, -1)
        while position >= self.begin:
            event = self[position]
            yield event
            position = event.before

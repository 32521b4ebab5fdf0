"""What this node has seen of the queue over time: rates, counts and latencies of the last minutes to a day, in bounded memory, so that
they can be looked at without a monitoring system.

Counters of the state are read at fixed times; nothing is counted here that is not counted anyway.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from heapq import nsmallest
from typing import NamedTuple

from raftd.histogram import Histogram
from raftd.jobs.machine import StateMachine
from raftd.jobs.model import Tube
from raftd.node.job_events import JobEventBuffer

#: How often counters are read (seconds).
SAMPLE_S = 5
#: (seconds between two points, points): a quarter of an hour, three hours, a day.
SPANS = ((SAMPLE_S, 180), (60, 180), (600, 144))
#: Points that are kept of one tube: five minutes.
TUBE_POINTS = 60
#: Tubes of which points are kept at most, those that were used last: each takes less than 1 KiB.
SAMPLED_TUBES = 20_000

#: What is charted: per second, or as it is, or in seconds.
RATES = ("put", "taken", "gone", "timed_out")
COUNTS = ("ready", "reserved", "delayed", "buried")
LATENCIES = ("commit_p50_s", "commit_p99_s", "fsync_p99_s")
FIELDS = (*RATES, *COUNTS, *LATENCIES)
_MISSING = float("nan")
_MOST = (1 << 32) - 1
#: Events that are looked at in one go (some 1 ms).
_SLICE = 10_000


class Totals(NamedTuple):
    """Counters of the state: jobs put, reservations, jobs that are no more (deleted, expired, dropped), reservations that ran out."""

    put: int
    taken: int
    gone: int
    timed_out: int


def _totals(machine: StateMachine) -> Totals:
    return Totals(machine.total_jobs, machine.last_token, machine.total_jobs - len(machine.jobs), machine.job_timeouts)


class _Quantiles:
    """Of what a histogram has counted since it was last asked."""

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._before = [0] * len(histogram.counts)

    def since(self, *shares: float) -> list[float]:
        """For each share of all, the upper end of the bucket in which it is reached; not a number if nothing was counted."""
        now = list(self._histogram.counts)
        new = [one - before for one, before in zip(now, self._before, strict=True)]
        self._before = now
        return [_quantile(self._histogram.bounds, new, share) for share in shares]


def _quantile(bounds: Sequence[float], counts: list[int], share: float) -> float:
    total = sum(counts)
    reached = 0
    for bound, count in zip((*bounds, bounds[-1]), counts, strict=True):
        reached += count
        if total and reached >= share * total:
            return bound
    return _MISSING


class Series:
    """Points of all FIELDS at one distance, the oldest overwritten by the newest. A point of several samples has the mean of their rates
    and counts, and the largest latency."""

    def __init__(self, step_s: int, points: int) -> None:
        self.step_s = step_s
        self._points = points
        self._values = {name: array("f", [_MISSING]) * points for name in FIELDS}
        self._next = 0
        self._sum: list[list[float]] = []  # samples of the point that is not whole

    def add(self, sample: list[float]) -> None:
        """One every SAMPLE_S."""
        self._sum.append(sample)
        if len(self._sum) * SAMPLE_S < self.step_s:
            return
        for name, values in zip(FIELDS, zip(*self._sum, strict=True), strict=True):
            known = [value for value in values if value == value]
            whole = _MISSING if not known else max(known) if name in LATENCIES else sum(known) / len(known)
            self._values[name][self._next % self._points] = whole
        self._next += 1
        self._sum.clear()

    def of(self, name: str) -> list[float | None]:
        """Oldest first; None where nothing is known."""
        ring, start = self._values[name], self._next % self._points
        kept = [*ring[start:], *ring[:start]] if self._next >= self._points else ring[: self._next]
        return [round(value, 6) if value == value else None for value in kept]


def _came_and_went(tube: Tube) -> tuple[int, int]:
    """So far: put or moved there; deleted, dropped, expired, or moved away."""
    return tube.total_jobs, tube.total_jobs - tube.jobs


class TubeSeries:
    """Jobs that came into a tube, and that went, in each of the last TUBE_POINTS samples."""

    __slots__ = ("_came", "_first", "_went", "came_before", "used", "went_before")

    def __init__(self, tube: Tube, sample: int) -> None:
        self.came_before, self.went_before = _came_and_went(tube)
        self._came, self._went = array("I", bytes(4 * TUBE_POINTS)), array("I", bytes(4 * TUBE_POINTS))
        self._first = sample  # points before it are of no sample
        self.used = sample  # the newest sample that has something

    def look(self, tube: Tube, sample: int) -> None:
        """What has come and gone since the last look is of this sample."""
        now = _came_and_went(tube)
        came, went = now[0] - self.came_before, now[1] - self.went_before
        if came < 0:  # it was made anew under its name, and began at 0
            came, went = now
        if came or went:
            self._add(sample, came, max(0, went))  # a message that was put back has not come again
        self.came_before, self.went_before = now

    def _add(self, sample: int, came: int, went: int) -> None:
        """Samples between `used` and this one had nothing."""
        for skipped in range(max(self.used + 1, sample - TUBE_POINTS + 1), sample):
            self._came[skipped % TUBE_POINTS] = self._went[skipped % TUBE_POINTS] = 0
        self._came[sample % TUBE_POINTS], self._went[sample % TUBE_POINTS] = min(came, _MOST), min(went, _MOST)
        self.used = sample

    def at(self, sample: int) -> tuple[int, int]:
        """(came, went) of one of the last samples."""
        if sample > self.used:
            return 0, 0
        return self._came[sample % TUBE_POINTS], self._went[sample % TUBE_POINTS]

    def points(self, sample: int) -> list[tuple[int, int]]:
        """(came, went) of the samples up to `sample`, oldest first."""
        return [self.at(one) for one in range(max(sample - TUBE_POINTS + 1, self._first), sample + 1)]


class History:
    """All that is kept. `machine` gives the state, which may be another after a snapshot was installed; `events` and the histograms are
    the node's."""

    def __init__(self, machine: Callable[[], StateMachine], events: JobEventBuffer, commit_s: Histogram, fsync_s: Histogram) -> None:
        self.series = [Series(*span) for span in SPANS]
        #: How many samples were taken.
        self.samples = 0
        #: Of the newest sample, by field.
        self.newest: dict[str, float] = {}
        self._machine = machine
        self._commit, self._fsync = _Quantiles(commit_s), _Quantiles(fsync_s)
        self._before = (machine(), _totals(machine()))
        self._tubes: dict[str, TubeSeries] = {}
        self._events = events
        self._position = events.end  # of the events that were looked at

    def sample(self) -> Iterator[None]:
        """Read all counters, in slices. To be begun every SAMPLE_S, when the one before is done; then what it has found is told."""
        machine, counts = self._machine(), self._machine().counts
        totals = _totals(machine)
        before = self._before[1] if self._before[0] is machine else totals
        if self._before[0] is not machine:
            self._tubes.clear()  # how much came and went in between is not known
        self._before = (machine, totals)
        values = [(now - then) / SAMPLE_S for now, then in zip(totals, before, strict=True)]
        values += [counts.ready, counts.reserved, counts.delayed, counts.buried, *self._commit.since(0.5, 0.99), *self._fsync.since(0.99)]
        for series in self.series:
            series.add(values)
        yield from self._sample_tubes(machine, self.samples + 1)
        self.samples += 1
        self.newest = dict(zip(FIELDS, values, strict=True))

    def _sample_tubes(self, machine: StateMachine, sample: int) -> Iterator[None]:
        """Only of tubes to which something has happened since the last sample: there may be many others. (If more has happened than is
        remembered, some of them are seen with the next sample. What came into a tube before it was first seen is of no sample.)"""
        known, events = self._tubes, self._events
        begin, end = max(self._position, events.begin), events.end
        self._position = end
        changed: set[str] = set()
        for place in range(begin, end, _SLICE):
            changed.update(events.tubes(max(place, events.begin), min(place + _SLICE, end)))
            yield
        for name in changed:
            tube, series = machine.tubes.get(name), known.get(name)
            if tube is None:
                known.pop(name, None)
            elif series is None:
                known[name] = TubeSeries(tube, sample)
            else:
                series.look(tube, sample)
        self._forget(machine)

    def _forget(self, machine: StateMachine) -> None:
        """What is gone, and if there are too many, those that were not used for longest."""
        known = self._tubes
        for name in [name for name in known if name not in machine.tubes]:
            del known[name]
        too_many = len(known) - SAMPLED_TUBES
        if too_many > 0:
            for name in nsmallest(too_many, known, key=lambda name: known[name].used):
                del known[name]

    def rates(self, tube: str) -> tuple[float, float]:
        """Jobs that came into it, and that went, per second, in the newest sample."""
        series = self._tubes.get(tube)
        if series is None or series.used < self.samples:
            return 0.0, 0.0
        came, went = series.at(self.samples)
        return came / SAMPLE_S, went / SAMPLE_S

    def points(self, tube: str) -> list[tuple[int, int]]:
        """Jobs that came into it, and that went, in each of the last samples, oldest first."""
        series = self._tubes.get(tube)
        return series.points(self.samples) if series is not None else []

"""What this node has seen of the queue over time: rates, counts and latencies of the last minutes to a day, in bounded memory, so that
they can be looked at without a monitoring system.

Counters of the state are read at fixed times; nothing is counted here that is not counted anyway.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from raftd.histogram import Histogram
from raftd.jobs.machine import StateMachine
from raftd.jobs.model import Tube

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
#: Tubes that are looked at in one go: some 5 ms if all of them are new.
_SLICE = 500


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


class TubeSeries:
    """Jobs put into a tube, and deleted there, in each of the last TUBE_POINTS samples."""

    __slots__ = ("_deleted", "_first", "_put", "deleted_before", "put_before", "used")

    def __init__(self, tube: Tube, sample: int) -> None:
        self.put_before, self.deleted_before = tube.total_jobs, tube.cmd_delete
        self._put, self._deleted = array("I", bytes(4 * TUBE_POINTS)), array("I", bytes(4 * TUBE_POINTS))
        self._first = sample  # points before it are of no sample
        self.used = sample  # the newest sample that has something

    def add(self, sample: int, put: int, deleted: int) -> None:
        """Samples between `used` and this one had nothing."""
        for skipped in range(max(self.used + 1, sample - TUBE_POINTS + 1), sample):
            self._put[skipped % TUBE_POINTS] = self._deleted[skipped % TUBE_POINTS] = 0
        self._put[sample % TUBE_POINTS], self._deleted[sample % TUBE_POINTS] = put, deleted
        self.used = sample

    def at(self, sample: int) -> tuple[int, int]:
        """(put, deleted) of one of the last samples."""
        if sample > self.used:
            return 0, 0
        return self._put[sample % TUBE_POINTS], self._deleted[sample % TUBE_POINTS]

    def points(self, sample: int) -> list[tuple[int, int]]:
        """(put, deleted) of the samples up to `sample`, oldest first."""
        return [self.at(one) for one in range(max(sample - TUBE_POINTS + 1, self._first), sample + 1)]


class History:
    """All that is kept. `machine` gives the state, which may be another after a snapshot was installed; the histograms are those of the
    node."""

    def __init__(self, machine: Callable[[], StateMachine], commit_s: Histogram, fsync_s: Histogram) -> None:
        self.series = [Series(*span) for span in SPANS]
        #: How many samples were taken.
        self.samples = 0
        #: Of the newest sample, by field.
        self.newest: dict[str, float] = {}
        self._machine = machine
        self._commit, self._fsync = _Quantiles(commit_s), _Quantiles(fsync_s)
        self._before = (machine(), _totals(machine()))
        self._tubes: dict[str, TubeSeries] = {}

    def sample(self) -> Iterator[None]:
        """Read all counters; in slices, for there may be many tubes. To be begun every SAMPLE_S, when the one before is done. What it finds is
        told when it is done."""
        machine, counts = self._machine(), self._machine().counts
        totals = _totals(machine)
        before = self._before[1] if self._before[0] is machine else totals
        self._before = (machine, totals)
        values = [(now - then) / SAMPLE_S for now, then in zip(totals, before, strict=True)]
        values += [counts.ready, counts.reserved, counts.delayed, counts.buried, *self._commit.since(0.5, 0.99), *self._fsync.since(0.99)]
        for series in self.series:
            series.add(values)
        yield from self._sample_tubes(machine, self.samples + 1)
        self.samples += 1
        self.newest = dict(zip(FIELDS, values, strict=True))

    def _sample_tubes(self, machine: StateMachine, sample: int) -> Iterator[None]:
        known = self._tubes
        for place, (name, tube) in enumerate(list(machine.tubes.items())):
            series = known.get(name)
            if series is None:
                if tube.total_jobs:
                    known[name] = TubeSeries(tube, sample)
            elif tube.total_jobs != series.put_before or tube.cmd_delete != series.deleted_before:
                # a tube that was made anew under its name begins at 0 again
                put, deleted = tube.total_jobs - series.put_before, tube.cmd_delete - series.deleted_before
                series.add(sample, put if put >= 0 else tube.total_jobs, deleted if deleted >= 0 else tube.cmd_delete)
                series.put_before, series.deleted_before = tube.total_jobs, tube.cmd_delete
            if place % _SLICE == _SLICE - 1:
                yield
        self._forget(machine)

    def _forget(self, machine: StateMachine) -> None:
        """What is gone, and if there are too many, those that were not used for longest."""
        for name in [name for name in self._tubes if name not in machine.tubes]:
            del self._tubes[name]
        if len(self._tubes) > SAMPLED_TUBES:
            by_use = sorted(self._tubes, key=lambda name: self._tubes[name].used)
            for name in by_use[: len(self._tubes) - SAMPLED_TUBES]:
                del self._tubes[name]

    def rates(self, tube: str) -> tuple[float, float]:
        """Jobs put into it, and deleted there, per second, in the newest sample."""
        series = self._tubes.get(tube)
        if series is None or series.used < self.samples:
            return 0.0, 0.0
        put, deleted = series.at(self.samples)
        return put / SAMPLE_S, deleted / SAMPLE_S

    def points(self, tube: str) -> list[tuple[int, int]]:
        """Jobs put into it, and deleted there, in each of the last samples, oldest first."""
        series = self._tubes.get(tube)
        return series.points(self.samples) if series is not None else []

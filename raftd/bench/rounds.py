"""What `raftd bench` measures and what it gets: rows, rounds, and medians of them."""

from __future__ import annotations

import statistics
from collections import Counter

import msgspec

from raftd.bench.load import LATENCY_UNIT_S, Work
from raftd.bench.servers import Counts


class Row(msgspec.Struct, frozen=True):
    """One line of the table. `size`: bytes of a body. `rate`: operations a second of an open loop; None for a closed one."""

    work: Work
    connections: int
    in_flight: int
    size: int
    rate: float | None = None

    @property
    def title(self) -> str:
        depth = f" × {self.in_flight}" if self.in_flight > 1 else ""
        rate = f", {self.rate:,.0f}/s" if self.rate is not None else ""
        return f"{self.work}, {self.connections}{depth} conn{'s' if self.connections > 1 else ''}{rate}"


class Round(msgspec.Struct, frozen=True):
    """What one round gave. `busiest`: of the load's processes, in parts of a core. `cpu_s`: processor time of each process of the server,
    the one that leads first; empty if another leads at the end. `counts`: what all of them did. `unanswered`: operations under way at
    its end."""

    latencies: Counter[int]
    seconds: float
    busiest: float
    cpu_s: list[float]
    counts: Counts = Counts(0)
    unanswered: int = 0

    @property
    def operations(self) -> int:
        return sum(self.latencies.values())


class Measured(msgspec.Struct):
    """The rounds of one server at one row. `cpu_us`: per operation, of each of its processes in each round. The rest, but for the rates:
    of all rounds together."""

    rates: list[float] = []
    latencies: Counter[int] = msgspec.field(default_factory=Counter)
    busiest: float = 0.0
    cpu_us: list[list[float]] = []
    counts: Counts = Counts(0)
    unanswered: int = 0

    @property
    def rate(self) -> float:
        """The median of the rounds', per second."""
        return statistics.median(self.rates)

    @property
    def operations(self) -> int:
        return sum(self.latencies.values())

    def quantile_s(self, fraction: float) -> float:
        """The latency that so great a part of all was within, in seconds."""
        wanted = fraction * self.operations
        seen = 0
        for latency in sorted(self.latencies):
            seen += self.latencies[latency]
            if seen >= wanted:
                return latency * LATENCY_UNIT_S
        return 0.0

    @property
    def leader_us(self) -> float | None:
        """Processor time of the process that leads per operation, in microseconds, the median of the rounds; None if it is not known."""
        return statistics.median(cpu[0] for cpu in self.cpu_us) if self.cpu_us else None

    @property
    def follower_us(self) -> float | None:
        """The same of each of the others, on average; None if there are none."""
        others = [statistics.mean(cpu[1:]) for cpu in self.cpu_us if len(cpu) > 1]
        return statistics.median(others) if others else None

    @property
    def all_us(self) -> float | None:
        """The same of all of them together."""
        return statistics.median(sum(cpu) for cpu in self.cpu_us) if self.cpu_us else None

    def each(self, count: int | None) -> float | None:
        """A count per operation; None if it is not known."""
        return count / self.operations if count is not None and self.operations else None

    def add(self, one: Round) -> None:
        """One more round."""
        self.rates.append(one.operations / one.seconds)
        self.latencies.update(one.latencies)
        self.busiest = max(self.busiest, one.busiest)
        self.counts = self.counts.plus(one.counts)
        self.unanswered = max(self.unanswered, one.unanswered)
        if one.cpu_s and one.operations:
            self.cpu_us.append([seconds * 1e6 / one.operations for seconds in one.cpu_s])

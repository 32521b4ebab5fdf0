"""Log time: the one clock of the replicated state.

It enters the state only through the stamps of entries. The leader's log clock starts at the greatest of
the last stamp in its log and everybody's estimate, then follows its monotonic clock; every AppendEntries
carries it. Any other node estimates it as the newest value heard plus its own monotonic time since. So an
election shortens no hold, an outage counts, and a wrong wall clock moves nothing while one node lives.

An estimate never falls. A message that was delayed carries a value that is older than what this node knows; a clock that runs fast
is ahead of the leader's. In both cases the estimate does not move until the leader's clock has passed it.
"""

from __future__ import annotations

from collections.abc import Iterable


class LogClock:
    """All times in milliseconds; `now_ms` is this node's monotonic clock."""

    def __init__(self) -> None:
        self._term = 0
        self._heard_ms: int | None = None
        self._heard_at_ms = 0
        self._least_ms = 0  # what was estimated when it was heard

    def estimate_ms(self, now_ms: int) -> int | None:
        """Log time as far as this node can tell; None if it has heard none since it started."""
        if self._heard_ms is None:
            return None
        return max(self._least_ms, self._heard_ms + max(0, now_ms - self._heard_at_ms))

    def hear(self, term: int, clock_ms: int, now_ms: int) -> None:
        """An AppendEntries carried `clock_ms`. One that was overtaken on its way tells nothing."""
        if self._heard_ms is not None and (term, clock_ms) < (self._term, self._heard_ms):
            return
        self._least_ms = self.estimate_ms(now_ms) or 0
        self._term, self._heard_ms, self._heard_at_ms = term, clock_ms, now_ms

    def lead(self, term: int, last_stamp_ms: int, estimates: Iterable[int | None], walls: Iterable[int], now_ms: int) -> None:
        """Start the leader's clock. The wall clocks count only if no node has an estimate, and then the
        lowest: a single node whose clock is far ahead must not run all timers out."""
        known = [estimate for estimate in estimates if estimate is not None]
        start = max(known) if known else min(walls)
        self._term, self._heard_ms, self._heard_at_ms = term, max(last_stamp_ms, start), now_ms
        self._least_ms = self._heard_ms

"""Virtual time: calls in order of their moment, those of one moment in order of asking. Nothing else happens.

The face is the part of Twisted's IReactorTime that raftd uses. A `NodeClock` is what one machine thinks the
time is: it began somewhere else and runs a little faster or slower.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

US = 1_000_000


class Call:
    """What callLater gives: it can be cancelled until it has been called."""

    __slots__ = ("_args", "_function", "time_us")

    def __init__(self, time_us: int, function: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.time_us = time_us
        self._function: Callable[..., object] | None = function
        self._args = args

    def active(self) -> bool:
        return self._function is not None

    def cancel(self) -> None:
        self._function, self._args = None, ()

    def run(self) -> None:
        function, args = self._function, self._args
        self.cancel()
        if function is not None:
            function(*args)


class Scheduler:
    """Time in microseconds since the beginning."""

    def __init__(self) -> None:
        self.now_us = 0
        self.steps = 0
        self._heap: list[tuple[int, int, Call]] = []
        self._asked = 0

    def seconds(self) -> float:
        return self.now_us / US

    def callLater(self, delay: float, callable: Callable[..., object], *args: object) -> Call:
        return self.after(int(delay * US), callable, *args)

    def after(self, delay_us: int, function: Callable[..., object], *args: object) -> Call:
        """Call `function` in `delay_us` microseconds."""
        call = Call(self.now_us + delay_us, function, args)
        self._asked += 1
        heappush(self._heap, (call.time_us, self._asked, call))
        return call

    def step(self, until_us: int) -> bool:
        """Make the next call that is due by then; False, and it is then, if there is none."""
        while self._heap and self._heap[0][0] <= until_us:
            time_us, _, call = heappop(self._heap)
            if call.active():
                self.now_us = time_us
                self.steps += 1
                call.run()
                return True
        self.now_us = max(self.now_us, until_us)
        return False

    def run(self, until_us: int) -> None:
        while self.step(until_us):
            pass


class NodeClock:
    """A machine's monotonic clock: `rate` of its seconds pass in one of the world's, counted from `offset_s`.

    `later(delay_us, call, args)` is the world's, and knows whether the machine's process can run.
    """

    def __init__(self, scheduler: Scheduler, later: Callable[..., Call], rate: float, offset_s: float) -> None:
        self._scheduler = scheduler
        self._later = later
        self._rate = rate
        self._offset_s = offset_s

    def seconds(self) -> float:
        return self._offset_s + self._scheduler.now_us * self._rate / US

    def callLater(self, delay: float, callable: Callable[..., object], *args: object) -> Call:
        return self._later(int(delay / self._rate * US), callable, *args)

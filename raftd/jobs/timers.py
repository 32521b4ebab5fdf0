"""All timers of the state machine, in one heap, by log time.

Cancelling costs nothing: a timer whose thing has changed since is stale, and is recognised when it comes
up. When stale ones pass half the heap it is rebuilt without them.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from heapq import heapify, heappop, heappush


class Kind(IntEnum):
    """Timers due at one stamp fire in (due, kind, id) order: jobs become ready before waits time out."""

    DELAY = 0  # a delayed job becomes ready; id is the job's
    PAUSE = 1  # a tube's pause ends; id is its name
    TTR = 2  # a reservation ends; id is the job's
    SOON = 3  # a waiting session holds a job about to time out; id is (node, session)
    WAIT = 4  # a reserve times out; id is (node, session)


TimerId = int | str | tuple[int, int]
_SLACK = 64


class Timers:
    """`is_live(due, kind, id)` says whether a timer still means something."""

    def __init__(self, is_live: Callable[[int, Kind, TimerId], bool]) -> None:
        self._heap: list[tuple[int, Kind, TimerId]] = []
        self._stale = 0
        self._is_live = is_live

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, due_ms: int, kind: Kind, id: TimerId) -> None:
        heappush(self._heap, (due_ms, kind, id))

    def cancelled(self) -> None:
        """One timer in the heap has just become stale."""
        self._stale += 1
        if self._stale > _SLACK and self._stale > len(self._heap) // 2:
            self._heap = [timer for timer in self._heap if self._is_live(*timer)]
            heapify(self._heap)
            self._stale = 0

    def next_due_ms(self) -> int | None:
        """When the first live timer is due."""
        while self._heap and not self._is_live(*self._heap[0]):
            heappop(self._heap)
            self._stale = max(0, self._stale - 1)
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now_ms: int) -> tuple[Kind, TimerId] | None:
        """Take the first live timer due at `now_ms`."""
        due_ms = self.next_due_ms()
        if due_ms is None or due_ms > now_ms:
            return None
        _, kind, id = heappop(self._heap)
        return kind, id

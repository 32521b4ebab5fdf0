"""Python's collector of reference cycles, kept from walking the whole queue.

A full collection visits every object: with a million jobs that stops the process for half a second, more than an election timeout, and
any client can bring it about. So there are no automatic ones. Once a minute what is old is collected while there is little of it. Else
what is new since the last time is collected, if that is little, and all of it is set aside (`gc.freeze`). What is set aside is still freed
when nothing refers to it; only cycles in it are not found, so what lives long must not be in one: clients' connections and the state
of the queue are in none once they end (`tests/server/test_collector.py`).
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from twisted.application import internet

#: How often, in seconds.
_INTERVAL_S = 60.0
#: So many items are visited in less than 20 ms.
_FEW = 50_000
#: Collections of the second generation before one of the third: never.
_NEVER = 1 << 30


class CycleCollector(internet.TimerService):
    """`items` tells how large the queue is."""

    def __init__(self, reactor: Any, items: Callable[[], int]) -> None:
        super().__init__(_INTERVAL_S, self.collect)
        self.clock = reactor
        self._items = items
        self._before = 0  # how many there were the last time

    def startService(self) -> None:
        first, second, _ = gc.get_threshold()
        gc.set_threshold(first, second, _NEVER)
        gc.collect()
        gc.freeze()
        self._before = self._items()
        super().startService()

    def collect(self) -> None:
        items = self._items()
        grown, self._before = items - self._before, items
        if grown < _FEW:
            gc.collect()
        if items >= _FEW:
            gc.freeze()

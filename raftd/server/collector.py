"""Python's collector of reference cycles, kept from walking the whole queue.

A full collection visits every object: with a million jobs that stops the process for half a second, more than an election timeout, and
any client can bring it about. The queue has no cycles, so there is nothing to find in it. Young objects are collected as always. What
is older is set aside (`gc.freeze`) once a minute; it is still freed when nothing refers to it, only cycles in it are not found. While the
queue is small they are: then everything set aside is collected too.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from twisted.application import internet

#: How often, in seconds.
_INTERVAL_S = 60.0
#: In a queue with fewer items than this a full collection takes less than 20 ms.
_SMALL = 50_000
#: Collections of the second generation before one of the third: never.
_NEVER = 1 << 30


class CycleCollector(internet.TimerService):
    """`items` tells how large the queue is: jobs, and tubes that are watched."""

    def __init__(self, reactor: Any, items: Callable[[], int]) -> None:
        super().__init__(_INTERVAL_S, self.collect)
        self.clock = reactor
        self._items = items

    def startService(self) -> None:
        first, second, _ = gc.get_threshold()
        gc.set_threshold(first, second, _NEVER)
        gc.collect()
        gc.freeze()
        super().startService()

    def collect(self) -> None:
        if self._items() < _SMALL:
            gc.unfreeze()
            gc.collect()
        gc.freeze()

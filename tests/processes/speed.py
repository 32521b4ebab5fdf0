"""How fast this machine is at the moment, for limits on processor time: a test must not fail because a machine is slow."""

from __future__ import annotations

import time

_ROUNDS = 5
#: What `_work` took (seconds) on the machine on which the limits were measured.
_THERE_S = 0.011


def _work() -> int:
    table = {number: str(number) for number in range(50_000)}  # strings: the collector of cycles has nothing to do
    return sum(len(table.pop(number)) for number in range(50_000))


def _seconds() -> float:
    began = time.thread_time()
    _work()
    return time.thread_time() - began


def slowness() -> float:
    """How many times longer this machine takes for the same work as the one on which the limits were measured; 1 if it is faster."""
    return max(1.0, sorted(_seconds() for _ in range(_ROUNDS))[_ROUNDS // 2] / _THERE_S)

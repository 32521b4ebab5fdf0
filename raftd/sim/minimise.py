"""The least of a plan that still goes wrong, found by leaving out."""

from __future__ import annotations

from collections.abc import Callable

from raftd.sim.swarm import Event


def minimise(events: list[Event], fails: Callable[[list[Event]], bool], progress: Callable[[int], None] = lambda left: None) -> list[Event]:
    """Drop events as long as what is left `fails`: halves first, then ever smaller pieces, at last one by one, until none
    can go. `progress` is called with the number of events left."""
    size = max(1, len(events) // 2)
    while True:
        dropped = False
        start = 0
        while start < len(events):
            fewer = events[:start] + events[start + size :]
            if fails(fewer):
                events = fewer
                dropped = True
                progress(len(events))
            else:
                start += size
        if size == 1 and not dropped:
            return events
        size = max(1, size // 2)

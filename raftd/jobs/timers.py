"""The timers of the state machine, all in one order, by log time. One whose thing has changed is removed at once."""

from __future__ import annotations

from enum import IntEnum

from raftd.jobs.pages import SortedPages


class Kind(IntEnum):
    """Timers due at one stamp fire in (due, kind, id) order: jobs become ready before waits time out."""

    DELAY = 0  # a delayed job becomes ready; id is the job's
    PAUSE = 1  # a tube's pause ends; id is its name
    TTR = 2  # a reservation ends; id is the job's
    SOON = 3  # a waiting session holds a job about to time out; id is (node, session, incarnation)
    WAIT = 4  # a reserve times out; id is (node, session, incarnation)


TimerId = int | str | tuple[int, int, int]
Timer = tuple[int, Kind, TimerId]  # due (log time, in ms), kind, id
Timers = SortedPages[Timer]

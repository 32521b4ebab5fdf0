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
    ASK = 5  # a reserve of a client's session times out; id is (0, session, ask)
    DETACHED = 6  # a client's session that nobody speaks for ends; id is its number
    RATE = 7  # a tube may give a job again; id is its name
    EXPIRE = 8  # a job's time to live is over; id is the job's


TimerId = int | str | tuple[int, int, int]
Timer = tuple[int, Kind, TimerId]  # due (log time, in ms), kind, id
Timers = SortedPages[Timer]

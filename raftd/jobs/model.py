"""The things of the queue: jobs, tubes, sessions, gateways. They hold data and keep their own counts;
what happens to them is decided in `machine.py`.

                   put with delay            put
                        │                     │
                        ▼     delay over      ▼      reserve          delete
     ┌──────────────▶ delayed ───────────▶ ready ───────────▶ reserved ──────▶ gone
     │                  │ kick ───────────▶ ▲ ▲  ▲               │ │ │
     │                  │                   │ │  └── ttr over, ──┘ │ │
     │                  └ delete ▶ gone     │ │     release, close  │ │
     └───────────────── release with delay ─┼─┼────────────────────┘ │
                                     kick   │ └ delete ▶ gone        │
                                   buried ──┘◀──────── bury ─────────┘

Heaps hold plain tuples and forget lazily: an entry whose job has moved on is skipped when it comes up.
Jobs are in no reference cycle and untracked by the garbage collector, which must not walk a million.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from enum import IntEnum, StrEnum
from heapq import heapify, heappop, heappush

import msgspec

URGENT_PRI = 1024
_SLACK = 64


class State(IntEnum):
    READY = 0
    DELAYED = 1
    RESERVED = 2
    BURIED = 3


class Job(msgspec.Struct, gc=False):
    """`deadline_ms` means something while delayed or reserved. `holder` and `token` name the last reservation."""

    id: int
    tube: Tube
    pri: int
    delay_ms: int
    ttr_ms: int
    body: bytes
    created_ms: int
    state: State = State.READY
    deadline_ms: int = 0
    holder: tuple[int, int] = (0, 0)
    token: int = 0
    reserves: int = 0
    timeouts: int = 0
    releases: int = 0
    buries: int = 0
    kicks: int = 0


class What(StrEnum):
    """What can happen to a job."""

    PUT = "put"
    RESERVED = "reserved"
    DELETED = "deleted"
    RELEASED = "released"
    BURIED = "buried"
    KICKED = "kicked"
    TOUCHED = "touched"
    TIMED_OUT = "timed-out"  # its time to run was over
    DELAY_OVER = "delay-over"
    GIVEN_BACK = "given-back"  # whoever held it is gone
    PUT_BACK = "put-back"  # after a deletion of which nobody could be told


#: Told what happened to a job, as it is after that, and which session did it: None if time did.
Tell = Callable[[What, Job, tuple[int, int] | None], None]


class JobHeap:
    """Ids by a key, least first, with lazy removal; `is_live(key, id)` tells what still counts."""

    __slots__ = ("_heap", "_is_live", "count")

    def __init__(self, is_live: Callable[[int, int], bool]) -> None:
        self._heap: list[tuple[int, int]] = []
        self._is_live = is_live
        self.count = 0

    def add(self, key: int, id: int) -> None:
        heappush(self._heap, (key, id))
        self.count += 1

    def removed(self) -> None:
        """A job that was in here is not any more."""
        self.count -= 1
        if len(self._heap) > 2 * self.count + _SLACK:
            self._heap = [item for item in self._heap if self._is_live(*item)]
            heapify(self._heap)

    def least(self) -> tuple[int, int] | None:
        """The least (key, id)."""
        while self._heap and not self._is_live(*self._heap[0]):
            heappop(self._heap)
        return self._heap[0] if self._heap else None


class Counts:
    """How many jobs are in each state, over all tubes."""

    __slots__ = ("buried", "delayed", "ready", "reserved", "urgent")

    def __init__(self) -> None:
        self.urgent = self.ready = self.reserved = self.delayed = self.buried = 0


class Tube:
    """A named queue. It exists while something refers to it."""

    __slots__ = (
        "buried",
        "cmd_delete",
        "cmd_pause_tube",
        "delayed",
        "is_declared",
        "jobs",
        "name",
        "pause_ms",
        "pause_until_ms",
        "ready",
        "reserved",
        "total_jobs",
        "urgent",
        "using",
        "waiters",
        "watching",
    )

    def __init__(self, name: str, jobs: Mapping[int, Job]) -> None:
        # the tube too: a job may be put back under its id elsewhere than where it stood (simulator seed 55)
        def is_ready(pri: int, id: int) -> bool:
            job = jobs.get(id)
            return job is not None and job.state is State.READY and job.pri == pri and job.tube.name == name

        def is_delayed(deadline_ms: int, id: int) -> bool:
            job = jobs.get(id)
            return job is not None and job.state is State.DELAYED and job.deadline_ms == deadline_ms and job.tube.name == name

        self.name = name
        self.ready = JobHeap(is_ready)  # by priority
        self.delayed = JobHeap(is_delayed)  # by deadline
        self.buried: OrderedDict[int, None] = OrderedDict()  # in order of burying
        self.waiters: OrderedDict[Session, None] = OrderedDict()  # in order of asking
        self.is_declared = False  # then it stays, empty too
        self.urgent = 0
        self.reserved = 0
        self.jobs = 0
        self.using = 0
        self.watching = 0
        self.pause_ms = 0
        self.pause_until_ms = 0
        self.total_jobs = 0
        self.cmd_delete = 0
        self.cmd_pause_tube = 0

    @property
    def is_referenced(self) -> bool:
        return bool(self.using or self.watching or self.jobs or self.is_declared)


class Session:
    """One client connection, anywhere in the cluster. `key` is (node, number within its gateway)."""

    __slots__ = ("key", "reserved", "soon_ms", "used", "wait_until_ms", "waiting", "watched")

    def __init__(self, key: tuple[int, int], used: Tube) -> None:
        self.key = key
        self.used = used
        self.watched: dict[str, Tube] = {used.name: used}
        self.reserved: OrderedDict[int, int] = OrderedDict()  # job id -> token, in order of reserving
        self.waiting = False
        self.wait_until_ms = 0  # 0: for ever
        self.soon_ms = 0  # when DEADLINE_SOON is due, 0 if it holds nothing


class Gateway:
    """One row per node. A closed row stays, so that no late repeat of its commands takes effect again."""

    __slots__ = ("incarnation", "is_open", "node", "seq", "sessions", "waiting")

    def __init__(self, node: int, incarnation: int) -> None:
        self.node = node
        self.incarnation = incarnation
        self.is_open = True
        self.seq = 0
        self.waiting = 0  # of its sessions
        self.sessions: dict[int, Session] = {}

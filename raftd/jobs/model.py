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

Queues are `SortedPages` of plain tuples. Jobs are in no reference cycle and untracked by the garbage collector, which must not
walk a million.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from enum import IntEnum, StrEnum

import msgspec

from raftd.jobs.pages import SortedPages

URGENT_PRI = 1024
#: A session that holds more jobs than this keeps their deadlines in order; for fewer it is cheaper to look at all.
_FEW_HELD = 16


class State(IntEnum):
    READY = 0
    DELAYED = 1
    RESERVED = 2
    BURIED = 3


class Job(msgspec.Struct, gc=False):
    """`deadline_ms` is when its delay or its time to run is over, in log time; while it is buried, its number in the order of burying.
    `holder` and `token` name the last reservation."""

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

    @property
    def has_deadline(self) -> bool:
        """Whether its delay or its time to run is under way."""
        return self.state is State.DELAYED or self.state is State.RESERVED


class JobEventKind(StrEnum):
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
    GIVEN_BACK = "given-back"  # its holder is gone
    PUT_BACK = "put-back"  # after a deletion that could not be answered


#: Told what happened to a job, as it is after that, and which session did it: None if time did.
JobListener = Callable[[JobEventKind, Job, tuple[int, int] | None], None]


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

    def __init__(self, name: str) -> None:
        self.name = name
        self.ready: SortedPages[tuple[int, int]] = SortedPages()  # (priority, id)
        self.delayed: SortedPages[tuple[int, int]] = SortedPages()  # (deadline_ms, id)
        self.buried: SortedPages[tuple[int, int]] = SortedPages()  # (number in order of burying, id)
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

    __slots__ = (
        "deadlines",
        "incarnation",
        "is_closed",
        "key",
        "reserved",
        "soon_ms",
        "used",
        "wait_until_ms",
        "waiting",
        "watched",
    )

    def __init__(self, key: tuple[int, int], incarnation: int, used: Tube) -> None:
        self.key = key
        self.incarnation = incarnation  # of its gateway: numbers come again
        self.is_closed = False  # and waits for its turn in `StateMachine.closing`
        self.used = used
        self.watched: dict[str, Tube] = {used.name: used}
        self.reserved: SortedPages[tuple[int, int]] = SortedPages()  # (token, job id), in order of reserving
        self.deadlines: SortedPages[tuple[int, int]] | None = None  # (deadline_ms, job id) of the same, if they are many
        self.waiting = False
        self.wait_until_ms = 0  # 0: for ever
        self.soon_ms = 0  # when DEADLINE_SOON is due, 0 if it holds nothing

    @property
    def id(self) -> tuple[int, int, int]:
        return (*self.key, self.incarnation)

    def holds(self, job: Job) -> bool:
        """By its own reservation, not by one that a token was given away with."""
        return (job.token, job.id) in self.reserved

    def add_reservation(self, job: Job, jobs: Mapping[int, Job]) -> None:
        """The newest reservation is that of `job`. `jobs`: all there are."""
        self.reserved.add((job.token, job.id))
        if self.deadlines is not None:
            self.deadlines.add((job.deadline_ms, job.id))
        elif len(self.reserved) > _FEW_HELD:
            self.deadlines = SortedPages()
            for _, id in self.reserved:
                self.deadlines.add((jobs[id].deadline_ms, id))

    def remove_reservation(self, job: Job) -> None:
        """`job` is reserved no more; its deadline is still that of the reservation. Nothing if this session did not hold it."""
        try:
            self.reserved.remove((job.token, job.id))
        except KeyError:
            return
        if self.deadlines is not None:
            self.deadlines.remove((job.deadline_ms, job.id))
            if not self.reserved:
                self.deadlines = None

    def deadline_moved(self, job: Job, before_ms: int) -> None:
        """`job` was touched. Nothing if this session does not hold it."""
        if self.deadlines is not None and self.holds(job):
            self.deadlines.remove((before_ms, job.id))
            self.deadlines.add((job.deadline_ms, job.id))

    def give_to_tokens(self) -> None:
        """What it holds belongs to the tokens."""
        self.reserved = SortedPages()
        self.deadlines = None

    def first_deadline_ms(self, jobs: Mapping[int, Job]) -> int | None:
        """Of the jobs that it holds; None if it holds none."""
        if self.deadlines is not None:
            first = self.deadlines.least()
            return first[0] if first is not None else None
        return min((jobs[id].deadline_ms for _, id in self.reserved), default=None)


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

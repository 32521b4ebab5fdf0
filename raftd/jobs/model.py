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

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from enum import IntEnum, StrEnum
from typing import Literal

import msgspec

from raftd.jobs.pages import SortedPages
from raftd.jobs.policy import Death, Policy
from raftd.jobs.replies import AskReply
from raftd.jobs.rights import Login
from raftd.limits import GIVEN_BYTES

URGENT_PRI = 1024
#: A session that holds more jobs than this keeps their deadlines in order; for fewer it is cheaper to look at all.
_FEW_HELD = 16


class State(IntEnum):
    READY = 0
    DELAYED = 1
    RESERVED = 2
    BURIED = 3


#: More than are buried at one moment of log time: a group of entries has one, and so many burials would be megabytes.
BURIALS_PER_MS = 100_000


class Job(msgspec.Struct, gc=False):
    """`deadline_ms` is when its delay or its time to run is over, in log time; while it is buried, its number in the order of burying,
    which from level 6 on also says when that was: there are `BURIALS_PER_MS` for each millisecond of log time. `holder` and `token` name
    the last reservation."""

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
    def failures(self) -> int:
        """Attempts that have failed: reservations that have ended, but not by a release or a bury, nor by the job's own end."""
        return self.reserves - self.releases - self.buries - (self.state is State.RESERVED)

    @property
    def burial(self) -> int:
        """Of a buried job its number in the order of burying, if that says when it was buried; 0 if not."""
        return self.deadline_ms if self.deadline_ms >= max(1, self.created_ms) * BURIALS_PER_MS else 0

    @property
    def buried_ms(self) -> int:
        """When this job, which is buried, was buried, in log time; 0 if that was before level 6."""
        return self.burial // BURIALS_PER_MS

    @property
    def has_deadline(self) -> bool:
        """Whether its delay or its time to run is under way."""
        return self.state is State.DELAYED or self.state is State.RESERVED


class Mark(msgspec.Struct, gc=False):
    """What is kept of a job because of a policy, or because it is the only one of its kind. `forgiven`: failed attempts that do not count
    any more. `expires_ms`: when its time to live is over, 0: never; `is_over`: it was over while the job was reserved or buried. Of a job
    that has died: why ("" for any other), when, after how many attempts, and in which tube."""

    forgiven: int = 0
    expires_ms: int = 0
    is_over: bool = False
    death: Death | Literal[""] = ""
    died_ms: int = 0
    attempts: int = 0
    origin: str = ""
    unique: str = ""  # no other job with this key is put into its tube
    unique_until_ms: int = 0  # until then at the latest, 0: for ever
    until_reserved: bool = False  # until it is reserved for the first time


#: Of a job of which nothing is kept. It must not be changed.
NO_MARK = Mark()


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
    FAILED = "failed"  # its worker says so
    DEAD = "dead"  # its tube's policy has moved it to the dead letter tube, or buried it
    EXPIRED = "expired"  # its time to live was over, and it is gone
    MOVED = "moved"  # from where it was dead or buried
    DROPPED = "dropped"  # its tube was full, and it is gone
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
        "bytes",
        "cmd_delete",
        "cmd_pause_tube",
        "dead",
        "delayed",
        "is_declared",
        "jobs",
        "limited_until_ms",
        "name",
        "next_us",
        "pause_ms",
        "pause_until_ms",
        "policy",
        "ready",
        "reserved",
        "total_jobs",
        "urgent",
        "using",
        "version",
        "waiters",
        "watching",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.ready: SortedPages[tuple[int, int]] = SortedPages()  # (priority, id)
        self.delayed: SortedPages[tuple[int, int]] = SortedPages()  # (deadline_ms, id)
        self.buried: SortedPages[tuple[int, int]] = SortedPages()  # (number in order of burying, id)
        self.waiters: OrderedDict[Session | Wait, None] = OrderedDict()  # in order of asking
        self.is_declared = False  # then it stays, empty too
        self.urgent = 0
        self.reserved = 0
        self.jobs = 0
        self.dead = 0  # of these: those that a policy has declared dead
        self.bytes = 0  # of their bodies
        self.using = 0
        self.watching = 0
        self.pause_ms = 0
        self.pause_until_ms = 0
        self.total_jobs = 0
        self.cmd_delete = 0
        self.cmd_pause_tube = 0
        self.policy: Policy | None = None  # then it stays, empty too
        self.version = 0  # of the policy
        # of a policy's rate
        self.next_us = 0  # log time in microseconds: before it, all tokens of the bucket would be there again
        self.limited_until_ms = 0  # when there is a token again, 0: now

    @property
    def is_referenced(self) -> bool:
        return bool(self.using or self.watching or self.jobs or self.is_declared or self.policy is not None)


class Session:
    """One client connection, anywhere in the cluster. `key` is (node, number within its gateway)."""

    __slots__ = (
        "deadlines",
        "incarnation",
        "is_closed",
        "key",
        "login",
        "permitted",
        "releases",
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
        self.login: Login | None = None  # whose it is, None: nobody has said
        self.permitted: tuple[int, list[Tube]] | None = None  # what `access.permitted` has found out, and when; no part of the state
        self.is_closed = False  # and waits for its turn in `StateMachine.closing`
        self.releases = False  # what it held is given back as by a release: it was a client's, in a snapshot
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


#: The node in the key of a client's session: it belongs to none.
NO_NODE = 0


class ClientSession:
    """A client that is known by a token, and outlives its connections: one of them at a time speaks for it. `key` is (NO_NODE, number)."""

    __slots__ = (
        "answers",
        "attached_to",
        "epoch",
        "is_closed",
        "key",
        "last_id",
        "late_answers",
        "login",
        "owner",
        "releases",
        "reserved",
        "token",
        "until_ms",
        "waits",
        "watching",
    )

    #: As seen by what grants jobs to any session: this one waits by its `Wait`s.
    waiting = False
    incarnation = 0

    def __init__(self, number: int, token: bytes) -> None:
        self.key = (NO_NODE, number)
        self.token = token
        self.is_closed = False  # and waits for its turn in `StateMachine.closing`
        self.releases = False  # its client has ended it: what it held is given back as by a release
        self.login: Login | None = None  # of the connection that speaks for it
        self.owner = ""  # the user who made it (`Access.identity`)
        self.epoch = 0  # of the connection that speaks for it: how many did so far
        self.attached_to: tuple[int, int] | None = None  # that connection: its node, its number within the gateway there
        self.until_ms = 0  # when it ends if no connection speaks for it, 0 if one does
        self.last_id = 0  # of the asks that were applied
        self.answers: OrderedDict[int, AskReply | list[tuple[int, int]]] = OrderedDict()  # by ask; of jobs only (id, token)
        self.late_answers: dict[int, list[tuple[int, int]]] = {}  # to reserves that had waited
        self.waits: dict[int, Wait] = {}  # by ask
        self.watching = 0  # tubes of all waits
        self.reserved: SortedPages[tuple[int, int]] = SortedPages()  # (token, job id), in order of reserving

    @property
    def id(self) -> tuple[int, int, int]:
        return (*self.key, self.incarnation)

    @property
    def number(self) -> int:
        return self.key[1]

    def holds(self, job: Job) -> bool:
        return (job.token, job.id) in self.reserved

    def add_reservation(self, job: Job, jobs: Mapping[int, Job]) -> None:
        self.reserved.add((job.token, job.id))

    def remove_reservation(self, job: Job) -> None:
        if self.holds(job):
            self.reserved.remove((job.token, job.id))

    def give_to_tokens(self) -> None:
        """What it holds belongs to the tokens."""
        self.reserved = SortedPages()

    def deadline_moved(self, job: Job, before_ms: int) -> None:
        """Nobody is warned of deadlines here: the client knows when to touch."""

    def confirm(self, answered: int, waiting: list[int]) -> None:
        """The client has the answers before `answered`, but for those in `waiting`."""
        answers = self.answers
        while answers and next(iter(answers)) < answered:
            id, kept = answers.popitem(last=False)
            if id in waiting and isinstance(kept, list):
                self.late_answers[id] = kept  # it did not have to wait, which the client does not know
        if self.late_answers:
            for id in [id for id in self.late_answers if id < answered and id not in waiting]:
                del self.late_answers[id]

    @property
    def unconfirmed(self) -> int:
        """Answers that are kept."""
        return len(self.answers) + len(self.late_answers)


class Wait:
    """Of a client's session: a reserve that waits for its job, or a subscription."""

    __slots__ = (
        "ask",
        "credit",
        "is_subscription",
        "is_suspended",
        "pushed",
        "session",
        "tubes",
        "unconfirmed",
        "unconfirmed_bytes",
        "until_ms",
    )

    def __init__(self, session: ClientSession, ask: int, tubes: list[Tube], credit: int, is_subscription: bool) -> None:
        self.session = session
        self.ask = ask
        self.tubes = tubes
        self.credit = credit
        self.is_subscription = is_subscription
        self.until_ms = 0  # of a reserve; 0: for ever
        self.is_suspended = False  # until the client says that it goes on, after its connection was lost
        # of a subscription
        self.pushed = 0  # jobs so far
        self.unconfirmed: deque[tuple[int, int, int]] = deque()  # the last of them, not known to have arrived: (job id, token, bytes)
        self.unconfirmed_bytes = 0

    @property
    def id(self) -> tuple[int, int, int]:
        """As in the timers."""
        return (*self.session.key, self.ask)

    @property
    def takes_jobs(self) -> bool:
        return not self.is_suspended and self.credit > 0 and self.unconfirmed_bytes < GIVEN_BYTES


class Gateway:
    """One row per node. A closed row stays, so that no late repeat of its commands takes effect again."""

    __slots__ = ("attached", "incarnation", "is_open", "node", "seq", "sessions", "waiting")

    def __init__(self, node: int, incarnation: int) -> None:
        self.node = node
        self.incarnation = incarnation
        self.is_open = True
        self.seq = 0
        self.waiting = 0  # of its sessions
        self.sessions: dict[int, Session] = {}
        self.attached: dict[int, ClientSession] = {}  # by the number of the connection that speaks for each

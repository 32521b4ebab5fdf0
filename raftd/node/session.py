"""One client connection of a gateway: effects and answers keep the order in which the client asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from enum import Enum, auto
from typing import Any, NamedTuple, Protocol

from raftd.jobs import asks
from raftd.jobs.budget import LINE_STEPS, READ_ITEM_STEPS, READ_STEPS, SCANNED_STEPS
from raftd.jobs.commands import Ask, CloseSession, Command, Detach, Leave, Put, PutMany, Reserve, Touch, Watch
from raftd.jobs.machine import StateMachine
from raftd.jobs.queries import Query
from raftd.jobs.replies import OutOfMemory, Reply, Watching
from raftd.jobs.rights import Login, Right
from raftd.limits import WATCHED_TUBES

#: Called with the reply (or what a read gave) and the log index it belongs to.
Done = Callable[[object, int], None]

_NO_JOB = 0  # no job has this id, so a command about it changes nothing
_COMMAND_BYTES = 64  # what a command costs besides its body
_HELD_BYTES = 16  # and each job that an ask names


def size_of(command: Command) -> int:
    if type(command) is Put:
        return _COMMAND_BYTES + len(command.body)
    if type(command) is PutMany:
        return _COMMAND_BYTES + sum(_COMMAND_BYTES + len(job.body) for job in command.jobs)
    if type(command) is Ask:
        if type(command.what) is asks.Put:
            return _COMMAND_BYTES + sum(_COMMAND_BYTES + len(job.body) for job in command.what.jobs)
        return _COMMAND_BYTES + _HELD_BYTES * (len(command.what.jobs) if isinstance(command.what, asks.OfMany) else 0)
    return _COMMAND_BYTES


def nothing_scanned(machine: StateMachine) -> int:
    return 0


class Read(NamedTuple):
    """A linearizable read that a session waits for. `scanned` tells how many items the query looks at besides those that it gives."""

    session: Session
    query: Query
    done: Done
    scanned: Callable[[StateMachine], int]

    def steps(self, machine: StateMachine, result: object) -> int:
        """What it has cost."""
        items = len(result) if isinstance(result, list) else 0
        return READ_STEPS + items * READ_ITEM_STEPS + self.scanned(machine) * SCANNED_STEPS


#: The last command of a connection.
LastWord = CloseSession | Leave | Detach


class SessionOwner(Protocol):
    """What a session needs of its gateway."""

    #: Bytes of all commands of all sessions that are not answered.
    held_bytes: int

    @property
    def sessions(self) -> Mapping[int, object]: ...

    def refuses(self, command: Command) -> bool: ...

    def has_time(self, session: Session, steps: int) -> bool: ...

    def enqueue(self, session: CommandQueue) -> None: ...

    def forget(self, session: CommandQueue, last_word: LastWord | None) -> None: ...

    def await_read_index(self, reads: Iterable[Read]) -> None: ...


class _Request(NamedTuple):
    """Something a client asked that could not start yet."""

    start: Callable[..., None]
    what: Any
    done: Done


def _nobody_is_told() -> None:
    pass


class State(Enum):
    """The life of a session."""

    NEW = auto()  # its client has sent no command
    USED = auto()  # a command waits for a batch
    REPLICATED = auto()  # a batch has a command of it, so the replicated state may have the session
    CLOSED = auto()


_NEXT = {
    State.NEW: (State.USED, State.CLOSED),
    State.USED: (State.REPLICATED, State.CLOSED),
    State.REPLICATED: (State.CLOSED,),
    State.CLOSED: (),
}


class CommandQueue(ABC):
    """Commands of one connection on their way into batches: what the gateway sees of it."""

    def __init__(self, gateway: SessionOwner, number: int, lost: Callable[[], None]) -> None:
        self.number = number
        #: Called when the outcome of what was asked is unknown: the connection must be closed.
        self.lost = lost
        #: Commands that wait for a batch.
        self.queued: deque[Command] = deque()
        self.state = State.NEW
        #: Who its client is, as far as he has shown it: the state decides what that is good for, each time.
        self.login: Login | None = None
        #: Tubes that it watches at most, as far as is known here.
        self.watched = 1
        self._gateway = gateway
        self._held_bytes = 0

    @property
    def held_bytes(self) -> int:
        """Of all its commands that are not answered."""
        return self._held_bytes

    @property
    @abstractmethod
    def last_word(self) -> LastWord:
        """What the log is told when the connection is gone."""

    @abstractmethod
    def answered(self, reply: Reply, index: int) -> None:
        """The state machine has said this to the connection."""

    @abstractmethod
    def resume(self) -> None:
        """Continue after `has_time` returned False: a new turn has begun."""

    @abstractmethod
    def misses_answers(self, later: int, waits_in_state: bool) -> bool:
        """After a snapshot has taken the place of the state: whether answers may have been missed. `later`: its commands in batches that
        the snapshot does not cover; `waits_in_state`: by a reserve."""

    def batched(self) -> None:
        """A batch has a command of it for the first time."""
        self._advance(State.REPLICATED)

    def abandon(self) -> None:
        """No answer can come, because the gateway was closed or a snapshot covers the commands: call `lost`."""
        if self.state is not State.CLOSED:
            lost = self.lost
            self._drop()
            lost()

    def _end(self, last_word: LastWord) -> None:
        if self.state is not State.CLOSED:
            is_replicated = self.state is State.REPLICATED
            self._drop()
            self._gateway.forget(self, last_word if is_replicated else None)

    def _drop(self) -> None:
        self._advance(State.CLOSED)
        self.lost = _nobody_is_told  # break the reference cycle with the owner, so that both are freed at once
        self.queued.clear()
        self._count_bytes(-self._held_bytes)

    def _advance(self, state: State) -> None:
        assert state in _NEXT[self.state], f"a session that is {self.state} cannot become {state}"
        self.state = state

    def _count_bytes(self, size: int) -> None:
        self._held_bytes += size
        self._gateway.held_bytes += size


class Session(CommandQueue):
    """One client connection. Effects and answers keep the order of its requests.

    A read starts when all earlier commands have applied here, no later command leaves until it is
    answered, and nothing passes a reserve that can wait.

              submit         batched                close, leave, abandon
        NEW ──────────▶ USED ──────────▶ REPLICATED     (from each state)     ──────────▶ CLOSED

    Beside that, requests wait while the session is blocked (by a read, or a reserve that can wait) or paused (its client does not
    read); after `stop_waiting` no reserve waits.
    """

    def __init__(self, gateway: SessionOwner, number: int, lost: Callable[[], None]) -> None:
        super().__init__(gateway, number, lost)
        self._unanswered: deque[tuple[Done, int]] = deque()  # commands in the gateway or the log, with their sizes
        self._requests: deque[_Request] = deque()  # asked, but not begun
        self._blocked = False  # by a read, or a reserve that can wait
        self._waits_for_nothing = False
        self._paused = False

    def submit(self, command: Command, done: Done) -> None:
        """Put a command into the log; `done` gets its reply. Nothing happens if the session is closed."""
        if self.state is State.CLOSED:
            return
        if self._gateway.refuses(command):
            self.local(OutOfMemory, done)
            return
        if self.state is State.NEW:
            self._advance(State.USED)
        self._count_bytes(size_of(command))
        if self._requests or self._blocked or self._paused:
            self._requests.append(_Request(Session._start_command, command, done))
        else:
            self._start_command(command, done)

    def read(self, query: Query, done: Done, scanned: Callable[[StateMachine], int] = nothing_scanned) -> None:
        """Run a linearizable query; `done` gets its result. `scanned`: how many items it looks at besides those that it gives."""
        self._queue_request(_Request(Session._start_read, (query, scanned), done))

    def local(self, answer: Callable[[], object], done: Done, steps: int = LINE_STEPS) -> None:
        """Call `answer` when its turn has come, without the cluster; `done` gets what it returns. `steps`: what that costs."""
        self._queue_request(_Request(Session._start_local, (answer, steps), done))

    def sees(self, machine: StateMachine, tube: str) -> bool:
        """Whether its client may look at the tube of this name and its jobs."""
        return machine.access.allows(self.login, Right.READ, tube, machine.now_ms)

    def seen(self, machine: StateMachine, tubes: Iterable[str]) -> Iterable[str]:
        """Those of the names of `tubes` that its client may look at."""
        return machine.access.seen(self.login, tubes, machine.now_ms)

    def introduce(self) -> None:
        """Make the cluster know this session before its first read, by a command without effect."""
        if self.state is State.NEW:
            self.submit(Touch(self.number, _NO_JOB), lambda reply, index: None)

    def stop_waiting(self) -> None:
        """The client has closed its sending side: no reserve waits from now on, and a waiting one times out."""
        if self._waits_for_nothing or self.state is State.CLOSED:
            return
        self._waits_for_nothing = True
        if self._blocked and self._unanswered:
            # Any command ends the wait; the answer to this one is dropped.
            self._count_bytes(_COMMAND_BYTES)
            self._queue_for_batch(Touch(self.number, _NO_JOB), lambda reply, index: None)

    def close(self) -> None:
        """The connection is gone: commands that are in no batch yet are dropped, and its jobs become ready again."""
        self._end(self.last_word)

    def leave(self) -> None:
        """End the session but keep its reservations: a call with the token keeps the job until its time to run ends."""
        self._end(Leave(self.number))

    def _drop(self) -> None:
        super()._drop()
        self._requests.clear()
        self._unanswered.clear()

    def _queue_request(self, request: _Request) -> None:
        if self.state is not State.CLOSED:
            self._requests.append(request)
            self._start_requests()

    @property
    def unanswered(self) -> int:
        """Commands that wait for their reply, in the gateway or in the log."""
        return len(self._unanswered)

    @property
    def last_word(self) -> CloseSession:
        """Its reservations are given back."""
        return CloseSession(self.number)

    def misses_answers(self, later: int, waits_in_state: bool) -> bool:
        """All, but for a reserve that still waits."""
        missed = len(self._unanswered) - len(self.queued) - later
        return missed > 1 or (missed == 1 and not waits_in_state)

    def pause(self, is_paused: bool) -> None:
        """Stop or resume starting requests: stopped while the client does not read its answers."""
        self._paused = is_paused
        self._start_requests()

    def resume(self) -> None:
        self._start_requests()

    def _start_requests(self) -> None:
        while self._requests and not self._blocked and not self._paused:
            start, what, done = self._requests[0]
            if self._unanswered and start is not Session._start_command:
                return  # earlier answers come first; they call this again
            if start is Session._start_local and not self._gateway.has_time(self, what[1]):
                return
            self._requests.popleft()
            start(self, what, done)

    def _start_command(self, command: Command, done: Done) -> None:
        if type(command) is Reserve and command.timeout_ms != 0:
            if self._waits_for_nothing:
                command = Reserve(self.number, 0)
            else:
                self._blocked = True
        self._queue_for_batch(command, done)

    def _queue_for_batch(self, command: Command, done: Done) -> None:
        """Queue the command for the next batch, ahead of requests that have not started."""
        self._unanswered.append((done, size_of(command)))
        self.queued.append(command)
        if type(command) is Watch:
            self.watched = min(self.watched + 1, WATCHED_TUBES)
        self._gateway.enqueue(self)

    def _start_read(self, what: tuple[Query, Callable[[StateMachine], int]], done: Done) -> None:
        self._blocked = True
        query, scanned = what
        self._gateway.await_read_index([Read(self, query, done, scanned)])

    def _start_local(self, what: tuple[Callable[[], object], int], done: Done) -> None:
        done(what[0](), 0)

    def answered(self, reply: Reply, index: int) -> None:
        """It is the reply to the oldest unanswered command."""
        done, size = self._unanswered.popleft()
        self._count_bytes(-size)
        self._blocked = self._blocked and bool(self._unanswered)
        if type(reply) is Watching and not self._unanswered:
            self.watched = reply.count
        done(reply, index)
        self._start_requests()

    def read_answered(self, read: Read, result: object, index: int) -> None:
        if self.state is State.CLOSED or self.number not in self._gateway.sessions:
            return  # it is closed, or its gateway is
        self._blocked = False
        read.done(result, index)
        self._start_requests()

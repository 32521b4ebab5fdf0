"""The gateway: carries this node's clients' commands to the log exactly once, and their answers back.

Commands gather and leave in numbered batches, a few in flight. A batch once numbered never changes; it is
kept until it is seen applied here, and sent again, with all behind it, whenever it may have been lost: a
new leader or term, a new connection to it, a refusal, a gap in the own apply, no progress for a while. The
state machine skips repeats. Answers come from the own apply, never from the leader.

Pure: it is told the time, and gives what is to be sent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from raftd.jobs.commands import Batch, CloseSession, Command, Forward, ForwardRefused, OpenGateway, Put, Reserve, encode_payload
from raftd.jobs.machine import StateMachine
from raftd.jobs.queries import Query
from raftd.jobs.replies import OutOfMemory, Reply
from raftd.limits import BATCH_BYTES, BATCH_COMMANDS, GATEWAY_BYTES, GATEWAY_IN_FLIGHT

#: Called with the reply (or what a read gave) and the log index it belongs to.
Done = Callable[[object, int], None]

_COMMAND_BYTES = 64  # what a command costs besides its body
_RETRY_MS = 20  # after a refusal
_LONGEST_RETRY_MS = 4_000


def _size(command: Command) -> int:
    return _COMMAND_BYTES + (len(command.body) if type(command) is Put else 0)


class Read(NamedTuple):
    """A linearizable read that a session waits for."""

    session: Session
    query: Query
    done: Done


class _Step(NamedTuple):
    """Something a client asked that could not start yet."""

    start: Callable[..., None]
    what: object
    done: Done


class Session:
    """One client connection. Effects and answers keep the order in which it asked.

    A read starts when all earlier commands have applied here, no later command leaves until it is
    answered, and nothing passes a reserve that can wait.
    """

    def __init__(self, gateway: Gateway, number: int, lost: Callable[[], None]) -> None:
        self.number = number
        #: Called when the outcome of what was asked is unknown: the connection must be closed.
        self.lost = lost
        self._gateway = gateway
        self._unanswered: deque[Done] = deque()  # commands in the gateway or the log
        self._steps: deque[_Step] = deque()
        self._blocked = False  # by a read, or a reserve that can wait
        self._used = False  # a command was given to the gateway
        self._closed = False

    def submit(self, command: Command, done: Done) -> None:
        """Put a command into the log; `done` gets its reply."""
        self._ask(_Step(Session._start_command, command, done))

    def read(self, query: Query, done: Done) -> None:
        """Run a linearizable query; `done` gets its result."""
        self._ask(_Step(Session._start_read, query, done))

    def local(self, answer: Callable[[], object], done: Done) -> None:
        """Call `answer` when its turn has come, without the cluster; `done` gets what it returns."""
        self._ask(_Step(Session._start_local, answer, done))

    def close(self) -> None:
        """The connection is gone: what has not left is dropped, what it holds will be given back."""
        if self._closed:
            return
        self._closed = True
        self._steps.clear()
        self._unanswered.clear()
        self._gateway.forget(self, self._used)

    def abandon(self) -> None:
        """The gateway was closed under it: no answer will come. The owner of the connection is told."""
        self._closed = True
        self._steps.clear()
        self._unanswered.clear()
        self.lost()

    def _ask(self, step: _Step) -> None:
        if not self._closed:
            self._steps.append(step)
            self._go_on()

    def _go_on(self) -> None:
        while self._steps and not self._blocked:
            start, what, done = self._steps[0]
            if self._unanswered and start is not Session._start_command:
                return  # the answers to what came before go first, and go on here
            self._steps.popleft()
            start(self, what, done)

    def _start_command(self, command: Command, done: Done) -> None:
        if type(command) is Put and self._gateway.is_full:
            self._steps.appendleft(_Step(Session._start_local, OutOfMemory, done))
            return
        self._blocked = type(command) is Reserve and command.timeout_ms != 0
        self._used = True
        self._unanswered.append(done)
        self._gateway.enqueue(command)

    def _start_read(self, query: Query, done: Done) -> None:
        self._blocked = True
        self._gateway.reads.append(Read(self, query, done))

    def _start_local(self, answer: Callable[[], object], done: Done) -> None:
        done(answer(), 0)

    def answered(self, reply: Reply, index: int) -> None:
        """The oldest unanswered command has its reply."""
        done = self._unanswered.popleft()
        self._blocked = self._blocked and bool(self._unanswered)
        done(reply, index)
        self._go_on()

    def read_answered(self, read: Read, result: object, index: int) -> None:
        if self._closed:
            return
        self._blocked = False
        read.done(result, index)
        self._go_on()


class _Unapplied(NamedTuple):
    seq: int  # 0 is the OpenGateway
    payload: bytes
    size: int


class Gateway:
    """One incarnation of a node as the carrier of its clients' commands, and then the next."""

    def __init__(self, node: int, incarnation: int, timeout_ms: int) -> None:
        """`timeout_ms`: how long to wait for progress before sending anew, at first."""
        self.node = node
        self.incarnation = incarnation
        #: Reads that wait for a read index.
        self.reads: list[Read] = []
        self.sessions: dict[int, Session] = {}
        self._timeout_ms = timeout_ms
        self._next_session = 1
        self.is_closed = False
        self._reset()
        self._open()

    def _reset(self) -> None:
        self._queue: deque[Command] = deque()
        self._queued_bytes = 0
        self._unapplied_bytes = 0
        self._unapplied: deque[_Unapplied] = deque()
        self._seq = 0
        self._attempt = 1
        self._sent = 0  # how many of the unapplied have left in this attempt
        self._retry_at_ms: int | None = None
        self._waited_since_ms: int | None = None
        self._patience_ms = self._timeout_ms

    def _open(self) -> None:
        self._number(0, encode_payload(OpenGateway(self.node, self.incarnation)), _COMMAND_BYTES)

    @property
    def is_full(self) -> bool:
        """Whether a put must be refused, certainly not applied."""
        return self._queued_bytes + self._unapplied_bytes >= GATEWAY_BYTES

    @property
    def has_work(self) -> bool:
        """Whether something here waits to be applied."""
        return bool(self._queue or self._unapplied)

    # -- clients ------------------------------------------------------------------------------

    def open_session(self, lost: Callable[[], None]) -> Session:
        session = Session(self, self._next_session, lost)
        self._next_session += 1
        self.sessions[session.number] = session
        return session

    def enqueue(self, command: Command) -> None:
        self._queue.append(command)
        self._queued_bytes += _size(command)

    def forget(self, session: Session, used: bool) -> None:
        """The session is gone. Its CloseSession is never dropped: it undoes whatever else still comes."""
        self.sessions.pop(session.number, None)
        self.reads = [read for read in self.reads if read.session is not session]
        if used:
            self.enqueue(CloseSession(session.number))

    # -- to the leader ------------------------------------------------------------------------

    def collect(self, now_ms: int) -> list[Forward]:
        """What is to be sent to the leader now. The caller has one; what it cannot send is lost, and comes again."""
        if self.is_closed:
            return []
        if self._retry_at_ms is not None:
            if now_ms < self._retry_at_ms:
                return []
            self.resend()
        if self._waited_since_ms is not None and now_ms - self._waited_since_ms >= self._patience_ms:
            self._patience_ms = min(2 * self._patience_ms, _LONGEST_RETRY_MS)
            self._waited_since_ms = now_ms
            self.resend()
        while self._queue and len(self._unapplied) < GATEWAY_IN_FLIGHT:
            self._make_batch()
        forwards = [
            Forward(self.incarnation, self._attempt, batch.seq, batch.payload)
            for place, batch in enumerate(self._unapplied)
            if place >= self._sent
        ]
        self._sent = len(self._unapplied)
        if self._unapplied and self._waited_since_ms is None:
            self._waited_since_ms = now_ms
        return forwards

    def _make_batch(self) -> None:
        commands: list[Command] = []
        size = 0
        while self._queue and len(commands) < BATCH_COMMANDS:
            more = _size(self._queue[0])
            if commands and size + more > BATCH_BYTES:
                break
            size += more
            commands.append(self._queue.popleft())
        self._queued_bytes -= size
        self._seq += 1
        self._number(self._seq, encode_payload(Batch(self.node, self.incarnation, self._seq, commands)), size)

    def _number(self, seq: int, payload: bytes, size: int) -> None:
        self._unapplied.append(_Unapplied(seq, payload, size))
        self._unapplied_bytes += size

    def resend(self) -> None:
        """Everything unapplied goes out anew, in order."""
        self._retry_at_ms = None
        self._attempt += 1
        self._sent = 0

    def refused(self, refusal: ForwardRefused, now_ms: int) -> None:
        """The leader did not propose it, nor anything behind it."""
        if (refusal.incarnation, refusal.attempt) == (self.incarnation, self._attempt) and self._retry_at_ms is None:
            self._retry_at_ms = now_ms + _RETRY_MS

    # -- from the own apply -------------------------------------------------------------------

    def applied(self, machine: StateMachine, now_ms: int) -> None:
        """Entries were applied here: see how far this gateway has got, and whether it is still open. One that
        was closed says so in `is_closed`, until `reopen`."""
        row = machine.gateways.get(self.node)
        if row is None or row.incarnation < self.incarnation:
            return
        if row.incarnation > self.incarnation or not row.is_open:
            if not self.is_closed:
                self.is_closed = True
                self._abandon()
            return
        while self._unapplied and self._unapplied[0].seq <= row.seq:
            self._unapplied_bytes -= self._unapplied.popleft().size
            self._sent = max(0, self._sent - 1)
            self._waited_since_ms = now_ms if self._unapplied else None
            self._patience_ms = self._timeout_ms

    def _abandon(self) -> None:
        """The cluster closed this gateway. What its clients asked may or may not have happened: they are told."""
        sessions = list(self.sessions.values())
        self.sessions = {}
        self.reads = []
        self._reset()
        for session in sessions:
            session.abandon()

    def reopen(self, incarnation: int) -> None:
        """Begin again as `incarnation`, which is durable. Sessions opened since the close go on in it."""
        self.incarnation = incarnation
        self.is_closed = False
        self._open()

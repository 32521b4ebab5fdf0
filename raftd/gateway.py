"""The gateway: carries this node's clients' commands to the log exactly once, and their answers back.

Commands gather and leave in numbered batches, a few in flight. A batch once numbered never changes; it is
kept until it is seen applied here, and sent again, with all behind it, whenever it may have been lost: a
new leader or term, a new connection to it, a refusal, a gap in the own apply, no progress for a while. The
state machine skips repeats. Answers come from the own apply, never from the leader.

Pure: it is told the time, and gives what is to be sent.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from raftd.histogram import COUNTS, LATENCIES, Histogram
from raftd.jobs.budget import ABANDONED_STEPS, COSTS, LINE_STEPS, PLAIN, READ_ITEM_STEPS, READ_STEPS, SCANNED_STEPS, Share, steps_of
from raftd.jobs.commands import (
    Batch,
    CloseSession,
    Command,
    Forward,
    ForwardRefused,
    Leave,
    OpenGateway,
    Put,
    PutMany,
    Reserve,
    Touch,
    Watch,
    decode_payload,
    encode_payload,
)
from raftd.jobs.machine import StateMachine
from raftd.jobs.queries import Query
from raftd.jobs.replies import OutOfMemory, Reply, Watching
from raftd.limits import BATCH_BYTES, GATEWAY_BYTES, GATEWAY_IN_FLIGHT, WATCHED_TUBES

#: Called with the reply (or what a read gave) and the log index it belongs to.
Done = Callable[[object, int], None]

_NO_JOB = 0  # ids begin at 1: a command about it changes nothing
_COMMAND_BYTES = 64  # what a command costs besides its body
#: Steps that the commands of one batch ask for.
BATCH_STEPS = COSTS.commands
_RETRY_MS = 20  # after a refusal
_LONGEST_RETRY_MS = 4_000


def _size(command: Command) -> int:
    if type(command) is Put:
        return _COMMAND_BYTES + len(command.body)
    if type(command) is PutMany:
        return _COMMAND_BYTES + sum(_COMMAND_BYTES + len(job.body) for job in command.jobs)
    return _COMMAND_BYTES


def looks_at_nothing_else(machine: StateMachine) -> int:
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


class _Step(NamedTuple):
    """Something a client asked that could not start yet."""

    start: Callable[..., None]
    what: Any
    done: Done


def _nobody_is_told() -> None:
    pass


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
        self._unanswered: deque[tuple[Done, int]] = deque()  # commands in the gateway or the log, with their sizes
        self._steps: deque[_Step] = deque()  # asked, but not begun
        self._blocked = False  # by a read, or a reserve that can wait
        self._held_bytes = 0  # of all commands that are not answered
        #: Commands that wait for a batch; and whether any ever got into one.
        self.queued: deque[Command] = deque()
        self.is_known = False
        #: Tubes that it watches at most, as far as is known here.
        self.watched = 1
        self._hurried = False
        self._held = False
        self._began = False  # a command was asked for
        self._closed = False

    def submit(self, command: Command, done: Done) -> None:
        """Put a command into the log; `done` gets its reply."""
        if self._gateway.refuses(command):
            self.local(OutOfMemory, done)
            return
        self._began = True
        self._hold(_size(command))
        self._ask(_Step(Session._start_command, command, done))

    def read(self, query: Query, done: Done, scanned: Callable[[StateMachine], int] = looks_at_nothing_else) -> None:
        """Run a linearizable query; `done` gets its result. `scanned`: how many items it looks at besides those that it gives."""
        self._ask(_Step(Session._start_read, (query, scanned), done))

    def local(self, answer: Callable[[], object], done: Done, steps: int = LINE_STEPS) -> None:
        """Call `answer` when its turn has come, without the cluster; `done` gets what it returns. `steps`: what that costs."""
        self._ask(_Step(Session._start_local, (answer, steps), done))

    def introduce(self) -> None:
        """Let the session be in the state before its first read, as a connection that has said something is."""
        if not self._began:
            self.submit(Touch(self.number, _NO_JOB), lambda reply, index: None)

    def hurry(self) -> None:
        """The client will say no more: from now on no reserve waits, and one that does now times out."""
        if self._hurried or self._closed:
            return
        self._hurried = True
        if self._blocked and self._unanswered:
            # Any command ends the wait; nobody hears the answer to this one.
            self._hold(_COMMAND_BYTES)
            self._send(Touch(self.number, _NO_JOB), lambda reply, index: None)

    def close(self) -> None:
        """The connection is gone: what has not left is dropped, what it holds will be given back."""
        if not self._closed:
            self._drop()
            self._gateway.forget(self)

    def leave(self) -> None:
        """The connection is done with, and what it holds is its client's as long as the client has time: the tokens tell who that is."""
        if not self._closed:
            self._drop()
            self._gateway.forget(self, Leave(self.number))

    def abandon(self) -> None:
        """The gateway was closed under it: no answer will come. The owner of the connection is told."""
        if not self._closed:
            lost = self.lost
            self._drop()
            lost()

    def _drop(self) -> None:
        self._closed = True
        self.lost = _nobody_is_told  # its owner refers to this session: without a cycle both go at once
        self._steps.clear()
        self._unanswered.clear()
        self.queued.clear()
        self._hold(-self._held_bytes)

    def _hold(self, size: int) -> None:
        self._held_bytes += size
        self._gateway.held_bytes += size

    def _ask(self, step: _Step) -> None:
        if not self._closed:
            self._steps.append(step)
            self._go_on()

    @property
    def unanswered(self) -> int:
        """Commands that wait for their reply, in the gateway or in the log."""
        return len(self._unanswered)

    def hold(self, held: bool) -> None:
        """While its client does not read, nothing more is begun."""
        self._held = held
        self._go_on()

    def go_on(self) -> None:
        """There is time again."""
        self._go_on()

    def _go_on(self) -> None:
        while self._steps and not self._blocked and not self._held:
            start, what, done = self._steps[0]
            if self._unanswered and start is not Session._start_command:
                return  # the answers to what came before go first, and go on here
            if start is Session._start_local and not self._gateway.has_time(self, what[1]):
                return
            self._steps.popleft()
            start(self, what, done)

    def _start_command(self, command: Command, done: Done) -> None:
        if type(command) is Reserve and command.timeout_ms != 0:
            if self._hurried:
                command = Reserve(self.number, 0)
            else:
                self._blocked = True
        self._send(command, done)

    def _send(self, command: Command, done: Done) -> None:
        """Into the next batch, past whatever waits."""
        self._unanswered.append((done, _size(command)))
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
        """The oldest unanswered command has its reply."""
        done, size = self._unanswered.popleft()
        self._hold(-size)
        self._blocked = self._blocked and bool(self._unanswered)
        if type(reply) is Watching and not self._unanswered:
            self.watched = reply.count
        done(reply, index)
        self._go_on()

    def read_answered(self, read: Read, result: object, index: int) -> None:
        if self._closed or self.number not in self._gateway.sessions:
            return  # nobody hears, or the client will be told that its gateway was closed
        self._blocked = False
        read.done(result, index)
        self._go_on()


class _Unapplied(NamedTuple):
    seq: int  # 0 is the OpenGateway
    payload: bytes
    made_ms: int | None = None


class Gateway:
    """One incarnation of a node as the carrier of its clients' commands, and then the next."""

    def __init__(self, node: int, incarnation: int, timeout_ms: int, answers: Share) -> None:
        """`timeout_ms`: how long to wait for progress before sending anew, at first. `answers`: what local answers may cost in a turn."""
        self.node = node
        self.incarnation = incarnation
        #: Reads that wait for a read index: one of a session.
        self.reads: dict[Session, Read] = {}
        self.sessions: dict[int, Session] = {}
        #: Of all commands of all sessions that are not answered.
        self.held_bytes = 0
        #: Nothing may be put: the state machine would refuse it too, but only once it stood in the log.
        self.room_is_scarce = False
        #: How long batches take until they are applied here (seconds), and how many commands they have.
        self.commit_s = Histogram(LATENCIES)
        self.batch_commands = Histogram(COUNTS)
        self._abandoned: deque[Session] = deque()  # their outcome is unknown, and they are not told yet
        self._tired: OrderedDict[Session, None] = OrderedDict()
        self._share = answers
        self._timeout_ms = timeout_ms
        self._next_session = 1
        self.is_closed = False
        self._reset()
        self._open()

    def _reset(self) -> None:
        self._waiting: OrderedDict[Session, None] = OrderedDict()  # those with queued commands
        self._closes: deque[CloseSession | Leave] = deque()  # those that wait for a batch
        self._unapplied: deque[_Unapplied] = deque()
        self._seq = 0
        self._attempt = 1
        self._sent = 0  # how many of the unapplied have left in this attempt
        self._retry_at_ms: int | None = None
        self._waited_since_ms: int | None = None
        self._patience_ms = self._timeout_ms

    def _open(self) -> None:
        self._unapplied.append(_Unapplied(0, encode_payload(OpenGateway(self.node, self.incarnation))))

    def begin_turn(self) -> bool:
        """Sessions whose local answers were too many for the last turn go on, and more are told that their gateway is closed; whether
        some are left again."""
        while self._abandoned and self._share.left > 0:
            self._share.spend(ABANDONED_STEPS)
            self._abandoned.popleft().abandon()
        for _ in range(len(self._tired)):
            if self._share.left <= 0 or not self._tired:
                break
            session, _ = self._tired.popitem(last=False)
            session.go_on()
        return bool(self._tired or self._abandoned)

    def has_time(self, session: Session, steps: int) -> bool:
        """Whether this turn has time for one more local answer, of `steps`; if not, `session` goes on in the next."""
        if self._share.left <= 0:
            self._tired[session] = None
            return False
        self._share.spend(steps)
        return True

    def refuses(self, command: Command) -> bool:
        """Whether it is a put that must be refused, certainly not applied. One with a key may have been applied before: the state machine
        knows."""
        if type(command) is not Put and type(command) is not PutMany:
            return False
        has_key = type(command) is PutMany and bool(command.key)
        return self.held_bytes >= GATEWAY_BYTES or (self.room_is_scarce and not has_key)

    # -- clients ------------------------------------------------------------------------------

    def open_session(self, lost: Callable[[], None]) -> Session:
        session = Session(self, self._next_session, lost)
        self._next_session += 1
        self.sessions[session.number] = session
        return session

    def enqueue(self, session: Session) -> None:
        """The session has a command for a batch."""
        if session.number in self.sessions:  # else it will be told that its gateway was closed
            self._waiting[session] = None

    def forget(self, session: Session, last_word: Leave | None = None) -> None:
        """The session is gone. If any batch ever named it, its CloseSession (or `last_word`) is never dropped: it undoes
        whatever else still comes."""
        self.sessions.pop(session.number, None)
        self._waiting.pop(session, None)
        self._tired.pop(session, None)
        self.reads.pop(session, None)
        if session.is_known:
            self._closes.append(last_word or CloseSession(session.number))

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
        while (self._waiting or self._closes) and len(self._unapplied) < GATEWAY_IN_FLIGHT:
            self._make_batch(now_ms)
        forwards = [
            Forward(self.incarnation, self._attempt, batch.seq, batch.payload)
            for place, batch in enumerate(self._unapplied)
            if place >= self._sent
        ]
        self._sent = len(self._unapplied)
        if self._unapplied and self._waited_since_ms is None:
            self._waited_since_ms = now_ms
        return forwards

    def _make_batch(self, now_ms: int) -> None:
        """Sessions take turns; each gives all it has, in order, as far as the batch has room."""
        commands: list[Command] = []
        size = steps = 0
        while self._closes and steps < BATCH_STEPS:
            commands.append(self._closes.popleft())
            steps += COSTS.command
        last: Session | None = None
        while self._waiting:
            session = next(iter(self._waiting))
            command = session.queued[0]
            more = _size(command)
            steps += COSTS.command if type(command) in PLAIN else steps_of(command, session.watched)
            if commands and (size + more > BATCH_BYTES or steps > BATCH_STEPS):
                if session is last:
                    self._waiting.move_to_end(session)  # it has had its share; who has had nothing yet begins the next batch
                break
            size += more
            session.is_known = True
            commands.append(command)
            session.queued.popleft()
            last = session
            if not session.queued:
                del self._waiting[session]
        self._seq += 1
        self.batch_commands.observe(len(commands))
        payload = encode_payload(Batch(self.node, self.incarnation, self._seq, commands))
        self._unapplied.append(_Unapplied(self._seq, payload, now_ms))

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
            made_ms = self._unapplied.popleft().made_ms
            if made_ms is not None:
                self.commit_s.observe((now_ms - made_ms) / 1000)
            self._sent = max(0, self._sent - 1)
            self._waited_since_ms = now_ms if self._unapplied else None
            self._patience_ms = self._timeout_ms

    def installed(self, machine: StateMachine, now_ms: int) -> None:
        """A snapshot has taken the place of the state: what it covers was applied elsewhere, and its answers were never seen here.
        Who waits for one is told that the outcome is unknown; only a reserve that still waits in the state goes on waiting.
        """
        self.applied(machine, now_ms)
        row = machine.gateways.get(self.node)
        if self.is_closed or row is None or row.incarnation != self.incarnation:
            return  # nothing of this incarnation is in it
        later: Counter[int] = Counter()
        for batch in self._unapplied:
            payload = decode_payload(batch.payload)
            assert isinstance(payload, Batch)
            later.update(command.session for command in payload.commands)
        for session in list(self.sessions.values()):
            missed = session.unanswered - len(session.queued) - later[session.number]
            in_state = row.sessions.get(session.number)
            if missed > 1 or (missed == 1 and not (in_state is not None and in_state.waiting)):
                self.forget(session)
                self._abandoned.append(session)
        self.resend()

    def await_read_index(self, reads: Iterable[Read]) -> None:
        """These wait for a read index, unless their session is gone."""
        self.reads.update((read.session, read) for read in reads if read.session.number in self.sessions)

    def _abandon(self) -> None:
        """The cluster closed this gateway. What its clients asked may or may not have happened: they are told."""
        self._abandoned.extend(self.sessions.values())
        self.sessions = {}
        self.reads = {}
        self._reset()

    def reopen(self, incarnation: int) -> None:
        """Begin again as `incarnation`, which is durable. Sessions opened since the close go on in it."""
        self.incarnation = incarnation
        self.is_closed = False
        self._open()

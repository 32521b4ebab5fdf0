"""The gateway: carries this node's clients' commands to the log exactly once, and their answers back.

Commands gather and leave in numbered batches, a few in flight. A batch once numbered never changes; it is
kept until it is seen applied here, and sent again, with all behind it, whenever it may have been lost: a
new leader or term, a new connection to it, a refusal, a gap in the own apply, no progress for a while. The
state machine skips repeats. Answers come from the own apply, never from the leader.

Pure: the caller passes the time, and sends what `collect` returns.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from raftd.histogram import COUNTS, LATENCIES, Histogram
from raftd.jobs import asks
from raftd.jobs.budget import ABANDONED_STEPS, PLAIN, Costs, Share
from raftd.jobs.commands import (
    Ask,
    Batch,
    Command,
    Forward,
    ForwardRefused,
    OpenGateway,
    Put,
    PutMany,
    decode_payload,
    encode_payload,
)
from raftd.jobs.machine import StateMachine
from raftd.limits import Limits
from raftd.node.client_session import ClientSession, Said
from raftd.node.session import CommandQueue, LastWord, Read, Session, State, size_of

#: Delay before a resend after a refusal, in ms; doubled by each further refusal without progress, because every resend costs space in the
#: log.
_RETRY_MS = 20
_LONGEST_RETRY_MS = 500
#: The longest wait without progress before everything is sent again; the first such wait is `timeout_ms`.
_LONGEST_RESEND_MS = 4_000


class _Unapplied(NamedTuple):
    seq: int  # 0 is the OpenGateway
    payload: bytes
    made_ms: int | None = None


class Gateway:
    """Carries the commands of this node's clients. `reopen` gives it the next incarnation."""

    def __init__(self, node: int, incarnation: int, timeout_ms: int, answers: Share, costs: Costs, limits: Limits) -> None:
        """`timeout_ms`: how long to wait for progress before sending anew, at first. `answers`: what local answers may cost in a turn.
        `costs`: what commands cost in an entry."""
        self.node = node
        self._costs = costs
        self._limits = limits
        self._batch_steps = costs.commands
        self.incarnation = incarnation
        #: Reads that wait for a read index: one of a session.
        self.reads: dict[Session, Read] = {}
        self.sessions: dict[int, CommandQueue] = {}
        #: Of all commands of all sessions that are not answered.
        self.held_bytes = 0
        #: Puts are refused here; the state machine would refuse them too, after a useless log entry.
        self.space_is_scarce = False
        #: How long batches take until they are applied here (seconds), and how many commands they have.
        self.commit_s = Histogram(LATENCIES)
        self.batch_commands = Histogram(COUNTS)
        self._abandoned: deque[CommandQueue] = deque()  # sessions with an unknown outcome; `abandon` has still to be called
        self._deferred: OrderedDict[Session, None] = OrderedDict()
        self._share = answers
        self._timeout_ms = timeout_ms
        self._next_session = 1
        self.is_closed = False
        self._reset()
        self._open()

    def _reset(self) -> None:
        self._waiting: OrderedDict[CommandQueue, None] = OrderedDict()  # those with queued commands
        self._closes: deque[LastWord] = deque()  # those that wait for a batch
        self._unapplied: deque[_Unapplied] = deque()
        self._seq = 0
        self._attempt = 1
        self._sent = 0  # how many of the unapplied have left in this attempt
        self._retry_at_ms: int | None = None
        self._retry_ms = _RETRY_MS
        self._no_progress_since_ms: int | None = None
        self._resend_after_ms = self._timeout_ms

    def _open(self) -> None:
        self._unapplied.append(_Unapplied(0, encode_payload(OpenGateway(self.node, self.incarnation))))

    @property
    def pending(self) -> dict[str, int]:
        """Counts of unfinished work by name; all are 0 when no client waits."""
        return {
            "batches": len(self._unapplied),
            "sessions with commands": len(self._waiting),
            "closes": len(self._closes),
            "reads": len(self.reads),
            "bytes of sessions": self.held_bytes - sum(session.held_bytes for session in self.sessions.values()),
        }

    @property
    def has_deferred(self) -> bool:
        """Whether sessions wait for a turn with time for them."""
        return bool(self._deferred or self._abandoned)

    @property
    def is_refused(self) -> bool:
        """Whether batches wait until they may be sent again."""
        return self._retry_at_ms is not None

    def begin_turn(self) -> None:
        """Continue sessions whose local answers did not fit the last turn, and notify more sessions of a closed gateway."""
        while self._abandoned and self._share.left > 0:
            self._share.spend(ABANDONED_STEPS)
            self._abandoned.popleft().abandon()
        for _ in range(len(self._deferred)):
            if self._share.left <= 0 or not self._deferred:
                break
            session, _ = self._deferred.popitem(last=False)
            session.resume()

    def has_time(self, session: Session, steps: int) -> bool:
        """Whether this turn has time for one more local answer, of `steps`; if not, `session` continues in the next."""
        if self._share.left <= 0:
            self._deferred[session] = None
            return False
        self._share.spend(steps)
        return True

    def refuses(self, command: Command) -> bool:
        """Return whether `command` is a put to refuse here. With scarce disk space a put with a key is not refused: it may have been
        applied already, which only the state machine knows."""
        put = command.what if type(command) is Ask else command
        if not isinstance(put, Put | PutMany | asks.Put):
            return False
        has_key = not isinstance(put, Put) and bool(put.key)
        return self.held_bytes >= self._limits.gateway_bytes or (self.space_is_scarce and not has_key)

    # -- clients ------------------------------------------------------------------------------

    def open_session(self, lost: Callable[[], None]) -> Session:
        session = Session(self, self._next_session, lost)
        self._next_session += 1
        self.sessions[session.number] = session
        return session

    def open_client_session(self, lost: Callable[[], None], said: Said) -> ClientSession:
        """For a connection that will speak for a client's session. `said` is called with each answer."""
        session = ClientSession(self, self._next_session, lost, said)
        self._next_session += 1
        self.sessions[session.number] = session
        return session

    def enqueue(self, session: CommandQueue) -> None:
        """The session has a command for a batch."""
        if session.number in self.sessions:  # otherwise its gateway was closed and `abandon` will be called
            self._waiting[session] = None

    def forget(self, session: CommandQueue, last_word: LastWord | None) -> None:
        """The session is gone. `last_word`, if a batch ever had a command of it, is never dropped: it undoes all that still comes."""
        self.sessions.pop(session.number, None)
        self._waiting.pop(session, None)
        if isinstance(session, Session):
            self._deferred.pop(session, None)
            self.reads.pop(session, None)
        if last_word is not None:
            self._closes.append(last_word)

    # -- to the leader ------------------------------------------------------------------------

    def has_work(self, now_ms: int) -> bool:
        """Whether `collect` would give batches now."""
        if self.is_closed:
            return False
        if self._retry_at_ms is not None:
            return now_ms >= self._retry_at_ms
        if self._sent < len(self._unapplied):
            return True
        if self._no_progress_since_ms is not None and now_ms - self._no_progress_since_ms >= self._resend_after_ms:
            return True
        return bool(self._waiting or self._closes) and len(self._unapplied) < self._limits.gateway_in_flight

    def collect(self, now_ms: int) -> list[Forward]:
        """Return the batches to send to the leader now. Call it only while the leader is known. What is lost is sent again later."""
        if self.is_closed:
            return []
        if self._retry_at_ms is not None:
            if now_ms < self._retry_at_ms:
                return []
            self.resend()
        if self._no_progress_since_ms is not None and now_ms - self._no_progress_since_ms >= self._resend_after_ms:
            self._resend_after_ms = min(2 * self._resend_after_ms, _LONGEST_RESEND_MS)
            self._no_progress_since_ms = now_ms
            self.resend()
        while (self._waiting or self._closes) and len(self._unapplied) < self._limits.gateway_in_flight:
            self._make_batch(now_ms)
        forwards = [
            Forward(self.incarnation, self._attempt, batch.payload) for place, batch in enumerate(self._unapplied) if place >= self._sent
        ]
        self._sent = len(self._unapplied)
        if self._unapplied and self._no_progress_since_ms is None:
            self._no_progress_since_ms = now_ms
        return forwards

    def _make_batch(self, now_ms: int) -> None:
        """Make a batch: sessions take turns, and each adds its commands in order until the batch is full."""
        commands: list[Command] = []
        costs, most_steps, most_bytes = self._costs, self._batch_steps, self._limits.batch_bytes
        size = steps = 0
        while self._closes and steps < most_steps:
            commands.append(self._closes.popleft())
            steps += costs.command
        is_full = False
        while self._waiting and not is_full:
            session = next(iter(self._waiting))
            queued = session.queued
            is_served = False
            while queued:
                command = queued[0]
                more = size_of(command)
                steps += costs.command if type(command) in PLAIN else costs.of(command, session.watched)
                if commands and (size + more > most_bytes or steps > most_steps):
                    is_full = True
                    break
                size += more
                commands.append(command)
                queued.popleft()
                is_served = True
            if is_served and session.state is State.USED:
                session.batched()
            if not queued:
                del self._waiting[session]
            elif is_served:
                self._waiting.move_to_end(session)  # the next batch begins with a session that has not been served yet
        self._seq += 1
        self.batch_commands.observe(len(commands))
        payload = encode_payload(Batch(self.node, self.incarnation, self._seq, commands))
        self._unapplied.append(_Unapplied(self._seq, payload, now_ms))

    def leader_changed(self) -> None:
        """Send everything to the new leader at once."""
        self._retry_ms = _RETRY_MS
        self.resend()

    def resend(self) -> None:
        """Everything unapplied goes out anew, in order."""
        self._retry_at_ms = None
        self._attempt += 1
        self._sent = 0

    def refused(self, refusal: ForwardRefused, now_ms: int) -> None:
        """The leader refused a batch of this attempt and all after it: send them again after a delay."""
        if (refusal.incarnation, refusal.attempt) == (self.incarnation, self._attempt) and self._retry_at_ms is None:
            self._retry_at_ms = now_ms + self._retry_ms
            self._retry_ms = min(2 * self._retry_ms, _LONGEST_RETRY_MS)

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
            self._no_progress_since_ms = now_ms if self._unapplied else None
            self._resend_after_ms = self._timeout_ms
            self._retry_ms = _RETRY_MS

    def installed(self, machine: StateMachine, now_ms: int) -> None:
        """A snapshot has taken the place of the state: what it covers was applied elsewhere, and its answers were never seen here.
        Their sessions are abandoned, for the outcome is unknown; only a reserve that still waits in the state keeps waiting.
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
            in_state = row.sessions.get(session.number)
            if session.misses_answers(later[session.number], in_state is not None and in_state.waiting):
                self.forget(session, session.last_word if session.state is State.REPLICATED else None)
                self._abandoned.append(session)
        self.resend()

    def await_read_index(self, reads: Iterable[Read]) -> None:
        """These wait for a read index, unless their session is gone."""
        self.reads.update((read.session, read) for read in reads if read.session.number in self.sessions)

    def _abandon(self) -> None:
        """The cluster closed this gateway. The outcome of unanswered commands is unknown: these sessions are abandoned."""
        self._abandoned.extend(self.sessions.values())
        self.sessions = {}
        self.reads = {}
        self._reset()

    def reopen(self, incarnation: int) -> None:
        """Begin again as `incarnation`, which is durable. Sessions opened since the close continue in it."""
        self.incarnation = incarnation
        self.is_closed = False
        self._open()

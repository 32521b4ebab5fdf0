"""What the listeners for clients share: a session per connection, answers in order, and bounds.

A turn of the node answers many commands; each connection writes once at its end. Reading pauses while too
much is unanswered or unsent, so a client that floods, or does not read, costs a bounded amount of memory
and, per turn of the reactor, a bounded amount of work.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import Enum, auto
from typing import Any

from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from raftd.jobs.rights import Login
from raftd.limits import REPLY_BYTES
from raftd.node.loop import Node
from raftd.node.session import Session
from raftd.server.access import is_good
from raftd.server.authentication import Authentication
from raftd.server.limiter import ConnectionLimiter
from raftd.server.sockets import is_secure, tune, unsent, write_at_once
from raftd.server.stats import Counters

#: And how much of that one connection may take at a time (milliseconds), so that one more is served soon among a
#: thousand that flood.
CLIENT_SHARE_MS = 1
#: Requests between two looks at the clock.
_TIME_CHECK = 8
#: Commands of one line or client connection that are not answered yet, in number and in bytes, before
#: reading pauses. A reserve counts the largest job; one command alone never pauses it.
CONNECTION_IN_FLIGHT = 128
CONNECTION_BYTES = 1 << 20


class State(Enum):
    """The life of a connection."""

    OPEN = auto()  # requests are read and answered
    HALF_CLOSED = auto()  # the client sends no more; what has arrived is executed and answered
    QUIT = auto()  # nothing more is read; what was asked is answered
    ENDING = auto()  # both: it closes with the last answer
    CLOSED = auto()


class Event(Enum):
    """What moves it on."""

    CLIENT_CLOSED = auto()  # its side
    CLIENT_QUIT = auto()
    CLOSE = auto()  # this node closes, or the connection is lost


_NEXT = {
    State.OPEN: {Event.CLIENT_CLOSED: State.HALF_CLOSED, Event.CLIENT_QUIT: State.QUIT, Event.CLOSE: State.CLOSED},
    State.HALF_CLOSED: {Event.CLIENT_QUIT: State.ENDING, Event.CLOSE: State.CLOSED},
    State.QUIT: {Event.CLIENT_CLOSED: State.ENDING, Event.CLIENT_QUIT: State.QUIT, Event.CLOSE: State.CLOSED},
    State.ENDING: {Event.CLIENT_QUIT: State.ENDING, Event.CLOSE: State.CLOSED},
    State.CLOSED: {Event.CLIENT_CLOSED: State.CLOSED, Event.CLIENT_QUIT: State.CLOSED, Event.CLOSE: State.CLOSED},
}
_TAKES_REQUESTS = (State.OPEN, State.HALF_CLOSED)
_CLOSES_WHEN_ANSWERED = (State.HALF_CLOSED, State.ENDING)
_CLOSED = State.CLOSED


@implementer(IPushProducer, IHalfCloseableProtocol)
class ClientConnection(Protocol, ABC):
    """The connection of one client. A subclass says how requests are read.

                     CLIENT_CLOSED
            OPEN ───────────────────▶ HALF_CLOSED ──┐ answered
              │ CLIENT_QUIT              │ CLIENT_QUIT   │
              ▼      CLIENT_CLOSED       ▼               ▼
            QUIT ───────────────────▶ ENDING ────────▶ CLOSED      CLOSE leads there from every state

    Beside that, three conditions stop reading for a while: the output is full, the connection is queued for its share of a turn, or
    enough requests are not answered yet.
    """

    transport: Any
    _log = Logger("raftd")

    def __init__(self, node: Node, clock: Any, limiter: ConnectionLimiter) -> None:
        """`limiter` has admitted this one."""
        self.node = node
        self.host: str | None = None
        self.authentication: Authentication
        self.session: Session
        self._clock = clock
        self._limiter = limiter
        self._no_progress_s = node.config.limits.no_progress_s
        self._out: list[bytes] = []
        self._in_flight = 0
        self._bytes_in_flight = 0
        self._written = 0  # bytes handed to the transport, ever
        self._taken = 0  # how many of them its socket had taken when progress was last looked at
        self._progress: Any = None
        self._answers = 0  # so far
        self._patience: Any = None
        self._state = State.OPEN
        self._output_full = False
        self._is_held_back = False
        self._is_reading = True
        self._user = ""  # whose connection it is counted as
        self._is_queued = False  # with the rest of what has arrived, for another turn of the reactor

    # -- for the subclass ---------------------------------------------------------------------

    @abstractmethod
    def _feed(self, data: bytes) -> None:
        """Keep bytes that have arrived."""

    @abstractmethod
    def _take(self) -> bool:
        """Handle the next request that has arrived whole; False if there is none, or if nothing has arrived behind it."""

    @property
    def is_closed(self) -> bool:
        return self._state is State.CLOSED

    def _advance(self, event: Event) -> None:
        self._state = _NEXT[self._state][event]

    def began(self, size: int) -> None:
        """A request of `size` bytes waits for its answer."""
        self._in_flight += 1
        self._bytes_in_flight += size

    def took_back(self, size: int) -> None:
        """A request that `began` with `size` begins anew."""
        self._in_flight -= 1
        self._bytes_in_flight -= size

    def answer(self, data: bytes, size: int) -> None:
        """The answer to a request that `began` with `size`."""
        if self._state is _CLOSED:
            return
        self._in_flight -= 1
        self._answers += 1
        self._bytes_in_flight -= size
        self.say(data)
        if self._state in _CLOSES_WHEN_ANSWERED:
            self.node.at_turn_end(self._finish_if_done)

    def say(self, data: bytes) -> None:
        """Write at the end of the turn."""
        if not self._out:
            self.node.at_turn_end(self._end_of_turn)
        self._out.append(data)

    def hold_back(self, is_held_back: bool) -> None:
        """Take no request for now, or from the end of this turn on."""
        self._is_held_back = is_held_back
        if not is_held_back:
            self.node.at_turn_end(self._end_of_turn)

    def stop_reading(self) -> None:
        """The client has quit: read nothing more of it."""
        self._advance(Event.CLIENT_QUIT)

    def finish(self) -> None:
        """Close once everything said is sent."""
        self._flush()
        self._advance(Event.CLOSE)
        self._watch_progress()
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def enter(self, login: Login) -> bool:
        """The connection is this user's from now on, if he may have one more."""
        self._leave()
        name = self.authentication.enters(self.node.machine, login)
        self._user = name or ""
        self.session.login = login if name is not None else None
        return name is not None

    def confirm(self, login: Login, then: Callable[[bool], None]) -> None:
        """Whether the login is good for anything. This node may be behind, so only the cluster can say no. Nothing goes into the log."""
        machine = self.node.machine
        if not self.node.has_users or machine.access.user_of(login, machine.now_ms) is not None:
            then(True)
            return
        self.session.read(is_good(login), lambda answer, index: then(bool(answer)))
        self.node.wake()

    def _leave(self) -> None:
        if self._user:
            self.authentication.left(self._user)
            self._user = ""

    def is_stranger(self) -> bool:
        """Whether one has to say who he is, and this client has not: nothing of his leaves this node."""
        return self.session.login is None and self.node.has_users

    def refused(self, what: str, login: Login | None = None) -> None:
        """Its client, or who shows this `login`, may not do that: note it in the log, and forget one that is good for nothing any more."""
        machine = self.node.machine
        user = machine.access.user_of(login or self.session.login, machine.now_ms)
        if user is None:
            self.session.login = None
        if self._limiter.may_log():
            who = f"user {user}" if user else "nobody who is known"
            self._log.info("not authorized: {who} at {host}: {what}", who=who, host=self.host or "the Unix socket", what=what)

    def abort(self) -> None:
        """Close now: the client is lost, or what it asked has an unknown outcome."""
        self._advance(Event.CLOSE)
        self.transport.abortConnection()

    # -- Twisted's side -----------------------------------------------------------------------

    def connectionMade(self) -> None:
        tune(self.transport)
        self.transport.registerProducer(self, True)
        self.session = self.node.open_session(self.abort)
        login = self.authentication.by_certificate(self.transport)
        if login is not None:
            self.enter(login)

    def dataReceived(self, data: bytes) -> None:
        if self._state in _TAKES_REQUESTS:
            self._feed(data)
            self._read()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._advance(Event.CLOSE)
        self._limiter.forget(self)
        self._limiter.left(self.host)
        self._leave()
        for watch in (self._progress, self._patience):
            if watch is not None:
                watch.cancel()
        self._progress = self._patience = None
        self.session.close()
        self.node.wake()

    def readConnectionLost(self) -> None:
        """The client will send no more: what it has sent is still executed and answered."""
        self._advance(Event.CLIENT_CLOSED)
        self._limiter.reading(self, True)  # there is nothing more to hear
        self._watch_answers()
        self.session.stop_waiting()
        self.node.wake()
        self._read()
        self._finish_if_done()

    def writeConnectionLost(self) -> None:
        """Our side is never half-closed."""

    def pauseProducing(self) -> None:
        """The transport has more than it likes to hold."""
        self._output_full = True
        self.session.pause(True)
        self._watch_progress()
        self._set_reading(False)

    def resumeProducing(self) -> None:
        """All of it is sent."""
        self._output_full = False
        self.session.pause(False)
        self.node.wake()
        self._read()
        self._finish_if_done()

    def stopProducing(self) -> None:
        """The connection is being lost; connectionLost follows."""

    def hung_up(self, is_gone: bool) -> None:
        """Seen while this is not read. What has arrived is still executed, but it waits for no job any more."""
        if is_gone:
            self.abort()
        else:
            self.session.stop_waiting()
            self.node.wake()

    def _watch_answers(self) -> None:
        """A client that has closed its side, and gets no answer to what it has asked, has probably given up: without a
        quorum it would be kept, and what it asked for done after all, whenever that comes back."""
        if self._patience is None:
            self._patience = self._clock.callLater(self._no_progress_s, self._check_answers, self._answers)

    def _check_answers(self, before: int) -> None:
        self._patience = None
        if self._answers == before and self._in_flight:
            self._log.info(
                "a client is dropped: it has closed its side, and there was no answer for {seconds:g} s", seconds=self._no_progress_s
            )
            self.abort()
        elif not self.is_closed:
            self._watch_answers()

    def _watch_progress(self) -> None:
        """Something waits for the client to read: it must take some of it, time and again."""
        if self._progress is None:
            self._taken = self._written - unsent(self.transport)
            self._progress = self._clock.callLater(self._no_progress_s, self._check_progress)

    def _check_progress(self) -> None:
        self._progress = None
        left = unsent(self.transport)
        if left and self._written - left == self._taken:
            self._log.info("a client is dropped: it has read nothing for {seconds:g} s", seconds=self._no_progress_s)
            self.abort()
        elif left:
            self._watch_progress()
        elif self.is_closed and is_secure(self.transport):
            self.transport.abortConnection()  # the other side has not said its last word

    # -- within -------------------------------------------------------------------------------

    def _read(self) -> None:
        """Handle what has arrived, as far as the bounds allow."""
        if self._is_queued:
            return
        now_s = self._clock.seconds()
        until_s = now_s + CLIENT_SHARE_MS / 1000
        for count in range(CONNECTION_IN_FLIGHT):
            if not self._may_take:
                self._set_reading(False)
                return
            if count % _TIME_CHECK == 0:
                if count:
                    now_s = self._clock.seconds()
                if not self._limiter.has_time(now_s) or now_s > until_s:
                    break
            if not self._take():
                self._set_reading(self._may_take)
                return
        # More may be there, but others wait too.
        self._set_reading(False)
        self._is_queued = True
        self._limiter.wait(self)

    @property
    def _may_take(self) -> bool:
        """Whether a further request may be taken. One alone never stops reading, however large its answer may be: a connection that is
        not read does not notice that its client is gone."""
        if self._state not in _TAKES_REQUESTS or self._output_full or self._is_held_back or self._in_flight >= CONNECTION_IN_FLIGHT:
            return False
        return self._in_flight <= 1 or self._bytes_in_flight < CONNECTION_BYTES

    def resume(self) -> None:
        """The turn that it waited for has come."""
        self._is_queued = False
        self._read_guarded()
        self._finish_if_done()

    def _set_reading(self, reading: bool) -> None:
        if reading is not self._is_reading and self._state in (State.OPEN, State.QUIT):
            self._is_reading = reading
            self._limiter.reading(self, reading)
            if reading:
                self.transport.resumeProducing()
            else:
                self.transport.pauseProducing()

    def _finish_if_done(self) -> None:
        if self._state in _CLOSES_WHEN_ANSWERED and not (self._in_flight or self._is_queued or self._output_full):
            self.finish()

    def _end_of_turn(self) -> None:
        self._flush()
        if not self._is_reading or self._state in _CLOSES_WHEN_ANSWERED:
            self._read_guarded()

    def _read_guarded(self) -> None:
        """Outside `dataReceived` an exception would not end this connection, but the node's turn."""
        try:
            self._read()
        except Exception:
            self._log.failure("a bug in raftd: the connection is closed, the node continues")
            self.abort()

    def _flush(self) -> None:
        if self._state is _CLOSED or not self._out:
            return
        data = b"".join(self._out)
        self._out.clear()
        if unsent(self.transport) > REPLY_BYTES + self.node.max_job_size:  # before this: any one answer may be sent
            self._log.info("a client is dropped: it does not read its answers")
            self.abort()
            return
        self._written += len(data)
        write_at_once(self.transport, data)


class ConnectionFactory(Factory):
    """Makes the connections of a listener for clients, as far as `limiter` admits them. `node` is set before the reactor runs."""

    noisy = False
    node: Node
    protocol: Callable[[Node, Any, ConnectionLimiter, Counters], ClientConnection]

    def __init__(self, clock: Any, limiter: ConnectionLimiter, counters: Counters, authentication: Authentication | None = None) -> None:
        self._clock = clock
        self._limiter = limiter
        self._counters = counters
        self._authentication = authentication or Authentication(clock)

    def buildProtocol(self, addr: object) -> ClientConnection | None:
        host = getattr(addr, "host", None)
        if not self._limiter.admit(host):
            return None
        connection = type(self).protocol(self.node, self._clock, self._limiter, self._counters)
        connection.host = host
        connection.authentication = self._authentication
        return connection

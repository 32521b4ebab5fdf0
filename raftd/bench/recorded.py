"""Clients of the client listener whose every question and answer is recorded: what `raftd chaos` judges afterwards.

Each has a session, a few asks under way at once, and knows nothing of the faults around it. One whose connection is lost, or that
has no answer for too long, goes to another node, resumes its session and asks again what was not answered. If the session has ended
meanwhile, that may have happened or not, and the client begins anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
from twisted.internet.protocol import ClientFactory, Protocol, connectionDone
from twisted.python.failure import Failure

from raftd.client.address import HostPort
from raftd.errors import FrameError
from raftd.jobs import asks
from raftd.jobs import replies as r
from raftd.limits import SESSION_TOKEN_BYTES
from raftd.sim.client_model import ASK, TO_ASK
from raftd.sim.history import Call
from raftd.wire import client as w
from raftd.wire.frames import FrameDecoder

_TUBES = ("default", "mail", "video")
_DELAYS_MS = (0, 0, 0, 0, 100, 1_500)
_TTRS_MS = (1_000, 2_000, 4_000)
_WAITS_MS = (0, 200, 1_000)
_REDIAL_S = 0.1
#: Longer than any wait for a job and an election.
_PATIENCE_S = 4.0
_LOOK_S = 0.25
#: Fewer puts than reserves and deletes: the queue stays short, and the plain model quick.
_PUTS = 0.25
#: How often a client goes right after it has asked.
_GOES = 0.003


class RecordedConnection(Protocol):
    """One connection to a client listener, for the session with `token` if one is given. `answered` gets each answer; `ready` is called
    once the node has said hello, with the number of the session."""

    transport: Any

    def __init__(
        self, ready: Callable[[int], None], answered: Callable[[w.Answer], None], lost: Callable[[], None], token: bytes = b""
    ) -> None:
        self._token = token
        self._ready = ready
        self._answered = answered
        self._lost = lost
        self._decoder = FrameDecoder()
        self._greeted = False

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        self.transport.write(w.encode_hello(w.SessionHello("", self._token) if self._token else w.ClientHello()))

    def dataReceived(self, data: bytes) -> None:
        self._decoder.feed(data)
        while (body := self._decoder.next_frame()) is not None:
            if self._greeted:
                self._answered(w.decode_answer(body))
                continue
            try:
                session = w.decode_attached_hello(body).session if self._token else 0
            except FrameError:  # it says why it will not have us
                self.transport.loseConnection()
                return
            self._greeted = True
            self._decoder.greeted()
            self._ready(session)

    def ask(self, request: w.Request) -> None:
        self.transport.write(w.encode_request(request))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._lost()


class _Dial(ClientFactory):
    noisy = False

    def __init__(self, build: Callable[[], RecordedConnection], failed: Callable[[], None]) -> None:
        self._build = build
        self._failed = failed

    def buildProtocol(self, addr: object) -> RecordedConnection:
        return self._build()

    def clientConnectionFailed(self, connector: object, reason: Failure) -> None:
        self._failed()


class RecordedClient:
    """One of them, from `start` until `finish`."""

    def __init__(self, reactor: Any, random: Random, number: int, addresses: list[HostPort], pipeline: int, pause_s: float) -> None:
        """`pipeline`: requests under way at most; `pause_s`: between two requests, on average."""
        self.calls: list[Call] = []
        #: How often its session was resumed.
        self.resumed = 0
        #: What a node said that no node may say.
        self.problems: list[str] = []
        self._reactor = reactor
        self._random = random
        self._number = number
        self._addresses = addresses
        self._pipeline = pipeline
        self._pause_s = pause_s
        self._connection: RecordedConnection | None = None
        self._token = random.randbytes(SESSION_TOKEN_BYTES)
        self._session = 0  # its number
        self._connected_s = 0.0
        self._is_attached = False
        self._whats: dict[int, asks.What] = {}  # by id, of pending calls
        self._pending: dict[int, Call] = {}
        self._held: list[asks.Held] = []
        self._subscription: Call | None = None
        self._received = 0  # of what is pushed
        self._asked = 0
        self._finishing = False
        self._done = False

    def start(self) -> None:
        self._dial()
        self._poll()

    def finish(self) -> None:
        """Ask for nothing more; go when all is answered."""
        self._finishing = True

    @property
    def is_done(self) -> bool:
        return self._finishing and not self._pending

    def close(self) -> None:
        self._done = True
        if self._connection is not None:
            self._connection.transport.abortConnection()

    # -- the connection -----------------------------------------------------------------------

    def _dial(self) -> None:
        if self._done:
            return

        def again() -> None:
            self._reactor.callLater(_REDIAL_S, self._dial)

        def build() -> RecordedConnection:
            self._connection = connection = RecordedConnection(
                lambda session: self._attached(connection, session), self._answered, lambda: self._lost(connection), self._token
            )
            self._connected_s = time.monotonic()
            return connection

        host, port = self._random.choice(self._addresses)
        self._reactor.connectTCP(host, port, _Dial(build, again), timeout=1)

    def _attached(self, connection: RecordedConnection, session: int) -> None:
        self._is_attached = True
        if self._session and session != self._session:  # it has ended: the outcome of pending calls stays unknown
            self._pending.clear()
            self._held.clear()
            self._subscription, self._received = None, 0
        elif self._session:
            self.resumed += 1
        self._session = session
        for id, call in self._pending.items():
            connection.ask(self._request(id, call))
        if self._subscription is not None:
            self._begin(connection, asks.Flow(self._subscription.what[2], self._received))
        self._ask(connection)

    def _lost(self, connection: RecordedConnection) -> None:
        if connection is not self._connection:
            return
        self._connection = None
        self._is_attached = False
        if not self._done:
            self._reactor.callLater(_REDIAL_S, self._dial)

    def _poll(self) -> None:
        """Is there one that has waited too long?"""
        if self._done:
            return
        now_s = time.monotonic()
        oldest = next(iter(self._pending.values()), None)
        if self._connection is not None and not self._finishing and now_s - self._connected_s > _PATIENCE_S:
            is_late = oldest is not None and now_s - max(oldest.asked, self._connected_s) > _PATIENCE_S
            if is_late or not self._is_attached:
                self._connection.transport.abortConnection()
        self._reactor.callLater(_LOOK_S, self._poll)

    # -- asking -------------------------------------------------------------------------------

    def _ask(self, connection: RecordedConnection) -> None:
        if connection is not self._connection or self._finishing:
            return
        if len(self._pending) < self._pipeline:
            self._begin(connection, self._choose())
            if self._random.random() < _GOES:
                self._random.choice((connection.transport.loseConnection, connection.transport.abortConnection))()
        self._reactor.callLater(self._random.expovariate(1 / self._pause_s), self._ask, connection)

    def _begin(self, connection: RecordedConnection, what: asks.What) -> None:
        self._asked += 1
        call = Call([ASK, self._token, self._asked], time.monotonic(), asks=msgspec.msgpack.decode(msgspec.msgpack.encode(what)))
        self._whats[self._asked] = what
        self.calls.append(call)
        self._pending[self._asked] = call
        connection.ask(self._request(self._asked, call))

    def _request(self, id: int, call: Call) -> w.AskRequest:
        return w.AskRequest(id, min(self._pending, default=id), [], self._whats[id])

    def _choose(self) -> asks.What:
        random = self._random
        choice = random.random()
        delay_ms = random.choice(_DELAYS_MS)
        if choice < _PUTS:
            body = b"client %d job %d" % (self._number, self._asked) + b"." * random.choice((0, 100, 3_000))
            jobs = [asks.NewJob(random.randrange(3), delay_ms, random.choice(_TTRS_MS), body)]
            return asks.Put(random.choice(_TUBES), jobs * random.choice((1, 1, 3)))
        if choice < 0.6 or not self._held:
            return asks.Reserve(random.sample(_TUBES, random.randrange(1, 3)), random.randrange(1, 4), random.choice(_WAITS_MS))
        if choice < 0.62 and self._subscription is None and not any(isinstance(what, asks.Subscribe) for what in self._whats.values()):
            return asks.Subscribe([random.choice(_TUBES)], random.randrange(1, 4))
        if choice < 0.66 and self._subscription is not None:
            return asks.Flow(self._subscription.what[2], self._received, random.randrange(1, 4))
        held = [self._held.pop(random.randrange(len(self._held))) for _ in range(min(len(self._held), random.randrange(1, 4)))]
        if choice < 0.92:
            return asks.Delete(held)
        return random.choice((asks.Release(held, delay_ms), asks.Fail(held, delay_ms, "it failed"), asks.Release(held)))

    def _answered(self, answer: w.Answer) -> None:
        reply = answer.reply
        if isinstance(reply, r.TakenOver):
            return
        told = [TO_ASK, answer.id, msgspec.msgpack.decode(msgspec.msgpack.encode(reply))]
        if isinstance(reply, r.Pushed) and self._subscription is not None and answer.id == self._subscription.what[2]:
            before = self._subscription
            self.calls.append(Call(before.what, before.asked, answered=time.monotonic(), index=answer.index, answer=told, asks=before.asks))
            if reply.number > self._received:  # else it was pushed again
                self._received = reply.number
                self._held.append((reply.job.id, reply.job.token))
            return
        call = self._pending.pop(answer.id, None)
        if call is None:
            self.problems.append(f"client {self._number} gets an answer that was not asked for: {answer}")
            return
        del self._whats[answer.id]
        call.answered, call.answer = time.monotonic(), told
        call.index = 0 if isinstance(reply, w.Failed) else answer.index  # 0: certainly not applied
        if isinstance(reply, r.Jobs):
            self._held += [(job.id, job.token) for job in reply.jobs]
        elif isinstance(reply, r.Subscribed):
            self._subscription, self._received = call, 0


class Visitor(RecordedClient):
    """One put at one node."""

    def _ask(self, connection: RecordedConnection) -> None:
        super()._ask(connection)
        self.finish()

    def _choose(self) -> asks.What:
        return asks.Put("default", [asks.NewJob(1, 0, _TTRS_MS[-1], b"visitor %d" % self._number)])

    @property
    def is_done(self) -> bool:
        return bool(self.calls) and self.calls[-1].answered is not None


class Watch:
    """Asks one node again and again what it knows, without the cluster."""

    def __init__(self, reactor: Any, address: HostPort, every_s: float) -> None:
        #: What it said last, None if it cannot be reached.
        self.status: w.Status | None = None
        self._reactor = reactor
        self._address = address
        self._every_s = every_s
        self._connection: RecordedConnection | None = None
        self._done = False
        self._dial()

    def _dial(self) -> None:
        if self._done:
            return

        def build() -> RecordedConnection:
            self._connection = RecordedConnection(self._ask, self._answered, self._lost)
            return self._connection

        self._reactor.connectTCP(*self._address, _Dial(build, self._lost), timeout=1)

    def _lost(self) -> None:
        self.status = self._connection = None
        if not self._done:
            self._reactor.callLater(_REDIAL_S, self._dial)

    def _ask(self, session: int = 0) -> None:
        if self._connection is not None:
            self._connection.ask(w.StatusRequest(1))

    def _answered(self, answer: w.Answer) -> None:
        if isinstance(answer.reply, w.Status):
            self.status = answer.reply
        self._reactor.callLater(self._every_s, self._ask)

    def close(self) -> None:
        self._done = True
        if self._connection is not None:
            self._connection.transport.abortConnection()

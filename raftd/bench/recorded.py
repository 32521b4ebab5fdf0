"""Clients of the client listener whose every question and answer is recorded: what `raftd chaos` judges afterwards.

They put, reserve and delete, a few requests under way at once, and know nothing of the faults around them. One whose
connection is lost, or that has no answer for too long, goes to another node and begins anew: what it had asked for may
have happened or not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
from twisted.internet.protocol import ClientFactory, Protocol, connectionDone
from twisted.python.failure import Failure

from raftd.client import HostPort
from raftd.errors import FrameError
from raftd.sim.history import Call
from raftd.sim.model import DELETE, IGNORE, PUT, RESERVE, USE, WATCH
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
    """One connection to a client listener. `answered` gets each answer; `ready` is called once the node has said hello."""

    transport: Any

    def __init__(self, ready: Callable[[], None], answered: Callable[[w.Answer], None], lost: Callable[[], None]) -> None:
        self._ready = ready
        self._answered = answered
        self._lost = lost
        self._decoder = FrameDecoder()
        self._greeted = False

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        self.transport.write(w.encode_hello(w.ClientHello()))

    def dataReceived(self, data: bytes) -> None:
        self._decoder.feed(data)
        while (body := self._decoder.next_frame()) is not None:
            if self._greeted:
                self._answered(w.decode_answer(body))
                continue
            try:
                w.decode_node_hello(body)
            except FrameError:  # it says why it will not have us
                self.transport.loseConnection()
                return
            self._greeted = True
            self._decoder.greeted()
            self._ready()

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
        #: What a node said that no node may say.
        self.problems: list[str] = []
        self._reactor = reactor
        self._random = random
        self._number = number
        self._addresses = addresses
        self._pipeline = pipeline
        self._pause_s = pause_s
        self._connection: RecordedConnection | None = None
        self._pending: dict[int, Call] = {}
        self._reserved: list[tuple[int, int]] = []  # (job, token)
        self._asked = 0
        self._connections = 0
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
            self._connections += 1
            connection = RecordedConnection(lambda: self._ask(connection), self._answered, lambda: self._lost(connection))
            self._connection = connection
            return connection

        host, port = self._random.choice(self._addresses)
        self._reactor.connectTCP(host, port, _Dial(build, again), timeout=1)

    def _lost(self, connection: RecordedConnection) -> None:
        """The outcome of pending calls stays unknown."""
        if connection is not self._connection:
            return
        self._connection = None
        self._pending.clear()
        self._reserved.clear()
        if not self._done:
            self._reactor.callLater(_REDIAL_S, self._dial)

    def _poll(self) -> None:
        """Is there one that has waited too long?"""
        if self._done:
            return
        oldest = next(iter(self._pending.values()), None)
        if self._connection is not None and oldest is not None and not self._finishing and time.monotonic() - oldest.asked > _PATIENCE_S:
            self._connection.transport.abortConnection()
        self._reactor.callLater(_LOOK_S, self._poll)

    # -- asking -------------------------------------------------------------------------------

    def _ask(self, connection: RecordedConnection) -> None:
        if connection is not self._connection or self._finishing:
            return
        if len(self._pending) < self._pipeline:
            self._asked += 1
            what, request = self._choose(self._asked)
            call = Call(what, time.monotonic(), connection=self._number * 1_000_000 + self._connections)
            self.calls.append(call)
            self._pending[self._asked] = call
            connection.ask(request)
            if self._random.random() < _GOES:
                self._random.choice((connection.transport.loseConnection, connection.transport.abortConnection))()
        self._reactor.callLater(self._random.expovariate(1 / self._pause_s), self._ask, connection)

    def _choose(self, id: int) -> tuple[list[Any], w.Request]:
        """A command as it will stand in the log, and the request for it."""
        random = self._random
        choice = random.random()
        if choice < _PUTS:
            body = b"client %d job %d" % (self._number, id) + b"." * random.choice((0, 100, 3_000))
            tube = random.choice(("", *_TUBES))
            pri, delay_ms, ttr_ms = random.randrange(3), random.choice(_DELAYS_MS), random.choice(_TTRS_MS)
            return [PUT, pri, delay_ms, ttr_ms, body, tube], w.PutRequest(id, body, tube, pri, delay_ms, ttr_ms)
        if choice < 0.62 or (choice < 0.95 and not self._reserved):
            timeout_ms = random.choice(_WAITS_MS)
            return [RESERVE, timeout_ms], w.ReserveRequest(id, timeout_ms)
        if choice < 0.95:
            job, token = self._reserved.pop(random.randrange(len(self._reserved)))
            token *= random.randrange(2)
            return [DELETE, job, token], w.DeleteRequest(id, job, token)
        tube = random.choice(_TUBES)
        if choice < 0.97:
            return [USE, tube], w.UseRequest(id, tube)
        if choice < 0.99:
            return [WATCH, tube], w.WatchRequest(id, tube)
        return [IGNORE, tube], w.IgnoreRequest(id, tube)

    def _answered(self, answer: w.Answer) -> None:
        call = self._pending.pop(answer.id, None)
        if call is None:
            self.problems.append(f"client {self._number} gets an answer that was not asked for: {answer}")
            return
        _, *args = call.answer = msgspec.msgpack.decode(msgspec.msgpack.encode(answer.reply))
        call.answered = time.monotonic()
        call.index = 0 if isinstance(answer.reply, w.Failed) else answer.index  # 0: certainly not applied
        if call.what[0] == RESERVE and len(args) == 3:
            self._reserved.append((args[0], args[2]))


class Visitor(RecordedClient):
    """One put at one node."""

    def _ask(self, connection: RecordedConnection) -> None:
        super()._ask(connection)
        self.finish()

    def _choose(self, id: int) -> tuple[list[Any], w.Request]:
        body = b"visitor %d" % self._number
        return [PUT, 1, 0, _TTRS_MS[-1], body, "default"], w.PutRequest(id, body, "default", 1, 0, _TTRS_MS[-1])

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

    def _ask(self) -> None:
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

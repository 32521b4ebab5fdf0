"""The peer listener: one connection per pair of nodes, dialled by the one with the higher id.

Each side says hello first; a connection carries messages only when both are content with the other's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from enum import Enum
from random import Random
from typing import Any, cast

from twisted.application.internet import ClientService, backoffPolicy
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from raftd.config import node_uri
from raftd.errors import FrameError
from raftd.limits import CLOSE_TIMEOUT_S, HELLO_TIMEOUT_S, PEER_STRANGERS, STRANGER_LINES, STRANGER_TEXT
from raftd.node.loop import Node
from raftd.server.sockets import is_secure, tune_peer, write_at_once
from raftd.wire.frames import FrameDecoder
from raftd.wire.peer import PeerMessage, Refusal, RefusalCode, decode, decode_hello, encode, encode_hello

_RETRY_FIRST_S = 0.05
_RETRY_LAST_S = 1.0


class State(Enum):
    """A connection's life, in this order; it may be closed at any time."""

    GREETING = "greeting"  # our hello is out, the other's is awaited
    WAITING = "waiting"  # what we must remember of the other is not durable yet
    OPEN = "open"
    CLOSED = "closed"


class PeerProtocol(Protocol):
    """One connection. `expected` is the node that was dialled, 0 for one that dialled us."""

    transport: Any

    def __init__(self, peers: PeerTransport, expected: int) -> None:
        self._peers = peers
        self._expected = expected
        self._decoder = FrameDecoder()
        self._state = State.GREETING
        self._hello_timeout: Any = None
        self._too_late: Any = None  # to be closed in order
        self.peer = 0
        self.outbox: list[bytes] = []

    def connectionMade(self) -> None:
        tune_peer(self.transport)
        self._hello_timeout = self._peers.clock.callLater(
            HELLO_TIMEOUT_S, self._refuse, Refusal(RefusalCode.TIMEOUT, f"no hello within {HELLO_TIMEOUT_S:g} s")
        )
        self.transport.write(encode_hello(self._peers.node.hello()))

    def dataReceived(self, data: bytes) -> None:
        self._decoder.feed(data)
        self._read()

    def _read(self) -> None:
        try:
            while self._state in (State.GREETING, State.OPEN):
                body = self._decoder.next_frame()
                if body is None:
                    break
                if self._state is State.GREETING:
                    self._greet(body)
                else:
                    self._message(decode(body))
        except FrameError as error:
            self._refuse(Refusal(RefusalCode.INVALID_MESSAGE, str(error)))
            return
        if self._state is State.OPEN and self._decoder.is_in_frame:
            self._peers.node.hearing_from(self.peer)

    def _greet(self, body: bytes) -> None:
        hello = decode_hello(body)
        self._hello_timeout.cancel()
        if not self._peers.is_certified(self.transport, hello.node):
            text = f"the certificate at this connection is not that of node {hello.node} of this cluster"
            self._refuse(Refusal(RefusalCode.OTHER_NODE, text))
            return
        if self._expected and hello.node != self._expected:
            text = f"node {hello.node} answers at the address that the configuration gives for node {self._expected}"
            self._refuse(Refusal(RefusalCode.OTHER_NODE, text))
            return
        self._state = State.WAITING
        self.peer = hello.node
        self._decoder.greeted()
        self.transport.pauseProducing()
        refusal = self._peers.node.handle_hello(hello, self._accepted)
        if refusal is not None:
            self._refuse(refusal)

    def _accepted(self) -> None:
        if self._state is not State.WAITING:
            return  # the connection was lost meanwhile
        self._state = State.OPEN
        self.transport.resumeProducing()
        self._peers.opened(self)
        self._read()

    def _message(self, message: PeerMessage) -> None:
        if isinstance(message, Refusal):
            self._peers.was_refused(self.peer, message)
            self.close()
        else:
            self._peers.heard(self.peer)
            self._peers.node.receive(self.peer, message)

    def _refuse(self, refusal: Refusal) -> None:
        """Tell both sides' operators why this connection is closed."""
        if self._state is State.CLOSED:
            return
        self._peers.refused(self.peer or self._expected, self.transport.getPeer(), refusal.text)
        self.transport.write(encode(refusal))
        self.close()

    def close(self) -> None:
        """In order, so that the other side reads what was said last; but not if that takes long: with TLS it waits for the other's word,
        which a connection that is not read does not hear."""
        if self._state is State.CLOSED:
            return
        self._state = State.CLOSED
        self._too_late = self._peers.clock.callLater(CLOSE_TIMEOUT_S, self.abort)
        self.transport.resumeProducing()
        self.transport.loseConnection()

    @property
    def is_closed(self) -> bool:
        return self._state is State.CLOSED

    def abort(self) -> None:
        self._state = State.CLOSED
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        was_greeting = self._state is State.GREETING
        self._state = State.CLOSED
        for timer in (self._hello_timeout, self._too_late):
            if timer is not None and timer.active():
                timer.cancel()
        if is_secure(self.transport):
            from raftd.server.tls import why

            text = why(reason, self.transport)
            if was_greeting and not reason.check(ConnectionDone, ConnectionLost):
                self._peers.refused(self.peer or self._expected, self.transport.getPeer(), text)
        else:
            text = reason.getErrorMessage()
        self._peers.closed(self, text)


class PeerFactory(Factory):
    noisy = False

    def __init__(self, peers: PeerTransport, expected: int = 0) -> None:
        self._peers = peers
        self._expected = expected

    def buildProtocol(self, addr: object) -> PeerProtocol | None:
        return self._peers.build(self._expected)


class PeerService(ClientService):
    """Dials one node for as long as it runs."""

    # Its notices, one a second for a node that is down, would bury everything else.
    _log = Logger(observer=cast(Any, lambda event: None))


class PeerTransport:
    """All connections to other nodes: the node's Transport. `node` is set before the reactor runs."""

    node: Node

    def __init__(self, clock: Any, random: Random) -> None:
        #: With TLS: the cluster that the certificates of nodes must name.
        self.own_cluster: str | None = None
        #: And whether a node without TLS is believed, while a cluster changes over.
        self.accepts_plain = False
        self._openings: dict[int, int] = {}  # how many connections with a node have opened
        self.clock = clock
        self._log = Logger("raftd.peer")
        self._open: dict[int, PeerProtocol] = {}
        self._all: set[PeerProtocol] = set()
        self._strangers: OrderedDict[PeerProtocol, None] = OrderedDict()  # they dialled us, and are not recognised yet
        self._lines_left, self._lines_second = STRANGER_LINES, 0
        self._dirty: list[PeerProtocol] = []
        self._told: dict[object, str] = {}  # the last reason logged, so that a retry says nothing new
        self._backoff = backoffPolicy(_RETRY_FIRST_S, _RETRY_LAST_S, 1.5, random.random)

    def build(self, expected: int) -> PeerProtocol | None:
        """Return None if too many unknown connections are open: closed ones keep their descriptors for a moment."""
        if not expected and len(self._strangers) >= 2 * PEER_STRANGERS:
            return None
        protocol = PeerProtocol(self, expected)
        self._all.add(protocol)
        if not expected:
            self._strangers[protocol] = None
            waiting = [stranger for stranger in self._strangers if not stranger.is_closed]
            if len(waiting) > PEER_STRANGERS:
                waiting[0].abort()
        return protocol

    def retry_policy(self, peer: int) -> Callable[[int], float]:
        """A refused connection counts as made, so its backoff would start anew each time."""
        return lambda attempt: _RETRY_LAST_S if peer in self._told else self._backoff(attempt)

    # -- the node's Transport -----------------------------------------------------------------

    def send(self, node: int, message: PeerMessage) -> None:
        connection = self._open.get(node)
        if connection is not None:
            if not connection.outbox:
                self._dirty.append(connection)
            connection.outbox.append(encode(message))

    def flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        for connection in dirty:
            data = b"".join(connection.outbox)
            connection.outbox.clear()
            write_at_once(connection.transport, data)

    # -- from the connections -----------------------------------------------------------------

    def opened(self, connection: PeerProtocol) -> None:
        peer = connection.peer
        self._strangers.pop(connection, None)
        older = self._open.get(peer)
        self._open[peer] = connection
        self._openings[peer] = self._openings.get(peer, 0) + 1
        if older is not None:
            older.close()  # the other side has given it up, or it would not have dialled again
        if peer not in self._told:  # else the last one was refused, and this one may be too
            self._log.info("connected with node {peer}", peer=peer)
        self.node.link_changed(peer)

    def heard(self, peer: int) -> None:
        """A message, and no refusal."""
        if self._told.pop(peer, None) is not None:
            self._log.info("connected with node {peer}", peer=peer)

    def opened_with(self, peer: int) -> int:
        """How many connections with it have opened so far."""
        return self._openings.get(peer, 0)

    def is_certified(self, transport: Any, peer: int) -> bool:
        """Whether the other side is the node that it says it is, as far as certificates tell."""
        if self.own_cluster is None:
            return True
        if not is_secure(transport):
            return self.accepts_plain
        from raftd.server.tls import uris_of

        return node_uri(self.own_cluster, peer) in (uris_of(transport) or ())

    @property
    def reachable(self) -> set[int]:
        """The nodes with an open connection."""
        return set(self._open)

    def closed(self, connection: PeerProtocol, reason: str) -> None:
        self._all.discard(connection)
        self._strangers.pop(connection, None)
        connection.outbox.clear()
        if self._open.get(connection.peer) is connection:
            del self._open[connection.peer]
            if connection.peer not in self._told:
                self._log.info("lost the connection with node {peer}: {reason}", peer=connection.peer, reason=reason)
            self.node.link_changed(connection.peer)

    def refused(self, peer: int, address: Any, reason: str) -> None:
        reason = reason[:STRANGER_TEXT]
        who = f"node {peer}" if peer else f"a connection from {getattr(address, 'host', address)}"
        if self._is_news(peer or getattr(address, "host", None), reason):
            self._log.warn("{who} is refused: {reason}", who=who, reason=reason)

    def was_refused(self, peer: int, refusal: Refusal) -> None:
        if self._is_news(peer, refusal.text):
            self._log.warn("node {peer} refuses this node: {reason}", peer=peer, reason=refusal.text)
        self.node.was_refused(refusal)

    def _is_news(self, who: object, reason: str) -> bool:
        if self._told.get(who) == reason:
            return False
        if len(self._told) > 1_000:
            self._told.clear()  # strangers must not fill our memory
        self._told[who] = reason
        if isinstance(who, int):
            return True
        second = int(self.clock.seconds())  # strangers say a new thing every time, if they like
        if second != self._lines_second:
            self._lines_second, self._lines_left = second, STRANGER_LINES
        self._lines_left -= 1
        return self._lines_left >= 0

    def abort_all(self) -> None:
        for connection in list(self._all):
            connection.transport.abortConnection()


def dial(peers: PeerTransport, peer: int, endpoint: Any, clock: Any) -> PeerService:
    """The service that keeps a connection to `peer`."""
    return PeerService(endpoint, cast(Any, PeerFactory(peers, peer)), peers.retry_policy(peer), clock=clock)

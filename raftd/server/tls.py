"""TLS on every listener, by Twisted's own and OpenSSL.

A connection is given to the protocol of its listener once the handshake is done, so nothing of raftd reads a byte of a stranger before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, cast

from OpenSSL import SSL
from twisted.internet import interfaces
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from raftd.config import TlsMode
from raftd.limits import HANDSHAKES, HELLO_TIMEOUT_S, PEER_HANDSHAKES
from raftd.server.certificates import name_in, uris_in
from raftd.server.limiter import ConnectionLimiter
from raftd.server.sockets import speaks_tls


def uris_of(transport: Any) -> frozenset[str] | None:
    """The URIs in the certificate of the other side: none if it has shown no certificate; None for a connection without TLS."""
    if not isinstance(transport, SecureTransport):
        return None
    certificate = transport.getPeerCertificate()
    if certificate is None:
        return frozenset()
    return frozenset(uris_in(certificate.to_cryptography()))


def name_of(transport: Any) -> str:
    """The common name in the certificate of the other side; "" if there is none."""
    certificate = transport.getPeerCertificate()
    return name_in(certificate.to_cryptography()) if certificate is not None else ""


class SecureTransport(TLSMemoryBIOProtocol):
    """A connection with TLS, as its protocol sees it. `distrust`: why the certificate of the other side is not trusted, "" if it is."""

    is_secure = True  # `sockets.py` asks for it
    distrust = ""


@implementer(interfaces.IOpenSSLServerConnectionCreator, interfaces.IOpenSSLClientConnectionCreator)
class _Creator:
    """Asks for the context of each connection anew."""

    def __init__(self, context: Callable[[], SSL.Context]) -> None:
        self._context = context

    def _make(self, transport: SecureTransport) -> SSL.Connection:
        connection = SSL.Connection(self._context(), None)
        connection.set_app_data(transport)
        return connection

    serverConnectionForTLS = clientConnectionForTLS = _make


class _TlsFactory(TLSMemoryBIOFactory):
    """Twisted's, but what a turn writes is encrypted at once: it is one piece already."""

    protocol = SecureTransport
    noisy = False

    def __init__(self, context: Callable[[], SSL.Context], is_client: bool, factory: Any) -> None:
        super().__init__(cast(Any, _Creator(context)), is_client, factory)


@implementer(interfaces.IHandshakeListener)
class _ServerHandshake(Protocol):
    """Stands in for the protocol of a connection until its handshake is done."""

    transport: Any

    def __init__(self, listener: SecureListener, address: object) -> None:
        self._listener = listener
        self._address = address
        self._is_done = False

    def handshakeCompleted(self) -> None:
        self._is_done = True
        self._listener.gone(self.transport.transport)
        protocol = self._listener.factory.buildProtocol(self._address)
        if protocol is None:
            self.transport.abortConnection()
            return
        self.transport.wrappedProtocol = protocol
        protocol.makeConnection(self.transport)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._listener.gone(self.transport.transport)
        if not self._is_done:
            self._listener.failed(self._address, why(reason, self.transport))


class _HandshakeFactory(Factory):
    noisy = False

    def __init__(self, listener: SecureListener) -> None:
        self._listener = listener

    def buildProtocol(self, addr: object) -> _ServerHandshake:
        return _ServerHandshake(self._listener, addr)


_DISTRUSTED = "it does not trust this node's certificate: "
#: OpenSSL's reasons, and what a user calls them.
_WORDS = {
    "peer did not return a certificate": "it has shown no certificate",
    "wrong version number": "it speaks plain text, or another version of TLS",
    "http request": "it speaks plain text",
    "unsupported protocol": "its version of TLS is too old",
    "no shared cipher": "it knows no cipher that is good enough",
    "tlsv1 alert unknown ca": f"{_DISTRUSTED}another authority has signed it",
    "sslv3 alert bad certificate": f"{_DISTRUSTED}it has other names",
    "sslv3 alert certificate expired": f"{_DISTRUSTED}it has expired",
    "sslv3 alert certificate revoked": f"{_DISTRUSTED}it is revoked",
    "tlsv13 alert certificate required": "it wants a certificate of this node",
}
_WORDS |= {name.replace("sslv3", "ssl/tls"): text for name, text in _WORDS.items()}  # its newer name


def why(reason: Failure, transport: Any = None) -> str:
    """Why a connection with TLS was lost, in words."""
    distrust = getattr(transport, "distrust", "")
    if distrust:
        return f"its certificate is not trusted: {distrust}"
    if not isinstance(reason.value, SSL.Error):
        return str(reason.getErrorMessage())
    parts = reason.value.args[0] if reason.value.args and isinstance(reason.value.args[0], list) else []
    return "; ".join(_WORDS.get(part[2], part[2]) for part in parts) or "TLS was cut short"


class _FirstByte(Protocol):
    """Looks at the first byte of a connection, which tells TLS from plain text."""

    transport: Any

    def __init__(self, listener: SecureListener, address: object) -> None:
        self._listener = listener
        self.address = address
        self.is_over = False

    def connectionMade(self) -> None:
        self._listener.came(self)

    def dataReceived(self, data: bytes) -> None:
        factory = self._listener.factory_for(data[:1], self.address, self.transport)
        if factory is not None:
            self.become(factory, data)

    def become(self, factory: Any, data: bytes = b"") -> None:
        """From now on the connection is one of `factory`."""
        self.is_over = True
        protocol = factory.buildProtocol(self.address)
        if protocol is None:
            self.transport.abortConnection()
            return
        self.transport.protocol = protocol
        protocol.makeConnection(self.transport)
        if data:
            protocol.dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._listener.gone(self.transport)


class SecureListener(Factory):
    """A listener `name` with TLS in front of `factory`; in the mode `accept` with plain text, too."""

    noisy = False
    _log = Logger("raftd")

    def __init__(
        self, name: str, factory: Any, context: Callable[[], SSL.Context], mode: TlsMode, clock: Any, limiter: ConnectionLimiter
    ) -> None:
        """`limiter`: of all clients. Other nodes are none."""
        self.factory = factory
        self._name = name
        self._mode = mode
        self._clock = clock
        self._limiter = limiter
        self._tls = _TlsFactory(context, False, _HandshakeFactory(self))
        #: Connections whose handshake is not done, in the order in which they came, and when they must be.
        self._strangers: OrderedDict[Any, Any] = OrderedDict()
        self._is_for_peers = name == "peer"
        self._most = PEER_HANDSHAKES if self._is_for_peers else HANDSHAKES
        #: Those, and closed ones that are not gone yet: each has a descriptor.
        self._held: dict[Any, object] = {}

    def buildProtocol(self, addr: object) -> _FirstByte | None:
        """Return None if there is no descriptor for one more."""
        if self._is_for_peers:
            if len(self._held) >= 2 * PEER_HANDSHAKES:
                return None
        elif not self._limiter.admit(getattr(addr, "host", None)):
            return None
        return _FirstByte(self, addr)

    def came(self, protocol: _FirstByte) -> None:
        connection = protocol.transport
        self._held[connection] = protocol.address
        self._strangers[connection] = self._clock.callLater(HELLO_TIMEOUT_S, self._late, protocol)
        if len(self._strangers) > self._most:
            oldest = next(iter(self._strangers))
            self._forget(oldest)
            oldest.abortConnection()

    def _late(self, protocol: _FirstByte) -> None:
        """A client of the line protocol may have nothing to say; all others have had their time."""
        connection = protocol.transport
        if self._mode is TlsMode.ACCEPT and not protocol.is_over:
            self.gone(connection)
            protocol.become(self.factory)
        else:
            connection.abortConnection()

    def _forget(self, connection: Any) -> None:
        late = self._strangers.pop(connection, None)
        if late is not None and late.active():
            late.cancel()

    def gone(self, connection: Any) -> None:
        """It is lost, or no stranger any more: its handshake is done, or it speaks plain text that is accepted."""
        self._forget(connection)
        if connection in self._held:
            address = self._held.pop(connection)
            if not self._is_for_peers:
                self._limiter.left(getattr(address, "host", None))

    def factory_for(self, first: bytes, address: Any, connection: Any) -> Any:
        """What takes a connection that begins with this byte; None if nothing does."""
        if speaks_tls(first):
            return self._tls
        if self._mode is TlsMode.ACCEPT:
            self.gone(connection)
            return self.factory
        self._forget(connection)
        self.failed(address, "it speaks plain text, and this listener wants TLS")
        if self._name == "http":
            connection.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            connection.loseConnection()
        else:
            connection.abortConnection()
        return None

    def failed(self, address: Any, reason: str) -> None:
        """Say why a connection is refused."""
        if self._limiter.may_log():
            who = getattr(address, "host", address)
            self._log.warn("a connection from {who} to the {name} listener is refused: {reason}", who=who, name=self._name, reason=reason)


@implementer(interfaces.IStreamClientEndpoint)
class SecureEndpoint:
    """Connects to another node with TLS. In the mode `accept`, with plain text after TLS was tried in vain, and the other way round;
    `successes` returns how many connections with the node have opened so far."""

    def __init__(self, endpoint: Any, context: Callable[[], SSL.Context], mode: TlsMode, successes: Callable[[], int]) -> None:
        self._endpoint = endpoint
        self._context = context
        self._mode = mode
        self._successes = successes
        self._succeeded = 0
        self._is_secure = False

    def connect(self, protocol_factory: Any) -> Deferred[Any]:
        before, has_worked = self._is_secure, self._successes() > self._succeeded
        self._succeeded = self._successes()
        self._is_secure = self._mode is TlsMode.REQUIRED or has_worked or not self._is_secure
        connected: Deferred[Any]

        def unreachable(failure: Failure) -> Failure:
            self._is_secure = before  # that says nothing of TLS: the same again
            return failure

        if not self._is_secure:
            connected = self._endpoint.connect(protocol_factory)
        else:
            connected = self._endpoint.connect(_TlsFactory(self._context, True, protocol_factory))
            connected.addCallback(lambda transport: transport.wrappedProtocol)
        return connected.addErrback(unreachable)

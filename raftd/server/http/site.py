"""HTTP as twisted.web speaks it, bounded: connections, sizes, and how slowly a request may come.

A request that has arrived whole becomes a `Call`, which whoever serves it answers once, now or later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any, Protocol, cast
from urllib.parse import unquote_to_bytes

import msgspec
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http

from raftd.limits import HTTP_ARRIVAL_S, HTTP_BODY_SLACK, HTTP_IDLE_S
from raftd.node import Node
from raftd.server.clients import Clients
from raftd.server.stats import Counters

JSON = "application/json"


class Call:
    """One request. `path` is percent-decoded, part by part."""

    def __init__(self, request: _Request) -> None:
        self.method: str = request.method.decode("ascii", "replace")
        self.parts = [unquote_to_bytes(part).decode("utf-8", "replace") for part in request.path.split(b"/")[1:]]
        self.body: bytes = request.content.read() if request.content is not None else b""
        self._request: _Request | None = request
        #: Called once if the client goes away before it was answered.
        self.when_gone: Callable[[], None] = lambda: None
        request.notifyFinish().addErrback(self._gone)

    @property
    def is_open(self) -> bool:
        """Whether somebody waits for an answer still."""
        return self._request is not None

    def _gone(self, failure: Failure) -> None:
        if self._request is not None:
            self._request = None
            self.when_gone()

    def answer(self, status: int, body: bytes, kind: str = JSON, headers: Mapping[str, str] | None = None) -> None:
        """Once; nothing if nobody waits any more."""
        request, self._request = self._request, None
        if request is None:
            return
        request.channel.site.counters.http_answers[status] += 1
        request.setResponseCode(status)
        request.setHeader("Content-Type", kind)
        request.setHeader("Content-Length", str(len(body)))
        request.setHeader("X-Content-Type-Options", "nosniff")
        for name, value in (headers or {}).items():
            request.setHeader(name, value)
        if self.method != "HEAD":
            request.write(body)
        request.finish()

    def say(self, status: int, value: object, headers: Mapping[str, str] | None = None) -> None:
        """As JSON."""
        self.answer(status, msgspec.json.encode(value), headers=headers)


class Handler(Protocol):
    def __call__(self, call: Call) -> None:
        """Answer it, now or later. An exception is a bug: the client gets 500, the node goes on."""


class _Request(http.Request):
    channel: Any
    content: Any
    path: bytes
    _log = Logger("raftd.http")

    def gotLength(self, length: int | None) -> None:
        self._arrived = 0
        self._most: int = self.channel.most_bytes()
        if length is not None and length > self._most:
            self._too_large()
        self.content = BytesIO()  # Twisted would take a temporary file for more than 100 kB, and a descriptor that nobody has counted

    def handleContentChunk(self, data: bytes) -> None:
        self._arrived += len(data)
        if self._arrived > self._most:
            self._too_large()
        else:
            super().handleContentChunk(data)

    def _too_large(self) -> None:
        """What more of it comes is not read."""
        if not self._refused:
            self._refused = True
            self.channel.refuse(b"413 Content Too Large", f"the body is larger than {self._most} bytes")

    _refused = False

    def process(self) -> None:
        """It has arrived whole. A thousand at once take turns with all other clients: none may cost a heartbeat."""
        clients = self.channel.site.clients
        if self._refused:
            return
        if clients.has_time():
            self._serve()
        else:
            clients.wait(self)

    def go_on(self) -> None:
        """The turn that it waited for has come."""
        self._serve()

    def hung_up(self, is_gone: bool) -> None:
        """Connections are always read: their end is heard."""

    def connectionLost(self, reason: Failure) -> None:
        if self.channel is not None:
            self.channel.site.clients.forget(self)
        super().connectionLost(reason)

    def _serve(self) -> None:
        try:
            self.channel.site.handler(Call(self))
        except Exception:  # of ours, in one request: it must cost that one, and not the connection's reader or the turn
            self._log.failure("a bug in raftd: a request is answered with 500, the node goes on")
            if not self.finished and not self._disconnected:
                self.setResponseCode(500)
                self.setHeader("Content-Type", JSON)
                self.write(b'{"success":false}')
                self.finish()


class Channel(http.HTTPChannel):
    """One connection."""

    requestFactory = _Request
    maxHeaders = 100
    transport: Any
    site: Site
    _arrival: Any = None

    def most_bytes(self) -> int:
        return self.site.node.max_job_size * 2 + HTTP_BODY_SLACK

    def lineReceived(self, line: bytes) -> None:
        if self._arrival is None and line:
            self._arrival = self.callLater(HTTP_ARRIVAL_S, self._too_slow)
        super().lineReceived(line)

    def allContentReceived(self) -> None:
        self._has_arrived()
        super().allContentReceived()

    def _has_arrived(self) -> None:
        if self._arrival is not None and self._arrival.active():
            self._arrival.cancel()
        self._arrival = None

    def _too_slow(self) -> None:
        self._arrival = None
        self.refuse(b"408 Request Timeout", f"the request has not arrived within {HTTP_ARRIVAL_S:g} s")

    def refuse(self, status: bytes, why: str) -> None:
        """Before it has arrived whole: there is no going on with this connection."""
        body = msgspec.json.encode({"success": False, "detail": why})
        head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
        self.transport.write(head % (status, len(body)) + body)
        self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._has_arrived()
        super().connectionLost(reason)
        self.site.clients.left()


class Site(http.HTTPFactory):
    """`node` is set before the reactor runs. `handler` gets every call."""

    noisy = False
    protocol = cast(Any, Channel)
    node: Node

    def __init__(self, clock: Any, clients: Clients, counters: Counters, handler: Handler) -> None:
        super().__init__(timeout=HTTP_IDLE_S, reactor=clock)
        self.counters = counters
        self.clients = clients
        self.handler = handler

    def buildProtocol(self, addr: IAddress | None) -> Any:
        if not self.clients.admit():
            return None
        channel = super().buildProtocol(addr)
        cast(Any, channel).site = self
        return channel

    def log(self, request: Any) -> None:
        """No access log: whoever wants one puts a proxy in front."""

"""HTTP as twisted.web speaks it, bounded: connections, sizes, and how slowly a request may come.

A complete request becomes a `Call`, which its handler answers once, now or later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from io import BytesIO
from typing import Any, Protocol, cast
from urllib.parse import unquote_to_bytes

import msgspec
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http

from raftd.jobs.rights import Login
from raftd.limits import HTTP_BODY_BYTES
from raftd.node.loop import Node
from raftd.server.authentication import Authentication
from raftd.server.http import problems
from raftd.server.http.origin import has_foreign_name, is_foreign
from raftd.server.http.sessions import BrowserSession
from raftd.server.limiter import ConnectionLimiter
from raftd.server.sockets import unsent
from raftd.server.stats import Counters

#: How often an answer that has not left at once is looked at (seconds).
LEAVING_CHECK_S = 0.1
#: A request that is refused before it has arrived whole is read on for so long (seconds), or the client would not get to read why.
HTTP_LINGER_S = 1.0
#: A request over HTTP must have arrived by then (seconds), and a connection between two requests may be idle for so long.
HTTP_ARRIVAL_S = 10.0
HTTP_IDLE_S = 60
#: The most that bodies under way to this node may take together (bytes).
HTTP_ARRIVING_BYTES = 64 << 20
#: What a body over HTTP may have besides the job itself, which JSON may make twice as long (bytes).
HTTP_BODY_SLACK = 64 << 10

JSON = "application/json"
#: What a browser is told with each answer: nothing here is a script, a frame, or for other sites to know of.
_SAFE = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
#: The only part of a target that is no path, as `*` and `host:80` are.
NO_PATH = "*"


class Call:
    """One request. `path` is percent-decoded, part by part."""

    def __init__(self, request: _Request) -> None:
        self.method: str = request.method.decode("ascii", "replace")
        self.parts = [unquote_to_bytes(part).decode("utf-8", "replace") for part in _path(request.path).split(b"/")[1:]] or [NO_PATH]
        #: What follows the "?", as it was sent.
        self.query: str = request.uri.partition(b"?")[2].decode("ascii", "replace")
        self.body: bytes = request.content.read() if request.content is not None else b""
        self._headers = request.requestHeaders
        self._channel: Channel = request.channel
        self._request: _Request | None = request
        #: Who calls, as far as he has shown it (`callers.py`).
        self.login: Login | None = None
        #: That of his browser, if it is by its cookie that he has shown it.
        self.session: BrowserSession | None = None
        #: Called once if the client goes away before it was answered.
        self.when_gone: Callable[[], None] = lambda: None
        request.notifyFinish().addErrback(self._gone)
        self._channel.site.open_calls.add(self)

    @property
    def is_open(self) -> bool:
        """Whether the client still waits for an answer."""
        return self._request is not None

    def header(self, name: str) -> str | None:
        """The first of this name. Its bytes may be any (schemathesis)."""
        raw = self._headers.getRawHeaders(name.encode())
        return raw[0].decode("latin-1") if raw else None

    @property
    def is_foreign(self) -> bool:
        """Whether it comes from a page of another site."""
        return is_foreign(self.method, self.header, self._channel.site.names)

    @property
    def has_foreign_name(self) -> bool:
        """Whether a browser asks by a name that no node has."""
        return has_foreign_name(self.method, self.header, self._channel.site.names)

    def _gone(self, failure: Failure) -> None:
        if self._take() is not None:
            self.when_gone()

    def _take(self) -> _Request | None:
        """What waits for the answer, once."""
        request, self._request = self._request, None
        self._channel.site.open_calls.discard(self)
        return request

    def answer(self, status: int, body: bytes, kind: str = JSON, headers: Mapping[str, str] | None = None) -> None:
        """Answer once; do nothing if the client is gone."""
        request = self._take()
        if request is None:
            return
        _begin(request, status, kind, headers)
        if status != 204:
            request.setHeader("Content-Length", str(len(body)))
        if self.method != "HEAD":
            request.write(body)
        request.finish()

    def say(self, status: int, value: object, headers: Mapping[str, str] | None = None) -> None:
        """As JSON, a line of it."""
        self.answer(status, msgspec.json.encode(value) + b"\n", headers=headers)

    @property
    def host(self) -> str | None:
        """The address that it comes from."""
        return self._channel.host

    @property
    def transport(self) -> Any:
        """The connection that it comes over, which knows the certificate of the other side."""
        return self._channel.transport

    @property
    def known(self) -> dict[str | BrowserSession, Login]:
        """Who has shown himself over this connection, by what he has shown: a header, or a session's cookie."""
        return self._channel.known

    def enters(self, login: Login) -> bool:
        """The connection is this user's from now on, if he may have one more. What was known of it before is forgotten: a proxy may
        speak for many, one after the other."""
        return self._channel.enters(login)

    def refused(self) -> None:
        """The caller may not do that."""
        self.problem("not-authorized")
        self.note_refusal()

    def note_refusal(self, why: str = "") -> None:
        """In the log."""
        self._channel.site.note_refusal(self, why)

    def problem(self, name: str, detail: str = "", headers: Mapping[str, str] | None = None) -> None:
        """As `problems.py` has it."""
        self.answer(problems.PROBLEMS[name].status, problems.encode(name, detail), problems.KIND, headers)

    def leaving(self, left: Callable[[bool], None]) -> None:
        """Once it was answered: `left` is called in a later turn of the reactor, with whether the answer has left this process while
        its caller was there. One that takes none of it is given up."""
        self._channel.leaving(left)

    def stream(self, kind: str, producer: Any, headers: Mapping[str, str] | None = None) -> Stream | None:
        """Answer bit by bit. `producer` (an IPushProducer) is paused when needed, and stopped when the client has gone."""
        request = self._take()
        if request is None:
            return None
        _begin(request, 200, kind, headers)
        if self.method == "HEAD":
            request.finish()
            return None
        request.registerProducer(producer, True)
        return Stream(request)


def _path(target: bytes) -> bytes:
    """Of a target as a server or as a proxy is asked; empty if it names none."""
    if target.startswith(b"/"):
        return target
    scheme, _, rest = target.partition(b"://")
    return b"/" + rest.partition(b"/")[2] if scheme in (b"http", b"https") and rest else b""


class Stream:
    """An answer that has begun."""

    def __init__(self, request: _Request) -> None:
        self._request = request

    def write(self, data: bytes) -> None:
        self._request.write(data)

    @property
    def unsent(self) -> int:
        """Bytes that the client's side has not taken."""
        return unsent(self._request.channel.transport)

    def finish(self) -> None:
        self._request.unregisterProducer()
        self._request.finish()

    def abort(self) -> None:
        self._request.channel.transport.abortConnection()


def _begin(request: _Request, status: int, kind: str, headers: Mapping[str, str] | None) -> None:
    request.channel.site.counters.http_answers[status] += 1
    request.setResponseCode(status, HTTPStatus(status).phrase.encode())
    if status != 204:
        request.setHeader("Content-Type", kind)
    request.setHeader("Date", http.datetimeToString().decode())
    for name, value in _SAFE.items():
        request.setHeader(name, value)
    for name, value in (headers or {}).items():
        request.setHeader(name, value)


class Handler(Protocol):
    def __call__(self, call: Call) -> None:
        """Answer it, now or later. An exception is a bug: the client gets 500, the node continues."""


class _Request(http.Request):
    channel: Any
    content: Any
    path: bytes
    _log = Logger("raftd.http")

    def __init__(self, channel: Any, queued: object = False) -> None:
        super().__init__(channel, queued, parsePOSTFormSubmission=False)

    def gotLength(self, length: int | None) -> None:
        self._most: int = self.channel.most_bytes()
        if length is not None and length > self._most:
            self._too_large()
        self.content = BytesIO()  # Twisted would take a temporary file for more than 100 kB, and a descriptor that is not counted

    def handleContentChunk(self, data: bytes) -> None:
        self._arrived += len(data)
        self.channel.site.arriving_bytes += len(data)
        if self._arrived > self._most:
            self._too_large()
        elif self.channel.site.arriving_bytes > HTTP_ARRIVING_BYTES:
            self._refuse("overloaded", "bodies of too many requests are on their way here at once: send it again")
        else:
            super().handleContentChunk(data)

    def _too_large(self) -> None:
        """What more of it comes is not read."""
        self._refuse("too-large", f"the body is larger than {self._most} bytes")

    def _refuse(self, problem: str, why: str) -> None:
        if not self._refused:
            self._refused = True
            self._has_arrived()
            self.channel.refuse(problem, why)

    def _has_arrived(self) -> None:
        """What it holds counts no more among what is on its way."""
        self.channel.site.arriving_bytes -= self._arrived
        self._arrived = 0

    _refused = False
    _arrived = 0

    def process(self) -> None:
        """It has arrived whole. A thousand at once take turns with all other clients: none may cost a heartbeat."""
        limiter = self.channel.site.limiter
        if self._refused:
            return
        self._has_arrived()
        if limiter.has_time(self.channel.site.clock.seconds()):
            self._serve()
        else:
            limiter.wait(self)

    def resume(self) -> None:
        """The turn that it waited for has come."""
        self._serve()

    def hung_up(self, is_gone: bool) -> None:
        """While a request is served its connection is read: its end is heard."""

    def connectionLost(self, reason: Failure) -> None:
        if self.channel is not None:
            self.channel.site.limiter.forget(self)
            self._has_arrived()
        super().connectionLost(reason)

    def _serve(self) -> None:
        try:
            self.channel.site.handler(Call(self))
        except Exception:  # of ours, in one request: it must cost that one, and not the connection's reader or the turn
            if self.channel.site.limiter.may_log():
                self._log.failure("a bug in raftd: a request is answered with 500, the node continues")
            if not self.finished and not self._disconnected:
                body = problems.encode("internal")
                _begin(self, 500, problems.KIND, {"Content-Length": str(len(body))})
                self.write(body)
                self.finish()


class Channel(http.HTTPChannel):
    """One connection."""

    requestFactory = cast(Any, _Request)
    maxHeaders = 100
    transport: Any
    site: Site
    host: str | None = None
    _arrival: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[str | BrowserSession, Login] = {}
        self._user = ""  # whose connection it is counted as

    def enters(self, login: Login) -> bool:
        """As `Call.enters`."""
        self.known.clear()
        self._leave()
        name = self.site.authentication.enters(self.site.node.machine, login)
        self._user = name or ""
        return name is not None

    def _leave(self) -> None:
        if self._user:
            self.site.authentication.left(self._user)
            self._user = ""

    _is_lost = False
    _said_all = False  # before it was
    _is_refused = False
    _dropped = 0  # bytes that came behind a request that was still served

    def most_bytes(self) -> int:
        return max(HTTP_BODY_BYTES, self.site.node.max_job_size * 2 + HTTP_BODY_SLACK)

    def leaving(self, left: Callable[[bool], None]) -> None:
        """As `Call.leaving`: not in this turn, for a caller who has hung up may be heard of in the next."""
        self.callLater(0, partial(self._poll_leaving, left, unsent(self.transport), 0.0))

    def _poll_leaving(self, left: Callable[[bool], None], before: int, idle_s: float) -> None:
        """`before`: what was unsent at the last look; for so long none of it has been taken."""
        now = unsent(self.transport)
        if self._is_lost or not now:
            left(not self._is_lost or self._said_all)
        elif idle_s >= self.site.node.config.limits.no_progress_s and now >= before:
            self.transport.abortConnection()
            left(False)
        else:
            idle_s = idle_s + LEAVING_CHECK_S if now >= before else 0.0
            self.callLater(LEAVING_CHECK_S, partial(self._poll_leaving, left, now, idle_s))

    def dataReceived(self, data: bytes) -> None:
        if self._is_refused:
            return  # it is read on for a moment, so that the client can finish, and read why
        if self._arrival is None and not self._handlingRequest and data.strip():
            self._arrival = self.callLater(HTTP_ARRIVAL_S, self._too_slow)
        super().dataReceived(data)

    def lineReceived(self, line: bytes) -> None:
        if not self._is_refused:  # what stood behind it in the same packet
            super().lineReceived(line)

    def rawDataReceived(self, data: bytes) -> None:
        """A request that arrives before the last one is answered is dropped, and the connection closes after that answer. Reading
        continues, so a hang-up is noticed."""
        if self._is_refused:
            return
        if not self._handlingRequest:
            super().rawDataReceived(data)
            return
        self.persistent = False
        self._dropped += len(data)
        if self._dropped > HTTP_BODY_BYTES:
            self.transport.abortConnection()

    def requestDone(self, request: Any) -> None:
        super().requestDone(request)
        if self._waitingForTransport:  # no further request before the answer is taken
            cast(Any, self._networkProducer).pauseProducing()

    def lineLengthExceeded(self, line: bytes) -> None:
        self.refuse("bad-request", "a line of the request is too long")

    def _respondToBadRequestAndDisconnect(self) -> None:
        self.refuse("bad-request", "this is no HTTP, or not as it may be")

    def _send100Continue(self) -> None:
        if not self._is_refused:
            super()._send100Continue()

    def allContentReceived(self) -> None:
        self._has_arrived()
        super().allContentReceived()

    def _has_arrived(self) -> None:
        if self._arrival is not None and self._arrival.active():
            self._arrival.cancel()
        self._arrival = None

    def _too_slow(self) -> None:
        self._arrival = None
        self.refuse("too-slow", f"the request has not arrived within {HTTP_ARRIVAL_S:g} s")

    def refuse(self, problem: str, why: str) -> None:
        """Before it has arrived whole: there is no going on with this connection."""
        if self._is_refused:
            return
        self._is_refused = True
        self._has_arrived()
        status = problems.PROBLEMS[problem].status
        body = problems.encode(problem, why)
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: {problems.KIND}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.site.counters.http_answers[status] += 1
        self.transport.write(head.encode() + body)
        self.callLater(HTTP_LINGER_S, self.transport.loseConnection)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._is_lost = True
        self._said_all = not unsent(self.transport)
        self._has_arrived()
        self._leave()
        super().connectionLost(reason)
        self.site.limiter.left(self.host)


class Site(http.HTTPFactory):
    """`node` is set before the reactor runs. `handler` gets every call."""

    noisy = False
    protocol = cast(Any, Channel)
    node: Node

    _log = Logger("raftd.http")

    def __init__(
        self,
        clock: Any,
        limiter: ConnectionLimiter,
        counters: Counters,
        authentication: Authentication,
        handler: Handler,
        names: frozenset[str],
    ) -> None:
        """`names`: those by which nodes of the cluster are known."""
        super().__init__(timeout=HTTP_IDLE_S, reactor=clock)
        self.clock = clock
        self.counters = counters
        self.limiter = limiter
        self.authentication = authentication
        self.handler = handler
        self.names = names
        self.open_calls: set[Call] = set()
        #: Of bodies that have not arrived whole.
        self.arriving_bytes = 0

    def note_refusal(self, call: Call, why: str) -> None:
        """In the log: who may not do what."""
        machine = self.node.machine
        user = machine.access.user_of(call.login, machine.now_ms)
        if self.limiter.may_log():
            who = f"user {user}" if user else why or "nobody who is known"
            what = f"{call.method} /{'/'.join(call.parts)}"
            self._log.info("not authorized: {who} at {host}: {what!r}", who=who, host=call.host, what=what)

    def stop(self) -> None:
        """Answer the open calls with the reason why they fail."""
        for call in list(self.open_calls):
            call.problem("stopping")

    def buildProtocol(self, addr: IAddress | None) -> Any:
        host = getattr(addr, "host", None)
        if not self.limiter.admit(host):
            return None
        channel: Any = super().buildProtocol(addr)
        # twisted.web puts what it has negotiated before the channel
        made = getattr(channel, "_channel", channel)
        channel.site = made.site = self
        made.host = host
        return channel

    def log(self, request: Any) -> None:
        """There is no access log; a proxy can write one."""

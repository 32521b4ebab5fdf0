"""Ask something of the cluster, over the client listener of any node, in a bounded time; for the command line."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, TypeVar

from raftd.client.address import HostPort, url_or_default
from raftd.client.credentials import CredentialFiles, credentials_of
from raftd.client.tls import TlsFiles, connected, why
from raftd.errors import FrameError, HelloRefused, UnknownUser
from raftd.wire import client as w
from raftd.wire.frames import FrameDecoder

_T = TypeVar("_T")

_RECV_BYTES = 64 << 10
_HELLO_S = 5.0


class NoAnswer(Exception):
    """The node cannot be reached, or what answers is none; the text says why."""


class Unreachable(NoAnswer):
    """Nothing was asked."""


class NotAuthorized(NoAnswer):
    """The node does not know who asks. Nothing was asked."""


class Refused(Unreachable):
    """The node does not talk to this client, and says why."""


class TimedOut(NoAnswer):
    """It may come yet."""


class Connection:
    """To one client listener; one request at a time. As a context it is closed. Every method raises NoAnswer: then what was asked may
    have been done all the same."""

    def __init__(
        self, address: HostPort, timeout_s: float, tls: TlsFiles | None = None, credentials: CredentialFiles | None = None
    ) -> None:
        """`credentials`: by default what $RAFTD_URL or $RAFTD_TOKEN says. Raises Unreachable."""
        self._timeout_s = timeout_s
        self._decoder = FrameDecoder()
        try:
            shown = (credentials if credentials is not None else credentials_of(url_or_default(None))).read()
            self._socket = connected(address, min(timeout_s, _HELLO_S), tls)
        except (OSError, ValueError) as error:  # UnicodeError among them
            raise Unreachable(why(error)) from None
        try:
            self._send(w.encode_hello(w.SessionHello("", b"", "", *shown) if any(shown) else w.ClientHello()))
            self._receive(w.decode_node_hello, min(timeout_s, _HELLO_S))
        except (NotAuthorized, Refused):
            self._socket.close()
            raise
        except TimedOut:
            self._socket.close()
            raise Unreachable(
                f"no hello within {min(timeout_s, _HELLO_S):g} s: is that a line listener? The client listener is wanted"
            ) from None
        except NoAnswer as reason:
            self._socket.close()
            raise Unreachable(str(reason) if tls is not None else f"{reason} (does it want TLS, raftds://?)") from None
        self._decoder.greeted()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()

    def ask(self, request: w.Request) -> w.Answer:
        self._send(w.encode_request(request))
        answer = self._receive(w.decode_answer, self._timeout_s)
        if answer.id not in (request.id, 0):
            raise NoAnswer("it answers something else")
        return answer

    def _send(self, data: bytes) -> None:
        try:
            self._socket.settimeout(self._timeout_s)
            self._socket.sendall(data)
        except OSError as error:
            raise NoAnswer(why(error)) from None

    def _receive(self, decode: Callable[[bytes], _T], timeout_s: float) -> _T:
        deadline_s = time.monotonic() + timeout_s
        try:
            while (body := self._decoder.next_frame()) is None:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    raise TimedOut("timed out")
                self._socket.settimeout(left_s)
                data = self._socket.recv(_RECV_BYTES)
                if not data:
                    raise NoAnswer("it closes the connection without an answer")
                self._decoder.feed(data)
            return decode(body)
        except TimeoutError:
            raise TimedOut("timed out") from None
        except OSError as error:
            raise NoAnswer(why(error)) from None
        except UnknownUser as error:
            raise NotAuthorized(str(error)) from None
        except HelloRefused as error:
            raise Refused(str(error)) from None
        except FrameError as error:
            raise NoAnswer(f"what listens there is no client listener of raftd ({error})") from None


def connect_to_any(
    addresses: Sequence[HostPort], timeout_s: float, tls: TlsFiles | None = None, credentials: CredentialFiles | None = None
) -> Connection:
    """To the first that can be reached. Raises NoAnswer."""
    why: list[str] = []
    for address in addresses:
        try:
            return Connection(address, timeout_s, tls, credentials)
        except Unreachable as reason:
            why.append(f"{where(address)}: {reason}")
    raise Unreachable("; ".join(why))


def printable(text: str) -> str:
    """What others say must not steer a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def where(address: HostPort) -> str:
    """As it is written: HOST:PORT, an IPv6 address in brackets."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

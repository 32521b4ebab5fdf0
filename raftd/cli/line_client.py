"""A client of the line protocol for people: it sends what they type, and shows what comes."""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from raftd.client.address import HostPort
from raftd.client.connection import where
from raftd.client.tls import TlsFiles, tunnel, why
from raftd.errors import RaftdError

_CONNECT_S = 3.0
_AGAIN_S = 0.3
_RECV_BYTES = 64 << 10
#: More than the size of any reply has.
_SIZE_DIGITS = 12
#: Replies whose last number is the size of what follows.
_WITH_DATA = (b"RESERVED ", b"FOUND ", b"OK ")


class NotConnected(RaftdError):
    """No node could be reached, or the connection was lost."""


class Replies:
    """What comes, reply by reply."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Those that are complete now, with the data that belongs to them."""
        self._buffer += data
        found = []
        while (reply := self._next()) is not None:
            found.append(reply)
        return found

    def _next(self) -> bytes | None:
        line, end, _ = self._buffer.partition(b"\r\n")
        if not end:
            return None
        size = len(line) + 2
        if line.startswith(_WITH_DATA):
            last = line.rpartition(b" ")[2]
            size += int(last) + 2 if last.isdigit() and len(last) < _SIZE_DIGITS else 0
        if len(self._buffer) < size:
            return None
        reply, self._buffer = self._buffer[:size], self._buffer[size:]
        return reply


class LineClient:
    """Connected to one of `addresses`; when that connection is lost, to the next, if `goes_on`. `show` gets each reply, `tell` what else is
    to be known; both are called in a thread of this."""

    def __init__(
        self,
        addresses: list[HostPort],
        show: Callable[[bytes], None],
        tell: Callable[[str], None],
        goes_on: bool = True,
        tls: TlsFiles | None = None,
    ) -> None:
        self._tls = tls
        self._goes_on = goes_on
        self._addresses = deque(addresses)
        self._show = show
        self._tell = tell
        self._changed = threading.Condition()
        self._socket: socket.socket | None = None
        self._asked: deque[bytes] = deque()  # the commands that are not answered
        self._is_closed = False
        self._error: Exception | None = None

    def connect(self) -> None:
        """Raises NotConnected."""
        problems = []
        for _ in range(len(self._addresses)):
            address = self._addresses[0]
            try:
                connection = tunnel(address, _CONNECT_S, self._tls)
            except (OSError, ValueError) as error:
                problems.append(f"{where(address)}: {why(error)}")
                self._addresses.rotate(-1)
                continue
            connection.settimeout(None)
            with self._changed:
                self._socket = connection
                self._changed.notify_all()
            threading.Thread(target=self._read, args=(connection,), daemon=True).start()
            return
        raise NotConnected("; ".join(problems))

    @property
    def address(self) -> HostPort:
        """The node that is talked to, or tried next."""
        return self._addresses[0]

    def send(self, command: bytes, body: bytes | None = None) -> None:
        """A line, and the body of a put. Raises NotConnected, or what `show` has raised."""
        with self._changed:
            if self._error is not None:
                raise self._error
            if self._socket is None:
                raise NotConnected(f"not connected; {where(self.address)} is tried next")
            if command.split(b" ")[0].lower() != b"quit":
                self._asked.append(command)
            connection = self._socket
        data = command + b"\r\n" + (body + b"\r\n" if body is not None else b"")
        try:
            connection.sendall(data)  # replies are read meanwhile
        except OSError as error:
            raise NotConnected(f"{where(self.address)}: {error.strerror or error}") from None

    def wait(self) -> bool:
        """Until everything is answered, or the connection is lost: then False. Raises what `show` has raised."""
        with self._changed:
            self._changed.wait_for(lambda: not self._asked or self._socket is None)
            if self._error is not None:
                raise self._error
            return not self._asked and self._socket is not None

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            if self._socket is not None:
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def _read(self, connection: socket.socket) -> None:
        try:
            self._read_all(connection)
        except Exception as error:  # of `show`: its output may be closed
            self._error = error
            self._is_closed = True
        connection.close()
        with self._changed:
            unanswered, is_closed = list(self._asked), self._is_closed
            self._socket = None
            self._changed.notify_all()
        if self._goes_on and not is_closed:
            self._lost(unanswered)

    def _read_all(self, connection: socket.socket) -> None:
        replies = Replies()
        while True:
            try:
                data = connection.recv(_RECV_BYTES)
            except OSError:
                data = b""
            if not data:
                return
            for reply in replies.feed(data):
                self._show(reply)
                with self._changed:
                    if self._asked:
                        self._asked.popleft()
                    self._changed.notify_all()

    def _lost(self, unanswered: list[bytes]) -> None:
        lost = self.address
        self._addresses.rotate(-1)
        commands = ", ".join(command.decode(errors="replace") for command in unanswered)
        self._tell(f"the connection to {where(lost)} is lost" + (f"; no answer to: {commands}" if commands else ""))
        with self._changed:
            self._asked.clear()
        while not self._is_closed:
            with suppress(NotConnected):
                self.connect()
                self._tell(f"connected to {where(self.address)}: `use` and `watch` begin anew")
                return
            with self._changed:
                self._changed.wait(_AGAIN_S)

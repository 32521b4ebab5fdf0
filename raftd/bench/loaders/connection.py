"""What the load asks of a client, whatever protocol it speaks: put a job, take a job (reserve and delete it)."""

from __future__ import annotations

import socket
import ssl
from abc import ABC, abstractmethod

from raftd.client.tls import TlsFiles, connected

#: How long a server may take for an answer before the measurement is given up, in seconds.
NO_ANSWER_S = 10.0
#: Small enough for the allocator to serve from its heap: a larger one is mapped and unmapped for each answer, or not, as the heap
#: happens to lie, and the load then takes twice the time for the same work.
_RECV_BYTES = 64 << 10


class LoadError(Exception):
    """The server closed a connection, fell silent, or answered what it should not; the text says what."""


class Connection(ABC):
    """One client. After `receive`, `puts_done` and `takes_done` have grown by what is complete; the load sets them back.

    `tube`: where its jobs go and come from. `body`: of every job; it holds no line break. Raises OSError or LoadError.
    """

    def __init__(self, address: tuple[str, int], tube: str, body: bytes, tls: TlsFiles | None = None) -> None:
        self.socket = connected(address, NO_ANSWER_S, tls)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.puts_done = 0
        self.takes_done = 0

    @abstractmethod
    def put(self, count: int) -> None:
        """Ask for so many puts. Each is done when the server has confirmed it."""

    @abstractmethod
    def take(self, count: int) -> None:
        """Ask for so many jobs, and delete each that comes. Each is done when the delete is confirmed."""

    @abstractmethod
    def receive(self) -> None:
        """Read once, and go on with what has come. Raises LoadError or OSError."""

    def _read(self) -> bytes:
        data = self.socket.recv(_RECV_BYTES)
        if not data:
            raise LoadError("the server closed a connection")
        while isinstance(self.socket, ssl.SSLSocket) and self.socket.pending():  # which no poll shows
            data += self.socket.recv(_RECV_BYTES)
        return data

    def close(self) -> None:
        self.socket.close()


def unexpected(answer: bytes) -> LoadError:
    """What to raise for an answer that the protocol does not allow here, or that says no."""
    return LoadError(f"an answer began with {answer[:80]!r}")

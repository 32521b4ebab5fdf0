"""Real nodes on loopback, and a plain blocking client of the line listener."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Self

import yaml

from raftd.bench.local import LocalCluster, wait_for
from raftd.client.tls import TlsFiles, connected

TWISTD = [str(Path(sys.executable).parent / "twistd")]


class Closed(Exception):
    """The connection is gone: the outcome of what was asked is unknown."""


class LineClient:
    """One connection to a line listener. Any method may raise Closed."""

    def __init__(self, port: int, timeout_s: float = 30.0, tls: TlsFiles | None = None) -> None:
        try:
            self._socket = connected(("127.0.0.1", port), timeout_s, tls)
        except OSError as error:
            raise Closed from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")

    def send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise Closed from error

    def line(self) -> bytes:
        """The next line of an answer, without its CRLF."""
        try:
            line = self._file.readline()
        except OSError as error:
            raise Closed from error
        if not line.endswith(b"\r\n"):
            raise Closed
        return line[:-2]

    def data(self, size: int) -> bytes:
        try:
            data = self._file.read(size + 2)
        except OSError as error:
            raise Closed from error
        if len(data) != size + 2:
            raise Closed
        return data[:-2]

    def ask(self, line: bytes) -> bytes:
        self.send(line + b"\r\n")
        return self.line()

    def put(self, body: bytes, pri: int = 0, delay: int = 0, ttr: int = 60) -> int:
        self.send(b"put %d %d %d %d\r\n%b\r\n" % (pri, delay, ttr, len(body), body))
        answer = self.line()
        assert answer.startswith(b"INSERTED "), answer
        return int(answer.split()[1])

    def reserve(self, timeout: int | None = None) -> tuple[int, bytes] | None:
        answer = self.ask(b"reserve" if timeout is None else b"reserve-with-timeout %d" % timeout)
        if answer in (b"TIMED_OUT", b"DEADLINE_SOON"):
            return None
        word, id, size = answer.split()
        assert word == b"RESERVED", answer
        return int(id), self.data(int(size))

    def delete(self, id: int) -> bool:
        return self.ask(b"delete %d" % id) == b"DELETED"

    def reserve_and_delete(self, id: int) -> bool:
        """The very job, whatever else is there."""
        word, reserved, size = self.ask(b"reserve-job %d" % id).split()
        assert (word, int(reserved)) == (b"RESERVED", id)
        self.data(int(size))
        return self.delete(id)

    def stats(self) -> dict[str, str]:
        word, size = self.ask(b"stats").split()
        assert word == b"OK"
        return {key: str(value) for key, value in yaml.load(self.data(int(size)), yaml.BaseLoader).items()}

    def close(self) -> None:
        self._file.close()
        self._socket.close()


class ProcessCluster(LocalCluster):
    """Nodes as the demo runs them, and clients of them."""

    def __init__(self, directory: Path, count: int, **settings: object) -> None:
        super().__init__(directory, count, cluster="test", **settings)

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def client(self, node: int) -> LineClient:
        """A client, once the node answers. That it can be connected to says too little: for a moment after a node was killed, the copy that
        it made of itself for a snapshot may hold its listener, and ends with it."""

        def connect() -> LineClient | None:
            self.running[node].check()
            try:
                client = LineClient(self.addresses[node]["line"], tls=self.tls)
                client.stats()
                return client
            except Closed:
                return None

        return wait_for(connect, what=f"node {node} answering")

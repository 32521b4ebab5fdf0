"""A client of the line protocol: raftd's and beanstalkd's."""

from __future__ import annotations

from raftd.bench.loaders.connection import Connection, unexpected
from raftd.client.tls import TlsFiles


class BeanstalkdConnection(Connection):
    """A take is `reserve`, and `delete` of what it gave."""

    def __init__(self, address: tuple[str, int], tube: str, body: bytes, tls: TlsFiles | None = None) -> None:
        super().__init__(address, tube, body, tls)
        self._put = b"put 0 0 3600 %d\r\n%b\r\n" % (len(body), body)
        self._body = body
        self._rest = b""
        self._ask(f"use {tube}", f"USING {tube}")
        self._ask(f"watch {tube}", "WATCHING 2")
        self._ask("ignore default", "WATCHING 1")

    def _ask(self, line: str, expected: str) -> None:
        self.socket.sendall(line.encode() + b"\r\n")
        answer = b""
        while not answer.endswith(b"\r\n"):
            answer += self._read()
        if answer != expected.encode() + b"\r\n":
            raise unexpected(answer)

    def put(self, count: int) -> None:
        self.socket.sendall(self._put * count)

    def put_into(self, tubes: list[str]) -> None:
        """Ask for a put into each of these tubes; later puts go into the last one."""
        self.socket.sendall(b"".join(b"use %b\r\n" % tube.encode() + self._put for tube in tubes))

    def take(self, count: int) -> None:
        self.socket.sendall(b"reserve\r\n" * count)

    def receive(self) -> None:
        *lines, self._rest = (self._rest + self._read()).split(b"\r\n")
        deletes = []
        for line in lines:
            if line.startswith(b"INSERTED "):
                self.puts_done += 1
            elif line.startswith(b"RESERVED "):
                deletes.append(b"delete %b\r\n" % line.split(b" ")[1])
            elif line.startswith(b"USING "):
                continue  # `put_into`
            elif line == b"DELETED":
                self.takes_done += 1
            elif line != self._body:  # it follows RESERVED
                raise unexpected(line)
        if deletes:
            self.socket.sendall(b"".join(deletes))

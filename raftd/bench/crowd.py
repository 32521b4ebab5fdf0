"""What is there before a measurement begins, to see whether it costs anything: jobs that wait, tubes, idle connections."""

from __future__ import annotations

import resource
import socket
from typing import Self

from raftd.bench.loaders.beanstalkd import BeanstalkdConnection
from raftd.bench.local import LocalError

#: Puts under way at once; more would fill a socket while nobody reads the answers.
_AT_ONCE = 500
_TUBE = "bench-waiting"
_TIMEOUT_S = 30.0
#: What the bench itself has open, with room.
_OTHER_DESCRIPTORS = 64


class Crowd:
    """Of a server that speaks beanstalkd's protocol; as a context, there until it ends. Raises OSError, LoadError or LocalError."""

    def __init__(self, addresses: list[tuple[str, int]], tubes: int, waiting: int, idle: int, size: int) -> None:
        self._addresses = addresses
        self._tubes = tubes
        self._waiting = waiting
        self._idle = idle
        self._size = size
        self._connections: list[socket.socket] = []

    def __enter__(self) -> Self:
        if self._waiting or self._tubes > 1:
            connection = BeanstalkdConnection(self._addresses[0], _TUBE, b"x" * self._size)
            try:
                self._fill(connection)
            finally:
                connection.close()
        try:
            self._crowd()
        except OSError:
            self.__exit__()
            raise
        return self

    def _crowd(self) -> None:
        if not self._idle:
            return
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        if self._idle > most - _OTHER_DESCRIPTORS:
            raise LocalError(f"--idle {self._idle}: a process may have {most} files and sockets open here; raise the limit (ulimit -Hn)")
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection is a descriptor
        for number in range(self._idle):
            self._connections.append(socket.create_connection(self._addresses[number % len(self._addresses)], timeout=_TIMEOUT_S))

    def _fill(self, connection: BeanstalkdConnection) -> None:
        left = self._waiting
        while left:
            now = min(left, _AT_ONCE)
            connection.put(now)
            self._await(connection, now)
            left -= now
        for start in range(1, self._tubes, _AT_ONCE):
            names = [f"bench-tube-{number}" for number in range(start, min(start + _AT_ONCE, self._tubes))]
            connection.put_into(names)
            self._await(connection, len(names))

    def _await(self, connection: BeanstalkdConnection, count: int) -> None:
        connection.puts_done -= count
        while connection.puts_done < 0:
            connection.receive()

    def __exit__(self, *exception: object) -> None:
        for connection in self._connections:
            connection.close()

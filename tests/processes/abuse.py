"""Clients as nobody wants them, in a process of its own: `python -m tests.processes.abuse KIND PORT COUNT SECONDS`.

Each kind is a way to keep `COUNT` connections busy for so long; at the end it prints, as JSON, what it saw.
"""

from __future__ import annotations

import json
import random
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

_CHUNK = 64 << 10
_Writer = Callable[[], bytes]


def garbage() -> _Writer:
    """Any bytes, with line ends here and there, so that much of it is a line of its own."""
    choose = random.Random(1)
    pieces = [choose.randbytes(choose.randrange(1, 40)) + choose.choice([b"\r\n", b"\n", b"\0", b"", b"\r\n\r\n"]) for _ in range(2_000)]
    data = b"".join(pieces)
    return lambda: data


def nonsense() -> _Writer:
    """The shortest lines there are: each is answered."""
    data = b"x\r\n" * (_CHUNK // 3)
    return lambda: data


def deletes() -> _Writer:
    """Commands for the log, as small and as many as can be."""
    data = b"delete 1\r\n" * 5_000
    return lambda: data


def puts() -> _Writer:
    data = b"put 0 0 60 200\r\n%b\r\n" % (b"x" * 200) * 200
    return lambda: data


def big_puts() -> _Writer:
    data = b"put 0 0 60 65535\r\n%b\r\n" % (b"x" * 65_535)
    return lambda: data


def oversized() -> _Writer:
    """Bodies over the limit, which are to be counted away."""
    data = b"put 0 0 60 200000000\r\n" + b"x" * _CHUNK
    return lambda: data


def statistics() -> _Writer:
    data = b"stats\r\n" * 2_000
    return lambda: data


FLOODS = {write.__name__: write for write in (garbage, nonsense, deletes, puts, big_puts, oversized, statistics)}


def flood(connections: list[socket.socket], seconds: float, write: _Writer, reads: bool) -> dict[str, int]:
    """All that the sockets take; answers are read and thrown away, or not read at all."""
    poll = select.epoll()
    pending: dict[int, list[Any]] = {}
    for connection in connections:
        connection.setblocking(False)
        pending[connection.fileno()] = [connection, memoryview(b"")]
        poll.register(connection, select.EPOLLOUT | (select.EPOLLIN if reads else 0))
    sent = received = closed = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end and pending:
        for number, event in poll.poll(0.1):
            entry = pending[number]
            try:
                if event & select.EPOLLIN and reads:
                    data = entry[0].recv(1 << 20)
                    received += len(data)
                    if not data:
                        raise ConnectionResetError
                if event & select.EPOLLOUT:
                    rest = entry[1] or memoryview(write())
                    taken = entry[0].send(rest)
                    sent += taken
                    entry[1] = rest[taken:]
                if event & (select.EPOLLHUP | select.EPOLLERR):
                    raise ConnectionResetError
            except BlockingIOError:
                pass
            except OSError:
                closed += 1
                poll.unregister(number)
                del pending[number]
    return {"sent": sent, "received": received, "closed": closed}


def dribble(connections: list[socket.socket], seconds: float) -> dict[str, int]:
    """A byte at a time, of commands and bodies alike, on every connection in turn."""

    def text() -> Iterator[bytes]:
        while True:
            for byte in b"put 0 0 60 5\r\nhello\r\nreserve-with-timeout 0\r\nnonsense\r\n":
                yield bytes([byte])

    texts = [text() for _ in connections]
    sent = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for connection, bytes_ in zip(connections, texts, strict=True):
            connection.sendall(next(bytes_))
            sent += 1
    return {"sent": sent}


def idle(connections: list[socket.socket], seconds: float) -> dict[str, int]:
    """Each has said something once. They stay until standard input ends."""
    for connection in connections:
        connection.sendall(b"list-tube-used\r\n")
    answered = sum(connection.recv(100) == b"USING default\r\n" for connection in connections)
    print(json.dumps({"answered": answered}), flush=True)
    sys.stdin.read()
    return {"answered": answered}


def main() -> None:
    kind, port, count, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    connections = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(count)]
    if kind == "idle":
        result = idle(connections, seconds)
    elif kind == "dribble":
        result = dribble(connections, seconds)
    else:
        flow, _, deaf = kind.partition("-")
        result = flood(connections, seconds, FLOODS[flow](), reads=deaf != "deaf")
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()

"""Clients whose commands cost much for what they are, in a process of its own: `python -m tests.processes.attacks NAME PORT SIZE`.

Each line of standard input starts the next pass; after each pass a line of JSON says what was answered. At the end of the input the
process ends, and with it all its connections at once.
"""

from __future__ import annotations

import json
import select
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator

_JOB = b"put 10 %d 600 1\r\nx\r\n"


class Pipe:
    """One connection that sends as much as the node takes, and reads its answers meanwhile."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.words: Counter[str] = Counter()
        self.numbers: list[int] = []
        self._rest = b""
        self._body = 0  # bytes of a job that are still to come

    def ask(self, commands: list[bytes]) -> Counter[str]:
        """All of them; the first word of each answer, counted."""
        self.words.clear()
        self.numbers.clear()
        data, sent, answered = memoryview(b"".join(commands)), 0, 0
        while answered < len(commands):
            writing = [self.socket] if sent < len(data) else []
            readable, writable, _ = select.select([self.socket], writing, [], 60)
            if writable:
                sent += self.socket.send(data[sent : sent + 65_536], socket.MSG_DONTWAIT)
            if readable:
                answered += self._read()
        return self.words

    def _read(self) -> int:
        data = self.socket.recv(1 << 18)
        if not data:
            raise ConnectionResetError
        *lines, self._rest = (self._rest + data).split(b"\r\n")
        answers = 0
        for line in lines:
            if self._body:
                self._body = 0  # bodies here are one line
                continue
            word, *rest = line.split(b" ")
            answers += 1
            self.words[word.decode()] += 1
            if word in (b"INSERTED", b"KICKED", b"RESERVED"):
                self.numbers.append(int(rest[0]))
            self._body = word == b"RESERVED"
        return answers


def release(port: int, size: int) -> Iterator[Counter[str]]:
    """Out of the queue and in again at the same priority."""
    pipe = Pipe(port)
    pipe.ask([_JOB % 0] * size)
    ids = list(pipe.numbers)
    yield pipe.words
    commands = [command for id in ids for command in (b"reserve-job %d\r\n" % id, b"release %d 10 0\r\n" % id)]
    while True:
        yield pipe.ask(commands)


def kick(port: int, size: int) -> Iterator[Counter[str]]:
    """A kilobyte of kicks over very many jobs; then all of them wait again."""
    pipe = Pipe(port)
    pipe.ask([_JOB % 3_600] * size)
    yield pipe.words
    while True:
        yield pipe.ask([b"kick 1000000\r\n"] * 73)


def hold(port: int, size: int) -> Iterator[Counter[str]]:
    """A worker that holds very much, and asks for more."""
    pipe = Pipe(port)
    pipe.ask([_JOB % 0] * size)
    yield pipe.ask([b"reserve-with-timeout 0\r\n"] * size)
    while True:
        yield pipe.ask([b"reserve-with-timeout 0\r\n"] * 2_000)


def delete(port: int, size: int) -> Iterator[Counter[str]]:
    """Half of very many delayed jobs, the earliest first."""
    pipe = Pipe(port)
    pipe.ask([_JOB % 3_600] * size)
    ids = list(pipe.numbers)
    yield pipe.words
    while True:
        half, ids = ids[: size // 4], ids[size // 4 :]
        yield pipe.ask([b"delete %d\r\n" % id for id in half])


def watch(port: int, size: int) -> Iterator[Counter[str]]:
    """Many sessions that watch a thousand tubes each, wait for jobs, and are gone all at once."""
    while True:
        total: Counter[str] = Counter()
        pipes = [Pipe(port) for _ in range(size)]
        for pipe in pipes:
            total += pipe.ask([b"watch tube%d\r\n" % number for number in range(1_000)])
            pipe.socket.sendall(b"reserve\r\n")
        yield total
        for pipe in pipes:
            pipe.socket.close()


def read(port: int, size: int) -> Iterator[Counter[str]]:
    """Very many connections with a read that waits, gone all at once. Without a quorum none is answered."""
    while True:
        pipes = [Pipe(port) for _ in range(size)]
        for pipe in pipes:
            pipe.socket.sendall(b"peek 1\r\n")
        yield Counter(asked=size)
        for pipe in pipes:
            pipe.socket.close()


ATTACKS: dict[str, Callable[[int, int], Iterator[Counter[str]]]] = {
    attack.__name__: attack for attack in (release, kick, hold, delete, watch, read)
}


def main() -> None:
    name, port, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    passes = ATTACKS[name](port, size)
    for _ in sys.stdin:
        print(json.dumps(next(passes)), flush=True)


if __name__ == "__main__":
    main()

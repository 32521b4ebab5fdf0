"""The load of `raftd bench`, in a process of its own: raw sockets, one epoll, nothing else.

A connection has `in_flight` requests under way, and sends the next when their answers have come. For *put* each
answer allows one more put. For *cycle* it puts, then reserves, then deletes, `in_flight` of each at once.
Bodies hold no line break, so every answer is one line, a reservation's two.
"""

from __future__ import annotations

import resource
import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Literal

import msgspec

#: Small enough for the allocator to serve from its heap: a larger one is mapped and unmapped for each answer, or not, as the heap
#: happens to lie, and the load then takes twice the time for the same work.
_RECV_BYTES = 64 << 10
_NO_ANSWER_S = 10.0
_NS = 1_000_000_000
#: Latencies are counted in these units.
LATENCY_UNIT_S = 1e-5
_UNIT_NS = 10_000

Work = Literal["put", "cycle"]


class Spec(msgspec.Struct, frozen=True):
    """What one process is to do. The first `warm_up_s` seconds are not counted."""

    addresses: list[tuple[str, int]]
    connections: int
    in_flight: int
    body_bytes: int
    work: Work
    warm_up_s: float
    seconds: float


class Result(msgspec.Struct, frozen=True):
    """What it saw: how often each latency, in units of 10 µs, and how busy it was itself. A latency is that of a
    put, or of a whole cycle."""

    seconds: float
    latencies: dict[int, int]
    cpu_s: float


class LoadError(Exception):
    """The server closed a connection, fell silent, or answered what it should not; the text says what."""


class _Connection:
    """One client: its requests under way, and the answers that have come in part."""

    def __init__(self, address: tuple[str, int], spec: Spec, tube: str, now_ns: Callable[[], int]) -> None:
        self.socket = socket.create_connection(address, timeout=_NO_ANSWER_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._spec = spec
        self._now_ns = now_ns
        body = b"x" * spec.body_bytes
        self._put = b"put 0 0 3600 %d\r\n%b\r\n" % (len(body), body)
        self._rest = b""
        self._sent_ns: list[int] = []  # of the puts under way, oldest first
        self._answers: list[bytes] = []  # of the phase under way
        self._ask(f"use {tube}", f"USING {tube}")
        self._ask(f"watch {tube}", "WATCHING 2")
        self._ask("ignore default", "WATCHING 1")

    def _ask(self, line: str, expected: str) -> None:
        self.socket.sendall(line.encode() + b"\r\n")
        answer = b""
        while not answer.endswith(b"\r\n"):
            data = self.socket.recv(_RECV_BYTES)
            if not data:
                break
            answer += data
        if answer != expected.encode() + b"\r\n":
            raise LoadError(f"{line!r} was answered with {answer[:80]!r}")

    def begin(self) -> None:
        self.socket.sendall(self._put * self._spec.in_flight)
        self._sent_ns = [self._now_ns()] * self._spec.in_flight

    def ready(self, latencies: Counter[int]) -> None:
        """Answers can be read: count what is complete, and send what comes next."""
        data = self.socket.recv(_RECV_BYTES)
        if not data:
            raise LoadError("the server closed a connection")
        *lines, self._rest = (self._rest + data).split(b"\r\n")
        if self._spec.work == "put":
            self._puts_answered(lines, latencies)
        else:
            self._answers += lines
            self._go_round(latencies)

    def _puts_answered(self, lines: list[bytes], latencies: Counter[int]) -> None:
        if not lines:
            return
        self.socket.sendall(self._put * len(lines))
        now = self._now_ns()
        for line, sent in zip(lines, self._sent_ns, strict=False):
            _expect(line, b"INSERTED ")
            latencies[(now - sent) // _UNIT_NS] += 1
        del self._sent_ns[: len(lines)]
        self._sent_ns += [now] * len(lines)

    def _go_round(self, latencies: Counter[int]) -> None:
        """The next phase of the cycle, once all answers of this one are there."""
        k, answers = self._spec.in_flight, self._answers
        first = answers[0] if answers else b""
        if len(answers) < (2 * k if first.startswith(b"RESERVED") else k):
            return
        if first.startswith(b"INSERTED"):
            following = b"reserve\r\n" * k
        elif first.startswith(b"RESERVED"):
            following = b"".join(b"delete %b\r\n" % line.split(b" ")[1] for line in answers[::2] if _expect(line, b"RESERVED "))
        else:
            for line in answers:
                _expect(line, b"DELETED")
            now = self._now_ns()
            latencies[(now - self._sent_ns[0]) // _UNIT_NS] += k
            self._sent_ns = [now]
            following = self._put * k
        self._answers = []
        self.socket.sendall(following)


def _expect(line: bytes, start: bytes) -> bool:
    if not line.startswith(start):
        raise LoadError(f"an answer began with {line[:80]!r}, and should with {start!r}")
    return True


def run(spec: Spec, tube: str, go: Callable[[], None] = lambda: None, now_ns: Callable[[], int] = time.perf_counter_ns) -> Result:
    """Do what `spec` says with jobs in `tube`. `go` is called when all are connected, and returns when it may begin: the windows
    of several processes must be one. `now_ns`: the clock, in nanoseconds. Raises LoadError or OSError."""
    poll = select.epoll()
    connections: dict[int, _Connection] = {}
    for number in range(spec.connections):
        connection = _Connection(spec.addresses[number % len(spec.addresses)], spec, tube, now_ns)
        connections[connection.socket.fileno()] = connection
        poll.register(connection.socket, select.EPOLLIN)
    go()
    for connection in connections.values():
        connection.begin()
    began = now_ns()
    counting_from = began + int(spec.warm_up_s * _NS)
    end = counting_from + int(spec.seconds * _NS)
    latencies: Counter[int] = Counter()
    is_warm = False
    cpu_s = time.process_time()
    now = began
    while now < end:
        events = poll.poll(_NO_ANSWER_S)
        if not events:
            raise LoadError(f"no answer within {_NO_ANSWER_S:g} s")
        for number, _ in events:
            connections[number].ready(latencies)
        now = now_ns()
        if not is_warm and now >= counting_from:
            is_warm = True
            latencies.clear()
            counting_from, cpu_s = now, time.process_time()
    if not is_warm or now <= counting_from:
        raise LoadError("the server stood still for the whole of the measurement")
    result = Result((now - counting_from) / _NS, dict(latencies), time.process_time() - cpu_s)
    for connection in connections.values():
        connection.socket.close()
    return result


def _wait_for_the_others() -> None:
    print(flush=True)
    sys.stdin.readline()


def main() -> None:
    """The spec and the tube come as arguments. Says a line when it is connected, waits for one, and then prints the result
    as JSON."""
    spec = msgspec.json.decode(sys.argv[1], type=Spec)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection is a descriptor
    try:
        result = run(spec, sys.argv[2], _wait_for_the_others)
    except (LoadError, OSError) as error:
        sys.exit(f"{error}")
    sys.stdout.buffer.write(msgspec.json.encode(result))


if __name__ == "__main__":
    main()

"""The load of `raftd bench`, in a process of its own: raw sockets, one epoll, nothing else.

*Closed loop*: a connection has `in_flight` operations under way, and begins the next when one is done. *Open loop*: operations begin
at a fixed rate, whether others are done or not, in turns on all connections; the latency counts from when one should have begun.

An operation is, for *put*, a put; for *cycle*, a put and then a take (reserve and delete) on the same connection; for *handoff*, a
put on a connection to one node and a take on a connection to another; for *work*, a take of a job that waits. Jobs of a handoff are told
apart by their order alone: its latency is that from the oldest put under way to the next take done.
"""

from __future__ import annotations

import resource
import select
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Literal

import msgspec

from raftd.bench.loaders.amqp import AmqpConnection
from raftd.bench.loaders.beanstalkd import BeanstalkdConnection
from raftd.bench.loaders.connection import NO_ANSWER_S, Connection, LoadError
from raftd.bench.loaders.nats import NatsConnection
from raftd.bench.loaders.raftd import RaftdConnection
from raftd.client.tls import TlsFiles

_NS = 1_000_000_000
#: Latencies are counted in these units.
LATENCY_UNIT_S = 1e-5
_UNIT_NS = 10_000

Work = Literal["put", "cycle", "handoff", "work"]
Protocol = Literal["beanstalkd", "raftd", "nats", "amqp"]
CONNECTIONS: dict[Protocol, type[Connection]] = {
    "beanstalkd": BeanstalkdConnection,
    "raftd": RaftdConnection,
    "nats": NatsConnection,
    "amqp": AmqpConnection,
}


class Spec(msgspec.Struct, frozen=True):
    """What one process is to do. The first `warm_up_s` seconds are not counted. `tubes`: connections use them in turns, or in pairs for a
    handoff. `rate`: operations a second in an open loop; None for a closed one. `tls`: for beanstalkd's protocol only."""

    addresses: list[tuple[str, int]]
    connections: int
    in_flight: int
    body_bytes: int
    work: Work
    warm_up_s: float
    seconds: float
    tubes: tuple[str, ...] = ("bench",)
    rate: float | None = None
    protocol: Protocol = "beanstalkd"
    tls: TlsFiles | None = None


class Result(msgspec.Struct, frozen=True):
    """What it saw: how often each latency, in units of 10 µs, how busy it was itself, and how many operations were under way at its end."""

    seconds: float
    latencies: dict[int, int]
    cpu_s: float
    unanswered: int


class _Client:
    """A connection, and when each of its operations began, the oldest first. `work` is its own part."""

    def __init__(self, connection: Connection, work: Literal["put", "cycle", "work", "take"]) -> None:
        self.connection = connection
        self.work = work
        self.began_ns: deque[int] = deque()


class _Load:
    """`now_ns`: the clock, in nanoseconds."""

    def __init__(self, spec: Spec, now_ns: Callable[[], int]) -> None:
        self.latencies: Counter[int] = Counter()
        self._spec = spec
        self._now_ns = now_ns
        self.clients: dict[int, _Client] = {}
        self._starters: deque[_Client] = deque()
        self._handoffs: deque[int] = deque()
        body = b"x" * spec.body_bytes
        is_handoff = spec.work == "handoff"
        for number in range(spec.connections):
            tube = spec.tubes[(number // 2 if is_handoff else number) % len(spec.tubes)]
            address = spec.addresses[number % len(spec.addresses)]
            if spec.protocol == "beanstalkd":
                connection: Connection = BeanstalkdConnection(address, tube, body, spec.tls)
            else:
                connection = CONNECTIONS[spec.protocol](address, tube, body)
            client = _Client(connection, spec.work if spec.work != "handoff" else "take" if number % 2 else "put")
            self.clients[connection.socket.fileno()] = client
            if client.work != "take":
                self._starters.append(client)

    @property
    def unanswered(self) -> int:
        return len(self._handoffs) + sum(len(client.began_ns) for client in self.clients.values())

    def begin(self) -> None:
        """The first operations of a closed loop, and the takes that a handoff waits with."""
        for client in self.clients.values():
            if client.work == "take":
                client.connection.take(self._spec.in_flight)
            elif self._spec.rate is None:
                self._start(client, self._spec.in_flight, self._now_ns())

    def start_next(self, at_ns: int) -> None:
        """One operation that should begin at that moment, on the connection whose turn it is."""
        self._start(self._starters[0], 1, at_ns)
        self._starters.rotate(-1)

    def _start(self, client: _Client, count: int, at_ns: int) -> None:
        if client.work == "work":
            client.connection.take(count)
        else:
            client.connection.put(count)
        (self._handoffs if self._spec.work == "handoff" else client.began_ns).extend([at_ns] * count)

    def ready(self, client: _Client) -> None:
        """Something can be read: count what is done, and begin what follows."""
        connection = client.connection
        connection.receive()
        while connection.puts_done or connection.takes_done:
            puts, connection.puts_done = connection.puts_done, 0
            takes, connection.takes_done = connection.takes_done, 0
            if client.work == "put" and self._spec.work == "put":
                self._done(client.began_ns, puts, client)
            elif client.work == "cycle":
                if puts:
                    connection.take(puts)
                self._done(client.began_ns, takes, client)
            elif client.work == "work":
                self._done(client.began_ns, takes, client)
            elif client.work == "take":
                connection.take(takes)
                self._done(self._handoffs, takes, self._starters[0])
                self._starters.rotate(-1)

    def _done(self, began_ns: deque[int], count: int, starter: _Client) -> None:
        if not count:
            return
        if count > len(began_ns):
            raise LoadError("more answers came than there were requests")
        now = self._now_ns()
        if self._spec.rate is None:  # first the server's next work, then the count
            self._start(starter, count, now)
        for _ in range(count):
            self.latencies[(now - began_ns.popleft()) // _UNIT_NS] += 1


def run(spec: Spec, go: Callable[[], None] = lambda: None, now_ns: Callable[[], int] = time.perf_counter_ns) -> Result:
    """Do what `spec` says. `go` is called when all are connected, and returns when it may begin: the windows of several processes must be
    one. `now_ns`: the clock, in nanoseconds. Raises LoadError or OSError."""
    load = _Load(spec, now_ns)
    poll = select.epoll()
    for number in load.clients:
        poll.register(number, select.EPOLLIN)
    go()
    load.begin()
    began = now = now_ns()
    counting_from = began + int(spec.warm_up_s * _NS)
    end = counting_from + int(spec.seconds * _NS)
    period_ns = _NS / spec.rate if spec.rate is not None else 0.0
    started = 0
    is_warm = False
    cpu_s = time.process_time()
    while now < end:
        wait_s = NO_ANSWER_S
        if spec.rate is not None:
            while (due := began + int(started * period_ns)) <= now:
                load.start_next(due)
                started += 1
            wait_s = (due - now) / _NS
            select.select([poll], [], [], wait_s)  # to the microsecond, where epoll waits whole milliseconds
            wait_s = 0.0
        events = poll.poll(wait_s)
        if not events and spec.rate is None:
            raise LoadError(f"no answer within {NO_ANSWER_S:g} s")
        for number, _ in events:
            load.ready(load.clients[number])
        now = now_ns()
        if not is_warm and now >= counting_from:
            is_warm = True
            load.latencies.clear()
            counting_from, cpu_s = now, time.process_time()
    if not is_warm or now <= counting_from:
        raise LoadError("the server stood still for the whole of the measurement")
    result = Result((now - counting_from) / _NS, dict(load.latencies), time.process_time() - cpu_s, load.unanswered)
    for client in load.clients.values():
        client.connection.close()
    return result


def _wait_for_the_others() -> None:
    print(flush=True)
    sys.stdin.readline()


def main() -> None:
    """The spec comes as argument. Says a line when it is connected, waits for one, and then prints the result as JSON."""
    spec = msgspec.json.decode(sys.argv[1], type=Spec)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection is a descriptor
    try:
        result = run(spec, _wait_for_the_others)
    except (LoadError, OSError) as error:
        sys.exit(f"{error}")
    sys.stdout.buffer.write(msgspec.json.encode(result))


if __name__ == "__main__":
    main()

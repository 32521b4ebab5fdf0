"""The line door: the beanstalkd protocol on every node. The parser is `wire/line.py`; this is the loop
around it."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from twisted.internet.protocol import Factory, connectionDone
from twisted.python.failure import Failure

from raftd.jobs import commands as c
from raftd.jobs.replies import Reply
from raftd.node import Node
from raftd.server.door import DoorProtocol
from raftd.server.stats import Counters, stats
from raftd.wire.line import LineParser, Request, encode_reply, encode_stats

_REQUEST_BYTES = 64


class LineProtocol(DoorProtocol):
    """One client of the line door."""

    def __init__(self, node: Node, clock: Any, counters: Counters) -> None:
        super().__init__(node, clock)
        self._counters = counters
        self._parser = LineParser(node.max_job_size)
        self._is_producer = False
        self._is_worker = False

    def connectionMade(self) -> None:
        super().connectionMade()
        self._counters.connections += 1
        self._counters.total_connections += 1

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self._counters.connections -= 1
        self._counters.producers -= self._is_producer
        self._counters.workers -= self._is_worker

    def _feed(self, data: bytes) -> None:
        self._parser.max_job_size = self.node.max_job_size
        self._parser.feed(data)

    def _take(self) -> bool:
        request = self._parser.next_request()
        if request is None:
            return False
        self._handle(request)
        return True

    def _handle(self, request: Request) -> None:
        verb, args = request
        number = self.session.number
        command: c.Command
        if verb == "put":
            pri, delay_s, ttr_s, body = cast(tuple[int, int, int, bytes], args)
            self._is_a_producer()
            command = c.Put(number, pri, delay_s * 1000, ttr_s * 1000, body)
        elif verb == "reserve" or verb == "reserve-with-timeout":
            if not self._is_worker:
                self._is_worker = True
                self._counters.workers += 1
            command = c.Reserve(number, cast(int, args[0]) * 1000 if args else None)
        elif verb == "delete":
            command = c.Delete(number, cast(int, args[0]))
        elif verb == "use":
            command = c.Use(number, cast(str, args[0]))
        elif verb == "watch":
            command = c.Watch(number, cast(str, args[0]))
        elif verb == "ignore":
            command = c.Ignore(number, cast(str, args[0]))
        else:
            self._handle_here(verb, args)
            return
        self._counters.commands[verb] += 1
        size = _REQUEST_BYTES
        if type(command) is c.Put:
            size += len(command.body)
        elif type(command) is c.Reserve:
            size += self.node.max_job_size  # what its answer may hold
        self.began(size)
        self.session.submit(command, partial(self._replied, size))
        self.node.wake()

    def _handle_here(self, verb: str, args: tuple[int | str | bytes, ...]) -> None:
        """What this node answers by itself, when its turn has come."""
        self.began(_REQUEST_BYTES)
        if verb == "quit":
            self.stop_reading()
            self.session.local(lambda: None, lambda result, index: self.finish())
        elif verb == "stats":
            self._counters.commands[verb] += 1
            self.session.local(lambda: encode_stats(stats(self.node, self._counters)), self._say)
        else:
            if verb in ("big-put", "open-put"):
                self._counters.commands["put"] += 1
            if verb == "open-put":
                self._is_a_producer()
            self.session.local(lambda: args[0], self._say)

    def _is_a_producer(self) -> None:
        if not self._is_producer:
            self._is_producer = True
            self._counters.producers += 1

    def _replied(self, size: int, reply: object, index: int) -> None:
        self.answer(encode_reply(cast(Reply, reply)), size)

    def _say(self, line: object, index: int) -> None:
        self.answer(cast(bytes, line), _REQUEST_BYTES)


class LineFactory(Factory):
    """`node` is set before the reactor runs."""

    noisy = False
    node: Node

    def __init__(self, clock: Any, counters: Counters) -> None:
        self._clock = clock
        self._counters = counters

    def buildProtocol(self, addr: object) -> LineProtocol:
        return LineProtocol(self.node, self._clock, self._counters)

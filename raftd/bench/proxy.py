"""The proxy between real nodes in `raftd chaos`: every connection between two nodes passes here, frame by frame.

Each ordered pair of nodes has a port, on which the first dials the second, and a `Link`, the way from the first to the
second, whichever dialled. A link can be slow, and it can be cut: then it holds frames, as a network does from which
packets vanish for a while, or loses them, which is more than TCP does and which Raft promises to bear.
"""

from __future__ import annotations

from collections import Counter, deque
from itertools import permutations
from random import Random
from typing import Any

from twisted.internet.protocol import ClientFactory, Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from raftd.wire.frames import FrameDecoder, frame

Pair = tuple[int, int]


class Link:
    """The way from one node to another."""

    def __init__(self, proxy: Proxy) -> None:
        self._delay_s = (0.0, 0.0)  # how long a frame takes: from, to
        self._slow_until_s = 0.0
        self._cut_until_s = 0.0
        self._holds = False
        self._proxy = proxy
        self._delayed: deque[tuple[_Side, bytes]] = deque()
        self._under_way: deque[tuple[float, _Side, bytes]] = deque()  # (when it arrives, …)

    @property
    def is_cut(self) -> bool:
        return float(self._proxy.reactor.seconds()) < self._cut_until_s

    def cut(self, seconds: float, holds: bool) -> None:
        """Nothing leaves here for so long; of cuts that overlap the longest counts."""
        clock = self._proxy.reactor
        self._cut_until_s, self._holds = max(self._cut_until_s, clock.seconds() + seconds), holds
        clock.callLater(seconds, self._let_go)

    def slow_down(self, seconds: float, delay_s: tuple[float, float]) -> None:
        """For so long a frame takes as long as this."""
        self._slow_until_s, self._delay_s = self._proxy.reactor.seconds() + seconds, delay_s

    def heal(self) -> None:
        """It works again, as fast as ever."""
        self._cut_until_s = self._slow_until_s = 0.0
        self._let_go()

    def _let_go(self) -> None:
        """Release what was held."""
        if not self.is_cut:
            held, self._delayed = self._delayed, deque()
            for to, data in held:
                self.carry(to, data)

    def carry(self, to: _Side, data: bytes) -> None:
        """One frame, which none of this link overtakes."""
        clock, counts = self._proxy.reactor, self._proxy.counts
        if self.is_cut:
            counts["frames held" if self._holds else "frames lost"] += 1
            if self._holds:
                self._delayed.append((to, data))
            return
        self._let_go()  # of what came before it
        counts["frames carried"] += 1
        now_s = clock.seconds()
        earliest_s = self._under_way[-1][0] if self._under_way else now_s
        delay_s = self._proxy.random.uniform(*self._delay_s) if now_s < self._slow_until_s else 0.0
        arrival_s = max(earliest_s, now_s + delay_s)
        if not self._under_way and arrival_s <= now_s:
            to.write(data)
            return
        counts["frames delayed"] += 1
        self._under_way.append((arrival_s, to, data))
        if len(self._under_way) == 1:
            clock.callLater(arrival_s - now_s, self._arrive)

    def _arrive(self) -> None:
        now_s = self._proxy.reactor.seconds()
        while self._under_way and self._under_way[0][0] <= now_s:
            _, to, data = self._under_way.popleft()
            to.write(data)
        if self._under_way:
            self._proxy.reactor.callLater(max(0.0, self._under_way[0][0] - now_s), self._arrive)


class _Side(Protocol):
    """One of the two connections of a pair of nodes: frames that come in here leave at the `other`."""

    transport: Any

    def __init__(self, proxy: Proxy, link: Link) -> None:
        self.link = link
        self.other: _Side | None = None
        self._proxy = proxy
        self._decoder = FrameDecoder()
        self._decoder.greeted()
        self._breaks = False
        self._is_open = False

    def connectionMade(self) -> None:
        self._is_open = True
        self._proxy.sides.add(self)
        self.transport.setTcpNoDelay(True)

    def connect_to(self, other: _Side) -> None:
        """Both nodes are connected: what either has said meanwhile goes to the other."""
        self.other, other.other = other, self
        self.transport.resumeProducing()
        other.transport.resumeProducing()

    def dataReceived(self, data: bytes) -> None:
        assert self.other is not None
        self._decoder.feed(data)
        while (body := self._decoder.next_frame()) is not None:
            self.link.carry(self.other, frame(body))

    def break_in_next_frame(self) -> None:
        """The next frame that should leave here leaves in part, and then the connection is gone."""
        self._breaks = True

    def write(self, data: bytes) -> None:
        if not self._is_open:
            return
        if self._breaks:
            self._proxy.counts["connections cut in a frame"] += 1
            self._is_open = False  # nothing may follow
            self.transport.write(data[: len(data) // 2])
            self.transport.loseConnection()
        else:
            self.transport.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._is_open = False
        self._proxy.sides.discard(self)
        if self.other is not None:
            self.other.transport.loseConnection()

    def abort(self) -> None:
        self.transport.abortConnection()


class _Dial(ClientFactory):
    """To the node whose port was dialled."""

    noisy = False

    def __init__(self, proxy: Proxy, pair: Pair, caller: _Side) -> None:
        self._proxy = proxy
        self._pair = pair
        self._caller = caller

    def buildProtocol(self, addr: object) -> _Side:
        caller = self._caller
        one, other = self._pair

        class Callee(_Side):
            def connectionMade(self) -> None:
                super().connectionMade()
                self.connect_to(caller)

        return Callee(self._proxy, self._proxy.links[other, one])

    def clientConnectionFailed(self, connector: object, reason: Failure) -> None:
        self._caller.abort()


class _Port(Factory):
    noisy = False

    def __init__(self, proxy: Proxy, pair: Pair) -> None:
        self._proxy = proxy
        self._pair = pair

    def buildProtocol(self, addr: object) -> _Side:
        proxy, pair = self._proxy, self._pair

        class Caller(_Side):
            def connectionMade(self) -> None:
                super().connectionMade()
                self.transport.pauseProducing()
                proxy.reactor.connectTCP(*proxy.addresses[pair[1]], _Dial(proxy, pair, self))

        return Caller(proxy, proxy.links[pair])


class Proxy:
    """Listens on loopback for every ordered pair of the nodes at `addresses` (of their peer listeners)."""

    def __init__(self, reactor: Any, random: Random, addresses: dict[int, tuple[str, int]]) -> None:
        self.reactor = reactor
        self.random = random
        self.addresses = addresses
        self.counts: Counter[str] = Counter()
        self.sides: set[_Side] = set()
        pairs = list(permutations(addresses, 2))
        self.links: dict[Pair, Link] = {pair: Link(self) for pair in pairs}
        self._listening = {pair: reactor.listenTCP(0, _Port(self, pair), interface="127.0.0.1") for pair in pairs}

    def port(self, one: int, other: int) -> int:
        """Where node `one` dials node `other`."""
        number: int = self._listening[one, other].getHost().port
        return number

    def cut(self, pairs: set[Pair], seconds: float, holds: bool) -> None:
        for pair in pairs:
            self.links[pair].cut(seconds, holds)

    def slow_down(self, pairs: set[Pair], seconds: float, delay_s: tuple[float, float]) -> None:
        for pair in pairs:
            self.links[pair].slow_down(seconds, delay_s)

    def heal(self) -> None:
        for link in self.links.values():
            link.heal()

    def break_connections(self, pair: Pair) -> None:
        """In the middle of the next frame on this link."""
        for side in self.sides:
            if side.other is not None and side.other.link is self.links[pair]:
                side.break_in_next_frame()

    def close(self) -> None:
        for port in self._listening.values():
            port.stopListening()
        for side in list(self.sides):
            side.abort()

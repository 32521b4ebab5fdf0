"""The proxy between real nodes in `raftd chaos`: every connection between two nodes passes here, frame by frame.

Each node is known to the others by a place at which the proxy listens; who calls there is told by the first frame, the
hello. Each ordered pair of nodes has a `Link`, the way from the first to the second, whichever dialled. A link can be
slow, and it can be cut: then it holds frames, as a network does from which packets vanish for a while, or loses them,
which is more than TCP does and which Raft promises to bear.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
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

    def __init__(self, proxy: Proxy) -> None:
        self.link: Link | None = None  # of what comes in here; None until it is known who calls
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

    def dataReceived(self, data: bytes) -> None:
        self._decoder.feed(data)
        self._carry()

    def _carry(self) -> None:
        while self.link is not None and self.other is not None and (body := self._decoder.next_frame()) is not None:
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


class _Callee(_Side):
    """The connection to the node that was called."""

    def __init__(self, proxy: Proxy, caller: _Caller) -> None:
        super().__init__(proxy)
        self._caller = caller

    def connectionMade(self) -> None:
        super().connectionMade()
        self._caller.reached(self)


class _Dial(ClientFactory):
    """To the node that was called."""

    noisy = False

    def __init__(self, proxy: Proxy, caller: _Caller) -> None:
        self._proxy = proxy
        self._caller = caller

    def buildProtocol(self, addr: object) -> _Side:
        return _Callee(self._proxy, self._caller)

    def clientConnectionFailed(self, connector: object, reason: Failure) -> None:
        self._caller.abort()


class _Caller(_Side):
    """The connection from a node that has called node `callee`."""

    def __init__(self, proxy: Proxy, callee: int) -> None:
        super().__init__(proxy)
        self._callee = callee

    def connectionMade(self) -> None:
        super().connectionMade()
        self._proxy.reactor.connectTCP(*self._proxy.addresses[self._callee], _Dial(self._proxy, self))

    def reached(self, other: _Side) -> None:
        """The node that was called is connected."""
        self.other, other.other = other, self
        self._carry()

    def _carry(self) -> None:
        if self.link is None and self.other is not None and (body := self._decoder.next_frame()) is not None:
            node = self._proxy.caller_of(body)
            self.link, self.other.link = self._proxy.links[node, self._callee], self._proxy.links[self._callee, node]
            self.link.carry(self.other, frame(body))
            self.other._carry()
        super()._carry()


class _Place(Factory):
    """Where the others call node `callee`."""

    noisy = False

    def __init__(self, proxy: Proxy, callee: int) -> None:
        self._proxy = proxy
        self._callee = callee

    def buildProtocol(self, addr: object) -> _Side:
        return _Caller(self._proxy, self._callee)


class Proxy:
    """Between the nodes at `addresses` (of their peer listeners): listens on `host` at the same ports. `caller_of` tells from a first frame
    which node sends it."""

    def __init__(
        self, reactor: Any, random: Random, host: str, addresses: dict[int, tuple[str, int]], caller_of: Callable[[bytes], int]
    ) -> None:
        self.reactor = reactor
        self.random = random
        self.addresses = addresses
        self.caller_of = caller_of
        self.counts: Counter[str] = Counter()
        self.sides: set[_Side] = set()
        self.links: dict[Pair, Link] = {pair: Link(self) for pair in permutations(addresses, 2)}
        self._listening = [reactor.listenTCP(port, _Place(self, node), interface=host) for node, (_, port) in addresses.items()]

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
        for port in self._listening:
            port.stopListening()
        for side in list(self.sides):
            side.abort()

"""A cluster in memory with real listener protocols on it, each on a transport in memory."""

from __future__ import annotations

from typing import Any

from twisted.internet.testing import StringTransport

from raftd.jobs import commands as c
from raftd.jobs import replies as r
from raftd.jobs import rights as g
from raftd.jobs.rights import ALL_TUBES, Grant, Right
from raftd.passwords import digest_of_token
from raftd.server.client import ClientServerFactory
from raftd.server.limiter import ConnectionLimiter
from raftd.server.line import LineServerFactory
from raftd.server.stats import Counters
from raftd.sim.cluster import SimCluster
from raftd.wire import client as w
from raftd.wire.frames import FrameDecoder


class MemoryTransport(StringTransport):
    """A transport that tells whether it was closed or aborted, and says so to its protocol."""

    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True
        super().abortConnection()

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.noDelay = enabled


class Listener:
    """One connection to a node."""

    def __init__(self, cluster: SimCluster, protocol: Any) -> None:
        self.cluster = cluster
        self.protocol = protocol
        self.transport = MemoryTransport()
        self.protocol.makeConnection(self.transport)

    def send(self, data: bytes, ms: float = 30) -> bytes:
        """Send, let time pass, and give what has come back since the last time."""
        self.protocol.dataReceived(data)
        return self.later(ms)

    def later(self, ms: float) -> bytes:
        self.cluster.run(ms)
        data = self.transport.value()
        self.transport.clear()
        return data

    def hang_up(self) -> None:
        from twisted.internet.error import ConnectionDone
        from twisted.python.failure import Failure

        if self.transport.producer is not None:
            self.transport.unregisterProducer()  # as the transport of a socket does
        self.protocol.connectionLost(Failure(ConnectionDone()))

    @property
    def is_closed(self) -> bool:
        return self.transport.disconnecting or self.transport.aborted


class Listeners:
    """A cluster with a leader, and listeners on any node."""

    def __init__(self, count: int = 1) -> None:
        self.cluster = SimCluster(count)
        self.cluster.start()
        assert self.cluster.run(5_000, lambda: self.cluster.leader != 0)
        self.cluster.run(100)
        self.counters = {node: Counters() for node in self.cluster.config.voters}
        clock: Any = self.cluster.scheduler
        self.limiter = {node: ConnectionLimiter(clock, 1_000) for node in self.cluster.config.voters}

    def _listener(self, make: type[LineServerFactory | ClientServerFactory], node: int) -> Listener:
        clock: Any = self.cluster.scheduler
        factory = make(clock, self.limiter[node], self.counters[node])
        factory.node = self.cluster[node]
        protocol = factory.buildProtocol(None)
        assert protocol is not None
        return Listener(self.cluster, protocol)

    def line(self, node: int = 1) -> Listener:
        return self._listener(LineServerFactory, node)

    def client(self, node: int = 1) -> Listener:
        return self._listener(ClientServerFactory, node)


def make_users(listeners: Listeners, token: str, node: int = 1) -> None:
    """One, who may do everything, with this token."""
    there = listeners.cluster[node]
    session = there.open_session(lambda: None)
    grants: list[g.Change] = [g.AddGrant("root", Grant(right, ALL_TUBES)) for right in Right]
    changes: list[g.Change] = [g.AddUser("root"), g.AddToken("root", "t", digest_of_token(token)), *grants]
    done: list[object] = []
    session.submit(c.ChangeAccess(session.number, changes), lambda reply, index: done.append(reply))
    there.wake()
    assert listeners.cluster.run(1_000, lambda: done == [r.AccessChanged()])
    session.close()
    there.wake()
    listeners.cluster.run(200)


def answers(data: bytes) -> list[w.Answer]:
    decoder = FrameDecoder()
    decoder.greeted()
    decoder.feed(data)
    found = []
    while (body := decoder.next_frame()) is not None:
        found.append(w.decode_answer(body))
    return found

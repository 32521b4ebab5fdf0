"""The service on the real reactor: real sockets, a real disk."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater

from raftd import config
from raftd.bench.local import free_ports
from raftd.limits import LIMITS, Limits
from raftd.server.service import STOP_TIMEOUT_S, RaftdService, majority_text


class Talker(Protocol):
    """Waits for a number of bytes."""

    transport: Any

    def __init__(self) -> None:
        self.got = b""
        self.wanted: tuple[int, Deferred[bytes]] | None = None
        self.gone: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.got += data
        if self.wanted is not None and len(self.got) >= self.wanted[0]:
            (size, waiting), self.wanted = self.wanted, None
            taken, self.got = self.got[:size], self.got[size:]
            waiting.callback(taken)

    def expect(self, size: int) -> Deferred[bytes]:
        waiting: Deferred[bytes] = Deferred()
        self.wanted = (size, waiting)
        self.dataReceived(b"")
        return waiting.addTimeout(10, reactor)

    def connectionLost(self, reason: object = None) -> None:
        self.gone.callback(None)


def services(tmp_path, count: int, limits: Limits = LIMITS) -> list[RaftdService]:
    ports = free_ports(2 * count)
    nodes = {n: {"host": "127.0.0.1", "line": ports[2 * n - 2], "peer": ports[2 * n - 1]} for n in range(1, count + 1)}
    loaded = config.check({"cluster": "t", "data": str(tmp_path), "nodes": nodes})

    def cannot_start(reason: str) -> None:
        raise AssertionError(reason)

    return [RaftdService(loaded, node, reactor, cannot_start, limits=limits) for node in nodes]


async def connect(service: RaftdService) -> Talker:
    port = service.config.address(service.node_id).line
    return await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port), Talker())


@pytest.mark.parametrize("count", [1, 3])
@pytest_twisted.ensureDeferred
async def test_put_on_one_node_reserve_on_another_and_stop(tmp_path, count):
    running = services(tmp_path, count)
    for service in running:
        service.privilegedStartService()
        service.startService()
    try:
        producer, worker = await connect(running[0]), await connect(running[-1])
        producer.transport.write(b"put 0 0 60 5\r\nhello\r\n")
        worker.transport.write(b"reserve\r\n")
        assert await producer.expect(12) == b"INSERTED 1\r\n"
        assert await worker.expect(21) == b"RESERVED 1 5\r\nhello\r\n"
    finally:
        for talker in (producer, worker):
            talker.transport.loseConnection()
            await talker.gone
        for service in running:
            await service.stopService()


@pytest.mark.parametrize("last_word", [b"", b"quit\r\n"])
@pytest_twisted.ensureDeferred
async def test_a_client_that_reads_nothing_is_dropped(tmp_path, last_word):
    (service,) = services(tmp_path, 1, Limits(no_progress_s=0.3))
    service.privilegedStartService()
    service.startService()
    talker, deaf = await connect(service), await connect(service)
    try:
        body = bytes(60_000)
        for _ in range(150):
            talker.transport.write(b"put 0 0 60 60000\r\n" + body + b"\r\n")
        await talker.expect(sum(len(b"INSERTED %d\r\n" % number) for number in range(1, 151)))
        deaf.transport.pauseProducing()
        deaf.transport.write(b"reserve\r\n" * 150 + last_word)
        machine = service.node.machine
        assert await until(lambda: machine.counts.reserved > 50), "the jobs are reserved"
        assert await until(lambda: machine.counts.reserved == 0), "the client is dropped"
        talker.transport.write(b"use still-served\r\n")
        assert await talker.expect(20) == b"USING still-served\r\n"
    finally:
        for one in (talker, deaf):
            one.transport.abortConnection()
        await service.stopService()


@pytest_twisted.ensureDeferred
async def test_a_client_that_reads_slowly_is_not_dropped(tmp_path):
    (service,) = services(tmp_path, 1, Limits(no_progress_s=0.3))
    service.privilegedStartService()
    service.startService()
    talker = await connect(service)
    try:
        body = bytes(60_000)
        for _ in range(100):
            talker.transport.write(b"put 0 0 60 60000\r\n" + body + b"\r\n")
        await talker.expect(sum(len(b"INSERTED %d\r\n" % number) for number in range(1, 101)))
        whole = sum(len(b"RESERVED %d 60000\r\n" % number) + 60_002 for number in range(1, 101))
        waiting = talker.expect(whole)
        talker.transport.write(b"reserve\r\n" * 100)
        for _ in range(12):  # two seconds, a little at a time
            talker.transport.pauseProducing()
            await deferLater(reactor, 0.16)
            talker.transport.resumeProducing()
            await deferLater(reactor, 0.004)
        assert len(await waiting) == whole
    finally:
        talker.transport.abortConnection()
        await service.stopService()


async def until(condition, timeout_s: float = 10.0) -> bool:
    """Look every few milliseconds until `condition` is true."""
    for _ in range(int(timeout_s / 0.01)):
        if condition():
            return True
        await deferLater(reactor, 0.01)
    return bool(condition())


@pytest_twisted.ensureDeferred
async def test_a_node_stops_in_time_beside_a_peer_that_does_not_read(tmp_path):
    first, second, _ = services(tmp_path, 3)
    for service in (first, second):
        service.privilegedStartService()
        service.startService()
    talker = await connect(first)
    talker.transport.write(b"put 0 0 60 5\r\nhello\r\n")
    await talker.expect(12)
    (connection,) = second._peers._all
    connection.transport.pauseProducing()
    for _ in range(300):
        talker.transport.write(b"put 0 0 60 60000\r\n" + bytes(60_000) + b"\r\n")
    await deferLater(reactor, 0.5)
    talker.transport.abortConnection()
    started = reactor.seconds()
    await first.stopService()
    await second.stopService()
    assert reactor.seconds() - started < 2 * STOP_TIMEOUT_S + 0.5


WALL_CLOCK = """
import sys, threading, time
real, step = time.time, [0.0]
time.time = lambda: real() + step[0]  # before Twisted takes it
from twisted.internet import reactor
from raftd import tap
options = tap.Options()
options.parseOptions(["--config", sys.argv[1]])
service = tap.makeService(options)
service.privilegedStartService()
service.startService()

def talk():
    import socket
    with socket.create_connection(("127.0.0.1", service.config.address(1).line), timeout=10) as client:
        for step[0] in (0, -3600, 3600):
            client.sendall(b"put 0 1 60 1\\r\\nx\\r\\nreserve-with-timeout 5\\r\\n")
            asked, got = time.monotonic(), b""
            while got.count(b"\\r\\n") < 3:
                got += client.recv(1000)
            assert b"RESERVED" in got, got
            assert 0.9 < time.monotonic() - asked < 3, time.monotonic() - asked
            print("step", step[0], "served", flush=True)
    reactor.callFromThread(reactor.stop)

threading.Thread(target=talk, daemon=True).start()
reactor.run()
"""


def test_a_wall_clock_that_jumps_moves_no_timer(tmp_path):
    """Twisted's own clock is the wall clock: an hour back, and a node stood still for an hour."""
    line, peer = free_ports(2)
    (tmp_path / "c.yaml").write_text(f"cluster: t\ndata: d\nnodes: {{1: {{host: 127.0.0.1, line: {line}, peer: {peer}}}}}")
    done = subprocess.run(
        [sys.executable, "-c", WALL_CLOCK, str(tmp_path / "c.yaml")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split("\n")[:3] == ["step 0 served", "step -3600 served", "step 3600 served"], done.stderr


@pytest_twisted.ensureDeferred
async def test_a_large_job_passes_through_and_a_slow_reader_gets_all_of_it(tmp_path):
    (service,) = services(tmp_path, 1)
    service.privilegedStartService()
    service.startService()
    talker = await connect(service)
    try:
        body = bytes(range(256)) * 255
        for _ in range(20):
            talker.transport.write(b"put 0 0 60 %d\r\n%b\r\n" % (len(body), body))
        answers = b"".join(b"INSERTED %d\r\n" % number for number in range(1, 21))
        assert await talker.expect(len(answers)) == answers
        talker.transport.pauseProducing()
        talker.transport.write(b"reserve\r\n" * 20)
        whole = b"".join(b"RESERVED %d %d\r\n%b\r\n" % (number, len(body), body) for number in range(1, 21))
        waiting = talker.expect(len(whole))
        reactor.callLater(0.3, talker.transport.resumeProducing)
        assert await waiting == whole
    finally:
        talker.transport.loseConnection()
        await talker.gone
        await service.stopService()


def test_a_joint_configuration_needs_a_majority_of_each_half():
    assert majority_text([frozenset({1, 2, 3})]) == "2 of [1, 2, 3]"
    assert majority_text([frozenset({1, 2, 3, 4}), frozenset({1, 2, 3})]) == "3 of [1, 2, 3, 4] and 2 of [1, 2, 3]"

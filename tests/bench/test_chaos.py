"""`raftd chaos`: the proxy between real nodes, frame by frame, and a short run of the whole."""

from __future__ import annotations

import shutil
from random import Random
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol

from raftd.bench.proxy import Proxy
from raftd.wire.frames import FrameDecoder, frame
from tests.cli.test_commands import processes_below, run


class Peer(Protocol):
    """Keeps the frames it gets; `wait_for` fires when there are so many, or when the connection is gone."""

    transport: Any

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.is_gone = False
        self.in_frame = False
        self._decoder = FrameDecoder()
        self._waits: list[tuple[int, Deferred[None]]] = []

    def dataReceived(self, data: bytes) -> None:
        self._decoder.feed(data)
        while (body := self._decoder.next_frame()) is not None:
            self.got.append(body)
        self.in_frame = self._decoder.is_in_frame
        self._poll()

    def connectionLost(self, reason: object = None) -> None:
        self.is_gone = True
        self._poll()

    def _poll(self) -> None:
        for count, wait in list(self._waits):
            if self.is_gone or len(self.got) >= count:
                self._waits.remove((count, wait))
                wait.callback(None)

    def wait_for(self, count: int) -> Deferred[None]:
        wait: Deferred[None] = Deferred()
        self._waits.append((count, wait))
        self._poll()
        return wait


class Listener(Factory):
    def __init__(self) -> None:
        self.accepted: Deferred[Peer] = Deferred()

    def buildProtocol(self, addr: object) -> Peer:
        peer = Peer()
        reactor.callLater(0, self.accepted.callback, peer)
        return peer


class Pair:
    """Nodes 2 and 1, the first connected to the second through the proxy."""

    async def __aenter__(self) -> Pair:
        listener = Listener()
        self._ports = [reactor.listenTCP(0, listener, interface="127.0.0.1") for _ in range(2)]
        addresses = {node: ("127.0.0.1", port.getHost().port) for node, port in zip((1, 2), self._ports, strict=True)}
        self.proxy = Proxy(reactor, Random(1), "127.0.0.2", addresses, lambda body: body[0])
        self.caller = await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.2", addresses[1][1]), Peer())
        self.caller.transport.write(frame(b"\2"))
        self.callee = await listener.accepted
        await self.callee.wait_for(1)
        assert self.callee.got.pop() == b"\2"
        return self

    async def __aexit__(self, *error: object) -> None:
        self.proxy.close()
        for peer in (self.caller, self.callee):
            peer.transport.abortConnection()
            await peer.wait_for(1_000_000)
        for port in self._ports:
            await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_the_proxy_carries_frames_both_ways_in_order():
    async with Pair() as pair:
        for number in range(50):
            pair.caller.transport.write(frame(b"to %d" % number))
            pair.callee.transport.write(frame(b"from %d" % number))
        await pair.callee.wait_for(50)
        await pair.caller.wait_for(50)
        assert pair.callee.got == [b"to %d" % number for number in range(50)]
        assert pair.caller.got == [b"from %d" % number for number in range(50)]


@pytest_twisted.ensureDeferred
async def test_a_cut_link_holds_frames_until_it_is_healed():
    async with Pair() as pair:
        pair.proxy.cut({(2, 1)}, 60, holds=True)
        pair.proxy.slow_down({(1, 2)}, 60, (0.01, 0.03))
        for number in range(3):
            pair.caller.transport.write(frame(b"held %d" % number))
            pair.callee.transport.write(frame(b"late %d" % number))
        await pair.caller.wait_for(3)
        assert pair.caller.got == [b"late 0", b"late 1", b"late 2"]
        assert pair.callee.got == []
        assert pair.proxy.counts["frames held"] == 3
        pair.proxy.heal()
        pair.caller.transport.write(frame(b"after"))
        await pair.callee.wait_for(4)
        assert pair.callee.got == [b"held 0", b"held 1", b"held 2", b"after"]


@pytest_twisted.ensureDeferred
async def test_a_link_that_loses_takes_whole_frames():
    async with Pair() as pair:
        pair.caller.transport.write(frame(b"one"))
        await pair.callee.wait_for(1)
        pair.proxy.cut({(2, 1)}, 60, holds=False)
        pair.caller.transport.write(frame(b"two"))
        pair.callee.transport.write(frame(b"two went before this was asked"))
        await pair.caller.wait_for(1)
        while not pair.proxy.counts["frames lost"]:
            await _a_turn()
        pair.proxy.heal()
        pair.caller.transport.write(frame(b"three"))
        await pair.callee.wait_for(2)
        assert pair.callee.got == [b"one", b"three"]


@pytest_twisted.ensureDeferred
async def test_a_connection_breaks_in_the_middle_of_a_frame():
    async with Pair() as pair:
        pair.proxy.break_connections((2, 1))
        pair.caller.transport.write(frame(b"never whole"))
        pair.caller.transport.write(frame(b"nothing follows"))
        await pair.callee.wait_for(1)
        await pair.caller.wait_for(1)
        assert (pair.callee.got, pair.callee.in_frame, pair.callee.is_gone, pair.caller.is_gone) == ([], True, True, True)


@pytest_twisted.ensureDeferred
async def test_of_cuts_that_overlap_the_longest_counts():
    async with Pair() as pair:
        pair.proxy.cut({(2, 1)}, 60, holds=True)
        pair.proxy.cut({(2, 1)}, 0.01, holds=True)
        pair.proxy.slow_down({(2, 1)}, 0.01, (0, 0))
        pair.proxy.cut({(1, 2)}, 0.05, holds=True)
        pair.caller.transport.write(frame(b"held"))
        pair.callee.transport.write(frame(b"held for a moment"))
        await pair.caller.wait_for(1)
        assert (pair.callee.got, pair.caller.got) == ([], [b"held for a moment"])


def _a_turn() -> Deferred[None]:
    turn: Deferred[None] = Deferred()
    reactor.callLater(0, turn.callback, None)
    return turn


@pytest.mark.load
def test_a_short_run_loses_nothing_and_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for _ in range(3):
        done = run("chaos", "--minutes", "0.12")
        with capsys.disabled():
            print(f"\n{done.stdout}")
        table = {line[:40].strip(): line.split()[-1] for line in done.stdout.splitlines() if line.startswith("  ") and line.strip()}
        assert [table[row] for row in ("lost", "phantoms", "out of order", "other problems")] == ["0"] * 4, done.stderr
        assert processes_below(tmp_path) == []
        if "proves nothing" not in done.stdout:  # all nodes may be down for most of so short a time
            break
        shutil.rmtree(next(tmp_path.iterdir()))
    assert (done.returncode, done.stderr) == (0, "")
    assert int(table["entries committed"].replace(",", "")) > 50
    put, worked, perhaps = (
        table[row].replace(",", "") for row in ("unique jobs put by Python clients", "of them worked", "of them perhaps worked")
    )
    assert int(put) == int(worked) + int(perhaps) > 50
    assert table["duplicated"] == "0"
    assert list(tmp_path.iterdir()) == []

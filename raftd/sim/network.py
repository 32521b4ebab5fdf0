"""Connections between simulated processes: frames, encoded and decoded as on a real one, with everything that happens
to them on the way.

A connection keeps the order of bytes, as TCP does, and bytes arrive in pieces that care for no frame. On top of that,
single frames may be lost, doubled, or overtaken by later ones: more than TCP does, and Raft promises to bear it. A cut link
holds what is sent on it, or loses it; one that stays cut too long breaks its connection, and with it the frame that is
half through.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from random import Random
from typing import Protocol

import msgspec

from raftd.limits import PEER_TCP_TIMEOUT_MS
from raftd.node.loop import Node
from raftd.sim.scheduler import Scheduler
from raftd.wire.frames import FrameDecoder
from raftd.wire.peer import PeerMessage, Refusal, decode, encode

_REDIAL_US = (20_000, 1_000_000)
_NOTICE_US = 20_000


class Process(Protocol):
    """What the network needs of the process of a node."""

    @property
    def node_id(self) -> int: ...

    @property
    def alive(self) -> bool: ...

    @property
    def node(self) -> Node: ...

    def soon(self, call: Callable[..., object], *args: object) -> None: ...

    def told(self, line: str) -> None: ...


class NetworkConditions(msgspec.Struct):
    """How the network treats frames. Rates are per frame."""

    delay_us: tuple[int, int] = (500, 500)
    loss: float = 0.0
    double: float = 0.0
    reorder: float = 0.0
    split: float = 0.0
    holds: bool = True  # a cut link holds what is sent, rather than loses it


class Observer(Protocol):
    def leaving(self, sender: int, to: int, message: PeerMessage) -> None:
        """A message leaves its sender, whatever becomes of it."""

    def happened(self, what: str, *numbers: int, detail: str = "") -> None: ...

    def counted(self, fault: str) -> None: ...


class _End:
    """One side of a connection."""

    def __init__(self, process: Process, peer: int) -> None:
        self.process = process
        self.peer = peer
        self.is_open = False  # its process has accepted the other's hello
        self.decoder = FrameDecoder()
        self.decoder.greeted()
        self.early: list[bytes] = []  # what came before it was open
        self.sent = 0  # pieces of the stream towards it
        self.read = 0  # of them
        self.arrived: dict[int, bytes] = {}  # before an earlier one


class SimConnection:
    """Between two processes, until it breaks."""

    def __init__(self, one: Process, other: Process) -> None:
        self.ends = {one.node_id: _End(one, other.node_id), other.node_id: _End(other, one.node_id)}
        self.is_broken = False
        self.held: list[tuple[int, int, bytes]] = []  # (to, number, bytes) on cut links
        self.held_since_us: int | None = None


class Network:
    def __init__(self, scheduler: Scheduler, random: Random, conditions: NetworkConditions, observer: Observer) -> None:
        self.conditions = conditions
        #: Directed links on which nothing arrives.
        self.cut: set[tuple[int, int]] = set()
        #: How much longer a directed link takes at present, in microseconds.
        self.clogged: dict[tuple[int, int], int] = {}
        #: For tests: decides for (sender, receiver, message) how many copies arrive; None: as the conditions is.
        self.interfere: Callable[[int, int, PeerMessage], int] | None = None
        self.running: dict[int, Process] = {}
        self._scheduler = scheduler
        self._random = random
        self._observer = observer
        self._connections: dict[tuple[int, int], SimConnection] = {}
        self._refused: dict[tuple[int, int], Refusal] = {}  # (by whom, who): why, so that it is said once

    # -- connections --------------------------------------------------------------------------

    def started(self, process: Process) -> None:
        """A process listens; it and those with higher ids dial each other as production does."""
        self.running[process.node_id] = process
        for other in sorted(self.running):
            if other != process.node_id:
                self._dial(min(other, process.node_id), max(other, process.node_id), 0)

    def ended(self, node: int) -> None:
        """Its process is gone: the kernel closes its connections."""
        self.running.pop(node, None)
        for pair in sorted(pair for pair in self._connections if node in pair):
            self.break_connection(*pair)

    def _dial(self, one: int, other: int, attempt: int) -> None:
        pair = (one, other)
        if one not in self.running or other not in self.running or pair in self._connections:
            return
        if (one, other) in self.cut or (other, one) in self.cut:
            self._redial(one, other, attempt)
            return
        connection = self._connections[pair] = SimConnection(self.running[one], self.running[other])
        self._scheduler.after(self._delay_us(other, one), self._greet, connection, one, other)
        self._scheduler.after(self._delay_us(one, other), self._greet, connection, other, one)

    def _redial(self, one: int, other: int, attempt: int) -> None:
        wait_us = min(_REDIAL_US[0] * 2**attempt, _REDIAL_US[1])
        self._scheduler.after(wait_us, self._dial, one, other, attempt + 1)

    def _greet(self, connection: SimConnection, node: int, peer: int) -> None:
        """The hello of `peer` reaches `node`."""
        process = connection.ends[node].process
        if connection.is_broken or not process.alive:
            return
        hello = connection.ends[peer].process.node.hello()

        def greeted() -> None:
            refusal = process.node.handle_hello(hello, lambda: self._accepted(connection, node))
            if refusal is None:
                self._refused.pop((node, peer), None)
                return
            if self._refused.get((node, peer)) != refusal:
                self._refused[node, peer] = refusal
                process.told(f"node {peer} is refused: {refusal.text}")
            other = connection.ends[peer].process
            if (node, peer) not in self.cut:
                self._scheduler.after(self._delay_us(node, peer), other.soon, other.node.was_refused, refusal)
            self.break_connection(*sorted((node, peer)))

        process.soon(greeted)

    def _accepted(self, connection: SimConnection, node: int) -> None:
        end = connection.ends[node]
        if connection.is_broken or end.is_open or not end.process.alive:
            return
        end.is_open = True
        end.process.node.link_changed(end.peer)
        early, end.early = end.early, []
        for data in early:
            self._read(end, data)

    def break_connection(self, one: int, other: int) -> bool:
        """Whatever is on its way is gone; both sides notice soon, and dial again. Whether there was one."""
        connection = self._connections.pop((one, other), None)
        if connection is None:
            return False
        connection.is_broken = True
        self._observer.happened("broken", one, other)
        for end in connection.ends.values():
            if end.process.alive and end.is_open:
                self._scheduler.after(self._random.randrange(_NOTICE_US), self._noticed, end)
        self._redial(one, other, 0)
        return True

    def _noticed(self, end: _End) -> None:
        if end.process.alive:
            end.process.soon(end.process.node.link_changed, end.peer)

    def is_connected(self, one: int, other: int) -> bool:
        """Whether both have accepted each other."""
        connection = self._connections.get((min(one, other), max(one, other)))
        return connection is not None and all(end.is_open for end in connection.ends.values())

    # -- frames -------------------------------------------------------------------------------

    def send(self, process: Process, to: int, message: PeerMessage) -> None:
        sender = process.node_id
        connection = self._connections.get((min(sender, to), max(sender, to)))
        if connection is None or connection.ends[sender].process is not process or not connection.ends[sender].is_open:
            return
        self._observer.leaving(process.node_id, to, message)
        data = encode(message)
        conditions, random = self.conditions, self._random
        copies = 1
        if self.interfere is not None:
            copies = self.interfere(sender, to, message)
        elif conditions.loss and random.random() < conditions.loss:
            self._observer.counted("frame lost")
            copies = 0
        elif conditions.double and random.random() < conditions.double:
            self._observer.counted("frame doubled")
            copies = 2
        if copies and conditions.reorder and random.random() < conditions.reorder:
            self._observer.counted("frame overtaken")
            self._alone(connection, to, data)
            copies -= 1
        if copies:
            self._transmit(connection, sender, to, data)
        for _ in range(copies - 1):
            self._alone(connection, to, data)

    def _alone(self, connection: SimConnection, to: int, data: bytes) -> None:
        """One whole frame beside the stream: later frames may overtake it."""
        sender = connection.ends[to].peer
        if (sender, to) not in self.cut:
            delay_us = self._delay_us(sender, to) + self._random.randrange(20_000)
            self._scheduler.after(delay_us, self._arrive_alone, connection, to, data)

    def _arrive_alone(self, connection: SimConnection, to: int, data: bytes) -> None:
        end = connection.ends[to]
        if connection.is_broken or not end.is_open or not end.process.alive:
            return
        decoder = FrameDecoder()
        decoder.greeted()
        decoder.feed(data)
        body = decoder.next_frame()
        assert body is not None
        self._observer.happened("alone", end.peer, to, detail=f"{len(data)} bytes")
        end.process.soon(end.process.node.receive, end.peer, decode(body))

    def _transmit(self, connection: SimConnection, sender: int, to: int, data: bytes) -> None:
        if (sender, to) in self.cut and not self.conditions.holds:
            return
        pieces = [data]
        if self.conditions.split and len(data) > 1 and self._random.random() < self.conditions.split:
            self._observer.counted("frame split")
            at = self._random.randrange(1, len(data))
            pieces = [data[:at], data[at:]]
        for piece in pieces:
            connection.ends[to].sent += 1
            self._travel(connection, to, connection.ends[to].sent, piece)

    def _travel(self, connection: SimConnection, to: int, number: int, data: bytes) -> None:
        self._scheduler.after(self._delay_us(connection.ends[to].peer, to), self._arrive, connection, to, number, data)

    def _hold(self, connection: SimConnection, to: int, number: int, data: bytes) -> None:
        connection.held.append((to, number, data))
        if connection.held_since_us is None:
            connection.held_since_us = self._scheduler.now_us
            self._scheduler.after(PEER_TCP_TIMEOUT_MS * 1000, self._held_too_long, connection, connection.held_since_us)

    def _held_too_long(self, connection: SimConnection, since_us: int) -> None:
        if not connection.is_broken and connection.held_since_us == since_us:
            self._observer.counted("connection timed out")
            one, other = sorted(connection.ends)
            self.break_connection(one, other)

    def _delay_us(self, sender: int, to: int) -> int:
        least, most = self.conditions.delay_us
        delay_us = least if least == most else self._random.randrange(least, most)
        return delay_us + self.clogged.get((sender, to), 0)

    def _arrive(self, connection: SimConnection, to: int, number: int, data: bytes) -> None:
        """A piece arrives: it is read when all before it have been."""
        end = connection.ends[to]
        if connection.is_broken or not end.process.alive:
            return
        if (end.peer, to) in self.cut:
            if self.conditions.holds:
                self._hold(connection, to, number, data)
            else:
                # part of a frame is lost, which ends a TCP connection
                self.break_connection(*sorted((to, end.peer)))
            return
        self._observer.happened("arrives", end.peer, to, detail=f"{len(data)} bytes")
        end.arrived[number] = data
        while not connection.is_broken and (piece := end.arrived.pop(end.read + 1, None)) is not None:
            end.read += 1
            end.process.soon(self._read, end, piece)

    def _read(self, end: _End, data: bytes) -> None:
        """What PeerProtocol does with what has arrived."""
        if not end.is_open:
            end.early.append(data)
            return
        end.decoder.feed(data)
        while (body := end.decoder.next_frame()) is not None:
            end.process.node.receive(end.peer, decode(body))
            if not end.process.alive:
                return
        if end.decoder.is_in_frame:
            end.process.node.hearing_from(end.peer)

    # -- partitions ---------------------------------------------------------------------------

    def cut_off(self, links: set[tuple[int, int]]) -> None:
        """Nothing arrives on these directed links from now on; all others work, and deliver what they held."""
        self.cut = links
        for _, connection in sorted(self._connections.items()):
            held, connection.held, connection.held_since_us = sorted(connection.held), [], None
            for to, number, data in held:
                self._travel(connection, to, number, data)

    def heal(self) -> None:
        """All links work again, as fast as ever."""
        self.clogged = {}
        self.cut_off(set())

    def partition(self, nodes: list[int], *groups: set[int]) -> None:
        """Only nodes of one group hear each other; a node may be in several."""
        apart = [pair for pair in combinations(sorted(nodes), 2) if not any(set(pair) <= group for group in groups)]
        self.cut_off({link for one, other in apart for link in ((one, other), (other, one))})

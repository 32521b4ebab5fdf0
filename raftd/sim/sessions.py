"""Simulated clients with sessions: the production core of the Python clients, on the real gateway code.

Its bytes are frames on the wire; what it says and what it is told there is the history. Connections break, their node dies or is
stopped, and the core goes to another and resumes its session.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any, Protocol
from zlib import crc32

import msgspec

from raftd.client.core import Core, Held, Subscription
from raftd.client.retry import Retry
from raftd.jobs import asks
from raftd.jobs import replies as r
from raftd.jobs.policy import Policy, PolicyChange
from raftd.node.client_session import ClientSession
from raftd.sim.checks import Checks
from raftd.sim.client_model import ASK, TO_ASK
from raftd.sim.history import Call
from raftd.sim.process import Process
from raftd.sim.scheduler import Scheduler
from raftd.wire import client as w
from raftd.wire.frames import FrameDecoder

_TICK_US = 50_000
_PATIENCE_S = 30.0
_TTRS_MS = (1, 1_500, 4_000, 60_000)
_DELAYS_MS = (0, 0, 0, 1_000)
_WAITS_MS = (0, 0, 500, 2_000, None)


#: What tubes do by themselves, or nothing.
POLICIES = (
    None,
    Policy(max_attempts=1, dead_letter="dead"),
    Policy(max_attempts=2, backoff_ms=(200, 1_000)),
    Policy(ttl_ms=2_000),
    Policy(ttl_ms=1_000, on_expire="dead_letter", dead_letter="dead"),
    Policy(max_jobs=3),
    Policy(max_jobs=5, overflow="drop_oldest"),
    Policy(max_bytes=200, overflow="dead_letter_oldest", dead_letter="dead"),
    Policy(rate=5_000, burst=2, retain_ms=3_000),
    Policy(concurrency=1, max_attempts=2, backoff_ms=(100,), backoff_factor=3_000, backoff_max_ms=2_000),
)
_SCHEDULES = ("one", "two")
_OF_THE_DEAD = [policy for policy in POLICIES if policy is None or not policy.dead_letter]


class SessionWorld(Protocol):
    """What such a client sees of a simulation."""

    checks: Checks
    scheduler: Scheduler

    def process_for(self, number: int) -> Process | None: ...

    def happened(self, what: str, *numbers: int, detail: str = "") -> None: ...

    def now_us(self) -> int: ...


class SimSession:
    """One of them. `numbers` of an event decide whatever there is to choose."""

    def __init__(self, world: SessionWorld, number: int, tubes: int, jobs: list[int]) -> None:
        self.calls: list[Call] = []
        self.is_ended = False
        self._world = world
        self._number = number
        self._tubes = tubes
        self._jobs = jobs
        self._removing: set[str] = set()  # schedules
        self._random = Random(f"session {number}")
        self.core = Core([("node", 1)], f"session {number}", self._random, Retry())
        self._connection: _Connection | None = None
        self._known: dict[tuple[bytes, int], Call] = {}
        self._subscription: Subscription | None = None
        self._puts = 0
        world.scheduler.after(_TICK_US, self._tick)

    @property
    def process(self) -> Process | None:
        return self._connection.process if self._connection is not None else None

    @property
    def _knows_policies(self) -> bool:
        return self.process is not None and self.process.node.knows_policies

    @property
    def pending(self) -> list[Call]:
        return [call for call in self.calls if call.answered is None]

    @property
    def _now_s(self) -> float:
        return self._world.now_us() / 1e6

    # -- what it does -------------------------------------------------------------------------

    def do(self, verb: str, numbers: tuple[int, ...]) -> None:
        _, one, two, three = numbers
        tube = f"tube{one % self._tubes}"
        held = list(self.core.held.values())
        if self.is_ended:
            return
        match verb:
            case "put":
                self._puts += 1
                body = b"session %d job %d" % (self._number, self._puts)
                new = [asks.NewJob(two % 3 * 1_000, _DELAYS_MS[three % 4], _TTRS_MS[two % 4], body)] * (1 + three % 3)
                only = (
                    asks.Unique(f"kind {two % 3}", three % 2 == 0, _DELAYS_MS[two % 4]) if one % 5 == 0 and self._knows_policies else None
                )
                self._ask(asks.Put(tube, new[:1] if only else new, f"key {one % 30}" if one % 4 == 0 else "", unique=only))
            case "reserve":
                self._ask(asks.Reserve([tube, "tube0"][: 1 + two % 2], 1 + three % 3, _WAITS_MS[two % len(_WAITS_MS)]))
            case "subscribe" if self._subscription is None:
                self._subscription = Subscription([tube], 1 + two % 4, lambda: None)
                self.core.subscribe(self._subscription, self._now_s)
            case "subscribe" if self._subscription is not None and two % 4 == 0:
                self.core.unsubscribe(self._subscription, self._now_s)
                self._subscription = None
            case "finish" if held:
                self._finish(held[one % len(held)], two, three)
            case "kick":
                self._ask(asks.Kick(tube, 1 + two % 4))
            case "pause":
                self._ask(asks.Pause(tube, (0, 500)[two % 2]))
            case "policy" if self._knows_policies:
                policy = POLICIES[two % len(POLICIES)]
                version = (one % 9) * 2 if three % 3 == 0 else None
                self._ask(asks.SetPolicies([PolicyChange("dead" if one % 5 == 0 and policy in _OF_THE_DEAD else tube, policy, version)]))
            case "replay" if self._knows_policies:
                which = asks.Selection((tube, "dead")[two % 2], "failed" if two % 3 == 0 else "", up_to=self._jobs[-1] if self._jobs else 0)
                actions: tuple[asks.Action, ...] = ("move", "move", "kick", "delete")
                self._ask(asks.Replay(which, actions[three % 4], tube if one % 2 else ""))
            case "schedule" if self._knows_policies:
                self._ask(_about_schedules(one, two, three, tube))
            case "break":
                self.break_connection()
        self._flush()

    def _finish(self, held: Held, two: int, three: int) -> None:
        if self._subscription is not None and held in self._subscription.ready:
            self._subscription.ready.remove(held)
        whats: tuple[asks.What, ...] = (
            asks.Delete([held.key], b"done" if self._knows_policies else b""),
            asks.Delete([held.key]),
            asks.Release([held.key], _DELAYS_MS[three % 4]),
            asks.Fail([held.key], _DELAYS_MS[three % 4], "it failed", three % 5 == 0),
            asks.Bury([held.key]),
        )
        self.core.finish(held, whats[two % len(whats)], self._now_s, self._now_s + _PATIENCE_S, _nothing)

    def remove_schedules(self) -> None:
        """So that the cluster comes to rest. To be called until there are none: whether it is done is not known if the session ends
        meanwhile (seed 116), and what another has asked before may come after it (seed 8402433)."""
        for name in _SCHEDULES:
            if name not in self._removing:
                self._removing.add(name)
                self._remove_schedule(name)
        self._flush()

    def _remove_schedule(self, name: str) -> None:
        def told(result: object) -> None:
            self._removing.discard(name)

        self.core.ask(asks.SetSchedule(name, None), self._now_s, self._now_s + _PATIENCE_S, told)

    def _ask(self, what: asks.What) -> None:
        self.core.ask(what, self._now_s, self._now_s + _PATIENCE_S, self._told)

    def _told(self, result: object) -> None:
        if isinstance(result, r.InsertedMany):
            self._jobs.extend(range(result.first, result.first + result.count))

    def end(self) -> None:
        """The session ends, and its client goes."""

        def ended(result: object) -> None:
            self.is_ended = True

        self.core.close(self._now_s, ended)
        self._flush()

    # -- the connection -----------------------------------------------------------------------

    def break_connection(self) -> None:
        """As a network does."""
        connection = self._connection
        if connection is not None:
            self.forget()
            connection.process.soon(connection.close)

    def forget(self) -> None:
        """The connection has ended."""
        if self._connection is not None:
            self._connection = None
            self.core.lost(self._now_s, "the connection is lost")
            self.core.output()

    def forget_if(self, connection: _Connection) -> None:
        """The node has ended this one."""
        if self._connection is connection:
            self.forget()

    def _tick(self) -> None:
        if self.is_ended:
            self.break_connection()
            return
        if not self.core.tick(self._now_s):
            self.break_connection()
        if self._connection is None and self.core.wants_connection(self._now_s):
            process = self._world.process_for(self._random.randrange(1 << 30))
            if process is not None and process.node.knows_clients:
                self._connection = _Connection(self, process, partial(self._world.scheduler.after, 0))
                self.core.connected(self._now_s)
        self._flush()
        self._world.scheduler.after(_TICK_US, self._tick)

    def _flush(self) -> None:
        data = self.core.output()
        connection = self._connection
        if not data or connection is None:
            return
        token = self.core.token
        requests = connection.sent.feed_all(data)
        for request in requests:
            if isinstance(request, w.AskRequest) and (token, request.id) not in self._known:
                what = msgspec.msgpack.decode(msgspec.msgpack.encode(request.what))
                call = Call([ASK, token, request.id], self._world.now_us(), asks=what)
                self._known[token, request.id] = call
                self.calls.append(call)
        connection.token = token
        connection.process.soon(connection.arrive, requests)

    def heard(self, connection: _Connection, answer: w.Answer | w.AttachedHello) -> None:
        """What the node says arrives."""
        if connection is not self._connection or not connection.process.alive:
            return
        if isinstance(answer, w.Answer) and answer.id:
            self._note(connection.token, answer)
        data = w.encode_answer(answer) if isinstance(answer, w.Answer) else w.encode_hello(answer)
        if not self.core.received(data, self._now_s):
            self.break_connection()
        self._flush()

    def _note(self, token: bytes, answer: w.Answer) -> None:
        call = self._known.get((token, answer.id))
        if call is None:
            return  # to a read
        told = [TO_ASK, answer.id, msgspec.msgpack.decode(msgspec.msgpack.encode(answer.reply))]
        now_us = self._world.now_us()
        self._world.happened("session hears", self._number, answer.id, answer.index, crc32(msgspec.msgpack.encode(told)), detail=str(told))
        if answer.index:
            self._world.checks.answered(answer.index, False, 0)
        if isinstance(answer.reply, r.Pushed) or call.answered is not None:
            self.calls.append(Call(call.what, call.asked, answered=now_us, index=answer.index, answer=told, asks=call.asks))
        else:
            call.answered, call.index, call.answer = now_us, answer.index, told


def _about_schedules(one: int, two: int, three: int, tube: str) -> asks.OfSchedules:
    name = _SCHEDULES[one % len(_SCHEDULES)]
    if three % 4 == 0:
        return asks.PauseSchedule(name, two % 2 == 0)
    if three % 4 == 1:
        return asks.RunSchedule(name)
    job = asks.NewJob(two % 3 * 1_000, 0, 4_000, b"scheduled")
    every_ms = (300, 700, 2_000)[two % 3]
    return asks.SetSchedule(name, asks.Plan(tube, job, every_ms=every_ms, puts_missed=one % 2 == 0, skips_overlap=three % 3 == 0))


def _nothing(result: object) -> None:
    pass


class _Frames:
    """Requests in the bytes of a connection."""

    def __init__(self) -> None:
        self._decoder = FrameDecoder()
        self._decoder.greeted()

    def feed_all(self, data: bytes) -> list[Any]:
        self._decoder.feed(data)
        found: list[Any] = []
        while (body := self._decoder.next_frame()) is not None:
            found.append(w.decode_client_hello(body) if body.startswith(b"raftd-client") else w.decode_request(body))
        return found


class _Connection:
    """Between a client and a process: what the client listener does, without sockets."""

    def __init__(self, owner: SimSession, process: Process, later: Callable[..., object]) -> None:
        self.process = process
        self._later = later
        self.sent = _Frames()
        self.token = b""
        self._owner = owner
        self._session: ClientSession | None = None
        self._is_closed = False

    def arrive(self, requests: list[Any]) -> None:
        if self._is_closed:
            return
        node = self.process.node
        for request in requests:
            if isinstance(request, w.SessionHello):
                self._session = node.open_client_session(self._lost, self._said)
                self._session.attach(request.session)
            elif isinstance(request, w.AskRequest) and self._session is not None:
                self._session.ask(request.id, request.answered, request.waiting, request.what)
            elif isinstance(request, w.PingRequest):
                self._say(w.Answer(request.id, 0, w.Done()))
        node.wake()

    def _said(self, id: int, reply: Any, index: int) -> None:
        if isinstance(reply, r.Attached):
            self._say(w.AttachedHello("sim", self.process.node_id, 65_535, reply.session, reply.epoch, reply.last_id, 0, 0))
        else:
            self._say(w.Answer(id, index, reply))

    def _say(self, answer: w.Answer | w.AttachedHello) -> None:
        self._later(self._owner.heard, self, answer)

    def _lost(self) -> None:
        """The node ends it."""
        self._is_closed = True
        self._later(self._owner.forget_if, self)

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            if self._session is not None:
                self._session.close()
                self.process.node.wake()

"""Simulated clients on the real gateway code: they come, ask one thing after the other, do not wait for the answer to ask
the next, go in the middle of it, and come again at another node. What they asked and were told is the history.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from raftd.gateway import Session
from raftd.jobs import commands as c
from raftd.jobs import queries
from raftd.jobs import replies as r
from raftd.jobs.model import Job
from raftd.sim.checks import Checks
from raftd.sim.history import Call
from raftd.sim.process import Process

_DELAYS_MS = (1, 200, 1_000, 3_000)
_TTRS_MS = (1, 1_500, 4_000, 60_000)
_WAITS_MS = (0, 0, 300, 1_000, 3_000)


class World(Protocol):
    checks: Checks

    def process_for(self, number: int) -> Process | None:
        """A process that can be connected to."""

    def process_at(self, node: int) -> Process | None:
        """That of a node, if it can be connected to."""

    def note(self, text: str) -> None: ...

    def now_us(self) -> int: ...


class SimClient:
    """One of them. `numbers` of an event decide whatever there is to choose."""

    def __init__(self, world: World, number: int, pipeline: int, tubes: int, jobs: list[int], home: int = 0) -> None:
        """`jobs`: ids that anybody was told of, shared by all clients. `home`: the only node that it connects to, 0: any."""
        self._home = home
        self.calls: list[Call] = []
        #: Calls without an answer on a connection that stands.
        self.pending: list[Call] = []
        self.process: Process | None = None
        self._session: Session | None = None
        self._world = world
        self._number = number
        self._pipeline = pipeline
        self._tubes = tubes
        self._jobs = jobs
        self._held: list[tuple[int, int]] = []  # (job, token)
        self._asked = 0

    def do(self, verb: str, numbers: tuple[int, ...]) -> None:
        """Ask, or go."""
        if verb == "disconnect":
            self.disconnect()
            return
        if len(self.pending) >= self._pipeline or not self._is_connected(numbers[0]):
            return
        assert self._session is not None
        assert self.process is not None
        if verb == "peek":
            self._read(self._session, self._job(numbers[1]))
        else:
            self._submit(self._session, self._command(verb, self._session.number, numbers))
        self.process.node.wake()

    def disconnect(self) -> None:
        """The connection ends: what was not answered never will be."""
        session, process = self._session, self.process
        self.forget()
        if session is not None and process is not None and process.alive:
            session.close()
            process.node.wake()

    def forget(self) -> None:
        """The connection is gone, whoever ended it."""
        self.pending.clear()
        self._held.clear()
        self._session = self.process = None

    def _is_connected(self, number: int) -> bool:
        if self._session is None:
            self.process = self._world.process_at(self._home) if self._home else self._world.process_for(number)
            if self.process is None:
                return False
            self._session = self.process.node.open_session(self.forget)
        assert self.process is not None
        return not self.process.stopped

    # -- asking -------------------------------------------------------------------------------

    def _job(self, number: int) -> int:
        return self._jobs[-1 - number % min(len(self._jobs), 30)] if self._jobs else 1

    def _command(self, verb: str, session: int, numbers: tuple[int, ...]) -> c.Command:
        _, one, two, three = numbers
        tube = f"tube{one % self._tubes}"
        job, token = self._held[one % len(self._held)] if self._held and two % 4 else (self._job(one), 0)
        token = token if three % 2 else 0
        match verb:
            case "put":
                return self._put(session, numbers, 0)
            case "put delayed":
                return self._put(session, numbers, _DELAYS_MS[three % len(_DELAYS_MS)])
            case "reserve":
                return c.Reserve(session, _WAITS_MS[one % len(_WAITS_MS)])
            case "reserve for ever":
                return c.Reserve(session, None)
            case "reserve-job":
                return c.ReserveJob(session, self._job(one))
            case "delete":
                return c.Delete(session, job, token)
            case "release":
                return c.Release(session, job, two % 3, _DELAYS_MS[three % 4] if three % 3 else 0, token)
            case "bury":
                return c.Bury(session, job, two % 3, token)
            case "touch":
                return c.Touch(session, job, token)
            case "kick":
                return c.Kick(session, 1 + one % 5)
            case "kick-job":
                return c.KickJob(session, self._job(one))
            case "use":
                return c.Use(session, tube)
            case "watch":
                return c.Watch(session, tube)
            case "ignore":
                return c.Ignore(session, ("default", tube)[two % 2])
            case "pause":
                return c.PauseTube(session, ("default", tube)[two % 2], (0, 500, 2_000)[three % 3])
        raise AssertionError(f"no client knows {verb!r}")

    def _put(self, session: int, numbers: tuple[int, ...], delay_ms: int) -> c.Put:
        _, one, two, three = numbers
        body = b"client %d job %d" % (self._number, self._asked)
        if one % 20 == 0:
            body += bytes(700 + two % 3_000)  # whole sectors of zeros
        return c.Put(session, two % 3 * 1_000, delay_ms, _TTRS_MS[three % len(_TTRS_MS)], body)

    def _begin(self, session: Session, what: list[Any]) -> Call:
        self._asked += 1
        assert self.process is not None
        call = Call(what, self._world.now_us(), (self.process.node_id, session.number))
        self.calls.append(call)
        self.pending.append(call)
        return call

    def _submit(self, session: Session, command: c.Command) -> None:
        tag, _, *args = msgspec.msgpack.decode(msgspec.msgpack.encode(command))
        call = self._begin(session, [tag, *args])
        session.submit(command, self._done(call, lambda reply: msgspec.msgpack.decode(msgspec.msgpack.encode(reply))))

    def _read(self, session: Session, job: int) -> None:
        session.introduce()
        call = self._begin(session, ["peek", job])
        session.read(queries.peek(job), self._done(call, lambda found: found.body if isinstance(found, Job) else None))

    def _done(self, call: Call, describe: Callable[[object], object]) -> Callable[[object, int], None]:
        process, known = self.process, self._world.checks.acknowledged

        def done(reply: object, index: int) -> None:
            if process is None or not process.alive:
                return
            if call not in self.pending:
                raise AssertionError(f"answered twice, or after the connection had ended: {call}")
            self.pending.remove(call)
            call.answered, call.index, call.answer = self._world.now_us(), index, describe(reply)
            self._world.note(f"client {self._number} {call.what} -> {call.answer} at {index}")
            if index:
                self._world.checks.answered(index, call.is_read, known)
            if isinstance(reply, r.Inserted):
                self._jobs.append(reply.id)
            elif isinstance(reply, r.Reserved):
                self._held.append((reply.id, reply.token))

        return done

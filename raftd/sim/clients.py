"""Simulated clients on the real gateway code: they come, ask one thing after the other, do not wait for the answer to ask
the next, go in the middle of it, and come again at another node. What they asked and were told is the history.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol
from zlib import crc32

import msgspec

from raftd.jobs import commands as c
from raftd.jobs import queries
from raftd.jobs import replies as r
from raftd.jobs.budget import LONG_ANSWER_STEPS
from raftd.jobs.machine import StateMachine
from raftd.jobs.model import Job
from raftd.node.session import Session
from raftd.sim.checks import Checks, Violation
from raftd.sim.history import Call
from raftd.sim.process import Process

_DELAYS_MS = (1, 200, 1_000, 3_000)
_TTRS_MS = (1, 1_500, 4_000, 60_000)
_WAITS_MS = (0, 0, 300, 1_000, 3_000)


_QUERIES: dict[str, Callable[..., queries.Query]] = {
    "peek": queries.peek,
    "stats-job": queries.stats_job,
    "stats-tube": queries.stats_tube,
    "peek-ready": lambda: queries.peek_ready,
    "peek-delayed": lambda: queries.peek_delayed,
    "peek-buried": lambda: queries.peek_buried,
    "list-tubes": lambda: queries.list_tubes,
    "list-tubes-watched": lambda: queries.list_tubes_watched,
    "list-tube-used": lambda: queries.list_tube_used,
    "list-topics": lambda: queries.list_topics,
}


def _flood(session: Session) -> None:
    for _ in range(40):
        session.local(lambda: None, lambda result, index: None, LONG_ANSWER_STEPS)


def _plain(found: object) -> Any:
    """What a read gave, as the model says it."""
    if isinstance(found, Job):
        return found.body
    return [list(row) if isinstance(row, tuple) else row for row in found] if isinstance(found, list) else found


class ClientWorld(Protocol):
    """What a client sees of a simulation."""

    checks: Checks

    def process_for(self, number: int) -> Process | None:
        """A process that can be connected to."""

    def process_at(self, node: int) -> Process | None:
        """That of a node, if it can be connected to."""

    def happened(self, what: str, *numbers: int, detail: str = "") -> None: ...

    def now_us(self) -> int: ...


class SimClient:
    """One of them. `numbers` of an event decide whatever there is to choose."""

    def __init__(self, world: ClientWorld, number: int, pipeline: int, tubes: int, jobs: list[int], home: int = 0) -> None:
        """`jobs`: ids that anybody was told of, shared by all clients. `home`: the only node that it connects to, 0: any."""
        self._home = home
        self.calls: list[Call] = []
        #: Calls without an answer on the open connection, in order.
        self.pending: list[Call] = []
        #: Called after each answer.
        self.when_answered: Callable[[], object] = lambda: None
        self._connection: _Connection | None = None
        self._world = world
        self._number = number
        self._pipeline = pipeline
        self._tubes = tubes
        self._jobs = jobs
        self._held: list[tuple[int, int]] = []  # (job, token)
        self._asked = 0
        self._connections = 0
        self._stopped_waiting = False

    @property
    def process(self) -> Process | None:
        """The one that it is connected to."""
        return self._connection.process if self._connection is not None else None

    def do(self, verb: str, numbers: tuple[int, ...]) -> None:
        """Ask, or go."""
        if verb == "disconnect":
            self.disconnect()
            return
        if verb == "leave":
            self.leave()
            return
        if verb == "stop waiting":
            self.stop_waiting()
            return
        if self._stopped_waiting:
            if self.pending:
                return
            self.disconnect()  # it has every answer
        connection = self._connected(numbers[0])
        if connection is None or len(self.pending) >= self._pipeline:
            return
        if verb == "peek":
            self._read(connection, ["peek", self._job(numbers[1])])
        elif verb == "read":
            self._read(connection, self._question(numbers))
        elif verb == "flood":  # with what the node answers by itself
            connection.ask(_flood)
        elif verb == "hostile":
            for command in self._hostile(connection.session.number, numbers):
                self._submit(connection, command)
        else:
            self._submit(connection, self._command(verb, connection.session.number, numbers))

    def disconnect(self) -> None:
        """The connection ends: what was not answered never will be."""
        connection = self._connection
        self.forget()
        if connection is not None:
            connection.process.soon(connection.close)

    def leave(self) -> None:
        """The connection ends; its jobs stay reserved for their tokens."""
        connection, held = self._connection, list(self._held)
        self.forget()
        self._held += held
        if connection is not None:
            connection.process.soon(connection.leave)

    def stop_waiting(self) -> None:
        """The client closes its side: it says no more, and still hears answers."""
        if self._connection is not None and not self._stopped_waiting:
            self._stopped_waiting = True
            for call in self.pending:
                call.stopped_waiting = True
            self._connection.ask(lambda session: session.stop_waiting())

    def forget(self) -> None:
        """The connection has ended."""
        self._stopped_waiting = False
        self.pending.clear()
        self._held.clear()
        self._connection = None

    def _connected(self, number: int) -> _Connection | None:
        """A stopped process accepts no connection; what arrives on an open one waits there."""
        if self._connection is None:
            process = self._world.process_at(self._home) if self._home else self._world.process_for(number)
            if process is not None:
                self._connections += 1
                connection = self._connection = _Connection(process, self._number * 1_000_000 + self._connections)
                connection.session = process.node.open_session(lambda: self._lost(connection))
        return self._connection

    def _lost(self, connection: _Connection) -> None:
        """The node has ended it."""
        connection.is_closed = True
        if self._connection is connection:
            self.forget()

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
            case "declare":
                return c.Declare(session, f"topic{two % 5}")
            case "undeclare":
                return c.Undeclare(session, f"topic{two % 5}")
            case "put once":
                return self._put_once(session, one % 40, two % 10)
            case "put back":
                return c.PutBack(session, self._job(one), tube, three % 3, 1_500, b"put back")
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

    def _put_once(self, session: int, number: int, chance: int) -> c.PutMany:
        """Anybody may have used the key before, and now and then for something else."""
        jobs = [
            c.NewJob(1, _DELAYS_MS[number % 4] if number % 3 == 0 else 0, 4_000, b"key %d job %d" % (number, n))
            for n in range(1 + number % 3)
        ]
        tube = f"topic{number % 5}" if number % 7 == 0 else "tube0"
        return c.PutMany(session, tube, jobs, f"key{number}" if number else "", b"%d" % (chance == 0), number % 14 == 0)

    def _begin(self, connection: _Connection, what: list[Any]) -> Call:
        self._asked += 1
        call = Call(what, self._world.now_us(), (connection.process.node_id, connection.session.number), connection=connection.number)
        self.calls.append(call)
        self.pending.append(call)
        return call

    def _submit(self, connection: _Connection, command: c.Command) -> None:
        tag, _, *args = msgspec.msgpack.decode(msgspec.msgpack.encode(command))
        call = self._begin(connection, [tag, *args])
        done = self._done(connection, call, lambda reply: msgspec.msgpack.decode(msgspec.msgpack.encode(reply)))
        connection.ask(lambda session: session.submit(command, done))

    def _question(self, numbers: tuple[int, ...]) -> list[Any]:
        """Any query that there is; half of them about what changes with every job."""
        _, one, two, three = numbers
        tube = f"tube{one % self._tubes}" if three % 3 else "default"
        job = self._job(one)
        questions: list[list[Any]] = [["stats-tube", tube]] * 6 + [["stats-job", job]] * 2
        questions += [["peek-ready"], ["peek-delayed"], ["peek-buried"], ["list-tubes"], ["list-tubes-watched"], ["list-tube-used"]]
        questions += [["list-topics"], ["peek", job]]
        return questions[two % len(questions)]

    def _hostile(self, session: int, numbers: tuple[int, ...]) -> list[c.Command]:
        """Commands that cost much for what they are, many at once: each pattern has stopped a node, or made it slow, on its own."""
        _, one, two, three = numbers
        count = 8 + three % 24
        tube = f"tube{one % self._tubes}"
        jobs = self._jobs[-count:]
        match two % 6:
            case 0:  # out and in again at the same priority
                return [command for id in jobs for command in (c.ReserveJob(session, id), c.Release(session, id, None, 0))]
            case 1:
                return [
                    c.Use(session, tube),
                    *(self._put(session, numbers, 60_000) for _ in range(count)),
                    *[c.Kick(session, 1_000_000)] * 4,
                ]
            case 2:  # hold much, and ask for more
                return [*[c.Reserve(session, 0)] * count, *[c.Touch(session, id) for id in jobs], *[c.Reserve(session, 0)] * 8]
            case 3:
                puts = [self._put(session, numbers, 1_000 + place) for place in range(count)]
                return [*puts, *[c.Delete(session, id) for id in jobs]]
            case 4:  # watch much, and wait
                return [*[c.Watch(session, f"tube{place}") for place in range(8)], c.Reserve(session, 300)]
            case _:
                tubes = [f"tube{place}" for place in range(self._tubes)]
                many = [c.NewJob(one % 3, 0, 1_500, b"one of many") for _ in range(count)]
                put_all: list[c.Command] = [
                    command for tube in tubes for command in (c.PauseTube(session, tube, 500), c.PutMany(session, tube, many))
                ]
                return [*put_all, *(c.PauseTube(session, tube, 0) for tube in tubes)]

    def _read(self, connection: _Connection, question: list[Any]) -> None:
        call = self._begin(connection, question)
        done = self._done(connection, call, lambda found: sorted(_plain(found)) if question == ["list-tubes"] else _plain(found))
        name, *args = question
        query = _QUERIES[name](*args)

        def noted(machine: StateMachine, now_ms: int, node: int, session: int) -> object:
            call.clock_ms = now_ms
            if now_ms < machine.now_ms:
                raise Violation(f"I22: a read at {now_ms} is before the last entry, at {machine.now_ms}")
            return query(machine, now_ms, node, session)

        def read(session: Session) -> None:
            session.introduce()
            session.read(noted, done)

        connection.ask(read)

    def _done(self, connection: _Connection, call: Call, describe: Callable[[object], object]) -> Callable[[object, int], None]:
        known = self._world.checks.acknowledged

        def done(reply: object, index: int) -> None:
            if not connection.process.alive:
                return
            if connection.is_closed:
                raise Violation(f"an answer on a connection that has ended: {call}")
            if connection is not self._connection:
                return  # the connection is gone
            if self.pending[:1] != [call]:
                raise Violation(f"{call} is answered before what was asked before it, or twice")
            self.pending.pop(0)
            call.answered, call.index, call.answer = self._world.now_us(), index, describe(reply)
            answer = crc32(msgspec.msgpack.encode(call.answer))
            self._world.happened("answer to", self._number, index, answer, detail=f"{call.what} -> {call.answer}")
            if index:
                self._world.checks.answered(index, call.is_read, known)
            if isinstance(reply, r.Inserted):
                self._jobs.append(reply.id)
            elif isinstance(reply, r.InsertedMany):
                self._jobs.extend(range(reply.first, reply.first + reply.count))
            elif isinstance(reply, r.Reserved):
                self._held.append((reply.id, reply.token))
            self.when_answered()

        return done


class _Connection:
    """Between a client and a process."""

    session: Session

    def __init__(self, process: Process, number: int) -> None:
        self.process = process
        self.number = number  # of all connections of a run
        self.is_closed = False  # as the process sees it

    def ask(self, request: Callable[[Session], object]) -> None:
        """The request arrives."""

        def arrive() -> None:
            if not self.is_closed:
                request(self.session)
                self.process.node.wake()

        self.process.soon(arrive)

    def close(self) -> None:
        self._end(lambda: self.session.close())

    def leave(self) -> None:
        self._end(lambda: self.session.leave())

    def _end(self, how: Callable[[], None]) -> None:
        if not self.is_closed:
            self.is_closed = True
            how()
            self.process.node.wake()

"""`raftd bench entries`: how long the longest entry of each kind takes, in a queue that makes it as dear as it can be.

The state machine alone, without a network or a disk: what every node does for each entry. A million jobs in all states, ten thousand
tubes, ten thousand sessions; some of these watch a thousand tubes and wait, one holds a hundred thousand jobs. A batch is as long as a
gateway makes it. What an entry leaves over is done by the next ones, which are measured too.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import count, islice

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from raftd.jobs import asks
from raftd.jobs import commands as c
from raftd.jobs import replies as r
from raftd.jobs.budget import COSTS
from raftd.jobs.machine import Answer, StateMachine
from raftd.jobs.model import State
from raftd.jobs.policy import Policy, PolicyChange
from raftd.limits import JOBS_PER_PUT, WATCHED_TUBES

_BODY = b"x" * 200
_FOR_EVER_MS = 1 << 40
_TTR_MS = 60_000
#: Those that wait, and what they watch.
_WAITING = 300
_WATCHED = 1_000
_HELD = 100_000
_LONG_MS = 10.0


class Size(msgspec.Struct, frozen=True):
    """How much there is."""

    jobs: int = 1_000_000
    tubes: int = 10_000
    sessions: int = 10_000


class Longest(msgspec.Struct):
    """The longest entry of a kind, in milliseconds of the processor; and how many of them were measured, what they left over too."""

    name: str
    commands: int
    ms: float
    entries: int


class Queue:
    """A machine, and entries for it."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.machine = StateMachine()
        self.now_ms = 1_700_000_000_000
        self.answers: list[Answer] = []  # of the last entry
        self._seqs: dict[int, int] = {}
        self.apply(c.Features(c.FEATURE_LEVEL))
        for node in (1, 2, 3):
            self.open(node, 1)
        self._tube = count()
        self._fill()

    def apply(self, payload: c.Payload | None = None) -> float:
        """One entry; how long it took, in seconds of the processor."""
        data = c.encode_payload(payload) if payload is not None else b""
        before = time.thread_time()
        effects = self.machine.apply(self.machine.applied_index + 1, self.now_ms, data)
        took = time.thread_time() - before
        self.answers = effects.answers
        return took

    def open(self, node: int, incarnation: int) -> float:
        self._seqs[node] = 0
        return self.apply(c.OpenGateway(node, incarnation))

    def batch(self, commands: list[c.Command], node: int = 1) -> float:
        self._seqs[node] += 1
        return self.apply(c.Batch(node, self.machine.gateways[node].incarnation, self._seqs[node], commands))

    def all(self, commands: Iterable[c.Command], node: int = 1) -> None:
        """In batches, whatever they cost."""
        rest = iter(commands)
        while some := list(islice(rest, 500)):
            self.batch(some, node)
            self.settle()

    def settle(self) -> Iterable[float]:
        """The entries that do what others left over."""
        took = []
        while (due_ms := self.machine.next_due_ms()) is not None and due_ms <= self.now_ms:
            took.append(self.apply())
        return took

    def name(self, number: int) -> str:
        return f"tube{number % self.size.tubes}"

    # -- the worst state ----------------------------------------------------------------------

    def _fill(self) -> None:
        jobs, tubes, sessions = self.size.jobs, self.size.tubes, self.size.sessions
        self.all(c.Declare(1, self.name(number)) for number in range(tubes))
        self.all(
            c.Put(
                1,
                number * 7_919 % 1_000,
                0 if number % 10 < 6 else 3_600_000 + number * 104_729 % jobs,
                _FOR_EVER_MS,
                _BODY,
                self.name(number),
            )
            for number in range(jobs)
        )
        ids = [id for id in self.machine.jobs if self.machine.jobs[id].state is State.READY]
        held, buried = ids[1::3][: jobs // 10], ids[2::3][: jobs // 10]
        self.all(c.ReserveJob(2, id) for id in held)
        self.all(command for id in buried for command in (c.ReserveJob(3, id), c.Bury(3, id, id % 100)))
        self.all(c.Put(1, 5, 3_600_000 + number, _FOR_EVER_MS, _BODY, "delayed") for number in range(jobs // 10))
        self.all(c.Watch(4 + number, self.name(number * 31 + place)) for number in range(sessions) for place in range(3))
        self.all(
            (c.Watch(number, f"wide{place}") for number in range(1, _WAITING + 1) for place in range(_WATCHED)),
            node=2,
        )
        self.all((c.Ignore(number, "default") for number in range(1, _WAITING + 1)), node=2)
        self.all((c.Reserve(number, None) for number in range(1, _WAITING + 1)), node=2)

    def jobs(self, state: State, many: int, holder: tuple[int, int] | None = None) -> list[int]:
        """Ids of jobs in this state, spread over all."""
        found = (id for id, job in self.machine.jobs.items() if job.state is state and holder in (None, job.holder))
        return list(islice(found, 0, None, 7))[:many] if holder is None else list(islice(found, many))

    def as_a_gateway_makes_it(self, commands: Iterable[c.Command], watched: int = 1) -> list[c.Command]:
        """The longest batch of these."""
        taken: list[c.Command] = []
        steps = 0
        for command in commands:
            steps += COSTS.of(command, watched)
            if taken and steps > COSTS.commands:
                break
            taken.append(command)
        return taken


Kind = Callable[[Queue], Iterator[tuple[int, float]]]
KINDS: dict[str, Kind] = {}


def _kind(name: str) -> Callable[[Kind], Kind]:
    def register(kind: Kind) -> Kind:
        KINDS[name] = kind
        return kind

    return register


def _commands(name: str, make: Callable[[Queue], Iterable[c.Command]], node: int = 1, watched: int = 1, times: int = 5) -> None:
    def kind(queue: Queue) -> Iterator[tuple[int, float]]:
        for _ in range(times):
            commands = queue.as_a_gateway_makes_it(make(queue), watched)
            if commands:
                yield len(commands), queue.batch(commands, node)
                for took in queue.settle():
                    yield 0, took

    KINDS[name] = kind


_MANY = 1_000
_commands("put", lambda q: (c.Put(5, 500, 0, 60_000, _BODY, q.name(next(q._tube) * 37)) for _ in range(_MANY)))
_commands("put, delayed", lambda q: (c.Put(5, 500, 3_700_000 + n * 7_919, 60_000, _BODY, q.name(next(q._tube) * 37)) for n in range(_MANY)))
_commands("put of 1,000 jobs", lambda q: [c.PutMany(5, q.name(next(q._tube)), [c.NewJob(5, 0, 60_000, _BODY)] * JOBS_PER_PUT)])
_commands("use", lambda q: (c.Use(5, f"new{next(q._tube)}") for _ in range(_MANY)))
_commands("watch", lambda q: (c.Watch(5 + n, f"new{next(q._tube)}") for n in range(_MANY)))
_commands("ignore", lambda q: (c.Ignore(5 + n, "default") for n in range(_MANY)))
_commands("reserve", lambda q: (c.Reserve(5 + n, 0) for n in range(_MANY)), watched=4)
_commands("reserve that finds nothing, with 100,000 held", lambda q: [c.Reserve(_holder(q), 0)] * _MANY)
_commands("reserve-job", lambda q: (c.ReserveJob(5, id) for id in q.jobs(State.READY, _MANY)))
_commands("delete, ready", lambda q: (c.Delete(5, id) for id in q.jobs(State.READY, _MANY)))
_commands("delete, delayed", lambda q: (c.Delete(5, id) for id in q.jobs(State.DELAYED, _MANY)))
_commands("delete, buried", lambda q: (c.Delete(5, id) for id in q.jobs(State.BURIED, _MANY)))
_commands("delete, reserved", lambda q: (c.Delete(2, id) for id in q.jobs(State.RESERVED, _MANY, (1, 2))))
_commands("release", lambda q: (c.Release(2, id, 3, 0) for id in q.jobs(State.RESERVED, _MANY, (1, 2))))
_commands("release with a delay", lambda q: (c.Release(2, id, 3, 3_800_000) for id in q.jobs(State.RESERVED, _MANY, (1, 2))))
_commands("bury", lambda q: (c.Bury(2, id, 3) for id in q.jobs(State.RESERVED, _MANY, (1, 2))))
_commands("touch", lambda q: (c.Touch(2, id) for id in q.jobs(State.RESERVED, _MANY, (1, 2))))
_commands(
    "kick, buried", lambda q: (command for n in range(_MANY) for command in (c.Use(6, q.name(next(q._tube) * 7)), c.Kick(6, 1_000_000)))
)
_commands("kick, delayed", lambda q: [c.Use(6, "delayed"), *[c.Kick(6, 1_000_000)] * _MANY])
_commands("kick-job", lambda q: (c.KickJob(5, id) for id in q.jobs(State.BURIED, _MANY // 2) + q.jobs(State.DELAYED, _MANY // 2)))
_commands("pause-tube", lambda q: (c.PauseTube(5, q.name(next(q._tube) * 7), 5_000_000) for _ in range(_MANY)))
_commands("declare", lambda q: (c.Declare(5, f"topic{next(q._tube)}") for _ in range(_MANY)))
_commands("undeclare", lambda q: (c.Undeclare(5, name) for name in list(q.machine.topics)[-_MANY:]))


def _holder(queue: Queue) -> int:
    """The session that holds most, made to watch what is empty."""
    if "nothing" not in queue.machine.tubes:
        queue.batch([c.Watch(2, "nothing"), c.Ignore(2, "default")])
    return 2


@_kind("put for sessions that watch 1,000 tubes and wait")
def _put_for_waiting(queue: Queue) -> Iterator[tuple[int, float]]:
    puts: list[c.Command] = [c.Put(5, 1, 0, _FOR_EVER_MS, _BODY, f"wide{number}") for number in range(_MANY)]
    commands = queue.as_a_gateway_makes_it(puts)
    yield len(commands), queue.batch(commands)
    for took in queue.settle():
        yield 0, took


@_kind("reserve that waits, 1,000 tubes watched")
def _wait(queue: Queue) -> Iterator[tuple[int, float]]:
    sessions = [number for number in range(1, _WAITING + 1) if not queue.machine.gateways[2].sessions[number].waiting]
    queue.all((c.Delete(number, id) for number in sessions for _, id in list(queue.machine.gateways[2].sessions[number].reserved)), node=2)
    for name in [f"wide{number}" for number in range(_WATCHED)]:
        queue.all((c.Delete(5, id) for _, id in list(queue.machine.tubes[name].ready)))
    while sessions:
        commands = queue.as_a_gateway_makes_it((c.Reserve(number, 60_000) for number in sessions), _WATCHED)
        del sessions[: len(commands)]
        yield len(commands), queue.batch(commands, node=2)


@_kind("reserve that times out, 1,000 tubes watched")
def _time_out(queue: Queue) -> Iterator[tuple[int, float]]:
    queue.now_ms += 60_000
    for took in queue.settle():
        yield 0, took
    queue.all((c.Reserve(number, None) for number in range(1, _WAITING + 1)), node=2)


@_kind("a pause that ends for 10,000 that wait")
def _pause_ends(queue: Queue) -> Iterator[tuple[int, float]]:
    sessions = queue.size.sessions
    queue.all(
        (command for number in range(1, sessions + 1) for command in (c.Watch(number, "paused"), c.Ignore(number, "default"))), node=3
    )
    queue.all([c.Put(5, 1, 0, _FOR_EVER_MS, _BODY, "paused"), c.PauseTube(5, "paused", 3_000_000)])
    queue.all(c.Put(5, 1, 0, _FOR_EVER_MS, _BODY, "paused") for _ in range(sessions))
    queue.all((c.Reserve(number, None) for number in range(1, sessions + 1)), node=3)
    yield 1, queue.batch([c.PauseTube(5, "paused", 0)])
    for took in queue.settle():
        yield 0, took


@_kind("a session that closes with 1,000 tubes watched")
def _close_session(queue: Queue) -> Iterator[tuple[int, float]]:
    commands = queue.as_a_gateway_makes_it(c.CloseSession(number) for number in range(1, _WAITING // 2))
    yield len(commands), queue.batch(commands, node=2)
    for took in queue.settle():
        yield 0, took


@_kind("a session that closes with 100,000 jobs held")
def _close_holder(queue: Queue) -> Iterator[tuple[int, float]]:
    yield 1, queue.batch([c.CloseSession(2)])
    for took in queue.settle():
        yield 0, took


@_kind("a gateway that closes, of sessions that watch 1,000 tubes")
def _close_gateway(queue: Queue) -> Iterator[tuple[int, float]]:
    yield 0, queue.apply(c.CloseGateway(2, 1))
    for took in queue.settle():
        yield 0, took


@_kind("a gateway of 10,000 sessions that opens anew")
def _open_gateway(queue: Queue) -> Iterator[tuple[int, float]]:
    yield 0, queue.open(1, 2)
    for took in queue.settle():
        yield 0, took


@_kind("delays that are over, all at once")
def _delays(queue: Queue) -> Iterator[tuple[int, float]]:
    queue.now_ms += 10_000_000
    for took in queue.settle():
        yield 0, took


def _put_all(queue: Queue, tube: str, policy: Policy) -> None:
    """As many jobs as there are, into a tube with a policy."""
    queue.all([c.SetPolicies(5, [PolicyChange(tube, policy)])])
    many = c.PutMany(5, tube, [c.NewJob(5, 0, _TTR_MS, b"x")] * JOBS_PER_PUT)
    for _ in range(queue.size.jobs // JOBS_PER_PUT):
        queue.batch([many])
        queue.settle()


@_kind("jobs that expire, all at once")
def _expire(queue: Queue) -> Iterator[tuple[int, float]]:
    _put_all(queue, "expire", Policy(ttl_ms=_TTR_MS))
    queue.now_ms += _TTR_MS
    for took in queue.settle():
        yield 0, took


@_kind("jobs that die, all at once")
def _die(queue: Queue) -> Iterator[tuple[int, float]]:
    _put_all(queue, "die", Policy(ttl_ms=_TTR_MS, on_expire="dead_letter", dead_letter="dead"))
    queue.now_ms += _TTR_MS
    for took in queue.settle():
        yield 0, took


@_kind("dead letters that are moved back, a step each")
def _replay(queue: Queue) -> Iterator[tuple[int, float]]:
    after, reply = 0, None
    for _ in range(100):
        yield 1, queue.batch([c.Replay(5, asks.Replay(asks.Selection("dead"), "move", "again", after))])
        (reply,) = (reply for _, number, reply in queue.answers if number == 5)
        assert isinstance(reply, r.Replayed)
        after = reply.after


@_kind("put of 1,000 jobs that push out as many")
def _push_out(queue: Queue) -> Iterator[tuple[int, float]]:
    most = queue.size.jobs // 100
    queue.all([c.SetPolicies(5, [PolicyChange("pushed", Policy(max_jobs=most, overflow="dead_letter_oldest", dead_letter="out"))])])
    for _ in range(most // JOBS_PER_PUT + 20):
        yield 1, queue.batch([c.PutMany(5, "pushed", [c.NewJob(5, 0, _FOR_EVER_MS, b"x")] * min(most, JOBS_PER_PUT))])


@_kind("policies of 1,000 tubes")
def _set_policies(queue: Queue) -> Iterator[tuple[int, float]]:
    for number in range(8):
        changes = [PolicyChange(f"policy{place}", Policy(max_attempts=1 + number, dead_letter="dead")) for place in range(_MANY)]
        yield 1, queue.batch([c.SetPolicies(5, changes)])


def measure(size: Size, console: Console) -> list[Longest]:
    """The longest entry of each kind, in a queue of this size."""
    first, second, _ = gc.get_threshold()
    gc.set_threshold(first, second, 1 << 30)  # as in a node (`server/collector.py`)
    with console.status("filling the queue …"):
        queue = Queue(size)
    gc.freeze()
    found = []
    for name, kind in KINDS.items():
        gc.freeze()  # what the kind before has made would be visited in this one's time
        with console.status(f"{name} …"):
            measured = list(kind(queue))
        if measured:
            commands = max(commands for commands, _ in measured)
            found.append(Longest(name, commands, max(took for _, took in measured) * 1000, len(measured)))
    return found


def show(found: list[Longest], console: Console) -> bool:
    """A table of them; whether none was longer than ten milliseconds."""
    table = Table(box=box.SIMPLE)
    for heading in ("what an entry does", "commands", "entries", "the longest, ms"):
        table.add_column(heading, justify="left" if heading.startswith("what") else "right")
    for one in found:
        style = "red" if one.ms > _LONG_MS else ""
        table.add_row(one.name, f"{one.commands:,}", f"{one.entries:,}", f"[{style}]{one.ms:.1f}" if style else f"{one.ms:.1f}")
    console.print(table)
    return all(one.ms <= _LONG_MS for one in found)


assert WATCHED_TUBES > _WATCHED

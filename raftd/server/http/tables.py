"""Tubes as a table: which come next in an order, of those that fit.

An order is made at most once a second for all who look, in slices, and kept; a page is cut from it before anything is told of its
tubes. So ten who watch ten thousand tubes cost little more than one.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Container, Iterable, Iterator
from heapq import merge, nsmallest
from itertools import islice
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from raftd.jobs.machine import StateMachine
from raftd.jobs.model import Job, Tube
from raftd.node.series import History
from raftd.server.http import shapes as s
from raftd.server.http.routes import BadRequest

#: An order of tubes is this fresh (seconds); but no more than a hundredth of the time is spent on making one.
ORDER_FRESH_S = 1.0
_ORDER_SHARE = 0.01
#: Priorities that are looked at for the oldest ready job of a tube: it may have many, and one look each is needed.
PRIORITIES_LOOKED_AT = 32
#: Tubes that are ordered in one turn of the reactor (some 2 ms).
RUN_TUBES = 2_000

Sort = Literal["name", "ready", "reserved", "delayed", "buried", "dead", "waiting", "bytes", "in", "out", "oldest"]
Having = Literal["ready", "reserved", "delayed", "buried", "dead", "waiting", "paused"]

_Cursor = Annotated[str, msgspec.Meta(max_length=250)]


class TubePage(msgspec.Struct, forbid_unknown_fields=True):
    """`sort`: the largest first, but for `name`. `contains`: a part of the name; `having`: at least one job in this state, a client that
    waits, or a pause."""

    sort: Sort = "name"
    contains: Annotated[str, msgspec.Meta(max_length=200)] = ""
    having: Having | None = None
    after: _Cursor = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 100


class Rows(NamedTuple):
    tubes: list[Tube]
    after: str
    more: bool


_Pair = tuple[float, str]
_Run = list[_Pair]  # sorted
_Order = list[_Run]

_KEYS: dict[str, Callable[[Tube], float]] = {
    "ready": lambda tube: len(tube.ready),
    "reserved": lambda tube: tube.reserved,
    "delayed": lambda tube: len(tube.delayed),
    "buried": lambda tube: len(tube.buried),
    "dead": lambda tube: tube.dead,
    "waiting": lambda tube: len(tube.waiters),
    "bytes": lambda tube: tube.bytes,
}


class TubeTable:
    """That of one node. `history`: what it has seen of the last minutes."""

    def __init__(self, clock: Any, history: History) -> None:
        self.history = history
        self._clock = clock
        self._orders: dict[str, tuple[float, _Order]] = {}  # until when each is good
        self._waiting: dict[str, list[Callable[[], None]]] = {}  # for those that are being made

    def refresh(self, machine: StateMachine, sort: str, then: Callable[[], None]) -> None:
        """`then` is called when there is an order that is fresh: at once, or after some turns of the reactor."""
        good_until, _ = self._orders.get(sort, (0.0, []))
        if time.monotonic() < good_until:
            then()
        elif sort in self._waiting:
            self._waiting[sort].append(then)
        else:
            self._waiting[sort] = [then]
            self._make(sort, self._runs(machine, sort), [], 0.0)

    def _make(self, sort: str, runs: Iterator[_Run], order: _Order, spent_s: float) -> None:
        """A run in each turn of the reactor."""
        began_s = time.monotonic()
        run = next(runs, None)
        spent_s += time.monotonic() - began_s
        if run is not None:
            order.append(run)
        if run is not None and len(run) == RUN_TUBES:
            self._clock.callLater(0, self._make, sort, runs, order, spent_s)
            return
        self._orders[sort] = (time.monotonic() + max(ORDER_FRESH_S, spent_s / _ORDER_SHARE), order)
        for then in self._waiting.pop(sort):
            then()

    def _runs(self, machine: StateMachine, sort: str) -> Iterator[_Run]:
        tubes = iter(list(machine.tubes.values()))
        while run := sorted((-self._value(machine, tube, sort), tube.name) for tube in islice(tubes, RUN_TUBES)):
            yield run

    def page(self, machine: StateMachine, wanted: TubePage, his: Container[str] | None) -> Rows:
        """The tubes behind `wanted.after`, as they are now; by what they hold, in the last order that was made. `his`: names of those that
        the viewer may look at; None: all."""
        if wanted.sort != "name":
            return self.recent_page(machine, wanted, his)
        fitting = (name for name in machine.tubes if name > wanted.after and _fits(machine, wanted, his, name))
        names = nsmallest(wanted.limit + 1, fitting)
        return _rows(machine, names, wanted.limit, names[wanted.limit - 1] if len(names) > wanted.limit else "")

    def recent_page(self, machine: StateMachine, wanted: TubePage, his: Container[str] | None) -> Rows:
        """The same in the last order by name, too: a tube that is new may not be in it."""
        _, order = self._orders.get(wanted.sort) or (0.0, list(self._runs(machine, wanted.sort)))
        place = _place(wanted) if wanted.after else None
        rests: list[Iterable[_Pair]] = [islice(run, bisect_right(run, place) if place is not None else 0, None) for run in order]
        if wanted.contains or wanted.having is not None or his is not None:  # few may fit: they are found before they are merged
            rests = [[pair for pair in rest if _fits(machine, wanted, his, pair[1])] for rest in rests]
        there = (pair for pair in merge(*rests) if pair[1] in machine.tubes)  # the order may be older than the state
        found = list(islice(there, wanted.limit + 1))
        after = ""
        if len(found) > wanted.limit:
            value, name = found[wanted.limit - 1]
            after = name if wanted.sort == "name" else f"{value!r}/{name}"
        return _rows(machine, [name for _, name in found], wanted.limit, after)

    def _value(self, machine: StateMachine, tube: Tube, sort: str) -> float:
        match sort:
            case "name":
                return 0.0
            case "in" | "out":
                return self.history.rates(tube.name)[sort == "out"]
            case "oldest":
                first = tube.ready.least()
                job = machine.jobs.get(first[1]) if first is not None else None
                return machine.now_ms - job.created_ms if job is not None else -1.0
        return _KEYS[sort](tube)

    def view(self, machine: StateMachine, tube: Tube, now_ms: int) -> s.TubeView:
        """Of one tube, as JSON has it."""
        oldest = _oldest(machine, tube)
        age_s = max(0, now_ms - oldest.created_ms) / 1000 if oldest is not None else None
        return s.tube_view(tube, now_ms, age_s, *self.history.rates(tube.name))


def _oldest(machine: StateMachine, tube: Tube) -> Job | None:
    """Of its ready jobs. They are in the order of their priorities, and of those with the same priority the oldest comes first."""
    oldest: Job | None = None
    first = tube.ready.least()
    for _ in range(PRIORITIES_LOOKED_AT):
        if first is None:
            break
        job = machine.jobs[first[1]]
        if oldest is None or job.created_ms < oldest.created_ms:
            oldest = job
        first = next(tube.ready.from_item((first[0] + 1, 0)), None)
    return oldest


def _fits(machine: StateMachine, wanted: TubePage, his: Container[str] | None, name: str) -> bool:
    if wanted.contains not in name or (his is not None and name not in his):
        return False
    tube = machine.tubes.get(name)
    return tube is not None and (wanted.having is None or _has(tube, wanted.having, machine.now_ms))


def _has(tube: Tube, having: str, now_ms: int) -> bool:
    return tube.pause_until_ms > now_ms if having == "paused" else _KEYS[having](tube) > 0


def check_place(wanted: TubePage) -> None:
    """Raises BadRequest."""
    if wanted.after:
        _place(wanted)


def _place(wanted: TubePage) -> tuple[float, str]:
    """What stands before the page."""
    if wanted.sort == "name":
        return 0.0, wanted.after
    value, _, name = wanted.after.partition("/")
    try:
        place = float(value)
    except ValueError:
        place = math.nan
    if not math.isfinite(place):
        raise BadRequest(f"after: {wanted.after!r} is not from a page in the order of {wanted.sort}", "bad-place")
    return place, name


def _rows(machine: StateMachine, names: list[str], limit: int, after: str) -> Rows:
    return Rows([machine.tubes[name] for name in names[:limit]], after, len(names) > limit)

"""Tubes as a table: which come next in an order, of those that fit.

An order is made at most once a second for all who look, and kept; a page is cut from it before anything is told of its tubes. So ten
who watch ten thousand tubes cost little more than one.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from heapq import nsmallest
from itertools import islice
from typing import Annotated, Literal, NamedTuple

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


_Order = list[tuple[float, str]]

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

    def __init__(self, history: History) -> None:
        self.history = history
        self._orders: dict[str, tuple[float, _Order]] = {}  # until when each is good

    def page(self, machine: StateMachine, wanted: TubePage, seen: Callable[[Iterable[str]], Iterable[str]]) -> Rows:
        """The tubes behind `wanted.after`, as they are now; by what they hold, in an order that may be some seconds old. `seen` leaves out
        names that the viewer may not look at."""
        if wanted.sort != "name":
            return self.recent_page(machine, wanted, seen)
        names = nsmallest(wanted.limit + 1, (name for name in _fitting(machine, wanted, seen(machine.tubes)) if name > wanted.after))
        return _rows(machine, names, wanted.limit, names[wanted.limit - 1] if len(names) > wanted.limit else "")

    def recent_page(self, machine: StateMachine, wanted: TubePage, seen: Callable[[Iterable[str]], Iterable[str]]) -> Rows:
        """The same, in an order that may be some seconds old by name, too: a tube that is new may not be in it."""
        order = self._order(machine, wanted.sort)
        begin = bisect_right(order, _place(wanted)) if wanted.after else 0
        names = list(islice(_fitting(machine, wanted, seen(name for _, name in islice(order, begin, None))), wanted.limit + 1))
        last = names[wanted.limit - 1] if len(names) > wanted.limit else ""
        if last and wanted.sort != "name":
            last = next(f"{value!r}/{name}" for value, name in islice(order, begin, None) if name == last)
        return _rows(machine, names, wanted.limit, last)

    def _order(self, machine: StateMachine, sort: str) -> _Order:
        began = time.monotonic()
        good_until, order = self._orders.get(sort, (0.0, []))
        if began >= good_until:
            order = sorted((-self._value(machine, tube, sort), name) for name, tube in machine.tubes.items())
            took = time.monotonic() - began
            self._orders[sort] = (began + max(ORDER_FRESH_S, took / _ORDER_SHARE), order)
        return order

    def _value(self, machine: StateMachine, tube: Tube, sort: str) -> float:
        match sort:
            case "name":
                return 0.0
            case "in" | "out":
                return self.history.rates(tube.name)[sort == "out"]
            case "oldest":
                first = tube.ready.least()
                return machine.now_ms - machine.jobs[first[1]].created_ms if first is not None else -1.0
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


def _fitting(machine: StateMachine, wanted: TubePage, names: Iterable[str]) -> Iterator[str]:
    part, having = wanted.contains, wanted.having
    for name in names:
        tube = machine.tubes.get(name)  # an order may be older than the state
        if tube is not None and part in name and (having is None or _has(tube, having, machine.now_ms)):
            yield name


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

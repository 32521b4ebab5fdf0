"""Was what the clients saw possible? A recorded history beside the committed log (raft-rules, part 4).

Every answer carries the index at which it was applied, so there is nothing to search: one replay of the log through the
plain model gives all answers there are, and each that a client got must be one of them. It works on simulated
histories and on those of real clusters, where nobody knows which session a client was.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from raftd.sim.model import BATCH, CLOSE_SESSION, RESERVE, TOUCH, Model

#: A history of which more is unknown than this proves nothing.
MOST_UNKNOWN = 0.2


class Call(msgspec.Struct):
    """Something a client asked for. `what` is the command as it stands in the log without its session ([tag, …]), or for a
    read ["peek", id]. Times count in any unit. Without an answer `answered` is None: it may have happened or not. `index` 0
    with an answer: certainly not applied. `who` is (node, session) where known."""

    what: list[Any]
    asked: float
    who: tuple[int, int] | None = None
    answered: float | None = None
    index: int = 0
    answer: Any = None

    @property
    def is_read(self) -> bool:
        return bool(self.what[0] == "peek")


class LogEntry(msgspec.Struct, frozen=True):
    """A committed entry; `data` is empty for one that only lets time pass."""

    index: int
    time_ms: int
    data: bytes


class Verdict(msgspec.Struct):
    """What is wrong with a history, nothing if it is possible; and how much of it is known."""

    problems: list[str]
    calls: int = 0
    unknown: int = 0

    @property
    def proves_something(self) -> bool:
        return self.calls > 0 and self.unknown <= MOST_UNKNOWN * self.calls


def _key(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


def check(entries: Sequence[LogEntry], calls: Iterable[Call]) -> Verdict:
    """Lost, phantom, out of order, or answered with what the queue never said?"""
    calls = list(calls)
    verdict = Verdict([], len(calls), sum(call.answered is None for call in calls))
    answers = _replay(entries, [call for call in calls if call.is_read and call.answered is not None], verdict.problems)
    for call in calls:
        if call.answered is None or call.is_read or not call.index:
            continue
        key = _key(call.answer)
        there = answers[call.index]
        matching = [place for place, (who, given) in enumerate(there) if given == key and call.who in (None, who)]
        if matching:
            there.pop(matching[0])  # an answer is given to one
        else:
            verdict.problems.append(f"lost: {call.what} was answered with {call.answer} at entry {call.index}, which gives no such answer")
    verdict.problems += _phantoms(entries, calls)
    verdict.problems += _disorder(calls)
    return verdict


def _replay(entries: Sequence[LogEntry], reads: list[Call], problems: list[str]) -> dict[int, list[tuple[tuple[int, int], bytes]]]:
    """All answers by index, with whom each was for; reads are compared on the way."""
    answers: dict[int, list[tuple[tuple[int, int], bytes]]] = defaultdict(list)
    reads = sorted(reads, key=lambda call: call.index, reverse=True)
    model = Model()
    for entry in entries:
        while reads and reads[-1].index < entry.index:
            _compare(model, reads.pop(), problems)
        for node, session, answer in model.entry(entry.time_ms, entry.data):
            answers[entry.index].append(((node, session), _key(answer)))
    for read in reversed(reads):
        _compare(model, read, problems)
    return answers


def _compare(model: Model, read: Call, problems: list[str]) -> None:
    job = model.jobs.get(read.what[1])
    expected = job["body"] if job is not None else None
    if expected != read.answer:
        problems.append(f"read: {read.what} at entry {read.index} gave {read.answer!r} and should have given {expected!r}")


def _phantoms(entries: Sequence[LogEntry], calls: list[Call]) -> list[str]:
    """Each command in the log belongs to a call, and to one that was not refused."""
    open_calls = Counter(_key(call.what) for call in calls if not call.is_read and (call.answered is None or call.index))
    # A client that will say no more waits for nothing either: its gateway asks with a timeout of 0 (docs/protocol.md).
    hurried = sum(call.what[0] == RESERVE and call.answered is None and call.what[1] != 0 for call in calls)
    problems = []
    model = Model()  # says which batches took effect
    for entry in entries:
        taken = len(model.batches)
        model.entry(entry.time_ms, entry.data)
        if len(model.batches) == taken:
            continue
        payload = msgspec.msgpack.decode(entry.data)
        assert payload[0] == BATCH
        for tag, _, *args in payload[4]:
            if tag == CLOSE_SESSION or (tag == TOUCH and args[0] == 0):
                continue  # a gateway's own
            key = _key([tag, *args])
            if not open_calls[key] and [tag, *args] == [RESERVE, 0] and hurried:
                hurried -= 1
                continue
            if not open_calls[key]:
                problems.append(f"phantom: nobody asked for {[tag, *args]}, which stands in entry {entry.index}")
            open_calls[key] -= 1
    return problems


def _disorder(calls: list[Call]) -> list[str]:
    """What was asked after an answer had come applies behind it (a read: not before it)."""
    moments: list[tuple[float, int, Call]] = []
    for call in calls:
        if call.answered is not None and call.index:
            moments.append((call.asked, 1, call))
            moments.append((call.answered, 0, call))
    moments.sort(key=lambda moment: moment[:2])
    problems = []
    newest = 0
    before: dict[int, int] = {}
    for _, is_asked, call in moments:
        if is_asked:
            before[id(call)] = newest
        else:
            least = before.get(id(call), 0) + (0 if call.is_read else 1)
            if call.index < least:
                problems.append(f"order: {call.what} was applied at {call.index}, though {least} or later was asked for after an answer")
            newest = max(newest, call.index)
    return problems

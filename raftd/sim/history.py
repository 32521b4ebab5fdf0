"""Was what the clients saw possible? A recorded history beside the committed log (raft-rules, part 4).

Every answer carries the index at which it was applied, so there is nothing to search: one replay of the log through the
plain model gives all answers there are, and each that a client got must be one of them. It works on simulated
histories and on those of real clusters, where nobody knows which session a client was.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from raftd.sim.model import BATCH, CLOSE_SESSION, OUT_OF_MEMORY, RESERVE, TOUCH, Model

#: Answers that may come with index 0: certainly not applied. (41: a request of the client door that was wrong.)
_REFUSALS = (OUT_OF_MEMORY, 41)

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
    after = _disorder(calls, verdict.problems)
    answers = _replay(entries, [call for call in calls if call.is_read and call.answered is not None], verdict.problems)
    # Who is known takes his own answer before anybody of whom nothing is known could take it.
    for call in sorted(calls, key=lambda call: call.who is None):
        if call.answered is not None and not call.is_read:
            _find_answer(call, answers, verdict.problems)
    _find_calls(entries, calls, after, verdict.problems)
    return verdict


class _Given(NamedTuple):
    """An answer that the model gave."""

    who: tuple[int, int]
    what: bytes
    answer: bytes


def _find_answer(call: Call, answers: dict[int, list[_Given]], problems: list[str]) -> None:
    if not call.index:
        if call.answer[0] not in _REFUSALS:
            problems.append(f"refused: {call.what} was not applied, and was answered with {call.answer}")
        return
    there = answers[call.index]
    wanted = (_key(call.what), _key(call.answer))
    for place, given in enumerate(there):
        if (given.what, given.answer) == wanted and call.who in (None, given.who):
            del there[place]  # an answer is given to one
            return
    problems.append(f"lost: {call.what} was answered with {call.answer} at entry {call.index}, which gives no such answer")


def _replay(entries: Sequence[LogEntry], reads: list[Call], problems: list[str]) -> dict[int, list[_Given]]:
    """All answers by index; reads are compared on the way."""
    answers: dict[int, list[_Given]] = defaultdict(list)
    reads = sorted(reads, key=lambda call: call.index, reverse=True)
    model = Model()
    for entry in entries:
        while reads and reads[-1].index < entry.index:
            _compare(model, reads.pop(), problems)
        given = model.entry(entry.time_ms, entry.data)
        answers[entry.index] = [
            _Given((node, session), _key(what), _key(answer)) for (node, session, answer), what in zip(given, model.answered, strict=True)
        ]
    while reads and reads[-1].index <= len(entries):
        _compare(model, reads.pop(), problems)
    problems += [f"lost: {read.what} was answered at entry {read.index}, which there is not" for read in reads]
    return answers


def _compare(model: Model, read: Call, problems: list[str]) -> None:
    job = model.jobs.get(read.what[1])
    expected = job["body"] if job is not None else None
    if expected != read.answer:
        problems.append(f"read: {read.what} at entry {read.index} gave {read.answer!r} and should have given {expected!r}")


def _disorder(calls: list[Call], problems: list[str]) -> dict[int, int]:
    """What was asked after an answer had come applies behind it (a read: not before it). For each call, by its id(), the newest
    index of which anybody had been told when it was asked."""
    moments: list[tuple[float, int, Call]] = []
    for call in calls:
        moments.append((call.asked, 0, call))
        if call.answered is not None and call.index:
            moments.append((call.answered, 1, call))
    moments.sort(key=lambda moment: moment[:2])  # of one moment nobody knows what came first
    newest = 0
    after: dict[int, int] = {}
    for _, is_answered, call in moments:
        if not is_answered:
            after[id(call)] = newest
            continue
        least = after[id(call)] + (0 if call.is_read else 1)
        if call.index < least:
            problems.append(f"order: {call.what} was applied at {call.index}, though {least} or later was asked for after an answer")
        newest = max(newest, call.index)
    return after


class _Asked:
    """The calls for one command that were not found in the log yet."""

    def __init__(self) -> None:
        self.answered: deque[Call] = deque()  # by index
        self.unknown: list[Call] = []

    def take(self, index: int, who: tuple[int, int], after: dict[int, int]) -> bool:
        """One that may stand in entry `index`: his own rather than one of whom nothing is known, one that must be found
        rather than one that may never have happened, and of those the one that must be soonest."""
        while self.answered and self.answered[0].index < index:
            self.answered.popleft()
        for calls, whose in ((self.answered, who), (self.answered, None), (self.unknown, who), (self.unknown, None)):
            for place, call in enumerate(calls):
                # Only a reserve is answered by a later entry than its own.
                if call.answered is not None and call.index > index and call.what[0] != RESERVE:
                    break
                if call.who == whose and after[id(call)] < index:
                    del calls[place]
                    return True
        return False


def _find_calls(entries: Sequence[LogEntry], calls: list[Call], after: dict[int, int], problems: list[str]) -> None:
    """Each command that took effect belongs to a call, one that was not refused, and was asked for before."""
    asked: dict[bytes, _Asked] = defaultdict(_Asked)
    hurried = _Asked()
    for call in sorted(calls, key=lambda call: call.index):
        if call.is_read:
            continue
        if call.answered is None:
            asked[_key(call.what)].unknown.append(call)
            if call.what[0] == RESERVE and call.what[1] != 0:
                # A client that will say no more waits for nothing either: its gateway asks with a timeout of 0 (docs/protocol.md).
                hurried.unknown.append(call)
        elif call.index:
            asked[_key(call.what)].answered.append(call)
    model = Model()  # says which batches took effect
    for entry in entries:
        taken = len(model.batches)
        model.entry(entry.time_ms, entry.data)
        if len(model.batches) == taken:
            continue
        payload = msgspec.msgpack.decode(entry.data)
        assert payload[0] == BATCH
        for tag, session, *args in payload[4]:
            if tag == CLOSE_SESSION or (tag == TOUCH and args[0] == 0):
                continue  # a gateway's own
            who, command = (payload[1], session), [tag, *args]
            if asked[_key(command)].take(entry.index, who, after):
                continue
            if command == [RESERVE, 0] and hurried.take(entry.index, who, after):
                continue
            problems.append(f"phantom: nobody asked for {command}, which stands in entry {entry.index}")

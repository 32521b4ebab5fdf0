"""Was what the clients saw possible? A recorded history beside the committed log.

Every answer carries the index at which it was applied, so there is nothing to search: one replay of the log through the
plain model gives all answers there are, and each that a client got must be one of them. It works on simulated
histories and on those of real clusters, where the session of a client is not known.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from raftd.sim.model import (
    ASK,
    ATTACH,
    BATCH,
    CLOSE_SESSION,
    DETACH,
    JOB_TOO_BIG,
    LEAVE,
    OUT_OF_MEMORY,
    PUT,
    PUT_MANY,
    RESERVE,
    TOUCH,
    Model,
)

#: Answers that may come with index 0: certainly not applied. (41: a request of the client listener that was wrong.)
_REFUSALS = (OUT_OF_MEMORY, JOB_TOO_BIG, 41)
#: Commands that no client of a line gives: those about connections, and asks of clients' sessions.
_NO_LINE = (CLOSE_SESSION, LEAVE, ATTACH, DETACH, ASK)

#: A history of which more is unknown than this proves nothing.
MOST_UNKNOWN = 0.2


class Call(msgspec.Struct):
    """Something a client asked for. `what` is the command as in the log, without its session ([tag, …]), or for a read its name and
    arguments (["peek", id]). `clock_ms`: log time at a read. Times count in any unit. Without an answer `answered` is None: it may have
    happened or not. `index` 0 with an answer: certainly not applied. `who` is (node, session) where known. An ask of a client's session is
    [ASK, token, id], with what it asks in `asks`; its answer [TO_ASK, id, reply]; what is pushed is a call of its own. Calls of one
    `connection` were asked in this order; `session` (node, incarnation, number) is filled in where the log tells whose it was."""

    what: list[Any]
    asked: float
    who: tuple[int, int] | None = None
    answered: float | None = None
    index: int = 0
    answer: Any = None
    connection: int | None = None
    session: tuple[int, int, int] | None = None
    clock_ms: int = 0
    asks: list[Any] | None = None
    stopped_waiting: bool = False  # its client had no more to say before it was answered: a reserve waits no longer then

    @property
    def is_read(self) -> bool:
        return isinstance(self.what[0], str)

    @property
    def is_ask(self) -> bool:
        return bool(self.what[0] == ASK)


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


def check(entries: Sequence[LogEntry], calls: Iterable[Call], model: Model | None = None) -> Verdict:
    """Lost, phantom, out of order, or answered with what the queue never said? Fills in `session` where the log tells it. `model`: a
    new one, if entries have another budget than usual."""
    calls = list(calls)
    verdict = Verdict([], len(calls), sum(call.answered is None for call in calls))
    problems = verdict.problems
    problems += [
        f"lost: the log has entry {entry.index} in place {place}" for place, entry in enumerate(entries, 1) if entry.index != place
    ][:1]
    after = _disorder(calls, problems)
    model = model or Model()
    answers, commands = _replay(model, entries, [call for call in calls if call.is_read and call.answered is not None], problems)
    _find_asks(model, calls, problems)
    _recognise(commands, calls, problems)
    # Who is known takes his own answer before anybody of whom nothing is known could take it.
    for call in sorted(calls, key=lambda call: call.who is None and call.session is None):
        if call.answered is not None and not call.is_read:
            _find_answer(call, answers, problems)
    _find_calls(commands, [call for call in calls if not call.is_ask], after, problems)
    return verdict


def _find_asks(model: Model, calls: list[Call], problems: list[str]) -> None:
    """What a client's session did was asked for, and done once, also if the session had ended and was made anew."""
    asked = {(call.what[1], call.what[2]): call.asks for call in calls if call.is_ask}
    done: set[tuple[bytes, int]] = set()
    for token, id, what in model.asked:
        if (token, id) in done:
            problems.append(f"doubled: ask {id} of session {token.hex()} did {what} twice")
        done.add((token, id))
        if asked.get((token, id)) != what:
            problems.append(f"phantom: ask {id} of session {token.hex()} did {what}, and asked for {asked.get((token, id))}")


#: What the gateway asks for instead of any reserve, for a client that will say no more.
_WITHOUT_WAITING = ([RESERVE, 0],)


class _Given(NamedTuple):
    """An answer that the model gave."""

    who: tuple[int, int]
    what: bytes
    answer: bytes


def _find_answer(call: Call, answers: dict[int, list[_Given]], problems: list[str]) -> None:
    if not call.index:
        if (call.answer[2] if call.is_ask else call.answer)[0] not in _REFUSALS:
            problems.append(f"refused: {call.what} was not applied, and was answered with {call.answer}")
        return
    there = answers[call.index]
    who = (call.session[0], call.session[2]) if call.session is not None else call.who
    wanted = {
        (_key(what), _key(call.answer)) for what in (call.what, *_WITHOUT_WAITING[: call.stopped_waiting and call.what[0] == RESERVE])
    }
    for place, given in enumerate(there):
        if (given.what, given.answer) in wanted and who in (None, given.who):
            del there[place]  # an answer is given to one
            return
    problems.append(f"lost: {call.what} was answered with {call.answer} at entry {call.index}, which gives no such answer")


class _Command(NamedTuple):
    """One that took effect. `session` is (node, incarnation, number)."""

    entry: int
    session: tuple[int, int, int]
    what: list[Any]

    @property
    def who(self) -> tuple[int, int]:
        return self.session[0], self.session[2]


def _replay(
    model: Model, entries: Sequence[LogEntry], reads: list[Call], problems: list[str]
) -> tuple[dict[int, list[_Given]], list[_Command]]:
    """All answers by index, and all commands that took effect, but for a gateway's own; reads are compared on the way."""
    answers: dict[int, list[_Given]] = defaultdict(list)
    commands: list[_Command] = []
    reads = sorted(reads, key=lambda call: call.index, reverse=True)
    for entry in entries:
        while reads and reads[-1].index < entry.index:
            _compare(model, reads.pop(), problems)
        taken = len(model.batches)
        given = model.entry(entry.time_ms, entry.data)
        answers[entry.index] = [
            _Given((node, session), _key(what), _key(answer)) for (node, session, answer), what in zip(given, model.answered, strict=True)
        ]
        if len(model.batches) > taken:
            tag, node, incarnation, _, batch = msgspec.msgpack.decode(entry.data)
            assert tag == BATCH
            commands += [
                _Command(entry.index, (node, incarnation, session), [verb, *args])
                for verb, session, *args in batch
                if verb not in _NO_LINE and not (verb == TOUCH and args[0] == 0)
            ]
    while reads and reads[-1].index <= len(entries):
        _compare(model, reads.pop(), problems)
    problems += [f"lost: {read.what} was answered at entry {read.index}, which there is not" for read in reads]
    return answers, commands


def _recognise(commands: list[_Command], calls: list[Call], problems: list[str]) -> None:
    """Which session was which connection? A put with a unique body tells. What a session did is then the beginning of
    what its connection asked, in the same order."""
    asked: dict[int, list[Call]] = defaultdict(list)
    for call in calls:
        if call.connection is not None and not call.is_read and (call.answered is None or call.index):
            asked[call.connection].append(call)
    puts: dict[bytes, set[int]] = defaultdict(set)
    for connection, its_calls in asked.items():
        for call in its_calls:
            if call.what[0] == PUT:
                puts[_key(call.what)].add(connection)
    did: dict[tuple[int, int, int], list[_Command]] = defaultdict(list)
    for command in commands:
        did[command.session].append(command)
    for its_commands in did.values():
        known = [puts[_key(command.what)] for command in its_commands if command.what[0] == PUT]
        connections = next((found for found in known if len(found) == 1), set())
        for connection in connections:
            for call in asked[connection]:
                call.session = its_commands[0].session
            _follow(its_commands, asked[connection], problems)


def _follow(commands: list[_Command], asked: list[Call], problems: list[str]) -> None:
    """Do these commands of a session follow what its connection asked, one after the other?"""
    calls = iter(asked)
    for command in commands:
        for call in calls:
            without_waiting = (
                command.what in _WITHOUT_WAITING and call.what[0] == RESERVE and (call.stopped_waiting or call.answered is None)
            )
            if command.what == call.what or without_waiting:
                break
            if call.what[0] not in (PUT, PUT_MANY) or call.answered is not None:  # (a put may have been refused without an answer)
                problems.append(f"order: {command.what} in entry {command.entry} comes from a connection that asked for {call.what} next")
                return
        else:
            problems.append(f"order: {command.what} in entry {command.entry} comes from a connection that had asked for nothing more")
            return


def _compare(model: Model, read: Call, problems: list[str]) -> None:
    expected = model.read(read.what, read.who, read.clock_ms)
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
    moments.sort(key=lambda moment: moment[:2])  # calls of one moment have no order
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

    def take_answered(self, command: _Command, is_known: bool, after: dict[int, int]) -> bool:
        """Take an answered call that this command may be. Only a reserve that can wait is answered by a later entry than its own."""
        while self.answered and self.answered[0].index < command.entry:
            self.answered.popleft()
        can_wait = command.what[0] == RESERVE and command.what[1] != 0
        return self._take(self.answered, None if can_wait else command.entry, command, is_known, after)

    def take_unknown(self, command: _Command, is_known: bool, after: dict[int, int]) -> bool:
        """Take a call without an answer that this command may be."""
        return self._take(self.unknown, None, command, is_known, after)

    @staticmethod
    def _take(calls: deque[Call] | list[Call], last_index: int | None, command: _Command, is_known: bool, after: dict[int, int]) -> bool:
        """Take one of this node and session rather than one of any, and of those the first. `is_known`: the session was recognised."""
        owners: list[tuple[object, object]] = [(command.session, None)] if is_known else [(None, command.who), (None, None)]
        for whose in owners:
            for place, call in enumerate(calls):
                if last_index is not None and call.index > last_index:
                    break
                known = (call.session, None if call.session is not None else call.who)
                if known == whose and after[id(call)] < command.entry:
                    del calls[place]
                    return True
        return False


def _find_calls(commands: list[_Command], calls: list[Call], after: dict[int, int], problems: list[str]) -> None:
    """Each command that took effect belongs to a call, one that was not refused, and was asked for before."""
    asked: dict[bytes, _Asked] = defaultdict(_Asked)
    without_waiting = _Asked()
    for call in sorted(calls, key=lambda call: call.index):
        if call.is_read:
            continue
        if call.answered is None:
            asked[_key(call.what)].unknown.append(call)
            if call.what[0] == RESERVE and call.what[1] != 0:
                # A client that will say no more waits for nothing either: its gateway asks with a timeout of 0 (docs/protocol.md).
                without_waiting.unknown.append(call)
        elif call.index:
            asked[_key(call.what)].answered.append(call)
            if call.stopped_waiting and call.what[0] == RESERVE:
                without_waiting.answered.append(call)
    known = {call.session for call in calls}
    for command in commands:
        is_known = command.session in known
        asked_for = [asked[_key(command.what)], *([without_waiting] if command.what in _WITHOUT_WAITING else [])]
        # Answered calls must be found; a call without an answer may never have happened.
        found = any(calls.take_answered(command, is_known, after) for calls in asked_for) or any(
            calls.take_unknown(command, is_known, after) for calls in asked_for
        )
        if not found:
            problems.append(f"phantom: no client asked for {command.what}, which is in entry {command.entry}")

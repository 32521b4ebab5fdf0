"""The checker of histories finds each kind of lie, and believes the truth."""

from __future__ import annotations

import pytest

from raftd.jobs import commands as c
from raftd.sim.history import Call, LogEntry, check

PUT = [1, 0, 0, 60_000, b"a", ""]


def log(*batches: list[c.Command]) -> list[LogEntry]:
    """Node 1's gateway opens, then one entry for each batch."""
    payloads: list[c.Payload] = [c.OpenGateway(1, 1), *(c.Batch(1, 1, place, batch) for place, batch in enumerate(batches, 1))]
    return [LogEntry(place, 1_000 * place, c.encode_payload(payload)) for place, payload in enumerate(payloads, 1)]


ENTRIES = log([c.Put(7, 0, 0, 60_000, b"a")], [c.Reserve(7, 0)], [c.Delete(7, 1)])


def calls(**changes: dict[str, object]) -> list[Call]:
    history = {
        "put": Call(PUT, 1.0, (1, 7), 2.0, 2, [1, 1]),
        "reserve": Call([5, 0], 3.0, (1, 7), 4.0, 3, [6, 1, b"a", 1]),
        "delete": Call([7, 1, 0], 5.0, (1, 7), 6.0, 4, [9]),
        "peek": Call(["peek", 1], 4.5, (1, 7), 4.9, 3, b"a"),
    }
    for name, change in changes.items():
        for field, value in change.items():
            setattr(history[name], field, value)
    return list(history.values())


def test_what_happened_is_believed():
    verdict = check(ENTRIES, calls())
    assert verdict.problems == []
    assert verdict.proves_something


def test_who_a_client_was_need_not_be_known():
    assert check(ENTRIES, calls(put={"who": None}, delete={"who": None})).problems == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"put": {"index": 9}}, "lost: [1, 0, 0, 60000, b'a', ''] was answered"),
        ({"put": {"answer": [1, 2]}}, "lost: "),
        ({"delete": {"answer": [10]}}, "lost: [7, 1, 0] was answered with [10] at entry 4"),
        ({"delete": {"who": (2, 7)}}, "lost: "),
        ({"put": {"answered": 2.0, "index": 0, "answer": [16]}}, "phantom: no client asked for [1, 0, 0, 60000, b'a', '']"),
        ({"reserve": {"asked": 7.0, "answered": 8.0}}, "order: [5, 0] was applied at 3, though 5 or later"),
        ({"peek": {"answer": None}}, "read: ['peek', 1] at entry 3 gave None and should have given b'a'"),
        ({"peek": {"asked": 6.5, "answered": 7.0}}, "order: ['peek', 1] was applied at 3, though 4 or later"),
    ],
)
def test_each_lie_is_found(change, problem):
    problems = check(ENTRIES, calls(**change)).problems
    assert any(found.startswith(problem) for found in problems), problems


def test_what_nobody_asked_for_is_found():
    without = [call for call in calls() if call.what[0] != 7]
    assert check(ENTRIES, without).problems == ["phantom: no client asked for [7, 1, 0], which is in entry 4"]


def test_without_an_answer_it_may_have_happened_or_not():
    history = calls(delete={"answered": None, "index": 0, "answer": None})
    assert check(ENTRIES, history).problems == []
    assert check(ENTRIES[:3], history).problems == []
    assert check(ENTRIES, history).unknown == 1


def test_a_reserve_of_a_gone_client_may_be_logged_without_its_wait():
    waiting = Call([5, 1_000], 3.0)
    without = [call for call in calls() if call.what[0] != 5]
    assert check(ENTRIES, [*without, waiting]).problems == []
    answered = Call([5, 1_000], 3.0, None, 4.0, 3, [6, 1, b"a", 1])
    assert check(ENTRIES, [*without, answered]).problems[-1] == "phantom: no client asked for [5, 0], which is in entry 3"


def test_an_answer_belongs_to_its_command():
    """Two puts with their ids swapped; an answer taken from somebody else's command; one that no command gives."""
    entries = log([c.Put(7, 0, 0, 60_000, b"a")], [c.Put(7, 0, 0, 60_000, b"b")])
    other = [1, 0, 0, 60_000, b"b", ""]
    assert check(entries, [Call(PUT, 1.0, None, 2.0, 2, [1, 1]), Call(other, 1.0, None, 2.0, 3, [1, 2])]).problems == []
    swapped = check(entries, [Call(PUT, 1.0, None, 2.0, 3, [1, 2]), Call(other, 1.0, None, 2.0, 2, [1, 1])]).problems
    assert [problem.split(":")[0] for problem in swapped] == ["lost", "lost", "phantom", "phantom"]
    borrowed = check(entries, [Call(PUT, 1.0), Call(other, 1.0, None, 2.0, 3, [1, 2]), Call([7, 1, 0], 1.0, None, 2.0, 2, [1, 1])])
    assert borrowed.problems == ["lost: [7, 1, 0] was answered with [1, 1] at entry 2, which gives no such answer"]


def test_a_refusal_is_the_only_answer_that_comes_without_an_entry():
    assert check([], [Call(PUT, 1.0, None, 2.0, 0, [16])]).problems == []
    assert check([], [Call(PUT, 1.0, None, 2.0, 0, [1, 1])]).problems[0].startswith("refused: ")


def test_who_is_known_takes_his_own_answer_first():
    entries = log([c.Use(7, "t")], [c.Use(8, "t")])
    use = [2, "t"]
    both = [Call(use, 1.0, None, 2.0, 2, [3, "t"]), Call(use, 1.0, (1, 8), 2.0, 3, [3, "t"])]
    assert check(entries, both).problems == []
    entries = [LogEntry(1, 1, entries[0].data), LogEntry(2, 2, c.encode_payload(c.Batch(1, 1, 1, [c.Use(7, "t"), c.Use(8, "t")])))]
    both = [Call(use, 1.0, None, 2.0, 2, [3, "t"]), Call(use, 1.0, (1, 7), 2.0, 2, [3, "t"])]
    assert check(entries, both).problems == []


def test_nothing_happens_before_it_was_asked_for():
    """A call of unknown outcome explains no entry of which somebody had been told before."""
    entries = log([c.Put(7, 0, 0, 60_000, b"a")], [c.Use(7, "t")])
    told = Call([2, "t"], 1.0, None, 2.0, 3, [3, "t"])
    assert check(entries, [told, Call(PUT, 1.5)]).problems == []
    assert check(entries, [told, Call(PUT, 2.5)]).problems == [
        "phantom: no client asked for [1, 0, 0, 60000, b'a', ''], which is in entry 2"
    ]


def test_a_read_behind_the_end_of_the_log_is_found():
    assert check(ENTRIES, calls(peek={"index": 9, "asked": 7.0, "answered": 8.0, "answer": None})).problems == [
        "lost: ['peek', 1] was answered at entry 9, which there is not"
    ]


def test_of_one_moment_nobody_knows_what_came_first():
    assert check(ENTRIES, calls(put={"answered": 5.0}, delete={"asked": 5.0})).problems == []


def test_one_answer_is_given_to_one():
    twice = [*calls(), Call([7, 1, 0], 5.0, (1, 7), 6.0, 4, [9])]
    assert len(check(ENTRIES, twice).problems) == 1


def test_a_history_of_which_little_is_known_proves_nothing():
    unknown = Call(PUT, 1.0, (1, 8))
    assert not check([], []).proves_something
    assert not check(ENTRIES, [*calls(), unknown, unknown]).proves_something
    assert check(ENTRIES, [*calls(), unknown]).proves_something
    assert [check(ENTRIES, calls()[:count]).calls for count in (1, 2)] == [1, 2]


A, B, USE = [1, 0, 0, 60_000, b"a", ""], [1, 0, 0, 60_000, b"b", ""], [2, "t"]


def test_what_one_connection_asks_happens_in_its_order():
    """Nobody needs to know which session it was: its puts tell."""
    entries = log([c.Put(7, 0, 0, 60_000, b"a"), c.Use(7, "t")], [c.Put(7, 0, 0, 60_000, b"b")])
    asked = [Call(what, 1.0, connection=5) for what in (A, USE, B)]
    assert check(entries, asked).problems == []
    assert {call.session for call in asked} == {(1, 1, 7)}
    swapped = [Call(what, 1.0, connection=5) for what in (A, B, USE)]
    assert check(entries, swapped).problems == [
        "order: [1, 0, 0, 60000, b'b', ''] in entry 3 comes from a connection that had asked for nothing more"
    ]
    swapped = [Call(what, 1.0, connection=5) for what in (USE, A, B)]
    assert check(entries, swapped).problems == [
        "order: [1, 0, 0, 60000, b'a', ''] in entry 2 comes from a connection that asked for [2, 't'] next"
    ]
    refused = [1, 0, 0, 60_000, b"refused, and the connection was lost with the answer", ""]
    assert check(entries, [Call(what, 1.0, connection=5) for what in (A, refused, USE, B)]).problems == []


def test_a_log_with_a_gap_is_found():
    assert check([ENTRIES[0], ENTRIES[2]], []).problems[0] == "lost: the log has entry 3 in place 2"


def test_a_reserve_that_cannot_wait_is_answered_by_its_own_entry():
    """Seed 3003740: the answer of a later entry was taken for the first of three equal commands, and the last seemed invented."""
    entries = log([c.Reserve(7, 0)], [c.Reserve(7, 0)], [c.Reserve(7, 0)])
    stopped = Call([5, 3_000], 1.0, (1, 7), 5.0, 2, [7], stopped_waiting=True)
    answered = Call([5, 0], 1.0, (1, 7), 6.0, 3, [7])
    unknown = Call([5, 0], 2.0, (1, 7))
    assert check(entries, [stopped, answered, unknown]).problems == []

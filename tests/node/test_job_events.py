"""What a node remembers of what happened to jobs."""

from __future__ import annotations

import pytest

from raftd.jobs import commands as c
from raftd.jobs.model import JobEventKind
from raftd.node.job_events import JobEventBuffer
from tests.jobs.test_machine import Queue, put


def remembered(recent: JobEventBuffer) -> list[tuple[JobEventKind, int]]:
    return [(recent[place].what, recent[place].job) for place in range(recent.begin, recent.end)]


def test_everything_that_happens_to_a_job_is_told_once_and_in_order():
    queue = Queue()
    recent = JobEventBuffer(queue.machine)
    queue.do(put(ttr=2_000), put(delay=1_000), c.Reserve(2, 0))
    queue.do(c.Touch(2, 1), later=1_000)
    queue.do(c.Release(2, 1, 5, 0), c.Reserve(2, 0), later=500)
    queue.later(2_000)
    queue.do(c.Reserve(3, 0), c.Bury(3, 1, 5), c.KickJob(1, 1), c.Reserve(4, 0), c.CloseSession(4), c.Delete(1, 1))
    assert [what.value for what, job in remembered(recent) if job == 1] == [
        *("put", "reserved", "touched", "released", "reserved", "timed-out"),
        *("reserved", "buried", "kicked", "reserved", "given-back", "deleted"),
    ]
    assert [what.value for what, job in remembered(recent) if job == 2] == ["put", "delay-over"]
    assert [event.what for event in recent.of_job(2)] == [JobEventKind.DELAY_OVER, JobEventKind.PUT]


def test_a_put_that_ends_a_wait_is_told_before_the_reservation():
    queue = Queue()
    recent = JobEventBuffer(queue.machine)
    queue.do(c.Reserve(2, None))
    queue.do(put(session=1))
    first, second = recent[0], recent[1]
    assert (first.what, first.place, first.who) == (JobEventKind.PUT, (queue.machine.applied_index, 1), (1, 1))
    assert (second.what, second.place, second.who, second.token) == (JobEventKind.RESERVED, (queue.machine.applied_index, 2), (1, 2), 1)
    assert (first.deadline_ms, second.deadline_ms) == (0, queue.now + 60_000)


def test_the_ring_is_bounded_and_says_how_far_back_it_reaches():
    queue = Queue()
    recent = JobEventBuffer(queue.machine, most=4)
    assert recent.known_from == queue.machine.applied_index + 1
    for _ in range(6):
        queue.do(put())
    assert [recent[place].job for place in range(recent.begin, recent.end)] == [3, 4, 5, 6]
    assert recent.known_from == recent[recent.begin].entry
    assert [event.place for event in recent.of_job(6)] == [recent[recent.end - 1].place]
    assert list(recent.of_job(1)) == []
    assert recent.misses((recent[recent.begin].entry - 1, 0))
    assert not recent.misses(recent[recent.begin].place)
    for place in (recent.begin - 1, recent.end, -1):
        with pytest.raises(IndexError):
            recent[place]


def test_one_goes_on_behind_any_place():
    queue = Queue()
    recent = JobEventBuffer(queue.machine)
    for _ in range(3):
        queue.do(put(), put())
    for position in range(6):
        assert recent.after(recent[position].place) == position + 1
    assert recent.after((0, 0)) == 0
    assert recent.after((1 << 60, 0)) == 6


def test_a_state_taken_from_a_snapshot_begins_anew():
    queue, other = Queue(), Queue()
    recent = JobEventBuffer(queue.machine)
    queue.do(put())
    for _ in range(5):
        other.do(put())
    recent.follow(other.machine)
    assert remembered(recent) == []
    assert recent.known_from == other.machine.applied_index + 1
    other.do(put())
    assert remembered(recent) == [(JobEventKind.PUT, 6)]


def test_whoever_waits_for_more_is_called_once():
    queue = Queue()
    recent = JobEventBuffer(queue.machine)
    calls = []
    recent.when_more = lambda: calls.append(recent.end)
    queue.do(put(), put())
    assert calls == [1]

"""No entry costs more than its budget, whatever stands in it and in the queue; what does not fit is done by the next entries.

Each attack is one that stopped a node, or made it slow, before work was bounded. The second pass of each costs what the first did.
"""

from __future__ import annotations

import gc
import weakref

import msgspec
import pytest

from raftd.jobs import commands as c
from raftd.jobs import replies as r
from raftd.jobs.budget import COSTS
from raftd.jobs.machine import StateMachine
from raftd.jobs.snapshot import Loader, dump
from raftd.limits import JOBS_PER_PUT, KICKED_JOBS, WATCHED_TUBES
from tests.jobs.test_machine import Queue, put

#: The longest operation that begins with budget left: a session that watches all that it may, and waits, is closed.
LONGEST = 4 * WATCHED_TUBES * COSTS.tube


class Measured(Queue):
    """Remembers the most steps that any entry took."""

    def __init__(self) -> None:
        self.longest = 0
        super().__init__()

    def entry(self, payload=None, later=0):
        before = self.machine.steps
        effects = super().entry(payload, later)
        self.longest = max(self.longest, self.machine.steps - before)
        self.answers = [(session, reply) for _, session, reply in effects.answers]
        return effects

    def in_batches(self, commands: list[c.Command], size: int = 400) -> list[r.Reply]:
        """As gateways send them: `size` commands are not more than the steps of a batch."""
        replies = []
        for first in range(0, len(commands), size):
            replies += [reply for _, reply in self.do(*commands[first : first + size])]
        return replies

    def settle(self) -> int:
        """Entries until nothing is left over."""
        count = 0
        while (due := self.machine.next_due_ms()) is not None and due <= self.now:
            self.later(0)
            count += 1
        return count

    def is_bounded(self) -> bool:
        return self.longest <= COSTS.entry + LONGEST


def test_a_job_released_often_is_in_its_queue_once():
    queue = Measured()
    count = 2_000
    queue.in_batches([put() for _ in range(count)])
    steps = []
    for _ in range(3):
        before = queue.machine.steps
        queue.in_batches([command for id in range(1, count + 1) for command in (c.ReserveJob(2, id), c.Release(2, id, 10, 0))])
        steps.append(queue.machine.steps - before)
        assert list(queue.machine.tubes["default"].ready) == [(10, id) for id in range(1, count + 1)]
        assert len(queue.machine.timers) == 0
    assert steps[1] == steps[0] == steps[2]


def test_kicks_of_one_entry_share_its_budget_and_each_moves_something():
    queue = Measured()
    queue.in_batches([put(delay=3_600_000) for _ in range(5_000)])
    replies = [reply for _, reply in queue.do(*[c.Kick(1, 1_000_000)] * 73)]
    kicked = [reply.count for reply in replies]
    assert kicked[0] == (COSTS.entry - COSTS.commands) // COSTS.kicked + 1
    assert kicked[1:] == [1] * 72
    assert sum(kicked) == len(queue.machine.tubes["default"].ready)
    assert queue.is_bounded()


def test_a_kick_moves_as_many_as_one_entry_has_budget_for():
    queue = Measured()
    queue.in_batches([put(delay=3_600_000) for _ in range(KICKED_JOBS + 10)])
    moved = []
    while (reply := queue.do(c.Kick(1, 1_000_000))[0][1]).count:
        moved.append(reply.count)
    assert sum(moved) == KICKED_JOBS + 10
    assert len(moved) <= 7


@pytest.mark.parametrize("held", [1, 16, 17, 4_000])
def test_an_empty_reserve_costs_the_same_with_many_jobs_held(held):
    queue = Measured()
    queue.in_batches([put(ttr=60_000 + number) for number in range(held)])
    queue.in_batches([c.Reserve(1, 0) for _ in range(held)])
    session = queue.machine.session(1, 1)
    assert session.first_deadline_ms(queue.machine.jobs) == queue.now + 60_000
    assert (session.deadlines is None) == (held <= 16)
    assert {reply for _, reply in queue.do(*[c.Reserve(1, 0)] * 100)} == {r.TimedOut()}
    queue.do(c.Touch(1, 1), later=1_000)
    assert session.first_deadline_ms(queue.machine.jobs) == (queue.now + 59_001 if held > 1 else queue.now + 60_000)
    queue.in_batches([c.Delete(1, id) for id in range(1, held + 1)])
    assert session.first_deadline_ms(queue.machine.jobs) is None
    assert session.deadlines is None


def test_a_worker_that_holds_many_is_warned_of_the_nearest_deadline():
    queue = Queue()
    queue.do(*[put(ttr=9_000 + number) for number in range(100)])
    queue.do(*[c.Reserve(1, 0) for _ in range(100)])
    queue.do(c.Release(1, 1, 10, 3_600_000), c.Touch(1, 2), c.Reserve(1, None), later=500)
    assert queue.later(8_000 + 2 - 500 - 1) == []  # job 3 is the nearest now
    assert queue.later(1) == [(1, r.DeadlineSoon())]


def test_timers_that_are_cancelled_cost_nothing_later():
    queue = Measured()
    count = 5_000
    queue.in_batches([put(delay=1_000 + number) for number in range(count)])
    queue.in_batches([c.Delete(1, id) for id in range(1, count)])
    assert len(queue.machine.timers) == len(queue.machine.tubes["default"].delayed) == 1
    before = queue.machine.steps
    queue.later(1_000 + count)
    assert queue.machine.steps - before == COSTS.timer


def watching(queue: Measured, sessions: int, tubes: int, waiting: bool) -> None:
    for session in range(2, sessions + 2):
        queue.in_batches([c.Watch(session, f"t{number}") for number in range(tubes)])
        if waiting:
            queue.do(c.Reserve(session, None))


@pytest.mark.parametrize("waiting", [False, True])
def test_a_gateway_with_many_sessions_is_closed_in_slices(waiting):
    queue = Measured()
    watching(queue, sessions=100, tubes=600, waiting=waiting)
    queue.do(put(500, ttr=600_000)) if not waiting else None
    queue.entry(c.CloseGateway(1, 1))
    assert queue.machine.gateways[1].sessions == {}
    assert queue.machine.gateways[1].waiting == 0
    assert len(queue.machine.closing) > 50
    assert queue.settle() >= 2
    assert queue.is_bounded()
    assert set(queue.machine.tubes) == {"default"}
    assert queue.machine.default.watching == queue.machine.default.using == 0


def test_a_closed_gateways_waiters_get_no_job():
    queue = Measured()
    watching(queue, sessions=100, tubes=600, waiting=True)
    queue.entry(c.OpenGateway(2, 1))
    queue.entry(c.Batch(2, 1, 1, [c.Watch(1, "t1"), c.Reserve(1, None)]))
    queue.entry(c.CloseGateway(1, 1))
    assert len(queue.machine.closing) > 50
    queue.entry(c.Batch(2, 1, 2, [c.Put(2, 1, 0, 60_000, b"for the living", "t1")]))
    queue.settle()
    assert queue.machine.jobs[1].holder == (2, 1)


def test_a_new_incarnation_begins_during_the_close_of_the_old():
    queue = Measured()
    watching(queue, sessions=100, tubes=600, waiting=True)
    queue.entry(c.OpenGateway(1, 2))
    assert len(queue.machine.closing) > 50
    queue.entry(c.Batch(1, 2, 1, [c.Watch(2, "t5"), c.Reserve(2, 5_000)]))  # a session of the same number
    assert queue.machine.gateways[1].waiting == 1
    queue.settle()
    assert [session.id for session in queue.machine.tubes["t5"].waiters] == [(1, 2, 2)]
    assert queue.machine.gateways[1].waiting == 1
    assert queue.later(5_000) == [(2, r.TimedOut())]
    assert len(queue.machine.timers) == 0


def test_a_pause_that_ends_gives_its_jobs_in_slices_and_nobody_overtakes():
    queue = Measured()
    count = 3_000
    queue.do(c.Use(1, "t"), put(), c.PauseTube(1, "t", 10_000))
    queue.in_batches([put() for _ in range(count - 1)])
    for session in range(2, count + 2):
        queue.in_batches([c.Watch(session, "t"), c.Reserve(session, None)])
    queue.do(c.PauseTube(1, "t", 0))
    given = [session for session, reply in queue.answers if type(reply) is r.Reserved]
    assert list(queue.machine.unmatched) == ["t"]
    late = count + 5
    queue.do(c.Watch(late, "t"), c.Reserve(late, 0))
    given += [session for session, reply in queue.answers if type(reply) is r.Reserved]
    assert (late, r.TimedOut()) in queue.answers
    while queue.machine.unmatched:
        given += [session for session, _ in queue.later(0)]
    assert given == list(range(2, count + 2))
    assert queue.is_bounded()


def test_left_over_tubes_are_served_in_order():
    queue = Measured()
    count = 1_000
    for first, tube in ((2, "a"), (2 + count, "b")):
        queue.do(c.Use(1, tube), put(), c.PauseTube(1, tube, 10_000))
        queue.in_batches([put() for _ in range(count - 1)])
        for session in range(first, first + count):
            queue.in_batches([c.Watch(session, tube), c.Reserve(session, None)])
    queue.do(c.PauseTube(1, "a", 0), c.PauseTube(1, "b", 0))
    given = [session for session, reply in queue.answers if type(reply) is r.Reserved]
    assert list(queue.machine.unmatched) == ["a", "b"]
    while queue.machine.unmatched:
        given += [session for session, _ in queue.later(0)]
    assert given == list(range(2, 2 + 2 * count))


def restored(queue: Queue) -> StateMachine:
    loader = Loader()
    for piece in dump(queue.machine):
        loader.feed(piece)
    machine = loader.finish()
    assert machine.digest() == queue.machine.digest()
    assert machine.next_due_ms() == queue.machine.next_due_ms()
    return machine


def test_a_tube_whose_jobs_are_left_over_is_served_alike_after_a_restore():
    queue = Measured()
    count = 2_000
    queue.do(c.Use(1, "t"), put(), c.PauseTube(1, "t", 10_000))
    queue.in_batches([put() for _ in range(count - 1)])
    for session in range(2, count + 2):
        queue.in_batches([c.Watch(session, "t"), c.Reserve(session, None)])
    queue.do(c.PauseTube(1, "t", 0))
    slices = 0
    while queue.machine.unmatched:
        machine = restored(queue)
        assert list(machine.unmatched) == ["t"]
        assert machine.apply(machine.applied_index + 1, queue.now, b"") == queue.entry()
        assert machine.digest() == queue.machine.digest()
        slices += 1
    assert slices > 1


def test_many_jobs_put_at_once_for_sessions_that_watch_many_tubes():
    queue = Measured()
    watching(queue, sessions=120, tubes=WATCHED_TUBES - 1, waiting=True)
    jobs = [c.NewJob(1, 0, 60_000, b"b")] * JOBS_PER_PUT
    assert queue.do(c.PutMany(1, "t3", jobs))[-1] == (1, r.InsertedMany(1, JOBS_PER_PUT, False))
    assert queue.machine.unmatched
    queue.settle()
    assert queue.machine.counts.reserved == 120
    assert queue.is_bounded()


def test_a_session_with_many_reservations_gives_them_back_in_slices():
    queue = Measured()
    count = 4_000
    queue.in_batches([put() for _ in range(count)])
    queue.in_batches([c.Reserve(2, 0) for _ in range(count)])
    queue.do(c.CloseSession(2))
    assert queue.machine.counts.reserved > 0
    queue.settle()
    assert queue.machine.counts.ready == count
    assert queue.is_bounded()


def test_what_is_left_over_survives_a_snapshot_at_every_entry():
    """A node restored in the middle goes on with the same slices, entry by entry."""
    queue = Measured()
    watching(queue, sessions=200, tubes=600, waiting=True)
    for session in range(2, 50):
        queue.do(c.Watch(session, "mine"), c.Put(session, 1, 0, 3_000, b"", f"own{session}"), c.ReserveJob(session, session - 1))
    queue.do(c.Reserve(60, 4_000))
    queue.entry(c.OpenGateway(1, 2))
    seq = 0
    while queue.machine.closing:
        machine = restored(queue)
        seq += 1
        batch = c.Batch(1, 2, seq, [c.Watch(2, "t7"), c.Reserve(2, 1_500), c.Put(3, 1, 0, 1_000, b"", "t9")])
        effects = queue.entry(batch, later=700)
        assert machine.apply(queue.machine.applied_index, queue.now, c.encode_payload(batch)) == effects
        assert machine.digest() == queue.machine.digest()
    assert seq > 2


def test_paused_tubes_that_go_are_charged():
    """Mutant or slip: a watch list of paused tubes is dear to close, for each of them has a timer."""
    queue = Measured()
    for session in range(2, 62):
        queue.in_batches([c.Watch(session, f"own{session}-{number}") for number in range(500)])
        queue.in_batches([c.PauseTube(session, f"own{session}-{number}", 3_600_000) for number in range(500)])
    before = queue.machine.steps
    queue.do(*[c.CloseSession(session) for session in range(2, 62)])
    assert queue.settle() > 20
    assert queue.machine.steps - before >= 60 * 500 * COSTS.paused
    assert queue.longest <= COSTS.entry + WATCHED_TUBES * (COSTS.paused + 4 * COSTS.tube)
    assert len(queue.machine.timers) == 0


def test_the_number_of_a_session_that_is_being_closed_is_not_given_again():
    """No gateway does so. The peer listener knows no passwords yet: entries of a gateway that does must not stop the nodes."""
    queue = Measured()
    watching(queue, sessions=100, tubes=600, waiting=True)
    queue.do(c.CloseSession(101))
    queue.do(*[c.CloseSession(session) for session in range(2, 101)])
    taken = list(queue.machine.closed)[-1][1]
    assert queue.do(c.Reserve(taken, 1_500)) == []
    assert queue.machine.session(1, taken) is None
    queue.settle()
    assert queue.machine.closed == {}
    assert queue.do(c.Reserve(taken, 0)) == [(taken, r.TimedOut())]


class OldClosing(msgspec.Struct, frozen=True, array_like=True, tag=9, forbid_unknown_fields=True):
    """As raftd of level 1 knows it."""

    key: tuple[int, int]


def test_below_level_2_a_snapshot_has_only_what_an_older_raftd_reads():
    queue = Queue(level=1)
    queue.do(*[put() for _ in range(5_000)])
    queue.do(*[c.Reserve(2, 0) for _ in range(5_000)])
    queue.do(c.Watch(3, "t"), c.Reserve(3, None), c.CloseSession(3), c.CloseSession(2))
    assert queue.machine.closing
    pieces = list(dump(queue.machine))
    tags = [msgspec.msgpack.decode(piece)[0] for piece in pieces]
    assert set(tags) <= set(range(1, 13))
    closing = [piece for piece, tag in zip(pieces, tags, strict=True) if tag == 9]
    assert [msgspec.msgpack.decode(piece, type=OldClosing).key for piece in closing] == [(1, 2)]


def test_a_state_that_was_replaced_goes_though_sessions_wait_in_it():
    queue = Queue()
    queue.do(*[put() for _ in range(20_000)])
    queue.do(c.Watch(3, "t"), c.Ignore(3, "default"), c.Reserve(3, None))
    machine = weakref.ref(queue.machine)
    assert machine() is queue.machine
    parts = sum(1 for _ in queue.machine.dissolve())
    assert parts > 2
    gc.disable()
    try:
        del queue.machine
        assert machine() is None
    finally:
        gc.enable()


def test_a_tube_that_goes_while_its_jobs_are_left_over_is_served_no_more():
    """Else a snapshot would name a tube that is not there, and no node could load it."""
    queue = Measured()
    count = 1_000
    queue.do(c.Use(1, "t"), put(), c.PauseTube(1, "t", 10_000))
    queue.in_batches([put() for _ in range(count - 1)])
    for session in range(2, count + 2):
        queue.in_batches([c.Watch(session, "t"), c.Reserve(session, None)])
    queue.do(c.PauseTube(1, "t", 0), c.Use(1, "default"))
    assert list(queue.machine.unmatched) == ["t"]
    queue.entry(c.CloseGateway(1, 1))
    while queue.machine.closing or queue.machine.unmatched:
        restored(queue)
        queue.entry(c.OpenGateway(2, 1))
        if queue.machine.counts.ready:
            ready = [id for _, id in queue.machine.tubes["t"].ready][:300]
            queue.entry(c.Batch(2, 1, queue.machine.gateways[2].seq + 1, [c.Delete(1, id) for id in ready]))
        assert queue.machine.unmatched.keys() <= queue.machine.tubes.keys()
    restored(queue)

"""The state machine, one test for each sentence of the protocol."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from raftd.jobs import commands as c
from raftd.jobs import queries
from raftd.jobs import replies as r
from raftd.jobs.budget import COSTS, COSTS_BEFORE_LEVEL_2
from raftd.jobs.keys import KEY_WINDOW_MS, KEYS_FORGOTTEN, Keys
from raftd.jobs.machine import StateMachine
from raftd.limits import WATCHED_TUBES

NOW = 1_700_000_000_000


class Queue:
    """A machine with one gateway; `do` applies a batch of commands and gives what was answered."""

    def __init__(self, level: int = c.FEATURE_LEVEL) -> None:
        self.machine = StateMachine()
        self.machine.level = level
        self.now = NOW
        self.seq = 0
        self.entry(c.OpenGateway(1, 1))

    def entry(self, payload: c.Payload | None = None, later: int = 0):
        self.now += later
        data = c.encode_payload(payload) if payload is not None else b""
        return self.machine.apply(self.machine.applied_index + 1, self.now, data)

    def do(self, *commands: c.Command, later: int = 0) -> list[tuple[int, r.Reply]]:
        self.seq += 1
        effects = self.entry(c.Batch(1, 1, self.seq, list(commands)), later)
        return [(session, reply) for _, session, reply in effects.answers]

    def later(self, ms: int) -> list[tuple[int, r.Reply]]:
        return [(session, reply) for _, session, reply in self.entry(later=ms).answers]

    def job(self, id: int) -> dict:
        return dict(queries.stats_job(id)(self.machine, self.now, 1, 1))


def put(session: int = 1, pri: int = 10, delay: int = 0, ttr: int = 60_000, body: bytes = b"b") -> c.Put:
    return c.Put(session, pri, delay, ttr, body)


def test_reserve_takes_the_least_priority_and_id_of_all_tubes():
    queue = Queue()
    queue.do(c.Use(1, "a"), put(pri=5), c.Use(1, "b"), put(pri=1), put(pri=5), c.Use(1, "default"), put(pri=5))
    queue.do(c.Watch(2, "a"), c.Watch(2, "b"))
    order = [queue.do(c.Reserve(2, 0))[0][1].id for _ in range(4)]
    assert order == [2, 1, 3, 4]


def test_waiters_are_served_first_come_first_served_over_the_whole_cluster():
    queue = Queue()
    queue.entry(c.OpenGateway(2, 7))
    queue.do(c.Reserve(5, None))
    queue.entry(c.Batch(2, 7, 1, [c.Reserve(1, None)]))
    queue.seq += 1
    effects = queue.entry(c.Batch(1, 1, queue.seq, [put(9), put(9)]))
    assert [(node, session, type(reply)) for node, session, reply in effects.answers] == [
        (1, 5, r.Reserved),
        (1, 9, r.Inserted),
        (2, 1, r.Reserved),
        (1, 9, r.Inserted),
    ]
    assert effects.owners == {1}


def test_a_put_that_ends_a_wait_assigns_the_job_while_it_is_applied():
    queue = Queue()
    assert queue.do(c.Reserve(2, None)) == []
    assert queue.do(put()) == [(2, r.Reserved(1, b"b", 1)), (1, r.Inserted(1))]
    assert queue.job(1)["state"] == "reserved"


def test_tokens_only_grow_and_fence_a_reservation():
    queue = Queue()
    queue.do(put(ttr=1_000))
    ((_, first),) = queue.do(c.Reserve(2, 0))
    queue.later(1_000)
    ((_, second),) = queue.do(c.Reserve(3, 0))
    assert second.token > first.token
    assert queue.do(c.Delete(2, 1, first.token)) == [(2, r.NotFound())]
    assert queue.do(c.Touch(2, 1)) == [(2, r.NotFound())]
    assert queue.do(c.Delete(2, 1, second.token)) == [(2, r.Deleted())]


def test_ttr_over_counts_a_timeout_and_ends_ownership():
    queue = Queue()
    queue.do(put(ttr=1_000))
    queue.do(c.Reserve(2, 0))
    assert queue.later(999) == []
    assert queue.job(1)["state"] == "reserved"
    queue.later(1)
    assert (queue.job(1)["state"], queue.job(1)["timeouts"], queue.machine.job_timeouts) == ("ready", 1, 1)
    for command in (c.Release(2, 1, 0, 0), c.Bury(2, 1, 0), c.Touch(2, 1)):
        assert queue.do(command) == [(2, r.NotFound())]
    assert queue.do(c.Delete(2, 1)) == [(2, r.Deleted())]


def test_a_ttr_of_zero_counts_as_one_second():
    queue = Queue()
    queue.do(put(ttr=0))
    assert queue.job(1)["ttr"] == 1


def test_deadline_soon_at_the_call_and_while_waiting():
    queue = Queue()
    queue.do(put(ttr=3_000), c.Reserve(1, 0))
    assert queue.do(c.Reserve(1, None)) == []
    assert queue.later(1_999) == []
    assert queue.later(1) == [(1, r.DeadlineSoon())]
    assert queue.do(c.Reserve(1, None)) == [(1, r.DeadlineSoon())]
    assert queue.do(put(2), c.Reserve(1, None)) == [(2, r.Inserted(2)), (1, r.Reserved(2, b"b", 2))]


def test_a_reserve_times_out_at_its_time_and_not_before():
    queue = Queue()
    assert queue.do(c.Reserve(1, 2_000)) == []
    assert queue.machine.next_due_ms() == NOW + 2_000
    assert queue.later(1_999) == []
    assert queue.later(1) == [(1, r.TimedOut())]
    assert queue.machine.next_due_ms() is None


def test_a_closed_session_gives_its_jobs_back():
    queue = Queue()
    queue.do(put(), put(), c.Reserve(2, 0), c.Reserve(2, 0))
    queue.do(c.CloseSession(2))
    for id in (1, 2):
        job = queue.job(id)
        assert (job["state"], job["releases"], job["timeouts"]) == ("ready", 0, 0)


def test_a_grant_to_a_session_that_is_closing_is_undone_by_its_close():
    queue = Queue()
    queue.do(c.Reserve(2, None))
    queue.do(put(), c.CloseSession(2))
    assert queue.job(1)["state"] == "ready"


def test_a_waiter_is_not_granted_anything_after_its_session_closed():
    queue = Queue()
    queue.do(c.Reserve(2, 5_000))
    queue.do(c.CloseSession(2))
    assert queue.do(put()) == [(1, r.Inserted(1))]
    assert queue.later(10_000) == []


def test_a_gateway_that_is_replaced_or_closed_gives_everything_back():
    for payload in (c.OpenGateway(1, 2), c.CloseGateway(1, 1)):
        queue = Queue()
        queue.do(put(), c.Reserve(2, 0), c.Reserve(3, None))
        queue.entry(payload)
        assert queue.job(1)["state"] == "ready"
        assert queue.machine.tubes["default"].waiters == {}


def test_open_gateway_is_idempotent_and_a_lower_incarnation_has_no_effect():
    queue = Queue()
    queue.do(put(), c.Reserve(2, 0))
    queue.entry(c.OpenGateway(1, 1))
    queue.entry(c.OpenGateway(1, 0))
    assert queue.job(1)["state"] == "reserved"
    assert queue.machine.gateways[1].seq == 1


def test_a_pause_holds_ready_jobs_back_and_its_end_wakes_waiters():
    queue = Queue()
    queue.do(c.PauseTube(1, "default", 1_000), put())
    assert queue.do(c.Reserve(2, None)) == []
    assert queue.later(1_000) == [(2, r.Reserved(1, b"b", 1))]
    queue.do(c.PauseTube(1, "default", 60_000), put(), c.Reserve(3, None))
    assert queue.do(c.PauseTube(1, "default", 0)) == [(3, r.Reserved(2, b"b", 2)), (1, r.Paused())]


def test_a_tube_exists_while_something_refers_to_it():
    queue = Queue()
    queue.do(c.Use(1, "t"), put(), c.Use(1, "default"))
    assert list(queue.machine.tubes) == ["default", "t"]
    queue.do(c.Delete(1, 1))
    assert list(queue.machine.tubes) == ["default"]


def test_a_job_over_the_replicated_limit_is_refused_alike_everywhere():
    queue = Queue()
    queue.entry(c.Settings(3, 5_000))
    assert queue.do(put(body=b"four")) == [(1, r.JobTooBig())]
    assert queue.machine.jobs == {}


def test_timers_at_one_stamp_fire_in_order_of_due_kind_and_id():
    queue = Queue()
    queue.do(put(delay=2_000), put(delay=1_000), put(delay=2_000))
    queue.do(c.Reserve(5, 2_000), c.Reserve(6, None))
    answers = queue.later(5_000)
    assert [(session, type(reply), getattr(reply, "id", None)) for session, reply in answers] == [
        (5, r.Reserved, 2),
        (6, r.Reserved, 1),
    ]


def test_before_level_2_timers_and_closings_are_bounded_by_number():
    queue = Queue(level=1)
    extra, most = 10, COSTS_BEFORE_LEVEL_2.entry
    queue.do(*[put(delay=1_000) for _ in range(most + extra)])
    queue.later(1_000)
    assert len(queue.machine.tubes["default"].ready) == most
    assert queue.machine.next_due_ms() <= queue.now
    queue.later(0)
    assert len(queue.machine.tubes["default"].ready) == most + extra
    queue.do(*[c.Reserve(2, 0) for _ in range(most + extra)])
    queue.do(c.CloseSession(2))
    assert queue.machine.tubes["default"].reserved == extra
    assert queue.machine.next_due_ms() <= queue.now
    queue.later(0)
    assert queue.machine.tubes["default"].reserved == 0
    assert queue.machine.next_due_ms() is None


def test_what_is_cancelled_leaves_nothing_behind():
    queue = Queue()
    queue.do(put())
    queue.do(c.Reserve(1, 0))
    for _ in range(50):
        queue.do(c.Touch(1, 1), later=1)
    assert len(queue.machine.timers) == 1
    for _ in range(50):
        queue.do(c.Release(1, 1, 5, 0), c.Reserve(1, 0))
    queue.do(c.Release(1, 1, 5, 0))
    assert len(queue.machine.timers) == 0
    assert list(queue.machine.tubes["default"].ready) == [(5, 1)]


NO_PAYLOADS = {
    "no MessagePack": b"\xc1 no payload",
    "an unknown kind": b"\x91\x63",
    "text that is no UTF-8": b"\x95\x01\x01\x01\x02\x91\x93\x02\x01\xa2\xff\xfe",
    "fields too many, and deep": b"\x94\x02\x01\x01" + b"\x91" * 100_000 + b"\x01",
}


@pytest.mark.parametrize("name", NO_PAYLOADS)
def test_an_entry_that_does_not_decode_has_no_effect_but_time(name):
    queue = Queue()
    queue.do(put(delay=1_000))
    queue.now += 1_000
    effects = queue.machine.apply(queue.machine.applied_index + 1, queue.now, NO_PAYLOADS[name])
    assert effects.answers == []
    assert queue.machine.gateways[1].seq == 1
    assert queue.job(1)["state"] == "ready"


def test_a_waiter_is_not_overtaken_when_a_pause_ends_among_too_many_timers():
    queue = Queue()
    queue.do(c.Use(1, "t"), c.PauseTube(1, "t", 1_000), put())
    queue.do(c.Watch(2, "t"), c.Ignore(2, "default"), c.Reserve(2, None))
    queue.do(c.Use(1, "default"), *[put(delay=500) for _ in range(COSTS.left_over // COSTS.timer)])
    queue.now += 1_000
    # the same entry: its budget is used up by the delays before the pause is looked at
    assert queue.do(c.Watch(3, "t"), c.Ignore(3, "default"), c.Reserve(3, 0))[-1] == (3, r.TimedOut())
    assert queue.later(0) == [(2, r.Reserved(1, b"b", 1))]


def test_a_waiter_is_not_warned_of_a_job_that_it_holds_no_more():
    queue = Queue()
    queue.do(put(ttr=3_000), put(ttr=10_000))
    (_, first), _ = queue.do(c.Reserve(1, 0), c.Reserve(1, 0))
    queue.do(c.Reserve(1, None))
    assert queue.do(c.Delete(2, 1, first.token)) == [(2, r.Deleted())]
    assert queue.later(2_500) == []
    assert queue.later(6_600) == [(1, r.DeadlineSoon())]  # that of the second job


def test_a_paused_tube_that_goes_leaves_no_timer():
    queue = Queue()
    queue.do(put(delay=1_000_000))
    for _ in range(1_000):
        queue.do(c.Use(1, "t"), c.PauseTube(1, "t", 4_000_000_000), c.Use(1, "default"))
    assert len(queue.machine.timers) == 1


def test_a_session_watches_a_bounded_number_of_tubes():
    queue = Queue()
    queue.do(*[c.Watch(1, f"t{number}") for number in range(WATCHED_TUBES - 1)])
    assert queue.do(c.Watch(1, "one-more")) == [(1, r.OutOfMemory())]
    assert queue.do(c.Watch(1, "t0")) == [(1, r.Watching(WATCHED_TUBES))]
    assert "one-more" not in queue.machine.tubes


def test_r18_the_applied_index_changes_with_the_state_it_belongs_to():
    queue = Queue()
    before = queue.machine.applied_index
    queue.do(put())
    assert queue.machine.applied_index == before + 1
    with pytest.raises(AssertionError):
        queue.machine.apply(before + 1, queue.now, b"")  # the same entry again
    with pytest.raises(AssertionError):
        queue.machine.apply(before + 3, queue.now, b"")  # one is missing
    with pytest.raises(AssertionError):
        queue.machine.apply(before + 2, queue.now - 1, b"")  # log time ran back


def test_reads_see_the_sessions_own_tube_and_log_time():
    queue = Queue()
    queue.do(c.Use(1, "t"), put(pri=7, delay=5_000), put(pri=3), put(pri=9), c.Watch(1, "t"), c.Reserve(1, 0), c.Bury(1, 2, 1))
    machine, later = queue.machine, queue.now + 1_500
    assert queries.peek_ready(machine, later, 1, 1).id == 3
    assert queries.peek_delayed(machine, later, 1, 1).id == 1
    assert queries.peek_buried(machine, later, 1, 1).id == 2
    assert queries.peek_ready(machine, later, 1, 99) is None
    found: Any = queries.peek(3)(machine, later, 1, 1)
    assert found.body == b"b"
    assert queries.list_tubes(machine, later, 1, 1) == ["default", "t"]
    assert queries.list_tubes_watched(machine, later, 1, 1) == ["default", "t"]
    assert queries.list_tube_used(machine, later, 1, 1) == "t"
    assert dict(queries.stats_job(1)(machine, later, 1, 1))["time-left"] == 3
    assert dict(queries.job_counts(machine)) == {
        "current-jobs-urgent": 1,
        "current-jobs-ready": 1,
        "current-jobs-reserved": 0,
        "current-jobs-delayed": 1,
        "current-jobs-buried": 1,
    }


SCRIPT = """
from tests.jobs.test_machine import *
queue = Queue()
for number in range(40):
    queue.do(c.Use(number % 7, "tube%d" % (number % 5)), c.Watch(number % 3, "tube%d" % (number % 4)), put(number % 7, delay=number % 3 * 700))
    queue.do(c.Reserve(number % 3, 500), later=300)
print(queue.machine.digest())
"""


def test_the_state_does_not_depend_on_the_hash_seed():
    digests = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


# -- topics ------------------------------------------------------------------------------------


def test_a_topic_is_declared_once_and_stays():
    queue = Queue()
    assert queue.do(c.Declare(1, "t"), c.Declare(1, "s"), c.Declare(2, "t")) == [
        (1, r.Declared(True)),
        (1, r.Declared(True)),
        (2, r.Declared(False)),
    ]
    assert list(queue.machine.topics) == ["t", "s"]


def test_a_job_that_is_put_back_stands_where_it_stood():
    queue = Queue()
    queue.do(*(c.Put(1, 5, 0, 60_000, body) for body in (b"one", b"two", b"three")))
    assert queue.do(c.Reserve(2, 0), c.Delete(2, 1), c.PutBack(2, 1, "default", 5, 60_000, b"one"))[-1] == (2, r.Inserted(1))
    got = queue.do(c.Reserve(2, 0), c.Reserve(2, 0))
    assert [reply.body for _, reply in got] == [b"one", b"two"]
    assert queue.machine.total_jobs == 3


def test_what_is_there_or_never_was_is_not_put_back():
    queue = Queue()
    queue.do(c.Put(1, 5, 0, 60_000, b"one"))
    for id in (1, 2, 0, -1):
        assert queue.do(c.PutBack(1, id, "default", 5, 60_000, b"x")) == [(1, r.NotFound())]


def test_a_job_that_is_put_back_elsewhere_stands_there_only():
    """Simulator seed 55: what its old tube still had of it in a heap counted again."""
    queue = Queue()
    queue.do(c.Use(1, "old"), c.Put(1, 5, 0, 60_000, b"one"), c.Delete(1, 1), c.Put(1, 5, 0, 60_000, b"two"))
    queue.do(c.PutBack(1, 1, "new", 5, 60_000, b"one"))
    got = queue.do(c.Watch(2, "old"), c.Ignore(2, "default"), c.Reserve(2, 0), c.Reserve(2, 0))
    assert [type(reply) for _, reply in got[2:]] == [r.Reserved, r.TimedOut]
    assert got[2][1].body == b"two"


def test_a_topic_is_a_tube_that_exists_without_jobs_and_clients():
    queue = Queue()
    queue.do(c.Declare(1, "t"))
    assert "t" in queue.machine.tubes
    assert queue.do(c.PauseTube(1, "t", 5_000)) == [(1, r.Paused())]
    assert queue.do(c.Undeclare(1, "t"), c.Undeclare(1, "t")) == [(1, r.Deleted()), (1, r.NotFound())]
    assert "t" not in queue.machine.tubes
    assert queue.machine.next_due_ms() is None  # nor is its pause


def test_a_topic_that_holds_jobs_stays():
    queue = Queue()
    queue.do(c.Declare(1, "t"), c.Put(1, 5, 0, 60_000, b"one", "t"), c.Put(1, 5, 9_000, 60_000, b"two", "t"))
    assert queue.do(c.Undeclare(1, "t")) == [(1, r.NotEmpty(2))]
    assert queue.do(c.Delete(1, 1), c.Delete(1, 2), c.Undeclare(1, "t"))[-1] == (1, r.Deleted())


def test_a_message_is_put_only_into_a_topic():
    queue = Queue()
    message = c.PutMany(1, "t", [c.NewJob(5, 0, 60_000, b"m")], only_topic=True)
    assert queue.do(message, c.Declare(1, "t"), message)[::2] == [(1, r.NotFound()), (1, r.InsertedMany(1, 1, False))]
    assert queue.do(c.Delete(1, 1), c.Undeclare(1, "t"), message)[-1] == (1, r.NotFound())


# -- idempotency keys --------------------------------------------------------------------------


def many(*bodies: bytes, key: str = "", fingerprint: bytes = b"f", session: int = 1) -> c.PutMany:
    return c.PutMany(session, "t", [c.NewJob(5, 0, 60_000, body) for body in bodies], key, fingerprint)


def test_a_key_used_again_puts_nothing_and_gives_the_first_answer():
    queue = Queue()
    assert queue.do(many(b"one", b"two", key="k"), put(), many(b"one", b"two", key="k", session=2)) == [
        (1, r.InsertedMany(1, 2, False)),
        (1, r.Inserted(3)),
        (2, r.InsertedMany(1, 2, True)),
    ]
    queue.do(c.Delete(1, 1), c.Delete(1, 2))
    assert queue.do(many(b"one", b"two", key="k")) == [(1, r.InsertedMany(1, 2, True))]  # worked off since: they were put all the same
    assert queue.do(many(b"other", key="k", fingerprint=b"g")) == [(1, r.KeyReused())]
    assert queue.do(many(b"one"), many(b"one")) == [(1, r.InsertedMany(4, 1, False)), (1, r.InsertedMany(5, 1, False))]
    assert queue.machine.total_jobs == 5


def test_a_put_that_was_refused_leaves_its_key_free():
    queue = Queue()
    too_big = b"x" * (queue.machine.settings.max_job_size + 1)
    assert queue.do(many(b"small", too_big, key="k")) == [(1, r.JobTooBig())]
    queue.entry(c.DiskSpace(True))
    assert queue.do(many(b"small", key="k")) == [(1, r.OutOfMemory())]
    queue.entry(c.DiskSpace(False))
    assert queue.do(many(b"small", key="k")) == [(1, r.InsertedMany(1, 1, False))]


def test_a_key_is_free_after_its_window():
    queue = Queue()
    queue.do(*(many(b"x", key=f"k{n}") for n in range(100)))
    assert queue.do(many(b"x", key="k0"), later=KEY_WINDOW_MS - 1)[0][1].is_repeat
    assert not queue.do(many(b"x", key="k0"), later=1)[0][1].is_repeat
    assert len(queue.machine.keys.used) == 100 - KEYS_FORGOTTEN + 1 - 1  # that many at a time; k0 stands at the end
    for n in range(100, 110):
        queue.do(many(b"x", key=f"k{n}"))
    assert list(queue.machine.keys.used) == ["k0", *(f"k{n}" for n in range(100, 110))]


def test_the_number_of_keys_is_bounded():
    queue = Queue()
    queue.machine.keys = Keys(3)
    queue.do(*(many(b"x", key=f"k{n}") for n in range(5)))
    assert list(queue.machine.keys.used) == ["k2", "k3", "k4"]
    assert not queue.do(many(b"x", key="k0"))[0][1].is_repeat


# -- reservations that belong to their tokens --------------------------------------------------


def test_what_a_session_leaves_is_held_by_its_token_until_its_time_is_over():
    queue = Queue()
    queue.do(put(ttr=5_000), put(ttr=5_000))
    (_, first), (_, second) = queue.do(c.Reserve(2, 0), c.Reserve(2, 0))
    queue.do(c.Leave(2))
    assert queue.do(c.Reserve(3, 0)) == [(3, r.TimedOut())]
    assert queue.do(c.Delete(3, first.id), c.Delete(3, first.id, first.token)) == [(3, r.NotFound()), (3, r.Deleted())]
    assert queue.do(c.Touch(3, second.id, second.token), later=3_000) == [(3, r.Touched())]
    assert queue.do(c.Reserve(3, 0), later=4_999) == [(3, r.TimedOut())]
    assert queue.do(c.Reserve(3, 0), later=1)[0][1].id == second.id
    assert queue.job(second.id)["timeouts"] == 1


def test_released_or_buried_without_a_priority_a_job_keeps_its_own():
    queue = Queue()
    queue.do(put(pri=7))
    queue.do(c.Reserve(1, 0), c.Release(1, 1, None, 0), c.Reserve(1, 0), c.Bury(1, 1, None))
    assert queue.job(1)["pri"] == 7


def test_r28_the_first_directory_that_is_said_of_a_node_counts():
    queue = Queue()
    queue.entry(c.Directory(2, b"first"))
    queue.entry(c.Directory(2, b"second"))
    assert queue.machine.directories == {2: b"first"}

"""Policies of tubes, one test for each sentence of docs/queues.md; and what they may cost."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest

from raftd.jobs import asks, policies, replay
from raftd.jobs import commands as c
from raftd.jobs import replies as r
from raftd.jobs.budget import COSTS
from raftd.jobs.finished import FORGOTTEN, FinishedJob, FinishedJobs
from raftd.jobs.machine import StateMachine
from raftd.jobs.model import JobEventKind, State
from raftd.jobs.policy import DEAD_LETTER_TUBES, Policy, PolicyChange
from raftd.jobs.snapshot import dump, load
from raftd.limits import JOBS_PER_PUT, POLICIES
from raftd.sim.model import Model
from tests.jobs.test_budget import Measured
from tests.jobs.test_machine import put


class Policies(Measured):
    """Session 1 of the line puts, the client at connection 11 works."""

    def __init__(self, **policies: Policy | None) -> None:
        super().__init__()
        self.asked = 0
        self.events: list[tuple[JobEventKind, int, str]] = []
        self.machine.on_job_event = lambda what, job, who: self.events.append((what, job.id, job.tube.name))
        self.do(c.Attach(11, b"worker"))
        if policies:
            self.set(**policies)

    def set(self, **policies: Policy | None) -> r.Reply:
        return self.do(c.SetPolicies(1, [PolicyChange(tube, policy) for tube, policy in policies.items()]))[-1][1]

    def put(self, tube: str = "mail", body: bytes = b"b", pri: int = 10, delay: int = 0) -> int:
        """The id; 0: the tube is full."""
        reply = self.do(c.Put(1, pri, delay, 60_000, body, tube))[-1][1]
        assert isinstance(reply, r.Inserted | r.TubeFull)
        return reply.id if isinstance(reply, r.Inserted) else 0

    def ask(self, what: asks.What, later: int = 0) -> r.Reply:
        self.asked += 1
        replies = [reply.reply for _, reply in self.do(c.Ask(11, self.asked, self.asked, [], what), later=later) if type(reply) is r.ToAsk]
        return replies[-1]

    def take(self, tube: str = "mail", count: int = 1) -> list[tuple[int, int]]:
        """(job, failed attempts) of what could be reserved."""
        reply = self.ask(asks.Reserve([tube], count, 0))
        assert isinstance(reply, r.Jobs)
        return [(job.id, job.failures) for job in reply.jobs]

    def fail(self, id: int, error: str = "it broke", delay: int = 0) -> None:
        job = self.machine.jobs[id]
        assert self.ask(asks.Fail([(id, job.token)], delay, error)) == r.Missed([])

    def where(self, id: int) -> tuple[str, str]:
        job = self.machine.jobs[id]
        return job.tube.name, job.state.name.lower()

    def restarted(self) -> None:
        """From a snapshot of its own."""
        before = self.machine.digest()
        listener = self.machine.on_job_event
        self.machine = load(dump(self.machine))
        self.machine.on_job_event = listener
        assert self.machine.digest() == before


# -- attempts, backoff, dead letters --------------------------------------------------------------


def test_a_job_that_fails_as_often_as_it_may_moves_to_the_dead_letter_tube():
    queue = Policies(mail=Policy(max_attempts=2, dead_letter="dead"))
    id = queue.put()
    assert queue.take() == [(id, 0)]
    queue.fail(id, "no route")
    assert queue.take() == [(id, 1)]
    queue.fail(id, "no route again")
    assert queue.where(id) == ("dead", "ready")
    mark = queue.machine.policies.marks[id]
    assert (mark.death, mark.origin, mark.attempts, mark.died_ms) == ("attempts", "mail", 2, queue.now)
    assert queue.machine.clients.errors[id] == "no route again"
    assert [what for what, _, _ in queue.events[-2:]] == [JobEventKind.FAILED, JobEventKind.DEAD]
    assert queue.events[-1] == (JobEventKind.DEAD, id, "dead")
    assert queue.take("dead") == [(id, 0)]  # there it has its attempts again
    assert queue.machine.tubes["mail"].jobs == 0


@pytest.mark.parametrize("how", ["its worker says so", "its time is over", "its connection is lost", "its node is lost"])
def test_what_counts_as_a_failed_attempt(how):
    queue = Policies(mail=Policy(max_attempts=1, dead_letter="dead"))
    id = queue.put()
    if how == "its worker says so":
        queue.take()
        queue.fail(id)
    else:
        queue.do(c.Watch(5, "mail"), c.Reserve(5, 0))
        if how == "its time is over":
            queue.later(60_000)
        elif how == "its connection is lost":
            queue.do(c.CloseSession(5))
        else:
            queue.entry(c.CloseGateway(1, 1))
    assert queue.where(id) == ("dead", "ready")


@pytest.mark.parametrize("how", ["released", "released by its client", "its worker ends in order", "buried"])
def test_what_does_not(how):
    queue = Policies(mail=Policy(max_attempts=1, dead_letter="dead"))
    id = queue.put()
    if how == "released":
        queue.do(c.Watch(5, "mail"), c.Reserve(5, 0), c.Release(5, id, 10, 0))
    else:
        queue.take()
        held = [(id, queue.machine.jobs[id].token)]
        queue.ask({"released by its client": asks.Release(held), "buried": asks.Bury(held)}.get(how, asks.End()))
    assert queue.where(id) == ("mail", "buried" if how == "buried" else "ready")
    assert queue.machine.attempts(queue.machine.jobs[id]) == 0


def test_without_a_dead_letter_tube_a_dead_job_is_buried_and_a_kick_gives_it_its_attempts_back():
    queue = Policies(mail=Policy(max_attempts=1))
    id = queue.put()
    queue.take()
    queue.fail(id)
    assert queue.where(id) == ("mail", "buried")
    assert queue.machine.policies.marks[id].death == "attempts"
    queue.ask(asks.Kick("mail", 1))
    assert queue.take() == [(id, 0)]
    assert queue.machine.policies.marks[id].death == ""
    queue.ask(asks.Release([(id, 0)]))
    assert queue.where(id) == ("mail", "ready")  # a kicked job does not die at once
    queue.take()
    queue.fail(id)
    assert queue.where(id) == ("mail", "buried")


def test_if_the_dead_letter_tube_is_full_the_job_is_buried_where_it_is():
    queue = Policies(mail=Policy(max_attempts=1, dead_letter="dead"), dead=Policy(max_jobs=1))
    first, second = queue.put(), queue.put()
    queue.take(count=2)
    queue.fail(first)
    queue.fail(second)
    assert (queue.where(first), queue.where(second)) == (("dead", "ready"), ("mail", "buried"))


def test_a_full_dead_letter_tube_may_drop_its_oldest():
    queue = Policies(mail=Policy(max_attempts=1, dead_letter="dead"), dead=Policy(max_jobs=1, overflow="drop_oldest"))
    first, second = queue.put(), queue.put()
    queue.take(count=2)
    queue.fail(first)
    queue.fail(second)
    assert first not in queue.machine.jobs
    assert queue.where(second) == ("dead", "ready")


def test_dead_jobs_do_not_go_in_circles():
    queue = Policies(a=Policy(dead_letter="b"), b=Policy(dead_letter="c"))
    assert queue.set(c=Policy(dead_letter="a")) == r.PolicyRefused("circle", "c", 0)
    assert queue.set(own=Policy(dead_letter="own")) == r.PolicyRefused("circle", "own", 0)
    assert queue.set(x=Policy(dead_letter="y"), y=Policy(dead_letter="x")) == r.PolicyRefused("circle", "x", 0)
    assert "x" not in queue.machine.tubes
    assert queue.set(c=Policy(dead_letter="d"), b=None) == r.PoliciesSet(2)
    assert queue.set(d=Policy(dead_letter="a")) == r.PoliciesSet(3)  # b leads nowhere now


def test_nor_through_more_tubes_than_they_may():
    chain = {f"tube{number}": Policy(dead_letter=f"tube{number + 1}") for number in range(DEAD_LETTER_TUBES)}
    queue = Policies(**chain)
    assert queue.machine.policies.last_version == 1
    assert isinstance(queue.set(first=Policy(dead_letter="tube0")), r.PolicyRefused)
    assert isinstance(queue.set(first=Policy(dead_letter="tube1")), r.PoliciesSet)


def test_a_failed_job_waits_as_long_as_the_list_says_give_or_take_a_tenth():
    queue = Policies(mail=Policy(backoff_ms=(1_000, 60_000)))
    delays = []
    for _ in range(20):
        id = queue.put()
        for _ in range(3):
            assert queue.take() == [(id, queue.machine.attempts(queue.machine.jobs[id]))]
            queue.fail(id)
            job = queue.machine.jobs[id]
            delays.append(job.delay_ms)
            assert (job.state, job.deadline_ms) == (State.DELAYED, queue.now + job.delay_ms)
            queue.later(job.delay_ms)
        queue.ask(asks.Delete([(id, 0)]))
    first, second, third = delays[::3], delays[1::3], delays[2::3]
    assert all(900 <= delay <= 1_100 for delay in first)
    assert all(54_000 <= delay <= 66_000 for delay in [*second, *third])  # the last delay goes on
    assert len(set(first)) > 10  # jobs that failed together do not come back together


def test_a_delay_may_grow():
    policy = Policy(backoff_ms=(1_000,), backoff_factor=2_000, backoff_max_ms=10_000)
    delays = [policy.delay_ms(1, attempts) for attempts in (1, 2, 3, 4, 5, 1_000_000_000)]
    for delay, wanted in zip(delays, (1_000, 2_000, 4_000, 8_000, 10_000, 10_000), strict=True):
        assert 0.9 * wanted <= delay <= 1.1 * wanted


def test_a_worker_may_ask_for_another_delay():
    queue = Policies(mail=Policy(backoff_ms=(60_000,)))
    id = queue.put()
    queue.take()
    queue.fail(id, delay=5)
    assert queue.machine.jobs[id].delay_ms == 5
    queue.later(5)
    queue.take()
    queue.ask(asks.Fail([(id, 0)], 5, "", True))  # unless the tube has a backoff
    assert queue.machine.jobs[id].delay_ms > 50_000
    other = queue.put("other")
    queue.take("other")
    queue.ask(asks.Fail([(other, 0)], 5, "", True))
    assert queue.machine.jobs[other].delay_ms == 5


# -- time to live ---------------------------------------------------------------------------------


def test_a_job_that_is_not_taken_in_time_is_gone():
    queue = Policies(mail=Policy(ttl_ms=10_000))
    ready, delayed = queue.put(), queue.put(delay=60_000)
    queue.later(9_999)
    assert len(queue.machine.jobs) == 2
    queue.later(1)
    assert not queue.machine.jobs
    assert queue.machine.policies.expired == 2
    assert [event[:2] for event in queue.events[-2:]] == [(JobEventKind.EXPIRED, ready), (JobEventKind.EXPIRED, delayed)]
    assert len(queue.machine.timers) == 0


def test_or_dead():
    queue = Policies(mail=Policy(ttl_ms=10_000, on_expire="dead_letter", dead_letter="dead"))
    id = queue.put()
    queue.later(10_000)
    assert queue.where(id) == ("dead", "ready")
    assert queue.machine.policies.marks[id].death == "expired"
    queue.later(1_000_000)
    assert queue.where(id) == ("dead", "ready")  # there it may stay


def test_a_reserved_job_is_not_taken_from_its_worker():
    queue = Policies(mail=Policy(ttl_ms=10_000))
    done, failed = queue.put(), queue.put()
    queue.take(count=2)
    queue.later(20_000)
    assert queue.where(done) == ("mail", "reserved")
    assert queue.ask(asks.Delete([(done, 0)])) == r.Missed([])
    queue.restarted()
    queue.fail(failed)  # and then it is over
    assert not queue.machine.jobs


def test_a_buried_job_stays_and_a_kick_gives_it_its_time_again():
    queue = Policies(mail=Policy(ttl_ms=10_000))
    id = queue.put()
    queue.take()
    queue.ask(asks.Bury([(id, 0)]))
    queue.later(20_000)
    queue.ask(asks.Kick("mail", 1))
    queue.later(9_999)
    assert queue.where(id) == ("mail", "ready")
    queue.later(1)
    assert not queue.machine.jobs


def test_how_long_a_job_may_live_is_fixed_when_it_is_put_and_nothing_expires_without_a_policy():
    queue = Policies(mail=Policy(ttl_ms=10_000))
    first = queue.put()
    queue.set(mail=Policy(ttl_ms=60_000))
    second = queue.put()
    queue.later(10_000)
    assert (first in queue.machine.jobs, second in queue.machine.jobs) == (False, True)
    queue.set(mail=None)
    queue.later(60_000)
    assert queue.where(second) == ("mail", "ready")


# -- limits ---------------------------------------------------------------------------------------


def test_a_full_tube_takes_no_more():
    queue = Policies(mail=Policy(max_jobs=2), bytes=Policy(max_bytes=10))
    assert (queue.put(), queue.put(delay=1_000), queue.put()) == (1, 2, 0)
    many = c.PutMany(1, "mail", [c.NewJob(1, 0, 1_000, b"x")])
    assert queue.do(many) == [(1, r.TubeFull())]
    queue.ask(asks.Delete([(1, 0)]))
    assert queue.put() == 3
    assert (queue.put("bytes", bytes(10)), queue.put("bytes", b"x"), queue.put("bytes", b"")) == (4, 0, 5)
    assert queue.put("other", bytes(1_000)) == 6


def test_of_many_at_once_all_fit_or_none():
    queue = Policies(mail=Policy(max_jobs=3))
    assert queue.ask(asks.Put("mail", [asks.NewJob(1, 0, 1_000, b"x")] * 4)) == r.TubeFull()
    assert "mail" not in [job.tube.name for job in queue.machine.jobs.values()]
    assert queue.ask(asks.Put("mail", [asks.NewJob(1, 0, 1_000, b"x")] * 3)) == r.InsertedMany(1, 3, False)


def test_the_oldest_of_the_least_urgent_ready_jobs_is_dropped():
    queue = Policies(mail=Policy(max_jobs=4, overflow="drop_oldest"))
    urgent, old, new = queue.put(pri=1), queue.put(pri=9), queue.put(pri=9)
    held = queue.put(pri=0)
    queue.take()
    queue.put(pri=1)
    assert old not in queue.machine.jobs
    assert queue.events[-2] == (JobEventKind.DROPPED, old, "mail")
    queue.put(pri=1)
    assert new not in queue.machine.jobs
    queue.put(pri=1)
    assert urgent not in queue.machine.jobs
    assert queue.where(held) == ("mail", "reserved")
    queue.take(count=3)
    assert queue.put() == 0  # all are reserved
    assert queue.machine.policies.dropped == 3


def test_or_moved_to_the_dead_letter_tube_if_that_has_room():
    queue = Policies(mail=Policy(max_jobs=1, overflow="dead_letter_oldest", dead_letter="dead"), dead=Policy(max_jobs=1))
    first, second = queue.put(), queue.put()
    assert (queue.where(first), queue.machine.policies.marks[first].death) == (("dead", "ready"), "overflow")
    assert queue.put() == 0
    assert queue.where(second) == ("mail", "ready")


# -- rate and concurrency ---------------------------------------------------------------------------


def test_no_more_jobs_are_reserved_at_a_time_than_the_policy_says():
    queue = Policies(mail=Policy(concurrency=2))
    ids = [queue.put() for _ in range(4)]
    assert queue.take(count=4) == [(ids[0], 0), (ids[1], 0)]
    queue.do(c.Watch(5, "mail"), c.Reserve(5, None))
    for what in (asks.Delete([(ids[0], 0)]), asks.Bury([(ids[1], 0)])):
        queue.ask(what)
        (granted,) = [reply for session, reply in queue.answers if session == 5]
        assert isinstance(granted, r.Reserved)
        queue.do(c.Reserve(5, None))
    assert queue.machine.tubes["mail"].reserved == 2
    assert not queue.machine.tubes["mail"].ready


def test_a_delayed_failure_a_death_and_an_expiry_make_place_for_another():
    for how in (Policy(backoff_ms=(1_000,)), Policy(max_attempts=1, dead_letter="dead"), Policy(max_attempts=1), Policy(ttl_ms=5_000)):
        queue = Policies(mail=msgspec.structs.replace(how, concurrency=1))
        first = queue.put()
        queue.take()
        queue.later(4_000 if how.ttl_ms else 0)
        second = queue.put()
        queue.do(c.Watch(5, "mail"), c.Reserve(5, None))
        queue.later(3_000 if how.ttl_ms else 0)
        queue.fail(first)
        assert [reply.id for session, reply in queue.answers if session == 5] == [second], how


def test_jobs_come_at_the_rate_of_the_policy_after_a_burst():
    queue = Policies(mail=Policy(rate=2_000, burst=3))  # two a second
    for _ in range(20):
        queue.put()
    assert len(queue.take(count=10)) == 3
    queue.do(c.Watch(5, "mail"))
    times = []
    for _ in range(4):
        queue.do(c.Reserve(5, None))
        while queue.machine.session(1, 5).waiting:
            queue.later(10)
        times.append(queue.now)
        queue.restarted()
    assert [after - before for before, after in pairwise(times)] == [500, 500, 500]
    queue.later(10_000)
    assert len(queue.take(count=10)) == 3


def test_setting_the_same_rate_again_fills_no_bucket():
    queue = Policies(mail=Policy(rate=2_000, burst=3))
    for _ in range(20):
        queue.put()
    assert len(queue.take(count=10)) == 3
    queue.set(mail=Policy(rate=2_000, burst=3, max_attempts=5))
    assert queue.take() == []
    queue.set(mail=Policy(rate=2_000, burst=4))
    assert len(queue.take(count=10)) == 4


def test_a_rate_of_many_a_second_is_one_of_some_a_millisecond():
    queue = Policies(mail=Policy(rate=5_000_000))
    queue.do(c.PutMany(1, "mail", [c.NewJob(1, 0, 60_000, b"x")] * 100))
    taken = []
    for _ in range(10):
        taken.append(len(queue.take(count=100)))
        queue.later(1)
    assert taken == [5] * 10


def test_a_limit_that_is_lifted_lets_waiting_workers_go_on():
    queue = Policies(mail=Policy(rate=1))
    first, second = queue.put(), queue.put()
    assert queue.take(count=2) == [(first, 0)]
    queue.do(c.Watch(5, "mail"), c.Reserve(5, None))
    queue.set(mail=None)
    assert [reply.id for session, reply in queue.answers if session == 5] == [second]
    assert [timer[2] for timer in queue.machine.timers] == [first, second]  # their times to run


# -- the only ones of their kind, and what came of finished jobs ---------------------------------------


def put_unique(queue: Policies, key: str = "report", until_reserved: bool = False, for_ms: int = 0, tube: str = "mail") -> tuple[int, bool]:
    """The id, and whether there was one."""
    job = asks.NewJob(1, 0, 60_000, b"report")
    reply = queue.ask(asks.Put(tube, [job], unique=asks.Unique(key, until_reserved, for_ms)))
    assert isinstance(reply, r.InsertedMany)
    return reply.first, reply.is_repeat


def test_a_second_put_of_the_same_kind_gets_the_id_of_the_first_until_that_is_deleted():
    queue = Policies()
    assert put_unique(queue) == (1, False)
    assert put_unique(queue) == (1, True)
    assert (put_unique(queue, key="other"), put_unique(queue, tube="sms")) == ((2, False), (3, False))
    queue.restarted()
    queue.take()
    assert put_unique(queue) == (1, True)
    queue.fail(1)
    queue.take()
    queue.ask(asks.Delete([(1, 0)]))
    assert put_unique(queue) == (4, False)


def test_or_until_it_is_reserved_for_the_first_time():
    queue = Policies()
    assert put_unique(queue, until_reserved=True) == (1, False)
    assert put_unique(queue, until_reserved=True) == (1, True)
    queue.take()
    assert put_unique(queue, until_reserved=True) == (2, False)
    queue.fail(1)
    assert put_unique(queue) == (2, True)


def test_or_dead_where_it_is():
    queue = Policies(mail=Policy(max_attempts=1))
    put_unique(queue)
    queue.take()
    queue.fail(1)
    assert queue.where(1) == ("mail", "buried")
    assert put_unique(queue) == (2, False)


def test_or_dead_or_for_so_long():
    queue = Policies(mail=Policy(max_attempts=1, dead_letter="dead"))
    put_unique(queue)
    queue.take()
    queue.fail(1)
    assert put_unique(queue, for_ms=10_000) == (2, False)
    queue.later(9_999)
    assert put_unique(queue) == (2, True)
    queue.later(1)
    assert put_unique(queue) == (3, False)
    queue.ask(asks.Delete([(2, 0)]))  # which has nothing to do with that any more
    assert put_unique(queue) == (3, True)


def test_idempotency_keys_are_another_thing():
    queue = Policies()
    job = asks.NewJob(1, 0, 60_000, b"report")
    put_unique(queue)
    again = asks.Put("mail", [job], "key", b"asked", asks.Unique("report"))
    assert queue.ask(again) == r.InsertedMany(1, 1, True)
    queue.ask(asks.Delete([(1, 0)]))
    assert queue.ask(again) == r.InsertedMany(1, 1, True)  # it was asked before
    assert put_unique(queue) == (2, False)


def test_what_came_of_a_finished_job_can_be_read_for_a_while():
    queue = Policies(mail=Policy(retain_ms=10_000))
    first, second, unfinished = queue.put(), queue.put(), queue.put()
    queue.take()
    queue.fail(first)
    queue.take(count=2)
    queue.ask(asks.Delete([(first, 0)], b"42"))
    queue.do(c.Delete(1, unfinished))
    finished = queue.machine.policies.finished
    assert finished.find(first, queue.now) == ("mail", 1, queue.now, queue.now + 10_000, b"42")
    assert finished.find(unfinished, queue.now) is None
    queue.later(5_000)
    queue.ask(asks.Delete([(second, 0)]))
    queue.restarted()
    queue.later(5_000)
    finished = queue.machine.policies.finished
    assert finished.find(first, queue.now) is None
    assert finished.find(second, queue.now).result == b""


def test_finished_jobs_are_bounded_in_number_and_bytes():
    jobs = FinishedJobs(most=100, most_bytes=1_000)
    for id in range(1_000):
        jobs.remember(id, FinishedJob("t", 0, id, id + 1_000_000, bytes(5 if id < 500 else 50)))
        assert len(jobs.jobs) <= 100
        assert jobs.bytes == sum(len(job.result) for job in jobs.jobs.values()) <= 1_000
    assert list(jobs.jobs) == list(range(980, 1_000))
    jobs.remember(1_000, FinishedJob("t", 0, 10_000_000, 10_000_001, b""))
    assert len(jobs.jobs) == 21 - FORGOTTEN


# -- replay -----------------------------------------------------------------------------------------


def dead_letters(queue: Policies, count: int, error: str = "it broke") -> list[int]:
    ids = [queue.put() for _ in range(count)]
    queue.take(count=count)
    for id in ids:
        queue.fail(id, error)
    return ids


def replayed(queue: Policies, action: asks.Action = "move", to: str = "", after: int = 0, **which: object) -> tuple[int, int]:
    reply = queue.ask(asks.Replay(asks.Selection(**{"tube": "dead", **which}), action, to, after))
    assert isinstance(reply, r.Replayed)
    return reply.done, reply.skipped


def test_dead_letters_go_back_to_where_they_died_and_do_not_die_at_once():
    queue = Policies(mail=Policy(max_attempts=1, dead_letter="dead", ttl_ms=60_000))
    (id,) = dead_letters(queue, 1)
    queue.later(100_000)
    assert replayed(queue) == (1, 0)
    assert queue.where(id) == ("mail", "ready")
    assert queue.machine.policies.marks[id].death == ""
    assert "dead" not in queue.machine.tubes
    assert queue.take() == [(id, 0)]
    queue.later(60_000)
    queue.restarted()
    assert replayed(queue) == (1, 0)


def test_a_replay_has_a_filter_and_an_end():
    queue = Policies(mail=Policy(max_attempts=1, dead_letter="dead"), sms=Policy(max_attempts=1, dead_letter="dead"))
    timeouts = dead_letters(queue, 2, "Timeout: 30 s")
    queue.later(60_000)
    others = dead_letters(queue, 2, "KeyError: 'x'")
    then = queue.now
    queue.later(60_000)
    sms = queue.put("sms")
    queue.take("sms")
    queue.fail(sms)
    assert replayed(queue, to="a", error="Timeout") == (2, 0)
    assert replayed(queue, to="b", origin="sms") == (1, 0)
    assert replayed(queue, to="c", before_ms=then - 1) == (0, 0)
    assert replayed(queue, to="c", from_ms=then + 1) == (0, 0)
    assert replayed(queue, to="c", up_to=others[0]) == (1, 0)
    assert replayed(queue, to="d", from_ms=then, before_ms=then) == (1, 0)
    assert [queue.where(id)[0] for id in (*timeouts, *others, sms)] == ["a", "a", "c", "d", "b"]


def test_buried_jobs_are_kicked_moved_or_deleted():
    queue = Policies()
    ids = [queue.put() for _ in range(4)]
    ready = queue.put()
    queue.take(count=4)
    queue.ask(asks.Bury([(id, 0) for id in ids], error="no use"))
    assert replayed(queue, "kick", tube="mail", up_to=ids[0]) == (1, 0)
    assert replayed(queue, "delete", tube="mail", up_to=ids[1]) == (1, 0)
    assert replayed(queue, "move", tube="mail") == (0, 2)  # they died nowhere
    assert replayed(queue, "move", tube="mail", to="other") == (2, 0)
    assert ids[1] not in queue.machine.jobs
    assert [queue.where(id) for id in (ids[0], ids[2], ready)] == [("mail", "ready"), ("other", "ready"), ("mail", "ready")]


def bury(queue: Policies, *ids: int) -> None:
    assert queue.ask(asks.Bury([(id, queue.machine.jobs[id].token) for id in ids])) == r.Missed([])


def test_a_job_is_buried_since_a_moment():
    queue = Policies()
    early, late = queue.put(), queue.put()
    queue.take(count=2)
    queue.later(1_000)
    bury(queue, early)
    then = queue.now
    queue.later(1)
    bury(queue, late)
    queue.restarted()
    assert [queue.machine.jobs[id].buried_ms for id in (early, late)] == [then, then + 1]
    assert replayed(queue, "kick", tube="mail", before_ms=then - 1) == (0, 0)
    assert replayed(queue, "kick", tube="mail", before_ms=then) == (1, 0)
    assert replayed(queue, "kick", tube="mail", from_ms=then + 1) == (1, 0)


def test_a_replay_is_recorded_once_wherever_it_begins():
    queue = Policies(mail=Policy(max_attempts=1, dead_letter="dead"))
    ids = dead_letters(queue, 3)
    which = asks.Selection("dead", up_to=ids[0])
    for after in (0, ids[0], ids[1]):
        queue.ask(asks.Replay(which, "move", after=after))
    queue.ask(asks.Replay(which, "delete", after=ids[1]))
    records = [(one.what, one.to) for one in queue.machine.access.tube_records]
    assert records == [("set-policy", "mail"), ("replay-move", "dead"), ("replay-delete", "dead")]
    queue.machine.level = 5
    queue.ask(asks.Replay(which, "kick", after=ids[1]))
    queue.ask(asks.Replay(which, "delete"))
    queue.ask(asks.Replay(which, "delete"))
    assert [one.what for one in queue.machine.access.tube_records][3:] == ["replay-delete", "replay-delete"]


def test_a_dead_letter_that_is_buried_is_dead_since_then():
    queue = Policies(mail=Policy(max_attempts=1, dead_letter="dead"))
    (id,) = dead_letters(queue, 1)
    queue.take("dead")
    queue.later(1_000)
    bury(queue, id)
    assert replayed(queue, before_ms=queue.now - 1) == (0, 0)
    assert replayed(queue, before_ms=queue.now) == (1, 0)


def test_jobs_buried_in_one_moment_keep_their_order():
    queue = Policies()
    ids = [queue.put() for _ in range(5)]
    queue.take(count=5)
    order = [ids[place] for place in (3, 0, 4, 1, 2)]
    bury(queue, *order[:3])
    bury(queue, *order[3:])
    queue.restarted()
    assert [id for _, id in queue.machine.tubes["mail"].buried] == order
    assert {queue.machine.jobs[id].buried_ms for id in ids} == {queue.now}


def test_of_jobs_buried_before_level_6_only_the_order_is_known():
    queue = Policies()
    ids = [queue.put() for _ in range(4)]
    queue.take(count=4)
    queue.machine.level = 5
    queue.later(1_000)
    bury(queue, ids[2], ids[0])
    assert list(dump(queue.machine)) == list(dump(load(dump(queue.machine))))
    queue.machine.level = 6
    bury(queue, ids[3], ids[1])
    pieces = list(dump(queue.machine))
    queue.restarted()
    assert list(dump(queue.machine)) == pieces
    assert [id for _, id in queue.machine.tubes["mail"].buried] == [ids[2], ids[0], ids[3], ids[1]]
    assert [queue.machine.jobs[id].buried_ms for id in ids] == [0, queue.now, 0, queue.now]
    assert replayed(queue, "kick", tube="mail", before_ms=queue.now - 1) == (2, 0)  # they were put then


def test_what_makes_room_may_take_the_very_job_that_moves():
    """It was an exception in every node."""
    queue = Policies(
        mail=Policy(max_jobs=1, overflow="dead_letter_oldest", dead_letter="dead"), dead=Policy(max_jobs=1, overflow="drop_oldest")
    )
    first, second = queue.put(), queue.put()
    assert (queue.where(first)[0], queue.where(second)[0]) == ("dead", "mail")
    assert replayed(queue, up_to=first) == (0, 1)
    assert first not in queue.machine.jobs
    assert queue.where(second)[0] == "dead"


def test_what_has_no_room_stays():
    queue = Policies(mail=Policy(max_attempts=1, dead_letter="dead", max_jobs=2))
    first, second = dead_letters(queue, 2)
    queue.put()
    assert replayed(queue) == (1, 1)
    assert (queue.where(first)[0], queue.where(second)[0]) == ("mail", "dead")
    assert queue.machine.policies.marks[second].death == "attempts"


def test_a_replay_goes_in_steps_of_which_none_is_long_and_nothing_is_done_twice():
    queue = Policies(mail=Policy(ttl_ms=1_000, on_expire="dead_letter", dead_letter="dead"))
    count = 2_000
    for _ in range(count // JOBS_PER_PUT):
        queue.do(c.PutMany(1, "mail", [c.NewJob(1, 0, 10_000, b"x")] * JOBS_PER_PUT))
        queue.do(c.PutMany(1, "other", [c.NewJob(1, 0, 10_000, b"x")] * JOBS_PER_PUT))
    queue.later(1_000)
    queue.settle()
    queue.longest, after, done, steps = 0, 0, 0, 0
    while True:
        what = asks.Replay(asks.Selection("dead"), "move", "again", after)
        reply = queue.ask(what)
        queue.asked -= 1
        assert queue.ask(what) == reply  # asked again, it is not done again
        done, after, steps = done + reply.done, reply.after, steps + 1
        if reply.is_done:
            break
    assert (done, queue.machine.tubes["again"].jobs, steps) == (count, count, 11)
    assert queue.longest <= COSTS.entry + COSTS.of_ask(what)


def test_counting_looks_at_some_jobs_at_a_time():
    queue = Policies(mail=Policy(max_attempts=1, dead_letter="dead"))
    ids = dead_letters(queue, 5)
    which = asks.Selection("dead", up_to=ids[3])
    assert replay.count(queue.machine, which, 0, 3) == r.Replayed(3, 0, ids[2], False)
    assert replay.count(queue.machine, which, ids[2], 3) == r.Replayed(1, 0, ids[3], True)


# -- setting them -----------------------------------------------------------------------------------


def test_two_operators_do_not_undo_each_other():
    queue = Policies(mail=Policy(max_jobs=5))
    change = PolicyChange("mail", Policy(max_jobs=6), version=1)
    assert queue.do(c.SetPolicies(1, [change])) == [(1, r.PoliciesSet(2))]
    assert queue.do(c.SetPolicies(1, [change])) == [(1, r.PolicyRefused("conflict", "mail", 2))]
    new = PolicyChange("new", Policy(max_jobs=6), version=0)
    assert queue.do(c.SetPolicies(1, [new, change])) == [(1, r.PolicyRefused("conflict", "mail", 2))]
    assert "new" not in queue.machine.tubes  # all of them or none
    assert queue.do(c.SetPolicies(1, [new])) == [(1, r.PoliciesSet(3))]
    queue.set(new=None)
    assert queue.do(c.SetPolicies(1, [new])) == [(1, r.PoliciesSet(5))]  # a version is never used again


def test_a_tube_with_a_policy_stays_and_without_it_goes():
    queue = Policies(mail=Policy(max_jobs=5))
    assert "mail" in queue.machine.tubes
    queue.set(mail=None, none=None)
    assert list(queue.machine.tubes) == ["default"]
    assert not queue.machine.policies.tubes


def test_there_are_only_so_many_policies():
    queue = Policies()
    for first in range(0, POLICIES, 1_000):
        queue.do(c.SetPolicies(1, [PolicyChange(f"tube{number}", Policy(max_jobs=1)) for number in range(first, first + 1_000)]))
    assert queue.set(more=Policy(max_jobs=1)) == r.PolicyRefused("too-many", "more", 0)
    assert queue.set(tube5=Policy(max_jobs=2), tube6=None) == r.PoliciesSet(11)
    assert queue.set(more=Policy(max_jobs=1)) == r.PoliciesSet(12)


def test_below_level_4_a_snapshot_has_only_what_an_older_raftd_reads():
    queue = Measured()
    queue.machine.level = c.POLICIES_LEVEL
    queue.do(put(), c.Reserve(1, 0))
    before = [piece[:2] for piece in dump(queue.machine)]
    queue.do(c.SetPolicies(1, [PolicyChange("mail", Policy(ttl_ms=5))]), c.Put(1, 1, 0, 1_000, b"", "mail"))
    after = [piece[:2] for piece in dump(queue.machine)]
    assert {piece[1] for piece in after} - {piece[1] for piece in before} == {24, 25}


# -- what they may cost -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["expire", "expire and die", "die when their time to run is over", "die with their session"])
def test_many_jobs_that_end_in_one_moment_are_worked_off_in_bounded_steps(how):
    count = 20_000
    policy = {
        "expire": Policy(ttl_ms=10_000),
        "expire and die": Policy(ttl_ms=10_000, on_expire="dead_letter", dead_letter="dead"),
    }.get(how, Policy(max_attempts=1, dead_letter="dead"))
    queue = Policies(mail=policy)
    many = c.PutMany(1, "mail", [c.NewJob(1, 0, 10_000, b"x")] * JOBS_PER_PUT)
    for _ in range(count // JOBS_PER_PUT):
        queue.do(many)
    if how.startswith("die"):
        queue.do(c.Watch(5, "mail"))
        queue.in_batches([c.Reserve(5, 0)] * count)
    if how == "die with their session":
        queue.do(c.CloseSession(5))
    else:
        queue.later(10_000)
    entries = queue.settle()
    assert queue.is_bounded()
    assert entries >= count * COSTS.died // COSTS.entry
    policies = queue.machine.policies
    assert (policies.expired, policies.died) == (count if "expire" in how else 0, count if "die" in how else 0)
    assert len(queue.machine.jobs) == (0 if how == "expire" else count)
    assert queue.machine.tubes["dead"].jobs == count if "die" in how else "dead" not in queue.machine.tubes


@pytest.mark.parametrize("policy", [Policy(max_jobs=100, overflow="drop_oldest"), Policy(max_bytes=5_000, overflow="drop_oldest")])
def test_refused_puts_look_at_few_jobs(policy):
    queue = Policies()
    queue.do(c.PutMany(1, "mail", [c.NewJob(1, 0, 10_000, b"x")] * 740))
    queue.do(c.PutMany(1, "mail", [c.NewJob(1, 60_000, 10_000, b"xxxxx")] * JOBS_PER_PUT))
    queue.set(mail=policy)
    looked: list[int] = []
    find = policies._oldest

    def counted(machine, tube):
        for job in find(machine, tube):
            looked.append(job.id)
            yield job

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policies, "_oldest", counted)
        replies = queue.do(*[c.Put(1, 1, 0, 10_000, bytes(10), "mail")] * 500)
    assert {type(reply) for _, reply in replies} == {r.TubeFull}
    assert len(looked) <= 2 * 500 + COSTS.entry // COSTS.died
    assert queue.is_bounded()


def test_what_is_pushed_out_while_sessions_close_takes_nothing_from_the_budget_of_commands():
    """The limit was set anew, and forgot what had been charged beside it (seed 8300654)."""
    costs = msgspec.structs.replace(COSTS, entry=200, commands=100, left_over=80)
    machine, model = StateMachine(costs), Model(msgspec.structs.asdict(costs))
    dying, full = Policy(max_attempts=1, dead_letter="dead"), Policy(max_jobs=1, overflow="drop_oldest")
    jobs = [c.NewJob(1, 0, 60_000, b"x")] * 8
    batches: list[list[c.Command]] = [
        [c.SetPolicies(1, [PolicyChange("mail", dying), PolicyChange("dead", full)]), c.PutMany(1, "dead", jobs[:1])],
        [c.PutMany(1, "mail", jobs), c.Watch(5, "mail"), c.Watch(6, "mail"), *[c.Reserve(5, 0)] * 4, *[c.Reserve(6, 0)] * 4],
        [c.CloseSession(5)],
        [c.CloseSession(6)],
    ]
    payloads: list[c.Payload | None] = [c.Features(4), c.OpenGateway(1, 1)]
    payloads += [c.Batch(1, 1, seq, commands) for seq, commands in enumerate(batches, 1)]
    for index, payload in enumerate([*payloads, *[None] * 20], 1):
        data = c.encode_payload(payload) if payload is not None else b""
        machine.apply(index, 1_000, data)
        model.entry(1_000, data)
        assert machine.steps == model.steps, index
    assert machine.policies.died == 8


def test_a_restore_releases_what_clients_held():
    """It is no failed attempt, and no exception though a dead letter tube is full."""
    queue = Policies(mail=Policy(max_attempts=1, dead_letter="dead"), dead=Policy(max_jobs=1, overflow="drop_oldest"))
    queue.put("dead")
    id = queue.put()
    queue.take()
    machine = load(dump(queue.machine))
    machine.close_everyone()
    assert (machine.jobs[id].state, machine.attempts(machine.jobs[id])) == (State.READY, 0)


def test_one_large_put_pushes_out_as_many_small_jobs_as_the_budget_allows_or_none():
    queue = Policies(mail=Policy(max_bytes=2_000, overflow="drop_oldest"))
    for _ in range(2):
        queue.do(c.PutMany(1, "mail", [c.NewJob(1, 0, 10_000, b"x")] * JOBS_PER_PUT))
    assert queue.put(body=bytes(1_500)) == 0
    assert queue.machine.tubes["mail"].bytes == 2_000
    assert queue.put(body=bytes(700)) > 0
    assert queue.machine.tubes["mail"].bytes == 2_000
    assert queue.machine.policies.dropped == 700
    assert queue.is_bounded()

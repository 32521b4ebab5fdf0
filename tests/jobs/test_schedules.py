"""Schedules in the state: each occurrence is put once, whoever proposes it and how often."""

from __future__ import annotations

import pytest

from raftd.jobs import asks
from raftd.jobs import commands as c
from raftd.jobs import replies as r
from raftd.jobs.policy import Policy
from raftd.limits import SCHEDULES
from tests.jobs.test_policies import Policies

JOB = asks.NewJob(7, 0, 60_000, b"hello")


class Schedules(Policies):
    def ask_for(self, what: asks.OfSchedules) -> r.ScheduleReply:
        return self.do(c.OfSchedule(1, what))[-1][1]

    def plan(self, name: str = "daily", version: int | None = None, **more: object) -> r.ScheduleReply:
        return self.ask_for(asks.SetSchedule(name, asks.Plan("mail", JOB, every_ms=1_000, **more), version))

    def tick(self, due_ms: int, next_ms: int, puts: bool = True, version: int = 1, name: str = "daily") -> int:
        """How many jobs it puts."""
        before = self.machine.total_jobs
        self.entry(c.Tick(name, version, due_ms, next_ms, puts))
        return self.machine.total_jobs - before

    @property
    def daily(self):
        return self.machine.schedules.by_name["daily"]


def test_each_occurrence_is_put_once_whatever_leaders_come_and_go():
    queue = Schedules()
    assert queue.plan() == r.ScheduleSet(1)
    assert queue.tick(0, 1_000) == 0  # now the next is known
    assert queue.tick(0, 2_000) == 0  # another leader had found it out, too
    assert queue.daily.next_ms == 1_000
    assert [queue.tick(1_000, 2_000), queue.tick(1_000, 2_000), queue.tick(1_000, 3_000)] == [1, 0, 0]
    queue.restarted()
    assert [queue.tick(1_000, 2_000), queue.tick(3_000, 4_000), queue.tick(2_000, 3_000)] == [0, 0, 1]
    assert (queue.daily.last_ms, queue.daily.put, queue.daily.last_job) == (2_000, 2, 2)
    assert queue.tick(3_000, 3_000) == 0  # the next is later
    assert [(job.tube.name, job.pri, job.body) for job in queue.machine.jobs.values()] == [("mail", 7, b"hello")] * 2


def test_a_tick_for_an_older_version_or_a_schedule_that_is_paused_or_gone_is_nothing():
    queue = Schedules()
    queue.plan()
    queue.tick(0, 1_000)
    assert queue.plan() == r.ScheduleSet(2)
    assert queue.tick(0, 1_000) == queue.tick(1_000, 2_000) == 0
    assert queue.tick(0, 1_000, version=2) == 0
    assert queue.ask_for(asks.PauseSchedule("daily", True)) == r.Paused()
    assert queue.tick(1_000, 2_000, version=2) == 0
    queue.ask_for(asks.PauseSchedule("daily", False))
    assert queue.daily.next_ms == 0  # what was due meanwhile is not put
    queue.tick(0, 5_000, version=2)
    assert queue.tick(5_000, 6_000, version=2) == 1
    queue.ask_for(asks.SetSchedule("daily", None))
    assert queue.tick(6_000, 7_000, version=2) == 0
    assert queue.ask_for(asks.PauseSchedule("daily", True)) == queue.ask_for(asks.RunSchedule("daily")) == r.NotFound()


def test_an_occurrence_that_was_missed_is_counted():
    queue = Schedules()
    queue.plan()
    queue.tick(0, 1_000)
    assert queue.tick(1_000, 90_000, puts=False) == 0
    assert (queue.daily.skipped, queue.daily.put, queue.daily.next_ms) == (1, 0, 90_000)


def test_after_the_last_there_is_no_schedule_any_more():
    queue = Schedules()
    queue.ask_for(asks.SetSchedule("daily", asks.Plan("mail", JOB, at_ms=1_000)))
    queue.tick(0, 1_000)
    assert queue.tick(1_000, 0) == 1
    assert not queue.machine.schedules.by_name


def test_nothing_is_put_while_the_job_before_is_there_if_it_must_not():
    queue = Schedules()
    queue.plan(skips_overlap=True)
    queue.tick(0, 1_000)
    assert [queue.tick(1_000, 2_000), queue.tick(2_000, 3_000)] == [1, 0]
    queue.take()
    assert queue.tick(3_000, 4_000) == 0
    queue.ask(asks.Delete([(1, 0)]))
    assert queue.tick(4_000, 5_000) == 1
    assert queue.ask_for(asks.RunSchedule("daily")) == r.InsertedMany(3, 1, False)  # who asks for it gets it


def test_a_full_tube_takes_none():
    queue = Schedules(mail=Policy(max_jobs=1))
    queue.plan()
    queue.tick(0, 1_000)
    assert [queue.tick(1_000, 2_000), queue.tick(2_000, 3_000)] == [1, 0]
    assert queue.ask_for(asks.RunSchedule("daily")) == r.TubeFull()
    assert queue.daily.skipped == 1


@pytest.mark.parametrize("over", ["line", "ask"])
def test_two_operators_do_not_undo_each_other(over):
    queue = Schedules()
    ask = queue.ask_for if over == "line" else queue.ask
    plan = asks.Plan("mail", JOB, every_ms=1_000)
    assert ask(asks.SetSchedule("daily", plan, 5)) == r.ScheduleRefused("conflict", 0)
    assert ask(asks.SetSchedule("daily", plan, 0)) == r.ScheduleSet(1)
    assert ask(asks.SetSchedule("daily", None, 0)) == r.ScheduleRefused("conflict", 1)
    assert ask(asks.SetSchedule("daily", None, 1)) == r.ScheduleSet(2)
    assert ask(asks.SetSchedule("daily", plan, 0)) == r.ScheduleSet(3)


def test_there_are_only_so_many():
    queue = Schedules()
    for number in range(SCHEDULES):
        queue.plan(f"s{number}")
    assert queue.plan("more") == r.ScheduleRefused("too-many", 0)
    assert queue.plan("s5") == r.ScheduleSet(SCHEDULES + 1)

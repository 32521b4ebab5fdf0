"""Jobs that are put by themselves: a part of the state machine, in a module of its own (docs/queues.md).

Log time is not wall time, so the leader alone looks at its clock and at the calendar, and proposes a `Tick` for each occurrence that is
due. The state says which occurrence of a schedule is the next and takes no other: each is put once, whatever leaders come and go.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from raftd.jobs import asks, policies
from raftd.jobs import commands as c
from raftd.jobs import replies as r
from raftd.jobs.model import Tube
from raftd.jobs.pages import SortedPages
from raftd.limits import SCHEDULES


class StateMachine(policies.StateMachine, Protocol):
    """What of it this part needs: see there."""

    settings: c.Settings
    space_is_scarce: bool
    last_id: int
    schedules: Schedules

    def insert(self, tube: Tube, put: asks.NewJob, who: tuple[int, int] | None) -> None: ...


class Schedule(msgspec.Struct, gc=False):
    """`next_ms`: the wall time of the next occurrence, 0: the leader has still to find out. `last_ms`: that of the last, 0 if there was
    none, and `last_job` its job. `put`, `skipped`: occurrences so far."""

    name: str
    version: int
    plan: asks.Plan
    is_paused: bool = False
    next_ms: int = 0
    last_ms: int = 0
    last_job: int = 0
    put: int = 0
    skipped: int = 0


def without_body(schedule: Schedule) -> Schedule:
    """For lists: all bodies together may be larger than any answer."""
    plan = schedule.plan
    bare = msgspec.structs.replace(plan, job=msgspec.structs.replace(plan.job, body=b""))
    return msgspec.structs.replace(schedule, plan=bare)


class Schedules:
    """All of them."""

    def __init__(self) -> None:
        self.by_name: dict[str, Schedule] = {}  # in the order in which they last changed
        self.last_version = 0
        #: (next_ms, name) of those that are not paused.
        self.due: SortedPages[tuple[int, str]] = SortedPages()

    def add(self, schedule: Schedule) -> None:
        self.by_name[schedule.name] = schedule
        if not schedule.is_paused:
            self.due.add((schedule.next_ms, schedule.name))

    def drop(self, schedule: Schedule) -> None:
        del self.by_name[schedule.name]
        if not schedule.is_paused:
            self.due.remove((schedule.next_ms, schedule.name))

    def set(self, name: str, plan: asks.Plan | None, version: int | None) -> r.ScheduleSet | r.ScheduleRefused:
        """Make, replace or remove one."""
        known = self.by_name.get(name)
        has = known.version if known is not None else 0
        if version not in (None, has):
            return r.ScheduleRefused("conflict", has)
        if plan is not None and known is None and len(self.by_name) >= SCHEDULES:
            return r.ScheduleRefused("too-many", 0)
        self.last_version += 1
        if known is not None:
            self.drop(known)
        if plan is not None:
            self.add(Schedule(name, self.last_version, plan))
        return r.ScheduleSet(self.last_version)

    def pause(self, name: str, is_paused: bool) -> r.NotFound | r.Paused:
        """Occurrences of a paused schedule are not put, and do not come later."""
        schedule = self.by_name.get(name)
        if schedule is None:
            return r.NotFound()
        if schedule.is_paused != is_paused:
            self.drop(schedule)
            schedule.is_paused, schedule.next_ms = is_paused, 0
            self.add(schedule)
        return r.Paused()


def tick(machine: StateMachine, tick: c.Tick) -> None:
    """An occurrence is due, or the leader has found out when the next is. Nothing if it comes twice, or the schedule is another by now."""
    schedules = machine.schedules
    schedule = schedules.by_name.get(tick.name)
    if schedule is None or schedule.version != tick.version or schedule.is_paused or schedule.next_ms != tick.due_ms:
        return
    if tick.next_ms and tick.next_ms <= tick.due_ms:
        return
    schedules.drop(schedule)
    if tick.due_ms:
        schedule.last_ms = tick.due_ms
        overlaps = schedule.plan.skips_overlap and schedule.last_job in machine.jobs
        if tick.puts and not overlaps and _put(machine, schedule):
            schedule.put += 1
        else:
            schedule.skipped += 1
    schedule.next_ms = tick.next_ms
    if tick.next_ms:
        schedules.add(schedule)


def run(machine: StateMachine, name: str) -> r.ScheduleReply:
    """Put its job now, whatever is due."""
    schedule = machine.schedules.by_name.get(name)
    if schedule is None:
        return r.NotFound()
    return r.InsertedMany(schedule.last_job, 1, False) if _put(machine, schedule) else r.TubeFull()


def _put(machine: StateMachine, schedule: Schedule) -> bool:
    """Unless the tube is full, or disks are."""
    plan, tube = schedule.plan, machine.tube(schedule.plan.tube)
    if machine.space_is_scarce or not policies.make_room(machine, tube, 1, len(plan.job.body)):
        machine.drop_if_unused(tube)
        return False
    machine.insert(tube, plan.job, None)
    schedule.last_job = machine.last_id
    return True


def describe(schedules: Schedules) -> list[object]:
    """For the digest."""
    rows = [msgspec.structs.astuple(schedule) for schedule in schedules.by_name.values()]
    return [schedules.last_version, rows, list(schedules.due)]

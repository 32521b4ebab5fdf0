"""`/v1/schedules`: jobs that are put by themselves (docs/queues.md)."""

from __future__ import annotations

from collections.abc import Callable
from heapq import nsmallest
from typing import Any

from raftd.jobs import asks
from raftd.jobs import commands as c
from raftd.jobs import replies as r
from raftd.jobs.budget import CALENDAR_STEPS
from raftd.jobs.machine import StateMachine
from raftd.jobs.schedules import without_body
from raftd.limits import SCHEDULES
from raftd.node.occurrences import what_is_wrong_with_times
from raftd.server.access import looked_at
from raftd.server.http import shapes as s
from raftd.server.http.base import LATE, Page, QueueApi, Version
from raftd.server.http.routes import Ask, Needs, route
from raftd.wire.schedule import ScheduleDocument, plan_of


class ScheduleApi(QueueApi):
    """Schedules."""

    @route("GET", "/v1/schedules", Needs.USER, s.ScheduleList, query=Page, problems=("not-committed",))
    def _list_schedules(self, ask: Ask) -> None:
        """List schedules by name, without their bodies."""
        page = ask.query

        def query(machine: StateMachine, now_ms: int) -> list[s.ScheduleView]:
            known = {name: one for name, one in machine.schedules.by_name.items() if ask.sees(machine, one.plan.tube)}
            return [
                s.schedule_view(without_body(known[name]))
                for name in nsmallest(page.limit + 1, (name for name in known if name > page.after))
            ]

        def answered(found: list[s.ScheduleView]) -> None:
            ask.call.say(200, s.ScheduleList(found[: page.limit], len(found) > page.limit))

        self._read(ask, query, answered, lambda machine: looked_at(machine, len(machine.schedules.by_name)))

    @route("GET", "/v1/schedules/{name}", Needs.USER, s.ScheduleView, problems=("no-schedule", "not-committed"))
    def _show_schedule(self, ask: Ask) -> None:
        """Show a schedule."""

        def query(machine: StateMachine, now_ms: int) -> s.ScheduleView | None:
            schedule = machine.schedules.by_name.get(ask.parts["name"])
            is_seen = schedule is not None and ask.sees(machine, schedule.plan.tube)
            return s.schedule_view(schedule) if schedule is not None and is_seen else None

        self._read(ask, query, lambda found: ask.call.say(200, found) if found is not None else ask.call.problem("no-schedule"))

    @route(
        *("PUT", "/v1/schedules/{name}", Needs.USER, s.ScheduleView),
        query=Version,
        body=ScheduleDocument,
        problems=("bad-schedule", "schedule-changed", "job-too-large", "no-schedule", "older-node", *LATE),
    )
    def _set_schedule(self, ask: Ask) -> None:
        """Set a schedule: it takes the place of the one before."""
        try:
            plan = plan_of(ask.body)
        except ValueError as error:
            ask.call.problem("bad-schedule", str(error))
            return
        if len(plan.job.body) > self._node.max_job_size:
            ask.call.problem("job-too-large")
            return
        exchange = self._begin(ask)

        def checked(wrong: Any, index: int) -> None:
            exchange.close()
            if wrong:
                ask.call.problem("bad-schedule", wrong)
            else:
                self._change(ask, asks.SetSchedule(ask.parts["name"], plan, ask.query.wanted), lambda: self._say(ask))

        exchange.session.local(lambda: what_is_wrong_with_times(plan), checked, CALENDAR_STEPS)
        self._node.wake()

    @route("DELETE", "/v1/schedules/{name}", Needs.USER, None, 204, query=Version, problems=("schedule-changed", "older-node", *LATE))
    def _remove_schedule(self, ask: Ask) -> None:
        """Remove a schedule. Its jobs stay."""
        self._change(ask, asks.SetSchedule(ask.parts["name"], None, ask.query.wanted), lambda: ask.call.answer(204, b""))

    @route(
        *("POST", "/v1/schedules/{name}/pause", Needs.USER, s.ScheduleView),
        body=s.PauseSchedule,
        body_is_optional=True,
        problems=("no-schedule", "older-node", *LATE),
    )
    def _pause_schedule(self, ask: Ask) -> None:
        """Pause a schedule, or resume it."""
        self._change(ask, asks.PauseSchedule(ask.parts["name"], ask.body.paused), lambda: self._say(ask))

    @route("POST", "/v1/schedules/{name}/run", Needs.USER, s.Stored, 201, problems=("no-schedule", "tube-full", "older-node", *LATE))
    def _run_schedule(self, ask: Ask) -> None:
        """Put the job of a schedule now."""
        self._change(ask, asks.RunSchedule(ask.parts["name"]), lambda: None)

    def _say(self, ask: Ask) -> None:
        schedule = self._node.machine.schedules.by_name.get(ask.parts["name"])
        if schedule is None:  # it was removed in the same moment
            ask.call.problem("no-schedule")
        else:
            ask.call.say(200, s.schedule_view(schedule))

    def _change(self, ask: Ask, what: asks.OfSchedules, done: Callable[[], Any]) -> None:
        if not self._node.knows_policies:
            ask.call.problem("older-node")
            return

        def answered(reply: r.ScheduleReply) -> None:
            match reply:
                case r.ScheduleSet() | r.Paused():
                    done()
                case r.InsertedMany(first=id):
                    ask.call.say(201, s.Stored([id]))
                case r.NotFound():
                    ask.call.problem("no-schedule")
                case r.TubeFull():
                    ask.call.problem("tube-full", headers={"Retry-After": "1"})
                case r.ScheduleRefused(why="conflict", version=version):
                    ask.call.problem("schedule-changed", f"It has version {version}." if version else "There is none.")
                case r.ScheduleRefused():
                    ask.call.problem("bad-schedule", f"There are as many schedules as there may be ({SCHEDULES:,})")

        self._command(ask, lambda session: c.OfSchedule(session, what), answered)

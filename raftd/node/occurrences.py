"""When a schedule is due: cron expressions in a time zone, intervals, moments. By wall time, in milliseconds since 1970."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from raftd.jobs.asks import Plan

#: Beyond the year 9999 there are no dates.
_END_MS = 253_402_300_799_000
_FIELDS = 5


@cache
def _zones() -> frozenset[str]:
    """The same on every node; a machine may have others, which mean something else elsewhere, such as `localtime`."""
    return frozenset(files("tzdata").joinpath("zones").read_text().split())


def what_is_wrong_with_times(plan: Plan) -> str:
    """Why there can be no such schedule, "" if there can."""
    if [bool(plan.cron), plan.every_ms > 0, plan.at_ms > 0].count(True) != 1:
        return "cron, every_s, at: expected one of them"
    if not plan.cron:
        return "" if plan.at_ms < _END_MS else "at: expected a moment before the year 9999"
    if plan.zone not in _zones():
        return f"zone: there is no time zone {plan.zone!r}; expected a name of the IANA like Europe/Berlin or UTC"
    fields = "the fields are minute hour day month weekday"
    if len(plan.cron.split()) != _FIELDS:
        return f"cron: {plan.cron!r} has {len(plan.cron.split())} fields; {fields}"
    try:
        next(CronSim(plan.cron, datetime(2026, 1, 1, tzinfo=ZoneInfo(plan.zone))))
    except CronSimError as error:
        return f"cron: {str(error)[:1].lower()}{str(error)[1:]} in {plan.cron!r}; {fields}"
    except StopIteration:
        return f"cron: {plan.cron!r} is never due"
    return ""


def first(plan: Plan, now_ms: int) -> int:
    """Its first occurrence after `now_ms`, or at its moment, which may be over; 0 if there is none. Raises KeyError, ValueError or OSError
    if it cannot be found out here."""
    return plan.at_ms or _after(plan, now_ms, now_ms)


def following(plan: Plan, due_ms: int, now_ms: int) -> int:
    """The first occurrence after `now_ms`, counted from the one at `due_ms`; 0 if there is none. Raises as `first`."""
    return 0 if plan.at_ms else _after(plan, due_ms, now_ms)


def _after(plan: Plan, from_ms: int, now_ms: int) -> int:
    if plan.every_ms:
        return from_ms + max(1, (now_ms - from_ms) // plan.every_ms + 1) * plan.every_ms
    after = datetime.fromtimestamp(max(from_ms, now_ms) / 1000, UTC).astimezone(ZoneInfo(plan.zone))
    try:
        return int(next(CronSim(plan.cron, after)).timestamp() * 1000)
    except StopIteration:
        return 0
    except CronSimError as error:  # another cronsim took it
        raise ValueError(str(error)) from None

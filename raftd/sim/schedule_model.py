"""Schedules once more, as plainly as it can be said: the part of the model (`model.py`) that knows them.

A schedule is a dict: its version, what it puts and when, whether it is paused, the next occurrence and the last, its last job, and counts.
"""

from __future__ import annotations

from typing import Any

from raftd.sim import policy_model as policies

SET, PAUSE, RUN = 19, 20, 21
NOT_FOUND, PAUSED, INSERTED_MANY, TUBE_FULL, SCHEDULE_SET, SCHEDULE_REFUSED = 10, 14, 18, 31, 35, 36
_MOST_SCHEDULES = 1_000

Model = Any  # it knows this module


def ask(model: Model, what: list[Any]) -> list[Any]:
    tag, name, *rest = what
    known = model.schedules.get(name)
    if tag == SET:
        plan, version = rest
        has = known["version"] if known is not None else 0
        if version is not None and version != has:
            return [SCHEDULE_REFUSED, "conflict", has]
        if plan is not None and known is None and len(model.schedules) >= _MOST_SCHEDULES:
            return [SCHEDULE_REFUSED, "too-many", 0]
        model.last_schedule += 1
        model.schedules.pop(name, None)
        if plan is not None:
            new = {"version": model.last_schedule, "plan": plan, "paused": False, "next": 0, "last": 0, "job": 0, "put": 0, "skipped": 0}
            model.schedules[name] = new
        return [SCHEDULE_SET, model.last_schedule]
    if known is None:
        return [NOT_FOUND]
    if tag == PAUSE:
        (is_paused,) = rest
        if known["paused"] != is_paused:
            known |= {"paused": is_paused, "next": 0}
            _move_to_the_end(model, name)
        return [PAUSED]
    return [INSERTED_MANY, known["job"], 1, False] if _put(model, known) else [TUBE_FULL]


def _move_to_the_end(model: Model, name: str) -> None:
    model.schedules[name] = model.schedules.pop(name)


def tick(model: Model, name: str, version: int, due_ms: int, next_ms: int, puts: bool) -> None:
    known = model.schedules.get(name)
    if known is None or known["version"] != version or known["paused"] or known["next"] != due_ms or 0 < next_ms <= due_ms:
        return
    if due_ms:
        overlaps = known["plan"][7] and known["job"] in model.jobs
        known["last"] = due_ms
        known["put" if puts and not overlaps and _put(model, known) else "skipped"] += 1
    known["next"] = next_ms
    if next_ms:
        _move_to_the_end(model, name)
    else:
        del model.schedules[name]


def _put(model: Model, schedule: dict[str, Any]) -> bool:
    tube, (pri, delay_ms, ttr_ms, body), *_ = schedule["plan"]
    if model.space_is_scarce or not policies.make_room(model, tube, 1, len(body)):
        return False
    schedule["job"] = model.insert(tube, pri, delay_ms, ttr_ms, body)
    return True

"""A schedule as people write and read it, with times in seconds (docs/queues.md)."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from raftd.jobs.asks import NewJob, Plan
from raftd.limits import SCHEDULE_CHARACTERS
from raftd.wire.policy import TubeName, convert

_U32 = 0xFFFF_FFFF
_PRIORITY, _TTR_S = 65_536, 60.0

#: As that of a tube, without what would have to be escaped in a path.
ScheduleName = Annotated[
    str,
    Meta(pattern=r"^[A-Za-z0-9_.][A-Za-z0-9_.\-]*$(?!\n)", max_length=SCHEDULE_CHARACTERS, description="A-Z a-z 0-9 . _ - and no - first"),
]
Base64 = Annotated[
    bytes, Meta(extra_json_schema={"pattern": "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"}, description="Any bytes.")
]
_NAME_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")


class ScheduleDocument(Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is put, and when: at the times of `cron` in `zone`, or every so many seconds, or once at a moment. `catch_up`: what comes of
    occurrences that were missed by more than a minute; `overlap`: whether a job is put while the one before is still there."""

    tube: TubeName
    body: str | UnsetType = UNSET
    base64: Base64 | UnsetType = UNSET
    priority: Annotated[int, Meta(ge=0, le=_U32)] = _PRIORITY
    ttr_s: Annotated[float, Meta(ge=1, le=_U32)] = _TTR_S
    cron: Annotated[str, Meta(min_length=1, max_length=200, description="minute hour day month weekday")] | None = None
    zone: Annotated[str, Meta(min_length=1, max_length=100, description="For cron: Europe/Berlin and the like; else UTC.")] | None = None
    every_s: Annotated[float, Meta(ge=0.1, le=_U32)] | None = None
    at: Annotated[datetime, Meta(tz=True)] | None = None
    catch_up: Literal["none", "one"] = "none"
    overlap: Literal["allow", "skip"] = "allow"


def document_from(value: Any) -> ScheduleDocument:
    """From what JSON or YAML gives. Raises ValueError, which names the field."""
    return convert(value, ScheduleDocument)


def plan_of(document: ScheduleDocument) -> Plan:
    """As it stands in the log. Raises ValueError for what does not go together."""
    if [document.cron, document.every_s, document.at].count(None) != 2:
        raise ValueError("cron, every_s, at: expected one of them")
    if document.zone is not None and document.cron is None:
        raise ValueError("zone: it says nothing without cron")
    if isinstance(document.body, str) and isinstance(document.base64, bytes):
        raise ValueError("body, base64: expected one of them")
    body = document.base64 if isinstance(document.base64, bytes) else document.body.encode() if isinstance(document.body, str) else b""
    return Plan(
        document.tube,
        NewJob(document.priority, 0, round(document.ttr_s * 1000), body),
        cron=document.cron or "",
        zone=document.zone or "UTC",
        every_ms=round((document.every_s or 0) * 1000),
        at_ms=max(1, round(document.at.timestamp() * 1000)) if document.at is not None else 0,
        puts_missed=document.catch_up == "one",
        skips_overlap=document.overlap == "skip",
    )


def document_of(plan: Plan) -> ScheduleDocument:
    """The same for people."""
    pri, _, ttr_ms, body = msgspec.structs.astuple(plan.job)
    text: str | UnsetType = UNSET
    with suppress(UnicodeDecodeError):
        text = body.decode()
    return ScheduleDocument(
        tube=plan.tube,
        body=text,
        base64=body if text is UNSET else UNSET,
        priority=pri,
        ttr_s=ttr_ms / 1000,
        cron=plan.cron or None,
        zone=plan.zone if plan.cron else None,
        every_s=plan.every_ms / 1000 or None,
        at=datetime.fromtimestamp(plan.at_ms / 1000, UTC) if plan.at_ms else None,
        catch_up="one" if plan.puts_missed else "none",
        overlap="skip" if plan.skips_overlap else "allow",
    )


def is_schedule_name(name: str) -> bool:
    return 0 < len(name) <= SCHEDULE_CHARACTERS and name[0] != "-" and _NAME_CHARACTERS.issuperset(name)

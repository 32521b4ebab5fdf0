"""The policy of a tube as people write and read it, with times in seconds; and what one may say (docs/queues.md)."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar, get_args

import msgspec
from msgspec import Meta, Struct

from raftd.jobs.policy import THOUSANDTHS, OnExpire, Overflow, Policy
from raftd.jobs.policy import leads_in_circle as leads_in_circle
from raftd.wire.line import is_tube_name

_U32 = 0xFFFF_FFFF
_LONGEST_MS = _U32 * 1000
_MOST = (1 << 53) - 1
#: Delays in a list, and bounds of one that grows: it must, by at least a thousandth of a second each time.
_BACKOFFS = 100
_LEAST_INITIAL_MS = 10
_LEAST_FACTOR, _MOST_FACTOR = 1_100, 100_000
_MOST_RATE = 1_000_000 * THOUSANDTHS
_MOST_BURST = 1_000_000

TUBE_NAME = "1 to 200 of A-Z a-z 0-9 - + / ; . $ _ ( ), and no - first"
TubeName = Annotated[
    str,
    # (?!\n): Python's $ would let one stand at the end
    Meta(pattern=r"^[A-Za-z0-9+/;.$_()][A-Za-z0-9+/;.$_()\-]{0,199}$(?!\n)", description=TUBE_NAME),
]
_Seconds = Annotated[float, Meta(ge=0.001, le=_U32)]


class Backoff(Struct, forbid_unknown_fields=True):
    """A delay that grows with each failed attempt."""

    initial_s: Annotated[float, Meta(ge=_LEAST_INITIAL_MS / 1000, le=_U32, description="Seconds after the first.")]
    factor: Annotated[float, Meta(ge=_LEAST_FACTOR / THOUSANDTHS, le=_MOST_FACTOR / THOUSANDTHS)] = 2.0
    max_s: Annotated[float, Meta(ge=_LEAST_INITIAL_MS / 1000, le=_U32, description="It grows no further.")] = 3_600.0


class PolicyDocument(Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a tube does by itself. Whatever is not given has no such limit."""

    max_attempts: Annotated[int, Meta(ge=1, le=_U32, description="Then a job is dead.")] | None = None
    backoff: Backoff | Annotated[list[_Seconds], Meta(min_length=1, max_length=_BACKOFFS)] | None = None
    dead_letter: Annotated[TubeName, Meta(description="Where dead jobs go; without it they are buried where they are.")] | None = None
    ttl_s: Annotated[_Seconds, Meta(description="How long a job may be ready or delayed.")] | None = None
    on_expire: OnExpire = "discard"
    max_jobs: Annotated[int, Meta(ge=1, le=_MOST)] | None = None
    max_bytes: Annotated[int, Meta(ge=1, le=_MOST, description="Of the bodies of all its jobs.")] | None = None
    overflow: Overflow = "reject"
    rate: Annotated[float, Meta(ge=1 / THOUSANDTHS, le=_MOST_RATE / THOUSANDTHS, description="Jobs a second.")] | None = None
    burst: Annotated[int, Meta(ge=1, le=_MOST_BURST, description="Jobs at once, after a while without any.")] = 1
    concurrency: Annotated[int, Meta(ge=1, le=_U32, description="Jobs that may be reserved at a time.")] | None = None
    retain_s: Annotated[_Seconds, Meta(description="How long what came of a finished job can be read.")] | None = None
    default_ttr_s: Annotated[float, Meta(ge=1, le=_U32, description="The time to run of jobs that are put without one.")] | None = None
    default_priority: Annotated[int, Meta(ge=0, le=_U32, description="Of jobs that are put without one.")] | None = None


_AT = re.compile(r" - at `\$\.?([^`]*)`$")
_TYPES = {"float": "a number", "int": "a whole number", "str": "text", "bool": "true or false", "array": "a list", "object": "fields"}
_Document = TypeVar("_Document", bound=Struct)


def document_from(value: Any) -> PolicyDocument:
    """From what JSON or YAML gives. Raises ValueError, which names the field."""
    return convert(value, PolicyDocument)


def convert(value: Any, kind: type[_Document]) -> _Document:
    """As msgspec does. Raises ValueError, in words for people."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ValueError(_plain(str(error), kind)) from None


def _plain(text: str, kind: type[Struct]) -> str:
    found = _AT.search(text)
    where, text = (f"{found[1]}: ", text[: found.start()]) if found is not None and found[1] else ("", text)
    if "unknown field" in text and not where:
        text = f"{text}; the fields are {', '.join(item.encode_name for item in msgspec.structs.fields(kind))}"
    if "matching regex" in text:
        text = f"expected {TUBE_NAME}"
    for name, plain in _TYPES.items():
        text = re.sub(rf"`{name}( \| null)?`", plain, text)
    if "enum value" in text and found is not None:
        choices = [item.type for item in msgspec.structs.fields(kind) if item.encode_name == found[1]]
        text = f"{text}; expected {' or '.join(get_args(choices[0]))}" if choices else text
    return f"{where}{text[:1].lower()}{text[1:]}"


def policy_of(document: PolicyDocument) -> Policy:
    """As it stands in the log. Raises ValueError for what does not go together."""
    backoff = document.backoff
    policy = Policy(
        max_attempts=document.max_attempts or 0,
        backoff_ms=tuple(map(_ms, backoff)) if isinstance(backoff, list) else (_ms(backoff.initial_s),) if backoff is not None else (),
        backoff_factor=round(backoff.factor * THOUSANDTHS) if isinstance(backoff, Backoff) else 0,
        backoff_max_ms=_ms(backoff.max_s) if isinstance(backoff, Backoff) else 0,
        dead_letter=document.dead_letter or "",
        ttl_ms=_ms(document.ttl_s or 0),
        on_expire=document.on_expire,
        max_jobs=document.max_jobs or 0,
        max_bytes=document.max_bytes or 0,
        overflow=document.overflow,
        rate=round((document.rate or 0) * THOUSANDTHS),
        burst=document.burst,
        concurrency=document.concurrency or 0,
        retain_ms=_ms(document.retain_s or 0),
        default_ttr_ms=_ms(document.default_ttr_s or 0),
        default_pri=document.default_priority,
    )
    wrong = what_is_wrong_with(policy)
    if wrong:
        raise ValueError(wrong)
    return policy


def document_of(policy: Policy) -> PolicyDocument:
    """The same for people."""
    delays = [delay / 1000 for delay in policy.backoff_ms]
    grows = Backoff(delays[0], policy.backoff_factor / THOUSANDTHS, policy.backoff_max_ms / 1000) if policy.backoff_factor else None
    return PolicyDocument(
        max_attempts=policy.max_attempts or None,
        backoff=grows or delays or None,
        dead_letter=policy.dead_letter or None,
        ttl_s=policy.ttl_ms / 1000 or None,
        on_expire=policy.on_expire,
        max_jobs=policy.max_jobs or None,
        max_bytes=policy.max_bytes or None,
        overflow=policy.overflow,
        rate=policy.rate / THOUSANDTHS or None,
        burst=policy.burst,
        concurrency=policy.concurrency or None,
        retain_s=policy.retain_ms / 1000 or None,
        default_ttr_s=policy.default_ttr_ms / 1000 or None,
        default_priority=policy.default_pri,
    )


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def what_is_wrong_with(policy: Policy) -> str:
    """What no node accepts of it, "" if nothing."""
    limits = {
        "max_attempts": (policy.max_attempts, _U32),
        "ttl_s": (policy.ttl_ms, _LONGEST_MS),
        "max_jobs": (policy.max_jobs, _MOST),
        "max_bytes": (policy.max_bytes, _MOST),
        "rate": (policy.rate, _MOST_RATE),
        "concurrency": (policy.concurrency, _U32),
        "retain_s": (policy.retain_ms, _LONGEST_MS),
        "default_ttr_s": (policy.default_ttr_ms, _LONGEST_MS),
        "default_priority": (policy.default_pri or 0, _U32),
        "backoff.max_s": (policy.backoff_max_ms, _LONGEST_MS),
    }
    for name, (number, most) in limits.items():
        if not 0 <= number <= most:
            return f"{name}: it is out of range"
    if policy.dead_letter and not is_tube_name(policy.dead_letter):
        return f"dead_letter: expected {TUBE_NAME}"
    if not 1 <= policy.burst <= _MOST_BURST:
        return f"burst: expected 1 to {_MOST_BURST:,}"
    if policy.burst > 1 and not policy.rate:
        return "burst: it says nothing without a rate"
    if policy.on_expire != "discard" and not policy.ttl_ms:
        return "on_expire: it says nothing without ttl_s"
    if policy.overflow != "reject" and not (policy.max_jobs or policy.max_bytes):
        return "overflow: it says nothing without max_jobs or max_bytes"
    if not policy.dead_letter and (policy.on_expire == "dead_letter" or policy.overflow == "dead_letter_oldest"):
        return f"{'on_expire' if policy.on_expire == 'dead_letter' else 'overflow'}: it needs a dead_letter tube"
    return _what_is_wrong_with_backoff(policy)


def _what_is_wrong_with_backoff(policy: Policy) -> str:
    delays = policy.backoff_ms
    if len(delays) > _BACKOFFS or not all(1 <= delay <= _LONGEST_MS for delay in delays):
        return f"backoff: expected at most {_BACKOFFS} delays, each of 0.001 to {_U32:,} s"
    if not policy.backoff_factor:
        return "backoff.max_s: it says nothing without a factor" if policy.backoff_max_ms else ""
    if len(delays) != 1 or delays[0] < _LEAST_INITIAL_MS or not _LEAST_FACTOR <= policy.backoff_factor <= _MOST_FACTOR:
        return "backoff: expected one initial_s from 0.01 s on, and a factor of 1.1 to 100"
    if policy.backoff_max_ms < delays[0]:
        return "backoff.max_s: it is less than initial_s"
    return ""

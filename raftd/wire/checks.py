"""What may stand in an ask: names, ranges and counts. Whatever a node does not accept is told with what was expected."""

from __future__ import annotations

import re

from raftd.jobs import asks, rights
from raftd.jobs.policy import PolicyChange
from raftd.limits import (
    CHANGES_PER_ASK,
    CREDIT,
    DIGEST_BYTES,
    ERROR_CHARACTERS,
    JOBS_PER_ASK,
    JOBS_PER_PUT,
    JOBS_PER_RESERVE,
    KEY_CHARACTERS,
    KICKED_JOBS,
    PATTERN_CHARACTERS,
    POLICIES_PER_ASK,
    RESULT_BYTES,
    SALT_BYTES,
    SCHEDULE_CHARACTERS,
    SEARCH_CHARACTERS,
    UNIQUE_CHARACTERS,
    USER_CHARACTERS,
)
from raftd.wire.line import is_tube_name
from raftd.wire.policy import what_is_wrong_with
from raftd.wire.schedule import is_schedule_name

#: Tubes that one reserve or subscription may name.
TUBES_PER_ASK = 100
_U32 = 0xFFFF_FFFF
_LONGEST_MS = _U32 * 1000
_LONGEST_ID = (1 << 63) - 1
_FINGERPRINT_BYTES = 64
_LONGEST_CRON = 200
_LEAST_EVERY_MS = 100

_USER = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{USER_CHARACTERS - 1}}}")
BAD_USER = f"user: expected 1 to {USER_CHARACTERS} of A-Z a-z 0-9 . _ - and a letter or digit first"
BAD_PATTERN = "tubes: expected the name of a tube, or one with a single * for any characters"
BAD_TUBE = "tube: expected 1 to 200 of A-Z a-z 0-9 - + / ; . $ _ ( ) and no leading dash"


def what_is_wrong(what: asks.What) -> str:
    """What a node would not accept of it, "" if nothing."""
    match what:
        case asks.Put(tube=tube, jobs=jobs, key=key, fingerprint=fingerprint):
            if len(key) > KEY_CHARACTERS or len(fingerprint) > _FINGERPRINT_BYTES:
                return f"key: expected {KEY_CHARACTERS} characters at most, and {_FINGERPRINT_BYTES} bytes of fingerprint"
            wrong = _tube(tube) or _count("jobs", len(jobs), JOBS_PER_PUT) or next(filter(None, map(_job, jobs)), "")
            return wrong or (_unique(what.unique, len(jobs)) if what.unique is not None else "")
        case asks.Reserve(tubes=tubes, count=count, timeout_ms=timeout_ms):
            return _tubes(tubes) or _count("count", count, JOBS_PER_RESERVE) or _time("timeout_ms", timeout_ms or 0)
        case asks.Subscribe(tubes=tubes, credit=credit):
            return _tubes(tubes) or _range("credit", credit, CREDIT)
        case asks.Flow(subscription=id, received=received, credit=credit):
            return _id(id) or _range("received", received, _LONGEST_ID) or _range("credit", credit, CREDIT)
        case asks.Cancel(ask=id):
            return _id(id)
        case asks.Release(delay_ms=delay_ms, pri=pri):
            return _held(what.jobs) or _time("delay_ms", delay_ms) or _range("pri", pri or 0, _U32)
        case asks.Fail(delay_ms=delay_ms, error=error):
            return _held(what.jobs) or _time("delay_ms", delay_ms) or _error(error)
        case asks.Bury(pri=pri, error=error):
            return _held(what.jobs) or _range("pri", pri or 0, _U32) or _error(error)
        case asks.Delete(jobs=held, result=result):
            return _held(held) or (f"result: expected {RESULT_BYTES:,} bytes at most" if len(result) > RESULT_BYTES else "")
        case asks.Touch():
            return _held(what.jobs)
        case asks.KickJobs(jobs=ids):
            return _held([(id, 0) for id in ids])
        case asks.Kick(tube=tube, count=count):
            return _tube(tube) or _count("count", count, KICKED_JOBS)
        case asks.Pause(tube=tube, pause_ms=pause_ms):
            return _tube(tube) or _time("pause_ms", pause_ms)
        case asks.Replay(which=which, to=to, after=after):
            return what_is_wrong_with_selection(which) or (_tube(to) if to else "") or _range("after", after, _LONGEST_ID)
        case asks.SetSchedule(name=name, plan=plan, version=version):
            return _schedule(name) or _range("version", version or 0, _LONGEST_ID) or (_plan(plan) if plan is not None else "")
        case asks.PauseSchedule(name=name) | asks.RunSchedule(name=name):
            return _schedule(name)
        case asks.SetPolicies(changes=changes):
            return _changes(changes)
        case asks.Declare(tube=tube) | asks.Undeclare(tube=tube):
            return _tube(tube)
    return ""


def _schedule(name: str) -> str:
    return "" if is_schedule_name(name) else f"name: expected 1 to {SCHEDULE_CHARACTERS} of A-Z a-z 0-9 . _ - and no leading dash"


def _plan(plan: asks.Plan) -> str:
    if len(plan.cron) > _LONGEST_CRON or len(plan.zone) > _LONGEST_CRON:
        return f"cron, zone: expected {_LONGEST_CRON} characters at most"
    if plan.every_ms and not _LEAST_EVERY_MS <= plan.every_ms <= _LONGEST_MS:
        return "every_ms: expected 100 or more"
    return _tube(plan.tube) or _job(plan.job) or _range("at_ms", plan.at_ms, _LONGEST_ID)


def what_is_wrong_with_selection(which: asks.Selection) -> str:
    """As `what_is_wrong`."""
    wrong = _tube(which.tube) or (_tube(which.origin) if which.origin else "")
    if len(which.error) > SEARCH_CHARACTERS:
        wrong = wrong or f"error: expected {SEARCH_CHARACTERS} characters at most"
    numbers = {"from_ms": which.from_ms, "before_ms": which.before_ms, "up_to": which.up_to}
    return wrong or next(filter(None, (_range(name, number, _LONGEST_ID) for name, number in numbers.items())), "")


def _job(job: asks.NewJob) -> str:
    return _range("pri", job.pri, _U32) or _time("delay_ms", job.delay_ms) or _time("ttr_ms", job.ttr_ms)


def _changes(changes: list[PolicyChange]) -> str:
    wrong = _count("changes", len(changes), POLICIES_PER_ASK)
    if not wrong and len({change.tube for change in changes}) < len(changes):
        wrong = "changes: expected each tube once"
    for change in changes:
        wrong = wrong or _tube(change.tube) or (what_is_wrong_with(change.policy) if change.policy is not None else "")
        wrong = wrong or _range("version", change.version or 0, _LONGEST_ID)
    return wrong


def what_is_wrong_with_access(changes: list[rights.Change]) -> str:
    """As `what_is_wrong`."""
    return _count("changes", len(changes), CHANGES_PER_ASK) or next(filter(None, map(_change, changes)), "")


def _change(change: rights.Change) -> str:
    wrong = "" if is_user_name(change.user) else BAD_USER
    match change:
        case rights.AddGrant(grant=grant) | rights.RemoveGrant(grant=grant):
            if grant.right is rights.Right.OPERATE and grant.tubes != rights.ALL_TUBES:
                wrong = wrong or "operate: it is a right to the cluster, not to tubes"
            wrong = wrong or ("" if is_pattern(grant.tubes) else BAD_PATTERN)
        case rights.AddToken(token=token, digest=digest, lifetime_ms=lifetime_ms):
            wrong = wrong or ("" if is_user_name(token) else f"token: expected a name like that of a {BAD_USER}")
            wrong = wrong or ("" if len(digest) == DIGEST_BYTES else f"digest: expected {DIGEST_BYTES} bytes")
            wrong = wrong or _range("lifetime_ms", lifetime_ms, _LONGEST_ID >> 1)
        case rights.RemoveToken(token=token):
            wrong = wrong or ("" if is_user_name(token) else f"token: expected a name like that of a {BAD_USER}")
        case rights.SetPassword(password=password) if password is not None:
            is_whole = len(password.salt) == SALT_BYTES and len(password.digest) == DIGEST_BYTES
            wrong = wrong or ("" if is_whole else f"password: expected {SALT_BYTES} bytes of salt and {DIGEST_BYTES} of digest")
        case rights.SetQuota(quota=quota):
            wrong = wrong or _range("jobs_per_s", quota.jobs_per_s, _U32) or _range("bytes_per_s", quota.bytes_per_s, _LONGEST_MS)
            wrong = wrong or _range("connections", quota.connections, _U32) or _range("tubes", quota.tubes, _U32)
    return wrong


def is_user_name(name: str) -> bool:
    """Whether a user, or a token of one, may be called so."""
    return name.isascii() and _USER.fullmatch(name) is not None


def is_pattern(pattern: str) -> bool:
    """Whether tubes may be named so: a name in which one `*` may stand for any characters."""
    return 0 < len(pattern) <= PATTERN_CHARACTERS and is_tube_name(pattern.replace("*", "x", 1))


def _unique(unique: asks.Unique, jobs: int) -> str:
    if jobs != 1:
        return "unique: expected one job"
    if not 1 <= len(unique.key) <= UNIQUE_CHARACTERS:
        return f"unique: expected 1 to {UNIQUE_CHARACTERS} characters"
    return _time("for_ms", unique.for_ms)


def _error(text: str) -> str:
    return f"error: expected {ERROR_CHARACTERS} characters at most" if len(text) > ERROR_CHARACTERS else ""


def _held(jobs: list[asks.Held]) -> str:
    wrong = not all(0 <= id <= _LONGEST_ID and 0 <= token <= _LONGEST_ID for id, token in jobs)
    return _count("jobs", len(jobs), JOBS_PER_ASK) or ("jobs: expected ids and tokens from 0 on, below 2 ** 63" if wrong else "")


def _tubes(tubes: list[str]) -> str:
    return _count("tubes", len(tubes), TUBES_PER_ASK) or next(filter(None, map(_tube, tubes)), "")


def _tube(tube: str) -> str:
    return "" if is_tube_name(tube) else BAD_TUBE


def _id(id: int) -> str:
    return _range("id", id, _LONGEST_ID)


def _count(name: str, count: int, most: int) -> str:
    return "" if 1 <= count <= most else f"{name}: expected 1 to {most}"


def _time(name: str, time_ms: int) -> str:
    return _range(name, time_ms, _LONGEST_MS)


def _range(name: str, number: int, most: int) -> str:
    return "" if 0 <= number <= most else f"{name}: expected 0 to {most}"

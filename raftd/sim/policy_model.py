"""The policies of tubes once more, as plainly as it can be said: the part of the model (`model.py`) that knows them.

A policy is a dict of the fields that stand in the log, with its version, and what its rate has let through. What is kept of a job because
of a policy is in the job: `forgiven`, `expires`, `over`, `death`, `died`, `attempts`, `origin`.
"""

from __future__ import annotations

from typing import Any
from zlib import crc32

# Tags of replies, as docs/protocol.md numbers them.
TUBE_FULL, POLICIES_SET, POLICY_REFUSED, REPLAYED = 31, 32, 33, 34

_FIELDS = ("max_attempts", "backoff", "factor", "longest", "dead_letter", "ttl", "on_expire", "max_jobs", "max_bytes", "overflow")
_MORE_FIELDS = ("rate", "burst", "concurrency", "retain", "default_ttr", "default_pri")
_MOST_POLICIES = 10_000
_MOST_TUBES = 8
_MOST_LOOKED = 4_000
_MOST_REPLAYED = 200
_NOTHING_KEPT = {"forgiven": 0, "expires": 0, "over": False, "death": "", "died": 0, "attempts": 0, "origin": ""}
_NOTHING_KEPT |= {"unique": "", "unique_until": 0, "until_reserved": False}

Model = Any  # it knows this module
Job = dict[str, Any]


def new_job() -> Job:
    return dict(_NOTHING_KEPT)


def kept(job: Job) -> list[Any]:
    return [job[name] for name in _NOTHING_KEPT]


# -- setting them -------------------------------------------------------------------------------


def set_all(model: Model, changes: list[Any]) -> list[Any]:
    for tube, _, version in changes:
        has = model.policies[tube]["version"] if tube in model.policies else 0
        if version is not None and version != has:
            return [POLICY_REFUSED, "conflict", tube, has]
    targets = {tube: policy["dead_letter"] for tube, policy in model.policies.items()}
    targets |= {tube: "" if policy is None else policy[4] for tube, policy, _ in changes}
    for tube, _, _ in changes:
        way = [tube]
        while targets.get(way[-1]):
            way.append(targets[way[-1]])
            if way[-1] == tube or len(way) > _MOST_TUBES + 1:
                return [POLICY_REFUSED, "circle", tube, 0]
    new = [tube for tube, policy, _ in changes if policy is not None and tube not in model.policies]
    if new and len(model.policies) + len(new) > _MOST_POLICIES:
        return [POLICY_REFUSED, "too-many", changes[0][0], 0]
    model.last_version += 1
    for tube, policy, _ in changes:
        if policy is not None:
            fields = dict(zip(_FIELDS + _MORE_FIELDS, policy, strict=True))
            before = model.policies.get(tube, {})
            is_same = all(before.get(name) == fields[name] for name in ("rate", "burst"))
            kept = {name: before[name] for name in ("next", "limited")} if is_same else {"next": 0, "limited": None}
            fields |= {"version": model.last_version, **kept}
            model.policies[tube] = fields
        elif model.policies.pop(tube, None) is None:
            continue
        model.match(tube)
        model.forget_tubes()
    return [POLICIES_SET, model.last_version]


# -- rate and concurrency -----------------------------------------------------------------------


def holds_back(model: Model, tube: str) -> bool:
    policy = model.policies.get(tube)
    if policy is None:
        return False
    is_enough = policy["concurrency"] and len(model.in_state("reserved", tube)) >= policy["concurrency"]
    return bool(policy["limited"] is not None or is_enough)


def granted(model: Model, tube: str) -> None:
    policy = model.policies.get(tube)
    if policy is None or not policy["rate"]:
        return
    token_us = 10**9 // policy["rate"]
    policy["next"] = max(policy["next"], model.now_ms * 1000) + token_us
    until = (policy["next"] - (policy["burst"] - 1) * token_us) // 1000
    if until > model.now_ms:
        policy["limited"] = until


# -- what may be in a tube ----------------------------------------------------------------------


def make_room(model: Model, tube: str, jobs: int, size: int) -> bool:
    policy = model.policies.get(tube)
    if policy is None or _fits(model, tube, [], jobs, size):
        return True
    if policy["overflow"] == "reject":
        return False
    ready = sorted(model.in_state("ready", tube), key=lambda job: (-job["pri"], job["id"]))
    there = sum(job["tube"] == tube for job in model.jobs.values())
    if policy["max_jobs"] and there + jobs - policy["max_jobs"] > len(ready):
        return False
    cost = model.cost["died"]
    most = jobs + max(0, model.left) // cost
    going: list[Job] = []
    while not _fits(model, tube, going, jobs, size) and len(going) < min(most, len(ready)):
        going.append(ready[len(going)])
    if not _fits(model, tube, going, jobs, size):
        model.spend(max(0, len(going) - jobs) * cost)
        return False
    model.steps += min(len(going), jobs) * cost
    model.spend(max(0, len(going) - jobs) * cost)
    if policy["overflow"] == "dead_letter_oldest" and not _dead_letter_has_room(model, tube, going):
        return False
    for job in going:
        job["state"] = "in no queue"
        if policy["overflow"] == "dead_letter_oldest":
            _die(model, job, "overflow")
        else:
            model.ended["dropped"] += 1
            model.remove(job)
    return True


def _fits(model: Model, tube: str, without: list[Job], jobs: int, size: int) -> bool:
    policy = model.policies[tube]
    there = [job for job in model.jobs.values() if job["tube"] == tube and job not in without]
    has_place = not policy["max_jobs"] or len(there) + jobs <= policy["max_jobs"]
    return has_place and (not policy["max_bytes"] or sum(len(job["body"]) for job in there) + size <= policy["max_bytes"])


def _dead_letter_has_room(model: Model, tube: str, jobs: list[Job]) -> bool:
    target = model.policies[tube]["dead_letter"]
    if target not in model.policies:
        return True
    size = sum(len(job["body"]) for job in jobs)
    if model.policies[target]["overflow"] == "drop_oldest":
        return make_room(model, target, len(jobs), size)
    return _fits(model, target, [], len(jobs), size)


def entered(model: Model, job: Job) -> None:
    policy = model.policies.get(job["tube"])
    if policy is not None and policy["ttl"]:
        job["expires"] = model.now_ms + policy["ttl"]


def kicked(model: Model, job: Job) -> None:
    if job["tube"] not in model.policies and not job["death"]:
        return
    job |= {"expires": 0, "over": False, "forgiven": job["reserves"] - job["releases"] - job["buries"]}
    if job["origin"] == job["tube"]:
        job |= {"death": "", "origin": "", "died": 0, "attempts": 0}
    entered(model, job)


# -- the only ones of their kind ----------------------------------------------------------------


def only_one(model: Model, tube: str, key: str) -> Job | None:
    jobs: list[Job] = list(model.jobs.values())
    for job in jobs:
        if job["tube"] == tube and job["unique"] == key:
            if job["unique_until"] and job["unique_until"] <= model.now_ms:
                _free(job)
                return None
            return job
    return None


def make_only(model: Model, job: Job, key: str, until_reserved: bool, for_ms: int) -> None:
    job |= {"unique": key, "until_reserved": until_reserved, "unique_until": model.now_ms + for_ms if for_ms else 0}


def reserved(job: Job) -> None:
    if job["until_reserved"]:
        _free(job)


def _free(job: Job) -> None:
    job |= {"unique": "", "unique_until": 0, "until_reserved": False}


# -- failures and ends --------------------------------------------------------------------------


def attempts(job: Job) -> int:
    failures = job["reserves"] - job["releases"] - job["buries"] - (job["state"] == "reserved")
    return int(failures - job["forgiven"])


def delay(policy: dict[str, Any], job: int, attempts: int) -> int:
    delays = policy["backoff"]
    if not delays:
        return 0
    if policy["factor"]:
        wait = delays[0]
        for _ in range(attempts - 1):
            wait = min(wait * policy["factor"] // 1000, policy["longest"])
        wait = min(wait, policy["longest"])
    else:
        wait = delays[min(attempts, len(delays)) - 1]
    return int(wait + wait * (crc32(f"{job} {attempts}".encode()) % 201 - 100) // 1000)


def failed(model: Model, job: Job, delay_ms: int) -> None:
    job["state"] = "in no queue"
    policy = model.policies.get(job["tube"])
    if policy is None:
        model.enqueue(job, delay_ms)
    elif policy["max_attempts"] and attempts(job) >= policy["max_attempts"]:
        model.spend(model.cost["died"])
        _die(model, job, "attempts")
    else:
        job["delay"] = delay_ms or delay(policy, job["id"], attempts(job))
        back(model, job, job["delay"])


def back(model: Model, job: Job, delay_ms: int) -> None:
    job["state"] = "in no queue"
    if job["over"] and model.policies.get(job["tube"], {"ttl": 0})["ttl"]:
        _expire(model, job)
    else:
        model.enqueue(job, delay_ms)


def time_is_over(model: Model, job: Job) -> None:
    if not model.policies.get(job["tube"], {"ttl": 0})["ttl"]:
        job["expires"] = 0
        return
    job["over"] = True
    if job["state"] in ("ready", "delayed"):
        job["state"] = "in no queue"
        _expire(model, job)


def _expire(model: Model, job: Job) -> None:
    model.ended["expired"] += 1
    model.spend(model.cost["died"])
    if model.policies[job["tube"]]["on_expire"] == "dead_letter":
        _die(model, job, "expired")
    else:
        model.remove(job)
        model.match(job["tube"])


def _die(model: Model, job: Job, why: str) -> None:
    tube = job["tube"]
    model.ended["died"] += 1
    job |= {"expires": 0, "over": False}
    job |= {"death": why, "died": model.now_ms, "attempts": attempts(job), "origin": tube}
    _free(job)
    target = model.policies[tube]["dead_letter"]
    if not target or not _dead_letter_has_room(model, tube, [job]):
        model.bury(job)
        return
    _move(model, job, target)
    model.enqueue(job, 0)
    model.match(tube)


def _move(model: Model, job: Job, target: str) -> None:
    _free(job)
    job |= {"tube": target, "forgiven": job["reserves"] - job["releases"] - job["buries"], "expires": 0, "over": False}
    model.puts[target] = model.puts.get(target, 0) + 1
    entered(model, job)


def done(model: Model, job: Job, result: bytes) -> None:
    """A worker has finished a job that is still there."""
    retain = model.policies[job["tube"]]["retain"] if job["tube"] in model.policies else 0
    if retain:
        failed = job["reserves"] - job["releases"] - job["buries"] - 1 - job["forgiven"]
        model.finished[job["id"]] = (job["tube"], failed, model.now_ms, model.now_ms + retain, result)


# -- dead and buried jobs in bulk ---------------------------------------------------------------


def _is_selected(model: Model, which: list[Any], job: Job) -> bool:
    tube, error, origin, from_ms, before_ms, _ = which
    if job["tube"] != tube or job["state"] == "reserved":
        return False
    if job["state"] != "buried" and (not job["death"] or job["origin"] == tube):
        return False
    since = job["died"] if job["death"] else job["created"]
    if job["state"] == "buried":
        since = max(since, job["buried since"])
    is_in_time = from_ms <= since and (not before_ms or since <= before_ms)
    return bool(is_in_time and origin in ("", job["origin"]) and error in model.errors.get(job["id"], ""))


def replay(model: Model, key: tuple[int, int], which: list[Any], action: str, to: str, after: int) -> list[Any]:
    up_to = which[5]
    ids = [id for id in sorted(model.jobs) if id > after][:_MOST_LOOKED]
    is_last, last, looked, done, skipped = len(ids) < _MOST_LOOKED, after, 0, 0, 0
    for id in ids:
        if done + skipped == _MOST_REPLAYED:
            is_last = False
            break
        if up_to and id > up_to:
            is_last = True
            break
        last, looked = id, looked + 1
        job = model.jobs.get(id)
        if job is None or not _is_selected(model, which, job):
            continue
        if _do(model, key, action, to or job["origin"], job):
            done += 1
        else:
            skipped += 1
    model.steps += looked * model.cost["tube"] + (done + skipped) * (model.cost["kicked"] + model.cost["died"])
    return [REPLAYED, done, skipped, last, is_last]


def _do(model: Model, key: tuple[int, int], action: str, target: str, job: Job) -> bool:
    if action == "delete":
        model.verb(7, key, job["id"], 0)
    elif action == "kick" or target == job["tube"]:
        if job["state"] == "ready":
            return False
        model.verb(12, key, job["id"])
    else:
        tube = job["tube"]
        if not target or not make_room(model, target, 1, len(job["body"])):
            return False
        if job["id"] not in model.jobs or job["tube"] != tube:
            return False
        job["state"] = "in no queue"
        _move(model, job, target)
        job |= {"death": "", "origin": "", "died": 0, "attempts": 0}
        model.enqueue(job, 0)
    return True

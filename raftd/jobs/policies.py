"""The policies of tubes: a part of the state machine, in a module of its own (docs/queues.md).

A policy is looked at when something happens to a job: what it says then counts. Only how long a job may live is fixed when it comes
into the tube. What is kept of a job besides `Job` is in its mark; a job of a tube without a policy has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import takewhile
from operator import gt
from typing import Protocol

import msgspec

from raftd.jobs import replies as r
from raftd.jobs.asks import Unique
from raftd.jobs.budget import Costs
from raftd.jobs.finished import FinishedJob, FinishedJobs
from raftd.jobs.model import Job, JobEventKind, JobListener, Mark, State, Tube
from raftd.jobs.policy import Death, PolicyChange, leads_in_circle
from raftd.jobs.timers import Kind, Timers
from raftd.limits import POLICIES

_US_PER_MS = 1_000
#: A rate is in thousandths of jobs a second.
_US_PER_THOUSAND_S = 1_000_000_000


class StateMachine(Protocol):
    """What of it this part needs: see there."""

    now_ms: int
    steps: int
    limit: int
    costs: Costs
    tubes: dict[str, Tube]
    timers: Timers
    policies: Policies
    on_job_event: JobListener

    @property
    def jobs(self) -> Mapping[int, Job]: ...

    def charge_to_batch(self, steps: int) -> None: ...

    def tube(self, name: str) -> Tube: ...

    def drop_if_unused(self, tube: Tube) -> None: ...

    def match(self, tube: Tube) -> None: ...

    def take_out(self, job: Job) -> None: ...

    def remove(self, job: Job) -> None: ...

    def queue(self, job: Job, delay_ms: int, what: JobEventKind, who: tuple[int, int] | None) -> None: ...

    def make_ready(self, job: Job, what: JobEventKind, who: tuple[int, int] | None) -> None: ...

    def make_buried(self, job: Job, what: JobEventKind, who: tuple[int, int] | None) -> None: ...


class Policies:
    """All of them."""

    def __init__(self) -> None:
        #: Tubes with a policy, in the order in which they got their first.
        self.tubes: dict[str, Tube] = {}
        self.last_version = 0
        self.marks: dict[int, Mark] = {}
        #: The only jobs of their kind, by tube and key.
        self.unique: dict[tuple[str, str], Job] = {}
        self.finished = FinishedJobs()
        #: Jobs so far.
        self.died = self.expired = self.dropped = 0
        #: Jobs that are dead now, in all tubes.
        self.dead = 0


# -- setting them -------------------------------------------------------------------------------


def set_all(machine: StateMachine, changes: list[PolicyChange]) -> r.PoliciesSet | r.PolicyRefused:
    """All of the changes or none. Each is of another tube."""
    policies = machine.policies
    known, new = policies.tubes, {change.tube: change.policy for change in changes}
    for change in changes:
        version = known[change.tube].version if change.tube in known else 0
        if change.version not in (None, version):
            return r.PolicyRefused("conflict", change.tube, version)
    for name in new:
        if leads_in_circle(name, lambda name: new[name] if name in new else known[name].policy if name in known else None):
            return r.PolicyRefused("circle", name, 0)
    more = sum(policy is not None and name not in known for name, policy in new.items())
    if more and len(known) + more > POLICIES:
        return r.PolicyRefused("too-many", changes[0].tube, 0)
    policies.last_version += 1
    for name, policy in new.items():
        if policy is not None:
            tube = known[name] = machine.tube(name)
            tube.version = policies.last_version
        elif name in known:
            tube = known.pop(name)
            tube.version = 0
        else:
            continue
        before, tube.policy = tube.policy, policy
        if before is None or policy is None or (before.rate, before.burst) != (policy.rate, policy.burst):
            tube.next_us = 0  # the bucket is full; setting the same rate again must not fill it
            _lift_limit(machine, tube)
        machine.match(tube)
        machine.drop_if_unused(tube)
    return r.PoliciesSet(policies.last_version)


# -- rate and concurrency -----------------------------------------------------------------------


def holds_back(tube: Tube) -> bool:
    """Whether no job of a tube with a policy may be reserved now."""
    policy = tube.policy
    return tube.limited_until_ms != 0 or (policy is not None and 0 < policy.concurrency <= tube.reserved)


def granted(machine: StateMachine, tube: Tube) -> None:
    """A job of a tube with a policy was reserved. Each takes a token of a bucket of `burst`, that fills at `rate`; when it is empty, the
    tube is held back until there is one again."""
    policy = tube.policy
    if policy is None or not policy.rate:
        return
    token_us = _US_PER_THOUSAND_S // policy.rate
    tube.next_us = max(tube.next_us, machine.now_ms * _US_PER_MS) + token_us
    until_ms = (tube.next_us - (policy.burst - 1) * token_us) // _US_PER_MS
    if until_ms > machine.now_ms:
        if tube.limited_until_ms:  # an operator reserves by id, whatever the rate
            machine.timers.remove((tube.limited_until_ms, Kind.RATE, tube.name))
        tube.limited_until_ms = until_ms
        machine.timers.add((until_ms, Kind.RATE, tube.name))


def limit_is_over(machine: StateMachine, tube: Tube) -> None:
    """There is a token again."""
    _lift_limit(machine, tube)
    machine.match(tube)


def _lift_limit(machine: StateMachine, tube: Tube) -> None:
    if tube.limited_until_ms:
        machine.timers.remove((tube.limited_until_ms, Kind.RATE, tube.name))
        tube.limited_until_ms = 0


# -- what may be in a tube ----------------------------------------------------------------------


def make_room(machine: StateMachine, tube: Tube, jobs: int, size: int) -> bool:
    """For `jobs` more of `size` bytes together: whether there is room now. If the policy says so, the oldest of the least urgent ready jobs
    go: as many as are put, and more as far as the budget goes; none if that is not enough."""
    policy = tube.policy
    if policy is None:
        return True
    over = tube.jobs + jobs - policy.max_jobs if policy.max_jobs else 0
    over_bytes = tube.bytes + size - policy.max_bytes if policy.max_bytes else 0
    if over <= 0 and over_bytes <= 0:
        return True
    if policy.overflow == "reject":
        return False
    if over > len(tube.ready):
        return False  # at once: whoever asks often must not have all of them looked at
    going: list[Job] = []
    cost = machine.costs.died
    most = jobs + max(0, machine.limit - machine.steps) // cost
    for job in _oldest(machine, tube):
        if (over <= 0 and over_bytes <= 0) or len(going) == most:
            break
        going.append(job)
        over -= 1
        over_bytes -= len(job.body)
    if over > 0 or over_bytes > 0:
        machine.steps += max(0, len(going) - jobs) * cost
        return False
    machine.charge_to_batch(min(len(going), jobs) * cost)
    machine.steps += max(0, len(going) - jobs) * cost
    moves = policy.overflow == "dead_letter_oldest"
    if moves and not _dead_letter_has_room(machine, tube, going):
        return False
    for job in going:
        machine.take_out(job)
        if moves:
            die(machine, job, "overflow")
        else:
            machine.policies.dropped += 1
            machine.remove(job)
            _tell(machine, job, JobEventKind.DROPPED, None)
    return True


def _oldest(machine: StateMachine, tube: Tube) -> Iterator[Job]:
    """Ready jobs: those of the highest priority number first, of these the oldest first."""
    last = tube.ready.greatest()
    while last is not None:
        first = (last[0], 0)
        for _, id in takewhile(partial(gt, (last[0] + 1, 0)), tube.ready.from_item(first)):
            yield machine.jobs[id]
        last = tube.ready.before(first)


def _dead_letter_has_room(machine: StateMachine, tube: Tube, jobs: list[Job]) -> bool:
    """Whether dead jobs of `tube` may move. Full dead letter tubes drop their oldest if their policy says so, and move none on."""
    assert tube.policy is not None
    target = machine.tubes.get(tube.policy.dead_letter)
    if target is None or target.policy is None:
        return True
    policy, size = target.policy, sum(len(job.body) for job in jobs)
    if policy.overflow == "drop_oldest":
        return make_room(machine, target, len(jobs), size)
    fits = not policy.max_jobs or target.jobs + len(jobs) <= policy.max_jobs
    return fits and (not policy.max_bytes or target.bytes + size <= policy.max_bytes)


def entered(machine: StateMachine, job: Job) -> None:
    """`job` comes into a tube with a policy, from outside or by a kick: its life begins."""
    policy = job.tube.policy
    if policy is not None and policy.ttl_ms:
        mark = _mark(machine, job)
        mark.expires_ms = machine.now_ms + policy.ttl_ms
        machine.timers.add((mark.expires_ms, Kind.EXPIRE, job.id))


def kicked(machine: StateMachine, job: Job) -> None:
    """`job`, in no queue, is kicked: what has failed so far does not count any more, in a tube with a policy or if it was dead."""
    mark = machine.policies.marks.get(job.id)
    if job.tube.policy is None and (mark is None or not mark.death):
        return
    _forget_expiry(machine, job)
    failures = job.reserves - job.releases - job.buries
    if failures or mark is not None:
        mark = _mark(machine, job)
        mark.forgiven = failures
        if mark.origin == job.tube.name:  # it was buried where it died
            revived(machine, job)
    entered(machine, job)


# -- the only ones of their kind ----------------------------------------------------------------


def only_one(machine: StateMachine, tube: str, key: str) -> Job | None:
    """The job of this kind that there is in the tube."""
    job = machine.policies.unique.get((tube, key))
    if job is None:
        return None
    until_ms = machine.policies.marks[job.id].unique_until_ms
    if until_ms and until_ms <= machine.now_ms:
        _free(machine, job)
        return None
    return job


def make_only(machine: StateMachine, job: Job, unique: Unique) -> None:
    """`job` is the only one of its kind from now on."""
    mark = _mark(machine, job)
    mark.unique, mark.until_reserved = unique.key, unique.until_reserved
    mark.unique_until_ms = machine.now_ms + unique.for_ms if unique.for_ms else 0
    machine.policies.unique[job.tube.name, unique.key] = job


def reserved(machine: StateMachine, job: Job) -> None:
    """`job` was reserved."""
    mark = machine.policies.marks.get(job.id)
    if mark is not None and mark.until_reserved:
        _free(machine, job)


def _free(machine: StateMachine, job: Job) -> None:
    """There may be another of its kind."""
    mark = machine.policies.marks.get(job.id)
    if mark is not None and mark.unique:
        del machine.policies.unique[job.tube.name, mark.unique]
        mark.unique, mark.unique_until_ms, mark.until_reserved = "", 0, False


# -- failures and ends --------------------------------------------------------------------------


def failed(machine: StateMachine, job: Job, delay_ms: int, what: JobEventKind, who: tuple[int, int] | None) -> None:
    """An attempt at `job`, which is in no queue, has failed. `delay_ms`: as its worker wants it; 0: as the policy says. `what` and `who`
    are for the job event."""
    policy = job.tube.policy
    assert policy is not None
    attempts = _attempts(machine, job)
    if policy.max_attempts and attempts >= policy.max_attempts:
        _tell(machine, job, what, who)
        machine.steps += machine.costs.died
        die(machine, job, "attempts")
        return
    job.delay_ms = delay_ms = delay_ms or policy.delay_ms(job.id, attempts)
    back(machine, job, delay_ms, what, who)


def back(machine: StateMachine, job: Job, delay_ms: int, what: JobEventKind, who: tuple[int, int] | None) -> None:
    """`job`, in no queue, goes back into one, unless its time was over while it was reserved."""
    mark, policy = machine.policies.marks.get(job.id), job.tube.policy
    if mark is not None and mark.is_over and policy is not None and policy.ttl_ms:
        _tell(machine, job, what, who)
        _expire(machine, job)
    else:
        machine.queue(job, delay_ms, what, who)


def _tell(machine: StateMachine, job: Job, what: JobEventKind, who: tuple[int, int] | None) -> None:
    """How a reservation of `job` ended, which is not what becomes of it; or that the job is gone."""
    job.state = State.READY
    machine.on_job_event(what, job, who)


def time_is_over(machine: StateMachine, job: Job) -> None:
    """The time of `job` to live. A reserved job is not taken from its worker, and one that is buried stays."""
    mark, policy = machine.policies.marks[job.id], job.tube.policy
    machine.timers.remove((mark.expires_ms, Kind.EXPIRE, job.id))
    if policy is None or not policy.ttl_ms:  # by now jobs of this tube live for ever
        mark.expires_ms = 0
        return
    mark.is_over = True
    if job.state in (State.READY, State.DELAYED):
        machine.take_out(job)
        _expire(machine, job)


def _expire(machine: StateMachine, job: Job) -> None:
    tube = job.tube
    assert tube.policy is not None
    machine.policies.expired += 1
    machine.steps += machine.costs.died
    if tube.policy.on_expire == "dead_letter":
        die(machine, job, "expired")
        return
    machine.remove(job)
    _tell(machine, job, JobEventKind.EXPIRED, None)
    machine.match(tube)  # it may have been one of as many as may be reserved


def die(machine: StateMachine, job: Job, why: Death) -> None:
    """`job`, in no queue, moves to the dead letter tube, or is buried where it is if there is none or that is full."""
    tube, policies = job.tube, machine.policies
    assert tube.policy is not None
    policies.died += 1
    _forget_expiry(machine, job)
    mark = _mark(machine, job)
    _free(machine, job)
    if not mark.death:  # in the tube for dead letters, which has a policy too, it may die once more
        count_dead(machine, tube, 1)
    mark.death, mark.died_ms, mark.attempts, mark.origin = why, machine.now_ms, _attempts(machine, job), tube.name
    if not tube.policy.dead_letter or not _dead_letter_has_room(machine, tube, [job]):
        machine.make_buried(job, JobEventKind.DEAD, None)
        return
    moved(machine, job, machine.tube(tube.policy.dead_letter))
    machine.make_ready(job, JobEventKind.DEAD, None)
    machine.match(tube)  # it may have been one of as many as may be reserved


def moved(machine: StateMachine, job: Job, target: Tube) -> None:
    """`job`, in no queue, is one of `target` now, where it has all its attempts and its time."""
    mark = _mark(machine, job)
    mark.forgiven = job.reserves - job.releases - job.buries
    _forget_expiry(machine, job)
    _free(machine, job)
    is_dead = mark.death != ""
    _count(job.tube, job, -1, is_dead)
    job.tube = target
    _count(target, job, 1, is_dead)
    target.total_jobs += 1
    entered(machine, job)


def revived(machine: StateMachine, job: Job) -> None:
    """`job` was dead, and is not any more."""
    mark = machine.policies.marks[job.id]
    count_dead(machine, job.tube, -(mark.death != ""))
    mark.death = mark.origin = ""
    mark.died_ms = mark.attempts = 0


def count_dead(machine: StateMachine, tube: Tube, one: int) -> None:
    """So many more jobs of the tube are dead."""
    tube.dead += one
    machine.policies.dead += one


def _count(tube: Tube, job: Job, one: int, is_dead: bool) -> None:
    tube.jobs += one
    tube.dead += one * is_dead
    tube.bytes += one * len(job.body)


def gone(machine: StateMachine, job: Job) -> None:
    """There is no such job any more."""
    _forget_expiry(machine, job)
    _free(machine, job)
    count_dead(machine, job.tube, -(machine.policies.marks.pop(job.id).death != ""))


def _forget_expiry(machine: StateMachine, job: Job) -> None:
    mark = machine.policies.marks.get(job.id)
    if mark is not None and mark.expires_ms:
        if not mark.is_over:
            machine.timers.remove((mark.expires_ms, Kind.EXPIRE, job.id))
        mark.expires_ms, mark.is_over = 0, False


def _mark(machine: StateMachine, job: Job) -> Mark:
    return machine.policies.marks.setdefault(job.id, Mark())


def _attempts(machine: StateMachine, job: Job) -> int:
    """Failed attempts at a job that is not reserved."""
    mark = machine.policies.marks.get(job.id)
    return job.reserves - job.releases - job.buries - (mark.forgiven if mark is not None else 0)


def done(machine: StateMachine, job: Job, result: bytes) -> None:
    """A worker has finished `job`, of a tube with a policy, and it is no more."""
    policy = job.tube.policy
    if policy is not None and policy.retain_ms:
        now_ms = machine.now_ms
        failed = _attempts(machine, job) - 1  # the last has not
        told = FinishedJob(job.tube.name, failed, now_ms, now_ms + policy.retain_ms, result)
        machine.policies.finished.remember(job.id, told)


# -- the whole state ----------------------------------------------------------------------------


def describe(policies: Policies) -> list[object]:
    """For the digest."""
    counts = [policies.last_version, policies.died, policies.expired, policies.dropped]
    finished = [policies.finished.bytes, *policies.finished.jobs.items()]
    unique = sorted((key, job.id) for key, job in policies.unique.items())
    return [
        list(policies.tubes),
        counts,
        finished,
        unique,
        sorted((id, msgspec.structs.astuple(mark)) for id, mark in policies.marks.items()),
    ]

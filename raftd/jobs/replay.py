"""Dead and buried jobs in bulk: counted, moved, kicked or deleted, by a filter, in steps that are bounded (docs/queues.md).

A step looks at jobs in the order of their ids, from where the one before has ended. What it has moved is not there any more, so a step
that is asked for again does nothing twice.
"""

from __future__ import annotations

from typing import Protocol

from raftd.jobs import asks, policies
from raftd.jobs import commands as c
from raftd.jobs import replies as r
from raftd.jobs.model import NO_MARK, ClientSession, Job, JobEventKind, Session, State
from raftd.jobs.table import JobTable
from raftd.limits import REPLAY_JOBS, REPLAY_LOOKED


class StateMachine(policies.StateMachine, Protocol):
    """What of it this part needs: see there."""

    @property
    def jobs(self) -> JobTable: ...

    def error_of(self, job: Job) -> str: ...

    def kick_job(self, session: Session | ClientSession, kick: c.KickJob) -> r.Reply: ...

    def delete(self, session: Session | ClientSession, delete: c.Delete) -> r.Reply: ...


def fits(machine: StateMachine, which: asks.Selection, job: Job) -> bool:
    """Whether `job` is one of these."""
    if job.tube.name != which.tube or job.state is State.RESERVED:
        return False
    mark = machine.policies.marks.get(job.id, NO_MARK)
    is_dead_letter = mark.death != "" and job.tube.name != mark.origin
    if job.state is not State.BURIED and not is_dead_letter:
        return False
    since_ms = mark.died_ms if mark.death else job.created_ms
    if job.state is State.BURIED:
        since_ms = max(since_ms, job.buried_ms)
    is_in_time = which.from_ms <= since_ms and (not which.before_ms or since_ms <= which.before_ms)
    return is_in_time and (not which.origin or mark.origin == which.origin) and which.error in machine.error_of(job)


def count(machine: StateMachine, which: asks.Selection, after: int, most: int) -> r.Replayed:
    """How many there are among the next `most` jobs behind `after`; `skipped`: how many of these are buried."""
    ids = machine.jobs.ids_after(after, most)
    known = [id for id in ids if not which.up_to or id <= which.up_to]
    found = [job for id in known if fits(machine, which, job := machine.jobs[id])]
    buried = sum(job.state is State.BURIED for job in found)
    return r.Replayed(len(found), buried, known[-1] if known else after, len(known) < most)


def step(machine: StateMachine, session: Session | ClientSession, what: asks.Replay) -> r.Replayed:
    """Look at the next jobs, and do it to those that fit. Charged is what was looked at and done: less than the gateway counted."""
    which, costs = what.which, machine.costs
    ids = machine.jobs.ids_after(what.after, REPLAY_LOOKED)
    is_last = len(ids) < REPLAY_LOOKED
    looked = done = skipped = 0
    for id in ids:
        if (which.up_to and id > which.up_to) or done + skipped == REPLAY_JOBS:
            is_last = done + skipped < REPLAY_JOBS
            break
        looked += 1
        job = machine.jobs.get(id)
        if job is None or not fits(machine, which, job):  # an earlier one may have pushed it out of its tube
            continue
        if _do(machine, session, what, job):
            done += 1
        else:
            skipped += 1
    machine.charge_to_batch(looked * costs.tube + (done + skipped) * (costs.kicked + costs.died))
    return r.Replayed(done, skipped, ids[looked - 1] if looked else what.after, is_last)


def _do(machine: StateMachine, session: Session | ClientSession, what: asks.Replay, job: Job) -> bool:
    if what.action == "delete":
        return type(machine.delete(session, c.Delete(0, job.id))) is r.Deleted
    target = what.to or machine.policies.marks.get(job.id, NO_MARK).origin
    if what.action == "kick" or target == job.tube.name:
        return type(machine.kick_job(session, c.KickJob(0, job.id))) is r.Kicked
    return target != "" and _move(machine, session, job, target)


def _move(machine: StateMachine, session: Session | ClientSession, job: Job, name: str) -> bool:
    """Unless the tube is full, or making room there takes this very job."""
    before, full = job.tube, machine.tubes.get(name)
    if full is not None and not policies.make_room(machine, full, 1, len(job.body)):
        return False
    if machine.jobs.get(job.id) is not job or job.tube is not before:  # what made room has pushed it out
        return False
    machine.take_out(job)
    policies.moved(machine, job, machine.tube(name))
    policies.revived(machine, job)
    machine.make_ready(job, JobEventKind.MOVED, session.key)
    machine.drop_if_unused(before)
    return True

"""What the client listener tells of jobs and tubes, without changing them."""

from __future__ import annotations

from collections.abc import Callable
from heapq import merge, nsmallest
from itertools import islice

import msgspec

from raftd.jobs import replay
from raftd.jobs.access import User
from raftd.jobs.asks import Selection
from raftd.jobs.machine import StateMachine
from raftd.jobs.model import NO_MARK, Job, State, Tube
from raftd.jobs.queries import Query
from raftd.jobs.rights import ALL_TUBES, Grant, Quota, Right
from raftd.jobs.schedules import without_body
from raftd.limits import COUNTED_JOBS
from raftd.node.job_events import JobEventBuffer
from raftd.node.session import Session, nothing_scanned
from raftd.server.access import looked_at, seen_by_tube
from raftd.wire import client as w
from raftd.wire.checks import what_is_wrong_with_selection

#: Tubes and schedules that one answer lists, and the newest events of a job that its history tells.
TUBES_LISTED = 1_000
SCHEDULES_LISTED = 100
EVENTS_TOLD = 1_000
#: Users and records that one answer lists.
USERS_LISTED = 100
RECORDS_LISTED = 1_000


def query_of(read: w.Read, events: JobEventBuffer, viewer: Session) -> Query:
    """What finds the answer to `read`, as far as `viewer` may see it."""
    match read:
        case w.JobRequest(job=id):
            return lambda machine, now_ms, node, session: w.JobFound(_job(machine, _seen_job(machine, viewer, id), now_ms))
        case w.NextRequest(tube=name, state=state):
            return seen_by_tube(viewer, lambda machine, now_ms, node, session: _next(machine, name, state, now_ms), name)
        case w.TubeRequest(tube=name):
            return seen_by_tube(viewer, lambda machine, now_ms, node, session: _one_tube(machine, name, now_ms), name)
        case w.TubesRequest(after=after, limit=limit):
            most = min(max(1, limit), TUBES_LISTED)

            def tubes(machine: StateMachine, now_ms: int, node: int, session: int) -> w.TubesFound:
                names = nsmallest(most + 1, (name for name in viewer.seen(machine, machine.tubes) if name > after))
                return w.TubesFound([_tube(machine.tubes[name], now_ms) for name in names[:most]], len(names) > most)

            return tubes
        case w.HistoryRequest(job=id):
            return lambda machine, now_ms, node, session: _history(events, id, machine, viewer)
        case w.CountRequest(which=which):
            return seen_by_tube(viewer, lambda machine, now_ms, node, session: _count(machine, now_ms, read), which.tube)
        case w.SchedulesRequest(name=name, after=after, limit=limit):
            some = min(max(1, limit), SCHEDULES_LISTED)
            return lambda machine, now_ms, node, session: _schedules(machine, name, after, some, viewer)
        case w.ResultRequest(job=id):
            return lambda machine, now_ms, node, session: w.ResultFound(_result(machine, id, now_ms, viewer))
        case w.PoliciesRequest(tube=name, after=after, limit=limit):
            some = min(max(1, limit), TUBES_LISTED)
            if name:
                return seen_by_tube(viewer, lambda machine, now_ms, node, session: _policy(machine, name), name)
            return lambda machine, now_ms, node, session: _policies(machine, after, some, viewer)
        case w.UsersRequest(name=name, after=after, limit=limit):
            some = min(max(1, limit), USERS_LISTED)
            return lambda machine, now_ms, node, session: users(machine, now_ms, name, after, some)
        case w.WhoAmIRequest():
            return lambda machine, now_ms, node, session: _user_himself(machine, now_ms, viewer)
        case w.AuditRequest(before=before, limit=limit):
            some = min(max(1, limit), RECORDS_LISTED)
            return lambda machine, now_ms, node, session: audit(machine, now_ms, before, some)


def scanned_by(read: w.Read) -> Callable[[StateMachine], int]:
    """How many items it looks at."""
    if isinstance(read, w.TubesRequest):
        return lambda machine: looked_at(machine, len(machine.tubes))
    if isinstance(read, w.SchedulesRequest):
        return lambda machine: looked_at(machine, len(machine.schedules.by_name))
    if isinstance(read, w.CountRequest):
        return lambda machine: min(len(machine.jobs), COUNTED_JOBS)
    if isinstance(read, w.PoliciesRequest):
        return lambda machine: 0 if read.tube else looked_at(machine, len(machine.policies.tubes))
    if isinstance(read, w.HistoryRequest):
        return lambda machine: looked_at(machine, EVENTS_TOLD)
    if isinstance(read, w.UsersRequest):
        return lambda machine: len(machine.access.users)
    if isinstance(read, w.AuditRequest):
        return records_kept
    return nothing_scanned


def _seen_job(machine: StateMachine, viewer: Session, id: int) -> Job | None:
    job = machine.jobs.get(id)
    return job if job is not None and viewer.sees(machine, job.tube.name) else None


def _one_tube(machine: StateMachine, name: str, now_ms: int) -> w.TubesFound:
    tube = machine.tubes.get(name)
    return w.TubesFound([_tube(tube, now_ms)] if tube is not None else [], has_more=False)


def _next(machine: StateMachine, name: str, state: str, now_ms: int) -> w.JobFound:
    tube = machine.tubes.get(name)
    if tube is None:
        return w.JobFound(None)
    queue = {"ready": tube.ready, "delayed": tube.delayed, "buried": tube.buried}.get(state)
    least = queue.least() if queue is not None else None
    return w.JobFound(_job(machine, machine.jobs[least[1]] if least is not None else None, now_ms))


def _job(machine: StateMachine, job: Job | None, now_ms: int) -> w.JobInfo | None:
    if job is None:
        return None
    mark = machine.policies.marks.get(job.id, NO_MARK)
    return w.JobInfo(
        job.id,
        job.tube.name,
        job.state.name.lower(),
        job.pri,
        max(0, now_ms - job.created_ms),
        job.delay_ms,
        job.ttr_ms,
        max(0, job.deadline_ms - now_ms) if job.has_deadline else 0,
        job.token,
        job.reserves,
        job.timeouts,
        job.releases,
        job.buries,
        job.kicks,
        machine.attempts(job),
        machine.clients.errors.get(job.id, ""),
        job.body,
        mark.death,
        mark.origin,
        mark.attempts,
        max(0, now_ms - mark.died_ms) if mark.death else 0,
        max(0, now_ms - job.buried_ms) if job.state is State.BURIED and job.buried_ms else None,
    )


def _tube(tube: Tube, now_ms: int) -> w.TubeInfo:
    return w.TubeInfo(
        tube.name,
        len(tube.ready),
        tube.reserved,
        len(tube.delayed),
        len(tube.buried),
        tube.urgent,
        len(tube.waiters),
        tube.watching,
        tube.total_jobs,
        tube.cmd_delete,
        max(0, tube.pause_until_ms - now_ms),
        tube.is_declared,
        tube.bytes,
        tube.version,
    )


def _count(machine: StateMachine, now_ms: int, read: w.CountRequest) -> w.Counted:
    if what_is_wrong_with_selection(read.which):
        return w.Counted(0, read.which, read.after, is_done=True)
    which = complete(machine, now_ms, read.which, read.older_ms, read.newer_ms)
    found = replay.count(machine, which, read.after, COUNTED_JOBS)
    return w.Counted(found.done, which, found.after, found.is_done)


def complete(machine: StateMachine, now_ms: int, which: Selection, older_ms: int, newer_ms: int) -> Selection:
    """What dies, is buried or is put from now on, to the millisecond, is not in it. Log time may stand behind `now_ms`, and goes on from
    where it stands."""
    if which.up_to:
        return which
    from_ms = max(1, now_ms - newer_ms) if newer_ms else 0
    before_ms = min(now_ms - max(0, older_ms), machine.now_ms)
    return Selection(which.tube, which.error, which.origin, from_ms, max(1, before_ms), max(1, machine.last_id))


def _schedules(machine: StateMachine, name: str, after: str, most: int, viewer: Session) -> w.SchedulesFound:
    known = {one: schedule for one, schedule in machine.schedules.by_name.items() if viewer.sees(machine, schedule.plan.tube)}
    names = [name] if name in known else [] if name else nsmallest(most + 1, (one for one in known if one > after))
    found = [w.ScheduleInfo(*msgspec.structs.astuple(known[one] if name else without_body(known[one]))) for one in names[:most]]
    return w.SchedulesFound(found, len(names) > most)


def _result(machine: StateMachine, id: int, now_ms: int, viewer: Session) -> w.FinishedInfo | None:
    found = machine.policies.finished.find(id, now_ms)
    if found is not None and not viewer.sees(machine, found.tube):
        return None
    return w.FinishedInfo(id, found.tube, found.attempts, max(0, now_ms - found.finished_ms), found.result) if found is not None else None


def _policy(machine: StateMachine, name: str) -> w.PoliciesFound:
    tube = machine.policies.tubes.get(name)
    return w.PoliciesFound([(name, tube.version, tube.policy)] if tube is not None and tube.policy is not None else [], has_more=False)


def _policies(machine: StateMachine, after: str, most: int, viewer: Session) -> w.PoliciesFound:
    known = machine.policies.tubes
    names = nsmallest(most + 1, (name for name in viewer.seen(machine, known) if name > after))
    found = [(name, known[name].version, policy) for name in names[:most] if (policy := known[name].policy) is not None]
    return w.PoliciesFound(found, len(names) > most)


def users(machine: StateMachine, now_ms: int, name: str, after: str, most: int) -> w.UsersFound:
    known = machine.access.users
    names = [name] if name in known else [] if name else nsmallest(most + 1, (one for one in known if one > after))
    return w.UsersFound([_user(known[one], now_ms) for one in names[:most]], len(names) > most)


def _user(user: User, now_ms: int) -> w.UserInfo:
    tokens = [
        w.TokenInfo(name, max(0, now_ms - token.created_ms), max(0, token.expires_ms - now_ms) if token.expires_ms else None)
        for name, token in user.tokens.items()
    ]
    return w.UserInfo(user.name, user.password is not None, list(user.grants), tokens, user.quota)


def _user_himself(machine: StateMachine, now_ms: int, viewer: Session) -> w.UsersFound:
    name = machine.access.user_of(viewer.login, machine.now_ms)
    if not machine.access.is_on:
        return w.UsersFound([], has_more=False)
    if viewer.login is not None and viewer.login.how == "node":
        grants = [Grant(right, ALL_TUBES) for right in Right]
        return w.UsersFound([w.UserInfo(viewer.login.user, False, grants, [], Quota())], has_more=False)
    return users(machine, now_ms, name, "", 1) if name is not None else w.UsersFound([], has_more=False)


def records_kept(machine: StateMachine) -> int:
    """Of the audit log: as many are looked at for an answer."""
    return len(machine.access.records) + len(machine.access.tube_records)


def audit(machine: StateMachine, now_ms: int, before: int, most: int) -> w.AuditFound:
    """Numbers have no gaps."""
    rings = (reversed(machine.access.records), reversed(machine.access.tube_records))
    merged = merge(*rings, key=lambda record: record.number, reverse=True)
    newest = (record for record in merged if not before or record.number < before)
    found = list(islice(newest, most + 1))
    told = [
        w.AuditRecord(record.number, record.index, max(0, now_ms - record.time_ms), record.user, record.node, record.what, record.to)
        for record in found[:most]
    ]
    return w.AuditFound(told, len(found) > most)


def _history(events: JobEventBuffer, id: int, machine: StateMachine, viewer: Session) -> w.History:
    newest = [event for event in islice(events.of_job(id), EVENTS_TOLD) if viewer.sees(machine, event.tube)]
    told = [w.JobEvent(event.entry, event.time_ms, event.what.value, event.tube, event.token) for event in reversed(newest)]
    return w.History(events.known_from, told)

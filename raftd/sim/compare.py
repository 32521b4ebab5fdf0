"""The whole state of the queue and that of the plain model, both said in the same words, so that they can be compared.

Counts are counted on the model's side, and read where the machine keeps them (I24).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from raftd.jobs.machine import StateMachine
from raftd.jobs.model import NO_MARK, Job, Session, State
from raftd.sim import policy_model as policies
from raftd.sim.model import Model

_STATES = ("ready", "delayed", "reserved", "buried")
_COUNTED = ("reserves", "timeouts", "releases", "buries", "kicks")
_URGENT_PRI = 1024

Description = dict[Any, Any]


def describe_machine(machine: StateMachine) -> list[Description]:
    """Jobs, tubes, sessions, gateways, and what there is once."""
    jobs = {
        job.id: {
            "tube": job.tube.name,
            "pri": job.pri,
            "ttr": job.ttr_ms,
            "body": job.body,
            "state": job.state.name.lower(),
            "deadline": job.deadline_ms if job.state in (State.DELAYED, State.RESERVED) else None,
            "buried since": job.buried_ms if job.state is State.BURIED else None,
            "holder": job.holder if job.state is State.RESERVED and _is_held(machine, job) else None,
            "token": job.token,
            "counts": [getattr(job, name) for name in _COUNTED],
            "kept": list(msgspec.structs.astuple(machine.policies.marks.get(job.id, NO_MARK))),
            "attempts": machine.attempts(job),
        }
        for job in machine.jobs.values()
    }
    tubes = {
        tube.name: {
            "counts": [len(tube.ready), len(tube.delayed), tube.reserved, len(tube.buried), tube.urgent, tube.jobs],
            "buried": [id for _, id in tube.buried],
            "waiting": [waiter.id for waiter in tube.waiters],
            "paused until": tube.pause_until_ms or None,
            "bytes": tube.bytes,
            "policy": [tube.version, tube.next_us, tube.limited_until_ms or None] if tube.policy is not None else None,
            "put, deleted": [tube.total_jobs, tube.cmd_delete],
            "using, watching": [tube.using, tube.watching],
        }
        for tube in machine.tubes.values()
    }
    sessions = {
        session.key: {
            "used": session.used.name,
            "watched": list(session.watched),
            "waits until": (session.wait_until_ms or None) if session.waiting else "not at all",
            "holds": [id for _, id in session.reserved],
            "nearest deadline": session.first_deadline_ms(machine.jobs),
        }
        for row in machine.gateways.values()
        for session in row.sessions.values()
    }
    gateways = {row.node: [row.incarnation, row.is_open, row.seq] for row in machine.gateways.values()}
    clients = {
        session.number: {
            "token, epoch": [session.token, session.epoch],
            "at, until, last": [session.attached_to, session.until_ms or None, session.last_id],
            "answers": sorted(session.answers),
            "late": {ask: list(jobs) for ask, jobs in session.late_answers.items()},
            "holds": [id for _, id in session.reserved],
            "waits": [
                [
                    *(wait.ask, [tube.name for tube in wait.tubes], wait.credit, wait.is_subscription, wait.is_suspended),
                    *(wait.until_ms or None, wait.pushed, list(wait.unconfirmed)),
                ]
                for _, wait in sorted(session.waits.items())
            ],
        }
        for session in machine.clients.sessions.values()
    }
    counts = machine.counts
    once = {
        "space is scarce, level": [machine.space_is_scarce, machine.level],
        "topics": list(machine.topics),
        "directories": machine.directories,
        "keys": [(key, used.first, used.jobs) for key, used in machine.keys.used.items() if machine.keys.find(key, machine.now_ms)],
        "last id": machine.last_id,
        "last token": machine.last_token,
        "total jobs, timeouts": [machine.total_jobs, machine.job_timeouts],
        "counts": [counts.ready, counts.delayed, counts.reserved, counts.buried, counts.urgent],
        "tubes with waiters and ready jobs": [
            tube.name for tube in machine.tubes.values() if tube.waiters and tube.ready and not machine.is_held_back(tube)
        ],
        "watches": machine.watches,
        "unmatched": list(machine.unmatched),
        "closing": [
            [session.id, session.used.name, list(session.watched), list(session.reserved)]
            if isinstance(session, Session) and session.watched
            else [session.key, "default", [], list(session.reserved)]
            for session in machine.closing
        ],
        "errors": machine.clients.errors,
        "detaching": list(machine.clients.detaching),
        "policies": [list(machine.policies.tubes), machine.policies.last_version],
        "schedules": [
            [
                *(one.name, one.version, msgspec.msgpack.encode(one.plan)),
                *(one.is_paused, one.next_ms, one.last_ms, one.last_job, one.put, one.skipped),
            ]
            for one in machine.schedules.by_name.values()
        ],
        "finished": {
            id: tuple(job) for id, job in machine.policies.finished.jobs.items() if machine.policies.finished.find(id, machine.now_ms)
        },
        "only ones": sorted((key, job.id) for key, job in machine.policies.unique.items()),
        "dead": {tube.name: tube.dead for tube in machine.tubes.values() if tube.dead},
        "all dead": machine.policies.dead,
        "died, expired, dropped": [machine.policies.died, machine.policies.expired, machine.policies.dropped],
        "timers": list(machine.timers),
    }
    return [jobs, tubes, sessions, gateways, once, clients]


def _is_held(machine: StateMachine, job: Job) -> bool:
    """Held by a session; otherwise by the token."""
    session = machine.holder(job)
    return session is not None and session.holds(job)


def describe_model(model: Model) -> list[Description]:
    """The same of the model."""
    jobs = {
        id: {
            **{key: job[key] for key in ("tube", "pri", "ttr", "body", "state", "token")},
            "deadline": job["deadline"] if job["state"] in ("delayed", "reserved") else None,
            "buried since": job["buried since"] if job["state"] == "buried" else None,
            "holder": job["holder"] if job["state"] == "reserved" else None,
            "counts": [job[name] for name in _COUNTED],
            "kept": policies.kept(job),
            "attempts": policies.attempts(job),
        }
        for id, job in model.jobs.items()
    }
    sessions = {
        key: {
            "used": session["used"],
            "watched": session["watched"],
            "waits until": session["wait"][1] if session["wait"] else "not at all",
            "holds": [job["id"] for job in model.held_by(key)],
            "nearest deadline": min((job["deadline"] for job in model.held_by(key)), default=None),
        }
        for key, session in model.sessions.items()
    }
    gateways = dict(model.gateways)
    once = {
        "space is scarce, level": [model.space_is_scarce, model.level],
        "topics": model.topics,
        "directories": model.directories,
        "keys": [(key, ids[0], len(ids)) for key, _, ids in model.known_keys()],
        "last id": model.last_id,
        "last token": model.last_token,
        "total jobs, timeouts": [model.total, model.timeouts],
        "counts": [*(len(model.in_state(state)) for state in _STATES), _urgent(model, None)],
        "tubes with waiters and ready jobs": [],
        "watches": sum(len(session["watched"]) for session in [*model.sessions.values(), *model.closing])
        + sum(len(wait["tubes"]) for wait in model.client_waits()),
        "unmatched": model.unmatched,
        "closing": [
            [
                (*session["key"], session["incarnation"]) if session["watched"] else session["key"],
                *(session["used"], session["watched"]),
                [(token, job["id"]) for job, token in session["held"]],
            ]
            for session in model.closing
        ],
        "errors": model.errors,
        "detaching": model.detaching,
        "policies": [list(model.policies), model.last_version],
        "schedules": [
            [
                *(name, one["version"], msgspec.msgpack.encode(one["plan"])),
                *(one[field] for field in ("paused", "next", "last", "job", "put", "skipped")),
            ]
            for name, one in model.schedules.items()
        ],
        "finished": {id: job for id, job in model.finished.items() if model.now_ms < job[3]},
        "only ones": sorted(((job["tube"], job["unique"]), job["id"]) for job in model.jobs.values() if job["unique"]),
        "dead": dict(Counter(job["tube"] for job in model.jobs.values() if job["death"])),
        "all dead": sum(job["death"] != "" for job in model.jobs.values()),
        "died, expired, dropped": list(model.ended.values()),
        "timers": model.timers(),
    }
    clients = {
        number: {
            "token, epoch": [client["token"], client["epoch"]],
            "at, until, last": [client["at"], client["until"], client["last"]],
            "answers": sorted(client["answers"]),
            "late": client["late"],
            "holds": [job["id"] for job in model.held_by((0, number))],
            "waits": [
                [wait[name] for name in ("ask", "tubes", "credit", "subscription", "suspended", "until", "pushed", "unconfirmed")]
                for wait in sorted(client["waits"], key=lambda wait: int(wait["ask"]))
            ],
        }
        for number, client in model.clients.items()
    }
    return [jobs, {name: _describe_tube(model, name) for name in model.tubes()}, sessions, gateways, once, clients]


def _describe_tube(model: Model, name: str) -> Description:
    counts = [len(model.in_state(state, name)) for state in _STATES]
    sessions = [*model.sessions.values(), *model.closing]
    return {
        "counts": [*counts, _urgent(model, name), sum(counts)],
        "buried": [job["id"] for job in sorted(model.in_state("buried", name), key=lambda job: int(job["buried"]))],
        "waiting": [model.waiter_id(waiter) for waiter in model.waiters(name)],
        "paused until": model.pauses.get(name),
        "bytes": sum(len(job["body"]) for job in model.jobs.values() if job["tube"] == name),
        "policy": [model.policies[name][field] for field in ("version", "next", "limited")] if name in model.policies else None,
        "put, deleted": [model.puts.get(name, 0), model.deletes.get(name, 0)],
        "using, watching": [
            sum(session["used"] == name and bool(session["watched"]) for session in sessions),
            sum(name in session["watched"] for session in sessions) + sum(name in wait["tubes"] for wait in model.client_waits()),
        ],
    }


def _urgent(model: Model, tube: str | None) -> int:
    return sum(job["pri"] < _URGENT_PRI for job in model.in_state("ready", tube))


def difference(ours: Description, model: Description) -> tuple[object, object, object]:
    """The first thing that differs: what, as it is, as it should be."""
    for key in [*ours, *model]:
        mine, wanted = ours.get(key), model.get(key)
        if mine != wanted:
            return key, mine, wanted
    raise ValueError("nothing differs")

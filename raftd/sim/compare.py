"""The whole state of the queue and that of the plain model, both said in the same words, so that they can be compared.

Counts are counted on the model's side, and read where the machine keeps them (I24).
"""

from __future__ import annotations

from typing import Any

from raftd.jobs.machine import StateMachine
from raftd.jobs.model import Job, State
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
            "holder": job.holder if job.state is State.RESERVED and _is_held(machine, job) else None,
            "token": job.token,
            "counts": [getattr(job, name) for name in _COUNTED],
        }
        for job in machine.jobs.values()
    }
    tubes = {
        tube.name: {
            "counts": [len(tube.ready), len(tube.delayed), tube.reserved, len(tube.buried), tube.urgent, tube.jobs],
            "buried": [id for _, id in tube.buried],
            "waiting": [session.id for session in tube.waiters],
            "paused until": tube.pause_until_ms or None,
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
            tube.name
            for tube in machine.tubes.values()
            if tube.waiters and tube.ready and not tube.pause_until_ms and tube.name not in machine.unmatched
        ],
        "watches": machine.watches,
        "unmatched": list(machine.unmatched),
        "closing": [
            [session.id if session.watched else session.key, session.used.name, list(session.watched), list(session.reserved)]
            for session in machine.closing
        ],
        "timers": list(machine.timers),
    }
    return [jobs, tubes, sessions, gateways, once]


def _is_held(machine: StateMachine, job: Job) -> bool:
    """Held by a session; otherwise by the token."""
    session = machine.session(*job.holder)
    return session is not None and session.holds(job)


def describe_model(model: Model) -> list[Description]:
    """The same of the model."""
    jobs = {
        id: {
            **{key: job[key] for key in ("tube", "pri", "ttr", "body", "state", "token")},
            "deadline": job["deadline"] if job["state"] in ("delayed", "reserved") else None,
            "holder": job["holder"] if job["state"] == "reserved" else None,
            "counts": [job[name] for name in _COUNTED],
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
        "watches": sum(len(session["watched"]) for session in [*model.sessions.values(), *model.closing]),
        "unmatched": model.unmatched,
        "closing": [
            [
                (*session["key"], session["incarnation"]) if session["watched"] else session["key"],
                *(session["used"], session["watched"]),
                [(token, job["id"]) for job, token in session["held"]],
            ]
            for session in model.closing
        ],
        "timers": model.timers(),
    }
    return [jobs, {name: _describe_tube(model, name) for name in model.tubes()}, sessions, gateways, once]


def _describe_tube(model: Model, name: str) -> Description:
    counts = [len(model.in_state(state, name)) for state in _STATES]
    sessions = [*model.sessions.values(), *model.closing]
    return {
        "counts": [*counts, _urgent(model, name), sum(counts)],
        "buried": [job["id"] for job in sorted(model.in_state("buried", name), key=lambda job: int(job["buried"]))],
        "waiting": [(*session["key"], session["incarnation"]) for session in model.waiters(name)],
        "paused until": model.pauses.get(name),
        "put, deleted": [model.puts.get(name, 0), model.deletes.get(name, 0)],
        "using, watching": [
            sum(session["used"] == name and bool(session["watched"]) for session in sessions),
            sum(name in session["watched"] for session in sessions),
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

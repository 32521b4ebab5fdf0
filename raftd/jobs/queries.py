"""What may be read of the queue without changing it. `now_ms` is log time at the moment of the read, so
that `time-left` is right on an idle cluster too."""

from __future__ import annotations

from collections.abc import Callable

from raftd.jobs.machine import DEFAULT_TUBE, StateMachine
from raftd.jobs.model import Job, State, Tube

#: A read: what it gives depends on the state, log time, and the node and number of the session that asks.
Query = Callable[[StateMachine, int, int, int], object]

Stats = list[tuple[str, int | str]]


def peek(id: int) -> Query:
    """The job, in whatever state and tube, or None."""
    return lambda machine, now_ms, node, session: machine.jobs.get(id)


def peek_ready(machine: StateMachine, now_ms: int, node: int, session: int) -> Job | None:
    """The job of the used tube that would be reserved next."""
    least = _used(machine, node, session).ready.least()
    return machine.jobs[least[1]] if least else None


def peek_delayed(machine: StateMachine, now_ms: int, node: int, session: int) -> Job | None:
    """The delayed job of the used tube with the shortest delay left."""
    least = _used(machine, node, session).delayed.least()
    return machine.jobs[least[1]] if least else None


def peek_buried(machine: StateMachine, now_ms: int, node: int, session: int) -> Job | None:
    """The buried job of the used tube that would be kicked next."""
    least = _used(machine, node, session).buried.least()
    return machine.jobs[least[1]] if least else None


def list_tubes(machine: StateMachine, now_ms: int, node: int, session: int) -> list[str]:
    """All tubes, in order of creation."""
    return list(machine.tubes)


def list_topics(machine: StateMachine, now_ms: int, node: int, session: int) -> list[str]:
    """All tubes that were declared, in this order."""
    return list(machine.topics)


def is_topic(name: str) -> Query:
    return lambda machine, now_ms, node, session: name in machine.topics


def list_tubes_watched(machine: StateMachine, now_ms: int, node: int, session: int) -> list[str]:
    """The session's watch list, in order of watching."""
    known = machine.session(node, session)
    return list(known.watched) if known else [DEFAULT_TUBE]


def list_tube_used(machine: StateMachine, now_ms: int, node: int, session: int) -> str:
    return _used(machine, node, session).name


def _used(machine: StateMachine, node: int, session: int) -> Tube:
    known = machine.session(node, session)
    return known.used if known else machine.tubes[DEFAULT_TUBE]


def stats_job(id: int) -> Query:
    """beanstalkd's stats-job, in its order, or None."""

    def query(machine: StateMachine, now_ms: int, node: int, session: int) -> Stats | None:
        job = machine.jobs.get(id)
        if job is None:
            return None
        left_ms = max(0, job.deadline_ms - now_ms) if job.state in (State.RESERVED, State.DELAYED) else 0
        return [
            ("id", job.id),
            ("tube", f'"{job.tube.name}"'),
            ("state", job.state.name.lower()),
            ("pri", job.pri),
            ("age", max(0, now_ms - job.created_ms) // 1000),
            ("delay", job.delay_ms // 1000),
            ("ttr", job.ttr_ms // 1000),
            ("time-left", left_ms // 1000),
            ("file", 0),
            ("reserves", job.reserves),
            ("timeouts", job.timeouts),
            ("releases", job.releases),
            ("buries", job.buries),
            ("kicks", job.kicks),
        ]

    return query


def stats_tube(name: str) -> Query:
    """beanstalkd's stats-tube, in its order, or None."""

    def query(machine: StateMachine, now_ms: int, node: int, session: int) -> Stats | None:
        tube = machine.tubes.get(name)
        if tube is None:
            return None
        return [
            ("name", f'"{tube.name}"'),
            *_job_counts(tube),
            ("total-jobs", tube.total_jobs),
            ("current-using", tube.using),
            ("current-watching", tube.watching),
            ("current-waiting", len(tube.waiters)),
            ("cmd-delete", tube.cmd_delete),
            ("cmd-pause-tube", tube.cmd_pause_tube),
            ("pause", tube.pause_ms // 1000),
            ("pause-time-left", max(0, tube.pause_until_ms - now_ms) // 1000),
        ]

    return query


def job_counts(machine: StateMachine) -> Stats:
    """The current-jobs-* of the whole queue."""
    counts = machine.counts
    return [
        ("current-jobs-urgent", counts.urgent),
        ("current-jobs-ready", counts.ready),
        ("current-jobs-reserved", counts.reserved),
        ("current-jobs-delayed", counts.delayed),
        ("current-jobs-buried", counts.buried),
    ]


def _job_counts(tube: Tube) -> list[tuple[str, int]]:
    return [
        ("current-jobs-urgent", tube.urgent),
        ("current-jobs-ready", len(tube.ready)),
        ("current-jobs-reserved", tube.reserved),
        ("current-jobs-delayed", len(tube.delayed)),
        ("current-jobs-buried", len(tube.buried)),
    ]

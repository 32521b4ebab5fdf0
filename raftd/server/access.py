"""What a client may see of the state. A job, or a tube in a list, to which it has no right is not there for it."""

from __future__ import annotations

from raftd.jobs.machine import StateMachine
from raftd.jobs.queries import Query
from raftd.jobs.replies import NotAuthorized
from raftd.jobs.rights import Login, Right
from raftd.node.loop import Node
from raftd.node.session import Session

#: Measured: 0.1 µs for an item, 0.3 µs with the look at what a user was granted.
_WITH_RIGHTS = 3


def sees_everything(node: Node, login: Login | None) -> bool:
    """Whether one need not say who he is, or may look at all tubes, or operate the cluster; as far as this node knows."""
    access, now_ms = node.machine.access, node.machine.now_ms
    return not node.has_users or any(access.may_everywhere(login, right, now_ms) for right in (Right.READ, Right.OPERATE))


def may_operate(login: Login | None) -> Query:
    """Whether this login may operate the cluster, as the cluster says, not only this node."""

    def look(machine: StateMachine, now_ms: int, node: int, number: int) -> bool:
        access = machine.access
        return not access.is_on or access.may_everywhere(login, Right.OPERATE, machine.now_ms)

    return look


def is_good(login: Login) -> Query:
    """Whether this login is good for anything, as the cluster says."""

    def look(machine: StateMachine, now_ms: int, node: int, number: int) -> bool:
        return machine.access.knows(login, machine.now_ms)

    return look


def looked_at(machine: StateMachine, items: int) -> int:
    """Items of a list, for what a read costs: a look at each with its right takes as long as at so many without."""
    return items * _WITH_RIGHTS if machine.access.is_on else items


def seen_always(session: Session, query: Query) -> Query:
    """It concerns the session alone."""

    def look(machine: StateMachine, now_ms: int, node: int, number: int) -> object:
        return query(machine, now_ms, node, number) if machine.access.knows(session.login, machine.now_ms) else NotAuthorized()

    return look


def seen_by_tube(session: Session, query: Query, tube: str) -> Query:
    """By whoever may look at the tube."""

    def look(machine: StateMachine, now_ms: int, node: int, number: int) -> object:
        return query(machine, now_ms, node, number) if session.sees(machine, tube) else NotAuthorized()

    return look


def for_who_works(session: Session, query: Query, tube: str) -> Query:
    """By whoever may take jobs of the tube."""

    def look(machine: StateMachine, now_ms: int, node: int, number: int) -> object:
        is_his = machine.access.allows(session.login, Right.WORK, tube, machine.now_ms)
        return query(machine, now_ms, node, number) if is_his else NotAuthorized()

    return look


def seen_in_used(session: Session, query: Query) -> Query:
    """By whoever may look at the tube that the session uses."""

    def look(machine: StateMachine, now_ms: int, node: int, number: int) -> object:
        known = machine.session(node, number)
        tube = known.used if known is not None else machine.default
        return query(machine, now_ms, node, number) if session.sees(machine, tube.name) else NotAuthorized()

    return look


def seen_by_job(session: Session, query: Query, id: int) -> Query:
    """By whoever may look at the job's tube; for others there is no such job."""

    def look(machine: StateMachine, now_ms: int, node: int, number: int) -> object:
        if not machine.access.knows(session.login, machine.now_ms):
            return NotAuthorized()
        job = machine.jobs.get(id)
        return query(machine, now_ms, node, number) if job is None or session.sees(machine, job.tube.name) else None

    return look


def seen_in_list(session: Session, query: Query) -> Query:
    """Of a list of tubes, those that the client may look at."""

    def look(machine: StateMachine, now_ms: int, node: int, number: int) -> object:
        if not machine.access.knows(session.login, machine.now_ms):
            return NotAuthorized()
        found = query(machine, now_ms, node, number)
        assert isinstance(found, list)
        return list(session.seen(machine, found)) if machine.access.is_on else found

    return look

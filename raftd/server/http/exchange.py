"""One call over HTTP that needs the cluster: a session of its own, and a bound on its time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

from raftd.jobs import commands as c
from raftd.jobs import queries
from raftd.jobs import replies as r
from raftd.jobs.machine import StateMachine
from raftd.node.loop import Node
from raftd.node.session import Session, State, nothing_scanned
from raftd.server.http.site import Call


def _nothing() -> None:
    pass


def _ignore(reply: object, index: int) -> None:
    pass


def _nobody_is_late(may_have_left: bool) -> None:
    pass


class Exchange:
    """`late` answers the call when `within_s` are over, or when the outcome will stay unknown; its argument says whether anything of it
    may have left this node."""

    _log = Logger("raftd.http")

    def __init__(self, node: Node, clock: Any, call: Call, within_s: float, late: Callable[[bool], None]) -> None:
        self._node = node
        self._call = call
        self._late = late
        self._too_late: Any = clock.callLater(within_s, self._give_up)
        #: Called when the answer is no longer wanted: drop what has not left, and give back what was reserved.
        self.when_over: Callable[[], None] = self.close
        self.session: Session = node.open_session(self._lost)
        self.session.login = call.login
        self._has_said_who = call.login is None
        call.when_gone = self._gone

    @property
    def number(self) -> int:
        """Of its session."""
        return self.session.number

    @property
    def is_open(self) -> bool:
        """Whether the caller still waits for the answer."""
        return self._call.is_open

    def ask(self, command: c.Command, then: Callable[[Any], None]) -> None:
        """`then` gets the reply, unless the exchange is closed before."""
        if not self._has_said_who and self.session.login is not None and self._node.knows_access:
            self._has_said_who = True
            self.session.submit(c.LogIn(self.number, self.session.login), _ignore)
        self.session.submit(command, lambda reply, index: self._answered(then, reply))
        self._node.wake()

    def read(self, query: queries.Query, then: Callable[[Any], None], scanned: Callable[[StateMachine], int] = nothing_scanned) -> None:
        """`then` gets what a linearizable query gives. The session need not be in the state for it: reading writes nothing to the log.
        `scanned`: how many items it looks at besides those that it gives."""
        self.session.read(query, lambda result, index: self._answered(then, result), scanned)
        self._node.wake()

    def _answered(self, then: Callable[[Any], None], what: Any) -> None:
        """In the turn of the node, which a bug in one call must not end."""
        if isinstance(what, r.NotAuthorized):
            self._call.refused()
            self.close()
            return
        if isinstance(what, r.OverQuota):
            self._call.problem("over-quota", headers={"Retry-After": "1"})
            self.close()
            return
        try:
            then(what)
        except Exception:
            self._log.failure("a bug in raftd: a call is answered with 500, the node continues")
            self._call.problem("internal")
            self.close()

    def in_time(self) -> None:
        """The answer is given: from now on nothing is too late."""
        if self._too_late is not None and self._too_late.active():
            self._too_late.cancel()
        self._too_late = None

    def close(self) -> None:
        """What its session holds is given back."""
        self.in_time()
        self.session.close()
        self._release()
        self._node.wake()

    def leave(self) -> None:
        """What its session holds belongs to its tokens."""
        self.in_time()
        self.session.leave()
        self._release()
        self._node.wake()

    def _release(self) -> None:
        """It is over. Exchange, call and connection refer to each other until now, and would not be collected (`collector.py`)."""
        self.when_over = self._call.when_gone = _nothing
        self._late = _nobody_is_late

    def _give_up(self) -> None:
        self._late(self.session.state is State.REPLICATED)
        self.when_over()

    def _gone(self) -> None:
        self.in_time()
        self.when_over()

    def _lost(self) -> None:
        """The cluster has closed this node's gateway: the outcome is unknown."""
        self.in_time()
        self._late(True)

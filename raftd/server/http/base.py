"""What the parts of `/v1` share that ask the queue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import msgspec

from raftd.jobs import commands as c
from raftd.jobs import replies as r
from raftd.jobs.machine import StateMachine
from raftd.limits import HTTP_ANSWER_S
from raftd.node.loop import Node
from raftd.node.session import nothing_scanned
from raftd.server.http.exchange import Exchange
from raftd.server.http.routes import Ask, Needs
from raftd.server.stats import Counters

#: Problems of calls whose outcome was not seen in time.
LATE = ("not-committed", "outcome-unknown")


class Page(msgspec.Struct, forbid_unknown_fields=True):
    after: str = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 100


class Version(msgspec.Struct, forbid_unknown_fields=True):
    """Only if it has this one, 0: if there is none."""

    version: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)] | msgspec.UnsetType = msgspec.UNSET

    @property
    def wanted(self) -> int | None:
        return None if isinstance(self.version, msgspec.UnsetType) else self.version


class QueueApi:
    """Calls that are a command, or a look at the state."""

    def __init__(self, node: Node, clock: Any, counters: Counters) -> None:
        self._node = node
        self._clock = clock
        self._counters = counters

    def _begin(self, ask: Ask, within_s: float = HTTP_ANSWER_S, is_undone: bool = False) -> Exchange:
        """`is_undone`: whatever of it takes effect too late has none in the end."""

        def late(may_have_left: bool) -> None:
            ask.call.problem("outcome-unknown" if may_have_left and not is_undone else "not-committed", headers={"Retry-After": "1"})

        return Exchange(self._node, self._clock, ask.call, within_s, late)

    def _command(self, ask: Ask, make: Callable[[int], c.Command], then: Callable[[Any], None]) -> None:
        """One command, whose reply `then` answers the call with. `make` gets the number of the session."""
        exchange = self._begin(ask)

        def replied(reply: Any) -> None:
            then(reply)
            exchange.close()

        exchange.ask(make(exchange.number), replied)

    def _read(
        self,
        ask: Ask,
        query: Callable[[StateMachine, int], Any],
        then: Callable[[Any], None],
        scanned: Callable[[StateMachine], int] = nothing_scanned,
    ) -> None:
        """One linearizable look at the state. `query` gets log time too; `scanned` tells how many items it looks at."""
        exchange = self._begin(ask, is_undone=True)

        def answered(result: Any) -> None:
            then(result)
            exchange.close()

        def look(machine: StateMachine, now_ms: int, node: int, session: int) -> Any:
            if ask.needs is Needs.READ and not ask.sees(machine, ask.parts["tube"]):
                return r.NotAuthorized()
            return query(machine, now_ms)

        exchange.read(look, answered, scanned)

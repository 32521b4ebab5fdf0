"""`/v1` put together: the queue, the cluster, and what is said about both."""

from __future__ import annotations

from typing import Any

import msgspec

from raftd.config import Dashboard
from raftd.node.loop import Node
from raftd.server.http import problems
from raftd.server.http.api import Api
from raftd.server.http.backup import BackupApi
from raftd.server.http.cluster import ClusterApi
from raftd.server.http.openapi import specification
from raftd.server.http.policies import PolicyApi
from raftd.server.http.routes import Ask, Needs, Router, route, routes_of
from raftd.server.http.schedules import ScheduleApi
from raftd.server.http.sessions import BrowserSessions
from raftd.server.http.signing_in import SessionApi
from raftd.server.http.site import JSON
from raftd.server.http.tables import TubeTable
from raftd.server.http.users import UsersApi
from raftd.server.stats import Counters


class ProblemView(msgspec.Struct):
    type: str
    status: int
    title: str
    advice: str


class ProblemList(msgspec.Struct):
    problems: list[ProblemView]


class _About:
    """What is said about all the others."""

    def __init__(self) -> None:
        self.document = b""
        self._problems = ProblemList(
            [ProblemView(f"{problems.PATH}#{name}", kind.status, kind.title, kind.advice) for name, kind in problems.PROBLEMS.items()]
        )

    @route("GET", problems.PATH, Needs.NOTHING, ProblemList)
    def _problems_explained(self, ask: Ask) -> None:
        """Explain the types of problems."""
        ask.call.say(200, self._problems)

    @route("GET", "/v1/openapi.json", Needs.NOTHING, dict[str, Any])
    def _specification(self, ask: Ask) -> None:
        """Specify all of this."""
        ask.call.answer(200, self.document, JSON)


def v1(node: Node, clock: Any, counters: Counters, table: TubeTable, sessions: BrowserSessions, dashboard: Dashboard) -> Router:
    """The router of all of it."""
    about = _About()
    parts = [
        Api(node, clock, counters, table),
        PolicyApi(node, clock, counters),
        ScheduleApi(node, clock, counters),
        ClusterApi(node, clock, table.history),
        BackupApi(node, clock),
        UsersApi(node, clock, counters),
        SessionApi(node, sessions, dashboard),
        about,
    ]
    routes = [route for part in parts for route in routes_of(part)]
    about.document = specification(routes)
    return Router(routes, node, dashboard)

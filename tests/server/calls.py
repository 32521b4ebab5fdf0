"""Calls over HTTP without a connection, to nodes of a simulated cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from raftd.config import Dashboard
from raftd.node.loop import Node
from raftd.node.series import History
from raftd.server.http import problems
from raftd.server.http.origin import is_foreign
from raftd.server.http.routes import Router
from raftd.server.http.sessions import BrowserSessions
from raftd.server.http.tables import TubeTable
from raftd.server.http.v1 import v1
from raftd.server.stats import Counters

JSON = {"Content-Type": "application/json"}


def router_of(node: Node, clock: Any, counters: Counters, sessions: BrowserSessions | None = None) -> Router:
    """All of `/v1` at this node."""
    history = History(lambda: node.machine, node.job_events, node.gateway.commit_s, node.write_s)
    own = sessions if sessions is not None else BrowserSessions(clock, "sim", node.config.node)
    return v1(node, clock, counters, TubeTable(clock, history), own, Dashboard.FULL)


class FakeStream:
    """As site.Stream."""

    def __init__(self) -> None:
        self.written = b""
        self.unsent = 0
        self.is_aborted = self.is_finished = False

    def write(self, data: bytes) -> None:
        self.written += data

    def abort(self) -> None:
        self.is_aborted = True

    def finish(self) -> None:
        self.is_finished = True

    def told(self) -> list[tuple[str, str, dict]]:
        """(id, event, data) of each, and forget them."""
        parts, self.written = self.written.decode().split("\n\n"), b""
        found = []
        for part in parts:
            fields = dict(line.split(": ", 1) for line in part.splitlines() if ": " in line and not line.startswith("retry"))
            if fields:
                found.append((fields.get("id", ""), fields["event"], msgspec.json.decode(fields["data"])))
        return found


class FakeCall:
    """As site.Call; what it was told, in `said`, as (status, value)."""

    def __init__(self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> None:
        self.method = method
        path, _, self.query = path.partition("?")
        self.parts = path.split("/")[1:]
        self.body = body if isinstance(body, bytes) else msgspec.json.encode(body) if body is not None else b""
        self.headers = headers if headers is not None else JSON if body is not None else {}
        self.said: tuple[int, object] | None = None
        self.said_headers: dict[str, str] = {}
        self.when_gone: Callable[[], None] = lambda: None
        self.is_open = True
        self.login = None
        self.session = None
        self.transport = None
        #: Called by a test with whether the answer has left.
        self.left: Callable[[bool], None] | None = None

    def header(self, name: str) -> str | None:
        return self.headers.get(name)

    @property
    def is_foreign(self) -> bool:
        return is_foreign(self.method, self.header, ("queue.example",))

    def say(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        if self.is_open:
            self.said, self.said_headers, self.is_open = (status, msgspec.to_builtins(value)), headers or {}, False

    def answer(self, status: int, body: bytes, kind: str = "", headers: dict[str, str] | None = None) -> None:
        self.say(status, msgspec.json.decode(body) if body else None, headers)

    def problem(self, name: str, detail: str = "", headers: dict[str, str] | None = None) -> None:
        self.say(problems.PROBLEMS[name].status, problems.make(name, detail), headers)

    def leaving(self, left: Callable[[bool], None]) -> None:
        self.left = left

    def refused(self) -> None:
        self.problem("not-authorized")

    def stream(self, kind: str, producer: object, headers: dict[str, str] | None = None) -> FakeStream | None:
        self.said, self.is_open = (200, None), False
        return FakeStream() if self.method != "HEAD" else None

    def hang_up(self) -> None:
        self.is_open = False
        self.when_gone()

    @property
    def problem_name(self) -> str:
        """Of what it was told."""
        assert self.said is not None
        return self.said[1]["type"].partition("#")[2]

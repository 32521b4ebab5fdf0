"""The route table of `/v1`: which calls there are, and what each takes and gives. Calls are checked by it, and the specification is
made from it (`openapi.py`), so that the two cannot differ.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable
from enum import Enum, auto
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec

from raftd.config import Dashboard
from raftd.errors import UNDECODABLE
from raftd.jobs.machine import StateMachine
from raftd.jobs.rights import Right
from raftd.node.loop import Node
from raftd.server.access import sees_everything
from raftd.server.http.sessions import PAGE_HEADER
from raftd.server.http.shapes import PARTS
from raftd.server.http.site import JSON, Call
from raftd.wire.policy import TUBE_NAME

#: A body up to this size is read again if a whole number in it may be written with a point (bytes): it takes Python.
WHOLE_NUMBER_BYTES = 16 << 10

RAW = "application/octet-stream"
_MOST_PARAMETERS = 100


_PATTERN = re.compile(r"`str` matching regex '.*'")
_Method = TypeVar("_Method", bound=Callable[..., None])


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """No parameters."""


def _nobody(ask: Ask) -> None:
    raise AssertionError("a route is served by the method of an object")


class Needs(Enum):
    """What a caller needs, where one has to say who he is."""

    NOTHING = auto()  # everybody may know it
    USER = auto()  # that is known: the state decides with the command, or shows the tubes and jobs that he may look at
    READ = auto()  # the right to read the tube in the path
    OVERVIEW = auto()  # the right to read every tube, or to operate the cluster
    OPERATE = auto()


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """`path` has its parameters as `{name}`. `body`: a type for JSON, None if there is none; `raw`: its parameters in headers if the
    body may be raw bytes too. `answer`: the type of what it gives, None for nothing. `problems`: those of its own, besides what any call
    may meet (`openapi.py`)."""

    method: str
    path: str
    answer: Any
    needs: Needs
    status: int = 200
    also: tuple[int, ...] = ()  # other statuses that say that it is done
    query: type[msgspec.Struct] = Nothing
    body: Any = None
    body_is_optional: bool = False
    raw: type[msgspec.Struct] | None = None
    key: Any = None  # the type of its Idempotency-Key
    problems: tuple[str, ...] = ()
    is_of_session: bool = False  # it changes nothing but who has signed in
    kind: str = JSON  # of its answer
    links: dict[str, dict[str, Any]] = {}  # what can be done with its answer: by the name of another route (OpenAPI links)
    summary: str = ""
    name: str = ""
    handler: Callable[[Ask], None] = _nobody

    @property
    def parts(self) -> dict[str, Any]:
        """The types of the parameters in its path."""
        return {name: PARTS[name] for part in self.path.split("/") if part.startswith("{") and (name := part.strip("{}"))}

    def fits(self, parts: list[str]) -> dict[str, str] | None:
        """The parameters in the path of a call, if it is one of this route."""
        own = self.path.split("/")[1:]
        if len(own) != len(parts):
            return None
        found: dict[str, str] = {}
        for mine, its in zip(own, parts, strict=True):
            if mine.startswith("{"):
                found[mine.strip("{}")] = its
            elif mine != its:
                return None
        return found


def route(method: str, path: str, needs: Needs, answer: Any, status: int = 200, **rest: Any) -> Callable[[_Method], _Method]:
    """For a method that serves this route; the first line of its docstring says what the call is for."""

    def mark(function: _Method) -> _Method:
        summary = (function.__doc__ or "").splitlines()[0]
        name = function.__name__.strip("_")
        function.__dict__["route"] = Route(
            method=method, path=path, needs=needs, answer=answer, status=status, summary=summary, name=name, **rest
        )
        return function

    return mark


def routes_of(owner: object) -> list[Route]:
    """Those that the methods of `owner` serve, in their order."""
    return [
        msgspec.structs.replace(function.route, handler=getattr(owner, name))
        for name, function in vars(type(owner)).items()
        if hasattr(function, "route")
    ]


class Ask:
    """A call that fits a route, and is well-formed."""

    def __init__(self, call: Call, parts: dict[str, Any], query: Any, body: Any, needs: Needs) -> None:
        self.call = call
        self.needs = needs
        self.parts = parts
        self.query = query
        #: Decoded; bytes if it came raw.
        self.body = body

    def sees(self, machine: StateMachine, tube: str) -> bool:
        """Whether the caller may look at the tube of this name and its jobs."""
        return self.may(machine, tube, Right.READ)

    def seen(self, machine: StateMachine, tubes: Iterable[str]) -> Iterable[str]:
        """Those of the names of `tubes` that the caller may look at."""
        return machine.access.seen(self.call.login, tubes, machine.now_ms)

    def readable(self, machine: StateMachine) -> Container[str] | None:
        """The names of all tubes that the caller may look at; None: of all."""
        access = machine.access
        return access.tubes(self.call.login, Right.READ, machine.now_ms) if access.is_on else None

    def may(self, machine: StateMachine, tube: str, *rights: Right) -> bool:
        """Whether he has any of these rights to it."""
        return any(machine.access.allows(self.call.login, right, tube, machine.now_ms) for right in rights)

    def why_not(self, machine: StateMachine, right: Right, otherwise: str) -> str:
        """The problem of a call about the job in the path that was not done, though it needs only `right`: there is none that the caller
        may know of, he has no such right, or `otherwise`."""
        job = machine.jobs.get(self.parts["id"])
        if job is not None and self.may(machine, job.tube.name, right):
            return otherwise
        return "not-authorized" if job is not None and self.sees(machine, job.tube.name) else "no-such-job"


class BadRequest(Exception):
    """`problem` is a name of `problems.py`."""

    def __init__(self, detail: str, problem: str = "bad-request") -> None:
        super().__init__(detail)
        self.problem = problem


class Router:
    """Serves the calls of a table whose paths all begin with the same part."""

    def __init__(self, routes: list[Route], node: Node, dashboard: Dashboard) -> None:
        self.routes = routes
        self._dashboard = dashboard
        self._node = node
        self._decoders = {(route.method, route.path): msgspec.json.Decoder(route.body) for route in routes if route.body is not None}

    def handles(self, call: Call) -> bool:
        """Whether its path begins as those of the table do; then it is answered."""
        if call.parts[0] != self.routes[0].path.split("/")[1]:
            return False
        fitting = [(route, parts) for route in self.routes if (parts := route.fits(call.parts)) is not None]
        method = "GET" if call.method == "HEAD" else call.method
        chosen = next((pair for pair in fitting if pair[0].method == method), None)
        if not fitting:
            call.problem("no-such-path")
        elif chosen is None:
            call.problem("no-such-method", headers={"Allow": ", ".join(sorted({route.method for route, _ in fitting}))})
        elif method != "GET" and call.is_foreign:
            call.problem("cross-site")
        elif method != "GET" and self._is_read_only(call) and not chosen[0].is_of_session:
            call.problem("read-only")
        elif not self._may(call, chosen[0].needs):
            call.refused()
        else:
            self._serve(call, *chosen)
        return True

    def _is_read_only(self, call: Call) -> bool:
        """Whether it comes from the dashboard, and that only looks."""
        if call.session is not None and call.session.is_read_only:
            return True
        return self._dashboard is Dashboard.READ_ONLY and call.header(PAGE_HEADER) is not None

    def _may(self, call: Call, needs: Needs) -> bool:
        """As far as this node can tell at once."""
        access, now_ms = self._node.machine.access, self._node.machine.now_ms
        if not self._node.has_users or needs is Needs.NOTHING:
            return True
        if needs is Needs.OVERVIEW:
            return sees_everything(self._node, call.login)
        if needs is Needs.OPERATE:
            return access.may_everywhere(call.login, Right.OPERATE, now_ms)
        return access.user_of(call.login, now_ms) is not None

    def _serve(self, call: Call, route: Route, raw_parts: dict[str, str]) -> None:
        try:
            parts = {name: convert(value, route.parts[name], name) for name, value in raw_parts.items()}
            query = read_query(call.query, route.query)
            body = self._body(call, route)
            route.handler(Ask(call, parts, query, body, route.needs))
        except BadRequest as wrong:
            call.problem(wrong.problem, str(wrong))

    def _body(self, call: Call, route: Route) -> Any:
        if route.body is None:
            if call.body:
                raise BadRequest("this call takes no body")
            return None
        kind = (call.header("Content-Type") or "").partition(";")[0].strip().lower()
        if route.raw is not None and kind == RAW:
            return call.body
        if not call.body and not kind and route.body_is_optional:
            return self._decoders[route.method, route.path].decode(b"{}")
        if kind != JSON:
            takes = f"{JSON} or {RAW}" if route.raw is not None else JSON
            raise BadRequest(f"Content-Type: expected {takes}", "unsupported-media-type")
        try:
            return self._decode(call.body, route)
        except (*UNDECODABLE, RecursionError) as error:
            raise BadRequest(f"the body: {_plain(error)}") from None

    def _decode(self, body: bytes, route: Route) -> Any:
        try:
            return self._decoders[route.method, route.path].decode(body)
        except msgspec.ValidationError:
            if len(body) > WHOLE_NUMBER_BYTES:
                raise
            # JSON knows one kind of number, and 3.0 is a whole one: programs in some languages write it so.
            return msgspec.convert(_whole(msgspec.json.decode(body)), route.body)


def _whole(value: Any) -> Any:
    """The same, with whole numbers as such."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    return value


def read_query(text: str, kind: type[msgspec.Struct]) -> Any:
    """The parameters behind a "?". Raises BadRequest."""
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), errors="strict", max_num_fields=_MOST_PARAMETERS)
    except ValueError as error:
        raise BadRequest(f"the parameters: {error}") from None
    lists = {item.name for item in msgspec.structs.fields(kind) if getattr(item.type, "__origin__", None) is list}
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in lists:
            found.setdefault(name, []).append(value)
        elif name in found:
            raise BadRequest(f"the parameter {name} is given twice")
        else:
            found[name] = value
    return convert(found, kind, "the parameters")


def convert(value: Any, kind: Any, what: str) -> Any:
    """Text as something else. Raises BadRequest."""
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as error:
        raise BadRequest(f"{what}: {_plain(error)}") from None


def _plain(error: Exception) -> str:
    """What msgspec says, for people."""
    if "truncated" in str(error):
        return "it is no whole JSON, or its text has half of a surrogate pair in it"
    return _PATTERN.sub(lambda found: "a name of " + TUBE_NAME if "A-Za-z0-9" in found[0] else "visible ASCII", str(error))

"""Every command, over every listener, as users with one right each: allowed exactly where the tables here say so. A command, a request, an
ask or a route that is in raftd and not in these tables fails the test.
"""

from __future__ import annotations

import http.client
import itertools
import json
import secrets
import socket
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

import pytest

from raftd.bench.local import wait_for
from raftd.client import Client
from raftd.client.connection import Connection, NotAuthorized
from raftd.client.credentials import CredentialFiles
from raftd.config import Dashboard
from raftd.errors import UnknownUser
from raftd.jobs import asks
from raftd.jobs import replies as r
from raftd.jobs import rights as g
from raftd.jobs.policy import Policy, PolicyChange
from raftd.jobs.rights import Grant, Right
from raftd.limits import SESSION_TOKEN_BYTES
from raftd.passwords import digest_of_token
from raftd.server import client as client_listener
from raftd.server import line
from raftd.server.http.routes import Route
from raftd.server.http.v1 import v1
from raftd.wire import client as w
from raftd.wire.frames import FrameDecoder
from tests.processes.harness import ProcessCluster

TUBE, OTHER = "mine", "other"
PUT, WORK, READ, MANAGE, OPERATE = Right
#: To those that any user may ask, that whoever sees everything may ask, and that need nobody.
USER, OVERVIEW, ANYBODY = "user", "overview", "anybody"
#: To put, and to manage; to put, to look or to manage.
BOTH, ANY = "both", "any"
Need = Right | str

USERS: dict[str, set[tuple[Right, str]]] = {
    "nobody": set(),
    "powerless": set(),
    "put": {(PUT, TUBE)},
    "work": {(WORK, TUBE)},
    "read": {(READ, TUBE)},
    "manage": {(MANAGE, TUBE)},
    "operate": {(OPERATE, "*")},
    "reads-all": {(READ, "*")},
    "elsewhere": {(right, f"{OTHER}*") for right in (PUT, WORK, READ, MANAGE)},
    "everything": {(right, "*") for right in Right},
}


def may(user: str, need: Need) -> bool:
    granted = USERS[user]
    if need == ANYBODY:
        return True
    if user == "nobody":
        return False
    if need == USER:
        return True
    if need == OVERVIEW:
        return bool({(READ, "*"), (OPERATE, "*")} & granted)
    if need == ANY:
        return any(right in (PUT, READ, MANAGE) and tubes in (TUBE, "*") for right, tubes in granted)
    if need == BOTH:
        return {(PUT, "*"), (MANAGE, "*")} <= granted
    return any(right is need and tubes in (TUBE, "*") for right, tubes in granted)


def token_of(user: str) -> str:
    return f"raftd-{user}"


class World:
    """One node with these users, and somebody who may do everything, who prepares what is asked about."""

    def __init__(self, cluster: ProcessCluster) -> None:
        self.cluster = cluster
        self.ports = cluster.addresses[1]
        with Connection(("127.0.0.1", self.ports["client"]), 10) as first:
            changes: list[g.Change] = []
            for user, granted in USERS.items():
                if user != "nobody":
                    changes += [g.AddUser(user), g.AddToken(user, "t", digest_of_token(token_of(user)))]
                    changes += [g.AddGrant(user, Grant(*one)) for one in sorted(granted)]
            done = [r.AccessChanged()]
            # the leader may not have told yet that all nodes know users
            wait_for(lambda: first.ask(w.ChangeAccessRequest(1, changes)).reply in done, what="the users being there")
        self.operator = self.connection("everything")
        self.operator_session = Session(self.ports["client"], token_of("everything"))
        self.root = Client(f"raftd://127.0.0.1:{self.ports['client']}?token={self._token_file()}", timeout=10)

    def _token_file(self) -> str:
        path = self.cluster.directory / "everything.token"
        path.write_text(token_of("everything"))
        return str(path)

    def connection(self, user: str) -> Connection:
        credentials = CredentialFiles(token=token_of(user) if user != "nobody" else "")
        return Connection(("127.0.0.1", self.ports["client"]), 10, credentials=credentials)

    def grant(self, user: str, right: Right, is_given: bool) -> None:
        grant = Grant(right, TUBE)
        change = g.AddGrant(user, grant) if is_given else g.RemoveGrant(user, grant)
        assert self.operator.ask(w.ChangeAccessRequest(1, [change])).reply == r.AccessChanged()

    def clean(self) -> None:
        """Nothing is in the tube."""
        while (job := self.root.reserve(TUBE, timeout=0)) is not None:
            job.delete()

    def ready(self) -> int:
        return self.root.put(TUBE, "x", ttr=600)

    def delayed(self) -> int:
        return self.root.put(TUBE, "x", delay=600)

    def held(self) -> tuple[int, int]:
        """A job, and the token of its reservation, which its holder has given away."""
        self.clean()
        id = self.ready()
        body = json.dumps({"tubes": [TUBE]})
        headers = {"Authorization": f"Bearer {token_of('everything')}", "Content-Type": "application/json"}
        status, answer = self.http("POST", "/v1/reserve", body, headers)
        assert status == 200
        (job,) = answer["jobs"]
        assert job["id"] == id
        return id, job["token"]

    def http(self, method: str, path: str, body: str | None, headers: dict[str, str]) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.ports["http"], timeout=10)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            if answer.getheader("Content-Type", "").startswith("text/event-stream"):
                return answer.status, {}
            data = answer.read()
            is_json = "json" in answer.getheader("Content-Type", "")
            return answer.status, json.loads(data) if data and is_json else {}
        finally:
            connection.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ProcessCluster(tmp_path_factory.mktemp("matrix"), 1) as cluster:
        cluster.leader()
        made = World(cluster)
        yield made
        made.root.close()


def differences(world: World, table: dict[str, tuple[Need, Any]], ask: Callable[[World, str, Any], bool]) -> list[str]:
    """Where it is not as the table says."""
    wrong = []
    for (name, (need, what)), user in itertools.product(table.items(), USERS):
        is_allowed = ask(world, user, what)
        if is_allowed is not may(user, need):
            wrong.append(f"{name} as {user}: {'allowed' if is_allowed else 'refused'}, and needs {need}")
    return wrong


# -- the line protocol ----------------------------------------------------------------------------


class Line:
    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._file = self._socket.makefile("rb")

    def ask(self, command: bytes) -> bytes:
        self._socket.sendall(command + b"\r\n")
        answer: bytes = self._file.readline()
        word, *rest = answer.split()
        if word in (b"OK", b"FOUND", b"RESERVED"):
            answer += self._file.read(int(rest[-1]) + 2)
        return answer

    def close(self) -> None:
        self._file.close()
        self._socket.close()


REFUSED = (b"NOT_AUTHORIZED\r\n", b"NOT_FOUND\r\n")
Said = Callable[[World], bytes]


def _of(text: str, prepare: Callable[[World], Any] | None = None) -> Said:
    """`%` is what `prepare` gives."""
    return lambda world: text.replace("%", str(prepare(world)) if prepare is not None else "").encode()


def _buried(world: World) -> int:
    id, token = world.held()
    headers = {"Authorization": f"Bearer {token_of('everything')}", "Content-Type": "application/json"}
    world.http("POST", f"/v1/jobs/{id}/bury", json.dumps({"token": token}), headers)
    return id


def _one_ready(world: World) -> int:
    world.clean()
    return world.ready()


def _one_delayed(world: World) -> int:
    return world.delayed()


#: What is asked of the tube that is used, and what of a job that the session holds.
LINE: dict[str, tuple[Need, Said]] = {
    "put": (PUT, _of("put 0 0 600 1\r\nx")),
    "use": (ANY, _of(f"use {TUBE}")),
    "watch": (WORK, _of(f"watch {TUBE}")),
    "ignore": (USER, _of("ignore nothing")),
    "reserve": (WORK, _of("reserve", _one_ready)),
    "reserve-with-timeout": (WORK, _of("reserve-with-timeout 0", _one_ready)),
    "reserve-job": (WORK, _of("reserve-job %", _one_ready)),
    "delete": (MANAGE, _of("delete %", _one_delayed)),
    "release": (WORK, _of("release HELD 0 0")),
    "bury": (WORK, _of("bury HELD 0")),
    "touch": (WORK, _of("touch HELD")),
    "kick": (MANAGE, _of("kick 1")),
    "kick-job": (MANAGE, _of("kick-job %", _one_delayed)),
    "pause-tube": (MANAGE, _of(f"pause-tube {TUBE} 0")),
    "peek": (READ, _of("peek %", _one_delayed)),
    "peek-ready": (READ, _of("peek-ready", _one_ready)),
    "peek-delayed": (READ, _of("peek-delayed", _one_delayed)),
    "peek-buried": (READ, _of("peek-buried", _buried)),
    "stats-job": (READ, _of("stats-job %", _one_delayed)),
    "stats-tube": (READ, _of(f"stats-tube {TUBE}", _one_delayed)),
    "list-tubes": (READ, _of("list-tubes", _one_delayed)),
    "list-tubes-watched": (USER, _of("list-tubes-watched")),
    "list-tube-used": (USER, _of("list-tube-used")),
    "stats": (OVERVIEW, _of("stats")),
    "auth": (USER, _of("AUTH")),
}


def _on_the_line(world: World, user: str, said: Said) -> bool:
    command = said(world)
    there = Line(world.ports["line"])
    try:
        auth = f"auth {user} {token_of(user)}".encode()
        if command == b"AUTH":
            return there.ask(auth) == b"AUTHORIZED\r\n"
        if user != "nobody":
            assert there.ask(auth) == b"AUTHORIZED\r\n"
            there.ask(f"use {TUBE}".encode())  # which may be refused: then it uses the default tube, to which it has no right
        if b"HELD" in command and user != "nobody":
            command = command.replace(b"HELD", str(_hold(world, user, there)).encode())
        elif command.startswith(b"reserve"):
            there.ask(f"watch {TUBE}".encode())
        answer = there.ask(command.replace(b"HELD", b"1"))
        if command == b"list-tubes":
            return f"- {TUBE}\n".encode() in answer
        return answer not in REFUSED
    finally:
        there.close()


def _hold(world: World, user: str, there: Line) -> int:
    """The session holds a job, whatever right it has left."""
    world.clean()
    id = world.ready()
    had = (WORK, TUBE) in USERS[user]
    if not had:
        world.grant(user, WORK, True)
    assert there.ask(f"watch {TUBE}".encode()).startswith(b"WATCHING")
    assert there.ask(b"reserve-with-timeout 0").startswith(f"RESERVED {id} ".encode())
    if not had:
        world.grant(user, WORK, False)
    return id


def test_commands_of_the_line_protocol(world):
    assert set(LINE) == set(line._COMMANDS) | set(line._READS) | {"stats", "auth"}
    assert differences(world, LINE, _on_the_line) == []


# -- asks -----------------------------------------------------------------------------------------


class Session:
    """A connection that speaks for a session; None if it is refused."""

    def __init__(self, port: int, token: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._decoder = FrameDecoder()
        self._socket.sendall(w.encode_hello(w.SessionHello("", secrets.token_bytes(SESSION_TOKEN_BYTES), "", token)))
        w.decode_attached_hello(self._frame())
        self._decoder.greeted()
        self._id = 0

    def ask(self, what: asks.What) -> object:
        self._id += 1
        self._socket.sendall(w.encode_request(w.AskRequest(self._id, self._id, [], what)))
        while (answer := w.decode_answer(self._frame())).id != self._id:
            pass
        return answer.reply

    def _frame(self) -> bytes:
        while (body := self._decoder.next_frame()) is None:
            data = self._socket.recv(1 << 16)
            if not data:
                raise ConnectionResetError
            self._decoder.feed(data)
        return body

    def close(self) -> None:
        self._socket.close()


def _held(kind: Callable[..., asks.What], *more: Any) -> Callable[[World], asks.What]:
    return lambda world: kind([world.held()], *more)


def _plan(tube: str = TUBE) -> asks.Plan:
    return asks.Plan(tube, asks.NewJob(1, 0, 1_000, b"x"), every_ms=3_600_000)


def _with_schedule(what: asks.What) -> Callable[[World], asks.What]:
    def make(world: World) -> asks.What:
        replies = world.operator_session.ask(asks.SetSchedule("beat", _plan()))
        assert isinstance(replies, r.ScheduleSet)
        return what

    return make


ASKS: dict[type, tuple[Need, Callable[[World], asks.What]]] = {
    asks.Put: (PUT, lambda world: asks.Put(TUBE, [asks.NewJob(1, 0, 1_000, b"x")])),
    asks.Reserve: (WORK, lambda world: asks.Reserve([TUBE])),
    asks.Subscribe: (WORK, lambda world: asks.Subscribe([TUBE], 1)),
    asks.Flow: (USER, lambda world: asks.Flow(999, 0)),
    asks.Cancel: (USER, lambda world: asks.Cancel(999)),
    asks.Delete: (WORK, _held(asks.Delete)),
    asks.Release: (WORK, _held(asks.Release)),
    asks.Fail: (WORK, _held(asks.Fail)),
    asks.Bury: (WORK, _held(asks.Bury)),
    asks.Touch: (WORK, _held(asks.Touch)),
    asks.KickJobs: (MANAGE, lambda world: asks.KickJobs([_one_delayed(world)])),
    asks.Kick: (MANAGE, lambda world: asks.Kick(TUBE, 1)),
    asks.Pause: (MANAGE, lambda world: asks.Pause(TUBE, 0)),
    asks.Declare: (MANAGE, lambda world: asks.Declare(TUBE)),
    asks.Undeclare: (MANAGE, lambda world: asks.Undeclare(TUBE)),
    asks.SetPolicies: (MANAGE, lambda world: asks.SetPolicies([PolicyChange(TUBE, Policy(max_jobs=1_000_000))])),
    asks.Replay: (MANAGE, lambda world: asks.Replay(asks.Selection(TUBE, error="no such error"), "delete")),
    asks.End: (USER, lambda world: asks.End()),
    asks.SetSchedule: (BOTH, lambda world: asks.SetSchedule("beat", _plan())),
    asks.PauseSchedule: (MANAGE, _with_schedule(asks.PauseSchedule("beat", True))),
    asks.RunSchedule: (BOTH, _with_schedule(asks.RunSchedule("beat"))),
}


def _in_a_session(world: World, user: str, make: Callable[[World], asks.What]) -> bool:
    what = make(world)
    try:
        session = Session(world.ports["client"], token_of(user) if user != "nobody" else "")
    except UnknownUser:
        return False
    try:
        reply = session.ask(what)
        if not isinstance(what, asks.End):
            session.ask(asks.End())  # what it holds is given back now, and not when its timeout is over
    finally:
        session.close()
    is_missing = isinstance(reply, r.Missed) and bool(reply.jobs)
    is_no_schedule = isinstance(reply, r.NotFound) and isinstance(what, asks.OfSchedules)
    return not (isinstance(reply, r.NotAuthorized) or is_missing or is_no_schedule)


def test_asks(world):
    assert set(ASKS) == set(asks.What.__args__)
    table = {kind.__name__: line for kind, line in ASKS.items()}
    assert differences(world, table, _in_a_session) == []


# -- requests to a node -----------------------------------------------------------------------------

REQUESTS: dict[type, tuple[Need, Callable[[World], w.Request]]] = {
    w.PingRequest: (USER, lambda world: w.PingRequest(1)),
    w.JobRequest: (READ, lambda world: w.JobRequest(1, _one_delayed(world))),
    w.NextRequest: (READ, lambda world: w.NextRequest(1, TUBE)),
    w.TubesRequest: (READ, lambda world: w.TubesRequest(1)),
    w.TubeRequest: (READ, lambda world: w.TubeRequest(1, TUBE)),
    w.HistoryRequest: (READ, lambda world: w.HistoryRequest(1, _one_delayed(world))),
    w.PoliciesRequest: (READ, lambda world: w.PoliciesRequest(1, TUBE)),
    w.CountRequest: (READ, lambda world: w.CountRequest(1, asks.Selection(TUBE))),
    w.SchedulesRequest: (READ, lambda world: _schedules(world)),
    w.ResultRequest: (READ, lambda world: w.ResultRequest(1, _finished(world))),
    w.WhoAmIRequest: (USER, lambda world: w.WhoAmIRequest(1)),
    w.MembersRequest: (USER, lambda world: w.MembersRequest(1)),
    w.StatusRequest: (OVERVIEW, lambda world: w.StatusRequest(1)),
    w.UsersRequest: (OPERATE, lambda world: w.UsersRequest(1)),
    w.AuditRequest: (OPERATE, lambda world: w.AuditRequest(1)),
    w.ChangeAccessRequest: (OPERATE, lambda world: w.ChangeAccessRequest(1, [g.AddUser(f"u{secrets.token_hex(8)}")])),
    w.BackupRequest: (OPERATE, lambda world: w.BackupRequest(1)),
    w.ChunkRequest: (OPERATE, lambda world: w.ChunkRequest(1, 1, 0)),
    w.TransferRequest: (OPERATE, lambda world: w.TransferRequest(1, 99)),
    w.AddMemberRequest: (OPERATE, lambda world: w.AddMemberRequest(1, 1, "127.0.0.1", 1)),
    w.PromoteMemberRequest: (OPERATE, lambda world: w.PromoteMemberRequest(1, 99)),
    w.RemoveMemberRequest: (OPERATE, lambda world: w.RemoveMemberRequest(1, 99)),
}


def _schedules(world: World) -> w.Request:
    _with_schedule(asks.Flow(1, 1))(world)
    return w.SchedulesRequest(1, "beat")


def _finished(world: World) -> int:
    world.clean()
    world.root.set_policy(TUBE, {"retain_s": 3600})
    id = world.ready()
    job = world.root.reserve(TUBE, timeout=5)
    assert job is not None
    assert job.id == id
    job.delete()
    return id


EMPTY = {
    w.JobFound: lambda reply: reply.job is None,
    w.TubesFound: lambda reply: not any(tube.name == TUBE for tube in reply.tubes),
    w.History: lambda reply: not reply.events,
    w.SchedulesFound: lambda reply: not reply.schedules,
    w.ResultFound: lambda reply: reply.job is None,
}


def _of_a_node(world: World, user: str, make: Callable[[World], w.Request]) -> bool:
    request = make(world)
    try:
        with world.connection(user) as connection:
            reply = connection.ask(request).reply
    except NotAuthorized:
        return False
    is_empty = EMPTY.get(type(reply), lambda reply: False)(reply)
    is_refused = isinstance(reply, w.Failed) and w.is_about_who(reply)
    return not is_refused and not is_empty


def test_requests_to_a_node(world):
    assert set(REQUESTS) | {w.AskRequest} == set(w.Request.__args__)
    assert set(client_listener.NEEDS) == set(w.Request.__args__) | {w.Unknown}
    world.clean()
    world.root.put(TUBE, "x", ttr=600)
    table = {kind.__name__: line for kind, line in REQUESTS.items()}
    assert differences(world, table, _of_a_node) == []


# -- HTTP -------------------------------------------------------------------------------------------

HttpCall = tuple[str, str, Any]
JOB = {"body": "x"}


def _at_job(method: str, rest: str, prepare: Callable[[World], int] = _one_delayed, body: Any = None) -> Callable[[World], HttpCall]:
    return lambda world: (method, f"/v1/jobs/{prepare(world)}{rest}", body)


def _at_held(rest: str) -> Callable[[World], HttpCall]:
    def make(world: World) -> HttpCall:
        id, token = world.held()
        return "POST", f"/v1/jobs/{id}{rest}", {"token": token}

    return make


def _at_tube(method: str, rest: str = "", body: Any = None) -> Callable[[World], HttpCall]:
    def make(world: World) -> HttpCall:
        _one_delayed(world)
        return method, f"/v1/tubes/{TUBE}{rest}", body

    return make


def _at(method: str, path: str, body: Any = None) -> Callable[[World], HttpCall]:
    return lambda world: (method, path, body)


def _at_schedule(method: str, rest: str = "", body: Any = None) -> Callable[[World], HttpCall]:
    def make(world: World) -> HttpCall:
        _with_schedule(asks.Flow(1, 1))(world)
        return method, f"/v1/schedules/beat{rest}", body

    return make


def _next_call(world: World) -> HttpCall:
    _one_ready(world)
    return "GET", f"/v1/tubes/{TUBE}/next", None


def _reserve_call(world: World) -> HttpCall:
    _one_ready(world)
    return "POST", "/v1/reserve", {"tubes": [TUBE]}


def _policy_call(method: str) -> Callable[[World], HttpCall]:
    def make(world: World) -> HttpCall:
        world.root.set_policy(TUBE, {"retain_s": 3600})
        return method, f"/v1/tubes/{TUBE}/policy", None

    return make


SCHEDULE = {"tube": TUBE, "body": "x", "every_s": 3600}
#: By the name of the route.
ROUTES: dict[str, tuple[Need, Callable[[World], HttpCall]]] = {
    "list_tubes": (READ, _at("GET", "/v1/tubes")),
    "declare": (MANAGE, _at_tube("PUT")),
    "show_tube": (READ, _at_tube("GET")),
    "undeclare": (MANAGE, _at_tube("DELETE")),
    "pause": (MANAGE, _at_tube("POST", "/pause", {"seconds": 0})),
    "kick": (MANAGE, _at_tube("POST", "/kick", {"count": 1})),
    "peek": (READ, _next_call),
    "list_jobs": (READ, _at_tube("GET", "/jobs?state=delayed")),
    "put": (PUT, _at_tube("POST", "/jobs", JOB)),
    "reserve": (WORK, _reserve_call),
    "show_job": (READ, _at_job("GET", "")),
    "result": (READ, _at_job("GET", "/result", _finished)),
    "delete": (MANAGE, _at_job("DELETE", "")),
    "release": (WORK, _at_held("/release")),
    "bury": (WORK, _at_held("/bury")),
    "touch": (WORK, _at_held("/touch")),
    "kick_job": (MANAGE, _at_job("POST", "/kick")),
    "history": (READ, _at_job("GET", "/history")),
    "stats": (OVERVIEW, _at("GET", "/v1/stats")),
    "list_policies": (READ, _at("GET", "/v1/policies")),
    "show_policy": (READ, _policy_call("GET")),
    "set_policy": (MANAGE, _at_tube("PUT", "/policy", {"retain_s": 3600})),
    "unset_policy": (MANAGE, _policy_call("DELETE")),
    "count_dead": (READ, _at_tube("GET", "/dead")),
    "replay": (MANAGE, _at_tube("POST", "/replay", {"action": "delete", "error": "no such error"})),
    "list_schedules": (READ, _at_schedule("GET")),
    "show_schedule": (READ, _at_schedule("GET")),
    "set_schedule": (BOTH, _at_schedule("PUT", "", SCHEDULE)),
    "remove_schedule": (MANAGE, _at_schedule("DELETE")),
    "pause_schedule": (MANAGE, _at_schedule("POST", "/pause", {"paused": True})),
    "run_schedule": (BOTH, _at_schedule("POST", "/run")),
    "show": (OVERVIEW, _at("GET", "/v1/cluster")),
    "transfer": (OPERATE, _at("POST", "/v1/cluster/transfer", {"node": 99})),
    "add": (OPERATE, _at("POST", "/v1/cluster/members", {"node": 1, "host": "127.0.0.1", "peer": 1})),
    "promote": (OPERATE, _at("POST", "/v1/cluster/members/99/promote")),
    "remove": (OPERATE, _at("DELETE", "/v1/cluster/members/99")),
    "show_series": (OVERVIEW, _at("GET", "/v1/series")),
    "back_up": (OPERATE, _at("GET", "/v1/backup")),
    "list_users": (OPERATE, _at("GET", "/v1/users")),
    "list_records": (OPERATE, _at("GET", "/v1/audit")),
    "show_session": (ANYBODY, _at("GET", "/v1/session")),
    "sign_in": (USER, _at("POST", "/v1/session", {})),
    "sign_out": (USER, _at("DELETE", "/v1/session")),
    "problems_explained": (ANYBODY, _at("GET", "/v1/problems")),
    "specification": (ANYBODY, _at("GET", "/v1/openapi.json")),
}
#: Paths outside the table of routes.
PATHS: dict[str, tuple[Need, Callable[[World], HttpCall]]] = {
    "/": (ANYBODY, _at("GET", "/")),
    "/healthz": (ANYBODY, _at("GET", "/healthz")),
    "/readyz": (ANYBODY, _at("GET", "/readyz")),
    "/metrics": (OVERVIEW, _at("GET", "/metrics")),
    "/status": (OVERVIEW, _at("GET", "/status")),
    "/events": (USER, _at("GET", "/events")),
    "/summary": (USER, _at("GET", "/summary")),
    "/page/main.js": (ANYBODY, _at("GET", "/page/main.js")),
    "/topic, GET": (READ, _at("GET", "/topic")),
    "/topic, PUT": (MANAGE, _at("PUT", "/topic", {"topic": TUBE})),
    "/message, PUT": (PUT, _at("PUT", "/message", {"topic": TUBE, "message": "x"})),
    "/message, GET": (WORK, lambda world: _message_call(world)),
}
LISTS = {"/v1/tubes": "tubes", "/v1/policies": "policies", "/v1/schedules": "schedules"}


def _message_call(world: World) -> HttpCall:
    _one_ready(world)
    world.operator_session.ask(asks.Declare(TUBE))
    return "GET", f"/message/{TUBE}", None


def _over_http(world: World, user: str, make: Callable[[World], HttpCall]) -> bool:
    method, path, body = make(world)
    headers = {"Content-Type": "application/json"} if body is not None else {}
    if user != "nobody":
        headers["Authorization"] = f"Bearer {token_of(user)}"
    status, answer = world.http(method, path, json.dumps(body) if body is not None else None, headers)
    assert status < 500, (user, method, path, answer)
    if path == "/topic" and method == "GET" and status == 200:
        return TUBE in answer["topics"]
    if path in LISTS and status == 200:
        return bool(answer[LISTS[path]]) and TUBE in json.dumps(answer)
    if path == "/v1/reserve" and status == 200:
        return bool(answer["jobs"])
    return status not in (401, 403, 404)


def all_routes() -> list[Route]:
    return v1(Mock(), Mock(), Mock(), Mock(), Mock(), Dashboard.FULL).routes


def test_calls_over_http(world):
    world.root.set_policy(TUBE, {"retain_s": 3600})
    assert set(ROUTES) == {route.name for route in all_routes()}
    assert differences(world, {**ROUTES, **PATHS}, _over_http) == []

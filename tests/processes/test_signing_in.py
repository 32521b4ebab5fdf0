"""The dashboard's server side with real requests: its files and their headers, signing in with a cookie, and what a cookie is good for."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from raftd.bench.local import wait_for
from raftd.client.connection import Connection
from raftd.client.credentials import CredentialFiles
from raftd.jobs import replies as r
from raftd.jobs import rights as g
from raftd.jobs.rights import ALL_TUBES, Grant, Right
from raftd.passwords import digest_of_token
from raftd.wire import client as w
from tests.processes.harness import ProcessCluster

TOKEN = "raftd-of-root"


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def problem(self) -> str:
        return self.json["type"].partition("#")[2]


class Browser:
    """One that keeps cookies, and says what browsers say of pages of the node itself."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.cookie = self.secret = ""

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=15)
        given = {"Host": f"127.0.0.1:{self.port}", "Sec-Fetch-Site": "same-origin", **headers}
        if self.cookie:
            given.setdefault("Cookie", self.cookie)
        if body is not None:
            given["Content-Type"] = "application/json"
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, given)
            answer = connection.getresponse()
            if answer.getheader("Content-Type", "").startswith("text/event-stream"):
                return Answer(answer.status, answer.headers, answer.read(20))
            return Answer(answer.status, answer.headers, answer.read())
        finally:
            connection.close()

    def change(self, method: str, path: str, body: Any = None) -> Answer:
        return self.ask(method, path, body, **{"Raftd-Page": self.secret})

    def sign_in(self, token: str = TOKEN, **wanted: Any) -> Answer:
        answer = self.ask("POST", "/v1/session", wanted, Authorization=f"Bearer {token}", **{"Raftd-Page": ""})
        if answer.status == 201:
            self.cookie = answer.headers["Set-Cookie"].partition(";")[0]
            self.secret = answer.json["secret"]
        return answer


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    with ProcessCluster(tmp_path_factory.mktemp("signing-in"), 1) as cluster:
        cluster.leader()
        with Connection(("127.0.0.1", cluster.addresses[1]["client"]), 10) as first:
            grants = [g.AddGrant("root", Grant(right, ALL_TUBES)) for right in Right]
            changes = [g.AddUser("root"), g.AddToken("root", "t", digest_of_token(TOKEN)), *grants]
            wait_for(lambda: first.ask(w.ChangeAccessRequest(1, changes)).reply == r.AccessChanged(), what="the user being there")
        yield cluster.addresses[1]


@pytest.fixture
def browser(ports: dict[str, int]) -> Browser:
    return Browser(ports["http"])


def test_the_page_is_for_everybody_and_may_do_little(browser):
    page = browser.ask("GET", "/")
    assert page.status == 200
    policy = dict(part.strip().partition(" ")[::2] for part in page.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == "'self'"
    assert policy["connect-src"].startswith("'self' http://127.0.0.1:")
    assert (policy["require-trusted-types-for"], policy["trusted-types"], policy["frame-ancestors"]) == ("'script'", "'none'", "'none'")
    assert b"<script>" not in page.body
    assert b"style=" not in page.body


def test_files_of_the_page_are_sent_once(browser):
    script = browser.ask("GET", "/page/main.js")
    assert (script.status, script.headers["Content-Type"]) == (200, "text/javascript; charset=utf-8")
    again = browser.ask("GET", "/page/main.js", **{"If-None-Match": script.headers["ETag"]})
    assert (again.status, again.body) == (304, b"")
    assert browser.ask("GET", "/page/../setup.py").status in (401, 404)
    assert browser.ask("GET", "/page/nothing.js").status == 404
    assert browser.ask("POST", "/page/main.js").status == 405


def test_who_has_not_signed_in_is_told_that_and_no_more(browser):
    session = browser.ask("GET", "/v1/session").json
    assert (session["has_users"], session["user"], session["operates"], session["sees_all"]) == (True, None, False, False)
    assert session["grants"] == []
    refused = browser.ask("GET", "/v1/stats", **{"Raftd-Page": ""})
    assert refused.status == 401
    assert refused.headers["WWW-Authenticate"] == "Bearer"  # or the browser would ask its user for a password itself


def test_one_signs_in_with_what_a_program_shows_and_then_has_a_cookie(browser):
    assert browser.sign_in("raftd-wrong").status == 401
    signed_in = browser.sign_in()
    attributes = signed_in.headers["Set-Cookie"].split("; ")[1:]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(attributes)
    assert (signed_in.json["user"], signed_in.json["operates"], signed_in.json["is_browser"]) == ("root", True, True)
    assert browser.ask("GET", "/v1/session").json["secret"] == ""  # whoever has got the cookie alone changes nothing
    assert browser.ask("GET", "/v1/users").json["users"][0]["name"] == "root"
    assert browser.ask("GET", "/summary").status == 200
    assert browser.change("POST", "/v1/tubes/t/jobs", {"body": "x"}).status == 201


def test_a_change_needs_what_only_the_page_knows(browser):
    browser.sign_in()
    for headers in ({}, {"Raftd-Page": ""}, {"Raftd-Page": "x"}, {"Raftd-Page": "é"}):
        refused = browser.ask("POST", "/v1/tubes/t/jobs", {"body": "x"}, **headers)
        assert (refused.status, refused.problem) == (403, "cross-site")
    assert (
        browser.ask("POST", "/v1/tubes/t/jobs", {"body": "x"}, **{"Raftd-Page": browser.secret, "Sec-Fetch-Site": "same-site"}).status
        == 403
    )


def test_a_cookie_counts_for_the_page_alone(browser):
    browser.sign_in()
    for path in ("/message/t", "/topic", "/metrics", "/status"):
        assert browser.ask("GET", path, **{"Raftd-Page": browser.secret}).status == 401, path


def test_who_only_looks_changes_nothing(browser):
    assert browser.sign_in(is_read_only=True).json["is_read_only"]
    assert browser.ask("GET", "/v1/tubes").status == 200
    for method, path, body in (
        ("POST", "/v1/tubes/t/jobs", {"body": "x"}),
        ("DELETE", "/v1/cluster/members/1", None),
        ("PUT", "/v1/tubes/x", None),
    ):
        refused = browser.change(method, path, body)
        assert (refused.status, refused.problem) == (403, "read-only")
    assert browser.change("DELETE", "/v1/session").status == 204


def test_a_session_does_not_become_more_than_it_was_begun_for(browser):
    browser.sign_in(is_read_only=True)
    again = browser.change("POST", "/v1/session", {"is_read_only": False})
    assert (again.status, again.problem) == (400, "bad-request")
    connection = http.client.HTTPConnection("127.0.0.1", browser.port, timeout=15)
    try:  # what the cookie holds is nothing to be shown otherwise, on a connection that knows it either
        for headers, status in (({"Cookie": browser.cookie}, 200), ({"Authorization": browser.cookie.partition("=")[2]}, 401)):
            connection.request("GET", "/v1/stats", headers=headers)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == status
    finally:
        connection.close()


def test_signing_in_again_ends_the_session_before(browser):
    browser.sign_in()
    cookie = browser.cookie
    assert browser.sign_in().status == 201
    browser.cookie = cookie
    assert browser.ask("GET", "/v1/stats").status == 401


@pytest.mark.parametrize("path", ["/events", "/summary"])
def test_a_stream_ends_when_one_signs_out(browser, path):
    browser.sign_in()
    connection = http.client.HTTPConnection("127.0.0.1", browser.port, timeout=15)
    try:
        connection.request("GET", path, headers={"Cookie": browser.cookie})
        stream = connection.getresponse()
        assert stream.readline().startswith(b"retry:")
        assert browser.change("DELETE", "/v1/session").status == 204
        said = stream.read()  # to its end
        assert b"event: job" not in said
    finally:
        connection.close()


def test_a_browser_must_call_a_node_by_a_name_that_it_has(browser):
    shy = {"Host": "evil.example", "User-Agent": "Mozilla/5.0", "Accept-Language": "en"}
    for path in ("/", "/v1/session", "/summary", "/events", "/metrics", "/v1/backup"):
        refused = browser.ask("GET", path, **shy)
        assert (refused.status, refused.problem) == (403, "unknown-name"), path
    assert browser.ask("GET", "/healthz", **shy).status == 200


def test_a_backup_is_for_the_page_and_for_programs_alone(browser):
    browser.sign_in()
    assert browser.ask("GET", "/v1/backup", **{"Sec-Fetch-Site": "same-site"}).status == 403
    assert browser.ask("GET", "/v1/backup").status == 200


def test_whoever_has_signed_out_is_nobody(browser):
    browser.sign_in()
    cookie = browser.cookie
    signed_out = browser.change("DELETE", "/v1/session")
    assert signed_out.status == 204
    assert "Max-Age=0" in signed_out.headers["Set-Cookie"]
    browser.cookie = cookie
    assert browser.ask("GET", "/v1/stats").status == 401


def test_a_token_that_is_revoked_ends_the_sessions_that_it_began(browser, ports):
    with Connection(("127.0.0.1", ports["client"]), 10, credentials=CredentialFiles(token=TOKEN)) as operator:
        made = g.AddToken("root", "second", digest_of_token("raftd-second"))
        assert operator.ask(w.ChangeAccessRequest(1, [made])).reply == r.AccessChanged()
        assert browser.sign_in("raftd-second").status == 201
        assert operator.ask(w.ChangeAccessRequest(1, [g.RemoveToken("root", "second")])).reply == r.AccessChanged()
    wait_for(lambda: browser.ask("GET", "/v1/session").json["user"] is None, what="the end of the session")
    assert browser.ask("GET", "/v1/stats").status == 401

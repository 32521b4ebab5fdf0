"""The topic and message contract, row by row, on real nodes: one and three, through the leader and a follower, and without a quorum."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from raftd.bench.local import wait_for
from tests.processes.harness import ProcessCluster

YES, NO = {"success": True}, {"success": False}


class Caller:
    """One connection, kept alive, to one node."""

    def __init__(self, cluster: ProcessCluster, node: int) -> None:
        self.connection = http.client.HTTPConnection(*cluster.address(node, "http"), timeout=5)

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, object]:
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        self.connection.request(method, path, raw)
        answer = self.connection.getresponse()
        return answer.status, json.loads(answer.read())

    def put_topic(self, topic: object) -> tuple[int, object]:
        return self.ask("PUT", "/topic", {"topic": topic})

    def put(self, topic: object, message: object) -> tuple[int, object]:
        return self.ask("PUT", "/message", {"topic": topic, "message": message})

    def get(self, topic: str) -> tuple[int, Any]:
        return self.ask("GET", f"/message/{topic}")


@pytest.fixture(scope="module", params=["one node", "three nodes, the leader", "three nodes, a follower"])
def caller(request, tmp_path_factory) -> Iterator[Caller]:
    nodes = 1 if request.param == "one node" else 3
    with ProcessCluster(tmp_path_factory.mktemp("topics"), nodes) as cluster:
        leader = cluster.leader()
        node = leader if request.param != "three nodes, a follower" else leader % nodes + 1
        wait_for(lambda: (stats := cluster.stats(node)) and stats["leader"] == str(leader), what="the node knowing its leader")
        yield Caller(cluster, node)


def test_topics_are_listed_in_order_of_creation(caller):
    assert caller.ask("GET", "/topic") == (200, {"success": True, "topics": []})
    for topic in ("zebra", "apple", "mango"):
        assert caller.put_topic(topic) == (200, YES)
    assert caller.ask("GET", "/topic") == (200, {"success": True, "topics": ["zebra", "apple", "mango"]})


def test_a_topic_is_created_once(caller):
    assert caller.put_topic("once") == (200, YES)
    assert caller.put_topic("once") == (400, NO)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"t"', b"null", b"{}", b'{"topic": 1}', b'{"topic": null}', b'{"topic": ""}', b'{"topic": "a b"}', b"\xff"]
)
def test_a_topic_of_a_bad_body_is_refused(caller, body):
    assert caller.ask("PUT", "/topic", body) == (400, NO)


def test_messages_come_in_the_order_in_which_they_were_put_and_once(caller):
    caller.put_topic("order")
    for number in range(5):
        assert caller.put("order", f"message {number}") == (200, YES)
    for number in range(5):
        assert caller.get("order") == (200, {"success": True, "message": f"message {number}"})
    assert caller.get("order") == (404, NO)


def test_an_empty_message_is_one_and_text_is_any_language(caller):
    caller.put_topic("texts")
    for text in ("", "Grüße, 世界", 'quotes " and \\ and \n', "x" * 60_000):
        assert caller.put("texts", text) == (200, YES)
        assert caller.get("texts") == (200, {"success": True, "message": text})


def test_what_does_not_exist_is_not_found(caller):
    assert caller.put("nowhere", "m") == (404, NO)
    assert caller.get("nowhere") == (404, NO)
    assert caller.ask("GET", "/nothing") == (404, NO)
    assert caller.ask("GET", "/message") == (405, NO)
    assert caller.ask("DELETE", "/topic") == (405, NO)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"topic": "bodies"}',
        b'{"message": "m"}',
        b'{"topic": "bodies", "message": 1}',
        b'{"topic": 1, "message": "m"}',
        b'{"topic": "bodies", "message": null}',
    ],
)
def test_a_message_of_a_bad_body_is_refused(caller, body):
    caller.put_topic("bodies")
    assert caller.ask("PUT", "/message", body) == (400, NO)
    assert caller.get("bodies") == (404, NO)


def test_a_message_that_is_too_large_is_refused_and_the_next_is_taken(caller):
    caller.put_topic("large")
    assert caller.put("large", "x" * 65_536) == (400, NO)
    assert caller.put("large", "x" * 65_535) == (200, YES)
    assert caller.get("large")[0] == 200


def test_status_says_role_and_term(caller):
    status, said = caller.ask("GET", "/status")
    assert status == 200
    assert said["role"] in ("Leader", "Follower")
    assert said["term"] >= 1


def test_a_body_over_every_limit_is_turned_away(caller):
    connection = http.client.HTTPConnection(caller.connection.host, caller.connection.port, timeout=5)
    connection.putrequest("PUT", "/message")
    connection.putheader("Content-Length", str(1 << 30))
    connection.endheaders()
    assert connection.getresponse().status == 413


def test_other_listeners_see_the_same_messages(tmp_path):
    with ProcessCluster(tmp_path, 1) as cluster:
        cluster.leader()
        caller, line = Caller(cluster, 1), cluster.client(1)
        caller.put_topic("shared")
        line.ask(b"use shared")
        line.put(b"by line")
        line.put(b"\xff\xfe")
        assert caller.get("shared") == (200, {"success": True, "message": "by line"})
        assert caller.get("shared") == (200, {"success": True, "message": "//4=", "encoding": "base64"})
        caller.put("shared", "by http")
        line.ask(b"watch shared")
        assert line.reserve(0)[1] == b"by http"
        line.ask(b"use undeclared")
        line.put(b"hidden")
        assert caller.ask("GET", "/topic") == (200, {"success": True, "topics": ["shared"]})
        assert caller.get("undeclared") == (404, NO)


def test_without_a_quorum_all_but_status_is_503_in_time(tmp_path):
    with ProcessCluster(tmp_path, 3) as cluster:
        leader = cluster.leader()
        caller = Caller(cluster, leader)
        caller.put_topic("kept")
        caller.put("kept", "one")
        caller.put("kept", "two")
        others = [node for node in cluster.nodes if node != leader]
        for node in others:
            cluster.kill(node)
        for _ in range(2):  # at once, while it still thinks it leads, and later
            for ask in (lambda: caller.get("kept"), lambda: caller.put_topic("new"), lambda: caller.ask("GET", "/topic")):
                started = time.monotonic()
                assert ask() == (503, NO)
                assert time.monotonic() - started < 0.95
            assert caller.ask("GET", "/status")[0] == 200
        for node in others:
            cluster.start(node)
        cluster.leader()
        again = Caller(cluster, leader)
        wait_for(lambda: again.ask("GET", "/topic")[0] == 200, what="a quorum")
        assert [again.get("kept")[1].get("message") for _ in range(2)] == ["one", "two"]
        assert again.get("kept") == (404, NO)


def test_with_topics_leader_only_the_others_name_the_leader(tmp_path):
    with ProcessCluster(tmp_path, 3, topics_leader_only=True) as cluster:
        leader = cluster.leader()
        other = leader % 3 + 1
        wait_for(lambda: (stats := cluster.stats(other)) and stats["leader"] == str(leader), what="the node knowing its leader")
        caller = Caller(cluster, other)
        caller.connection.request("PUT", "/topic", b'{"topic": "t"}')
        answer = caller.connection.getresponse()
        assert (answer.status, json.loads(answer.read())) == (400, NO)
        assert answer.getheader("X-Raft-Leader") == ":".join(map(str, cluster.address(leader, "http")))
        assert caller.ask("GET", "/status")[1]["role"] == "Follower"
        assert Caller(cluster, leader).put_topic("t") == (200, YES)

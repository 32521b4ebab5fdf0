"""The HTTP listener of real nodes: what operators and their tools ask, and who must not hurt it."""

from __future__ import annotations

import http.client
import json
import socket
import time
from contextlib import suppress

import pytest
from prometheus_client.parser import text_string_to_metric_families

from raftd.bench.local import wait_for
from tests.processes.harness import ProcessCluster


def get(cluster: ProcessCluster, node: int, path: str, method: str = "GET") -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection(*cluster.address(node, "http"), timeout=5)
    connection.request(method, path)
    answer = connection.getresponse()
    return answer.status, answer.getheader("Content-Type"), answer.read()


def metrics(cluster: ProcessCluster, node: int) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    status, kind, text = get(cluster, node, "/metrics")
    assert (status, kind.split(";")[0]) == (200, "text/plain")
    families = text_string_to_metric_families(text.decode())
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for family in families for sample in family.samples}


def test_metrics_say_what_the_node_is_and_does(tmp_path):
    with ProcessCluster(tmp_path, 3) as cluster:
        leader = cluster.leader()
        client = cluster.client(leader)
        for tube in (b"emails", b"images"):
            client.ask(b"use " + tube)
            for _ in range(3):
                client.put(b"x")
        found = metrics(cluster, leader)
        assert found["raftd_role", (("role", "leader"),)] == 1
        assert found["raftd_leader", ()] == leader
        assert found["raftd_jobs", (("state", "ready"),)] == 6
        assert found["raftd_tube_jobs", (("state", "ready"), ("tube", "images"))] == 3
        assert found["raftd_jobs_put_total", ()] == 6
        assert found["raftd_commands_total", (("command", "put"),)] == 6
        assert found["raftd_commit_index", ()] >= 6
        assert found["raftd_fsync_seconds_count", ()] >= 6
        assert found["raftd_commit_seconds_count", ()] >= 6
        assert found["raftd_batch_commands_sum", ()] >= 8
        assert found["raftd_disk_free_bytes", ()] > 0
        assert found["process_resident_memory_bytes", ()] > 0
        others = [node for node in cluster.nodes if node != leader]
        wait_for(
            lambda: all(metrics(cluster, leader)["raftd_peer_lag_entries", (("peer", str(node)),)] == 0 for node in others), what="no lag"
        )
        assert metrics(cluster, others[0])["raftd_role", (("role", "follower"),)] == 1
        answers = ("raftd_http_answers_total", (("status", "200"),))
        wait_for(lambda: metrics(cluster, leader).get(answers, 0) >= 2, what="what was asked being counted")


def test_browsers_are_told_what_not_to_do_and_by_which_names_they_may_ask(tmp_path):
    with ProcessCluster(tmp_path, 1, http_names=["queue.example"]) as cluster:
        cluster.leader()
        for path in ("/v1/tubes", "/nothing", "/metrics"):
            connection = http.client.HTTPConnection(*cluster.address(1, "http"), timeout=5)
            connection.request("GET", path)
            headers = connection.getresponse().headers
            assert headers["Content-Security-Policy"].startswith("default-src 'none'; frame-ancestors 'none'"), path
            assert (headers["X-Content-Type-Options"], headers["Cache-Control"]) == ("nosniff", "no-store"), path
        asked = []
        for host in ("queue.example", "evil.example"):
            connection = http.client.HTTPConnection(*cluster.address(1, "http"), timeout=5)
            page = {"Host": host, "Origin": f"http://{host}", "Content-Type": "application/json"}
            connection.request("POST", "/v1/tubes/t/jobs", b'{"body": "x"}', page)
            asked.append(connection.getresponse().status)
        assert asked == [201, 403]


def test_a_node_is_alive_without_a_quorum_and_ready_only_with_a_leader(tmp_path):
    with ProcessCluster(tmp_path, 3) as cluster:
        leader = cluster.leader()
        status, kind, body = get(cluster, leader, "/readyz")
        assert (status, kind, json.loads(body)["ready"]) == (200, "application/json", True)
        for node in cluster.nodes:
            if node != leader:
                cluster.kill(node)
        wait_for(lambda: get(cluster, leader, "/readyz")[0] == 503, what="the node noticing")
        assert json.loads(get(cluster, leader, "/readyz")[2])["reason"] == "no leader is known"
        assert get(cluster, leader, "/healthz")[0] == 200


def test_the_root_says_where_one_is_and_what_is_not_there_is_404(tmp_path):
    with ProcessCluster(tmp_path, 1) as cluster:
        cluster.leader()
        status, kind, body = get(cluster, 1, "/")
        assert (status, kind) == (200, "text/html; charset=utf-8")
        assert b"<title>raftd</title>" in body
        assert get(cluster, 1, "/", "HEAD")[::2] == (200, b"")
        assert get(cluster, 1, "/healthz", "POST")[0] == 405
        assert get(cluster, 1, "/../etc/passwd")[0] == 404


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", 400),
        (b"PUT /topic HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\nConnection: close\r\n\r\n", 400),
        (b"POST /v1/tubes/t/jobs HTTP/1.1\r\nContent-Length: 99999999\r\nExpect: 100-continue\r\n\r\n", 413),
    ],
)
def test_what_is_no_request_is_told_why(small_cluster, raw, status):
    with socket.create_connection(small_cluster.address(1, "http"), timeout=5) as connection:
        connection.sendall(raw)
        if status == 400 and raw.startswith(b"OPTIONS"):
            connection.shutdown(socket.SHUT_WR)
        head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"application/problem+json" in head
    assert json.loads(body)["status"] == status


def test_a_whole_address_is_a_path_too(small_cluster):
    assert get(small_cluster, 1, "http://127.0.0.1/healthz")[0] == 200


@pytest.fixture(scope="module")
def small_cluster(tmp_path_factory):
    with ProcessCluster(tmp_path_factory.mktemp("one"), 1) as cluster:
        cluster.leader()
        yield cluster


def test_hostile_requests_leave_the_node_serving_and_no_traceback(tmp_path):
    with ProcessCluster(tmp_path, 1) as cluster:
        cluster.leader()
        for raw in (
            b"\x00" * 1_000,
            b"GET\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 1_000 + b"\r\n",
            b"PUT /topic HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"OPTIONS * HTTP/1.1\r\n\r\n",
            b"GET foo HTTP/1.1\r\n\r\n",
            b"CONNECT a:80 HTTP/1.1\r\n\r\n",
            b"GET ?x HTTP/1.1\r\n\r\n",
            b"GET http://[::1/healthz HTTP/1.1\r\n\r\n",
            b"PUT /topic HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
            b"PUT /topic HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
            b"PUT /message HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"40000\r\n" + b"x" * 0x40000 + b"\r\n",
            b"PUT /topic HTTP/1.1\r\nContent-Type: multipart/form-data\r\nContent-Length: 3\r\n\r\nabc",
            b"POST /message/%ff%00 HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
            b"GET /message/%ff%00%0d%0a HTTP/1.1\r\n\r\n",
        ):
            with socket.create_connection(cluster.address(1, "http"), timeout=5) as connection:
                try:
                    connection.sendall(raw)
                    connection.shutdown(socket.SHUT_WR)
                    connection.recv(1 << 16)
                except OSError:
                    pass  # it has closed before it had all of it
            assert get(cluster, 1, "/healthz")[0] == 200
        said = cluster.log(1)
        assert "Traceback" not in said
        assert "Unhandled" not in said


@pytest.mark.load
def test_a_thousand_slow_clients_cost_no_election(tmp_path, capsys):
    """Half of them send a byte now and then, the others have asked and do not read."""
    with ProcessCluster(tmp_path, 3) as cluster:
        leader = cluster.leader()
        term = cluster.stats(leader)["term"]
        slow = [socket.create_connection(cluster.address(leader, "http"), timeout=10) for _ in range(1_000)]
        try:
            for number, connection in enumerate(slow):
                connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n" if number % 2 else b"PUT /message HTTP/1.1\r\nContent-Le")
            client = cluster.client(leader)
            served = 0
            until_s = time.monotonic() + 12
            while time.monotonic() < until_s:
                for connection in slow[::50]:
                    with suppress(OSError):
                        connection.sendall(b"n")
                assert client.delete(client.put(b"good"))
                assert get(cluster, leader, "/healthz")[0] == 200
                served += 1
            stats = cluster.stats(leader)
            assert (stats["leader"], stats["term"]) == (str(leader), term)
            dribblers = [connection for number, connection in enumerate(slow) if number % 2 == 0]
            assert all(b"408" in connection.recv(1 << 16) for connection in dribblers)
        finally:
            for connection in slow:
                connection.close()
    with capsys.disabled():
        print(f"\n  1,000 slow HTTP clients for 12 s: {served} cycles of a good one, no election")

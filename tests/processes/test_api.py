"""`/v1` of real nodes: what only real sockets show."""

from __future__ import annotations

import http.client
import json
import select
import signal
import socket
import time
from contextlib import suppress

import pytest

from raftd.bench.local import wait_for
from raftd.limits import HTTP_BODY_BYTES
from raftd.server.http.site import HTTP_ARRIVING_BYTES
from tests.processes.harness import ProcessCluster
from tests.processes.test_http import metrics

JSON = {"Content-Type": "application/json"}


class Api:
    """One connection, kept alive."""

    def __init__(self, cluster: ProcessCluster, node: int) -> None:
        self.connection = http.client.HTTPConnection(*cluster.address(node, "http"), timeout=10)

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, object]:
        self.connection.request(method, f"/v1{path}", json.dumps(body) if body is not None else None, JSON if body is not None else {})
        answer = self.connection.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if text else None

    def put(self, body: str, tube: str = "t", **more: object) -> int:
        status, said = self.ask("POST", f"/tubes/{tube}/jobs", {"body": body, **more})
        assert status == 201, said
        return said["ids"][0]

    def reserve(self, **wanted: object) -> list[dict]:
        status, said = self.ask("POST", "/reserve", {"tubes": ["t"], **wanted})
        assert status == 200, said
        return said["jobs"]


def waiting(cluster: ProcessCluster, node: int, seconds: float) -> socket.socket:
    """A connection on which somebody waits for a job."""
    body = json.dumps({"tubes": ["t"], "timeout_s": seconds}).encode()
    connection = socket.create_connection(cluster.address(node, "http"), timeout=10)
    head = b"POST /v1/reserve HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    connection.sendall(head % len(body) + body)
    return connection


def test_jobs_go_in_at_one_node_and_out_at_another(tmp_path):
    with ProcessCluster(tmp_path, 3) as cluster:
        leader = cluster.leader()
        others = [node for node in cluster.nodes if node != leader]
        producer, worker = Api(cluster, others[0]), Api(cluster, others[1])
        id = producer.put("Grüße")
        (job,) = worker.reserve(timeout_s=5)
        assert (job["id"], job["body"]) == (id, "Grüße")
        assert producer.ask("POST", f"/jobs/{id}/touch", {"token": job["token"]})[0] == 200  # whoever knows the token
        assert worker.ask("DELETE", f"/jobs/{id}?token={job['token']}") == (204, None)
        line = cluster.client(leader)
        line.ask(b"use t")
        line.put(b"by line")
        assert worker.reserve(timeout_s=5)[0]["body"] == "by line"


def test_a_hang_up_strands_no_job_and_an_answer_keeps_it(tmp_path):
    with ProcessCluster(tmp_path, 1) as cluster:
        cluster.leader()
        api = Api(cluster, 1)
        gone = waiting(cluster, 1, 50)
        wait_for(lambda: cluster.stats(1)["current-waiting"] == "1", what="somebody waiting")
        gone.close()
        wait_for(lambda: cluster.stats(1)["current-waiting"] == "0", what="nobody waiting")
        api.put("x")
        with waiting(cluster, 1, 5) as kept:
            assert b'"body":"x"' in kept.recv(65_536)
        wait_for(lambda: not cluster.stats(1)["current-waiting"].strip("0"), what="its session being over")
        assert api.reserve() == []  # the connection is closed, and the job is still his
        assert api.ask("GET", "/jobs/1")[1]["state"] == "reserved"


def test_a_connection_that_closes_with_the_answer_keeps_the_job_too(tmp_path):
    """As urllib has it, and HTTP/1.0: this side closes, as soon as everything is said."""
    with ProcessCluster(tmp_path, 1) as cluster:
        cluster.leader()
        api = Api(cluster, 1)
        json_body = b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
        for head in (b"POST /v1/reserve HTTP/1.1\r\nHost: x\r\nConnection: close\r\n", b"POST /v1/reserve HTTP/1.0\r\n"):
            id = api.put("x", tube="default")
            with socket.create_connection(cluster.address(1, "http"), timeout=10) as connection:
                connection.sendall(head + json_body)
                answer = connection.makefile("rb").read()
            assert b'"body":"x"' in answer
            wait_for(lambda: api.ask("GET", "/tubes/default")[1]["using"] == 0, what="its session being over")  # a read needs none
            assert api.ask("GET", f"/jobs/{id}")[1]["state"] == "reserved"


@pytest.mark.parametrize("size", [1_000, 300_000, 3_000_000])
def test_whoever_has_read_a_large_answer_and_closes_at_once_keeps_the_job(tmp_path, size):
    with ProcessCluster(tmp_path, 1, max_job_size=4_000_000) as cluster:
        cluster.leader()
        id = Api(cluster, 1).put("x" * size)
        worker = Api(cluster, 1)
        (job,) = worker.reserve()
        worker.connection.close()
        assert len(job["body"]) == size
        api = Api(cluster, 1)
        wait_for(lambda: api.ask("GET", "/tubes/t")[1]["watching"] == 0, what="its session being over")
        assert api.ask("DELETE", f"/jobs/{id}?token={job['token']}") == (204, None)


def test_requests_behind_one_that_waits_are_dropped_and_a_hang_up_is_heard(tmp_path):
    with ProcessCluster(tmp_path, 1) as cluster:
        cluster.leader()
        before = metrics(cluster, 1)["process_resident_memory_bytes", ()]
        eager = waiting(cluster, 1, 50)
        wait_for(lambda: cluster.stats(1)["current-waiting"] == "1", what="somebody waiting")
        eager.sendall(b"GET /v1/stats HTTP/1.1\r\nHost: x\r\n\r\n" * 2_000)
        Api(cluster, 1).put("x")
        answer = eager.makefile("rb").read()  # until it is closed
        assert answer.count(b"HTTP/1.1 200") == 1
        flooding = waiting(cluster, 1, 50)
        wait_for(lambda: cluster.stats(1)["current-waiting"] == "1", what="somebody waiting")
        with pytest.raises(OSError):  # noqa: PT011 - a reset or a broken pipe
            flooding.sendall(b"x" * 100_000_000)
        wait_for(lambda: cluster.stats(1)["current-waiting"] == "0", what="nobody waiting")
        assert metrics(cluster, 1)["process_resident_memory_bytes", ()] < before + (20 << 20)


def test_a_client_that_reads_no_answers_is_not_served_on(tmp_path):
    with ProcessCluster(tmp_path, 1) as cluster:
        cluster.leader()
        api = Api(cluster, 1)
        id = api.put("x" * 60_000)
        before = metrics(cluster, 1)["process_resident_memory_bytes", ()]
        crowd = [socket.create_connection(cluster.address(1, "http"), timeout=10) for _ in range(10)]
        for connection in crowd:
            connection.settimeout(0.5)
            with suppress(OSError):
                for _ in range(200):  # one at a time, as far as it is served
                    connection.sendall(b"GET /v1/jobs/%d HTTP/1.1\r\nHost: x\r\n\r\n" % id)
                    connection.recv(1)
        assert metrics(cluster, 1)["process_resident_memory_bytes", ()] < before + (30 << 20)
        for connection in crowd:
            connection.close()


def test_a_node_that_stops_says_so_to_those_who_wait(tmp_path):
    with ProcessCluster(tmp_path, 1) as cluster:
        cluster.leader()
        patient = waiting(cluster, 1, 50)
        wait_for(lambda: cluster.stats(1)["current-waiting"] == "1", what="somebody waiting")
        cluster.running[1].process.send_signal(signal.SIGTERM)
        assert b"/v1/problems#stopping" in patient.recv(65_536)


@pytest.mark.load
def test_an_answer_that_nobody_reads_gives_its_jobs_back(tmp_path):
    """It is larger than what a socket takes unread."""
    with ProcessCluster(tmp_path, 1, max_job_size=16 << 20) as cluster:
        cluster.leader()
        api = Api(cluster, 1)
        api.put("x" * (12 << 20))
        unread = waiting(cluster, 1, 5)
        wait_for(lambda: api.ask("GET", "/jobs/1")[1]["state"] == "reserved", what="the reservation")
        assert api.reserve() == []
        wait_for(lambda: api.ask("GET", "/jobs/1")[1]["state"] == "ready", what="the job being given back", timeout_s=20)
        unread.close()


def test_a_body_that_is_too_large_is_turned_away_before_it_is_read(tmp_path):
    with ProcessCluster(tmp_path, 1) as cluster:
        cluster.leader()
        connection = http.client.HTTPConnection(*cluster.address(1, "http"), timeout=5)
        connection.putrequest("POST", "/v1/tubes/t/jobs")
        connection.putheader("Content-Length", str(HTTP_BODY_BYTES + 1))
        connection.endheaders()
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("Content-Type")) == (413, "application/problem+json")
        assert json.loads(answer.read())["type"].endswith("#too-large")


def test_bodies_on_their_way_are_bounded_together(tmp_path):
    with ProcessCluster(tmp_path, 1) as cluster:
        cluster.leader()
        head = b"POST /v1/tubes/t/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % HTTP_BODY_BYTES
        crowd = [
            socket.create_connection(cluster.address(1, "http"), timeout=10) for _ in range(HTTP_ARRIVING_BYTES // HTTP_BODY_BYTES + 4)
        ]
        for connection in crowd:
            with suppress(OSError):  # it is refused
                connection.sendall(head + b"x" * (HTTP_BODY_BYTES - 1))
        refused = ("raftd_http_answers_total", (("status", "503"),))
        wait_for(lambda: metrics(cluster, 1).get(refused, 0) >= 4, what="those that are too many being refused")
        for connection in crowd:
            connection.close()
        wait_for(lambda: _puts(cluster), what="puts again")


def _puts(cluster: ProcessCluster) -> bool:
    return Api(cluster, 1).ask("POST", "/tubes/t/jobs", {"body": "x"})[0] == 201


@pytest.mark.load
def test_two_thousand_who_wait_for_jobs_cost_no_lead(tmp_path, capsys):
    with ProcessCluster(tmp_path, 3) as cluster:
        leader = cluster.leader()
        term = cluster.stats(leader)["term"]
        follower = leader % 3 + 1
        crowd = [waiting(cluster, (leader, follower)[number % 2], 50) for number in range(2_000)]
        wait_for(
            lambda: sum(int(cluster.stats(node)["current-waiting"]) for node in (leader, follower)) == 2_000,
            what="all waiting",
            timeout_s=30,
        )
        api = Api(cluster, leader)
        started = time.monotonic()
        for number in range(200):
            api.put(f"job {number}")
        elapsed_s = time.monotonic() - started
        answered = select.poll()
        places = {connection.fileno(): connection for connection in crowd}
        for descriptor in places:
            answered.register(descriptor, select.POLLIN)
        bodies: set[str] = set()
        while len(bodies) < 200 and (ready := answered.poll(5_000)):
            for descriptor, _ in ready:
                answered.unregister(descriptor)
                answer = places[descriptor].recv(65_536)
                bodies.add(json.loads(answer[answer.index(b"{") :])["jobs"][0]["body"])
        for connection in crowd:
            connection.close()
        assert bodies == {f"job {number}" for number in range(200)}
        wait_for(
            lambda: all(cluster.stats(node)["current-waiting"] == "0" for node in (leader, follower)), what="nobody waiting", timeout_s=30
        )
        assert cluster.stats(leader)["term"] == term
        api.put("last")
        assert [job["body"] for job in api.reserve()] == ["last"]
    with capsys.disabled():
        print(f"\n  2,000 waiting over HTTP: 200 jobs put in {elapsed_s:.1f} s, no election")

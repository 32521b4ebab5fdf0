"""`/v1` on simulated nodes: what is answered, what takes effect, and what belongs to whom when callers, nodes and links go."""

from __future__ import annotations

import base64
import json

import msgspec
import pytest

from raftd.limits import HTTP_ANSWER_S, HTTP_BODY_BYTES, REPLY_BYTES
from raftd.raft.messages import AppendEntries
from raftd.server.http.api import HISTORY_EVENTS
from raftd.server.http.v1 import v1
from raftd.server.stats import Counters
from raftd.sim.cluster import SimCluster
from tests.node.test_loop import follower, started
from tests.server.calls import JSON, FakeCall

PUT = "/v1/tubes/t/jobs"


class Listener:
    def __init__(self, cluster: SimCluster, node: int) -> None:
        self.cluster, self.node, self.counters = cluster, cluster[node], Counters()
        self.router = v1(self.node, cluster.processes[node].store._clock, self.counters)

    def begin(self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> FakeCall:
        call = FakeCall(method, path, body, headers)
        assert self.router.handles(call)
        return call

    def answered(self, *args: object) -> FakeCall:
        call = self.begin(*args)
        assert self.cluster.run(10_000, lambda: call.said is not None)
        return call

    def ask(self, *args: object) -> tuple[int, object]:
        return self.answered(*args).said

    def problem(self, *args: object) -> tuple[int, str]:
        call = self.answered(*args)
        return call.said[0], call.problem_name

    def reserve(self, has_left: bool = True, **wanted: object) -> list[dict]:
        call = self.answered("POST", "/v1/reserve", {"tubes": ["t"], **wanted})
        assert call.said[0] == 200
        call.left(has_left)
        self.cluster.run(200)
        return call.said[1]["jobs"]


def with_listener() -> tuple[SimCluster, Listener]:
    cluster = started()
    return cluster, Listener(cluster, follower(cluster))


# -- the ways of a job -------------------------------------------------------------------------


def test_a_job_is_put_reserved_touched_and_deleted_by_its_token():
    cluster, listener = with_listener()
    assert listener.ask("POST", PUT, {"body": "Grüße", "priority": 7, "ttr_s": 30}) == (201, {"ids": [1]})
    (job,) = listener.reserve()
    assert (job["id"], job["tube"], job["body"], job["priority"], job["ttr_s"]) == (1, "t", "Grüße", 7, 30)
    assert listener.ask("GET", "/v1/jobs/1")[1]["state"] == "reserved"
    cluster.run(2_000)
    status, touched = listener.ask("POST", "/v1/jobs/1/touch", {"token": job["token"]})
    assert (status, touched["deadline"] > job["deadline"]) == (200, True)
    assert listener.problem("DELETE", "/v1/jobs/1") == (409, "reserved")
    assert listener.problem("DELETE", f"/v1/jobs/1?token={job['token'] + 1}") == (409, "stale-token")
    assert listener.ask("DELETE", f"/v1/jobs/1?token={job['token']}") == (204, None)
    assert listener.problem("DELETE", f"/v1/jobs/1?token={job['token']}") == (404, "no-such-job")
    assert listener.problem("GET", "/v1/jobs/1") == (404, "no-such-job")


def test_a_job_is_released_buried_kicked_and_told_of():
    _cluster, listener = with_listener()
    listener.ask("POST", PUT, {"body": "x"})
    (job,) = listener.reserve()
    assert listener.ask("POST", "/v1/jobs/1/release", {"token": job["token"], "delay_s": 60}) == (204, None)
    view = listener.ask("GET", "/v1/jobs/1")[1]
    assert (view["state"], view["priority"], 59 < view["left_s"] <= 60) == ("delayed", 65_536, True)
    assert listener.ask("POST", "/v1/jobs/1/kick") == (204, None)
    (job,) = listener.reserve()
    assert listener.ask("POST", "/v1/jobs/1/bury", {"token": job["token"], "priority": 3}) == (204, None)
    assert listener.problem("POST", "/v1/jobs/1/bury", {"token": job["token"]}) == (409, "stale-token")
    assert listener.ask("GET", "/v1/tubes/t/next?state=buried")[1]["priority"] == 3
    assert listener.ask("POST", "/v1/tubes/t/kick", {"count": 10}) == (200, {"kicked": 1})
    assert listener.problem("POST", "/v1/jobs/1/kick") == (409, "not-kickable")
    history = listener.ask("GET", "/v1/jobs/1/history")[1]
    assert [event["what"] for event in history["events"]] == ["put", "reserved", "released", "kicked", "reserved", "buried", "kicked"]
    assert history["now"]["state"] == "ready"
    assert [event["token"] for event in history["events"]] == [None, 1, 1, 1, 2, 2, 2]


def test_bytes_go_in_raw_or_in_base64_and_come_in_base64():
    _cluster, listener = with_listener()
    headers = {"Content-Type": "application/octet-stream", "Raftd-Priority": "9", "Raftd-Delay": "0", "Raftd-TTR": "2.5"}
    assert listener.ask("POST", PUT, b"\xff\x00raw", headers) == (201, {"ids": [1]})
    assert listener.ask("POST", PUT, [{"base64": base64.b64encode(b"\xfe").decode()}, {"body": ""}]) == (201, {"ids": [2, 3]})
    first, second, third = listener.reserve(count=5)
    assert (first["base64"], first["priority"], first["ttr_s"]) == (base64.b64encode(b"\xff\x00raw").decode(), 9, 2.5)
    assert base64.b64decode(second["base64"]) == b"\xfe"
    assert third["body"] == ""


def test_the_most_urgent_of_all_tubes_comes_first():
    cluster, listener = with_listener()
    listener.ask("POST", "/v1/tubes/a/jobs", {"body": "later", "priority": 5})
    listener.ask("POST", "/v1/tubes/b/jobs", [{"body": "first", "priority": 1}, {"body": "second", "priority": 2}])
    assert [job["body"] for job in listener.reserve(tubes=["a", "b"], count=10)] == ["first", "second", "later"]
    waiting = listener.begin("POST", "/v1/reserve", {"tubes": ["b"], "count": 2, "timeout_s": 5})
    cluster.run(1_000)
    assert waiting.said is None
    listener.ask("POST", "/v1/tubes/b/jobs", [{"body": "new"}, {"body": "newer"}])
    assert cluster.run(1_000, lambda: waiting.said is not None)
    assert [job["body"] for job in waiting.said[1]["jobs"]] == ["new", "newer"]
    assert listener.reserve(tubes=["b"], timeout_s=1) == []


def test_tubes_are_declared_listed_paused_and_deleted():
    _cluster, listener = with_listener()
    assert listener.ask("PUT", "/v1/tubes/t")[1]["is_topic"] is True
    listener.ask("PUT", "/v1/tubes/s")
    listed = listener.ask("GET", "/v1/tubes?limit=2")[1]
    assert ([tube["name"] for tube in listed["tubes"]], listed["more"]) == (["default", "s"], True)
    listed = listener.ask("GET", "/v1/tubes?limit=2&after=s")[1]
    assert ([tube["name"] for tube in listed["tubes"]], listed["more"]) == (["t"], False)
    listener.ask("POST", PUT, {"body": "x"})
    assert listener.ask("POST", "/v1/tubes/t/pause", {"seconds": 30})[1]["pause_left_s"] == 30
    assert listener.reserve() == []
    assert listener.problem("DELETE", "/v1/tubes/t") == (409, "tube-not-empty")
    listener.ask("POST", "/v1/tubes/t/pause", {"seconds": 0})
    (job,) = listener.reserve()
    listener.ask("DELETE", f"/v1/jobs/1?token={job['token']}")
    assert listener.ask("DELETE", "/v1/tubes/t") == (204, None)
    assert listener.problem("DELETE", "/v1/tubes/t") == (404, "no-such-tube")
    assert listener.problem("GET", "/v1/tubes/t") == (404, "no-such-tube")
    listener.ask("POST", "/v1/tubes/u/jobs", {"body": "x"})
    assert listener.problem("DELETE", "/v1/tubes/u") == (409, "not-declared")
    for path in ("pause", "kick"):
        assert listener.problem("POST", f"/v1/tubes/t/{path}", {"seconds": 1} if path == "pause" else {}) == (404, "no-such-tube")
    assert listener.problem("GET", "/v1/tubes/t/next") == (404, "no-such-tube")
    assert listener.problem("GET", "/v1/tubes/s/next") == (404, "no-such-job")


# -- keys --------------------------------------------------------------------------------------


def test_a_repeated_put_at_another_node_puts_nothing():
    cluster, listener = with_listener()
    headers = {**JSON, "Idempotency-Key": "order-17"}
    jobs = [{"body": "one"}, {"body": "two"}]
    first = listener.answered("POST", PUT, jobs, headers)
    assert first.said == (201, {"ids": [1, 2]})
    assert first.said_headers == {}
    cluster.crash(cluster.leader)
    assert cluster.run(5_000, lambda: cluster.leader)
    again = Listener(cluster, cluster.leader).answered("POST", PUT, jobs, headers)
    assert again.said == (201, {"ids": [1, 2]})
    assert again.said_headers == {"Idempotency-Replayed": "true"}
    assert len(cluster[cluster.leader].machine.jobs) == 2
    other = Listener(cluster, cluster.leader)
    assert other.problem("POST", PUT, [{"body": "one"}], headers) == (422, "key-reused")
    assert other.problem("POST", "/v1/tubes/s/jobs", jobs, headers) == (422, "key-reused")


def test_a_put_whose_answer_was_lost_is_done_once_when_it_is_asked_again():
    cluster, listener = with_listener()
    node = listener.node.config.node
    cluster.network.interfere = lambda sender, to, message: 0 if to == node and isinstance(message, AppendEntries) else 1
    headers = {**JSON, "Idempotency-Key": "k"}
    assert listener.problem("POST", PUT, {"body": "x"}, headers) == (503, "outcome-unknown")
    cluster.network.interfere = None
    cluster.run(3_000)
    assert listener.ask("POST", PUT, {"body": "x"}, headers) == (201, {"ids": [1]})
    assert len(cluster[cluster.leader].machine.jobs) == 1


# -- who holds what when somebody goes ---------------------------------------------------------


def test_a_caller_who_hangs_up_while_he_waits_strands_no_job():
    cluster, listener = with_listener()
    waiting = listener.begin("POST", "/v1/reserve", {"tubes": ["t"], "timeout_s": 30})
    cluster.run(500)
    waiting.hang_up()
    cluster.run(200)
    listener.ask("POST", PUT, {"body": "x"})
    assert [job["body"] for job in listener.reserve()] == ["x"]


def test_an_answer_that_never_left_gives_its_jobs_back_at_once():
    _cluster, listener = with_listener()
    listener.ask("POST", PUT, {"body": "x"})
    assert len(listener.reserve(has_left=False)) == 1
    (job,) = listener.reserve()
    assert job["token"] == 2
    assert not listener.node.gateway.sessions


def test_an_answered_reservation_survives_its_node():
    cluster, listener = with_listener()
    listener.ask("POST", PUT, {"body": "x", "ttr_s": 12})
    (job,) = listener.reserve()
    cluster.crash(listener.node.config.node)
    cluster.run(8_000)  # its gateway is closed by now
    other = Listener(cluster, cluster.leader)
    assert other.reserve() == []
    assert other.ask("POST", "/v1/jobs/1/touch", {"token": job["token"]})[0] == 200
    cluster.run(11_000)
    assert other.reserve() == []
    cluster.run(2_000)
    (again,) = other.reserve()
    assert other.problem("DELETE", f"/v1/jobs/1?token={job['token']}") == (409, "stale-token")
    assert other.ask("DELETE", f"/v1/jobs/1?token={again['token']}") == (204, None)


# -- without a quorum --------------------------------------------------------------------------


def test_without_a_leader_a_caller_is_answered_in_time():
    cluster, listener = with_listener()
    node = listener.node.config.node
    cluster.partition({node}, set(cluster.config.voters) - {node})
    cluster.run(2_000)
    calls = [
        listener.begin("POST", PUT, {"body": "x"}),
        listener.begin("GET", "/v1/jobs/1"),
        listener.begin("PUT", "/v1/tubes/t"),
        listener.begin("POST", "/v1/reserve", {}),
    ]
    assert cluster.run(HTTP_ANSWER_S * 1_000 + 100, lambda: all(call.said for call in calls))
    assert {(call.said[0], call.problem_name, call.said_headers["Retry-After"]) for call in calls} == {(503, "not-committed", "1")}
    assert listener.ask("GET", "/v1/stats")[0] == 200
    assert listener.ask("GET", "/v1/cluster")[1]["leader"] == 0
    cluster.heal()
    cluster.run(5_000)
    assert not cluster[cluster.leader].machine.jobs
    assert "t" not in cluster[cluster.leader].machine.tubes


def test_a_reservation_that_came_too_late_is_given_back():
    cluster, listener = with_listener()
    listener.ask("POST", PUT, {"body": "x"})
    node = listener.node.config.node
    cluster.network.interfere = lambda sender, to, message: 0 if to == node and isinstance(message, AppendEntries) else 1
    assert listener.problem("POST", "/v1/reserve", {"tubes": ["t"]}) == (503, "not-committed")
    cluster.network.interfere = None
    cluster.run(5_000)
    assert [job["body"] for job in listener.reserve()] == ["x"]


def test_a_draining_node_and_a_full_one_say_so():
    _cluster, listener = with_listener()
    listener.node.gateway.space_is_scarce = True
    assert listener.problem("POST", PUT, {"body": "x"}) == (503, "overloaded")
    listener.node.gateway.space_is_scarce = False
    listener.counters.draining = True
    assert listener.problem("POST", PUT, {"body": "x"}) == (503, "draining")


def test_a_repeat_is_answered_where_nothing_more_may_be_put():
    _, listener = with_listener()
    headers = {**JSON, "Idempotency-Key": "k"}
    assert listener.ask("POST", PUT, {"body": "x"}, headers) == (201, {"ids": [1]})
    for refuse in ("space", "draining"):
        listener.node.gateway.space_is_scarce = refuse == "space"
        listener.counters.draining = refuse == "draining"
        assert listener.ask("POST", PUT, {"body": "x"}, headers) == (201, {"ids": [1]})
        assert listener.problem("POST", PUT, {"body": "y"}, headers) == (422, "key-reused")
    assert listener.problem("POST", PUT, {"body": "y"}, {**JSON, "Idempotency-Key": "new"}) == (503, "draining")


def test_answers_hold_many_small_jobs_or_what_fits():
    _, listener = with_listener()
    listener.ask("POST", PUT, [{"body": f"{number}"} for number in range(1_000)])
    assert len(listener.reserve(count=1_000)) == 1_000
    for _ in range(5):
        listener.ask("POST", PUT, [{"body": "x" * 65_000} for _ in range(16)])
    first, rest = listener.reserve(count=100), listener.reserve(count=100, timeout_s=1)
    assert len(first) == REPLY_BYTES // 65_000 + 1
    assert len(first) + len(rest) == 80


def test_looking_writes_nothing_to_the_log():
    cluster, listener = with_listener()
    listener.ask("PUT", "/v1/tubes/t")
    cluster.run(200)
    before = listener.node.machine.applied_index
    for path in ("/v1/tubes", "/v1/tubes/t", "/v1/jobs/1", "/v1/jobs/1/history", "/v1/stats", "/v1/cluster"):
        listener.ask("GET", path)
    cluster.run(200)
    assert listener.node.machine.applied_index == before


def test_a_long_history_tells_its_newest_part():
    _, listener = with_listener()
    listener.ask("POST", PUT, {"body": "x"})
    (job,) = listener.reserve()
    for _ in range(HISTORY_EVENTS):
        listener.ask("POST", "/v1/jobs/1/touch", {"token": job["token"]})
    history = listener.ask("GET", "/v1/jobs/1/history")[1]
    assert {event["what"] for event in history["events"]} == {"touched"}
    assert len(history["events"]) == HISTORY_EVENTS
    assert history["known_from"] <= history["events"][0]["entry"]


def test_a_change_of_members_that_nobody_commits_is_answered_in_time():
    cluster, _ = with_listener()
    leader = cluster.leader
    listener = Listener(cluster, leader)
    cluster.partition({leader}, set(cluster.config.voters) - {leader})
    call = listener.begin("POST", "/v1/cluster/members", {"node": 9, "host": "sim", "peer": 9})
    assert cluster.run(HTTP_ANSWER_S * 1_000 + 100, lambda: call.said is not None)
    assert (call.said[0], call.problem_name) == (503, "outcome-unknown")


# -- bad input ---------------------------------------------------------------------------------

BAD = [
    (b"", JSON, "bad-request"),
    (b"{", JSON, "bad-request"),
    (b"[]", JSON, "bad-request"),
    (b"null", JSON, "bad-request"),
    (b'"x"', JSON, "bad-request"),
    (b"{}", JSON, "bad-request"),
    (b'{"body": 1}', JSON, "bad-request"),
    (b'{"body": null}', JSON, "bad-request"),
    (b'{"body": "x", "base64": "eA=="}', JSON, "bad-request"),
    (b'{"base64": "!!!!"}', JSON, "bad-request"),
    (b'{"base64": "eA"}', JSON, "bad-request"),
    (b'{"body": "x", "unknown": 1}', JSON, "bad-request"),
    (b'{"body": "x", "priority": -1}', JSON, "bad-request"),
    (b'{"body": "x", "priority": 4294967296}', JSON, "bad-request"),
    (b'{"body": "x", "priority": 1.5}', JSON, "bad-request"),
    (b'{"body": "x", "priority": "1"}', JSON, "bad-request"),
    (b'{"body": "x", "delay_s": -0.1}', JSON, "bad-request"),
    (b'{"body": "x", "delay_s": 1e300}', JSON, "bad-request"),
    (b'{"body": "x", "ttr_s": 0.9}', JSON, "bad-request"),
    (b'{"body": "\\ud800"}', JSON, "bad-request"),
    (b'{"body": "\xff"}', JSON, "bad-request"),
    (b"[" * 100_000, JSON, "bad-request"),
    (b'[{"body": "x"}, {"body": 1}]', JSON, "bad-request"),
    (b'{"body": "x"}', {}, "unsupported-media-type"),
    (b'{"body": "x"}', {"Content-Type": "text/plain"}, "unsupported-media-type"),
    (b"body=x", {"Content-Type": "application/x-www-form-urlencoded"}, "unsupported-media-type"),
    (b'{"body": "x"}', {**JSON, "Idempotency-Key": ""}, "bad-request"),
    (b'{"body": "x"}', {**JSON, "Idempotency-Key": "a b"}, "bad-request"),
    (b'{"body": "x"}', {**JSON, "Idempotency-Key": "k" * 256}, "bad-request"),
    (b'{"body": "x"}', {**JSON, "Idempotency-Key": "\xff"}, "bad-request"),
    (b"x", {"Content-Type": "application/octet-stream", "Raftd-Priority": "x"}, "bad-request"),
    (b"x", {"Content-Type": "application/octet-stream", "Raftd-TTR": "0"}, "bad-request"),
    (b"x", {"Content-Type": "application/octet-stream", "Raftd-Delay": "nan"}, "bad-request"),
    (json.dumps({"body": "x" * 65_536}).encode(), JSON, "job-too-large"),
    (json.dumps([{"body": "x" * 60_000}] * (HTTP_BODY_BYTES // 60_000 + 1)).encode(), JSON, "too-large"),
    (json.dumps([{"body": ""}] * 1_001).encode(), JSON, "bad-request"),
]


@pytest.fixture(scope="module")
def listener() -> Listener:
    return with_listener()[1]


@pytest.mark.parametrize(("body", "headers", "problem"), BAD, ids=[f"{body[:40]!r} {headers} {problem}" for body, headers, problem in BAD])
def test_a_bad_put_is_refused_and_nothing_is_put(listener, body, headers, problem):
    assert listener.problem("POST", PUT, body, headers)[1] == problem
    assert listener.node.machine.last_id == 0


@pytest.mark.parametrize(
    ("method", "path", "body", "problem"),
    [
        ("GET", "/v1", None, "no-such-path"),
        ("GET", "/v1/", None, "no-such-path"),
        ("GET", "/v1/jobs/1/2/3", None, "no-such-path"),
        ("PATCH", "/v1/jobs/1", None, "no-such-method"),
        ("GET", "/v1/reserve", None, "no-such-method"),
        ("GET", "/v1/jobs/0", None, "bad-request"),
        ("GET", "/v1/jobs/-1", None, "bad-request"),
        ("GET", "/v1/jobs/x", None, "bad-request"),
        ("GET", "/v1/jobs/9223372036854775808", None, "bad-request"),
        ("GET", "/v1/jobs/1?token=1", None, "bad-request"),
        ("DELETE", "/v1/jobs/1?token=x", None, "bad-request"),
        ("DELETE", "/v1/jobs/1?token=1&token=2", None, "bad-request"),
        ("DELETE", "/v1/jobs/1?tokens=1", None, "bad-request"),
        ("DELETE", "/v1/jobs/1?%ff=1", None, "bad-request"),
        ("DELETE", "/v1/jobs/1?token=0", None, "bad-request"),
        ("DELETE", "/v1/jobs/1?token=null", None, "bad-request"),
        ("DELETE", "/v1/jobs/1", {"token": 1}, "bad-request"),
        ("GET", "/v1/tubes?limit=0", None, "bad-request"),
        ("GET", "/v1/tubes?limit=1001", None, "bad-request"),
        ("GET", "/v1/tubes?limit=1&" + "&".join(f"a{n}=1" for n in range(200)), None, "bad-request"),
        ("PUT", "/v1/tubes/a b", None, "bad-request"),
        ("PUT", "/v1/tubes/-a", None, "bad-request"),
        ("PUT", "/v1/tubes/" + "a" * 201, None, "bad-request"),
        ("PUT", "/v1/tubes/", None, "bad-request"),
        ("PUT", "/v1/tubes/a\n", None, "bad-request"),
        ("GET", "/v1/tubes/t/next?state=reserved", None, "bad-request"),
        ("POST", "/v1/tubes/t/pause", {"seconds": -1}, "bad-request"),
        ("POST", "/v1/tubes/t/kick", {"count": 0}, "bad-request"),
        ("POST", "/v1/reserve", None, "unsupported-media-type"),  # a body that was forgotten takes nobody's job
        ("POST", "/v1/reserve", {"tubes": []}, "bad-request"),
        ("POST", "/v1/reserve", {"tubes": ["a b"]}, "bad-request"),
        ("POST", "/v1/reserve", {"tubes": [f"t{n}" for n in range(101)]}, "bad-request"),
        ("POST", "/v1/reserve", {"timeout_s": 56}, "bad-request"),
        ("POST", "/v1/reserve", {"timeout_s": -1}, "bad-request"),
        ("POST", "/v1/reserve", {"count": 0}, "bad-request"),
        ("POST", "/v1/reserve", {"tube": "t"}, "bad-request"),
        ("POST", "/v1/jobs/1/touch", {}, "bad-request"),
        ("POST", "/v1/jobs/1/touch", {"token": 0}, "bad-request"),
        ("POST", "/v1/jobs/1/release", {"token": 1, "priority": -1}, "bad-request"),
        ("POST", "/v1/jobs/1/touch", {"token": 1}, "no-such-job"),
        ("GET", "/v1/jobs/1/history", None, "no-such-job"),
        ("POST", "/v1/cluster/transfer", {"node": 99}, "refused"),
        ("POST", "/v1/cluster/transfer", {"node": 0}, "bad-request"),
        ("POST", "/v1/cluster/members", {"node": 4, "host": "", "peer": 1}, "bad-request"),
        ("DELETE", "/v1/cluster/members/99", None, "refused"),
        ("POST", "/v1/cluster/members/99/promote", None, "refused"),
    ],
)
def test_a_bad_call_is_refused(listener, method, path, body, problem):
    assert listener.problem(method, path, body)[1] == problem


def test_whole_numbers_may_be_written_with_a_point():
    _cluster, listener = with_listener()
    assert listener.ask("POST", PUT, b'{"body": "x", "priority": 3.0, "delay_s": 0.0}', JSON) == (201, {"ids": [1]})
    assert listener.ask("GET", "/v1/jobs/1")[1]["priority"] == 3


def test_a_page_of_another_site_changes_nothing(listener):
    own = {"Host": "localhost:11303"}
    calls = [("POST", PUT, {"body": "x"}), ("PUT", "/v1/tubes/t", None), ("DELETE", "/v1/jobs/1", None), ("POST", "/v1/reserve", {})]
    for foreign in (
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:11304"},
        {"Origin": "http://[::1"},
        {"Referer": "http://evil.example/"},
    ):
        for method, path, body in calls:
            assert listener.problem(method, path, body, {**JSON, **own, **foreign}) == (403, "cross-site"), foreign
    assert listener.ask("GET", "/v1/tubes", None, {**own, "Sec-Fetch-Site": "cross-site"})[0] == 200  # it shows nothing to that page
    for host in ("localhost:11303", "127.0.0.1:11303", "[::1]:11303", "queue.example:11303"):
        at_home = {**JSON, "Host": host, "Origin": f"http://{host}", "User-Agent": "Mozilla/5.0", "Sec-Fetch-Site": "same-origin"}
        assert listener.ask("POST", "/v1/reserve", {}, at_home)[0] == 200
    for host in ({"Host": "evil.example:11303"}, {}, {"Host": "["}):  # a name that somebody else can point here
        led_here = {**JSON, **host, "Origin": "http://evil.example:11303", "Sec-Fetch-Site": "same-origin"}
        assert listener.problem("POST", "/v1/reserve", {}, led_here) == (403, "cross-site")
    assert listener.problem("POST", "/v1/reserve", {}, {**JSON, "Origin": "null"}) == (403, "cross-site")


# -- what is said of it ------------------------------------------------------------------------


def test_the_cluster_is_shown_and_the_lead_handed_over():
    cluster, listener = with_listener()
    shown = listener.ask("GET", "/v1/cluster")[1]
    assert ([member["node"] for member in shown["members"]], shown["leader"], shown["is_settled"]) == ([1, 2, 3], cluster.leader, True)
    target = listener.node.config.node
    status, shown = listener.ask("POST", "/v1/cluster/transfer", {"node": target})
    assert (status, shown["leader"]) == (200, target)


def test_every_problem_of_the_specification_is_explained(listener):
    document = json.loads(msgspec.json.encode(listener.ask("GET", "/v1/openapi.json")[1]))
    assert document["openapi"] == "3.1.0"
    explained = {problem["type"] for problem in listener.ask("GET", "/v1/problems")[1]["problems"]}
    text = json.dumps(document)
    for kind in explained:
        of_any_path = ("no-such-path", "no-such-method", "too-many-streams")
        assert kind.partition("#")[2] in of_any_path or f"`{kind}`" in text
    operations = [name for methods in document["paths"].values() for name in methods]
    assert len(operations) == len(listener.router.routes) == 24
    names = {operation["operationId"] for methods in document["paths"].values() for operation in methods.values()}
    for methods in document["paths"].values():
        for operation in methods.values():
            for response in operation["responses"].values():
                assert response["description"]
                for link in response.get("links", {}).values():
                    assert link["operationId"] in names

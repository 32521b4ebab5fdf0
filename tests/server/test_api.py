"""`/v1` on simulated nodes: what is answered, what takes effect, and what belongs to whom when callers, nodes and links go."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

import msgspec
import pytest

from raftd.limits import HTTP_ANSWER_S, HTTP_BODY_BYTES, REPLY_BYTES
from raftd.raft.messages import AppendEntries
from raftd.server.http.api import HISTORY_EVENTS
from raftd.server.stats import Counters
from raftd.sim.cluster import SimCluster
from tests.node.test_loop import follower, started
from tests.server.calls import JSON, FakeCall, router_of

PUT = "/v1/tubes/t/jobs"


class Listener:
    def __init__(self, cluster: SimCluster, node: int) -> None:
        self.cluster, self.node, self.counters = cluster, cluster[node], Counters()
        self.router = router_of(self.node, cluster.processes[node].store._clock, self.counters)

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


# -- policies ----------------------------------------------------------------------------------


def test_the_policy_of_a_tube():
    _, listener = with_listener()
    path = "/v1/tubes/mail/policy"
    assert listener.problem("GET", path) == (404, "no-policy")
    policy = {"max_attempts": 2, "backoff": {"initial_s": 1.0, "factor": 3.0, "max_s": 60.0}, "dead_letter": "dead", "max_jobs": 1}
    status, view = listener.ask("PUT", path, policy)
    assert (status, view) == (200, {"tube": "mail", "version": 1, "policy": policy})
    assert listener.ask("GET", path) == (200, view)
    assert listener.problem("PUT", f"{path}?version=0", policy) == (409, "policy-changed")
    assert listener.ask("PUT", f"{path}?version=1", {"max_jobs": 2})[1]["version"] == 2
    listener.ask("PUT", "/v1/tubes/other/policy", {"rate": 0.5})
    assert listener.ask("GET", "/v1/policies?limit=1")[1] == {
        "policies": [{"tube": "mail", "version": 2, "policy": {"max_jobs": 2}}],
        "more": True,
    }
    assert listener.ask("GET", "/v1/tubes/mail")[1]["policy_version"] == 2
    assert listener.ask("DELETE", f"{path}?version=2")[0] == 204
    assert listener.problem("GET", path) == (404, "no-policy")


@pytest.mark.parametrize(
    ("policy", "status", "detail"),
    [
        ({"max_jobs": 0}, 400, "the body: Expected `int` >= 1 - at `$.max_jobs`"),
        ({"max_job": 5}, 400, "the body: Object contains unknown field `max_job`"),
        ({"burst": 5}, 422, "burst: it says nothing without a rate"),
        ({"dead_letter": "mail"}, 422, "dead_letter: dead jobs would go in a circle, or through too many tubes"),
    ],
)
def test_a_policy_that_cannot_be(policy, status, detail):
    _, listener = with_listener()
    call = listener.answered("PUT", "/v1/tubes/mail/policy", policy)
    assert (call.said[0], call.said[1]["detail"]) == (status, detail)
    assert listener.ask("GET", "/v1/policies")[1] == {"policies": [], "more": False}


def test_a_full_tube_and_a_dead_job():
    cluster, listener = with_listener()
    listener.ask("PUT", "/v1/tubes/t/policy", {"max_jobs": 1, "max_attempts": 1, "dead_letter": "dead"})
    id = listener.ask("POST", PUT, {"body": "a", "ttr_s": 1})[1]["ids"][0]
    assert listener.problem("POST", PUT, {"body": "b"}) == (429, "tube-full")
    listener.reserve()
    cluster.run(1_500)
    job = listener.ask("GET", f"/v1/jobs/{id}")[1]
    assert (job["tube"], job["state"], job["attempts"], job["timeouts"]) == ("dead", "ready", 0, 1)
    assert (job["death"]["reason"], job["death"]["tube"], job["death"]["attempts"]) == ("attempts", "t", 1)
    assert [event["what"] for event in listener.ask("GET", f"/v1/jobs/{id}/history")[1]["events"]] == [
        "put",
        "reserved",
        "timed-out",
        "dead",
    ]


def test_one_of_its_kind_defaults_and_results():
    _, listener = with_listener()
    listener.ask("PUT", "/v1/tubes/t/policy", {"default_ttr_s": 90, "default_priority": 5, "retain_s": 60})
    only = {"body": "a", "unique": {"key": "report", "until": "deleted", "for_s": 3_600}}
    assert listener.ask("POST", PUT, only) == (201, {"ids": [1]})
    assert listener.ask("POST", PUT, only) == (200, {"ids": [1], "exists": True})
    assert listener.problem("POST", PUT, [only, {"body": "b"}]) == (422, "bad-job")
    job = listener.ask("GET", "/v1/jobs/1")[1]
    assert (job["ttr_s"], job["priority"]) == (90, 5)
    (held,) = listener.reserve()
    assert listener.problem("GET", "/v1/jobs/1/result") == (404, "no-result")
    listener.ask("DELETE", f"/v1/jobs/1?token={held['token']}")
    result = listener.ask("GET", "/v1/jobs/1/result")[1]
    assert (result["id"], result["tube"], result["attempts"], result["body"]) == (1, "t", 0, "")
    assert listener.ask("POST", PUT, {"body": "b", "run_at": "2100-01-01T00:00:00Z"})[0] == 201
    assert listener.ask("GET", "/v1/jobs/2")[1]["state"] == "delayed"
    assert listener.ask("POST", PUT, {"body": "b", "run_at": "2000-01-01T00:00:00+02:00"})[0] == 201
    assert listener.ask("GET", "/v1/jobs/3")[1]["state"] == "ready"
    assert listener.problem("POST", PUT, {"body": "b", "run_at": "2000-01-01T00:00:00"}) == (400, "bad-request")
    assert listener.problem("POST", PUT, {"body": "b", "run_at": "2100-01-01T00:00:00Z", "delay_s": 5}) == (422, "bad-job")


def test_dead_letters_are_moved_back():
    _, listener = with_listener()
    listener.ask("PUT", "/v1/tubes/t/policy", {"max_attempts": 1, "dead_letter": "dead", "ttl_s": 0.5, "on_expire": "dead_letter"})
    ids = listener.ask("POST", PUT, [{"body": "a"}, {"body": "b"}])[1]["ids"]
    listener.cluster.run(1_000)
    path = "/v1/tubes/dead/replay"
    count = listener.ask("GET", "/v1/tubes/dead/dead?origin=t")[1]
    assert count["buried"] == 0
    assert (count["count"], count["up_to"], count["more"]) == (2, ids[1], False)
    assert listener.problem("GET", "/v1/tubes/dead/dead?before=0.5") == (400, "bad-request")
    assert listener.ask("GET", "/v1/tubes/dead/dead?from=9999-01-01T00:00:00Z")[1]["count"] == 0
    assert listener.ask("GET", "/v1/tubes/dead/dead?before=9999-12-31T23:59:59-12:00")[1]["count"] == 2
    assert listener.ask("GET", f"/v1/tubes/dead/dead?up_to={ids[0]}&before={count['before']}")[1]["count"] == 1
    assert listener.ask("POST", path, {"origin": "other"})[1] == {"done": 0, "skipped": 0, "after": ids[1], "more": False}
    assert listener.ask("POST", path, {"up_to": ids[0], "to": "again"})[1]["done"] == 1
    assert listener.ask("GET", f"/v1/jobs/{ids[0]}")[1]["tube"] == "again"
    assert listener.ask("POST", path, {"before": "2000-01-01T00:00:00Z", "action": "delete"})[1]["done"] == 0
    assert listener.ask("POST", path)[1]["done"] == 1
    job = listener.ask("GET", f"/v1/jobs/{ids[1]}")[1]
    assert (job["tube"], job["death"]) == ("t", None)
    assert listener.problem("POST", path, {"action": "burn"}) == (400, "bad-request")


def test_a_job_that_is_buried_after_the_count_is_not_touched():
    _, listener = with_listener()
    listener.ask("POST", PUT, [{"body": "a"}, {"body": "b"}])
    for buried_before in (0, 1):
        (job,) = listener.reserve()
        listener.cluster.run(1_000)
        count = listener.ask("GET", "/v1/tubes/t/dead")[1]
        assert (count["count"], count["up_to"]) == (buried_before, 2)
        listener.ask("POST", f"/v1/jobs/{job['id']}/bury", {"token": job["token"]})
    assert listener.ask("GET", "/v1/tubes/t/dead?before=9999-01-01T00:00:00Z")[1]["before"] < "9999"
    which = {"action": "kick", "before": count["before"], "up_to": count["up_to"]}
    assert listener.ask("POST", "/v1/tubes/t/replay", which)[1]["done"] == 1
    assert [listener.ask("GET", f"/v1/jobs/{id}")[1]["state"] for id in (1, 2)] == ["ready", "buried"]


def test_a_schedule():
    cluster, listener = with_listener()
    path = "/v1/schedules/beat"
    assert listener.problem("GET", path) == (404, "no-schedule")
    plan = {"tube": "t", "body": "tick", "every_s": 0.5}
    status, view = listener.ask("PUT", path, plan)
    assert (status, view["version"], view["schedule"], view["is_paused"]) == (200, 1, plan | {"priority": 65_536, "ttr_s": 60.0}, False)
    cluster.run(2_300)
    view = listener.ask("GET", path)[1]
    assert (view["put"], view["skipped"]) == (4, 0)
    assert view["next"] > view["last"] > "2023"
    view["schedule"]["body"] = ""  # a list has none: all of them may be larger than any answer
    assert listener.ask("GET", "/v1/schedules")[1] == {"schedules": [view], "more": False}
    assert listener.ask("POST", f"{path}/pause")[1]["is_paused"] is True
    assert listener.ask("POST", f"{path}/run")[0] == 201
    assert listener.ask("POST", f"{path}/pause", {"paused": False})[1]["is_paused"] is False
    assert listener.problem("PUT", f"{path}?version=7", plan) == (409, "schedule-changed")
    assert listener.problem("PUT", path, {"tube": "t", "cron": "* * *"}) == (422, "bad-schedule")
    assert listener.problem("PUT", path, {"tube": "t", "every_s": 1, "at": "2100-01-01T00:00:00Z"}) == (422, "bad-schedule")
    assert listener.problem("PUT", path, {"tube": "t", "at": "2100-01-01T00:00:00"}) == (400, "bad-request")
    assert listener.ask("DELETE", path)[0] == 204
    assert listener.problem("POST", f"{path}/run") == (404, "no-schedule")


def test_while_an_older_node_may_be_there_no_policy_is_set():
    cluster, listener = with_listener()
    for process in cluster.processes.values():
        process.node.machine.level = 3
    assert listener.problem("PUT", "/v1/tubes/t/policy", {"max_jobs": 1}) == (409, "older-node")
    assert listener.problem("DELETE", "/v1/tubes/t/policy") == (409, "older-node")
    assert listener.problem("POST", PUT, {"body": "a", "unique": {"key": "report"}}) == (409, "older-node")
    assert listener.problem("PUT", "/v1/schedules/beat", {"tube": "t", "every_s": 1}) == (409, "older-node")
    assert listener.problem("POST", "/v1/tubes/t/replay") == (409, "older-node")


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
    buried = listener.ask("GET", "/v1/tubes/t/next?state=buried")[1]
    assert (buried["priority"], buried["buried_at"] > "2023", view["buried_at"]) == (3, True, None)
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


def all_jobs(listener: Listener, state: str, limit: int) -> list[int]:
    ids, after, more = [], "", True
    while more:
        status, page = listener.ask("GET", f"/v1/tubes/t/jobs?state={state}&limit={limit}&after={after}")
        assert status == 200
        assert len(page["jobs"]) <= limit
        assert all("body" not in job and job["state"] == state for job in page["jobs"])
        ids += [job["id"] for job in page["jobs"]]
        after, more = page["after"], page["more"]
    return ids


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_the_jobs_of_a_tube_are_listed_by_state_in_pages(limit):
    _cluster, listener = with_listener()
    for priority in (5, 1, 3, 1, 9):
        listener.ask("POST", PUT, {"body": "x", "priority": priority})
    for delay_s in (300, 100, 200):
        listener.ask("POST", PUT, {"body": "x", "delay_s": delay_s})
    listener.ask("POST", "/v1/tubes/other/jobs", {"body": "x"})
    assert all_jobs(listener, "ready", limit) == [2, 4, 3, 1, 5]
    assert all_jobs(listener, "delayed", limit) == [7, 8, 6]
    first, second = listener.reserve(count=2)
    assert all_jobs(listener, "reserved", limit) == [2, 4]
    for job in (second, first):
        listener.ask("POST", f"/v1/jobs/{job['id']}/bury", {"token": job["token"]})
    assert all_jobs(listener, "buried", limit) == [4, 2]
    assert all_jobs(listener, "reserved", limit) == []


@pytest.mark.parametrize("after", ["x", "1", "1.-2", "1.2.3", "١.2", "1.2\n"])
def test_a_place_that_no_list_has_given_is_refused(after):
    _cluster, listener = with_listener()
    listener.ask("POST", PUT, {"body": "x"})
    assert listener.problem("GET", f"/v1/tubes/t/jobs?after={quote(after)}") == (400, "bad-request")
    assert listener.problem("GET", "/v1/tubes/none/jobs") == (404, "no-such-tube")


def test_tubes_are_sorted_by_what_they_hold_and_told_with_the_oldest_job():
    _, listener = with_listener()
    for tube, count in (("a", 1), ("b", 3), ("c", 2)):
        listener.ask("POST", f"/v1/tubes/{tube}/jobs", [{"body": "x"}] * count)
    found = listener.ask("GET", "/v1/tubes?sort=ready&limit=2")[1]
    assert [tube["name"] for tube in found["tubes"]] == ["b", "c"]
    assert found["more"]
    rest = listener.ask("GET", f"/v1/tubes?sort=ready&limit=2&after={found['after']}")[1]
    assert ([tube["name"] for tube in rest["tubes"]], rest["more"]) == (["a", "default"], False)
    for wrong in ("a", "nan/a", "inf/a", "1e999/x", "/", "-"):
        assert listener.problem("GET", f"/v1/tubes?sort=ready&after={wrong}") == (422, "bad-place")
    assert [tube["name"] for tube in listener.ask("GET", "/v1/tubes?having=ready&contains=c")[1]["tubes"]] == ["c"]
    assert found["tubes"][0]["oldest_s"] >= 0
    assert rest["tubes"][1]["oldest_s"] is None


def test_a_job_tells_who_holds_it():
    _, listener = with_listener()
    listener.ask("POST", PUT, {"body": "x"})
    assert listener.ask("GET", "/v1/jobs/1")[1]["held_by"] is None
    listener.reserve()
    assert listener.ask("GET", "/v1/jobs/1")[1]["held_by"]["node"] == listener.node.config.node


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
    assert (call.said[0], call.problem_name) == (503, "not-committed")
    cluster.heal()
    cluster.run(5_000)
    assert 9 not in cluster[leader].raft.membership.members


def test_a_change_of_members_that_was_begun_and_is_not_seen_committed_has_an_unknown_outcome():
    cluster, _ = with_listener()
    leader = cluster.leader
    listener = Listener(cluster, leader)
    call = listener.begin("POST", "/v1/cluster/members", {"node": 9, "host": "sim", "peer": 9})
    assert cluster.run(1_000, lambda: bool(cluster[leader].machine.access.records))
    cluster.partition({leader}, set(cluster.config.voters) - {leader})
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
    assert len(operations) == len(listener.router.routes) == 45
    names = {operation["operationId"] for methods in document["paths"].values() for operation in methods.values()}
    for methods in document["paths"].values():
        for operation in methods.values():
            for response in operation["responses"].values():
                assert response["description"]
                for link in response.get("links", {}).values():
                    assert link["operationId"] in names

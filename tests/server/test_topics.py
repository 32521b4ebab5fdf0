"""The topic and message contract when things come too late: nothing is lost, and nobody waits."""

from __future__ import annotations

import pytest

from raftd.jobs import commands as c
from raftd.raft.messages import AppendEntries
from raftd.server.http.topics import Topics
from raftd.server.stats import Counters
from raftd.sim.cluster import SimCluster
from tests.node.test_loop import Client, follower, started
from tests.server.calls import FakeCall

NO = {"success": False}


class Listener:
    def __init__(self, cluster: SimCluster, node: int) -> None:
        self.cluster, self.node = cluster, cluster[node]
        self.topics = Topics(self.node, cluster.processes[node].store._clock, Counters(), False, lambda leader: None)

    def begin(self, method: str, path: str, body: object = None) -> FakeCall:
        call = FakeCall(method, path, body)
        assert self.topics.handles(call)
        return call

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, object]:
        call = self.begin(method, path, body)
        assert self.cluster.run(1_000, lambda: call.said is not None)
        return call.said


def with_messages(*messages: str) -> tuple[SimCluster, Listener]:
    cluster = started()
    listener = Listener(cluster, follower(cluster))
    assert listener.ask("PUT", "/topic", {"topic": "t"}) == (200, {"success": True})
    for message in messages:
        assert listener.ask("PUT", "/message", {"topic": "t", "message": message}) == (200, {"success": True})
    return cluster, listener


def names(forward: object) -> set[type]:
    payload = c.decode_payload(forward.payload) if isinstance(forward, c.Forward) else None
    return {type(command) for command in payload.commands} if isinstance(payload, c.Batch) else set()


@pytest.mark.parametrize("pri", [5, 65_536])
def test_a_message_whose_deletion_came_too_late_stands_where_it_stood(pri):
    """With its own priority and time to run, which another listener may have given it."""
    cluster, listener = with_messages("second") if pri == 5 else with_messages("first", "second")
    if pri == 5:
        other = Client(cluster, follower(cluster))
        other.submit(c.Put(other.session.number, pri, 0, 7_000, b"first", "t"))
        assert cluster.run(1_000, lambda: bool(other.told))
        other.session.close()
        cluster.run(100)
    node = listener.node.config.node
    deleted = []

    def interfere(sender: int, to: int, message: object) -> int:
        if sender == node and c.Delete in names(message):
            deleted.append(message)
        return 0 if deleted and to == node and isinstance(message, AppendEntries) else 1  # it leaves, and is never seen applied

    cluster.network.interfere = interfere
    call = listener.begin("GET", "/message/t")
    assert cluster.run(900, lambda: call.said is not None)
    assert call.said == (503, NO)
    assert deleted
    assert [job.body for job in cluster[cluster.leader].machine.jobs.values()] == [b"second"]  # it is gone, on a majority
    cluster.network.interfere = None
    jobs = cluster[cluster.leader].machine.jobs
    assert cluster.run(5_000, lambda: len(jobs) == 2)
    assert next((job.pri, job.ttr_ms) for job in jobs.values() if job.body == b"first") == (pri, 7_000 if pri == 5 else 60_000)
    assert [listener.ask("GET", "/message/t")[1]["message"] for _ in range(2)] == ["first", "second"]
    cluster.run(200)
    assert not listener.node.gateway.sessions


def test_a_reservation_that_came_too_late_is_given_back():
    cluster, listener = with_messages("kept")
    node = listener.node.config.node
    cluster.network.interfere = lambda sender, to, message: (
        0 if to == node and isinstance(message, AppendEntries) and message.entries else 1
    )
    call = listener.begin("GET", "/message/t")
    assert cluster.run(900, lambda: call.said is not None)
    assert call.said == (503, NO)
    cluster.network.interfere = None
    cluster.run(3_000)
    assert listener.ask("GET", "/message/t") == (200, {"success": True, "message": "kept"})


def test_what_has_not_left_when_the_caller_has_his_503_never_happens():
    cluster, listener = with_messages()
    node = listener.node.config.node
    cluster.partition({node}, set(cluster.config.voters) - {node})
    cluster.run(2_000)  # it knows no leader any more
    call = listener.begin("PUT", "/message", {"topic": "t", "message": "too late"})
    assert cluster.run(900, lambda: call.said is not None)
    assert call.said == (503, NO)
    cluster.heal()
    cluster.run(5_000)
    assert not cluster[cluster.leader].machine.jobs


def test_a_caller_who_hangs_up_strands_no_message():
    cluster, listener = with_messages("kept")
    call = listener.begin("GET", "/message/t")
    cluster.run(0.5)
    call.hang_up()
    cluster.run(2_000)
    assert call.said is None
    assert listener.ask("GET", "/message/t") == (200, {"success": True, "message": "kept"})
    cluster.run(200)
    assert not listener.node.gateway.sessions


def test_a_node_whose_gateway_was_closed_says_503():
    cluster, listener = with_messages("kept")
    node = listener.node.config.node
    cluster.network.interfere = lambda sender, to, message: 0 if to == node and isinstance(message, AppendEntries) else 1
    call = listener.begin("GET", "/message/t")
    cluster.run(50)
    listener.node.gateway._abandon()
    listener.node.wake()
    cluster.run(20)  # its clients are told in the next turn
    assert call.said == (503, NO)


#: What a browser says of itself when a page that hides where it is shows an image.
_IMAGE = {"User-Agent": "Mozilla/5.0 (X11)", "Accept-Language": "en"}


def test_a_tool_that_calls_itself_a_browser_is_none():
    _, listener = with_messages("kept")
    call = FakeCall("GET", "/message/t", None, {"Host": "localhost:11303", "User-Agent": "Mozilla/5.0 (Windows NT) PowerShell/7"})
    assert listener.topics.handles(call)
    assert listener.cluster.run(1_000, lambda: call.said is not None)
    assert call.said == (200, {"success": True, "message": "kept"})


def test_a_page_of_another_site_changes_nothing():
    cluster, listener = with_messages("kept")
    for foreign in (
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://evil.example"},
        {"Referer": "http://evil.example/page"},
        _IMAGE,
    ):
        for method, path, body in (
            ("GET", "/message/t", None),
            ("PUT", "/topic", {"topic": "s"}),
            ("PUT", "/message", {"topic": "t", "message": "m"}),
        ):
            if foreign is _IMAGE and method != "GET":
                continue  # a browser that changes something says where it comes from
            call = FakeCall(method, path, body, {"Host": "localhost:11303", **foreign})
            assert listener.topics.handles(call)
            assert call.said == (403, NO), (foreign, path)
    for own in ({}, {"Sec-Fetch-Site": "same-origin"}, {"Origin": "http://localhost:11303", "User-Agent": "Mozilla/5.0"}):
        call = FakeCall("GET", "/topic", None, {"Host": "localhost:11303", **own})
        assert listener.topics.handles(call)
        assert cluster.run(1_000, lambda call=call: call.said is not None)
        assert call.said == (200, {"success": True, "topics": ["t"]})
    assert listener.ask("GET", "/message/t") == (200, {"success": True, "message": "kept"})
    assert not cluster[cluster.leader].machine.jobs

"""`/events` on simulated nodes: nothing missed, nothing twice, at whatever node one listens."""

from __future__ import annotations

import pytest

from raftd.jobs import commands as c
from raftd.note import Note
from raftd.raft.messages import AppendEntries
from raftd.server.http.stream import EVENT_BEAT_S, EVENT_STREAMS, EVENTS_PER_TURN, Events, Listening
from raftd.server.reporter import EventReporter
from raftd.server.stats import Counters
from raftd.sim.cluster import SimCluster
from tests.node.test_loop import Client, follower, started
from tests.server.calls import FakeCall, FakeStream


class Listener:
    def __init__(self, cluster: SimCluster, node: int) -> None:
        self.node = cluster[node]
        self.reporter = EventReporter(node, Counters(), lambda configuration: None, lambda: None)
        self.events = Events(self.node, cluster.processes[node].store._clock, self.reporter)

    def ask(self, path: str = "/events", method: str = "GET", **headers: str) -> FakeCall:
        call = FakeCall(method, path, None, headers)
        assert self.events.handles(call)
        return call

    def listen(self, path: str = "/events", **headers: str) -> FakeStream:
        before = set(self.events._listening)
        self.ask(path, **headers)
        (new,) = set(self.events._listening) - before
        return new.stream

    @property
    def last(self) -> Listening:
        return list(self.events._listening)[-1]


def jobs(stream: FakeStream) -> list[tuple[str, int, str]]:
    return [(data["what"], data["job"], id) for id, event, data in stream.told() if event == "job"]


def put(cluster: SimCluster, *bodies: bytes, tube: str = "t") -> None:
    client = Client(cluster, cluster.leader)
    for body in bodies:
        client.submit(c.Put(client.session.number, 1, 0, 60_000, body, tube))
    assert cluster.run(2_000, lambda: len(client.told) == len(bodies))
    client.session.close()
    cluster.run(200)


def test_whoever_listens_hears_first_who_leads_and_then_what_happens():
    cluster = started()
    listener = Listener(cluster, follower(cluster))
    stream = listener.listen()
    ((id, event, data),) = stream.told()
    assert (id, event, data["role"], data["leader"]) == ("", "role", "follower", cluster.leader)
    put(cluster, b"one", b"two")
    first, second = jobs(stream)
    assert (first[:2], second[:2]) == (("put", 1), ("put", 2))
    entry, number = map(int, second[2].split("."))
    assert entry >= 1
    assert number in (1, 2)


def test_the_same_ids_are_told_at_every_node_and_one_goes_on_at_another():
    cluster = started()
    here, there = follower(cluster), cluster.leader
    first, second = Listener(cluster, here), Listener(cluster, there)
    stream, other = first.listen(), second.listen()
    put(cluster, b"one", b"two", b"three")
    told = jobs(stream)
    assert told == jobs(other)
    resumed = second.listen(**{"Last-Event-ID": told[0][2]})
    cluster.run(50)
    assert jobs(resumed) == told[1:]
    by_parameter = second.listen(f"/events?last_event_id={told[1][2]}")
    cluster.run(50)
    assert jobs(by_parameter) == told[2:]


def test_a_node_that_is_behind_tells_nothing_twice():
    cluster = started()
    behind = follower(cluster)
    ahead = Listener(cluster, cluster.leader)
    stream = ahead.listen()
    cluster.network.interfere = lambda sender, to, message: (
        0 if to == behind and isinstance(message, AppendEntries) and message.entries else 1
    )
    put(cluster, b"one", b"two")
    told = jobs(stream)
    listener = Listener(cluster, behind)
    late = listener.listen(**{"Last-Event-ID": told[-1][2]})
    cluster.network.interfere = None
    cluster.run(2_000)
    put(cluster, b"three")
    assert [what[:2] for what in jobs(late)] == [("put", 3)]


def test_tubes_and_kinds_can_be_chosen():
    cluster = started()
    listener = Listener(cluster, cluster.leader)
    of_tube, of_roles = listener.listen("/events?tube=a&tube=b"), listener.listen("/events?kind=role&kind=members")
    put(cluster, b"1", tube="a")
    put(cluster, b"2", tube="b")
    put(cluster, b"3", tube="c")
    assert [job for _, job, _ in jobs(of_tube)] == [1, 2]
    listener.reporter.gateway_silent(3, 7)
    listener.reporter.members_changed(listener.node.raft.membership.latest)
    assert [event for _, event, _ in of_roles.told()] == ["role", "members"]
    assert [event for _, event, _ in of_tube.told()] == ["gateway-silent", "members"]


def test_what_is_not_remembered_any_more_is_said_to_be_missing(monkeypatch):
    cluster = started()
    listener = Listener(cluster, cluster.leader)
    recent = listener.node.job_events
    recent._ring = [None] * 4
    put(cluster, *(b"%d" % number for number in range(8)))
    stream = listener.listen(**{"Last-Event-ID": "1.1"})
    cluster.run(50)
    told = stream.told()
    assert [event for _, event, _ in told] == ["role", "gap", *["job"] * 4]
    assert told[1][2] == {"known_from": recent.known_from}


def test_what_is_forgotten_of_one_entry_is_missing_too():
    cluster = started()
    listener = Listener(cluster, cluster.leader)
    listener.node.job_events._ring = [None] * 4
    client = Client(cluster, cluster.leader)
    client.submit(c.PutMany(client.session.number, "t", [c.NewJob(1, 0, 60_000, b"x")] * 6))
    assert cluster.run(2_000, lambda: bool(client.told))
    first = listener.node.job_events[listener.node.job_events.begin]
    stream = listener.listen(**{"Last-Event-ID": f"{first.entry}.1"})
    cluster.run(50)
    assert [event for _, event, _ in stream.told()] == ["role", "gap", *["job"] * 4]


def test_a_place_of_another_log_is_no_place_here():
    """After a restore from an older backup: nothing is kept from the client until the log has come as far."""
    cluster = started()
    listener = Listener(cluster, cluster.leader)
    stream = listener.listen(**{"Last-Event-ID": "99999.1"})
    cluster.run(500)
    assert [event for _, event, _ in stream.told()] == ["role", "gap"]
    put(cluster, b"x")
    assert [what[:2] for what in jobs(stream)] == [("put", 1)]


def test_a_page_of_another_site_takes_no_stream():
    cluster = started()
    listener = Listener(cluster, cluster.leader)
    assert listener.ask(Host="127.0.0.1:1", Origin="http://evil.example").problem_name == "cross-site"
    assert listener.ask(Host="127.0.0.1:1", Origin="http://127.0.0.1:1").said == (200, None)


def test_who_does_not_keep_up_hears_of_the_gap_and_who_reads_nothing_goes():
    cluster = started()
    listener = Listener(cluster, cluster.leader)
    listener.node.job_events._ring = [None] * 4
    stream = listener.listen()
    listening = listener.last
    listening.pauseProducing()
    stream.told()
    put(cluster, *(b"%d" % number for number in range(8)))
    listener.reporter.noted(Note("something"))
    assert stream.told() == []
    listening.resumeProducing()
    cluster.run(50)
    assert [event for _, event, _ in stream.told()] == ["gap", *["job"] * 4]
    listening.pauseProducing()
    stream.unsent = 70_000
    cluster.run(2 * EVENT_BEAT_S * 1_000 + 100)
    assert stream.is_aborted
    listening.stopProducing()
    assert not listener.events._listening


def test_a_flood_of_events_is_told_in_turns():
    cluster = started()
    listener = Listener(cluster, cluster.leader)
    put(cluster, *(b"x" for _ in range(3 * EVENTS_PER_TURN)))
    streams = [listener.listen(**{"Last-Event-ID": "0.0"}) for _ in range(2)]
    listener.events._pump()
    assert [len(jobs(stream)) for stream in streams] == [EVENTS_PER_TURN // 2] * 2
    cluster.run(200)
    assert [len(jobs(stream)) for stream in streams] == [3 * EVENTS_PER_TURN - EVENTS_PER_TURN // 2] * 2


def test_a_sign_of_life_comes_now_and_then():
    cluster = started()
    stream = Listener(cluster, cluster.leader).listen()
    stream.written = b""
    cluster.run(EVENT_BEAT_S * 1_000 + 100)
    assert stream.written == b":\n\n"
    put(cluster, b"x", tube="other")
    listener = Listener(cluster, cluster.leader)
    filtered = listener.listen("/events?tube=t")
    put(cluster, b"y", tube="other")
    assert jobs(filtered) == []
    cluster.run(EVENT_BEAT_S * 1_000 + 100)
    assert filtered.written.startswith(b"id: ")  # so that who comes again need not hear of all the others


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/events?tube=a%20b", {}),
        ("/events?kind=everything", {}),
        ("/events?since=1", {}),
        ("/events", {"Last-Event-ID": "x"}),
        ("/events", {"Last-Event-ID": "1"}),
        ("/events", {"Last-Event-ID": "1.1\n"}),
        ("/events?last_event_id=" + "9" * 30 + ".1", {}),
    ],
)
def test_a_bad_request_for_events_is_refused(path, headers):
    cluster = started()
    assert Listener(cluster, cluster.leader).ask(path, **headers).problem_name == "bad-request"


def test_only_so_many_listen_and_only_by_get():
    cluster = started()
    listener = Listener(cluster, cluster.leader)
    assert listener.ask(method="POST").said_headers == {"Allow": "GET, HEAD"}
    assert listener.ask(method="HEAD").said == (200, None)
    for _ in range(EVENT_STREAMS):
        listener.ask()
    assert listener.ask().problem_name == "too-many-streams"

"""Clients who show nothing that is good, to nodes of a cluster with users: what they may not cost or do. Found by an attack."""

from __future__ import annotations

from typing import Any

import pytest

from raftd.limits import HELLO_TIMEOUT_S, LOGIN_FAILURES
from raftd.node.loop import Node
from raftd.raft.outcomes import Outcome
from raftd.wire import client as w
from raftd.wire.frames import FrameDecoder
from tests.server.harness import Listener, Listeners, answers, make_users

TOKEN = "raftd-of-root"


@pytest.fixture
def listeners() -> Listeners:
    made = Listeners(3)
    make_users(made, TOKEN)
    return made


def hello(token: str = "", session: bytes = b"") -> bytes:
    return w.encode_hello(w.SessionHello("sim", session, "", token))


def test_nothing_that_a_stranger_says_goes_into_the_log(listeners):
    """Logins that were not known did, thirty megabytes of them in two seconds."""
    listeners.cluster.run(1_000)
    before = listeners.cluster[listeners.cluster.leader].raft.log.last_index
    for node in (1, 2, 3):
        for number in range(20):
            listeners.client(node).send(hello(f"raftd-{number}", b"s" * 16), 0)
            listeners.client(node).send(hello(f"raftd-{number}"), 0)
            listeners.line(node).send(b"put 0 0 60 1\r\nx\r\npeek 1\r\nauth root raftd-%d\r\nreserve\r\n" % number, 0)
    listeners.cluster.run(60_000)
    assert listeners.cluster[listeners.cluster.leader].raft.log.last_index == before


def test_the_body_of_a_strangers_job_is_not_kept(listeners):
    line = listeners.line()
    line.send(b"put 0 0 60 60000\r\n" + b"x" * 50_000)
    assert len(line.protocol._parser._buffer) == 0
    assert line.send(b"x" * 10_000 + b"\r\n") == b"NOT_AUTHORIZED\r\n"
    line.send(f"auth root {TOKEN}\r\nput 0 0 60 60000\r\n".encode())
    assert line.send(b"x" * 60_000 + b"\r\n").startswith(b"INSERTED ")


def ask(listener: Listener, request: w.Request) -> Any:
    listener.send(w.encode_hello(w.ClientHello("sim")))
    (answer,) = answers(listener.send(w.encode_request(request), 100))
    return answer.reply


@pytest.mark.parametrize(
    "request_", [w.RemoveMemberRequest(1, 3), w.TransferRequest(1, 2), w.AddMemberRequest(1, 9, "h", 1), w.BackupRequest(1)]
)
def test_a_node_that_knows_of_no_users_asks_the_cluster(listeners, request_, monkeypatch):
    """One that has just started has applied nothing: it took strangers for operators."""
    monkeypatch.setattr(Node, "has_users", property(lambda node: False))
    for node in (1, 2, 3):
        assert ask(listeners.client(node), request_).outcome is Outcome.NOT_AUTHORIZED


def test_without_a_leader_an_operator_is_told_so(listeners):
    leader = listeners.cluster.leader
    left = next(node for node in (1, 2, 3) if node != leader)
    listeners.cluster.partition({left}, {1, 2, 3} - {left})
    listeners.cluster.run(2_000)
    listener = listeners.client(left)
    listener.send(hello(TOKEN))
    (answer,) = answers(listener.send(w.encode_request(w.RemoveMemberRequest(1, 3)), HELLO_TIMEOUT_S * 1_000 + 100))
    assert answer.reply.outcome is Outcome.NO_LEADER


def test_answers_to_auth_come_in_the_order_of_requests(listeners):
    line = listeners.line()
    assert line.send(f"auth root {TOKEN}\r\n".encode()) == b"AUTHORIZED\r\n"
    no_token = b"auth root " + b"x" * 150 + b"\r\n"
    assert line.send(b"put 0 0 60 1\r\nx\r\n" + no_token) == b"INSERTED 1\r\nNOT_AUTHORIZED\r\n"
    assert line.send(f"auth root {TOKEN}\r\n".encode()) == b"AUTHORIZED\r\n"
    assert line.send(b"peek 1\r\n" + no_token, 100) == b"FOUND 1 1\r\nx\r\nNOT_AUTHORIZED\r\n"
    assert line.send(f"auth root {TOKEN}\r\nreserve\r\n".encode()).startswith(b"AUTHORIZED\r\nRESERVED 1 ")
    assert line.send(b"watch none\r\nreserve-with-timeout 5\r\n" + no_token, 100) == b"WATCHING 2\r\n"
    assert line.later(6_000) == b"TIMED_OUT\r\nNOT_AUTHORIZED\r\n"


def test_a_hello_that_is_wrong_and_late_is_refused_and_closed(listeners):
    """It was held for ever: the error came when nobody listened any more."""
    for _ in range(LOGIN_FAILURES + 2):
        listeners.client().send(hello("raftd-x"), 50)
    for session in (b"short", b"s" * 16, b""):
        listener = listeners.client()
        listener.send(hello("raftd-x", session), 50)
        listener.later(20_000)
        assert listener.is_closed


def test_who_cannot_be_confirmed_is_told_so_in_time(listeners):
    leader = listeners.cluster.leader
    left = next(node for node in (1, 2, 3) if node != leader)
    listeners.cluster.partition({left}, {1, 2, 3} - {left})
    listener = listeners.client(left)
    data = listener.send(hello("raftd-new"), HELLO_TIMEOUT_S * 1_000 + 100)
    decoder = FrameDecoder()
    decoder.feed(data)
    reply = w.decode_answer(decoder.next_frame() or b"").reply
    assert reply.outcome is Outcome.NO_LEADER
    assert listener.is_closed


def test_who_is_good_never_waits_for_those_who_are_not(listeners):
    """Behind the same address: attempts had stood in one row."""
    for number in range(30):
        listeners.client().send(hello(f"raftd-{number}"), 0)
    listener = listeners.client()
    data = listener.send(hello(TOKEN), 50)
    assert data.startswith(b"\x00\x00")
    decoder = FrameDecoder()
    decoder.feed(data)
    assert w.decode_node_hello(decoder.next_frame() or b"").cluster == "sim"

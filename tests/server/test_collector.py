"""The collector of cycles walks no large queue, and what ends is in no cycle."""

from __future__ import annotations

import gc
import weakref

import pytest

from raftd.server.collector import CycleCollector
from raftd.server.http.exchange import Exchange
from tests.server.harness import Listeners
from tests.server.test_api import PUT, with_listener


class Collected:
    """What the collector asked of Python."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        for name in ("collect", "freeze"):
            monkeypatch.setattr(f"raftd.server.collector.gc.{name}", lambda name=name: self.calls.append(name))

    def taken(self) -> list[str]:
        calls, self.calls = self.calls, []
        return calls


def test_small_queues_are_collected_and_large_ones_set_aside(monkeypatch):
    collected = Collected(monkeypatch)
    items = 1_000
    collector = CycleCollector(None, lambda: items)
    collector.collect()
    assert collected.taken() == ["collect"]
    items = 200_000
    collector.collect()
    assert collected.taken() == ["freeze"]
    items = 210_000
    collector.collect()
    assert collected.taken() == ["collect", "freeze"]


@pytest.mark.parametrize("how", ["hangs up", "quits", "is lost"])
def test_a_connection_that_ends_is_in_no_cycle(how):
    listeners = Listeners(1)
    gc.collect()
    gc.disable()
    try:
        listener = listeners.line(listeners.cluster.config.voters[0])
        assert listener.send(b"put 0 0 60 1\r\nx\r\n") == b"INSERTED 1\r\n"
        listener.send(b"peek 1\r\nwatch a\r\nreserve-with-timeout 0\r\n")
        protocol, session = weakref.ref(listener.protocol), weakref.ref(listener.protocol.session)
        if how == "quits":
            listener.send(b"quit\r\n")
        elif how == "is lost":
            listeners.cluster[1].gateway.forget(listener.protocol.session, None)
            listener.protocol.session.abandon()
        listener.hang_up()
        listeners.cluster.run(15_000)
        del listener
        assert (protocol(), session()) == (None, None)
    finally:
        gc.enable()


def put(listener):
    return listener.answered("POST", PUT, {"body": "x"})


def show(listener):
    return listener.answered("GET", "/v1/tubes/default")


def reserve(listener):
    put(listener)
    call = listener.answered("POST", "/v1/reserve", {"tubes": ["t"]})
    call.left(True)
    call.left = None
    return call


def wait_and_hang_up(listener):
    call = listener.begin("POST", "/v1/reserve", {"tubes": ["t"], "timeout_s": 30})
    listener.cluster.run(200)
    call.hang_up()
    return call


def wait_for_nothing(listener):
    call = listener.begin("POST", "/v1/reserve", {"tubes": ["t"], "timeout_s": 1})
    listener.cluster.run(2_000)
    assert call.said is not None
    if call.left is not None:
        call.left(True)
        call.left = None
    return call


@pytest.mark.parametrize("ask", [put, show, reserve, wait_and_hang_up, wait_for_nothing])
def test_a_call_over_http_that_is_over_is_in_no_cycle(ask):
    _, listener = with_listener()
    ask(listener)  # whatever is made once
    listener.cluster.run(100_000)
    gc.collect()
    before = set(map(id, exchanges()))
    gc.disable()
    try:
        call = weakref.ref(ask(listener))
        listener.cluster.run(100_000)  # what was to be called later is over
        assert [exchange for exchange in exchanges() if id(exchange) not in before] == []
        assert call() is None
    finally:
        gc.enable()


def exchanges() -> list[Exchange]:
    return [one for one in gc.get_objects() if isinstance(one, Exchange)]

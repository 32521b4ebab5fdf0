"""The reactor of a node: once after each poll, whatever it brought."""

from __future__ import annotations

import socket
import sys

import pytest
from twisted.internet.abstract import FileDescriptor
from twisted.internet.task import Clock

from raftd.server import reactor as module
from raftd.server.reactor import LONGEST_POLLS_S, MOST_POLLS, Pauses, TurnReactor, install, soon_of


class Reader(FileDescriptor):
    """Writes down what arrives, and asks for a call after the poll."""

    def __init__(self, reactor: TurnReactor, events: list[str]) -> None:
        super().__init__(reactor)
        self.ours, self.theirs = socket.socketpair()
        self._events = events
        self.startReading()

    def fileno(self) -> int:
        return self.ours.fileno()

    def doRead(self) -> None:
        self._events.append(self.ours.recv(100).decode())
        self.reactor.soon(self._events.append, "after the poll")


@pytest.fixture
def reactor():
    reactor = TurnReactor()
    yield reactor
    for descriptor in reactor.removeAll():
        if isinstance(descriptor, Reader):
            descriptor.ours.close()
            descriptor.theirs.close()
    reactor._poller.close()


def test_a_call_comes_after_all_that_the_poll_has_brought(reactor):
    events: list[str] = []
    readers = [Reader(reactor, events) for _ in range(3)]
    for number, reader in enumerate(readers):
        reader.theirs.send(b"%d" % number)
    reactor.doIteration(0)
    assert sorted(events[:3]) == ["0", "1", "2"]
    assert events[3:] == ["after the poll"] * 3


def test_a_call_comes_when_nothing_more_arrives(reactor):
    events: list[str] = []
    one, other = Reader(reactor, events), Reader(reactor, events)

    def read() -> None:
        events.append(one.ours.recv(100).decode())
        reactor.soon(events.append, "call")
        other.theirs.send(b"second")

    one.doRead = read
    one.theirs.send(b"first")
    reactor.doIteration(0)
    assert events == ["first", "second", "call", "after the poll"]


def test_a_flood_does_not_hold_calls_back(reactor):
    events: list[str] = []
    reader = Reader(reactor, events)

    def read() -> None:
        events.append("read")  # and leave it there: it can be read again
        reactor.soon(events.append, "call")

    reader.doRead = read
    reader.theirs.send(b"x")
    reactor.seconds = lambda: 0.0
    reactor.doIteration(0)
    assert events == ["read"] * MOST_POLLS + ["call"] * MOST_POLLS


def test_polls_that_take_long_are_few(reactor):
    """One process that connected and disconnected without end held back the ticks of a leader for sixteen polls, and cost it the lead."""
    events: list[str] = []
    reader = Reader(reactor, events)
    now_s = [0.0]
    reactor.seconds = lambda: now_s[0]

    def read() -> None:
        now_s[0] += LONGEST_POLLS_S
        events.append("read")
        reactor.soon(events.append, "call")

    reader.doRead = read
    reader.theirs.send(b"x")
    reactor.doIteration(0)
    assert events == ["read"] * 2 + ["call"] * 2


def test_pauses_are_measured_from_a_poll_to_the_next_but_not_the_wait(reactor):
    """Work was once counted from tick to tick: a node that rested between ticks seemed to work for 50 ms at a time."""
    clocks = [0.0, 0.0]
    reactor.pauses = pauses = Pauses(lambda: (clocks[0], clocks[1]))
    events: list[str] = []
    reader = Reader(reactor, events)

    work = iter([(3.0, 2.0), (1.0, 1.0), (5.0, 1.5)])

    def read() -> None:
        reader.ours.recv(1)
        seconds, worked = next(work)
        clocks[0] += seconds
        clocks[1] += worked

    class Poller:
        def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
            clocks[0] += 100  # nothing comes for a long time
            return poller.poll(0, most)

    poller, reactor._poller = reactor._poller, Poller()
    reader.doRead = read
    for _ in range(3):
        reader.theirs.send(b"x")
        reactor.doIteration(1)
    reactor.doIteration(1)
    reactor._poller = poller
    assert (pauses.longest_s, pauses.longest_work_s) == (5.0, 2.0)


def test_a_call_that_ends_the_process_loses_no_other(reactor):
    calls: list[str] = []
    reactor.soon(sys.exit)
    reactor.soon(calls.append, "second")
    with pytest.raises(SystemExit):
        reactor.doIteration(0)
    reactor.doIteration(0)
    assert calls == ["second"]


def test_a_poll_does_not_wait_while_a_call_does(reactor):
    calls: list[str] = []
    assert reactor.timeout() is None
    reactor.soon(calls.append, "first")
    assert reactor.timeout() == 0
    reactor.doIteration(reactor.timeout())
    assert calls == ["first"]
    assert reactor.timeout() is None


def test_what_a_call_asks_for_comes_after_one_more_poll(reactor):
    calls: list[str] = []
    reactor.soon(lambda: reactor.soon(calls.append, "second"))
    reactor.doIteration(0)
    assert calls == []
    reactor.doIteration(0)
    assert calls == ["second"]


def test_a_call_that_fails_is_logged_and_stops_no_other(reactor, capfd):
    calls: list[str] = []
    reactor.soon(lambda: 1 // 0)
    reactor.soon(calls.append, "second")
    reactor.doIteration(0)
    assert calls == ["second"]
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_an_event_of_a_connection_that_was_closed_in_the_same_poll_is_dropped(reactor):
    events: list[str] = []
    one, other = Reader(reactor, events), Reader(reactor, events)

    def read() -> None:
        one.stopReading()
        other.stopReading()
        events.append("read")

    one.doRead = other.doRead = read
    one.theirs.send(b"x")
    other.theirs.send(b"x")
    reactor.doIteration(0)
    assert events == ["read"]


def test_a_reactor_that_was_chosen_stays():
    chosen = sys.modules["twisted.internet.reactor"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "installReactor", lambda reactor: pytest.fail("another was installed"))
        install()
    assert sys.modules["twisted.internet.reactor"] is chosen


def test_any_other_reactor_calls_after_its_poll_too():
    clock = Clock()
    calls: list[str] = []
    soon_of(clock)(calls.append, "called")
    assert calls == []
    clock.advance(0)
    assert calls == ["called"]

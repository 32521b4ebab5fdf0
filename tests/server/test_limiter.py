"""Crowds: how many clients are let in, and that those who flood take turns."""

from __future__ import annotations

import resource
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from raftd.limits import MOST_DESCRIPTORS
from raftd.server import limiter
from raftd.server.limiter import CLIENT_TURN_MS, LEAST_CLIENTS, RESERVED_DESCRIPTORS, ConnectionLimiter


class TurnClock:
    """Time that passes within a turn too, as it does in a reactor; what is called later is called in the next turn."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.calls: list[Callable[[], None]] = []

    def seconds(self) -> float:
        return self.now_s

    def callLater(self, seconds: float, call: Callable[[], None]) -> None:
        assert seconds == 0
        self.calls.append(call)

    def next_turn(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            call()


class Busy:
    """A connection with `requests` to make, each of which takes `cost_ms`."""

    def __init__(self, name: str, clock: TurnClock, limiter: ConnectionLimiter, requests: int, cost_ms: float, log: list[str]) -> None:
        self.name, self.clock, self.limiter = name, clock, limiter
        self.requests, self.cost_ms, self.log = requests, cost_ms, log

    def resume(self) -> None:
        while self.requests:
            if not self.limiter.has_time(self.clock.seconds()):
                self.limiter.wait(self)
                return
            self.requests -= 1
            self.clock.now_s += self.cost_ms / 1000
            self.log.append(self.name)


class Crowds(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = TurnClock()
        self.limiter = ConnectionLimiter(self.clock, 3)
        self.log: list[str] = []

    def busy(self, name: str, requests: int, cost_ms: float) -> Busy:
        return Busy(name, self.clock, self.limiter, requests, cost_ms, self.log)

    def test_so_many_and_no_more_until_one_has_left(self) -> None:
        self.assertEqual([self.limiter.admit() for _ in range(5)], [True, True, True, False, False])
        self.limiter.left()
        self.assertEqual([self.limiter.admit(), self.limiter.admit()], [True, False])

    def test_one_address_gets_half_of_them_unless_it_is_this_machine(self) -> None:
        limiter = ConnectionLimiter(self.clock, 6)
        self.assertEqual([limiter.admit("10.0.0.1") for _ in range(4)], [True, True, True, False])
        self.assertEqual([limiter.admit("10.0.0.2"), limiter.admit("127.0.0.1")], [True, True])
        limiter.left("10.0.0.1")
        self.assertEqual([limiter.admit("10.0.0.1"), limiter.admit("10.0.0.1")], [True, False])
        here = ConnectionLimiter(self.clock, 6)
        self.assertEqual([here.admit("127.0.0.1") for _ in range(7)], [True] * 6 + [False])

    def test_a_turn_gives_all_clients_together_so_much_time(self) -> None:
        for name in "abc":
            self.busy(name, 10, CLIENT_TURN_MS / 5).resume()
        self.assertEqual(self.log, ["a"] * 5)

    def test_who_waits_goes_on_in_order_before_what_is_new(self) -> None:
        for name in "abc":
            self.busy(name, 10, CLIENT_TURN_MS / 5).resume()
        turns = []
        for _ in range(5):
            self.log.clear()
            self.clock.next_turn()
            turns.append("".join(self.log))
        self.assertEqual(turns, ["aaaaa", "bbbbb", "ccccc", "bbbbb", "ccccc"])

    def test_one_request_is_always_taken_however_long_it_lasts(self) -> None:
        self.busy("a", 3, 10 * CLIENT_TURN_MS).resume()
        self.assertEqual(self.log, ["a"])
        self.clock.next_turn()
        self.clock.next_turn()
        self.assertEqual(self.log, ["a", "a", "a"])

    def test_a_lost_connection_is_not_resumed(self) -> None:
        first, second = self.busy("a", 1, 0), self.busy("b", 1, 0)
        self.limiter.wait(first)
        self.limiter.wait(second)
        self.limiter.forget(first)
        self.clock.next_turn()
        self.assertEqual(self.log, ["b"])

    def test_the_next_turn_has_time_again(self) -> None:
        self.assertTrue(self.limiter.has_time(self.clock.seconds()))
        self.clock.now_s += CLIENT_TURN_MS / 1000
        self.assertFalse(self.limiter.has_time(self.clock.seconds()))
        self.clock.next_turn()
        self.assertTrue(self.limiter.has_time(self.clock.seconds()))
        self.clock.next_turn()
        self.assertEqual(self.clock.calls, [])


class Descriptors(SynchronousTestCase):
    def limits(self, soft: int, hard: int) -> int:
        """What `most_clients` gives under these; `self.raised` is what it set."""
        self.raised: list[tuple[int, int]] = []
        self.patch(resource, "getrlimit", lambda which: (soft, hard))
        self.patch(resource, "setrlimit", lambda which, both: self.raised.append(both))
        return limiter.most_clients()

    def test_the_limit_is_raised_as_far_as_it_may_be(self) -> None:
        self.assertEqual(self.limits(1_024, 4_096), 4_096 - RESERVED_DESCRIPTORS)
        self.assertEqual(self.raised, [(4_096, 4_096)])

    def test_but_not_beyond_reason(self) -> None:
        endless = resource.RLIM_INFINITY
        for soft, hard in ((1_024, endless), (1_024, 1 << 30)):
            self.assertEqual(self.limits(soft, hard), MOST_DESCRIPTORS - RESERVED_DESCRIPTORS)
            self.assertEqual(self.raised, [(MOST_DESCRIPTORS, hard)])
        self.assertEqual(self.limits(endless, endless), MOST_DESCRIPTORS - RESERVED_DESCRIPTORS)
        self.assertEqual(self.raised, [])

    def test_somebody_is_let_in_always(self) -> None:
        self.assertEqual(self.limits(64, 64), LEAST_CLIENTS)

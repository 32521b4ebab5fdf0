"""The core of the clients alone: bytes in, bytes out, and a clock that the test moves."""

from __future__ import annotations

from random import Random
from typing import Any

from raftd.client.core import Core, Subscription
from raftd.client.errors import OutcomeUnknown, Unreachable
from raftd.client.retry import Retry
from raftd.jobs import asks
from raftd.jobs import replies as r
from raftd.limits import WAITING_RESERVES
from raftd.wire import client as w
from raftd.wire.frames import FrameDecoder


class Talk:
    """A core, and what it says to a node that answers by hand."""

    def __init__(self) -> None:
        self.core = Core([("node", 1)], "", Random(1), Retry())
        self.now_s = 0.0
        self.told: list[Any] = []

    def attach(self, epoch: int = 1, last_id: int = 0, session: int = 1) -> list[Any]:
        self.core.connected(self.now_s)
        self.core.output()
        self.core.received(w.encode_hello(w.AttachedHello("c", 1, 65_535, session, epoch, last_id, 5_000, 15_000)), self.now_s)
        return self.said()

    def said(self) -> list[Any]:
        """Asks, since the last time."""
        decoder = FrameDecoder()
        decoder.greeted()
        decoder.feed(self.core.output())
        found = []
        while (body := decoder.next_frame()) is not None:
            request = w.decode_request(body)
            if isinstance(request, w.AskRequest):
                found.append(request)
        return found

    def answer(self, id: int, reply: Any) -> None:
        assert self.core.received(w.encode_answer(w.Answer(id, 9, reply)), self.now_s)

    def ask(self, what: asks.What, within_s: float = 10.0, done: Any = None) -> None:
        self.core.ask(what, self.now_s, self.now_s + within_s, done or self.told.append)

    def later(self, seconds: float) -> bool:
        self.now_s += seconds
        return self.core.tick(self.now_s)


PUT = asks.Put("t", [asks.NewJob(1, 0, 1_000, b"x")])


def job(id: int, body: bytes = b"x", ttr_ms: int = 60_000) -> r.Job:
    return r.Job(id, id, "t", body, 1, ttr_ms, 0)


def test_what_was_not_answered_is_asked_again_with_its_id():
    talk = Talk()
    talk.ask(PUT)
    (first,) = talk.attach()
    talk.core.lost(talk.now_s, "gone")
    assert talk.attach(2) == [first]
    talk.answer(first.id, r.InsertedMany(7, 1, False))
    assert talk.told == [r.InsertedMany(7, 1, False)]
    assert talk.core.resumed == 1


def test_what_is_confirmed_and_what_waits():
    talk = Talk()
    talk.attach()
    talk.ask(asks.Reserve(["t"], 1, None))
    talk.ask(PUT)
    talk.ask(PUT)
    wait, first, second = talk.said()
    assert (first.answered, first.waiting, second.answered) == (first.id, [wait.id], first.id)
    talk.answer(second.id, r.InsertedMany(2, 1, False))
    talk.ask(PUT)
    assert talk.said()[0].answered == first.id


def test_after_the_session_has_ended_only_what_is_safe_is_asked_again():
    talk = Talk()
    talk.attach()
    keyed = asks.Put("t", PUT.jobs, "key")
    for what in (PUT, keyed, asks.Reserve(["t"], 1, None)):
        talk.ask(what)
    before = talk.said()
    talk.core.lost(talk.now_s, "gone")
    again = talk.attach(session=2)
    assert [request.what for request in again] == [keyed, asks.Reserve(["t"], 1, None)]
    assert min(request.id for request in again) > max(request.id for request in before)
    assert [type(one) for one in talk.told] == [OutcomeUnknown]


def test_who_is_closed_before_there_is_a_session_begins_none():
    """Its subscription was asked for when the node's hello came, and ended with its connection: what was pushed had failed."""
    talk = Talk()
    talk.core.subscribe(Subscription(["t"], 5, lambda: None), talk.now_s)
    talk.ask(PUT)
    talk.core.connected(talk.now_s)
    talk.core.output()
    talk.core.close(talk.now_s, talk.told.append)
    assert not talk.core.received(w.encode_hello(w.AttachedHello("c", 1, 65_535, 1, 1, 0, 5_000, 15_000)), talk.now_s)
    assert talk.said() == []
    talk.core.abandon()
    assert [type(one) for one in talk.told] == [Unreachable, Unreachable]


def test_a_session_that_was_made_anew_is_known_by_its_number():
    """The answer to the hello that made it was lost, and the next epoch is not 1: a put was asked again with its id, and done twice."""
    talk = Talk()
    talk.attach()
    talk.ask(PUT)
    talk.said()
    talk.core.lost(talk.now_s, "gone")
    talk.core.connected(talk.now_s)
    talk.core.output()
    talk.core.lost(talk.now_s, "gone before the node's hello has come")
    assert talk.attach(session=2, epoch=2) == []
    assert [type(one) for one in talk.told] == [OutcomeUnknown]


def test_what_an_ended_session_was_asked_is_never_certainly_not_done():
    """A put with a key waited to be asked again in the next session, and was told as if it had never been sent."""
    talk = Talk()
    talk.attach()
    talk.ask(asks.Put("t", PUT.jobs, "key"), 5.0)
    for _ in range(100):
        talk.ask(PUT, 1e9, lambda result: None)
    talk.core.lost(talk.now_s, "gone")
    talk.core._unsent.appendleft(talk.core._asked.popitem(last=False)[1])  # there is no room for it yet
    talk.later(6.0)
    assert [type(one) for one in talk.told] == [OutcomeUnknown]


def test_who_is_told_that_the_session_has_ended_may_ask_again():
    """What a callback asked was sent, and forgotten."""
    talk = Talk()
    talk.attach()
    talk.ask(PUT, done=lambda error: talk.ask(PUT))
    talk.said()
    talk.core.lost(talk.now_s, "gone")
    (again,) = talk.attach(session=2)
    talk.answer(again.id, r.InsertedMany(1, 1, False))
    assert talk.told == [r.InsertedMany(1, 1, False)]


def test_who_is_told_that_time_is_over_may_end_all():
    """It took away what was to be told next, and the clock stopped."""
    talk = Talk()

    def end(error: Exception) -> None:
        talk.told.append(type(error))
        talk.core.abandon()

    for _ in range(3):
        talk.ask(PUT, 1.0, end)
    talk.core.read(lambda id: w.TubeRequest(id, "t"), 1.0, lambda error: talk.told.append(type(error)))
    talk.later(2.0)
    assert talk.told == [Unreachable] * 4


def test_a_subscription_of_large_jobs_is_confirmed_before_nodes_stop():
    talk = Talk()
    subscription = Subscription(["t"], 100, lambda: None)
    talk.attach()
    talk.core.subscribe(subscription, talk.now_s)
    (subscribe,) = talk.said()
    talk.answer(subscribe.id, r.Subscribed())
    for number in range(1, 6):
        talk.answer(subscribe.id, r.Pushed(number, job(number, bytes(60_000))))
    (flow,) = talk.said()
    assert flow.what == asks.Flow(subscribe.id, 5, 0)


def test_credit_is_given_back_for_several_jobs_at_once():
    talk = Talk()
    subscription = Subscription(["t"], 4, lambda: None)
    talk.attach()
    talk.core.subscribe(subscription, talk.now_s)
    (subscribe,) = talk.said()
    for number in range(1, 5):
        talk.answer(subscribe.id, r.Pushed(number, job(number)))
    for _ in range(2):
        held = subscription.ready.popleft()
        talk.core.finish(held, asks.Delete([held.key]), talk.now_s, 9.0, talk.told.append)
        (delete,) = talk.said()
        talk.answer(delete.id, r.Missed([]))
    (flow,) = talk.said()
    assert flow.what == asks.Flow(subscribe.id, 4, 2)


def test_more_reserves_than_a_session_may_have_wait_here_and_hold_nothing_up():
    talk = Talk()
    talk.attach()
    for _ in range(WAITING_RESERVES + 20):
        talk.ask(asks.Reserve(["t"], 1, None), 1e9)
    talk.ask(PUT)
    said = talk.said()
    assert len(said) == WAITING_RESERVES + 1
    assert said[-1].what == PUT
    assert len(said[-1].waiting) == WAITING_RESERVES
    talk.answer(said[0].id, r.Jobs([]))
    assert [request.what for request in talk.said()] == [asks.Reserve(["t"], 1, None)]


def test_held_jobs_are_touched_together_and_a_lost_one_is_told():
    talk = Talk()
    talk.attach()
    talk.ask(asks.Reserve(["t"], 2))
    (reserve,) = talk.said()
    talk.answer(reserve.id, r.Jobs([job(1, ttr_ms=3_000), job(2, ttr_ms=3_000)]))
    held = list(talk.core.held.values())
    talk.later(1.1)
    (touch,) = talk.said()
    assert touch.what == asks.Touch([(1, 1), (2, 2)])
    talk.answer(touch.id, r.Missed([2]))
    assert [one.lost for one in held] == [False, True]


def test_a_job_that_comes_too_late_is_given_back():
    talk = Talk()
    talk.attach()
    talk.ask(asks.Reserve(["t"], 1, None), 1.0)
    (reserve,) = talk.said()
    talk.later(1.1)
    assert talk.told == [r.Jobs([])]
    assert [request.what for request in talk.said()] == [asks.Cancel(reserve.id)]
    talk.answer(reserve.id, r.Jobs([job(5)]))
    assert [request.what for request in talk.said()] == [asks.Release([(5, 5)])]
    assert not talk.core.held


def test_a_silent_node_is_left():
    talk = Talk()
    talk.attach()
    assert talk.later(1.6)
    assert talk.later(1.0)
    assert not talk.later(2.0)

"""The client listener: sessions, asks in, answers with their index out, and jobs that are pushed."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.trial.unittest import SynchronousTestCase

from raftd.jobs import asks
from raftd.jobs.policy import Policy, PolicyChange
from raftd.jobs.replies import (
    Ended,
    Flowing,
    InsertedMany,
    Job,
    Jobs,
    JobTooBig,
    KeyReused,
    Kicked,
    Missed,
    NotFound,
    Pushed,
    Subscribed,
    TakenOver,
    TooMany,
)
from raftd.limits import HELLO_FRAME_BYTES, HELLO_TIMEOUT_S, WAITING_RESERVES
from raftd.server.client import SILENCE_S
from raftd.wire import client as w
from raftd.wire.frames import FrameDecoder, frame
from tests.server.harness import Listener, Listeners, answers

TOKEN = b"0123456789abcdef"


def put(*bodies: bytes, tube: str = "mail", delay_ms: int = 0, ttr_ms: int = 60_000, key: str = "") -> asks.Put:
    return asks.Put(tube, [asks.NewJob(10, delay_ms, ttr_ms, body) for body in bodies], key)


def job(id: int, token: int, body: bytes, failures: int = 0) -> Job:
    return Job(id, token, "mail", body, 10, 60_000, failures)


class Client:
    """A connection that speaks for a session."""

    def __init__(self, listener: Listener, token: bytes = TOKEN, first: int = 1) -> None:
        self.listener = listener
        decoder = FrameDecoder()
        decoder.greeted()
        decoder.feed(listener.send(w.encode_hello(w.SessionHello("sim", token))))
        self.hello = w.decode_attached_hello(decoder.next_frame() or b"")
        self.next = first

    def ask(self, *whats: asks.What, answered: int = 0, ms: float = 40) -> list[tuple[int, Any]]:
        requests = []
        for what in whats:
            requests.append(w.AskRequest(self.next, answered, [], what))
            self.next += 1
        return self.send(*requests, ms=ms)

    def send(self, *requests: w.Request, ms: float = 40) -> list[tuple[int, Any]]:
        return self.heard(self.listener.send(b"".join(map(w.encode_request, requests)), ms))

    def later(self, ms: float) -> list[tuple[int, Any]]:
        return self.heard(self.listener.later(ms))

    @staticmethod
    def heard(data: bytes) -> list[tuple[int, Any]]:
        return [(answer.id, answer.reply) for answer in answers(data)]


class ClientListener(SynchronousTestCase):
    def setUp(self) -> None:
        self.listeners = Listeners(3)
        leader = self.listeners.cluster.leader
        self.node = next(node for node in (1, 2, 3) if node != leader)
        self.other = next(node for node in (1, 2, 3) if node not in (leader, self.node))
        self.listener = self.listeners.client(self.node)

    def greet(self) -> None:
        decoder = FrameDecoder()
        decoder.feed(self.listener.send(w.encode_hello(w.ClientHello("sim"))))
        hello = w.decode_node_hello(decoder.next_frame() or b"")
        self.assertEqual((hello.cluster, hello.node, hello.max_job_size), ("sim", self.node, 65_535))

    def request(self, *requests: w.Request) -> list[w.Answer]:
        return answers(self.listener.send(b"".join(w.encode_request(request) for request in requests)))

    def client(self, node: int = 0, token: bytes = TOKEN, first: int = 1) -> Client:
        return Client(self.listeners.client(node or self.node), token, first)

    def machine(self):
        return self.listeners.cluster[self.node].machine

    def test_put_reserve_delete_each_with_its_index(self) -> None:
        client = self.client()
        self.assertEqual((client.hello.epoch, client.hello.last_id, client.hello.session_timeout_ms), (1, 0, 5_000))
        data = client.listener.send(
            b"".join(
                w.encode_request(w.AskRequest(id, 0, [], what))
                for id, what in enumerate((put(b"a", b"b"), asks.Reserve(["mail"], 5), asks.Delete([(1, 1), (2, 9)])), 1)
            )
        )
        got = answers(data)
        self.assertEqual([answer.id for answer in got], [1, 2, 3])
        jobs = Jobs([job(1, 1, b"a"), job(2, 2, b"b")])
        self.assertEqual([answer.reply for answer in got], [InsertedMany(1, 2, False), jobs, Missed([2])])
        self.assertTrue(0 < got[0].index <= got[1].index <= got[2].index)

    def test_answers_come_in_any_order(self) -> None:
        client = self.client()
        self.assertEqual(client.ask(asks.Reserve(["mail"], 1, 500), asks.Declare("topic"))[0][0], 2)
        self.assertEqual(client.later(600), [(1, Jobs([]))])

    def test_a_reserve_waits_for_any_of_its_tubes(self) -> None:
        client = self.client()
        self.assertEqual(client.ask(asks.Reserve(["mail", "sms"], 1, None)), [])
        got = dict(client.ask(put(b"a", tube="sms")))
        self.assertEqual(got[2], InsertedMany(1, 1, False))
        self.assertEqual(got[1].jobs[0].tube, "sms")

    def test_a_key_puts_once(self) -> None:
        client = self.client()
        got = dict(client.ask(put(b"a", key="k"), put(b"a", key="k"), asks.Put("mail", [], "k", b"other"), put(b"b")))
        self.assertEqual([got[1], got[2]], [InsertedMany(1, 1, False), InsertedMany(1, 1, True)])
        self.assertIn("jobs: expected 1 to", got[3].text)
        self.assertEqual(client.ask(asks.Put("mail", put(b"a").jobs, "k", b"other")), [(5, KeyReused())])

    def test_what_older_nodes_do_not_know_is_refused_also_if_it_is_said_to_come_again(self) -> None:
        client = self.client()
        client.ask(put(b"a"), put(b"b"), put(b"c"))
        again = self.client(first=2)
        for process in self.listeners.cluster.processes.values():
            process.node.machine.level = 3
        for id, what in enumerate((asks.SetPolicies([PolicyChange("mail", Policy(max_jobs=1))]), asks.RunSchedule("beat")), 2):
            ((asked, reply),) = again.ask(what)
            self.assertEqual((asked, type(reply)), (id, w.Failed))
            self.assertIn("an older raftd may be among the nodes", reply.text)

    def test_a_list_of_schedules_fits_whatever_they_put(self) -> None:
        """It was too long for a frame, and ended the node."""
        client = self.client()
        for number in range(5):
            plan = asks.Plan("t", asks.NewJob(1, 0, 1_000, bytes(60_000)), every_ms=3_600_000)
            client.ask(asks.SetSchedule(f"s{number}", plan), ms=200)
        ((_, listed),) = client.send(w.SchedulesRequest(90))
        self.assertEqual([len(one.plan.job.body) for one in listed.schedules], [0] * 5)
        ((_, shown),) = client.send(w.SchedulesRequest(91, "s1"))
        self.assertEqual([len(one.plan.job.body) for one in shown.schedules], [60_000])

    def test_looks_at_the_calendar_take_turns(self) -> None:
        """A cron expression that is never due takes ten milliseconds: four hundred at once kept the reactor for more than a second."""
        client = self.client()
        plan = asks.Plan("t", asks.NewJob(1, 0, 1_000, b""), cron="0 0 LW * */7")
        node, looks = self.listeners.cluster[self.node], []

        def count(plan: asks.Plan) -> str:
            looks.append(node.turns)
            return "cron: it is never due"

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("raftd.server.client.what_is_wrong_with_times", count)
            got = client.ask(*[asks.SetSchedule(f"s{number}", plan) for number in range(20)], ms=2_000)
        self.assertEqual([reply.text for _, reply in got], ["cron: it is never due"] * 20)
        self.assertEqual(len(set(looks)), 20)

    def test_what_else_may_be_asked(self) -> None:
        client = self.client()
        client.ask(put(b"a", b"b", b"c"), asks.Reserve(["mail"], 3))
        got = client.ask(
            asks.Touch([(1, 1)]),
            asks.Fail([(1, 1)], 0, "it broke"),
            asks.Bury([(2, 2)]),
            asks.Release([(3, 3)], 5_000),
            asks.KickJobs([3, 9]),
            asks.Kick("mail", 10),
            asks.Reserve(["mail"], 3),
            asks.Pause("mail", 0),
            asks.Undeclare("mail"),
        )
        replies = [reply for _, reply in got]
        self.assertEqual(replies[:6], [Missed([]), Missed([]), Missed([]), Missed([]), Missed([9]), Kicked(1)])
        self.assertEqual([(one.id, one.failures) for one in replies[6].jobs], [(1, 1), (2, 0), (3, 0)])
        self.assertEqual(replies[8], NotFound())
        (answer,) = client.send(w.JobRequest(77, 1))
        info = answer[1].job
        self.assertEqual((info.state, info.error, info.failures, info.reserves, info.body), ("reserved", "it broke", 1, 2, b"a"))
        (history,) = client.send(w.HistoryRequest(78, 1))
        self.assertEqual([event.what for event in history[1].events], ["put", "reserved", "touched", "failed", "reserved"])
        (tube,) = client.send(w.TubeRequest(79, "mail"))
        self.assertEqual((tube[1].tubes[0].reserved, tube[1].tubes[0].total_jobs), (3, 3))
        (tubes,) = client.send(w.TubesRequest(80, "default", 5))
        self.assertEqual(([one.name for one in tubes[1].tubes], tubes[1].has_more), (["mail"], False))
        self.assertEqual(client.send(w.NextRequest(81, "mail", "buried")), [(81, w.JobFound(None))])
        self.assertEqual(client.send(w.PingRequest(82)), [(82, w.Done())])

    def test_jobs_are_pushed_while_there_is_credit(self) -> None:
        client = self.client()
        client.ask(put(b"a", b"b", b"c"))
        got = client.ask(asks.Subscribe(["mail"], 2))
        self.assertEqual(got, [(2, Subscribed()), (2, Pushed(1, job(1, 1, b"a"))), (2, Pushed(2, job(2, 2, b"b")))])
        self.assertEqual(client.ask(asks.Flow(2, 1, 1)), [(3, Flowing()), (2, Pushed(3, job(3, 3, b"c")))])
        self.assertEqual(client.ask(asks.Flow(2, 3, 999)), [(4, Flowing())])
        self.assertEqual(client.ask(asks.Flow(2, 3, 2)), [(5, TooMany())])
        self.assertEqual(client.ask(put(b"d")), [(2, Pushed(4, job(4, 4, b"d"))), (6, InsertedMany(4, 1, False))])
        self.assertEqual(client.ask(asks.Cancel(2)), [(7, Jobs([job(4, 4, b"d")]))])  # it is not known to have arrived
        self.assertEqual(client.ask(put(b"e")), [(8, InsertedMany(5, 1, False))])

    def test_two_subscribers_take_turns(self) -> None:
        first, second = self.client(), self.client(token=b"f" * 16)
        first.ask(asks.Subscribe(["mail"], 9))
        second.ask(asks.Subscribe(["mail"], 9))
        first.ask(put(b"a", b"b", b"c", b"d"))
        self.assertEqual([reply.number for _, reply in second.later(50)], [1, 2])

    def test_a_session_goes_on_at_another_node(self) -> None:
        client = self.client()
        client.ask(put(b"a", b"b"), asks.Reserve(["mail"]), asks.Reserve(["sms"], 1, None), asks.Subscribe(["mail"], 5))
        client.listener.hang_up()
        self.listeners.cluster.run(1_000)
        self.assertEqual(self.machine().tubes["mail"].reserved, 2)
        again = self.client(self.other, first=10)
        self.assertEqual((again.hello.epoch, again.hello.last_id), (2, 4))
        # what was answered is answered the same, what waits goes on, and what was pushed comes again
        got = again.send(w.AskRequest(1, 0, [], put(b"a", b"b")), w.AskRequest(2, 0, [], asks.Reserve(["mail"])))
        self.assertEqual(got, [(1, InsertedMany(1, 2, False)), (2, Jobs([job(1, 1, b"a")]))])
        self.assertEqual(again.send(w.AskRequest(3, 0, [], asks.Reserve(["sms"], 1, None))), [])
        self.assertEqual(again.ask(asks.Flow(4, 0)), [(10, Flowing()), (4, Pushed(1, job(2, 2, b"b")))])
        self.assertEqual(len(self.machine().jobs), 2)
        got = again.ask(asks.Delete([(1, 1), (2, 2)]), put(b"c", tube="sms"))
        self.assertEqual(got[0], (11, Missed([])))
        self.assertEqual([type(reply) for _, reply in got[1:]], [Jobs, InsertedMany])
        self.assertEqual(self.listeners.cluster.failures, [])

    def test_a_reserve_whose_time_is_over_before_it_is_asked_again_is_answered_once(self) -> None:
        """It was answered when its time was over, and again when it was asked again."""
        client = self.client()
        what = asks.Reserve(["mail"], 1, 500)
        self.assertEqual(client.ask(what), [])
        client.listener.hang_up()
        again = self.client(self.other)
        self.assertEqual(again.later(700), [])
        self.assertEqual(again.send(w.AskRequest(1, 1, [], what)), [(1, Jobs([]))])
        self.assertEqual(again.later(1_000), [])

    def test_a_reserve_that_did_not_have_to_wait_is_answered_again(self) -> None:
        """Its answer went with the others, though the client had said that it still waits for it."""
        client = self.client()
        client.ask(put(b"a"), asks.Reserve(["mail"], 1, None))
        client.send(w.AskRequest(3, 3, [2], asks.Declare("t")))
        client.listener.hang_up()
        again = self.client(self.other)
        self.assertEqual(again.send(w.AskRequest(2, 2, [], asks.Reserve(["mail"], 1, None))), [(2, Jobs([job(1, 1, b"a")]))])

    def test_the_credit_of_a_push_that_never_arrived_is_not_lost(self) -> None:
        client = self.client()
        client.ask(put(b"a", ttr_ms=1_000), asks.Subscribe(["mail"], 1))
        client.listener.hang_up()
        self.listeners.cluster.run(2_000)  # its time to run is over meanwhile
        again = self.client(self.other, first=10)
        got = again.ask(asks.Flow(2, 0))
        self.assertEqual(got, [(10, Flowing()), (2, Pushed(2, Job(1, 2, "mail", b"a", 10, 1_000, 1)))])

    def test_a_put_that_was_applied_is_not_refused_when_it_comes_again(self) -> None:
        client = self.client()
        client.ask(put(b"a"))
        client.listener.hang_up()
        self.listeners.counters[self.other].draining = True
        again = self.client(self.other)
        self.assertEqual(again.send(w.AskRequest(1, 0, [], put(b"a"))), [(1, InsertedMany(1, 1, False))])
        self.assertIn("draining", again.send(w.AskRequest(2, 0, [], put(b"b")))[0][1].text)

    def test_nothing_is_given_to_a_session_without_a_connection(self) -> None:
        client = self.client()
        client.ask(asks.Reserve(["mail"], 1, None), asks.Subscribe(["mail"], 5))
        client.listener.hang_up()
        other = self.client(self.other, b"o" * 16)
        other.ask(put(b"a"))
        self.assertEqual(other.ask(asks.Reserve(["mail"])), [(2, Jobs([job(1, 1, b"a")]))])

    def test_a_session_that_nobody_resumes_gives_its_jobs_back(self) -> None:
        client = self.client()
        client.ask(put(b"a"), asks.Reserve(["mail"]))
        client.listener.hang_up()
        self.listeners.cluster.run(4_800)
        self.assertEqual(self.machine().tubes["mail"].reserved, 1)
        self.listeners.cluster.run(500)
        self.assertEqual((self.machine().tubes["mail"].reserved, self.machine().clients.sessions), (0, {}))
        self.assertEqual(self.client().hello.epoch, 1)

    def test_the_end_of_a_session_gives_its_jobs_back_at_once(self) -> None:
        client = self.client()
        self.assertEqual(client.ask(put(b"a"), asks.Reserve(["mail"]), asks.End())[2], (3, Ended()))
        self.assertEqual(self.machine().tubes["mail"].reserved, 0)

    def test_who_is_taken_over_is_told(self) -> None:
        first = self.client()
        second = self.client(self.other)
        self.assertEqual(second.hello.epoch, 2)
        self.assertEqual(first.later(20), [(0, TakenOver())])
        self.assertTrue(first.listener.is_closed)
        self.assertEqual(second.ask(put(b"a")), [(1, InsertedMany(1, 1, False))])

    def test_wrong_arguments_say_what_was_expected_and_nothing_is_applied(self) -> None:
        client = self.client()
        wrong = [
            put(b"x", tube="-bad"),
            asks.Put("mail", [asks.NewJob(-1, 0, 1, b"")]),
            put(b"x", delay_ms=-5),
            asks.Reserve([]),
            asks.Reserve(["mail"], 0),
            asks.Reserve(["mail"], 1, -1),
            asks.Reserve(["a"] * 101),
            asks.Subscribe(["mail"], 1_001),
            asks.Delete([]),
            asks.Delete([(-1, 0)]),
            asks.Release([(1, 1)], -1),
            asks.Kick("mail", 5_000),
            asks.Pause("mail", 1 << 50),
            asks.Flow(-1, 0),
            asks.Cancel(1 << 63),
            asks.Fail([(1, 1)], 0, "x" * 1_025),
        ]
        for _, reply in client.ask(*wrong):
            self.assertIn("expected", reply.text)
        self.assertEqual(client.ask(put(b"x" * 65_536)), [(len(wrong) + 1, JobTooBig())])
        self.assertIn("bodies: expected", client.ask(put(*[b"x" * 65_535] * 17))[0][1].text)
        self.assertIn("expected a new one", client.send(w.AskRequest(0, 0, [], put(b"x")))[0][1].text)
        self.assertIn("waiting: expected", client.send(w.AskRequest(90, 0, list(range(129)), put(b"x")))[0][1].text)
        client.ask(asks.Reserve(["none"], 1, None))
        self.assertIn("expected a new one", client.send(w.AskRequest(client.next - 1, 0, [], put(b"x")))[0][1].text)
        self.assertEqual(self.machine().jobs, {})

    def test_an_unknown_ask_is_named_and_the_connection_stays(self) -> None:
        client = self.client()
        raw = bytes([0, 0, 0, 8]) + b"\x95\x14\x01\x00\x90\x92\x63\x01"
        ((id, reply),) = client.heard(client.listener.send(raw))
        self.assertEqual(id, 1)
        self.assertIn("ask 99", reply.text)
        self.assertEqual(client.ask(put(b"a")), [(1, InsertedMany(1, 1, False))])

    def test_an_ask_needs_a_session(self) -> None:
        self.greet()
        (answer,) = self.request(w.AskRequest(1, 0, [], put(b"x")))
        self.assertIn("speaks for no session", answer.reply.text)

    def test_more_waiting_reserves_than_a_session_may_have(self) -> None:
        client = self.client()
        got = client.ask(*[asks.Reserve(["mail"], 1, None)] * (WAITING_RESERVES + 2), ms=100)
        self.assertEqual([reply for _, reply in got], [TooMany()] * 2)
        self.assertEqual(client.ask(put(b"a"), ms=60)[-1][1], InsertedMany(1, 1, False))

    def test_more_unconfirmed_answers_than_a_session_may_have(self) -> None:
        client = self.client()
        replies: list[object] = []
        for _ in range(11):
            replies += [reply for _, reply in client.ask(*[asks.Declare("t")] * 100, ms=60)]
        self.assertEqual(replies[1_024:], [TooMany()] * 76)
        self.assertEqual(type(client.ask(put(b"a"), answered=1_100)[0][1]), InsertedMany)

    def test_status_answers_at_once_also_without_a_quorum(self) -> None:
        self.greet()
        self.listeners.cluster.partition({1}, {2}, {3})
        self.listeners.cluster.run(2_000)
        (answer,) = self.request(w.StatusRequest(1))
        assert isinstance(answer.reply, w.Status)
        self.assertEqual((answer.reply.node, answer.reply.leader, answer.reply.nodes), (self.node, 0, 3))
        self.assertEqual(len(answer.reply.cluster_id), 16)

    def test_whoever_speaks_for_a_session_must_not_fall_silent(self) -> None:
        client = self.client()
        for _ in range(4):
            client.listener.later(SILENCE_S * 700)
            client.send(w.PingRequest(1))
        self.assertFalse(client.listener.is_closed)
        client.listener.later(SILENCE_S * 2_000)
        self.assertTrue(client.listener.is_closed)

    def test_strangers_are_refused(self) -> None:
        for junk in (
            b"put 0 0 0 0\r\n\r\n",
            frame(b"hello"),
            frame(b"raftd-client\x63"),
            (HELLO_FRAME_BYTES + 1).to_bytes(4, "big"),
            w.encode_hello(w.ClientHello("another")),
            w.encode_hello(w.SessionHello("another", TOKEN)),
            w.encode_hello(w.SessionHello("sim", b"short")),
        ):
            listener = self.listeners.client(self.node)
            (answer,) = answers(listener.send(junk))
            assert isinstance(answer.reply, w.Failed)
            self.assertTrue(listener.is_closed, junk)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_a_frame_that_is_no_request_closes_the_connection(self) -> None:
        self.greet()
        self.listener.send(frame(b"\xc1"))
        self.assertTrue(self.listener.is_closed)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_text_that_is_no_utf8_closes_the_connection_and_nothing_else(self) -> None:
        """Behind 128 requests in flight the frame is read at the end of a turn of the node, which it ended."""
        bad = frame(b"\x93\x19\x01\xa2\xff\xfe")
        for before in (0, 1, 200):
            client = self.client(token=b"%016d" % before)
            data = b"".join(w.encode_request(w.AskRequest(number, 0, [], put(b"x"))) for number in range(1, before + 1))
            client.listener.send(data + bad, ms=200)
            self.assertTrue(client.listener.is_closed)
        self.assertEqual(self.listeners.cluster.failures, [])
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_a_bug_in_a_listener_costs_its_connection_and_not_the_node(self) -> None:
        listener = self.client().listener
        listener.send(b"".join(w.encode_request(w.AskRequest(number, 0, [], put(b"x"))) for number in range(1, 129)), ms=0)
        listener.protocol._handle = None
        listener.send(w.encode_request(w.AskRequest(999, 0, [], put(b"x"))))
        self.assertTrue(listener.transport.aborted)
        self.assertEqual(self.listeners.cluster.failures, [])
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)

    def test_reserves_in_flight_count_what_their_answers_may_hold(self) -> None:
        listener = self.client().listener
        listener.send(b"".join(w.encode_request(w.AskRequest(number, 0, [], asks.Reserve(["t"]))) for number in range(1, 101)), ms=0)
        self.assertEqual(listener.transport.producerState, "paused")
        self.assertLess(listener.protocol._in_flight, 20)
        self.assertEqual(len(answers(listener.later(400))), 100)

    def test_who_says_nothing_is_closed(self) -> None:
        self.listener.later(HELLO_TIMEOUT_S * 1000 + 10)
        self.assertTrue(self.listener.is_closed)

    def test_a_greeted_client_may_be_silent(self) -> None:
        self.greet()
        self.listener.later(2 * HELLO_TIMEOUT_S * 1000)
        self.assertFalse(self.listener.is_closed)

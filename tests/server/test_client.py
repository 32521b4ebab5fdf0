"""The client listener: frames in, answers with their index out."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from raftd.jobs.replies import Deleted, Inserted, JobTooBig, NotFound, Reserved, TimedOut, Using, Watching
from raftd.limits import HELLO_FRAME_BYTES, HELLO_TIMEOUT_S
from raftd.wire import client as w
from raftd.wire.frames import FrameDecoder, frame
from tests.server.harness import Listeners, answers


class ClientListener(SynchronousTestCase):
    def setUp(self) -> None:
        self.listeners = Listeners(3)
        leader = self.listeners.cluster.leader
        self.node = next(node for node in (1, 2, 3) if node != leader)
        self.listener = self.listeners.client(self.node)

    def greet(self) -> None:
        decoder = FrameDecoder()
        decoder.feed(self.listener.send(w.encode_hello(w.ClientHello("sim"))))
        hello = w.decode_node_hello(decoder.next_frame() or b"")
        self.assertEqual((hello.cluster, hello.node, hello.max_job_size), ("sim", self.node, 65_535))

    def ask(self, *requests: w.Request) -> list[w.Answer]:
        return answers(self.listener.send(b"".join(w.encode_request(request) for request in requests)))

    def test_put_reserve_delete_each_with_its_index(self) -> None:
        self.greet()
        put, reserve, delete = self.ask(w.PutRequest(11, b"body"), w.ReserveRequest(12, 0), w.DeleteRequest(13, 1))
        self.assertEqual([put.id, reserve.id, delete.id], [11, 12, 13])
        self.assertEqual([put.reply, reserve.reply, delete.reply], [Inserted(1), Reserved(1, b"body", 1), Deleted()])
        self.assertTrue(0 < put.index <= reserve.index <= delete.index)

    def test_tubes_and_tokens(self) -> None:
        self.greet()
        got = self.ask(
            w.UseRequest(1, "t"), w.WatchRequest(2, "t"), w.IgnoreRequest(3, "default"), w.PutRequest(4, b"a"), w.ReserveRequest(5, 0)
        )
        self.assertEqual([answer.reply for answer in got], [Using("t"), Watching(2), Watching(1), Inserted(1), Reserved(1, b"a", 1)])
        got = self.ask(w.DeleteRequest(6, 1, 99), w.DeleteRequest(7, 1, 1), w.PutRequest(8, b"b", tube="other"), w.ReserveRequest(9, 0))
        self.assertEqual([answer.reply for answer in got], [NotFound(), Deleted(), Inserted(2), TimedOut()])

    def test_status_answers_at_once_also_without_a_quorum(self) -> None:
        self.greet()
        self.listeners.cluster.partition({1}, {2}, {3})
        self.listeners.cluster.run(2_000)
        (answer,) = self.ask(w.StatusRequest(1))
        assert isinstance(answer.reply, w.Status)
        self.assertEqual((answer.reply.node, answer.reply.leader, answer.reply.nodes), (self.node, 0, 3))
        self.assertEqual(len(answer.reply.cluster_id), 16)

    def test_wrong_arguments_say_what_was_expected_and_nothing_is_applied(self) -> None:
        self.greet()
        wrong = [
            w.PutRequest(1, b"x", "-bad"),
            w.PutRequest(2, b"x", pri=-1),
            w.PutRequest(3, b"x", delay_ms=-5),
            w.UseRequest(5, ""),
            w.ReserveRequest(6, -1),
        ]
        for answer in self.ask(*wrong):
            assert isinstance(answer.reply, w.Failed)
            self.assertIn("expected", answer.reply.text)
        (answer,) = self.ask(w.PutRequest(7, b"x" * 65_536))
        self.assertEqual(answer.reply, JobTooBig())
        self.assertEqual(self.listeners.cluster[self.node].machine.jobs, {})

    def test_strangers_are_refused(self) -> None:
        for junk in (
            b"put 0 0 0 0\r\n\r\n",
            frame(b"hello"),
            frame(b"raftd-client\x63"),
            (HELLO_FRAME_BYTES + 1).to_bytes(4, "big"),
            w.encode_hello(w.ClientHello("another")),
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
        bad = frame(b"\x93\x02\x01\xa2\xff\xfe")
        for before in (0, 1, 200):
            listener = self.listeners.client(self.node)
            listener.send(w.encode_hello(w.ClientHello()))
            listener.send(b"".join(w.encode_request(w.PutRequest(number, b"x")) for number in range(before)) + bad, ms=200)
            self.assertTrue(listener.is_closed)
        self.assertEqual(self.listeners.cluster.failures, [])
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_a_bug_in_a_listener_costs_its_connection_and_not_the_node(self) -> None:
        self.greet()
        self.listener.send(b"".join(w.encode_request(w.PutRequest(number, b"x")) for number in range(128)), ms=0)
        self.listener.protocol._handle = None
        self.listener.send(w.encode_request(w.PutRequest(999, b"x")))
        self.assertTrue(self.listener.transport.aborted)
        self.assertEqual(self.listeners.cluster.failures, [])
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)

    def test_reserves_in_flight_count_what_their_answers_may_hold(self) -> None:
        self.greet()
        self.listener.send(b"".join(w.encode_request(w.ReserveRequest(number, 0)) for number in range(100)), ms=0)
        self.assertEqual(self.listener.transport.producerState, "paused")
        self.assertLess(self.listener.protocol._in_flight, 20)
        self.assertEqual(len(answers(self.listener.later(100))), 100)

    def test_who_says_nothing_is_closed(self) -> None:
        self.listener.later(HELLO_TIMEOUT_S * 1000 + 10)
        self.assertTrue(self.listener.is_closed)

    def test_a_greeted_client_may_be_silent(self) -> None:
        self.greet()
        self.listener.later(2 * HELLO_TIMEOUT_S * 1000)
        self.assertFalse(self.listener.is_closed)

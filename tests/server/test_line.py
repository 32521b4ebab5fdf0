"""The line listener: send this line, expect that line; on one node and through a follower of three."""

from __future__ import annotations

import itertools

from twisted.trial.unittest import SynchronousTestCase

from raftd.jobs.budget import COSTS, LINE_STEPS, READ_ITEM_STEPS, READ_STEPS
from raftd.jobs.commands import SetPolicies, Settings
from raftd.jobs.policy import Policy, PolicyChange
from raftd.jobs.replies import PoliciesSet
from raftd.limits import LIMITS, MAX_JOB_BYTES_CEILING, REPLY_BYTES
from raftd.node.gateway import Gateway
from raftd.server import protocol
from raftd.server.protocol import CONNECTION_IN_FLIGHT
from tests.server.harness import Listener, Listeners


class OneNode(SynchronousTestCase):
    nodes = 1

    def setUp(self) -> None:
        self.listeners = Listeners(self.nodes)
        self.node = self.listeners.cluster.config.voters[-1]
        self.listener = self.listeners.line(self.node)

    def expect(self, *exchange: bytes, listener: Listener | None = None) -> None:
        """Alternately what is sent and what comes back."""
        for sent, back in zip(exchange[::2], exchange[1::2], strict=True):
            self.assertEqual((listener or self.listener).send(sent), back)

    def test_a_full_tube(self) -> None:
        self.node_sets(Policy(max_jobs=1))
        self.expect(
            b"put 10 0 60 5\r\nhello\r\n",
            b"INSERTED 1\r\n",
            b"put 10 0 60 5\r\nworld\r\n",
            b"OUT_OF_MEMORY\r\n",
            b"delete 1\r\n",
            b"DELETED\r\n",
            b"put 10 0 60 5\r\nworld\r\n",
            b"INSERTED 2\r\n",
        )

    def test_attempts_dead_letters_and_a_kick(self) -> None:
        self.node_sets(Policy(max_attempts=1))
        self.expect(
            b"put 10 0 1 5\r\nhello\r\n",
            b"INSERTED 1\r\n",
            b"reserve\r\n",
            b"RESERVED 1 5\r\nhello\r\n",
        )
        self.listeners.cluster.run(1_500)
        self.expect(
            b"reserve-with-timeout 0\r\n",
            b"TIMED_OUT\r\n",
            b"peek-buried\r\n",
            b"FOUND 1 5\r\nhello\r\n",
            b"kick 1\r\n",
            b"KICKED 1\r\n",
            b"reserve\r\n",
            b"RESERVED 1 5\r\nhello\r\n",
            b"release 1 10 0\r\n",
            b"RELEASED\r\n",
            b"peek-ready\r\n",
            b"FOUND 1 5\r\nhello\r\n",
        )

    def node_sets(self, policy: Policy) -> None:
        """As an operator does over another listener."""
        cluster = self.listeners.cluster
        session = cluster[self.node].open_session(lambda: None)
        replies: list[object] = []
        session.submit(SetPolicies(session.number, [PolicyChange("default", policy)]), lambda reply, index: replies.append(reply))
        cluster[self.node].wake()
        assert cluster.run(10_000, lambda: bool(replies))
        self.assertEqual(replies, [PoliciesSet(1)])

    def test_put_reserve_delete(self) -> None:
        self.expect(
            b"put 10 0 60 5\r\nhello\r\n",
            b"INSERTED 1\r\n",
            b"reserve\r\n",
            b"RESERVED 1 5\r\nhello\r\n",
            b"delete 1\r\n",
            b"DELETED\r\n",
            b"delete 1\r\n",
            b"NOT_FOUND\r\n",
        )

    def test_tubes(self) -> None:
        self.expect(
            b"use jobs\r\n",
            b"USING jobs\r\n",
            b"put 0 0 1 1\r\na\r\n",
            b"INSERTED 1\r\n",
            b"reserve-with-timeout 0\r\n",
            b"TIMED_OUT\r\n",
            b"watch jobs\r\n",
            b"WATCHING 2\r\n",
            b"ignore default\r\n",
            b"WATCHING 1\r\n",
            b"ignore jobs\r\n",
            b"NOT_IGNORED\r\n",
            b"reserve\r\n",
            b"RESERVED 1 1\r\na\r\n",
        )

    def test_answers_keep_the_order_of_a_pipeline(self) -> None:
        self.expect(
            b"put 0 0 9 1\r\na\r\nnonsense\r\nput 0 0 9 1\r\nb\r\nuse \r\nreserve\r\nreserve-with-timeout 0\r\ndelete 1\r\ndelete 7\r\n",
            b"INSERTED 1\r\nUNKNOWN_COMMAND\r\nINSERTED 2\r\nBAD_FORMAT\r\nRESERVED 1 1\r\na\r\nRESERVED 2 1\r\nb\r\nDELETED\r\nNOT_FOUND\r\n",
        )

    def test_a_waiting_reserve_holds_back_what_follows(self) -> None:
        self.expect(b"reserve\r\nuse t\r\nstats\r\nbad\r\n", b"")
        producer = self.listeners.line(1)
        self.expect(b"put 0 0 9 1\r\na\r\n", b"INSERTED 1\r\n", listener=producer)
        answer = self.listener.later(30)
        self.assertTrue(answer.startswith(b"RESERVED 1 1\r\na\r\nUSING t\r\nOK "))
        self.assertTrue(answer.endswith(b"\r\nUNKNOWN_COMMAND\r\n"))

    def test_a_reserve_times_out_at_its_time_and_not_before(self) -> None:
        self.assertEqual(self.listener.send(b"reserve-with-timeout 1\r\n", ms=985), b"")
        self.assertEqual(self.listener.later(60), b"TIMED_OUT\r\n")

    def test_a_delay_of_a_second_is_over_after_a_second(self) -> None:
        self.expect(b"put 0 1 9 1\r\na\r\n", b"INSERTED 1\r\n")
        self.assertEqual(self.listener.send(b"reserve\r\n", ms=940), b"")
        self.assertEqual(self.listener.later(60), b"RESERVED 1 1\r\na\r\n")

    def test_deadline_soon(self) -> None:
        self.expect(b"put 0 0 2 1\r\na\r\nreserve\r\n", b"INSERTED 1\r\nRESERVED 1 1\r\na\r\n")
        self.assertEqual(self.listener.send(b"reserve\r\n", ms=900), b"")
        self.assertEqual(self.listener.later(150), b"DEADLINE_SOON\r\n")

    def test_a_closed_connection_gives_its_jobs_back_at_once(self) -> None:
        self.expect(b"put 0 0 99 1\r\na\r\nreserve\r\n", b"INSERTED 1\r\nRESERVED 1 1\r\na\r\n")
        waiter = self.listeners.line(1)
        self.expect(b"reserve\r\n", b"", listener=waiter)
        self.listener.hang_up()
        self.assertEqual(waiter.later(30), b"RESERVED 1 1\r\na\r\n")

    def test_quit_closes_after_what_came_before(self) -> None:
        self.expect(b"put 0 0 9 1\r\na\r\nquit\r\nput 0 0 9 1\r\nb\r\n", b"INSERTED 1\r\n")
        self.assertTrue(self.listener.is_closed)
        self.assertEqual(len(self.listeners.cluster[1].machine.jobs), 1)

    def test_what_comes_behind_quit_is_not_kept(self) -> None:
        self.listener.send(b"reserve\r\nquit\r\n")
        for _ in range(20):
            self.listener.send(bytes(50_000), ms=0)
        self.assertEqual(len(self.listener.protocol._parser._buffer), 0)
        self.assertEqual(self.listener.transport.producerState, "paused")

    def test_a_body_that_is_too_big(self) -> None:
        big = b"x" * 65_536
        self.expect(b"put 0 0 9 65536\r\n" + big + b"\r\nput 0 0 9 1\r\na\r\n", b"JOB_TOO_BIG\r\nINSERTED 1\r\n")

    def test_bytes_in_any_portions(self) -> None:
        out = b""
        for byte in b"put 0 0 9 5\r\nhello\r\nreserve\r\ndelete 1\r\n":
            out += self.listener.send(bytes([byte]), ms=0)
        self.assertEqual(out + self.listener.later(60), b"INSERTED 1\r\nRESERVED 1 5\r\nhello\r\nDELETED\r\n")

    def test_stats_have_beanstalkds_keys_in_order_and_then_our_own(self) -> None:
        self.expect(b"put 0 0 9 1\r\na\r\nput 0 0 9 99999\r\n" + b"x" * 99_999 + b"\r\n", b"INSERTED 1\r\nJOB_TOO_BIG\r\n")
        self.listener.send(b"reserve-with-timeout 0\r\n")
        text = self.listener.send(b"stats\r\n").decode()
        head, _, body = text.partition("\r\n")
        self.assertEqual(head, f"OK {len(body) - 2}")
        lines = body.strip().split("\n")
        self.assertEqual(lines[0], "---")
        pairs = dict(line.split(": ", 1) for line in lines[1:])
        keys = list(pairs)
        self.assertEqual(
            keys[:6], [*(f"current-jobs-{state}" for state in ("urgent", "ready", "reserved", "delayed", "buried")), "cmd-put"]
        )
        self.assertEqual(keys[-7:], ["node", "role", "term", "leader", "commit-index", "applied-index", "nodes"])
        self.assertEqual(len(keys), 58)
        self.assertEqual(pairs["cmd-put"], "2")
        self.assertEqual(pairs["current-producers"], "1")
        self.assertEqual(pairs["current-workers"], "1")
        self.assertEqual(pairs["current-jobs-reserved"], "1")
        self.assertEqual(pairs["total-jobs"], "1")
        self.assertEqual(pairs["nodes"], str(self.nodes))

    def test_whatever_bytes_come_the_next_command_works(self) -> None:
        for junk in (
            b"\0\0\0\r\n",
            b"\xff" * 1000 + b"\r\n",
            b"put x\r\n",
            b"\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"delete " + b"9" * 99 + b"\r\n",
        ):
            self.listener.send(junk)
        self.expect(b"use ok\r\n", b"USING ok\r\n")
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_reading_pauses_while_too_much_is_unanswered(self) -> None:
        self.listener.protocol.dataReceived(b"put 0 0 9 1\r\na\r\n" * (3 * CONNECTION_IN_FLIGHT))
        self.assertEqual(self.listener.transport.producerState, "paused")
        out = self.listener.later(200)
        self.assertEqual(out.count(b"INSERTED"), 3 * CONNECTION_IN_FLIGHT)
        self.assertEqual(self.listener.transport.producerState, "producing")

    def test_a_flood_of_cheap_commands_takes_turns(self) -> None:
        count = 20 * CONNECTION_IN_FLIGHT
        self.listener.protocol.dataReceived(b"x\r\n" * count)
        self.assertEqual(self.listener.transport.producerState, "paused")
        self.assertEqual(self.listener.later(100).count(b"UNKNOWN_COMMAND"), count)
        self.assertEqual(self.listener.transport.producerState, "producing")

    def test_a_client_that_does_not_read_is_not_read_and_at_last_dropped(self) -> None:
        self.listener.protocol.pauseProducing()  # its socket is full
        self.assertEqual(self.listener.send(b"put 0 0 9 1\r\na\r\n"), b"")
        self.assertEqual(self.listener.transport.producerState, "paused")
        self.listener.protocol.resumeProducing()
        self.assertEqual(self.listener.later(30), b"INSERTED 1\r\n")
        self.patch(protocol, "unsent", lambda transport: REPLY_BYTES + self.listener.protocol.node.max_job_size + 1)
        self.listener.protocol.say(b"x")
        self.listener.later(10)
        self.assertTrue(self.listener.transport.aborted)

    def test_nothing_more_is_begun_while_its_answers_are_not_read(self) -> None:
        self.assertEqual(self.listener.send(b"put 0 0 9 1\r\na\r\n"), b"INSERTED 1\r\n")
        self.listener.protocol.dataReceived(b"peek 1\r\n" * 10 + b"stats-job 7\r\nnonsense\r\n")
        self.listener.protocol.pauseProducing()
        before = self.listener.later(200).count(b"FOUND 1 ")
        self.assertLess(before, 2)
        self.listener.protocol.resumeProducing()
        rest = self.listener.later(200)
        self.assertEqual(before + rest.count(b"FOUND 1 "), 10)
        self.assertTrue(rest.endswith(b"NOT_FOUND\r\nUNKNOWN_COMMAND\r\n"))

    def test_answers_that_were_held_back_come_in_turns(self) -> None:
        """Hundreds of connections that wait for one job, each with a pipeline of statistics behind it."""
        listeners = [self.listeners.line(self.node) for _ in range(30)]
        for one in listeners:
            one.send(b"reserve-with-timeout 1\r\n" + b"nonsense\r\n" * 100, ms=1)
        turns: list[int] = []
        begin = Gateway.begin_turn

        def counted(gateway: Gateway) -> bool:
            turns.append(sum(one.transport.value().count(b"UNKNOWN") for one in listeners))
            return begin(gateway)

        self.patch(Gateway, "begin_turn", counted)
        self.listeners.cluster.run(1_500)
        self.assertLessEqual(max(after - before for before, after in itertools.pairwise(turns)), LIMITS.answers_steps // LINE_STEPS + 1)
        for one in listeners:
            self.assertEqual(one.later(0), b"TIMED_OUT\r\n" + b"UNKNOWN_COMMAND\r\n" * 100)

    def test_long_lists_for_many_are_read_in_turns(self) -> None:
        for tube in range(200):
            self.listener.send(b"watch tube%d\r\n" % tube, ms=1)
        self.listener.later(200)
        listeners = [self.listeners.line(self.node) for _ in range(300)]
        for one in listeners:
            one.protocol.dataReceived(b"list-tubes\r\n")
        turns: list[int] = []
        begin = Gateway.begin_turn

        def counted(gateway: Gateway) -> bool:
            turns.append(sum(bool(one.transport.value()) for one in listeners))
            return begin(gateway)

        self.patch(Gateway, "begin_turn", counted)
        self.listeners.cluster.run(500)
        self.assertEqual(turns[-1], 300)
        self.assertLessEqual(
            max(after - before for before, after in itertools.pairwise(turns)),
            LIMITS.reads_steps // (READ_STEPS + 201 * READ_ITEM_STEPS) + 1,
        )

    def test_a_kick_moves_so_many_and_says_it(self) -> None:
        """As many as one entry has budget for; the answer says how many, and the next kick moves more."""
        self.listener.send((b"put 0 100 60 0\r\n\r\n") * 2_000, ms=5_000)
        moved = []
        while not moved or moved[-1]:
            answer = self.listener.send(b"kick 9999999\r\n")
            moved.append(int(answer.removeprefix(b"KICKED ")))
        self.assertEqual(sum(moved), 2_000)
        self.assertEqual(moved[0], (COSTS.entry - COSTS.commands) // COSTS.kicked + 1)

    def test_who_has_closed_its_side_and_gets_no_answer_is_dropped(self) -> None:
        for node in self.listeners.cluster.config.voters:
            if node != self.node:
                self.listeners.cluster.crash(node)
        if self.nodes == 1:
            self.listeners.cluster.processes[self.node].worker.stalled = True
        self.listener.send(b"put 0 0 9 1\r\na\r\n", ms=100)
        self.listener.protocol.readConnectionLost()
        self.listener.later(1_000 * LIMITS.no_progress_s - 1_000)
        self.assertFalse(self.listener.is_closed)
        self.listener.later(2_000)
        self.assertTrue(self.listener.transport.aborted)

    def test_a_client_that_hung_up_while_it_was_not_read_waits_for_no_job(self) -> None:
        self.assertEqual(self.listener.send(b"reserve\r\nquit\r\n"), b"")
        self.listener.protocol.hung_up(False)
        self.assertEqual(self.listener.later(50), b"TIMED_OUT\r\n")
        self.assertTrue(self.listener.is_closed)
        other = self.listeners.line(self.node)
        other.send(b"reserve\r\nquit\r\n")
        other.protocol.hung_up(True)
        self.assertTrue(other.transport.aborted)

    def test_the_life_of_a_job(self) -> None:
        self.expect(
            b"put 5 0 60 1\r\na\r\n",
            b"INSERTED 1\r\n",
            b"peek 1\r\n",
            b"FOUND 1 1\r\na\r\n",
            b"peek-ready\r\n",
            b"FOUND 1 1\r\na\r\n",
            b"reserve-job 1\r\n",
            b"RESERVED 1 1\r\na\r\n",
            b"touch 1\r\n",
            b"TOUCHED\r\n",
            b"bury 1 3\r\n",
            b"BURIED\r\n",
            b"peek-buried\r\n",
            b"FOUND 1 1\r\na\r\n",
            b"kick 9\r\n",
            b"KICKED 1\r\n",
            b"reserve\r\n",
            b"RESERVED 1 1\r\na\r\n",
            b"release 1 4 100\r\n",
            b"RELEASED\r\n",
            b"peek-delayed\r\n",
            b"FOUND 1 1\r\na\r\n",
            b"kick-job 1\r\n",
            b"KICKED\r\n",
            b"pause-tube default 100\r\n",
            b"PAUSED\r\n",
            b"reserve-with-timeout 0\r\n",
            b"TIMED_OUT\r\n",
            b"delete 1\r\n",
            b"DELETED\r\n",
            b"peek 1\r\n",
            b"NOT_FOUND\r\n",
        )

    def test_lists_are_in_order_of_insertion(self) -> None:
        self.expect(
            b"watch b\r\nwatch c\r\nwatch a\r\nignore b\r\n",
            b"WATCHING 2\r\nWATCHING 3\r\nWATCHING 4\r\nWATCHING 3\r\n",
            b"list-tubes-watched\r\n",
            b"OK 22\r\n---\n- default\n- c\n- a\n\r\n",
            b"list-tubes\r\n",
            b"OK 22\r\n---\n- default\n- c\n- a\n\r\n",
            b"list-tube-used\r\n",
            b"USING default\r\n",
        )

    def test_statistics_of_a_job_and_a_tube(self) -> None:
        self.listener.send(b"put 5 0 10 1\r\na\r\nreserve\r\n")
        job = self.listener.send(b"stats-job 1\r\n")
        for line in (b'tube: "default"', b"state: reserved", b"pri: 5", b"ttr: 10", b"time-left: 9", b"reserves: 1", b"file: 0"):
            self.assertIn(b"\n" + line + b"\n", job)
        tube = self.listener.send(b"stats-tube default\r\n")
        for line in (b'name: "default"', b"current-jobs-reserved: 1", b"total-jobs: 1", b"current-using: 1", b"current-watching: 1"):
            self.assertIn(b"\n" + line + b"\n", tube)

    def test_a_first_read_counts_its_own_connection(self) -> None:
        self.assertIn(b"\ncurrent-using: 1\ncurrent-watching: 1\n", self.listener.send(b"stats-tube default\r\n"))

    def test_a_half_closed_connection_is_answered_to_the_end(self) -> None:
        self.listener.protocol.dataReceived(b"put 0 0 9 1\r\na\r\nreserve\r\nreserve\r\nuse t\r\nreserve\r\nput 0 0 9 100\r\nhalf")
        self.listener.protocol.readConnectionLost()
        self.assertEqual(self.listener.later(100), b"INSERTED 1\r\nRESERVED 1 1\r\na\r\nTIMED_OUT\r\nUSING t\r\nTIMED_OUT\r\n")
        self.assertTrue(self.listener.is_closed)

    def test_a_half_closed_connection_that_waits_for_nothing_closes_at_once(self) -> None:
        self.listener.protocol.readConnectionLost()
        self.assertTrue(self.listener.is_closed)

    def test_a_half_closed_pipeline_is_answered_to_the_end(self) -> None:
        self.listener.protocol.dataReceived(b"put 0 0 9 1\r\na\r\n" * (3 * CONNECTION_IN_FLIGHT))
        self.listener.protocol.readConnectionLost()
        self.assertEqual(self.listener.later(300).count(b"INSERTED"), 3 * CONNECTION_IN_FLIGHT)
        self.assertTrue(self.listener.is_closed)

    def test_a_waiting_reserve_never_stops_reading(self) -> None:
        """A connection that is not read does not notice that its client is gone, and would keep its jobs."""
        node = self.listeners.cluster[self.node]
        node.machine.settings = Settings(MAX_JOB_BYTES_CEILING, 5_000)
        self.expect(b"put 0 0 99 1\r\na\r\nreserve\r\n", b"INSERTED 1\r\nRESERVED 1 1\r\na\r\n")
        self.expect(b"reserve\r\n", b"")
        self.assertEqual(self.listener.transport.producerState, "producing")

    def test_a_wait_ended_by_a_half_close_gives_back_its_job(self) -> None:
        self.expect(b"reserve\r\n", b"")
        self.listener.protocol.readConnectionLost()
        other = self.listeners.line(1)
        other.send(b"put 0 0 99 1\r\na\r\n")
        self.assertEqual(self.listener.later(50), b"TIMED_OUT\r\n")
        self.listener.hang_up()
        self.expect(b"reserve-with-timeout 1\r\n", b"RESERVED 1 1\r\na\r\n", listener=other)

    def test_a_draining_node_refuses_puts_only(self) -> None:
        self.listener.send(b"put 0 0 9 1\r\na\r\n")
        self.listeners.counters[self.node].draining = True
        self.expect(
            b"put 0 0 9 1\r\nb\r\n",
            b"DRAINING\r\n",
            b"put 0 0 9 1\r\nbc\r\n",
            b"EXPECTED_CRLF\r\n",
            b"\r\nreserve\r\n",
            b"UNKNOWN_COMMAND\r\nRESERVED 1 1\r\na\r\n",
        )
        self.assertIn(b"\ndraining: true\n", self.listener.send(b"stats\r\n"))

    def test_connection_counters(self) -> None:
        counters = self.listeners.counters[self.node]
        self.listener.send(b"put 0 0 9 1\r\na\r\nreserve\r\n")
        self.assertEqual((counters.connections, counters.producers, counters.workers), (1, 1, 1))
        self.listener.hang_up()
        self.assertEqual((counters.connections, counters.producers, counters.workers, counters.total_connections), (0, 0, 0, 1))


class FollowerOfThree(OneNode):
    """The same exchanges on a node that does not lead."""

    nodes = 3

    def setUp(self) -> None:
        super().setUp()
        leader = self.listeners.cluster.leader
        self.node = next(node for node in self.listeners.cluster.config.voters if node != leader)
        self.listener.hang_up()
        self.listeners.counters[self.node].total_connections = 0
        for node in self.listeners.counters:
            self.listeners.counters[node] = type(self.listeners.counters[node])()
        self.listener = self.listeners.line(self.node)

    def test_without_a_quorum_writes_wait_and_stats_answer_at_once(self) -> None:
        cluster = self.listeners.cluster
        cluster.partition({1}, {2}, {3})
        self.assertEqual(self.listener.send(b"put 0 0 9 1\r\na\r\n", ms=2_000), b"")
        other = self.listeners.line(self.node)
        self.assertIn(b"\nleader: 0\n", other.send(b"stats\r\n"))
        cluster.heal()
        self.assertEqual(self.listener.later(2_000), b"INSERTED 1\r\n")

    def test_a_node_given_up_by_the_cluster_drops_its_clients(self) -> None:
        cluster = self.listeners.cluster
        self.listener.send(b"put 0 0 9 1\r\na\r\nreserve\r\n")
        cluster.partition({self.node}, set(cluster.config.voters) - {self.node})
        cluster.run(7_000)
        cluster.heal()
        cluster.run(1_000)
        self.assertTrue(self.listener.transport.aborted)
        self.expect(b"reserve\r\n", b"RESERVED 1 1\r\na\r\n", listener=self.listeners.line(self.node))

"""The peer listener: who is let in, and what is said to the others."""

from __future__ import annotations

from random import Random

from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from raftd.limits import CLOSE_TIMEOUT_S, HELLO_TIMEOUT_S, PEER_STRANGERS
from raftd.raft.messages import PreVote, PreVoteReply
from raftd.server.peer import PeerProtocol, PeerTransport
from raftd.wire.frames import FrameDecoder, frame
from raftd.wire.peer import Hello, Refusal, RefusalCode, decode, decode_hello, encode, encode_hello
from tests.server.harness import MemoryTransport


class FakeNode:
    """Notes what it hears; accepts when told to."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, object]] = []
        self.links: list[int] = []
        self.partial: list[int] = []
        self.reason: str | None = None
        self.refusals: list[Refusal] = []
        self.accept_at_once = True
        self.accepts: list = []

    def hello(self) -> Hello:
        return Hello("demo", (1, 2), b"", 1, 1, b"d" * 16, 1)

    def handle_hello(self, hello: Hello, accept) -> Refusal | None:
        if self.reason is not None:
            return Refusal(RefusalCode.OTHER_CLUSTER, self.reason)
        if self.accept_at_once:
            accept()
        else:
            self.accepts.append(accept)
        return None

    def was_refused(self, refusal: Refusal) -> None:
        self.refusals.append(refusal)

    def receive(self, sender: int, message: object) -> None:
        self.heard.append((sender, message))

    def link_changed(self, peer: int) -> None:
        self.links.append(peer)

    def hearing_from(self, peer: int) -> None:
        self.partial.append(peer)


HELLO = encode_hello(Hello("demo", (1, 2), b"", 2, 1, b"e" * 16, 1))


class PeerTransportTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.node = FakeNode()
        self.listener = PeerTransport(self.clock, Random(1))
        self.listener.node = self.node
        self.lines: list[str] = []
        globalLogPublisher.addObserver(self.note)
        self.addCleanup(globalLogPublisher.removeObserver, self.note)

    def note(self, event: dict) -> None:
        if event.get("log_namespace", "").startswith("raftd") and event.get("log_format"):
            self.lines.append(event["log_format"].format(**event))

    def connect(self, expected: int = 0) -> PeerProtocol:
        protocol = self.listener.build(expected)
        protocol.makeConnection(MemoryTransport())
        return protocol

    def said(self, protocol: PeerProtocol) -> list[object]:
        decoder = FrameDecoder()
        decoder.feed(protocol.transport.value())
        decoder.greeted()
        first = decoder.next_frame()
        assert first is not None
        out: list[object] = [decode_hello(first)]
        while (body := decoder.next_frame()) is not None:
            out.append(decode(body))
        return out

    def test_hellos_then_messages_both_ways(self) -> None:
        protocol = self.connect()
        protocol.dataReceived(HELLO + encode(PreVote(3, 2, 1)))
        self.assertEqual(self.node.heard, [(2, PreVote(3, 2, 1))])
        self.assertEqual(self.node.links, [2])
        self.listener.send(2, PreVoteReply(3, True))
        self.listener.send(9, PreVoteReply(3, True))  # nobody there
        self.listener.flush()
        self.assertEqual(self.said(protocol), [self.node.hello(), PreVoteReply(3, True)])

    def test_byte_by_byte(self) -> None:
        protocol = self.connect()
        for byte in HELLO + encode(PreVote(3, 2, 1)):
            protocol.dataReceived(bytes([byte]))
        self.assertEqual(self.node.heard, [(2, PreVote(3, 2, 1))])
        self.assertIn(2, self.node.partial)  # part of a long message is no silence

    def test_nothing_is_heard_before_what_must_be_remembered_is_durable(self) -> None:
        self.node.accept_at_once = False
        protocol = self.connect()
        protocol.dataReceived(HELLO + encode(PreVote(3, 2, 1)))
        self.assertEqual((self.node.heard, protocol.transport.producerState), ([], "paused"))
        self.node.accepts[0]()
        self.assertEqual((self.node.heard, protocol.transport.producerState), ([(2, PreVote(3, 2, 1))], "producing"))

    def test_refusals_are_told_to_both_operators_once(self) -> None:
        self.node.reason = "it belongs to cluster 'x', this node to 'demo'"
        for _ in range(3):
            protocol = self.connect()
            protocol.dataReceived(HELLO)
            self.assertTrue(protocol.transport.disconnecting)
            self.assertEqual(self.said(protocol)[-1], Refusal(RefusalCode.OTHER_CLUSTER, self.node.reason))
        self.assertEqual(len([line for line in self.lines if "node 2 is refused: it belongs to cluster" in line]), 1)
        self.assertEqual(self.listener.retry_policy(2)(0), 1.0)
        self.node.reason = None
        self.connect().dataReceived(HELLO + encode(PreVote(3, 2, 1)))
        self.assertEqual(self.lines[-1], "connected with node 2")

    def test_with_tls_a_connection_without_it_is_no_nodes_unless_plain_text_is_accepted(self) -> None:
        """Whatever made the connection: who cannot show who it is, is not believed."""
        self.listener.own_cluster = "demo"
        refused = self.connect()
        refused.dataReceived(HELLO + encode(PreVote(3, 2, 1)))
        self.assertEqual((refused.transport.disconnecting, self.node.heard), (True, []))
        self.listener.accepts_plain = True
        self.connect().dataReceived(HELLO + encode(PreVote(3, 2, 1)))
        self.assertEqual(self.node.heard, [(2, PreVote(3, 2, 1))])

    def test_a_connection_that_was_refused_is_cut_if_it_does_not_end_by_itself(self) -> None:
        """With TLS the end waits for the other's last word, which a connection that is not read does not hear: each refusal left one."""
        self.node.reason = "it belongs to cluster 'x', this node to 'demo'"
        protocol = self.connect()
        protocol.dataReceived(HELLO)
        transport = protocol.transport
        self.assertEqual((transport.producerState, transport.disconnecting, transport.aborted), ("producing", True, False))
        self.clock.advance(CLOSE_TIMEOUT_S + 0.1)
        self.assertTrue(transport.aborted)
        protocol.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_what_the_other_side_refuses_is_logged(self) -> None:
        for _ in range(3):
            protocol = self.connect(expected=2)
            protocol.dataReceived(HELLO + encode(Refusal(RefusalCode.OTHER_DIRECTORY, "its disk was wiped")))
            self.assertTrue(protocol.transport.disconnecting)
            protocol.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.lines, ["connected with node 2", "node 2 refuses this node: its disk was wiped"])

    def test_strangers_are_refused_with_a_reason_and_no_traceback(self) -> None:
        for junk in (
            b"GET / HTTP/1.1\r\n\r\n",
            frame(b"nonsense"),
            frame(b"raftd-peer\x09"),
            frame(b"raftd-peer\x02junk"),
            HELLO + frame(b"\xc1"),
            HELLO + frame(b"\x92\x18\x1e\xa2\xff\xfe"),
            HELLO + frame(b"\x92\x1e\xa2\xff\xfe"),
            frame(b"raftd-peer\x02\x95\xa2\xff\xfe"),
            HELLO + frame(b"\x93\x07\x01\x02" + b"\x91" * 5_000),
            HELLO + b"\xff\xff\xff\xff",
        ):
            protocol = self.connect()
            protocol.dataReceived(junk)
            self.assertTrue(protocol.transport.disconnecting, junk)
        self.assertEqual(self.flushLoggedErrors(), [])
        self.assertTrue(any("over the limit" in line for line in self.lines))
        self.assertTrue(any("version 9" in line for line in self.lines))

    def test_who_says_no_hello_is_closed(self) -> None:
        protocol = self.connect()
        self.clock.advance(HELLO_TIMEOUT_S)
        self.assertTrue(protocol.transport.disconnecting)

    def test_another_node_at_the_address_is_refused(self) -> None:
        protocol = self.connect(expected=3)
        protocol.dataReceived(HELLO)
        self.assertTrue(protocol.transport.disconnecting)
        self.assertTrue(any("node 2 answers at the address" in line for line in self.lines))

    def test_a_newer_connection_replaces_the_older(self) -> None:
        older, newer = self.connect(), self.connect()
        older.dataReceived(HELLO)
        newer.dataReceived(HELLO)
        self.assertTrue(older.transport.disconnecting)
        older.connectionLost(Failure(ConnectionDone()))
        self.listener.send(2, PreVoteReply(3, True))
        self.listener.flush()
        self.assertEqual(self.said(newer)[-1], PreVoteReply(3, True))
        newer.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.node.links, [2, 2, 2])

    def test_messages_that_wait_when_a_connection_is_lost_go_nowhere(self) -> None:
        protocol = self.connect()
        protocol.dataReceived(HELLO)
        self.listener.send(2, PreVoteReply(3, True))
        protocol.connectionLost(Failure(ConnectionDone()))
        self.listener.flush()
        self.assertEqual(self.said(protocol), [self.node.hello()])

    def test_of_too_many_strangers_the_oldest_goes(self) -> None:
        strangers = [self.connect() for _ in range(PEER_STRANGERS)]
        known = self.connect()
        self.assertEqual([stranger.transport.aborted for stranger in strangers[:2]], [True, False])
        strangers[0].connectionLost(Failure(ConnectionDone()))
        known.dataReceived(HELLO)
        self.connect()
        self.assertFalse(strangers[1].transport.aborted)
        # Those sent away keep their descriptors until they are closed: at last nobody more is let in.
        more = 0
        while self.listener.build(0) is not None:
            self.listener._strangers.popitem()
            self.connect()
            more += 1
        self.assertEqual(more, PEER_STRANGERS)
        self.assertFalse(known.transport.aborted)

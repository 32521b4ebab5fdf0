"""Frames and what stands in them. Rule R21's counters and R12's incarnations survive the wire."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftd.errors import FrameError
from raftd.jobs import asks
from raftd.jobs.commands import Forward, ForwardRefused
from raftd.jobs.replies import InsertedMany, Job, Jobs, Pushed
from raftd.limits import FRAME_BYTES, HELLO_FRAME_BYTES
from raftd.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Entry,
    EntryKind,
    PreVote,
    PreVoteReply,
    ReadIndex,
    ReadIndexReply,
    RequestVote,
    RequestVoteReply,
)
from raftd.raft.outcomes import Outcome
from raftd.wire import client, peer
from raftd.wire.buffer import Buffer
from raftd.wire.frames import FrameDecoder, frame

BODIES = [b"", b"x", b"hello" * 100, bytes(range(256)), b"", b"end"]
STREAM = b"".join(frame(body) for body in BODIES)


def decode(*chunks: bytes) -> list[bytes]:
    decoder = FrameDecoder()
    frames = []
    for chunk in chunks:
        decoder.feed(chunk)
        while (body := decoder.next_frame()) is not None:
            frames.append(body)
    return frames


def test_frames_come_out_whole_when_fed_byte_by_byte():
    assert decode(*[STREAM[place : place + 1] for place in range(len(STREAM))]) == BODIES


def test_frames_come_out_whole_at_every_split():
    for place in range(len(STREAM) + 1):
        assert decode(STREAM[:place], STREAM[place:]) == BODIES


@given(st.lists(st.binary(max_size=50)), st.lists(st.integers(1, 40)))
def test_any_bodies_survive_any_chunks(bodies, cuts):
    stream = b"".join(map(frame, bodies))
    chunks = []
    for cut in cuts:
        chunks.append(stream[:cut])
        stream = stream[cut:]
    assert decode(*chunks, stream) == bodies


def test_a_frame_over_the_limit_is_refused_by_its_length_alone():
    decoder = FrameDecoder()
    decoder.feed((HELLO_FRAME_BYTES + 1).to_bytes(4, "big"))
    with pytest.raises(FrameError, match="over the limit of 8192"):
        decoder.next_frame()


def test_the_limit_is_wider_after_the_hello():
    decoder = FrameDecoder()
    decoder.greeted()
    decoder.feed(frame(bytes(HELLO_FRAME_BYTES + 1)))
    assert len(decoder.next_frame()) == HELLO_FRAME_BYTES + 1
    decoder.feed((FRAME_BYTES + 1).to_bytes(4, "big"))
    with pytest.raises(FrameError):
        decoder.next_frame()


def test_what_we_would_not_accept_we_do_not_send():
    with pytest.raises(FrameError):
        frame(bytes(FRAME_BYTES + 1))


def test_a_decoder_knows_whether_a_frame_has_begun():
    decoder = FrameDecoder()
    assert not decoder.is_in_frame
    decoder.feed(STREAM[:2])
    assert decoder.is_in_frame


@given(st.lists(st.binary(max_size=20), max_size=8), st.data())
def test_a_buffer_is_one_string_however_it_was_fed(chunks, data):
    buffer, whole = Buffer(), b""
    for chunk in chunks:
        buffer.feed(chunk)
        whole += chunk
        count = data.draw(st.integers(0, len(whole)))
        if data.draw(st.booleans()):
            assert buffer.take(count) == whole[:count]
        else:
            buffer.skip(count)
        whole = whole[count:]
        assert len(buffer) == len(whole)
        assert buffer.find(b"\0") == whole.find(b"\0")
        assert buffer.find(b"\0", 3) == whole[:3].find(b"\0")


# -- peers -------------------------------------------------------------------------------------

MESSAGES = [
    PreVote(5, 10, 4),
    PreVoteReply(5, True),
    RequestVote(5, 10, 4),
    RequestVoteReply(5, True, False, None, 1_700_000_000_000),
    RequestVoteReply(5, False, True, 12, 13),
    AppendEntries(5, 10, 4, (Entry(5, 11, 99, EntryKind.BATCH, b"\0\xff"), Entry(5, 12, 99, EntryKind.NOOP, b"")), 9, 100, 3, 2, 8),
    AppendEntriesReply(5, True, 12, 0, 0, 3, 2, False),
    ReadIndex(5, 77),
    ReadIndexReply(5, 77, 12, 101),
    Forward(2, 1, b"payload"),
    ForwardRefused(2, 1),
    peer.Refusal(peer.RefusalCode.TIMEOUT, "why"),
    peer.AskClock(12),
    peer.TellClock(12, 1_700_000_000_000),
    peer.AskStatus(),
    peer.TellStatus("leader", 5, 1, 12, 11, 10, {2: 9}, 1 << 20, 8, 100, 1 << 30, False, True, 3, 60, "1.0", "a:1"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_peer_message_survives_the_wire(message):
    (body,) = decode(peer.encode(message))
    assert peer.decode(body) == message


def test_hellos_survive_and_strangers_are_told_apart():
    hello = peer.Hello("demo", (1, 2, 3), b"c" * 16, 2, 7, b"d" * 16, 1)
    (body,) = decode(peer.encode_hello(hello))
    assert peer.decode_hello(body) == hello
    with pytest.raises(FrameError, match="version 9"):
        peer.decode_hello(body.replace(b"raftd-peer\x02", b"raftd-peer\x09"))
    for stranger in (b"", b"raftd-peer", b"GET / HTTP/1.1", body[:-1], b"raftd-peer\x02junk"):
        with pytest.raises(FrameError):
            peer.decode_hello(stranger)


@given(st.binary(max_size=60))
def test_no_bytes_make_a_decoder_raise_anything_but_a_frame_error(data):
    for decoder in (peer.decode, peer.decode_hello, client.decode_request, client.decode_client_hello, client.decode_answer):
        try:
            decoder(data)
        except FrameError:
            pass


# -- clients -----------------------------------------------------------------------------------


#: With everything that it can say.
STATUS = client.Status(
    node=1,
    role="leader",
    term=2,
    leader=1,
    commit_index=9,
    applied_index=9,
    nodes=3,
    cluster_id=b"c" * 16,
    cluster="demo",
    pid=4711,
    version="1.0",
    feature_level=1,
    last_index=9,
    match={2: 9, 3: 8},
    log_bytes=1_000,
    log_first_index=3,
    snapshot_index=4,
    snapshot_bytes=500,
    free_bytes=1 << 40,
    is_low_on_disk=False,
    space_is_scarce=False,
    is_draining=True,
    gateways=[(1, 7, True, 2)],
    jobs=(1, 2, 3, 4),
    longest_pause_ms=1.5,
    longest_work_ms=0.5,
    clock_ahead_ms=None,
    is_insecure=False,
)


def test_requests_and_answers_survive_the_wire():
    for request in (
        client.AskRequest(1, 0, [], asks.Put("tube", [asks.NewJob(5, 0, 1_000, b"body")], "key", b"digest")),
        client.AskRequest(2, 1, [1], asks.Reserve(["a", "b"], 3, None)),
        client.AskRequest(3, 1, [], asks.Fail([(4, 2)], 500, "it broke")),
        client.PingRequest(4),
        client.NextRequest(5, "tube", "buried"),
        client.StatusRequest(6),
    ):
        (body,) = decode(client.encode_request(request))
        assert client.decode_request(body) == request
    for reply in (
        client.BackupReply(3, 900),
        client.Chunk(b"x"),
        InsertedMany(4, 1, False),
        Jobs([Job(4, 2, "tube", b"b", 5, 1_000, 1)]),
        Pushed(7, Job(4, 2, "tube", b"b", 5, 1_000, 1)),
        client.TubesFound([client.TubeInfo("t", 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, True)], False),
        client.Failed(Outcome.BUSY, "why"),
        STATUS,
    ):
        (body,) = decode(client.encode_answer(client.Answer(1, 9, reply)))
        assert client.decode_answer(body).reply == reply


def test_client_hellos_survive_the_wire():
    (body,) = decode(client.encode_hello(client.ClientHello("demo")))
    assert client.decode_client_hello(body) == client.ClientHello("demo")
    (body,) = decode(client.encode_hello(client.SessionHello("demo", b"t" * 16, "worker 7")))
    assert client.decode_client_hello(body) == client.SessionHello("demo", b"t" * 16, "worker 7")
    (body,) = decode(client.encode_hello(client.AttachedHello("demo", 2, 100, 7, 1, 0, 5_000, 15_000)))
    assert client.decode_attached_hello(body).epoch == 1
    (body,) = decode(client.encode_answer(client.Answer(0, 0, client.Failed(Outcome.INVALID, "not here"))))
    with pytest.raises(FrameError, match="not here"):
        client.decode_attached_hello(body)
    (body,) = decode(client.encode_hello(client.NodeHello("demo", 2, 100)))
    assert client.decode_node_hello(body).node == 2
    with pytest.raises(FrameError, match="version"):
        client.decode_client_hello(b"raftd-client\x07")


def test_the_exchange_in_the_protocol_document_is_what_is_spoken():
    text = (Path(__file__).parent.parent.parent / "docs/protocol.md").read_text()
    (example,) = re.findall(r"version byte, a struct\.\n\n((?:    .*\n)+)", text)
    digits = "".join(re.split(r" {3,}", line.strip())[0].replace(" ", "") for line in example.splitlines())
    hello = client.SessionHello("demo", bytes(range(16)))
    attached = client.AttachedHello("demo", 1, 65_535, 1, 1, 0, 5_000, 15_000)
    put = client.AskRequest(1, 0, [], asks.Put("mail", [asks.NewJob(5, 0, 60_000, b"j")]))
    answer = client.Answer(1, 6, InsertedMany(1, 1, False))
    hellos = client.encode_hello(hello) + client.encode_hello(attached)
    assert bytes.fromhex(digits) == hellos + client.encode_request(put) + client.encode_answer(answer)


def test_fields_of_a_newer_protocol_are_ignored_and_requests_of_one_named():
    for body in (
        [20, 7, 6, [], [1, "mail", [[5, 0, 60_000, b"j"]], "", b"", None, False, False, "newer field"], "another"],
        [20, 7, 6, [], [1, "mail", [[5, 0, 60_000, b"j"]]]],
    ):
        got = client.decode_request(msgspec.msgpack.encode(body))
        assert isinstance(got, client.AskRequest)
        assert got.id == 7
    for body, name in (([20, 7, 6, [], [99, "mail"]], "ask 99"), ([77, 7], "request 77"), ([24, 7, 3], "request 24")):
        got = client.decode_request(msgspec.msgpack.encode(body))
        assert isinstance(got, client.Unknown)
        assert got.id == 7
        assert name in got.text
    for junk in (b"\xc1", b"", b"\x00", msgspec.msgpack.encode(["x", 1]), msgspec.msgpack.encode([20])):
        with pytest.raises(FrameError):
            client.decode_request(junk)

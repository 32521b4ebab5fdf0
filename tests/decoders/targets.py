"""What each decoder promises about bytes that nobody should send: to give what they mean, or the one error that it names."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from raftd.errors import CorruptionError, FrameError, TooOld
from raftd.jobs import commands
from raftd.jobs.snapshot import Loader
from raftd.limits import FRAME_BYTES, MAX_JOB_BYTES
from raftd.sim.disk import MemoryFileSystem
from raftd.storage.log import SegmentedLog
from raftd.storage.records import ID_BYTES
from raftd.storage.snapshots import SnapshotReader
from raftd.storage.vote import decode_slot
from raftd.wire import client, line, peer
from raftd.wire.checks import what_is_wrong
from raftd.wire.frames import FrameDecoder, frame


def _pieces(data: bytes, random: Random) -> list[bytes]:
    """As a network may cut them."""
    found, at = [], 0
    while at < len(data):
        size = random.choice((1, 3, 50, len(data)))
        found.append(data[at : at + size])
        at += size
    return found


def frames(data: bytes, random: Random) -> bool:
    """Whole frames are given as they are, and nothing is kept beyond what has come."""
    decoder = FrameDecoder()
    decoder.greeted(random.choice((16, 4_096, FRAME_BYTES)))
    given = 0
    try:
        for piece in _pieces(frame(data[: len(data) // 2]) + data, random):
            decoder.feed(piece)
            while (body := decoder.next_frame()) is not None:
                given += len(body)
    except FrameError:
        return False
    assert given <= 2 * len(data)
    return True


def peer_message(data: bytes, random: Random) -> bool:
    """What is understood can be said again, in the same way."""
    try:
        if data.startswith(b"raftd"):
            hello = peer.decode_hello(data)
            assert peer.decode_hello(peer.encode_hello(hello)[4:]) == hello
        else:
            message = peer.decode(data)
            assert peer.decode(peer.encode(message)[4:]) == message
    except FrameError:
        return False
    return True


def client_message(data: bytes, random: Random) -> bool:
    try:
        if data.startswith(b"raftd"):
            client.decode_client_hello(data)
            return True
        request = client.decode_request(data)
    except FrameError:
        return False
    if isinstance(request, client.Unknown):
        return False
    assert client.decode_request(client.encode_request(request)[4:]) == request
    return not (isinstance(request, client.AskRequest) and what_is_wrong(request.what))


def answer(data: bytes, random: Random) -> bool:
    """What a client reads."""
    try:
        client.decode_attached_hello(data)
        return True
    except FrameError:
        pass
    try:
        found = client.decode_answer(data)
    except FrameError:
        return False
    assert client.decode_answer(client.encode_answer(found)[4:]) == found
    return True


def lines(data: bytes, random: Random) -> bool:
    """Requests and errors come until all that has come is used, and what is kept of the rest is bounded."""
    parser = line.LineParser(random.choice((10, MAX_JOB_BYTES)))
    count = 0
    for piece in _pieces(data, random):
        parser.feed(piece)
        while parser.next_request() is not None:
            count += 1
    assert count <= len(data)
    return count > 0


def entry(data: bytes, random: Random) -> bool:
    payload = commands.decode_payload(data)
    if payload is None:
        return False
    assert commands.decode_payload(commands.encode_payload(payload)) == payload
    return True


def piece(data: bytes, random: Random) -> bool:
    """One piece of a snapshot behind a whole first one."""
    loader = Loader()
    try:
        loader.feed(_FIRST_PIECES[random.randrange(len(_FIRST_PIECES))])
        loader.feed(data)
    except (CorruptionError, TooOld):
        return False
    return True


_FIRST_PIECES: list[bytes] = []


def use_corpus(corpus: dict[str, list[bytes]]) -> None:
    """Pieces of a snapshot mean something behind others only."""
    _FIRST_PIECES[:] = corpus["piece"]


def snapshot(data: bytes, random: Random) -> bool:
    fs = MemoryFileSystem()
    fs.files.clear()
    _write(fs, "x.snap", data)
    try:
        reader = SnapshotReader(fs, "x.snap")
        loader = Loader()
        for part in reader.pieces():
            loader.feed(part)
        loader.finish()
    except (CorruptionError, TooOld):
        return False
    return True


def log(data: bytes, random: Random) -> bool:
    """A segment, the newest or not."""
    fs = MemoryFileSystem()
    fs.make_directory("log")
    _write(fs, f"log/{1:016d}-{(b'i' * ID_BYTES).hex()}.log", data)
    try:
        SegmentedLog(fs, "log", lambda: b"j" * ID_BYTES).recover()
    except CorruptionError:
        return False
    return True


def vote(data: bytes, random: Random) -> bool:
    try:
        return decode_slot(data) is not None
    except CorruptionError:
        return False


def _write(fs: MemoryFileSystem, path: str, data: bytes) -> None:
    file = fs.open(path)
    if data:
        file.write(0, data)
    file.close()


#: By name: the decoder, the part of the corpus it reads, and its share of the inputs.
TARGETS: dict[str, tuple[Callable[[bytes, Random], bool], str, int]] = {
    "frames": (frames, "peer", 10),
    "peer messages": (peer_message, "peer", 20),
    "client requests": (client_message, "client", 20),
    "answers": (answer, "answer", 10),
    "lines": (lines, "line", 14),
    "entries": (entry, "entry", 10),
    "snapshot pieces": (piece, "piece", 6),
    "snapshots": (snapshot, "snapshot", 3),
    "log segments": (log, "log", 4),
    "votes": (vote, "vote", 3),
}

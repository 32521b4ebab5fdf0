"""The vote file: what must never be forgotten, in two slots.

The same record is written and fsynced to `vote.a`, then to `vote.b`, before anything that depends on it
leaves the node; so one slot is whole at every moment. A sequence number tells which of two is newer.
"""

from __future__ import annotations

import struct
from zlib import crc32

import msgspec

from raftd.errors import UNDECODABLE, CorruptionError
from raftd.storage.filesystem import FileSystem

_MAGIC = b"raftdvot"
_FORMAT = 1
_HEAD = struct.Struct("<8sIQII")  # magic, format, sequence, length, crc over all but magic and crc
SLOTS = ("vote.a", "vote.b")


class Identity(msgspec.Struct, frozen=True):
    """Whose data directory this is, and what it promised.

    `node`, `cluster` and `voters` are those of the configuration it was made for: under another, majorities
    would not intersect with those that it took part in.
    `term`, `voted_for` and `doubtful` are Raft's hard state. `incarnation` counts the starts of a process
    on the directory, `segment` is the newest of the log's files that was begun, `first_segment` the oldest
    that is still needed, `snapshot_index` the entry that some snapshot reaches. `directory_id` is random,
    made with the directory; `cluster_id` is empty until the cluster's first entry was committed. `peers`
    are the directory ids of the nodes met so far: one of them that comes back under another id has lost
    its disk (R28). `has_users`: the cluster has had users since; a process that has just started, and
    knows nothing of the state yet, must not take everybody for one.
    """

    node: int = 0
    cluster: str = ""
    voters: tuple[int, ...] = ()
    term: int = 0
    voted_for: int = 0
    doubtful: bool = False
    incarnation: int = 0
    segment: int = 0
    first_segment: int = 1
    snapshot_index: int = 0
    directory_id: bytes = b""
    cluster_id: bytes = b""
    peers: dict[int, bytes] = {}
    has_users: bool = False


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Identity)


def encode_slot(sequence: int, identity: Identity) -> bytes:
    payload = _encoder.encode(identity)
    crc = crc32(payload, crc32(struct.pack("<IQI", _FORMAT, sequence, len(payload))))
    return _HEAD.pack(_MAGIC, _FORMAT, sequence, len(payload), crc) + payload


def decode_slot(data: bytes) -> tuple[int, Identity] | None:
    """None for anything but a whole record. Bytes behind the record are of an older, longer one."""
    if len(data) < _HEAD.size:
        return None
    magic, version, sequence, length, crc = _HEAD.unpack_from(data)
    payload = data[_HEAD.size : _HEAD.size + length]
    if magic != _MAGIC or len(payload) != length:
        return None
    if crc != crc32(payload, crc32(struct.pack("<IQI", version, sequence, length))):
        return None
    if version != _FORMAT:
        raise CorruptionError(f"the vote file has format {version}; this raftd reads format {_FORMAT}")
    try:
        return sequence, _decoder.decode(payload)
    except UNDECODABLE:
        return None


class VoteFile:
    """Both slots. `write` may run in another thread, one call at a time."""

    def __init__(self, fs: FileSystem, directory: str) -> None:
        self._fs = fs
        self._directory = directory
        self._paths = [f"{directory}/{name}" for name in SLOTS]
        self._sequence = 0

    def read(self) -> Identity | None:
        """The newest whole record, None if no slot holds one. Changes nothing."""
        newest: Identity | None = None
        for path in self._paths:
            slot = decode_slot(self._fs.read(path)) if self._fs.exists(path) else None
            if slot is not None and slot[0] > self._sequence:
                self._sequence, newest = slot
        return newest

    def repair(self, identity: Identity) -> None:
        """Make both slots equal to `identity`, as read, and durable: the next write starts with slot a, and must not meet a time at which
        neither slot is whole.

        What was read may be in the kernel's cache only, since an fsync failed. That can be slot b if both are alike, for it is written
        once a is durable; and slot a if b is older. It is written once more while the other one is surely there."""
        record = encode_slot(self._sequence, identity)
        a, b = (self._fs.exists(path) and decode_slot(self._fs.read(path)) == (self._sequence, identity) for path in self._paths)
        if not (a and b):
            self._put(self._paths[0], record)
        if a:
            self._put(self._paths[1], record)
        self._fs.sync_directory(self._directory)

    def write(self, identity: Identity) -> None:
        """Durable in both slots on return. Raises OSError; the process must end then (R17)."""
        self._sequence += 1
        record = encode_slot(self._sequence, identity)
        for path in self._paths:
            self._put(path, record)

    def _put(self, path: str, record: bytes) -> None:
        file = self._fs.open(path)
        try:
            file.write(0, record)
            file.sync()
        finally:
            file.close()

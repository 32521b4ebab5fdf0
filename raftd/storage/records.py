"""The bytes of a log segment, and what can be read back from damaged ones. No I/O here.

    segment = header, batch, batch, …
    batch   = header, record × count, end mark        one write and one fsync each
    record  = length, type, kind, index, term, time, crc, payload

Every CRC continues the one before it, through batches and across segments, so nothing can be missing,
doubled or moved unseen. A batch header begins with the segment's random id, which no client ever sees:
no job's body can forge one. It names its own offset, which is the end of the batch before: since a batch
is written only when the one before is durable, *a valid header proves all batches before it durable*.

Reading stops at the first bad place. Then there are three cases:

- A valid batch header follows: CORRUPT, for the damaged part was durable.
- Otherwise it is the last batch. If the damage is what a crash leaves of bytes never fsynced (the file
  ends early, or whole sectors are zeros), nothing in it was acknowledged: TORN.
- Any other bytes: the batch may have been acknowledged: DOUBTFUL.

The newest segment may end in zeros, space for batches to come: where a header would be and only zeros follow, it
ends. Its size tells whether it has space: with it a whole number of sectors, without it never. So a sealed
segment, which has none, that lost its last sectors is not taken for one that ends earlier.

Zeros are evidence of a torn write because no batch is written with a sector of zeros in it: where it would have
one (a job's body may), its header says so, and its records are masked with the segment's id.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from random import Random
from typing import NamedTuple
from zlib import crc32

from raftd.limits import LIMITS, SECTOR_BYTES
from raftd.raft.messages import Entry, EntryKind

FORMAT = 1
ID_BYTES = 16

_MAGIC = b"raftdlog"
_SEGMENT = struct.Struct("<8sIQ16sI")  # magic, format, number, id, chain; then its crc
_BATCH = struct.Struct("<16sQQIIB")  # id, offset, end, count, chain, flags; then its crc
_RECORD = struct.Struct("<IBBQQQ")  # length, type, kind, index, term, time_ms; then its crc
_CRC = struct.Struct("<I")
SEGMENT_HEADER_BYTES = _SEGMENT.size + _CRC.size
_BATCH_HEADER_BYTES = _BATCH.size + _CRC.size
_RECORD_HEADER_BYTES = _RECORD.size + _CRC.size
_ENTRY = 1
_MASKED = 1
_END_MARK = b"\x01"  # at least one, so that no batch ends in zeros


class Damage(Enum):
    """What the end of a segment looks like."""

    NONE = "none"
    TORN = "torn"
    DOUBTFUL = "doubtful"
    CORRUPT = "corrupt"
    FOREIGN = "foreign"  # whole, but of another format, name or log


class Scan(NamedTuple):
    """A segment read back: its good entries, the chain and the offset behind them, and what follows.

    `marks`: (index of its first entry, offset) of batches, every `mark_bytes` or so, and of those that replace entries.
    """

    entries: list[Entry]
    chain: int
    end: int
    damage: Damage
    bad_offset: int
    reason: str
    last_batch: int
    marks: list[tuple[int, int]]


class _Bad(Exception):
    """The first bad place: what is wrong, and which bytes [first, last) of the segment it was read from."""

    is_foreign = False

    def __init__(self, reason: str, first: int, last: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.first = first
        self.last = last


class _Foreign(_Bad):
    """Not damaged at all, but not what belongs here."""

    is_foreign = True

    def __init__(self, reason: str) -> None:
        super().__init__(reason, 0, SEGMENT_HEADER_BYTES)


def new_id(random: Random) -> bytes:
    """Of a segment or of a directory. It does not begin with 0, or sectors of zeros would look like the beginning of one."""
    return bytes([random.randrange(1, 256)]) + random.randbytes(ID_BYTES - 1)


def segment_header(number: int, segment_id: bytes, chain: int) -> bytes:
    """The first bytes of segment `number`; `chain` is the CRC that the segment before ended with."""
    head = _SEGMENT.pack(_MAGIC, FORMAT, number, segment_id, chain)
    return head + _CRC.pack(crc32(head))


def encode_batch(segment_id: bytes, offset: int, chain: int, entries: Sequence[Entry]) -> tuple[bytes, int]:
    """The bytes of one batch at `offset` of its segment, and the chain behind it. Empty batches are seals."""
    size = sum(len(entry.data) for entry in entries) + len(entries) * _RECORD_HEADER_BYTES
    end = offset + _BATCH_HEADER_BYTES + size + 1
    if end % SECTOR_BYTES == 0 or end % SECTOR_BYTES > SECTOR_BYTES - _BATCH_HEADER_BYTES:
        # The next header is in one sector: there, or not. And no segment without space is a whole number of sectors.
        end += -end % SECTOR_BYTES + 1
    end_mark = _END_MARK * (end - offset - _BATCH_HEADER_BYTES - size)

    def assemble(flags: int) -> tuple[bytes, int]:
        head = _BATCH.pack(segment_id, offset, end, len(entries), chain, flags)
        crc = crc32(head)
        parts = [head, _CRC.pack(crc)]
        for entry in entries:
            record = _RECORD.pack(len(entry.data), _ENTRY, entry.kind, entry.index, entry.term, entry.time_ms)
            crc = crc32(entry.data, crc32(record, crc))
            parts += (record, _CRC.pack(crc), entry.data)
        parts.append(end_mark)
        return b"".join(parts), crc

    data, crc = assemble(0)
    if bytes(64) in data and any(_zero_sectors(data, offset, offset, end)):
        data, crc = assemble(_MASKED)
        place, stop = _BATCH_HEADER_BYTES, _BATCH_HEADER_BYTES + size
        data = data[:place] + _mask(data[place:stop], segment_id) + end_mark
    return data, crc


def _mask(data: bytes, segment_id: bytes) -> bytes:
    """`data` with the id laid over it again and again; the same once more takes it off."""
    over = (segment_id * (len(data) // ID_BYTES + 1))[: len(data)]
    return (int.from_bytes(data) ^ int.from_bytes(over)).to_bytes(len(data))


def _zero_sectors(data: bytes, base: int, first: int, last: int) -> list[tuple[int, int]]:
    """The sectors of which every byte inside [first, last) is zero, each cut to that range.

    `data` begins at offset `base` of the file. Sectors are the file's, not the batch's.
    """
    found = []
    start = first
    while start < last:
        stop = min(last, (start // SECTOR_BYTES + 1) * SECTOR_BYTES)
        if not any(data[start - base : stop - base]):
            found.append((start, stop))
        start = stop
    return found


def scan_segment(
    data: bytes, number: int, segment_id: bytes, chain: int | None, is_newest: bool, mark_bytes: int = LIMITS.log_mark_bytes
) -> Scan:
    """Read a segment back. `chain` is what the segment before ended with, None for the first one held.

    CORRUPT, TORN and DOUBTFUL are decided as for the last segment; in an earlier one all are corruption.
    """
    has_space = is_newest and len(data) % SECTOR_BYTES == 0
    entries: list[Entry] = []
    offset = last_batch = 0
    marks: list[tuple[int, int]] = []
    try:
        chain = _read_segment_header(data, number, segment_id, chain)
        offset = SEGMENT_HEADER_BYTES
        while not _ends(data, offset, has_space):
            batch, chain, end = _read_batch(data, segment_id, offset, chain)
            if batch:
                lowest = min(entry.index for entry in batch)  # before its first, in logs of an older raftd, if it replaces some inside
                replaces = lowest < batch[0].index or (bool(entries) and lowest <= entries[-1].index)
                if not marks or offset - marks[-1][1] >= mark_bytes or replaces:
                    marks.append((lowest, offset))
            entries += batch
            last_batch, offset = offset, end
    except _Bad as bad:
        damage = Damage.FOREIGN if bad.is_foreign else _judge(data, segment_id, offset, bad, has_space)
        return Scan(entries, chain or 0, offset, damage, bad.first, bad.reason, last_batch, marks)
    return Scan(entries, chain, offset, Damage.NONE, offset, "", last_batch, marks)


def _ends(data: bytes, offset: int, has_space: bool) -> bool:
    """Whether nothing was written from `offset` on."""
    if not has_space:
        return offset >= len(data)
    return not data[offset : offset + _BATCH_HEADER_BYTES].strip(b"\0") and not data[offset:].strip(b"\0")


def read_batches(read: Callable[[int, int], bytes], segment_id: bytes, offset: int) -> Iterator[list[Entry]]:
    """The entries of the batches from `offset` on, as long as they are whole; `read` gives (offset, size) of the segment."""
    while True:
        data = read(offset, _BATCH_HEADER_BYTES)
        header = _batch_header(data, segment_id, offset, offset)
        if header is None:
            return
        try:
            end, _, chain, _, _ = header
            data += read(offset + len(data), end - offset - len(data))
            batch, _, _ = _read_batch(data, segment_id, offset, chain, offset)
        except _Bad:
            return
        yield batch
        offset = end


def _read_segment_header(data: bytes, number: int, segment_id: bytes, chain: int | None) -> int:
    if len(data) < SEGMENT_HEADER_BYTES:
        raise _Bad("the segment header is cut short", 0, SEGMENT_HEADER_BYTES)
    head = data[: _SEGMENT.size]
    (crc,) = _CRC.unpack_from(data, _SEGMENT.size)
    if crc != crc32(head):
        raise _Bad("the segment header is damaged", 0, SEGMENT_HEADER_BYTES)
    magic, version, got_number, got_id, got_chain = _SEGMENT.unpack(head)
    if magic != _MAGIC or version != FORMAT:
        raise _Foreign(f"the segment has format {version}; this raftd reads format {FORMAT}")
    if (got_number, got_id) != (number, segment_id):
        raise _Foreign("the segment header does not belong to this file name")
    if chain is not None and got_chain != chain:
        raise _Foreign("the segment does not continue the one before")
    return int(got_chain)


def _batch_header(data: bytes, segment_id: bytes, offset: int, base: int = 0) -> tuple[int, int, int, int, int] | None:
    """(end, count, chain, flags, crc) of a valid batch header at `offset`, None if there is none. `data` begins at `base`."""
    place = offset - base
    if place + _BATCH_HEADER_BYTES > len(data):
        return None
    head = data[place : place + _BATCH.size]
    (crc,) = _CRC.unpack_from(data, place + _BATCH.size)
    got_id, got_offset, end, count, chain, flags = _BATCH.unpack(head)
    if got_id != segment_id or got_offset != offset or crc != crc32(head):
        return None
    return end, count, chain, flags, crc


def _read_batch(data: bytes, segment_id: bytes, offset: int, chain: int, base: int = 0) -> tuple[list[Entry], int, int]:
    header = _batch_header(data, segment_id, offset, base)
    place = offset + _BATCH_HEADER_BYTES
    if header is None:
        raise _Bad("the batch header is damaged", offset, place)
    end, count, got_chain, flags, crc = header
    if got_chain != chain:
        raise _Bad("the batch does not continue the one before", offset, place)
    body = data[place - base : end - base]
    records = _mask(body, segment_id) if flags & _MASKED else body
    entries = []
    at = 0  # in `records`, which begin at `place`
    for position in range(count):
        name = f"record {position + 1} of {count}"
        stop = at + _RECORD_HEADER_BYTES
        if place + stop >= end or stop > len(records):
            raise _Bad(f"{name} is cut short", place + at, place + stop)
        length, kind_of_record, kind, index, term, time_ms = _RECORD.unpack_from(records, at)
        (got_crc,) = _CRC.unpack_from(records, at + _RECORD.size)
        if place + stop + length >= end or stop + length > len(records):
            raise _Bad(f"{name} is cut short or its length is damaged", place + at, min(place + stop + length, end))
        payload = records[stop : stop + length]
        crc = crc32(payload, crc32(records[at : at + _RECORD.size], crc))
        if crc != got_crc or kind_of_record != _ENTRY:
            raise _Bad(f"{name} is damaged", place + at, place + stop + length)
        entries.append(Entry(term, index, time_ms, EntryKind(kind), payload))
        at = stop + length
    if end <= place + at or body[at:] != _END_MARK * (end - place - at):
        raise _Bad("the end mark of the batch is damaged", place + at, max(end, place + at + 1))
    return entries, crc, end


def _judge(data: bytes, segment_id: bytes, offset: int, bad: _Bad, has_space: bool) -> Damage:
    """Which of the three cases the damage in the batch at `offset` is."""
    place = data.find(segment_id, offset + 1)
    while place != -1:
        if _batch_header(data, segment_id, place) is not None:
            return Damage.CORRUPT
        place = data.find(segment_id, place + 1)
    header = _batch_header(data, segment_id, offset) if offset else None
    if header is not None:
        end = header[0]
        if end > len(data):
            return Damage.TORN  # the file ends before the batch does
        if data[end:].strip(b"\0") or (end < len(data) and not has_space):
            return Damage.DOUBTFUL  # a later batch was begun, so this one was durable
        last = end
    elif not offset and len(data) > SEGMENT_HEADER_BYTES:
        return Damage.DOUBTFUL  # a segment's header is durable before its first batch is written
    else:
        if bad.last > len(data):
            return Damage.TORN  # the file ends before the header does
        if any(data[bad.first : bad.last]):
            return Damage.DOUBTFUL  # a header is in one sector: a crash leaves all of it, or nothing
        last = len(data)
    zeros = _zero_sectors(data, 0, offset, last)
    # the damaged bytes themselves must touch a sector that the disk never wrote
    return Damage.TORN if any(first < bad.last and stop > bad.first for first, stop in zeros) else Damage.DOUBTFUL

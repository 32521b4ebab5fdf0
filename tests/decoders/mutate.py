"""The changes, and where the corpus is."""

from __future__ import annotations

from pathlib import Path
from random import Random

import msgspec

CORPUS = Path(__file__).parent / "corpus.json"

#: Bytes that mean much: borders of numbers, and MessagePack's types with and without lengths.
_BYTES = (0, 1, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xC0, 0xC1, 0xC4, 0xC6, 0xCB, 0xCF, 0xD3, 0xD9, 0xDB, 0xDC, 0xDD, 0xDF, 0xE0, 0xFF)
_NUMBERS = (0, 1, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0x7FFF_FFFF_FFFF_FFFF, 0x8000_0000_0000_0000, 0xFFFF_FFFF_FFFF_FFFF)
_MOST_CHANGES = 4


def load_corpus() -> dict[str, list[bytes]]:
    """Of each decoder."""
    return msgspec.json.decode(CORPUS.read_bytes(), type=dict[str, list[bytes]])


def mutated(data: bytes, others: list[bytes], random: Random) -> bytes:
    """`data` with a few changes."""
    changed = bytearray(data)
    for _ in range(random.randrange(1, _MOST_CHANGES + 1)):
        _change(changed, others, random)
    return bytes(changed)


def _change(data: bytearray, others: list[bytes], random: Random) -> None:
    at = random.randrange(len(data) + 1)
    to = min(len(data), at + random.choice((1, 1, 2, 4, 8, 40)))
    match random.randrange(9):
        case 0 if at < len(data):
            data[at] ^= 1 << random.randrange(8)
        case 1 if at < len(data):
            data[at] = random.choice(_BYTES)
        case 2:
            data[at:at] = random.randbytes(random.choice((1, 2, 9)))
        case 3:
            del data[at:to]
        case 4:
            data[at:at] = data[at:to] * random.choice((1, 2, 50))
        case 5:
            del data[at:]
        case 6:
            size = random.choice((4, 8))
            data[at : at + size] = (random.choice(_NUMBERS) & ((1 << 8 * size) - 1)).to_bytes(size, random.choice(("big", "little")))
        case 7:
            other = random.choice(others)
            begin = random.randrange(len(other) + 1)
            data[at:to] = other[begin : begin + random.choice((4, 30, 300))]
        case _:
            data[at:at] = bytes((random.choice(_BYTES),)) * random.choice((1, 60, 3_000))

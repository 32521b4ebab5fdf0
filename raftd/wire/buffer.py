"""Bytes that have arrived and are not used yet. What is taken out is copied once, however it came in."""

from __future__ import annotations

import re

_SMALL = 4096


class Buffer:
    """Chunks go in at the end, any number of bytes comes out at the front."""

    __slots__ = ("_at", "_chunk", "_later", "_size")

    def __init__(self) -> None:
        self._chunk = b""
        self._at = 0  # what of it is used
        self._later: list[bytes] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def feed(self, data: bytes) -> None:
        self._size += len(data)
        if self._at == len(self._chunk):
            self._chunk, self._at = data, 0
        elif self._later and len(self._later[-1]) < _SMALL:
            self._later[-1] += data  # a client that sends byte by byte must not cost an object for each
        else:
            self._later.append(data)

    def take(self, count: int) -> bytes:
        """The next `count` bytes, which must be there."""
        self._gather(count)
        start = self._at
        self._at += count
        self._size -= count
        data = self._chunk[start : self._at]
        self._advance()
        return data

    def skip(self, count: int) -> None:
        """As `take`, without keeping them."""
        self._size -= count
        while count:
            step = min(count, len(self._chunk) - self._at)
            self._at += step
            count -= step
            self._advance()

    def match(self, pattern: re.Pattern[bytes]) -> re.Match[bytes] | None:
        """Match `pattern` at the front, in what arrived together with it."""
        return pattern.match(self._chunk, self._at)

    def take_behind(self, head: re.Match[bytes], count: int, mark: bytes) -> bytes | None:
        """Take `head`, which was matched at the front, then `count` bytes and `mark`; return the `count` bytes. None, and nothing is
        taken, if they did not arrive together or another mark follows."""
        chunk, start = self._chunk, head.end()
        end = start + count
        if not chunk.startswith(mark, end):
            return None
        at = end + len(mark)
        self._size -= at - self._at
        self._at = at
        self._advance()
        return chunk[start:end]

    def find(self, what: bytes, within: int | None = None) -> int:
        """How many bytes stand before `what`, looking at the first `within` bytes only; -1 if it is not there."""
        look = self._size if within is None else min(within, self._size)
        self._gather(look)
        found = self._chunk.find(what, self._at, self._at + look)
        return found - self._at if found >= 0 else -1

    def _gather(self, count: int) -> None:
        if len(self._chunk) - self._at < count:
            self._chunk = b"".join([self._chunk[self._at :], *self._later])
            self._at = 0
            self._later = []

    def _advance(self) -> None:
        if self._at == len(self._chunk) and self._later:
            self._chunk, self._at = self._later.pop(0), 0

"""Length-prefixed frames: four bytes, big-endian, then that many bytes.

The first frame of a connection, in each direction, is a hello: a magic that names the listener, one byte of
protocol version, and a struct. Everything else is one struct a frame.
"""

from __future__ import annotations

import struct

from raftd.errors import FrameError
from raftd.limits import FRAME_BYTES, HELLO_FRAME_BYTES
from raftd.wire.buffer import Buffer

_LENGTH = struct.Struct(">I")
#: How a TLS handshake begins. As the length of a hello it would be over the limit.
_TLS = 0x1603


def frame(body: bytes) -> bytes:
    """One frame around `body`; the limit that a receiver checks is checked before sending too."""
    if len(body) > FRAME_BYTES:
        raise FrameError(f"a frame of {len(body)} bytes is over the limit of {FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


class FrameDecoder:
    """Bytes in, whole frames out. A length over `limit` raises before its bytes are kept.

    The limit is small until `greeted` is called: a stranger cannot make us hold much.
    """

    def __init__(self) -> None:
        self._limit = HELLO_FRAME_BYTES
        self._buffer = Buffer()
        self._body_size: int | None = None  # of the frame whose length has arrived

    def greeted(self, limit: int = FRAME_BYTES) -> None:
        """From now on frames of up to `limit` bytes may come."""
        self._limit = limit

    @property
    def is_in_frame(self) -> bool:
        """Whether part of a frame has arrived."""
        return self._body_size is not None or len(self._buffer) > 0

    def feed(self, data: bytes) -> None:
        """Keep `data`; `next_frame` takes frames out."""
        self._buffer.feed(data)

    def next_frame(self) -> bytes | None:
        """The body of the next whole frame, None if there is none yet. Raises FrameError; the connection
        is of no use then."""
        if self._body_size is None:
            if len(self._buffer) < _LENGTH.size:
                return None
            (size,) = _LENGTH.unpack(self._buffer.take(_LENGTH.size))
            if size >> 16 == _TLS and self._limit == HELLO_FRAME_BYTES:
                raise FrameError("it wants TLS, and this listener has none (`tls` in the configuration)")
            if size > self._limit:
                raise FrameError(f"a frame of {size} bytes is over the limit of {self._limit}")
            self._body_size = size
        if len(self._buffer) < self._body_size:
            return None
        body = self._buffer.take(self._body_size)
        self._body_size = None
        return body

"""Ask a node what it says of itself, over the line listener, in a bounded time."""

from __future__ import annotations

import socket
import time

from raftd.client.connection import NoAnswer, printable
from raftd.client.tls import TlsFiles, connected, why

_ANSWER_BYTES = 64 << 10
_STRANGER = "what listens there does not speak the beanstalkd protocol"


def ask_stats(address: tuple[str, int], timeout_s: float, tls: TlsFiles | None = None) -> dict[str, str]:
    """The answer to `stats`, every value as its text, within `timeout_s` in all. Raises NoAnswer."""
    deadline_s = time.monotonic() + timeout_s
    try:
        with connected(address, timeout_s, tls) as connection:
            connection.sendall(b"stats\r\n")
            text = _answer(connection, deadline_s)
    except (OSError, ValueError) as error:
        raise NoAnswer(why(error)) from None
    head, *lines = text.decode("ascii", errors="replace").splitlines() or [""]
    stats = {key: printable(value.strip('"')) for key, colon, value in (line.partition(": ") for line in lines) if colon}
    if head != "---" or "current-jobs-ready" not in stats:
        raise NoAnswer("its answer to `stats` cannot be read")
    return stats


def _answer(connection: socket.socket, deadline_s: float) -> bytes:
    """Return the body of an `OK <size>` answer."""
    got = b""
    while True:
        head, end, rest = got.partition(b"\r\n")
        if end:
            word, _, size = head.partition(b" ")
            if word != b"OK" or not size.isdigit() or len(size) > 6 or int(size) > _ANSWER_BYTES:
                raise NoAnswer(_STRANGER)
            if len(rest) >= int(size) + 2:
                return rest[: int(size)]
        if len(got) > _ANSWER_BYTES:
            raise NoAnswer(_STRANGER)
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        connection.settimeout(left_s)
        data = connection.recv(_ANSWER_BYTES)
        if not data:
            raise NoAnswer("it closes the connection; a node that has all the clients it can have does so" if not got else _STRANGER)
        got += data

"""Ask a node what it says of itself, over the line door, in a bounded time."""

from __future__ import annotations

import socket
import time

import yaml

_ANSWER_BYTES = 64 << 10
_STRANGER = "what listens there does not speak the beanstalkd protocol"


class NoAnswer(Exception):
    """The node cannot be reached, or what answers is none; the text says why."""


def ask_stats(address: tuple[str, int], timeout_s: float) -> dict[str, str]:
    """The answer to `stats`, every value as its text, within `timeout_s` in all. Raises NoAnswer."""
    deadline_s = time.monotonic() + timeout_s
    try:
        with socket.create_connection(address, timeout=timeout_s) as connection:
            connection.sendall(b"stats\r\n")
            text = _answer(connection, deadline_s)
    except OSError as error:
        raise NoAnswer(error.strerror or str(error)) from None
    try:
        stats = yaml.load(text, yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError):
        stats = None
    if not isinstance(stats, dict):
        raise NoAnswer("its answer to `stats` cannot be read")
    return {_printable(key): _printable(value) for key, value in stats.items()}


def _answer(connection: socket.socket, deadline_s: float) -> bytes:
    """What stands between `OK <size>` and the end of that many bytes."""
    got = b""
    while True:
        head, end, rest = got.partition(b"\r\n")
        if end:
            word, _, size = head.partition(b" ")
            if word != b"OK" or not size.isdigit() or int(size) > _ANSWER_BYTES:
                raise NoAnswer(_STRANGER)
            if len(rest) >= int(size):
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


def _printable(value: object) -> str:
    """No node sends control characters; whatever does must not reach a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(value))

"""Ask a node what it says of itself, over the line door, in a bounded time."""

from __future__ import annotations

import socket

import yaml

_ANSWER_BYTES = 64 << 10


class NoAnswer(Exception):
    """The node cannot be reached, or what answers is none; the text says why."""


def ask_stats(address: tuple[str, int], timeout_s: float) -> dict[str, str]:
    """The answer to `stats`, every value as its text. Raises NoAnswer."""
    try:
        with socket.create_connection(address, timeout=timeout_s) as connection, connection.makefile("rb") as answers:
            connection.sendall(b"stats\r\n")
            word, _, size = answers.readline(_ANSWER_BYTES).partition(b" ")
            if word != b"OK" or not size.strip().isdigit() or int(size) > _ANSWER_BYTES:
                raise NoAnswer("what listens there does not speak the beanstalkd protocol")
            text = answers.read(int(size))
    except OSError as error:
        raise NoAnswer(error.strerror or str(error)) from None
    try:
        stats = yaml.load(text, yaml.BaseLoader)
    except yaml.YAMLError:
        stats = None
    if not isinstance(stats, dict):
        raise NoAnswer("its answer to `stats` cannot be read")
    return {str(key): str(value) for key, value in stats.items()}

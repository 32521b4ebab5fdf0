"""What follows the addresses in a URL of clients: names of files, and of a user."""

from __future__ import annotations

from urllib.parse import parse_qsl

SCHEME = "raftd://"
SECURE_SCHEME = "raftds://"
_FOR_TLS = ("ca", "certificate", "key")
_FOR_ALL = ("token", "user", "password")


def parameters_of(url: str) -> dict[str, str]:
    """By name. Raises ValueError.

    >>> parameters_of("raftds://queue.example?ca=ca.pem&token=worker.token")
    {'ca': 'ca.pem', 'token': 'worker.token'}
    """
    _, mark, query = url.partition("?")
    found: dict[str, str] = {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(mark))
    except ValueError:
        raise ValueError(f"{url!r}: expected ?ca=FILE&certificate=FILE&key=FILE&token=FILE behind the addresses") from None
    for name, value in pairs:
        if name not in _FOR_TLS + _FOR_ALL or not value or name in found:
            raise ValueError(
                f"{url!r}: expected ca=, certificate=, key=, token= or password= and the name of a file, or user=NAME, not {name}={value}"
            )
        if name in _FOR_TLS and not url.startswith(SECURE_SCHEME):
            raise ValueError(f"{url!r}: {name}= is for TLS: expected {SECURE_SCHEME}")
        found[name] = value
    return found

"""Where nodes are: raftd://HOST[:PORT],HOST[:PORT],…, or raftds:// with TLS."""

from __future__ import annotations

import os

from raftd.client.url import SCHEME, SECURE_SCHEME

HostPort = tuple[str, int]

DEFAULT_PORT = 11301
DEFAULT_URL = "raftd://127.0.0.1:11301"


def url_or_default(url: str | None) -> str:
    """`url`, or what $RAFTD_URL says, or the node of this machine."""
    return url if url is not None else os.environ.get("RAFTD_URL") or DEFAULT_URL


def addresses_of(url: str | None) -> list[HostPort]:
    """The client listeners that `url` names; None: those of $RAFTD_URL, or the node of this machine. A port that is given last is that of
    all before it that have none. Raises ValueError.

    >>> addresses_of("raftd://a,b:1,c:2")
    [('a', 1), ('b', 1), ('c', 2)]
    >>> addresses_of("raftd://[::1]")
    [('::1', 11301)]
    """
    url = url_or_default(url)
    found: list[HostPort] = []
    port = DEFAULT_PORT
    for part in reversed(_without_scheme(url).rstrip("/").split(",")):
        host, number = _split(part.strip())
        if number:
            if not number.isdecimal() or not 0 < int(number) < 1 << 16:
                raise ValueError(f"{url!r}: expected a port from 1 to 65535 behind {host!r}")
            port = int(number)
        if not host or set("/@?") & set(host):
            raise ValueError(f"{url!r}: expected {SCHEME}HOST[:PORT],HOST[:PORT],…")
        found.append((host, port))
    return found[::-1]


def _without_scheme(url: str) -> str:
    return url.partition("?")[0].removeprefix(SECURE_SCHEME).removeprefix(SCHEME)


def _split(part: str) -> tuple[str, str]:
    if part.startswith("["):
        host, _, rest = part[1:].partition("]")
        return host, rest.removeprefix(":")
    host, _, number = part.rpartition(":")
    return (host, number) if host else (number, "")

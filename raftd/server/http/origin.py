"""Whose page asks: no page of another site may change anything through the browser of somebody who can reach a node.

A node knows no passwords on this door, so a browser inside the network would be as good as its user. Browsers say where a request
comes from in several ways, none of them always; programs that are no browsers say nothing, and are let through.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

#: Those of which Sec-Fetch-Site may speak: the page itself, or a user who typed the address.
_OWN = ("same-origin", "none")


def is_foreign(header: Callable[[str], str | None]) -> bool:
    """Whether the request with these headers comes from a page of another site, or a browser will not tell from which."""
    host = header("Host")
    site = header("Sec-Fetch-Site")
    if site is not None and site not in _OWN:
        return True
    origin = header("Origin")
    if origin is not None:
        return _host_of(origin) != host
    if site is not None:
        return False
    referer = header("Referer")
    if referer is not None:
        return _host_of(referer) != host
    # An image on a page that hides where it is: from a browser, over plain HTTP, with neither of these.
    return (header("User-Agent") or "").startswith("Mozilla/")


def _host_of(url: str) -> str | None:
    try:
        return urlsplit(url).netloc or None
    except ValueError:
        return None

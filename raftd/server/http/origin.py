"""Refuses requests that a page of another site makes through the browser of a user who can reach a node.

A node knows no passwords on this listener, so a browser inside the network would be as good as its user. Browsers say where a request
comes from in several ways, none of them always; programs that are no browsers say nothing, and are let through.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from ipaddress import ip_address
from urllib.parse import urlsplit

#: Those of which Sec-Fetch-Site may speak: the page itself, or a user who typed the address.
_OWN = ("same-origin", "none")


def is_foreign(method: str, header: Callable[[str], str | None], names: Container[str]) -> bool:
    """Whether the request with these headers comes from a page of another site, or a browser will not tell from which. `names` are those
    of the cluster's nodes: another name may belong to an attacker who points it here (DNS rebinding)."""
    host, site, origin, referer = header("Host"), header("Sec-Fetch-Site"), header("Origin"), header("Referer")
    is_browser = _is_browser(method, header)
    if has_foreign_name(method, header, names):
        return True
    if site is not None and site not in _OWN:
        return True
    if origin is not None:
        return _host_of(origin) != host
    if site is not None:
        return False
    if referer is not None:
        return _host_of(referer) != host
    return is_browser


def has_foreign_name(method: str, header: Callable[[str], str | None], names: Container[str]) -> bool:
    """Whether a browser asks by a name that no node has: whoever has pointed it here would read what his page is answered."""
    return _is_browser(method, header) and not _is_own_name(header("Host"), names)


def _is_browser(method: str, header: Callable[[str], str | None]) -> bool:
    # An image on a page that hides where it is: from a browser, over plain HTTP, with none of these. (With other methods than GET a
    # browser always names its origin; and tools that only call themselves Mozilla speak no language.)
    is_shy = method == "GET" and (header("User-Agent") or "").startswith("Mozilla/") and header("Accept-Language") is not None
    return header("Sec-Fetch-Site") is not None or header("Origin") is not None or is_shy


def _is_own_name(host: str | None, names: Container[str]) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name == "localhost" or name in names:
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _host_of(url: str) -> str | None:
    try:
        return urlsplit(url).netloc or None
    except ValueError:
        return None

"""The dashboard: one page of plain files, read once and served from memory (`docs/http.md`). What it shows and does goes through `/v1`, as
with any other program; it has no rights of its own.
"""

from __future__ import annotations

import re
from hashlib import sha256
from importlib.resources import files
from typing import NamedTuple

from raftd.config import Config, Dashboard, TlsMode
from raftd.server.http.site import Call

#: The files, and their types.
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
#: Only what this node serves; nothing inline, nothing made of text (Trusted Types), no frames.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self' {others}; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_DIRECTORY = "page"
#: A host and a port as they may stand in a header.
_PLAIN = re.compile(r"[A-Za-z0-9_.:\[\]-]+")


class _File(NamedTuple):
    kind: str
    content: bytes
    tag: str  # changes with its content


def is_page(parts: list[str]) -> bool:
    """Whether this is a path of the page: everybody may know what it looks like."""
    return parts == [""] or (len(parts) == 2 and parts[0] == _DIRECTORY)


def others_of(config: Config) -> list[str]:
    """Where the pages of the nodes are that the file names, as origins: when its own node is gone, a page asks which of them lives."""
    schemes = ["http"] if config.tls is None else ["https"] if config.tls.mode is TlsMode.REQUIRED else ["https", "http"]
    places = [f"{place.host}:{place.http}" for place in config.nodes.values() if place.http is not None]
    return [f"{scheme}://{place}" for scheme in schemes for place in places if _PLAIN.fullmatch(place)]


class DashboardFiles:
    """`others`: origins of the pages of other nodes."""

    def __init__(self, mode: Dashboard, others: list[str]) -> None:
        self._policy = _POLICY.format(others=" ".join(others))
        self._files = _read() if mode is not Dashboard.OFF else {}

    def handles(self, call: Call) -> bool:
        """Whether it is one of its paths; then it is answered."""
        if not is_page(call.parts):
            return False
        found = self._files.get(call.parts[-1] or "index.html")
        if found is None:
            call.problem("no-such-path")
        elif call.method not in ("GET", "HEAD"):
            call.problem("no-such-method", headers={"Allow": "GET, HEAD"})
        else:
            headers = {"Content-Security-Policy": self._policy, "ETag": found.tag, "Cache-Control": "no-cache"}
            if call.header("If-None-Match") == found.tag:
                call.answer(304, b"", found.kind, headers)
            else:
                call.answer(200, found.content, found.kind, headers)
        return True


def _read() -> dict[str, _File]:
    found = {}
    for file in (files("raftd.server.http") / _DIRECTORY).iterdir():
        kind = _KINDS.get("." + file.name.rpartition(".")[2])
        if kind is not None:
            content = file.read_bytes()
            found[file.name] = _File(kind, content, f'"{sha256(content).hexdigest()[:16]}"')
    return found

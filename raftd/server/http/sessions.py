"""Who has signed in with a browser, which shows a cookie from then on: nothing else is sent with a stream of events.

The cookie is a random number that this process knows, for half a day at most. No script can read it, and no other site's page sends it
along. A change needs besides what only the page knows that was told it when it signed in: a page of another port of the same host is not
another site for browsers.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections import OrderedDict
from hashlib import sha256
from typing import Any

from raftd.jobs.access import Access
from raftd.jobs.rights import Login

#: How long one is good (seconds), and how many a user, and all of them, have at most in a node; the one that was used longest ago goes.
SESSION_S = 12 * 3600
SESSIONS_PER_USER = 20
BROWSER_SESSIONS = 1_000
#: So much of a header with cookies is looked at.
COOKIE_CHARACTERS = 8 << 10

#: The header with what only the page knows. Each of its calls has it, "" before it has signed in.
PAGE_HEADER = "Raftd-Page"


_VALUE = re.compile(r"[A-Za-z0-9_-]{43}")


class BrowserSession:
    """Of a user: `identity` tells him from another who is made under his name later. `is_read_only`: he wants to look only."""

    def __init__(self, clock: Any, login: Login, identity: str, is_read_only: bool) -> None:
        self.id = secrets.token_urlsafe(32)
        self.secret = secrets.token_urlsafe(32)
        self.login = login
        self.identity = identity
        self.is_read_only = is_read_only
        self._clock = clock
        self._until_s = clock.seconds() + SESSION_S

    def end(self) -> None:
        self._until_s = 0.0

    @property
    def is_over(self) -> bool:
        return bool(self._clock.seconds() >= self._until_s)

    def is_of(self, access: Access, now_ms: int) -> bool:
        """Whether what was shown is still good, for the same user."""
        return access.user_of(self.login, now_ms) is not None and access.identity(self.login, now_ms) == self.identity

    def is_from_page(self, shown: str | None) -> bool:
        """Whether a call with this in its header is from the page itself."""
        return shown is not None and hmac.compare_digest(shown.encode(), self.secret.encode())


class BrowserSessions:
    """Those of one node of a cluster."""

    def __init__(self, clock: Any, cluster: str, node: int) -> None:
        self._clock = clock
        # Pages of all nodes of a host, and of other programs there, share their cookies.
        self._name = f"raftd-{sha256(cluster.encode()).hexdigest()[:8]}-{node}"
        self._sessions: OrderedDict[str, BrowserSession] = OrderedDict()  # that used last comes last

    def _cookie_name(self, is_secure: bool) -> str:
        """Browsers take the longer one over TLS alone, and for this host alone."""
        return f"__Host-{self._name}" if is_secure else self._name

    def begin(self, login: Login, identity: str, is_read_only: bool) -> BrowserSession:
        """A user who has too many loses the one that he used longest ago."""
        own = [session for session in self._sessions.values() if session.identity == identity]
        for session in [
            *own[: max(0, len(own) + 1 - SESSIONS_PER_USER)],
            *(session for session in self._sessions.values() if session.is_over),
        ]:
            self.end(session)
        if len(self._sessions) >= BROWSER_SESSIONS:
            self.end(next(iter(self._sessions.values())))
        session = BrowserSession(self._clock, login, identity, is_read_only)
        self._sessions[session.id] = session
        return session

    def end(self, session: BrowserSession) -> None:
        session.end()
        self._sessions.pop(session.id, None)

    def find(self, cookies: str | None, is_secure: bool) -> BrowserSession | None:
        """The one whose cookie is among these. They are read here and by nothing that reads more than is needed: other programs of the host
        may have set any, and Python's own reader takes a second for some."""
        name = self._cookie_name(is_secure)
        for part in (cookies or "")[:COOKIE_CHARACTERS].split(";"):
            key, _, value = part.strip().partition("=")
            session = self._sessions.get(value) if key == name and _VALUE.fullmatch(value) else None
            if session is not None and not session.is_over:
                self._sessions.move_to_end(session.id)
                return session
        return None

    def cookie(self, session: BrowserSession, is_secure: bool) -> str:
        """What the browser is told to keep; nothing, if the session has ended."""
        value, age_s = ("", 0) if session.is_over else (session.id, SESSION_S)
        secure = "; Secure" if is_secure else ""
        return f"{self._cookie_name(is_secure)}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age={age_s}{secure}"

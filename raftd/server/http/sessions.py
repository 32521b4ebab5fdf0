"""Who has signed in with a browser, which shows a cookie from then on: nothing else is sent with a stream of events.

The cookie is a random number that this process knows, for half a day at most. No script can read it, and no other site's page sends it
along. A change needs besides what only the page knows that was told it when it signed in: a page of another port of the same host is not
another site for browsers.
"""

from __future__ import annotations

import hmac
import secrets
from collections import OrderedDict
from http.cookies import CookieError, SimpleCookie
from typing import Any

from raftd.jobs.rights import Login

#: How long one is good (seconds), and how many there are at most in a node; the one that was used longest ago goes.
SESSION_S = 12 * 3600
BROWSER_SESSIONS = 1_000

#: The header with what only the page knows. Each of its calls has it, "" before it has signed in.
PAGE_HEADER = "Raftd-Page"


class BrowserSession:
    """`is_read_only`: whoever signed in wants to look only."""

    def __init__(self, login: Login, is_read_only: bool, until_s: float) -> None:
        self.id = secrets.token_urlsafe(32)
        self.secret = secrets.token_urlsafe(32)
        self.login = login
        self.is_read_only = is_read_only
        self.until_s = until_s
        self.is_over = False

    def is_from_page(self, shown: str | None) -> bool:
        """Whether a call with this in its header is from the page itself."""
        return shown is not None and hmac.compare_digest(shown.encode(), self.secret.encode())


class BrowserSessions:
    """Those of one node."""

    def __init__(self, clock: Any, node: int) -> None:
        self._clock = clock
        self._name = f"raftd-{node}"  # nodes on one host share the cookies of their pages
        self._sessions: OrderedDict[str, BrowserSession] = OrderedDict()  # that used last comes last

    def _cookie_name(self, is_secure: bool) -> str:
        """Browsers take the longer one over TLS alone, and for this host alone."""
        return f"__Host-{self._name}" if is_secure else self._name

    def begin(self, login: Login, is_read_only: bool) -> BrowserSession:
        session = BrowserSession(login, is_read_only, self._clock.seconds() + SESSION_S)
        self._sessions[session.id] = session
        if len(self._sessions) > BROWSER_SESSIONS:
            self.end(next(iter(self._sessions.values())))
        return session

    def end(self, session: BrowserSession) -> None:
        session.is_over = True
        self._sessions.pop(session.id, None)

    def is_good(self, session: BrowserSession) -> bool:
        """Whether it has not ended."""
        if not session.is_over and self._clock.seconds() >= session.until_s:
            self.end(session)
        return not session.is_over

    def find(self, cookies: str | None, is_secure: bool) -> BrowserSession | None:
        """The one whose cookie is among these."""
        try:
            morsel = SimpleCookie(cookies or "").get(self._cookie_name(is_secure))
        except CookieError:
            return None
        session = self._sessions.get(morsel.value) if morsel is not None else None
        if session is None or not self.is_good(session):
            return None
        self._sessions.move_to_end(session.id)
        return session

    def cookie(self, session: BrowserSession, is_secure: bool) -> str:
        """What the browser is told to keep; nothing, if the session has ended."""
        value, age_s = ("", 0) if session.is_over else (session.id, SESSION_S)
        secure = "; Secure" if is_secure else ""
        return f"{self._cookie_name(is_secure)}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age={age_s}{secure}"

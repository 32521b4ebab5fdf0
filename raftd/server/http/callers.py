"""Who calls over HTTP: shown by a token, a name and a password, or a certificate; before the path is looked at."""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import partial
from typing import Any

from raftd.jobs.rights import Login
from raftd.limits import HTTP_ANSWER_S
from raftd.node.loop import Node
from raftd.passwords import TOKEN_PREFIX
from raftd.server.access import is_good
from raftd.server.authentication import Authentication
from raftd.server.http.dashboard import is_page
from raftd.server.http.exchange import Exchange
from raftd.server.http.sessions import PAGE_HEADER, BrowserSession, BrowserSessions
from raftd.server.http.site import Call
from raftd.server.sockets import is_secure

#: What everybody may know: that the node lives, and what could be asked of it.
OPEN = (["healthz"], ["readyz"], ["v1", "openapi.json"], ["v1", "problems"])
#: What a page of any name may ask: it tells that a node lives.
_HEALTH = (["healthz"], ["readyz"])
#: Where a browser's cookie counts.
_BY_COOKIE = ("v1", "summary", "events")
_WAYS = 'Bearer realm="raftd", Basic realm="raftd", charset="UTF-8"'


class Callers:
    """In front of everything that calls may ask."""

    def __init__(self, node: Node, clock: Any, authentication: Authentication, sessions: BrowserSessions) -> None:
        self._node = node
        self._sessions = sessions
        self._clock = clock
        self._authentication = authentication

    def find(self, call: Call, then: Callable[[Call], None]) -> None:
        """`then` gets the call once it is known whose it is; it is answered if that is nobody, and somebody is needed."""
        machine = self._node.machine
        shown = call.header("Authorization")
        if call.has_foreign_name and call.parts not in _HEALTH:
            call.problem("unknown-name")
            return
        if not self._node.has_users or call.parts in OPEN or is_page(call.parts):
            if shown is not None and shown[:7].lower() == "bearer ":  # this node may be behind
                call.login = self._authentication.by_token("", shown[7:].strip())
            then(call)
            return
        session = self._session_of(call) if shown is None else None
        if session is not None:
            self._in_session(call, session, then)
            return
        if shown is None and _asks_who_he_is(call):
            call.login = self._authentication.by_certificate(call.transport)
            then(call)  # that is how a page finds out that somebody must sign in
            return
        known = call.known.get(shown or "")
        if known is not None and machine.access.user_of(known, machine.now_ms) is not None:
            self._is_known(call, known, then)
        elif shown is None:
            self._certified(call, then)
        else:
            self._look_at(call, shown, then)

    def _session_of(self, call: Call) -> BrowserSession | None:
        return self._sessions.find(call.header("Cookie"), is_secure(call.transport)) if call.parts[0] in _BY_COOKIE else None

    def _in_session(self, call: Call, session: BrowserSession, then: Callable[[Call], None]) -> None:
        """The rights of a user, and whether there is one, are looked at anew with each call."""
        machine = self._node.machine
        if call.method not in ("GET", "HEAD") and not session.is_from_page(call.header(PAGE_HEADER)):
            call.problem("cross-site")
        elif not session.is_of(machine.access, machine.now_ms):
            self._sessions.end(session)
            if _asks_who_he_is(call):
                then(call)
            else:
                _refuse(call, "Sign in again: what was shown is not good any more.")
        elif session not in call.known and not call.enters(session.login):
            call.problem("over-quota", "This user has as many connections to this node as his quota allows.")
        else:
            call.known[session] = session.login
            call.session = session
            self._is_known(call, session.login, then)

    def _is_known(self, call: Call, login: Login, then: Callable[[Call], None]) -> None:
        call.login = login
        then(call)

    def _certified(self, call: Call, then: Callable[[Call], None]) -> None:
        login = self._authentication.by_certificate(call.transport)
        if login is None:
            _refuse(call, "")
        else:
            self._confirm(call, login, "", then)

    def _look_at(self, call: Call, shown: str, then: Callable[[Call], None]) -> None:
        kind, _, value = shown.partition(" ")
        if kind.lower() == "bearer":
            self._with_token(call, shown, then, "", value.strip())
            return
        user, colon, password = _decoded(value).partition(":") if kind.lower() == "basic" else ("", "", "")
        if not colon:
            _refuse(call, "Authorization: expected Bearer TOKEN, or Basic with a name and a password")
        elif password.startswith(TOKEN_PREFIX):
            self._with_token(call, shown, then, user, password)
        elif not is_secure(call.transport):
            _refuse(call, "A password is taken over TLS only.")
        else:
            decided = partial(self._digested, call, shown, then)
            self._authentication.by_password(self._node.machine, user, password, call.host, lambda: call.is_open, decided)

    def _with_token(self, call: Call, shown: str, then: Callable[[Call], None], user: str, token: str) -> None:
        login = self._authentication.by_token(user, token)
        if login is None:
            self._decided(call, Login("token", user), shown, then, False)
        else:
            self._confirm(call, login, shown, then)

    def _digested(self, call: Call, shown: str, then: Callable[[Call], None], login: Login | None) -> None:
        if login is None:
            call.problem("too-many-passwords", headers={"Retry-After": "1"})
        else:
            self._confirm(call, login, shown, then)

    def _confirm(self, call: Call, login: Login, shown: str, then: Callable[[Call], None]) -> None:
        """This node may be behind: only the cluster can say that somebody is not known."""
        machine = self._node.machine
        if machine.access.user_of(login, machine.now_ms) is not None:
            self._decided(call, login, shown, then, True)
            return

        def late(may_have_left: bool) -> None:
            call.problem("not-committed", headers={"Retry-After": "1"})

        exchange = Exchange(self._node, self._clock, call, HTTP_ANSWER_S, late)

        def looked(answer: bool) -> None:
            exchange.close()
            self._decided(call, login, shown, then, answer)

        exchange.read(is_good(login), looked)

    def _decided(self, call: Call, login: Login, shown: str, then: Callable[[Call], None], is_good: bool) -> None:
        delay_s = self._authentication.decided(is_good, call.host, login.user) if login.how in ("token", "password") else 0.0
        if is_good and not call.enters(login):
            call.problem("over-quota", "This user has as many connections to this node as his quota allows.")
        elif is_good:
            call.known[shown] = login
            self._is_known(call, login, then)
        else:
            call.note_refusal(f"{login.how} of {login.user or 'nobody who is known'} is not good")
            self._clock.callLater(delay_s, call.problem, "not-authenticated", "", _ways(call))


def _asks_who_he_is(call: Call) -> bool:
    return call.parts == ["v1", "session"] and call.method in ("GET", "HEAD")


def _refuse(call: Call, detail: str) -> None:
    """Nothing is shown that could be good."""
    call.note_refusal()
    call.problem("not-authenticated", detail, _ways(call))


def _ways(call: Call) -> dict[str, str]:
    """How one may show who he is. A browser would ask its user itself where the page does."""
    return {"WWW-Authenticate": "Bearer" if call.header(PAGE_HEADER) is not None else _WAYS}


def _decoded(value: str) -> str:
    try:
        return base64.b64decode(value.strip(), validate=True).decode()
    except ValueError:  # of base64 and of UTF-8
        return ""

"""Who calls over HTTP: shown by a token, a name and a password, or a certificate; before the path is looked at."""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import partial
from typing import Any

from raftd.jobs.machine import StateMachine
from raftd.jobs.rights import Login
from raftd.limits import HTTP_ANSWER_S
from raftd.node.loop import Node
from raftd.passwords import TOKEN_PREFIX
from raftd.server.authentication import Authentication
from raftd.server.http.exchange import Exchange
from raftd.server.http.site import Call
from raftd.server.sockets import is_secure

#: What everybody may know: that the node lives, and what could be asked of it.
OPEN = (["healthz"], ["readyz"], ["v1", "openapi.json"], ["v1", "problems"], [""])
_WAYS = {"WWW-Authenticate": 'Bearer realm="raftd", Basic realm="raftd", charset="UTF-8"'}


class Callers:
    """In front of everything that calls may ask."""

    def __init__(self, node: Node, clock: Any, authentication: Authentication) -> None:
        self._node = node
        self._clock = clock
        self._authentication = authentication

    def find(self, call: Call, then: Callable[[Call], None]) -> None:
        """`then` gets the call once it is known whose it is; it is answered if that is nobody, and somebody is needed."""
        machine = self._node.machine
        if not machine.access.is_on or call.parts in OPEN:
            then(call)
            return
        shown = call.header("Authorization")
        known = call.known.get(shown or "")
        if known is not None and machine.access.user_of(known, machine.now_ms) is not None:
            self._is_known(call, known, then)
        elif shown is None:
            self._certified(call, then)
        else:
            self._look_at(call, shown, then)

    def _is_known(self, call: Call, login: Login, then: Callable[[Call], None]) -> None:
        call.login = login
        then(call)

    def _certified(self, call: Call, then: Callable[[Call], None]) -> None:
        login = self._authentication.by_certificate(call.transport)
        if login is None:
            call.problem("not-authenticated", headers=_WAYS)
        else:
            self._confirm(call, login, "", then)

    def _look_at(self, call: Call, shown: str, then: Callable[[Call], None]) -> None:
        machine, decided = self._node.machine, partial(self._shown, call, shown, then)
        kind, _, value = shown.partition(" ")
        if kind.lower() == "bearer":
            self._authentication.by_token(machine, "", value.strip(), call.host, decided)
            return
        user, colon, password = _decoded(value).partition(":") if kind.lower() == "basic" else ("", "", "")
        if not colon:
            call.problem("not-authenticated", "Authorization: expected Bearer TOKEN, or Basic with a name and a password", _WAYS)
        elif password.startswith(TOKEN_PREFIX):
            self._authentication.by_token(machine, user, password, call.host, decided)
        elif not is_secure(call.transport):
            call.problem("not-authenticated", "A password is taken over TLS only.", _WAYS)
        else:
            self._authentication.by_password(machine, user, password, call.host, decided)

    def _shown(self, call: Call, shown: str, then: Callable[[Call], None], login: Login | None) -> None:
        if login is None:
            call.problem("not-authenticated", "Too many attempts have failed: wait a while.", {**_WAYS, "Retry-After": "10"})
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

        def looked(is_good: bool) -> None:
            exchange.close()
            self._decided(call, login, shown, then, is_good)

        def look(machine: StateMachine, now_ms: int, node: int, session: int) -> bool:
            return machine.access.user_of(login, machine.now_ms) is not None

        exchange.read(look, looked)

    def _decided(self, call: Call, login: Login, shown: str, then: Callable[[Call], None], is_good: bool) -> None:
        if login.how in ("token", "password"):
            self._authentication.decided(is_good, call.host, login.user)
        if is_good and not call.enters(login):
            call.problem("over-quota", "This user has as many connections to this node as his quota allows.")
        elif is_good:
            call.known[shown] = login
            self._is_known(call, login, then)
        else:
            call.problem("not-authenticated", headers=_WAYS)


def _decoded(value: str) -> str:
    try:
        return base64.b64decode(value.strip(), validate=True).decode()
    except ValueError:  # of base64 and of UTF-8
        return ""

"""`/v1/session`: who one is here, and signing in and out with a browser (`sessions.py`)."""

from __future__ import annotations

from raftd.config import Dashboard
from raftd.jobs.rights import Right
from raftd.node.loop import Node
from raftd.server.access import sees_everything
from raftd.server.http import shapes as s
from raftd.server.http.routes import Ask, BadRequest, Needs, route
from raftd.server.http.sessions import BrowserSessions
from raftd.server.http.users import grant_view
from raftd.server.sockets import is_secure


class SessionApi:
    def __init__(self, node: Node, sessions: BrowserSessions, dashboard: Dashboard) -> None:
        self._node = node
        self._sessions = sessions
        self._dashboard = dashboard

    @route("GET", "/v1/session", Needs.NOTHING, s.SessionView)
    def _show_session(self, ask: Ask) -> None:
        """Tell who one is, and what he may do."""
        ask.call.say(200, self._view(ask))

    def _view(self, ask: Ask, secret: str = "") -> s.SessionView:
        """`secret` is told once: a cookie may get into other hands, those of a server on another port of this host."""
        node, call, session = self._node, ask.call, ask.call.session
        access, now_ms = node.machine.access, node.machine.now_ms
        name = access.user_of(call.login, now_ms) if node.has_users else None
        user = access.users.get(name or "")
        is_known = name is not None or not node.has_users
        return s.SessionView(
            cluster=node.config.cluster,
            node=node.config.node,
            has_users=node.has_users,
            user=name,
            sees_all=is_known and sees_everything(node, call.login),
            operates=not node.has_users or access.may_everywhere(call.login, Right.OPERATE, now_ms),
            grants=[grant_view(grant) for grant in user.grants] if user is not None else [],
            is_read_only=self._dashboard is Dashboard.READ_ONLY or (session is not None and session.is_read_only),
            takes_passwords=is_secure(call.transport),
            is_browser=session is not None,
            secret=secret,
        )

    @route(
        *("POST", "/v1/session", Needs.USER, s.SessionView, 201),
        body=s.NewSession,
        body_is_optional=True,
        is_of_session=True,
        problems=("no-users",),
    )
    def _sign_in(self, ask: Ask) -> None:
        """Sign in with a browser: with this call one shows who he is as with any other, and with the next ones by a cookie."""
        call = ask.call
        if call.login is None or not self._node.has_users:
            call.problem("no-users")
            return
        if call.session is not None:  # it would not end, and could be made to do more than it was begun for
            raise BadRequest("Authorization: show a token or a password to sign in; a cookie is none")
        before = self._sessions.find(call.header("Cookie"), is_secure(call.transport))
        if before is not None:
            self._sessions.end(before)
        access, now_ms = self._node.machine.access, self._node.machine.now_ms
        session = call.session = self._sessions.begin(call.login, access.identity(call.login, now_ms), ask.body.is_read_only)
        call.say(201, self._view(ask, session.secret), {"Set-Cookie": self._sessions.cookie(session, is_secure(call.transport))})

    @route("DELETE", "/v1/session", Needs.USER, None, 204, is_of_session=True)
    def _sign_out(self, ask: Ask) -> None:
        """Sign out with a browser."""
        call, session = ask.call, ask.call.session
        if session is None:
            call.answer(204, b"")
        else:
            self._sessions.end(session)
            call.answer(204, b"", headers={"Set-Cookie": self._sessions.cookie(session, is_secure(call.transport))})

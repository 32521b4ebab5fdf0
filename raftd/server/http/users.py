"""`/v1/users` and `/v1/audit`: who may do what, and who did what. They are changed by `raftd user`, `token` and `grant` alone."""

from __future__ import annotations

from typing import Annotated

import msgspec

from raftd.jobs.machine import StateMachine
from raftd.jobs.rights import Grant
from raftd.server.client_reads import RECORDS_LISTED, USERS_LISTED, audit, records_kept, users
from raftd.server.http import shapes as s
from raftd.server.http.base import QueueApi
from raftd.server.http.routes import Ask, Needs, route
from raftd.wire import client as w


class _Page(msgspec.Struct, forbid_unknown_fields=True):
    after: Annotated[str, msgspec.Meta(max_length=250)] = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=USERS_LISTED)] = USERS_LISTED


class _Before(msgspec.Struct, forbid_unknown_fields=True):
    before: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)] = 0
    limit: Annotated[int, msgspec.Meta(ge=1, le=RECORDS_LISTED)] = 100


def grant_view(grant: Grant) -> s.GrantView:
    return s.GrantView(grant.right.value, grant.tubes, grant.is_denied)


def _user_view(user: w.UserInfo) -> s.UserView:
    tokens = [
        s.TokenView(token.name, token.age_ms / 1000, token.left_ms / 1000 if token.left_ms is not None else None) for token in user.tokens
    ]
    quota = user.quota
    return s.UserView(
        user.name,
        user.has_password,
        [grant_view(grant) for grant in user.grants],
        tokens,
        s.QuotaView(quota.jobs_per_s, quota.bytes_per_s, quota.connections, quota.tubes),
    )


class UsersApi(QueueApi):
    @route("GET", "/v1/users", Needs.OPERATE, s.UserList, query=_Page, problems=("not-committed",))
    def _list_users(self, ask: Ask) -> None:
        """List users and their rights."""
        page: _Page = ask.query

        def query(machine: StateMachine, now_ms: int) -> s.UserList:
            found = users(machine, now_ms, "", page.after, page.limit)
            return s.UserList([_user_view(user) for user in found.users], found.has_more)

        self._read(ask, query, lambda found: ask.call.say(200, found), lambda machine: len(machine.access.users))

    @route("GET", "/v1/audit", Needs.OPERATE, s.RecordList, query=_Before, problems=("not-committed",))
    def _list_records(self, ask: Ask) -> None:
        """List what was done to users, rights, members and tubes, the newest first."""
        page: _Before = ask.query

        def query(machine: StateMachine, now_ms: int) -> s.RecordList:
            found = audit(machine, now_ms, page.before, page.limit)
            records = [
                s.RecordView(one.number, one.index, s.moment(now_ms - one.ago_ms), one.user, one.node, one.what, one.to)
                for one in found.records
            ]
            return s.RecordList(records, found.has_more)

        self._read(ask, query, lambda found: ask.call.say(200, found), records_kept)

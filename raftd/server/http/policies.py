"""`/v1/tubes/{tube}/policy`: what tubes do by themselves; and another chance for what is dead (docs/queues.md)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import partial
from heapq import nsmallest
from typing import Annotated

import msgspec

from raftd.jobs import asks, replay
from raftd.jobs import commands as c
from raftd.jobs import replies as r
from raftd.jobs.machine import StateMachine
from raftd.jobs.policy import Policy, PolicyChange
from raftd.limits import COUNTED_JOBS, POLICIES, SEARCH_CHARACTERS
from raftd.server.access import looked_at
from raftd.server.http import shapes as s
from raftd.server.http.base import LATE, Page, QueueApi, Version
from raftd.server.http.routes import Ask, BadRequest, Needs, route
from raftd.wire.policy import PolicyDocument, TubeName, document_of, policy_of

_POLICY_PROBLEMS = ("bad-policy", "policy-changed", "older-node", *LATE)


_Moment = Annotated[str, msgspec.Meta(extra_json_schema={"format": "date-time"})]


class _Dead(msgspec.Struct, forbid_unknown_fields=True):
    error: Annotated[str, msgspec.Meta(max_length=SEARCH_CHARACTERS)] = ""
    origin: TubeName | None = None
    from_: _Moment | None = msgspec.field(default=None, name="from")
    before: _Moment | None = None
    up_to: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)] = 0
    after: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)] = 0


def _moment_ms(given: str | None, name: str) -> int:
    """0 if it is not given. Raises BadRequest."""
    try:
        return s.moment_ms(msgspec.convert(given, Annotated[datetime, msgspec.Meta(tz=True)])) if given is not None else 0
    except msgspec.ValidationError as error:
        raise BadRequest(f"{name}: {error}") from None


class PolicyApi(QueueApi):
    """Policies."""

    @route("GET", "/v1/policies", Needs.USER, s.PolicyList, query=Page, problems=("not-committed",))
    def _list_policies(self, ask: Ask) -> None:
        """List policies by tube."""
        page = ask.query

        def query(machine: StateMachine, now_ms: int) -> list[s.PolicyView]:
            known = machine.policies.tubes
            names = nsmallest(page.limit + 1, (name for name in ask.seen(machine, known) if name > page.after))
            return [view for name in names if (view := s.policy_view(known[name])) is not None]

        def answered(found: list[s.PolicyView]) -> None:
            ask.call.say(200, s.PolicyList(found[: page.limit], len(found) > page.limit))

        self._read(ask, query, answered, lambda machine: looked_at(machine, len(machine.policies.tubes)))

    @route("GET", "/v1/tubes/{tube}/policy", Needs.READ, s.PolicyView, problems=("no-policy", "not-committed"))
    def _show_policy(self, ask: Ask) -> None:
        """Show the policy of a tube."""
        name = ask.parts["tube"]

        def query(machine: StateMachine, now_ms: int) -> s.PolicyView | None:
            tube = machine.policies.tubes.get(name)
            return s.policy_view(tube) if tube is not None else None

        self._read(ask, query, lambda found: ask.call.say(200, found) if found is not None else ask.call.problem("no-policy"))

    @route("PUT", "/v1/tubes/{tube}/policy", Needs.USER, s.PolicyView, query=Version, body=PolicyDocument, problems=_POLICY_PROBLEMS)
    def _set_policy(self, ask: Ask) -> None:
        """Set the policy of a tube: it takes the place of the one before."""
        try:
            policy = policy_of(ask.body)
        except ValueError as error:
            ask.call.problem("bad-policy", str(error))
            return
        view = partial(s.PolicyView, ask.parts["tube"], policy=document_of(policy))
        self._change_policy(ask, policy, lambda version: ask.call.say(200, view(version=version)))

    @route("DELETE", "/v1/tubes/{tube}/policy", Needs.USER, None, 204, query=Version, problems=("policy-changed", "older-node", *LATE))
    def _unset_policy(self, ask: Ask) -> None:
        """Take the policy of a tube away."""
        self._change_policy(ask, None, lambda version: ask.call.answer(204, b""))

    def _change_policy(self, ask: Ask, policy: Policy | None, then: Callable[[int], None]) -> None:
        if not self._node.knows_policies:
            ask.call.problem("older-node")
            return
        change = PolicyChange(ask.parts["tube"], policy, ask.query.wanted)

        def answered(reply: r.PoliciesSet | r.PolicyRefused) -> None:
            if isinstance(reply, r.PoliciesSet):
                then(reply.version)
            elif reply.why == "conflict":
                has = f"It has version {reply.version}." if reply.version else "The tube has none."
                ask.call.problem("policy-changed", has)
            elif reply.why == "circle":
                ask.call.problem("bad-policy", "dead_letter: dead jobs would go in a circle, or through too many tubes")
            else:
                ask.call.problem("bad-policy", f"There are as many policies as there may be ({POLICIES:,})")

        self._command(ask, lambda session: c.SetPolicies(session, [change]), answered)

    @route("GET", "/v1/tubes/{tube}/dead", Needs.READ, s.DeadCount, query=_Dead, problems=("not-committed",))
    def _count_dead(self, ask: Ask) -> None:
        """Count dead letters and buried jobs."""
        wanted: _Dead = ask.query
        from_ms, before_ms = _moment_ms(wanted.from_, "from"), _moment_ms(wanted.before, "before")
        which = asks.Selection(ask.parts["tube"], wanted.error, wanted.origin or "", from_ms, before_ms, wanted.up_to)

        def query(machine: StateMachine, now_ms: int) -> s.DeadCount:
            # what comes later is not meant: log time goes on from where it stands, whatever clocks say
            before = min(which.before_ms or now_ms, max(1, machine.now_ms))
            whole = msgspec.structs.replace(which, before_ms=before, up_to=which.up_to or max(1, machine.last_id))
            found = replay.count(machine, whole, wanted.after, COUNTED_JOBS)
            return s.DeadCount(found.done, found.skipped, s.moment(whole.before_ms), whole.up_to, found.after, not found.is_done)

        self._read(ask, query, lambda found: ask.call.say(200, found), lambda machine: min(len(machine.jobs), COUNTED_JOBS))

    @route("POST", "/v1/tubes/{tube}/replay", Needs.USER, s.Replayed, body=s.Replay, body_is_optional=True, problems=("older-node", *LATE))
    def _replay(self, ask: Ask) -> None:
        """Move dead letters and buried jobs, or kick or delete them: one step."""
        if not self._node.knows_policies:
            ask.call.problem("older-node")
            return
        wanted: s.Replay = ask.body
        from_ms, before_ms = (s.moment_ms(one) if one is not None else 0 for one in (wanted.from_, wanted.before))
        which = asks.Selection(ask.parts["tube"], wanted.error, wanted.origin or "", from_ms, before_ms, wanted.up_to)
        what = asks.Replay(which, wanted.action, wanted.to or "", wanted.after)

        def answered(reply: r.Replayed) -> None:
            ask.call.say(200, s.Replayed(reply.done, reply.skipped, reply.after, not reply.is_done))

        self._command(ask, lambda session: c.Replay(session, what), answered)

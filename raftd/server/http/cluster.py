"""`/v1/cluster`: who is a member, who leads, and changing both. What `raftd member` and `raftd leader transfer` ask, over HTTP."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from raftd.jobs import commands as c
from raftd.limits import HTTP_ANSWER_S
from raftd.node.loop import Node
from raftd.node.series import FIELDS, History
from raftd.raft.messages import AddMember, AdminRequest, MemberAddress, PromoteMember, RemoveMember, TransferLead
from raftd.raft.outcomes import AdminResult, Outcome
from raftd.server.access import may_operate
from raftd.server.http import shapes as s
from raftd.server.http.exchange import Exchange
from raftd.server.http.routes import Ask, Needs, route

_PROBLEMS = ("refused", "outcome-unknown")


def cluster_view(node: Node) -> s.Cluster:
    """As this node sees it."""
    raft = node.raft
    latest = raft.membership.latest
    states = {
        **dict.fromkeys(latest.learners, "learner"),
        **dict.fromkeys(latest.outgoing, "leaving"),
        **dict.fromkeys(latest.voters, "voter"),
    }
    members = []
    for member, state in sorted(states.items()):
        place = latest.addresses.get(member)
        where = (place.host, place.peer, place.client or None) if place is not None else (None, None, None)
        members.append(s.MemberView(member, state, *where))
    is_settled = raft.membership.index <= raft.log.commit_index and not latest.outgoing
    role = str(node.status()["role"])
    return s.Cluster(node.config.cluster, node.config.node, role, raft.term, raft.leader, is_settled, members, sorted(latest.removed))


class _Span(msgspec.Struct, forbid_unknown_fields=True):
    """A quarter of an hour, three hours, a day."""

    span: Literal["15m", "3h", "1d"] = "15m"


_SPANS = ("15m", "3h", "1d")


class ClusterApi:
    def __init__(self, node: Node, clock: Any, history: History) -> None:
        self._node = node
        self._history = history
        self._clock = clock

    @route("GET", "/v1/cluster", Needs.OVERVIEW, s.Cluster)
    def _show(self, ask: Ask) -> None:
        """Show the cluster."""
        ask.call.say(200, self._view())

    @route("GET", "/v1/series", Needs.OVERVIEW, s.SeriesView, query=_Span)
    def _show_series(self, ask: Ask) -> None:
        """Show rates, counts and latencies over time."""
        series = self._history.series[_SPANS.index(ask.query.span)]
        ask.call.say(200, s.SeriesView(series.step_s, **{name: series.of(name) for name in FIELDS}))

    def _view(self) -> s.Cluster:
        return cluster_view(self._node)

    def _ask(self, ask: Ask, request: AdminRequest, what: str, node: int) -> None:
        """Only of who may, as the cluster says; and the audit log has it before it is done."""

        def late(may_have_left: bool) -> None:
            ask.call.problem("not-committed", headers={"Retry-After": "1"})

        exchange = Exchange(self._node, self._clock, ask.call, HTTP_ANSWER_S, late)

        def looked(is_allowed: bool) -> None:
            if not is_allowed:
                ask.call.refused()
                exchange.close()
            elif not self._node.knows_access:  # there is nobody who would have to say who he is
                decided(None)
            else:
                exchange.ask(c.Operate(exchange.number, what, f"node {node}"), decided)

        def decided(reply: object) -> None:
            exchange.close()
            self._carry_out(ask, request)

        exchange.read(may_operate(ask.call.login), looked)

    def _carry_out(self, ask: Ask, request: AdminRequest) -> None:
        late = self._clock.callLater(
            HTTP_ANSWER_S,
            ask.call.problem,
            "outcome-unknown",
            "The cluster has not answered in time. GET /v1/cluster shows what became of it.",
        )

        def answered(result: AdminResult) -> None:
            if late.active():
                late.cancel()
            if result.is_done:
                ask.call.say(200, self._view())
            else:
                ask.call.problem("outcome-unknown" if result.outcome is Outcome.UNKNOWN else "refused", result.text)

        self._node.administer(request, answered)

    @route("POST", "/v1/cluster/transfer", Needs.OPERATE, s.Cluster, body=s.Transfer, problems=_PROBLEMS)
    def _transfer(self, ask: Ask) -> None:
        """Transfer the lead to another node."""
        self._ask(ask, TransferLead(ask.body.node), "transfer-lead", ask.body.node)

    @route("POST", "/v1/cluster/members", Needs.OPERATE, s.Cluster, body=s.NewMember, problems=_PROBLEMS)
    def _add(self, ask: Ask) -> None:
        """Add a member, as a learner."""
        new = ask.body
        self._ask(ask, AddMember(new.node, MemberAddress(new.host, new.peer, new.client)), "add-member", new.node)

    @route("POST", "/v1/cluster/members/{node}/promote", Needs.OPERATE, s.Cluster, problems=_PROBLEMS)
    def _promote(self, ask: Ask) -> None:
        """Promote a learner that has caught up: it votes."""
        self._ask(ask, PromoteMember(ask.parts["node"]), "promote-member", ask.parts["node"])

    @route("DELETE", "/v1/cluster/members/{node}", Needs.OPERATE, s.Cluster, problems=_PROBLEMS)
    def _remove(self, ask: Ask) -> None:
        """Remove a member, for good."""
        self._ask(ask, RemoveMember(ask.parts["node"]), "remove-member", ask.parts["node"])

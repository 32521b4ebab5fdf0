"""`/summary`: how the queue and its cluster are, at most once a second, as server-sent events; what the dashboard shows.

One stream is all that a page needs: browsers allow few connections to a host, and an event for each job would drown it. It tells of the
tubes that the page shows, and no others. While nobody listens nothing of this costs anything.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Annotated, Any

import msgspec
from twisted.internet import task
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from raftd.jobs.machine import StateMachine
from raftd.jobs.model import Tube
from raftd.jobs.rights import Right
from raftd.node.loop import Node
from raftd.node.series import SAMPLE_S
from raftd.server.access import sees_everything
from raftd.server.http import shapes as s
from raftd.server.http.cluster import cluster_view
from raftd.server.http.routes import BadRequest, read_query
from raftd.server.http.site import Call, Stream
from raftd.server.http.stream import EVENT_STREAM, encode_event, may_begin, may_listen
from raftd.server.http.tables import TubePage, TubeTable, check_place
from raftd.server.reporter import EventReporter
from raftd.wire.peer import TellStatus
from raftd.wire.policy import TubeName

#: How often a page is told at most, and how often though nothing was applied; and how often is looked whether something was (seconds).
SUMMARY_S = 1.0
QUIET_S = 2.0
_LOOK_S = 0.125
#: Pages of one node.
SUMMARY_STREAMS = 100
STREAMS_PER_USER = 20
#: No more than this share of the time is spent on one page.
PAGE_SHARE = 0.02
#: Changes of roles that are remembered.
ROLES_KEPT = 20
#: A member that has not answered for so long (seconds) is shown as not heard.
SILENT_S = 3.0
#: A page that takes nothing for so long (seconds) is given up.
STUCK_S = 30.0


class _View(TubePage, forbid_unknown_fields=True):
    """What the page shows: tubes as in `/v1/tubes`, fewer; or none, and one `tube`."""

    limit: Annotated[int, msgspec.Meta(ge=0, le=200)] = 50
    tube: TubeName | None = None


class NodeRow(msgspec.Struct):
    """A member, as it says itself; `is_heard`: it has answered this node lately. `match_index`: how far the leader knows it to have the
    log."""

    node: int
    state: str
    host: str | None
    http: str
    is_self: bool
    is_heard: bool
    match_index: int | None
    status: dict[str, Any] | None


class RoleView(msgspec.Struct):
    """What this node became, or whom it followed, and why; by its wall clock."""

    time: str
    role: str
    term: int
    leader: int
    reason: str


class Totals(msgspec.Struct):
    urgent: int
    ready: int
    reserved: int
    delayed: int
    buried: int
    dead: int
    total_jobs: int
    tubes: int
    schedules: int
    is_out_of_space: bool


class TubeRow(msgspec.Struct):
    """`points`: jobs that came, and that went, in each of the last samples; null: as told before."""

    tube: s.TubeView
    points: list[tuple[int, int]] | None


class SummaryView(msgspec.Struct):
    """`queue`, `rates`, `nodes` and `roles` are for those alone who may see all of the queue. `rates`: of the newest sample. `pages`: where
    the HTTP listeners of the other members are, by node."""

    now: str
    node: int
    role: str
    term: int
    leader: int
    cluster: s.Cluster | None
    nodes: list[NodeRow]
    roles: list[RoleView]
    pages: dict[int, str]
    queue: Totals | None
    rates: dict[str, float | None]
    sample_s: int
    tubes: list[TubeRow]
    after: str
    more: bool
    tube: TubeRow | None


class Summary:
    """All who look at this node. `http_address`: where another's HTTP listener is, as the configuration has it."""

    def __init__(
        self,
        node: Node,
        clock: Any,
        table: TubeTable,
        reporter: EventReporter,
        http_address: Callable[[int], str | None],
    ) -> None:
        self._node = node
        self._http_address = http_address
        self._clock = clock
        self._table = table
        self._looking: dict[Looking, None] = {}
        self._due: deque[Looking] = deque()
        self._roles: deque[RoleView] = deque(maxlen=ROLES_KEPT)
        reporter.listeners.append(self._note)
        self._beat = task.LoopingCall(self._look)
        self._beat.clock = clock
        self._told_s = 0.0  # when the last round began
        self._told: tuple[int, int] | None = None  # how the node was then

    def handles(self, call: Call) -> bool:
        if call.parts != ["summary"]:
            return False
        if may_begin(call, len(self._looking) >= SUMMARY_STREAMS or self._of_same_user(call) >= STREAMS_PER_USER):
            self._begin(call)
        return True

    def _begin(self, call: Call) -> None:
        try:
            view = read_query(call.query, _View)
            check_place(view)
        except BadRequest as wrong:
            call.problem(wrong.problem, str(wrong))
            return
        looking = Looking(self, call, view)
        stream = call.stream(EVENT_STREAM, looking)
        if stream is None:
            return
        looking.stream = stream
        self._looking[looking] = None
        stream.write(b"retry: 1000\n\n")
        if not self._beat.running:
            self._told = None
            self._beat.start(_LOOK_S)
        elif looking not in self._due:
            self._tell_soon([looking])

    def _of_same_user(self, call: Call) -> int:
        """How many pages he has here already; where nobody has to say who he is, that says nothing."""
        access, now_ms = self._node.machine.access, self._node.machine.now_ms
        name = access.user_of(call.login, now_ms)
        return sum(access.user_of(one.login, now_ms) == name for one in self._looking) if name is not None else 0

    def forget(self, looking: Looking) -> None:
        self._looking.pop(looking, None)
        if not self._looking and self._beat.running:
            self._beat.stop()

    def _note(self, event: str, fields: dict[str, object]) -> None:
        if event == "role":
            told = {name: fields[name] for name in ("role", "term", "leader", "reason")}
            self._roles.append(msgspec.convert({"time": s.moment(s.ms(time.time())), **told}, RoleView))
            self._tell_soon(self._looking)

    # -- a round: one page in each turn of the reactor ------------------------------------------

    def _look(self) -> None:
        now_s, raft = self._clock.seconds(), self._node.raft
        state = (self._node.machine.applied_index, raft.leader)
        since_s = now_s - self._told_s
        if self._told is not None and since_s < (SUMMARY_S if state != self._told else QUIET_S):
            return
        self._told_s, self._told = now_s, state
        self._node.ask_statuses()
        self._tell_soon(self._looking)

    def _tell_soon(self, looking: Iterable[Looking]) -> None:
        was_idle = not self._due
        waiting = set(self._due)
        self._due.extend(one for one in looking if one not in waiting)
        if was_idle and self._due:
            self._clock.callLater(0, self._tell_next)

    def _tell_next(self) -> None:
        looking = self._due.popleft()
        if self._due:
            self._clock.callLater(0, self._tell_next)
        if looking in self._looking and looking.view.limit:
            self._table.refresh(self._node.machine, looking.view.sort, partial(self._tell, looking))
        else:
            self._tell(looking)

    def _tell(self, looking: Looking) -> None:
        wait_s = looking.not_before_s - self._clock.seconds()
        if looking not in self._looking or looking.is_put_off:
            return
        if wait_s > 0:
            looking.is_put_off = True
            self._clock.callLater(wait_s, self._tell_at_last, looking)
        else:
            looking.tell(self._node, self._clock.seconds())

    def _tell_at_last(self, looking: Looking) -> None:
        looking.is_put_off = False
        if looking in self._looking:
            looking.tell(self._node, self._clock.seconds())

    # -- what is told ---------------------------------------------------------------------------

    def describe(self, looking: Looking) -> SummaryView:
        """What this page shows, and its user may see."""
        node, machine, view = self._node, self._node.machine, looking.view
        now_ms = node.raft.clock_ms() or machine.now_ms  # of the last entry, which may be long ago
        sees_all = sees_everything(node, looking.login)
        is_new = looking.samples != self._table.history.samples
        looking.samples = self._table.history.samples
        row = partial(self._row, machine, is_new, now_ms)
        tubes: list[Tube] = []
        after, more = "", False
        if view.limit:
            his = machine.access.tubes(looking.login, Right.READ, machine.now_ms) if machine.access.is_on else None
            tubes, after, more = self._table.recent_page(machine, view, his)
        own = machine.tubes.get(view.tube or "")
        if own is not None and not machine.access.allows(looking.login, Right.READ, own.name, machine.now_ms):
            own = None
        nodes = self._nodes()
        rates = {name: value if value == value else None for name, value in self._table.history.newest.items()}
        return SummaryView(
            now=s.moment(now_ms),
            node=node.config.node,
            role=str(node.status()["role"]),
            term=node.raft.term,
            leader=node.raft.leader,
            cluster=cluster_view(node) if sees_all else None,
            nodes=nodes if sees_all else [],
            roles=list(self._roles) if sees_all else [],
            pages={row.node: row.http for row in nodes if row.http and not row.is_self},
            queue=self._totals() if sees_all else None,
            rates=rates if sees_all else {},
            sample_s=SAMPLE_S,
            tubes=[row(tube) for tube in tubes],
            after=after,
            more=more,
            tube=row(own) if own is not None else None,
        )

    def _row(self, machine: StateMachine, is_new: bool, now_ms: int, tube: Tube) -> TubeRow:
        view = self._table.view(machine, tube, now_ms)
        return TubeRow(view, self._table.history.points(tube.name) if is_new else None)

    def _nodes(self) -> list[NodeRow]:
        node, raft = self._node, self._node.raft
        known: dict[int, TellStatus] = {}
        if node.statuses.own is not None:
            known[node.config.node] = node.statuses.own()
        for member, heard in node.statuses.heard.items():
            if raft.now_ms - heard.at_ms < SILENT_S * 1000:
                known[member] = heard.status
        leader = known.get(raft.leader)
        rows = []
        for place in cluster_view(node).members:
            status = known.get(place.node)
            matches = leader.match.get(place.node) if leader is not None else None
            told = msgspec.structs.asdict(status) if status is not None else None
            http = (status.http if status is not None else "") or self._http_address(place.node) or ""
            rows.append(NodeRow(place.node, place.state, place.host, http, place.node == node.config.node, told is not None, matches, told))
        return rows

    def _totals(self) -> Totals:
        machine, counts = self._node.machine, self._node.machine.counts
        return Totals(
            *(counts.urgent, counts.ready, counts.reserved, counts.delayed, counts.buried),
            *(machine.policies.dead, machine.total_jobs, len(machine.tubes), len(machine.schedules.by_name), machine.space_is_scarce),
        )


@implementer(IPushProducer)
class Looking:
    """One page."""

    stream: Stream

    def __init__(self, summary: Summary, call: Call, view: _View) -> None:
        self.view = view
        self.login = call.login
        #: As many as there were when it was told last.
        self.samples = -1
        self._session = call.session
        self._summary = summary
        self._is_paused = False
        self._told_s = 0.0
        #: It is not told earlier, for it costs much; and whether that is why it waits.
        self.not_before_s = 0.0
        self.is_put_off = False

    def tell(self, node: Node, clock_s: float) -> None:
        """How it is now. A page that does not keep up misses it; who may not look any more is told that, and nothing else."""
        if self._is_paused:
            if clock_s - self._told_s > STUCK_S:
                self.stream.abort()
            return
        self._told_s = clock_s
        if not may_listen(node, self.login, self._session):
            self.stream.write(encode_event("over", {}))
            self._summary.forget(self)
            self.stream.finish()
        else:
            began_s = time.perf_counter()
            self.stream.write(encode_event("summary", self._summary.describe(self)))
            self.not_before_s = clock_s + (time.perf_counter() - began_s) / PAGE_SHARE

    def pauseProducing(self) -> None:
        """It does not keep up."""
        self._is_paused = True

    def resumeProducing(self) -> None:
        self._is_paused = False

    def stopProducing(self) -> None:
        """It has gone."""
        self._summary.forget(self)

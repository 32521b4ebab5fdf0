"""`/events`: what happens, as server-sent events. What happens to jobs has the place in the log as its id, the same on every node, so
a client that returns with Last-Event-ID, to any node, misses nothing and gets nothing twice, as far as the node remembers.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Any, Literal

import msgspec
from twisted.internet import task
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from raftd.jobs.rights import Login, Right
from raftd.node.job_events import JobEvent
from raftd.node.loop import Node
from raftd.server.access import sees_everything
from raftd.server.http import shapes as s
from raftd.server.http.routes import BadRequest, read_query
from raftd.server.http.sessions import BrowserSession
from raftd.server.http.site import Call, Stream
from raftd.server.reporter import EventReporter
from raftd.wire.policy import TubeName

#: Clients that listen to events of one node; how much they are told in one turn, together; and how often they hear that the node is
#: still there, and must have read something (seconds).
EVENT_STREAMS = 256
EVENTS_PER_TURN = 4_000
EVENT_BEAT_S = 10.0

#: What only those hear who may see the whole of the queue.
_FOR_OVERVIEW = frozenset({"members", "note", "gateway-closed", "gateway-silent"})

EVENT_STREAM = "text/event-stream; charset=utf-8"
_PLACE = re.compile(r"([0-9]{1,18})\.([0-9]{1,9})")
_Place = tuple[int, int]


class _Wanted(msgspec.Struct, forbid_unknown_fields=True):
    """Nothing: everything."""

    tube: list[TubeName] = []
    kind: list[Literal["job", "role", "members", "note", "gateway-closed", "gateway-silent"]] = []
    last_event_id: str | None = None


class Events:
    """All who listen at this node."""

    def __init__(self, node: Node, clock: Any, reporter: EventReporter) -> None:
        self._node = node
        self._clock = clock
        self._listening: dict[Listening, None] = {}
        self._behind: deque[Listening] = deque()  # those that have not had all there is, in turns
        self._is_due = False
        self._encoded: dict[int, bytes] = {}  # of the newest, by position: many listen to the same
        self._wait()
        reporter.listeners.append(self._tell_all)
        self._beat = task.LoopingCall(self._poll)
        self._beat.clock = clock
        self._beat.start(EVENT_BEAT_S, now=False)

    def handles(self, call: Call) -> bool:
        if call.parts != ["events"]:
            return False
        if may_begin(call, len(self._listening) >= EVENT_STREAMS):
            self._begin(call)
        return True

    def _begin(self, call: Call) -> None:
        recent = self._node.job_events
        try:
            wanted = read_query(call.query, _Wanted)
            named = call.header("Last-Event-ID") or wanted.last_event_id
            after = _place(named) if named else None
        except BadRequest as wrong:
            call.problem(wrong.problem, str(wrong))
            return
        position = recent.end if after is None else recent.after(after)
        listening = Listening(self, self._node, wanted, position, after or (0, 0), call)
        if after is not None and after[0] > self._node.machine.applied_index:
            self._doubt(listening)
        stream = call.stream(EVENT_STREAM, listening)
        if stream is None:
            return
        listening.stream = stream
        self._listening[listening] = None
        stream.write(b"retry: 1000\n\n")
        raft = self._node.raft
        role = str(self._node.status()["role"])
        listening.tell("role", {"node": self._node.config.node, "role": role, "term": raft.term, "leader": raft.leader, "reason": ""})
        if after is not None and recent.misses(after):
            listening.miss(recent.known_from)
        self.resume(listening)

    def _doubt(self, listening: Listening) -> None:
        """Either this node is behind, or the client has listened to another log, one that was before a restore. When the cluster has said
        how far its log is, this node has applied that."""
        session = self._node.open_session(lambda: None)

        def known(result: object, index: int) -> None:
            session.close()
            if listening in self._listening:
                listening.begin_again_behind(self._node)

        session.read(lambda machine, now_ms, node, number: None, known)
        self._node.wake()

    def forget(self, listening: Listening) -> None:
        self._listening.pop(listening, None)

    def resume(self, listening: Listening) -> None:
        """It may have more."""
        self._behind.append(listening)
        self._pump_soon()

    # -- what happens -------------------------------------------------------------------------

    def _wait(self) -> None:
        self._node.job_events.when_more = self._more

    def _more(self) -> None:
        """Something has happened to a job: the turn may hold many such things."""
        self._node.at_turn_end(self._turn_ended)

    def _turn_ended(self) -> None:
        self._wait()
        if self._listening:
            self._behind.extend(self._listening)
            self._pump_soon()

    def _pump_soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._clock.callLater(0, self._pump)

    def _pump(self) -> None:
        """A bounded number of events; who has not had all of his waits his turn."""
        self._is_due = False
        left = EVENTS_PER_TURN
        waiting = list(dict.fromkeys(self._behind))
        self._behind.clear()
        share = max(1, left // max(1, len(waiting)))
        for listening in waiting:
            if listening in self._listening and listening.give(self._node, share):
                self._behind.append(listening)
        if self._behind:
            self._pump_soon()

    def _tell_all(self, event: str, fields: dict[str, object]) -> None:
        for listening in list(self._listening):
            listening.tell(event, fields)

    def _poll(self) -> None:
        for listening in list(self._listening):
            listening.beat(self._node)

    def encoded(self, position: int) -> bytes:
        data = self._encoded.get(position)
        if data is None:
            if len(self._encoded) >= EVENTS_PER_TURN:
                self._encoded.clear()
            event = self._node.job_events[position]
            id = f"{event.entry}.{event.number}"
            data = self._encoded[position] = encode_event("job", s.job_event(event), id)
        return data


@implementer(IPushProducer)
class Listening:
    """One client."""

    stream: Stream

    def __init__(self, events: Events, node: Node, wanted: _Wanted, position: int, after: _Place, call: Call) -> None:
        self._events = events
        self._node = node
        self._login = call.login
        self._session = call.session
        self._tubes = frozenset(wanted.tube)
        self._kinds = frozenset(wanted.kind)
        self._position = position
        self._after = after
        self._is_paused = False
        self._unsent = 0  # when it was last looked at

    def tell(self, event: str, fields: dict[str, object]) -> None:
        """An event of the node. A client that does not read misses it."""
        if self._is_over(self._node):
            return
        is_for_him = event not in _FOR_OVERVIEW or sees_everything(self._node, self._login)
        if not self._is_paused and (not self._kinds or event in self._kinds) and is_for_him:
            self.stream.write(encode_event(event, fields))

    def miss(self, known_from: int) -> None:
        """What happened before that entry is not remembered."""
        self.stream.write(encode_event("gap", {"known_from": known_from}))

    def give(self, node: Node, most: int) -> bool:
        """So many of what has happened to jobs; whether there is more."""
        recent = node.job_events
        if self._is_over(node):
            return False
        if self._is_paused or (self._kinds and "job" not in self._kinds):
            return False
        if self._position < recent.begin:
            self._position = recent.begin
            self.miss(recent.known_from)
        until = min(recent.end, self._position + most)
        data = b"".join(self._events.encoded(place) for place in range(self._position, until) if self._wants(recent[place]))
        self._position = until
        if data:
            self.stream.write(data)
        return until < recent.end

    def _is_over(self, node: Node) -> bool:
        """Whether whoever listens may do so no more; then it ends."""
        if may_listen(node, self._login, self._session):
            return False
        self._events.forget(self)
        self.stream.finish()
        return True

    def _wants(self, event: JobEvent) -> bool:
        # This node may be behind the one that the client has listened to before.
        return event.place > self._after and (not self._tubes or event.tube in self._tubes) and self._sees(event.tube)

    def _sees(self, tube: str) -> bool:
        machine = self._node.machine
        return not self._node.has_users or machine.access.may(self._login, Right.READ, tube, machine.now_ms)

    def begin_again_behind(self, node: Node) -> None:
        """What the client has heard was of another log, if this one has not come so far."""
        if self._after[0] > node.machine.applied_index:
            self._after = (0, 0)
            self._position = node.job_events.end
            self.miss(node.machine.applied_index + 1)

    def beat(self, node: Node) -> None:
        """A sign of life, so that both sides notice if the other has gone, with the place of the last thing, wanted or not, to continue
        behind; and who reads nothing goes."""
        unsent = self.stream.unsent
        if self._is_over(node):
            return
        if self._is_paused and unsent >= self._unsent > 0:
            self.stream.abort()
        elif not self._is_paused:
            last = node.job_events[self._position - 1] if node.job_events.begin < self._position else None
            known = last is not None and last.place > self._after
            self.stream.write(f"id: {last.entry}.{last.number}\n\n".encode() if last is not None and known else b":\n\n")
        self._unsent = unsent

    def pauseProducing(self) -> None:
        """It does not keep up."""
        self._is_paused = True

    def resumeProducing(self) -> None:
        self._is_paused = False
        self._unsent = 0
        self._events.resume(self)

    def stopProducing(self) -> None:
        """It has gone."""
        self._events.forget(self)


def may_begin(call: Call, is_full: bool) -> bool:
    """Whether this call may get a stream; else it is answered. `is_full`: others have all there are."""
    if call.method not in ("GET", "HEAD"):
        call.problem("no-such-method", headers={"Allow": "GET, HEAD"})
    elif call.is_foreign and (call.header("Origin") or call.header("Sec-Fetch-Site")):
        call.problem("cross-site")  # it could not read it, and would take the place of another client
    elif is_full:
        call.problem("too-many-streams")
    else:
        return True
    return False


def may_listen(node: Node, login: Login | None, session: BrowserSession | None) -> bool:
    """Whether whoever has begun a stream is still known, and his browser's session, if he has one, not over."""
    access, now_ms = node.machine.access, node.machine.now_ms
    if not node.has_users:
        return True
    if session is not None:
        return not session.is_over and session.is_of(access, now_ms)
    return access.user_of(login, now_ms) is not None


def _place(text: str) -> _Place:
    found = _PLACE.fullmatch(text)
    if found is None:
        raise BadRequest("Last-Event-ID: expected the id of an event that was told here, as 12.3")
    return int(found[1]), int(found[2])


def encode_event(name: str, fields: object, id: str = "") -> bytes:
    head = f"id: {id}\n" if id else ""
    return f"{head}event: {name}\ndata: ".encode() + msgspec.json.encode(fields) + b"\n\n"

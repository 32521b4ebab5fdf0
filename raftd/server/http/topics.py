"""Topics and messages: a small REST contract that several systems share.

A topic is a tube that was declared, a message is a job with default priority and no delay; reading a message removes it. Every call
is answered within 0.9 s, since callers wait for a second: what could not be committed by then gets 503, and what has not left this
node is dropped. A message whose reader got 503 is still there, or is put back where it stood.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import msgspec

from raftd.errors import UNDECODABLE
from raftd.jobs import commands as c
from raftd.jobs import queries
from raftd.jobs import replies as r
from raftd.jobs.machine import StateMachine
from raftd.node.loop import Node
from raftd.server.access import for_who_works, looked_at, seen_in_list, sees_everything
from raftd.server.http.exchange import Exchange
from raftd.server.http.site import Call
from raftd.server.stats import Counters
from raftd.wire.line import is_tube_name

#: Every call of the topic and message contract is answered within this time (seconds): its callers wait for one second.
TOPIC_ANSWER_S = 0.85

_PRI = 65_536
_TTR_MS = 60_000
_NO = {"success": False}
_YES = {"success": True}


class _Topic(msgspec.Struct):
    topic: str


class _Message(msgspec.Struct):
    topic: str
    message: str


_topic_decoder = msgspec.json.Decoder(_Topic)
_message_decoder = msgspec.json.Decoder(_Message)


class Topics:
    """`leader_address` tells where a node's HTTP listener is, None if that is not known."""

    def __init__(self, node: Node, clock: Any, counters: Counters, leader_only: bool, leader_address: Callable[[int], str | None]) -> None:
        self._node = node
        self._counters = counters
        self._clock = clock
        self._leader_only = leader_only
        self._leader_address = leader_address

    def handles(self, call: Call) -> bool:
        """Whether it is one of this contract's paths; then it is answered."""
        match call.parts:
            case ["status"]:
                self._only(call, GET=self._status)
            case ["topic"]:
                self._only(call, PUT=self._put_topic, GET=self._get_topics)
            case ["message"]:
                self._only(call, PUT=self._put_message)
            case ["message", name]:
                self._only(call, GET=lambda call: self._get_message(call, name))
            case _:
                return False
        return True

    def _only(self, call: Call, **methods: Callable[[Call], None]) -> None:
        method = "GET" if call.method == "HEAD" and "GET" in methods and call.parts == ["status"] else call.method
        if method not in methods:
            call.say(405, _NO, {"Allow": ", ".join(methods)})
        elif (method == "PUT" or call.parts[0] == "message") and call.is_foreign:  # reading a message removes it
            call.say(403, _NO)
        elif self._leader_only and call.parts != ["status"] and not self._node.raft.is_leader:
            where = self._leader_address(self._node.raft.leader)
            call.say(400, _NO, {"X-Raft-Leader": where} if where is not None else None)
        else:
            methods[method](call)

    def _status(self, call: Call) -> None:
        if not sees_everything(self._node, call.login):
            call.refused()
            return
        status = self._node.status()
        call.say(
            200, {"role": str(status["role"]).capitalize(), "term": status["term"], "leader": status["leader"], "node": status["node"]}
        )

    # -- topics -------------------------------------------------------------------------------

    def _put_topic(self, call: Call) -> None:
        try:
            topic = _topic_decoder.decode(call.body).topic
        except UNDECODABLE:
            topic = ""
        if not is_tube_name(topic):
            call.say(400, _NO)
            return
        exchange = self._begin(call)

        def declared(reply: object) -> None:
            assert isinstance(reply, r.Declared)
            exchange.end(200 if reply.is_new else 400, _YES if reply.is_new else _NO)

        exchange.ask(c.Declare(exchange.number, topic), declared)

    def _get_topics(self, call: Call) -> None:
        exchange = self._begin(call)
        look = seen_in_list(exchange.session, queries.list_topics)
        exchange.read(look, lambda topics: exchange.end(200, {"success": True, "topics": topics}), _all_topics)

    # -- messages -----------------------------------------------------------------------------

    def _put_message(self, call: Call) -> None:
        try:
            wanted = _message_decoder.decode(call.body)
        except UNDECODABLE:
            call.say(400, _NO)
            return
        body = wanted.message.encode()
        if len(body) > self._node.max_job_size:
            call.say(400, _NO)
            return
        if self._counters.draining:
            call.say(503, _NO)
            return
        exchange = self._begin(call)

        def answered(reply: object) -> None:
            if isinstance(reply, r.InsertedMany):
                exchange.end(200, _YES)
            else:  # no such topic, too large for settings that have just changed, or no space: certainly not put
                exchange.end(404 if isinstance(reply, r.NotFound) else 400 if isinstance(reply, r.JobTooBig) else 503, _NO)

        exchange.ask(
            c.PutMany(exchange.number, wanted.topic, [c.NewJob(_PRI, 0, _TTR_MS, body)], only_topic=True),
            answered,
        )

    def _get_message(self, call: Call, name: str) -> None:
        exchange = self._begin(call)
        number = exchange.number

        def reserve() -> None:
            if name != "default":
                exchange.ask(c.Watch(number, name), lambda reply: None)
                exchange.ask(c.Ignore(number, "default"), lambda reply: None)
            exchange.ask(c.Reserve(number, 0), reserved)

        def reserved(reply: object) -> None:
            if not isinstance(reply, r.Reserved):
                exchange.end(404, _NO)
                return
            job = self._node.machine.jobs.get(reply.id)
            if job is None:  # deleted in the same entry, with the token
                exchange.end(503, _NO)
                return
            exchange.deleting(c.PutBack(number, job.id, name, job.pri, job.ttr_ms, job.body))
            exchange.ask(c.Delete(number, reply.id), lambda deleted: removed(reply.body, deleted))

        def removed(body: bytes, reply: object) -> None:
            if isinstance(reply, r.Deleted):
                exchange.end(200, _as_message(body))
            else:  # its time to run was over before: another session may have it
                exchange.end(503, _NO)

        exchange.if_topic(name, reserve)

    def _begin(self, call: Call) -> _TopicExchange:
        return _TopicExchange(self._node, self._clock, call, TOPIC_ANSWER_S, lambda may_have_left: call.say(503, _NO))


def _all_topics(machine: StateMachine) -> int:
    """Those that are left out cost, too."""
    return looked_at(machine, len(machine.topics)) if machine.access.is_on else 0


def _as_message(body: bytes) -> dict[str, object]:
    try:
        return {"success": True, "message": body.decode()}
    except UnicodeDecodeError:
        return {"success": True, "message": base64.b64encode(body).decode(), "encoding": "base64"}


class _TopicExchange(Exchange):
    """One whose message is put back if it was deleted too late."""

    #: How to put the message back, once its deletion has left.
    _back: c.PutBack | None = None

    def deleting(self, back: c.PutBack) -> None:
        """From now on nothing is dropped: a deletion that has left is waited for."""
        self._back = back
        self.when_over = lambda: None

    def if_topic(self, name: str, then: Callable[[], None]) -> None:
        """404 without such a topic. One that is known here need not be asked for: if it has just been deleted, it is empty. Who may not
        work there is not told whether there is."""
        if name in self._node.machine.topics and not self._node.has_users:
            then()
        else:
            look = for_who_works(self.session, queries.is_topic(name), name)
            self.read(look, lambda is_topic: then() if is_topic else self.end(404, _NO))

    def end(self, status: int, value: object) -> None:
        """The answer, and the end of the session; too late, what was deleted is put back."""
        self.in_time()
        if self.is_open:
            self._call.say(status, value)
        elif self._back is not None and status == 200:
            back, self._back = self._back, None
            self.ask(back, lambda reply: self.end(503, _NO))
            return
        self.close()

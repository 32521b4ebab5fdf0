"""The client listener: binary frames, requests with ids, answers with the log index they were applied at."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import msgspec
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from raftd.errors import FrameError
from raftd.jobs import asks
from raftd.jobs import replies as r
from raftd.jobs.budget import CALENDAR_STEPS, LONG_ANSWER_STEPS
from raftd.jobs.machine import StateMachine
from raftd.limits import (
    GIVEN_BYTES,
    HELLO_FRAME_BYTES,
    HELLO_TIMEOUT_S,
    PUT_BYTES,
    SESSION_TOKEN_BYTES,
    STRANGER_TEXT,
    WAITING_RESERVES,
)
from raftd.node.client_session import ClientSession
from raftd.node.loop import Node
from raftd.node.occurrences import what_is_wrong_with_times
from raftd.raft.messages import AddMember, AdminRequest, MemberAddress, PromoteMember, RemoveMember, Snapshot, TransferLead
from raftd.raft.outcomes import AdminResult, Outcome
from raftd.server.client_reads import query_of, scanned_by
from raftd.server.limiter import ConnectionLimiter
from raftd.server.protocol import ClientConnection, ConnectionFactory
from raftd.server.stats import Counters, overview
from raftd.wire import client as w
from raftd.wire.checks import what_is_wrong
from raftd.wire.frames import FrameDecoder

_REQUEST_BYTES = 64
#: Whoever speaks for a session and says nothing for so long is dropped (seconds): its machine may be gone, and its waits take jobs.
SILENCE_S = 15.0


class ClientProtocol(ClientConnection):
    """One client of the client listener."""

    _log = Logger("raftd.client")

    def __init__(self, node: Node, clock: Any, limiter: ConnectionLimiter, counters: Counters) -> None:
        super().__init__(node, clock, limiter)
        self._counters = counters
        self._decoder = FrameDecoder()
        self._greeted = False
        self._hello_timeout: Any = None
        self._client: ClientSession | None = None
        self._name = ""  # as the client says, for the log
        self._applied_id = 0  # asks up to this one were applied before: whoever repeats one wants its answer
        self._asked: dict[int, int] = {}  # asks in flight, and their sizes
        self._waiting: set[int] = set()  # reserves that may wait
        self._silence: Any = None
        self._has_spoken = False

    def connectionMade(self) -> None:
        super().connectionMade()
        self._hello_timeout = self._clock.callLater(HELLO_TIMEOUT_S, self._said_no_hello)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        if self._hello_timeout is not None and self._hello_timeout.active():
            self._hello_timeout.cancel()
        if self._silence is not None and self._silence.active():
            self._silence.cancel()
        if self._client is not None:
            self._client.close()
            self.node.wake()

    def _feed(self, data: bytes) -> None:
        self._has_spoken = True
        self._decoder.feed(data)

    def _take(self) -> bool:
        try:
            body = self._decoder.next_frame()
            if body is None:
                return False
            if self._greeted:
                self._handle(w.decode_request(body))
            else:
                self._greet(w.decode_client_hello(body))
        except FrameError as error:
            self._refuse(str(error))
            return False
        return True

    def _greet(self, hello: w.ClientHello | w.SessionHello) -> None:
        config = self.node.config
        if hello.cluster not in ("", config.cluster):
            raise FrameError(f"it asks for cluster {hello.cluster!r}, this is {config.cluster!r}")
        self._hello_timeout.cancel()
        if isinstance(hello, w.SessionHello):
            self._attach(hello)
            return
        self._is_greeted()
        self.say(w.encode_hello(w.NodeHello(config.cluster, config.node, self.node.max_job_size)))

    def _is_greeted(self) -> None:
        self._greeted = True
        # The largest request is a put; one that is somewhat too large gets an answer.
        self._decoder.greeted(2 * max(self.node.max_job_size, PUT_BYTES) + HELLO_FRAME_BYTES)

    def _said_no_hello(self) -> None:
        if self._is_queued:  # perhaps it did, and waits its turn in a crowd
            self._hello_timeout = self._clock.callLater(HELLO_TIMEOUT_S, self._said_no_hello)
        else:
            self._refuse(f"it said no hello within {HELLO_TIMEOUT_S:g} s")

    def _refuse(self, reason: str) -> None:
        if not self.is_closed:
            reason = reason[:STRANGER_TEXT]
            address = self.transport.getPeer()
            who = f"{getattr(address, 'host', address)}:{getattr(address, 'port', '')}"
            if self._limiter.may_log():
                self._log.info("the client at {who} is refused: {reason}", who=who, reason=reason)
            self.say(w.encode_answer(w.Answer(0, 0, w.Failed(Outcome.INVALID, reason))))
            self.finish()

    def _handle(self, request: w.Request | w.Unknown) -> None:
        size = _REQUEST_BYTES
        match request:
            case w.AskRequest():
                self._ask(request)
            case w.PingRequest():
                self.say(w.encode_answer(w.Answer(request.id, self.node.machine.applied_index, w.Done())))
            case w.Unknown(id=id, text=text):
                self.say(w.encode_answer(w.Answer(id, 0, w.Failed(Outcome.INVALID, text))))
            case (
                w.JobRequest()
                | w.NextRequest()
                | w.TubesRequest()
                | w.TubeRequest()
                | w.HistoryRequest()
                | w.PoliciesRequest()
                | w.CountRequest()
                | w.SchedulesRequest()
                | w.ResultRequest()
            ):
                size += self.node.max_job_size  # what its answer may hold
                self.began(size)
                self.session.read(query_of(request, self.node.job_events), partial(self._answered, request.id, size), scanned_by(request))
                self.node.wake()
            case w.StatusRequest():
                self.began(size)
                self.session.local(self._status, partial(self._answered, request.id, size), LONG_ANSWER_STEPS)
            case w.MembersRequest():
                self.began(size)
                self.session.local(self._members, partial(self._answered, request.id, size))
            case w.BackupRequest():
                self.began(size)
                # everything acknowledged before must be in it: the read tells when this node has applied that
                self.session.read(lambda machine, now_ms, node, session: None, partial(self._back_up, request.id, size))
                self.node.wake()
            case w.ChunkRequest(index=index, offset=offset):
                size += self.node.config.limits.snapshot_chunk_bytes
                self.began(size)
                if not self.node.copy(index, offset, lambda data: self._say(request.id, size, w.Chunk(data))):
                    text = f"this node keeps no backup of entry {index}: request another"
                    self._say(request.id, size, w.Failed(Outcome.NO_SNAPSHOT, text))
            case w.TransferRequest() | w.AddMemberRequest() | w.PromoteMemberRequest() | w.RemoveMemberRequest():
                self.began(size)
                self.node.administer(_admin_request(request), partial(self._administered, request.id, size))

    # -- the session --------------------------------------------------------------------------

    def _attach(self, hello: w.SessionHello) -> None:
        """Nothing more is read before the connection speaks for the session."""
        if len(hello.session) != SESSION_TOKEN_BYTES:
            raise FrameError(f"session: expected {SESSION_TOKEN_BYTES} random bytes")
        if not self.node.knows_clients:
            raise FrameError(
                "it is not known yet whether all nodes know sessions of clients: there was no leader since this node started, or an older "
                "raftd is among them"
            )
        self._name = hello.client[:STRANGER_TEXT]
        self._client = self.node.open_client_session(self.abort, self._said)
        self._client.attach(hello.session)
        self.hold_back(True)
        self._silence = self._clock.callLater(SILENCE_S, self._check_silence)
        self.node.wake()

    def _attached(self, attached: r.Attached) -> None:
        self._applied_id = attached.last_id
        config, machine = self.node.config, self.node.machine
        self._is_greeted()
        session = (attached.session, attached.epoch, attached.last_id)
        timeouts = (machine.settings.session_timeout_ms, int(SILENCE_S * 1000))
        self.say(w.encode_hello(w.AttachedHello(config.cluster, config.node, self.node.max_job_size, *session, *timeouts)))
        self.hold_back(False)

    def _ask(self, request: w.AskRequest) -> None:
        id, what = request.id, request.what
        text = what_is_wrong(what)
        if self._client is None:
            text = "this connection speaks for no session: say so in the hello"
        elif id in self._asked or id in self._waiting or not 0 < id < 1 << 63:
            text = "id: expected a new one, from 1 on"
        elif len(request.waiting) > WAITING_RESERVES:
            text = f"waiting: expected {WAITING_RESERVES} ids at most"
        elif _needs_policies(what) and not self.node.knows_policies:
            text = "an older raftd may be among the nodes: policies, unique jobs, results and schedules are there once all are newer"
        elif id <= self._applied_id:
            pass
        elif isinstance(what, asks.SetSchedule) and what.plan is not None and len(what.plan.job.body) > self.node.max_job_size:
            self._refuse_ask(id, r.JobTooBig())
            return
        elif isinstance(what, asks.Put) and self._counters.draining:
            self._refuse_ask(id, w.Failed(Outcome.DRAINING, "this node is draining: put on another"))
            return
        elif isinstance(what, asks.Put) and len(what.jobs) > 1 and sum(len(job.body) for job in what.jobs) > PUT_BYTES:
            text = f"bodies: expected {PUT_BYTES} bytes together at most, or one job"
        elif isinstance(what, asks.Put) and any(len(job.body) > self.node.max_job_size for job in what.jobs):
            self._refuse_ask(id, r.JobTooBig())
            return
        if text or self._client is None:
            self._refuse_ask(id, w.Failed(Outcome.INVALID, text))
            return
        if isinstance(what, asks.SetSchedule) and what.plan is not None and id > self._applied_id:
            self._check_calendar(request, what.plan)
            return
        self._hand_in(request, what)

    def _check_calendar(self, request: w.AskRequest, plan: asks.Plan) -> None:
        """That takes a while, and waits for its turn."""
        self.began(_REQUEST_BYTES)

        def checked(wrong: Any, index: int) -> None:
            if wrong:
                self._answered(request.id, _REQUEST_BYTES, w.Failed(Outcome.INVALID, wrong), 0)
            elif not self.is_closed:
                self.took_back(_REQUEST_BYTES)
                self._hand_in(request, request.what)

        self.session.local(lambda: what_is_wrong_with_times(plan), checked, CALENDAR_STEPS)
        self.node.wake()

    def _hand_in(self, request: w.AskRequest, what: asks.What) -> None:
        """To the log."""
        id = request.id
        if self._client is None:
            return
        if isinstance(what, asks.Reserve) and what.timeout_ms != 0:
            # It may wait for long, so it is not in flight: others come after it.
            if len(self._waiting) >= WAITING_RESERVES:
                self._refuse_ask(id, r.TooMany())
                return
            self._waiting.add(id)
        else:
            size = _REQUEST_BYTES + _answer_bytes(what)
            self._asked[id] = size
            self.began(size)
        if isinstance(what, asks.Put) and (what.takes_default_pri or what.takes_default_ttr):
            what = with_defaults(what, self.node.machine)
        self._client.ask(id, request.answered, request.waiting, what, id <= self._applied_id)
        self.node.wake()

    def _refuse_ask(self, id: int, reply: w.Failed | r.TooMany | r.JobTooBig) -> None:
        self.say(w.encode_answer(w.Answer(id, 0, reply)))

    def _said(self, id: int, reply: r.AskReply | r.Attached | r.TakenOver, index: int) -> None:
        """The session has an answer, or a job is pushed."""
        if isinstance(reply, r.Attached):
            self._attached(reply)
            return
        data = w.encode_answer(w.Answer(id, index, reply))
        if isinstance(reply, r.TakenOver):
            self.say(data)
            self.finish()
        elif id in self._asked and not isinstance(reply, r.Pushed):
            self.answer(data, self._asked.pop(id))
        else:
            self._waiting.discard(id)
            self.say(data)

    def _check_silence(self) -> None:
        if self._has_spoken or self._is_queued or not self._is_reading:
            self._has_spoken = False
            self._silence = self._clock.callLater(SILENCE_S, self._check_silence)
        elif not self.is_closed:
            self._log.info("client {name!r} is dropped: it has said nothing for {seconds:g} s", name=self._name, seconds=SILENCE_S)
            self.abort()

    # -- the node -----------------------------------------------------------------------------

    def _administered(self, id: int, size: int, result: AdminResult) -> None:
        self._say(id, size, w.Done() if result.is_done else w.Failed(result.outcome, result.text))

    def _say(self, id: int, size: int, reply: w.NodeReply) -> None:
        """An answer of the node, not of the log."""
        if not self.is_closed:
            self._answered(id, size, reply, 0)

    def _back_up(self, id: int, size: int, result: object, index: int) -> None:
        def done(snapshot: Snapshot | None, why_not: str) -> None:
            if snapshot is None:
                self._say(id, size, w.Failed(Outcome.NO_SNAPSHOT, f"no snapshot could be written: {why_not}"))
            else:
                self._say(id, size, w.BackupReply(snapshot.index, snapshot.size_bytes))

        self.node.backup(done)

    def _members(self) -> w.Members:
        raft = self.node.raft
        is_settled = raft.membership.index <= raft.log.commit_index and not raft.membership.latest.outgoing
        config = self.node.config
        timings = (config.election_timeout_ms, config.heartbeat_ms)
        return w.Members(config.cluster, raft.leader, is_settled, raft.membership.latest, *timings)

    def _status(self) -> w.Status:
        return overview(self.node, self._counters)

    def _answered(self, id: int, size: int, reply: object, index: int) -> None:
        answer = w.Answer(id, index or self.node.machine.applied_index, cast("w.NodeReply", reply))
        self.answer(w.encode_answer(answer), size)


def _admin_request(
    request: w.TransferRequest | w.AddMemberRequest | w.PromoteMemberRequest | w.RemoveMemberRequest,
) -> AdminRequest:
    match request:
        case w.TransferRequest(node=node):
            return TransferLead(node)
        case w.AddMemberRequest(node=node, host=host, peer=peer, client=client):
            return AddMember(node, MemberAddress(host, peer, client))
        case w.PromoteMemberRequest(node=node):
            return PromoteMember(node)
        case w.RemoveMemberRequest(node=node):
            return RemoveMember(node)


def _needs_policies(what: asks.What) -> bool:
    if isinstance(what, asks.Put):
        return what.unique is not None
    return isinstance(what, asks.SetPolicies | asks.Replay | asks.OfSchedules) or (isinstance(what, asks.Delete) and bool(what.result))


def with_defaults(put: asks.Put, machine: StateMachine) -> asks.Put:
    """With the priority and the time to run of the tube's policy, as this node knows it now, where the put gives none."""
    tube = machine.policies.tubes.get(put.tube)
    if tube is None or tube.policy is None:
        return put
    policy = tube.policy
    has_pri = put.takes_default_pri and policy.default_pri is not None
    has_ttr = put.takes_default_ttr and bool(policy.default_ttr_ms)
    return msgspec.structs.replace(
        put,
        jobs=[
            asks.NewJob(
                policy.default_pri if has_pri and policy.default_pri is not None else job.pri,
                job.delay_ms,
                policy.default_ttr_ms if has_ttr else job.ttr_ms,
                job.body,
            )
            for job in put.jobs
        ],
    )


def _answer_bytes(what: asks.What) -> int:
    """What an ask, or the answer to it, may hold."""
    if isinstance(what, asks.Put):
        return sum(len(job.body) for job in what.jobs)
    return GIVEN_BYTES if isinstance(what, asks.Reserve | asks.Cancel) else 0


class ClientServerFactory(ConnectionFactory):
    protocol = ClientProtocol

"""The client listener: binary frames, requests with ids, answers with the log index they were applied at."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from typing import Any, cast

import msgspec
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from raftd.config import is_loopback
from raftd.errors import FrameError
from raftd.jobs import asks
from raftd.jobs import commands as c
from raftd.jobs import replies as r
from raftd.jobs.budget import CALENDAR_STEPS, LONG_ANSWER_STEPS
from raftd.jobs.machine import StateMachine
from raftd.jobs.rights import Login, Right
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
from raftd.server.access import may_operate, sees_everything
from raftd.server.client_reads import query_of, scanned_by
from raftd.server.limiter import ConnectionLimiter
from raftd.server.protocol import CONNECTION_IN_FLIGHT, ClientConnection, ConnectionFactory
from raftd.server.sockets import is_secure
from raftd.server.stats import Counters, overview
from raftd.wire import client as w
from raftd.wire.checks import what_is_wrong, what_is_wrong_with_access
from raftd.wire.frames import FrameDecoder

_REQUEST_BYTES = 64
#: Whoever speaks for a session and says nothing for so long is dropped (seconds): its machine may be gone, and its waits take jobs.
SILENCE_S = 15.0


#: To a request that is no ask: as to any that is not carried out, so that no client takes it for a yes.
_NOT_AUTHORIZED = w.Failed(Outcome.NOT_AUTHORIZED, "not authorized: this user has no such right, or is none any more (`raftd user whoami`)")


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
        self._whats: dict[int, str] = {}  # the newest asks, for the log, where there are users
        self._silence: Any = None
        self._has_spoken = False

    def connectionMade(self) -> None:
        super().connectionMade()
        self._hello_timeout = self._clock.callLater(HELLO_TIMEOUT_S, self._said_no_hello)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self._stop_waiting_for_hello()
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
        self._check_session(hello)
        own = self.session.login  # of the certificate
        if isinstance(hello, w.ClientHello) or not (hello.token or hello.password):
            if own is None or not self.node.has_users:
                self._enter(hello)
            else:
                self.hold_back(True)
                self.confirm(own, partial(self._certified, hello, own))
            return
        self.hold_back(True)  # nothing more is read before it is known who that is
        self.session.login = None
        if hello.token:
            login = self.authentication.by_token(hello.user, hello.token)
            if login is None:
                self._confirmed(hello, Login("token", hello.user), False)
            else:
                self.confirm(login, partial(self._confirmed, hello, login))
        elif is_secure(self.transport):
            digested = partial(self._digested, hello)
            self.authentication.by_password(self.node.machine, hello.user, hello.password, self.host, lambda: not self.is_closed, digested)
        else:
            raise FrameError("a password is taken over TLS only (raftds://)")

    def _check_session(self, hello: w.ClientHello | w.SessionHello) -> None:
        """Before anything is done for it."""
        if not isinstance(hello, w.SessionHello) or not hello.session:
            return
        if len(hello.session) != SESSION_TOKEN_BYTES:
            raise FrameError(f"session: expected {SESSION_TOKEN_BYTES} random bytes")
        if not self.node.knows_clients:
            raise FrameError(
                "it is not known yet whether all nodes know sessions of clients: there was no leader since this node started, or an older "
                "raftd is among them"
            )

    def _digested(self, hello: w.SessionHello, login: Login | None) -> None:
        if self.is_closed:
            return
        if login is None:
            self._refuse("too many passwords are looked at here at the moment: try again, or show a token", Outcome.BUSY)
        else:
            self.confirm(login, partial(self._confirmed, hello, login))

    def _confirmed(self, hello: w.SessionHello, login: Login, is_good: bool) -> None:
        if self.is_closed:
            return
        delay_s = self.authentication.decided(is_good, self.host, login.user)
        if is_good:
            self.session.login = login
            self._enter(hello)
        else:
            self._clock.callLater(delay_s, self._refuse_stranger)

    def _certified(self, hello: w.ClientHello | w.SessionHello, login: Login, is_good: bool) -> None:
        """Whether the user in the certificate is one."""
        if self.is_closed:
            return
        if is_good:
            self._enter(hello)
        else:
            self.session.login = None
            text = f"the certificate is that of {login.user!r}, and the cluster has no such user (`raftd user add`)"
            self._refuse(text, Outcome.NOT_AUTHORIZED)

    def _enter(self, hello: w.ClientHello | w.SessionHello) -> None:
        """It is known who that is, or that he shows nothing."""
        if self.is_stranger():
            self._refuse_stranger()
        elif isinstance(hello, w.SessionHello) and hello.session:
            self._attach(hello)
        elif self._enters():
            config = self.node.config
            self._is_greeted()
            self.say(w.encode_hello(w.NodeHello(config.cluster, config.node, self.node.max_job_size)))
            self.hold_back(False)

    def _enters(self) -> bool:
        """Whether its user may have one more connection; else it is refused."""
        login = self.session.login
        if login is None or self.enter(login):
            return True
        self.refused("one more connection: he has as many as his quota allows", login)
        self._refuse("this user has as many connections to this node as his quota allows", Outcome.NOT_AUTHORIZED)
        return False

    def _refuse_stranger(self) -> None:
        self.session.login = None
        self._refuse("it is not known who that is, or not any more: show a token, a password or a certificate", Outcome.NOT_AUTHORIZED)

    def _is_greeted(self) -> None:
        self._greeted = True
        self._stop_waiting_for_hello()
        # The largest request is a put; one that is somewhat too large gets an answer.
        self._decoder.greeted(2 * max(self.node.max_job_size, PUT_BYTES) + HELLO_FRAME_BYTES)

    def _stop_waiting_for_hello(self) -> None:
        if self._hello_timeout is not None and self._hello_timeout.active():
            self._hello_timeout.cancel()

    def _said_no_hello(self) -> None:
        if self._is_queued:  # perhaps it did, and waits its turn in a crowd
            self._hello_timeout = self._clock.callLater(HELLO_TIMEOUT_S, self._said_no_hello)
        elif self._is_held_back:
            self._refuse(f"the cluster could not say within {HELLO_TIMEOUT_S:g} s who that is: try again", Outcome.NO_LEADER)
        else:
            self._refuse(f"it said no hello within {HELLO_TIMEOUT_S:g} s")

    def _refuse(self, reason: str, outcome: Outcome = Outcome.INVALID) -> None:
        if not self.is_closed:
            reason = reason[:STRANGER_TEXT]
            address = self.transport.getPeer()
            who = f"{getattr(address, 'host', address)}:{getattr(address, 'port', '')}"
            if self._limiter.may_log():
                self._log.info("the client at {who} is refused: {reason}", who=who, reason=reason)
            self.say(w.encode_answer(w.Answer(0, 0, w.Failed(outcome, reason))))
            self.finish()

    def _handle(self, request: w.Request | w.Unknown) -> None:
        size = _REQUEST_BYTES
        if self.node.has_users and not self._may(request):
            self.refused(type(request).__name__)
            self.say(w.encode_answer(w.Answer(request.id, 0, _NOT_AUTHORIZED)))
            return
        match request:
            case w.AskRequest():
                self._ask(request)
            case w.ChangeAccessRequest():
                self._change_access(request)
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
                | w.UsersRequest()
                | w.AuditRequest()
                | w.WhoAmIRequest()
            ):
                size += self.node.max_job_size  # what its answer may hold
                self.began(size)
                query = query_of(request, self.node.job_events, self.session)
                self.session.read(query, partial(self._answered, request.id, size), scanned_by(request))
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
                self.session.read(may_operate(self.session.login), partial(self._back_up, request.id, size))
                self.node.wake()
            case w.ChunkRequest(index=index, offset=offset):
                size += self.node.config.limits.snapshot_chunk_bytes
                self.began(size)
                if not self.node.copy(index, offset, lambda data: self._say(request.id, size, w.Chunk(data))):
                    text = f"this node keeps no backup of entry {index}: request another"
                    self._say(request.id, size, w.Failed(Outcome.NO_SNAPSHOT, text))
            case w.TransferRequest() | w.AddMemberRequest() | w.PromoteMemberRequest() | w.RemoveMemberRequest():
                self.began(size)
                asked = _admin_request(request)
                carry_out = partial(self.node.administer, asked, partial(self._administered, request.id, size))
                self._operate(request.id, size, _ADMIN_WORDS[type(asked)](asked), carry_out)

    def _may(self, request: w.Request | w.Unknown) -> bool:
        """As far as this node can tell at once. Of tubes, jobs and changes the state tells."""
        machine, session = self.node.machine, self.session
        match NEEDS.get(type(request), Need.USER):
            case Need.OVERVIEW:
                return sees_everything(self.node, session.login)
            case Need.OPERATE:
                return machine.access.may_everywhere(session.login, Right.OPERATE, machine.now_ms)
        return machine.access.user_of(session.login, machine.now_ms) is not None

    def _change_access(self, request: w.ChangeAccessRequest) -> None:
        text = what_is_wrong_with_access(request.changes)
        if not self.node.knows_access:
            text = "not all nodes of the cluster have been heard yet, or an older raftd is among them: start and upgrade all of them"
        elif not self.node.has_users and not self._is_here:
            text = "the first user is made on a node's own machine (`raftd init` there)"
        if text:
            self.say(w.encode_answer(w.Answer(request.id, 0, w.Failed(Outcome.INVALID, text))))
            return
        self.began(_REQUEST_BYTES)
        self._say_who()
        self.session.submit(c.ChangeAccess(self.session.number, request.changes), partial(self._answered, request.id, _REQUEST_BYTES))
        self.node.wake()

    def _say_who(self) -> None:
        """The state decides what a login is good for."""
        if self.session.login is not None:
            self.session.submit(c.LogIn(self.session.number, self.session.login), _ignored)

    def _operate(self, id: int, size: int, what: tuple[str, str], carry_out: Callable[[], None]) -> None:
        """Only who may, as the cluster says; and the audit log has it before it is done."""
        waiting = self._clock.callLater(HELLO_TIMEOUT_S, self._nobody_leads, id, size)

        def looked(is_allowed: object, index: int) -> None:
            if not waiting.active():
                return
            waiting.cancel()
            if not is_allowed:
                self._answered(id, size, r.NotAuthorized(), index)
            elif not self.node.knows_access:  # there is nobody who would have to say who he is
                carry_out()
            else:
                self._say_who()
                self.session.submit(c.Operate(self.session.number, *what), decided)
                self.node.wake()

        def decided(reply: object, index: int) -> None:
            if isinstance(reply, r.MayOperate):
                carry_out()
            else:
                self._answered(id, size, reply, index)

        self.session.read(may_operate(self.session.login), looked)
        self.node.wake()

    def _nobody_leads(self, id: int, size: int) -> None:
        self._say(id, size, w.Failed(Outcome.NO_LEADER, "no leader is known: try again when one is elected"))

    # -- the session --------------------------------------------------------------------------

    def _attach(self, hello: w.SessionHello) -> None:
        """Nothing more is read before the connection speaks for the session."""
        self._stop_waiting_for_hello()
        self._name = hello.client[:STRANGER_TEXT]
        self._client = self.node.open_client_session(self.abort, self._said)
        self._client.login = self.session.login if self.node.knows_access else None
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
        if self.node.has_users:
            self._whats[id] = _words_of(what)
            if len(self._whats) > CONNECTION_IN_FLIGHT + WAITING_RESERVES:
                del self._whats[next(iter(self._whats))]
        self._client.ask(id, request.answered, request.waiting, what, id <= self._applied_id)
        self.node.wake()

    def _refuse_ask(self, id: int, reply: w.Failed | r.TooMany | r.JobTooBig) -> None:
        self.say(w.encode_answer(w.Answer(id, 0, reply)))

    @property
    def _is_here(self) -> bool:
        """Whether its client is on this machine."""
        own = getattr(self.transport.getHost(), "host", "")
        return self.host is None or self.host == own or is_loopback(self.host)

    def _said(self, id: int, reply: r.AskReply | r.Attached | r.TakenOver | r.NotAuthorized, index: int) -> None:
        """The session has an answer, or a job is pushed."""
        if isinstance(reply, r.Attached):
            if self._enters():
                self._attached(reply)
            return
        if isinstance(reply, r.NotAuthorized):
            if id == 0:
                self._refuse_stranger()
                return
            self.refused(self._whats.pop(id, "an ask"))
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

    def _back_up(self, id: int, size: int, is_allowed: object, index: int) -> None:
        if not is_allowed:
            self._answered(id, size, r.NotAuthorized(), index)
            return

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
        if isinstance(reply, r.NotAuthorized):
            reply = _NOT_AUTHORIZED
        answer = w.Answer(id, index or self.node.machine.applied_index, cast("w.NodeReply", reply))
        self.answer(w.encode_answer(answer), size)


class Need(Enum):
    """What a request needs, where anybody has to say who he is."""

    USER = auto()  # that is known: what he may is looked at with the tube, the job or the change
    OVERVIEW = auto()  # the right to read every tube, or to operate
    OPERATE = auto()


#: By the type of a request.
NEEDS: dict[type, Need] = {
    w.AskRequest: Need.USER,
    w.PingRequest: Need.USER,
    w.Unknown: Need.USER,
    w.JobRequest: Need.USER,
    w.NextRequest: Need.USER,
    w.TubesRequest: Need.USER,
    w.TubeRequest: Need.USER,
    w.HistoryRequest: Need.USER,
    w.PoliciesRequest: Need.USER,
    w.CountRequest: Need.USER,
    w.SchedulesRequest: Need.USER,
    w.ResultRequest: Need.USER,
    w.WhoAmIRequest: Need.USER,
    w.StatusRequest: Need.OVERVIEW,
    w.MembersRequest: Need.USER,
    w.UsersRequest: Need.OPERATE,
    w.AuditRequest: Need.OPERATE,
    w.ChangeAccessRequest: Need.OPERATE,
    w.BackupRequest: Need.OPERATE,
    w.ChunkRequest: Need.OPERATE,
    w.TransferRequest: Need.OPERATE,
    w.AddMemberRequest: Need.OPERATE,
    w.PromoteMemberRequest: Need.OPERATE,
    w.RemoveMemberRequest: Need.OPERATE,
}

#: As the audit log calls them.
_ADMIN_WORDS: dict[type, Callable[[Any], tuple[str, str]]] = {
    TransferLead: lambda request: ("transfer-lead", f"node {request.node}"),
    AddMember: lambda request: ("add-member", f"node {request.node}"),
    PromoteMember: lambda request: ("promote-member", f"node {request.node}"),
    RemoveMember: lambda request: ("remove-member", f"node {request.node}"),
}


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


def _words_of(what: asks.What) -> str:
    """For the log."""
    tubes = getattr(what, "tubes", None) or [getattr(what, "tube", "")]
    return f"{type(what).__name__.lower()} {' '.join(tubes)}".strip()


def _ignored(reply: object, index: int) -> None:
    pass


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

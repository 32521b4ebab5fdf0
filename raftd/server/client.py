"""The client listener: binary frames, requests with ids, answers with the log index they were applied at."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from raftd.errors import FrameError
from raftd.jobs import commands as c
from raftd.jobs.budget import LONG_ANSWER_STEPS
from raftd.jobs.replies import JobTooBig, Reply
from raftd.limits import HELLO_FRAME_BYTES, HELLO_TIMEOUT_S, STRANGER_TEXT
from raftd.node.loop import Node
from raftd.raft.messages import AddMember, AdminRequest, MemberAddress, PromoteMember, RemoveMember, Snapshot, TransferLead
from raftd.raft.outcomes import AdminResult, Outcome
from raftd.server.limiter import ConnectionLimiter
from raftd.server.protocol import ClientConnection, ConnectionFactory
from raftd.server.stats import Counters, overview
from raftd.wire import client as w
from raftd.wire.frames import FrameDecoder
from raftd.wire.line import is_tube_name

_U32 = 0xFFFF_FFFF
_LONGEST_MS = _U32 * 1000
_REQUEST_BYTES = 64
_ABOUT_TUBES: dict[type, Callable[[int, str], c.Command]] = {
    w.UseRequest: c.Use,
    w.WatchRequest: c.Watch,
    w.IgnoreRequest: c.Ignore,
}


class ClientProtocol(ClientConnection):
    """One client of the client listener."""

    _log = Logger("raftd.client")

    def __init__(self, node: Node, clock: Any, limiter: ConnectionLimiter, counters: Counters) -> None:
        super().__init__(node, clock, limiter)
        self._counters = counters
        self._decoder = FrameDecoder()
        self._greeted = False
        self._hello_timeout: Any = None

    def connectionMade(self) -> None:
        super().connectionMade()
        self._hello_timeout = self._clock.callLater(HELLO_TIMEOUT_S, self._said_no_hello)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        if self._hello_timeout is not None and self._hello_timeout.active():
            self._hello_timeout.cancel()

    def _feed(self, data: bytes) -> None:
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

    def _greet(self, hello: w.ClientHello) -> None:
        config = self.node.config
        if hello.cluster not in ("", config.cluster):
            raise FrameError(f"it asks for cluster {hello.cluster!r}, this is {config.cluster!r}")
        self._hello_timeout.cancel()
        self._greeted = True
        self._decoder.greeted(self.node.max_job_size + HELLO_FRAME_BYTES)
        self.say(w.encode_hello(w.NodeHello(config.cluster, config.node, self.node.max_job_size)))

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

    def _handle(self, request: w.Request) -> None:
        number = self.session.number
        size = _REQUEST_BYTES
        self_answer = partial(self._answered, request.id)
        command: c.Command
        match request:
            case w.PutRequest(body=body):
                size += len(body)
                refusal = self._check_put(request)
                if refusal is not None:
                    self._answer_here(request.id, refusal)
                    return
                if len(body) > self.node.max_job_size:
                    self._answer_here(request.id, JobTooBig())
                    return
                command = c.Put(number, request.pri, request.delay_ms, request.ttr_ms, body, request.tube)
            case w.UseRequest(tube=tube) | w.WatchRequest(tube=tube) | w.IgnoreRequest(tube=tube):
                if not is_tube_name(tube):
                    self._answer_here(request.id, w.Failed(Outcome.INVALID, _BAD_TUBE))
                    return
                command = _ABOUT_TUBES[type(request)](number, tube)
            case w.ReserveRequest(timeout_ms=timeout_ms):
                if timeout_ms is not None and not 0 <= timeout_ms <= _LONGEST_MS:
                    text = f"timeout_ms: expected 0 to {_LONGEST_MS}, or none to wait for ever"
                    self._answer_here(request.id, w.Failed(Outcome.INVALID, text))
                    return
                command = c.Reserve(number, timeout_ms)
                size += self.node.max_job_size  # what its answer may hold
            case w.DeleteRequest(job=job, token=token):
                command = c.Delete(number, job, token)
            case w.StatusRequest():
                self.began(size)
                self.session.local(self._status, partial(self_answer, size), LONG_ANSWER_STEPS)
                return
            case w.MembersRequest():
                self.began(size)
                self.session.local(self._members, partial(self_answer, size))
                return
            case w.BackupRequest():
                self.began(size)
                # everything acknowledged before must be in it: the read tells when this node has applied that
                self.session.read(lambda machine, now_ms, node, session: None, partial(self._back_up, request.id, size))
                self.node.wake()
                return
            case w.ChunkRequest(index=index, offset=offset):
                size += self.node.config.limits.snapshot_chunk_bytes
                self.began(size)
                if not self.node.copy(index, offset, lambda data: self._say(request.id, size, w.Chunk(data))):
                    text = f"this node keeps no backup of entry {index}: request another"
                    self._say(request.id, size, w.Failed(Outcome.NO_SNAPSHOT, text))
                return
            case w.TransferRequest() | w.AddMemberRequest() | w.PromoteMemberRequest() | w.RemoveMemberRequest():
                self.began(size)
                self.node.administer(_admin_request(request), partial(self._administered, request.id, size))
                return
        self.began(size)
        self.session.submit(command, partial(self_answer, size))
        self.node.wake()

    def _check_put(self, put: w.PutRequest) -> w.Failed | None:
        """Return the refusal of a put that this node does not accept, or None."""
        if put.tube and not is_tube_name(put.tube):
            return w.Failed(Outcome.INVALID, _BAD_TUBE)
        if not 0 <= put.pri <= _U32:
            return w.Failed(Outcome.INVALID, f"pri: expected 0 to {_U32}")
        if not 0 <= put.delay_ms <= _LONGEST_MS or not 0 <= put.ttr_ms <= _LONGEST_MS:
            return w.Failed(Outcome.INVALID, f"delay_ms and ttr_ms: expected 0 to {_LONGEST_MS}")
        if self._counters.draining:
            return w.Failed(Outcome.DRAINING, "this node is draining: put on another")
        return None

    def _answer_here(self, id: int, reply: w.Failed | JobTooBig) -> None:
        self.began(_REQUEST_BYTES)
        self.session.local(lambda: reply, partial(self._answered, id, _REQUEST_BYTES))

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
        answer = w.Answer(id, index or self.node.machine.applied_index, cast("Reply | w.NodeReply", reply))
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


_BAD_TUBE = "tube: expected 1 to 200 of A-Z a-z 0-9 - + / ; . $ _ ( ) and no leading dash"


class ClientServerFactory(ConnectionFactory):
    protocol = ClientProtocol

"""A client of raftd's client listener: batches, and jobs that are pushed."""

from __future__ import annotations

import os

from raftd.bench.loaders.connection import Connection, LoadError, unexpected
from raftd.jobs import asks
from raftd.jobs import replies as r
from raftd.limits import SESSION_TOKEN_BYTES
from raftd.wire import client as w
from raftd.wire.frames import FrameDecoder

_TTR_MS = 3_600_000
#: Puts in a batch.
BATCH = 100
#: The greatest body that is confirmed only together with credit.
_FEW_BYTES = 4_096


class RaftdConnection(Connection):
    """Puts are asked for in batches. Takes are jobs that a subscription pushes, each with a delete of its own; as many are held at a time
    as were asked for at first."""

    def __init__(self, address: tuple[str, int], tube: str, body: bytes) -> None:
        super().__init__(address, tube, body)
        if len(body) > _FEW_BYTES:
            raise LoadError(f"bodies of {_FEW_BYTES} bytes at most")
        self._tube = tube
        self._job = asks.NewJob(0, 0, _TTR_MS, body)
        self._last_id = 0
        self._asked: dict[int, int] = {}  # by id: how many puts, or deletes as a number below zero
        self._subscription = 0
        self._received = self._prefetch = self._credit = 0
        self._decoder = FrameDecoder()
        self.socket.sendall(w.encode_hello(w.SessionHello("", os.urandom(SESSION_TOKEN_BYTES), "bench")))
        while (body_of_hello := self._decoder.next_frame()) is None:
            self._decoder.feed(self._read())
        self._decoder.greeted()
        w.decode_attached_hello(body_of_hello)

    def _request(self, what: asks.What, count: int = 0) -> bytes:
        self._last_id = id = self._last_id + 1
        self._asked[id] = count
        return w.encode_request(w.AskRequest(id, next(iter(self._asked)), [], what))

    def put(self, count: int) -> None:
        batches = [BATCH] * (count // BATCH) + [count % BATCH] * (count % BATCH > 0)
        self.socket.sendall(b"".join(self._request(asks.Put(self._tube, [self._job] * size), size) for size in batches))

    def take(self, count: int) -> None:
        if not self._subscription:
            self._prefetch = count
            request = self._request(asks.Subscribe([self._tube], count))
            self._subscription = self._last_id
            self.socket.sendall(request)
            return
        self._credit += count
        if self._credit * 2 >= self._prefetch:
            self.socket.sendall(self._request(asks.Flow(self._subscription, self._received, self._credit)))
            self._credit = 0

    def receive(self) -> None:
        self._decoder.feed(self._read())
        out = []
        while (body := self._decoder.next_frame()) is not None:
            answer = w.decode_answer(body)
            reply = answer.reply
            if type(reply) is r.Pushed:
                self._received = reply.number
                out.append(self._request(asks.Delete([(reply.job.id, reply.job.token)]), -1))
                continue
            count = self._asked.pop(answer.id, 0)
            if type(reply) is r.InsertedMany and count > 0:
                self.puts_done += count
            elif type(reply) is r.Missed and not reply.jobs:
                self.takes_done -= count
            elif not isinstance(reply, r.Subscribed | r.Flowing):
                raise unexpected(body)
        if out:
            self.socket.sendall(b"".join(out))

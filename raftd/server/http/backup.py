"""`/v1/backup`: everything that the cluster has acknowledged, as one file (what `raftd backup` writes)."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from raftd.node.loop import Node
from raftd.raft.messages import Snapshot
from raftd.server.access import may_operate
from raftd.server.http.exchange import Exchange
from raftd.server.http.routes import RAW, Ask, Needs, route
from raftd.server.http.site import Stream

#: Within this time (seconds) the snapshot of a large queue is written.
SNAPSHOT_S = 60.0


class BackupApi:
    def __init__(self, node: Node, clock: Any) -> None:
        self._node = node
        self._clock = clock

    @route("GET", "/v1/backup", Needs.OPERATE, bytes, kind=RAW, problems=("no-snapshot", "not-committed"))
    def _back_up(self, ask: Ask) -> None:
        """Back the queue up: a file for `raftd restore`."""
        call = ask.call
        if call.is_foreign:  # a link on another page would put everything into the browser's downloads
            call.problem("cross-site")
            return

        def late(may_have_left: bool) -> None:
            call.problem("not-committed", headers={"Retry-After": "1"})

        exchange = Exchange(self._node, self._clock, call, SNAPSHOT_S, late)

        def looked(is_allowed: bool) -> None:
            if not is_allowed:
                call.refused()
                exchange.close()
            else:
                self._node.backup(written)

        def written(snapshot: Snapshot | None, why_not: str) -> None:
            exchange.close()
            if snapshot is None:
                call.problem("no-snapshot", why_not)
                return
            name = f"raftd-{snapshot.index}.backup"
            copy = _Copy(self._node, self._clock, snapshot)
            headers = {"Content-Length": str(snapshot.size_bytes), "Content-Disposition": f'attachment; filename="{name}"'}
            copy.begin(call.stream(RAW, copy, headers))

        exchange.read(may_operate(call.login), looked)


@implementer(IPushProducer)
class _Copy:
    """A snapshot on its way to a client, piece by piece, as fast as he takes it."""

    def __init__(self, node: Node, clock: Any, snapshot: Snapshot) -> None:
        self._node = node
        self._clock = clock
        self._snapshot = snapshot
        self._stream: Stream | None = None
        self._done = 0  # bytes
        self._is_paused = self._is_reading = False

    def begin(self, stream: Stream | None) -> None:
        """None: the client has gone, or asked for the head alone."""
        self._stream = stream
        self._read()

    def _read(self) -> None:
        if self._stream is None or self._is_paused or self._is_reading:
            return
        if self._done == self._snapshot.size_bytes:
            stream, self._stream = self._stream, None
            stream.finish()
        elif self._node.copy(self._snapshot.index, self._done, self._has_read):
            self._is_reading = True
        else:
            self._stream.abort()  # it is kept no more: the client sees that some is missing

    def _has_read(self, data: bytes) -> None:
        self._is_reading = False
        if self._stream is not None:
            self._done += len(data)
            self._stream.write(data)
            self._clock.callLater(0, self._read)

    def pauseProducing(self) -> None:
        self._is_paused = True

    def resumeProducing(self) -> None:
        self._is_paused = False
        self._clock.callLater(0, self._read)

    def stopProducing(self) -> None:
        """He has gone."""
        self._stream = None

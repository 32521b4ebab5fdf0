"""What operators and their tools ask: is it alive, is it ready, how is it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raftd.node.loop import Node
from raftd.server.access import sees_everything
from raftd.server.http.metrics import KIND, Metrics
from raftd.server.http.site import Call
from raftd.server.stats import Counters

#: A node that is further behind the commit index than this is not ready (entries).
READY_LAG_ENTRIES = 10_000
#: Metrics are made anew at most this often (seconds).
METRICS_FRESH_S = 0.2


class Operations:
    def __init__(self, node: Node, clock: Any, counters: Counters) -> None:
        self._node = node
        self._counters = counters
        self._metrics = Metrics(node, counters)
        self._clock = clock
        self._measured = b""
        self._measured_s = -METRICS_FRESH_S

    def handles(self, call: Call) -> bool:
        """Whether it is one of these paths; then it is answered, at once."""
        answers: dict[str, Callable[[Call], None]]
        answers = {"healthz": self._alive, "readyz": self._ready, "metrics": self._measure}
        answer = answers.get(call.parts[0]) if len(call.parts) == 1 else None
        if answer is None:
            return False
        if call.method not in ("GET", "HEAD"):
            call.say(405, {"success": False}, {"Allow": "GET, HEAD"})
        else:
            answer(call)
        return True

    def _alive(self, call: Call) -> None:
        """It answers, so it is. Without a quorum too: a restart would not help."""
        # The dashboard of another node may ask, too.
        call.say(200, {"alive": True}, {"Cross-Origin-Resource-Policy": "cross-origin"})

    def _ready(self, call: Call) -> None:
        """Whether clients should be sent here."""
        raft, machine = self._node.raft, self._node.machine
        lag = raft.log.commit_index - machine.applied_index
        if self._counters.draining:
            why = "it is draining"
        elif not raft.leader:
            why = "no leader is known"
        elif raft.is_installing or lag > READY_LAG_ENTRIES:
            why = "it is catching up"
        else:
            why = ""
        told = {"ready": not why, "reason": why}
        if not self._node.has_users:
            told |= {"leader": raft.leader, "lag": lag}
        call.say(503 if why else 200, told)

    def _measure(self, call: Call) -> None:
        """Requests shortly after each other get the same answer."""
        if not sees_everything(self._node, call.login):
            call.refused()
            return
        now_s = self._clock.seconds()
        if now_s - self._measured_s >= METRICS_FRESH_S:
            self._measured, self._measured_s = self._metrics.text(), now_s
        call.answer(200, self._measured, KIND)

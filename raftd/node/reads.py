"""Linearizable reads: all reads that wait share one ReadIndex round, and run once this node has applied the index it gave."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import NamedTuple

from raftd.jobs.budget import Share
from raftd.jobs.machine import StateMachine
from raftd.node.gateway import Gateway
from raftd.node.session import Read
from raftd.raft.core import Raft
from raftd.raft.ready import ReadState


class _Round(NamedTuple):
    reads: list[Read]
    asked_ms: int


class Reads:
    """Of node `node`. `timeout_ms`: a round that is not answered for so long is asked for again. `share`: what reads may cost in a
    turn; `wake` asks for the next turn."""

    def __init__(self, node: int, raft: Raft, gateway: Gateway, timeout_ms: int, share: Share, wake: Callable[[], None]) -> None:
        self._node = node
        self._raft = raft
        self._gateway = gateway
        self._timeout_ms = timeout_ms
        self._share = share
        self._wake = wake
        self._rounds: dict[int, _Round] = {}  # by number
        self._ready: list[tuple[int, int, int, list[Read]]] = []  # (index, number, clock_ms, reads), a heap
        self._number = raft.incarnation << 32  # no answer to an earlier process fits

    @property
    def pending(self) -> int:
        """Rounds that are not answered, and those whose index is not applied here yet."""
        return len(self._rounds) + len(self._ready)

    def start_round(self, now_ms: int) -> None:
        """Ask the leader for a read index for all reads that wait."""
        if not self._gateway.reads:
            return
        reads = list(self._gateway.reads.values())
        self._gateway.reads.clear()
        self._number += 1
        self._rounds[self._number] = _Round(reads, now_ms)
        self._raft.read_index(self._number)

    def tick(self, now_ms: int) -> None:
        """Let the reads of rounds that are late join the next round."""
        for number in [number for number, asked in self._rounds.items() if now_ms - asked.asked_ms > self._timeout_ms]:
            self._gateway.await_read_index(self._rounds.pop(number).reads)

    def leader_changed(self) -> None:
        """No answer will come from the leader before: its reads join the next round."""
        for asked in self._rounds.values():
            self._gateway.await_read_index(asked.reads)
        self._rounds.clear()

    def confirmed(self, state: ReadState) -> None:
        """A round is answered; its reads run when entry `state.index` is applied."""
        asked = self._rounds.pop(state.context, None)
        if asked is not None:
            heappush(self._ready, (state.index, state.context, state.clock_ms, asked.reads))

    def run(self, machine: StateMachine, is_open: bool) -> None:
        """Run the reads whose index is applied, as far as the turn has time. `is_open`: `machine` has a row of this gateway, so it
        knows the sessions of this process."""
        while self._ready and self._ready[0][0] <= machine.applied_index:
            index, number, clock_ms, reads = heappop(self._ready)
            now_ms = max(clock_ms, machine.now_ms)
            at_index = max(index, machine.applied_index)
            for place, read in enumerate(reads):
                if self._share.left <= 0:  # the rest in the next turn, by a state that is newer or the same
                    heappush(self._ready, (index, number, clock_ms, reads[place:]))
                    self._wake()
                    return
                result = read.query(machine, now_ms, self._node, read.session.number if is_open else 0)
                self._share.spend(read.steps(machine, result))
                read.session.read_answered(read, result, at_index)

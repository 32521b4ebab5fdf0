"""After the faults: a random majority is healed, the rest stays broken for good, and the cluster must come to rest.

There must be a leader soon, every command that waits must end, all must agree, every due timer fires, nothing stays in
any buffer, what dead nodes held is given back, new clients are served, and nobody calls another election.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import msgspec

from raftd.raft.messages import EntryKind, TransferLead
from raftd.raft.progress import State
from raftd.raft.quorum import has_majority
from raftd.sim import history
from raftd.sim.checks import Violation
from raftd.sim.model import Model
from raftd.sim.process import Process
from raftd.wire.peer import PeerMessage

if TYPE_CHECKING:
    from raftd.sim.life import Life

#: After healing: a leader within so many election timeouts, and the time that it takes to dial again.
_LEADER_TIMEOUTS = 10
_DIAL_MS = 1_000
#: So many times longer where one is in doubt: all the others must vote for the same (seed 102304).
_UNANIMOUS = 3
_START_MS = 3_000
_REST_MS = 20_000
_SERVE_MS = 3_000
_CALM_MS = 2_000
_DUE_MS = 1_000
#: How the healed cluster is asked for more, until so few of all calls are unknown.
_MOST_UNKNOWN = 0.15
_MOST_CALLS = 4_000
#: Where each message carries one entry and each disk is slow, ten entries a second are committed (seed 1000765).
_WAVE_MS = 60_000
_WORKERS = 2
_PIPELINE = 12
_GOING = ("disconnect", "leave", "hurry", "reserve for ever", "crowd")


class Rest:
    """The last part of a life."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._deaf: set[int] = set()  # broken, but running: they send and never hear

    # -- healing ------------------------------------------------------------------------------

    def heal(self) -> None:
        """Everything but a minority works again, that for good."""
        life = self._life
        life.healed = True
        life.note("healing")
        life.broken = set(life.unusable)
        if not life.faults.doubted():  # the votes of one count for less: it may need all the others
            candidates = [node for node in life.nodes if node not in life.broken]
            voters = set(life.checks.configuration.voters)
            if voters != set(range(1, life.options.nodes + 1)) or life.checks.is_changing:
                candidates = []  # who would have to be spared depends on a change that may be under way
            while candidates and len(life.broken) < life.options.broken_at_the_end:
                node = candidates.pop(life.random.randrange(len(candidates)))
                life.broken.add(node)
                if node in life.running and life.random.random() < 0.5:
                    self._deaf.add(node)
        life.network.weather = msgspec.structs.replace(life.network.weather, loss=0.0, double=0.0, reorder=0.0)
        life.network.heal()
        life.network.interfere = self._hears
        life.slow_until_us.clear()
        for disk in life.disks.values():
            disk.mend()
            disk.make_room()
            disk.give_room()
        for node in sorted(life.broken & life.running.keys() - self._deaf):
            life.end(life.running[node], power=True)
        for client in life.clients:
            if client.process is not None and client.process.node_id in self._deaf:
                client.disconnect()
        for process in list(life.running.values()):
            if process.stopped:
                process.go_on()
            process.worker.go_on()
        # Frames were lost on connections that stand, which no TCP does: they are made anew.
        for place, one in enumerate(life.nodes):
            for other in life.nodes[place + 1 :]:
                life.network.break_connection(one, other)
        for node in life.nodes:
            life.start(node)

    def _hears(self, sender: int, to: int, message: PeerMessage) -> int:
        return 0 if to in self._deaf else 1

    # -- rest ---------------------------------------------------------------------------------

    @property
    def _alive(self) -> dict[int, Process]:
        """Those that work, and are members as far as that is committed."""
        life = self._life
        members = life.checks.members
        return {node: process for node, process in sorted(life.running.items()) if node not in life.broken and node in members}

    def _is_enough(self, nodes: Collection[int]) -> bool:
        """Whether these are a majority, of both halves if the configuration is joint."""
        return has_majority(self._life.checks.halves, nodes)

    def come(self) -> None:
        """Raises Violation."""
        life = self._life
        life.wait(_START_MS, self._all_run, lambda: "a node does not start")
        if not self._is_enough(self._alive):
            life.counted("(too few nodes are left to go on)")
            return
        longest_ms = _LEADER_TIMEOUTS * life.options.election_timeout_ms + _DIAL_MS
        if life.faults.doubted():
            longest_ms *= _UNANIMOUS
        life.wait(longest_ms, self._is_followed, lambda: f"no leader within {longest_ms} ms after healing")
        # Its first entry is committed once a majority has caught up, which small windows on slow disks make long (seed 302209).
        life.wait(_REST_MS, self._is_led, lambda: "the leader commits nothing")
        life.wait(_REST_MS, lambda: not self._waiting(), lambda: f"commands never end: {self._waiting()[:3]}")
        life.wait(_REST_MS, self._all_agree, lambda: "the nodes do not catch up with each other")
        life.wait(_REST_MS, self._no_timer_is_due, lambda: "timers that are due do not fire")
        life.wait(_REST_MS, lambda: self._is_led() and not self._left_over(), lambda: f"not at rest: {self._left_over()}")
        self._work()
        life.wait(_REST_MS, lambda: self._is_led() and not self._left_over(), lambda: f"not at rest after more work: {self._left_over()}")
        self._interrupt_a_transfer()
        life.wait(_REST_MS, lambda: self._is_led() and not self._left_over(), lambda: f"not at rest: {self._left_over()}")
        elections = life.elections
        visitors = [life.visit(node, 2) for node in self._alive]
        for visitor in visitors:
            visitor.do("put", (0, 0, 0, 3))
            visitor.do("peek", (0, 0, 0, 3))
        life.wait(_SERVE_MS, lambda: not any(visitor.pending for visitor in visitors), lambda: "new clients are not served")
        life.pass_time(_CALM_MS)
        if life.elections != elections or not self._is_led():
            raise Violation("liveness: another election, though nothing happens any more")
        life.wait(_REST_MS, self._all_agree, lambda: "the nodes do not agree at the end")

    def _work(self) -> None:
        """A healed cluster is asked until few calls of the whole run are without an answer: with more the history would prove little,
        and what the faults have left is met by every kind of call. Where limits are tiny a node may still fall behind, take over a
        snapshot, and not know what became of its clients' calls."""
        life = self._life
        verbs = {name: weight for name, weight in life.options.verbs.items() if name not in _GOING}
        names, weights = list(verbs), list(verbs.values())
        workers = [life.visit(node, _PIPELINE, life.options.tubes) for node in self._alive for _ in range(_WORKERS)]
        while _MOST_UNKNOWN * len(life.calls) < sum(call.answered is None for call in life.calls) and len(life.calls) < _MOST_CALLS:
            for worker in workers:
                for verb in life.random.choices(names, weights, k=_PIPELINE // 2):
                    numbers = tuple(life.random.randrange(1 << 30) for _ in range(4))
                    worker.do(verb, (numbers[0], numbers[1] // 5 * 5 + numbers[1] % 3, *numbers[2:]))  # no wait is long
            life.wait(_WAVE_MS, lambda: not any(worker.pending for worker in workers), lambda: f"calls never end: {self._waiting()[:3]}")
        for worker in workers:
            worker.disconnect()

    def _interrupt_a_transfer(self) -> None:
        """The lead is handed to a node that is killed in this moment, if there are enough others: the cluster must serve all the
        same (R32)."""
        life = self._life
        leader = self._leader()
        if leader is None:
            return
        target = leader.node.raft.lead().best_successor()
        if target and target in self._alive and self._is_enough(self._alive.keys() - {target}):
            leader.soon(leader.node.administer, TransferLead(target), lambda result: None)
            life.end(life.running[target], power=False)
            life.start_later(target, 2 * life.options.election_timeout_ms)
            life.wait(_START_MS, self._all_run, lambda: "a node does not start again")

    def _all_run(self) -> bool:
        """A slow node may still be coming up, and one may refuse."""
        life = self._life
        return all(node in life.running for node in life.checks.members & set(life.nodes) - life.broken - life.unusable - life.removed)

    def _leader(self) -> Process | None:
        """Who leads in the newest term, followed by a majority."""
        alive = self._alive.values()
        newest = max(process.node.raft.term for process in alive)
        leader = next((one for one in alive if one.node.raft.is_leader and one.node.raft.term == newest), None)
        if leader is None:
            return None
        followers = [one for one in alive if one.node.raft.leader == leader.node_id and one.node.raft.term == newest]
        return leader if self._is_enough([one.node_id for one in followers]) else None

    def _is_followed(self) -> bool:
        return self._leader() is not None

    def _is_led(self) -> bool:
        """The leader has committed an entry of its own: it serves."""
        leader = self._leader()
        return leader is not None and leader.node.raft.has_committed_own_entry

    def _waiting(self) -> list[str]:
        """Calls without an answer, but for a wait without end and what was asked behind it."""
        found = []
        for client in self._life.clients:
            for call in client.pending:
                if call.what == [5, None]:
                    break
                found.append(f"{call.what} of {call.who}")
        return found

    def _all_agree(self) -> bool:
        applied = {process.node.machine.applied_index for process in self._alive.values()}
        return applied == {len(self._life.checks.committed)}

    def _no_timer_is_due(self) -> bool:
        leader = next((process for process in self._alive.values() if process.node.raft.has_committed_own_entry), None)
        if leader is None:
            return False
        due_ms = leader.node.machine.next_due_ms()
        return due_ms is None or due_ms > (leader.node.raft.clock_ms() or 0) - _DUE_MS

    def _left_over(self) -> list[str]:
        """What a cluster at rest may not hold: buffers that something was left in, peers that are never found equal (R33), nodes
        that doubt though all are up, sessions of nobody."""
        found = []
        life = self._life
        for node, process in self._alive.items():
            raft, gateway, machine = process.node.raft, process.node.gateway, process.node.machine
            contents: dict[str, Any] = {
                "batches": gateway._unapplied,
                "sessions with commands": gateway._waiting,
                "closes": gateway._closes,
                "reads": gateway.reads,
                "reads that are under way": process.node._reads.pending,
                "messages that wait for the disk": process.node._held,
                "writes": process.unfinished,
                "a snapshot to be finished": process.node._compaction._is_taking or raft.is_installing,
                "bytes of sessions": gateway.held_bytes - sum(session._held_bytes for session in gateway.sessions.values()),
                "doubts": raft.doubtful and self._alive.keys() == self._life.checks.members,
                "a change of membership": raft.membership.latest.outgoing or self._alive.keys() & set(raft.membership.latest.learners),
            }
            row = machine.gateways.get(node)
            if row is None or not row.is_open or row.incarnation != gateway.incarnation:
                contents["no open gateway"] = True
            else:
                contents["sessions that nobody has"] = row.sessions.keys() - gateway.sessions.keys()
            contents["open gateways of dead nodes"] = [
                other for other, row in machine.gateways.items() if row.is_open and other not in self._alive
            ]
            contents["sessions that are gone, and tubes with jobs for others"] = machine.closing or machine.unmatched
            contents["no room, as it says"] = machine.room_is_scarce
            if self._alive.keys() == life.checks.members:
                contents["another feature level than it could have"] = machine.level != min(life.levels[member] for member in self._alive)
            if raft.is_leader:
                contents["uncommitted bytes"] = raft._uncommitted_bytes
                for peer in self._alive.keys() - {node}:
                    progress = raft.progress[peer]
                    done = (progress.state, progress.match_index, list(progress._in_flight))
                    contents[f"something to do for node {peer}"] = done != (State.REPLICATE, raft.log.last_index, [])
            found += [f"node {node} has {what}" for what, content in contents.items() if content]
        return found

    # -- judging ------------------------------------------------------------------------------

    def judge(self) -> None:
        """Raises Violation."""
        checks = self._life.checks
        checks.compare_states()
        batches = checks.model.batches
        if len(set(batches)) != len(batches):
            raise Violation("I15: a batch took effect twice")
        entries = [
            history.LogEntry(entry.index, entry.time_ms, entry.data if entry.kind is EntryKind.BATCH else b"") for entry in checks.committed
        ]
        verdict = history.check(entries, self._life.calls, Model(msgspec.structs.asdict(checks.costs)))
        if verdict.problems:
            raise Violation(f"history: {verdict.problems[0]}")
        if not verdict.proves_something:
            self._life.counted("(run with too few answers to judge by them alone)")

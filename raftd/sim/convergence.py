"""After the faults: a random majority is healed, the rest stays broken for good, and the cluster must come to rest.

There must be a leader soon, every command that waits must end, all must agree, every due timer fires, nothing stays in
any buffer, what dead nodes held is given back, new clients are served, and no other election starts.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from raftd.jobs.commands import CLIENTS_LEVEL
from raftd.raft.messages import EntryKind, TransferLead
from raftd.raft.progress import State
from raftd.raft.quorum import has_majority
from raftd.sim import history
from raftd.sim.checks import Violation
from raftd.sim.model import Model
from raftd.sim.process import Process
from raftd.sim.simulation import Simulation
from raftd.wire.peer import PeerMessage

#: After healing: election timeouts until there must be a leader, and the time that it takes to dial again.
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
#: Where each message carries one entry and each disk is slow, ten entries a second are committed (seeds 1000765, 7910048).
_WAVE_MS = 60_000
_WORKERS = 2
_PIPELINE = 12
_GOING = ("disconnect", "leave", "stop waiting", "reserve for ever", "crowd")


class ConvergenceCheck:
    """The last part of a run."""

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
        self._deaf: set[int] = set()  # broken, but running: they send and never hear

    # -- healing ------------------------------------------------------------------------------

    def heal(self) -> None:
        """Everything but a minority works again, that for good."""
        sim = self._sim
        sim.healed = True
        sim.note("healing")
        sim.broken = set(sim.unusable)
        if not sim.doubtful():  # the votes of one count for less: it may need all the others
            candidates = [node for node in sim.nodes if node not in sim.broken]
            voters = set(sim.checks.configuration.voters)
            if voters != set(range(1, sim.options.nodes + 1)) or sim.checks.is_changing:
                candidates = []  # who would have to be spared depends on a change that may be under way
            while candidates and len(sim.broken) < sim.options.broken_at_the_end:
                node = candidates.pop(sim.random.randrange(len(candidates)))
                sim.broken.add(node)
                if node in sim.running and sim.random.random() < 0.5:
                    self._deaf.add(node)
        sim.network.conditions = msgspec.structs.replace(sim.network.conditions, loss=0.0, double=0.0, reorder=0.0)
        sim.network.heal()
        sim.network.interfere = self._hears
        sim.slow_until_us.clear()
        for disk in sim.disks.values():
            disk.mend()
            disk.make_space()
            disk.give_space()
        for node in sorted(sim.broken & sim.running.keys() - self._deaf):
            sim.end(sim.running[node], power=True)
        for client in sim.clients:
            if client.process is not None and client.process.node_id in self._deaf:
                client.disconnect()
        for session in sim.sessions:
            if session.process is not None and session.process.node_id in self._deaf:
                session.break_connection()
        for process in list(sim.running.values()):
            if process.stopped:
                process.resume()
            process.worker.resume()
        # Frames were lost on connections that stand, which no TCP does: they are made anew.
        for place, one in enumerate(sim.nodes):
            for other in sim.nodes[place + 1 :]:
                sim.network.break_connection(one, other)
        for node in sim.nodes:
            sim.start(node)

    def _hears(self, sender: int, to: int, message: PeerMessage) -> int:
        return 0 if to in self._deaf else 1

    # -- rest ---------------------------------------------------------------------------------

    @property
    def _alive(self) -> dict[int, Process]:
        """Those that work, and are members as far as that is committed."""
        sim = self._sim
        members = sim.checks.members
        return {node: process for node, process in sorted(sim.running.items()) if node not in sim.broken and node in members}

    def _is_enough(self, nodes: Collection[int]) -> bool:
        """Whether these are a majority, of both halves if the configuration is joint."""
        return has_majority(self._sim.checks.halves, nodes)

    def converge(self) -> None:
        """Raises Violation."""
        sim = self._sim
        sim.wait(_START_MS, self._all_run, lambda: "a node does not start")
        if not self._is_enough(self._alive):
            sim.counted("(too few nodes are left)")
            return
        longest_ms = _LEADER_TIMEOUTS * sim.options.election_timeout_ms + _DIAL_MS
        if sim.doubtful():
            longest_ms *= _UNANIMOUS
        sim.wait(longest_ms, self._is_followed, lambda: f"no leader within {longest_ms} ms after healing")
        # Its first entry is committed once a majority has caught up, which small windows on slow disks make long (seed 302209).
        sim.wait(_REST_MS, self._is_led, lambda: "the leader commits nothing")
        # They touch what they hold for ever. Where windows are tiny all nodes are never at the same entry (seed 7900507), and a put that is
        # larger than all that may be uncommitted never finds nothing uncommitted (seed 7902366).
        self._end_sessions()
        sim.wait(_WAVE_MS, lambda: not self._waiting(), lambda: f"commands never end: {self._waiting()[:3]}")
        sim.wait(_REST_MS, self._all_agree, lambda: "the nodes do not catch up with each other")
        sim.wait(_REST_MS, self._no_timer_is_due, lambda: "timers that are due do not fire")
        sim.wait(_REST_MS, lambda: self._is_led() and not self._left_over(), lambda: f"not at rest: {self._left_over()}")
        self._work()
        sim.wait(_REST_MS, lambda: self._is_led() and not self._left_over(), lambda: f"not at rest after more work: {self._left_over()}")
        self._interrupt_a_transfer()
        sim.wait(_REST_MS, lambda: self._is_led() and not self._left_over(), lambda: f"not at rest: {self._left_over()}")
        elections = sim.elections
        visitors = [sim.visit(node, 2) for node in self._alive]
        for visitor in visitors:
            visitor.do("put", (0, 0, 0, 3))
            visitor.do("peek", (0, 0, 0, 3))
        sim.wait(_SERVE_MS, lambda: not any(visitor.pending for visitor in visitors), lambda: "new clients are not served")
        sim.pass_time(_CALM_MS)
        if sim.elections != elections or not self._is_led():
            raise Violation("liveness: another election, though nothing happens any more")
        sim.wait(_REST_MS, self._all_agree, lambda: "the nodes do not agree at the end")

    def _end_sessions(self) -> None:
        """Whatever has happened to them, they can be gone on with, and ended."""
        sim = self._sim
        if max(process.node.machine.level for process in self._alive.values()) < CLIENTS_LEVEL:
            for session in sim.sessions:
                session.is_ended = True  # it has never begun, for not all nodes know sessions
            return
        sim.wait(_REST_MS, lambda: all(session.core.is_attached for session in sim.sessions), lambda: "a session is not resumed")
        if sim.sessions and any(process.node.machine.schedules.by_name for process in self._alive.values()):
            sim.wait(_REST_MS, self._no_schedules, lambda: "schedules are not removed")
        for session in sim.sessions:
            session.end()
        sim.wait(_REST_MS, lambda: all(session.is_ended for session in sim.sessions), lambda: "a session does not end")

    def _no_schedules(self) -> bool:
        are_there = any(process.node.machine.schedules.by_name for process in self._alive.values())
        if are_there:
            self._sim.sessions[0].remove_schedules()
        return not are_there

    def _work(self) -> None:
        """A healed cluster is asked until few calls of the whole run are without an answer: with more the history would prove little,
        and what the faults have left is met by every kind of call. Where limits are tiny a node may still fall behind, take over a
        snapshot, and not know what became of its clients' calls."""
        sim = self._sim
        verbs = {name: weight for name, weight in sim.options.verbs.items() if name not in _GOING}
        names, weights = list(verbs), list(verbs.values())
        workers = [sim.visit(node, _PIPELINE, sim.options.tubes) for node in self._alive for _ in range(_WORKERS)]
        while _MOST_UNKNOWN * len(sim.calls) < sum(call.answered is None for call in sim.calls) and len(sim.calls) < _MOST_CALLS:
            for worker in workers:
                for verb in sim.random.choices(names, weights, k=_PIPELINE // 2):
                    numbers = tuple(sim.random.randrange(1 << 30) for _ in range(4))
                    worker.do(verb, (numbers[0], numbers[1] // 5 * 5 + numbers[1] % 3, *numbers[2:]))  # no wait is long
            sim.wait(_WAVE_MS, lambda: not any(worker.pending for worker in workers), lambda: f"calls never end: {self._waiting()[:3]}")
        for worker in workers:
            worker.disconnect()

    def _interrupt_a_transfer(self) -> None:
        """The lead is handed to a node that is killed in this moment, if there are enough others: the cluster must serve all the
        same (R32)."""
        sim = self._sim
        leader = self._leader()
        if leader is None:
            return
        target = leader.node.raft.leadership.best_successor()
        if target and target in self._alive and self._is_enough(self._alive.keys() - {target}):
            leader.soon(leader.node.administer, TransferLead(target), lambda result: None)
            sim.end(sim.running[target], power=False)
            sim.start_later(target, 2 * sim.options.election_timeout_ms)
            sim.wait(_START_MS, self._all_run, lambda: "a node does not start again")

    def _all_run(self) -> bool:
        """A slow node may still be coming up, and one may refuse."""
        sim = self._sim
        return all(node in sim.running for node in sim.checks.members & set(sim.nodes) - sim.broken - sim.unusable - sim.removed)

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
        for client in self._sim.clients:
            for call in client.pending:
                if call.what == [5, None]:
                    break
                found.append(f"{call.what} of {call.who}")
        return found

    def _all_agree(self) -> bool:
        applied = {process.node.machine.applied_index for process in self._alive.values()}
        return applied == {len(self._sim.checks.committed)}

    def _no_timer_is_due(self) -> bool:
        leader = next((process for process in self._alive.values() if process.node.raft.has_committed_own_entry), None)
        if leader is None:
            return False
        due_ms = leader.node.machine.next_due_ms()
        return due_ms is None or due_ms > (leader.node.raft.clock_ms() or 0) - _DUE_MS

    def _left_over(self) -> list[str]:
        """What a cluster at rest may not hold: buffers that something was left in, peers that are never found equal (R33), nodes
        that are doubtful though all are up, sessions without a client."""
        found = []
        sim = self._sim
        for node, process in self._alive.items():
            raft, gateway, machine = process.node.raft, process.node.gateway, process.node.machine
            contents: dict[str, Any] = {
                **process.node.pending,
                "writes": process.unfinished,
                "doubts": raft.doubtful and self._alive.keys() == self._sim.checks.members,
                "a change of membership": raft.membership.latest.outgoing or self._alive.keys() & set(raft.membership.latest.learners),
            }
            row = machine.gateways.get(node)
            if row is None or not row.is_open or row.incarnation != gateway.incarnation:
                contents["no open gateway"] = True
            else:
                contents["sessions without a client"] = (row.sessions.keys() | row.attached.keys()) - gateway.sessions.keys()
            contents["open gateways of dead nodes"] = [
                other for other, row in machine.gateways.items() if row.is_open and other not in self._alive
            ]
            contents["sessions of clients"] = machine.clients.detaching or machine.clients.sessions
            contents["sessions that are gone, and tubes with jobs for others"] = machine.closing or machine.unmatched
            contents["no disk space, as it says"] = machine.space_is_scarce
            if self._alive.keys() == sim.checks.members:
                contents["another feature level than it could have"] = machine.level != min(sim.levels[member] for member in self._alive)
            if raft.is_leader:
                contents["uncommitted bytes"] = raft.uncommitted_bytes
                for peer in self._alive.keys() - {node}:
                    progress = raft.progress[peer]
                    done = (progress.state, progress.match_index, progress.messages_in_flight)
                    contents[f"something to do for node {peer}"] = done != (State.REPLICATE, raft.log.last_index, 0)
            found += [f"node {node} has {what}" for what, content in contents.items() if content]
        return found

    # -- judging ------------------------------------------------------------------------------

    def judge(self) -> None:
        """Raises Violation."""
        checks = self._sim.checks
        checks.compare_states()
        batches = checks.model.batches
        if len(set(batches)) != len(batches):
            raise Violation("I15: a batch took effect twice")
        entries = [
            history.LogEntry(entry.index, entry.time_ms, entry.data if entry.kind is EntryKind.BATCH else b"") for entry in checks.committed
        ]
        verdict = history.check(entries, self._sim.calls, Model(msgspec.structs.asdict(checks.costs)))
        if verdict.problems:
            raise Violation(f"history: {verdict.problems[0]}")
        if not verdict.proves_something:
            self._sim.counted("(run with too few answers to judge by them alone)")

"""One seed: a cluster of production code lives through its plan, is healed, and must come to rest.

First safety: twenty seconds of faults and load, every step checked. Then a random majority is healed and the rest
stays broken for good: there must be a leader soon, every command that waits must end, all must agree.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from random import Random
from traceback import format_exception
from typing import Any

import msgspec

from raftd.errors import StorageError
from raftd.jobs.commands import Settings
from raftd.limits import MAX_JOB_BYTES, TICK_MS
from raftd.node import NodeConfig
from raftd.raft.messages import EntryKind
from raftd.raft.ready import Persist
from raftd.sim import history
from raftd.sim.checks import Checks, Violation
from raftd.sim.clients import SimClient
from raftd.sim.disk import DAMAGES, Disk, PowerCut
from raftd.sim.network import Network
from raftd.sim.process import Process
from raftd.sim.scheduler import Scheduler
from raftd.sim.swarm import FAULT_MS, SHAPES, Event, Options
from raftd.wire.peer import PeerMessage

_WALL_S = 1_700_000_000.0
_MS = 1_000
#: Time for clients to connect before a leader is cut off.
_PROBE_MS = 60
_COMPARE_STEPS = 2_000
#: After healing: a leader within so many election timeouts, and then everything else within so many milliseconds.
_LEADER_TIMEOUTS = 10
_REST_MS = 20_000


class Outcome(msgspec.Struct):
    """What became of a seed. `violation` is empty if nothing was wrong."""

    seed: int
    violation: str = ""
    trace_hash: str = ""
    simulated_ms: int = 0
    steps: int = 0
    operations: int = 0
    unknown: int = 0
    elections: int = 0
    entries: int = 0
    faults: dict[str, int] = {}


class Life:
    """The world of one seed."""

    def __init__(self, options: Options, events: list[Event], keep_trace: bool = False) -> None:
        self.options = options
        self.scheduler = Scheduler()
        #: What happened, a line each, if it was asked for.
        self.trace: list[str] = []
        self._events = events
        self._keep_trace = keep_trace
        self._hash = blake2b(digest_size=16)
        self._random = Random(f"world {options.seed}")
        self._faults: Counter[str] = Counter()
        self._elections = 0
        self._nodes = list(range(1, options.nodes + 1))
        self._disks = {node: Disk(options.sector_bytes) for node in self._nodes}
        self.checks = Checks(self._disks, max(1, options.election_timeout_ms // TICK_MS))
        self._running: dict[int, Process] = {}
        self._lives = 0
        self._wall_offset_s: dict[int, float] = dict(zip(self._nodes, options.wall_offsets_s, strict=True))
        self._slow_until_us: dict[int, int] = {}
        self._damaged: int | None = None
        self._damages: list[str] = []  # since that node last started
        self._unusable: set[int] = set()  # refused to start
        self._broken: set[int] = set()  # for good
        self._healed = False
        self.network = Network(self.scheduler, self._random, options.weather, self)
        self._jobs: list[int] = []
        self._clients = [SimClient(self, number, options.pipeline, options.tubes, self._jobs) for number in range(options.clients)]
        self._probers: list[SimClient] = []

    def run(self) -> Outcome:
        """Live. Nothing is raised: what was wrong is in the outcome."""
        violation = ""
        try:
            with _limited(self.options.limits):
                self._live()
        except Violation as wrong:
            violation = str(wrong)
        except Exception as error:  # of the simulator's own, or one that nobody may raise here
            violation = f"bug: {error!r}"
            self.trace += format_exception(error)
        if violation:
            self.note(f"VIOLATION {violation}")
        calls = self._calls
        return Outcome(
            self.options.seed,
            violation,
            self._hash.hexdigest(),
            self.scheduler.now_us // _MS,
            self.scheduler.steps,
            len(calls),
            sum(call.answered is None for call in calls),
            self._elections,
            len(self.checks.committed),
            dict(sorted(self._faults.items())),
        )

    def _live(self) -> None:
        for node in self._nodes:
            self._start(node)
        for event in self._events:
            self.scheduler.after(event.at_ms * _MS, self._happen, event)
        self._pass(FAULT_MS)
        self._heal()
        self._come_to_rest()
        self._judge()

    def _pass(self, ms: int) -> None:
        end_us = self.scheduler.now_us + ms * _MS
        while self.scheduler.step(end_us):
            if self.scheduler.steps % _COMPARE_STEPS == 0:
                self.checks.compare_states()

    def _wait(self, ms: int, until: Callable[[], bool], what: Callable[[], str]) -> None:
        end_us = self.scheduler.now_us + ms * _MS
        while not until():
            if self.scheduler.now_us >= end_us:
                raise Violation(f"liveness: {what()}")
            self._pass(TICK_MS)

    # -- what processes and the network see ---------------------------------------------------

    def stepped(self, process: Process) -> None:
        self.checks.stepped(process)

    def leaving(self, process: Process, to: int, message: PeerMessage) -> None:
        self.checks.leaving(process, to, message)

    def durable(self, process: Process, persist: Persist) -> None:
        self.checks.durable(process.node_id, persist)

    def disk_us(self, node: int) -> int:
        least, most = self.options.disk_us
        slower = 50 if self._slow_until_us.get(node, 0) > self.scheduler.now_us else 1
        return self._random.randrange(least, most) * slower

    def wall_s(self, node: int) -> float:
        return _WALL_S + self._wall_offset_s[node] + self.scheduler.seconds()

    def now_us(self) -> int:
        return self.scheduler.now_us

    @property
    def _calls(self) -> list[history.Call]:
        return [call for client in self._clients + self._probers for call in client.calls]

    def process_at(self, node: int) -> Process | None:
        process = self._running.get(node)
        return process if process is not None and not process.stopped else None

    def process_for(self, number: int) -> Process | None:
        usable = [process for _, process in sorted(self._running.items()) if not process.stopped]
        return usable[number % len(usable)] if usable else None

    def happened(self, what: str, *numbers: int) -> None:
        self.note(f"{what} {' '.join(map(str, numbers))}")

    def counted(self, fault: str) -> None:
        self._faults[fault] += 1

    def tell(self, line: str) -> None:
        self._elections += ": leader in term" in line
        self.note(line)

    def note(self, text: str) -> None:
        """Into the trace."""
        line = f"{self.scheduler.now_us} {text}\n"
        self._hash.update(line.encode())
        if self._keep_trace:
            self.trace.append(f"{self.scheduler.now_us / 1e6:10.6f}  {text}")

    # -- processes ----------------------------------------------------------------------------

    def _start(self, node: int) -> None:
        if node in self._running or node in self._unusable or node in self._broken:
            return
        self._lives += 1
        options = self.options
        config = NodeConfig(
            node,
            tuple(self._nodes),
            "sim",
            options.election_timeout_ms,
            options.heartbeat_ms,
            Settings(MAX_JOB_BYTES, options.session_grace_ms),
        )
        try:
            process = Process(self, config, self._disks[node], Random(self._random.random()), options.clock_rates[node - 1], self._lives)
        except StorageError as refused:
            self.note(f"node {node} refuses to start: {refused}")
            if node != self._damaged or not self._damages:
                raise Violation(f"I8: node {node} finds its disk damaged, which it is not: {refused}") from None
            if len(self._damages) == 1 and self._damages[0].endswith("vote"):
                raise Violation(f"I8: one slot of node {node}'s vote file was damaged, and the other is not enough: {refused}") from None
            self._unusable.add(node)
            self.counted("(node refused to start for its damage)")
            return
        except (OSError, PowerCut) as error:
            self.note(f"node {node} cannot start: {error!r}")
            self._disks[node].exit()
            if isinstance(error, PowerCut):
                self._lose_power(node)
            self._later(node, 500)
            return
        self.note(f"node {node} starts: {'; '.join(process.opened.notes)}")
        if node == self._damaged:
            self._damages.clear()
        if process.opened.identity.doubtful:
            self.counted("(start of a node in doubt)")
        self._running[node] = process
        self.checks.started(process)
        self.network.started(process)

    def _later(self, node: int, ms: int) -> None:
        self.scheduler.after(ms * _MS, self._start, node)

    def _end(self, process: Process, power: bool) -> None:
        """The process is gone; with `power` all that its disk had not synced, but for what it keeps."""
        node = process.node_id
        process.die()
        self._running.pop(node, None)
        self.checks.ended(process)
        for client in self._clients + self._probers:
            if client.process is process:
                client.forget()
        self.network.ended(node)
        disk = self._disks[node]
        disk.exit()
        disk.mend()
        if power:
            self._lose_power(node)

    def _lose_power(self, node: int) -> None:
        keep = self.options.keep
        self._disks[node].crash(lambda path, sector: self._random.random() < keep)

    def power_cut(self, process: Process) -> None:
        self.note(f"node {process.node_id} loses power in the middle of a write")
        self._end(process, power=True)
        self._later(process.node_id, 10 + self._random.randrange(self.options.longest_ms))

    def ended_itself(self, process: Process, error: BaseException) -> None:
        if isinstance(error, Violation):
            raise error
        if not isinstance(error, OSError):
            raise Violation(f"R35: node {process.node_id} ended itself for a bug: {error!r}") from error
        self.note(f"node {process.node_id} ends itself: {error}")
        self._end(process, power=False)
        self._later(process.node_id, 10 + self._random.randrange(self.options.longest_ms))

    # -- the plan -----------------------------------------------------------------------------

    def _happen(self, event: Event) -> None:
        kind, numbers = event.kind, event.numbers
        if kind.startswith("client "):
            self._clients[numbers[0] % len(self._clients)].do(kind.removeprefix("client "), numbers)
            return
        if self._healed:
            return
        node = self._nodes[numbers[0] % len(self._nodes)]
        if (numbers[0] >> 8) % 100 < 100 * self.options.aims:
            node = self._leader() or node
        process = self._running.get(node)
        getattr(self, "_do_" + kind.replace(" ", "_"))(node, process, numbers, 10 + numbers[1] % self.options.longest_ms)
        self.counted(kind)
        self.note(f"fault: {kind}, node {node}, {numbers[1]}")

    def _do_power(self, node: int, process: Process | None, numbers: tuple[int, ...], ms: int) -> None:
        if process is not None:
            self._end(process, power=True)
            self._later(node, ms)

    def _do_power_in_a_write(self, node: int, process: Process | None, numbers: tuple[int, ...], ms: int) -> None:
        self._disks[node].cut_power_in(1 + numbers[2] % 8)

    def _do_kill(self, node: int, process: Process | None, numbers: tuple[int, ...], ms: int) -> None:
        if process is not None:
            self._end(process, power=False)
            self._later(node, ms)

    def _do_power_everywhere(self, node: int, process: Process | None, numbers: tuple[int, ...], ms: int) -> None:
        for other, running in sorted(self._running.items()):
            self._end(running, power=True)
            self._later(other, ms + self._random.randrange(1_000))

    def _do_stop(self, node: int, process: Process | None, numbers: tuple[int, ...], ms: int) -> None:
        if process is not None and not process.stopped:
            process.stop()
            self.scheduler.after((2 * self.options.election_timeout_ms + ms) * _MS, process.go_on)

    def _do_partition(self, node: int, process: Process | None, numbers: tuple[int, ...], ms: int) -> None:
        nodes = self._nodes[numbers[2] % len(self._nodes) :] + self._nodes[: numbers[2] % len(self._nodes)]
        half = len(nodes) // 2
        shape = SHAPES[numbers[3] % len(SHAPES)]
        if shape == "one node":
            groups = [{node}, set(nodes) - {node}]
        elif shape == "halves":
            groups = [set(nodes[:half]), set(nodes[half:])]
        elif shape == "bridge":
            groups = [{*nodes[:half], node}, {*nodes[half:], node}]
        else:  # each hears a majority, no two the same
            groups = [{nodes[(place + step) % len(nodes)] for step in range(half + 1)} for place in range(len(nodes))]
        self.counted(f"partition: {shape}")
        leader = self._leader()
        if leader is not None and shape in ("one node", "halves"):
            self._probe(leader, _PROBE_MS)

        def cut() -> None:
            if not self._healed:
                self.network.partition(self._nodes, *groups)
                self.scheduler.after(ms * _MS, self._end_of_partition, self.network.cut)

        self.scheduler.after(_PROBE_MS * _MS, cut)

    def _do_deaf_leader(self, node: int, process: Process | None, numbers: tuple[int, ...], ms: int) -> None:
        leader = self._leader()
        if leader is None:
            return
        others = [other for other in self._nodes if other != leader]
        late_us = (200 + numbers[2] % 600) * _MS
        clogged = {(other, leader): late_us for other in others}
        self.network.clogged.update(clogged)

        def cut() -> None:
            if self._healed:
                return
            self.network.cut_off({(leader, other) for other in others})
            self.scheduler.after((2 * self.options.election_timeout_ms + ms) * _MS, self._end_of_partition, self.network.cut)

        self.scheduler.after(late_us // 2, cut)
        self._probe(leader, late_us // 2 // _MS)

    def _leader(self) -> int | None:
        return next((process.node_id for process in self._running.values() if process.node.raft.is_leader), None)

    def _probe(self, leader: int, ms: int) -> None:
        """One leader will be cut off in `ms`, and another may be elected: put on one side, read on the other, again and again,
        with sessions that are open before."""
        others = [node for node in self._nodes if node != leader]
        if not others:
            return
        number = len(self._clients) + len(self._probers)
        writer = SimClient(self, number, 3, 1, self._jobs, self._random.choice(others))
        reader = SimClient(self, number + 1, 3, 1, self._jobs, leader)
        self._probers += [writer, reader]
        writer.do("put", (0, 0, 0, 3))
        reader.do("peek", (0, 0, 0, 3))
        timeout_us = self.options.election_timeout_ms * _MS
        for step in range(40):
            for client, verb in ((writer, "put"), (reader, "peek")):
                # reads ask for the newest job: the number that decides which is 0
                self.scheduler.after(ms * _MS + timeout_us + step * timeout_us // 25, client.do, verb, (0, 0, step, 3))

    def _do_one_way(self, node: int, process: Process | None, numbers: tuple[int, ...], ms: int) -> None:
        other = self._nodes[numbers[2] % len(self._nodes)]
        if other != node:
            self.network.cut_off({(node, other)})
            self.scheduler.after(ms * _MS, self._end_of_partition, self.network.cut)

    def _end_of_partition(self, cut: set[tuple[int, int]]) -> None:
        if self.network.cut is cut and not self._healed:
            self.network.heal()

    def _do_break(self, node: int, process: Process | None, numbers: tuple[int, ...], ms: int) -> None:
        other = self._nodes[numbers[2] % len(self._nodes)]
        if other != node:
            self.network.break_connection(min(node, other), max(node, other))

    def _do_clog(self, node: int, process: Process | None, numbers: tuple[int, ...], ms: int) -> None:
        other = self._nodes[numbers[2] % len(self._nodes)]
        self.network.clogged[node, other] = 20_000 + numbers[3] % 800_000
        self.scheduler.after(ms * _MS, self.network.clogged.pop, (node, other), None)

    def _do_slow_disk(self, node: int, process: Process | None, numbers: tuple[int, ...], ms: int) -> None:
        self._slow_until_us[node] = self.scheduler.now_us + ms * _MS

    def _do_stalled_disk(self, node: int, process: Process | None, numbers: tuple[int, ...], ms: int) -> None:
        if process is not None:
            process.worker.stall()
            self.scheduler.after(ms * _MS, process.worker.go_on)

    def _do_failing_disk(self, node: int, process: Process | None, numbers: tuple[int, ...], ms: int) -> None:
        self._disks[node].fail_next(("write", "sync")[numbers[2] % 2])

    def _do_unreadable_disk(self, node: int, process: Process | None, numbers: tuple[int, ...], ms: int) -> None:
        if process is not None:
            self._end(process, power=True)
            self._disks[node].fail_next("read")
            self._later(node, ms)

    def _do_full_disk(self, node: int, process: Process | None, numbers: tuple[int, ...], ms: int) -> None:
        self._disks[node].fail_next("write", 28)  # ENOSPC

    def _do_damaged_disk(self, node: int, process: Process | None, numbers: tuple[int, ...], ms: int) -> None:
        """Only ever one voter's, so that a good copy exists. Sometimes all lose power with it, and most come back later:
        then its vote is wanted while it is in doubt."""
        if self._damaged not in (None, node):
            return
        if numbers[3] % 2:
            for other, running in sorted(self._running.items()):
                if other != node:
                    self._end(running, power=True)
                    self._later(other, ms + self._random.randrange(3_000))
        if process is not None:
            self._end(process, power=True)
            self._later(node, ms)
        for place in range(len(DAMAGES)):
            kind = DAMAGES[(numbers[2] + place) % len(DAMAGES)]
            on_votes = [one for one in (kind, *self._damages) if one.endswith("vote")]
            if kind in on_votes and len(on_votes) > 1 and "stale vote" in on_votes:
                continue  # an old copy in one slot, and the other bad too: nobody could tell (seed 41092)
            done = self._disks[node].damage(kind, self._random)
            if done is not None:
                self._damaged = node
                self._damages.append(kind)
                self.note(f"damage: {done}")
                self.counted(kind)
                return

    def _do_wall_clock(self, node: int, process: Process | None, numbers: tuple[int, ...], ms: int) -> None:
        self._wall_offset_s[node] += (-3_600, -1, 1, 3_600)[numbers[2] % 4]

    # -- healing ------------------------------------------------------------------------------

    def _heal(self) -> None:
        """Everything but a minority works again, that for good."""
        self._healed = True
        self.note("healing")
        self._broken = set(self._unusable)
        doubtful = {node for node, process in self._running.items() if process.node.raft.doubtful} | (
            {self._damaged} - self._unusable if self._damaged is not None else set()
        )
        if not doubtful:  # the votes of one count for less: it may need all the others
            candidates = [node for node in self._nodes if node not in self._broken]
            while candidates and len(self._broken) < self.options.broken_at_the_end:
                self._broken.add(candidates.pop(self._random.randrange(len(candidates))))
        self.network.weather = msgspec.structs.replace(self.network.weather, loss=0.0, double=0.0, reorder=0.0)
        self.network.heal()
        self._slow_until_us.clear()
        for disk in self._disks.values():
            disk.mend()
        for node in sorted(self._broken & self._running.keys()):
            self._end(self._running[node], power=True)
        for process in list(self._running.values()):
            if process.stopped:
                process.go_on()
            process.worker.go_on()
        # Frames were lost on connections that stand, which no TCP does: they are made anew.
        for place, one in enumerate(self._nodes):
            for other in self._nodes[place + 1 :]:
                self.network.break_connection(one, other)
        for node in self._nodes:
            self._start(node)

    def _come_to_rest(self) -> None:
        alive = [node for node in self._nodes if node not in self._broken and node not in self._unusable]
        if len(alive) <= len(self._nodes) // 2:
            return
        longest_ms = _LEADER_TIMEOUTS * self.options.election_timeout_ms
        # a slow node may still be coming up
        self._wait(
            3_000, lambda: all(node in self._running for node in alive if node not in self._unusable), lambda: "a node does not start"
        )
        self._wait(longest_ms + 2_000, self._is_led, lambda: f"no leader within {_LEADER_TIMEOUTS} election timeouts after healing")
        self._wait(_REST_MS, self._nobody_waits, lambda: f"commands never end: {self._waiting()[:3]}")
        self._wait(_REST_MS, self._all_agree, lambda: "the nodes do not catch up with each other")
        self._wait(_REST_MS, self._no_timer_is_due, lambda: "timers that are due do not fire")
        self._wait(_REST_MS, lambda: not self._left_over(), lambda: f"not at rest: {self._left_over()}")

    def _is_led(self) -> bool:
        return any(process.node.raft.has_committed_own_entry for process in self._running.values())

    def _waiting(self) -> list[str]:
        """Calls without an answer, but for those that may wait for ever."""
        return [
            f"{call.what} of {call.who}"
            for client in self._clients + self._probers
            for call in client.pending
            if not any(earlier.what == [5, None] for earlier in client.pending)
        ]

    def _nobody_waits(self) -> bool:
        return not self._waiting()

    def _all_agree(self) -> bool:
        applied = {process.node.machine.applied_index for process in self._running.values()}
        return applied == {len(self.checks.committed)}

    def _left_over(self) -> list[str]:
        """What a cluster at rest may not hold: buffers that something was left in, peers that are never found equal (R33),
        nodes that doubt though all are up."""
        found = []
        for node, process in sorted(self._running.items()):
            raft, gateway = process.node.raft, process.node.gateway
            buffers: dict[str, Any] = {
                "batches": gateway._unapplied,
                "sessions with commands": gateway._waiting,
                "closes": gateway._closes,
                "reads": gateway.reads,
                "rounds of reads": process.node._read_rounds,
                "reads that wait for an entry": process.node._reads_ready,
                "messages that wait for the disk": process.node._held,
                "bytes of sessions": gateway.held_bytes - sum(session._held_bytes for session in gateway.sessions.values()),
            }
            if raft.is_leader:
                buffers["uncommitted bytes"] = raft._uncommitted_bytes
                buffers |= {
                    f"to do for node {peer}": progress.match_index < raft.log.last_index or progress._in_flight
                    for peer, progress in raft.progress.items()
                    if peer in self._running
                }
            if len(self._running) == len(self._nodes):
                buffers["doubts"] = raft.doubtful
            found += [f"node {node} has {what}" for what, content in buffers.items() if content]
        return found

    def _no_timer_is_due(self) -> bool:
        leader = next((process for process in self._running.values() if process.node.raft.has_committed_own_entry), None)
        if leader is None:
            return False
        due_ms = leader.node.machine.next_due_ms()
        return due_ms is None or due_ms > (leader.node.raft.clock_ms() or 0) - 1_000

    # -- judging ------------------------------------------------------------------------------

    def _judge(self) -> None:
        self.checks.compare_states()
        batches = self.checks.model.batches
        if len(set(batches)) != len(batches):
            raise Violation("I15: a batch took effect twice")
        entries = [
            history.LogEntry(entry.index, entry.time_ms, entry.data if entry.kind is EntryKind.BATCH else b"")
            for entry in self.checks.committed
        ]
        verdict = history.check(entries, self._calls)
        if verdict.problems:
            raise Violation(f"history: {verdict.problems[0]}")


@contextmanager
def _limited(limits: dict[str, int]) -> Iterator[None]:
    """Other limits for one run. Modules have their own names of them."""
    before: list[tuple[Any, str, int]] = []
    try:
        for path, value in limits.items():
            module_name, _, name = path.rpartition(".")
            module = importlib.import_module(module_name)
            before.append((module, name, getattr(module, name)))
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)

"""The world of one seed: nodes on simulated disks, clocks and a network, their clients, and the checks of every step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from hashlib import blake2b
from random import Random

import msgspec

from raftd.errors import StorageError, TooOld
from raftd.jobs.commands import FEATURE_LEVEL, Settings
from raftd.limits import MAX_JOB_BYTES, TICK_MS, Limits
from raftd.node.config import NodeConfig
from raftd.raft.ready import Persist
from raftd.sim import history
from raftd.sim.checks import Checks, Violation
from raftd.sim.clients import SimClient
from raftd.sim.damage import Damage
from raftd.sim.disk import Disk, Interrupted
from raftd.sim.network import Network
from raftd.sim.process import Process, World
from raftd.sim.scheduler import Scheduler
from raftd.sim.sessions import SimSession
from raftd.sim.swarm import BUDGETS, Options
from raftd.wire.peer import PeerMessage

_WALL_S = 1_700_000_000.0
_MS = 1_000
_COMPARE_STEPS = 2_000
_SLOWER = 50


class Simulation(World):
    """The world of one seed."""

    def __init__(self, options: Options, keep_trace: bool = False) -> None:
        self.options = options
        self.scheduler = Scheduler()
        self.random = Random(f"world {options.seed}")
        #: Those that the cluster was born with, and those that are to be added; those that were removed stay in it.
        self.nodes = list(range(1, options.nodes + 1))
        self.spares = list(range(options.nodes + 1, options.nodes + options.spares + 1))
        everybody = self.nodes + self.spares
        self._first_voters = tuple(self.nodes)
        self.disks = {node: Disk(options.sector_bytes) for node in everybody}
        self.costs = BUDGETS[options.budget]
        turn = {"apply_steps": self.costs.entry, "reads_steps": self.costs.entry // 2, "answers_steps": self.costs.entry // 2}
        self._limits = msgspec.convert({**turn, **options.limits}, Limits)
        self.checks = Checks(self.disks, self.nodes, max(1, options.election_timeout_ms // TICK_MS), self.costs)
        self.network = Network(self.scheduler, self.random, options.conditions, self)
        self.running: dict[int, Process] = {}
        #: Ids of jobs that any client was told of.
        self.jobs: list[int] = []
        self.clients = [SimClient(self, number, options.pipeline, options.tubes, self.jobs) for number in range(options.clients)]
        #: Clients with sessions.
        self.sessions = [SimSession(self, number, options.tubes, self.jobs) for number in range(options.sessions)]
        #: The feature level of each node's raftd; one that is added has the newest.
        self.levels = dict.fromkeys(self.nodes, FEATURE_LEVEL)
        #: Nodes that have ended because they are no members any more.
        self.removed: set[int] = set()
        #: Nodes that refused to start, as they must after what was done to their disks; and those that stay broken for good.
        self.unusable: set[int] = set()
        self.broken: set[int] = set()
        self.healed = False
        #: When the disk of a node is fast again.
        self.slow_until_us: dict[int, int] = {}
        self.wall_offset_s: dict[int, float] = dict(zip(everybody, options.wall_offsets_s, strict=True))
        self.elections = 0
        #: What happened, a line each, if it was asked for.
        self.trace: list[str] = []
        self.damage = Damage()
        self._keep_trace = keep_trace
        #: How often something happened that the summary counts.
        self.counts: Counter[str] = Counter()
        self._hash = blake2b(digest_size=16)

    # -- time ---------------------------------------------------------------------------------

    def pass_time(self, ms: int) -> None:
        end_us = self.scheduler.now_us + ms * _MS
        while self.scheduler.step(end_us):
            if self.scheduler.steps % _COMPARE_STEPS == 0:
                self.checks.compare_states()

    def wait(self, ms: int, until: Callable[[], bool], what: Callable[[], str]) -> None:
        """Raises Violation if `until` does not come true."""
        end_us = self.scheduler.now_us + ms * _MS
        while not until():
            if self.scheduler.now_us >= end_us:
                raise Violation(f"liveness: {what()}")
            self.pass_time(TICK_MS)

    def now_us(self) -> int:
        return self.scheduler.now_us

    # -- what is known ------------------------------------------------------------------------

    @property
    def calls(self) -> list[history.Call]:
        calls = [call for client in self.clients for call in client.calls]
        return calls + [call for session in self.sessions for call in session.calls]

    def leader(self) -> int | None:
        """A node that thinks it leads."""
        return next((process.node_id for process in self.running.values() if process.node.raft.is_leader), None)

    def doubtful(self) -> set[int]:
        """Return the nodes whose votes may count for less."""
        doubtful = {node for node, process in self.running.items() if process.node.raft.doubtful}
        return doubtful | ({self.damage.node} - self.unusable if self.damage.node is not None else set())

    def process_at(self, node: int) -> Process | None:
        process = self.running.get(node)
        return process if process is not None and not process.stopped and node not in self.broken else None

    def process_for(self, number: int) -> Process | None:
        usable = [process for node in sorted(self.running) if (process := self.process_at(node)) is not None]
        return usable[number % len(usable)] if usable else None

    def visit(self, node: int, pipeline: int, tubes: int = 1) -> SimClient:
        """A client that connects to this node only, and does not come with the plan."""
        client = SimClient(self, len(self.clients), pipeline, tubes, self.jobs, node)
        self.clients.append(client)
        return client

    # -- what processes and the network see ---------------------------------------------------

    def stepped(self, process: Process) -> None:
        self.checks.stepped(process)

    def leaving(self, sender: int, to: int, message: PeerMessage) -> None:
        self.checks.leaving(self.running[sender], to, message)

    def durable(self, process: Process, persist: Persist) -> None:
        self.checks.durable(process.node_id, persist)

    def disk_us(self, node: int) -> int:
        least, most = self.options.disk_us
        slower = _SLOWER if self.slow_until_us.get(node, 0) > self.scheduler.now_us else 1
        return self.random.randrange(least, most) * slower

    def wall_s(self, node: int) -> float:
        return _WALL_S + self.wall_offset_s[node] + self.scheduler.seconds()

    def happened(self, what: str, *numbers: int, detail: str = "") -> None:
        """Into the trace, and all but `detail` into its hash."""
        event = f"{what} {' '.join(map(str, numbers))}"
        self._hash.update(f"{self.scheduler.now_us} {event}\n".encode())
        self.note(f"{event} {detail}")

    def counted(self, fault: str) -> None:
        self.counts[fault] += 1

    def elected(self, process: Process) -> None:
        self.elections += 1

    def tell(self, line: str) -> None:
        self.note(line)

    def note(self, text: str) -> None:
        """Into the trace. Words are not hashed: another wording is no other run."""
        if self._keep_trace:
            self.trace.append(f"{self.scheduler.now_us / 1e6:10.6f}  {text}")

    # -- processes ----------------------------------------------------------------------------

    def start(self, node: int) -> None:
        if node in self.running or node in self.unusable or node in self.broken or node in self.removed:
            return
        options = self.options
        config = NodeConfig(
            node,
            self._first_voters,
            "sim",
            options.election_timeout_ms,
            options.heartbeat_ms,
            Settings(MAX_JOB_BYTES, options.session_timeout_ms),
            options.snapshot_log_bytes,
            level=self.levels.setdefault(node, max(self.levels.values())),
            limits=self._limits,
            costs=self.costs,
        )
        try:
            process = Process(self, config, self.disks[node], Random(self.random.random()), options.clock_rates[node - 1])
        except StorageError as refused:
            self.note(f"node {node} refuses to start: {refused}")
            why_not = self.damage.explain(node)
            if why_not is not None:
                raise Violation(f"I8: node {node} {why_not}: {refused}") from None
            self.unusable.add(node)
            self.counted("(node refused to start for its damage)")
            return
        except (OSError, Interrupted) as error:
            self.note(f"node {node} cannot start: {error!r}")
            self.disks[node].exit()
            if isinstance(error, Interrupted) and error.power:
                self._lose_power(node)
            self.start_later(node, 500)
            return
        self.note(f"node {node} starts: {'; '.join(note.text for note in process.opened.notes)}")
        if process.opened.identity.doubtful:
            self.counted("(start of a node in doubt)")
        self.damage.repaired(node)
        self.running[node] = process
        self.checks.started(process)
        self.network.started(process)

    def trace_hash(self) -> str:
        """Return a hash of what has happened, and of the entries that are committed."""
        digest = self._hash.copy()
        for entry in self.checks.committed:
            digest.update(b"%d %d %b" % (entry.index, entry.time_ms, entry.data))
        return digest.hexdigest()

    def was_removed(self, process: Process) -> None:
        """It ends itself, a moment after it has heard so."""
        self.counted("(node ended because it was removed)")
        self.removed.add(process.node_id)
        self.scheduler.after(100 * _MS, self._end_removed, process)

    def _end_removed(self, process: Process) -> None:
        if process.alive:
            self.end(process, power=False)

    def start_later(self, node: int, ms: int) -> None:
        self.scheduler.after(ms * _MS, self.start, node)

    def end(self, process: Process, power: bool) -> None:
        """The process is gone; with `power` all that its disk had not synced, but for what it keeps."""
        node = process.node_id
        process.die()
        self.running.pop(node, None)
        self.checks.ended(process)
        for client in self.clients:
            if client.process is process:
                client.forget()
        for session in self.sessions:
            if session.process is process:
                session.forget()
        self.network.ended(node)
        disk = self.disks[node]
        disk.exit()
        disk.mend()
        if power:
            self._lose_power(node)

    def _lose_power(self, node: int) -> None:
        keep = self.options.keep
        self.disks[node].crash(lambda path, sector: self.random.random() < keep)

    def interrupted(self, process: Process, power: bool) -> None:
        self.note(f"node {process.node_id} {'loses power' if power else 'is killed'} in the middle of a write")
        self._come_back(process, power)

    def ended_itself(self, process: Process, error: BaseException) -> None:
        if isinstance(error, Violation):
            raise error
        if isinstance(error, TooOld) and process.node_id not in self.checks.members:
            # It was removed, and the others have gone on without it (seed 500124).
            self.note(f"node {process.node_id} is removed, and too old")
            self.removed.add(process.node_id)
            self.end(process, power=False)
            return
        if not isinstance(error, OSError):
            raise Violation(f"R35: node {process.node_id} ended itself for a bug: {error!r}") from error
        self.note(f"node {process.node_id} ends itself: {error}")
        self._come_back(process, power=False)

    def _come_back(self, process: Process, power: bool) -> None:
        self.end(process, power)
        self.start_later(process.node_id, 10 + self.random.randrange(self.options.longest_ms))

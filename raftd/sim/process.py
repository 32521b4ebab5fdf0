"""One life of a node: production code between a simulated clock, network and disk.

Everything that reaches the process passes `soon` or `later`: a process that is stopped (SIGSTOP) hears nothing until
it continues, one that is dead never. After each such step the world looks at it.

Work takes time: the steps that the node counts, and the messages that it sends. Until they are over, nothing else reaches the
process, so work without a bound delays ticks and heartbeats as it does in life.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from typing import Any

from raftd.errors import CorruptionError
from raftd.jobs.budget import Costs
from raftd.limits import TICK_MS
from raftd.node.config import NodeConfig
from raftd.node.loop import Node
from raftd.note import Note
from raftd.raft.messages import Configuration
from raftd.raft.ready import Persist, Role, RoleChange
from raftd.sim.disk import Disk, Interrupted
from raftd.sim.network import Network
from raftd.sim.scheduler import Call, NodeClock, Scheduler
from raftd.storage.snapshots import Done
from raftd.storage.store import Done as Durable
from raftd.storage.store import Store
from raftd.storage.vote import Identity
from raftd.wire.peer import PeerMessage

#: What an entry with all of its budget takes, and a message that leaves, in microseconds.
_ENTRY_US = 5_000
_MESSAGE_US = 20


class World(ABC):
    """What a process is part of. The methods for what has happened do nothing by default."""

    scheduler: Scheduler
    network: Network
    #: What an entry may cost, which says how slow a step is.
    costs: Costs

    @abstractmethod
    def disk_us(self, node: int) -> int:
        """How long its disk takes for the next write."""

    @abstractmethod
    def wall_s(self, node: int) -> float: ...

    @abstractmethod
    def interrupted(self, process: Process, power: bool) -> None:
        """It was killed in the middle of a write, or its machine has lost power."""

    @abstractmethod
    def ended_itself(self, process: Process, error: BaseException) -> None:
        """The process has ended: its data directory failed, or it found a bug in itself."""

    # -- what has happened --------------------------------------------------------------------

    def tell(self, line: str) -> None:
        """An operator would read this."""

    def stepped(self, process: Process) -> None:
        """The process has done something."""

    def elected(self, process: Process) -> None:
        """Its node has become leader."""

    def durable(self, process: Process, persist: Persist) -> None:
        """Its storage has said that this is durable."""

    def leaving(self, sender: int, to: int, message: PeerMessage) -> None:
        """A message goes to the network."""

    def happened(self, what: str, *numbers: int, detail: str = "") -> None:
        """The network did something, or a client."""

    def was_removed(self, process: Process) -> None:
        """It is no member any more, and will end."""

    def counted(self, fault: str) -> None:
        """Something happened that the summary counts."""


class Worker:
    """The disk's thread: one job at a time, each when the disk has had its time; none while it is `stalled`."""

    def __init__(self, process: Process) -> None:
        self.stalled = False
        self._process = process
        self._waiting: list[Callable[[], None]] = []

    def run(self, job: Callable[[], None], done: Callable[[BaseException | None], None], is_small: bool = False) -> None:
        process = self._process

        def execute() -> None:
            if not process.alive:
                return
            if self.stalled:
                self._waiting.append(execute)
                return
            error: BaseException | None = None
            try:
                job()
            except Interrupted as interrupted:
                process.world.interrupted(process, interrupted.power)
                return
            except (OSError, CorruptionError) as raised:
                error = raised
            process.soon(done, error)

        # The disk works on while the process is stopped.
        process.world.scheduler.after(process.world.disk_us(process.node_id), execute)

    def stall(self) -> None:
        self.stalled = True

    def resume(self) -> None:
        self.stalled = False
        waiting, self._waiting = self._waiting, []
        for execute in waiting:
            execute()


class Copier:
    """The forked child: it has the state of the moment at which it is asked, and writes as slowly as the disk."""

    def __init__(self, process: Process, disk: Disk) -> None:
        self._process = process
        self._disk = disk

    def write(self, path: str, parts: Callable[[], Iterator[bytes]], done: Done) -> None:
        disk = self._disk
        try:
            copied = list(parts())
        except OSError as error:  # the copy would have met it
            self._process.later(0, done, error)
            return

        def job() -> None:
            if disk.exists(path):
                disk.remove(path)
            file = disk.open(path)
            offset = 0
            for part in copied:
                file.write(offset, part)
                offset += len(part)
            file.sync()

        Worker(self._process).run(job, done)


class _Store(Store):
    """Tells the world what the storage has called durable."""

    process: Process

    def persist(self, persist: Persist, done: Durable) -> None:
        self.process.unfinished.append(self.process.node.raft.tick_count)

        def and_tell() -> None:
            self.process.unfinished.popleft()
            self.process.world.durable(self.process, persist)
            done()

        super().persist(persist, and_tell)


class Process:
    """Node `config.node`, started now on `disk`. Raises what opening its data directory raises."""

    def __init__(self, world: World, config: NodeConfig, disk: Disk, random: Random, rate: float) -> None:
        self.world = world
        self.node_id = config.node
        self.alive = True
        self.stopped = False
        self.worker = Worker(self)
        #: The ticks at which what is not durable yet was handed to the storage.
        self.unfinished: deque[int] = deque()
        self._backlog: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._busy_until_us = 0
        self._used = 0  # steps of which the time has been counted
        self._sent = 0  # messages of which the time has not been counted
        self._is_resuming = False
        clock: Any = NodeClock(world.scheduler, self.later, rate, random.randrange(1, 1_000_000))
        self._tick_us = int(TICK_MS * 1000 / rate)
        owner = Identity(config.node, config.cluster, config.voters)
        self.reader = Worker(self)
        directory = f"data/{config.node}"
        self.store = _Store(disk, directory, owner, random, self.worker, self.reader, Copier(self, disk), clock, self._fail, config.limits)
        self.store.process = self
        self.opened = self.store.open()
        soon = partial(clock.callLater, 0)
        wall_s = partial(world.wall_s, config.node)
        self.node = Node(config, clock, wall_s, soon, self._hasten, self, self.store, self.opened, random, self, self._fail)
        self._next_tick = world.scheduler.after(random.randrange(self._tick_us), self._tick)

    # -- what reaches it ----------------------------------------------------------------------

    def soon(self, call: Callable[..., object], *args: object) -> None:
        """Something has arrived."""
        if not self.alive:
            return
        if self.stopped or self._backlog or self.world.scheduler.now_us < self._busy_until_us:
            self._backlog.append((call, args))
            self._resume_later()
        else:
            self._run(call, args)

    def _run(self, call: Callable[..., object], args: tuple[Any, ...]) -> None:
        call(*args)
        if self.alive:
            self.world.stepped(self)
            steps, self._used = self.node.turn.used - self._used, self.node.turn.used
            messages, self._sent = self._sent, 0
            work_us = steps * _ENTRY_US // self.world.costs.entry + messages * _MESSAGE_US
            self._busy_until_us = self.world.scheduler.now_us + work_us

    def _resume_later(self) -> None:
        if not self.stopped and not self._is_resuming and self._backlog:
            self._is_resuming = True
            self.world.scheduler.after(max(0, self._busy_until_us - self.world.scheduler.now_us), self._resume)

    def _resume(self) -> None:
        """What has come meanwhile, one after the other, as long as that takes no time."""
        self._is_resuming = False
        while self._backlog and self.alive and not self.stopped and self.world.scheduler.now_us >= self._busy_until_us:
            self._run(*self._backlog.popleft())
        if self.alive:
            self._resume_later()

    def later(self, delay_us: int, call: Callable[..., object], *args: object) -> Call:
        return self.world.scheduler.after(delay_us, self.soon, call, *args)

    def _tick(self) -> None:
        """LoopingCall, which skips what it has missed."""
        if self.stopped:
            self._tick_in(1)
        else:
            self.soon(self._tick_node)

    def _tick_node(self) -> None:
        self._tick_in(self.node.tick())

    def _tick_in(self, ticks: int) -> None:
        if self.alive:
            self._next_tick = self.world.scheduler.after(ticks * self._tick_us, self._tick)

    def _hasten(self, delay_s: float) -> None:
        if self._next_tick.active() and self.alive:  # else it waits for this turn to end
            self._next_tick.cancel()
            self._next_tick = self.world.scheduler.after(int(delay_s * 1000 * self._tick_us / TICK_MS), self._tick)

    def stop(self) -> None:
        """SIGSTOP."""
        self.stopped = True

    def resume(self) -> None:
        """SIGCONT: first what has come meanwhile."""
        self.stopped = False
        self._resume()

    def die(self) -> None:
        """SIGKILL."""
        self.alive = False

    def _fail(self, error: BaseException) -> None:
        if self.alive:
            self.alive = False
            self.world.ended_itself(self, error)

    # -- the node's Transport -----------------------------------------------------------------

    def send(self, node: int, message: PeerMessage) -> None:
        if self.alive:
            self._sent += 1
            self.world.network.send(self, node, message)

    def flush(self) -> None:
        """Frames leave one by one: pieces may hold less than a flush, or the end of one and the beginning of another."""

    # -- the node's Observer ------------------------------------------------------------------

    def told(self, line: str) -> None:
        self.world.tell(f"node {self.node_id}: {line}")

    def role_changed(self, change: RoleChange) -> None:
        if change.role is Role.LEADER:
            self.world.elected(self)
        self.told(f"{change.role.value} in term {change.term}, {change.reason}")

    def noted(self, note: Note) -> None:
        self.told(note.text)

    def members_changed(self, configuration: Configuration) -> None:
        self.told(f"members: {configuration.voters} {configuration.outgoing} {configuration.learners}")

    def was_removed(self) -> None:
        self.told("it is removed")
        self.world.was_removed(self)

    def gateway_closed(self, incarnation: int) -> None:
        self.told(f"the cluster closed its gateway; it continues as incarnation {incarnation}")

    def gateway_silent(self, node: int, incarnation: int) -> None:
        self.told(f"gives up the sessions of node {node}")

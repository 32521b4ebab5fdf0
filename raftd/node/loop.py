"""The one driver: input → raft → persist → send → apply → answer.

After each turn of the reactor with input, `Node` runs one turn. What arrived is proposed in batches, written at
once, sent in one message per peer, applied and answered together: the cost is per turn, hardly per command.
This module knows no reactor and no socket: it is given a clock, a transport, a store and randomness, real or
simulated ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from random import Random
from typing import Protocol

import msgspec

from raftd.errors import CorruptionError
from raftd.histogram import Histogram
from raftd.jobs.budget import Turn
from raftd.jobs.commands import ACCESS_LEVEL, CLIENTS_LEVEL, POLICIES_LEVEL, Forward, ForwardRefused
from raftd.jobs.machine import StateMachine
from raftd.jobs.snapshot import check_level, load
from raftd.limits import APPLY_BYTES, TICK_MS
from raftd.node.admin import Administration, Answer
from raftd.node.admission import Admission
from raftd.node.backups import Backup
from raftd.node.client_session import ClientSession, Said
from raftd.node.compaction import Compaction
from raftd.node.config import NodeConfig
from raftd.node.forwards import ForwardProposals
from raftd.node.gateway import Gateway
from raftd.node.job_events import JobEventBuffer
from raftd.node.proposals import LeaderProposals
from raftd.node.reads import Reads
from raftd.node.session import Session
from raftd.node.statuses import Statuses
from raftd.node.wall_clock import WallClock
from raftd.note import Note
from raftd.raft.core import Raft
from raftd.raft.log import Log
from raftd.raft.membership import decode
from raftd.raft.messages import Admin, AdminReply, AdminRequest, Configuration, Entry, EntryKind, Message, TransferLead
from raftd.raft.ready import HardState, Ready, RoleChange
from raftd.storage.store import Clock, Opened, Store
from raftd.wire.peer import AskClock, AskStatus, Hello, PeerMessage, Refusal, RefusalCode, TellClock, TellStatus

#: Ticks between two measurements of free disk space on a node that writes nothing: half a second.
FREE_SPACE_TICKS = 50

#: Ticks between two looks at what changes slowly: what a leader proposes by itself, snapshots, operators' requests. A node that rests
#: looks when it ticks.
POLL_TICKS = 3

#: How often effects are collected within one turn before the reactor gets its turn again.
_ROUNDS_PER_TURN = 4


class Transport(Protocol):
    """Messages to other nodes. Any may be lost; those to one node that arrive keep their order."""

    def send(self, node: int, message: PeerMessage) -> None:
        """Queue a message; nothing if there is no connection."""

    def flush(self) -> None:
        """Put on the wire what was queued in this turn."""


class Observer(Protocol):
    """Told what an operator would want to know."""

    def role_changed(self, change: RoleChange) -> None: ...

    def noted(self, note: Note) -> None: ...

    def members_changed(self, configuration: Configuration) -> None:
        """From now on these are the members, as far as this node's log says."""

    def was_removed(self) -> None:
        """It is committed that this node is no member any more: it must end."""

    def gateway_closed(self, incarnation: int) -> None:
        """The cluster closed this node's gateway: clients' connections are dropped, and the node continues as `incarnation`."""

    def gateway_silent(self, node: int, incarnation: int) -> None:
        """This leader gives up the sessions of a node."""


class Node:
    """A member of the cluster. `soon` calls a function with arguments when all input that is there is handed over. `hasten`: the next tick
    must come after so many seconds, although the last one asked for a longer rest. `fail` is called with an error after which the process
    must end. Raises CorruptionError for a snapshot that cannot be loaded, and TooOld for one that only a newer raftd understands."""

    def __init__(
        self,
        config: NodeConfig,
        clock: Clock,
        wall_s: Callable[[], float],
        soon: Callable[..., object],
        hasten: Callable[[float], None],
        transport: Transport,
        store: Store,
        opened: Opened,
        random: Random,
        observer: Observer,
        fail: Callable[[BaseException], None],
    ) -> None:
        self.config = config
        limits = config.limits
        self.machine = StateMachine(config.costs)
        if opened.base.index:
            self.machine = load(store.snapshots.pieces(), config.level, self.machine)
        if self.machine.applied_index != opened.base.index:
            raise CorruptionError(f"{store.snapshots.directory}: the snapshot holds the state at another entry than it says")
        self._check_level()
        #: What happened to jobs lately.
        self.job_events = JobEventBuffer(self.machine)
        identity = opened.identity
        self.raft = Raft(
            config.node,
            store.snapshots.meta.configuration if store.snapshots.meta is not None else config.first_configuration,
            Log(opened.entries, opened.base, opened.older, limits.log_memory_bytes),
            HardState(identity.term, identity.voted_for, identity.doubtful),
            identity.incarnation,
            random,
            max(1, config.election_timeout_ms // TICK_MS),
            max(1, config.heartbeat_ms // TICK_MS),
            limits,
        )
        #: The budgets of the current turn, in steps.
        self.turn = Turn(limits)
        self.gateway = Gateway(config.node, identity.incarnation, 2 * config.election_timeout_ms, self.turn.answers, config.costs, limits)
        self._clock = clock
        self._wall_s = wall_s
        self._soon = soon
        self._hasten = hasten
        self._ticks_left = 1  # until the next tick is due; those of them that have passed are counted when something arrives
        self._ticked_ms = int(clock.seconds() * 1000)  # until when they are counted
        self._next_measure_tick = self._next_poll_tick = 0
        self._transport = transport
        self._store = store
        self._observer = observer
        self._fail = fail
        self._stopped = False
        self._awake = False  # a turn is scheduled
        self._in_turn = False
        self._waiting_for_disk: deque[tuple[int, list[tuple[int, Message]]]] = deque()  # until that persist is durable
        self._turn_ends: list[Callable[[], None]] = []
        self._known_leader: tuple[int, int] | None = None  # (node, term): where commands are sent
        self._reads = Reads(config.node, self.raft, self.gateway, 2 * config.election_timeout_ms, self.turn.reads, self.wake)
        self._admission = Admission(config.node, config.cluster, config.voters, config.level, self.raft, store)
        # leading
        self._forwards = ForwardProposals(self.raft, self._refuse)
        self._proposals = LeaderProposals(
            config.node, config.settings, config.level, self.raft, clock, self.wake, observer.gateway_silent, self._admission
        )
        self.compaction = Compaction(
            config,
            self.machine.space_is_scarce,
            self.raft,
            store,
            clock,
            self._run_compaction_callback,
            self._replace_state,
            observer.noted,
        )
        self._administration = Administration(self.raft, transport.send)
        self.wall_clock = WallClock(self.raft, transport.send, observer.noted)
        self.statuses = Statuses(self.raft, transport.send)
        self._configuration = self.raft.membership.latest
        self._removal_reported = False
        self._is_measuring = False
        #: How many turns it has run.
        self.turns = 0
        self.gateway.space_is_scarce = self.machine.space_is_scarce
        self._set_time()

    # -- what listeners and operators see ---------------------------------------------------------

    @property
    def max_job_size(self) -> int:
        """In bytes; replicated, so the same at every listener of the cluster once it runs."""
        settings = self.machine.settings if self.machine.settings_index else self.config.settings
        return settings.max_job_size

    def open_session(self, lost: Callable[[], None]) -> Session:
        """A client has connected. `lost` is called if its commands' outcome is unknown: close the connection."""
        return self.gateway.open_session(lost)

    def open_client_session(self, lost: Callable[[], None], said: Said) -> ClientSession:
        """For a connection that will speak for a client's session. `said` is called with each answer."""
        return self.gateway.open_client_session(lost, said)

    @property
    def knows_clients(self) -> bool:
        """Whether all nodes of the cluster know sessions of clients."""
        return self.machine.level >= CLIENTS_LEVEL

    @property
    def knows_policies(self) -> bool:
        """Whether tubes may have policies. Only then may one be set."""
        return self.machine.level >= POLICIES_LEVEL

    @property
    def knows_access(self) -> bool:
        """Whether all nodes of the cluster know users. Only then may there be one."""
        return self.machine.level >= ACCESS_LEVEL

    @property
    def has_users(self) -> bool:
        """Whether one has to say who he is. Known from the start of the process on, before any entry is applied."""
        return self.machine.access.is_on or self._store.identity.has_users

    def wake(self) -> None:
        """Something arrived: run a turn when the reactor has handed over all of it."""
        if not self._awake and not self._stopped:
            self._awake = True
            self._soon(self._guarded, self._turn)

    def at_turn_end(self, call: Callable[[], None]) -> None:
        """Call once at the end of this turn (or of the next), when all answers of it are there."""
        self._turn_ends.append(call)
        if not self._in_turn:
            self.wake()

    def status(self) -> Mapping[str, str | int]:
        """raftd's own keys of `stats`: this node's view, without asking anyone."""
        raft = self.raft
        role = raft.role.value if raft.role.value in ("leader", "follower") else "candidate"
        return {
            "node": self.config.node,
            "role": role,
            "term": raft.term,
            "leader": raft.leader,
            "commit-index": raft.log.commit_index,
            "applied-index": self.machine.applied_index,
            "nodes": len(self.raft.membership.latest.voters),
        }

    @property
    def log_bytes(self) -> int:
        """What the log takes on the disk."""
        return self._store.log_bytes

    @property
    def write_s(self) -> Histogram:
        """How long writes of the log take."""
        return self._store.write_s

    @property
    def free_bytes(self) -> int:
        """What is free on the disk."""
        return self._store.free_bytes

    def administer(self, request: AdminRequest, answer: Answer) -> None:
        """Carry out an administrative request. `answer` is called once, with the result."""
        self._guarded(self._administer, request, answer)

    def _administer(self, request: AdminRequest, answer: Answer) -> None:
        self._count_ticks(self._set_time())
        self._administration.ask(request, answer)
        self.wake()

    def backup(self, done: Backup) -> None:
        """`done` is called with a snapshot of the state as it is applied here, or with why there is none; `copy` reads it."""
        self.compaction.backup(self.machine.applied_index, done)
        self.wake()

    def compare_clocks(self) -> None:
        """Ask the leader what its wall clock says. To be called every `CLOCK_CHECK_S`."""
        self._guarded(self._compare_clocks)

    def _compare_clocks(self) -> None:
        self._set_time()
        self.wall_clock.ask(self._proposals.level_of(self.raft.leader))
        self.wake()

    def ask_statuses(self) -> None:
        """Ask the other members how they are; `statuses` has their answers a little later."""
        self._guarded(self._ask_statuses)

    def _ask_statuses(self) -> None:
        self._set_time()
        self.statuses.ask(self._proposals.level_of)
        self.wake()

    def copy(self, index: int, offset: int, done: Callable[[bytes], None]) -> bool:
        """Read a piece of the snapshot at entry `index` from the disk; false if it is not there any more."""
        return self.compaction.copy(index, offset, done)

    def hand_over(self, done: Callable[[], None]) -> None:
        """Before an orderly end: if this node leads, let another do so first. `done` is called once, after an election timeout at the
        latest."""
        successor = self.raft.leadership.best_successor() if self.raft.is_leader and not self._stopped else 0
        if successor:
            self.administer(TransferLead(successor), lambda result: done())
        else:
            done()

    # -- from the timer and the other nodes ---------------------------------------------------

    @property
    def pending(self) -> dict[str, int]:
        """Counts of unfinished work by name; all are 0 in a cluster at rest."""
        return {
            **self.gateway.pending,
            "reads under way": self._reads.pending,
            "messages that wait for the disk": len(self._waiting_for_disk),
            "snapshots to be finished": int(self.compaction.is_taking or self.raft.is_installing),
        }

    def tick(self) -> int:
        """To be called so many TICK_MS after the tick before as that one returned, one for the first."""
        self._guarded(self._tick)
        return max(1, self._ticks_left)

    def receive(self, sender: int, message: PeerMessage) -> None:
        self._guarded(self._receive, sender, message)

    def hearing_from(self, peer: int) -> None:
        """Part of a long message of `peer` has arrived."""
        self._guarded(self._hearing_from, peer)

    def _hearing_from(self, peer: int) -> None:
        self._count_ticks(self._set_time())
        self.raft.hearing_from(peer)

    def link_changed(self, peer: int) -> None:
        """The connection to `peer` came up or went down."""
        self._guarded(self._link_changed, peer)

    def _link_changed(self, peer: int) -> None:
        self.raft.link_changed(peer)
        if peer == self.raft.leader:
            self.gateway.resend()
        self.wake()

    def hello(self) -> Hello:
        """Return what this node says of itself on a new connection."""
        return self._admission.hello()

    def handle_hello(self, hello: Hello, accept: Callable[[], None]) -> Refusal | None:
        """A peer has connected: call `accept` once its messages may count, or return why it is refused."""
        refusal = self._admission.check(hello, self.machine)
        if refusal is None:
            self._proposals.met(hello.node, hello.level)
            self._admission.admit(hello, accept)
        return refusal

    def was_refused(self, refusal: Refusal) -> None:
        """A peer refused this node. If the reason is this node's removal, report it."""
        if refusal.code is RefusalCode.REMOVED and not self._removal_reported:
            self._removal_reported = True
            self._observer.was_removed()

    def stop(self, stopped: Callable[[], None]) -> None:
        """Take no more input, finish what is being written, then call `stopped`."""
        self._stopped = True
        self._proposals.stop()
        self._store.close(stopped)

    def _guarded(self, call: Callable[..., None], *args: object) -> None:
        """Run `call`. An exception in it is a bug and ends the process: continuing could break a promise (R35)."""
        if self._stopped:
            return
        try:
            call(*args)
        except Exception as error:
            self._stopped = True
            self._fail(error)

    def _set_time(self) -> int:
        now_ms = int(self._clock.seconds() * 1000)
        self.raft.set_time(now_ms, int(self._wall_s() * 1000))
        return self.raft.now_ms

    def _count_ticks(self, now_ms: int) -> None:
        """Count the ticks that have passed. No more than were to pass: a process that was stopped has heard nobody meanwhile."""
        ticks = min(self._ticks_left, (now_ms - self._ticked_ms) // TICK_MS)
        if ticks > 0:
            self._ticks_left -= ticks
            self._ticked_ms += ticks * TICK_MS
            self.raft.tick(ticks)

    @property
    def _idle_ticks(self) -> int:
        """How many ticks may pass before one could do anything."""
        return 1 if self._forwards.has_held or self.gateway.is_refused else min(self.raft.idle_ticks, FREE_SPACE_TICKS)

    def _tick(self) -> None:
        now_ms = self._set_time()
        self._count_ticks(now_ms + TICK_MS // 2)  # timers are not exact
        self._ticked_ms = now_ms
        self._forwards.propose_all()
        self._proposals.tick()
        if self.raft.tick_count >= self._next_measure_tick and not self._is_measuring:
            self._next_measure_tick = self.raft.tick_count + FREE_SPACE_TICKS
            self._is_measuring = True
            self._store.measure_free_space(self._measured)
        self.compaction.check_disk_space()
        self._reads.tick(now_ms)
        is_poll = self.raft.tick_count >= self._next_poll_tick
        if is_poll:
            self._next_poll_tick = self.raft.tick_count + POLL_TICKS
            self._proposals.poll(self.machine)
        if is_poll or self._has_work(now_ms):
            self._turn()
        self._ticks_left = self._idle_ticks

    def _has_work(self, now_ms: int) -> bool:
        """Whether a turn would do anything now that no other event brings about."""
        if self.raft.has_work or self.gateway.reads or self.gateway.has_deferred:
            return True
        return self._known_leader is not None and self.gateway.has_work(now_ms)

    def _measured(self) -> None:
        self._is_measuring = False

    def _receive(self, sender: int, message: PeerMessage) -> None:
        now_ms = self._set_time()
        self._count_ticks(now_ms)
        if sender not in self.raft.membership.members and type(message) is not AdminReply:
            removal = self._admission.removal_of(sender)
            if removal is not None:
                # It has not heard of its removal, and the leader sends it nothing any more (R27). (A removed leader still has to answer
                # the node that was asked to remove it.)
                self._transport.send(sender, removal)
                self.wake()
                return
        match message:
            case Forward():
                self._forwards.add(sender, message)
            case ForwardRefused():
                self.gateway.refused(message, now_ms)
            case Admin() | AdminReply():
                self._administration.receive(sender, message)
            case Refusal():
                self.was_refused(message)
            case AskClock() | TellClock():
                self.wall_clock.receive(sender, message)
            case AskStatus() | TellStatus():
                self.statuses.receive(sender, message)
            case _:
                self.raft.step(sender, message)
                if not self._has_work(now_ms):  # most often an acknowledgement that moves nothing
                    return
        self.wake()

    # -- one turn -----------------------------------------------------------------------------

    def _turn(self) -> None:
        self._awake = False
        self._in_turn = True
        self.turns += 1
        now_ms = self._set_time()
        self._count_ticks(now_ms)  # what begins in this turn must not begin at an old tick
        self.turn.begin()
        self.gateway.begin_turn()
        applied_bytes = 0
        for _ in range(_ROUNDS_PER_TURN):
            self._resend_if_leader_changed()
            self._send_forwards(now_ms)
            self._forwards.propose_held()
            if self._known_leader is not None:
                self._reads.start_round(now_ms)
            ready = self.raft.ready()
            self._carry_out(ready)
            is_proposed = self._proposals.let_time_pass(self.machine, now_ms)
            if not (ready.apply or ready.reads or is_proposed) or not self._has_work(now_ms):
                break
            applied_bytes += sum(entry.size_bytes for entry in ready.apply)
            if applied_bytes >= APPLY_BYTES or self.turn.entries.left <= 0:  # four rounds of this size would be a noticeable pause
                self.wake()
                break
        else:
            self.wake()
        self.compaction.poll(self.machine)
        self._administration.poll()
        self._check_members()
        self._in_turn = False
        ends, self._turn_ends = self._turn_ends, []
        for end in ends:
            end()
        if self.gateway.has_deferred:
            self.wake()
        if self._ticks_left > 1 and self._ticks_left > (ticks := self._idle_ticks):
            self._ticks_left = ticks
            self._hasten((self._ticked_ms + ticks * TICK_MS - now_ms) / 1000)
        self._transport.flush()

    def _check_members(self) -> None:
        latest = self.raft.membership.latest
        if latest is not self._configuration:
            self._admission.members_changed(self.wake)
            before, self._configuration = self._configuration, latest
            if msgspec.structs.replace(latest, cluster_id=before.cluster_id) != before:  # getting the id changes no member
                self._observer.members_changed(latest)
        if not self._removal_reported and self.config.node in latest.removed and self.raft.is_removed:
            self._removal_reported = True
            self._observer.was_removed()

    def _carry_out(self, ready: Ready) -> None:
        """The driver's contract, in the order of `ready.py`."""
        for change in ready.changes:
            self._observer.role_changed(change)
        for to, message in ready.send_now:
            self._transport.send(to, message)
        if ready.send_after_persist and ready.after:
            self._waiting_for_disk.append((ready.after, ready.send_after_persist))
        else:
            for to, message in ready.send_after_persist:
                self._transport.send(to, message)
        if ready.persist is not None:
            self._store.persist(ready.persist, partial(self._guarded, self._persisted, ready.persist.number))
        self.compaction.fetch(ready.fetches)
        self.compaction.receive(ready.chunks)
        for state in ready.reads:
            self._reads.confirmed(state)
        if ready.apply:
            self._apply(ready.apply)
        self._reads.run(self.machine, self._owns_its_row)

    def _persisted(self, number: int) -> None:
        now_ms = self._set_time()
        self.raft.persisted(number)
        while self._waiting_for_disk and self._waiting_for_disk[0][0] <= number:
            for to, message in self._waiting_for_disk.popleft()[1]:
                self._transport.send(to, message)
        if self._has_work(now_ms):
            self.wake()
        else:
            self._transport.flush()

    def _apply(self, entries: list[Entry]) -> None:
        machine, gateway, node = self.machine, self.gateway, self.config.node
        concerned: set[int] = set()
        share, began = self.turn.entries, machine.steps
        applied = 0
        for entry in entries:
            if machine.steps - began >= share.left:
                break  # the rest in the next turn
            applied += 1
            # Replaying the log after a restart gives the answers of earlier incarnations too: not ours to give.
            is_own = self._owns_its_row
            if entry.kind is EntryKind.CONFIG and not self._store.identity.cluster_id:
                self._store.remember(self.wake, cluster_id=decode(entry.data).cluster_id)
            effects = machine.apply(entry.index, entry.time_ms, entry.data if entry.kind is EntryKind.BATCH else b"")
            self._check_level()
            concerned |= effects.owners
            for owner, number, reply in effects.answers:
                if owner != node:
                    concerned.add(owner)
                elif is_own and (session := gateway.sessions.get(number)) is not None:
                    session.answered(reply, entry.index)
            if node in effects.gaps:
                gateway.resend()
        share.spend(machine.steps - began)
        self.raft.applied(machine.applied_index)
        if self.raft.is_leader:
            self.raft.notify_commit(concerned - {node})
        self._follow_disk_space()
        self._remember_users()
        self.compaction.applied(entries[:applied])
        if node in concerned:
            gateway.applied(machine, self.raft.now_ms)
            if gateway.is_closed:
                self._take_new_incarnation()

    def _follow_disk_space(self) -> None:
        is_scarce = self.machine.space_is_scarce
        if is_scarce != self.gateway.space_is_scarce:
            self.gateway.space_is_scarce = is_scarce
            text = "puts are refused: too few nodes have free disk space" if is_scarce else "puts are accepted again"
            self._observer.noted(Note(text, is_scarce))

    def _remember_users(self) -> None:
        if self.machine.access.is_on and not self._store.identity.has_users:
            self._store.remember(self.wake, has_users=True)

    def _check_level(self) -> None:
        check_level(self.machine.level, self.config.level)

    def _run_compaction_callback(self, call: Callable[..., None], *args: object) -> None:
        """Run a callback of the disk inside the guard, then a turn."""
        self._set_time()
        self._guarded(call, *args)
        self.wake()

    def _replace_state(self, machine: StateMachine) -> None:
        """A leader's snapshot is the state from now on."""
        self._discard(self.machine.dissolve())
        self.machine = machine
        self._check_level()
        self.job_events.follow(machine)
        self._follow_disk_space()
        self._remember_users()
        self.gateway.installed(machine, self.raft.now_ms)
        if self.gateway.is_closed:
            self._take_new_incarnation()

    def _discard(self, parts: Iterator[None]) -> None:
        """Free one part of an old state per turn: freeing a million jobs at once takes a fifth of a second."""
        if next(parts, parts) is None:
            self._clock.callLater(0, self._guarded, self._discard, parts)

    @property
    def _owns_its_row(self) -> bool:
        """Whether the gateway row of this node, as applied here, is that of this incarnation, and open."""
        row = self.machine.gateways.get(self.config.node)
        return row is not None and row.is_open and row.incarnation == self.gateway.incarnation

    def _take_new_incarnation(self) -> None:
        incarnation = self.gateway.incarnation + 1
        if self._store.identity.incarnation == incarnation:
            return  # its write has already begun
        self._observer.gateway_closed(incarnation)

        def durable() -> None:
            # Not before: a crash would let the next process take the same number, and no other node would notice the restart.
            self.raft.incarnation = incarnation
            self.gateway.reopen(incarnation)
            self.wake()

        self._store.remember(durable, incarnation=incarnation)

    # -- to the leader ------------------------------------------------------------------------

    def _resend_if_leader_changed(self) -> None:
        """When the leader or the term changes, everything on its way to the old one is sent to the new."""
        known_leader = (self.raft.leader, self.raft.term) if self.raft.leader else None
        if known_leader == self._known_leader:
            return
        self._known_leader = known_leader
        self._forwards.leader_changed()
        self._proposals.leader_changed(self.machine)
        if known_leader is not None:
            self.gateway.leader_changed()
            self._reads.leader_changed()

    def _send_forwards(self, now_ms: int) -> None:
        if self._known_leader is None:
            return
        leader = self._known_leader[0]
        for forward in self.gateway.collect(now_ms):
            if leader == self.config.node:
                self._forwards.add(leader, forward)
            else:
                self._transport.send(leader, forward)

    def _refuse(self, node: int, refusal: ForwardRefused) -> None:
        if node == self.config.node:
            self.gateway.refused(refusal, self.raft.now_ms)
        else:
            self._transport.send(node, refusal)

"""What the leader proposes by itself: settings, the end of silent gateways, whether disk space is scarce, what features all know, and time
that passes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raftd.errors import Overloaded
from raftd.jobs.commands import CloseGateway, Directory, DiskSpace, Features, Settings, Tick, encode_payload
from raftd.jobs.machine import StateMachine
from raftd.jobs.schedules import Schedule
from raftd.limits import PEER_STRANGERS, SCHEDULES, TICK_MS
from raftd.node import occurrences
from raftd.node.admission import Admission
from raftd.raft.core import Raft
from raftd.raft.messages import Configuration, EntryKind
from raftd.storage.store import Clock

#: With timers due and no traffic the leader appends an empty batch, but never within this many
#: milliseconds of the entry before: a thousand timers a second then cost a hundred entries.
TIMER_ENTRY_GAP_MS = 10

#: An occurrence of a schedule that is late by more than this (milliseconds) was missed: the cluster, or its leader, was away. One that is
#: less late is put all the same.
MISSED_AFTER_MS = 60_000

#: Occurrences that are looked at in one poll: a sparse cron expression takes a millisecond.
TICKS_PER_POLL = 10

#: When a schedule is looked at again that this node cannot evaluate (milliseconds).
TICK_RETRY_MS = 60_000


class LeaderProposals:
    """Of node `node`, while it leads. `level`: the features that its raftd knows. `wake` asks for a turn; `gave_up` is called with (node,
    incarnation) of a gateway whose sessions are given up. `admission` knows the data directories of peers."""

    def __init__(
        self,
        node: int,
        settings: Settings,
        level: int,
        raft: Raft,
        clock: Clock,
        wake: Callable[[], None],
        gave_up: Callable[[int, int], None],
        admission: Admission,
    ) -> None:
        self._node = node
        self._settings = settings
        self._level = level
        self._raft = raft
        self._clock = clock
        self._wake = wake
        self._gave_up = gave_up
        self._admission = admission
        self._known_by_disk: Configuration | None = None  # the newest of whose members all directories are known
        self._levels: dict[int, int] = {}  # of features, as each node has said on its newest connection
        self._heard_tick: dict[tuple[int, int], int] = {}  # (node, incarnation) -> when it last answered
        self._leads_since_tick: int | None = None  # with its own entry applied
        self._proposed: set[object] = set()  # once in this term
        self._ticked: dict[str, int] = {}  # the entry of each schedule's last tick
        self._not_before_ms: dict[str, int] = {}  # when schedules are looked at again whose next occurrence cannot be found out here
        self._timer_call: Any = None
        self._timer_call_at_ms = 0

    def met(self, node: int, level: int) -> None:
        """Another node has said hello."""
        if len(self._levels) >= PEER_STRANGERS:
            self._levels = {known: its for known, its in self._levels.items() if known in self._raft.membership.members}
        self._levels[node] = level

    def level_of(self, node: int) -> int:
        """Return the features that its raftd knows, as it has said last; 0 if it has said nothing."""
        return self._levels.get(node, 0)

    def tick(self) -> None:
        """Remember who was heard."""
        for peer, progress in self._raft.progress.items():
            if progress.last_heard_tick is not None:
                self._heard_tick[peer, progress.incarnation] = progress.last_heard_tick

    def leader_changed(self, machine: StateMachine) -> None:
        """There is another leader, or another term."""
        self._proposed.clear()
        self._ticked.clear()
        self._leads_since_tick = None
        if self._raft.is_leader and not machine.settings_index:
            # In a new cluster they come before the first put, or the defaults would hold for it.
            self._propose_once(self._settings, self._settings)

    def stop(self) -> None:
        if self._timer_call is not None:
            self._timer_call.cancel()
            self._timer_call = None

    def poll(self, machine: StateMachine) -> None:
        """Propose what is due; to be called a few times a second or more often. `machine` is the state as it is applied."""
        raft = self._raft
        if not self._leads(machine):
            return
        if machine.settings != self._settings or not machine.settings_index:
            self._propose_once(self._settings, self._settings)
        self._propose_gateway_closes(machine)
        self._check_disk_space(machine)
        self._propose_level(machine)
        if machine.schedules.due:
            self._propose_ticks(machine)
        if machine.level >= 2 and raft.membership.latest is not self._known_by_disk:
            self._propose_directories(machine)

    def _leads(self, machine: StateMachine) -> bool:
        """Whether this node leads and has applied an entry of its term."""
        return self._raft.is_leader and machine.applied_index >= self._raft.first_own_index

    def _propose_directories(self, machine: StateMachine) -> None:
        """R28: all members know which disk is whose, so that any of them refuses one that was wiped, also one that has never met it."""
        if machine.directories.keys() >= self._raft.membership.members:
            self._known_by_disk = self._raft.membership.latest
        for node, directory_id in self._admission.directories.items():
            if node in self._raft.membership.members and node not in machine.directories:
                self._propose_once(Directory(node, directory_id), Directory(node, directory_id))

    def _propose_ticks(self, machine: StateMachine) -> None:
        """Occurrences of schedules that are due by this node's wall clock, some at a time."""
        schedules, now_ms, left = machine.schedules, self._raft.wall_ms, TICKS_PER_POLL
        for next_ms, name in schedules.due:
            if next_ms > now_ms or not left:
                break
            if self._ticked.get(name, 0) > machine.applied_index or self._not_before_ms.get(name, 0) > now_ms:
                continue  # it is on its way, or cannot be found out here
            left -= 1
            try:
                tick = _tick_of(schedules.by_name[name], now_ms)
            except (KeyError, OSError, ValueError, OverflowError):  # another node may know this time zone
                self._not_before_ms[name] = now_ms + TICK_RETRY_MS
                continue
            try:
                self._raft.propose([(EntryKind.BATCH, encode_payload(tick))])
            except Overloaded:
                break
            self._ticked[name] = self._raft.log.last_index
        for table in (self._ticked, self._not_before_ms):
            if len(table) > 2 * SCHEDULES:
                table.clear()

    def _propose_gateway_closes(self, machine: StateMachine) -> None:
        """Silence is counted in ticks, like election timeouts: a process that was stopped has not been listening."""
        tick = self._raft.tick_count
        if self._leads_since_tick is None:
            self._leads_since_tick = tick
        for row in machine.gateways.values():
            if row.node == self._node or not row.is_open:
                continue
            key = (row.node, row.incarnation)
            # A row counts as heard when this leader first sees it: its node has just opened it, or the lead is new.
            silent_ticks = tick - max(self._leads_since_tick, self._heard_tick.setdefault(key, tick))
            if silent_ticks * TICK_MS >= machine.settings.session_timeout_ms and self._propose_once(key, CloseGateway(*key)):
                self._gave_up(*key)

    def _check_disk_space(self, machine: StateMachine) -> None:
        """Jobs are refused by an entry, like everything that changes what commands are answered with."""
        self._proposed.discard(DiskSpace(machine.space_is_scarce))  # it is applied: the next may follow
        has_space = self._raft.leadership.has_space
        if has_space is not None and has_space == machine.space_is_scarce:
            self._propose_once(DiskSpace(not has_space), DiskSpace(not has_space))

    def _propose_level(self, machine: StateMachine) -> None:
        """The cluster is at the least level of its members, once all have been heard; there is no way back."""
        others = self._raft.membership.members - {self._node}
        level = min([self._level, *map(self.level_of, others)])
        if level > machine.level:
            self._propose_once(Features(level), Features(level))

    def _propose_once(self, key: object, payload: Settings | CloseGateway | DiskSpace | Features | Directory) -> bool:
        if key in self._proposed:
            return False
        try:
            self._raft.propose([(EntryKind.BATCH, encode_payload(payload))])
        except Overloaded:
            return False
        self._proposed.add(key)
        return True

    def let_time_pass(self, machine: StateMachine, now_ms: int) -> bool:
        """With timers due and no entry on its way that fires them, append an empty one; return whether one was. To be called whenever
        timers may have changed."""
        if not self._leads(machine):
            return False
        due_ms = machine.next_due_ms()
        if due_ms is None:
            return False
        log = self._raft.log
        clock_ms = self._raft.clock_ms() or 0
        if log.last_index > machine.applied_index and log.last_time_ms >= due_ms:
            return False
        wait_ms = max(due_ms - clock_ms, log.last_time_ms + TIMER_ENTRY_GAP_MS - clock_ms)
        if wait_ms > 0:
            self._wake_in(wait_ms, now_ms)
            return False
        try:
            self._raft.propose([(EntryKind.BATCH, b"")])
        except Overloaded:
            self._wake_in(TIMER_ENTRY_GAP_MS, now_ms)
            return False
        return True

    def _wake_in(self, wait_ms: int, now_ms: int) -> None:
        """One timer for all timers: the earliest."""
        at_ms = now_ms + wait_ms
        if self._timer_call is not None:
            if self._timer_call_at_ms <= at_ms:
                return
            self._timer_call.cancel()
        self._timer_call_at_ms = at_ms
        self._timer_call = self._clock.callLater(wait_ms / 1000, self._timer_due)

    def _timer_due(self) -> None:
        self._timer_call = None
        self._wake()


def _tick_of(schedule: Schedule, now_ms: int) -> Tick:
    """For the occurrence that is due; or for a new schedule, when its first one is. Raises as `occurrences`."""
    plan, due_ms = schedule.plan, schedule.next_ms
    if not due_ms:
        return Tick(schedule.name, schedule.version, 0, occurrences.first(plan, now_ms), False)
    if now_ms - due_ms <= MISSED_AFTER_MS or plan.at_ms:
        return Tick(schedule.name, schedule.version, due_ms, occurrences.following(plan, due_ms, due_ms), True)
    # those after it were missed, too
    return Tick(schedule.name, schedule.version, due_ms, occurrences.following(plan, due_ms, now_ms), plan.puts_missed)

"""Snapshots that operators take copies of: who waits for one, and which stay while they are read."""

from __future__ import annotations

from collections.abc import Callable

from raftd.limits import Limits
from raftd.raft.messages import Snapshot

#: How many snapshots for backups are kept at most.
BACKUPS_HELD = 2

#: Called with a snapshot, or with None and why there is none.
Backup = Callable[[Snapshot | None, str], None]


class Backups:
    """Requests within `backup_ticks` share a snapshot: each snapshot costs a fork of the process, and disk space."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting: list[tuple[int, Backup]] = []  # (of which entry at least, who waits for it)
        self._kept: dict[Snapshot, int] = {}  # -> until which tick
        self._next_tick = 0

    @property
    def held(self) -> list[Snapshot]:
        """The snapshots whose files must not be removed."""
        return list(self._kept)

    def expire(self, tick: int) -> bool:
        """Drop backups that were not read for `backup_hold_ticks`; return whether any was dropped."""
        before = len(self._kept)
        self._kept = {held: until for held, until in self._kept.items() if until > tick}
        return len(self._kept) < before

    def drop(self) -> bool:
        """Release all backups; return whether any was kept."""
        had_any = bool(self._kept)
        self._kept.clear()
        return had_any

    def ask(self, index: int, newest: Snapshot | None, done: Backup, tick: int) -> None:
        """`newest` will do if it holds entry `index`."""
        self._waiting.append((index, done))
        if newest is not None:
            self._give(newest, tick)

    def is_due(self, tick: int) -> bool:
        """Whether one must be written for those who wait."""
        return bool(self._waiting) and tick >= self._next_tick

    def taken(self, snapshot: Snapshot | None, why_not: str, tick: int) -> None:
        """One was written, for whatever reason, or was not."""
        self._next_tick = tick + self._limits.backup_ticks
        if snapshot is not None:
            self._give(snapshot, tick)
            return
        waiting, self._waiting = self._waiting, []
        for _, done in waiting:
            done(None, why_not)

    def _give(self, snapshot: Snapshot, tick: int) -> None:
        content = [done for index, done in self._waiting if index <= snapshot.index]
        self._waiting = [(index, done) for index, done in self._waiting if index > snapshot.index]
        if content:
            self._keep(snapshot, tick)
        for done in content:
            done(snapshot, "")

    def _keep(self, snapshot: Snapshot, tick: int) -> None:
        self._kept.pop(snapshot, None)
        self._kept[snapshot] = tick + self._limits.backup_hold_ticks
        self._kept = dict(list(self._kept.items())[-BACKUPS_HELD:])

    def find(self, index: int, tick: int) -> Snapshot | None:
        """The one of entry `index`, if it is held still; it is for a while longer then."""
        snapshot = next((held for held in self._kept if held.index == index), None)
        if snapshot is not None:
            self._keep(snapshot, tick)
        return snapshot

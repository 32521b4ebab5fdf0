"""The log as the core sees it: its newest entries in memory, the terms of all, and how far each has got.

Four marks, each at or below the one before: `last_index`, `handed_index` (given to the storage),
`durable_index` (the storage said so), and, on its own course, `commit_index` >= `applied_index`. An
entry may be committed before it is durable here: a quorum elsewhere holds it.

    1 ……… offset ……… forgotten_index ……… applied_index ……… commit_index ……… last_index
    in a snapshot │ on the disk only     │ in memory

Applied entries leave memory when there are too many of them; a follower that still needs one gets it from the
disk. Terms never fall along a log, so those of all entries take no more than a pair of numbers a term.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from raftd.limits import LIMITS
from raftd.raft.messages import Entry
from raftd.raft.ready import NO_BASE, Base


class _Run(NamedTuple):
    """The entries from `first` on have this term, until the next run begins."""

    first: int
    term: int


class Log:
    """Entries offset+1 … last_index, in order, without gaps."""

    def __init__(
        self,
        entries: Sequence[Entry] = (),
        base: Base = NO_BASE,
        older: Sequence[tuple[int, int]] = (),
        memory_bytes: int = LIMITS.log_memory_bytes,
    ) -> None:
        """`base` is the last entry of the snapshot; `entries` behind it are durable already: they were read back from the disk.
        `older` are the (first index, term) of runs up to `base` that the disk holds too. `memory_bytes`: see `Limits`."""
        self._memory_bytes = memory_bytes
        # The entry before the first is gone, and its term too, so the first counts as gone.
        self.offset, self.offset_term = older[0] if older else (base.index, base.term)
        #: All up to here have left memory.
        self.forgotten_index = base.index
        self._entries: list[Entry] = list(entries)
        for position, entry in enumerate(self._entries):
            if entry.index != base.index + 1 + position:
                raise ValueError(f"entry {entry.index} is where {base.index + 1 + position} should be")
        self._runs: list[_Run] = []
        for place, (first, term) in enumerate(older):
            last = older[place + 1][0] - 1 if place + 1 < len(older) else base.index
            if last > self.offset:
                self._runs.append(_Run(max(first, self.offset + 1), term))
        self._add_runs(self._entries)
        self._base_time_ms = base.time_ms
        self.last_index = self.handed_index = self.durable_index = base.index + len(self._entries)
        self.commit_index = base.index
        self.applied_index = base.index
        self._applied_bytes = 0  # of entries in memory
        self._writes: deque[list[int]] = deque()  # [persist number, last index still claimed]

    def _add_runs(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if not self._runs or entry.term != self._runs[-1].term:
                self._runs.append(_Run(entry.index, entry.term))

    @property
    def last_term(self) -> int:
        return self._runs[-1].term if self._runs else self.offset_term

    @property
    def last_time_ms(self) -> int:
        """The stamp of the last entry, 0 if there never was any."""
        return self._entries[-1].time_ms if self._entries else self._base_time_ms

    def term_at(self, index: int) -> int | None:
        """The term of `index`; None if it is purged or not there yet: never a made-up 0 (R16)."""
        if index == self.offset:
            return self.offset_term
        if self.offset < index <= self.last_index:
            return self._runs[bisect_right(self._runs, index, key=lambda run: run.first) - 1].term
        return None

    def entry(self, index: int) -> Entry:
        if not self.forgotten_index < index <= self.last_index:
            raise IndexError(f"entry {index} is not held ({self.forgotten_index + 1}..{self.last_index})")
        return self._entries[index - self.forgotten_index - 1]

    def slice(self, first: int, last: int) -> list[Entry]:
        """Entries first … last, all in memory."""
        if first <= self.forgotten_index:
            raise IndexError(f"entry {first} is not in memory, which begins at {self.forgotten_index + 1}")
        return self._entries[first - self.forgotten_index - 1 : last - self.forgotten_index]

    def limited(self, first: int, last: int, size_bytes: int) -> tuple[Entry, ...]:
        """From `first` on, which is in memory, at most `size_bytes` of them but at least one, none behind `last`."""
        if first > last:
            return ()
        taken: list[Entry] = []
        total = 0
        position = first - self.forgotten_index - 1
        for entry in self._entries[position : min(last - self.forgotten_index, position + 4096)]:
            total += entry.size_bytes
            if taken and total > size_bytes:
                break
            taken.append(entry)
        return tuple(taken)

    def is_up_to_date(self, last_log_index: int, last_log_term: int) -> bool:
        """Whether a candidate with this last entry may have our vote (§5.4.1)."""
        return (last_log_term, last_log_index) >= (self.last_term, self.last_index)

    def last_with_term_at_most(self, term: int, index: int) -> int:
        """The greatest index <= `index` whose term is <= `term`, at least `offset` (R13).

        Terms never fall along a log, so one bisection skips all of a conflicting term.
        """
        beyond = bisect_right(self._runs, term, key=lambda run: run.term)
        last = self._runs[beyond].first - 1 if beyond < len(self._runs) else self.last_index
        return max(self.offset, min(index, last))

    def append(self, entries: Sequence[Entry]) -> None:
        """Add to the end; the caller has numbered them."""
        if entries and entries[0].index != self.last_index + 1:
            raise ValueError(f"entry {entries[0].index} does not follow {self.last_index}")
        self._entries += entries
        self._add_runs(entries)
        self.last_index += len(entries)

    def merge(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """A follower's append: skip what is held already, truncate only at a real conflict (R10). What was appended."""
        for position, entry in enumerate(entries):
            if entry.index <= self.offset:
                continue
            held = self.term_at(entry.index)
            if held == entry.term:
                continue
            if held is not None:
                self._truncate(entry.index)
            self.append(entries[position:])
            return entries[position:]
        return ()

    def _truncate(self, index: int) -> None:
        """Drop `index` and all behind it, and every claim of durability with them (R14)."""
        if index <= self.commit_index:
            raise AssertionError(f"entry {index} is committed (up to {self.commit_index}) and would be truncated")
        del self._entries[index - self.forgotten_index - 1 :]
        while self._runs and self._runs[-1].first >= index:
            self._runs.pop()
        self.last_index = index - 1
        self.handed_index = min(self.handed_index, index - 1)
        self.durable_index = min(self.durable_index, index - 1)
        for write in self._writes:
            write[1] = min(write[1], index - 1)

    def hand_over(self, number: int) -> list[Entry]:
        """The entries to write with persist `number`. An index below an earlier one replaces it."""
        entries = self.slice(self.handed_index + 1, self.last_index)
        self.handed_index = self.last_index
        self._writes.append([number, self.last_index])
        return entries

    def written(self, number: int) -> None:
        """All persists up to `number` are durable. Completions may come late, double or out of order;
        the mark never moves backwards (R15), and never over entries that were truncated since (R14).
        """
        while self._writes and self._writes[0][0] <= number:
            self.durable_index = max(self.durable_index, self._writes.popleft()[1])

    def commit_to(self, index: int) -> bool:
        """Move the commit index; True if it moved."""
        if index <= self.commit_index:
            return False
        if index > self.last_index:
            raise AssertionError(f"commit index {index} is beyond the log ({self.last_index})")
        self.commit_index = index
        return True

    def next_to_apply(self, count: int, size_bytes: int) -> list[Entry]:
        """Committed entries that are not applied yet, a bounded slice of them; `applied` tells how far it came."""
        last = min(self.commit_index, self.applied_index + count)
        return list(self.limited(self.applied_index + 1, last, size_bytes))

    def applied(self, index: int) -> None:
        """All entries up to `index`, which are committed, are applied."""
        if not self.applied_index <= index <= self.commit_index:
            raise AssertionError(f"entry {index} cannot be applied: {self.applied_index} is, {self.commit_index} is committed")
        self._applied_bytes += sum(entry.size_bytes for entry in self.slice(self.applied_index + 1, index))
        self.applied_index = index
        if self._applied_bytes > 2 * self._memory_bytes:
            self._forget()

    def _forget(self) -> None:
        """Applied entries leave memory, but for the newest, which followers ask for; none that is not on the disk yet."""
        most = min(self.applied_index, self.durable_index) - self.forgotten_index
        count = 0
        while count < most and self._applied_bytes > self._memory_bytes:
            self._applied_bytes -= self._entries[count].size_bytes
            count += 1
        self._drop(count)

    def _drop(self, count: int) -> None:
        """The oldest entries leave memory."""
        if count:
            self._base_time_ms = self._entries[count - 1].time_ms
        del self._entries[:count]
        self.forgotten_index += count

    def purge(self, index: int) -> None:
        """The disk holds nothing at or below `index` any more; all that was applied, and is durable in a snapshot."""
        if not self.offset < index <= min(self.applied_index, self.durable_index):
            raise AssertionError(f"entries up to {index} cannot be purged: {self.offset} were, {self.applied_index} are applied")
        held = max(0, index - self.forgotten_index)
        self._applied_bytes -= sum(entry.size_bytes for entry in self._entries[:held])
        self._drop(held)
        self.offset_term = self.term_at(index) or 0
        beyond = bisect_right(self._runs, index, key=lambda run: run.first)
        rest = self._runs[beyond:]
        is_amid_run = index < self.last_index and (not rest or rest[0].first > index + 1)
        self._runs = [_Run(index + 1, self.offset_term), *rest] if is_amid_run else rest
        self.offset = index

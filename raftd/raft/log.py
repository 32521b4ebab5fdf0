"""The log as the core sees it: entries in memory, and how far each has got.

Four marks, each at or below the one before: `last_index`, `handed_index` (given to the storage),
`durable_index` (the storage said so), and, on its own course, `commit_index` >= `applied_index`. An
entry may be committed before it is durable here: a quorum elsewhere holds it.

`offset` is the index before the first entry held. It stays 0 until snapshots purge a prefix.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

from raftd.raft.messages import Entry


class Log:
    """Entries offset+1 … last_index, in order, without gaps."""

    def __init__(self, entries: Sequence[Entry] = (), offset: int = 0, offset_term: int = 0) -> None:
        """`entries` are durable already: they were read back from the disk."""
        self.offset = offset
        self.offset_term = offset_term
        self._entries: list[Entry] = list(entries)
        for position, entry in enumerate(self._entries):
            if entry.index != offset + 1 + position:
                raise ValueError(f"entry {entry.index} stands where {offset + 1 + position} should")
        self.last_index = self.handed_index = self.durable_index = offset + len(self._entries)
        self.commit_index = offset
        self.applied_index = offset
        self._writes: deque[list[int]] = deque()  # [persist number, last index still claimed]

    @property
    def last_term(self) -> int:
        return self._entries[-1].term if self._entries else self.offset_term

    @property
    def last_time_ms(self) -> int:
        """The stamp of the last entry, 0 for an empty log."""
        return self._entries[-1].time_ms if self._entries else 0

    def term_at(self, index: int) -> int | None:
        """The term of `index`; None if it is purged or not there yet: never a made-up 0 (R16)."""
        if index == self.offset:
            return self.offset_term
        if self.offset < index <= self.last_index:
            return self._entries[index - self.offset - 1].term
        return None

    def entry(self, index: int) -> Entry:
        if not self.offset < index <= self.last_index:
            raise IndexError(f"entry {index} is not held ({self.offset + 1}..{self.last_index})")
        return self._entries[index - self.offset - 1]

    def slice(self, first: int, last: int) -> list[Entry]:
        """Entries first … last, both held."""
        if first <= self.offset:
            raise IndexError(f"entry {first} is purged; the log begins at {self.offset + 1}")
        return self._entries[first - self.offset - 1 : last - self.offset]

    def limited(self, first: int, last: int, size_bytes: int) -> tuple[Entry, ...]:
        """From `first` on, at most `size_bytes` of them but at least one, none behind `last`."""
        if first > last:
            return ()
        taken: list[Entry] = []
        total = 0
        position = first - self.offset - 1
        for entry in self._entries[position : min(last - self.offset, position + 4096)]:
            total += entry.size_bytes
            if taken and total > size_bytes:
                break
            taken.append(entry)
        return tuple(taken)

    def is_up_to_date(self, last_log_index: int, last_log_term: int) -> bool:
        """Whether a candidate with this last entry may have our vote (§5.4.1)."""
        return (last_log_term, last_log_index) >= (self.last_term, self.last_index)

    def last_with_term_at_most(self, term: int, index: int) -> int:
        """The greatest held index <= `index` whose term is <= `term`, at least `offset` (R13).

        Terms never fall along a log, so one bisection skips all of a conflicting term.
        """
        upto = max(0, min(index, self.last_index) - self.offset)
        return self.offset + bisect_right(self._entries, term, 0, upto, key=lambda entry: entry.term)

    def append(self, entries: Sequence[Entry]) -> None:
        """Add to the end; the caller has numbered them."""
        if entries and entries[0].index != self.last_index + 1:
            raise ValueError(f"entry {entries[0].index} does not follow {self.last_index}")
        self._entries.extend(entries)
        self.last_index += len(entries)

    def merge(self, entries: Sequence[Entry]) -> None:
        """A follower's append: skip what is held already, truncate only at a real conflict (R10)."""
        for position, entry in enumerate(entries):
            if entry.index <= self.offset:
                continue
            held = self.term_at(entry.index)
            if held == entry.term:
                continue
            if held is not None:
                self._truncate(entry.index)
            self.append(entries[position:])
            return

    def _truncate(self, index: int) -> None:
        """Drop `index` and all behind it, and every claim of durability with them (R14)."""
        if index <= self.commit_index:
            raise AssertionError(f"entry {index} is committed (up to {self.commit_index}) and would be truncated")
        del self._entries[index - self.offset - 1 :]
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
        """Committed entries not applied yet, a bounded slice of them; they count as applied now."""
        last = min(self.commit_index, self.applied_index + count)
        entries = list(self.limited(self.applied_index + 1, last, size_bytes))
        self.applied_index += len(entries)
        return entries

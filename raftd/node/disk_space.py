"""Whether disk space is low on a node, announced while there is still enough for what frees space."""

from __future__ import annotations

from collections.abc import Callable

from raftd.note import Note

#: A disk that was low is so no more with a quarter above the mark: nothing flaps.
FREE_DISK_FACTOR = 1.25


class DiskSpace:
    """`low_bytes`: free, as configured. `note` tells the operator."""

    def __init__(self, low_bytes: int, segment_bytes: int, is_low: bool, note: Callable[[Note], None]) -> None:
        """`is_low`: what was decided before is not forgotten by a restart."""
        self.is_low = is_low
        self._low_bytes = low_bytes
        self._segment_bytes = segment_bytes
        self._note = note

    @property
    def kept_bytes(self) -> int:
        """For the log: what was configured, but two segments at least."""
        return max(self._low_bytes, 2 * self._segment_bytes)

    def update(self, free_bytes: int, next_snapshot_bytes: int, is_settled: bool) -> None:
        """While a snapshot is written, received or removed (not `is_settled`) it uses the space that was reserved for it, so only the
        reserve of the log counts. Between two snapshots there must be space for the next one, too."""
        mark = self.kept_bytes + (next_snapshot_bytes if is_settled else 0)
        enough = int(mark * FREE_DISK_FACTOR)
        was_low = self.is_low
        if free_bytes < mark:
            self.is_low = True
        elif is_settled and free_bytes >= enough:
            self.is_low = False
        if self.is_low and not was_low:
            text = (
                f"disk space is low: {free_bytes >> 20} MiB are free; this warning ends at {enough >> 20} MiB. "
                "If too few nodes have free space, puts are refused"
            )
            self._note(Note(text, is_warning=True))
        elif was_low and not self.is_low:
            self._note(Note(f"disk space is sufficient again: {free_bytes >> 20} MiB are free"))

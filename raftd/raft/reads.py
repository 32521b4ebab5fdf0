"""ReadIndex on the leader (thesis §6.4): a read may be served at the commit index of the moment it was
asked, once a quorum has confirmed, after that moment, that this node still leads.

Confirmations are counted by rounds. A round's number rides on every AppendEntries and comes back in its
answer; it only ever grows, so a delayed answer to an older message confirms no later read (R21). There
is no lease: nothing here trusts a clock (R22).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from raftd.raft.quorum import Halves, majority_value


class PendingReads:
    """Reads that wait for their round. `asker` is the node that asked."""

    def __init__(self) -> None:
        self.round = 0
        self._unsent: list[tuple[int, int]] = []  # (asker, context)
        self._waiting: deque[tuple[int, int, int, int]] = deque()  # (round, index, asker, context)

    def __len__(self) -> int:
        """Reads that are not finished."""
        return len(self._unsent) + len(self._waiting)

    def ask(self, asker: int, context: int) -> None:
        self._unsent.append((asker, context))

    def start_round(self, commit_index: int) -> bool:
        """All reads asked since the last round share the next one. True if there is one to send."""
        if not self._unsent:
            return False
        self.round += 1
        self._waiting.extend((self.round, commit_index, asker, context) for asker, context in self._unsent)
        self._unsent.clear()
        return True

    def finished(self, halves: Halves, rounds: Mapping[int, int]) -> list[tuple[int, int, int]]:
        """(asker, context, index) of every read whose round a majority has confirmed."""
        if not self._waiting:
            return []
        confirmed = majority_value(halves, rounds)
        done = []
        while self._waiting and self._waiting[0][0] <= confirmed:
            _, index, asker, context = self._waiting.popleft()
            done.append((asker, context, index))
        return done

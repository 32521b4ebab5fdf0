"""Counting: what a majority has, and who wins an election.

A cluster's voters are a set of node ids. A joint configuration is two such sets, each counted on its own (R25): the *halves*.
Everything that counts goes through this module.

**Doubtful voters.** A node whose log lost its last batch to damage may have lost entries that it had
acknowledged. Its grant is then worth less: the candidate it prefers may lack them too. A candidate wins
with a majority of unflagged grants, or with n - majority + 2 grants of any kind. Why that suffices: at
most one voter at a time is damaged, so a committed entry survives on majority - 1 intact voters at
least, and n - majority + 2 grants leave out only majority - 2 voters: one of those who granted holds it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

Halves = Sequence[Collection[int]]


def majority(voters: Collection[int]) -> int:
    """The least number of voters of which any two sets intersect."""
    return len(voters) // 2 + 1


def majority_value(halves: Halves, values: Mapping[int, int]) -> int:
    """The greatest value that a majority of each half has reached; a voter without one counts as 0."""
    return min(_majority_value(voters, values) for voters in halves)


def _majority_value(voters: Collection[int], values: Mapping[int, int]) -> int:
    ranked = sorted((values.get(voter, 0) for voter in voters), reverse=True)
    return ranked[majority(voters) - 1]


def has_majority(halves: Halves, members: Collection[int]) -> bool:
    """Whether `members` are a majority of each half."""
    return all(sum(voter in members for voter in voters) >= majority(voters) for voters in halves)


class Tally:
    """The grants and refusals of one election or pre-election. Each half must be won."""

    def __init__(self, halves: Halves) -> None:
        self._halves = [frozenset(voters) for voters in halves]
        self._sound: set[int] = set()
        self._doubtful: set[int] = set()
        self._refused: set[int] = set()

    def count(self, voter: int, granted: bool, doubtful: bool = False) -> None:
        """Only the first answer of a voter counts."""
        if voter in self._sound | self._doubtful | self._refused:
            return
        if not granted:
            self._refused.add(voter)
        elif doubtful:
            self._doubtful.add(voter)
        else:
            self._sound.add(voter)

    @property
    def won(self) -> bool:
        return all(self._has_won(voters) for voters in self._halves)

    def _has_won(self, voters: frozenset[int]) -> bool:
        least = majority(voters)
        sound = len(voters & self._sound)
        return sound >= least or sound + len(voters & self._doubtful) >= len(voters) - least + 2

    @property
    def lost(self) -> bool:
        """So many of a half refused that no majority of it is left."""
        return any(len(voters - self._refused) < majority(voters) for voters in self._halves)

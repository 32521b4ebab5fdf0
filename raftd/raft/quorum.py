"""Counting: what a majority has, and who wins an election.

A cluster's voters are a set of node ids. A joint configuration, once membership can change, is two such
sets, each counted on its own (R25); everything that counts goes through this module.

**Doubtful voters.** A node whose log lost its last batch to damage may have lost entries that it had
acknowledged. Its grant is then worth less: the candidate it prefers may lack them too. A candidate wins
with a majority of unflagged grants, or with n - majority + 2 grants of any kind. Why that suffices: at
most one voter at a time is damaged, so a committed entry survives on majority - 1 intact voters at
least, and n - majority + 2 grants leave out only majority - 2 voters: one of those who granted holds it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping


def majority(voters: Collection[int]) -> int:
    """The least number of voters of which any two sets intersect."""
    return len(voters) // 2 + 1


def majority_value(voters: Collection[int], values: Mapping[int, int]) -> int:
    """The greatest value that a majority of voters has reached; a voter without one counts as 0."""
    ranked = sorted((values.get(voter, 0) for voter in voters), reverse=True)
    return ranked[majority(voters) - 1]


def has_majority(voters: Collection[int], members: Collection[int]) -> bool:
    return sum(voter in members for voter in voters) >= majority(voters)


class Tally:
    """The grants and refusals of one election or pre-election."""

    def __init__(self, voters: Collection[int]) -> None:
        self._voters = frozenset(voters)
        self._sound: set[int] = set()
        self._doubtful: set[int] = set()
        self._refused: set[int] = set()

    def count(self, voter: int, granted: bool, doubtful: bool = False) -> None:
        """Only the first answer of a voter counts."""
        if voter not in self._voters or voter in self._sound | self._doubtful | self._refused:
            return
        if not granted:
            self._refused.add(voter)
        elif doubtful:
            self._doubtful.add(voter)
        else:
            self._sound.add(voter)

    @property
    def won(self) -> bool:
        least = majority(self._voters)
        granted = len(self._sound) + len(self._doubtful)
        return len(self._sound) >= least or granted >= len(self._voters) - least + 2

    @property
    def lost(self) -> bool:
        """So many refused that no majority is left."""
        return len(self._voters) - len(self._refused) < majority(self._voters)

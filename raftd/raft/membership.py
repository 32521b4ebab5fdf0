"""Who is a member: configurations as they stand in the log, joint ones too (paper §6, thesis §4.3).

A configuration is in effect as soon as it is appended, and taken back if its entry is (R24). One that changes who votes is *joint*
first: the voters before and the voters after count each on their own (R25). Once that is committed, the leader appends the one
with the new voters alone. Learners are sent everything and count for nothing (R26).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from raftd.errors import UNDECODABLE
from raftd.raft.messages import Configuration, Entry, EntryKind, MemberAddress
from raftd.raft.outcomes import Outcome, Refused

#: A name or an address, of any family.
_HOST = re.compile(r"[A-Za-z0-9_.:%-]{1,255}")
_decoder = msgspec.msgpack.Decoder(Configuration)
encode = msgspec.msgpack.Encoder().encode
decode = _decoder.decode


def is_sound(prev: int, entries: Iterable[Entry]) -> bool:
    """Whether these can follow entry `prev`: numbered without gaps, and every configuration with a voter."""
    for place, entry in enumerate(entries, prev + 1):
        if entry.index != place:
            return False
        if entry.kind is EntryKind.CONFIG:
            try:
                if not decode(entry.data).voters:
                    return False
            except UNDECODABLE:
                return False
    return True


class Membership:
    """The configurations that this node's log holds, from the last one that is surely committed on."""

    def __init__(self, configuration: Configuration, index: int, entries: Iterable[Entry]) -> None:
        """`configuration` is in effect up to `index`: that of the snapshot, or of the file for a cluster that is not born yet."""
        self._history = [(index, configuration)]
        self._update()
        self.appended(entries)

    def _update(self) -> None:
        configuration = self.latest
        #: The sets of voters of which each must agree: two while the configuration is joint.
        self.halves = tuple(frozenset(half) for half in (configuration.voters, configuration.outgoing) if half)
        self.voters: frozenset[int] = frozenset().union(*self.halves)
        self.members = self.voters | frozenset(configuration.learners)

    @property
    def latest(self) -> Configuration:
        """In effect now."""
        return self._history[-1][1]

    @property
    def index(self) -> int:
        """The index of its entry, 0 for the configuration of the file."""
        return self._history[-1][0]

    def configuration_at(self, index: int) -> Configuration:
        """The one that was in effect once entry `index` was applied."""
        return next(configuration for place, configuration in reversed(self._history) if place <= index)

    def appended(self, entries: Iterable[Entry]) -> bool:
        """These stand at the end of the log now; whether the configuration is another."""
        found = [(entry.index, decode(entry.data)) for entry in entries if entry.kind is EntryKind.CONFIG]
        if found:
            self._history += found
            self._update()
        return bool(found)

    def truncated(self, index: int) -> bool:
        """`index` and all behind it are gone from the log; whether the configuration is another."""
        if self.index < index:
            return False
        while self.index >= index:
            self._history.pop()
        self._update()
        return True

    def applied(self, index: int) -> None:
        """What was in effect before that entry will not be asked for."""
        while len(self._history) > 1 and self._history[1][0] <= index:
            del self._history[0]


# -- changes, each from one configuration to the next; all raise Refused ------------------------


def _list(nodes: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(nodes)))


def check_free(configuration: Configuration, index: int, commit_index: int, has_committed_own: bool) -> None:
    """R23 and R24."""
    if not has_committed_own:
        raise Refused(Outcome.LEADER_NOT_READY, "the leader is new, and has not committed an entry of its own yet: ask again")
    if configuration.outgoing or index > commit_index:
        raise Refused(Outcome.CHANGE_IN_PROGRESS, "another change is under way: wait until it is done (`raftd member list`)")


def add_learner(configuration: Configuration, node: int, address: MemberAddress) -> Configuration:
    """`node` is sent everything from now on; it does not vote until it is promoted."""
    if node < 1:
        raise Refused(Outcome.INVALID, f"{node} is no id of a node: they begin with 1")
    if not _HOST.fullmatch(address.host) or not 0 < address.peer < 65_536 or not 0 <= address.client < 65_536:
        raise Refused(Outcome.INVALID, f"{address.host!a}:{address.peer} (client {address.client}) is no address of a node")
    if node in configuration.removed:
        raise Refused(
            Outcome.ID_USED_BEFORE, f"node {node} was a member and has been removed: ids are never used again, take another"
        )  # R28
    if node in configuration.voters or node in configuration.learners:
        raise Refused(Outcome.ALREADY_MEMBER, f"node {node} is a member already")
    others = {other: known for other, known in configuration.addresses.items() if (known.host, known.peer) == (address.host, address.peer)}
    if others:
        raise Refused(Outcome.ADDRESS_IN_USE, f"node {_list(others)} has the address {address.host}:{address.peer} already")
    return msgspec.structs.replace(
        configuration,
        learners=tuple(sorted((*configuration.learners, node))),
        addresses={**configuration.addresses, node: address},
    )


def promote(configuration: Configuration, node: int, is_caught_up: bool) -> Configuration:
    """The learner `node` votes from now on: a joint configuration."""
    if node in configuration.voters:
        raise Refused(Outcome.ALREADY_VOTER, f"node {node} votes already")
    if node not in configuration.learners:
        raise Refused(Outcome.NOT_MEMBER, f"node {node} is no member: add it first")
    if not is_caught_up:
        raise Refused(Outcome.NOT_CAUGHT_UP, f"node {node} lags: it will be promoted by itself when it has caught up")
    return msgspec.structs.replace(
        configuration,
        voters=tuple(sorted((*configuration.voters, node))),
        outgoing=configuration.voters,
        learners=tuple(learner for learner in configuration.learners if learner != node),
    )


def remove(configuration: Configuration, node: int) -> Configuration:
    """`node` is a member no more, for ever; joint if it votes."""
    removed = tuple(sorted((*configuration.removed, node)))
    addresses = {other: address for other, address in configuration.addresses.items() if other != node}
    if node in configuration.learners:
        learners = tuple(learner for learner in configuration.learners if learner != node)
        return msgspec.structs.replace(configuration, learners=learners, removed=removed, addresses=addresses)
    if node not in configuration.voters:
        raise Refused(Outcome.NOT_MEMBER, f"node {node} is no member: {_list((*configuration.voters, *configuration.learners))} are")
    if len(configuration.voters) == 1:
        raise Refused(Outcome.LAST_VOTER, f"node {node} is the only voter: without it there is no cluster")
    voters = tuple(voter for voter in configuration.voters if voter != node)
    return msgspec.structs.replace(configuration, voters=voters, outgoing=configuration.voters, removed=removed, addresses=addresses)


def leave_joint(configuration: Configuration) -> Configuration:
    """The new voters alone."""
    return msgspec.structs.replace(configuration, outgoing=())

"""What an operator reads in the log."""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger

from raftd.raft.messages import Configuration
from raftd.raft.ready import Role, RoleChange
from raftd.server.stats import Counters


def _list(nodes: tuple[int, ...]) -> str:
    return ", ".join(map(str, nodes))


class LogObserver:
    """Says what happened, and why, in words a newcomer understands."""

    _log = Logger("raftd")

    def __init__(self, node: int, counters: Counters, members: Callable[[Configuration], None], removed: Callable[[], None]) -> None:
        """`members` is called with every new configuration, `removed` when this node is in it no more."""
        self._node = node
        self._counters = counters
        self._members = members
        self.was_removed = removed

    def role_changed(self, change: RoleChange) -> None:
        say = self._log.info
        term, reason = change.term, change.reason
        self._counters.elections += change.role is Role.CANDIDATE
        self._counters.leader_changes += change.leader != 0
        if change.role is Role.LEADER:
            say("this node ({node}) leads now, in term {term}: {reason}", node=self._node, term=term, reason=reason)
        elif change.role is Role.CANDIDATE:
            say("election: this node asks for votes in term {term}: {reason}", term=term, reason=reason)
        elif change.role is Role.PRE_CANDIDATE:
            say("no leader: this node asks whether it could be elected (term {term}): {reason}", term=term, reason=reason)
        elif change.leader:
            say("node {leader} leads, in term {term}; this node follows", leader=change.leader, term=term)
        else:
            say("this node follows, in term {term}, and knows no leader: {reason}", term=term, reason=reason)

    def noted(self, text: str) -> None:
        say = self._log.warn if text.startswith("WARNING") else self._log.info
        say("{text}", text=text)

    def members_changed(self, configuration: Configuration) -> None:
        joint = f" (with the voters before: {_list(configuration.outgoing)})" if configuration.outgoing else ""
        learners = f", learners: {_list(configuration.learners)}" if configuration.learners else ""
        self._members(configuration)
        self._log.info("members: voters {voters}{joint}{learners}", voters=_list(configuration.voters), joint=joint, learners=learners)

    def gateway_closed(self, incarnation: int) -> None:
        self._log.warn(
            "the cluster had not heard this node for the session grace and gave its clients' reservations back; "
            "their connections are dropped, and it goes on as incarnation {incarnation}",
            incarnation=incarnation,
        )

    def gateway_silent(self, node: int, incarnation: int) -> None:
        self._log.warn(
            "node {node} (incarnation {incarnation}) was not heard for the session grace: its clients' reservations are given back",
            node=node,
            incarnation=incarnation,
        )

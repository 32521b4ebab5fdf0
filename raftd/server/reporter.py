"""Reports events of a node: to its log as text, and to listeners (`/events`) with their fields."""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger

from raftd.note import Note
from raftd.raft.messages import Configuration
from raftd.raft.ready import Role, RoleChange
from raftd.server.stats import Counters

#: Gets the name of an event and its fields.
Listener = Callable[[str, dict[str, object]], None]


def _list(nodes: tuple[int, ...]) -> str:
    return ", ".join(map(str, nodes))


class EventReporter:
    """Says what happened, and why, in words a newcomer understands. Each event has a name and fields, which a log in JSON has too."""

    _log = Logger("raftd")

    def __init__(self, node: int, counters: Counters, members: Callable[[Configuration], None], removed: Callable[[], None]) -> None:
        """`members` is called with every new configuration, `removed` when this node is in it no more."""
        self.listeners: list[Listener] = []
        self._node = node
        self._counters = counters
        self._members = members
        self.was_removed = removed

    def _tell(self, event: str, text: str, is_warning: bool = False, **fields: object) -> None:
        fields = {"node": self._node, **fields}
        say = self._log.warn if is_warning else self._log.info
        say("{text}", text=text, event=event, **fields)
        for listener in self.listeners:
            listener(event, fields)

    def role_changed(self, change: RoleChange) -> None:
        term, reason = change.term, change.reason
        self._counters.elections += change.role is Role.CANDIDATE
        self._counters.leader_changes += change.leader != 0
        if change.role is Role.LEADER:
            text = f"this node ({self._node}) leads now, in term {term}: {reason}"
        elif change.role is Role.CANDIDATE:
            text = f"election: this node asks for votes in term {term}: {reason}"
        elif change.role is Role.PRE_CANDIDATE:
            text = f"no leader: this node asks whether it could be elected (term {term}): {reason}"
        elif change.leader:
            text = f"node {change.leader} leads, in term {term}; this node follows"
        else:
            text = f"this node follows, in term {term}, and knows no leader: {reason}"
        self._tell("role", text, role=change.role.value, term=term, leader=change.leader, reason=reason)

    def noted(self, note: Note) -> None:
        self._tell("note", note.text, note.is_warning, note=note.text)

    def members_changed(self, configuration: Configuration) -> None:
        self._members(configuration)
        voters, outgoing, learners = configuration.voters, configuration.outgoing, configuration.learners
        joint = f" (with the voters before: {_list(outgoing)})" if outgoing else ""
        more = f", learners: {_list(learners)}" if learners else ""
        text = f"members: voters {_list(voters)}{joint}{more}"
        self._tell("members", text, voters=list(voters), outgoing=list(outgoing), learners=list(learners))

    def gateway_closed(self, incarnation: int) -> None:
        text = (
            "the cluster had not heard this node for the session timeout and gave its clients' reservations back; "
            f"their connections are dropped, and the node continues as incarnation {incarnation}"
        )
        self._tell("gateway-closed", text, True, incarnation=incarnation)

    def gateway_silent(self, node: int, incarnation: int) -> None:
        text = f"node {node} (incarnation {incarnation}) was not heard for the session timeout: its clients' reservations are given back"
        self._tell("gateway-silent", text, True, silent=node, incarnation=incarnation)

"""Which peers this node exchanges messages with, and how it recognises them when they come again."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from raftd.jobs.machine import StateMachine
from raftd.limits import PEER_STRANGERS
from raftd.raft.core import Raft
from raftd.storage.store import Store
from raftd.wire.peer import Hello, Refusal, RefusalCode

_REMOVED = "node {} was removed from this cluster; its id is not used again (docs/operations.md: Changing the nodes)"


class Admission:
    """Of a node of cluster `cluster`, which was configured with the voters `voters`; `level` is that of its raftd."""

    def __init__(self, node: int, cluster: str, voters: tuple[int, ...], level: int, raft: Raft, store: Store) -> None:
        self._node = node
        self._cluster = cluster
        self._voters = voters
        self._level = level
        self._raft = raft
        self._store = store
        #: Directory ids of peers that are not members as far as this node knows.
        self._unconfirmed: dict[int, bytes] = {}

    @property
    def directories(self) -> Mapping[int, bytes]:
        """The ids of the data directories of this node and of the members that it has met."""
        identity = self._store.identity
        return {**identity.peers, self._node: identity.directory_id}

    def hello(self) -> Hello:
        """Return what this node says of itself on a new connection."""
        identity = self._store.identity
        return Hello(
            self._cluster, self._voters, identity.cluster_id, self._node, self._raft.incarnation, identity.directory_id, self._level
        )

    def check(self, hello: Hello, machine: StateMachine) -> Refusal | None:
        """Return why this node does not accept messages from the sender of `hello`, or None if it does."""
        identity, members = self._store.identity, self._raft.membership
        node, is_member = hello.node, hello.node in members.members
        if hello.cluster != self._cluster:
            return Refusal(RefusalCode.OTHER_CLUSTER, f"it belongs to cluster {hello.cluster!r}, this node to {self._cluster!r}")
        has_begun = bool(hello.cluster_id or identity.cluster_id)
        if not has_begun and hello.voters != self._voters:
            text = f"its configuration has the nodes {hello.voters}, this node's {self._voters}: they must be the same everywhere"
            return Refusal(RefusalCode.OTHER_CONFIGURATION, text)
        if hello.cluster_id and identity.cluster_id and hello.cluster_id != identity.cluster_id:
            text = f"it belongs to another cluster of the same name ({hello.cluster_id.hex()}, not {identity.cluster_id.hex()})"
            return Refusal(RefusalCode.OTHER_CLUSTER, text)
        if node == self._node:
            return Refusal(RefusalCode.OTHER_NODE, f"it says that it is node {node}, which this node is")
        if node in members.latest.removed and not is_member:
            return self.removal_of(node) or Refusal(RefusalCode.REMOVED_UNCOMMITTED, _REMOVED.format(node))
        if not is_member and not hello.cluster_id:  # else it may have been added since this node knew
            return Refusal(RefusalCode.NOT_MEMBER, f"node {node} is no member of this cluster: `raftd member add` makes it one")
        if hello.level < machine.level:
            text = f"its raftd knows the features of level {hello.level}, this cluster uses those of level {machine.level}: upgrade it"
            return Refusal(RefusalCode.TOO_OLD, text)
        known = machine.directories.get(node) or identity.peers.get(node, hello.directory_id)
        if known != hello.directory_id:
            return Refusal(
                RefusalCode.OTHER_DIRECTORY,
                f"node {node} has come back with another data directory ({hello.directory_id.hex()}, not {known.hex()}): its disk was "
                f"wiped or replaced, and with it what it promised. docs/operations.md says what to do (When the others refuse a node)",
            )
        return None

    def removal_of(self, node: int) -> Refusal | None:
        """Return what to answer to a message of a node whose removal is committed, None for any other node."""
        members = self._raft.membership
        if node in members.members or node not in members.configuration_at(self._raft.log.commit_index).removed:
            return None
        return Refusal(RefusalCode.REMOVED, _REMOVED.format(node))

    def admit(self, hello: Hello, accept: Callable[[], None]) -> None:
        """Call `accept` once messages of the sender may count here."""
        peers = self._store.identity.peers
        if hello.node in peers:
            accept()
        elif hello.node not in self._raft.membership.members:
            # It may have been added since this node knew: nothing of its counts here before this node knows too.
            if len(self._unconfirmed) >= PEER_STRANGERS:
                self._unconfirmed.clear()
            self._unconfirmed[hello.node] = hello.directory_id
            accept()
        else:
            # Before its first acknowledgement can count, a crash must not make this node forget whose it was.
            self._store.remember(accept, peers={**peers, hello.node: hello.directory_id})

    def members_changed(self, remembered: Callable[[], None]) -> None:
        """R28: recognise by its disk, from now on, a peer that said hello before this node knew it as a member."""
        known = self._store.identity.peers
        members = self._raft.membership.members
        new = {node: id for node, id in self._unconfirmed.items() if node in members and node not in known}
        if new:
            self._unconfirmed = {node: id for node, id in self._unconfirmed.items() if node not in new}
            self._store.remember(remembered, peers={**known, **new})

"""`twistd raftd --join`: a new node of a cluster that lives already, with no file that names the others.

It asks any member who they are and to be one of them, before it starts; the cluster's log tells it everything from then on, so later
starts with the same options ask nobody.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from raftd.client.blocking import Connection, NoAnswer, where
from raftd.config import Address, Config
from raftd.errors import ConfigError
from raftd.raft.messages import Configuration
from raftd.storage.filesystem import RealFileSystem
from raftd.storage.vote import VoteFile
from raftd.wire.client import AddMemberRequest, Failed, Members, MembersRequest

_TIMEOUT_S = 15.0


class Joined(NamedTuple):
    """`config` names all members that are known; `voters` are those of the cluster, without the new node."""

    config: Config
    voters: tuple[int, ...]


def join(seed: tuple[str, int], config: Config, node: int) -> Joined:
    """Make node `node` of `config`, which says where it listens, a member of the cluster that the client door `seed` belongs to.
    Blocks. Raises ConfigError: then nothing was changed, unless the text says otherwise."""
    identity = VoteFile(RealFileSystem(), f"{config.data}/{node}").read()
    if identity is not None and identity.cluster_id:
        return Joined(msgspec.structs.replace(config, cluster=identity.cluster), identity.voters)
    try:
        with Connection(seed, _TIMEOUT_S) as connection:
            members = _members(connection)
            _become_member(connection, members.configuration, node, config.address(node))
    except NoAnswer as reason:
        raise ConfigError(f"--join {where(seed)}: no answer: {reason}") from None
    except ConfigError as reason:
        raise ConfigError(f"--join {where(seed)}: {reason}") from None
    known = {
        other: Address(place.host, place.peer, client=place.client or None)
        for other, place in members.configuration.addresses.items()
        if other != node
    }
    nodes = {**known, node: config.address(node)}
    return Joined(msgspec.structs.replace(config, cluster=members.cluster, nodes=nodes), members.configuration.voters)


def _members(connection: Connection) -> Members:
    reply = connection.ask(MembersRequest(1)).reply
    if isinstance(reply, Failed):
        raise ConfigError(reply.reason)
    if not isinstance(reply, Members):
        raise ConfigError("the node answers something else")
    return reply


def _become_member(connection: Connection, configuration: Configuration, node: int, own: Address) -> None:
    if node in configuration.voters or node in configuration.learners:
        known = configuration.addresses.get(node)
        if known is None or (known.host, known.peer) != (own.host, own.peer):
            place = f"{known.host}:{known.peer}" if known is not None else "another place"
            raise ConfigError(f"node {node} is a member already, at {place}: take another id, or start this node there")
        return
    reply = connection.ask(AddMemberRequest(2, node, own.host, own.peer, own.client or 0)).reply
    if isinstance(reply, Failed):
        raise ConfigError(reply.reason)

"""`twistd raftd --join`: a new node of a cluster that lives already, with no file that names the others.

It asks any member who they are and to be one of them, before it starts. From then on the cluster's log tells it who they are: a later
start with the same options only checks that the cluster is the same, and continues without an answer. What can go wrong here
is tried first: an id that is taken by a node which cannot start is of no use to anybody.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from typing import NamedTuple

import msgspec

from raftd.client.address import HostPort
from raftd.client.connection import Connection, NoAnswer, where
from raftd.client.credentials import CredentialFiles
from raftd.client.tls import TlsFiles
from raftd.config import Config, NodeAddress, TlsMode, is_loopback
from raftd.errors import ConfigError, RaftdError
from raftd.raft.messages import Configuration
from raftd.storage.filesystem import RealFileSystem
from raftd.storage.vote import Identity, VoteFile
from raftd.wire.client import AddMemberRequest, Done, Failed, Members, MembersRequest

_TIMEOUT_S = 15.0
_LOOK_S = 2.0


class Joined(NamedTuple):
    """`config` names all members that are known; `voters` are those of the cluster, without the new node. `note` is for the log."""

    config: Config
    voters: tuple[int, ...]
    note: str


def join(seed: HostPort, config: Config, node: int, has_file: bool) -> Joined:
    """Make node `node` of `config`, which says where it listens, a member of the cluster that the client listener `seed` belongs to.
    Without a file (`has_file`) the timings are the cluster's. Blocks. Raises ConfigError: then nothing was changed."""
    own, tls = config.address(node), _tls_files(config, node)
    try:
        identity = VoteFile(RealFileSystem(), f"{config.data}/{node}").read()
        if identity is not None and identity.cluster_id:
            return _joined_before(seed, config, identity, has_file, tls)
        _try(seed, config, node)
        with Connection(seed, _TIMEOUT_S, tls, _shown(tls)) as connection:
            members = _members(connection)
            _become_member(connection, members.configuration, node, own)
    except NoAnswer as reason:
        raise ConfigError(f"--join {where(seed)}: no answer: {reason}") from None
    except RaftdError as reason:
        raise ConfigError(f"--join {where(seed)}: {reason}") from None
    known = {
        other: NodeAddress(place.host, place.peer, client=place.client or None)
        for other, place in members.configuration.addresses.items()
        if other != node
    }
    config = _with_timings(msgspec.structs.replace(config, cluster=members.cluster, nodes={**known, node: own}), members, has_file)
    # one that was here before, and has not heard of the cluster yet, was made with the voters of then
    voters = identity.voters if identity is not None else members.configuration.voters
    return Joined(config, voters, f"joined cluster {members.cluster!r} at {where(seed)}")


def _tls_files(config: Config, node: int) -> TlsFiles | None:
    """What the new node shows, and trusts."""
    if config.tls is None or config.tls.mode is TlsMode.ACCEPT:
        return None
    files = config.tls.of(node)
    return TlsFiles(files.ca, files.certificate, files.key)


def _joined_before(seed: HostPort, config: Config, identity: Identity, has_file: bool, tls: TlsFiles | None) -> Joined:
    """Its log knows the others; but a seed that answers must be of the same cluster. Raises ConfigError."""
    note = f"this data directory is of cluster {identity.cluster!r} already: no other node was asked"
    try:
        with Connection(seed, _LOOK_S, tls, _shown(tls)) as connection:
            members = _members(connection)
    except NoAnswer:
        pass
    else:
        if members.configuration.cluster_id not in (b"", identity.cluster_id):
            raise ConfigError(
                f"that is another cluster ({members.cluster!r}) than the one of which {config.data}/{identity.node} holds data "
                f"({identity.cluster!r}): move that directory away to join, or leave out --join to stay in the old one"
            )
        config = _with_timings(config, members, has_file)
        note = f"a member of cluster {identity.cluster!r} already"
    return Joined(msgspec.structs.replace(config, cluster=identity.cluster), identity.voters, note)


def _with_timings(config: Config, members: Members, has_file: bool) -> Config:
    if has_file:
        return config
    return msgspec.structs.replace(config, election_timeout_ms=members.election_timeout_ms, heartbeat_ms=members.heartbeat_ms)


def _try(seed: HostPort, config: Config, node: int) -> None:
    """What would keep this node from starting, or from being found. Raises ConfigError."""
    own = config.address(node)
    if not is_loopback(seed[0]) and is_loopback(own.host):
        raise ConfigError(f"the others would look for this node at {own.host}, on their own machines: --host says where it is")
    try:
        if ipaddress.ip_address(own.host).is_unspecified:
            raise ConfigError(f"--host {own.host} is no address at which the others could find this node")
    except ValueError:
        pass  # a name
    for port in (own.peer, own.line, own.client, own.http):
        if port is not None:
            _try_port(own.host, port)
    directory = f"{config.data}/{node}"
    place = directory
    while not os.path.exists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place) or not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(f"{directory}: a data directory cannot be made there, for {place} is in the way")


def _try_port(host: str, port: int) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(f"this node cannot listen on {host}:{port}: {error.strerror or error}") from None


def _shown(tls: TlsFiles | None) -> CredentialFiles | None:
    """A node's certificate is enough; without one what $RAFTD_TOKEN says."""
    return CredentialFiles() if tls is not None else None


def _members(connection: Connection) -> Members:
    reply = connection.ask(MembersRequest(1)).reply
    if isinstance(reply, Failed):
        raise ConfigError(reply.text)
    if not isinstance(reply, Members):
        raise ConfigError("the node answers something else")
    return reply


def _become_member(connection: Connection, configuration: Configuration, node: int, own: NodeAddress) -> None:
    if node in configuration.voters or node in configuration.learners:
        known = configuration.addresses.get(node)
        if known is None or (known.host, known.peer) != (own.host, own.peer):
            place = f"{known.host}:{known.peer}" if known is not None else "another place"
            raise ConfigError(
                f"node {node} is a member already, at {place}: start it there, or take another id (and `raftd member remove {node}`, if it "
                f"never ran)"
            )
        return
    reply = connection.ask(AddMemberRequest(2, node, own.host, own.peer, own.client or 0)).reply
    if isinstance(reply, Failed):
        raise ConfigError(reply.text)
    if not isinstance(reply, Done):
        raise ConfigError("the node answers something else")

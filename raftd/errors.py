"""The errors that cross a module's border."""

from __future__ import annotations

import msgspec

#: What msgspec raises for bytes that are no message: its own error, and Python's for text that is no UTF-8.
#: (RecursionError: for what is nested without end.)
#: Our structs forbid fields that they do not know, so nothing is skipped, to any depth.
UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


#: What to do about a directory that is not used because of damage.
ADVICE = "Do not put an older copy in its place; docs/operations.md says what to do (When a node refuses to start)"


class RaftdError(Exception):
    """The base of raftd's own errors: its text tells the user what is wrong and what to do."""


class ConfigError(RaftdError):
    """The configuration cannot be used; the text names the path inside the file."""


class NotLeader(RaftdError):
    """A proposal reached a node that does not lead. `leader` is the node to ask, 0 if unknown."""

    def __init__(self, leader: int) -> None:
        super().__init__(f"node {leader} leads" if leader else "no leader is known")
        self.leader = leader


class Overloaded(RaftdError):
    """Too much waits to be committed; nothing was proposed."""


class CommandRefused(RaftdError):
    """A command of `raftd` cannot be carried out; nothing was changed."""


class FrameError(RaftdError):
    """Bytes on a connection that are no frame of this protocol, or a frame over the limit."""


class HelloRefused(FrameError):
    """The node that was greeted does not talk to this client, and says why."""


class UnknownUser(HelloRefused):
    """It does not know who asks."""


class StorageError(RaftdError):
    """The data directory cannot be used."""


class DirectoryLocked(StorageError):
    """Another process holds the data directory."""


class TooOld(StorageError):
    """Only a newer raftd understands what the cluster has agreed on."""


class CorruptionError(StorageError):
    """Data that was durable is damaged. Nothing was changed; the text names file and offset."""

"""`raftd recover`: what is wrong with the data directory of a node that does not run, and the one thing that can be done by hand."""

from __future__ import annotations

import os

import msgspec

from raftd.errors import CorruptionError, Refused
from raftd.raft.membership import decode
from raftd.raft.messages import Configuration, EntryKind
from raftd.raft.ready import NO_BASE
from raftd.storage.filesystem import RealFileSystem
from raftd.storage.log import Recovered, SegmentedLog
from raftd.storage.records import Damage
from raftd.storage.snapshots import Meta, look_at_snapshots
from raftd.storage.vote import VoteFile


def recover(directory: str, accept_tail: bool) -> list[str]:
    """What was found and done, a line each. Without `accept_tail` nothing is changed. Raises RaftdError or OSError."""
    fs = RealFileSystem()
    if not os.path.isdir(directory):
        raise Refused(f"{directory}: there is no data directory")
    fs.lock(f"{directory}/lock")
    try:
        return _recover(fs, directory, accept_tail)
    finally:
        fs.unlock(f"{directory}/lock")


def _configuration(recovered: Recovered, meta: Meta | None) -> Configuration | None:
    """The newest that is known here."""
    for entry in reversed(recovered.entries):
        if entry.kind is EntryKind.CONFIG:
            return decode(entry.data)
    return meta.configuration if meta is not None else None


def _recover(fs: RealFileSystem, directory: str, accept_tail: bool) -> list[str]:
    vote = VoteFile(fs, directory)
    identity = vote.read()
    if identity is None:
        raise CorruptionError(f"{directory}: neither vote.a nor vote.b can be read: no data directory of a node, or one that is lost")
    meta = look_at_snapshots(fs, f"{directory}/snap")
    log = SegmentedLog(fs, f"{directory}/log", bytes)
    recovered = log.recover(identity.first_segment, meta.base if meta is not None else NO_BASE)
    if (configuration := _configuration(recovered, meta)) is not None and identity.node in configuration.removed:
        return [f"node {identity.node} was removed from cluster {identity.cluster!r}: its data is of no use any more"]
    found = [f"node {identity.node} of cluster {identity.cluster!r}: {recovered.segments} segments, entries up to {recovered.last_index}"]
    tail = recovered.tail
    doubtful_tail = tail is not None and tail.damage is Damage.DOUBTFUL
    if tail is not None:
        found.append(f"the last {tail.size} bytes of log/{tail.name} cannot be read: {tail.reason}")
    if not identity.doubtful and not doubtful_tail:
        end = "a torn end is cut by itself at the next start: nothing is lost" if tail is not None else "nothing is wrong here"
        return [*found, end]
    found.append("this node may have lost entries that it had acknowledged: its votes count for less until it has caught up with a leader")
    if not accept_tail:
        return [*found, "start it: with a majority of the others that is all. If they are lost for good, --accept-tail lets it vote again"]
    if tail is not None:
        copy = log.cut(tail)
        found.append(f"the end was cut; a copy is log/{copy}")
    vote.write(msgspec.structs.replace(identity, doubtful=False))
    return [*found, "its votes count in full again. What was acknowledged in the part that was cut, and is nowhere else, is lost"]

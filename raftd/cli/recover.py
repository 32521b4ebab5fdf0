"""`raftd recover`: what is wrong with the data directory of a node that does not run, and what can be done by hand."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import msgspec

from raftd.cli.archive import back_up_directory, check_directory, restore
from raftd.raft.membership import decode
from raftd.raft.messages import Configuration, EntryKind, MemberAddress
from raftd.raft.ready import NO_BASE
from raftd.storage.filesystem import RealFileSystem
from raftd.storage.inspect import read_log
from raftd.storage.log import SegmentedLog
from raftd.storage.records import Damage
from raftd.storage.snapshots import Meta
from raftd.storage.vote import Identity, VoteFile


def recover(directory: str, accept_tail: bool) -> list[str]:
    """What was found and done, a line each. Without `accept_tail` nothing is changed. Raises RaftdError or OSError."""
    fs = RealFileSystem()
    check_directory(directory)
    fs.lock(f"{directory}/lock")
    try:
        return _recover(fs, directory, accept_tail)
    finally:
        fs.unlock(f"{directory}/lock")


def found_new_cluster(directory: str, node: int, address: MemberAddress, note: Callable[[str], None]) -> tuple[str, Meta]:
    """Make a new cluster with `node` as its only member of everything in `directory`, committed or not: the last resort when no
    majority can be had again. The old directory stays beside it. Returns its new name, and what the new one was made of. `note` tells
    what is missing. Raises RaftdError or OSError; then nothing was changed."""
    fs = RealFileSystem()
    check_directory(directory)
    identity, configuration = identity_of(fs, directory)
    if configuration is not None and identity.node in configuration.removed:
        note(f"node {identity.node} is removed in the newest configuration of its log: if the directory of another node is left, take that")
    if identity.doubtful:
        note("this node may have lost entries that it had acknowledged: they are not in the new cluster")
    suffix = os.urandom(4).hex()
    kept, made, backup = f"{directory}.before-{suffix}", f"{directory}.new-{suffix}", f"{directory}.{suffix}.backup"
    try:
        back_up_directory(directory, backup, note)
        meta = restore(backup, made, node, None, address, lambda done, total: None)
        os.rename(directory, kept)
        try:
            os.rename(made, directory)
        except BaseException:
            os.rename(kept, directory)
            raise
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    finally:
        if os.path.exists(backup):
            os.unlink(backup)
    fs.sync_directory(os.path.dirname(os.path.abspath(directory)))
    return kept, meta


def identity_of(fs: RealFileSystem, directory: str) -> tuple[Identity, Configuration | None]:
    """Whose directory it is, and the newest configuration in it, if there is one."""
    log = read_log(fs, directory)
    configuration = next((decode(entry.data) for entry in reversed(log.entries) if entry.kind is EntryKind.CONFIG), None)
    if configuration is None and log.meta is not None:
        configuration = log.meta.configuration
    return log.identity, configuration


def _recover(fs: RealFileSystem, directory: str, accept_tail: bool) -> list[str]:
    log = read_log(fs, directory)
    identity, configuration = identity_of(fs, directory)
    is_going = False
    if configuration is not None and identity.node in configuration.removed:
        if not configuration.outgoing:
            return [f"node {identity.node} was removed from cluster {identity.cluster!r}: its data is of no use any more"]
        is_going = True
    newest = log.entries[-1] if log.entries else log.meta
    last, term = (newest.index, newest.term) if newest is not None else (0, 0)
    found = [f"node {identity.node} of cluster {identity.cluster!r}: everything up to entry {last}, of term {term}, is sound"]
    if is_going:
        found.append(
            "its removal had begun, and may never be committed: if the others cannot continue, --new-cluster makes a cluster of this"
        )
    tail = log.tail
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
        again = SegmentedLog(fs, f"{directory}/log", bytes)
        again.recover(identity.first_segment, log.meta.base if log.meta is not None else NO_BASE)
        found.append(f"the end was cut; a copy is log/{again.cut(tail)}")
    vote = VoteFile(fs, directory)
    vote.read()  # what is written must be newer
    vote.write(msgspec.structs.replace(identity, doubtful=False))
    return [*found, "its votes count in full again. What was acknowledged in the part that was cut, and is nowhere else, is lost"]

"""`raftd backup` and `raftd restore`: the state of a queue as one file, and a new cluster made of it.

A backup is a snapshot file as a node writes it, with the CRCs that it carries in every piece and at its end.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from random import SystemRandom

from raftd.cli.common import fail, order
from raftd.cli.sealed import SealedFiles, is_sealed, seal
from raftd.client.connection import Connection
from raftd.errors import CommandRefused, CorruptionError, TooOld
from raftd.jobs.commands import FEATURE_LEVEL
from raftd.jobs.machine import StateMachine
from raftd.jobs.snapshot import Loader, dump, load
from raftd.raft.membership import decode
from raftd.raft.messages import Configuration, EntryKind, MemberAddress
from raftd.storage.filesystem import RealFileSystem
from raftd.storage.inspect import read_log
from raftd.storage.records import ID_BYTES, Damage, new_id
from raftd.storage.snapshots import Meta, SnapshotReader, encode, snapshot_path
from raftd.storage.vote import SLOTS, Identity, VoteFile
from raftd.wire.client import BackupReply, BackupRequest, Chunk, ChunkRequest

#: Called with (bytes or so done, of how many).
Progress = Callable[[int, int], None]


def check_new(path: str) -> None:
    """Raises CommandRefused if there is something already."""
    if os.path.lexists(path):
        raise CommandRefused(f"{path} is there already: nothing was changed. Take another name, or move it away")


def back_up(connection: Connection, path: str, progress: Progress, passphrase: bytes | None = None) -> Meta:
    """Everything that the cluster has acknowledged, as it is now, into a new file, sealed with a `passphrase`. Raises NoAnswer, RaftdError
    or OSError; then there is no file."""
    check_new(path)
    reply = order(connection, BackupRequest(1), BackupReply)
    free = RealFileSystem().free(os.path.dirname(os.path.abspath(path)))
    if reply.size_bytes > free:
        raise CommandRefused(f"{path}: the backup has {reply.size_bytes} bytes, and {free} are free there")

    def chunks() -> Iterator[bytes]:
        done = 0
        while done < reply.size_bytes:
            data = order(connection, ChunkRequest(2, reply.index, done), Chunk).data
            if not data:
                fail("the node answers something else")
            done += len(data)
            progress(done, reply.size_bytes)
            yield data

    return _write(path, chunks(), passphrase)


def back_up_directory(directory: str, path: str, note: Callable[[str], None], passphrase: bytes | None = None) -> Meta:
    """The same from the data directory of a node that does not run: all its entries, also those that may not have been committed.
    `note` tells what is missing. Raises RaftdError or OSError."""
    check_new(path)
    fs = RealFileSystem()
    check_directory(directory)
    fs.lock(f"{directory}/lock")  # no purge meanwhile
    try:
        log = read_log(fs, directory)
        if log.tail is not None and log.tail.damage is Damage.DOUBTFUL:
            lost = f"the last {log.tail.size} bytes of the log cannot be read ({log.tail.reason})"
            note(f"{lost}: what was acknowledged in them, if anything, is not in the backup")
        machine, meta = StateMachine(), log.meta
        if meta is not None:
            machine = load(SnapshotReader(fs, snapshot_path(f"{directory}/snap", meta)).pieces())
        configuration = meta.configuration if meta is not None else Configuration(b"", log.identity.voters)
        term = meta.term if meta is not None else 0
        for entry in log.entries:
            if entry.index > machine.applied_index:
                machine.apply(entry.index, entry.time_ms, entry.data if entry.kind is EntryKind.BATCH else b"")
                term = entry.term
            if entry.kind is EntryKind.CONFIG:
                configuration = decode(entry.data)
        if not machine.applied_index:
            raise CommandRefused(f"{directory} holds no entry: there is nothing to back up")
        _check_level(machine)
        return _write(
            path, encode(Meta(log.identity.cluster, configuration, machine.applied_index, term, machine.now_ms), dump(machine)), passphrase
        )
    finally:
        fs.unlock(f"{directory}/lock")


def check_directory(directory: str) -> None:
    """Raises CommandRefused if that is no node's."""
    if any(os.path.exists(f"{directory}/{slot}") for slot in SLOTS):
        return
    nodes = sorted(name for name in (os.listdir(directory) if os.path.isdir(directory) else []) if name.isdigit())
    hint = f". Is {' or '.join(f'{directory}/{node}' for node in nodes)} meant?" if nodes else ""
    raise CommandRefused(f"{directory}: there is no data directory of a node{hint}")


def _write(path: str, parts: Iterator[bytes], passphrase: bytes | None = None) -> Meta:
    """Durably, whole or not at all, and read back."""
    fs = RealFileSystem()
    unfinished = f"{path}.{os.urandom(4).hex()}.part"
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            for part in parts if passphrase is None else seal(parts, passphrase):
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        reader = SnapshotReader(fs if passphrase is None else SealedFiles(unfinished, passphrase), unfinished)
        reader.verify()
        check_new(path)
        os.rename(unfinished, path)
        fs.sync_directory(os.path.dirname(os.path.abspath(path)))
    except BaseException:
        if os.path.exists(unfinished):
            os.unlink(unfinished)
        raise
    return reader.meta


def _check_level(machine: StateMachine) -> None:
    if machine.level > FEATURE_LEVEL:
        raise TooOld(
            f"this is of a cluster that uses features of level {machine.level}, and this raftd knows those up to level {FEATURE_LEVEL}"
        )


def restore(
    path: str, directory: str, node: int, cluster: str | None, address: MemberAddress, progress: Progress, passphrase: bytes | None = None
) -> Meta:
    """Make `directory` the data of `node`, the only member of a new cluster with the state of a backup. Sessions are not restored:
    what clients held is ready. Raises RaftdError or OSError; then nothing was changed."""
    fs = RealFileSystem()
    if not os.path.isfile(path):
        raise CommandRefused(f"{path}: there is no such file")
    if os.path.lexists(directory) and (not os.path.isdir(directory) or os.listdir(directory)):
        raise CommandRefused(
            f"{directory} is not empty: nothing was changed. Restore into a new directory; or stop its node, then move it away"
        )
    _check_nobody_listens(address)
    if is_sealed(path) and passphrase is None:
        raise CommandRefused(f"{path} is sealed: --passphrase-file says with what. Nothing was changed")
    if passphrase is not None and not is_sealed(path):
        raise CommandRefused(f"{path} is not sealed: leave out --passphrase-file. Nothing was changed")
    meta, machine = _read_backup(fs if passphrase is None else SealedFiles(path, passphrase), path, progress)
    _check_level(machine)
    try:
        machine.close_everyone()
    except (KeyError, IndexError):  # whole, and yet nothing that a queue could have become
        raise CommandRefused(f"{path} is no backup of raftd: what it holds does not fit together. Nothing was changed") from None
    random = SystemRandom()
    configuration = Configuration(random.randbytes(ID_BYTES), (node,), addresses={node: address})
    new = Meta(cluster or meta.cluster, configuration, meta.index, meta.term, meta.time_ms)
    identity = Identity(
        node,
        new.cluster,
        (node,),
        term=new.term,
        snapshot_index=new.index,
        directory_id=new_id(random),
        cluster_id=configuration.cluster_id,
    )
    unfinished = f"{directory}.{os.urandom(4).hex()}.restoring"
    try:
        for place in ("snap", "log"):
            fs.make_directory(f"{unfinished}/{place}")
        _write(snapshot_path(f"{unfinished}/snap", new), encode(new, dump(machine)))
        VoteFile(fs, unfinished).write(identity)
        fs.sync_directory(unfinished)
        if os.path.isdir(directory):
            os.rmdir(directory)  # empty, as was seen
        os.rename(unfinished, directory)
        fs.sync_directory(os.path.dirname(os.path.abspath(directory)))
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return new


def _read_backup(fs: RealFileSystem, path: str, progress: Progress) -> tuple[Meta, StateMachine]:
    """Raises CommandRefused."""
    try:
        reader = SnapshotReader(fs, path)
        total, done = fs.size(path), 0
        loader = Loader()
        for piece in reader.pieces():
            loader.feed(piece)
            done += len(piece)
            progress(done, total)
        machine = loader.finish()
    except CorruptionError as damage:
        why = str(damage).partition(". Nothing")[0]
        raise CommandRefused(f"{path} is no backup of raftd, or it is damaged: {why}. Nothing was changed") from None
    if machine.applied_index != reader.meta.index:
        raise CommandRefused(f"{path} is no backup of raftd: it holds the state at another entry than it says. Nothing was changed")
    return reader.meta, machine


def _check_nobody_listens(address: MemberAddress) -> None:
    """A node that runs would write into what is restored, even if its directory has another name by now. Raises CommandRefused."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        if probe.connect_ex((address.host, address.peer)) == 0:
            raise CommandRefused(
                f"something listens at {address.host}:{address.peer}, the peer listener of this node: stop it first. Nothing was changed"
            )

"""`raftd backup` and `raftd restore`: the state of a queue as one file, and a new cluster made of it.

A backup is a snapshot file as a node writes it, with the CRCs that it carries in every piece and at its end.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from random import SystemRandom

import msgspec

from raftd.cli.common import fail, order
from raftd.client.blocking import Connection
from raftd.errors import CorruptionError, Refused, TooOld
from raftd.jobs.commands import FEATURE_LEVEL
from raftd.jobs.machine import StateMachine
from raftd.jobs.snapshot import Loader, dump
from raftd.raft.messages import Address, Configuration, EntryKind
from raftd.storage.filesystem import RealFileSystem
from raftd.storage.inspect import read_log
from raftd.storage.records import ID_BYTES
from raftd.storage.snapshots import Meta, SnapshotReader, encode, snapshot_path
from raftd.storage.vote import Identity, VoteFile
from raftd.wire.client import BackupReply, BackupRequest, Chunk, ChunkRequest

#: Called with (bytes or so done, of how many).
Progress = Callable[[int, int], None]


def check_new(path: str) -> None:
    """Raises Refused if there is something already."""
    if os.path.lexists(path):
        raise Refused(f"{path} is there already: nothing was changed. Take another name, or move it away")


def back_up(connection: Connection, path: str, progress: Progress) -> Meta:
    """Everything that the cluster has acknowledged, as it is now, into a new file. Raises NoAnswer, RaftdError or OSError; then there
    is none."""
    check_new(path)
    reply = order(connection, BackupRequest(1)).reply
    if not isinstance(reply, BackupReply):
        fail("the node answers something else")

    def chunks() -> Iterator[bytes]:
        done = 0
        while done < reply.size_bytes:
            answer = order(connection, ChunkRequest(2, reply.index, done)).reply
            if not isinstance(answer, Chunk) or not answer.data:
                fail("the node answers something else")
            done += len(answer.data)
            progress(done, reply.size_bytes)
            yield answer.data

    return _write(path, chunks())


def back_up_directory(directory: str, path: str) -> Meta:
    """The same from the data directory of a node that does not run: all that stands in it, also what may not have been committed.
    Raises RaftdError or OSError."""
    check_new(path)
    fs = RealFileSystem()
    if not os.path.isdir(f"{directory}/log"):
        nodes = sorted(name for name in (os.listdir(directory) if os.path.isdir(directory) else []) if name.isdigit())
        hint = f". Is {', or '.join(f'{directory}/{node}' for node in nodes)} meant?" if nodes else ""
        raise Refused(f"{directory}: there is no data directory of a node{hint}")
    fs.lock(f"{directory}/lock")  # nobody purges meanwhile
    try:
        identity = VoteFile(fs, directory).read()
        log = read_log(fs, directory)
        machine, meta = StateMachine(), log.meta
        if meta is not None:
            machine = _load(SnapshotReader(fs, snapshot_path(f"{directory}/snap", meta)))
        configuration = meta.configuration if meta is not None else Configuration(b"", identity.voters if identity is not None else ())
        term = meta.term if meta is not None else 0
        for entry in log.entries:
            if entry.index > machine.applied_index:
                machine.apply(entry.index, entry.time_ms, entry.data if entry.kind is EntryKind.BATCH else b"")
                term = entry.term
            if entry.kind is EntryKind.CONFIG:
                configuration = msgspec.msgpack.decode(entry.data, type=Configuration)
        if identity is None or not machine.applied_index:
            raise Refused(f"{directory} holds no entry: there is nothing to back up")
        _check_level(machine)
        return _write(path, encode(Meta(identity.cluster, configuration, machine.applied_index, term, machine.now_ms), dump(machine)))
    finally:
        fs.unlock(f"{directory}/lock")


def _write(path: str, parts: Iterator[bytes]) -> Meta:
    """Durably, whole or not at all, and read back."""
    fs = RealFileSystem()
    unfinished = f"{path}.part"
    try:
        with open(unfinished, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        reader = SnapshotReader(fs, unfinished)
        reader.verify()
        check_new(path)
        os.rename(unfinished, path)
        fs.sync_directory(os.path.dirname(os.path.abspath(path)))
    except BaseException:
        if os.path.exists(unfinished):
            os.unlink(unfinished)
        raise
    return reader.meta


def _load(reader: SnapshotReader) -> StateMachine:
    loader = Loader()
    for piece in reader.pieces():
        loader.feed(piece)
    return loader.finish()


def _check_level(machine: StateMachine) -> None:
    if machine.level > FEATURE_LEVEL:
        raise TooOld(
            f"this is of a cluster that uses features of level {machine.level}, and this raftd knows those up to level {FEATURE_LEVEL}"
        )


def restore(path: str, directory: str, node: int, cluster: str | None, address: Address, progress: Progress) -> Meta:
    """Make `directory` the data of `node`, the only member of a new cluster with the state of a backup. Sessions are not restored:
    what clients held is ready. Raises RaftdError or OSError; then nothing was changed."""
    fs = RealFileSystem()
    if not os.path.isfile(path):
        raise Refused(f"{path}: there is no such file")
    if os.path.isdir(directory) and os.listdir(directory):
        raise Refused(f"{directory} is not empty: nothing was changed. Restore into a new directory, or move it away")
    try:
        reader = SnapshotReader(fs, path)
        total = os.path.getsize(path)
        loader = Loader()
        done = 0
        for piece in reader.pieces():
            loader.feed(piece)
            done += len(piece)
            progress(done, total)
        machine = loader.finish()
    except CorruptionError as damage:
        why = str(damage).partition(". Nothing")[0]
        raise Refused(f"{path} is no backup of raftd, or it is damaged: {why}. Nothing was changed") from None
    _check_level(machine)
    machine.close_everyone()
    meta = reader.meta
    random = SystemRandom()
    configuration = Configuration(random.randbytes(ID_BYTES), (node,), addresses={node: address})
    new = Meta(cluster or meta.cluster, configuration, meta.index, meta.term, meta.time_ms)
    directory_id = bytes([random.randrange(1, 256)]) + random.randbytes(ID_BYTES - 1)
    identity = Identity(
        node,
        new.cluster,
        (node,),
        term=new.term,
        snapshot_index=new.index,
        directory_id=directory_id,
        cluster_id=configuration.cluster_id,
    )
    unfinished = f"{directory}.restoring"
    shutil.rmtree(unfinished, ignore_errors=True)
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

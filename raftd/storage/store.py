"""The data directory of one node: its lock, its recovery, and group commit.

While one write runs, in a thread of its own, what comes next gathers; then it goes out as one write and
one fdatasync. At most one is in flight. Only the callbacks here announce durability.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random
from typing import Any, NamedTuple, Protocol

import msgspec

from raftd.errors import ADVICE, CorruptionError, StorageError
from raftd.histogram import LATENCIES, Histogram
from raftd.limits import LIMITS, Limits
from raftd.note import Note
from raftd.raft.membership import decode
from raftd.raft.messages import Entry, EntryKind, Snapshot
from raftd.raft.ready import NO_BASE, Base, Persist
from raftd.storage.filesystem import FileSystem
from raftd.storage.log import Recovered, SegmentedLog
from raftd.storage.records import Damage, new_id
from raftd.storage.snapshots import Copier, Meta, Snapshots, Worker, inspect_snapshots
from raftd.storage.vote import Identity, VoteFile

#: A write of at most this many bytes of entries is small: the commands of a few clients. Handing it to a thread and back costs more
#: processor time than it. Larger writes come from many clients, whose next commands are read meanwhile.
SMALL_WRITE_BYTES = 2 << 10
#: How often free space is measured while a segment of the log is filled.
_MEASURES_PER_SEGMENT = 16
#: An idle log is sealed after this long (milliseconds), so that damage to its last batch is told
#: apart from a torn write.
SEAL_IDLE_MS = 50

Done = Callable[[], None]


class Clock(Protocol):
    """The part of Twisted's IReactorTime that raftd uses."""

    def seconds(self) -> float: ...

    def callLater(self, delay: float, callable: Callable[..., object], *args: object) -> Any: ...


class Opened(NamedTuple):
    """A data directory ready for use: the entries after `base`, the last entry of the snapshot. `notes` tell the operator what
    recovery found. `older`: (first index, term) of each run of entries up to `base` that the disk still holds."""

    identity: Identity
    base: Base
    entries: list[Entry]
    notes: list[Note]
    older: list[tuple[int, int]]


def examine(fs: FileSystem, directory: str, identity: Identity, base: Base, log: SegmentedLog) -> Recovered:
    """Read the log of a directory back, and see that everything is there which `identity` knows of. Raises CorruptionError; nothing is
    changed."""
    if identity.incarnation > 1 and not fs.exists(f"{directory}/log"):
        raise CorruptionError(f"{directory}/log is missing. Nothing was changed. {ADVICE}")
    if base.index < identity.snapshot_index:
        raise CorruptionError(
            f"{directory}/snap: the snapshot of entry {identity.snapshot_index}, or a later one, is missing. Nothing was changed. {ADVICE}"
        )
    recovered = log.recover(identity.first_segment, base)
    if log.number < identity.segment:
        raise CorruptionError(
            f"{directory}/log: segment {identity.segment} is missing. The vote file says that it was written; the log ends with segment "
            f"{log.number}. Nothing was changed. {ADVICE}"
        )
    last_term = recovered.entries[-1].term if recovered.entries else base.term
    if last_term > identity.term:
        raise CorruptionError(
            f"{directory}: the vote file knows term {identity.term}, the log has entries of term {last_term}, so the vote file is an old "
            f"copy. Nothing was changed. {ADVICE}"
        )
    if recovered.entries and recovered.entries[0].index > base.index + 1:
        raise CorruptionError(
            f"{directory}/log begins with entry {recovered.entries[0].index}, and the newest snapshot ends with entry {base.index}: those "
            f"between are missing. Nothing was changed. {ADVICE}"
        )
    return recovered


def examine_directory(fs: FileSystem, directory: str) -> tuple[Identity | None, Recovered]:
    """What a data directory holds, which is left as it is. Raises CorruptionError."""
    identity = VoteFile(fs, directory).read()
    meta = inspect_snapshots(fs, f"{directory}/snap")
    first = identity.first_segment if identity is not None else 1
    return identity, SegmentedLog(fs, f"{directory}/log", bytes).recover(first, meta.base if meta is not None else NO_BASE)


def _voters(identity: Identity, meta: Meta | None, entries: Sequence[Entry]) -> set[int]:
    """Who votes, as far as this directory says: every half of a joint configuration counts."""
    for entry in reversed(entries):
        if entry.kind is EntryKind.CONFIG:
            configuration = decode(entry.data)
            return {*configuration.voters, *configuration.outgoing}
    return set(identity.voters) if meta is None else {*meta.configuration.voters, *meta.configuration.outgoing}


def _list(nodes: tuple[int, ...]) -> str:
    return ", ".join(map(str, nodes))


class Store:
    """`open` once, then `persist` and `remember` until `close`. `fail` is called with the first OSError
    and must end the process; nothing is called back after it."""

    def __init__(
        self,
        fs: FileSystem,
        directory: str,
        owner: Identity,
        random: Random,
        worker: Worker,
        reader: Worker,
        copier: Copier,
        clock: Clock,
        fail: Callable[[BaseException], None],
        limits: Limits = LIMITS,
    ) -> None:
        """`worker` writes the log; `reader` does what no answer waits for."""
        self.directory = directory
        self.snapshots = Snapshots(fs, f"{directory}/snap", copier, reader, fail, limits.snapshot_chunk_bytes)
        #: The identity to be written next; before `open`, the expected owner of the directory.
        self.identity = owner
        #: Since the start: each is one write and one fdatasync.
        self.batches_written = 0
        #: How long each took, in seconds.
        self.write_s = Histogram(LATENCIES)
        #: Free bytes of the disk, as last measured.
        self.free_bytes = 0
        self._fs = fs
        self._random = random
        self._worker = worker
        self._reader = reader
        self._clock = clock
        self._fail = fail
        self._append_bytes = limits.append_bytes
        self._vote = VoteFile(fs, directory)
        self._log = SegmentedLog(fs, f"{directory}/log", self._new_id, limits)
        self._entries: list[Entry] = []
        self._changed = False
        self._waiting: list[Done] = []
        self._jobs: deque[tuple[Callable[[], Callable[[], None]], Done]] = deque()  # of their own, between two batches
        self._busy = False
        self._closed = False
        self._on_idle: Done | None = None
        self._unmeasured_bytes = 0  # written since free space was measured
        self._sealed = True
        self._last_batch_s = 0.0
        self._seal_call: Any = None

    def _new_id(self) -> bytes:
        return new_id(self._random)

    # -- opening ------------------------------------------------------------------------------

    def open(self) -> Opened:
        """Lock, read back, repair. Raises StorageError before anything is changed, or OSError.

        No other node has the doubtful tail of an only voter: it is cut, and the node serves.
        """
        self._fs.make_directory(self.directory)
        self._fs.lock(f"{self.directory}/lock")
        try:
            opened = self._recover()
            if self._fs.make_private(self.directory):
                text = f"others could read {self.directory}, and with it all jobs: now its owner alone can"
                opened = opened._replace(notes=[*opened.notes, Note(text, is_warning=True)])
            self._measure()
            return opened
        except BaseException:
            self._fs.unlock(f"{self.directory}/lock")
            raise

    def _recover(self) -> Opened:
        identity = self._vote.read()
        if identity is None:
            # R1: a node that may have forgotten a vote must not vote. log/ is made last, so without it nothing was ever promised.
            if self._fs.exists(f"{self.directory}/log"):
                raise CorruptionError(
                    f"{self.directory}: neither vote.a nor vote.b can be read, so this node may have forgotten a vote. Nothing was "
                    f"changed. {ADVICE}"
                )
            self.identity = msgspec.structs.replace(self.identity, incarnation=1, directory_id=self._new_id())
            self._vote.write(self.identity)
            self._fs.sync_directory(self.directory)
            self.snapshots.clean()
            self._fs.make_directory(f"{self.directory}/log")
            return Opened(self.identity, NO_BASE, [], [Note(f"a new data directory in {self.directory}")], [])
        self._check_owner(identity, self.identity)
        meta = self.snapshots.recover()
        if meta is not None:
            self._check_snapshot(meta, identity)
        base = meta.base if meta is not None else NO_BASE
        recovered = examine(self._fs, self.directory, identity, base, self._log)
        only_voter = _voters(identity, meta, recovered.entries) == {identity.node}
        text = (
            f"read {len(recovered.entries)} log entries ({recovered.size_bytes} bytes in {recovered.segments} segments), "
            f"term {identity.term}, from {self.directory}"
        )
        notes = [Note(text)]
        if base.index:
            notes.append(Note(f"a snapshot holds the state up to entry {base.index}"))
        self._vote.repair(identity)
        self._fs.make_directory(f"{self.directory}/log")  # of a node that ended in its very first start; not before its vote is durable
        self.snapshots.clean()
        tail = recovered.tail
        if tail is not None:
            doubtful = tail.damage is Damage.DOUBTFUL
            if doubtful and not only_voter:
                identity = msgspec.structs.replace(identity, doubtful=True)
                self._vote.write(identity)  # before the evidence goes
            copy = self._log.cut(tail)
            told = f"the last {tail.size} bytes of log/{tail.name} were cut ({tail.reason}); a copy is log/{copy}"
            if not doubtful:
                notes.append(Note(f"{told}. They are what a crash leaves of a write that was never acknowledged"))
            elif only_voter:
                text = f"{told}. Jobs acknowledged in them, if any, are lost: no other node has a copy"
                notes.append(Note(text, is_warning=True))
            else:
                text = f"{told}. They may have been acknowledged, so this node's votes count for less until it has caught up"
                notes.append(Note(text, is_warning=True))
        self._log.sync_recovered()
        first = identity.first_segment
        entries, older = recovered.entries, recovered.older
        if not recovered.holds_base:
            first = self._log.start_anew()  # R29, as when it was installed
            entries, older = [], []
        self.identity = msgspec.structs.replace(
            identity, incarnation=identity.incarnation + 1, segment=self._log.number, first_segment=first
        )
        self._vote.write(self.identity)
        self._log.drop(first)()
        return Opened(self.identity, base, entries, notes, older)

    def _check_snapshot(self, meta: Meta, identity: Identity) -> None:
        theirs = meta.configuration.cluster_id
        if meta.cluster != identity.cluster or (identity.cluster_id and theirs != identity.cluster_id):
            raise StorageError(
                f"{self.snapshots.directory} holds a snapshot of another cluster ({meta.cluster!r}, {theirs.hex()}). Nothing was changed. "
                f"Use the data directory that belongs to this node"
            )

    def _check_owner(self, found: Identity, wanted: Identity) -> None:
        # Once the cluster is born its log says who its members are, and the configuration file may have grown old.
        if (found.node, found.cluster) == (wanted.node, wanted.cluster) and (found.cluster_id or found.voters == wanted.voters):
            return
        raise StorageError(
            f"{self.directory} belongs to node {found.node} of cluster {found.cluster!r} with the nodes {_list(found.voters)}; the "
            f"configuration makes this node {wanted.node} of {wanted.cluster!r} with {_list(wanted.voters)}. Nothing was changed. Use the "
            f"configuration that it was made for, or another data directory"
        )

    # -- disk space ---------------------------------------------------------------------------------

    def measure_free_space(self, done: Done) -> None:
        """Measure how many bytes are free, then call `done`. Writes measure it too, a few times a segment."""

        def measured(error: BaseException | None) -> None:
            if error is not None:
                self._fail(error)
            else:
                done()

        self._reader.run(self._measure, measured)  # as every job that writes nothing: it says nothing of how fast writes are

    def _measure(self) -> None:
        with suppress(OSError):  # a disk that does not say is no reason to end: writing will tell
            self.free_bytes = self._fs.free(self.directory)

    @property
    def log_bytes(self) -> int:
        """What the log takes on the disk."""
        return self._log.size_bytes

    @property
    def segment_bytes(self) -> int:
        """How large a file of the log becomes, or one batch more."""
        return self._log.segment_bytes

    # -- compaction ---------------------------------------------------------------------------

    def fetch_entries(self, first: int, done: Callable[[list[Entry]], None]) -> None:
        """Read entries for a follower, from `first` on; replaced ones may be among them."""
        read: list[Entry] = []
        reader = self._log.reader(first, self._append_bytes)

        def finished(error: BaseException | None) -> None:
            if error is not None:
                self._fail(error)
            else:
                done(read)

        self._reader.run(lambda: read.extend(reader()), finished)

    def purge(self, index: int) -> int:
        """Delete whole segments that have no entry after `index`. Return the last deleted entry, 0 if none."""
        first, last = self._log.purgeable(index)
        if not last:
            return 0
        remove = self._log.drop(first)
        # durably first, or a crash between two removals would look like a loss
        newest = self.snapshots.newest
        assert newest is not None
        self.remember(lambda: self._run_alone(lambda: remove, lambda: None), first_segment=first, snapshot_index=newest.index)
        return last

    def install(self, snapshot: Snapshot, meta: Meta, done: Done) -> None:
        """The snapshot that was received takes the place of the log and of every older snapshot; durable when `done` is called."""

        def prepare() -> Callable[[], None]:
            # what was handed over before is written by now, to segments that go
            first = self._log.start_anew()
            remove = self._log.drop(first)
            cluster_id = self.identity.cluster_id or meta.configuration.cluster_id
            identity = self.identity = msgspec.structs.replace(
                self.identity, first_segment=first, snapshot_index=meta.index, cluster_id=cluster_id
            )

            def job() -> None:
                self.snapshots.adopt(snapshot)
                self._vote.write(identity)
                remove()

            return job

        def installed() -> None:
            self._sealed = True
            self.snapshots.adopted(snapshot, meta)
            done()

        self._run_alone(prepare, installed)

    def _run_alone(self, prepare: Callable[[], Callable[[], None]], done: Done) -> None:
        """Run the job of `prepare` on the worker after all writes that are queued now; then call `done`."""
        self._jobs.append((prepare, done))
        self._start_next()

    def _start_job(self) -> None:
        prepare, then = self._jobs.popleft()
        self._busy = True
        job = prepare()

        def done(error: BaseException | None) -> None:
            self._busy = False
            if error is not None:
                self._fail(error)
                return
            then()
            self._start_next()

        self._worker.run(job, done)

    # -- writing ------------------------------------------------------------------------------

    def persist(self, persist: Persist, done: Done) -> None:
        """Make `persist` durable after everything before it, then call `done`."""
        state = persist.hard_state
        if state is not None:
            self._change(term=state.term, voted_for=state.voted_for, doubtful=state.doubtful)
        if persist.entries:
            first = persist.entries[0].index
            while self._entries and self._entries[-1].index >= first:
                self._entries.pop()  # not written yet, and replaced: the entries of a batch follow each other without gaps
            self._entries += persist.entries
        self._enqueue(done)

    def remember(self, done: Done, **changes: object) -> None:
        """Change fields of the identity (`incarnation`, `cluster_id`, `peers`, `has_users`), durably, then call `done`."""
        self._change(**changes)
        self._enqueue(done)

    def _change(self, **changes: object) -> None:
        self.identity = msgspec.structs.replace(self.identity, **changes)
        self._changed = True

    def _enqueue(self, done: Done) -> None:
        self._waiting.append(done)
        if not self._busy:
            self._start()

    def _start(self) -> None:
        identity, changed = self.identity, self._changed
        entries, self._entries = self._entries, []
        waiting, self._waiting = self._waiting, []
        self._changed = False
        self._busy = True
        began_s = self._clock.seconds()
        size_bytes = sum(entry.size_bytes for entry in entries)
        self._unmeasured_bytes += size_bytes
        is_measured = self._unmeasured_bytes >= self._log.segment_bytes // _MEASURES_PER_SEGMENT
        if is_measured:
            self._unmeasured_bytes = 0
        write = self._log.prepare(entries) if entries else None
        begun = msgspec.structs.replace(identity, segment=self._log.number) if self._log.number != identity.segment else None

        def job() -> None:
            # the vote first: an entry is never durable before the term it belongs to
            if changed:
                self._vote.write(identity)
            if write is not None:
                write()
            if begun is not None:
                self._vote.write(begun)  # from now on this segment must be there
            if is_measured:
                self._measure()

        def done(error: BaseException | None) -> None:
            self._busy = False
            if error is not None:
                self._fail(error)
                return
            if begun is not None:
                self.identity = msgspec.structs.replace(self.identity, segment=begun.segment)
            if write is not None:
                self.batches_written += 1
                self.write_s.observe(self._clock.seconds() - began_s)
                self._batch_written()
            for callback in waiting:
                callback()
            self._start_next()

        is_small = size_bytes <= SMALL_WRITE_BYTES and not changed and begun is None
        self._worker.run(job, done, is_small and not self.snapshots.is_busy)  # whose large files make small writes wait

    def _start_next(self) -> None:
        if self._busy:
            return
        if self._waiting:
            self._start()
        elif self._jobs:
            self._start_job()
        elif self._on_idle is not None:
            self._finish()

    # -- sealing ------------------------------------------------------------------------------

    def _batch_written(self) -> None:
        self._sealed = False
        self._last_batch_s = self._clock.seconds()
        if self._seal_call is None and not self._closed:
            self._seal_call = self._clock.callLater(SEAL_IDLE_MS / 1000, self._seal_if_idle)

    def _seal_if_idle(self) -> None:
        """An empty batch behind the last proves that one durable: rot in it is then never called doubtful."""
        self._seal_call = None
        remaining_s = self._last_batch_s + SEAL_IDLE_MS / 1000 - self._clock.seconds()
        if self._busy or remaining_s > 0:
            self._seal_call = self._clock.callLater(max(remaining_s, SEAL_IDLE_MS / 1000), self._seal_if_idle)
        elif not self._sealed:
            self._seal()

    def _seal(self) -> None:
        self._sealed = True
        self._busy = True

        def done(error: BaseException | None) -> None:
            self._busy = False
            if error is not None:
                self._fail(error)
                return
            self._start_next()

        self._worker.run(self._log.prepare(()), done)

    # -- closing ------------------------------------------------------------------------------

    def close(self, closed: Done) -> None:
        """Finish what was handed over, seal, give the lock back, then call `closed`."""
        self._closed = True
        if self._seal_call is not None:
            self._seal_call.cancel()
            self._seal_call = None
        self._on_idle = closed
        self._start_next()

    def _finish(self) -> None:
        if not self._sealed:
            self._seal()
            return
        closed, self._on_idle = self._on_idle, None
        self._log.close()
        self._fs.unlock(f"{self.directory}/lock")
        if closed is not None:
            closed()

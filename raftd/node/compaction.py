"""Snapshots in the node: when one is taken, how a leader's is installed, what is read for followers.

    entries applied ──▶ enough of them ──▶ written by a copy of this process ──▶ read back ──▶ the log before the last one goes
    chunks arrive ──▶ whole, durable, read back ──▶ loaded, a piece a turn ──▶ named, the log goes ──▶ the state is swapped

One generation of log stays behind the newest snapshot: a follower that lags by less needs no snapshot. On a low disk no generation is
kept, and snapshots follow sooner: only they free the space of deleted jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from raftd.jobs.machine import StateMachine
from raftd.jobs.snapshot import Loader, dump
from raftd.limits import TICK_MS
from raftd.node.backups import Backup, Backups
from raftd.node.config import NodeConfig
from raftd.node.disk_space import DiskSpace
from raftd.note import Note
from raftd.raft.core import Raft
from raftd.raft.messages import Entry, InstallSnapshot, Snapshot
from raftd.raft.ready import ChunkFetch, EntriesFetch
from raftd.storage.snapshots import Meta
from raftd.storage.store import Clock, Store

#: Number of snapshots for which the log that a transfer needs is kept. After that it is purged and the transfer begins again.
SNAPSHOT_WAITS = 4
#: After a snapshot that failed or was given up the next attempt comes after this many ticks: ten seconds.
SNAPSHOT_RETRY_TICKS = 1_000
#: Ticks between snapshots on a low disk, if anything was applied: ten seconds. They free the space of deleted jobs.
LOW_SNAPSHOT_TICKS = 1_000

Guarded = Callable[..., None]


class Compaction:
    """`guarded(f, *args)` calls f and ends the node if that raises, `replace_state` puts another state in the place of the node's, `note`
    tells the operator."""

    def __init__(
        self,
        config: NodeConfig,
        was_scarce: bool,
        raft: Raft,
        store: Store,
        clock: Clock,
        guarded: Guarded,
        replace_state: Callable[[StateMachine], None],
        note: Callable[[Note], None],
    ) -> None:
        """`was_scarce`: whether the state that this node begins with refuses puts."""
        self._config = config
        self._limits = config.limits
        self._raft = raft
        self._store = store
        self._snapshots = store.snapshots
        self._clock = clock
        self._guarded = guarded
        #: Called with the state of a leader's snapshot, which takes the place of this node's.
        self.replace_state = replace_state
        self._note = note
        self._space = DiskSpace(config.min_free_disk_bytes, store.segment_bytes, was_scarce, note)
        self._backups = Backups(config.limits)
        self.is_taking = False
        self._is_removing = False
        self._taken_tick = 0
        self._retry_tick: int | None = None  # a snapshot that was due has failed
        self._waits = 0  # how many snapshots in a row the log was kept for a transfer
        self._log_bytes = 0  # applied since the last one
        self._due_bytes = 0  # and since the last one that was not only for a backup
        raft.snapshot = self._snapshots.newest
        self._generation = raft.snapshot.index if raft.snapshot is not None else 0  # the next purge removes the log up to this index
        self.check_disk_space()

    # -- disk space ---------------------------------------------------------------------------------

    def check_disk_space(self) -> None:
        """See whether the disk is low."""
        newest = self._snapshots.newest
        next_bytes = (newest.size_bytes if newest is not None else 0) + self._log_bytes
        is_settled = not (self.is_taking or self._is_removing or self._raft.is_installing or self._snapshots.is_receiving)
        was_low = self._space.is_low
        self._space.update(self._store.free_bytes, next_bytes, is_settled)
        self._raft.is_low_on_disk = self._space.is_low
        if newest is None or self._raft.is_installing:
            return
        if self._space.is_low and not was_low:
            self._purge(newest)
        # On a low disk the queue needs the space more than a backup.
        if self._backups.drop() if self._space.is_low else self._backups.expire(self._raft.tick_count):
            self._remove_older()

    # -- taking -------------------------------------------------------------------------------

    def applied(self, entries: Iterable[Entry]) -> None:
        """`entries` were applied: count their bytes towards the next snapshot."""
        size = sum(entry.size_bytes for entry in entries)
        self._log_bytes += size
        self._due_bytes += size

    def poll(self, machine: StateMachine) -> None:
        """Called once a turn: take a snapshot if enough was applied since the last, or if a backup waits for one."""
        if not self._raft.is_installing:
            self._snapshots.forget_received(self._raft.log.commit_index)
        # Wait until the hard state is durable. Otherwise the snapshot could name a term that the vote file does not know, and the next
        # start would take the vote file for an old copy.
        is_free = not (self.is_taking or self._is_removing or self._raft.is_installing) and self._raft.is_hard_state_durable
        is_due = self._is_due
        if is_free and machine.applied_index and (is_due or self._backups.is_due(self._raft.tick_count)):
            self.check_disk_space()  # between two snapshots, which may follow each other at once
            self.take(machine, is_due)

    @property
    def _is_due(self) -> bool:
        if self._retry_tick is not None:
            return self._raft.tick_count >= self._retry_tick
        newest = self._snapshots.newest
        enough = max(self._limits.snapshot_least_bytes, self._limits.snapshot_factor * newest.size_bytes if newest is not None else 0)
        if self._space.is_low:
            # A few bytes of deletes may free much space.
            enough = 1 if self._raft.tick_count - self._taken_tick >= LOW_SNAPSHOT_TICKS else self._store.segment_bytes
        return self._due_bytes >= max(1, min(enough, self._config.snapshot_log_bytes))

    def take(self, machine: StateMachine, is_due: bool) -> None:
        """Write a snapshot of `machine`. `is_due`: the log before the last one may go then."""
        index = machine.applied_index
        term = self._raft.log.term_at(index)
        assert term is not None
        self.is_taking = True
        self._taken_tick = self._raft.tick_count
        self._log_bytes = 0
        if is_due:
            self._due_bytes = 0
            self._retry_tick = None
        configuration = self._raft.membership.configuration_at(index)
        meta = Meta(self._config.cluster, configuration, index, term, machine.now_ms)
        # The snapshot must leave space for the log meanwhile.
        free_bytes = self._store.free_bytes
        most_bytes = max(free_bytes // 2, free_bytes - self._space.kept_bytes // 2)
        self._snapshots.take(
            meta, lambda: dump(machine, self._limits.snapshot_piece_bytes), most_bytes, partial(self._guarded, self._taken, is_due)
        )

    def _taken(self, is_due: bool, snapshot: Snapshot | None, why_not: str) -> None:
        self.is_taking = False
        self._backups.taken(snapshot, why_not, self._raft.tick_count)
        if snapshot is None:
            if is_due:
                self._retry_tick = self._raft.tick_count + SNAPSHOT_RETRY_TICKS
            text = f"no snapshot was written; the next attempt follows in {SNAPSHOT_RETRY_TICKS * TICK_MS // 1000} s: {why_not}"
            self._note(Note(text, is_warning=True))
            return
        if self._snapshots.newest is not snapshot:
            return  # a leader's was newer
        self._raft.compacted(snapshot, 0)
        if is_due:  # a snapshot that was made only for a backup purges no log
            self._purge(snapshot)
            self._generation = snapshot.index
        self._remove_older()
        self._note(Note(f"a snapshot of the state at entry {snapshot.index} was written ({snapshot.size_bytes} bytes)"))

    def _purge(self, newest: Snapshot) -> None:
        """Purge the log, but keep one generation (none on a low disk). Keep more while a follower receives a snapshot: otherwise a
        transfer that takes longer than two snapshots would never end."""
        wanted = newest.index if self._space.is_low else self._generation
        awaited = self._raft.leadership.awaited if self._raft.is_leader else wanted
        self._waits = self._waits + 1 if awaited < wanted else 0
        index = min(wanted, awaited) if self._waits <= SNAPSHOT_WAITS else wanted
        self._raft.compacted(newest, self._store.purge(min(index, self._raft.log.durable_index)))

    def _remove_older(self) -> None:
        self._is_removing = True
        in_use = {snapshot for snapshot in self._raft.snapshots_in_use if snapshot.index >= self._raft.log.offset}
        self._snapshots.remove_older({*in_use, *self._backups.held}, partial(self._guarded, self._removed))

    def _removed(self) -> None:
        self._store.measure_free_space(partial(self._guarded, self._settled))

    def _settled(self) -> None:
        self._is_removing = False

    # -- for operators ------------------------------------------------------------------------

    def backup(self, index: int, done: Backup) -> None:
        """Call `done` with a snapshot of the state at entry `index`, which is applied, or at a later one; or with why there is none."""
        if self._space.is_low:
            done(None, "disk space is low on this node: ask another node, or free some space")
        else:
            self._backups.ask(index, self._snapshots.newest, done, self._raft.tick_count)

    def copy(self, index: int, offset: int, done: Callable[[bytes], None]) -> bool:
        """Read a piece of a snapshot that `backup` has given; false if it is not held any more, or ends before."""
        snapshot = self._backups.find(index, self._raft.tick_count)
        if snapshot is None or not 0 <= offset < snapshot.size_bytes:
            return False
        self._snapshots.fetch(snapshot, offset, done)
        return True

    # -- for followers ------------------------------------------------------------------------

    def fetch(self, fetches: Iterable[EntriesFetch | ChunkFetch]) -> None:
        """Read what the core wants for followers."""
        for fetch in fetches:
            if type(fetch) is EntriesFetch:
                self._store.fetch_entries(fetch.first, partial(self._guarded, self._entries_read, fetch))
            elif type(fetch) is ChunkFetch:
                self._snapshots.fetch(fetch.snapshot, fetch.offset, partial(self._guarded, self._chunk_read, fetch))

    def _entries_read(self, fetch: EntriesFetch, entries: list[Entry]) -> None:
        if self._raft.replication is not None:
            self._raft.replication.entries_fetched(fetch, entries)

    def _chunk_read(self, fetch: ChunkFetch, data: bytes) -> None:
        if self._raft.replication is not None:
            self._raft.replication.chunk_fetched(fetch, data)

    # -- from a leader ------------------------------------------------------------------------

    def receive(self, chunks: Iterable[tuple[int, InstallSnapshot]]) -> None:
        """Pieces of a leader's snapshot have arrived."""
        for sender, message in chunks:
            kept = partial(self._guarded, self._kept, sender, message.snapshot)
            self._snapshots.keep(message.snapshot, message.offset, message.data, kept)

    def _kept(self, sender: int, snapshot: Snapshot, have: int) -> None:
        self._raft.chunk_kept(sender, snapshot, have)
        if self._snapshots.is_whole(snapshot):
            self._snapshots.verify_received(partial(self._guarded, self._verified, sender, snapshot))

    def _verified(self, sender: int, snapshot: Snapshot, meta: Meta | None) -> None:
        ours = self._store.identity.cluster_id
        if meta is None:
            self._note(Note(f"the snapshot that node {sender} has sent is damaged; it is asked for again"))
        elif meta.cluster != self._config.cluster or (ours and meta.configuration.cluster_id != ours):
            self._note(Note(f"node {sender} has sent a snapshot of another cluster ({meta.cluster!r}); it is not used"))
        elif self._raft.begin_install(snapshot):
            self._note(Note(f"the snapshot of the state at entry {snapshot.index} has come from node {sender}, and is being loaded"))
            loader = Loader(StateMachine(self._config.costs), self._config.level)
            self._load(snapshot, meta, loader, self._snapshots.received_pieces())

    def _load(self, snapshot: Snapshot, meta: Meta, loader: Loader, pieces: Iterator[bytes]) -> None:
        """Load one piece of the snapshot per turn of the reactor, then install it."""
        piece = next(pieces, None)
        if piece is not None:
            loader.feed(piece)
            self._clock.callLater(0, self._guarded, self._load, snapshot, meta, loader, pieces)
            return
        machine = loader.finish()
        self._store.install(snapshot, meta, partial(self._guarded, self._installed, snapshot, meta, machine))

    def _installed(self, snapshot: Snapshot, meta: Meta, machine: StateMachine) -> None:
        self._log_bytes = self._due_bytes = 0
        self._retry_tick = None
        self._raft.installed(snapshot, meta.base, meta.configuration)
        self._generation = snapshot.index
        self._backups.taken(snapshot, "", self._raft.tick_count)
        self._remove_older()
        self.replace_state(machine)

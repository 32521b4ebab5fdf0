"""Snapshots at the driver's side: when one is taken, how those of a leader are taken over, what followers are served.

    entries applied ──▶ enough of them ──▶ written by a copy of this process ──▶ read back ──▶ the log before the last one goes
    chunks arrive ──▶ whole, durable, read back ──▶ loaded, a piece a turn ──▶ named, the log goes ──▶ the state is swapped

One generation of log stays behind the newest snapshot: a follower that is slow by less needs no snapshot. On a disk that is low
none stays, and snapshots follow sooner: they are what makes room once jobs are deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from raftd.jobs.machine import StateMachine
from raftd.jobs.snapshot import Loader, dump
from raftd.limits import BACKUP_HOLD_TICKS, DISK_LOW_FACTOR, SNAPSHOT_FACTOR, SNAPSHOT_LEAST_BYTES, SNAPSHOT_WAITS
from raftd.raft.core import Raft
from raftd.raft.messages import Entry, InstallSnapshot, Snapshot
from raftd.raft.ready import ChunkFetch, EntriesFetch
from raftd.storage.snapshots import Meta
from raftd.storage.store import Clock, Store

Guarded = Callable[..., None]
#: Called with a snapshot, or with None and why there is none.
Backup = Callable[[Snapshot | None, str], None]


def load(pieces: Iterable[bytes]) -> StateMachine:
    """The state in a snapshot. Raises CorruptionError."""
    loader = Loader()
    for piece in pieces:
        loader.feed(piece)
    return loader.finish()


class Compaction:
    """`guarded` calls what may fail for a bug, `swap` puts another state in the place of the node's, `note` tells the operator."""

    def __init__(
        self,
        cluster: str,
        most_bytes: int,
        low_bytes: int,
        raft: Raft,
        store: Store,
        clock: Clock,
        guarded: Guarded,
        swap: Callable[[StateMachine], None],
        note: Callable[[str], None],
    ) -> None:
        """`most_bytes` of log are applied at most before the next snapshot. With less than `low_bytes` free, or less than two segments
        and a snapshot need, the disk is low."""
        self._cluster = cluster
        self._most_bytes = most_bytes
        self._low_bytes = low_bytes
        self._raft = raft
        self._store = store
        self._snapshots = store.snapshots
        self._clock = clock
        self._guarded = guarded
        self._swap = swap
        self._note = note
        self._is_taking = False
        self._backups: list[tuple[int, Backup]] = []  # (of which entry at least, who waits for it)
        self._held: dict[Snapshot, int] = {}  # that a copy is taken of -> until which tick
        self._waits = 0  # so often the log has stayed for a transfer
        self._log_bytes = 0  # applied since the last one
        raft.snapshot = self._snapshots.newest

    # -- room ---------------------------------------------------------------------------------

    def look_at_room(self) -> None:
        """See whether the disk is low."""
        free_bytes = self._store.free_bytes
        newest = self._snapshots.newest
        needed = 2 * self._store.segment_bytes + (newest.size_bytes if newest is not None else 0)
        mark = max(self._low_bytes, needed)
        was_low = self._raft.is_low_on_disk
        is_low = self._raft.is_low_on_disk = free_bytes < (mark * DISK_LOW_FACTOR if was_low else mark)
        if is_low and not was_low:
            self._note(
                f"WARNING: the disk is low: {free_bytes >> 20} MiB are free where the data is, and {mark >> 20} MiB should be. If too few "
                f"nodes have more, puts are refused until there is room; everything else goes on"
            )
        elif was_low and not is_low:
            self._note(f"there is room on the disk again: {free_bytes >> 20} MiB are free")

    # -- taking -------------------------------------------------------------------------------

    def applied(self, entries: Iterable[Entry]) -> None:
        """These entries were."""
        self._log_bytes += sum(entry.size_bytes for entry in entries)

    def look(self, machine: StateMachine) -> None:
        """Once a turn: a snapshot is taken if enough was applied since the last, or if somebody waits for one."""
        # Nor before the term is durable in which it says that its last entry is: a start would take the vote file for an old copy.
        is_free = not self._is_taking and not self._raft.is_installing and self._raft.is_hard_state_durable
        if is_free and machine.applied_index and (self._backups or self._is_due):
            self._take(machine)

    @property
    def _is_due(self) -> bool:
        newest = self._snapshots.newest
        enough = max(SNAPSHOT_LEAST_BYTES, SNAPSHOT_FACTOR * newest.size_bytes if newest is not None else 0)
        if self._raft.is_low_on_disk:
            enough = self._store.segment_bytes
        return self._log_bytes >= max(1, min(enough, self._most_bytes))

    def _take(self, machine: StateMachine) -> None:
        index = machine.applied_index
        term = self._raft.log.term_at(index)
        assert term is not None
        self._is_taking = True
        self._log_bytes = 0
        newest = self._snapshots.newest
        before = newest.index if newest is not None else 0
        configuration = self._raft.membership.at(index)
        meta = Meta(self._cluster, configuration, index, term, machine.now_ms)
        self._snapshots.take(meta, lambda: dump(machine), partial(self._guarded, self._taken, before))

    def _taken(self, before: int, snapshot: Snapshot | None, why_not: str) -> None:
        self._is_taking = False
        self._give_backups(snapshot, why_not)
        if snapshot is None:
            self._note(f"WARNING: no snapshot was written; the next attempt follows after as much log again: {why_not}")
            return
        if self._snapshots.newest is not snapshot:
            return  # a leader's was newer
        purged = self._store.purge(min(self._not_needed(before, snapshot.index), self._raft.log.durable_index))
        self._raft.compacted(snapshot, purged)
        self._held = {held: until for held, until in self._held.items() if until > self._raft.tick_count}
        self._snapshots.remove_older({*self._raft.snapshots_in_use, *self._held})
        self._note(f"a snapshot of the state at entry {snapshot.index} was written ({snapshot.size_bytes} bytes)")

    def _not_needed(self, before: int, index: int) -> int:
        """Up to where the log may go: `before` is the last entry of the snapshot before, `index` that of the newest. It stays a while for
        transfers that are under way, or one that takes longer than two snapshots would never end."""
        if self._raft.is_low_on_disk:
            return index
        oldest = min((snapshot.index for snapshot in self._raft.snapshots_in_use), default=before)
        self._waits = self._waits + 1 if oldest < before else 0
        return min(before, oldest) if self._waits <= SNAPSHOT_WAITS else before

    # -- for operators ------------------------------------------------------------------------

    def backup(self, index: int, done: Backup) -> None:
        """Call `done` with a snapshot of the state at entry `index`, which is applied, or at a later one. It stays until it was not
        asked for a piece of it for a minute."""
        newest = self._snapshots.newest
        if newest is not None and newest.index >= index:
            self._hold(newest)
            done(newest, "")
        else:
            self._backups.append((index, done))

    def _give_backups(self, snapshot: Snapshot | None, why_not: str) -> None:
        waiting, self._backups = self._backups, []
        for index, done in waiting:
            if snapshot is not None and snapshot.index < index:
                self._backups.append((index, done))
                continue
            if snapshot is not None:
                self._hold(snapshot)
            done(snapshot, why_not)

    def _hold(self, snapshot: Snapshot) -> None:
        self._held[snapshot] = self._raft.tick_count + BACKUP_HOLD_TICKS

    def copy(self, index: int, offset: int, done: Callable[[bytes], None]) -> bool:
        """Read a piece of a snapshot that `backup` has given; false if it is not held any more, or ends before."""
        snapshot = next((held for held in self._held if held.index == index), None)
        if snapshot is None or not 0 <= offset < snapshot.size_bytes:
            return False
        self._hold(snapshot)
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
            self._note(f"the snapshot that node {sender} has sent is damaged; it is asked for again")
        elif meta.cluster != self._cluster or (ours and meta.configuration.cluster_id != ours):
            self._note(f"node {sender} has sent a snapshot of another cluster ({meta.cluster!r}); it is not used")
        elif self._raft.begin_install(snapshot):
            self._note(f"the snapshot of the state at entry {snapshot.index} has come from node {sender}, and is being loaded")
            self._load(snapshot, meta, Loader(), self._snapshots.received_pieces())

    def _load(self, snapshot: Snapshot, meta: Meta, loader: Loader, pieces: Iterator[bytes]) -> None:
        """One piece a turn."""
        piece = next(pieces, None)
        if piece is not None:
            loader.feed(piece)
            self._clock.callLater(0, self._guarded, self._load, snapshot, meta, loader, pieces)
            return
        machine = loader.finish()
        self._store.install(snapshot, meta, partial(self._guarded, self._installed, snapshot, meta, machine))

    def _installed(self, snapshot: Snapshot, meta: Meta, machine: StateMachine) -> None:
        self._log_bytes = 0
        self._raft.installed(snapshot, meta.base, meta.configuration)
        self._give_backups(snapshot, "")
        self._snapshots.remove_older(self._held)
        self._swap(machine)

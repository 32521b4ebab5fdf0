"""The leader's side of AppendEntries and InstallSnapshot, for one term: what goes to which follower, and how far each has got."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from raftd.limits import Limits
from raftd.raft.log import Log
from raftd.raft.messages import AppendEntries, AppendEntriesReply, Entry, InstallSnapshot, InstallSnapshotReply, Message, Snapshot
from raftd.raft.progress import Progress, State
from raftd.raft.ready import ChunkFetch, EntriesFetch


class Replication:
    """`send` puts a message into the lane of those that may leave at once."""

    def __init__(self, term: int, log: Log, peers: Collection[int], send: Callable[[int, Message], None], limits: Limits) -> None:
        self.progress = {peer: Progress(log.last_index + 1, limits) for peer in peers}
        self._limits = limits
        #: To be read from the disk; the reader takes them.
        self.fetches: list[EntriesFetch | ChunkFetch] = []
        self._term = term
        self._log = log
        self._send = send

        self._leaving: dict[int, int] = {}  # peer -> the tick at which the leader stops sending to it

    def set_peers(self, peers: Collection[int], tick: int) -> None:
        """The configuration is another. Removed peers are sent messages until tick `tick`, so that they learn of their removal."""
        for peer in peers:
            self._leaving.pop(peer, None)
            if peer not in self.progress:
                self.progress[peer] = Progress(self._log.last_index + 1, self._limits)
        for peer in self.progress:
            if peer not in peers:
                self._leaving.setdefault(peer, tick)

    def hears(self, peer: int, since_tick: int) -> bool:
        """Whether it has answered after that tick."""
        progress = self.progress.get(peer)
        return progress is not None and progress.last_heard_tick is not None and progress.last_heard_tick > since_tick

    def furthest(self, voters: Collection[int], since_tick: int) -> int:
        """Return the voter with the highest match_index among those that answered after `since_tick`; 0 if none did."""
        heard = [(one.match_index, -peer) for peer, one in self.progress.items() if peer in voters and self.hears(peer, since_tick)]
        return -max(heard)[1] if heard else 0

    # -- what goes out ------------------------------------------------------------------------

    def due(self, nodes: Iterable[int]) -> None:
        """Send these peers an AppendEntries at the next `replicate`, even without entries: a heartbeat, a commit notice, a round of
        reads."""
        for node in nodes:
            if node in self.progress:
                self.progress[node].message_due = True

    @property
    def has_work(self) -> bool:
        """Whether `replicate` would send or fetch anything. With a snapshot on its way the answer is always yes."""
        log = self._log
        for progress in self.progress.values():
            if progress.message_due or progress.state is State.SNAPSHOT or progress.next_index <= log.offset:
                return True
            if progress.next_index <= log.last_index and progress.fetching is None and progress.may_send:
                return True
        return False

    def replicate(self, snapshot: Snapshot | None, clock_ms: int, read_round: int) -> None:
        """Send everyone what its window allows. `snapshot` is the newest, `clock_ms` log time."""
        log = self._log
        for peer, progress in self.progress.items():
            if progress.state is State.SNAPSHOT or progress.next_index <= log.offset:
                self._send_snapshot(peer, progress, snapshot)
            while progress.next_index <= log.last_index and progress.may_send:
                entries = self._next_entries(peer, progress)
                if not entries:
                    break
                self._append_entries(peer, progress, entries, clock_ms, read_round)
                progress.sent(entries[-1].index, sum(entry.size_bytes for entry in entries))
            if progress.message_due:
                self._append_entries(peer, progress, (), clock_ms, read_round)

    def _next_entries(self, peer: int, progress: Progress) -> tuple[Entry, ...]:
        """From memory, or from the disk, which takes a while: nothing until then."""
        first = progress.next_index
        if first > self._log.forgotten_index:
            return self._log.limited(first, self._log.last_index, self._limits.append_bytes)
        entries, progress.fetched = progress.fetched, ()
        if entries and entries[0].index == first:
            return entries
        if progress.fetching is None:
            progress.fetching = EntriesFetch(peer, first)
            self.fetches.append(progress.fetching)
        return ()

    def _append_entries(self, peer: int, progress: Progress, entries: tuple[Entry, ...], clock_ms: int, read_round: int) -> None:
        # A follower that receives a snapshot gets heartbeats with previous index 0, which every log matches.
        prev = progress.next_index - 1 if progress.state is not State.SNAPSHOT else 0
        prev_term = self._log.term_at(prev) if prev else 0
        if prev_term is None:
            raise AssertionError(f"entry {prev}, the one before node {peer}'s next, is not in the log")
        progress.message_due = False
        commit = self._log.commit_index
        heard = (progress.incarnation, progress.heard_at)
        self._send(peer, AppendEntries(self._term, prev, prev_term, entries, commit, clock_ms, read_round, *heard))

    def _send_snapshot(self, peer: int, progress: Progress, snapshot: Snapshot | None) -> None:
        if snapshot is None:
            raise AssertionError(f"node {peer} needs entry {progress.next_index}, which is neither in the log nor in a snapshot")
        transfer = progress.transfer
        if transfer is None or transfer.snapshot.index < self._log.offset:  # what follows on an older one is gone
            transfer = progress.send_snapshot(snapshot)
        if not transfer.is_asked:
            transfer.is_asked = True
            self._send(peer, InstallSnapshot(self._term, transfer.snapshot, 0, b""))
        elif (fetch := transfer.next_fetch(peer)) is not None:
            self.fetches.append(fetch)

    @property
    def snapshots_in_use(self) -> set[Snapshot]:
        """Those that are on their way to followers."""
        return {progress.transfer.snapshot for progress in self.progress.values() if progress.transfer is not None}

    # -- what comes back ----------------------------------------------------------------------

    def link_changed(self, peer: int) -> None:
        """Whatever was in flight may be lost."""
        progress = self.progress.get(peer)
        if progress is not None:
            progress.link_changed()
            progress.message_due = True

    def heard(self, sender: int, incarnation: int, tick: int) -> Progress | None:
        """An answer of this process of `sender`; None if that process is gone."""
        progress = self.progress.get(sender)
        if progress is None or incarnation < progress.incarnation:
            return None
        if incarnation > progress.incarnation:
            progress.reborn(incarnation, self._log.last_index)
        progress.recently_active = True
        progress.last_heard_tick = tick
        return progress

    def answered(self, progress: Progress, message: AppendEntriesReply) -> bool:
        """Handle an AppendEntriesReply; return whether the follower's match_index has grown."""
        log = self._log
        progress.read_round = max(progress.read_round, message.read_round)
        progress.is_low_on_disk = message.is_low_on_disk
        if message.success:
            return message.index <= log.last_index and progress.acknowledged(message.index, log.offset + 1)
        if progress.refused(message.index):
            is_before = message.hint_index < log.offset or message.hint_term < log.offset_term
            if is_before and progress.match_index < log.offset:  # or the refusal is an old one
                progress.next_index = log.offset  # what it lacks is in the snapshot only
            else:
                progress.back_to(log.last_with_term_at_most(message.hint_term, message.hint_index) + 1)
        return False

    def snapshot_answered(self, progress: Progress, message: InstallSnapshotReply) -> None:
        """So much of a snapshot has arrived there."""
        transfer = progress.transfer
        if transfer is not None and message.index == transfer.snapshot.index and 0 <= message.have <= transfer.snapshot.size_bytes:
            transfer.heard(message.have)

    def recently_active(self, tick: int) -> set[int]:
        """Who has been heard since this was asked last. Snapshots of which nothing was heard are asked about again."""
        for peer in [peer for peer, until in self._leaving.items() if tick >= until]:
            del self._leaving[peer], self.progress[peer]
        active = {peer for peer, progress in self.progress.items() if progress.recently_active}
        for progress in self.progress.values():
            progress.recently_active = False
            if progress.transfer is not None:
                progress.transfer.detect_loss()
        return active

    # -- from the disk ------------------------------------------------------------------------

    def entries_fetched(self, fetch: EntriesFetch, entries: Sequence[Entry]) -> None:
        """One that was replaced may be among them, before the one that replaced it: terms tell which is which."""
        progress = self.progress.get(fetch.peer)
        if progress is None or progress.fetching is not fetch:
            return
        progress.fetching = None
        found: list[Entry] = []
        for entry in entries:
            if entry.index == fetch.first + len(found) and entry.term == self._log.term_at(entry.index):
                found.append(entry)
        progress.fetched = tuple(found)

    def chunk_fetched(self, fetch: ChunkFetch, data: bytes) -> None:
        progress = self.progress.get(fetch.peer)
        if progress is not None and progress.transfer is not None and progress.transfer.fetched(fetch, len(data)):
            self._send(fetch.peer, InstallSnapshot(self._term, fetch.snapshot, fetch.offset, data))

"""Rules R29 to R31: logs whose beginning is gone, snapshots on their way, and followers that are slow."""

from __future__ import annotations

import pytest

from raftd.limits import LIMITS, SNAPSHOT_CHUNKS_IN_FLIGHT, Limits
from raftd.raft.log import Log
from raftd.raft.membership import encode
from raftd.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Configuration,
    Entry,
    EntryKind,
    InstallSnapshot,
    InstallSnapshotReply,
    Snapshot,
)
from raftd.raft.progress import State
from raftd.raft.ready import Base, Role
from tests.raft.harness import SNAPSHOT_BYTES, Cluster, T, alone, entries, snapshot_of, terms, win


def behind(dead: int = 3) -> Cluster:
    """Three nodes, of which one has been away for ten entries that no log holds any more."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.put(1, b"first")
    cluster.dead.add(dead)
    for number in range(10):
        cluster.put(1, b"%d" % number)
    cluster.tick(T // 2)
    for node in (1, 2):
        cluster.peers[node].compact(cluster[node].log.applied_index)
    cluster.put(1, b"last")
    return cluster


def installs(cluster: Cluster) -> list[InstallSnapshot]:
    return [message for _, _, message in cluster.seen if type(message) is InstallSnapshot]


# -- catching up -------------------------------------------------------------------------------


def test_a_node_that_was_away_gets_a_snapshot_and_the_rest():
    cluster = behind()
    cluster.restart(3)
    cluster.tick(2 * T)
    assert cluster[3].log.offset == 12
    assert cluster[3].log.applied_index == cluster[1].log.last_index == 13
    assert [entry.data for entry in cluster.peers[3].applied] == [b"last"]
    assert cluster[1].progress[3].state is State.REPLICATE
    sizes = [len(message.data) for message in installs(cluster)]
    assert sum(sizes) == SNAPSHOT_BYTES
    assert max(sizes) == LIMITS.snapshot_chunk_bytes


def test_pieces_of_a_snapshot_are_bounded_in_flight_and_wait_for_answers():
    peer = leading_beyond_its_log()
    asked = sent(peer)
    assert [(message.offset, message.data) for message in asked] == [(0, b"")]
    answer(peer, 0)
    offsets = [message.offset for message in sent(peer)]
    assert offsets == [place * LIMITS.snapshot_chunk_bytes for place in range(min(SNAPSHOT_CHUNKS_IN_FLIGHT, 4))]
    assert sent(peer) == []


def test_a_snapshot_goes_on_where_it_was_when_the_connection_broke():
    peer = leading_beyond_its_log()
    sent(peer)
    answer(peer, 0)
    sent(peer)
    peer.raft.link_changed(2)
    assert [(message.offset, message.data) for message in sent(peer)] == [(0, b"")]
    answer(peer, 2 * LIMITS.snapshot_chunk_bytes)
    assert [message.offset for message in sent(peer)] == [2 * LIMITS.snapshot_chunk_bytes, 3 * LIMITS.snapshot_chunk_bytes]


def test_a_follower_that_starts_again_gets_it_from_the_beginning():
    peer = leading_beyond_its_log()
    sent(peer)
    answer(peer, 3 * LIMITS.snapshot_chunk_bytes)
    sent(peer)
    answer(peer, 0)
    assert next(message.offset for message in sent(peer)) == 0


def test_pieces_that_were_lost_are_asked_about_again():
    peer = leading_beyond_its_log()
    sent(peer)
    answer(peer, 0)
    sent(peer)  # and none of them arrives
    for _ in range(2 * T + 2):
        peer.raft.tick()
        heartbeat_answered(peer)
    assert (0, b"") in [(message.offset, message.data) for message in sent(peer)]


def leading_beyond_its_log():
    """Node 1 leads, its log begins behind entry 10, and node 2 lacks all of that."""
    peer = alone(log=entries(1, first=11), term=1, base=Base(10, 1))
    win(peer)
    assert peer.raft.is_leader
    term = peer.raft.term
    peer.raft.step(3, AppendEntriesReply(term, True, 12, 0, 0, 0, 1, False))
    peer.raft.step(2, AppendEntriesReply(term, False, 11, 0, 0, 0, 1, False))
    return peer


def sent(peer) -> list[InstallSnapshot]:
    return [message for to, message in peer.pump() if to == 2 and type(message) is InstallSnapshot]


def answer(peer, have: int) -> None:
    peer.raft.step(2, InstallSnapshotReply(peer.raft.term, 10, have, 1))


def heartbeat_answered(peer) -> None:
    for node in (2, 3):
        peer.raft.step(node, AppendEntriesReply(peer.raft.term, True, 0, 0, 0, 0, 1, False))


# -- R29 ---------------------------------------------------------------------------------------


def offered(peer, index: int, term: int, sender: int = 2) -> list[object]:
    """What the node says to an offer of a snapshot, and whether it takes it."""
    peer.raft.step(sender, InstallSnapshot(peer.raft.term, Snapshot(index, term, SNAPSHOT_BYTES, 1), 0, b""))
    return [message for to, message in peer.pump() if to == sender]


def test_r29_a_snapshot_at_or_below_the_commit_index_is_ignored():
    peer = alone(log=entries(1, 1, 1), term=1)
    peer.raft.step(2, AppendEntries(1, 3, 1, (), 2, 0, 0, 1, 0))
    peer.pump()
    for index in (1, 2):
        (reply,) = offered(peer, index, 1)
        assert type(reply) is AppendEntriesReply
        assert (reply.success, reply.index) == (True, 2)
    assert terms(peer.raft) == [1, 1, 1]


def test_r29_a_log_with_the_last_entry_of_the_snapshot_stays():
    peer = alone(log=entries(1, 1, 1), term=1)
    (reply,) = offered(peer, 2, 1)
    assert type(reply) is AppendEntriesReply
    assert (reply.success, reply.index) == (True, 2)
    assert terms(peer.raft) == [1, 1, 1]
    assert (peer.raft.log.commit_index, peer.raft.log.offset) == (2, 0)


def test_r29_otherwise_the_whole_log_goes():
    peer = alone(log=entries(1, 1, 1), term=2)
    (reply,) = offered(peer, 2, 2)
    assert type(reply) is InstallSnapshotReply
    snapshot = Snapshot(2, 2, SNAPSHOT_BYTES, 1)
    assert peer.raft.begin_install(snapshot)
    peer.install(snapshot)
    log = peer.raft.log
    assert (log.offset, log.offset_term, log.last_index, log.commit_index, log.applied_index) == (2, 2, 2, 2, 2)
    (said,) = [message for to, message in peer.pump() if type(message) is AppendEntriesReply]
    assert (said.success, said.index) == (True, 2)


# -- R30 ---------------------------------------------------------------------------------------


def test_r30_nothing_happens_while_a_snapshot_is_installed():
    cluster = behind()
    cluster.restart(3).loads_slowly = True
    cluster.tick(2 * T)
    assert cluster[3].is_installing
    applied = cluster[3].log.applied_index
    cluster.put(1, b"meanwhile")
    cluster.isolate(3)
    cluster.tick(5 * T, nodes=[3])
    assert cluster[3].role is Role.FOLLOWER
    assert cluster[3].log.applied_index == applied
    cluster.heal()
    cluster.peers[3].install(snapshot_of(Base(12, cluster[1].log.offset_term)))
    cluster.tick(2 * T)
    assert cluster[3].log.applied_index == cluster[1].log.last_index


def test_r30_a_node_that_installs_a_snapshot_still_answers_its_leader():
    """With another node gone, the leader would lose its majority for as long as the loading takes."""
    cluster = behind()
    cluster.restart(3).loads_slowly = True
    cluster.tick(2 * T)
    assert cluster[3].is_installing
    cluster.dead.add(2)
    cluster.tick(4 * T)
    assert cluster[1].is_leader
    context = 7
    cluster[1].read_index(context)
    cluster.settle()
    assert [read.context for read in cluster.peers[1].reads] == [context]


def test_r30_a_candidate_installs_nothing():
    peer = alone(log=entries(1), term=1)
    peer.raft.campaign("the test says so")
    assert not peer.raft.begin_install(Snapshot(5, 1, SNAPSHOT_BYTES, 1))
    assert not peer.raft.is_installing


def test_r30_any_acknowledgement_that_reaches_the_log_ends_the_snapshot():
    peer = leading_beyond_its_log()
    sent(peer)
    assert peer.raft.progress[2].state is State.SNAPSHOT
    peer.raft.step(2, AppendEntriesReply(peer.raft.term, True, 9, 0, 0, 0, 1, False))
    assert peer.raft.progress[2].state is State.SNAPSHOT
    peer.raft.step(2, AppendEntriesReply(peer.raft.term, True, 10, 0, 0, 0, 1, False))
    assert peer.raft.progress[2].state is State.REPLICATE
    assert peer.raft.progress[2].next_index == 11


def test_r12_a_late_refusal_sends_nobody_back_behind_what_it_has():
    """Found by the simulator: it was refused before the snapshot came, and heard after what followed it was acknowledged."""
    peer = leading_beyond_its_log()
    peer.raft.propose([(EntryKind.BATCH, b"")] * 5)
    sent(peer)
    term = peer.raft.term
    peer.raft.step(2, AppendEntriesReply(term, True, 13, 0, 0, 0, 1, False))
    peer.raft.step(2, AppendEntriesReply(term, False, 15, 3, 1, 0, 1, False))
    progress = peer.raft.progress[2]
    assert progress.next_index > progress.match_index == 13
    assert sent(peer) == []


# -- R31 ---------------------------------------------------------------------------------------


def test_r31_a_piece_of_a_snapshot_never_moves_commit():
    peer = alone(log=entries(1), term=1)
    for offset in (0, 5, SNAPSHOT_BYTES - 1):
        peer.raft.step(2, InstallSnapshot(1, Snapshot(9, 1, SNAPSHOT_BYTES, 1), offset, b"x"))
        peer.pump()
    assert (peer.raft.log.commit_index, peer.raft.log.last_index) == (0, 1)


def test_r08_a_snapshot_of_an_older_term_is_answered_with_the_newer():
    peer = alone(term=5)
    peer.raft.step(2, InstallSnapshot(4, Snapshot(9, 4, SNAPSHOT_BYTES, 1), 0, b""))
    ((to, reply),) = peer.pump()
    assert (to, type(reply), reply.term) == (2, InstallSnapshotReply, 5)


# -- a log of which the beginning is elsewhere -------------------------------------------------


def test_entries_that_have_left_memory_come_from_the_disk():
    cluster = Cluster(3, limits=Limits(log_memory_bytes=100))
    cluster.elect(1)
    cluster.dead.add(3)
    for number in range(30):
        cluster.put(1, b"%d" % number)
    assert cluster[1].log.forgotten_index > 20
    cluster.restart(3)
    cluster.tick(2 * T)
    assert installs(cluster) == []
    assert cluster[3].log.applied_index == cluster[1].log.last_index
    assert [entry.data for entry in cluster.peers[3].applied][-30:] == [b"%d" % number for number in range(30)]


def test_entries_that_were_replaced_are_not_taken_from_the_disk():
    peer = alone(log=entries(1, 1, 2), term=2)
    log = peer.raft.log
    stale = entries(1, 1, 1)
    win(peer)
    log.commit_to(3)
    log.applied(log.next_to_apply(3, 1_000)[-1].index)
    log._drop(3)
    peer.raft.step(2, AppendEntriesReply(peer.raft.term, False, 3, 0, 0, 0, 1, False))
    ready = peer.raft.ready()
    (fetch,) = ready.fetches
    assert fetch.first == 1
    peer.raft.replication.entries_fetched(fetch, [*stale, *entries(2, first=3)])
    appended = [message for to, message in peer.raft.ready().send_now if to == 2 and type(message) is AppendEntries and message.entries]
    assert [[entry.term for entry in message.entries] for message in appended] == [[1, 1, 2]]


def test_a_purged_log_still_knows_the_terms_behind_it():
    log = Log(entries(1, 1, 2, 2, 5, 5))
    log.commit_to(6)
    log.applied(log.next_to_apply(6, 10_000)[-1].index)
    log.purge(3)
    assert [log.term_at(index) for index in range(2, 8)] == [None, 2, 2, 5, 5, None]
    assert [log.last_with_term_at_most(term, 6) for term in (0, 1, 2, 4, 5)] == [3, 3, 4, 4, 6]
    log.purge(4)
    assert [log.term_at(index) for index in range(3, 7)] == [None, 2, 5, 5]
    log.purge(6)
    assert (log.offset, log.offset_term, log.last_term, log.last_index) == (6, 5, 5, 6)
    assert log.last_time_ms == entries(5)[0].time_ms
    with pytest.raises(AssertionError, match="cannot be purged"):
        log.purge(7)


@pytest.mark.parametrize(
    ("older", "offset", "offset_term"),
    [([(1, 1)], 1, 1), ([(4, 1), (6, 2)], 4, 1), ([(5, 1), (6, 2)], 5, 1), ([(10, 2)], 10, 2)],
)
def test_a_log_that_reaches_behind_its_snapshot_knows_those_terms(older, offset, offset_term):
    log = Log(entries(3, first=11), Base(10, older[-1][1]), older)
    assert (log.offset, log.offset_term) == (offset, offset_term)
    for index in range(offset, 11):
        assert log.term_at(index) == [term for first, term in older if first <= index][-1]
    assert log.term_at(offset - 1) is None
    assert (log.term_at(11), log.last_term, log.forgotten_index) == (3, 3, 10)


def test_r29_a_snapshot_that_the_log_has_reached_is_ignored():
    """Found in review: between its last chunk and its verification a new leader may have sent the entries themselves."""
    peer = alone(log=entries(1), term=1)
    snapshot = Snapshot(3, 1, SNAPSHOT_BYTES, 1)
    peer.raft.step(2, InstallSnapshot(1, snapshot, 0, b""))
    peer.pump()
    peer.raft.step(3, AppendEntries(2, 1, 1, tuple(entries(1, 1, 2, first=2)), 0, 0, 0, 0, 0))
    peer.pump()
    assert not peer.raft.begin_install(snapshot)
    assert not peer.raft.is_installing
    assert (terms(peer.raft), peer.raft.log.commit_index) == ([1, 1, 1, 2], 3)


def test_a_snapshot_is_installed_once_and_no_chunk_disturbs_it():
    peer = alone(log=entries(1), term=1)
    snapshot = Snapshot(9, 1, SNAPSHOT_BYTES, 1)
    peer.raft.step(2, InstallSnapshot(1, snapshot, 0, b""))
    assert peer.raft.begin_install(snapshot)
    assert not peer.raft.begin_install(snapshot)
    peer.raft.step(2, InstallSnapshot(1, Snapshot(20, 1, SNAPSHOT_BYTES, 1), 0, b"other"))
    assert peer.raft.ready().chunks == []
    assert peer.raft.is_installing


def test_configurations_that_cannot_be_are_no_messages():
    peer = alone(term=1)
    for data in (b"", b"junk", encode(Configuration(b"", ()))):
        peer.raft.step(2, AppendEntries(1, 0, 0, (Entry(1, 1, 0, EntryKind.CONFIG, data),), 0, 0, 0, 0, 0))
        assert peer.raft.log.last_index == 0
    leader = leading_beyond_its_log()
    sent(leader)
    answer(leader, -5)
    answer(leader, SNAPSHOT_BYTES + 1)
    assert leader.raft.ready().fetches == []

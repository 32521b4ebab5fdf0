"""Log, commit, disk and reads: rules R9–R16, R19–R22, R33, R34, and the paper's §5.3, §5.4, §8."""

from __future__ import annotations

import pytest

from raftd.errors import NotLeader, Overloaded
from raftd.limits import LIMITS, Limits
from raftd.raft.log import Log
from raftd.raft.membership import decode, encode
from raftd.raft.messages import AppendEntries, AppendEntriesReply, Configuration, Entry, EntryKind, PreVote, RequestVote
from raftd.raft.progress import State
from raftd.raft.ready import Base, Role
from tests.raft.harness import HEARTBEAT, WALL_MS, Cluster, T, alone, entries, terms
from tests.raft.test_elections import append, sent


def reply(term: int, success: bool, index: int, hint_index: int = 0, hint_term: int = 0, incarnation: int = 1) -> AppendEntriesReply:
    return AppendEntriesReply(term, success, index, hint_index, hint_term, 0, incarnation, False)


def leader_alone(*log_terms: int, voters: int = 3, limits: Limits = LIMITS):
    """Node 1 leads; the test plays the others."""
    cluster = Cluster(voters, logs={1: entries(*log_terms)}, terms={1: max(log_terms, default=0)}, limits=limits)
    cluster.filter = lambda sender, to, message: not isinstance(message, AppendEntries)
    cluster.elect(1)
    return cluster.peers[1]


# -- the paper ---------------------------------------------------------------------------------

FIGURE_7_LEADER = (1, 1, 1, 4, 4, 5, 5, 6, 6, 6)
FIGURE_7_FOLLOWERS = {
    "a": (1, 1, 1, 4, 4, 5, 5, 6, 6),
    "b": (1, 1, 1, 4),
    "c": (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6),
    "d": (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7),
    "e": (1, 1, 1, 4, 4, 4, 4),
    "f": (1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3),
}


@pytest.mark.parametrize("name", FIGURE_7_FOLLOWERS)
def test_paper_figure_7_every_follower_ends_with_the_leaders_log(name):
    cluster = Cluster(3, logs={1: entries(*FIGURE_7_LEADER), 2: entries(*FIGURE_7_FOLLOWERS[name])}, terms={1: 7, 2: 7, 3: 7})
    cluster.elect(1)
    assert terms(cluster[2]) == [*FIGURE_7_LEADER, 8]
    assert [entry.term for entry in cluster.peers[2].disk.entries] == [*FIGURE_7_LEADER, 8]


def test_paper_figure_8_an_old_entry_is_not_committed_by_counting():
    # (c): S1 leads in term 4 and has spread its entry of term 2 to a majority of five
    cluster = Cluster(
        5, logs={1: entries(1, 2), 2: entries(1, 2), 3: entries(1, 2), 4: entries(1), 5: entries(1, 3)}, terms={1: 3, 2: 2, 3: 2, 5: 3}
    )
    for node in (4, 5):
        cluster.isolate(node)
    cluster.filter = lambda sender, to, message: (
        not (isinstance(message, AppendEntries) and any(entry.term == 4 for entry in message.entries))
    )
    cluster.elect(1)
    for follower in (2, 3):
        cluster[1].step(follower, reply(4, True, 2))
    cluster.settle()
    assert cluster[1].log.commit_index == 0  # index 2 is on a majority, but of term 2
    # (e): once an entry of term 4 is on a majority, all before it is committed
    cluster.filter = lambda sender, to, message: True
    cluster.tick(2 * HEARTBEAT)
    assert cluster[1].log.commit_index == 3


def test_paper_5_3_a_command_is_applied_on_every_node_in_the_same_order():
    cluster = Cluster(5)
    cluster.elect(3)
    cluster.put(3, b"a", b"b")
    cluster.put(3, b"c")
    cluster.tick(HEARTBEAT)
    for peer in cluster.peers.values():
        assert [entry.data for entry in peer.applied][1:] == [b"a", b"b", b"c"]


def test_paper_5_3_a_follower_that_was_away_catches_up():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.isolate(3)
    for number in range(50):
        cluster.put(1, b"%d" % number)
    cluster.heal()
    cluster.tick(HEARTBEAT)
    assert cluster[3].log.last_index == cluster[1].log.last_index == 51
    assert len(cluster.peers[3].applied) == 51


def test_paper_5_3_uncommitted_entries_of_a_cut_off_leader_are_replaced():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.isolate(1)
    cluster.put(1, b"lost")
    cluster.elect(2)
    cluster.put(2, b"kept")
    cluster.heal()
    cluster.tick(2 * T)
    for peer in cluster.peers.values():
        assert [entry.data for entry in peer.applied if entry.kind is EntryKind.BATCH] == [b"kept"]


def test_the_first_entry_of_a_cluster_is_its_random_id():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.tick(HEARTBEAT)
    first = {peer.applied[0] for peer in cluster.peers.values()}
    (entry,) = first
    assert entry.kind is EntryKind.CONFIG
    configuration = decode(entry.data)
    assert (len(configuration.cluster_id), configuration.voters) == (16, (1, 2, 3))


# -- R9 to R16 ---------------------------------------------------------------------------------


def test_r09_a_new_leaders_noop_commits_what_came_before():
    cluster = Cluster(3, logs={node: entries(1, 1) for node in (1, 2, 3)}, terms={1: 1, 2: 1, 3: 1})
    cluster.elect(1)
    assert [entry.kind for entry in cluster.peers[1].applied] == [EntryKind.BATCH, EntryKind.BATCH, EntryKind.NOOP]
    assert cluster[1].log.commit_index == 3


def test_i7_the_leader_counts_only_what_its_own_disk_has():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.dead.add(3)
    cluster.tick(HEARTBEAT)
    before = cluster[1].log.commit_index
    cluster.peers[1].stalled = True
    cluster.put(1, b"x")
    assert cluster[2].log.durable_index == before + 1
    assert cluster[1].log.commit_index == before  # one disk of three
    cluster.peers[1].stalled = False
    cluster.settle()
    assert cluster[1].log.commit_index == before + 1


def test_r10_identical_entries_are_skipped_and_nothing_is_deleted():
    peer = alone(term=1)
    batch = entries(1, 1, 1, 1)
    peer.raft.step(2, append(1, batch=batch))
    peer.pump()
    peer.raft.step(2, append(1, batch=batch[:2]))
    peer.raft.step(2, append(1, 1, 1, batch=batch[1:2]))
    assert terms(peer.raft) == [1, 1, 1, 1]
    assert [message.index for message in sent(peer, AppendEntriesReply)] == [2, 2]
    assert not peer.writes


def test_r10_a_conflict_truncates_but_never_at_or_below_the_commit_index():
    peer = alone(log=entries(1, 1, 2, 2), term=2)
    peer.raft.step(2, append(3, 2, 1, batch=entries(3, first=3), commit=3))
    peer.pump()
    assert terms(peer.raft) == [1, 1, 3]
    assert [entry.term for entry in peer.disk.entries] == [1, 1, 3]
    with pytest.raises(AssertionError, match="committed"):
        peer.raft.step(3, append(4, 2, 1, batch=entries(4, first=3)))


def test_r11_commit_is_never_beyond_what_this_message_vouches_for():
    peer = alone(log=entries(1, 1, 1), term=1)  # 2 and 3 may conflict with the leader's
    peer.raft.step(2, append(2, 1, 1, commit=3))
    assert peer.raft.log.commit_index == 1
    peer.raft.step(2, append(2, 1, 1, batch=entries(1, first=2), commit=9))
    assert peer.raft.log.commit_index == 2


def test_r11_a_heartbeat_commits_nothing_that_the_follower_does_not_hold():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.filter = lambda sender, to, message: not (to == 3 and isinstance(message, AppendEntries) and message.entries)
    cluster.put(1, b"x")
    cluster.tick(2 * HEARTBEAT)
    assert cluster[1].log.commit_index == 2
    assert cluster[3].log.commit_index == 1


def test_r12_match_only_grows_and_stale_refusals_are_ignored():
    peer = leader_alone(1, 1, 1)
    progress = peer.raft.progress[2]
    peer.raft.step(2, reply(2, True, 3))
    assert (progress.match_index, progress.next_index, progress.state) == (3, 4, State.REPLICATE)
    peer.raft.step(2, reply(2, True, 1))
    peer.raft.step(2, reply(2, False, 2, 0, 0))
    assert (progress.match_index, progress.state) == (3, State.REPLICATE)
    assert progress.match_index < progress.next_index


def test_r12_a_stale_refusal_moves_no_probe_and_a_probe_stays_above_match():
    peer = leader_alone(1, 1, 1)
    progress = peer.raft.progress[2]
    peer.raft.step(2, reply(2, False, 1, 0, 0))  # of another message than the one on its way
    assert progress.next_index == 4
    peer.raft.step(2, reply(2, True, 2))
    peer.raft.link_changed(2)
    assert (progress.state, progress.next_index) == (State.PROBE, 3)
    peer.raft.step(2, reply(2, False, 2, 0, 0))
    assert progress.next_index == 3


def test_r12_an_acknowledgement_beyond_the_log_is_not_believed():
    peer = leader_alone(1, 1, 1)
    peer.raft.step(2, reply(2, True, 99))
    assert peer.raft.progress[2].match_index == 0


def test_two_nodes_that_disagree_do_not_bounce_messages():
    peer = leader_alone(1, 1, 1)
    peer.raft.step(2, reply(2, False, 3, 3, 1))  # the first word of this follower: worth a probe
    peer.pump()
    peer.raft.step(2, reply(2, False, 3, 3, 1))  # a refusal that tells nothing lower
    assert [message for to, message in peer.pump() if to == 2] == []


def test_r12_a_new_incarnation_starts_from_nothing():
    peer = leader_alone(1, 1, 1)
    progress = peer.raft.progress[2]
    peer.raft.step(2, reply(2, True, 3, incarnation=4))
    peer.raft.step(2, reply(2, False, 3, 1, 1, incarnation=5))
    assert (progress.match_index, progress.incarnation) == (0, 5)
    peer.raft.step(2, reply(2, True, 4, incarnation=4))
    assert progress.match_index == 0
    assert peer.raft.log.commit_index == 0


def test_r13_a_whole_term_is_skipped_with_each_refusal():
    ours = [1] * 10 + [4] * 100
    theirs = [1] * 10 + [2] * 40 + [3] * 60
    cluster = Cluster(3, logs={1: entries(*ours), 2: entries(*theirs)}, terms={1: 4, 2: 4, 3: 4})
    cluster.dead.add(3)
    cluster.elect(1)
    probes = [m for sender, to, m in cluster.seen if (sender, to) == (2, 1) and isinstance(m, AppendEntriesReply) and not m.success]
    assert terms(cluster[2]) == [*ours, 5]
    assert len(probes) <= 3  # one per term, not one per entry, and no heartbeat was waited for


def test_r13_the_follower_skips_its_own_conflicting_term_at_once():
    """The leader has one entry of each term, the follower fifty of one that the leader never had."""
    ours = [1, 3, 4, 5, 6]
    theirs = [1] + [2] * 50
    cluster = Cluster(3, logs={1: entries(*ours), 2: entries(*theirs)}, terms={1: 6, 2: 6, 3: 6})
    cluster.dead.add(3)
    cluster.elect(1)
    refusals = [m for sender, to, m in cluster.seen if (sender, to) == (2, 1) and isinstance(m, AppendEntriesReply) and not m.success]
    assert terms(cluster[2]) == [*ours, 7]
    assert len(refusals) <= 2
    peer = alone(log=entries(*theirs), term=6)
    peer.raft.step(2, append(6, 40, 1))
    (refusal,) = sent(peer, AppendEntriesReply)
    assert (refusal.hint_index, refusal.hint_term) == (1, 1)


def test_r14_truncation_takes_the_durable_mark_with_it():
    peer = alone(log=entries(1, 1, 1), term=1)
    peer.stalled = True
    peer.raft.step(2, append(2, 1, 1, batch=entries(2, 2, first=2)))
    assert peer.raft.log.durable_index == 1
    peer.pump()
    peer.raft.step(2, append(2, 3, 2))
    assert [message.index for message in sent(peer, AppendEntriesReply)] == []  # term 2 is not durable either


def test_r14_an_acknowledgement_of_an_older_term_is_not_counted():
    peer = leader_alone(1, 1, 1)
    peer.raft.step(2, reply(1, True, 4))
    assert peer.raft.progress[2].match_index == 0
    assert peer.raft.log.commit_index == 0


def test_r14_an_old_completion_claims_nothing_about_new_entries():
    peer = alone(term=1)
    peer.stalled = True
    peer.raft.step(2, append(1, batch=entries(1, 1)))
    peer.pump()
    (first,) = peer.writes
    peer.raft.step(3, append(2, 1, 1, batch=entries(2, first=2)))  # index 2 anew
    peer.raft.step(2, append(3, 1, 1, batch=entries(1, first=2)))  # and (index 2, term 1) once more: ABA
    peer.pump()
    peer.raft.persisted(first.number)
    assert peer.raft.log.durable_index == 1
    peer.stalled = False
    peer.pump()
    assert peer.raft.log.durable_index == 2


def test_r14_an_acknowledgement_waits_for_its_own_entries():
    peer = alone(term=1)
    peer.stalled = True
    peer.raft.step(2, append(1, batch=entries(1, 1)))
    peer.raft.step(2, append(1, 2, 1))  # a heartbeat meanwhile claims only what is durable
    assert [message.index for message in sent(peer, AppendEntriesReply)] == [0]
    peer.stalled = False
    assert [message.index for message in sent(peer, AppendEntriesReply)] == [2]


def test_r14_replaced_entries_are_never_acknowledged():
    """Simulator seed 202572: an old leader's entries and a new one's in their place arrive in one turn."""
    peer = alone(term=1)
    peer.raft.step(2, append(1, batch=entries(1, 1)))
    peer.raft.step(3, append(2, 1, 1, batch=entries(2, first=2)))
    peer.raft.step(3, append(2, 2, 2, batch=entries(2, first=3)))
    assert [(message.term, message.index) for message in sent(peer, AppendEntriesReply)] == [(2, 2), (2, 3)]


def test_r15_completions_out_of_order_never_move_the_durable_mark_back():
    log = Log()
    log.append(entries(1))
    log.hand_over(1)
    log.append(entries(1, first=2))
    log.hand_over(2)
    log.written(2)
    assert log.durable_index == 2
    log.written(1)
    assert log.durable_index == 2


def test_r16_a_purged_previous_entry_is_no_conflict():
    peer = alone(log=entries(2, 2, first=11), term=2, base=Base(10, 1))
    peer.raft.step(2, append(2, 5, 1, batch=entries(1, 1, 1, 1, 1, 2, 2, 2, first=6), commit=13))
    assert (peer.raft.log.last_index, peer.raft.log.commit_index) == (13, 13)
    (answer,) = sent(peer, AppendEntriesReply)
    assert (answer.success, answer.index) == (True, 13)


def test_r16_an_entry_that_is_not_held_is_never_read_as_nothing():
    log = Log(entries(2, first=11), Base(10, 1))
    assert log.term_at(10) == 1
    assert log.term_at(9) is None
    assert log.term_at(12) is None
    with pytest.raises(IndexError):
        log.entry(10)
    with pytest.raises(IndexError):
        log.slice(10, 11)


def test_r19_proposals_over_the_limit_fail_until_the_next_term():
    cluster = Cluster(3, limits=Limits(uncommitted_bytes=1_000))
    cluster.elect(1)
    cluster.isolate(1)
    cluster[1].propose([(EntryKind.BATCH, bytes(900))])
    last = cluster[1].log.last_index
    with pytest.raises(Overloaded):
        cluster[1].propose([(EntryKind.BATCH, bytes(900))])
    assert cluster[1].log.last_index == last
    cluster.tick(2 * T)
    with pytest.raises(NotLeader):
        cluster[1].propose([(EntryKind.BATCH, b"")])
    cluster.heal()
    cluster.tick(4 * T)
    cluster.elect(1)
    for _ in range(5):
        cluster.put(1, bytes(900))
    assert cluster[1].log.commit_index == cluster[1].log.last_index


def test_r19_without_a_leader_a_proposal_fails_at_once():
    with pytest.raises(NotLeader) as error:
        alone().raft.propose([(EntryKind.BATCH, b"x")])
    assert error.value.leader == 0


# -- reads -------------------------------------------------------------------------------------


def test_r20_no_read_before_the_first_commit_of_the_own_term():
    cluster = Cluster(3, logs={node: entries(1) for node in (1, 2, 3)}, terms={1: 1, 2: 1, 3: 1})
    cluster.filter = lambda sender, to, message: not (isinstance(message, AppendEntriesReply) and message.success)
    cluster.elect(1)
    cluster[1].read_index(7)
    cluster.tick(2 * HEARTBEAT)
    assert cluster.peers[1].reads == []
    cluster.filter = lambda sender, to, message: True
    cluster.tick(2 * HEARTBEAT)
    assert [(read.context, read.index) for read in cluster.peers[1].reads] == [(7, 2)]


def test_r21_a_delayed_heartbeat_answer_confirms_no_later_read():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster[1].read_index(1)
    cluster.collect()
    late = [message for sender, to, message in cluster.wire if isinstance(message, AppendEntries)]
    cluster.settle()
    assert [read.context for read in cluster.peers[1].reads] == [1]
    cluster.isolate(1)
    cluster[1].read_index(2)
    cluster.collect()
    for sender in (2, 3):  # answers to the first round come again
        cluster[1].step(sender, AppendEntriesReply(1, True, 1, 0, 0, late[0].read_round, 1, False))
    cluster.settle()
    assert [read.context for read in cluster.peers[1].reads] == [1]


def test_r22_a_leader_cut_off_a_moment_ago_serves_no_read():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.tick(HEARTBEAT)
    cluster.isolate(1)
    cluster[1].read_index(1)
    cluster.tick(1)
    assert cluster.peers[1].reads == []


def test_reads_of_one_turn_share_a_round_and_a_follower_may_ask():
    cluster = Cluster(3)
    cluster.elect(1)
    index = cluster.put(1, b"x")
    cluster.seen.clear()
    for context in range(100):
        cluster[2].read_index(context)
    cluster.settle()
    assert [read.index for read in cluster.peers[2].reads] == [index] * 100
    assert sum(isinstance(message, AppendEntries) for _, _, message in cluster.seen) <= 4


# -- liveness, disks ---------------------------------------------------------------------------


def test_r33_a_caught_up_peer_does_not_stay_in_probe():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster[1].link_changed(2)
    assert cluster[1].progress[2].state is State.PROBE
    cluster.tick(HEARTBEAT)
    assert cluster[1].progress[2].state is State.REPLICATE


def test_r33_a_full_window_with_every_message_lost_recovers():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.cut = {(1, 2)}
    for _ in range(LIMITS.window_messages + 10):
        cluster.put(1, b"x")
    assert not cluster[1].progress[2].may_send
    cluster.cut.clear()
    cluster.tick(2 * HEARTBEAT)
    assert cluster[2].log.last_index == cluster[1].log.last_index


def test_r33_a_refusal_while_replicating_goes_back_to_probing():
    peer = leader_alone(1, 1, 1)
    peer.raft.step(2, reply(2, True, 3))
    peer.pump()
    for _ in range(3):
        peer.raft.propose([(EntryKind.BATCH, b"x")])
        peer.pump()
    progress = peer.raft.progress[2]
    peer.raft.step(2, reply(2, False, progress.next_index - 1, 4, 2))  # everything behind 4 was lost on the way
    assert (progress.state, progress.next_index) == (State.PROBE, 5)


def test_messages_that_no_raft_node_sends_are_ignored():
    peer = alone(term=1)
    for message in (
        append(1, -1, 0),
        append(1, 0, 0, batch=entries(1, first=5)),
        append(1, 0, 0, batch=[*entries(1), *entries(1, first=3)]),
    ):
        peer.raft.step(2, message)
        assert sent(peer, AppendEntriesReply) == []
    assert peer.raft.log.last_index == 0


def test_the_window_is_bounded_in_bytes_too():
    peer = leader_alone(1, limits=Limits(window_bytes=3_000))
    peer.raft.step(2, reply(2, True, 1))
    peer.pump()
    for _ in range(10):
        peer.raft.propose([(EntryKind.BATCH, bytes(1_000))])
        peer.pump()
    assert peer.raft.progress[2]._bytes_in_flight <= 3_000 + 1_032
    assert not peer.raft.progress[2].may_send


def test_an_append_carries_at_most_its_limit_or_one_entry():
    peer = leader_alone(1)
    peer.raft.step(2, reply(2, True, 2))
    peer.pump()
    size = LIMITS.append_bytes // 2
    peer.raft.propose([(EntryKind.BATCH, bytes(size))] * 3 + [(EntryKind.BATCH, bytes(3 * size))])
    counts = [len(m.entries) for to, m in peer.pump() if to == 2 and isinstance(m, AppendEntries)]
    assert counts == [1, 1, 1, 1]


def test_r34_a_leader_with_a_stalled_disk_loses_the_lead():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.peers[1].stalled = True
    cluster.put(1, b"x")
    cluster.tick(2 * T + 1, nodes=[1])
    assert not cluster[1].is_leader
    assert cluster.peers[1].reasons[-1] == "its disk has not finished a write for two election timeouts"
    cluster.tick(4 * T)
    assert cluster.leaders() in ([2], [3])


def test_a_leaders_own_write_is_not_needed_for_a_majority():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.peers[1].stalled = True
    index = cluster.put(1, b"x")
    assert cluster[1].log.commit_index == index
    assert cluster[1].log.durable_index < index


def test_bytes_of_a_long_message_count_as_hearing_from_the_leader():
    peer = alone(term=1)
    peer.raft.step(2, append(1))
    for _ in range(4 * T):
        peer.raft.tick()
        peer.raft.hearing_from(2)
    assert peer.raft.role is Role.FOLLOWER
    peer.raft.hearing_from(3)
    for _ in range(2 * T):
        peer.raft.tick()
        peer.raft.hearing_from(3)
    assert peer.raft.role is Role.PRE_CANDIDATE


def test_a_restarted_node_votes_as_it_voted_before():
    cluster = Cluster(3)
    cluster.elect(1)
    peer = cluster.restart(2)
    peer.raft.step(3, RequestVote(1, 9, 1))
    assert [(message.term, message.granted) for _, message in peer.pump()] == [(1, False)]


def test_r27_a_removed_node_gets_no_vote_and_a_leaving_leader_is_heard():
    configuration = Configuration(b"", (1, 2), removed=(3,))
    removal = Entry(1, 1, 0, EntryKind.CONFIG, encode(configuration))
    peer = alone(term=1)
    peer.raft.step(3, append(1, batch=(removal,)))
    peer.pump()
    assert peer.raft.log.last_index == 1
    peer.raft.link_changed(3)
    for _ in range(2 * T):
        peer.raft.tick()
    peer.pump()
    for message in (RequestVote(9, 9, 9), PreVote(9, 9, 9)):
        peer.raft.step(3, message)
    assert peer.pump() == []
    assert peer.raft.term < 9
    peer.raft.step(3, append(9, 1, 1, batch=entries(9, first=2)))
    assert peer.raft.log.last_index == 2


def test_stamps_never_run_back_and_every_append_carries_the_clock():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.tick(30)
    cluster.put(1, b"x")
    assert cluster[1].log.last_time_ms == WALL_MS + 300
    cluster.tick(HEARTBEAT)
    assert abs(cluster[2].clock_ms() - cluster[1].clock_ms()) <= 1

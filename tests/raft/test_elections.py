"""Elections and terms: rules R1–R8, and the paper's sentences (§5.1, §5.2, §5.4.1)."""

from __future__ import annotations

import pytest

from raftd.raft.logtime import LogClock
from raftd.raft.messages import AppendEntries, AppendEntriesReply, EntryKind, PreVote, PreVoteReply, RequestVote, RequestVoteReply
from raftd.raft.quorum import Tally, majority_value
from raftd.raft.ready import HardState, Role
from tests.raft.harness import HEARTBEAT, WALL_MS, Cluster, T, alone, entries, led, win


def append(term: int, prev: int = 0, prev_term: int = 0, *, batch=(), commit: int = 0, clock: int = WALL_MS) -> AppendEntries:
    return AppendEntries(term, prev, prev_term, tuple(batch), commit, clock, 0, 1, 0)


def sent(peer, kind):
    return [message for _, message in peer.pump() if isinstance(message, kind)]


# -- the paper ---------------------------------------------------------------------------------


def test_paper_5_2_nodes_start_as_followers():
    cluster = Cluster(3)
    assert [cluster[node].role for node in (1, 2, 3)] == [Role.FOLLOWER] * 3


def test_paper_5_2_a_follower_without_a_leader_campaigns_in_time():
    peer = alone()
    for _ in range(T - 1):
        peer.raft.tick()
    assert peer.raft.role is Role.FOLLOWER
    for _ in range(T):
        peer.raft.tick()
    assert peer.raft.role is Role.PRE_CANDIDATE


def test_paper_5_2_election_timeouts_are_spread_over_the_interval():
    drawn = set()
    for node in range(1, 40):
        peer = alone(node, voters=40)
        drawn.add(peer.raft._timeout_ticks)
    assert len(drawn) > T // 2
    assert min(drawn) >= T
    assert max(drawn) < 2 * T


def test_paper_5_2_a_majority_of_votes_makes_a_leader():
    for count in (1, 2, 3, 4, 5, 13):
        cluster = Cluster(count)
        cluster.elect(1)
        assert cluster.leaders() == [1]
        assert {cluster[node].leader for node in cluster.voters} == {1}


def test_paper_5_2_the_only_voter_waits_for_nobody():
    cluster = Cluster(1)
    cluster.tick()
    assert cluster[1].is_leader


def test_paper_5_2_a_candidate_that_hears_a_leader_of_its_term_follows():
    peer = alone()
    peer.raft.campaign("test")
    peer.raft.step(2, PreVoteReply(1, True))
    assert peer.raft.role is Role.CANDIDATE
    peer.pump()
    peer.raft.step(3, append(1))
    assert (peer.raft.role, peer.raft.leader) == (Role.FOLLOWER, 3)


def test_paper_5_2_leaders_send_heartbeats_that_keep_the_lead():
    cluster = Cluster(3)
    cluster.elect(2)
    cluster.seen.clear()
    cluster.tick(10 * T)
    assert cluster.leaders() == [2]
    heartbeats = [m for sender, to, m in cluster.seen if (sender, to) == (2, 1) and isinstance(m, AppendEntries)]
    assert len(heartbeats) == 10 * T // HEARTBEAT


def test_paper_5_2_split_votes_are_resolved():
    cluster = Cluster(4)
    for node in (1, 2):
        cluster[node].campaign("both at once")
    cluster.settle()
    cluster.tick(6 * T)
    assert len(cluster.leaders()) == 1


@pytest.mark.parametrize(
    ("own", "last_index", "last_term", "granted"),
    [
        ([1, 1], 2, 1, True),
        ([1, 1], 1, 1, False),  # shorter
        ([1, 1], 3, 1, True),
        ([1, 1], 1, 2, True),  # a later term beats a longer log
        ([1, 2], 9, 1, False),
        ([], 0, 0, True),
    ],
)
def test_paper_5_4_1_a_vote_goes_only_to_a_log_at_least_as_up_to_date(own, last_index, last_term, granted):
    peer = alone(log=entries(*own), term=2)
    peer.raft.step(2, RequestVote(3, last_index, last_term))
    (reply,) = sent(peer, RequestVoteReply)
    assert reply.granted is granted
    assert peer.raft.voted_for == (2 if granted else 0)


# -- R1 to R8 ----------------------------------------------------------------------------------


def test_r01_term_and_vote_are_durable_before_the_reply():
    peer = alone()
    peer.stalled = True
    peer.raft.step(2, RequestVote(5, 0, 0))
    assert not sent(peer, RequestVoteReply)
    assert peer.disk.hard_state == HardState(0, 0)
    peer.stalled = False
    (reply,) = sent(peer, RequestVoteReply)
    assert reply.granted
    assert peer.disk.hard_state == HardState(5, 2)  # one record


def test_r01_a_candidate_asks_for_votes_only_when_its_own_is_durable():
    peer = alone()
    peer.stalled = True
    peer.raft.campaign("test")
    peer.raft.step(2, PreVoteReply(1, True))
    assert not sent(peer, RequestVote)
    peer.stalled = False
    assert len(sent(peer, RequestVote)) == 2
    assert peer.disk.hard_state == HardState(1, 1)


def test_r01_an_acknowledgement_waits_for_the_term_it_was_given_in():
    peer = alone(log=entries(1), term=1)
    peer.stalled = True
    peer.raft.step(2, append(4, 1, 1))
    assert not sent(peer, AppendEntriesReply)
    peer.stalled = False
    (reply,) = sent(peer, AppendEntriesReply)
    assert (reply.term, peer.disk.hard_state.term) == (4, 4)


def test_r02_a_higher_term_is_no_vote_and_a_vote_stays():
    peer = alone(log=entries(1, 1), term=1)
    peer.raft.step(2, RequestVote(5, 0, 0))  # stale log: refused
    assert (peer.raft.term, peer.raft.voted_for) == (5, 0)
    peer.raft.step(3, RequestVote(5, 2, 1))
    peer.raft.step(2, RequestVote(5, 9, 4))
    assert [reply.granted for reply in sent(peer, RequestVoteReply)] == [False, False, True]
    assert peer.raft.voted_for == 3


def test_r01_a_vote_in_a_term_that_is_durable_already_is_durable_too():
    peer = alone(term=3)
    peer.raft.step(2, RequestVote(3, 0, 0))
    (reply,) = sent(peer, RequestVoteReply)
    assert reply.granted
    assert peer.disk.hard_state == HardState(3, 2)


def test_r01_a_vote_in_flight_is_not_overtaken_by_a_campaign():
    peer = alone(voters=1)
    peer.stalled = True
    for _ in range(10 * T):
        peer.raft.tick()
        peer.pump()
    assert peer.raft.term == 1
    peer.stalled = False
    peer.pump()
    assert peer.raft.is_leader


def test_r02_a_lost_election_frees_no_vote_within_its_term():
    peer = alone()
    peer.raft.campaign("test")
    peer.raft.step(2, PreVoteReply(1, True))
    peer.pump()
    for voter in (2, 3):
        peer.raft.step(voter, RequestVoteReply(1, False, False, None, WALL_MS))
    assert peer.raft.role is Role.FOLLOWER
    peer.raft.step(2, RequestVote(1, 9, 1))
    assert [reply.granted for reply in sent(peer, RequestVoteReply)] == [False]
    assert peer.raft.voted_for == 1


def test_r02_a_repeated_request_gets_the_same_vote():
    peer = alone()
    for _ in range(2):
        peer.raft.step(2, RequestVote(1, 0, 0))
    assert [reply.granted for reply in sent(peer, RequestVoteReply)] == [True, True]


def test_r02_hearing_a_leader_of_a_later_term_clears_the_vote():
    peer = alone()
    peer.raft.step(2, RequestVote(1, 0, 0))
    peer.raft.step(3, append(2))
    assert (peer.raft.term, peer.raft.voted_for) == (2, 0)


def test_r03_a_log_stale_request_still_raises_the_term():
    peer = alone(log=entries(1, 1, 1), term=1)
    peer.raft.step(2, RequestVote(7, 1, 1))
    (reply,) = sent(peer, RequestVoteReply)
    assert (reply.granted, reply.term, peer.raft.term) == (False, 7, 7)


def test_r03_replies_to_pre_vote_and_request_vote_are_never_mixed_up():
    peer = alone(voters=5, term=1)
    peer.raft.campaign("test")
    for voter in (2, 3, 4):
        peer.raft.step(voter, RequestVoteReply(1, True, False, None, WALL_MS))
    assert peer.raft.role is Role.PRE_CANDIDATE
    for voter in (2, 3):
        peer.raft.step(voter, PreVoteReply(2, True))
    peer.pump()
    assert peer.raft.role is Role.CANDIDATE
    for voter in (2, 3):
        peer.raft.step(voter, PreVoteReply(2, False))  # would lose the election, were it a vote
    peer.raft.step(4, PreVoteReply(3, True))
    for voter in (2, 3):
        peer.raft.step(voter, RequestVoteReply(2, True, False, WALL_MS, WALL_MS))
    assert peer.raft.is_leader


def test_r04_a_grant_of_another_term_does_not_count():
    peer = alone(term=4)
    peer.raft.campaign("test")
    for term in (3, 4, 6):
        peer.raft.step(2, PreVoteReply(term, True))
    assert peer.raft.role is Role.PRE_CANDIDATE
    peer.raft.step(2, PreVoteReply(5, True))
    assert peer.raft.role is Role.CANDIDATE


def test_r04_a_pre_vote_goes_only_to_a_log_at_least_as_up_to_date():
    peer = alone(log=entries(1, 1), term=1)
    peer.raft.step(2, PreVote(2, 1, 1))
    peer.raft.step(3, PreVote(2, 2, 1))
    assert [reply.granted for reply in sent(peer, PreVoteReply)] == [False, True]


def test_r04_pre_vote_changes_nothing_on_either_side():
    peer, asker = alone(1), alone(2)
    asker.raft.campaign("test")
    peer.raft.step(2, PreVote(1, 0, 0))
    assert [(m.term, m.granted) for m in sent(peer, PreVoteReply)] == [(1, True)]  # a grant echoes the request's term
    assert [m.term for m in sent(asker, PreVote)] == [1, 1]
    for side in (peer, asker):
        assert (side.raft.term, side.raft.voted_for) == (0, 0)
        assert side.disk.hard_state == HardState()


def test_r04_a_lower_term_pre_vote_gets_the_own_term():
    peer, asker = alone(1, term=8), alone(2, term=3)
    asker.raft.campaign("test")
    peer.raft.step(2, PreVote(4, 0, 0))
    (refusal,) = sent(peer, PreVoteReply)
    assert (refusal.term, refusal.granted) == (8, False)
    asker.raft.step(1, refusal)
    assert (asker.raft.term, asker.raft.role) == (8, Role.FOLLOWER)


def test_r05_a_voter_with_a_live_leader_ignores_candidates_and_their_terms():
    peer = alone(term=1)
    peer.raft.step(2, append(1))
    for message in (PreVote(9, 99, 8), RequestVote(9, 99, 8)):
        peer.raft.step(3, message)
        assert not sent(peer, (PreVoteReply, RequestVoteReply))
        assert peer.raft.term == 1
    for _ in range(T):
        peer.raft.tick()
    peer.raft.step(3, RequestVote(9, 99, 8))
    assert [reply.granted for reply in sent(peer, RequestVoteReply)] == [True]


def test_r05_it_grants_the_leader_it_knows():
    peer = alone(term=1)
    peer.raft.step(2, append(1))
    peer.raft.step(2, PreVote(2, 0, 0))
    assert [reply.granted for reply in sent(peer, PreVoteReply)] == [True]


def test_r05_a_leader_with_a_quorum_ignores_candidates():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster[1].step(3, RequestVote(9, 99, 8))
    assert cluster.leaders() == [1]
    assert cluster[1].term == 1


def test_r06_pre_candidates_forget_a_leader_that_is_gone():
    cluster = Cluster(3)
    cluster.elect(3)
    cluster.dead.add(3)
    for node in (1, 2):
        cluster[node].campaign("both at once")
        assert cluster[node].leader == 0
    cluster.settle()
    assert cluster[1].term == cluster[2].term == 2  # both pre-votes were granted
    cluster.tick(6 * T)
    assert len(cluster.leaders()) == 1


def test_r07_a_leader_without_a_quorum_steps_down():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.isolate(1)
    cluster.tick(2 * T)
    assert not cluster[1].is_leader
    assert "no majority answered within the election timeout" in cluster.peers[1].reasons


def test_r07_a_new_peer_starts_as_recently_active():
    cluster = Cluster(3)
    cluster.filter = lambda sender, to, message: not isinstance(message, AppendEntriesReply)
    cluster[1].campaign("test")
    cluster.settle()
    cluster.tick(T, nodes=[1])
    assert cluster[1].is_leader
    cluster.tick(T, nodes=[1])
    assert not cluster[1].is_leader


def run_delayed(cluster: Cluster, delay: int, ticks: int) -> None:
    """Every message takes so many ticks."""
    on_the_way = []
    for now in range(ticks):
        for node in cluster.voters:
            cluster[node].tick()
        cluster.collect()
        on_the_way.append((now + delay, list(cluster.wire)))
        cluster.wire.clear()
        while on_the_way and on_the_way[0][0] <= now:
            cluster.wire.extend(on_the_way.pop(0)[1])
        while cluster.wire:
            cluster.deliver()


@pytest.mark.parametrize("delay", [1, T // 4, T // 2, T, 3 * T // 2])
def test_a_leader_is_elected_and_stays_though_round_trips_are_long(delay):
    cluster = Cluster(3)
    run_delayed(cluster, delay, 60 * T)
    (leader,) = cluster.leaders()
    term = cluster[leader].term
    run_delayed(cluster, delay, 60 * T)
    assert cluster.leaders() == [leader]
    assert cluster[leader].term == term


def test_election_timeouts_are_as_configured_again_after_fast_votes():
    cluster = Cluster(3)
    run_delayed(cluster, T, 60 * T)
    (leader,) = cluster.leaders()
    assert cluster[leader].election_ticks == 8 * T  # a round trip is 2 T
    other = leader % 3 + 1
    cluster.elect(other)
    assert cluster[other].election_ticks == T


def test_r08_a_lower_term_append_gets_an_answer_with_the_higher_term():
    peer = alone(term=6)
    peer.raft.step(2, append(4))
    (reply,) = sent(peer, AppendEntriesReply)
    assert (reply.success, reply.term) == (False, 6)
    stale = Cluster(3)
    stale.elect(1)
    stale[1].step(2, reply)
    assert (stale[1].term, stale[1].role) == (6, Role.FOLLOWER)


# -- doubtful voters -------------------------------------------------------


@pytest.mark.parametrize(
    ("voters", "sound", "doubtful", "won"),
    [
        (3, 2, 0, True),
        (3, 1, 1, False),
        (3, 2, 1, True),
        (3, 1, 2, True),
        (5, 3, 0, True),
        (5, 2, 1, False),
        (5, 2, 2, True),
        (5, 0, 4, True),
    ],
)
def test_a_doubtful_grant_counts_for_less(voters, sound, doubtful, won):
    tally = Tally([range(1, voters + 1)])
    for voter in range(1, sound + doubtful + 1):
        tally.count(voter, True, voter > sound)
    assert tally.won is won


def test_doubt_ends_with_a_later_committed_entry():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.put(1, b"x")
    cluster.peers[3].disk.hard_state = HardState(1, 1, doubtful=True)
    peer = cluster.restart(3)
    cluster.tick(HEARTBEAT)
    assert peer.raft.doubtful
    cluster.put(1, b"y")
    cluster.tick(HEARTBEAT)
    assert not peer.raft.doubtful
    assert peer.disk.hard_state.doubtful is False


def test_a_doubtful_candidate_needs_everybody_of_three():
    cluster = Cluster(3)
    cluster.elect(1)
    for node in (2, 3):
        cluster.peers[node].disk.hard_state = HardState(1, 1, doubtful=node == 3)
        cluster.restart(node)
    cluster.dead.add(1)
    cluster.tick(8 * T)
    assert cluster.leaders() == []
    cluster.restart(1)
    cluster.tick(8 * T)
    assert len(cluster.leaders()) == 1


def test_an_idle_cluster_leaves_nobody_in_doubt():
    """A node whose mark stayed made two voters with equal logs unable to elect, for as long as the third was away."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.put(1, b"x")
    cluster.tick(HEARTBEAT)
    cluster.peers[3].disk.hard_state = HardState(1, 1, doubtful=True)
    peer = cluster.restart(3)
    before = cluster[1].log.last_index
    cluster.tick(4 * HEARTBEAT)
    assert not peer.raft.doubtful
    assert cluster[1].log.last_index == before + 1  # one entry, not one per heartbeat
    cluster.dead.add(1)
    cluster.tick(6 * T)
    assert len(cluster.leaders()) == 1


def doubtful_follower():
    peer = alone(log=entries(1, 1), term=1, doubtful=True)
    peer.stalled = True
    return peer


def lead(peer, *, batch=(), prev: int = 2, commit: int = 0, heard: int = 1, heard_at: int = 2) -> None:
    peer.raft.step(2, AppendEntries(1, prev, 1, tuple(batch), commit, WALL_MS, 0, heard, heard_at))


def test_doubt_ends_only_with_an_entry_after_the_first_hearing():
    for heard, heard_at, goes in ((1, 2, True), (1, 3, False), (0, 0, False), (7, 2, False)):
        peer = doubtful_follower()
        peer.stalled = False
        lead(peer, batch=entries(1, first=3), commit=3, heard=heard, heard_at=heard_at)
        peer.pump()
        assert peer.raft.doubtful is not goes, (heard, heard_at)


def test_doubt_goes_only_when_that_entry_is_committed_and_durable_here():
    peer = doubtful_follower()
    lead(peer, batch=entries(1, first=3), commit=3)
    peer.pump()
    assert peer.raft.doubtful  # not durable
    peer.stalled = False
    peer.pump()
    assert not peer.raft.doubtful
    peer = doubtful_follower()
    peer.stalled = False
    lead(peer, batch=entries(1, first=3), commit=2)
    peer.pump()
    assert peer.raft.doubtful  # not known to be committed


# -- counting ----------------------------------------------------------------------------------


def test_majority_value_is_what_a_majority_has_reached():
    assert majority_value([(1, 2, 3)], {1: 5, 2: 3}) == 3
    assert majority_value([(1, 2, 3, 4)], {1: 5, 2: 3, 3: 4, 4: 1}) == 3
    assert majority_value([(1,)], {1: 7}) == 7


def test_log_time_survives_an_election_and_a_wrong_wall_clock():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.tick(100)
    before = cluster[1].clock_ms()
    cluster[2].set_time(cluster.now_ms, WALL_MS + 10**9)  # node 2's wall clock is eleven days ahead
    cluster.dead.add(1)
    cluster.elect(2)
    after = cluster[2].clock_ms()
    assert 0 <= after - before <= 10
    assert cluster[2].log.last_time_ms >= before


def test_restarted_log_time_is_the_lowest_wall_clock():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.tick(100)
    stamp = cluster.peers[1].raft.clock_ms()
    cluster.put(1, b"x")
    for node in cluster.voters:
        cluster.restart(node)
        cluster[node].set_time(cluster.now_ms, WALL_MS + 10**9 if node == 1 else WALL_MS - 10**9)
    cluster.elect(1)
    assert stamp <= cluster[1].clock_ms() <= stamp + 10


@pytest.mark.parametrize("who", ["voter", "candidate"])
def test_log_time_starts_at_the_greatest_estimate_of_anybody(who):
    peer = alone(1, log=entries(1), term=1)
    ahead = WALL_MS + 50_000
    if who == "candidate":
        peer.raft.step(3, append(1, 1, 1, clock=ahead))
    peer.raft.campaign("test")
    peer.raft.step(2, PreVoteReply(2, True))
    peer.pump()
    peer.raft.step(2, RequestVoteReply(2, True, False, ahead if who == "voter" else None, WALL_MS + 10**9))
    assert peer.raft.clock_ms() == ahead


def test_an_overtaken_heartbeat_sets_no_clock_back():
    peer = alone(term=1)
    peer.raft.step(2, append(1, clock=WALL_MS + 500))
    peer.raft.step(2, append(1, clock=WALL_MS + 100))
    assert peer.raft.clock_ms() == WALL_MS + 500


def test_a_heartbeat_that_was_delayed_sets_no_clock_back():
    """It carries a later value than the one before, and still an older one than what has passed since."""
    peer = alone(term=1)
    peer.raft.step(2, append(1, clock=WALL_MS))
    peer.raft.set_time(1_000, WALL_MS)
    peer.raft.step(2, append(1, clock=WALL_MS + 50))
    assert peer.raft.clock_ms() == WALL_MS + 1_000
    peer.raft.set_time(1_400, WALL_MS)
    assert peer.raft.clock_ms() == WALL_MS + 1_000  # it waits for the leader's
    peer.raft.set_time(2_000, WALL_MS)
    assert peer.raft.clock_ms() == WALL_MS + 1_050


def test_an_estimate_follows_a_slower_leader_without_going_back():
    """A clock that runs fast must not run away from the leader's for ever."""
    clock, estimates = LogClock(), []
    for beat in range(1_000):
        clock.hear(1, WALL_MS + 40 * beat, 50 * beat)
        estimates += [clock.estimate_ms(50 * beat), clock.estimate_ms(50 * beat + 45)]
    assert estimates == sorted(estimates)
    assert estimates[-1] - (WALL_MS + 40 * 999) <= 50


def nobody_of_the_majority_knows_log_time():
    """Nodes 1 and 2 have just started, with wall clocks that are wrong by years; node 3 has run all the time."""
    peer = alone(voters=3, log=entries(1), term=1)
    peer.raft.set_time(0, WALL_MS + 10**11)
    peer.raft.campaign("test")
    peer.raft.step(2, PreVoteReply(2, True))
    peer.pump()
    peer.raft.step(2, RequestVoteReply(2, True, False, None, WALL_MS + 10**11))
    assert peer.raft.role is Role.CANDIDATE
    return peer


@pytest.mark.parametrize("granted", [True, False])
def test_a_living_estimate_counts_before_wall_clocks(granted):
    peer = nobody_of_the_majority_knows_log_time()
    peer.raft.step(3, RequestVoteReply(2, granted, False, WALL_MS + 5_000, WALL_MS))
    assert peer.raft.is_leader
    assert peer.raft.clock_ms() == WALL_MS + 5_000


def test_a_silent_voter_is_waited_for_one_heartbeat():
    peer = nobody_of_the_majority_knows_log_time()
    for _ in range(HEARTBEAT - 1):
        peer.raft.tick()
    assert not peer.raft.is_leader
    peer.raft.tick()
    assert peer.raft.is_leader
    assert peer.raft.clock_ms() == WALL_MS + 10**11


def test_stamps_come_from_log_time_and_not_from_the_wall_clock():
    """Mutant: "stamps from the wall clock"."""
    peer = alone(log=entries(1), term=1)
    win(peer)
    before = peer.raft.log.last_time_ms
    peer.raft.set_time(700, WALL_MS + 10**9)
    peer.raft.propose([(EntryKind.BATCH, b"")])
    assert peer.raft.log.last_time_ms == before + 700


def test_r01_a_vote_that_is_asked_for_again_waits_for_the_disk_again():
    """The first grant is still on its way to the disk: the repeat must not leave before it. Mutant: "repeated grant leaves at once"."""
    peer = alone(term=1)
    peer.stalled = True
    for _ in range(2):
        peer.raft.step(2, RequestVote(2, 0, 0))
        assert [message for _, message in peer.pump() if isinstance(message, RequestVoteReply)] == []
    peer.stalled = False
    grants = [message for _, message in peer.pump() if isinstance(message, RequestVoteReply)]
    assert [grant.granted for grant in grants] == [True, True]


def test_a_stamp_is_never_below_the_one_before():
    peer = alone(1, voters=1, log=entries(1), term=1)
    peer.raft.set_time(0, WALL_MS - 10**6)
    peer.raft.tick()
    peer.pump()
    assert peer.raft.log.last_time_ms >= WALL_MS


def test_log_time_counts_an_outage_while_one_node_lives():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.tick(10)
    before = cluster[1].clock_ms()
    cluster.isolate(1, 2, 3)
    cluster.tick(500)  # five seconds
    cluster.heal()
    cluster.tick(6 * T)
    (leader,) = cluster.leaders()
    assert cluster[leader].clock_ms() - before >= 5_000


def test_a_slow_disk_does_not_shorten_the_wait_for_a_living_estimate():
    """Votes are asked for once the own is durable: the wait begins then, not with the election."""
    peer = alone(voters=5, log=entries(1), term=1)
    peer.raft.set_time(0, WALL_MS + 10**11)
    peer.stalled = True
    peer.raft.campaign("test")
    for voter in (2, 3):
        peer.raft.step(voter, PreVoteReply(2, True))
    peer.pump()
    for _ in range(3 * HEARTBEAT):
        peer.raft.tick()
    peer.stalled = False
    peer.pump()
    for voter in (2, 3):
        peer.raft.step(voter, RequestVoteReply(2, True, False, None, WALL_MS + 10**11))
    peer.raft.tick()
    assert peer.raft.role is Role.CANDIDATE
    peer.raft.step(4, RequestVoteReply(2, False, False, WALL_MS + 5_000, WALL_MS))
    assert peer.raft.is_leader
    assert peer.raft.clock_ms() == WALL_MS + 5_000


def test_a_leader_of_a_new_term_is_followed_though_its_clock_is_behind():
    clock = LogClock()
    clock.hear(1, WALL_MS + 1_000, 0)
    clock.hear(2, WALL_MS, 100)
    assert clock.estimate_ms(100) == WALL_MS + 1_100  # it does not fall
    assert clock.estimate_ms(2_000) == WALL_MS + 1_900


def test_a_heartbeat_leaves_by_the_clock_when_ticks_come_late():
    peer = alone(log=entries(1), term=1)
    win(peer)
    peer.raft.tick()
    peer.pump()
    peer.raft.set_time(peer.raft.now_ms + 10 * HEARTBEAT + 10, WALL_MS)
    peer.raft.tick()  # one, where there should have been six
    assert sent(peer, AppendEntries)


# -- rest --------------------------------------------------------------------------------------


def test_a_leader_rests_no_longer_than_its_next_deadline():
    cluster = led()
    leader = cluster[1]
    leader._heartbeat_ticks = T  # or heartbeats would be the next thing to do
    leader._heartbeat_elapsed_ticks = leader._elapsed_ticks = 0
    assert leader.idle_ticks == T  # R7: who answered is counted then
    leader.tick(T - 3)
    assert leader.idle_ticks == 3
    cluster.isolate(3)
    leader.leadership.transfer(3)
    leader._heartbeat_elapsed_ticks = leader._elapsed_ticks = 0
    leader.tick(5)
    leader._heartbeat_elapsed_ticks = leader._elapsed_ticks = 0
    assert leader.idle_ticks == T - 5  # R32: then the transfer is given up


def test_a_follower_rests_no_longer_than_its_election_timeout_lasts():
    peer = alone()
    peer.raft._timeout_ticks = T + 1
    assert peer.raft.idle_ticks == T // 2
    peer.raft.tick(T - 2)
    assert peer.raft.idle_ticks == 3
    peer.raft.tick(3)
    assert peer.raft.role is Role.PRE_CANDIDATE
    assert peer.raft.idle_ticks == 1

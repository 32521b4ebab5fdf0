"""Rules R23 to R28: who is a member changes one step at a time, by entries of the log."""

from __future__ import annotations

import pytest

from raftd.errors import NotLeader
from raftd.raft import membership
from raftd.raft.membership import Membership, add_learner, leave_joint, promote, remove
from raftd.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Configuration,
    Entry,
    EntryKind,
    MemberAddress,
    PreVote,
    RequestVote,
    RequestVoteReply,
)
from raftd.raft.outcomes import Outcome
from raftd.raft.quorum import Tally, has_majority, majority_value
from raftd.raft.ready import HardState, Role
from tests.raft.harness import Cluster, Disk, Peer, T, alone, led, refused

PLACES = {node: MemberAddress("127.0.0.1", 7_000 + node) for node in range(1, 9)}


def join(cluster: Cluster, node: int) -> None:
    """A node that knows nothing of the cluster but who votes in it."""
    cluster.peers[node] = Peer(node, cluster.voters, Disk((), HardState(0)), 1)
    cluster.voters.append(node)


def add(cluster: Cluster, node: int, leader: int = 1) -> None:
    cluster[leader].leadership.change(lambda configuration: add_learner(configuration, node, PLACES[node]))


def latest(cluster: Cluster, node: int) -> Configuration:
    return cluster[node].membership.latest


def config_entry(index: int, term: int, configuration: Configuration) -> Entry:
    return Entry(term, index, 0, EntryKind.CONFIG, membership.encode(configuration))


# -- growing and shrinking ---------------------------------------------------------------------


def test_a_new_node_learns_catches_up_and_is_promoted_by_itself():
    cluster = led()
    cluster.put(1, *[b"%d" % number for number in range(20)])
    join(cluster, 4)
    add(cluster, 4)
    assert latest(cluster, 1).learners == (4,)
    cluster.tick(T)
    for node in (1, 2, 3, 4):
        assert latest(cluster, node).voters == (1, 2, 3, 4)
        assert latest(cluster, node).outgoing == latest(cluster, node).learners == ()
        assert cluster[node].log.applied_index == cluster[1].log.last_index
    cluster.isolate(1)
    cluster.tick(T, nodes=[2, 3, 4])
    cluster.tick(2 * T)
    assert cluster.leaders()[-1:] != [1]


def test_a_cluster_grows_to_five_and_shrinks_to_one():
    cluster = led()
    for node in (4, 5):
        join(cluster, node)
        add(cluster, node)
        cluster.tick(T)
    assert latest(cluster, 1).voters == (1, 2, 3, 4, 5)
    for node in (5, 4, 3, 2):
        cluster[1].leadership.change(lambda configuration, node=node: remove(configuration, node))
        cluster.tick(T)
        assert cluster[node].is_removed
        assert cluster[node].role is Role.FOLLOWER
    assert latest(cluster, 1) == Configuration(latest(cluster, 1).cluster_id, (1,), addresses={}, removed=(2, 3, 4, 5))
    before = cluster[1].log.commit_index
    cluster.put(1, b"alone")
    assert cluster[1].log.commit_index == before + 1


# -- R23 to R28 --------------------------------------------------------------------------------


def test_r23_no_change_before_an_entry_of_the_own_term_is_committed():
    cluster = led()
    cluster.filter = lambda sender, to, message: not (isinstance(message, AppendEntriesReply) and message.term == 2)
    for raft in (peer.raft for peer in cluster.peers.values()):
        raft._elapsed_ticks = T
    cluster[2].campaign("the test says so")
    cluster.settle()
    assert cluster[2].is_leader
    with refused(Outcome.LEADER_NOT_READY):
        add(cluster, 4, leader=2)
    cluster.filter = lambda sender, to, message: True
    cluster.tick(T)
    add(cluster, 4, leader=2)


def test_r24_one_change_at_a_time():
    cluster = led()
    cluster.isolate(1)
    add(cluster, 4)
    with refused(Outcome.CHANGE_IN_PROGRESS):
        add(cluster, 5)
    cluster.heal()
    cluster.tick(T // 2)
    assert latest(cluster, 2).learners == (4,)
    cluster[1].leadership.change(lambda configuration: remove(configuration, 4))


def test_r24_a_change_that_is_truncated_is_taken_back():
    cluster = led()
    cluster.isolate(1)
    add(cluster, 4)
    assert 4 in cluster[1].membership.members
    cluster.tick(3 * T)
    cluster.heal()
    cluster.elect(2)
    cluster.tick(T)
    assert cluster[1].role is Role.FOLLOWER
    assert 4 not in cluster[1].membership.members
    assert latest(cluster, 1) == latest(cluster, 2)


def test_r24_a_follower_takes_back_what_its_new_leader_never_had():
    peer = alone(term=1)
    old, new = Configuration(b"", (1, 2, 3)), Configuration(b"", (1, 2, 3), learners=(4,))
    peer.raft.step(2, AppendEntries(1, 0, 0, (config_entry(1, 1, old), config_entry(2, 1, new)), 1, 0, 0, 0, 0))
    assert peer.raft.membership.latest == new
    peer.raft.step(3, AppendEntries(2, 1, 1, (Entry(2, 2, 0, EntryKind.NOOP, b""),), 1, 0, 0, 0, 0))
    assert (peer.raft.membership.latest, peer.raft.membership.index) == (old, 1)


def test_r25_each_half_is_counted_on_its_own():
    halves = ((1, 2, 3), (3, 4, 5))
    assert majority_value(halves, {1: 9, 2: 9, 3: 5}) == 0
    assert majority_value(halves, {1: 9, 2: 9, 3: 5, 4: 4}) == 4
    assert not has_majority(halves, {1, 2, 3})
    assert has_majority(halves, {1, 3, 4})
    tally = Tally(halves)
    for voter in (1, 2, 3):
        tally.count(voter, True)
    assert not tally.won
    tally.count(4, True, doubtful=True)
    assert not tally.won  # two of three, one of them in doubt
    tally.count(5, True)
    assert tally.won
    refused = Tally(halves)
    refused.count(4, False)
    refused.count(5, False)
    assert refused.lost


def test_r25_while_joint_nothing_is_committed_without_both_halves():
    cluster = led()
    for node in (4, 5):
        join(cluster, node)
        add(cluster, node)
        cluster.tick(T)
    cluster.filter = lambda sender, to, message: not (isinstance(message, AppendEntriesReply) and sender in (2, 3, 4))
    cluster[1].leadership.change(lambda configuration: remove(configuration, 5))
    index = cluster[1].log.last_index
    cluster.settle()
    assert cluster[1].log.commit_index < index
    assert latest(cluster, 1).outgoing == (1, 2, 3, 4, 5)
    cluster.filter = lambda sender, to, message: True
    cluster.tick(T)
    assert latest(cluster, 3).outgoing == ()
    assert latest(cluster, 3).voters == (1, 2, 3, 4)


def test_r25_a_new_leader_leaves_the_joint_configuration_that_it_finds():
    cluster = led(4)
    cluster.filter = lambda sender, to, message: not (isinstance(message, AppendEntriesReply) and to == 1)
    cluster[1].leadership.change(lambda configuration: remove(configuration, 4))
    cluster.settle()
    assert latest(cluster, 2).outgoing == (1, 2, 3, 4)
    cluster.filter = lambda sender, to, message: True
    cluster.isolate(1)
    cluster.elect(2)  # by 2 and 3 of the three that stay, and with 4 of the four before
    cluster.tick(T // 2)
    assert latest(cluster, 3).outgoing == ()
    assert latest(cluster, 3).voters == (1, 2, 3)
    assert cluster[4].is_removed


def test_r26_learners_do_not_count_but_answer_a_vote():
    cluster = led()
    join(cluster, 4)
    cluster.filter = lambda sender, to, message: not (isinstance(message, AppendEntriesReply) and sender in (2, 3))
    add(cluster, 4)
    index = cluster[1].log.last_index
    cluster.settle()
    assert cluster[1].progress[4].match_index == index
    assert cluster[1].log.commit_index < index
    peer = alone(node=4, voters=3)
    peer.raft.step(2, RequestVote(3, 9, 2))
    ((to, reply),) = peer.pump()
    assert (to, type(reply), reply.granted) == (2, RequestVoteReply, True)


def test_r26_a_learner_does_not_campaign():
    peer = alone(node=4, voters=3)
    for _ in range(5 * T):
        peer.raft.tick()
    assert peer.raft.role is Role.FOLLOWER
    assert peer.pump() == []


def test_r27_a_removed_leader_goes_on_until_its_removal_is_committed():
    cluster = led()
    cluster.isolate(1)
    cluster[1].leadership.change(lambda configuration: remove(configuration, 1))
    cluster.settle()
    assert cluster[1].is_leader
    assert not cluster[1].is_removed
    cluster.heal()
    cluster.tick(T // 4)
    cluster.settle()
    assert cluster[1].role is Role.FOLLOWER
    assert cluster[1].is_removed
    cluster.tick(3 * T)
    (leader,) = cluster.leaders()
    assert leader in (2, 3)
    assert latest(cluster, leader).voters == (2, 3)


def test_r27_a_removed_node_hears_that_it_is_and_disturbs_nobody():
    cluster = led()
    cluster[1].leadership.change(lambda configuration: remove(configuration, 3))
    cluster.tick(T // 2)
    assert cluster[3].is_removed
    term = cluster[1].term
    cluster.tick(3 * T)
    assert 3 not in cluster[1].progress
    assert (cluster[1].is_leader, cluster[1].term, cluster[3].role) == (True, term, Role.FOLLOWER)


def test_r27_a_node_that_did_not_hear_of_its_removal_wins_nothing():
    cluster = led()
    cluster.isolate(3)
    cluster[1].leadership.change(lambda configuration: remove(configuration, 3))
    cluster.tick(3 * T)
    term = cluster[1].term
    cluster.heal()
    cluster.tick(3 * T)
    assert cluster[1].is_leader
    assert cluster[1].term == term
    assert any(isinstance(message, PreVote) for sender, _, message in cluster.seen if sender == 3)


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        (lambda c: add_learner(c, 2, PLACES[2]), Outcome.ALREADY_MEMBER),
        (lambda c: add_learner(c, 4, PLACES[4]), Outcome.ALREADY_MEMBER),
        (lambda c: add_learner(c, 9, PLACES[4]), Outcome.ADDRESS_IN_USE),
        (lambda c: add_learner(c, 7, PLACES[7]), Outcome.ID_USED_BEFORE),
        (lambda c: add_learner(c, 0, PLACES[7]), Outcome.INVALID),
        (lambda c: promote(c, 2, True), Outcome.ALREADY_VOTER),
        (lambda c: promote(c, 8, True), Outcome.NOT_MEMBER),
        (lambda c: promote(c, 4, False), Outcome.NOT_CAUGHT_UP),
        (lambda c: remove(c, 8), Outcome.NOT_MEMBER),
    ],
)
def test_r28_what_cannot_be_is_refused_with_the_reason(change, outcome):
    configuration = Configuration(b"", (1, 2), learners=(4,), addresses={4: PLACES[4]}, removed=(7,))
    with refused(outcome):
        change(configuration)


def test_r28_the_last_voter_stays():
    with refused(Outcome.LAST_VOTER):
        remove(Configuration(b"", (1,), learners=(2,)), 1)


def test_r28_an_id_that_was_removed_never_comes_back():
    configuration = leave_joint(remove(Configuration(b"", (1, 2, 3)), 3))
    assert configuration == Configuration(b"", (1, 2), removed=(3,))
    with refused(Outcome.ID_USED_BEFORE):
        add_learner(configuration, 3, PLACES[3])
    assert leave_joint(promote(add_learner(configuration, 4, PLACES[4]), 4, True)).voters == (1, 2, 4)


def test_only_a_leader_changes_anything_and_not_while_it_hands_over():
    cluster = led()
    with pytest.raises(NotLeader):
        add(cluster, 4, leader=2)
    cluster.isolate(2)
    cluster.put(1, b"more")
    cluster[1].leadership.transfer(2)
    with refused(Outcome.TRANSFER_IN_PROGRESS):
        add(cluster, 4)


def test_a_removal_that_would_leave_no_majority_that_is_heard_is_refused():
    cluster = led()
    cluster.dead.add(3)
    cluster.tick(2 * T)
    with refused(Outcome.NO_MAJORITY_LEFT):
        cluster[1].leadership.change(lambda configuration: remove(configuration, 2))
    cluster[1].leadership.change(lambda configuration: remove(configuration, 3))
    cluster.tick(T)
    assert latest(cluster, 1).voters == (1, 2)


# -- what stands where -------------------------------------------------------------------------


def test_a_configuration_is_that_of_its_place_in_the_log():
    first, second, third = (Configuration(b"", (1, 2, 3), learners=learners) for learners in ((), (4,), (4, 5)))
    members = Membership(first, 0, [config_entry(3, 1, second), config_entry(7, 2, third)])
    assert [members.configuration_at(index) for index in (0, 2, 3, 6, 7, 9)] == [first, first, second, second, third, third]
    members.applied(5)
    assert members.configuration_at(5) == second
    assert members.truncated(7)
    assert not members.truncated(7)
    assert members.latest == second


def test_a_restarted_node_finds_the_members_in_its_log():
    cluster = led()
    join(cluster, 4)
    add(cluster, 4)
    cluster.tick(T)
    cluster.voters.remove(4)  # the file still has three
    cluster.restart(2)
    assert cluster[2].membership.latest.voters == (1, 2, 3, 4)


@pytest.mark.parametrize(
    "address",
    [
        MemberAddress("", 1),
        MemberAddress("a b", 1),
        MemberAddress("[/x]", 1),
        MemberAddress("\x1b[31m", 1),
        MemberAddress("h", 0),
        MemberAddress("h", 65_536),
        MemberAddress("h", 1, -1),
    ],
)
def test_a_member_has_an_address_that_is_one(address):
    with refused(Outcome.INVALID):
        add_learner(Configuration(b"", (1,)), 2, address)

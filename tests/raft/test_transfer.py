"""Rule R32: the lead is handed over, or stays, and is never stuck between."""

from __future__ import annotations

import pytest

from raftd.errors import NotLeader, Overloaded
from raftd.raft.messages import EntryKind, RequestVote, TimeoutNow
from raftd.raft.outcomes import Outcome
from raftd.raft.ready import Role
from tests.raft.harness import T, alone, entries, led, refused


def test_r32_the_lead_goes_to_the_node_that_was_named_without_a_timeout():
    cluster = led()
    cluster[1].leadership.transfer(3)
    cluster.settle()
    assert cluster[3].is_leader
    assert cluster[1].role is Role.FOLLOWER
    assert cluster[1].leader == 3
    assert not cluster[1].is_transferring
    assert cluster[3].term == cluster[1].term == 2
    cluster.put(3, b"next")
    cluster.tick(T // 2)
    assert [entry.data for entry in cluster.peers[2].applied][-1] == b"next"


def test_r32_a_target_that_lags_is_caught_up_first():
    cluster = led()
    cluster.isolate(3)
    cluster.put(1, *[b"%d" % number for number in range(50)])
    cluster.tick(T // 2)
    cluster.heal()
    cluster.tick(T // 4)
    cluster.isolate(3)
    cluster.put(1, b"and more")
    cluster[1].leadership.transfer(3)
    cluster.settle()
    assert cluster[1].is_leader
    assert cluster[1].is_transferring
    cluster.heal()
    cluster.tick(T // 4)
    assert cluster[3].is_leader
    assert [entry.data for entry in cluster.peers[3].applied][-2] == b"and more"


def test_r32_proposals_fail_at_once_while_the_lead_is_handed_over():
    cluster = led()
    cluster.isolate(3)
    cluster.put(1, b"more")
    cluster[1].leadership.transfer(3)
    with pytest.raises(Overloaded, match="being handed to node 3"):
        cluster[1].propose([(EntryKind.BATCH, b"now?")])


def test_r32_a_transfer_ends_after_an_election_timeout():
    """A flag that stuck would leave a leader that takes nothing for ever."""
    cluster = led()
    cluster.isolate(3)
    cluster.put(1, b"more")
    cluster[1].leadership.transfer(3)
    cluster.tick(T + 1)
    assert cluster[1].is_leader
    assert not cluster[1].is_transferring
    cluster.put(1, b"and on")
    cluster.heal()
    cluster.tick(2 * T)
    assert cluster[1].is_leader
    assert [entry.data for entry in cluster.peers[3].applied][-1] == b"and on"


def test_r32_a_lost_request_to_take_over_is_given_up_too():
    cluster = led()
    cluster.filter = lambda sender, to, message: not isinstance(message, TimeoutNow)
    cluster[1].leadership.transfer(2)
    cluster.tick(T + 1)
    assert cluster[1].is_leader
    cluster.filter = lambda sender, to, message: True
    cluster[1].leadership.transfer(2)
    cluster.settle()
    assert cluster[2].is_leader


def test_r32_a_leader_that_steps_down_forgets_the_transfer():
    cluster = led()
    cluster.isolate(3)
    cluster.put(1, b"more")
    cluster[1].leadership.transfer(3)
    cluster[1].step(2, RequestVote(9, 99, 9, True))
    assert cluster[1].role is Role.FOLLOWER
    assert not cluster[1].is_transferring


@pytest.mark.parametrize(("target", "outcome"), [(1, Outcome.ALREADY_LEADER), (7, Outcome.NOT_VOTER)])
def test_r32_itself_and_strangers_are_refused(target, outcome):
    cluster = led()
    with refused(outcome):
        cluster[1].leadership.transfer(target)
    assert not cluster[1].is_transferring


def test_r32_a_node_that_is_not_heard_and_a_second_transfer_are_refused():
    cluster = led()
    cluster.dead.add(3)
    cluster.tick(T)
    with refused(Outcome.NOT_HEARD):
        cluster[1].leadership.transfer(3)
    assert cluster[1].leadership.best_successor() == 2
    cluster[1].leadership.transfer(2)
    with refused(Outcome.TRANSFER_IN_PROGRESS):
        cluster[1].leadership.transfer(2)
    with pytest.raises(NotLeader):
        cluster[2].leadership.transfer(1)


def test_r32_who_does_not_follow_the_asker_does_not_campaign():
    peer = alone(log=entries(1), term=3)
    for sender, term in ((2, 2), (2, 3), (3, 4)):
        peer.raft.step(sender, TimeoutNow(term))
        assert peer.raft.role is Role.FOLLOWER
        assert peer.pump() == []

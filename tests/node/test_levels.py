"""Rolling upgrades: the cluster uses a feature once every member knows it, and from then on older nodes are barred."""

from __future__ import annotations

import msgspec
import pytest

from raftd.errors import TooOld
from raftd.jobs.commands import FEATURE_LEVEL, Features, encode_payload
from raftd.jobs.machine import StateMachine
from raftd.jobs.snapshot import Loader, dump
from raftd.limits import LIMITS, Limits
from raftd.raft.messages import AddMember, EntryKind, MemberAddress
from raftd.raft.outcomes import DONE, AdminResult
from raftd.sim.cluster import SimCluster
from raftd.wire.peer import RefusalCode
from tests.node.test_loop import follower, started

NEWER = FEATURE_LEVEL + 1


def levels(cluster: SimCluster) -> set[int]:
    return {process.node.machine.level for process in cluster.processes.values()}


def restart(cluster: SimCluster, node: int, level: int) -> None:
    cluster.crash(node)
    old, cluster.config = cluster.config, msgspec.structs.replace(cluster.config, level=level)
    cluster.start(node)
    cluster.config = old


def test_a_new_cluster_is_at_the_level_of_its_nodes():
    cluster = started()
    assert levels(cluster) == {FEATURE_LEVEL}


def test_a_cluster_that_is_upgraded_node_by_node_rises_with_the_last_one():
    cluster = started()
    nodes = sorted(cluster.config.voters, key=lambda node: node == cluster.leader)
    for node in nodes[:-1]:
        restart(cluster, node, NEWER)
        cluster.run(2_000)
        assert levels(cluster) == {FEATURE_LEVEL}
    restart(cluster, nodes[-1], NEWER)
    assert cluster.run(5_000, lambda: levels(cluster) == {NEWER})


def test_while_a_member_is_not_heard_the_level_stays():
    cluster = started()
    away = follower(cluster)
    for node in cluster.config.voters:
        if node != away:
            restart(cluster, node, NEWER)
    cluster.crash(away)
    cluster.run(5_000)
    # the two that run have never heard what the third knows
    assert levels(cluster) == {FEATURE_LEVEL}
    cluster.start(away)
    cluster.run(2_000)
    assert levels(cluster) == {FEATURE_LEVEL}


def risen(limits: Limits = LIMITS) -> SimCluster:
    cluster = started(limits=limits)
    for node in cluster.config.voters:
        restart(cluster, node, NEWER)
        cluster.run(1_000)
    assert cluster.run(5_000, lambda: levels(cluster) == {NEWER})
    return cluster


def test_an_older_node_is_refused_by_the_others_and_told_what_to_do():
    cluster = risen()
    hello = msgspec.structs.replace(cluster[1].hello(), level=FEATURE_LEVEL)
    refusal = cluster[2].handle_hello(hello, lambda: None)
    assert refusal.text == (f"its raftd knows the features of level {FEATURE_LEVEL}, this cluster uses those of level {NEWER}: upgrade it")
    assert refusal.code is RefusalCode.TOO_OLD


def test_an_older_raftd_ends_at_the_entry_it_must_not_pass():
    cluster = SimCluster(1)
    cluster.config = msgspec.structs.replace(cluster.config, level=NEWER)
    cluster.start()
    assert cluster.run(3_000, lambda: levels(cluster) == {NEWER})
    cluster.run(200)
    restart(cluster, 1, FEATURE_LEVEL)
    assert cluster.run(3_000, lambda: bool(cluster.failures))
    [(_, error)] = cluster.failures
    assert isinstance(error, TooOld)
    assert "install a newer one" in str(error)


def test_an_older_raftd_does_not_start_on_a_newer_snapshot():
    cluster = risen(Limits(snapshot_least_bytes=1))
    leader = cluster[cluster.leader]
    leader.raft.propose([(EntryKind.BATCH, b"")] * 100)
    leader.wake()
    cluster.run(1_000)
    node = follower(cluster)
    with pytest.raises(TooOld, match="install a newer one"):
        restart(cluster, node, FEATURE_LEVEL)


def test_a_newer_snapshot_is_refused_at_its_first_piece():
    """The level was checked only once all pieces were loaded, so a new kind of piece was called damage."""
    machine = StateMachine()
    machine.apply(1, 1_000, encode_payload(Features(NEWER)))
    head, *_ = dump(machine)
    loader = Loader()
    with pytest.raises(TooOld, match="install a newer one"):
        loader.feed(head)
    Loader(known_level=NEWER).feed(head)


def test_a_level_never_sinks():
    cluster = risen()
    leader = cluster[cluster.leader]
    leader.raft.propose([(EntryKind.BATCH, encode_payload(Features(FEATURE_LEVEL)))])
    leader.wake()
    cluster.run(500)
    assert levels(cluster) == {NEWER}


def test_a_learner_that_has_not_been_heard_holds_the_level_back():
    cluster = started()
    results: list[AdminResult] = []
    cluster[cluster.leader].administer(AddMember(4, MemberAddress("sim", 4)), results.append)
    cluster.run(500)
    assert results == [DONE]
    for node in cluster.config.voters:
        restart(cluster, node, NEWER)
        cluster.run(1_000)
    cluster.run(3_000)
    assert levels(cluster) == {FEATURE_LEVEL}

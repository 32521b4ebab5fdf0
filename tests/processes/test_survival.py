"""Nodes die with SIGKILL in the middle of the work, and nothing acknowledged is lost."""

from __future__ import annotations

import threading
import time

import pytest

from raftd.bench.local import wait_for
from raftd.storage import records
from tests.line_workload import LineWorkload
from tests.processes.harness import Closed, LineClient, ProcessCluster

PUT_GAP_S = 2.0


@pytest.mark.load
def test_the_leader_is_killed_three_times_under_load(tmp_path, capsys):
    gaps = []
    with ProcessCluster(tmp_path, 3) as cluster:
        cluster.leader()
        load = LineWorkload([cluster.line_address(node) for node in cluster.nodes], producers=8, workers=8)
        load.start()
        for _ in range(3):
            time.sleep(2)  # of load, with all three
            leader = cluster.leader()
            killed = time.monotonic()
            cluster.kill(leader)
            time.sleep(2.5)  # of load, with two: long enough to show a gap over the limit
            gaps.append(load.longest_gap_s(killed, time.monotonic()))
            cluster.start(leader)
            wait_for(lambda leader=leader: cluster.stats(leader), what=f"node {leader} serving again")
        load.finish()
        missing = load.missing()
        states = [cluster.stats(node) for node in cluster.nodes]
    with capsys.disabled():
        doubled = load.doubled()
        print(
            f"\n  leader killed 3 times: {len(load.acknowledged)} jobs acknowledged, {len(missing)} lost, {doubled} deleted twice, "
            f"longest put gaps {', '.join(f'{gap:.2f} s' for gap in gaps)}"
        )
    assert not missing
    assert len(load.acknowledged) > 100
    assert doubled == 0
    assert all(int(state["total-jobs"]) >= len(load.acknowledged) for state in states)
    assert max(gaps) <= PUT_GAP_S


@pytest.mark.load
def test_all_three_are_killed_at_once_under_load(tmp_path, capsys):
    with ProcessCluster(tmp_path, 3) as cluster:
        cluster.leader()
        load = LineWorkload([cluster.line_address(node) for node in cluster.nodes], producers=8, workers=0)
        load.start()
        time.sleep(1)  # of load
        load.stop_putting()  # producers end at their next error or answer
        for node in cluster.nodes:
            cluster.running[node].process.kill()
        for node in cluster.nodes:
            cluster.kill(node)
        load.finish_putting()
        for node in cluster.nodes:
            cluster.start(node)
        cluster.leader()
        found = {}
        for node in cluster.nodes:
            client = cluster.client(node)
            while (job := client.reserve(0)) is not None:
                assert job[0] not in found, "a job was given out twice"
                found[job[0]] = job[1]
            stats = client.stats()
            assert int(stats["total-jobs"]) == len(found) >= len(load.acknowledged)
            assert stats["job-timeouts"] == "0"
            client.close()
            # a closed connection gives its jobs back at once, so the next node finds them all again
            wait_for(
                lambda node=node, count=len(found): cluster.stats(node)["current-jobs-ready"] == str(count),
                what="the jobs being given back",
            )
            if node != cluster.nodes[-1]:
                found.clear()
    with capsys.disabled():
        print(f"\n  all killed at once: {len(load.acknowledged)} jobs acknowledged, {len(found)} found afterwards")
    assert set(load.acknowledged) <= set(found.values())


@pytest.mark.load
def test_thirteen_nodes_elect_a_leader_and_serve(tmp_path):
    with ProcessCluster(tmp_path, 13, election_timeout_ms=1000, heartbeat_ms=100) as cluster:
        leader = cluster.leader()
        other = next(node for node in cluster.nodes if node != leader)
        client = cluster.client(other)
        id = client.put(b"hello")
        worker = cluster.client(cluster.nodes[-1])
        assert worker.reserve(5) == (id, b"hello")
        assert worker.delete(id)
        assert client.stats()["nodes"] == "13"


def count_fsyncs(cluster: ProcessCluster, node: int) -> int:
    """Batches in the node's log: each is one write and one fdatasync."""
    batches = 0
    for path in sorted((cluster.directory / "data" / str(node) / "log").glob("*.log")):
        data = path.read_bytes()
        segment_id = bytes.fromhex(path.stem.split("-")[1])
        offset = records.SEGMENT_HEADER_BYTES
        while (header := records._batch_header(data, segment_id, offset)) is not None:
            batches += 1
            offset = header[0]
    return batches


@pytest.mark.load
def test_one_fsync_of_the_leader_serves_many_puts(tmp_path, capsys):
    with ProcessCluster(tmp_path, 3) as cluster:
        for _ in range(3):
            leader = cluster.leader()
            puts, fsyncs = puts_and_fsyncs(cluster, leader)
            if cluster.leader() == leader:
                break  # else the lead changed while it was measured
        else:
            raise AssertionError("the lead changed in each of three measurements")
    with capsys.disabled():
        print(f"\n  64 closed-loop connections on three nodes: {puts} puts, {fsyncs} fsyncs of the leader, {puts / fsyncs:.1f} puts each")
    assert puts / fsyncs >= 4


def puts_and_fsyncs(cluster: ProcessCluster, leader: int) -> tuple[int, int]:
    """Four seconds of puts by 64 clients, and what they cost the leader."""
    before = count_fsyncs(cluster, leader)
    stop = threading.Event()
    counts = []

    def produce(node: int) -> None:
        client, count = cluster.client(node), 0
        while not stop.is_set():
            client.put(b"x" * 200)
            count += 1
        counts.append(count)

    threads = [threading.Thread(target=produce, args=(cluster.nodes[number % 3],)) for number in range(64)]
    for thread in threads:
        thread.start()
    time.sleep(4)  # of load
    stop.set()
    for thread in threads:
        thread.join(timeout=30)
    assert len(counts) == 64
    return sum(counts), count_fsyncs(cluster, leader) - before


def test_without_a_quorum_writes_wait_and_stats_answer(tmp_path):
    with ProcessCluster(tmp_path, 3) as cluster:
        leader = cluster.leader()
        others = [node for node in cluster.nodes if node != leader]
        client = cluster.client(leader)
        client.put(b"before")
        for node in others:
            cluster.kill(node)
        client.send(b"put 0 0 60 5\r\nafter\r\n")
        wait_for(lambda: cluster.stats(leader)["role"] != "leader", what="the leader stepping down")
        asked = time.monotonic()
        stats = cluster.stats(leader)
        assert stats["leader"] == "0"
        assert time.monotonic() - asked < 1
        for node in others:
            cluster.start(node)
        assert client.line() == b"INSERTED 2"
        assert client.stats()["current-jobs-ready"] == "2"


def test_a_close_gives_back_and_reservations_survive_a_new_leader(tmp_path):
    with ProcessCluster(tmp_path, 3) as cluster:
        leader = cluster.leader()
        one, two = (node for node in cluster.nodes if node != leader)
        producer, holder, waiter = cluster.client(one), cluster.client(one), cluster.client(two)
        id = producer.put(b"kept")
        assert holder.reserve(5) == (id, b"kept")
        cluster.kill(leader)
        cluster.leader()
        assert waiter.reserve(0) is None
        asked = time.monotonic()
        waiter.send(b"reserve\r\n")
        holder.close()
        assert waiter.line() == b"RESERVED %d 4" % id
        assert time.monotonic() - asked < 2


def test_sigterm_ends_a_node_within_two_seconds_in_any_state(tmp_path):
    with ProcessCluster(tmp_path, 3) as cluster:
        leader = cluster.leader()
        follower = next(node for node in cluster.nodes if node != leader)
        client = cluster.client(leader)
        client.put(b"x")
        times = [cluster.running.pop(follower).stop(), cluster.running.pop(leader).stop()]
        (last,) = cluster.running
        wait_for(lambda: cluster.stats(last)["leader"] == "0", what="the last node noticing")
        waiting = cluster.client(last)
        waiting.send(b"put 0 0 60 1\r\nx\r\n")
        times.append(cluster.running.pop(last).stop())
        assert max(times) < 2, times
        try:
            waiting.line()
            raise AssertionError("a put without a quorum was answered")
        except Closed:
            pass
        for node in cluster.nodes:
            cluster.start(node)
        cluster.leader()
        assert isinstance(cluster.client(last), LineClient)
        # stats answer from what this node has applied so far
        wait_for(lambda: int(cluster.stats(last)["total-jobs"]) >= 1, what="the acknowledged job")

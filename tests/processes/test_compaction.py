"""Real nodes whose logs are compacted: the forked copy, the disk, a restart, and a node that was away for too long."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

from raftd.bench.capacity import disk_of
from raftd.bench.local import LocalError, wait_for
from tests.processes.harness import LineClient, ProcessCluster

BOUND = 1 << 20


def put_many(client: LineClient, count: int, size: int) -> list[int]:
    """Pipelined, so many at a time as the listener takes."""
    ids = []
    for start in range(0, count, 50):
        bodies = [b"%d " % number + b"x" * size for number in range(start, min(count, start + 50))]
        client.send(b"".join(b"put 0 0 60 %d\r\n%b\r\n" % (len(body), body) for body in bodies))
        ids += [int(client.line().split()[1]) for _ in bodies]
    return ids


def delete_many(client: LineClient, ids: list[int]) -> None:
    for start in range(0, len(ids), 50):
        some = ids[start : start + 50]
        client.send(b"".join(b"delete %d\r\n" % id for id in some))
        assert {client.line() for _ in some} == {b"DELETED"}


def log_of(cluster: ProcessCluster, node: int) -> str:
    return cluster.running[node].log.read_text()


def test_the_disk_stays_bounded_and_a_restart_begins_with_a_snapshot(tmp_path, capsys):
    with ProcessCluster(tmp_path, 1, snapshot_log_bytes=BOUND) as cluster:
        client = cluster.client(1)
        kept = put_many(client, 20, 1_000)
        largest = 0
        for _ in range(20):
            delete_many(client, put_many(client, 100, 10_000))
            largest = max(largest, disk_of(tmp_path / "data"))
        # What comes while a snapshot is written comes on top of the bound: so look at it when little comes.
        wait_for(lambda: client.delete(client.put(b"")) and disk_of(tmp_path / "data") < 6 * BOUND, what="a small data directory")
        client.close()
        cluster.kill(1)
        cluster.start(1)
        again = cluster.client(1)
        again.put(b"one more")  # and all before it is there again
        stats = again.stats()
        assert stats["current-jobs-ready"] == "21"
        assert int(stats["total-jobs"]) > 2_020
        found = [again.reserve(0)[0] for _ in kept]
        assert found == kept
        assert "a snapshot holds the state" in log_of(cluster, 1)
    with capsys.disabled():
        print(f"\n  20 MB of jobs put and deleted: the data directory had {largest / 1e6:.1f} MB at most")


def test_a_node_that_was_away_for_too_long_catches_up_by_a_snapshot(tmp_path):
    with ProcessCluster(tmp_path, 3, snapshot_log_bytes=BOUND) as cluster:
        away = next(node for node in cluster.nodes if node != cluster.leader())
        first = put_many(cluster.client(away), 10, 100)
        cluster.kill(away)
        client = cluster.client(cluster.leader())
        more = put_many(client, 300, 10_000)
        delete_many(client, put_many(client, 300, 10_000))
        wait_for(lambda: log_of(cluster, cluster.leader()).count("a snapshot of the state at entry") >= 3, what="snapshots")
        cluster.start(away)
        applied = int(client.stats()["applied-index"])
        wait_for(lambda: int((cluster.stats(away) or {}).get("applied-index", 0)) >= applied, what="the node catching up")
        assert "has come from node" in log_of(cluster, away)
        there = cluster.client(away)
        stats = there.stats()
        assert (stats["current-jobs-ready"], stats["total-jobs"]) == (str(len(first) + len(more)), "610")
        assert there.reserve(0)[0] == first[0]
        # and it can go on alone from what it has got
        there.close()
        for node in cluster.nodes:
            cluster.kill(node)
        cluster.start(away)
        cluster.start(next(node for node in cluster.nodes if node != away))
        assert cluster.client(away).reserve(5)[0] == first[0]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_killed_copy_costs_a_warning_and_an_orphan_ends(tmp_path):
    with ProcessCluster(tmp_path, 1, snapshot_log_bytes=BOUND, max_job_size=4 << 20) as cluster:
        node = cluster.running[1]
        client = cluster.client(1)
        put_many(client, 20, 1 << 20)  # twenty megabytes take a while to write

        def next_copy() -> int:
            put_many(client, 2, 1 << 20)
            return next(iter(children(node.process.pid)), 0)

        def a_warning_follows() -> bool:
            with suppress(ProcessLookupError):  # it was just done
                os.kill(wait_for(next_copy, what="a copy of the process"), signal.SIGKILL)
            with suppress(LocalError):  # after a failure ten seconds pass until the next copy
                return wait_for(lambda: "no snapshot was written" in log_of(cluster, 1), timeout_s=2)
            return False

        wait_for(a_warning_follows, what="a warning")
        assert client.put(b"on") > 20
        child = wait_for(next_copy, what="another copy")
        cluster.kill(1)
        wait_for(lambda: not Path(f"/proc/{child}").exists() or _is_zombie(child), what="the copy's end")
        cluster.start(1)
        last = cluster.client(1).put(b"after that")  # and all before it is there again
        assert int(cluster.stats(1)["current-jobs-ready"]) == last


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True

"""The lead is handed over under load: by an operator, and by a leader that is told to stop."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from raftd.bench.local import wait_for
from tests.line_workload import LineWorkload
from tests.processes.harness import ProcessCluster

RAFTD = str(Path(sys.executable).parent / "raftd")


def raftd(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([RAFTD, *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.load
def test_the_lead_is_transferred_also_at_a_stop(tmp_path, capsys):
    gaps, stops = [], []
    with ProcessCluster(tmp_path, 3) as cluster:
        load = LineWorkload([cluster.line_address(node) for node in cluster.nodes], producers=4, workers=4)
        cluster.leader()
        load.start()
        for _ in range(2):
            leader = cluster.leader()
            target = next(node for node in cluster.nodes if node != leader)
            time.sleep(0.5)  # of load
            started = time.monotonic()
            said = raftd("leader", "transfer", str(target), "--config", str(cluster.config))
            assert (said.returncode, said.stdout) == (0, f"node {target} leads now\n"), said.stderr
            wait_for(lambda target=target: cluster.find_leader() == target, what="the new leader")
            time.sleep(0.5)  # of load
            gaps.append(load.longest_gap_s(started, time.monotonic()))
        leader = cluster.leader()
        others = [node for node in cluster.nodes if node != leader]
        started = time.monotonic()
        stops.append(cluster.running.pop(leader).stop())
        assert "hands the lead over" in "".join(cluster.log(node) for node in others)
        wait_for(lambda: cluster.find_leader() in others, what="a new leader")
        time.sleep(0.5)  # of load
        gaps.append(load.longest_gap_s(started, time.monotonic()))
        load.finish()
        missing = load.missing()
    with capsys.disabled():
        print(
            f"\n  lead handed over twice and at a stop ({stops[0]:.2f} s): {len(load.acknowledged)} jobs acknowledged, {len(missing)} lost, "
            f"longest put gaps {', '.join(f'{gap * 1000:.0f} ms' for gap in gaps)}"
        )
    assert not missing
    assert load.doubled() == 0
    assert stops[0] < 2


def test_a_transfer_that_cannot_be_done_says_why(tmp_path):
    with ProcessCluster(tmp_path, 3) as cluster:
        leader = cluster.leader()
        dead, asked = (node for node in cluster.nodes if node != leader)
        wait_for(lambda: (stats := cluster.stats(asked)) and stats["leader"] == str(leader), what="the node knowing its leader")
        at = "127.0.0.1:{}".format(cluster.addresses[asked]["client"])
        for target, reason in ((leader, "leads already"), (9, "is no voter of this cluster: 1, 2, 3 are")):
            said = raftd("leader", "transfer", str(target), "--endpoint", at)
            assert (said.returncode, reason in said.stderr) == (1, True), said
        cluster.kill(dead)
        wait_for(
            lambda: "has not been heard" in raftd("leader", "transfer", str(dead), "--endpoint", at).stderr,
            what="a dead node being noticed",
        )
        assert cluster.leader() == leader
        said = raftd("leader", "transfer", "1", "--endpoint", "127.0.0.1:{}".format(cluster.addresses[dead]["client"]))
        assert (said.returncode, "no answer" in said.stderr) == (1, True)
        said = raftd("leader", "transfer", "1", "--endpoint", "127.0.0.1:{}".format(cluster.addresses[leader]["line"]), "--timeout", "2")
        assert said.returncode == 1

"""A running cluster grows, loses a disk, and shrinks, under load; who asks for what cannot be is told why."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raftd.bench.local import LocalError, LocalNode, wait_for
from tests.line_workload import LineWorkload
from tests.processes.harness import ProcessCluster

RAFTD = str(Path(sys.executable).parent / "raftd")


class Growing(ProcessCluster):
    """Addresses for `most` nodes, of which the first three are the cluster; the others are added."""

    def __init__(self, directory: Path, most: int, **settings: object) -> None:
        super().__init__(directory, most, **settings)
        self.everybody, self.nodes = self.nodes, self.nodes[:3]
        for node in self.everybody:
            known = {**{other: self.addresses[other] for other in self.nodes}, node: self.addresses[node]}
            self.write_config(self.config_of(node), known)

    def config_of(self, node: int) -> Path:
        """A new node's file has the members of then and itself; the first three have never heard of it."""
        return self.directory / f"{node}.yaml"

    def raftd(self, *arguments: str, at: int = 1) -> subprocess.CompletedProcess[str]:
        listener = "127.0.0.1:{}".format(self.addresses[at]["client"])
        return subprocess.run([RAFTD, *arguments, "--endpoint", listener], capture_output=True, text=True, timeout=60, check=False)

    def members(self, at: int = 1) -> dict[int, str]:
        said = self.raftd("member", "list", "--json", at=at)
        if said.returncode:
            return {}
        return {row["node"]: row["as"] for row in json.loads(said.stdout)["members"]}

    def do(self, verb: str, node: int, *arguments: str, at: int = 1) -> None:
        """`raftd member add` or `remove`, again and again until it is done: another change may be under way, or its leader may have gone.
        If an answer was lost, the members show whether it was done."""
        said: list[str] = []

        def done() -> bool:
            asked = self.raftd("member", verb, str(node), *arguments, at=at)
            said.append(asked.stderr)
            if not asked.returncode:
                return True
            members = self.members(at)
            return bool(members) and (node in members) == (verb == "add")

        try:
            wait_for(done, what=f"member {verb} {node}")
        except LocalError as late:
            raise AssertionError(f"{late}; the last answer: {said[-1]}") from None

    def add(self, node: int, at: int = 1) -> None:
        place = self.addresses[node]
        known = {other: self.addresses[other] for other in (*self.members(at), node)}  # whoever leads must be among them
        self.write_config(self.config_of(node), known)
        self.do("add", node, "--host", "127.0.0.1", "--peer", str(place["peer"]), "--client", str(place["client"]), at=at)
        self.start(node)
        wait_for(lambda: self.members(at).get(node) == "voter", what=f"node {node} becoming a voter")
        self.nodes.append(node)

    def remove(self, node: int, at: int) -> None:
        self.do("remove", node, at=at)
        self.nodes.remove(node)
        gone = self.running.pop(node, None)
        if gone is not None:
            assert gone.process.wait(timeout=20) == 0


@pytest.mark.load
def test_a_cluster_grows_loses_a_disk_and_shrinks_under_load(tmp_path, capsys):
    with Growing(tmp_path, 6) as cluster:
        cluster.leader()
        load = LineWorkload([cluster.line_address(node) for node in (1, 2)], producers=4, workers=4)
        load.start()
        started = time.monotonic()
        for node in (4, 5):
            cluster.add(node)
        assert cluster.members(at=5) == dict.fromkeys((1, 2, 3, 4, 5), "voter")
        # the disk of node 3 is lost: it comes back as node 6
        cluster.kill(3)
        shutil.rmtree(tmp_path / "data" / "3")
        cluster.remove(3, at=1)
        cluster.add(6)
        assert set(cluster.members()) == {1, 2, 4, 5, 6}
        for target in (4 if cluster.leader() != 4 else 1, 5):
            assert cluster.raftd("leader", "transfer", str(target)).returncode == 0
            wait_for(lambda target=target: cluster.find_leader() == target, what="the new leader")
        cluster.remove(5, at=1)  # which leads
        cluster.leader()
        cluster.remove(4, at=2)
        assert cluster.members(at=6) == dict.fromkeys((1, 2, 6), "voter")
        cluster.leader()
        gap = load.longest_gap_s(started, time.monotonic())
        load.finish()
        missing = load.missing()
    with capsys.disabled():
        print(
            f"\n  3 nodes became 5, one was replaced, 3 again, the lead went on 3 times: {len(load.acknowledged)} jobs acknowledged, "
            f"{len(missing)} lost, longest put gap {gap * 1000:.0f} ms"
        )
    assert not missing
    assert load.doubled() == 0
    assert len(load.acknowledged) > 100


def test_impossible_changes_are_refused_and_old_files_work(tmp_path):
    with Growing(tmp_path, 4) as cluster:
        cluster.leader()
        place = ("--host", "127.0.0.1", "--peer", str(cluster.addresses[4]["peer"]))
        for arguments, reason in (
            (("add", "2", *place), "node 2 is a member already"),
            (("add", "9", "--host", "127.0.0.1", "--peer", str(cluster.addresses[2]["peer"])), "node 2 has the address"),
            (("promote", "4"), "node 4 is no member: add it first"),
            (("remove", "4"), "node 4 is no member: 1, 2, 3 are"),
        ):
            said = cluster.raftd("member", *arguments, at=2)
            assert (said.returncode, reason in said.stderr) == (1, True), said
        cluster.do("add", 4, *place, at=3)
        said = cluster.raftd("member", "promote", "4", at=2)
        assert (said.returncode, "node 4 lags" in said.stderr) == (1, True), said
        cluster.start(4)
        wait_for(lambda: cluster.members(4).get(4) == "voter", what="node 4 becoming a voter")
        # a node restarted with its old file, which has three nodes, finds all four
        cluster.kill(1)
        cluster.start(1)
        wait_for(lambda: set(cluster.members(1)) == {1, 2, 3, 4}, what="node 1 knowing all members")
        cluster.do("remove", 4, at=1)
        assert cluster.running.pop(4).process.wait(timeout=20) == 0
        assert "was removed from the cluster" in cluster.log(4)
        said = cluster.raftd("member", "add", "4", *place, at=1)
        assert (said.returncode, "ids are never used again" in said.stderr) == (1, True), said
        # who was removed is not let in again
        cluster.running[4] = LocalNode(cluster.config_of(4), 4, tmp_path / "4.log")
        wait_for(lambda: "its id is not used again" in cluster.log(2) + cluster.log(1), what="the removed node being refused")


@pytest.mark.parametrize("arguments", [("add", "0", "--host", "h", "--peer", "1"), ("add", "4", "--host", "h", "--peer", "70000")])
def test_options_that_make_no_sense_end_with_2(arguments):
    said = subprocess.run([RAFTD, "member", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode == 2

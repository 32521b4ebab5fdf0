"""Real nodes of which one has another wall clock: its log, its metrics and `raftd status` say so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from raftd.bench.local import LocalNode, wait_for
from tests.processes.harness import ProcessCluster
from tests.processes.test_http import metrics

RAFTD = str(Path(sys.executable).parent / "raftd")
#: What Python runs before all else.
AHEAD = "import time; real = time.time; time.time = lambda: real() + 90"


class LateCluster(ProcessCluster):
    """Node 2 has a wall clock that is 90 s ahead."""

    def start(self, node: int) -> None:
        if node != 2:
            super().start(node)
            return
        (self.directory / "ahead").mkdir(exist_ok=True)
        (self.directory / "ahead" / "sitecustomize.py").write_text(AHEAD)
        paths = os.pathsep.join([str(self.directory / "ahead"), os.environ["PYTHONPATH"]])
        environment = {**os.environ, "PYTHONPATH": paths}
        self.running[node] = LocalNode(self.config_of(node), node, self.directory / f"{node}.log", env=environment)


def test_a_node_whose_wall_clock_is_off_is_reported(tmp_path):
    with LateCluster(tmp_path, 2) as cluster:
        leader = cluster.leader()
        follower = 3 - leader
        where = "ahead of" if follower == 2 else "behind"
        text = rf"this node's wall clock is (90\.|89\.9)\d* s {where} that of node {leader}, which leads"
        wait_for(lambda: re.search(text, cluster.log(follower)), what="a warning")
        ahead_s = metrics(cluster, follower)["raftd_clock_ahead_seconds", ()]
        assert abs(abs(ahead_s) - 90) < 0.5
        assert (ahead_s > 0) == (follower == 2)
        wait_for(lambda: metrics(cluster, leader).get(("raftd_clock_ahead_seconds", ())) == 0, what="the leader being its own measure")
        status = subprocess.run([RAFTD, "status", "--config", str(cluster.config)], capture_output=True, text=True, check=True)
        assert re.search(rf"the wall clock of node {follower} is [89]\d\.\d s {where} the leader's", " ".join(status.stdout.split()))
        assert not re.search(text, cluster.log(leader))

"""How long nobody's put is answered when the leader is gone."""

from __future__ import annotations

import re

import pytest

from raftd.bench.failover import WAYS, measure
from raftd.bench.servers import raftd_server
from tests.cli.test_commands import run


@pytest.mark.slow
def test_puts_go_on_after_every_way_to_lose_the_lead(tmp_path):
    said: list[str] = []
    with raftd_server(tmp_path, 3) as server:
        for way in WAYS:
            first = server.processes()[0]
            (gap_s,) = measure(server, way, 1, said.append)
            assert gap_s > 0
            assert server.processes()[0] != first, way
        server.check()
    assert [line.split(",")[2].strip() for line in said] == list(WAYS)


@pytest.mark.slow
def test_the_command_isolates_the_leader_too(tmp_path):
    """Simulated partitions once passed real nodes by: they knew each other's own addresses from the log."""
    done = run("bench", "failover", "--times", "1", "--data", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    gaps = dict(re.findall(r"raftd, 3 nodes, ([a-z ]+), 1 of 1: ([\d,]+) ms", done.stdout))
    assert list(gaps) == [*WAYS, "isolated"]
    assert int(gaps["isolated"].replace(",", "")) > 150  # without a leader for an election timeout after its last heartbeat

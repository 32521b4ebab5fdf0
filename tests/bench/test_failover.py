"""How long nobody's put is answered when the leader is gone."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from raftd.bench.failover import WAYS, measure
from raftd.bench.servers import raftd_server
from tests.cli.test_commands import run


@pytest.mark.load
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


_CLOSED_WHERE = """
import sys
from pathlib import Path
from twisted.python.threadable import isInIOThread
from raftd.bench import failover, proxy

close = proxy.Proxy.close
proxy.Proxy.close = lambda self: (print("in the reactor's thread:", isInIOThread()), close(self))
with failover._proxied(Path(sys.argv[1])):
    pass
"""


@pytest.mark.slow
def test_the_proxy_is_closed_in_the_thread_of_its_reactor(tmp_path):
    """In another, a connection could end there while it was being aborted here."""
    done = subprocess.run([sys.executable, "-c", _CLOSED_WHERE, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "in the reactor's thread: True\n", "")


@pytest.mark.load
def test_the_command_isolates_the_leader_too(tmp_path):
    """Simulated partitions once passed real nodes by: they knew each other's own addresses from the log."""
    done = run("bench", "failover", "--times", "1", "--data", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    gaps = dict(re.findall(r"raftd, 3 nodes, ([a-z ]+), 1 of 1: ([\d,]+) ms", done.stdout))
    assert list(gaps) == [*WAYS, "isolated"]
    assert int(gaps["isolated"].replace(",", "")) > 150  # without a leader for an election timeout after its last heartbeat

"""Clients as nobody wants them, on the leader of three real nodes: it goes on leading, and serves the others.

On a machine that gives the nodes no processor an election is nobody's fault, so each abuse may be tried three times;
one that really costs the lead costs it every time.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import yaml

from raftd.bench.load import Result, Spec
from raftd.bench.local import LocalNode, free_ports, wait_for
from raftd.server.limiter import RESERVED_DESCRIPTORS
from tests.processes.harness import Closed, LineClient, ProcessCluster

ROOT = Path(__file__).parent.parent.parent
ATTEMPTS = 3
#: The abuse, how many connections, for how many seconds, and how many megabytes the leader may grow by meanwhile. Puts
#: that were acknowledged stay, so those have no bound here.
ABUSES = {
    "garbage": (64, 3.0, 64),
    "nonsense": (500, 1.0, 128),
    "deletes": (500, 1.0, 128),
    "puts-deaf": (500, 1.0, None),
    "big_puts": (200, 1.0, None),
    "oversized": (500, 1.0, 128),
    "statistics": (500, 1.0, 128),
    "statistics-deaf": (500, 1.0, 128),
    "dribble": (500, 1.0, 64),
}


def abuse(kind: str, port: int, count: int, seconds: float) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", "tests.processes.abuse", kind, str(port), str(count), str(seconds)]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def memory_mb(node: LocalNode, which: str = "VmRSS") -> float:
    """Of the process: VmRSS what it has now, VmHWM the most that it ever had."""
    status = Path(f"/proc/{node.process.pid}/status").read_text()
    return int(status.split(f"{which}:")[1].split()[0]) / 1024


def lead(cluster: ProcessCluster, node: int) -> tuple[str, str]:
    """The node's role and term."""
    stats = cluster.stats(node)
    assert stats is not None
    return stats["role"], stats["term"]


def show(capsys, text: str) -> None:
    with capsys.disabled():
        print(f"\n  {text}")


def put_patiently(client: LineClient, body: bytes) -> int:
    """A node that others have filled says so, and means that nothing was put: a client tries again."""
    for _ in range(10_000):
        client.send(b"put 0 0 60 %d\r\n%b\r\n" % (len(body), body))
        answer = client.line()
        if answer != b"OUT_OF_MEMORY":
            break
    word, _, id = answer.partition(b" ")
    assert word == b"INSERTED", answer
    return int(id)


@pytest.mark.load
@pytest.mark.parametrize("kind", ABUSES)
def test_no_abuse_costs_the_lead(tmp_path, capsys, kind):
    count, seconds, most_mb = ABUSES[kind]
    for attempt in range(ATTEMPTS):
        (tmp_path / str(attempt)).mkdir()
        with ProcessCluster(tmp_path / str(attempt), 3) as cluster:
            leader = cluster.leader()
            wait_for(lambda cluster=cluster, leader=leader: lead(cluster, leader)[0] == "leader", what="the lead")
            before, at_first = memory_mb(cluster.running[leader]), lead(cluster, leader)
            good = cluster.client(leader)
            bad = abuse(kind, cluster.addresses[leader]["line"], count, seconds)
            served = 0
            while bad.poll() is None:
                good.ask(b"use good")
                assert good.reserve_and_delete(put_patiently(good, b"x"))
                served += 1
            assert bad.returncode == 0
            seen = json.loads(bad.communicate()[0])
            at_last = lead(cluster, leader)
            grown = memory_mb(cluster.running[leader], "VmHWM") - before
        show(capsys, f"{kind}, {count} connections, {seconds:g} s: {seen}; grown by {grown:.0f} MB; a good client had {served} cycles")
        assert most_mb is None or grown < most_mb
        if at_last == at_first:
            break
    else:
        raise AssertionError(f"{kind} cost the lead each of {ATTEMPTS} times")
    assert served > 0


@pytest.mark.load
def test_two_thousand_idle_connections_and_64_busy_ones(tmp_path, capsys):
    idle, busy = 2_000, 64
    for attempt in range(ATTEMPTS):
        (tmp_path / str(attempt)).mkdir()
        with ProcessCluster(tmp_path / str(attempt), 3) as cluster:
            leader = cluster.leader()
            wait_for(lambda cluster=cluster, leader=leader: lead(cluster, leader)[0] == "leader", what="the lead")
            before, at_first = memory_mb(cluster.running[leader]), lead(cluster, leader)
            crowd = abuse("idle", cluster.addresses[leader]["line"], idle, 0)
            assert json.loads(crowd.stdout.readline()) == {"answered": idle}
            with_idle = memory_mb(cluster.running[leader])
            spec = Spec([cluster.line_address(leader)], busy, 1, 200, "cycle", 0.5, 5.0)
            load = subprocess.run(
                [sys.executable, "-m", "raftd.bench.load", msgspec.json.encode(spec).decode()],
                stdout=subprocess.PIPE,
                check=True,
                timeout=60,
            )
            result = msgspec.json.decode(load.stdout, type=Result)
            stats = cluster.stats(leader)
            at_last = lead(cluster, leader)
            crowd.communicate(timeout=30)
        cycles = sum(result.latencies.values()) / result.seconds
        show(
            capsys,
            f"{idle} idle connections: {before:.0f} MB before, {with_idle:.0f} MB with them, {1024 * (with_idle - before) / idle:.1f} KB each; "
            f"{busy} busy ones beside them: {cycles:,.0f} cycles/s",
        )
        assert int(stats["current-connections"]) >= idle
        assert (with_idle - before) * 1024 / idle < 64
        if at_last == at_first:
            break
    else:
        raise AssertionError(f"the lead was lost each of {ATTEMPTS} times")
    assert cycles > 0


def test_clients_beyond_the_descriptors_are_turned_away(tmp_path):
    most = 40
    line, peer = free_ports(2)
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({"cluster": "t", "data": "data", "nodes": {1: {"host": "127.0.0.1", "line": line, "peer": peer}}}))
    limit = most + RESERVED_DESCRIPTORS
    node = LocalNode(config, 1, tmp_path / "log", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)))
    try:
        wait_for(lambda: "leads now" in node.log.read_text(), what="the node serving")
        clients = [LineClient(line) for _ in range(most)]
        for client in clients:
            client.put(b"x")
        for _ in range(20):
            with pytest.raises(Closed):
                LineClient(line).ask(b"list-tube-used")
        # strangers at the peer listener take nobody's place, and no descriptor that the log will need
        strangers = [LineClient(peer) for _ in range(200)]
        assert clients[0].put(b"y" * 60_000) == most + 1
        clients.pop().close()
        assert wait_for(lambda: _is_served(line), what="a place that has become free")
        for client in clients + strangers:
            client.close()
        assert node.log.read_text().count("more are turned away") == 1
        assert "Traceback" not in node.log.read_text()
    finally:
        node.kill()


def _is_served(port: int) -> bool:
    try:
        client = LineClient(port)
        served = client.ask(b"list-tube-used") == b"USING default"
        client.close()
    except Closed:
        return False
    return served

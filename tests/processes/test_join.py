"""A new node that is given one address of the cluster, and finds the rest; and one that takes the place of another."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from raftd.bench.local import free_ports, wait_for
from tests.cli.test_commands import run
from tests.processes.harness import TWISTD, LineClient, ProcessCluster


def options(cluster: ProcessCluster, node: int, seed: int, ports: list[int], *more: str) -> list[str]:
    line, client, peer = map(str, ports)
    (http,) = map(str, free_ports(1))
    listener = ":".join(map(str, cluster.address(seed, "client")))
    where = ["--data", str(cluster.directory / "joined"), "--line", line, "--client", client, "--peer", peer, "--http", http]
    return [*TWISTD, "-n", "--pidfile=", "raftd", "--join", listener, "--node", str(node), *where, *more]


@contextmanager
def joining(cluster: ProcessCluster, arguments: list[str]) -> Iterator[subprocess.Popen]:
    with (cluster.directory / "joined.log").open("ab") as said:
        process = subprocess.Popen(arguments, stdout=said, stderr=subprocess.STDOUT, cwd=cluster.directory)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def members(cluster: ProcessCluster) -> dict[int, str]:
    listed = json.loads(run("member", "list", "--json", "--config", str(cluster.config)).stdout)
    return {row["node"]: row["as"] for row in listed["members"]}


def serves(port: int, ready: int) -> bool:
    client = LineClient(port)
    stats = client.stats()
    client.close()
    return int(stats["current-jobs-ready"]) == ready


def wait_until_voter(cluster: ProcessCluster, node: int) -> None:
    wait_for(lambda: members(cluster).get(node) == "voter", what=f"node {node} voting")


def test_a_node_joins_by_one_address_and_starts_again_without_it(tmp_path: Path):
    with ProcessCluster(tmp_path, 3) as cluster:
        cluster.leader()
        client = cluster.client(1)
        client.put(b"before it came")
        ports = free_ports(3)
        arguments = options(cluster, 7, 2, ports)
        with joining(cluster, arguments):
            wait_until_voter(cluster, 7)
            wait_for(lambda: serves(ports[0], 1), what="the new node having the job")
        cluster.kill(2)  # whom it asked
        with joining(cluster, arguments):
            client.put(b"while it was away")
            wait_for(lambda: serves(ports[0], 2), what="the new node having both")
        wrong = subprocess.run(options(cluster, 3, 1, free_ports(3)), capture_output=True, text=True, timeout=30, cwd=tmp_path, check=False)
        assert wrong.returncode == 1
        assert "node 3 is a member already, at 127.0.0.1:" in wrong.stderr
        assert "Traceback" not in wrong.stderr
        none = subprocess.run(options(cluster, 8, 2, free_ports(3)), capture_output=True, text=True, timeout=30, cwd=tmp_path, check=False)
        assert none.returncode == 1
        assert none.stderr.startswith("raftd: --join 127.0.0.1:")
        assert none.stderr.endswith("no answer: Connection refused\n")
        assert not (tmp_path / "joined/8").exists()


def test_a_cluster_of_one_grows_by_joining(tmp_path: Path):
    with ProcessCluster(tmp_path, 1) as cluster:
        cluster.leader()
        cluster.client(1).put(b"alone")
        ports = free_ports(3)
        with joining(cluster, options(cluster, 2, 1, ports)):
            wait_until_voter(cluster, 2)
            wait_for(lambda: serves(ports[0], 1), what="the second node having the job")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--join", "nowhere", "--node", "4"], "--join nowhere: expected HOST:PORT, the client listener of a member"),
        (["--join", "127.0.0.1:1"], "--join needs --node ID: an id that no node of the cluster ever had, from 1 on"),
        (["--join", "127.0.0.1:1", "--node", "x"], "--join needs --node ID: an id that no node of the cluster ever had, from 1 on"),
        (["--join", "127.0.0.1:1", "--node", "4", "--line", "many"], "--line many: expected a port"),
        (["--join", "127.0.0.1:1", "--node", "4", "--line", "11301"], "127.0.0.1:11301 is nodes.4.line already"),
        (["--line", "11300"], "--line goes with --join and without --config; a configuration file says where its nodes are"),
    ],
)
def test_options_that_make_no_sense_are_one_line(tmp_path: Path, arguments: list[str], said: str):
    started = subprocess.run([*TWISTD, "-n", "--pidfile=", "raftd", *arguments], capture_output=True, text=True, timeout=30, cwd=tmp_path)
    assert started.returncode == 1
    assert said in started.stderr
    assert len(started.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_node_whose_disk_is_lost_is_replaced_by_one_command(tmp_path: Path):
    with ProcessCluster(tmp_path, 3) as cluster:
        cluster.leader()
        client = cluster.client(1)
        for number in range(10):
            client.put(b"job %d" % number)
        cluster.kill(3)
        wait_for(lambda: all((stats := cluster.stats(node)) and stats["leader"] in ("1", "2") for node in (1, 2)), what="a leader of both")
        ports = free_ports(3)
        place = ("--host", "127.0.0.1", "--peer", str(ports[2]), "--client", str(ports[1]), "--config", str(cluster.config))
        config = ("--config", str(cluster.config))
        for arguments, why in (
            (("9", "4", *place), "node 9 is no member"),
            (("3", "3", *place), "node 3 was used before"),
            (("3", "2", *place), "node 2 is a member already, at another place"),
            (("3", "2", *config), "node 2 votes already: to take node 3 out, `raftd member remove 3`"),
            (("3", "4", *config), "node 4 is no member yet: start it with --join"),
        ):
            refused = run("member", "replace", *arguments)
            assert (refused.returncode, why in refused.stderr) == (1, True), refused.stderr
        assert members(cluster) == {1: "voter", 2: "voter", 3: "voter"}
        late = run("member", "replace", "3", "4", *place, "--wait", "1")
        assert late.returncode == 1
        assert "has not caught up within 1 s: does it run? Node 3 is still a member; ask again" in late.stderr
        with joining(cluster, options(cluster, 4, 1, ports)):
            replaced = run("member", "replace", "3", "4", *place)
            assert (replaced.returncode, replaced.stderr) == (0, "")
            assert replaced.stdout.splitlines() == [
                "node 4 is a member; waiting until it has caught up and votes",
                "node 4 has caught up, and votes",
                "node 3 is no member any more",
            ]
            assert members(cluster) == {1: "voter", 2: "voter", 4: "voter"}
            cluster.kill(2)
            assert client.put(b"with the new one") == 11


def started_with(arguments: list[str], tmp_path: Path) -> subprocess.CompletedProcess:
    return subprocess.run(arguments, capture_output=True, text=True, timeout=30, cwd=tmp_path, check=False)


def test_join_finds_what_prevents_a_start_first(tmp_path: Path):
    """A review: each left a learner that never ran, and burnt an id."""
    with ProcessCluster(tmp_path, 1) as cluster:
        cluster.leader()
        ports = free_ports(3)
        taken = started_with(options(cluster, 4, 1, [cluster.addresses[1]["line"], *ports[1:]]), tmp_path)
        assert (taken.returncode, "this node cannot listen on 127.0.0.1:" in taken.stderr) == (1, True)
        (tmp_path / "joined").write_text("in the way")
        blocked = started_with(options(cluster, 4, 1, ports), tmp_path)
        assert (blocked.returncode, "a data directory cannot be made there" in blocked.stderr) == (1, True)
        (tmp_path / "joined").unlink()
        nowhere = started_with(options(cluster, 4, 1, ports, "--host", "no.such.host.invalid", "--insecure"), tmp_path)
        assert (nowhere.returncode, "cannot listen on no.such.host.invalid:" in nowhere.stderr) == (1, True)
        plain = started_with(options(cluster, 4, 1, ports, "--host", "10.0.0.1"), tmp_path)
        assert (plain.returncode, "without TLS whoever reaches it may do everything" in plain.stderr) == (1, True)
        anywhere = started_with(options(cluster, 4, 1, ports, "--host", "0.0.0.0", "--insecure"), tmp_path)
        assert (anywhere.returncode, "is no address at which the others could find this node" in anywhere.stderr) == (1, True)
        assert members(cluster) == {1: "voter"}


def test_a_directory_of_another_cluster_does_not_revive_that(tmp_path: Path):
    """A review: after a restore the old nodes, started with --join as they were told to be, went on as the old cluster."""
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    with ProcessCluster(tmp_path / "old", 1) as old, ProcessCluster(tmp_path / "new", 1) as new:
        old.leader()
        new.leader()
        ports = free_ports(3)
        with joining(old, options(old, 2, 1, ports)):
            wait_until_voter(old, 2)
        arguments = options(new, 2, 1, ports)
        arguments[arguments.index("--data") + 1] = str(tmp_path / "old/joined")
        refused = started_with(arguments, tmp_path)
        assert refused.returncode == 1
        assert "that is another cluster ('test')" in refused.stderr
        assert "move that directory away to join" in refused.stderr
        assert members(new) == {1: "voter"}


def test_a_node_that_hangs_does_not_keep_others_from_being_asked(tmp_path: Path):
    with ProcessCluster(tmp_path, 3) as cluster:
        cluster.leader()
        cluster.running[1].process.send_signal(signal.SIGSTOP)
        try:
            wait_for(lambda: members(cluster) == {1: "voter", 2: "voter", 3: "voter"}, what="an answer")
        finally:
            cluster.running[1].process.send_signal(signal.SIGCONT)


def test_a_line_listener_is_told_from_a_client_listener(tmp_path: Path):
    with ProcessCluster(tmp_path, 1) as cluster:
        cluster.leader()
        asked = run("member", "list", "--endpoint", ":".join(map(str, cluster.line_address(1))))
        assert (asked.returncode, "is that a line listener? The client listener is wanted" in asked.stderr) == (1, True)

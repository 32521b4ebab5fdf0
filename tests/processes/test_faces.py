"""What a user sees of `twistd raftd`: both launch modes, and one clear line when it cannot start."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import greenstalk
import pytest
import yaml

from raftd import config as configuration
from raftd.bench.local import LocalNode, free_ports, wait_for
from tests.processes.harness import TWISTD, Closed, LineClient, ProcessCluster

ROOT = Path(__file__).parent.parent.parent
DEFAULT_DATA = "raftd-data"


def run(*arguments: str, cwd: Path, **more) -> subprocess.CompletedProcess:
    return subprocess.run([*TWISTD, *arguments], cwd=cwd, capture_output=True, text=True, timeout=30, check=False, **more)


def write(path: Path, **changes: object) -> Path:
    line, client, peer = free_ports(3)
    raw = {"cluster": "t", "data": "data", "nodes": {1: {"host": "127.0.0.1", "line": line, "client": client, "peer": peer}}}
    path.write_text(yaml.safe_dump({**raw, **changes}))
    return path


def files_below(path: Path) -> list[str]:
    return sorted(str(found.relative_to(path)) for found in path.rglob("*"))


# -- starting ----------------------------------------------------------------------------------


def test_without_options_it_is_one_node_on_loopback_that_says_where_it_is(tmp_path):
    try:
        LineClient(11300).close()
    except Closed:
        pass
    else:
        pytest.skip("port 11300 is taken on this machine, so the defaults cannot be shown; stop what listens there")
    process = subprocess.Popen([*TWISTD, "-n", "raftd"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_for(lambda: _listens(11300), what="the default port")
        with greenstalk.Client(("127.0.0.1", 11300)) as client:
            id = client.put("hello")
            job = client.reserve(timeout=5)
            assert (job.id, job.body) == (id, "hello")
            client.delete(job)
    finally:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=10)
    (line,) = [line for line in output.splitlines() if "listens on" in line]
    assert "127.0.0.1:11300" in line
    assert str(tmp_path / DEFAULT_DATA / "1") in line
    assert (tmp_path / DEFAULT_DATA / "1" / "vote.a").exists()
    assert "Traceback" not in output


def _listens(port: int) -> bool:
    try:
        LineClient(port).close()
    except Closed:
        return False
    return True


def test_the_daemon_form_starts_serves_and_stops(tmp_path):
    config = write(tmp_path / "one.yaml")
    port = yaml.safe_load(config.read_text())["nodes"][1]["line"]
    started = run("--logfile=node.log", "raftd", "--config", "one.yaml", "--node", "1", cwd=tmp_path)
    assert (started.returncode, started.stderr) == (0, "")
    pid = int((tmp_path / "twistd.pid").read_text())
    try:
        client = wait_for(lambda: _try(port), what="the daemon listening")
        client.put(b"kept")
        assert client.reserve(5)[1] == b"kept"
        # the thread and the relative paths survived the fork
        assert (tmp_path / "data/1/log").is_dir()
    finally:
        os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not (tmp_path / "twistd.pid").exists(), what="the daemon ending")
    assert "Traceback" not in (tmp_path / "node.log").read_text()


def _try(port: int) -> LineClient | None:
    try:
        return LineClient(port)
    except Closed:
        return None


def test_the_configuration_files_that_ship_are_good():
    for name in ("single.yaml", "cluster.yaml"):
        loaded = configuration.load(str(ROOT / "conf" / name))
        assert loaded.data == str(ROOT / "conf" / {"single.yaml": "single-data", "cluster.yaml": "data"}[name])
        assert loaded.max_job_size == 65_535


def test_every_listener_is_named_in_the_start_up_line(tmp_path):
    line, peer, http = free_ports(3)
    write(tmp_path / "c.yaml", nodes={1: {"host": "127.0.0.1", "line": line, "peer": peer, "http": http}})
    node = LocalNode(tmp_path / "c.yaml", 1, tmp_path / "log")
    listeners = f"listens on line 127.0.0.1:{line}, peer 127.0.0.1:{peer}, http 127.0.0.1:{http};"
    try:
        wait_for(lambda: listeners in (tmp_path / "log").read_text(), what="the start-up line")
    finally:
        node.kill()


def test_data_overrides_the_file(tmp_path):
    config = write(tmp_path / "c.yaml")
    port = yaml.safe_load(config.read_text())["nodes"][1]["line"]
    process = subprocess.Popen(
        [*TWISTD, "-n", "--pidfile=", "raftd", "-c", "c.yaml", "--data", "elsewhere"],
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        client = wait_for(lambda: _try(port), what="the line listener")
        client.put(b"x")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=10)
    assert (tmp_path / "elsewhere/1/vote.a").exists()
    assert not (tmp_path / "data").exists()


def test_twistd_lists_it_from_anywhere():
    listed = subprocess.run([*TWISTD, "--help"], cwd="/", capture_output=True, text=True, check=True)
    assert "raftd" in listed.stdout


def test_a_unix_socket_with_the_line_listener_replaces_a_stale_one(tmp_path):
    (peer,) = free_ports(1)
    write(tmp_path / "c.yaml", nodes={1: {"host": "127.0.0.1", "peer": peer, "line_socket": "line.sock"}})
    path = tmp_path / "line.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    node = LocalNode(tmp_path / "c.yaml", 1, tmp_path / "log")
    try:
        wait_for(lambda: "leads now" in (tmp_path / "log").read_text(), what="the node serving")
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(path))
            client.sendall(b"put 0 0 9 1\r\na\r\n")
            assert client.recv(100) == b"INSERTED 1\r\n"
        second = run("-n", "--pidfile=", "raftd", "-c", "c.yaml", cwd=tmp_path)
        assert (second.returncode, "another process listens there" in second.stderr) == (1, True)
    finally:
        node.kill()


def test_listeners_bind_another_address_than_the_one_that_is_dialled(tmp_path):
    peer, line = free_ports(2)
    write(tmp_path / "c.yaml", nodes={1: {"host": "127.0.0.3", "listen": "127.0.0.4", "peer": peer, "line": line}})
    node = LocalNode(tmp_path / "c.yaml", 1, tmp_path / "log")
    try:
        wait_for(lambda: "leads now" in (tmp_path / "log").read_text(), what="the node serving")
        socket.create_connection(("127.0.0.4", line), 10).close()
        for port in (line, peer):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.3", port), 10)
        assert f"line 127.0.0.4:{line}, peer 127.0.0.4:{peer}" in (tmp_path / "log").read_text()
    finally:
        node.kill()


def test_sigusr1_drains_a_node(tmp_path):
    with ProcessCluster(tmp_path, 1) as cluster:
        client = cluster.client(1)
        assert client.put(b"x") == 1
        cluster.running[1].process.send_signal(signal.SIGUSR1)
        wait_for(lambda: cluster.stats(1)["draining"] == "true", what="draining")
        client.send(b"put 0 0 9 1\r\na\r\n")
        assert client.line() == b"DRAINING"
        assert client.reserve(0) == (1, b"x")


# -- what cannot start -------------------------------------------------------------------------

BAD = {
    "no such file": (None, "No such file or directory"),
    "no YAML": ("nodes: [", "it cannot be read as YAML"),
    "a list": ("- 1", "expected a mapping, got a list"),
    "no nodes": ("cluster: t\ndata: d\nnodes: {}", "nodes: expected at least one node"),
    "a key missing": ("data: d\nnodes: {}", "missing key `cluster`"),
    "an unknown key": ("cluster: t\ndata: d\nnodes: {}\nfsync: off", "unknown key `fsync`"),
    "a port that is none": ("cluster: t\ndata: d\nnodes: {1: {host: h, peer: 70000}}", "nodes.1.peer: expected a whole number <= 65535"),
    "a port that is a word": ("cluster: t\ndata: d\nnodes: {1: {host: h, peer: p}}", "nodes.1.peer: expected a whole number, got a text"),
    "an unknown listener": ("cluster: t\ndata: d\nnodes: {1: {host: h, peer: 1, ftp: 2}}", "nodes.1: unknown key `ftp`"),
    "one port twice": ("cluster: t\ndata: d\nnodes: {1: {host: h, peer: 9, line: 9}}", "nodes.1.line: h:9 is nodes.1.peer already"),
    "an id that is a word": ("cluster: t\ndata: d\nnodes: {one: {host: h, peer: 9}}", "nodes: expected whole numbers as the ids of nodes"),
    "nothing": ("", "expected a mapping, got nothing"),
    "a key twice": ("cluster: t\ncluster: u", "duplicate key 'cluster'"),
    "an id of zero": ("cluster: t\ndata: d\nnodes: {0: {host: h, peer: 9}}", "nodes.0: expected an id of at least 1"),
    "a timing": ("cluster: t\ndata: d\nnodes: {1: {host: h, peer: 9}}\nheartbeat_ms: 200", "heartbeat_ms: expected at most half"),
    "a session timeout": (
        "cluster: t\ndata: d\nnodes: {1: {host: h, peer: 9}}\nelection_timeout_ms: 3000",
        "session_timeout_ms: expected at least twice",
    ),
    "a size": (
        "cluster: t\ndata: d\nnodes: {1: {host: h, peer: 9}}\nmax_job_size: 99999999",
        "max_job_size: expected a whole number <= 16777216",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_configuration_is_one_line_and_status_1_and_nothing_is_written(tmp_path, name):
    text, expected = BAD[name]
    if text is not None:
        (tmp_path / "c.yaml").write_text(text)
    before = files_below(tmp_path)
    done = run("-n", "raftd", "--config", "c.yaml", cwd=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("raftd: c.yaml: ")
    assert expected.lower() in line.lower()
    assert files_below(tmp_path) == before


@pytest.mark.parametrize("node", ["9", "x", "-1"])
def test_an_unknown_node_is_one_line_and_status_1(tmp_path, node):
    write(tmp_path / "c.yaml")
    done = run("-n", "raftd", "--config", "c.yaml", f"--node={node}", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, f"raftd: --node {node}: the configuration has no such node, it has 1\n")


def test_a_node_of_several_must_be_named(tmp_path):
    shutil.copy(ROOT / "conf/cluster.yaml", tmp_path / "c.yaml")
    done = run("-n", "raftd", "--config", "c.yaml", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "raftd: --node is needed: which of the nodes 1, 2, 3 is this?\n")


def both_modes(cwd: Path) -> list[tuple[int, str]]:
    """Status and what was printed, in the foreground and as a daemon."""
    results = []
    for options in (["-n"], ["--logfile=daemon.log"]):
        done = run(*options, "raftd", "--config", "c.yaml", cwd=cwd)
        results.append((done.returncode, done.stdout + done.stderr))
    return results


def expect_refusal(cwd: Path, expected: str) -> None:
    before = [name for name in files_below(cwd) if name != "daemon.log"]
    (status, output), (daemon_status, daemon_output) = both_modes(cwd)
    assert status == 1
    lines = [line for line in output.splitlines() if line.startswith("raftd: ")]
    assert len(lines) == 1
    assert expected in lines[0]
    assert "Traceback" not in output
    assert daemon_status == 1
    assert "An error has occurred" in daemon_output  # twistd's own words, and the start of ours
    assert expected in (cwd / "daemon.log").read_text()
    # the daemon's child removes its pid file after its parent has ended
    wait_for(lambda: [name for name in files_below(cwd) if name != "daemon.log"] == before, what="everything being as it was")


def test_a_taken_port(tmp_path):
    config = write(tmp_path / "c.yaml")
    address = yaml.safe_load(config.read_text())["nodes"][1]
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", address["line"]))
        other.listen()
        expect_refusal(tmp_path, f"cannot listen on 127.0.0.1:{address['line']}")


def test_a_locked_data_directory(tmp_path):
    with ProcessCluster(tmp_path, 1) as cluster:
        cluster.client(1).put(b"x")
        write(tmp_path / "c.yaml", cluster="test")  # other ports, the same data
        expect_refusal(tmp_path, "another raftd uses this data directory")
        assert cluster.client(1).put(b"y") == 2


def test_a_corrupt_directory_names_file_and_offset(tmp_path):
    with ProcessCluster(tmp_path, 1) as cluster:
        client = cluster.client(1)
        client.put(b"one")
        client.put(b"two")
        cluster.running.pop(1).stop()
    (segment,) = (tmp_path / "data/1/log").glob("*.log")
    data = bytearray(segment.read_bytes())
    data[200] ^= 1
    segment.write_bytes(data)
    write(tmp_path / "c.yaml", cluster="test")
    contents = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()}
    expect_refusal(tmp_path, f"{segment}, offset ")
    assert {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()} == contents


def test_the_data_directory_of_another_cluster(tmp_path):
    with ProcessCluster(tmp_path, 3) as cluster:
        cluster.leader()
        for node in cluster.nodes:  # all of them: a node that runs may write while we compare
            cluster.running.pop(node).stop()
        write(tmp_path / "c.yaml")  # a cluster of one that names the same directory
        expect_refusal(tmp_path, "belongs to node 1 of cluster 'test' with the nodes 1, 2, 3; the configuration makes this node 1 of 't'")


def test_a_data_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "data").write_text("a file stands in the way")
    write(tmp_path / "c.yaml")
    expect_refusal(tmp_path, "Not a directory")


# -- ending ------------------------------------------------------------------------------------


def test_r17_a_failing_disk_ends_the_process_with_status_70(tmp_path):
    """A limit on file sizes stands in for the failing disk."""
    config = write(tmp_path / "c.yaml", cluster="test")
    port = yaml.safe_load(config.read_text())["nodes"][1]["line"]
    process = subprocess.Popen(
        [*TWISTD, "-n", "--pidfile=", "raftd", "-c", "c.yaml"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    client = wait_for(lambda: _try(port), what="the line listener")
    acknowledged = 0
    try:
        while True:
            client.put(b"x" * 1_000)
            acknowledged += 1
    except Closed:
        pass
    output, _ = process.communicate(timeout=10)
    assert process.returncode == 70
    assert "FATAL: the data directory" in output
    assert "File too large" in output
    with ProcessCluster(tmp_path, 1) as cluster:  # the same data, without the limit
        client = cluster.client(1)
        found = 0
        while client.reserve(0) is not None:
            found += 1
        assert found >= acknowledged > 0


def test_hostile_bytes_at_every_listener_leave_the_node_serving(tmp_path):
    noise = random.Random(7)
    with ProcessCluster(tmp_path, 1) as cluster:
        client = cluster.client(1)
        for listener in ("line", "client", "peer"):
            for junk in (
                b"",
                b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                b"\xff" * 5_000,
                bytes(70_000),
                b"put 0 0 0 4000000000\r\n" + bytes(1_000),
                b"raftd-peer\x02",
                b"\x00\x00\x00\x0braftd-peer\x02",
                b"\x00\x00\x00\x0draftd-client\x01",
                *(noise.randbytes(noise.randrange(1, 400)) for _ in range(20)),
            ):
                with socket.create_connection(("127.0.0.1", cluster.addresses[1][listener]), timeout=5) as stranger:
                    try:
                        stranger.sendall(junk)
                    except OSError:
                        pass  # it has closed already
        assert client.put(b"still here") >= 1
        assert cluster.running.pop(1).stop() < 2
        assert "Traceback" not in cluster.log(1)
        assert "Unhandled" not in cluster.log(1)

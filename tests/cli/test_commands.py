"""`raftd` as a user runs it: whole processes, real nodes, a real beanstalkd."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from raftd.bench.local import free_ports, wait_for
from tests.processes.harness import ProcessCluster

RAFTD = [str(Path(sys.executable).parent / "raftd")]


def run(*arguments: str, **more) -> subprocess.CompletedProcess:
    return subprocess.run([*RAFTD, *arguments], capture_output=True, text=True, timeout=120, check=False, **more)


def processes_below(path: Path) -> list[str]:
    """The command lines of processes that mention the path."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has ended meanwhile
        if str(path) in line:
            found.append(line)
    return found


def test_the_module_and_the_command_are_one():
    assert run("--help").stdout.startswith("Usage: raftd ")
    module = subprocess.run([sys.executable, "-m", "raftd", "--help"], capture_output=True, text=True, check=True)
    assert module.stdout == run("--help").stdout
    assert run("--version").stdout == "raftd, version 0.1.0\n"


# -- demo --------------------------------------------------------------------------------------


@pytest.mark.load
def test_the_demo_loses_nothing_and_leaves_nothing_behind(tmp_path, capsys):
    done = run("demo", env={**os.environ, "TMPDIR": str(tmp_path)})
    with capsys.disabled():
        print(f"\n{done.stdout}")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.rsplit(maxsplit=1) for line in done.stdout.splitlines() if line.startswith("  ") and line.strip()]
    table = {row[0].strip(): row[1] for row in rows if len(row) == 2}
    assert table["lost"] == table["duplicated (deleted twice)"] == "0"
    assert int(table["jobs put and acknowledged"].replace(",", "")) > 100
    assert table["of them worked and deleted"] == table["jobs put and acknowledged"]
    assert done.stdout.count("is killed") == 2
    assert list(tmp_path.iterdir()) == []
    assert processes_below(tmp_path) == []


def test_every_moment_of_starting_is_a_good_one_to_be_stopped_at(tmp_path):
    """A signal in the middle of starting a process must not leave it behind."""
    for nodes in (1, 2, 3) * 3:
        demo = subprocess.Popen(
            [*RAFTD, "demo"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "TMPDIR": str(tmp_path)}
        )
        wait_for(lambda nodes=nodes: len(processes_below(tmp_path)) >= nodes, what="so many nodes")
        demo.send_signal(signal.SIGINT)
        demo.communicate(timeout=20)
        assert demo.returncode == 130
        assert processes_below(tmp_path) == []


def test_a_signal_that_comes_while_a_destructor_runs_is_not_lost():
    """Python swallows what is raised there; a demo went on as if nobody had stopped it."""
    script = (
        "import signal, time\nfrom raftd.cli import signals\nsignals.end_in_order()\n"
        "class Unlucky:\n    def __del__(self):\n        signal.raise_signal(signal.SIGINT)\n"
        "unlucky = Unlucky()\ndel unlucky\ntime.sleep(20)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], timeout=10, check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (130, "")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_demo_that_is_stopped_takes_its_nodes_with_it(tmp_path, number, status):
    demo = subprocess.Popen([*RAFTD, "demo"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "TMPDIR": str(tmp_path)})
    wait_for(lambda: len(processes_below(tmp_path)) == 3, what="three nodes")
    demo.send_signal(number)
    output, _ = demo.communicate(timeout=20)
    assert demo.returncode == status
    assert b"Traceback" not in output
    assert processes_below(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


# -- bench -------------------------------------------------------------------------------------


@pytest.mark.load
@pytest.mark.skipif(shutil.which("beanstalkd") is None, reason="beanstalkd is not installed, so there is nothing to measure against")
def test_the_bench_measures_two_servers_in_turns(tmp_path):
    done = run(
        "bench",
        "--against",
        "beanstalkd",
        "--rounds",
        "2",
        "--seconds",
        "0.2",
        "-c",
        "4",
        "-k",
        "2",
        "--data",
        ".",
        "--json",
        "figures.json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    rounds = [line.split()[:8] for line in done.stdout.splitlines() if " round " in line]
    servers = ["raftd,", "beanstalkd"]
    works = ("put,", "cycle,")
    expected = [[work, "4", "×", "2", "conns", "round", str(number), server] for work in works for number in (1, 2) for server in servers]
    assert rounds == expected
    kept = json.loads((tmp_path / "figures.json").read_text())
    assert [(row["row"]["work"], row["server"][:5]) for row in kept["rows"]] == [
        (work, server) for work in ("put", "cycle") for server in ("raftd", "beans")
    ]
    assert all(len(row["rates"]) == 2 and row["operations"] for row in kept["rows"])
    (tmp_path / "figures.json").unlink()
    assert list(tmp_path.iterdir()) == []
    assert processes_below(tmp_path) == []


def test_a_bench_names_what_is_not_installed_and_leaves_it_out(tmp_path):
    short = ("--work", "put", "--rounds", "1", "--seconds", "0.2", "-c", "2", "--nodes", "1", "--data", str(tmp_path))
    done = run("bench", "--against", "beanstalkd", *short, env={**os.environ, "PATH": ""})
    assert done.returncode == 0, done.stderr
    assert "not measured: beanstalkd is not installed (Debian: apt-get install beanstalkd)" in done.stdout
    assert [line.split()[5] for line in done.stdout.splitlines() if " round " in line] == ["raftd,"]


def test_a_bench_needs_sense():
    done = run("bench", "--connections", "2", "--processes", "3")
    assert (done.returncode, "each of the --processes needs one at least" in done.stderr) == (2, True)
    assert run("bench", "--rounds", "0").returncode == 2
    for wrong in (("--rate", "nan"), ("--comparison", "--rate", "5"), ("--json", "missing/f.json"), ("--work", "handoff", "-c", "1")):
        assert run("bench", *wrong).returncode == 2, wrong
    done = run("bench", "--against", "nats", "--waiting", "5")
    assert (done.returncode, "only beside servers that speak beanstalkd's protocol" in done.stderr) == (2, True)


def test_a_crowd_that_the_limit_on_open_files_forbids_is_refused(tmp_path):
    limited = ["bash", "-c", 'ulimit -n 1000; exec "$@"', "_", *RAFTD]
    asked = ("bench", "--rounds", "1", "--seconds", "0.1", "--nodes", "1", "--idle", "5000", "--data", str(tmp_path))
    done = subprocess.run([*limited, *asked], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "raise the limit (ulimit -Hn)" in done.stderr) == (1, True)
    assert list(tmp_path.iterdir()) == []


# -- status ------------------------------------------------------------------------------------


def test_status_shows_leader_lag_and_jobs(tmp_path):
    with ProcessCluster(tmp_path, 3) as cluster:
        leader = cluster.leader()
        wait_for(lambda: all((stats := cluster.stats(node)) and stats["leader"] == str(leader) for node in (1, 2, 3)))
        client = cluster.client(1)
        client.put(b"x")
        wait_for(lambda: all((stats := cluster.stats(node)) and stats["current-jobs-ready"] == "1" for node in (1, 2, 3)))
        asked = run("status", "--config", str(cluster.config))
        assert (asked.returncode, asked.stderr) == (0, "")
        head, *rows = [line.split() for line in asked.stdout.splitlines()]
        assert head[2:7] == ["node", "pid", "role", "term", "applied"]
        assert {int(row[1]): row[3] for row in rows} == {node: "leader" if node == leader else "follower" for node in (1, 2, 3)}
        assert {int(row[1]): int(row[2]) for row in rows} == {node: process.process.pid for node, process in cluster.running.items()}
        addresses = [":".join(map(str, cluster.address(node, "client"))) for node in (1, 2)]
        one, two = json.loads(run("status", "--json", *addresses).stdout)
        assert [one["address"], two["address"]] == addresses
        assert one["status"]["jobs"] == [1, 0, 0, 0]
        assert one["status"]["leader"] == two["status"]["leader"] == leader
        gateways = {node: clients for node, _, is_open, clients in one["status"]["gateways"] if is_open}
        assert gateways == {1: 1, 2: 0, 3: 0}
        (of_leader,) = json.loads(run("status", "--json", ":".join(map(str, cluster.address(leader, "client")))).stdout)
        assert of_leader["status"]["match"].keys() == {str(node) for node in (1, 2, 3) if node != leader}


def test_status_watches_until_it_is_stopped(tmp_path):
    with ProcessCluster(tmp_path, 1) as cluster:
        cluster.leader()
        watching = subprocess.Popen(
            [*RAFTD, "status", "--watch", "--config", str(cluster.config)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        heads = [line for line in (watching.stdout.readline() for _ in range(4)) if b"client listener" in line]
        assert len(heads) == 2  # and again
        watching.send_signal(signal.SIGINT)
        watching.communicate(timeout=20)
        assert watching.returncode == 130


def test_status_says_who_does_not_answer():
    (port,) = free_ports(1)
    asked = run("status", f"127.0.0.1:{port}")
    assert (asked.returncode, asked.stdout) == (1, f"127.0.0.1:{port} does not answer: Connection refused\n")
    (one,) = json.loads(run("status", "--json", f"127.0.0.1:{port}").stdout)
    assert one == {"address": f"127.0.0.1:{port}", "error": "Connection refused"}


def test_status_says_what_is_no_address_and_no_configuration(tmp_path):
    asked = run("status", "host:port")
    assert (asked.returncode, "'host:port' is not HOST:PORT" in asked.stderr) == (2, True)
    asked = run("status", "--config", str(tmp_path / "none.yaml"))
    assert (asked.returncode, asked.stderr) == (1, f"raftd: {tmp_path}/none.yaml: No such file or directory\n")

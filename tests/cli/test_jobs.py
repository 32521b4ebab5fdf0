"""`raftd put`, `reserve`, `delete`, … against a real node."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from raftd.bench.local import LocalCluster
from raftd.cli import signals
from raftd.cli.jobs import kick as kick_command
from raftd.client import Client
from tests.cli.test_commands import RAFTD, run
from tests.client.test_clients import url


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("jobs"), 1) as cluster:
        cluster.leader()
        yield cluster


@pytest.fixture
def queue(cluster: LocalCluster) -> Iterator[Client]:
    with Client(url(cluster), timeout=20) as queue:
        yield queue


@pytest.fixture
def tube(request: pytest.FixtureRequest) -> str:
    return f"c{abs(hash(request.node.nodeid)):x}"


@pytest.fixture
def raftd(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch):
    """Run a command that must end well; what it prints."""
    monkeypatch.setenv("RAFTD_URL", url(cluster))

    def raftd(*arguments: object, **more: object) -> str:
        done = run(*map(str, arguments), **more)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    return raftd


def refused(*arguments: object, status: int = 1, **more: object) -> str:
    done = run(*map(str, arguments), **more)
    assert (done.returncode, done.stdout) == (status, ""), done
    assert "Traceback" not in done.stderr
    return done.stderr


def test_bodies_from_arguments_files_and_standard_input(raftd, queue, tube, tmp_path):
    (tmp_path / "body").write_bytes(b"\0\xff\n")
    ids = [int(line) for line in raftd("put", tube, "a", "b", "--file", tmp_path / "body", "--priority", 3, "--ttr", 9).split()]
    assert ids == list(range(ids[0], ids[0] + 3))
    assert [(job.body, job.priority, job.ttr) for job in map(queue.peek, ids)] == [(b"a", 3, 9), (b"b", 3, 9), (b"\0\xff\n", 3, 9)]
    (id,) = raftd("put", tube, "--delay", 60, input="from a pipe").split()
    assert (queue.peek(int(id)).text, queue.peek(int(id)).state) == ("from a pipe", "delayed")
    (first,) = raftd("put", tube, "once", "--key", f"key {tube}").split()
    assert raftd("put", tube, "once", "--key", f"key {tube}").split() == [first]
    assert "was used for other jobs" in refused("put", tube, "another", "--key", f"key {tube}")


def test_every_line_is_a_job(raftd, queue, tube, tmp_path):
    (tmp_path / "lines").write_bytes(b"first\r\n\nthird\n" + b"".join(b"line %d\n" % number for number in range(3, 1_200)) + b"last")
    ids = list(map(int, raftd("put", tube, "--lines", tmp_path / "lines").split()))
    assert len(ids) == 1_201
    assert [queue.peek(id).text for id in ids[:3]] == ["first", "", "third"]
    assert queue.peek(ids[-1]).text == "last"
    assert queue.stats(tube).ready == 1_201
    assert len(raftd("put", tube, "--lines", "-", input="x\ny\n").split()) == 2
    assert raftd("put", tube, "--lines", "-", input="") == ""
    lines = b"fine\n" * 700 + b"x" * 70_000 + b"\n"
    done = subprocess.run([*RAFTD, "put", tube, "--lines", "-"], input=lines, capture_output=True, timeout=60, check=False)
    assert (done.returncode, len(done.stdout.split())) == (1, 500)
    assert b"the first 500 lines were put; and none after them" in done.stderr


def test_a_job_is_taken_and_finished_by_different_commands(raftd, queue, tube):
    ids = queue.put_many(tube, ["a", "b", "c", "d"])
    tokens = []
    for id in ids:
        taken = json.loads(raftd("reserve", tube, "--wait", 0, "--json"))
        assert (taken["id"], taken["tube"], taken["attempts"]) == (id, tube, 0)
        tokens.append(taken["token"])
    assert f"there is no job in {tube}" in refused("reserve", tube, "--wait", 0.1)
    assert queue.stats(tube).reserved == 4
    raftd("delete", ids[0], "--token", tokens[0])
    raftd("release", ids[1], "--token", tokens[1], "--delay", 60)
    raftd("bury", ids[2], "--token", tokens[2], "--error", "no use")
    assert queue.peek(ids[0]) is None
    assert [queue.peek(id).state for id in ids[1:]] == ["delayed", "buried", "reserved"]
    assert "not reserved with token" in refused("release", ids[1], "--token", tokens[1])
    assert "another holds it" in refused("delete", ids[3])
    assert raftd("kick", tube) == "1\n"
    raftd("kick", "--job", ids[1])
    assert [queue.peek(id).state for id in ids[1:3]] == ["ready", "ready"]
    raftd("delete", *ids[1:3])
    done = run("reserve", tube, "--wait", "0")
    assert (done.returncode, done.stdout) == (1, "")


def test_a_body_is_printed_as_it_is_and_the_rest_beside_it(raftd, queue, tube):
    id = queue.put(tube, b"\0\xffbody", ttr=33)
    done = subprocess.run([*RAFTD, "reserve", tube], capture_output=True, timeout=60, check=True)
    assert done.stdout == b"\0\xffbody"
    assert done.stderr == f"job {id} of {tube}, token {queue.peek(id).token}, 33 s to run\n".encode()
    assert json.loads(raftd("peek", id, "--json"))["encoding"] == "base64"


def test_kick_all_kicks_those_that_are_there(raftd, queue, tube):
    for start in range(0, 1_500, 100):
        queue.put_many(tube, [b"%d" % number for number in range(start, start + 100)])
        for job in queue.reserve_many(tube, count=100, timeout=0):
            job.bury()
    assert raftd("kick", tube, "--all") == "1500\n"
    assert raftd("kick", tube, "--all") == "0\n"
    assert queue.stats(tube).ready == 1_500
    assert "raftd kick --job 17" in refused("kick", "17")


def test_kick_all_leaves_the_delayed_ones_when_another_kicks_the_buried_ones(cluster, queue, tube, monkeypatch):
    """It went on with the delayed ones."""
    for start in range(0, 1_200, 100):
        queue.put_many(tube, [b"%d" % number for number in range(start, start + 100)])
        for job in queue.reserve_many(tube, count=100, timeout=0):
            job.bury()
    queue.put_many(tube, [b"%d" % number for number in range(500)], delay=600)
    kick = Client.kick

    def kick_beside_another(client: Client, tube: str, count: int = 1) -> int:
        kicked = kick(client, tube, count)
        kick(client, tube, 4_000)
        return kicked

    monkeypatch.setattr(Client, "kick", kick_beside_another)
    monkeypatch.setattr(signals, "end_in_order", lambda: None)  # this is the process of the tests
    done = CliRunner().invoke(kick_command, [tube, "--all", "--url", url(cluster)])
    assert done.exit_code == 0
    assert 0 < int(done.stdout) < 1_200  # as many as the entry of one kick may move
    assert (queue.stats(tube).ready, queue.stats(tube).delayed) == (1_200, 500)


def test_arguments_that_are_no_text(raftd, queue, tube):
    done = subprocess.run([*RAFTD, "put", tube, b"\xff"], capture_output=True, timeout=60, check=True)
    assert queue.peek(int(done.stdout)).body == b"\xff"
    for arguments in (["put", tube, "x", "--key", b"\xff"], ["stats", b"\xff"], ["peek", "--tube", b"\xff"]):
        done = subprocess.run([*RAFTD, *arguments], capture_output=True, timeout=60, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith(b"raftd: ")
        assert done.stderr.count(b"\n") == 1


def test_the_policy_of_a_tube(raftd, queue, tube, tmp_path):
    shown = raftd("tube", "set", tube, "max_attempts=3", "backoff=[1, 60]", f"dead_letter={tube}.dead", "--version", 0)
    version = queue.policy(tube).version
    assert shown == f"{tube}:  # version {version}\n  max_attempts: 3\n  backoff: [1.0, 60.0]\n  dead_letter: {tube}.dead\n"
    assert raftd("tube", "show", tube) == shown
    assert f"has version {version} by now" in refused("tube", "set", tube, "max_jobs=5", "--version", 0)
    assert "max_jobs: expected a value" in refused("tube", "set", tube, "max_jobs=", status=2)
    assert "unknown field `max_job`" in refused("tube", "set", tube, "max_job=5")
    assert "expected FIELD=VALUE" in refused("tube", "set", tube, "max_jobs", status=2)
    assert "has no policy" in refused("tube", "show", f"{tube}-none")
    assert queue.policy(tube).version == version
    raftd("tube", "unset", tube)
    assert queue.policy(tube) is None
    assert "has no policy" in refused("tube", "unset", tube)


def test_one_of_its_kind_and_one_for_a_moment(raftd, queue, tube):
    (first,) = raftd("put", tube, "a", "--unique", "report").split()
    assert raftd("put", tube, "b", "--unique", "report", "--until", "reserved", "--unique-for", 60).split() == [first]
    (later,) = raftd("put", tube, "c", "--run-at", "2100-01-01T00:00:00+01:00").split()
    assert queue.peek(int(later)).state == "delayed"
    assert "put one job" in refused("put", tube, "d", "e", "--unique", "report", status=2)
    assert "does not match" in refused("put", tube, "d", "--run-at", "tomorrow", status=2)


def test_dead_jobs_are_replayed(raftd, queue, tube):
    dead = f"{tube}.dead"
    queue.set_policies({tube: {"max_attempts": 1, "dead_letter": dead}, f"{tube}.full": {"max_jobs": 1}})
    for number in range(3):
        queue.put(tube, str(number))
        queue.reserve(tube, timeout=5).fail(f"error {number}")
    assert raftd("tube", "replay", dead, "--error", "error 1", "--dry-run") == "1\n"
    assert raftd("tube", "replay", dead, "--error", "error 1") == "1\n"
    assert raftd("tube", "replay", dead, "--older", 1_000) == "0\n"
    done = run("tube", "replay", dead, "--to", f"{tube}.full")
    assert (done.returncode, done.stdout, "1 stay where they are" in done.stderr) == (1, "1\n", True)
    kicked = run("tube", "replay", dead, "--kick")
    assert (kicked.returncode, kicked.stdout, "ready already" in kicked.stderr) == (1, "0\n", True)
    assert raftd("tube", "replay", dead, "--delete") == "1\n"
    assert (queue.stats(tube).ready, queue.stats(f"{tube}.full").ready, queue.stats(dead)) == (1, 1, None)
    assert "give one of them" in refused("tube", "replay", dead, "--to", tube, "--kick", status=2)
    queue.set_policies({tube: None, f"{tube}.full": None})


def test_a_schedule(raftd, queue, tube, tmp_path):
    (tmp_path / "body").write_bytes(b"\0\xff")
    raftd("schedule", "add", tube, tube, "hello", "--cron", "30 6 * * 1-5", "--zone", "Europe/Berlin", "--overlap", "skip")
    shown = raftd("schedule", "show", tube)
    for line in ("cron        30 6 * * 1-5", "zone        Europe/Berlin", "overlap     skip", "priority    65536"):
        assert f"\n{line}\n" in shown
    raftd("schedule", "add", f"{tube}.raw", tube, "--every", 3_600, "--file", tmp_path / "body", "--ttr", 5, "--priority", 3)
    (id,) = raftd("schedule", "run", f"{tube}.raw").split()
    assert (queue.peek(int(id)).body, queue.peek(int(id)).ttr) == (b"\0\xff", 5)
    rows = {line.split()[0]: line for line in raftd("schedule", "list").splitlines() if line.strip()}
    assert "30 6 * * 1-5" in rows[tube]
    assert "every 3600 s" in rows[f"{tube}.raw"]
    raftd("schedule", "pause", tube)
    assert "paused" in raftd("schedule", "list")
    assert json.loads(raftd("schedule", "show", tube, "--json"))["is_paused"] is True
    raftd("schedule", "resume", tube)
    assert "version" in refused("schedule", "add", tube, tube, "--every", 5, "--version", 0)
    assert "cron: bad minute" in refused("schedule", "add", f"{tube}.bad", tube, "--cron", "61 * * * *")
    raftd("schedule", "remove", tube)
    raftd("schedule", "remove", f"{tube}.raw")
    assert "there is no schedule" in refused("schedule", "show", tube)


def test_a_file_of_policies_is_applied_whole(raftd, queue, tube, tmp_path):
    queue.set_policies({f"{tube}1": {"max_jobs": 1}, f"{tube}2": {"max_jobs": 2}, f"{tube}3": {"max_jobs": 3}})
    file = tmp_path / "policies.yaml"
    file.write_text(f"{tube}1: {{max_jobs: 9, ttl_s: 60}}\n{tube}2: null\n{tube}4:\n  rate: 2.5\n")
    difference = f"{tube}1:\n  -max_jobs: 1\n  +ttl_s: 60.0\n  +max_jobs: 9\n{tube}2:\n  -max_jobs: 2\n{tube}4:\n  +rate: 2.5\n"
    done = run("tube", "apply", file, "--dry-run")
    assert (done.returncode, done.stdout, done.stderr) == (2, difference, "")
    assert queue.policy(f"{tube}1").policy.max_jobs == 1
    assert raftd("tube", "apply", file) == difference
    assert [policy.tube for policy in queue.policies() if policy.tube.startswith(tube)] == [f"{tube}1", f"{tube}3", f"{tube}4"]
    assert (queue.policy(f"{tube}1").policy.ttl_s, queue.policy(f"{tube}4").policy.rate) == (60, 2.5)
    assert raftd("tube", "apply", file, "--dry-run") == ""
    shown = tmp_path / "shown.yaml"
    shown.write_text(raftd("tube", "show"))
    assert raftd("tube", "apply", shown, "--prune") == ""  # what is shown can be applied
    assert raftd("tube", "apply", file, "--prune") == f"{tube}3:\n  -max_jobs: 3\n"
    for text, wrong in (
        ("a: {max_jobs: 5}\nb: {max_jobs: many}\n", "tube 'b': max_jobs: expected a whole number, got text"),
        ("a: {max_jobs: 5}\na: {max_jobs: 6}\n", "duplicate key 'a'"),
        ("- a\n", "expected tubes, and for each its policy"),
        ("a: {dead_letter: b}\nb: {dead_letter: a}\n", "in a circle"),
    ):
        file.write_text(text)
        for more in ([], ["--dry-run"]):
            done = run("tube", "apply", file, *more)
            assert (done.returncode, done.stdout, wrong in done.stderr) == (1, "", True), done
    assert "a" not in [policy.tube for policy in queue.policies()]


def test_looking(raftd, queue, tube):
    id = queue.put(tube, "hello\nworld", priority=7)
    shown = raftd("peek", id)
    assert f"id        {id}\n" in shown
    assert "priority  7\n" in shown
    assert shown.endswith("\n\nhello\nworld\n")
    assert json.loads(raftd("peek", "--tube", tube, "--json"))["body"] == "hello\nworld"
    assert "there is no job" in refused("peek", 1 << 40)
    assert "no buried job" in refused("peek", "--tube", tube, "--state", "buried")
    rows = {line.split()[0]: line.split()[1:] for line in raftd("tubes").splitlines() if line.strip() and "─" not in line}
    assert rows[tube] == ["1", "0", "0", "0", "0"]
    assert tube in [json.loads(line)["tube"] for line in raftd("tubes", "--json").splitlines()]
    assert "ready           1\n" in raftd("stats", tube)
    assert "there is no tube" in refused("stats", "no-such-tube")
    everything = json.loads(raftd("stats", "--json"))
    assert everything["tubes"] == len(list(queue.tubes()))
    assert everything["ready"] == sum(stats.ready for stats in queue.tubes())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["put"], "Missing argument 'TUBE'"),
        (["put", "t", "x", "--lines", "-"], "leave out BODY"),
        (["put", "t", "--file", "/no/such/file"], "does not exist"),
        (["put", "t", "x", "--ttr", "-1"], "Invalid value"),
        (["delete", "1", "2", "--token", "3"], "with one ID"),
        (["release", "1"], "Missing option '--token'"),
        (["kick"], "give a TUBE, or --job ID"),
        (["kick", "t", "--job", "1"], "give a TUBE, or --job ID"),
        (["peek"], "give an ID, or --tube TUBE"),
        (["tubes", "--url", "raftd://x:0"], "expected a port"),
    ],
)
def test_a_wrong_command_line_is_told(arguments, said):
    assert said in refused(*arguments, status=2)


def test_bad_names_and_nobody_there_are_told_in_a_line(raftd):
    assert refused("put", "*bad", "x").count("\n") == 1
    said = refused("put", "t", "x", "--url", "raftd://127.0.0.1:1", "--timeout", "0.3")
    assert said == "raftd: 127.0.0.1:1: Connection refused. --url or $RAFTD_URL says where the client listeners are\n"


def test_a_body_is_asked_for_at_a_terminal(raftd, tmp_path: Path):
    ours, theirs = pty.openpty()
    try:
        assert "give a BODY, --file or --lines" in refused("put", "t", status=2, stdin=theirs)
    finally:
        os.close(ours)
        os.close(theirs)

"""The commands that work on files, on those of real nodes: log, job, backup, restore, recover."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from raftd.bench.local import free_ports, wait_for
from raftd.cli.recover import found_new_cluster
from raftd.raft.messages import MemberAddress
from tests.cli.test_commands import RAFTD, run
from tests.processes.harness import ProcessCluster


@pytest.fixture(scope="module")
def lived(tmp_path_factory):
    """The directory of one node that has lived a little: four jobs, what happened to them, and a backup of it."""
    directory = tmp_path_factory.mktemp("lived")
    with ProcessCluster(directory, 1) as cluster:
        cluster.leader()
        client = cluster.client(1)
        client.ask(b"use emails")
        client.ask(b"watch emails")
        worked = client.put(b"worked")
        assert client.reserve(0)[0] == worked
        assert client.ask(b"release %d 5 0" % worked) == b"RELEASED"
        assert client.reserve(0)[0] == worked
        assert client.ask(b"touch %d" % worked) == b"TOUCHED"
        assert client.delete(worked)
        buried = client.put(b"\xff\x00 no text")
        assert client.reserve(0)[0] == buried
        assert client.ask(b"bury %d 7" % buried) == b"BURIED"
        held = client.put(b"held")
        assert client.reserve(0)[0] == held
        client.put(b"delayed", delay=3_600)
        saved = run("backup", str(directory / "backup"), "--config", str(cluster.config))
        assert (saved.returncode, saved.stderr) == (0, "")
        assert "of cluster 'test' at entry" in saved.stdout
        assert cluster.running[1].stop() < 2
        cluster.running.clear()
    return directory


def of(directory: Path) -> tuple[str, str]:
    return "--config", str(directory / "cluster.yaml")


# -- log ---------------------------------------------------------------------------------------


def test_log_list_shows_every_file(lived):
    listed = run("log", "list", *of(lived))
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "node 1 of cluster 'test'" in listed.stdout
    assert "snap/" in listed.stdout
    assert "log/00000001-" in listed.stdout


def test_log_verify_reads_everything_and_names_what_is_damaged(lived, tmp_path):
    sound = run("log", "verify", *of(lived))
    assert (sound.returncode, sound.stderr) == (0, "")
    assert sound.stdout.count(": sound, ") == 2
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in sorted((lived / "data").rglob("*")):
        if path.is_file():
            (copy / path.relative_to(lived / "data")).parent.mkdir(parents=True, exist_ok=True)
            (copy / path.relative_to(lived / "data")).write_bytes(path.read_bytes())
    (segment,) = (copy / "1/log").glob("*.log")
    data = bytearray(segment.read_bytes())
    data[200] ^= 1
    segment.write_bytes(data)
    (snapshot,) = (copy / "1/snap").glob("*.snap")
    snapshot.write_bytes(snapshot.read_bytes()[:-1])
    (copy / "1/vote.a").write_bytes(b"")
    damaged = run("log", "verify", "--data", str(copy))
    assert damaged.returncode == 1
    assert f"{segment}: offset " in damaged.stderr
    assert f"{snapshot}, offset " in damaged.stderr
    assert "vote.a is damaged" in damaged.stderr
    assert run("log", "list", "--data", str(copy)).returncode == 1


def test_log_dump_as_text_and_as_json_lines_with_filters(lived):
    text = run("log", "dump", *of(lived)).stdout
    assert "put pri=0 delay_ms=0 ttr_ms=60000 6 bytes 'worked' (session " in text
    entries = [json.loads(line) for line in run("log", "dump", *of(lived), "--json").stdout.splitlines()]
    assert [entry["index"] for entry in entries] == list(range(1, len(entries) + 1))
    assert {"config", "settings", "open-gateway", "features", "batch"} <= {entry["kind"] for entry in entries}
    assert not any(entry["replaced"] for entry in entries)
    bodies = [command.get("body") for entry in entries if entry["kind"] == "batch" for command in entry["data"]["commands"]]
    assert "worked" in bodies
    assert {"base64": "/wAgbm8gdGV4dA=="} in bodies
    of_job = [json.loads(line) for line in run("log", "dump", *of(lived), "--json", "--job", "1").stdout.splitlines()]
    assert [entry["data"]["commands"][0]["type"] for entry in of_job] == ["Release", "Touch", "Delete"]
    some = run("log", "dump", *of(lived), "--json", "--from", "2", "--to", "4").stdout.splitlines()
    assert [json.loads(line)["index"] for line in some] == [2, 3, 4]
    kinds = run("log", "dump", *of(lived), "--json", "--kind", "features").stdout.splitlines()
    assert [json.loads(line)["kind"] for line in kinds] == ["features"]
    wrong = run("log", "dump", *of(lived), "--kind", "nonsense")
    assert (wrong.returncode, "one of noop, config" in wrong.stderr) == (2, True)


def test_a_directory_that_is_none_is_said(tmp_path):
    for command in (("log", "list"), ("log", "verify"), ("log", "dump"), ("job", "1"), ("recover",)):
        asked = run(*command, "--data", str(tmp_path))
        assert asked.returncode == 1, command
        assert str(tmp_path) in asked.stderr + asked.stdout
        assert "Traceback" not in asked.stderr
    assert list(tmp_path.iterdir()) == []


def copy_of(lived: Path, tmp_path: Path) -> Path:
    shutil.copytree(lived / "data", tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("gone", ["log", "a segment"])
def test_what_a_node_would_refuse_to_start_with_no_tool_calls_sound(lived, tmp_path, gone):
    """A review: tools judged what they found, and not what was missing."""
    data = copy_of(lived, tmp_path)
    if gone == "a segment":
        for path in (data / "1/log").glob("*.log"):
            path.unlink()
    else:
        shutil.rmtree(data / "1" / gone)
    for command in (("log", "list"), ("log", "verify"), ("job", "1"), ("recover",)):
        asked = run(*command, "--data", str(data))
        assert asked.returncode == 1, command
        assert "missing" in asked.stderr + asked.stdout, command
        assert "Traceback" not in asked.stderr
    saved = run("backup", str(tmp_path / "backup"), "--directory", str(data / "1"))
    assert (saved.returncode, "missing" in saved.stderr) == (1, True)
    assert not (tmp_path / "backup").exists()


def test_log_dump_of_a_damaged_log_says_so_behind_what_can_be_read(lived, tmp_path):
    data = copy_of(lived, tmp_path)
    (segment,) = (data / "1/log").glob("*.log")
    raw = bytearray(segment.read_bytes())
    raw[len(raw) // 2] ^= 1
    segment.write_bytes(raw)
    dumped = run("log", "dump", "--data", str(data), "--json")
    assert dumped.returncode == 1
    assert 0 < len(dumped.stdout.splitlines()) < 18
    assert "and what follows proves that it was durable" in dumped.stderr


def test_log_dump_shows_the_entries_when_both_vote_slots_are_damaged(lived, tmp_path):
    """A review: the operator of a single node had no tool left to read its jobs with."""
    data = copy_of(lived, tmp_path)
    whole = run("log", "dump", "--data", str(data), "--json")
    for slot in ("vote.a", "vote.b"):
        (data / "1" / slot).write_bytes(b"")
    dumped = run("log", "dump", "--data", str(data), "--json")
    assert dumped.returncode == 1
    assert dumped.stdout == whole.stdout
    assert "vote.a is damaged; vote.b is damaged" in dumped.stderr


def test_log_dump_knows_which_tube_a_put_went_to(lived):
    lines = run("log", "dump", *of(lived), "--json", "--tube", "emails").stdout.splitlines()
    types = [command["type"] for line in lines for command in json.loads(line)["data"]["commands"]]
    assert types.count("Put") == 4


def test_a_reader_that_has_enough_is_no_error(lived):
    piped = subprocess.run(
        f"{RAFTD[0]} log dump {' '.join(of(lived))} | head -n 1", shell=True, capture_output=True, text=True, check=False
    )
    assert piped.stderr == ""


# -- job ---------------------------------------------------------------------------------------


def whats(*arguments: str) -> list[str]:
    return [json.loads(line)["what"] for line in run(*arguments, "--json").stdout.splitlines()]


def test_job_tells_what_became_of_it(lived):
    told = whats("job", "1", *of(lived))
    begins = ["put by client", "reserved by client", "released by client", "reserved by client", "touched by client", "deleted by client"]
    assert [what.startswith(begin) for what, begin in zip(told, begins, strict=True)] == [True] * 6
    assert whats("job", "2", *of(lived))[-1].endswith("buried in 'emails'")
    assert whats("job", "3", *of(lived))[-1].startswith(("reserved by", "given back"))
    assert "delayed until" in whats("job", "4", *of(lived))[-1]
    text = run("job", "1", *of(lived)).stdout.splitlines()
    assert text[-1] == "(the log reaches back to the first entry of the cluster; its newest entries need not be committed)"
    unknown = run("job", "99", *of(lived))
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "knows nothing of job 99" in unknown.stderr


def test_job_begins_with_the_snapshot_when_the_log_before_it_is_gone(tmp_path):
    with ProcessCluster(tmp_path, 1, snapshot_log_bytes=1 << 20) as cluster:
        client = cluster.client(1)
        kept = client.put(b"kept")
        for _ in range(40):
            client.delete(client.put(b"x" * 60_000))
            client.ask(b"kick-job %d" % kept)
        wait_for(lambda: any((tmp_path / "data/1/snap").glob("*.snap")), what="a snapshot")
        wait_for(lambda: not any((tmp_path / "data/1/log").glob("00000001-*")), what="the first segment going")
        assert client.reserve_and_delete(kept)
        told = run("job", str(kept), "--config", str(cluster.config))
    assert "known from the snapshot: ready in 'default'" in told.stdout
    assert "deleted by client" in told.stdout
    assert "the state is known from entry" in told.stdout


# -- backup and restore ------------------------------------------------------------------------


def test_a_backup_is_restored_as_a_new_cluster_which_others_join(lived, tmp_path):
    with ProcessCluster(tmp_path, 1) as cluster:
        cluster.leader()
        cluster.close()  # its directory is not empty
        refused = run("restore", str(lived / "backup"), "--config", str(cluster.config))
        assert refused.returncode == 1
        assert f"{tmp_path}/data/1 is not empty: nothing was changed" in refused.stderr
        restored = run("restore", str(lived / "backup"), "--config", str(cluster.config), "--data", str(tmp_path / "new"))
        assert (restored.returncode, restored.stderr) == (0, "")
        raw = cluster.config.read_text().replace("data: data", "data: new")
        cluster.config.write_text(raw)
        cluster.start(1)
        client = cluster.client(1)
        client.ask(b"watch emails")
        assert client.reserve(0) == (3, b"held")  # ready again: who held it is gone
        assert client.ask(b"peek 2") == b"FOUND 2 10"
        assert client.data(10) == b"\xff\x00 no text"
        assert client.put(b"new") == 5  # ids go on
        stats = client.stats()
        assert (stats["current-jobs-buried"], stats["current-jobs-delayed"], stats["nodes"]) == ("1", "1", "1")
        members = json.loads(run("member", "list", "--json", "--config", str(cluster.config)).stdout)
        assert [row["node"] for row in members["members"]] == [1]


def test_a_backup_of_a_directory_holds_what_stands_in_it(lived, tmp_path):
    saved = run("backup", str(tmp_path / "offline"), "--directory", str(lived / "data/1"))
    assert (saved.returncode, saved.stderr) == (0, "")
    restored = run("restore", str(tmp_path / "offline"), "--data", str(tmp_path / "new"))
    assert restored.returncode == 0
    # all clients are gone by then
    assert "ready in 'emails'" in whats("job", "3", "--data", str(tmp_path / "new"))[0]


def test_a_backup_behind_a_passphrase_is_of_no_use_without_it(lived, tmp_path):
    for name in ("right", "wrong"):
        (tmp_path / name).write_text(f"{name}\n")
    sealed = str(tmp_path / "sealed")
    saved = run("backup", sealed, "--directory", str(lived / "data/1"), "--passphrase-file", str(tmp_path / "right"))
    assert (saved.returncode, saved.stderr) == (0, "")
    assert b"emails" not in (tmp_path / "sealed").read_bytes()
    assert (tmp_path / "sealed").stat().st_mode & 0o777 == 0o600
    new = str(tmp_path / "new")
    without = run("restore", sealed, "--data", new)
    assert without.stderr == f"raftd: {sealed} is sealed: --passphrase-file says with what. Nothing was changed\n"
    wrong = run("restore", sealed, "--data", new, "--passphrase-file", str(tmp_path / "wrong"))
    assert wrong.stderr == f"raftd: {sealed}: another passphrase has sealed it, or it is damaged. Nothing was changed\n"
    plain = run("restore", str(lived / "backup"), "--data", new, "--passphrase-file", str(tmp_path / "right"))
    assert plain.stderr == f"raftd: {lived / 'backup'} is not sealed: leave out --passphrase-file. Nothing was changed\n"
    assert run("restore", sealed, "--data", new, "--passphrase-file", str(tmp_path / "right")).returncode == 0
    assert "ready in 'emails'" in whats("job", "3", "--data", new)[0]


def test_a_data_directory_that_others_can_read_is_closed_to_them(tmp_path):
    with ProcessCluster(tmp_path, 1) as cluster:
        cluster.leader()
        cluster.kill(1)
        place = tmp_path / "data/1"
        assert place.stat().st_mode & 0o777 == 0o700
        assert {path.stat().st_mode & 0o777 for path in place.rglob("*") if path.is_file()} == {0o600}
        place.chmod(0o755)
        cluster.start(1)
        cluster.leader()
        assert place.stat().st_mode & 0o777 == 0o700
        assert f"others could read {place}, and with it all jobs: now its owner alone can" in cluster.log(1)


@pytest.mark.parametrize("damage", ["a bit", "cut", "empty", "another file"])
def test_a_damaged_backup_is_refused_and_nothing_is_changed(lived, tmp_path, damage):
    data = bytearray((lived / "backup").read_bytes())
    if damage == "a bit":
        data[len(data) // 2] ^= 4
    elif damage == "cut":
        del data[-10:]
    elif damage == "empty":
        data.clear()
    else:
        data[:] = b"something else entirely" * 100
    (tmp_path / "damaged").write_bytes(data)
    refused = run("restore", str(tmp_path / "damaged"), "--data", str(tmp_path / "new"))
    assert refused.returncode == 1
    assert "is no backup of raftd, or it is damaged" in refused.stderr
    assert refused.stderr.endswith("Nothing was changed\n")
    assert not (tmp_path / "new").exists()


def test_a_node_that_runs_is_not_restored_beside(lived, tmp_path):
    """It would write into the new directory, whatever its own is called by now. What listens at its peer listener is taken for it."""
    cluster = ProcessCluster(tmp_path, 1)
    with socket.create_server(cluster.address(1, "peer")):
        refused = run("restore", str(lived / "backup"), "--config", str(cluster.config))
    assert (refused.returncode, "something listens at 127.0.0.1:" in refused.stderr) == (1, True)
    assert not (tmp_path / "data").exists()


def test_nothing_of_somebody_else_is_overwritten(lived, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in ("backup.part", "new/1.restoring"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(victim)
    assert run("backup", str(tmp_path / "backup"), "--directory", str(lived / "data/1")).returncode == 0
    assert not (tmp_path / "backup").is_symlink()
    assert (tmp_path / "backup").stat().st_mode & 0o007 == 0
    assert run("restore", str(tmp_path / "backup"), "--data", str(tmp_path / "new")).returncode == 0
    assert victim.read_text() == "mine"
    assert (tmp_path / "new/1.restoring").is_symlink()


def test_what_cannot_be_backed_up_or_restored_is_said(lived, tmp_path):
    again = run("backup", str(lived / "backup"), "--directory", str(lived / "data/1"))
    assert (again.returncode, "is there already: nothing was changed" in again.stderr) == (1, True)
    nobody = run("backup", str(tmp_path / "file"), "--endpoint", f"127.0.0.1:{free_ports(1)[0]}")
    assert (nobody.returncode, "no answer: 127.0.0.1:" in nobody.stderr) == (1, True)
    none = run("restore", str(tmp_path / "none"), "--data", str(tmp_path / "new"))
    assert (none.returncode, "there is no such file" in none.stderr) == (1, True)
    both = run("backup", str(tmp_path / "file"), "--directory", "x", "--endpoint", "127.0.0.1:1")
    assert both.returncode == 2
    missing = run("backup", str(tmp_path / "file"), "--directory", str(tmp_path / "nothing"))
    assert (missing.returncode, "there is no data directory" in missing.stderr) == (1, True)
    assert list(tmp_path.iterdir()) == []


# -- recover -----------------------------------------------------------------------------------


def test_recover_says_that_nothing_is_wrong(lived):
    asked = run("recover", *of(lived))
    assert (asked.returncode, asked.stderr) == (0, "")
    assert asked.stdout.endswith("nothing is wrong here\n")


def test_a_node_in_doubt_doubts_no_more_once_its_tail_is_accepted(tmp_path):
    with ProcessCluster(tmp_path, 3) as cluster:
        cluster.leader()
        client = cluster.client(1)
        for number in range(5):
            client.put(b"job %d" % number)
        cluster.close()
        (segment,) = (tmp_path / "data/1/log").glob("*.log")
        data = bytearray(segment.read_bytes())
        data[len(data.rstrip(b"\0")) - 60] ^= 1  # in the last batch; behind it is space for the next
        segment.write_bytes(data)
        asked = run("recover", "--config", str(cluster.config), "--node", "1")
        if "may have lost entries" not in asked.stdout:
            pytest.fail(f"not in doubt: {asked.stdout}{asked.stderr}")
        assert "--accept-tail lets it vote again" in asked.stdout
        assert segment.read_bytes() == data  # looking changes nothing
        accepted = run("recover", "--config", str(cluster.config), "--node", "1", "--accept-tail")
        assert accepted.returncode == 0
        assert "its votes count in full again" in accepted.stdout
        assert list((tmp_path / "data/1/log").glob("*doubtful-at*"))
        again = run("recover", "--config", str(cluster.config), "--node", "1")
        assert again.stdout.endswith("nothing is wrong here\n")
        cluster.start(1)
        cluster.start(2)  # two of three elect a leader, as no doubtful vote of one could let them
        wait_for(lambda: cluster.find_leader() or None, what="a leader")


def test_one_of_three_becomes_a_new_cluster(tmp_path):
    with ProcessCluster(tmp_path, 3) as cluster:
        cluster.leader()
        client = cluster.client(1)
        ids = [client.put(b"job %d" % number) for number in range(5)]
        # A node that is stopped in order has written its log; one that is killed may lack what a majority of the others has.
        cluster.running[1].process.send_signal(signal.SIGTERM)
        cluster.running.pop(1).process.wait(timeout=10)
        cluster.close()
        for node in (2, 3):
            shutil.rmtree(tmp_path / f"data/{node}")
        both = run("recover", "--config", str(cluster.config), "--node", "1", "--new-cluster", "--accept-tail")
        assert (both.returncode, "leave one out" in both.stderr) == (2, True)
        made = run("recover", "--config", str(cluster.config), "--node", "1", "--new-cluster")
        assert (made.returncode, made.stderr) == (0, "")
        assert "node 1 is the only member of a new cluster 'test'" in made.stdout
        (kept,) = (tmp_path / "data").glob("1.before-*")
        assert str(kept) in made.stdout
        assert list(kept.glob("log/*.log"))
        assert not list((tmp_path / "data").glob("*.backup"))
        cluster.start(1)
        client = cluster.client(1)
        assert [client.reserve(0) for _ in ids] == [(id, b"job %d" % number) for number, id in enumerate(ids)]
        assert client.stats()["nodes"] == "1"


def test_a_node_without_a_configuration_becomes_a_new_cluster(tmp_path):
    with ProcessCluster(tmp_path, 3) as cluster:
        cluster.leader()
        cluster.client(1).put(b"a job")
        wait_for(lambda: cluster.client(2).stats()["current-jobs-ready"] == "1" or None, what="node 2 having the job")
        cluster.close()
    made = run("recover", "--data", str(tmp_path / "data"), "--node", "2", "--new-cluster")
    assert (made.returncode, made.stderr) == (0, "")
    assert "Start it with the options that it had before" in made.stdout
    found = run("recover", "--data", str(tmp_path / "data"), "--node", "2")
    assert "nothing is wrong here" in found.stdout
    assert ", of term " in found.stdout


def test_a_failed_new_cluster_changes_nothing(lived, tmp_path, monkeypatch):
    data = copy_of(lived, tmp_path)
    before = sorted(path.relative_to(data) for path in data.rglob("*"))
    rename, renamed = os.rename, []

    def fails_when_it_counts(source: str, target: str) -> None:
        if ".new-" in source and target == str(data / "1"):
            renamed.append(source)
            raise OSError("no")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails_when_it_counts)
    with pytest.raises(OSError, match="no"):
        found_new_cluster(str(data / "1"), 1, MemberAddress("127.0.0.1", free_ports(1)[0], 0), lambda text: None)
    assert len(renamed) == 1
    assert sorted(path.relative_to(data) for path in data.rglob("*")) == before


def test_a_new_cluster_of_nothing_is_refused_and_changes_nothing(tmp_path):
    asked = run("recover", "--new-cluster", "--data", str(tmp_path))
    assert (asked.returncode, "there is no node's data in it" in asked.stderr) == (1, True)
    assert list(tmp_path.iterdir()) == []


def test_recover_of_a_directory_in_use_is_refused(tmp_path):
    with ProcessCluster(tmp_path, 1) as cluster:
        cluster.leader()
        asked = run("recover", "--config", str(cluster.config))
        assert (asked.returncode, "another raftd uses this data directory; stop it first" in asked.stderr) == (1, True)

"""`/events` and the log in JSON, of real nodes."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from raftd.bench.local import free_ports, wait_for
from tests.processes.harness import TWISTD, ProcessCluster
from tests.processes.test_faces import _try, run, write


def listen(cluster: ProcessCluster, node: int, path: str = "/events", **headers: str) -> Iterator[tuple[str, str, dict]]:
    """(id, event, data), as they come. Ends when the connection does."""
    connection = http.client.HTTPConnection(*cluster.address(node, "http"), timeout=20)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    assert (answer.status, answer.getheader("Content-Type")) == (200, "text/event-stream; charset=utf-8")
    return _read(answer)


def _read(answer: http.client.HTTPResponse) -> Iterator[tuple[str, str, dict]]:
    fields: dict[str, str] = {}
    while line := answer.readline():
        text = line.decode().rstrip("\n")
        if text:
            name, _, value = text.partition(": ")
            fields[name] = value
        elif "event" in fields:
            yield fields.get("id", ""), fields["event"], json.loads(fields["data"])
            fields = {}


def test_one_listens_on_at_another_node_when_the_leader_is_killed(tmp_path):
    with ProcessCluster(tmp_path, 3) as cluster:
        leader = cluster.leader()
        other, third = [node for node in cluster.nodes if node != leader]
        client = cluster.client(other)
        events = listen(cluster, leader, "/events?kind=job&tube=default")
        first = listen(cluster, other)
        assert next(first)[1:2] == ("role",)
        client.put(b"one")
        id, event, data = next(events)
        assert (event, data["what"], data["job"], data["tube"]) == ("job", "put", 1, "default")
        cluster.kill(leader)
        client = wait_for(lambda: _try(cluster.addresses[third]["line"]), what="another node")
        client.put(b"two")
        client.reserve_and_delete(2)
        resumed = listen(cluster, third, "/events?kind=job", **{"Last-Event-ID": id})
        told = [next(resumed) for _ in range(3)]
        assert [(data["what"], data["job"]) for _, _, data in told] == [("put", 2), ("reserved", 2), ("deleted", 2)]
        places = [tuple(map(int, id.split("."))) for id, _, _ in told]
        assert places == sorted(places)
        assert any(event == "role" and data["leader"] not in (0, leader) for _, event, data in first)  # it told of the election


@pytest.mark.parametrize("mode", ["foreground", "daemon"])
def test_the_log_in_json_has_the_fields_of_events(tmp_path, mode):
    config = write(tmp_path / "one.yaml")
    (port,) = free_ports(1)
    config.write_text(config.read_text().replace("host: 127.0.0.1", f"host: 127.0.0.1\n    http: {port}"))
    line = int(config.read_text().split("line: ")[1].split()[0])
    options = ["--logfile=node.log", "raftd", "--config", "one.yaml", "--log-format", "json"]
    if mode == "daemon":
        started = run(*options, cwd=tmp_path)
        assert (started.returncode, started.stderr) == (0, "")
        pid = int((tmp_path / "twistd.pid").read_text())
    else:
        process = subprocess.Popen([*TWISTD, "-n", *options], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        pid = process.pid
    try:
        wait_for(lambda: _try(line), what="the line listener").put(b"x")
    finally:
        os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not (tmp_path / "twistd.pid").exists(), what="the end")
    if mode == "foreground":
        assert process.communicate(timeout=10)[0] == ""
    lines = [json.loads(text) for text in (tmp_path / "node.log").read_text().splitlines()]
    assert all(line.keys() >= {"time", "level", "system", "message"} for line in lines)
    (leads,) = [line for line in lines if line.get("event") == "role" and line["role"] == "leader"]
    assert (leads["node"], leads["term"], leads["leader"], leads["level"]) == (1, 1, 1, "info")
    assert "leads now" in leads["message"]


def test_the_log_in_json_goes_to_standard_output_too(tmp_path):
    config = write(tmp_path / "one.yaml")
    line = int(config.read_text().split("line: ")[1].split()[0])
    process = subprocess.Popen(
        [*TWISTD, "-n", "--pidfile=", "raftd", "--config", "one.yaml", "--log-format=json"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_for(lambda: _try(line), what="the line listener").put(b"x")
    finally:
        process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=10)
    assert any(json.loads(text)["message"].startswith("node 1 of cluster") for text in output.splitlines())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["raftd", "--log-format", "xml"], "expected text or json"),
        (["--syslog", "raftd", "--log-format", "json"], "leave out --syslog"),
    ],
)
def test_a_wrong_form_of_the_log_is_refused_in_one_line(tmp_path, options, said):
    refused = run("-n", *options, cwd=tmp_path)
    assert refused.returncode == 1
    assert said in refused.stderr
    assert len(refused.stderr.splitlines()) == 1

"""The load that speaks the client protocol, against a real node."""

from __future__ import annotations

import re

import pytest

from raftd.bench.loaders.connection import LoadError
from raftd.bench.loaders.raftd import RaftdConnection
from raftd.bench.local import LocalCluster
from raftd.client import Client
from tests.cli.test_commands import run
from tests.client.test_clients import url


def until(connection: RaftdConnection, name: str, count: int) -> None:
    while getattr(connection, name) < count:
        connection.receive()


@pytest.mark.slow
def test_what_is_counted_is_what_was_done(tmp_path):
    with LocalCluster(tmp_path, 1) as cluster, Client(url(cluster)) as queue:
        cluster.leader()
        queue.stats("t")  # whoever comes next is let in
        connection = RaftdConnection(cluster.address(1, "client"), "t", b"x" * 20)
        connection.put(250)
        until(connection, "puts_done", 250)
        assert (connection.puts_done, queue.stats("t").ready) == (250, 250)
        connection.take(8)
        for done in range(1, 251):
            until(connection, "takes_done", done)
            connection.take(1)
        assert (connection.takes_done, queue.stats("t").deletes) == (250, 250)
        connection.close()
        with pytest.raises(LoadError, match="bodies of"):
            RaftdConnection(cluster.address(1, "client"), "t", bytes(5_000))


@pytest.mark.load
def test_the_command_prints_a_ratio_for_each_pair(tmp_path):
    done = run("bench", "client", "--seconds", "0.3", "--rounds", "1", "--data", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    rows = re.findall(r"^ +(put|work), .* +([\d,]+) +[\d.]+ +(put|work), .* +([\d,]+) +[\d.]+ +([\d.]+) *$", done.stdout, re.MULTILINE)
    assert [(row[0], row[2]) for row in rows] == [("put", "put"), ("put", "put"), ("work", "work")]
    for row in rows:
        assert float(row[4]) == pytest.approx(int(row[3].replace(",", "")) / int(row[1].replace(",", "")), abs=0.01)
    assert list(tmp_path.iterdir()) == []

"""TLS with real processes: who gets in, who does not and what the log says, and how a cluster changes over under load."""

from __future__ import annotations

import asyncio
import http.client
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from raftd.bench.local import LocalError, wait_for
from raftd.cli.authority import new_authority, new_client, revoked, save, write
from raftd.client import AsyncClient, Client
from raftd.client.errors import RaftdError, Unreachable
from raftd.client.tls import TlsFiles
from tests.processes.harness import Closed, LineClient
from tests.processes.secure import CLUSTER, SecureCluster

BIN = Path(sys.executable).parent
#: What a face of the client for asyncio or Twisted runs as a program of its own.
TWISTED = """
import sys
from twisted.internet import defer, task
from raftd.client.deferred import TwistedClient

async def main(reactor, url):
    client = TwistedClient(url, timeout=5)
    client.startService()
    id = await client.put("twisted", "x" * 60_000)
    job = await client.reserve("twisted", timeout=5)
    assert (job.id, len(job.body)) == (id, 60_000)
    await job.delete()
    await client.stopService()
    print("done")

task.react(lambda reactor, url: defer.ensureDeferred(main(reactor, url)), sys.argv[1:])
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureCluster]:
    with SecureCluster(tmp_path_factory.mktemp("secure"), 3) as running:
        running.leader()
        yield running


def said(cluster: SecureCluster, node: int, text: str) -> None:
    """Wait until the node has said so."""
    wait_for(lambda: text in cluster.log(node), what=repr(text))


def contexts(cluster: SecureCluster) -> ssl.SSLContext:
    return cluster.secured.context()


# -- who gets in ------------------------------------------------------------------------------


def test_every_client_works_on_every_node(cluster):
    for node in cluster.nodes:
        line = cluster.client(node)
        id = line.put(b"line" * 10_000)
        assert line.reserve_and_delete(id)
        with Client(cluster.url(node)) as queue:
            queue.put("blocking", b"x" * 60_000)
            jobs = [queue.reserve("blocking", timeout=5)]
            assert [len(job.body) for job in jobs] == [60_000]
            jobs[0].delete()
        connection = http.client.HTTPSConnection(*cluster.address(node, "http"), context=contexts(cluster), timeout=5)
        connection.request("GET", "/metrics")
        assert b"\nraftd_certificate_expiry_seconds 2." in connection.getresponse().read()  # 30 days are 2.592e+06
        connection.request("POST", "/v1/tubes/http/jobs", b'{"body": "x"}', {"Content-Type": "application/json"})
        assert connection.getresponse().status == 201


def test_the_clients_for_asyncio_and_twisted(cluster):
    async def use() -> int:
        async with AsyncClient(cluster.url()) as queue:
            id = await queue.put("async", "x" * 60_000)
            job = await queue.reserve("async", timeout=5)
            assert job is not None
            await job.delete()
            return job.id - id

    assert asyncio.run(use()) == 0
    done = subprocess.run([sys.executable, "-c", TWISTED, cluster.url()], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr


def test_the_commands_of_operators(cluster):
    config = cluster.config_of(1)
    status = subprocess.run([BIN / "raftd", "status", "-c", config], capture_output=True, text=True, timeout=60, check=True)
    assert [line.split()[1] for line in status.stdout.splitlines()[1:4]] == ["1", "2", "3"]
    environment = {**os.environ, "RAFTD_URL": cluster.url()}
    put = subprocess.run([BIN / "raftd", "put", "cli", "x"], capture_output=True, text=True, env=environment, timeout=60, check=True)
    assert put.stdout.strip().isdigit()
    where = f"127.0.0.1:{cluster.addresses[1]['line']}"
    asked = subprocess.run(
        [BIN / "raftd", "console", where], input="put 0 0 60 3\nabc\n", capture_output=True, text=True, env=environment, check=True
    )
    assert asked.stdout.startswith("INSERTED ")


def test_curl(cluster):
    own = ["--cacert", cluster.files / "ca.pem", "--cert", cluster.files / "client.pem", "--key", cluster.files / "client.key"]
    url = f"https://127.0.0.1:{cluster.addresses[2]['http']}/readyz"
    asked = subprocess.run(["curl", "--silent", "--max-time", "5", *own, url], capture_output=True, text=True, check=True)
    assert '"ready": true' in asked.stdout or '"ready":true' in asked.stdout


# -- who does not -----------------------------------------------------------------------------


def refused(url: str) -> str:
    with Client(url, timeout=1.0) as queue, pytest.raises(Unreachable) as caught:
        queue.put("never", "x")
    return str(caught.value)


def test_a_client_without_a_certificate_is_refused(cluster):
    assert "certificate required" in refused(cluster.url(1, shows=None))
    said(cluster, 1, "to the client listener is refused: it has shown no certificate")


def test_plain_text_at_each_listener_is_told_in_one_line(cluster):
    with pytest.raises(Closed):
        LineClient(cluster.addresses[1]["line"]).ask(b"stats")
    refused(cluster.plain_url(1))
    connection = http.client.HTTPConnection(*cluster.address(1, "http"), timeout=5)
    connection.request("GET", "/readyz")
    assert connection.getresponse().status == 400
    with socket.create_connection(cluster.address(1, "peer"), timeout=5) as peer:
        peer.sendall(bytes(8))
        with suppress(ConnectionResetError):
            assert peer.recv(1) == b""
    for name in ("line", "client", "http", "peer"):
        said(cluster, 1, f"a connection from 127.0.0.1 to the {name} listener is refused: it speaks plain text")


@pytest.mark.parametrize(
    ("name", "days", "reason"),
    [("expired", -1, "its certificate is not trusted: it has expired"), ("foreign", 30, "none of the authorities in `ca` has signed it")],
)
def test_a_certificate_that_is_not_good_is_refused(cluster, name, days, reason):
    authority = cluster.authority if name == "expired" else new_authority(CLUSTER, 30)
    made = new_client(authority, CLUSTER, name, max(days, 0))
    save(cluster.files, name, made)
    if days < 0:
        wait_for(lambda: made.certificate.not_valid_after_utc.timestamp() + 1 < time.time(), what="its end")
    refused(cluster.url(2, shows=name))
    said(cluster, 2, reason)


def test_a_client_cannot_be_a_node(cluster):
    context = contexts(cluster)
    context.check_hostname = False
    with socket.create_connection(cluster.address(1, "peer"), timeout=5) as plain, context.wrap_socket(plain) as peer:
        peer.sendall(NODE_2_HELLO)
        while peer.recv(4096):
            pass
    said(cluster, 1, "is refused: the certificate at this connection is not that of node 2 of this cluster")


def _hello() -> bytes:
    from raftd.jobs.commands import FEATURE_LEVEL
    from raftd.wire.peer import Hello, encode_hello

    return encode_hello(Hello(CLUSTER, (1, 2, 3), b"", 2, 99, b"d" * 16, FEATURE_LEVEL))


NODE_2_HELLO = _hello()


def test_handshakes_that_are_never_done_do_no_harm(cluster):
    """A thousand that send half of one, and some nothing at all."""
    half = b"\x16\x03\x01\x02\x00\x01"
    idle = []
    try:
        for number in range(1_000):
            one = socket.create_connection(cluster.address(3, ("line", "client", "http", "peer")[number % 4]), timeout=5)
            if number % 10:
                one.sendall(half)
            idle.append(one)
        with Client(cluster.url(3), timeout=10) as queue:
            assert queue.put("meanwhile", "x") > 0
    finally:
        for one in idle:
            one.close()
    assert cluster.leader()


# -- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda files: (files / "ca.pem").unlink(), "tls: {files}/ca.pem: No such file or directory"),
        (lambda files: (files / "node-1.pem").write_text("no"), "tls: {files}/node-1.pem: expected certificates in PEM"),
        (lambda files: (files / "node-1.key").write_text("no"), "tls: {files}/node-1.key: expected a private key in PEM"),
        (
            lambda files: (files / "node-1.key").chmod(0o644),
            "others than its owner may read or write this key: chmod 600 {files}/node-1.key",
        ),
        (lambda files: os.replace(files / "client.key", files / "node-1.key"), "it is not the key of {files}/node-1.pem"),
        (
            lambda files: os.replace(files / "client.pem", files / "node-1.pem"),
            "it is no certificate of this node: expected URI:raftd://test/node/1",
        ),
    ],
    ids=["no authority", "no certificate", "no key", "a key for all to read", "another key", "of somebody else"],
)
def test_a_node_with_files_that_cannot_be_used_does_not_start_and_says_why(tmp_path, harm, reason):
    cluster = SecureCluster(tmp_path, 1)
    harm(cluster.files)
    cluster.start(1)
    try:
        assert cluster.running[1].process.wait(20) == 1
        assert reason.format(files=cluster.files) in cluster.log(1)
    finally:
        cluster.close()


def test_new_certificates_are_taken_without_a_restart_and_bad_ones_change_nothing(tmp_path):
    with SecureCluster(tmp_path, 1) as cluster:
        cluster.leader()
        before = cluster.client(1)
        old = served(cluster, 1)
        new = cluster.certify(1).serial_number
        os.kill(cluster.running[1].process.pid, signal.SIGHUP)
        wait_for(lambda: served(cluster, 1) == new, what="the new certificate")
        assert old != new
        assert before.put(b"the connection from before lives") > 0
        (cluster.files / "node-1.pem").write_text("no")
        said(cluster, 1, "the certificates have changed, and cannot be used; the old ones are still in use")  # without a signal
        assert served(cluster, 1) == new


def served(cluster: SecureCluster, node: int) -> int:
    """The serial number of the certificate that a node shows."""
    with (
        socket.create_connection(cluster.address(node, "client"), timeout=5) as plain,
        contexts(cluster).wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        return int(connection.getpeercert()["serialNumber"], 16)


def test_a_certificate_that_is_revoked_lets_nobody_in_any_more(tmp_path):
    cluster = SecureCluster(tmp_path, 1)
    lost = new_client(cluster.authority, CLUSTER, "lost", 30)
    save(cluster.files, "lost", lost)
    write(cluster.files / "crl.pem", revoked(cluster.authority, [], None))
    cluster.more["crl"] = "tls/crl.pem"
    with cluster:
        cluster.leader()
        with Client(cluster.url(1, shows="lost")) as queue:
            assert queue.put("t", "x") == 1
        write(cluster.files / "crl.pem", revoked(cluster.authority, [lost.certificate], None))
        os.kill(cluster.running[1].process.pid, signal.SIGHUP)
        said(cluster, 1, "new certificates are in use")
        refused(cluster.url(1, shows="lost"))
        said(cluster, 1, "its certificate is not trusted: it is revoked")
        with Client(cluster.url(1)) as queue:
            assert queue.put("t", "x") == 2


def test_certificates_of_clients_may_be_left_out(tmp_path):
    cluster = SecureCluster(tmp_path, 1)
    cluster.more["verify_clients"] = False
    with cluster, Client(cluster.url(1, shows=None)) as queue:
        assert queue.put("t", "x") == 1


def test_a_node_that_shows_the_certificate_of_another_stays_out(tmp_path):
    cluster = SecureCluster(tmp_path, 2)
    with cluster:
        cluster.leader()
        cluster.kill(2)
        impostor = cluster.certify(2, cluster="other")
        assert impostor
        cluster.start(2)
        assert cluster.running[2].process.wait(20) == 1
        assert "it is no certificate of this node" in cluster.log(2)


def test_a_node_that_others_reach_wants_tls_or_an_operator_who_knows(tmp_path):
    config = tmp_path / "c.yaml"
    text = "cluster: t\ndata: d\nnodes: {1: {host: 0.0.0.0, peer: 7, line: 8}}\n"
    config.write_text(text)
    started = subprocess.run(
        [BIN / "twistd", "-n", "--pidfile=", "raftd", "-c", config], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
    )
    assert started.returncode == 1
    assert started.stderr == (
        "raftd: nodes.1.host: 0.0.0.0 can be reached from other machines, and without TLS whoever reaches it may do everything: "
        "set `tls` (`raftd tls init` makes certificates), or `insecure: true`\n"
    )


# -- changing over ----------------------------------------------------------------------------


class Load:
    """Puts jobs one after the other, as long as it runs; how long it was kept waiting at most."""

    def __init__(self, cluster: SecureCluster, url: str) -> None:
        self.acknowledged: list[int] = []
        self.longest_s = 0.0
        self.failed: list[str] = []
        self._client = Client(url, timeout=20)
        self._is_over = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with self._client as queue:
            while not self._is_over:
                began = time.monotonic()
                try:
                    self.acknowledged.append(queue.put("load", b"x" * 200))
                except RaftdError as error:
                    self.failed.append(str(error))
                self.longest_s = max(self.longest_s, time.monotonic() - began)

    def end(self) -> None:
        self._is_over = True
        self._thread.join()


def restart_all(cluster: SecureCluster, mode: str | None) -> None:
    """Node by node, each once the one before is back."""
    for node in cluster.nodes:
        cluster.running[node].stop()
        cluster.modes[node] = mode
        cluster.start(node)
        wait_for(lambda node=node: is_back(cluster, node), what=f"node {node}")


def is_back(cluster: SecureCluster, node: int) -> bool:
    """It has a leader, and all that the others have."""
    try:
        stats = cluster.stats(node)
    except LocalError:
        return False
    return stats is not None and stats["leader"] != "0" and int(stats["applied-index"]) >= max(indices(cluster))


def indices(cluster: SecureCluster) -> list[int]:
    found = [cluster.stats(node) for node in cluster.running]
    return [int(stats["applied-index"]) - 200 for stats in found if stats is not None]


@pytest.mark.load
def test_a_cluster_changes_to_tls_and_back_under_load(tmp_path):
    with SecureCluster(tmp_path, 3, None) as cluster:
        cluster.leader()
        load = Load(cluster, cluster.plain_url())
        restart_all(cluster, "accept")
        secure = Load(cluster, cluster.url())
        load.end()
        cluster.tls = cluster.secured
        restart_all(cluster, "required")
        restart_all(cluster, "accept")
        plain_again = Load(cluster, cluster.plain_url())
        secure.end()
        cluster.tls = None
        restart_all(cluster, None)
        plain_again.end()
        loads = (load, secure, plain_again)
        longest_s = max(one.longest_s for one in loads)
        count = sum(len(one.acknowledged) for one in loads)
        print(f"longest wait while the cluster changed over: {longest_s:.2f} s; {count} puts")
        assert [one.failed for one in loads] == [[], [], []]
        assert int(cluster.client(1).stats()["current-jobs-ready"]) >= count


@pytest.mark.load
def test_the_authority_changes_under_load(tmp_path):
    """Both are trusted for a while: then certificates change, then the old authority goes."""
    with SecureCluster(tmp_path, 3) as cluster:
        cluster.leader()
        load = Load(cluster, cluster.url())
        old, cluster.authority = cluster.authority, new_authority(CLUSTER, 30)
        save(cluster.files, "new-client", new_client(cluster.authority, CLUSTER, "tester", 30))
        write(cluster.files / "ca.pem", old.pem + cluster.authority.pem)
        reload(cluster, 1)
        for node in cluster.nodes:
            cluster.certify(node)
        reload(cluster, 2)
        write(cluster.files / "new-ca.pem", cluster.authority.pem)
        later = Load(cluster, cluster.url(shows="new-client", trusts="new-ca"))
        load.end()
        write(cluster.files / "ca.pem", cluster.authority.pem)
        reload(cluster, 3)
        for node in cluster.nodes:  # new connections between nodes, all with the new authority
            cluster.kill(node)
            cluster.tls = TlsFiles(
                str(cluster.files / "ca.pem"), str(cluster.files / "new-client.pem"), str(cluster.files / "new-client.key")
            )
            cluster.start(node)
            wait_for(lambda node=node: is_back(cluster, node), what=f"node {node}")
        later.end()
        assert (load.failed, later.failed) == ([], [])
        assert load.acknowledged
        assert later.acknowledged
        assert "none of the authorities" in refused_reason(cluster)


def reload(cluster: SecureCluster, times: int) -> None:
    for node in cluster.nodes:
        os.kill(cluster.running[node].process.pid, signal.SIGHUP)
    for node in cluster.nodes:
        wait_for(lambda node=node: cluster.log(node).count("new certificates are in use") >= times, what=f"node {node} reloading")


def refused_reason(cluster: SecureCluster) -> str:
    """What the log says when one comes with a certificate of the old authority."""
    refused(cluster.url(1, shows="client"))
    wait_for(lambda: "is not trusted" in cluster.log(1), what="a reason")
    return cluster.log(1)

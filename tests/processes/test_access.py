"""Users of a real cluster with TLS: who gets in with what, and what becomes of an open connection when rights change."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import greenstalk
import pytest
from click.testing import CliRunner, Result

from raftd.bench.local import free_ports, wait_for
from raftd.cli.authority import new_client, save
from raftd.cli.main import main
from raftd.client import AsyncClient, Client
from raftd.client.connection import Connection, NoAnswer, Unreachable
from raftd.client.connection import NotAuthorized as NoAnswerNotAuthorized
from raftd.client.credentials import CredentialFiles
from raftd.client.errors import NotAuthorized, OverQuota
from raftd.config import Config, NodeAddress
from raftd.errors import ConfigError
from raftd.jobs import replies as r
from raftd.jobs import rights as g
from raftd.jobs.rights import Grant, Right
from raftd.passwords import digest_of_password, digest_of_token, new_token
from raftd.server.join import join
from raftd.wire import client as w
from tests.processes.harness import LineClient, ProcessCluster
from tests.processes.secure import CLUSTER, SecureCluster
from tests.processes.test_tls import TWISTED

PASSWORD = "correct horse battery staple"
SALT = b"s" * 16


class Users:
    """Changes of users, by somebody who may make them."""

    def __init__(self, cluster: ProcessCluster, url: str, token: str) -> None:
        self.cluster, self.url, self.token = cluster, url, token

    def change(self, *changes: g.Change) -> None:
        address = ("127.0.0.1", self.cluster.addresses[1]["client"])
        with Connection(address, 10, self.cluster.tls, CredentialFiles(token=self.token)) as connection:
            assert connection.ask(w.ChangeAccessRequest(1, list(changes))).reply == r.AccessChanged()

    def make(self, name: str, *granted: tuple[Right, str]) -> str:
        token = new_token()
        grants = [g.AddGrant(name, Grant(*one)) for one in granted]
        self.change(g.AddUser(name), g.AddToken(name, "first", digest_of_token(token)), *grants)
        return token


def raftd(*arguments: str | Path, **environment: str) -> Result:
    env: dict[str, str | None] = {"RAFTD_URL": None, "RAFTD_TOKEN": None, **environment}
    return CliRunner().invoke(main, [str(one) for one in arguments], env=env)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureCluster]:
    directory = tmp_path_factory.mktemp("access")
    made = SecureCluster(directory, 3, local_user="local")
    for node in made.nodes:
        made.addresses[node]["line_socket"] = str(directory / f"line-{node}.sock")
    made.write_config(made.config, made.addresses)
    with made as running:
        running.leader()
        yield running


@pytest.fixture(scope="module")
def users(cluster: SecureCluster) -> Users:
    """The first of them is made as the documents say."""
    out = cluster.directory / "root.token"
    made = raftd("init", "root", "--config", cluster.config_of(1), "--out", out)
    assert made.exit_code == 0, made.stderr
    assert "every client has to say who he is" in made.stderr
    assert out.stat().st_mode & 0o777 == 0o600
    token = out.read_text().strip()
    assert "is there already" in raftd("init", "root", "--config", cluster.config_of(1), "--out", out).stderr
    assert out.read_text().strip() == token
    assert raftd("init", "again", "--config", cluster.config_of(1)).stderr == "raftd: the cluster has users already\n"
    return Users(cluster, cluster.url(), token)


def url(cluster: SecureCluster, token: str, name: str) -> str:
    path = cluster.directory / f"{name}.token"
    path.write_text(f"{token}\n")
    return f"{cluster.url(shows='client')}&token={path}"


def https(cluster: SecureCluster, node: int, method: str, path: str, authorization: str, body: object = None) -> tuple[int, object]:
    connection = http.client.HTTPSConnection(*cluster.address(node, "http"), context=cluster.secured.context(), timeout=10)
    headers = {"Authorization": authorization, **({"Content-Type": "application/json"} if body is not None else {})}
    connection.request(method, path, json.dumps(body) if body is not None else None, headers)
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, json.loads(data)


def test_every_client_works_with_a_token_and_none_without(cluster, users):
    token = users.make("everyone", (Right.PUT, "*"), (Right.WORK, "*"))
    where = url(cluster, token, "everyone")
    with Client(where, timeout=10) as queue:
        queue.put("tokens", "x")
        job = queue.reserve("tokens", timeout=5)
        assert job is not None
        job.delete()

    async def use() -> None:
        async with AsyncClient(where) as queue:
            await queue.put("tokens", "x")
            job = await queue.reserve("tokens", timeout=5)
            assert job is not None
            await job.delete()

    asyncio.run(use())
    done = subprocess.run([sys.executable, "-c", TWISTED, where], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
    assert raftd("put", "tokens", "x", RAFTD_URL=where).exit_code == 0
    for node in cluster.nodes:
        assert https(cluster, node, "POST", "/v1/tubes/tokens/jobs", f"Bearer {token}", {"body": "x"})[0] == 201
    with Client(cluster.url(), timeout=10) as stranger, pytest.raises(NotAuthorized, match="certificate is that of 'tester'"):
        stranger.put("tokens", "x")  # its certificate is of nobody who is a user


def test_curl_with_a_token(cluster, users):
    token = users.make("curl", (Right.READ, "*"))
    own = ["--cacert", cluster.files / "ca.pem", "--cert", cluster.files / "client.pem", "--key", cluster.files / "client.key"]
    where = f"https://127.0.0.1:{cluster.addresses[2]['http']}/v1/stats"
    command = ["curl", "--silent", "--max-time", "10", *own, "--oauth2-bearer", token, where]
    asked = subprocess.run(command, capture_output=True, text=True, check=True)
    assert '"total_jobs":' in asked.stdout


def test_greenstalk_over_the_socket_of_the_node_is_the_local_user(cluster, users):
    users.change(g.AddUser("local"), g.AddGrant("local", Grant(Right.PUT, "green*")), g.AddGrant("local", Grant(Right.WORK, "green*")))
    for node in cluster.nodes:
        client = greenstalk.Client(cluster.addresses[node]["line_socket"], use="green", watch="green")
        id = client.put("x")
        job = client.reserve(timeout=5)
        assert job.id == id
        client.delete(job)
        with pytest.raises(greenstalk.UnknownResponseError, match="NOT_AUTHORIZED"):
            client.use("red")
        client.close()


def test_greenstalk_through_a_tunnel_is_who_the_certificate_says(cluster, users):
    save(cluster.files, "tunnel", new_client(cluster.authority, CLUSTER, "tunnel", 30))
    users.change(g.AddUser("tunnel"), g.AddGrant("tunnel", Grant(Right.PUT, "tun*")))
    port = cluster.addresses[3]["line"]
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.processes.tunnel",
            str(port),
            *(str(cluster.files / name) for name in ("ca.pem", "tunnel.pem", "tunnel.key")),
        ],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    ) as tunnel:
        assert tunnel.stdout is not None
        client = greenstalk.Client(("127.0.0.1", int(tunnel.stdout.readline())), use="tun")
        assert client.put("x") > 0
        with pytest.raises(greenstalk.UnknownResponseError, match="NOT_AUTHORIZED"):
            client.reserve(timeout=0)
        client.close()
        tunnel.communicate()  # the end of its input ends it


def test_a_password_works_over_tls_and_the_wrong_one_does_not(cluster, users):
    users.make("ann", (Right.READ, "*"))
    users.change(g.SetPassword("ann", g.Password(SALT, digest_of_password(PASSWORD, SALT))))
    for password, status in ((PASSWORD, 200), ("wrong", 401), ("", 401)):
        shown = base64.b64encode(f"ann:{password}".encode()).decode()
        assert https(cluster, 1, "GET", "/v1/stats", f"Basic {shown}")[0] == status
    path = cluster.directory / "ann.password"
    path.write_text(PASSWORD)
    with Client(f"{cluster.url()}&user=ann&password={path}", timeout=10) as queue:
        assert queue.stats("nothing") is None
        with pytest.raises(NotAuthorized):
            queue.put("mail", "x")


@pytest.mark.parametrize(
    "shown", ["", "Bearer", "Bearer ", "Bearer x", "Basic", "Basic !", "Basic bm8=", "Digest x", "Bearer " + "x" * 5_000, "bearer\tx"]
)
def test_what_is_no_token_is_refused(cluster, users, shown):
    status, problem = https(cluster, 1, "GET", "/v1/stats", shown)
    assert (status, problem["type"]) == (401, "/v1/problems#not-authenticated")


def test_a_token_that_was_cut_padded_or_revoked_is_none(cluster, users):
    token = users.make("cut", (Right.READ, "*"))
    assert https(cluster, 2, "GET", "/v1/stats", f"Bearer {token}")[0] == 200
    for other in (token[:-1], f"{token}A", f"{token}=", token.upper(), f"{token} {token}"):
        assert https(cluster, 2, "GET", "/v1/stats", f"Bearer {other}")[0] == 401
    users.change(g.RemoveToken("cut", "first"))
    assert https(cluster, 2, "GET", "/v1/stats", f"Bearer {token}")[0] == 401


def test_a_change_of_rights_holds_for_connections_that_are_open(cluster, users):
    token = users.make("open", (Right.PUT, "*"))
    with Client(url(cluster, token, "open"), timeout=10) as queue:
        queue.put("mail", "x")
        users.change(g.RemoveGrant("open", Grant(Right.PUT, "*")))
        with pytest.raises(NotAuthorized):
            queue.put("mail", "x")
        users.change(g.AddGrant("open", Grant(Right.PUT, "*")), g.SetQuota("open", g.Quota(jobs_per_s=1)))
        queue.put_many("mail", ["x"] * 100)
        with pytest.raises(OverQuota):
            queue.put("mail", "x")
        users.change(g.RemoveUser("open"))
        with pytest.raises(NotAuthorized):
            queue.put("mail", "x")


def test_a_user_has_as_many_connections_as_his_quota_allows(cluster, users):
    token = users.make("few", (Right.PUT, "*"))
    users.change(g.SetQuota("few", g.Quota(connections=2)))
    first, second, third = (LineClient(cluster.addresses[1]["line"], tls=cluster.secured) for _ in range(3))
    auth = f"auth few {token}".encode()
    assert [client.ask(auth) for client in (first, second, third)] == [b"AUTHORIZED", b"AUTHORIZED", b"NOT_AUTHORIZED"]
    assert https(cluster, 1, "PUT", "/v1/tubes/x", f"Bearer {token}")[0] == 429
    assert first.ask(auth) == b"AUTHORIZED"  # it has that connection already
    first.close()
    wait_for(lambda: third.ask(auth) == b"AUTHORIZED", what="the place of the one that has gone")
    second.close()
    third.close()


def test_who_may_not_operate_cannot_let_a_node_join(tmp_path, monkeypatch):
    """The refusal was taken for a yes, and the node started as if it were a member."""
    with ProcessCluster(tmp_path, 1) as plain:
        plain.leader()
        place = ("127.0.0.1", plain.addresses[1]["client"])
        where = f"raftd://127.0.0.1:{place[1]}"
        root = raftd("init", "root", RAFTD_URL=where).stdout.strip()
        assert raftd("user", "add", "ann", RAFTD_URL=where, RAFTD_TOKEN=root).exit_code == 0
        token = raftd("token", "create", "ann", RAFTD_URL=where, RAFTD_TOKEN=root).stdout.strip()
        peer, client = free_ports(2)
        node = NodeAddress("127.0.0.1", peer, client=client)
        config = Config("test", str(tmp_path / "new"), {2: node})
        monkeypatch.setenv("RAFTD_TOKEN", token)
        with pytest.raises(ConfigError, match="not authorized"):
            join(place, config, 2, has_file=False)
        removed = raftd("member", "remove", "1", RAFTD_URL=where, RAFTD_TOKEN=token)
        assert (removed.exit_code, "not authorized" in removed.stderr) == (1, True)
        monkeypatch.setenv("RAFTD_TOKEN", root)
        assert 2 in join(place, config, 2, has_file=False).config.nodes


def test_the_commands(cluster, users):
    config = cluster.config_of(1)
    assert raftd("user", "add", "cli", "-c", config).exit_code == 0
    assert raftd("grant", "cli", "put", "mail*", "-c", config).exit_code == 0
    assert raftd("grant", "cli", "put", "mail.secret", "--deny", "-c", config).exit_code == 0
    token = raftd("token", "create", "cli", "laptop", "--expires", "90d", "-c", config).stdout.strip()
    where = url(cluster, token, "cli")
    shown = json.loads(raftd("user", "whoami", "--json", "-c", config).stdout)
    assert shown[0]["name"] == "node 1"
    (shown,) = json.loads(raftd("user", "whoami", "--json", RAFTD_URL=where).stdout)
    assert shown["name"] == "cli"
    assert shown["grants"] == [
        {"right": "put", "tubes": "mail*", "denied": False},
        {"right": "put", "tubes": "mail.secret", "denied": True},
    ]
    assert [(one["name"], one["left_ms"] > 89 * 86_400_000) for one in shown["tokens"]] == [("laptop", True)]
    assert raftd("put", "mail", "x", RAFTD_URL=where).exit_code == 0
    assert "has no such right" in raftd("put", "mail.secret", "x", RAFTD_URL=where).stderr
    assert "not authorized" in raftd("user", "list", RAFTD_URL=where).stderr
    assert raftd("revoke", "cli", "put", "mail*", "-c", config).exit_code == 0
    assert raftd("revoke", "cli", "put", "mail*", "-c", config).stderr.startswith("raftd: user cli has no such grant")
    assert raftd("token", "revoke", "cli", "laptop", "-c", config).exit_code == 0
    assert "not known who that is" in raftd("put", "mail", "x", RAFTD_URL=where).stderr
    assert raftd("user", "quota", "cli", "--jobs", "5", "-c", config).stdout == "5 jobs/s\n"
    assert raftd("user", "quota", "cli", "--bytes", "70", "-c", config).stdout == "5 jobs/s, 70 bytes/s\n"
    assert raftd("user", "quota", "cli", "-c", config).stdout == "5 jobs/s, 70 bytes/s\n"
    assert raftd("grant", "cli", "work", "-c", config).exit_code == 2  # all tubes are said as such
    # a token that is good for nothing is not in the way of a node's certificate
    assert raftd("user", "list", "-c", config, RAFTD_TOKEN="raftd-stale").exit_code == 0
    assert raftd("user", "remove", "cli", "-c", config).exit_code == 0
    assert "--force does it" in raftd("user", "remove", "root", "-c", config).stderr
    assert "--force does it" in raftd("token", "revoke", "root", "first", "-c", config).stderr
    assert "nobody would be left" in raftd("user", "remove", "root", "--force", "-c", config).stderr
    assert raftd("grant", "nobody", "read", "*", "-c", config).stderr == "raftd: there is no user nobody\n"
    assert "expected the name of a tube" in raftd("grant", "root", "read", "a b", "-c", config).stderr
    assert "it is a right to the cluster" in raftd("grant", "root", "operate", "mail", "-c", config).stderr
    records = [json.loads(line) for line in raftd("audit", "--json", "--by", "node 1", "-c", config).stdout.splitlines()]
    assert [(record["what"], record["to"]) for record in records[:3]] == [
        ("remove-user", "cli"),
        ("set-quota", "cli 5 jobs/s 70 bytes/s 0 connections 0 tubes"),
        ("set-quota", "cli 5 jobs/s 0 bytes/s 0 connections 0 tubes"),
    ]


def test_nothing_that_is_secret_is_in_logs_or_backups(cluster, users):
    token = users.make("secret", (Right.READ, "*"))
    assert https(cluster, 1, "GET", "/v1/stats", f"Bearer {token}")[0] == 200
    assert https(cluster, 1, "GET", "/v1/stats", f"Bearer {token}x")[0] == 401
    for node in cluster.nodes:
        assert token not in cluster.log(node)
    backup = cluster.directory / "all.raftd"
    assert raftd("backup", backup, "-c", cluster.config_of(1)).exit_code == 0
    assert token.encode() not in backup.read_bytes()


def test_a_node_that_has_just_started_knows_that_there_are_users(tmp_path):
    """It has applied nothing yet, and took everybody for one who may do everything: a stranger removed members."""
    with ProcessCluster(tmp_path, 3) as plain:
        plain.leader()
        where = f"raftd://127.0.0.1:{plain.addresses[1]['client']}"
        wait_for(lambda: raftd("init", "root", RAFTD_URL=where).exit_code == 0, what="init")
        wait_for(
            lambda: all(b"has_users\xc3" in (tmp_path / f"data/{node}/vote.a").read_bytes() for node in plain.nodes), what="all knowing"
        )
        for node in plain.nodes:
            plain.kill(node)
        plain.start(1)
        address = ("127.0.0.1", plain.addresses[1]["client"])
        wait_for(lambda: not isinstance(refusal_of(address), Unreachable), what="the node")
        assert isinstance(refusal_of(address), NoAnswerNotAuthorized)
        for method, path in (("GET", "/v1/cluster"), ("DELETE", "/v1/cluster/members/3"), ("GET", "/metrics"), ("GET", "/status")):
            assert plain_http(plain, method, path) == 401
        plain.start(2)
        plain.start(3)
        wait_for(lambda: plain_http(plain, "GET", "/readyz") == 200, what="a leader")
        assert plain_http(plain, "DELETE", "/v1/cluster/members/3") == 401


def plain_http(plain: ProcessCluster, method: str, path: str) -> int:
    connection = http.client.HTTPConnection(*plain.address(1, "http"), timeout=5)
    connection.request(method, path)
    return connection.getresponse().status


def refusal_of(address: tuple[str, int]) -> Exception | None:
    try:
        Connection(address, 5, credentials=CredentialFiles())
    except NoAnswer as refused:
        return refused
    return None


def test_the_first_user_is_made_on_a_nodes_own_machine_alone(tmp_path):
    """It cannot be asked for from another machine here: `tests/server/test_client.py` has that."""
    with ProcessCluster(tmp_path, 1) as plain:
        plain.leader()
        wait_for(lambda: raftd("init", "root", RAFTD_URL=f"raftd://127.0.0.1:{plain.addresses[1]['client']}").exit_code == 0, what="init")
        assert "not authorized" not in plain.log(1)

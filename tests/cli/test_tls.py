"""`raftd tls`: what it makes, and what it leaves alone."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509

from raftd.cli.main import main
from raftd.client.tls import files_of

CONFIG = "cluster: demo\ndata: d\nnodes:\n  1: {host: 127.0.0.1, peer: 7}\n  2: {host: queue.example, peer: 8}\n"
TLS = "tls: {ca: tls/ca.pem, certificate: 'tls/node-{node}.pem', key: 'tls/node-{node}.key', crl: tls/crl.pem}\n"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(CONFIG)
    return tmp_path


def run(line: str) -> Result:
    return CliRunner().invoke(main, ["tls", *shlex.split(line)])


def test_init_makes_all_that_a_cluster_needs_and_touches_nothing_that_is_there(place):
    made = run("init -c c.yaml")
    assert made.exit_code == 0, made.output
    names = "  ca: tls/ca.pem\n  certificate: tls/node-{node}.pem\n  key: tls/node-{node}.key\n  crl: tls/crl.pem\n"
    assert made.output == f"certificates of the nodes 1, 2 are in tls. In the configuration:\n\ntls:\n{names}"
    modes = {path.name: path.stat().st_mode & 0o777 for path in (place / "tls").iterdir()}
    assert {name for name, mode in modes.items() if mode == 0o600} == {"ca.key", "node-1.key", "node-2.key", "operator.key"}
    node = x509.load_pem_x509_certificate((place / "tls/node-2.pem").read_bytes())
    found = node.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert found.get_values_for_type(x509.UniformResourceIdentifier) == ["raftd://demo/node/2"]
    assert found.get_values_for_type(x509.DNSName) == ["queue.example", "localhost"]
    before = {path: path.read_bytes() for path in (place / "tls").iterdir()}
    again = run("init -c c.yaml")
    assert (again.exit_code, "is there already" in again.output) == (1, True)
    (place / "tls/ca.pem").unlink()
    (place / "tls/ca.key").unlink()
    assert run("init -c c.yaml").exit_code == 1  # there are certificates of nodes
    assert all(path.read_bytes() == data for path, data in before.items() if path.exists())


def test_renewed_certificates_keep_their_keys_and_check_says_how_long_they_are_good(place):
    run("init -c c.yaml --days 3")
    (place / "c.yaml").write_text(CONFIG + TLS)
    soon = run("check -c c.yaml")
    assert (soon.exit_code, soon.output.count("which is in 2 days: renew")) == (1, 2)
    key = (place / "tls/node-1.key").read_bytes()
    assert run("renew -c c.yaml").exit_code == 0
    assert (place / "tls/node-1.key").read_bytes() == key
    assert run("check -c c.yaml").exit_code == 0
    assert run("renew -c c.yaml --node 9").output == "raftd: --node 9: the configuration has no such node. Nothing was changed\n"
    (place / "tls/node-1.key").write_bytes((place / "tls/node-2.key").read_bytes())
    assert "node 1: " in run("check -c c.yaml").output


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\nb", "ca", "crl", "node-1", "-x"])
def test_names_that_would_be_another_file_are_refused(place, name):
    run("init -c c.yaml")
    before = {path: path.read_bytes() for path in (place / "tls").iterdir()}
    refused = CliRunner().invoke(main, ["tls", "client", "-c", "c.yaml", "--", name])
    assert refused.exit_code == 1
    assert {path: path.read_bytes() for path in (place / "tls").iterdir()} == before


def test_a_certificate_of_a_client_is_made_once_and_can_be_revoked(place):
    run("init -c c.yaml")
    made = run("client me -c c.yaml")
    assert files_of(made.output.strip()) == ("tls/ca.pem", "tls/me.pem", "tls/me.key")
    key = (place / "tls/me.key").read_bytes()
    assert "--renew makes a new certificate for that key" in run("client me -c c.yaml").output
    assert run("client me -c c.yaml --renew").exit_code == 0
    assert (place / "tls/me.key").read_bytes() == key
    assert run("revoke tls/me.pem -c c.yaml").exit_code == 0
    assert run("revoke tls/operator.pem -c c.yaml").exit_code == 0
    listed = x509.load_pem_x509_crl((place / "tls/crl.pem").read_bytes())
    serials = {x509.load_pem_x509_certificate((place / f"tls/{name}.pem").read_bytes()).serial_number for name in ("me", "operator")}
    assert {entry.serial_number for entry in listed} == serials
    run("init -c c.yaml --directory other")
    foreign = run("revoke other/operator.pem -c c.yaml")
    assert foreign.output == "raftd: other/operator.pem: the authority in tls has not signed it. Nothing was changed\n"
    (place / "tls/crl.pem").write_text("no")
    assert "expected a list of revoked certificates" in run("revoke tls/me.pem -c c.yaml").output


def test_what_is_missing_is_said(place):
    assert "tls/ca.key: the key of the authority is not there" in run("renew -c c.yaml").output
    run("init -c c.yaml")
    run("init -c c.yaml -d other")
    (place / "tls/ca.pem").write_bytes((place / "other/ca.pem").read_bytes())
    assert "it is not the key of a certificate in" in run("client me -c c.yaml").output
    assert (
        run("check -c c.yaml").output
        == "raftd: c.yaml: it has no `tls`; `raftd tls init` makes certificates, and says what to write there\n"
    )
    (place / "odd.yaml").write_text(CONFIG.replace("queue.example", "a..b"))
    assert "cannot be the name of a host" in run("init -c odd.yaml -d odd").output
    assert not (place / "odd").exists()


def test_files_are_beside_the_configuration_wherever_one_is(place, monkeypatch):
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    assert run("init -c ../c.yaml").exit_code == 0
    assert (place / "tls/ca.pem").exists()
    (place / "c.yaml").write_text(CONFIG + TLS)
    assert run("check -c ../c.yaml").exit_code == 0
    assert run("client me -c ../c.yaml").exit_code == 0
    assert "--directory says where it is" in run("client me2 -c ../c.yaml -d nowhere").output

"""The files around the container agree with each other. (No test builds the image: that needs a base image and root.)"""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from raftd import config as configuration
from raftd.client.tls import files_of

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "conf/compose.yaml").read_text())


def test_all_that_is_copied_is_there_and_not_ignored():
    copied = [source for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE) for source in line.split()[:-1]]
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == allowed
    assert all((ROOT / source).exists() for source in copied)


def test_the_image_runs_one_node_in_its_volume():
    config = configuration.load(str(ROOT / "conf/container.yaml"))
    assert config.data == re.search(r"^VOLUME (.*)$", DOCKERFILE, re.MULTILINE)[1]
    assert (list(config.nodes), config.address(1).host) == ([1], "0.0.0.0")
    exposed = re.search(r"^EXPOSE (.*)$", DOCKERFILE, re.MULTILINE)[1].split()
    own = config.address(1)
    assert [str(port) for port in (own.line, own.client, own.peer, own.http)] == exposed
    assert f'raftd status "$(hostname):{own.client}"' in DOCKERFILE


def test_compose_runs_the_three_nodes_of_its_cluster():
    config = configuration.load(str(ROOT / "conf" / COMPOSE["configs"]["cluster"]["file"]))
    places = configuration.load(str(ROOT / "conf/cluster.yaml"))
    nodes, volumes = set(), set()
    for name, service in COMPOSE["services"].items():
        if name == "certificates":
            continue
        node = configuration.choose_node(config, service["command"][-1])
        nodes.add(node)
        volume, certificates = service["volumes"]
        volumes.add(volume.partition(":")[0])
        assert certificates == "tls:/tls:ro"
        assert volume.endswith(f":{config.data}")
        assert name == service["hostname"] == config.address(node).host
        assert service["command"][:2] == ["--config", service["configs"][0]["target"]]
        # the host's ports are those that the README gives for three nodes on one machine
        ours, theirs = places.address(node), config.address(node)
        listeners = ("line", "client", "http")
        assert service["ports"] == [f"127.0.0.1:{getattr(ours, listener)}:{getattr(theirs, listener)}" for listener in listeners]
    assert nodes == set(config.nodes)
    assert volumes | {"tls"} == set(COMPOSE["volumes"])


def test_the_nodes_of_compose_have_certificates_before_they_start():
    maker = COMPOSE["services"]["certificates"]
    config = configuration.load(str(ROOT / "conf" / COMPOSE["configs"]["cluster"]["file"]))
    assert maker["entrypoint"][-1].endswith("raftd tls init --config /etc/raftd/raftd.yaml --directory /tls")
    assert {Path(name).parent for name in (config.tls.ca, config.tls.certificate, config.tls.key)} == {Path("/tls")}
    others = [service for name, service in COMPOSE["services"].items() if name != "certificates"]
    assert [service["depends_on"] for service in others] == [{"certificates": {"condition": "service_completed_successfully"}}] * 3
    assert files_of(others[0]["environment"]["RAFTD_URL"]) == ("/tls/ca.pem", "/tls/operator.pem", "/tls/operator.key")

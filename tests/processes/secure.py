"""Clusters of real nodes with TLS, each with certificates made for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from cryptography import x509

from raftd.cli.authority import new_authority, new_client, new_node, save, write
from raftd.client.tls import TlsFiles
from tests.processes.harness import ProcessCluster

CLUSTER = "test"


class SecureCluster(ProcessCluster):
    """Each node has a configuration file of its own, so that one can differ."""

    def __init__(self, directory: Path, count: int, mode: str | None = "required", **settings: Any) -> None:
        """`mode`: None for plain text, to begin with."""
        self.authority = new_authority(CLUSTER, 30)
        self.files = directory / "tls"
        self.files.mkdir()
        super().__init__(directory, count, **settings)
        write(self.files / "ca.pem", self.authority.pem)
        for node in self.nodes:
            self.certify(node)
        save(self.files, "client", new_client(self.authority, CLUSTER, "tester", 30))
        self.secured = TlsFiles(str(self.files / "ca.pem"), str(self.files / "client.pem"), str(self.files / "client.key"))
        self.tls = self.secured if mode == "required" else None
        self.modes = dict.fromkeys(self.nodes, mode)
        self.more: dict[str, object] = {}

    def certify(self, node: int, **change: Any) -> x509.Certificate:
        """A new certificate for it."""
        arguments = {"authority": self.authority, "cluster": CLUSTER, "node": node, "hosts": ["127.0.0.1"], "days": 30, **change}
        signed = new_node(**arguments)
        save(self.files, f"node-{node}", signed)
        return signed.certificate

    def config_of(self, node: int) -> Path:
        path = self.directory / f"node-{node}.yaml"
        raw = yaml.safe_load(self.config.read_text())
        if (mode := self.modes[node]) is not None:
            names = {"ca": "tls/ca.pem", "certificate": "tls/node-{node}.pem", "key": "tls/node-{node}.key"}
            raw["tls"] = {**names, "mode": mode, **self.more}
        path.write_text(yaml.safe_dump(raw))
        return path

    def url(self, *nodes: int, shows: str | None = "client", trusts: str = "ca") -> str:
        """Of the client listeners of these nodes."""
        places = ",".join(f"127.0.0.1:{self.addresses[node]['client']}" for node in nodes or self.nodes)
        own = f"&certificate={self.files}/{shows}.pem&key={self.files}/{shows}.key" if shows is not None else ""
        return f"raftds://{places}?ca={self.files}/{trusts}.pem{own}"

    def plain_url(self, *nodes: int) -> str:
        return "raftd://" + ",".join(f"127.0.0.1:{self.addresses[node]['client']}" for node in nodes or self.nodes)

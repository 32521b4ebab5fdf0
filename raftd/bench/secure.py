"""Nodes on this machine with TLS, and certificates that are made for them."""

from __future__ import annotations

from pathlib import Path

from raftd.bench.local import LocalCluster
from raftd.cli.authority import new_authority, new_client, new_node, save
from raftd.client.tls import TlsFiles

_CLUSTER = "local"
_DAYS = 30


class SecureCluster(LocalCluster):
    """As any of this machine's."""

    def __init__(self, directory: Path, count: int) -> None:
        names = {"ca": "tls/ca.pem", "certificate": "tls/node-{node}.pem", "key": "tls/node-{node}.key"}
        super().__init__(directory, count, tls=names)
        files = self.directory / "tls"
        files.mkdir(mode=0o700)
        authority = new_authority(_CLUSTER, _DAYS)
        save(files, "ca", authority)
        save(files, "client", new_client(authority, _CLUSTER, "bench", _DAYS))
        for node in self.nodes:
            save(files, f"node-{node}", new_node(authority, _CLUSTER, node, ["127.0.0.1"], _DAYS))
        self.tls = TlsFiles(str(files / "ca.pem"), str(files / "client.pem"), str(files / "client.key"))

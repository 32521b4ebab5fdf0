"""The configuration file: what may stand in it, and one clear line for what may not.

Every error names the path inside the file and what was expected there.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Annotated, Any, TypeVar
from urllib.parse import quote, unquote

import msgspec
import yaml

from raftd import limits
from raftd.errors import ConfigError

_T = TypeVar("_T")

Port = Annotated[int, msgspec.Meta(ge=1, le=65_535)]


class NodeAddress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where one node is found: `host` is what others dial, `listen` what its listeners bind, the same if not given. Every listener but
    `peer` may be left out. `line_socket` is the path of a Unix socket with the line listener behind it, absolute once loaded."""

    host: Annotated[str, msgspec.Meta(min_length=1)]
    peer: Port
    line: Port | None = None
    client: Port | None = None
    http: Port | None = None
    listen: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    line_socket: Annotated[str, msgspec.Meta(min_length=1, max_length=100)] | None = None

    @property
    def interface(self) -> str:
        """What its listeners bind."""
        return self.listen or self.host


def node_uri(cluster: str, node: int) -> str:
    """What the certificate of a node has among its names."""
    return f"raftd://{quote(cluster, safe='')}/node/{node}"


def user_uri(cluster: str, user: str) -> str:
    """What the certificate of a client has among its names."""
    return f"raftd://{quote(cluster, safe='')}/user/{quote(user, safe='')}"


def user_of(cluster: str, uris: Iterable[str]) -> str:
    """The user of the cluster that a certificate with these URIs is of, "" if it is of none."""
    prefix = user_uri(cluster, "")
    return next((unquote(uri.removeprefix(prefix)) for uri in uris if uri.startswith(prefix)), "")


def node_of(cluster: str, uris: Iterable[str]) -> int | None:
    """The node of the cluster that a certificate with these URIs is of, if it is of any."""
    prefix = node_uri(cluster, 0)[:-1]
    ids = [uri.removeprefix(prefix) for uri in uris if uri.startswith(prefix)]
    return int(ids[0]) if ids and ids[0].isascii() and ids[0].isdigit() else None


class TlsMode(StrEnum):
    """How strict listeners are."""

    #: TLS alone.
    REQUIRED = "required"
    #: TLS and plain text, while a cluster changes from one to the other.
    ACCEPT = "accept"


_File = Annotated[str, msgspec.Meta(min_length=1)]


class Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """TLS on every listener. Files in PEM, absolute once loaded; `{node}` in a name stands for the id of the node.

    `ca`: the authorities that sign the certificates of nodes and clients; during a change of it, the old one and the new. `certificate`:
    this node's, with those between it and an authority behind it; `key` belongs to it. `crl`: what the authorities have revoked.
    `verify_clients`: whoever connects to the line, client or HTTP listener must show a certificate too."""

    ca: _File
    certificate: _File
    key: _File
    crl: _File | None = None
    mode: TlsMode = TlsMode.REQUIRED
    verify_clients: bool = True

    def of(self, node: int) -> Tls:
        """The files of this node."""
        return self._with_names(lambda name: name.replace("{node}", str(node)))

    def placed(self, base: str) -> Tls:
        """Relative names begin at `base`."""
        return self._with_names(lambda name: os.path.join(base, os.path.expanduser(name)))

    def _with_names(self, change: Callable[[str], str]) -> Tls:
        names = {name: change(file) for name in ("ca", "certificate", "key", "crl") if (file := getattr(self, name)) is not None}
        return msgspec.structs.replace(self, **names)


class Dashboard(StrEnum):
    """The page at `/` of the HTTP listener."""

    FULL = "full"
    #: It changes nothing, whoever has signed in.
    READ_ONLY = "read-only"
    #: There is none.
    OFF = "off"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A cluster, as all its nodes' files say it. `data` is absolute once loaded. `insecure`: its nodes may be reached from other machines
    without TLS. `local_user`: who the clients of the line listener are that connect from the node's own machine (loopback, or the Unix
    socket), if they do not say otherwise. `http_names`: names besides the nodes' hosts by which browsers may call them, that of an
    ingress, say."""

    cluster: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    data: Annotated[str, msgspec.Meta(min_length=1)]
    nodes: dict[int, Any]
    election_timeout_ms: Annotated[int, msgspec.Meta(ge=limits.ELECTION_TIMEOUT_MIN_MS, le=limits.ELECTION_TIMEOUT_MAX_MS)] = (
        limits.ELECTION_TIMEOUT_MS
    )
    heartbeat_ms: Annotated[int, msgspec.Meta(ge=limits.HEARTBEAT_MIN_MS)] = limits.HEARTBEAT_MS
    session_timeout_ms: Annotated[int, msgspec.Meta(ge=limits.SESSION_TIMEOUT_MIN_MS, le=limits.SESSION_TIMEOUT_MAX_MS)] = (
        limits.SESSION_TIMEOUT_MS
    )
    max_job_size: Annotated[int, msgspec.Meta(ge=1, le=limits.MAX_JOB_BYTES_CEILING)] = limits.MAX_JOB_BYTES
    snapshot_log_bytes: Annotated[int, msgspec.Meta(ge=limits.SNAPSHOT_LOG_MIN_BYTES)] = limits.SNAPSHOT_LOG_BYTES
    min_free_disk_bytes: Annotated[int, msgspec.Meta(ge=0)] = limits.MIN_FREE_DISK_BYTES
    topics_leader_only: bool = False
    tls: Tls | None = None
    insecure: bool = False
    local_user: Annotated[str, msgspec.Meta(min_length=1, max_length=limits.USER_CHARACTERS)] | None = None
    http_names: tuple[Annotated[str, msgspec.Meta(min_length=1)], ...] = ()
    dashboard: Dashboard = Dashboard.FULL

    def address(self, node: int) -> NodeAddress:
        address: NodeAddress = self.nodes[node]
        return address


#: What `twistd -n raftd` runs without a file: one node, on loopback.
DEFAULT_NODE = {"host": "127.0.0.1", "line": 11300, "client": 11301, "peer": 11302, "http": 11303}
DEFAULT: dict[str, Any] = {"cluster": "raftd", "data": "raftd-data", "nodes": {1: DEFAULT_NODE}}


def load(path: str | None, data: str | None = None) -> Config:
    """Read the file, or take the default; `data` overrides the file's. Raises ConfigError."""
    if path is None:
        raw: object = DEFAULT
        base = os.getcwd()
    else:
        raw = read_yaml(path)
        base = os.path.dirname(os.path.abspath(path))
    try:
        config = check(raw)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return place(config, base, data)


def place(config: Config, base: str, data: str | None = None) -> Config:
    """With absolute paths: relative ones begin at `base`, but for `data`, which overrides the file's."""
    directory = os.path.abspath(data) if data is not None else os.path.join(base, os.path.expanduser(config.data))
    nodes = {
        node: msgspec.structs.replace(address, line_socket=os.path.join(base, address.line_socket)) if address.line_socket else address
        for node, address in config.nodes.items()
    }
    tls = config.tls.placed(base) if config.tls is not None else None
    return msgspec.structs.replace(config, data=directory, nodes=nodes, tls=tls)


def choose_node(config: Config, node: str | None) -> int:
    """Which of the file's nodes to be. Raises ConfigError."""
    known = ", ".join(map(str, sorted(config.nodes)))
    if node is None:
        if len(config.nodes) > 1:
            raise ConfigError(f"--node is needed: which of the nodes {known} is this?")
        return min(config.nodes)
    if not node.isascii() or not node.isdigit() or int(node) not in config.nodes:
        raise ConfigError(f"--node {node}: the configuration has no such node, it has {known}")
    return int(node)


def check_exposure(config: Config, node: int) -> None:
    """A node that other machines reach has TLS, or its operator has said that it need not. Raises ConfigError."""
    address = config.address(node)
    if config.tls is None and not config.insecure and not is_loopback(address.interface):
        raise ConfigError(
            f"nodes.{node}.{'listen' if address.listen else 'host'}: {address.interface} can be reached from other machines, and without "
            "TLS whoever reaches it may do everything: set `tls` (`raftd tls init` makes certificates), or `insecure: true`"
        )


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """YAML lets a key stand twice, and the last one count: here that is a mistake."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.YAMLError(f"merge keys (<<) are not supported, near line {node.start_mark.line + 1}")
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"duplicate key {key!r}, near line {node.start_mark.line + 1}")
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def read_yaml(path: str) -> object:
    """What a file says. Raises ConfigError."""
    try:
        with open(path, encoding="utf-8") as file:
            return yaml.load(file, _Loader)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: it cannot be read as YAML: {' '.join(str(error).split())}") from None


def check(raw: object) -> Config:
    """The configuration in `raw`, as YAML gave it. Raises ConfigError."""
    config = _convert(raw, Config, "")
    if not config.nodes:
        raise ConfigError("nodes: expected at least one node")
    nodes: dict[int, NodeAddress] = {}
    taken: dict[tuple[str, int], str] = {}
    for node, entry in config.nodes.items():
        if node < 1:
            raise ConfigError(f"nodes.{node}: expected an id of at least 1")
        nodes[node] = address = _convert(entry, NodeAddress, f"nodes.{node}")
        for listener in ("peer", "line", "client", "http"):
            port = getattr(address, listener)
            if port is None:
                continue
            place = f"nodes.{node}.{listener}"
            if (address.host, port) in taken:
                raise ConfigError(f"{place}: {address.host}:{port} is {taken[address.host, port]} already")
            taken[address.host, port] = place
    if config.heartbeat_ms * 2 > config.election_timeout_ms:
        raise ConfigError(
            f"heartbeat_ms: expected at most half of election_timeout_ms ({config.election_timeout_ms}), or elections never end"
        )
    if config.session_timeout_ms < 2 * config.election_timeout_ms:
        raise ConfigError(
            f"session_timeout_ms: expected at least twice election_timeout_ms ({config.election_timeout_ms}), or elections end sessions"
        )
    return msgspec.structs.replace(config, nodes=nodes)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


#: msgspec's words, and what a user calls them.
_PLAIN = (
    ("Object contains unknown field", "unknown key"),
    ("Object missing required field", "missing key"),
    ("`object`", "a mapping"),
    ("`null`", "nothing"),
    ("`array`", "a list"),
    ("`int`", "a whole number"),
    ("`float`", "a number"),
    ("`str`", "a text"),
    ("`bool`", "true or false"),
)


def _convert(raw: object, kind: type[_T], where: str) -> _T:
    try:
        return msgspec.convert(raw, kind, strict=True)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `")
        path = re.sub(r"^(key in )?\$\.?", "", path.rstrip("`"))
        place = ".".join(part for part in (where, path) if part)
        if "`key` in" in str(error):
            place, what = "nodes", "expected whole numbers as the ids of nodes"
        for technical, plain in _PLAIN:
            what = what.replace(technical, plain)
        what = what[:1].lower() + what[1:]
        raise ConfigError(f"{place}: {what}" if place else what) from None

"""The configuration file: what may stand in it, and one clear line for what may not.

Every error names the path inside the file and what was expected there.
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, TypeVar

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


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A cluster, as all its nodes' files say it. `data` is absolute once loaded."""

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
    return msgspec.structs.replace(config, data=directory, nodes=nodes)


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

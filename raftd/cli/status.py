"""`raftd status`: how each node is, as it says itself."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from raftd.cli.common import Address
from raftd.client.blocking import Connection, NoAnswer, where
from raftd.config import load
from raftd.errors import ConfigError
from raftd.wire.client import Status, StatusRequest

_LEFT = ("client door", "role", "version")
_HEADINGS = (
    *("client door", "node", "pid", "role", "term", "applied", "match", "lag", "log", "snapshot", "free"),
    *("gateway", "clients", "ready", "reserved", "delayed", "buried", "version"),
)
_EVERY_S = 1.0

Answer = Status | NoAnswer


def whom(addresses: list[Address], config: str | None, port: int) -> list[Address]:
    """The doors to ask at. Raises ConfigError."""
    asked = addresses
    if config is not None:
        asked = asked + [(node.host, node.client) for node in load(config).nodes.values() if node.client is not None]
        if not asked:
            raise ConfigError(f"{config}: no node has a client door to ask at")
    return asked or [("127.0.0.1", port)]


def ask_all(addresses: list[Address], timeout_s: float) -> list[Answer]:
    """What each address answers, or why it does not; all are asked at once."""

    def ask(address: Address) -> Answer:
        try:
            with Connection(address, timeout_s) as connection:
                reply = connection.ask(StatusRequest(1)).reply
        except NoAnswer as reason:
            return reason
        return reply if isinstance(reply, Status) else NoAnswer("it answers something else")

    with ThreadPoolExecutor(max_workers=len(addresses)) as threads:
        return list(threads.map(ask, addresses))


def all_answered(answers: list[Answer]) -> bool:
    return not any(isinstance(answer, NoAnswer) for answer in answers)


def size(count: float) -> str:
    """Bytes, in three digits or so."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _row(address: Address, status: Status, leader: Status | None) -> list[str]:
    match = lag = gateway = clients = "–"
    if leader is not None:
        index = leader.last_index if leader.node == status.node else leader.match.get(status.node)
        if index is not None:
            match, lag = str(index), str(leader.last_index - index)
    row = next((row for row in (leader or status).gateways if row[0] == status.node), None)
    if row is not None:
        gateway, clients = f"{row[1]}{'' if row[2] else ' closed'}", str(row[3])
    return [
        where(address),
        *map(str, (status.node, status.pid, status.role, status.term, status.applied_index, match, lag)),
        size(status.log_bytes),
        str(status.snapshot_index or "–"),
        size(status.free_bytes),
        gateway,
        clients,
        *map(str, status.jobs),
        f"{status.version} ({status.feature_level})",
    ]


def table(addresses: list[Address], answers: list[Answer]) -> RenderableType:
    """A table of them, and what an operator should know at once."""
    rows = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in _HEADINGS:
        rows.add_column(heading, no_wrap=True, justify="left" if heading in _LEFT else "right")
    said = [answer for answer in answers if isinstance(answer, Status)]
    leader = max((status for status in said if status.role == "leader"), key=lambda status: status.term, default=None)
    remarks = []
    for address, answer in zip(addresses, answers, strict=True):
        if isinstance(answer, NoAnswer):
            remarks.append(f"{where(address)} does not answer: {answer}")
            continue
        rows.add_row(*map(Text, _row(address, answer, leader)))
        if answer.is_draining:
            remarks.append(f"node {answer.node} is draining: it refuses puts until it is started again")
        if answer.is_low_on_disk:
            remarks.append(f"node {answer.node} is low on disk: {size(answer.free_bytes)} are free")
    if any(status.room_is_scarce for status in said):
        remarks.append("puts are refused: too few nodes have room on their disks. Delete jobs, or make room")
    if said and not any(status.leader for status in said):
        remarks.append("nobody here knows a leader: commands wait until a majority of the nodes hear each other")
    lines: list[RenderableType] = [Text(remark, style="red") for remark in remarks]
    return Group(*([rows] if said else []), *lines)


def watch(addresses: list[Address], timeout_s: float, console: Console) -> NoReturn:
    """Until a signal ends it."""
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(table(addresses, ask_all(addresses, timeout_s)), refresh=True)
            time.sleep(_EVERY_S)


def as_json(addresses: list[Address], answers: list[Answer]) -> bytes:
    """The same for programs: all that each says, or `error`."""
    rows = []
    for address, answer in zip(addresses, answers, strict=True):
        said: dict[str, object] = {"error": str(answer)}
        if isinstance(answer, Status):
            said = {"status": {name: getattr(answer, name) for name in Status.__struct_fields__}}
            said["status"]["cluster_id"] = answer.cluster_id.hex()  # type: ignore[index]
        rows.append({"address": where(address), **said})
    return msgspec.json.format(msgspec.json.encode(rows))

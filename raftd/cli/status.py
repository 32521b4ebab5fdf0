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

from raftd.cli.common import credentials, default_addresses, tls_files
from raftd.client.address import HostPort
from raftd.client.connection import Connection, NoAnswer, printable, where
from raftd.client.credentials import CredentialFiles
from raftd.client.tls import TlsFiles
from raftd.config import load
from raftd.errors import ConfigError
from raftd.limits import CLOCK_DIFFERENCE_MS
from raftd.wire.client import Failed, Members, MembersRequest, Status, StatusRequest

_LEFT = ("client listener", "role", "version")
_HEADINGS = (
    *("client listener", "node", "pid", "role", "term", "applied", "match", "lag", "log", "snapshot", "free"),
    *("gateway", "clients", "ready", "reserved", "delayed", "buried", "version"),
)
#: What a narrow terminal does without, the first of them first.
_DROPPED = (
    "version",
    "gateway",
    "buried",
    "delayed",
    "reserved",
    "clients",
    "free",
    "snapshot",
    "match",
    "applied",
    "log",
    "ready",
    "term",
)
_EVERY_S = 1.0

Answer = Status | NoAnswer


class Asked:
    """Which listeners are asked: those that were named, and with a configuration file those of members that it does not know."""

    def __init__(self, addresses: list[HostPort], config: str | None, port: int) -> None:
        """Raises ConfigError."""
        self._named = list(addresses)
        self._file: list[HostPort] = []
        self._tls = tls_files(config)
        self._credentials = credentials(config, self._tls)
        if config is not None:
            self._file = [(node.host, node.client) for node in load(config).nodes.values() if node.client is not None]
            if not self._file:
                raise ConfigError(f"{config}: no node has a client listener to ask at")
        elif not addresses:
            self._named = default_addresses()

    def ask(self, timeout_s: float) -> tuple[list[HostPort], list[Answer]]:
        """What each says, or why it does not. One of the file that is no member any more, and does not answer, is left out."""
        asked = [*self._named, *self._file]
        answers = ask_all(asked, timeout_s, self._tls, self._credentials)
        if self._file:
            said = [address for address, answer in zip(asked, answers, strict=True) if isinstance(answer, Status)]
            members = _members(said, timeout_s, self._tls, self._credentials)
            if members:
                more = [address for address in members if address not in asked]
                gone = [
                    address
                    for address, answer in zip(asked, answers, strict=True)
                    if isinstance(answer, NoAnswer) and address in self._file and address not in members
                ]
                pairs = [pair for pair in zip(asked, answers, strict=True) if pair[0] not in gone]
                pairs += zip(more, ask_all(more, timeout_s, self._tls, self._credentials), strict=True)
                asked, answers = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        return asked, answers


def _members(answered: list[HostPort], timeout_s: float, tls: TlsFiles | None, shown: CredentialFiles | None) -> list[HostPort]:
    """The client listeners of all members, as any of these says."""
    for address in answered:
        try:
            with Connection(address, timeout_s, tls, shown) as connection:
                reply = connection.ask(MembersRequest(1)).reply
        except NoAnswer:
            continue
        if isinstance(reply, Members):
            places = reply.configuration.addresses.items()
            return [(place.host, place.client) for _, place in sorted(places) if place.client]
    return []


def ask_all(addresses: list[HostPort], timeout_s: float, tls: TlsFiles | None = None, shown: CredentialFiles | None = None) -> list[Answer]:
    """What each address answers, or why it does not; all are asked at once."""

    def ask(address: HostPort) -> Answer:
        try:
            with Connection(address, timeout_s, tls, shown) as connection:
                reply = connection.ask(StatusRequest(1)).reply
        except NoAnswer as reason:
            return reason
        if isinstance(reply, Failed):
            return NoAnswer(reply.text)
        return reply if isinstance(reply, Status) else NoAnswer("it answers something else")

    if not addresses:
        return []
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


def _row(address: HostPort, status: Status, leader: Status | None) -> list[str]:
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


def table(addresses: list[HostPort], answers: list[Answer], width: int) -> RenderableType:
    """A table of them, at most so wide, and what an operator should know at once."""
    said = [answer for answer in answers if isinstance(answer, Status)]
    leader = max((status for status in said if status.role == "leader"), key=lambda status: status.term, default=None)
    cells: list[list[str]] = []
    remarks = []
    for address, answer in zip(addresses, answers, strict=True):
        if isinstance(answer, NoAnswer):
            remarks.append(printable(f"{where(address)} does not answer: {answer}"))
            continue
        cells.append(_row(address, answer, leader))
        if answer.is_draining:
            remarks.append(f"node {answer.node} is draining: it refuses puts until it is started again")
        if answer.is_insecure:
            remarks.append(f"node {answer.node} can be reached without TLS: whoever reaches it may do everything")
        if answer.is_low_on_disk:
            remarks.append(f"node {answer.node} is low on disk: {size(answer.free_bytes)} are free")
        if abs(ahead_ms := answer.clock_ahead_ms or 0) > CLOCK_DIFFERENCE_MS:
            where_it_is = f"{abs(ahead_ms) / 1000:.1f} s {'ahead of' if ahead_ms > 0 else 'behind'}"
            remarks.append(f"the wall clock of node {answer.node} is {where_it_is} the leader's, and schedules go by that")
    if len({status.cluster_id for status in said if status.cluster_id}) > 1:
        remarks.append("these nodes are not of one cluster: each of them has the jobs of its own")
    if any(status.space_is_scarce for status in said):
        remarks.append("puts are refused: too few nodes have free disk space. Delete jobs, or free some space")
    if said and not any(status.leader for status in said):
        remarks.append("no leader is known: commands wait until a majority of the nodes can reach each other")
    lines: list[RenderableType] = [Text(remark, style="red") for remark in remarks]
    return Group(*([_fitting(cells, width)] if said else []), *lines)


def _fitting(cells: list[list[str]], width: int) -> Table:
    widths = {heading: max(len(heading), *(len(row[place]) for row in cells)) + 1 for place, heading in enumerate(_HEADINGS)}
    shown = list(_HEADINGS)
    for heading in _DROPPED:
        if sum(widths[one] for one in shown) <= width:
            break
        shown.remove(heading)
    rows = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in shown:
        rows.add_column(heading, no_wrap=True, justify="left" if heading in _LEFT else "right")
    for row in cells:
        rows.add_row(*(Text(printable(row[_HEADINGS.index(heading)])) for heading in shown))
    return rows


def watch(asked: Asked, timeout_s: float, console: Console) -> NoReturn:
    """Until a signal ends it."""
    while not console.is_terminal:
        console.print(table(*asked.ask(timeout_s), console.width))
        time.sleep(_EVERY_S)  # what --watch is for
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(table(*asked.ask(timeout_s), console.width), refresh=True)
            time.sleep(_EVERY_S)  # what --watch is for


def as_json(addresses: list[HostPort], answers: list[Answer]) -> bytes:
    """The same for programs: all that each says, or `error`."""
    rows = []
    for address, answer in zip(addresses, answers, strict=True):
        said: dict[str, object] = {"error": str(answer)}
        if isinstance(answer, Status):
            fields = {name: getattr(answer, name) for name in Status.__struct_fields__}
            said = {"status": {**fields, "cluster_id": answer.cluster_id.hex()}}
        rows.append({"address": where(address), **said})
    return msgspec.json.format(msgspec.json.encode(rows))

"""`raftd status`: what each node says of itself."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raftd.cli.ask import NoAnswer, ask_stats

_COLUMNS = {
    "node": "node",
    "pid": "pid",
    "role": "role",
    "term": "term",
    "applied-index": "applied",
    "current-jobs-ready": "ready",
    "current-jobs-reserved": "reserved",
    "current-jobs-delayed": "delayed",
    "current-jobs-buried": "buried",
}

Address = tuple[str, int]
Answer = dict[str, str] | NoAnswer


def ask_all(addresses: list[Address], timeout_s: float) -> list[Answer]:
    """What each address answers, or why it does not; all are asked at once."""

    def ask(address: Address) -> Answer:
        try:
            return ask_stats(address, timeout_s)
        except NoAnswer as reason:
            return reason

    with ThreadPoolExecutor(max_workers=len(addresses)) as threads:
        return list(threads.map(ask, addresses))


def where(address: Address) -> str:
    """As it is written: HOST:PORT, an IPv6 address in brackets."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def show(addresses: list[Address], answers: list[Answer], console: Console) -> None:
    """A table of them, and what an operator should know at once."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("line door", *_COLUMNS.values()):
        table.add_column(heading, no_wrap=True, justify="left" if heading in ("line door", "node", "role") else "right")
    remarks = []
    said = []
    for address, answer in zip(addresses, answers, strict=True):
        if isinstance(answer, NoAnswer):
            remarks.append(f"{where(address)} does not answer: {answer}")
            continue
        said.append(answer)
        table.add_row(where(address), *(Text(answer.get(key, "–")) for key in _COLUMNS))
        if answer.get("draining") == "true":
            remarks.append(f"{where(address)} is draining: it refuses puts until it is started again")
    if said:
        console.print(table)
        if all(answer.get("leader") == "0" for answer in said):
            remarks.append("nobody here knows a leader: commands wait until a majority of the nodes hear each other")
    for line in remarks:
        console.print(line, style="red", markup=False, highlight=False, soft_wrap=True)


def as_json(addresses: list[Address], answers: list[Answer]) -> bytes:
    """The same for programs: all that each says, or `error`."""
    rows = []
    for address, answer in zip(addresses, answers, strict=True):
        said: dict[str, object] = {"error": str(answer)} if isinstance(answer, NoAnswer) else {"stats": answer}
        rows.append({"address": where(address), **said})
    return msgspec.json.format(msgspec.json.encode(rows))

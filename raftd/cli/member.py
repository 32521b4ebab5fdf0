"""`raftd member`: who is a member of a cluster, and changes of that."""

from __future__ import annotations

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raftd.client.connection import printable
from raftd.raft.messages import Configuration
from raftd.wire.client import Members


def rows(configuration: Configuration) -> list[tuple[int, str, str]]:
    """(node, what it is, where its peer listener is)"""
    found = []
    for node in sorted({*configuration.voters, *configuration.outgoing, *configuration.learners}):
        if node in configuration.learners:
            what = "learner"
        elif node not in configuration.voters:
            what = "voter, leaving"
        elif configuration.outgoing and node not in configuration.outgoing:
            what = "voter, joining"
        else:
            what = "voter"
        address = configuration.addresses.get(node)
        found.append((node, what, printable(f"{address.host}:{address.peer}") if address is not None else "–"))
    return found


def show(members: Members, console: Console) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("node", "member as", "peer listener", ""):
        table.add_column(heading, justify="right" if heading == "node" else "left")
    for node, what, place in rows(members.configuration):
        table.add_row(str(node), what, Text(place), "leads" if node == members.leader else "")
    console.print(table)
    if members.configuration.removed:
        console.print(f"removed, and never used again: {', '.join(map(str, members.configuration.removed))}", highlight=False)
    if not members.is_settled:
        console.print("a change is under way", style="red")


def as_json(members: Members) -> bytes:
    """The same for programs."""
    found = [{"node": node, "as": what, "peer": place} for node, what, place in rows(members.configuration)]
    said = {
        "cluster": members.cluster,
        "leader": members.leader,
        "settled": members.is_settled,
        "members": found,
        "removed": members.configuration.removed,
    }
    return msgspec.json.format(msgspec.json.encode(said))

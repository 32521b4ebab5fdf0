"""The commands that ask a running cluster: who is how, who is a member, who leads."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from raftd.cli.common import CLIENT_PORT, client_addresses, connect, fail, order, orders, working
from raftd.client.address import HostPort

if TYPE_CHECKING:
    from raftd.client.connection import Connection
    from raftd.wire.client import Members

_POLL_S = 0.2
_ID = click.IntRange(1, (1 << 63) - 1)
_LOOK_S = 5.0
_ANY_WIDTH = 1_000

_F = TypeVar("_F", bound=Callable[..., Any])


@click.command(short_help="How the nodes are: a table, or JSON.")
@click.argument("addresses", nargs=-1, callback=client_addresses, metavar="[HOST:PORT]...")
@click.option("--config", "-c", type=click.Path(), help="Ask the nodes of this configuration file.")
@click.option("--timeout", type=click.FloatRange(0.1, 60), default=2.0, show_default=True, help="Seconds to wait for an answer.")
@click.option("--json", "as_json", is_flag=True, help="All that the nodes say, for programs.")
@click.option("--watch", is_flag=True, help="Again every second, until Ctrl-C.")
def status(addresses: list[HostPort], config: str | None, timeout: float, as_json: bool, watch: bool) -> None:
    """What nodes say of themselves: who leads, how far each is, how large its log is, how many jobs there are.

    Asks the client listeners at HOST:PORT, or those of a configuration file, or 127.0.0.1:11301. Ends with status 0 if all of them answer.
    """
    from rich.console import Console

    from raftd.cli import status as table

    if watch and as_json:
        raise click.UsageError("--watch and --json: give one of them")
    with working():
        asked = table.Asked(addresses, config, CLIENT_PORT)
        console = Console()
        if not console.is_terminal:
            console.width = _ANY_WIDTH
        if watch:
            table.watch(asked, timeout, console)
        endpoints, answers = asked.ask(timeout)
        if as_json:
            click.echo(table.as_json(endpoints, answers))
        else:
            console.print(table.table(endpoints, answers, console.width))
    raise SystemExit(0 if table.all_answered(answers) else 1)


@click.group(short_help="Who is a member: list, add, promote, remove, replace.")
def member() -> None:
    """Who is a member of a cluster, and changes of that: one at a time, at any node."""


@member.command("list", short_help="Who is a member.")
@orders
@click.option("--json", "as_json", is_flag=True, help="The same for programs.")
def member_list(endpoint: HostPort | None, config: str | None, timeout: float, as_json: bool) -> None:
    """Who is a member, as far as the node that is asked knows."""
    from rich.console import Console

    from raftd.cli import member as view
    from raftd.cli.console import wide

    with working(), connect(endpoint, config, timeout) as connection:
        members = _members(connection)
        if as_json:
            click.echo(view.as_json(members))
        else:
            view.show(members, wide(Console()))


def _members(connection: Connection) -> Members:
    from raftd.wire.client import Members, MembersRequest

    return order(connection, MembersRequest(1), Members)


def _places(is_required: bool) -> Callable[[_F], _F]:
    """Where a new node will be."""

    def options(command: _F) -> _F:
        host = click.option("--host", required=is_required, help="The host at which the other nodes find it.")
        peer = click.option("--peer", required=is_required, type=click.IntRange(1, 65_535), help="The port of its peer listener.")
        client = click.option("--client", default=0, type=click.IntRange(0, 65_535), help="The port of its client listener, if it has one.")
        return host(peer(client(command)))

    return options


@member.command("add", short_help="Make a new node a member.")
@click.argument("node", type=_ID)
@_places(is_required=True)
@orders
def member_add(node: int, host: str, peer: int, client: int, endpoint: HostPort | None, config: str | None, timeout: float) -> None:
    """Make NODE a member. It is a learner until it has all that the others have, then it becomes a voter by itself.

    Its id must never have been used. Then start it with --join, or with a configuration that has it and the others. (With --join it
    adds itself.)
    """
    from raftd.wire.client import AddMemberRequest, Done

    with working(), connect(endpoint, config, timeout) as connection:
        order(connection, AddMemberRequest(1, node, host, peer, client), Done)
        click.echo(f"node {node} is a learner; once it runs and has caught up it becomes a voter")


@member.command("promote", short_help="Make a learner a voter.")
@click.argument("node", type=_ID)
@orders
def member_promote(node: int, endpoint: HostPort | None, config: str | None, timeout: float) -> None:
    """Make the learner NODE a voter now, which it otherwise becomes by itself. Refused while it lags."""
    from raftd.wire.client import Done, PromoteMemberRequest

    with working(), connect(endpoint, config, timeout) as connection:
        order(connection, PromoteMemberRequest(1, node), Done)
        click.echo(f"node {node} is a voter")


@member.command("remove", short_help="Take a node out of the cluster.")
@click.argument("node", type=_ID)
@orders
def member_remove(node: int, endpoint: HostPort | None, config: str | None, timeout: float) -> None:
    """Take NODE out of the cluster for ever: if it runs it ends itself, and its id is not used again."""
    with working():
        _remove(node, endpoint, config, timeout)


def _remove(node: int, endpoint: HostPort | None, config: str | None, timeout: float) -> None:
    """The node that is asked may be the one that goes: then another knows whether it is done. Raises NoAnswer."""
    from raftd.client.connection import NoAnswer
    from raftd.raft.outcomes import Outcome
    from raftd.wire.client import Failed, RemoveMemberRequest

    try:
        with connect(endpoint, config, timeout) as connection:
            reply = connection.ask(RemoveMemberRequest(1, node)).reply
        failure = reply.text if isinstance(reply, Failed) else ""
        is_known = not isinstance(reply, Failed) or reply.outcome is not Outcome.UNKNOWN
    except NoAnswer as error:
        failure, is_known = f"no answer: {error}", False
    if failure and (is_known or not _is_gone(node, endpoint, config, timeout)):
        fail(failure)
    click.echo(f"node {node} is no member any more")


def _is_gone(node: int, endpoint: HostPort | None, config: str | None, timeout: float) -> bool:
    """Whether a node that can be asked says within a few seconds that it is no member any more, for certain."""
    from raftd.client.connection import NoAnswer

    deadline_s = time.monotonic() + _LOOK_S
    while time.monotonic() < deadline_s:
        try:
            with connect(endpoint, config, timeout) as connection:
                members = _members(connection)
            if members.is_settled and node in members.configuration.removed:
                return True
        except NoAnswer:
            pass
        time.sleep(_POLL_S)  # an election may be under way
    return False


@member.command("replace", short_help="Another node in the place of one that is lost.")
@click.argument("old", type=_ID)
@click.argument("new", type=_ID)
@_places(is_required=False)
@click.option("--wait", type=click.FloatRange(1), default=600.0, show_default=True, help="Seconds that NEW may take to catch up.")
@orders
def member_replace(
    old: int,
    new: int,
    host: str | None,
    peer: int | None,
    client: int,
    wait: float,
    endpoint: HostPort | None,
    config: str | None,
    timeout: float,
) -> None:
    """Put NEW in the place of OLD, whose disk or machine is lost: add NEW, wait until it has caught up and votes, then remove OLD.

    Start NEW before with --join: then it is a member already. Else say with --host and --peer where it will be, and start it meanwhile
    with a configuration that has it. If this is interrupted, ask for it again.
    """
    from raftd.wire.client import AddMemberRequest, Done

    with working(), connect(endpoint, config, timeout) as connection:
        configuration = _members(connection).configuration
        if old not in {*configuration.voters, *configuration.learners}:
            fail(f"node {old} is no member: nothing was changed")
        if new == old or new in configuration.removed:
            fail(f"node {new} was used before: ids are never used again, take another. Nothing was changed")
        if new in {*configuration.voters, *configuration.learners}:
            known = configuration.addresses.get(new)
            if host is not None and (known is None or (known.host, known.peer) != (host, peer)):
                fail(f"node {new} is a member already, at another place: see `raftd member list`. Nothing was changed")
            if host is None and new in configuration.voters:
                fail(f"node {new} votes already: to take node {old} out, `raftd member remove {old}`. Nothing was changed")
        else:
            if host is None or peer is None:
                fail(f"node {new} is no member yet: start it with --join, or say with --host and --peer where it will be")
            order(connection, AddMemberRequest(1, new, host, peer, client), Done)
        click.echo(f"node {new} is a member; waiting until it has caught up and votes")
        deadline_s = time.monotonic() + wait
        while new not in (members := _members(connection)).configuration.voters or not members.is_settled:
            if time.monotonic() >= deadline_s:
                fail(f"node {new} has not caught up within {wait:g} s: does it run? Node {old} is still a member; ask again")
            time.sleep(_POLL_S)  # no event tells of a promotion
        click.echo(f"node {new} has caught up, and votes")
        _remove(old, endpoint, config, timeout)


@click.group(short_help="Change the leader.")
def leader() -> None:
    """Change which node leads the cluster."""


@leader.command("transfer", short_help="Let another node lead.")
@click.argument("node", type=_ID)
@orders
def leader_transfer(node: int, endpoint: HostPort | None, config: str | None, timeout: float) -> None:
    """Hand the lead of the cluster to NODE, without waiting for an election timeout; producers and workers notice a pause of some
    milliseconds. Before a machine is stopped this is not needed: a leader that gets SIGTERM does so by itself."""
    from raftd.wire.client import Done, TransferRequest

    with working(), connect(endpoint, config, timeout) as connection:
        order(connection, TransferRequest(1, node), Done)
        click.echo(f"node {node} leads now")

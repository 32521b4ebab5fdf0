"""What `raftd` takes on the command line. Each command's own module is imported only when it runs, so that
`raftd --help` is quick."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click
from click.core import ParameterSource

import raftd
from raftd.errors import ConfigError

if TYPE_CHECKING:
    from raftd.wire.client import Answer, Request

LINE_PORT = 11300
CLIENT_PORT = 11301

_F = TypeVar("_F", bound=Callable[..., Any])


def _fail(reason: object) -> NoReturn:
    """One clear line and status 1."""
    click.echo(f"raftd: {reason}", err=True)
    raise SystemExit(1)


@contextmanager
def _working() -> Iterator[None]:
    """What goes wrong is said in one line; what was started is taken along."""
    from raftd.cli import signals
    from raftd.cli.local import LocalError

    signals.end_in_order()
    try:
        yield
    except (LocalError, OSError) as error:
        _fail(error)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(raftd.__version__, prog_name="raftd")
def main() -> None:
    """raftd, a replicated job queue. A node is started with `twistd -n raftd`; these are the tools around it."""


@main.command(short_help="Three nodes, a leader killed twice: is anything lost?")
def demo() -> None:
    """Start three nodes, put and work jobs through all of them, kill the leader twice; count what is lost.

    Takes half a minute. Ends with status 0 only if every acknowledged job was worked, once.
    """
    from rich.console import Console

    from raftd.cli.demo import Demo

    with _working():
        good = Demo(Console()).run()
    raise SystemExit(0 if good else 1)


def _door(value: str, port_if_none: int, name: str) -> tuple[str, int]:
    """HOST:PORT; the port may be left out."""
    host, colon, port = value.rpartition(":")
    if not colon or (host.count(":") and not host.startswith("[")):  # no port, or an IPv6 address without brackets
        host, port = value, str(port_if_none)
    if not host or "/" in host or not (port.isascii() and port.isdigit()) or not 1 <= int(port) <= 65_535:
        raise click.BadParameter(f"{value!r} is not HOST:PORT, the address of a {name} door")
    return host.strip("[]"), int(port)


def _line_doors(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[tuple[str, int]]:
    return [_door(value, LINE_PORT, "line") for value in values]


def _client_door(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, int] | None:
    return _door(value, CLIENT_PORT, "client") if value is not None else None


def _orders(command: _F) -> _F:
    """The options of commands that ask something of a cluster."""
    at = click.option("--at", callback=_client_door, metavar="HOST:PORT", help="Ask at this client door.  [default: 127.0.0.1:11301]")
    config = click.option("--config", "-c", type=click.Path(), help="Ask at any client door of this configuration file.")
    timeout = click.option("--timeout", type=click.FloatRange(0.1, 3600), default=15.0, show_default=True, help="Seconds to wait.")
    return at(config(timeout(command)))


def _order(request: Request, at: tuple[str, int] | None, config: str | None, timeout: float) -> Answer:
    """Ends the process with status 1 if there is no answer, or one that says no."""
    from raftd.cli.ask import NoAnswer
    from raftd.cli.order import order_of_any
    from raftd.config import load
    from raftd.wire.client import Failed

    if at is not None and config is not None:
        raise click.UsageError("--at and --config: give one of them")
    doors = [at or ("127.0.0.1", CLIENT_PORT)]
    if config is not None:
        try:
            doors = [(node.host, node.client) for node in load(config).nodes.values() if node.client is not None]
        except ConfigError as error:
            _fail(error)
        if not doors:
            _fail(f"{config}: no node has a client door to ask at")
    try:
        answer = order_of_any(doors, request, timeout)
    except NoAnswer as reason:
        _fail(f"no answer: {reason}")
    if isinstance(answer.reply, Failed):
        _fail(answer.reply.reason)
    return answer


@main.group(short_help="Who is a member: list, add, promote, remove.")
def member() -> None:
    """Who is a member of a cluster, and changes of that: one at a time, at any node."""


@member.command("list", short_help="Who is a member.")
@_orders
@click.option("--json", "as_json", is_flag=True, help="The same for programs.")
def member_list(at: tuple[str, int] | None, config: str | None, timeout: float, as_json: bool) -> None:
    """Who is a member, as far as the node that is asked knows."""
    from rich.console import Console

    from raftd.cli import member as it
    from raftd.cli.console import wide
    from raftd.wire.client import Members, MembersRequest

    with _working():
        reply = _order(MembersRequest(1), at, config, timeout).reply
        if not isinstance(reply, Members):
            _fail("the node answers something else")
        if as_json:
            click.echo(it.as_json(reply))
        else:
            it.show(reply, wide(Console()))


@member.command("add", short_help="Make a new node a member.")
@click.argument("node", type=click.IntRange(1))
@click.option("--host", required=True, help="The host at which the other nodes find it.")
@click.option("--peer", required=True, type=click.IntRange(1, 65_535), help="The port of its peer door.")
@click.option("--client", default=0, type=click.IntRange(0, 65_535), help="The port of its client door, if it has one.")
@_orders
def member_add(node: int, host: str, peer: int, client: int, at: tuple[str, int] | None, config: str | None, timeout: float) -> None:
    """Make NODE a member. It is a learner until it has all that the others have, then it becomes a voter by itself.

    Its id must never have been used. Then start it, with a configuration that has it and the others.
    """
    from raftd.wire.client import AddMemberRequest

    with _working():
        _order(AddMemberRequest(1, node, host, peer, client), at, config, timeout)
        click.echo(f"node {node} is a learner; once it runs and has caught up it becomes a voter")


@member.command("promote", short_help="Make a learner a voter.")
@click.argument("node", type=click.IntRange(1))
@_orders
def member_promote(node: int, at: tuple[str, int] | None, config: str | None, timeout: float) -> None:
    """Make the learner NODE a voter now, which it otherwise becomes by itself. Refused while it lags."""
    from raftd.wire.client import PromoteMemberRequest

    with _working():
        _order(PromoteMemberRequest(1, node), at, config, timeout)
        click.echo(f"node {node} is a voter")


@member.command("remove", short_help="Take a node out of the cluster.")
@click.argument("node", type=click.IntRange(1))
@_orders
def member_remove(node: int, at: tuple[str, int] | None, config: str | None, timeout: float) -> None:
    """Take NODE out of the cluster for ever: if it runs it ends itself, and its id is not used again."""
    from raftd.wire.client import RemoveMemberRequest

    with _working():
        _order(RemoveMemberRequest(1, node), at, config, timeout)
        click.echo(f"node {node} is no member any more")


@main.command(short_help="Let another node lead.")
@click.argument("node", type=click.IntRange(1))
@_orders
def transfer(node: int, at: tuple[str, int] | None, config: str | None, timeout: float) -> None:
    """Hand the lead of the cluster to NODE, without waiting for an election timeout; producers and workers notice a pause of some
    milliseconds. Before a machine is stopped this is not needed: a leader that gets SIGTERM does so by itself."""
    from raftd.wire.client import TransferRequest

    with _working():
        _order(TransferRequest(1, node), at, config, timeout)
        click.echo(f"node {node} leads now")


@main.command(short_help="What nodes say of themselves.")
@click.argument("addresses", nargs=-1, callback=_line_doors, metavar="[HOST:PORT]...")
@click.option("--config", "-c", type=click.Path(), help="Ask the nodes of this configuration file.")
@click.option("--timeout", type=click.FloatRange(0.1, 60), default=2.0, show_default=True, help="Seconds to wait for an answer.")
@click.option("--json", "as_json", is_flag=True, help="All that the nodes say, for programs.")
def status(addresses: list[tuple[str, int]], config: str | None, timeout: float, as_json: bool) -> None:
    """What nodes say of themselves: who leads, how far each is, how many jobs there are.

    Asks the line doors at HOST:PORT, or those of a configuration file, or 127.0.0.1:11300. Ends with status 0 if all of them answer.
    """
    from rich.console import Console

    from raftd.cli import status as it
    from raftd.cli.ask import NoAnswer
    from raftd.cli.console import wide
    from raftd.config import load

    asked = addresses
    if config is not None:
        try:
            nodes = load(config).nodes
        except ConfigError as error:
            _fail(error)
        asked = asked + [(node.host, node.line) for node in nodes.values() if node.line is not None]
        if not asked:
            _fail(f"{config}: no node has a line door to ask at")
    asked = asked or [("127.0.0.1", LINE_PORT)]
    answers = it.ask_all(asked, timeout)
    with _working():
        if as_json:
            click.echo(it.as_json(asked, answers))
        else:
            it.show(asked, answers, wide(Console()))
    raise SystemExit(1 if any(isinstance(answer, NoAnswer) for answer in answers) else 0)


def _option(*names: str, default: object, help: str, kind: Any) -> Callable[[_F], _F]:
    return click.option(*names, type=kind, default=default, show_default=True, help=help)


@main.command(short_help="Measure jobs per second and latencies.")
@_option("--work", default="both", kind=click.Choice(["put", "cycle", "both"]), help="Puts; or put, reserve and delete.")
@_option("--connections", "-c", default=64, kind=click.IntRange(1, 10_000), help="Clients at once.")
@_option("--in-flight", "-k", default=1, kind=click.IntRange(1, 1_000), help="Requests under way on each connection.")
@_option("--size", default=200, kind=click.IntRange(0, 65_535), help="Bytes in the body of a job.")
@_option("--seconds", default=4.0, kind=click.FloatRange(0.1, 600), help="Length of a round, after one second of warming up.")
@_option("--rounds", default=3, kind=click.IntRange(1, 100), help="Rounds of each work, the servers in turns.")
@_option("--nodes", default=3, kind=click.IntRange(1, 13), help="Size of the cluster.")
@_option("--processes", default=1, kind=click.IntRange(1, 16), help="Processes that make the load.")
@click.option("--against", type=click.Choice(["beanstalkd"]), help="Measure this server too; it fsyncs every write, as raftd does.")
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Keep the servers' data below this directory, on its disk.  [default: where temporary files go]",
)
def bench(**asked: Any) -> None:
    """Measure jobs per second and latencies of a cluster started for it on this machine. Takes a minute or so."""
    from rich.console import Console

    from raftd.cli import bench as it

    options = it.Options(**asked)
    if options.processes > options.connections:
        raise click.UsageError("--processes: each needs a connection at least")
    with _working():
        it.run(options, Console())


@main.command(short_help="How large a queue may become here: memory, disk, restart.")
@_option("--jobs", default=1_000_000, kind=click.IntRange(1, 100_000_000), help="How many.")
@_option("--size", default=200, kind=click.IntRange(0, 65_535), help="Bytes in the body of a job.")
@click.option("--churn", is_flag=True, help="Delete them again, ten thousand at a time, instead of keeping them all.")
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Keep the nodes' data below this directory, on its disk.  [default: where temporary files go]",
)
def scale(jobs: int, size: int, churn: bool, data: Path | None) -> None:
    """Fill three nodes on this machine, start them again, and let a fourth catch up; print what it took.

    A million small jobs take some minutes, three gigabytes of memory and as much of disk.
    """
    from rich.console import Console

    from raftd.cli import scale as it

    with _working():
        it.run(jobs, size, churn, data, Console())


def _is_given(name: str) -> bool:
    """Whether an option of this command was given, rather than left to its default."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


@main.command(short_help="The real node code under every fault, from a seed.")
@click.option("--seeds", type=click.IntRange(1), default=100, show_default=True, help="How many to run.")
@click.option("--start", type=click.IntRange(0), default=1, show_default=True, help="The first of them.")
@click.option("--jobs", "-j", type=click.IntRange(1, 256), default=os.cpu_count() or 1, show_default="all processors", help="Processes.")
@click.option("--seed", type=click.IntRange(0), help="Run this one, and print what it drew and the hash of its trace.")
@click.option("--trace", is_flag=True, help="With --seed: print everything that happens.")
@click.option("--minimise", is_flag=True, help="With --seed: if it goes wrong, the least of its plan that still does.")
@click.option("--mutants", is_flag=True, help="Instead: how many seeds it takes to catch each broken variant (at most --seeds).")
def sim(seeds: int, start: int, jobs: int, seed: int | None, trace: bool, minimise: bool, mutants: bool) -> None:
    """Whole clusters of production code on a virtual clock, network and disk, under faults, every invariant checked.

    Ends with status 1 if any is violated, naming the seed; the same seed always does the same.
    """
    from rich.console import Console

    from raftd.cli import sim as it

    if seed is None and (trace or minimise):
        raise click.UsageError("--trace and --minimise are for one seed: --seed NUMBER")
    given = {name for name in ("seeds", "start", "jobs", "mutants") if _is_given(name)}
    if seed is not None and given:
        raise click.UsageError(f"--seed is for one seed: leave out --{sorted(given)[0]}")
    if mutants and "start" in given:
        raise click.UsageError("--start: mutants are looked for from seed 1 on")
    console = Console()
    with _working():
        if seed is not None:
            good = it.replay(seed, trace, minimise, console)
        elif mutants:
            good = it.run_mutants(seeds, jobs, console)
        else:
            good = it.run_seeds(start, seeds, jobs, console)
    raise SystemExit(0 if good else 1)


@main.command(short_help="Three real nodes under kills, stops and partitions.")
@_option("--minutes", "-m", default=1.0, kind=click.FloatRange(0.05, 1_440), help="How long.")
def chaos(minutes: float) -> None:
    """Three nodes as processes on this machine, with a proxy between them, are killed, stopped, parted and slowed down, while
    clients put and work jobs. Then all that clients were told is held beside the committed log.

    Ends with status 1 if anything was lost, invented or out of order, or if too little was answered to know.
    """
    from rich.console import Console

    from raftd.cli import chaos as it

    if minutes != minutes:
        raise click.BadParameter("it must be a number", param_hint="--minutes")
    with _working():
        good = it.run(minutes, Console())
    raise SystemExit(0 if good else 1)

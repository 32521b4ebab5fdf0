"""What `raftd` takes on the command line. Each command's own module is imported only when it runs, so that
`raftd --help` is quick."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

import raftd
from raftd.errors import ConfigError

LINE_PORT = 11300

_F = TypeVar("_F", bound=Callable[..., Any])


def _fail(reason: object) -> NoReturn:
    """One clear line and status 1."""
    click.echo(f"raftd: {reason}", err=True)
    raise SystemExit(1)


def _end_in_order_on_signals() -> None:
    """What a command has started ends with it, also when it is told to go."""

    def end(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)


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
    from raftd.cli.local import LocalError

    _end_in_order_on_signals()
    try:
        good = Demo(Console()).run()
    except LocalError as error:
        _fail(error)
    raise SystemExit(0 if good else 1)


def _line_doors(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[tuple[str, int]]:
    """HOST:PORT each; the port may be left out."""
    doors = []
    for value in values:
        host, colon, port = value.rpartition(":")
        if not colon:
            host, port = value, str(LINE_PORT)
        if not host or not (port.isascii() and port.isdigit()) or not 1 <= int(port) <= 65_535:
            raise click.BadParameter(f"{value!r} is not HOST:PORT, the address of a line door")
        doors.append((host.strip("[]"), int(port)))
    return doors


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
    if as_json:
        click.echo(it.as_json(asked, answers))
    else:
        it.show(asked, answers, Console())
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
    """Measure jobs per second and latencies of a cluster started for it on this machine."""
    from rich.console import Console

    from raftd.cli import bench as it
    from raftd.cli.local import LocalError

    options = it.Options(**asked)
    if options.processes > options.connections:
        raise click.UsageError("--processes: each needs a connection at least")
    _end_in_order_on_signals()
    try:
        it.run(options, Console())
    except LocalError as error:
        _fail(error)

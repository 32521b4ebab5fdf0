"""The commands that work on files: the log of a node, the history of a job, backups, and what to do about damage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import click

from raftd.cli.common import connect, directories, directory, fail, orders_within, working
from raftd.client.address import HostPort

if TYPE_CHECKING:
    from raftd.cli.archive import Progress
    from raftd.storage.snapshots import Meta


_PASSPHRASE = click.option(
    "--passphrase-file", type=click.Path(), metavar="FILE", help="The backup is encrypted; its passphrase is the first line of FILE."
)


@contextmanager
def _progress(what: str) -> Iterator[Progress]:
    """On a terminal only, and gone when it is over."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@click.group(short_help="The files of a node: list, verify, dump.")
def log() -> None:
    """Show the data directory of a node. Nothing is changed, and the node may run meanwhile; what it is writing just then
    looks unfinished."""


@log.command("list", short_help="Segments and snapshots.")
@directories
def log_list(config: str | None, node: str | None, data: str | None) -> None:
    """Every segment and snapshot with what it holds. Ends with status 1 if something is damaged."""
    from rich.console import Console

    from raftd.cli import log as log_reader
    from raftd.cli.console import wide
    from raftd.storage.filesystem import RealFileSystem

    with working():
        sound = log_reader.show(RealFileSystem(), directory(config, node, data), wide(Console()))
    raise SystemExit(0 if sound else 1)


@log.command("verify", short_help="Read every byte.")
@directories
def log_verify(config: str | None, node: str | None, data: str | None) -> None:
    """Read every byte of it, and check every CRC. Ends with status 1 if something is damaged."""
    from raftd.cli import log as log_reader
    from raftd.storage.filesystem import RealFileSystem

    with working():
        sound = log_reader.verify(
            RealFileSystem(), directory(config, node, data), click.echo, lambda line: click.echo(f"raftd: {line}", err=True)
        )
    raise SystemExit(0 if sound else 1)


@log.command("dump", short_help="Entries as text or JSON lines.")
@directories
@click.option("--from", "first", type=click.IntRange(1), default=1, help="From this entry on.")
@click.option("--to", "last", type=click.IntRange(1), help="Up to this entry.")
@click.option(
    "--kind",
    help="Only entries of this kind: batch, config, noop, time, settings, features, disk-space, directory, open-gateway, close-gateway.",
)
@click.option("--job", type=click.IntRange(1), help="Only commands that name this job.")
@click.option("--tube", help="Only commands about this tube.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def log_dump(
    config: str | None,
    node: str | None,
    data: str | None,
    first: int,
    last: int | None,
    kind: str | None,
    job: int | None,
    tube: str | None,
    as_json: bool,
) -> None:
    """The entries of the log, also those that were replaced later. The newest need not be committed: one disk cannot tell."""
    from raftd.cli import log as log_reader
    from raftd.storage.filesystem import RealFileSystem

    if kind is not None and kind not in log_reader.KINDS:
        raise click.BadParameter(f"{kind!r}: one of {', '.join(log_reader.KINDS)}", param_hint="--kind")
    with working():
        for line in log_reader.dump(
            RealFileSystem(), directory(config, node, data), log_reader.Filter(first, last, kind, job, tube), as_json
        ):
            click.echo(line)


@click.command(short_help="What became of one job, by the log.")
@click.argument("id", type=click.IntRange(1))
@directories
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def job(id: int, config: str | None, node: str | None, data: str | None, as_json: bool) -> None:
    """What became of job ID, by the log of a node: put, reserved by whom, released, buried, deleted, each with its entry and log time
    (UTC), as far back as the log reaches. The node may run meanwhile. Ends with status 1 if nothing is known of the job.
    """
    import msgspec

    from raftd.cli.history import history
    from raftd.storage.filesystem import RealFileSystem

    with working():
        events, reach = history(RealFileSystem(), directory(config, node, data), id)
        for event in events:
            text = msgspec.json.encode(event._asdict()).decode() if as_json else f"{event.entry:>9}  {event.time}  {event.what}"
            click.echo(text)
        if not events:
            fail(f"the log knows nothing of job {id}: {reach}")
        if not as_json:
            click.echo(f"({reach})")


@click.command(short_help="Everything acknowledged, as one file.")
@click.argument("file", type=click.Path())
@orders_within(600.0)
@click.option("--directory", "offline", type=click.Path(), help="Instead: of a node that does not run, from its data directory.")
@_PASSPHRASE
def backup(
    file: str, endpoint: HostPort | None, config: str | None, timeout: float, offline: str | None, passphrase_file: str | None
) -> None:
    """Write a consistent copy of the whole queue to FILE, while the cluster works: everything acknowledged before, from any node.

    With --directory, back up everything in the data directory of a stopped node, for a cluster that has lost its majority.
    """
    from raftd.cli import archive
    from raftd.cli.sealed import read_passphrase

    if offline is not None and (endpoint is not None or config is not None):
        raise click.UsageError("--directory reads files only: leave out --endpoint and --config")
    with working():
        passphrase = read_passphrase(passphrase_file) if passphrase_file is not None else None
        if offline is not None:
            told = partial(click.echo, err=True)
            meta = archive.back_up_directory(offline.rstrip("/"), file, lambda line: told(f"raftd: WARNING: {line}"), passphrase)
        else:
            archive.check_new(file)
            with connect(endpoint, config, timeout) as connection, _progress("copying") as progress:
                meta = archive.back_up(connection, file, progress, passphrase)
    click.echo(f"{file}: the state of cluster {meta.cluster!r} at entry {meta.index}; `raftd restore` makes a new cluster of it")


def _start(config: str | None, node: int, data: str | None) -> str:
    """The options of twistd for the same node."""
    parts = [f"--config {config} --node {node}"] if config is not None else []
    return " ".join([*parts, *([f"--data {data}"] if data is not None else [])])


@click.command(short_help="A new cluster from a backup.")
@click.argument("file", type=click.Path())
@directories
@_PASSPHRASE
def restore(file: str, config: str | None, node: str | None, data: str | None, passphrase_file: str | None) -> None:
    """Make a new cluster with the jobs of the backup FILE: this node's data directory, which must be empty, of which it is the only
    member. Start it, then start the others with --join.

    Reserved jobs are ready again; job ids continue.
    """
    from raftd.cli import archive
    from raftd.cli.sealed import read_passphrase
    from raftd.config import choose_node, load
    from raftd.raft.messages import MemberAddress

    with working():
        loaded = load(config, data)
        id = choose_node(loaded, node)
        place = loaded.address(id)
        where = f"{loaded.data}/{id}"
        cluster = loaded.cluster
        passphrase = read_passphrase(passphrase_file) if passphrase_file is not None else None
        own = MemberAddress(place.host, place.peer, place.client or 0)
        with _progress("reading") as progress:
            meta = archive.restore(file, where, id, cluster, own, progress, passphrase)
    _say_alone(where, id, meta, config, data, f"{place.host}:{place.client or '…'}")


@click.command(short_help="What is wrong with a data directory.")
@directories
@click.option("--accept-tail", is_flag=True, help="Let a node whose last batch is damaged vote in full again.")
@click.option("--new-cluster", is_flag=True, help="Make a new cluster of this node alone, when no majority can be had again.")
def recover(config: str | None, node: str | None, data: str | None, accept_tail: bool, new_cluster: bool) -> None:
    """Look at the data directory of a node that does not run, and say what is wrong with it and what to do.

    With --accept-tail a node that doubts whether it has everything that it acknowledged doubts no more: only for the case that
    no other node has it.

    With --new-cluster this node becomes the only member of a new cluster with all jobs that stand in its directory; the old directory
    is kept beside it. For when too many disks are lost for a majority, or one is lost in the middle of a change of members. What only
    the lost nodes had acknowledged is not in it.
    """
    from raftd.cli import recover as recovery

    if accept_tail and new_cluster:
        raise click.UsageError("--new-cluster does not need --accept-tail: leave one out")
    if new_cluster:
        _found_new_cluster(config, node, data)
        return
    with working():
        for line in recovery.recover(directory(config, node, data), accept_tail):
            click.echo(line)


def _found_new_cluster(config: str | None, node: str | None, data: str | None) -> None:
    from raftd.cli import recover as recovery
    from raftd.cli.archive import check_directory
    from raftd.config import load
    from raftd.raft.messages import MemberAddress
    from raftd.storage.filesystem import RealFileSystem

    with working():
        loaded = load(config, data)
        where = f"{loaded.data}/{node}" if node is not None else directory(config, node, data)
        check_directory(where)
        identity, configuration = recovery.identity_of(RealFileSystem(), where)
        id = identity.node
        if id in loaded.nodes:
            place = loaded.address(id)
            address = MemberAddress(place.host, place.peer, place.client or 0)
        elif configuration is not None and id in configuration.addresses:
            address = configuration.addresses[id]  # it was added with --join
        else:
            fail(f"where will node {id} be? Neither the configuration nor its directory says: give a --config FILE that has it")
        kept, meta = recovery.found_new_cluster(where, id, address, lambda text: click.echo(f"WARNING: {text}", err=True))
    if id in loaded.nodes:
        _say_alone(where, id, meta, config, data, f"{address.host}:{address.client or '…'}")
    else:
        others = f"--join {address.host}:{address.client or '…'}"
        click.echo(
            f"{where}: node {id} is the only member of a new cluster {meta.cluster!r} with the state at entry {meta.index}. Start it with "
            f"the options that it had before, then others, with empty data directories, with {others}"
        )
    click.echo(f"The directory as it was is {kept}: remove it once nothing is missing.")


def _say_alone(where: str, id: int, meta: Meta, config: str | None, data: str | None, client: str) -> None:
    click.echo(
        f"{where}: node {id} is the only member of a new cluster {meta.cluster!r} with the state at entry {meta.index}. Start it:\n"
        f"    twistd -n --pidfile= raftd {_start(config, id, data)}\n"
        f"Then start others, with empty data directories, with --join {client}"
    )

"""The commands that put, work and look at jobs, as any client may."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import IO, TYPE_CHECKING, Any, Literal, TypeVar

import click

from raftd.cli.common import fail, url_option, working

if TYPE_CHECKING:
    from raftd.client.blocking import Client

_F = TypeVar("_F", bound=Callable[..., Any])
_ID = click.IntRange(1, (1 << 63) - 1)
_PRIORITY = click.IntRange(0, (1 << 32) - 1)
_SECONDS = click.FloatRange(0, 1e9)
_TOKEN = click.option("--token", type=_ID, required=True, help="That of its reservation, as `raftd reserve` shows it.")
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")
MOMENTS = ["%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%dT%H:%M%z", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M"]
_INPUT = click.Path(exists=True, dir_okay=False, allow_dash=True)
#: How long a node may take to be connected to (seconds).
_DIAL_S = 3.0
#: Lines of one put: fewer than a put may have (1,000), of which any node's batch holds several.
_LINES = 500
_LINES_BYTES = 256 << 10


def asks_within(seconds: float) -> Callable[[_F], _F]:
    """The options of commands that ask a cluster, which takes so long at most by default."""

    def options(command: _F) -> _F:
        timeout = click.option(
            "--timeout", type=click.FloatRange(0.1, 3600), default=seconds, show_default=True, help="Seconds to wait for a node."
        )
        return url_option(timeout(command))

    return options


def client_of(url: str | None, timeout: float) -> Client:
    """Of a cluster of which a node is there. Raises RaftdError, at once if none is."""
    from raftd.client.address import addresses_of, url_or_default
    from raftd.client.blocking import Client
    from raftd.client.connection import Connection, NoAnswer, where
    from raftd.client.errors import Unreachable
    from raftd.client.tls import files_of

    problems = []
    files = files_of(url_or_default(url))
    for address in addresses_of(url):
        try:
            with Connection(address, min(timeout, _DIAL_S), files):
                break
        except NoAnswer as reason:
            problems.append(f"{where(address)}: {reason}")
    else:
        raise Unreachable(f"{'; '.join(problems)}. --url or $RAFTD_URL says where the client listeners are")
    return Client(url, name="raftd command", timeout=timeout)


def _print_json(value: dict[str, Any]) -> None:
    import msgspec

    body = value.get("body")
    if isinstance(body, bytes):
        try:
            value["body"] = body.decode()
        except UnicodeDecodeError:  # msgspec writes bytes in base64
            value["encoding"] = "base64"
    click.echo(msgspec.json.encode(value))


def _print_body(body: bytes) -> None:
    """As it is; a terminal gets nothing that steers it."""
    from raftd.client.connection import printable

    sys.stdout.flush()
    if sys.stdout.isatty():
        lines = body.decode(errors="backslashreplace").removesuffix("\n").split("\n")
        click.echo("\n".join(map(printable, lines)))
    else:
        sys.stdout.buffer.write(body)
        sys.stdout.flush()


# -- putting ------------------------------------------------------------------------------------


@click.command(short_help="Put jobs.")
@click.argument("tube")
@click.argument("bodies", nargs=-1, metavar="[BODY]...")
@click.option("--file", "-f", "files", type=_INPUT, multiple=True, help="The body is what this file has; - is standard input.")
@click.option("--lines", "-l", type=_INPUT, help="Every line of this file is a job.")
@click.option("--delay", type=_SECONDS, default=0.0, help="Seconds until it is ready.")
@click.option("--run-at", type=click.DateTime(MOMENTS), help="When it is ready, instead of a delay; without an offset, local time.")
@click.option("--ttr", type=_SECONDS, help="Seconds to work it before another may.  [default: the tube's, or 60]")
@click.option("--priority", type=_PRIORITY, help="0 is the most urgent.  [default: the tube's, or 65536]")
@click.option("--key", help="If this key was used within the hour, for the same, nothing is put.")
@click.option("--unique", metavar="KEY", help="If the tube has a job with this key, nothing is put, and the id is that of that one.")
@click.option("--until", type=click.Choice(["deleted", "reserved"]), default="deleted", show_default=True, help="With --unique.")
@click.option("--unique-for", type=_SECONDS, help="With --unique: for so many seconds at most.")
@asks_within(15.0)
def put(
    tube: str,
    bodies: tuple[str, ...],
    files: tuple[str, ...],
    lines: str | None,
    delay: float,
    run_at: datetime | None,
    ttr: float | None,
    priority: int | None,
    key: str | None,
    unique: str | None,
    until: Literal["deleted", "reserved"],
    unique_for: float | None,
    url: str | None,
    timeout: float,
) -> None:
    """Put jobs into TUBE and print their ids: each BODY, each --file, each of the --lines; without any, standard input is the body.

    All of them together, or none, but for --lines: those are put some at a time, in their order.
    """
    given = bool(bodies or files)
    if lines is not None and (given or key is not None):
        raise click.UsageError("--lines: leave out BODY, --file and --key")
    moment = run_at.astimezone() if run_at is not None else None
    if unique is None and (unique_for is not None or until != "deleted"):
        raise click.UsageError("--until, --unique-for: they say nothing without --unique")
    if (moment is not None or unique is not None) and (lines is not None or len(bodies) + len(files) > 1):
        raise click.UsageError("--run-at, --unique: put one job")
    if lines is None and not given and sys.stdin.isatty():
        raise click.UsageError("give a BODY, --file or --lines, or send the body to standard input")
    with working():
        some = [*map(os.fsencode, bodies), *map(_read, files)] if given else [] if lines is not None else [_read("-")]
        with client_of(url, timeout) as client:
            if lines is not None:
                _put_lines(client, tube, lines, {"delay": delay, "ttr": ttr, "priority": priority})
                return
            how: dict[str, Any] = {"ttr": ttr, "priority": priority, "key": key}
            if unique is not None:
                found = client.put_unique(tube, some[0], unique, until=until, unique_for=unique_for, delay=delay, run_at=moment, **how)
                click.echo(found.id)
                return
            if moment is not None:
                click.echo(client.put(tube, some[0], delay=delay, run_at=moment, **how))
                return
            for id in client.put_many(tube, some, delay=delay, **how):
                click.echo(id)


def _read(path: str) -> bytes:
    with click.open_file(path, "rb") as file:
        return bytes(file.read())


def _put_lines(client: Client, tube: str, path: str, how: dict[str, Any]) -> None:
    from raftd.client.errors import OutcomeUnknown
    from raftd.errors import RaftdError
    from raftd.limits import MAX_JOB_BYTES_CEILING

    done, some = 0, []
    with click.open_file(path, "rb") as file, Steps(_size(file), "put") as advance:
        try:
            for some in _several(iter(lambda: file.readline(MAX_JOB_BYTES_CEILING + 2), b"")):
                for id in client.put_many(tube, [line.removesuffix(b"\n").removesuffix(b"\r") for line in some], **how):
                    click.echo(id)
                done += len(some)
                advance(sum(map(len, some)))
        except RaftdError as error:
            perhaps = f"whether lines {done + 1} to {done + len(some)} were put is not known" if isinstance(error, OutcomeUnknown) else ""
            fail("; ".join(filter(None, (f"{error}: the first {done} lines were put", perhaps, "and none after them"))))


def _several(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Some at a time. Raises TooLarge."""
    from raftd.client.errors import TooLarge
    from raftd.limits import MAX_JOB_BYTES_CEILING

    some: list[bytes] = []
    size = 0
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_JOB_BYTES_CEILING:
            raise TooLarge(f"line {number} is longer than any job may be ({MAX_JOB_BYTES_CEILING:,} bytes)")
        if some and (len(some) == _LINES or size + len(line) > _LINES_BYTES):
            yield some
            some, size = [], 0
        some.append(line)
        size += len(line)
    if some:
        yield some


def _size(file: IO[bytes]) -> int | None:
    """In bytes, None of what has none."""
    import os
    import stat

    found = os.fstat(file.fileno())
    return found.st_size if stat.S_ISREG(found.st_mode) else None


class Steps:
    """As a context, gives what is to be called with each advance; a bar on standard error if that is a terminal."""

    def __init__(self, total: int | None, what: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (
            TextColumn(what),
            BarColumn(),
            TextColumn("{task.percentage:.0f} %" if total else "{task.completed:,.0f}"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task(what, total=total)

    def __enter__(self) -> Callable[[int], None]:
        self._progress.start()
        return lambda count: self._progress.advance(self._task, count)

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()


# -- working ------------------------------------------------------------------------------------


@click.command(short_help="Take a job.")
@click.argument("tubes", nargs=-1, metavar="[TUBE]...")
@click.option("--wait", type=_SECONDS, help="Seconds to wait for a job.  [default: for ever]")
@_JSON
@asks_within(15.0)
def reserve(tubes: tuple[str, ...], wait: float | None, as_json: bool, url: str | None, timeout: float) -> None:
    """Take a job of these tubes (of `default`): print its body, and on standard error its id and token.

    It stays reserved until its time to run is over: delete, release or bury it with its token before. Ends with status 1 if there is none.
    """
    with working():
        client = client_of(url, timeout)
        try:
            job = client.reserve(*tubes, timeout=wait)
            if job is None:
                fail(f"there is no job in {', '.join(tubes or ('default',))}")
            client.leave()  # before anything is shown: if that fails it is no job of this user
            if as_json:
                about = {"id": job.id, "token": job.token, "tube": job.tube, "priority": job.priority, "ttr": job.ttr}
                _print_json({**about, "attempts": job.attempts, "body": job.body})
            else:
                attempts = f", {job.attempts} attempts failed" if job.attempts else ""
                click.echo(f"job {job.id} of {job.tube}, token {job.token}, {job.ttr:g} s to run{attempts}", err=True)
                _print_body(job.body)
        finally:
            client.close()


@click.command(short_help="Delete jobs.")
@click.argument("ids", type=_ID, nargs=-1, required=True, metavar="ID...")
@click.option("--token", type=_ID, help="That of its reservation, if the job is reserved; with one ID.")
@asks_within(15.0)
def delete(ids: tuple[int, ...], token: int | None, url: str | None, timeout: float) -> None:
    """Delete jobs that nobody holds, or one that `raftd reserve` has taken."""
    if token is not None and len(ids) > 1:
        raise click.UsageError("--token: with one ID")
    with working(), client_of(url, timeout) as client:
        for id in ids:
            client.delete(id, token or 0)


@click.command(short_help="Give a job back.")
@click.argument("id", type=_ID)
@_TOKEN
@click.option("--delay", type=_SECONDS, default=0.0, help="Seconds until it is ready.")
@click.option("--priority", type=_PRIORITY, help="A new one; 0 is the most urgent.")
@asks_within(15.0)
def release(id: int, token: int, delay: float, priority: int | None, url: str | None, timeout: float) -> None:
    """Give a job back that `raftd reserve` has taken."""
    with working(), client_of(url, timeout) as client:
        client.release(id, token, delay, priority)


@click.command(short_help="Put a job aside.")
@click.argument("id", type=_ID)
@_TOKEN
@click.option("--error", default="", help="Why, kept with the job.")
@click.option("--priority", type=_PRIORITY, help="A new one; 0 is the most urgent.")
@asks_within(15.0)
def bury(id: int, token: int, error: str, priority: int | None, url: str | None, timeout: float) -> None:
    """Put a job aside that `raftd reserve` has taken, until it is kicked or deleted."""
    with working(), client_of(url, timeout) as client:
        client.bury(id, token, error, priority)


@click.command(short_help="Make buried or delayed jobs ready.")
@click.argument("tube", required=False)
@click.option("--count", "-n", type=click.IntRange(1), default=1, show_default=True, help="So many at most.")
@click.option("--all", "every", is_flag=True, help="All that are buried, or if there are none all that are delayed.")
@click.option("--job", "ids", type=_ID, multiple=True, help="Instead: this job, of any tube.")
@asks_within(15.0)
def kick(tube: str | None, count: int, every: bool, ids: tuple[int, ...], url: str | None, timeout: float) -> None:
    """Make buried jobs of TUBE ready again, or if there are none delayed ones; print how many.

    Jobs that are buried meanwhile stay so.
    """
    if (tube is None) == (not ids):
        raise click.UsageError("give a TUBE, or --job ID")
    with working(), client_of(url, timeout) as client:
        for id in ids:
            client.kick_job(id)
        if tube is None:
            return
        stats = client.stats(tube)
        if stats is None and tube.isdecimal():
            fail(f"there is no tube {tube!r}; a job is kicked with: raftd kick --job {tube}")
        buried = stats.buried if stats is not None else 0
        if every:
            count = (stats.buried or stats.delayed) if stats is not None else 0
        kicked = 0
        with Steps(count, "kick") as advance:
            while kicked < count and (some := client.kick(tube, min(count - kicked, _MOST_KICKED))):
                stats = client.stats(tube)
                if buried and not (stats is not None and stats.buried):
                    count = 0  # another kicks them, too: the delayed ones stay
                kicked += some
                advance(some)
        click.echo(kicked)


#: In one step: fewer than a kick may move.
_MOST_KICKED = 1_000

# -- looking ------------------------------------------------------------------------------------


@click.command(short_help="Look at a job.")
@click.argument("id", type=_ID, required=False)
@click.option("--tube", "-t", help="Instead: the next of this tube.")
@click.option("--state", type=click.Choice(["ready", "delayed", "buried"]), default="ready", show_default=True, help="With --tube.")
@_JSON
@asks_within(15.0)
def peek(id: int | None, tube: str | None, state: str, as_json: bool, url: str | None, timeout: float) -> None:
    """How job ID is, and its body. Ends with status 1 if there is no such job."""
    import msgspec

    if (id is None) == (tube is None):
        raise click.UsageError("give an ID, or --tube TUBE")
    with working(), client_of(url, timeout) as client:
        job = client.peek(id) if id is not None else client.peek_next(str(tube), state)
        if job is None:
            fail(f"there is no job {id}" if id is not None else f"there is no {state} job in {tube}")
        about = msgspec.structs.asdict(job)
        if as_json:
            _print_json(about)
            return
        body = about.pop("body")
        if not job.death:
            for name in ("death", "origin", "death_attempts", "dead_for"):
                del about[name]
        if job.buried_for is None:
            del about["buried_for"]
        _print_fields(about)
        click.echo()
        _print_body(body if body.endswith(b"\n") else body + b"\n")


def _print_fields(fields: dict[str, Any]) -> None:
    from raftd.client.connection import printable

    width = max(map(len, fields)) + 2
    for name, value in fields.items():
        shown = (
            f"{value:,}" if isinstance(value, int) and name not in ("id", "token") else f"{value:g}" if isinstance(value, float) else value
        )
        click.echo(f"{name.replace('_', ' '):{width}}{printable(str(shown))}".rstrip())


@click.command(short_help="All tubes: a table, or JSON.")
@_JSON
@asks_within(15.0)
def tubes(as_json: bool, url: str | None, timeout: float) -> None:
    """How many jobs each tube has, by their states."""
    import msgspec
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from raftd.cli.console import wide

    with working(), client_of(url, timeout) as client:
        if as_json:
            for stats in client.tubes():
                _print_json(msgspec.structs.asdict(stats))
            return
        table = Table(box=box.SIMPLE)
        for name in ("tube", "ready", "reserved", "delayed", "buried", "waiting", "pause left"):
            table.add_column(name, justify="left" if name == "tube" else "right", no_wrap=True)
        for stats in client.tubes():
            counts = (stats.ready, stats.reserved, stats.delayed, stats.buried, stats.waiting)
            table.add_row(stats.tube, *(f"{count:,}" for count in counts), f"{stats.pause_left:.0f} s" if stats.pause_left else "")
        wide(Console()).print(table)


@click.command(short_help="Counts of a tube, or of all.")
@click.argument("tube", required=False)
@_JSON
@asks_within(15.0)
def stats(tube: str | None, as_json: bool, url: str | None, timeout: float) -> None:
    """Counts of TUBE, or of all tubes together. Ends with status 1 if there is no such tube. How nodes are: `raftd status`."""
    import msgspec

    with working(), client_of(url, timeout) as client:
        if tube is not None:
            found = client.stats(tube)
            if found is None:
                fail(f"there is no tube {tube}")
            fields = msgspec.structs.asdict(found)
        else:
            fields = {"tubes": 0}
            for one in client.tubes():
                fields["tubes"] += 1
                for name, value in msgspec.structs.asdict(one).items():
                    if name not in ("tube", "pause_left", "policy_version"):
                        fields[name] = fields.get(name, 0) + value
        if as_json:
            _print_json(fields)
        else:
            _print_fields(fields)

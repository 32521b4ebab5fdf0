"""`raftd schedule`: jobs that are put by themselves (docs/queues.md)."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from raftd.cli.common import fail, working
from raftd.cli.jobs import MOMENTS, asks_within, client_of

if TYPE_CHECKING:
    from raftd.client import ScheduleInfo
    from raftd.client.blocking import Client

_VERSION = click.option("--version", type=click.IntRange(0), help="Only if it has this version; 0: if there is none.")
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")


@click.group()
def schedule() -> None:
    """Jobs that are put by themselves."""


@schedule.command("add", short_help="Make a schedule, or replace it.")
@click.argument("name")
@click.argument("tube")
@click.argument("body", required=False, default="")
@click.option("--cron", metavar="'M H D M W'", help="At these times: minute hour day month weekday.")
@click.option("--zone", help="The time zone of --cron, such as Europe/Berlin.  [default: UTC]")
@click.option("--every", type=click.FloatRange(0.1), metavar="SECONDS", help="Or every so many seconds.")
@click.option("--at", type=click.DateTime(MOMENTS), help="Or once at this moment; without an offset, local time.")
@click.option("--file", type=click.File("rb"), help="The body is what this file has.")
@click.option("--ttr", type=click.FloatRange(1), help="Seconds to work a job before another may.  [default: 60]")
@click.option("--priority", type=click.IntRange(0, (1 << 32) - 1), help="0 is the most urgent.  [default: 65536]")
@click.option("--catch-up", type=click.Choice(["none", "one"]), help="What is put for times that were missed.  [default: none]")
@click.option("--overlap", type=click.Choice(["allow", "skip"]), help="Whether while the job before is still there.  [default: allow]")
@_VERSION
@asks_within(15.0)
def add(
    name: str,
    tube: str,
    body: str,
    cron: str | None,
    zone: str | None,
    every: float | None,
    at: datetime | None,
    file: Any,
    ttr: float | None,
    priority: int | None,
    catch_up: str | None,
    overlap: str | None,
    version: int | None,
    url: str | None,
    timeout: float,
) -> None:
    """Put BODY into TUBE by itself, as schedule NAME.

    raftd schedule add report reports daily --cron '30 6 * * 1-5' --zone Europe/Berlin
    """
    if file is not None and body:
        raise click.UsageError("BODY, --file: give one of them")
    given = {
        "tube": tube,
        "cron": cron,
        "zone": zone,
        "every_s": every,
        "at": at.astimezone() if at is not None else None,
        "ttr_s": ttr,
        "priority": priority,
        "catch_up": catch_up,
        "overlap": overlap,
        **({"base64": file.read()} if file is not None else {"body": body}),
    }
    with working(), client_of(url, timeout) as client:
        client.set_schedule(name, {field: value for field, value in given.items() if value is not None}, version)


@schedule.command("list", short_help="All schedules: a table, or JSON.")
@_JSON
@asks_within(15.0)
def list_schedules(as_json: bool, url: str | None, timeout: float) -> None:
    """All schedules, by name."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from raftd.cli.console import wide

    with working(), client_of(url, timeout) as client:
        if as_json:
            for one in client.schedules():
                click.echo(_json(one))
            return
        table = Table(box=box.SIMPLE)
        for title in ("schedule", "tube", "when", "next", "put", "skipped"):
            table.add_column(title, justify="right" if title in ("put", "skipped") else "left", no_wrap=True)
        for one in client.schedules():
            next_time = "paused" if one.is_paused else _moment(one.next)
            table.add_row(one.name, one.schedule.tube, _when(one), next_time, f"{one.put:,}", f"{one.skipped:,}")
        wide(Console()).print(table)


@schedule.command("show", short_help="Show a schedule.")
@click.argument("name")
@_JSON
@asks_within(15.0)
def show(name: str, as_json: bool, url: str | None, timeout: float) -> None:
    """Show schedule NAME. Ends with status 1 if there is none."""
    import msgspec

    with working(), client_of(url, timeout) as client:
        one = _known(client, name)
        if as_json:
            click.echo(_json(one))
            return
        fields = msgspec.to_builtins(one)
        for field, value in {**fields.pop("schedule"), **fields}.items():
            click.echo(f"{field.replace('_', ' '):12}{'' if value is None else value}".rstrip())


@schedule.command("pause", short_help="Pause a schedule.")
@click.argument("name")
@asks_within(15.0)
def pause(name: str, url: str | None, timeout: float) -> None:
    """Occurrences of NAME are not put from now on."""
    with working(), client_of(url, timeout) as client:
        client.pause_schedule(name)


@schedule.command("resume", short_help="Go on with a paused schedule.")
@click.argument("name")
@asks_within(15.0)
def resume(name: str, url: str | None, timeout: float) -> None:
    """Go on with the next occurrence of NAME."""
    with working(), client_of(url, timeout) as client:
        client.resume_schedule(name)


@schedule.command("run", short_help="Put the job of a schedule now.")
@click.argument("name")
@asks_within(15.0)
def run(name: str, url: str | None, timeout: float) -> None:
    """Put the job of NAME now, whatever is due, and print its id."""
    with working(), client_of(url, timeout) as client:
        click.echo(client.run_schedule(name))


@schedule.command("remove", short_help="Remove a schedule.")
@click.argument("name")
@_VERSION
@asks_within(15.0)
def remove(name: str, version: int | None, url: str | None, timeout: float) -> None:
    """Remove NAME. Its jobs stay. Ends with status 1 if there is none."""
    with working(), client_of(url, timeout) as client:
        known = _known(client, name)
        client.set_schedule(name, None, known.version if version is None else version)


def _known(client: Client, name: str) -> ScheduleInfo:
    found = client.schedule(name)
    if found is None:
        fail(f"there is no schedule {name!r}")
    return found


def _when(one: ScheduleInfo) -> str:
    plan = one.schedule
    if plan.cron is not None:
        return f"{plan.cron} {plan.zone}"
    return f"every {plan.every_s:g} s" if plan.every_s is not None else f"once at {_moment(plan.at)}"


def _moment(moment: datetime | None) -> str:
    return moment.astimezone().isoformat(" ", "seconds") if moment is not None else ""


def _json(one: ScheduleInfo) -> bytes:
    import msgspec

    return msgspec.json.encode(one)

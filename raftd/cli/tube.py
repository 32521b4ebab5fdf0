"""`raftd tube`: what a tube does by itself (docs/queues.md)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import click

from raftd.cli.common import fail, working
from raftd.cli.jobs import Steps, asks_within, client_of

if TYPE_CHECKING:
    from raftd.client import TubePolicy
    from raftd.client.blocking import Client

_VERSION = click.option("--version", type=click.IntRange(0), help="Only if the policy has this version; 0: if there is none.")


@click.group()
def tube() -> None:
    """What tubes do by themselves: their policies."""


@tube.command("set", short_help="Set the policy of a tube.")
@click.argument("tube")
@click.argument("fields", nargs=-1, required=True, metavar="FIELD=VALUE...")
@_VERSION
@asks_within(15.0)
def set_policy(tube: str, fields: tuple[str, ...], version: int | None, url: str | None, timeout: float) -> None:
    """Set the policy of TUBE. It takes the place of the one before: what is not named has no limit.

    raftd tube set mail max_attempts=5 'backoff=[10, 60, 600]' dead_letter=mail.dead
    """
    import yaml

    policy: dict[str, Any] = {}
    for field in fields:
        name, equals, value = field.partition("=")
        if not equals or name in policy:
            raise click.UsageError(f"{field!r}: expected FIELD=VALUE, each once")
        if not value:
            raise click.UsageError(f"{name}: expected a value; a field that is not named has no limit")
        try:
            policy[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise click.UsageError(f"{name}: {value!r} is no value in YAML") from None
    with working(), client_of(url, timeout) as client:
        client.set_policy(tube, policy, version)
        _print([_known(client, tube)])


@tube.command("unset", short_help="Take the policy of a tube away.")
@click.argument("tube")
@_VERSION
@asks_within(15.0)
def unset_policy(tube: str, version: int | None, url: str | None, timeout: float) -> None:
    """Take the policy of TUBE away. Ends with status 1 if it has none."""
    with working(), client_of(url, timeout) as client:
        known = _known(client, tube)
        client.set_policy(tube, None, known.version if version is None else version)


@tube.command("show", short_help="Show policies.")
@click.argument("tube", required=False)
@asks_within(15.0)
def show_policies(tube: str | None, url: str | None, timeout: float) -> None:
    """Show the policy of TUBE, or all of them, as `raftd tube apply` takes them. Ends with status 1 if TUBE has none."""
    with working(), client_of(url, timeout) as client:
        _print(client.policies() if tube is None else [_known(client, tube)])


@tube.command("apply", short_help="Set the policies in a file.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option("--prune", is_flag=True, help="Tubes that are not in the file have no policy any more.")
@click.option("--dry-run", is_flag=True, help="Change nothing: show what would be changed. Status 2 if something would be.")
@asks_within(15.0)
def apply_policies(file: str, prune: bool, dry_run: bool, url: str | None, timeout: float) -> None:
    """Set the policies in FILE (YAML: tubes, and for each the fields of its policy, or null for none): all of them or none.

    Nothing is set if another changes one of them meanwhile.
    """
    from raftd.wire.policy import document_of, policy_of

    with working(), client_of(url, timeout) as client:
        wanted = _read(file)
        known = {policy.tube: policy for policy in client.policies()}
        if prune:
            wanted |= dict.fromkeys(known.keys() - wanted.keys())
        _check_circles(wanted, {name: policy.policy for name, policy in known.items()})
        changes: dict[str, Any] = {}
        differences = []
        for name, document in sorted(wanted.items()):
            before = known[name].policy if name in known else None
            after = document_of(policy_of(document)) if document is not None else None
            if before != after:
                changes[name] = document
                differences.append(_difference(name, before, after))
        if changes and not dry_run:
            client.set_policies(changes, {name: known[name].version if name in known else 0 for name in changes})
        click.echo("".join(differences), nl=False)
    if dry_run and changes:
        raise SystemExit(2)


_WHY_THEY_STAY = {
    "move": "their tube is full, or there is no tube that they died in (then say --to or --kick)",
    "kick": "they are dead letters, and ready already",
    "delete": "they are not there any more, or a worker has them",
}


@tube.command("replay", short_help="Give dead and buried jobs another chance, or delete them.")
@click.argument("tube")
@click.option("--to", metavar="TUBE", help="Where they go.  [default: each to the tube that it died in]")
@click.option("--kick", is_flag=True, help="Instead: those that are buried become ready where they are.")
@click.option("--delete", is_flag=True, help="Instead: delete them.")
@click.option("--error", default="", help="Only those whose last error has this text in it.")
@click.option("--origin", default="", metavar="TUBE", help="Only those that died in this tube.")
@click.option("--older", type=click.FloatRange(0), default=0.0, metavar="SECONDS", help="Only those dead or buried for so long at least.")
@click.option("--newer", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="Only those dead or buried for so long at most.")
@click.option("--dry-run", is_flag=True, help="Only count them.")
@asks_within(15.0)
def replay(
    tube: str,
    to: str | None,
    kick: bool,
    delete: bool,
    error: str,
    origin: str,
    older: float,
    newer: float | None,
    dry_run: bool,
    url: str | None,
    timeout: float,
) -> None:
    """Move the dead letters and the buried jobs of TUBE, and print how many. Jobs that die or are buried meanwhile are not touched.

    It may be interrupted and run again: nothing is done twice. Ends with status 1 if some cannot be moved.
    """
    action: Literal["move", "kick", "delete"] = "kick" if kick else "delete" if delete else "move"
    if (to is not None) + kick + delete > 1:
        raise click.UsageError("--to, --kick, --delete: give one of them")
    with working(), client_of(url, timeout) as client:
        count, which = client.count_dead(tube, error=error, origin=origin, older=older, newer=newer)
        if dry_run:
            click.echo(count)
            return
        done = skipped = 0
        after: int | None = 0
        with Steps(count, "replay") as advance:
            while after is not None:
                step = client.replay_step(which, action, to or "", after)
                done, skipped, after = done + step.done, skipped + step.skipped, step.after
                advance(step.done + step.skipped)
        click.echo(done)
    if skipped:
        fail(f"{skipped} stay where they are: {_WHY_THEY_STAY[action]}")


def _known(client: Client, tube: str) -> TubePolicy:
    policy = client.policy(tube)
    if policy is None:
        fail(f"tube {tube!r} has no policy")
    return policy


def _read(file: str) -> dict[str, Any]:
    """Policies by tube. Raises ConfigError, and what is wrong with a policy ends the command."""
    from raftd.config import read_yaml
    from raftd.wire.policy import document_from, policy_of

    tubes = read_yaml(file)
    if not isinstance(tubes, dict) or not tubes:
        fail(f"{file}: expected tubes, and for each its policy")
    found: dict[str, Any] = {}
    for name, policy in tubes.items():
        try:
            found[str(name)] = document = document_from(policy) if policy is not None else None
            if document is not None:
                policy_of(document)
        except ValueError as error:
            fail(f"{file}: tube {name!r}: {error}")
    return found


def _check_circles(wanted: dict[str, Any], known: dict[str, Any]) -> None:
    """What the cluster would refuse, also for a dry run."""
    from raftd.wire.policy import leads_in_circle, policy_of

    def policy_after(name: str) -> Any:
        document = wanted[name] if name in wanted else known.get(name)
        return policy_of(document) if document is not None else None

    for name in wanted:
        if leads_in_circle(name, policy_after):
            fail(f"tube {name!r}: dead_letter: its dead jobs would go in a circle, or through too many tubes")


def _lines(document: Any) -> list[str]:
    """In YAML, a field a line."""
    import msgspec
    import yaml

    if document is None:
        return []
    fields = msgspec.to_builtins(document)
    return [yaml.safe_dump({name: value}, default_flow_style=True, width=10_000).strip()[1:-1] for name, value in fields.items()]


def _print(policies: Iterable[TubePolicy]) -> None:
    for policy in policies:
        lines = _lines(policy.policy)
        click.echo(f"{policy.tube}:{'' if lines else ' {}'}  # version {policy.version}")
        for line in lines:
            click.echo(f"  {line}")


def _difference(name: str, before: Any, after: Any) -> str:
    from difflib import unified_diff

    old, new = _lines(before), _lines(after)
    changed = [line for line in list(unified_diff(old, new, lineterm="", n=0))[2:] if not line.startswith("@@")]
    return "".join(f"{line}\n" for line in (f"{name}:", *(f"  {line}" for line in changed)))

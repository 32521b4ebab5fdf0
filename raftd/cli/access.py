"""The commands about who may do what: users, tokens, rights, the audit log (docs/security.md)."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from raftd.cli.common import connect, fail, order, orders, working
from raftd.client.address import HostPort

if TYPE_CHECKING:
    from raftd.client.connection import Connection
    from raftd.jobs.rights import Change, Grant, Quota
    from raftd.wire.client import AuditRecord, UserInfo

_F = TypeVar("_F", bound=Callable[..., Any])
_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}
_FIRST_TOKEN = "first"
_POLL_S = 0.2
#: What `AccessRefused.why` means.
_WHY = {
    "no-user": "there is no user {user}",
    "user-exists": "there is a user {user} already",
    "no-token": "user {user} has no such token",
    "token-exists": "user {user} has a token of this name already",
    "no-grant": "user {user} has no such grant: `raftd user list` shows those that he has (--deny is for what he may not)",
    "too-many": "there would be too many users, grants or tokens",
    "no-operator": "nobody would be left who may operate the cluster (`raftd init` makes the first user)",
}


def _duration_ms(ctx: click.Context, param: click.Parameter, value: str | None) -> int:
    if value is None:
        return 0
    found = re.fullmatch(r"([1-9][0-9]{0,8})([smhdw])", value)  # 0 would be for ever
    if found is None:
        raise click.BadParameter(f"{value!r}: expected a number and s, m, h, d or w, as 90d")
    return int(found[1]) * _UNITS_S[found[2]] * 1_000


_EXPIRES = click.option(
    "--expires", callback=_duration_ms, metavar="TIME", help="It is good for so long, as 12h or 90d.  [default: for ever]"
)


def _tubes(ctx: click.Context, param: click.Parameter, value: str | None) -> str:
    if value is None and ctx.params.get("right") != "operate":
        raise click.MissingParameter(ctx=ctx, param=param, message="'*' is all of them")
    return value or "*"


_TUBES = click.argument("tubes", required=False, callback=_tubes, metavar="TUBES")
_RIGHTS = ["put", "work", "read", "manage", "operate"]


def _rights(command: _F) -> _F:
    """The arguments of commands about a grant."""
    user = click.argument("user")
    right = click.argument("right", type=click.Choice(_RIGHTS))
    return user(right(_TUBES(command)))


def _change(connection: Connection, *changes: Change) -> None:
    """All of them or none. Ends the process if they are refused."""
    from raftd.jobs.replies import AccessChanged, AccessRefused
    from raftd.wire.checks import what_is_wrong_with_access
    from raftd.wire.client import ChangeAccessRequest

    wrong = what_is_wrong_with_access(list(changes))
    if wrong:
        fail(wrong)
    reply: object = order(connection, ChangeAccessRequest(1, list(changes)), object)
    if isinstance(reply, AccessRefused):
        fail(_WHY[reply.why].format(user=reply.user))
    if not isinstance(reply, AccessChanged):
        fail("the node answers something else")


def _are_heard(connection: Connection) -> bool:
    """Whether all nodes are known to know users."""
    from raftd.jobs.commands import ACCESS_LEVEL
    from raftd.wire.client import Status, StatusRequest

    return order(connection, StatusRequest(1), Status).feature_level >= ACCESS_LEVEL


_OUT = click.option("--out", type=click.Path(dir_okay=False), help="Write the token to this new file, which only you can read.")


def _is_new(path: str | None) -> None:
    """Before the cluster is asked for anything: there may be a token in it that is good."""
    if path is not None and os.path.lexists(path):
        fail(f"{path}: is there already. Nothing was changed")


def _give(token: str, path: str | None) -> None:
    if path is None:
        click.echo(token)
        click.echo("Keep it: it is shown only now. $RAFTD_TOKEN, or token=FILE in a URL, shows it to the cluster.", err=True)
        return
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(f"{token}\n")
    click.echo(f"the token is in {path}: token={path} in a URL shows it to the cluster", err=True)


def _somebody_is_left(connection: Connection, name: str, token: str | None, is_forced: bool) -> None:
    """Ends the process if nobody who may operate would have a password, or a token that does not expire, without `token` of user `name`
    (None: without him). A certificate may be enough, which the cluster cannot know."""
    from raftd.jobs.rights import ALL_TUBES, Grant, Right

    for one in [] if is_forced else _users(connection, ""):
        may_operate = Grant(Right.OPERATE, ALL_TUBES) in one.grants
        left = [own for own in one.tokens if own.left_ms is None and not (one.name == name and own.name == token)]
        if may_operate and (one.has_password or left) and not (one.name == name and token is None):
            return
    if not is_forced:
        fail("then nobody who may operate has a password, or a token that does not expire: without TLS there is no way in. --force does it")


_FORCE = click.option("--force", is_flag=True, help="Also if no operator has a lasting token or a password then.")


@click.command(short_help="Make the first user: from then on everybody has to say who he is.")
@click.argument("name")
@_OUT
@orders
def init(name: str, out: str | None, endpoint: HostPort | None, config: str | None, timeout: float) -> None:
    """Make NAME the first user of a cluster, an operator with every right, and print a token.

    Only on the machine of a node that runs. From then on every client has to say who he is, and may do what he was granted. There is no
    way back: somebody who may operate the cluster is always left.
    """
    from raftd.jobs.rights import ALL_TUBES, AddGrant, AddToken, AddUser, Grant, Right
    from raftd.passwords import digest_of_token, new_token
    from raftd.wire.client import UsersFound, WhoAmIRequest

    with working():
        _is_new(out)
    with working(), connect(endpoint, config, timeout) as connection:
        if order(connection, WhoAmIRequest(1), UsersFound).users:
            fail("the cluster has users already")
        token = new_token()
        grants = [AddGrant(name, Grant(right, ALL_TUBES)) for right in Right]
        changes: list[Change] = [AddUser(name), AddToken(name, _FIRST_TOKEN, digest_of_token(token)), *grants]
        until_s = time.monotonic() + timeout
        while not _are_heard(connection) and time.monotonic() < until_s:
            time.sleep(_POLL_S)  # a cluster that has just begun: no event tells here that its leader has heard all nodes
        _change(connection, *changes)
        click.echo(f"user {name} may do everything. From now on every client has to say who he is.", err=True)
        _give(token, out)


@click.group(short_help="Users: add, list, remove; passwords and quotas.")
def user() -> None:
    """Users of a cluster. The first one is made by `raftd init`."""


@user.command("add", short_help="Make a user, who may do nothing yet.")
@click.argument("name")
@orders
def user_add(name: str, endpoint: HostPort | None, config: str | None, timeout: float) -> None:
    """Make a user NAME. A client's certificate with this common name is his (`raftd tls client NAME`); so is a token (`raftd token
    create`), or a password. `raftd grant` says what he may do."""
    from raftd.jobs.rights import AddUser

    with working(), connect(endpoint, config, timeout) as connection:
        _change(connection, AddUser(name))
        click.echo(f"user {name} may do nothing yet: `raftd grant {name} RIGHT TUBES` changes that")


@user.command("remove", short_help="Remove a user, and all that he may show.")
@click.argument("name")
@_FORCE
@orders
def user_remove(name: str, force: bool, endpoint: HostPort | None, config: str | None, timeout: float) -> None:
    """Remove user NAME with his tokens and grants. His open connections can do nothing from now on."""
    from raftd.jobs.rights import RemoveUser

    with working(), connect(endpoint, config, timeout) as connection:
        _somebody_is_left(connection, name, None, force)
        _change(connection, RemoveUser(name))


@user.command("list", short_help="Who there is, and what he may do.")
@click.argument("name", required=False)
@orders
@click.option("--json", "as_json", is_flag=True, help="The same for programs.")
def user_list(name: str | None, endpoint: HostPort | None, config: str | None, timeout: float, as_json: bool) -> None:
    """All users, or NAME: what they may do, which tokens they have."""
    with working(), connect(endpoint, config, timeout) as connection:
        _show_users(_users(connection, name or ""), as_json)


@user.command("whoami", short_help="Who the cluster takes you for.")
@orders
@click.option("--json", "as_json", is_flag=True, help="The same for programs.")
def whoami(endpoint: HostPort | None, config: str | None, timeout: float, as_json: bool) -> None:
    """Who the cluster takes you for, and what you may do."""
    from raftd.wire.client import UsersFound, WhoAmIRequest

    with working(), connect(endpoint, config, timeout) as connection:
        found = order(connection, WhoAmIRequest(1), UsersFound).users
        if not found:
            click.echo("the cluster has no users: everybody may do everything")
        else:
            _show_users(found, as_json)


def _users(connection: Connection, name: str) -> list[UserInfo]:
    from raftd.wire.client import UsersFound, UsersRequest

    users: list[UserInfo] = []
    page = UsersFound([], has_more=True)
    while page.has_more:
        page = order(connection, UsersRequest(1, name, users[-1].name if users else ""), UsersFound)
        users += page.users
    if name and not users:
        fail(f"there is no user {name}")
    return users


def _show_users(users: list[UserInfo], as_json: bool) -> None:
    import msgspec

    if as_json:
        fields = [
            {name: getattr(one, name) for name in ("name", "has_password")}
            | {
                "grants": [{"right": grant.right, "tubes": grant.tubes, "denied": grant.is_denied} for grant in one.grants],
                "tokens": [{"name": token.name, "age_ms": token.age_ms, "left_ms": token.left_ms} for token in one.tokens],
                "quota": msgspec.structs.asdict(one.quota),
            }
            for one in users
        ]
        click.echo(msgspec.json.encode(fields))
        return
    from rich.console import Console
    from rich.table import Table

    from raftd.cli.console import wide

    table = Table("user", "may", "may not", "shows", "quota", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for one in users:
        shown = [*(["password"] if one.has_password else []), *(_token_words(token.name, token.left_ms) for token in one.tokens)]
        may, may_not = (_grant_words(one.grants, is_denied) for is_denied in (False, True))
        table.add_row(one.name, may, may_not, "\n".join(shown), "\n".join(_quota_words(one.quota)))
    console = Console()
    wide(console).print(table)


def _token_words(name: str, left_ms: int | None) -> str:
    if left_ms is None:
        return f"token {name}"
    return f"token {name}, {left_ms // 86_400_000} d left" if left_ms else f"token {name}, expired"


def _grant_words(grants: list[Grant], is_denied: bool) -> str:
    return "\n".join(f"{grant.right} {grant.tubes}" for grant in grants if grant.is_denied is is_denied)


@user.command("passwd", short_help="Set a user's password, or take it away.")
@click.argument("name")
@click.option("--password-file", type=click.Path(exists=True, dir_okay=False), help="Its first line is it.  [default: ask for it]")
@click.option("--remove", is_flag=True, help="He has none any more.")
@orders
def user_passwd(name: str, password_file: str | None, remove: bool, endpoint: HostPort | None, config: str | None, timeout: float) -> None:
    """Set the password of user NAME. It does not leave this machine: the cluster gets a hash (scrypt). Clients show it over TLS only. For
    programs a token is better: it is quicker, and can be revoked by itself."""
    from raftd.jobs.rights import Password, SetPassword
    from raftd.passwords import PASSWORD_BYTES, digest_of_password, new_salt

    if remove and password_file is not None:
        raise click.UsageError("--remove and --password-file: give one of them")
    with working():
        password = None
        if not remove:
            text = (
                _first_line(password_file)
                if password_file is not None
                else click.prompt("Password", hide_input=True, confirmation_prompt=True)
            )
            if not 8 <= len(text.encode()) <= PASSWORD_BYTES:
                fail(f"the password: expected 8 to {PASSWORD_BYTES:,} bytes")
            salt = new_salt()
            password = Password(salt, digest_of_password(text, salt))
        with connect(endpoint, config, timeout) as connection:
            _change(connection, SetPassword(name, password))


def _first_line(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.readline().rstrip("\r\n")


@user.command("quota", short_help="How much a user may put, and how many connections he may have.")
@click.argument("name")
@click.option("--jobs", type=click.IntRange(0, 0xFFFF_FFFF), help="Jobs a second; 0: any number.")
@click.option("--bytes", "size", type=click.IntRange(0, 1 << 40), help="Bytes a second; 0: any number.")
@click.option("--connections", type=click.IntRange(0, 1 << 20), help="Connections to each node; 0: any number.")
@click.option("--tubes", type=click.IntRange(0, 1 << 20), help="Tubes that he has declared; 0: any number.")
@orders
def user_quota(
    name: str,
    jobs: int | None,
    size: int | None,
    connections: int | None,
    tubes: int | None,
    endpoint: HostPort | None,
    config: str | None,
    timeout: float,
) -> None:
    """Let user NAME put so much in a second, on the average of some seconds, and have so many connections and declared tubes. What is over
    it is refused. What is not named stays as it is; without options the quota is shown."""
    from raftd.jobs.rights import Quota, SetQuota

    with working(), connect(endpoint, config, timeout) as connection:
        (known,) = _users(connection, name)
        given = {"jobs_per_s": jobs, "bytes_per_s": size, "connections": connections, "tubes": tubes}
        quota = Quota(*(getattr(known.quota, field) if number is None else number for field, number in given.items()))
        if any(number is not None for number in given.values()):
            _change(connection, SetQuota(name, quota))
        click.echo(", ".join(_quota_words(quota)) or "no quota")


def _quota_words(quota: Quota) -> list[str]:
    numbers = {"jobs/s": quota.jobs_per_s, "bytes/s": quota.bytes_per_s, "connections": quota.connections, "tubes": quota.tubes}
    return [f"{number:,} {what}" for what, number in numbers.items() if number]


@click.group(short_help="Tokens: what programs show to be a user.")
def token() -> None:
    """Tokens of users. `raftd user list` shows which there are."""


@token.command("create", short_help="Make a token, and print it once.")
@click.argument("user")
@click.argument("name", default=_FIRST_TOKEN, metavar="[NAME]")
@_EXPIRES
@_OUT
@orders
def token_create(
    user: str, name: str, expires: int, out: str | None, endpoint: HostPort | None, config: str | None, timeout: float
) -> None:
    """Make a token for USER, and print it. The cluster keeps only a hash. NAME tells it from his others.  [default: first]"""
    from raftd.jobs.rights import AddToken
    from raftd.passwords import digest_of_token, new_token

    with working():
        _is_new(out)
    with working(), connect(endpoint, config, timeout) as connection:
        made = new_token()
        _change(connection, AddToken(user, name, digest_of_token(made), expires))
        _give(made, out)


@token.command("revoke", short_help="A token is good for nothing any more.")
@click.argument("user")
@click.argument("name", default=_FIRST_TOKEN, metavar="[NAME]")
@_FORCE
@orders
def token_revoke(user: str, name: str, force: bool, endpoint: HostPort | None, config: str | None, timeout: float) -> None:
    """Take the token NAME of USER away. Connections that have shown it can do nothing from now on."""
    from raftd.jobs.rights import RemoveToken

    with working(), connect(endpoint, config, timeout) as connection:
        _somebody_is_left(connection, user, name, force)
        _change(connection, RemoveToken(user, name))


@click.command(short_help="Let a user do something to some tubes.")
@_rights
@click.option("--deny", is_flag=True, help="Not to these, whatever else he was granted.")
@orders
def grant(user: str, right: str, tubes: str, deny: bool, endpoint: HostPort | None, config: str | None, timeout: float) -> None:
    """Let USER do something to the tubes whose names fit TUBES, in which at most one * stands for any characters.

    put: put jobs. work: reserve, and what one does with what one holds. read: look at tubes and jobs. manage: kick, delete, pause, declare,
    policies, schedules. operate: members, users, backups, whatever tubes there are.
    """
    from raftd.jobs.rights import AddGrant, Grant, Right

    with working(), connect(endpoint, config, timeout) as connection:
        _change(connection, AddGrant(user, Grant(Right(right), tubes, deny)))
        click.echo(f"{user} may {'not ' if deny else ''}{right} {tubes}")


@click.command(short_help="Take a grant away.")
@_rights
@click.option("--deny", is_flag=True, help="One that was made with --deny.")
@orders
def revoke(user: str, right: str, tubes: str, deny: bool, endpoint: HostPort | None, config: str | None, timeout: float) -> None:
    """Take away what `raftd grant` gave with the same USER, RIGHT and TUBES. It holds for the next command of every connection."""
    from raftd.jobs.rights import Grant, RemoveGrant, Right

    with working(), connect(endpoint, config, timeout) as connection:
        _change(connection, RemoveGrant(user, Grant(Right(right), tubes, deny)))


@click.command(short_help="Who has changed what.")
@click.option("--limit", "-n", default=50, show_default=True, type=click.IntRange(1, 100_000), help="The newest so many.")
@click.option("--by", metavar="USER", help="What this user did.")
@orders
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each.")
def audit(limit: int, by: str | None, endpoint: HostPort | None, config: str | None, timeout: float, as_json: bool) -> None:
    """Who has changed users, rights, policies, schedules, members and tubes, the newest first. The cluster keeps the last 10,000."""
    import msgspec

    with working(), connect(endpoint, config, timeout) as connection:
        found = _records(connection, limit, by)
        if as_json:
            for record in found:
                click.echo(msgspec.json.encode(msgspec.structs.asdict(record)))
            return
        from rich.console import Console
        from rich.table import Table

        from raftd.cli.console import wide

        table = Table("ago", "user", "what", "to", "node", "entry", box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for record in found:
            table.add_row(_ago(record.ago_ms), record.user or "-", record.what, record.to, str(record.node), str(record.index))
        wide(Console()).print(table)


def _records(connection: Connection, limit: int, by: str | None) -> list[AuditRecord]:
    from raftd.wire.client import AuditFound, AuditRequest

    found: list[AuditRecord] = []
    before, has_more = 0, True
    while has_more and len(found) < limit:
        page = order(connection, AuditRequest(1, before, 1_000), AuditFound)
        found += [record for record in page.records if by in (None, record.user)]
        has_more = page.has_more
        before = page.records[-1].number if page.records else 0
    return found[:limit]


def _ago(ms: int) -> str:
    for unit, size_s in reversed(_UNITS_S.items()):
        if unit != "w" and ms >= size_s * 1_000:
            return f"{ms // (size_s * 1_000)} {unit}"
    return "now"

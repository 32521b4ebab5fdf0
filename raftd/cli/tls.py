"""`raftd tls`: certificates for a cluster, without a tool of another's (docs/security.md)."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import click

from raftd.cli.common import fail, working
from raftd.errors import ConfigError, RaftdError
from raftd.limits import CERTIFICATE_WARNING_DAYS

if TYPE_CHECKING:
    from raftd.cli.authority import Signed

_DAYS = click.option("--days", type=click.IntRange(1, 7300), default=365, show_default=True, help="How long certificates are good.")
_CONFIG = click.option("--config", "-c", type=click.Path(), required=True, help="The cluster's configuration file.")
_DIRECTORY = click.option(
    "--directory", "-d", type=click.Path(path_type=Path), help="Where the files are.  [default: tls, beside the configuration]"
)
#: How long the authority is good (days).
_AUTHORITY_DAYS = 3_650
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@click.group(short_help="Certificates: init, renew, client, revoke, check.")
def tls() -> None:
    """Certificates for the nodes and clients of a cluster."""


@tls.command(short_help="An authority, and a certificate for each node.")
@_CONFIG
@_DIRECTORY
@_DAYS
def init(config: str, directory: Path | None, days: int) -> None:
    """Make an authority for the cluster, a certificate for each node of its configuration, and one for an operator.

    Each node needs ca.pem, and node-ID.pem and node-ID.key of its own. Keep ca.key where no node is: whoever has it can be any of them.
    """
    from raftd.cli.authority import new_authority, new_client, new_node, revoked, save, write
    from raftd.config import load

    place = _place(directory, config)
    with working():
        loaded = load(config)
        authority = new_authority(loaded.cluster, _AUTHORITY_DAYS)
        made = {"ca": authority, "operator": new_client(authority, loaded.cluster, "operator", days)}
        for node, address in loaded.nodes.items():
            made[f"node-{node}"] = new_node(authority, loaded.cluster, node, [address.host], days)
        for name in made:
            for file in (place / f"{name}.pem", place / f"{name}.key"):
                if file.exists():
                    fail(f"{file} is there already: `raftd tls renew` makes new certificates. Nothing was changed")
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, signed in made.items():
            save(place, name, signed)
        write(place / "crl.pem", revoked(authority, [], None))
        write(place / "README", _README.encode())
    stated = "tls" if directory is None else directory.absolute()
    files = f"  ca: {stated}/ca.pem\n  certificate: {stated}/node-{{node}}.pem\n  key: {stated}/node-{{node}}.key\n  crl: {stated}/crl.pem"
    nodes = ", ".join(map(str, loaded.nodes))
    click.echo(f"certificates of the nodes {nodes} are in {place}. In the configuration:\n\ntls:\n{files}")


_README = """\
ca.pem        the authority: every node and every client has it
ca.key        signs certificates: keep it off the nodes
crl.pem       what is revoked: every node has it
node-N.pem    certificate and key of node N, for that node alone
node-N.key
operator.pem  certificate and key of a client: yours, for the command line
operator.key
"""


@tls.command(short_help="New certificates for the nodes.")
@_CONFIG
@_DIRECTORY
@_DAYS
@click.option("--node", "-n", type=click.IntRange(1), multiple=True, help="For this node only; may be given several times.")
def renew(config: str, directory: Path | None, days: int, node: tuple[int, ...]) -> None:
    """Make new certificates for the nodes of a configuration, signed by the authority in the directory. Keys that are there stay.

    A node takes new files by itself, within seconds; no connection is lost.
    """
    from raftd.cli.authority import new_node, read_key, save
    from raftd.config import load

    directory = _place(directory, config)
    with working():
        loaded = load(config)
        for one in node:
            if one not in loaded.nodes:
                fail(f"--node {one}: the configuration has no such node. Nothing was changed")
        authority = _authority(directory)
        for one in node or loaded.nodes:
            place = directory / f"node-{one}.key"
            key = read_key(place) if place.exists() else None
            signed = new_node(authority, loaded.cluster, one, [loaded.address(one).host], days, key)
            save(directory, f"node-{one}", signed)
            click.echo(f"{directory}/node-{one}.pem is good until {signed.certificate.not_valid_after_utc:%Y-%m-%d}")


@tls.command(short_help="A certificate for a client.")
@click.argument("user")
@_CONFIG
@_DIRECTORY
@_DAYS
@click.option("--renew", is_flag=True, help="A new certificate for the key that is there.")
def client(user: str, config: str, directory: Path | None, days: int, renew: bool) -> None:
    """Make a certificate and a key for a client called USER: a program, a machine or a person."""
    from raftd.cli.authority import new_client, read_key, save
    from raftd.config import load

    directory = _place(directory, config)
    with working():
        if not _NAME.fullmatch(user):
            fail(f"{user!r}: expected letters, digits, '.', '_' and '-', and the first of them a letter or a digit")
        if user in ("ca", "crl") or user.startswith("node-"):
            fail(f"{user!r}: files of that name are the cluster's own. Nothing was changed")
        place = directory / f"{user}.key"
        if not renew and (place.exists() or (directory / f"{user}.pem").exists()):
            fail(f"{directory}/{user}.pem or .key is there already: --renew makes a new certificate for that key. Nothing was changed")
        authority = _authority(directory)
        key = read_key(place) if renew else None
        save(directory, user, new_client(authority, load(config).cluster, user, days, key))
        files = {"ca": f"{directory}/ca.pem", "certificate": f"{directory}/{user}.pem", "key": f"{directory}/{user}.key"}
        click.echo(f"raftds://HOST:PORT?{urlencode(files, safe='/')}")


@tls.command(short_help="Trust certificates no more.")
@click.argument("certificates", nargs=-1, required=True, type=click.Path(path_type=Path))
@_CONFIG
@_DIRECTORY
def revoke(certificates: tuple[Path, ...], config: str, directory: Path | None) -> None:
    """Put CERTIFICATES (files) on the list of those that are revoked, crl.pem, which each node needs as `crl`. New connections are refused
    within seconds; those that are there stay until they end."""
    from raftd.cli.authority import has_signed, read_certificates, read_crl, revoked, write

    directory = _place(directory, config)
    with working():
        authority = _authority(directory)
        found = [read_certificates(path)[0] for path in certificates]
        place = directory / "crl.pem"
        before = read_crl(place)
        for path, one in zip(certificates, found, strict=True):
            if not has_signed(authority, one):
                fail(f"{path}: the authority in {directory} has not signed it. Nothing was changed")
        write(place, revoked(authority, found, before))
        click.echo(f"{place}: give it to each node, as `crl` of `tls`")


@tls.command(short_help="Whether certificates are good, and for how long.")
@_CONFIG
@click.option("--warn", type=click.IntRange(0), default=CERTIFICATE_WARNING_DAYS, show_default=True, help="Days before one expires.")
def check(config: str, warn: int) -> None:
    """Look at the files of `tls` in a configuration, those that are on this machine, as the nodes would. Ends with status 1 if one of them
    cannot be used, or expires soon."""
    from raftd.config import load
    from raftd.server.certificates import Certificates

    is_good = True
    with working():
        loaded = load(config)
        if loaded.tls is None:
            fail(f"{config}: it has no `tls`; `raftd tls init` makes certificates, and says what to write there")
        here = [node for node in loaded.nodes if Path(loaded.tls.of(node).key).exists()]
        if not here:
            fail(f"no key of a node is on this machine: expected {loaded.tls.key}")
        for node in here:
            try:
                expires = Certificates(loaded.tls.of(node), loaded.cluster, node).expires
            except ConfigError as error:
                click.echo(f"node {node}: {error}")
                is_good = False
                continue
            days = (expires - datetime.now(UTC)).days
            click.echo(
                f"node {node}: good until {expires:%Y-%m-%d %H:%M} UTC" + (f", which is in {days} days: renew" if days < warn else "")
            )
            is_good = is_good and days >= warn
    raise SystemExit(0 if is_good else 1)


def _place(directory: Path | None, config: str) -> Path:
    """Where the files are: relative names in a configuration begin beside it."""
    return directory if directory is not None else Path(config).parent / "tls"


def _authority(directory: Path) -> Signed:
    """Raises RaftdError."""
    from raftd.cli.authority import Signed, read_certificates, read_key

    if not (directory / "ca.key").exists():
        raise RaftdError(f"{directory}/ca.key: the key of the authority is not there: --directory says where it is")
    key = read_key(directory / "ca.key")
    for certificate in read_certificates(directory / "ca.pem"):
        if certificate.public_key() == key.public_key():
            return Signed(certificate, key)
    raise RaftdError(f"{directory}/ca.key: it is not the key of a certificate in {directory}/ca.pem")

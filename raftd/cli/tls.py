"""`raftd tls`: certificates for a cluster, without a tool of another's (docs/security.md)."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from raftd.cli.common import fail, working
from raftd.errors import ConfigError, RaftdError
from raftd.limits import CERTIFICATE_WARNING_DAYS

if TYPE_CHECKING:
    from raftd.cli.authority import Signed

_DAYS = click.option("--days", type=click.IntRange(1, 7300), default=365, show_default=True, help="How long certificates are good.")
_CONFIG = click.option("--config", "-c", type=click.Path(), required=True, help="The cluster's configuration file.")
_DIRECTORY = click.option(
    "--directory", "-d", type=click.Path(path_type=Path), default=Path("tls"), show_default=True, help="Where the files are."
)
#: How long the authority is good (days).
_AUTHORITY_DAYS = 3_650


@click.group(short_help="Certificates: init, renew, client, revoke, check.")
def tls() -> None:
    """Certificates for the nodes and clients of a cluster."""


@tls.command(short_help="An authority, and a certificate for each node.")
@_CONFIG
@_DIRECTORY
@_DAYS
def init(config: str, directory: Path, days: int) -> None:
    """Make an authority for the cluster, a certificate for each node of its configuration, and one for an operator.

    Each node needs ca.pem, and node-ID.pem and node-ID.key of its own. Keep ca.key where no node is: whoever has it can be any of them.
    """
    from raftd.cli.authority import new_authority, new_client, new_node, save, write
    from raftd.config import load

    with working():
        loaded = load(config)
        directory.mkdir(mode=0o700, exist_ok=True)
        for name in ("ca.pem", "ca.key"):
            if (directory / name).exists():
                fail(f"{directory / name} is there already: `raftd tls renew` makes new certificates. Nothing was changed")
        authority = new_authority(loaded.cluster, _AUTHORITY_DAYS)
        save(directory, "ca", authority)
        for node, address in loaded.nodes.items():
            save(directory, f"node-{node}", new_node(authority, loaded.cluster, node, [address.host], days))
        save(directory, "operator", new_client(authority, loaded.cluster, "operator", days))
        write(directory / "README", _README.encode())
    place = directory if directory.is_absolute() else f"{directory}"
    click.echo(f"certificates for {len(loaded.nodes)} nodes are in {directory}. In the configuration of each node:\n")
    click.echo(f"tls:\n  ca: {place}/ca.pem\n  certificate: {place}/node-{{node}}.pem\n  key: {place}/node-{{node}}.key")


_README = """\
ca.pem        the authority: every node and every client has it
ca.key        signs certificates: keep it off the nodes
node-N.pem    certificate and key of node N, for that node alone
node-N.key
operator.pem  certificate and key of a client
operator.key
"""


@tls.command(short_help="New certificates for the nodes.")
@_CONFIG
@_DIRECTORY
@_DAYS
@click.option("--node", "-n", type=click.IntRange(1), multiple=True, help="For this node only; may be given several times.")
def renew(config: str, directory: Path, days: int, node: tuple[int, ...]) -> None:
    """Make new certificates for the nodes of a configuration, signed by the authority in the directory. Keys that are there stay.

    A node takes new files by itself, within seconds; no connection is lost.
    """
    from raftd.cli.authority import new_node, read_key, save
    from raftd.config import load

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
def client(user: str, config: str, directory: Path, days: int) -> None:
    """Make a certificate and a key for a client called USER: a program, a machine or a person."""
    from raftd.cli.authority import new_client, save
    from raftd.config import load

    with working():
        if not user or "/" in user or user.startswith("."):
            fail(f"{user!r}: expected a name that can be the name of a file")
        if user == "ca" or user.startswith("node-"):
            fail(f"{user!r}: files of that name are the cluster's own. Nothing was changed")
        signed = new_client(_authority(directory), load(config).cluster, user, days)
        save(directory, user, signed)
        click.echo(f"raftds://HOST:PORT?ca={directory}/ca.pem&certificate={directory}/{user}.pem&key={directory}/{user}.key")


@tls.command(short_help="Trust certificates no more.")
@click.argument("certificates", nargs=-1, required=True, type=click.Path(path_type=Path))
@_DIRECTORY
def revoke(certificates: tuple[Path, ...], directory: Path) -> None:
    """Put CERTIFICATES (files) on the list of those that are revoked, crl.pem, which each node needs as `crl`. New connections are refused
    within seconds; those that are there stay until they end."""
    from cryptography import x509

    from raftd.cli.authority import read_certificates, revoked, write

    with working():
        authority = _authority(directory)
        found = [read_certificates(path)[0] for path in certificates]
        place = directory / "crl.pem"
        before = x509.load_pem_x509_crl(place.read_bytes()) if place.exists() else None
        for path, one in zip(certificates, found, strict=True):
            if one.issuer != authority.certificate.subject:
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
            fail(f"{config}: it has no `tls`")
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


def _authority(directory: Path) -> Signed:
    """Raises RaftdError."""
    from raftd.cli.authority import Signed, read_certificates, read_key

    if not (directory / "ca.key").exists():
        raise RaftdError(f"{directory}/ca.key: the key of the authority is not there; `raftd tls init` makes one")
    return Signed(read_certificates(directory / "ca.pem")[0], read_key(directory / "ca.key"))

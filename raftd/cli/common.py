"""What the commands share: how they fail, where they ask, which data directory they look at."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from raftd.client.address import HostPort
from raftd.errors import ConfigError, RaftdError

if TYPE_CHECKING:
    from raftd.client.connection import Connection
    from raftd.client.credentials import CredentialFiles
    from raftd.client.tls import TlsFiles
    from raftd.wire.client import Request

CLIENT_PORT = 11301
_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")


def fail(reason: object) -> NoReturn:
    """One clear line and status 1."""
    from raftd.client.connection import printable

    click.echo(f"raftd: {printable(str(reason))}", err=True)
    raise SystemExit(1)


@contextmanager
def working(ends_on_signals: bool = True) -> Iterator[None]:
    """What goes wrong is said in one line; what was started is taken along, also on a signal, if it is not heard otherwise."""
    from raftd.bench.loaders.connection import LoadError
    from raftd.bench.local import LocalError
    from raftd.cli import signals
    from raftd.client.connection import NoAnswer

    if ends_on_signals:
        signals.end_in_order()
    try:
        yield
    except NoAnswer as reason:
        fail(f"no answer: {reason}")
    except BrokenPipeError:  # who reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise SystemExit(128 + 13) from None
    except (LocalError, LoadError, OSError, RaftdError) as error:
        fail(error)


# -- where to ask ------------------------------------------------------------------------------


def parse_endpoint(value: str, port_if_none: int, listener: str = "client") -> HostPort:
    """HOST:PORT of a listener; the port may be left out. Raises BadParameter."""
    host, colon, port = value.rpartition(":")
    if not colon or (host.count(":") and not host.startswith("[")):  # no port, or an IPv6 address without brackets
        host, port = value, str(port_if_none)
    if not host or "/" in host or not (port.isascii() and port.isdigit()) or not 1 <= int(port) <= 65_535:
        raise click.BadParameter(f"{value!r} is not HOST:PORT, the address of a {listener} listener")
    return host.strip("[]"), int(port)


def client_addresses(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[HostPort]:
    return [parse_endpoint(value, CLIENT_PORT) for value in values]


def _client_address(ctx: click.Context, param: click.Parameter, value: str | None) -> HostPort | None:
    return parse_endpoint(value, CLIENT_PORT) if value is not None else None


def orders_within(seconds: float) -> Callable[[_F], _F]:
    """The options of commands that ask something of a cluster, which takes so long at most by default."""

    def options(command: _F) -> _F:
        endpoint = click.option(
            "--endpoint",
            callback=_client_address,
            metavar="HOST:PORT",
            help="Ask at this client listener.  [default: $RAFTD_URL, or 127.0.0.1:11301]",
        )
        config = click.option("--config", "-c", type=click.Path(), help="Ask at any client listener of this configuration file.")
        timeout = click.option(
            "--timeout", type=click.FloatRange(0.1, 3600), default=seconds, show_default=True, help="Seconds to wait for a node."
        )
        return endpoint(config(timeout(command)))

    return options


orders = orders_within(15.0)


def _url(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    from raftd.client.address import addresses_of, url_or_default
    from raftd.client.tls import files_of

    try:
        addresses_of(value)
        files_of(url_or_default(value))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return value


#: Of commands that are clients of a cluster like any other.
url_option = click.option(
    "--url",
    callback=_url,
    metavar="raftd://HOST:PORT,…",
    help="Client listeners of some nodes; raftds:// with TLS.  [default: $RAFTD_URL, or raftd://127.0.0.1:11301]",
)


def default_addresses() -> list[HostPort]:
    """Those of $RAFTD_URL, or the node of this machine. Raises ConfigError."""
    from raftd.client.address import addresses_of

    try:
        return addresses_of(None)
    except ValueError as error:
        raise ConfigError(f"$RAFTD_URL: {error}") from None


def endpoints(endpoint: HostPort | None, config: str | None) -> list[HostPort]:
    """Where to ask. Raises ConfigError."""
    from raftd.config import load

    if endpoint is not None and config is not None:
        raise click.UsageError("--endpoint and --config: give one of them")
    if config is None:
        return [endpoint] if endpoint is not None else default_addresses()
    found = [(node.host, node.client) for node in load(config).nodes.values() if node.client is not None]
    if not found:
        raise ConfigError(f"{config}: no node has a client listener to ask at")
    return found


def tls_files(config: str | None) -> TlsFiles | None:
    """What a command shows and trusts: the files of a configuration, with the certificate of a node whose key is here; without a
    configuration, those of $RAFTD_URL. Raises ConfigError."""
    from raftd.client.address import url_or_default
    from raftd.client.tls import TlsFiles, files_of
    from raftd.config import TlsMode, load

    if config is None:
        try:
            return files_of(url_or_default(None))
        except ValueError as error:
            raise ConfigError(f"$RAFTD_URL: {error}") from None
    loaded = load(config)
    if loaded.tls is None or loaded.tls.mode is TlsMode.ACCEPT:
        return None
    for node in loaded.nodes:
        files = loaded.tls.of(node)
        if os.access(files.key, os.R_OK):
            return TlsFiles(files.ca, files.certificate, files.key)
    return TlsFiles(loaded.tls.ca)


def credentials(config: str | None, files: TlsFiles | None) -> CredentialFiles | None:
    """None: those of the environment. With a configuration, and the certificate of a node, that is enough, and a token that is not good any
    more must not be in its way."""
    from raftd.client.credentials import CredentialFiles

    return CredentialFiles() if config is not None and files is not None and files.certificate is not None else None


def connect(endpoint: HostPort | None, config: str | None, timeout: float) -> Connection:
    """To any of them. Raises NoAnswer, or ConfigError."""
    from raftd.client.connection import connect_to_any

    files = tls_files(config)
    return connect_to_any(endpoints(endpoint, config), timeout, files, credentials(config, files))


def order(connection: Connection, request: Request, kind: type[_T]) -> _T:
    """The answer, which must be one of `kind`. Ends the process with status 1 if it says no. Raises NoAnswer."""
    from raftd.wire.client import Failed

    reply = connection.ask(request).reply
    if isinstance(reply, Failed):
        fail(reply.text)
    if not isinstance(reply, kind):
        fail("the node answers something else")
    return reply


# -- data directories --------------------------------------------------------------------------


def directories(command: _F) -> _F:
    """The options of commands that look into the data directory of a node, as `twistd raftd` takes them."""
    config = click.option("--config", "-c", type=click.Path(), help="The cluster's configuration file.")
    node = click.option("--node", "-n", metavar="ID", help="Which of the file's nodes.")
    data = click.option("--data", "-d", type=click.Path(), help="Where the data is, instead of what the file says.")
    return config(node(data(command)))


def directory(config: str | None, node: str | None, data: str | None) -> str:
    """The data directory of a node: data/ID. Without a configuration any that is there will do. Raises ConfigError."""
    from raftd.config import choose_node, load

    if config is not None:
        loaded = load(config, data)
        return f"{loaded.data}/{choose_node(loaded, node)}"
    place = data or "raftd-data"
    there = sorted(name for name in os.listdir(place) if name.isdigit()) if os.path.isdir(place) else []
    if node is None and len(there) != 1:
        which = f"which of the nodes {', '.join(there)}? --node says" if there else "there is no node's data in it"
        raise ConfigError(f"{place}: {which}")
    chosen = node or there[0]
    if chosen not in there:
        raise ConfigError(f"{place}/{chosen}: there is no data directory of a node")
    return f"{place}/{chosen}"

"""What `raftd bench` measures: a raftd cluster, and the servers of others beside it, each started on loopback and ended again.

All of them keep their jobs on disk. raftd and beanstalkd fsync before they answer, RabbitMQ's quorum queue too; JetStream answers
when a majority has the message, and leaves the fsync to the kernel and a timer.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Self

import msgspec

from raftd.bench.load import Protocol
from raftd.bench.loaders import nats
from raftd.bench.loaders.amqp import AmqpConnection
from raftd.bench.loaders.connection import LoadError
from raftd.bench.local import LocalCluster, LocalError, free_ports, wait_for
from raftd.bench.secure import SecureCluster
from raftd.cli import signals
from raftd.client.connection import Connection
from raftd.client.tls import TlsFiles
from raftd.wire.client import Failed, TransferRequest

_RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
_REPLICAS = 3
#: Erlang takes its time, on a busy machine minutes.
_START_S = 240.0
_ASK_S = 5.0
_TLS_NODES = 3
#: JetStream does not answer at all while it has no leader.
_ASK_AGAIN_S = 0.5
_METRIC = re.compile(rb"^raftd_(turns_total|fsync_seconds_count) (\S+)$", re.MULTILINE)
#: Longer than any measurement: no message may come again in it.
_ACK_WAIT_NS = 3600 * 10**9


class Counts(msgspec.Struct, frozen=True):
    """What all processes of a server have done so far: `written_bytes` to files by system calls and pages; turns and fsyncs are
    raftd's own count, None for others."""

    written_bytes: int
    fsyncs: int | None = None
    turns: int | None = None

    def since(self, earlier: Counts) -> Counts:
        return Counts(
            self.written_bytes - earlier.written_bytes,
            self.fsyncs - earlier.fsyncs if self.fsyncs is not None and earlier.fsyncs is not None else None,
            self.turns - earlier.turns if self.turns is not None and earlier.turns is not None else None,
        )

    def plus(self, more: Counts) -> Counts:
        """`more` decides what is known."""
        return Counts(
            self.written_bytes + more.written_bytes,
            (self.fsyncs or 0) + more.fsyncs if more.fsyncs is not None else None,
            (self.turns or 0) + more.turns if more.turns is not None else None,
        )


def _nothing_to_hand_over() -> None:
    raise LocalError("only raftd is asked to hand the lead over")


def _nothing_to_isolate() -> Callable[[], None]:
    raise LocalError("only nodes behind a proxy can be isolated")


class Server(msgspec.Struct, frozen=True):
    """What is measured.

    `check` raises LocalError, with the reason, if it has ended by itself. `processes`: the pids of its processes, the one that leads
    first. `prepare` makes a tube that clients cannot make by using it; it raises LocalError. `addresses`: of raftd the one that leads
    first. `restart` starts processes again that have ended. `hand_over` makes another node lead, and is raftd's only. `isolate` parts
    the one that leads from the others, and returns what connects it again; it is that of nodes behind a proxy only.
    """

    name: str
    protocol: Protocol
    addresses: list[tuple[str, int]]
    check: Callable[[], None]
    processes: Callable[[], list[int]]
    prepare: Callable[[str], None]
    counts: Callable[[], Counts]
    restart: Callable[[], None]
    hand_over: Callable[[], None] = _nothing_to_hand_over
    isolate: Callable[[], Callable[[], None]] = _nothing_to_isolate
    tls: TlsFiles | None = None


class Missing(LocalError):
    """A server that is not installed; the text says how to install it."""


def _nothing_to_prepare(tube: str) -> None:
    pass


def _written_bytes(pids: list[int]) -> int:
    return sum(int(re.findall(r"^write_bytes: (\d+)$", Path(f"/proc/{pid}/io").read_text(), re.MULTILINE)[0]) for pid in pids)


@contextmanager
def raftd_server(directory: Path, nodes: int, cluster: LocalCluster | None = None) -> Iterator[Server]:
    """`cluster`, or one of so many nodes below `directory`."""
    with cluster or LocalCluster(directory, nodes) as cluster:

        def led_by() -> list[int]:
            leader = cluster.leader()
            return sorted(cluster.nodes, key=lambda node: node != leader)

        def processes() -> list[int]:
            return [cluster.running[node].process.pid for node in led_by()]

        def counts() -> Counts:
            found = {b"turns_total": 0.0, b"fsync_seconds_count": 0.0}
            for node in cluster.nodes:
                host, port = cluster.address(node, "http")
                scheme, context = ("https", cluster.tls.context()) if cluster.tls is not None else ("http", None)
                with urllib.request.urlopen(f"{scheme}://{host}:{port}/metrics", timeout=_ASK_S, context=context) as answer:
                    for name, value in _METRIC.findall(answer.read()):
                        found[name] += float(value)
            return Counts(_written_bytes(processes()), int(found[b"fsync_seconds_count"]), int(found[b"turns_total"]))

        def restart() -> None:
            for node, process in list(cluster.running.items()):
                if process.process.poll() is not None:
                    cluster.start(node)

        def hand_over() -> None:
            leader, successor, *_ = led_by()
            with Connection(cluster.address(leader, "client"), _ASK_S, cluster.tls) as connection:
                reply = connection.ask(TransferRequest(1, successor)).reply
            if isinstance(reply, Failed):
                raise LocalError(f"the lead was not handed over: {reply.text}")

        name = f"raftd{' with TLS' if cluster.tls is not None else ''}, {nodes} node{'s' if nodes > 1 else ''}"
        addresses = [cluster.line_address(node) for node in led_by()]
        yield Server(
            name, "beanstalkd", addresses, cluster.check, processes, _nothing_to_prepare, counts, restart, hand_over, tls=cluster.tls
        )


def raftd_tls_server(directory: Path) -> AbstractContextManager[Server]:
    """Three nodes of raftd, with TLS between them and to clients."""
    return raftd_server(directory, _TLS_NODES, SecureCluster(directory, _TLS_NODES))


class _Processes:
    """The processes of a server, each with its environment and what it says in a file. As a context it starts them all, and kills them at
    its end, with what they have started: what begins RabbitMQ is a script."""

    def __init__(self, name: str, directory: Path, commands: list[list[str]], environments: list[dict[str, str]] | None = None) -> None:
        self._name = name
        self._directory = directory
        self._commands = list(zip(commands, environments or [{} for _ in commands], strict=True))
        self.running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        with signals.held():
            self.running = [self._start(number) for number in range(len(self._commands))]
        return self

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        command, environment = self._commands[number]
        with (self._directory / f"{number}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._directory,
                env=os.environ | environment,
                start_new_session=True,
            )

    def __exit__(self, *exception: object) -> None:
        with signals.held():
            for process in self.running:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            for process in self.running:
                process.wait()

    def restart(self) -> None:
        """Start again what has ended."""
        with signals.held():
            for number, process in enumerate(self.running):
                if process.poll() is not None:
                    self.running[number] = self._start(number)

    @property
    def has_ended(self) -> bool:
        return any(process.poll() is not None for process in self.running)

    def check(self) -> None:
        """Raises LocalError if one has ended."""
        for number, process in enumerate(self.running):
            if process.poll() is not None:
                said = "\n".join((self._directory / f"{number}.log").read_text(errors="replace").splitlines()[-5:])
                raise LocalError(f"{self._name} ended with status {process.returncode}. The last it said:\n{said}")


def _program(name: str, package: str) -> str:
    program = shutil.which(name)
    if program is None:
        raise Missing(f"{name} is not installed (Debian: apt-get install {package})")
    return program


def _version(command: list[str]) -> str:
    said = subprocess.run(command, capture_output=True, text=True, timeout=_START_S, check=False).stdout
    found = re.search(r"\d+(\.\d+)+", said)
    return found[0] if found else "of an unknown version"


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def beanstalkd_server(directory: Path) -> Iterator[Server]:
    """beanstalkd, one node, which fsyncs every write. Raises LocalError."""
    program = _program("beanstalkd", "beanstalkd")
    (port,) = free_ports(1)
    command = [program, "-l", "127.0.0.1", "-p", str(port), "-b", str(directory), "-f0"]
    name = f"beanstalkd {_version([program, '-v'])} -f0"
    with _Processes(name, directory, [command]) as server:
        wait_for(lambda: _listens(port) or server.has_ended, what="beanstalkd listening")
        server.check()

        def pids() -> list[int]:
            return [server.running[0].pid]

        def counts() -> Counts:
            return Counts(_written_bytes(pids()))

        yield Server(name, "beanstalkd", [("127.0.0.1", port)], server.check, pids, _nothing_to_prepare, counts, server.restart)


@contextmanager
def nats_server(directory: Path) -> Iterator[Server]:
    """Three nodes of NATS with JetStream; a tube is a work-queue stream of three replicas with a pull consumer. Raises LocalError."""
    program = _program("nats-server", "nats-server")
    name = f"NATS JetStream {_version([program, '--version'])}, no fsync"
    ports, routes = free_ports(_REPLICAS), free_ports(_REPLICAS)
    commands = []
    for number, (port, route) in enumerate(zip(ports, routes, strict=True), 1):
        others = ", ".join(f"nats://127.0.0.1:{other}" for other in routes)
        (directory / f"{number}.conf").write_text(
            f"server_name: n{number}\nlisten: 127.0.0.1:{port}\n"
            f'jetstream {{ store_dir: "{directory / str(number)}", max_mem: 1G, max_file: 50G }}\n'
            f"cluster {{ name: bench, listen: 127.0.0.1:{route}, routes: [{others}] }}\n"
        )
        commands.append([program, "-c", str(directory / f"{number}.conf")])
    addresses = [("127.0.0.1", port) for port in ports]
    with _Processes(name, directory, commands) as server:
        tubes: list[str] = []  # the newest is the one that is measured

        @contextmanager
        def connected(address: tuple[str, int]) -> Iterator[nats.NatsConnection]:
            connection = nats.NatsConnection(address, "ask", b"")
            connection.socket.settimeout(_ASK_AGAIN_S)
            try:
                yield connection
            finally:
                connection.close()

        def ask(subject: str, question: object, address: tuple[str, int] = addresses[0]) -> dict[str, Any] | None:
            """None if nobody can answer now."""
            try:
                with connected(address) as connection:
                    answer = connection.ask(subject, question)
            except (OSError, LoadError):
                return None
            return None if "error" in answer else answer

        def reaches(address: tuple[str, int], tube: str) -> bool:
            try:
                with connected(address) as connection:
                    connection.reach(tube)
            except (OSError, LoadError):
                return False
            return True

        def prepare(tube: str) -> None:
            stream = {"name": tube, "subjects": [tube], "retention": "workqueue", "storage": "file", "num_replicas": _REPLICAS}
            wait_for(lambda: ask(f"STREAM.CREATE.{tube}", stream), _START_S, "a stream of JetStream")
            unlimited = {"max_ack_pending": -1, "max_waiting": 100_000}
            consumer = {"durable_name": nats.CONSUMER, "ack_policy": "explicit", "ack_wait": _ACK_WAIT_NS, **unlimited}
            subject = f"CONSUMER.DURABLE.CREATE.{tube}.{nats.CONSUMER}"
            wait_for(lambda: ask(subject, {"stream_name": tube, "config": consumer}), _START_S, "a consumer of JetStream")
            for address in addresses:
                wait_for(partial(reaches, address, tube), _START_S, "JetStream answering through each of its nodes")
            tubes.append(tube)

        def leader() -> str | None:
            answers = (ask(f"STREAM.INFO.{tubes[-1]}", {}, address) for address in addresses)
            return next((answer["cluster"].get("leader") for answer in answers if answer is not None), None)

        def processes() -> list[int]:
            first = int(wait_for(leader, _START_S, "a leader of JetStream")[1:]) - 1 if tubes else 0
            return [process.pid for process in (*server.running[first:], *server.running[:first])]

        wait_for(lambda: all(map(_listens, ports)) or server.has_ended, _START_S, "NATS listening")
        server.check()

        def counts() -> Counts:
            return Counts(_written_bytes([process.pid for process in server.running]))

        yield Server(name, "nats", addresses, server.check, processes, prepare, counts, server.restart)


@contextmanager
def rabbitmq_server(directory: Path) -> Iterator[Server]:
    """Three nodes of RabbitMQ; a tube is a quorum queue, led by the first. Raises LocalError."""
    if not _RABBITMQ.exists():
        raise Missing("rabbitmq-server is not installed (Debian: apt-get install rabbitmq-server)")
    # its own tool for that would leave a daemon behind
    versions = [path.name.rpartition("-")[2] for path in _RABBITMQ.parent.parent.glob("lib/rabbitmq_server-*")]
    name = f"RabbitMQ {versions[0] if versions else 'of an unknown version'}"
    ports, distribution, (epmd,) = free_ports(_REPLICAS), free_ports(_REPLICAS), free_ports(1)
    names = [f"bench{number}@localhost" for number in range(1, _REPLICAS + 1)]
    (directory / "rabbitmq.conf").write_text(
        "cluster_formation.peer_discovery_backend = classic_config\n"
        + "".join(f"cluster_formation.classic_config.nodes.{number} = {node}\n" for number, node in enumerate(names, 1))
        + "log.console.level = warning\nlog.file = false\n"
    )
    (directory / "plugins").write_text("[].\n")
    common = {
        "HOME": str(directory),  # the cookie that Erlang's nodes share is there
        "ERL_EPMD_PORT": str(epmd),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": "/dev/null",
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "plugins"),
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
    }
    (directory / ".erlang.cookie").write_text("bench")
    (directory / ".erlang.cookie").chmod(0o600)
    environments = [
        common
        | {
            "RABBITMQ_NODENAME": names[number],
            "RABBITMQ_NODE_PORT": str(ports[number]),
            "RABBITMQ_DIST_PORT": str(distribution[number]),
            "RABBITMQ_MNESIA_BASE": str(directory / f"mnesia{number}"),
            "RABBITMQ_LOG_BASE": str(directory),
            "RABBITMQ_PID_FILE": str(directory / f"{number}.pid"),
        }
        for number in range(_REPLICAS)
    ]
    mapper = [_program("epmd", "rabbitmq-server"), "-port", str(epmd), "-address", "127.0.0.1"]
    commands = [mapper, *([str(_RABBITMQ)] for _ in names)]
    with _Processes(name, directory, commands, [common, *environments]) as server:

        def connected(port: int, tube: str) -> AmqpConnection | None:
            server.check()
            try:
                return AmqpConnection(("127.0.0.1", port), tube, b"")
            except (OSError, LoadError):
                return None

        def prepare(tube: str) -> None:
            connection = wait_for(lambda: connected(ports[0], tube), _START_S, "RabbitMQ's first node")
            try:
                connection.declare()
            except (OSError, LoadError) as error:
                raise LocalError(f"RabbitMQ made no queue: {error}") from None
            finally:
                connection.close()

        for port in ports:
            wait_for(partial(connected, port, ""), _START_S, "RabbitMQ serving").close()
        pids = [_erlang(process.pid) for process in server.running[1:]]
        addresses = [("127.0.0.1", port) for port in ports]
        yield Server(name, "amqp", addresses, server.check, lambda: pids, prepare, lambda: Counts(_written_bytes(pids)), server.restart)


def _erlang(pid: int) -> int:
    """The process that does the work, below the script `pid`. Raises LocalError."""
    below = [pid]
    for process in below:
        if Path(f"/proc/{process}/comm").read_text().startswith("beam"):
            return process
        below += map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split())
    raise LocalError("RabbitMQ's process cannot be found")


#: What raftd can be measured against, by the name that the command line takes.
OTHERS: dict[str, Callable[[Path], AbstractContextManager[Server]]] = {
    "beanstalkd": beanstalkd_server,
    "raftd-tls": raftd_tls_server,
    "nats": nats_server,
    "rabbitmq": rabbitmq_server,
}

"""Whole nodes as processes on loopback: what the demo and the bench run, and the tests.

Each node is `twistd -n raftd`, as a user starts it, with its own session, so that a Ctrl-C reaches only the
command, which then ends its nodes.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import yaml

from raftd.bench.ask import ask_stats
from raftd.cli import signals
from raftd.client.connection import NoAnswer
from raftd.client.tls import TlsFiles

#: twistd of this very Python, wherever its scripts may be.
TWISTD = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]

_POLL_S = 0.02
_START_S = 20.0
_STOP_S = 10.0
_STATS_S = 2.0
_LAST_LINES = 5

#: Ports that are reserved at a time; the oldest are given up.
RESERVED_PORTS = 500
_reserved: deque[socket.socket] = deque(maxlen=RESERVED_PORTS)

_T = TypeVar("_T")


class LocalError(Exception):
    """A process did not do what it should; the text says which, and what it said."""


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that stay free for a server with SO_REUSEADDR, as long as this process runs and takes no more than
    RESERVED_PORTS others. A bound socket that does not listen keeps every other program off, the kernel's own choices too."""
    ports = []
    for _ in range(count):
        reserved = socket.socket()
        reserved.bind(("127.0.0.1", 0))
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not before: then another could choose it too
        _reserved.append(reserved)
        ports.append(reserved.getsockname()[1])
    return ports


def wait_for(condition: Callable[[], _T | None], timeout_s: float = _START_S, what: str = "the condition") -> _T:
    """Poll until `condition` gives something true. Raises LocalError."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        result = condition()
        if result:
            return result
        time.sleep(_POLL_S)  # other processes give no event to wait for
    raise LocalError(f"{what}: not within {timeout_s:g} s")


class LocalNode:
    """One process; what it says is in the file `log`. `popen` is for subprocess.Popen."""

    def __init__(self, config: Path, node: int, log: Path, **popen: Any) -> None:
        self.node = node
        self.log = log
        arguments = [*TWISTD, "-n", "--pidfile=", "raftd", "--config", str(config), "--node", str(node)]
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=config.parent,
                start_new_session=True,
                **popen,
            )

    def kill(self) -> None:
        """SIGKILL: what a power cut is to a process."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> float:
        """SIGTERM; how long it took to end, in seconds."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=_STOP_S)
        return time.monotonic() - started

    def check(self) -> None:
        """Raises LocalError if it has ended by itself."""
        if self.process.poll() is not None:
            said = "\n".join(self.log.read_text(errors="replace").splitlines()[-_LAST_LINES:])
            raise LocalError(f"node {self.node} ended with status {self.process.returncode}. The last it said:\n{said}")


class LocalCluster:
    """`count` nodes whose data, logs and configuration are in `directory`. As a context it starts them all, and
    leaves no process behind."""

    def __init__(self, directory: Path, count: int, **settings: object) -> None:
        self.directory = directory = directory.resolve()
        self.nodes = list(range(1, count + 1))
        ports = iter(free_ports(4 * count))
        self.addresses: dict[int, dict[str, str | int]] = {
            node: {"host": "127.0.0.1", **{listener: next(ports) for listener in ("line", "client", "peer", "http")}} for node in self.nodes
        }
        self.config = directory / "cluster.yaml"
        self._settings = settings
        self.write_config(self.config, self.addresses)
        self.running: dict[int, LocalNode] = {}
        #: What is shown to nodes with TLS, and trusted.
        self.tls: TlsFiles | None = None

    def __enter__(self) -> Self:
        try:
            for node in self.nodes:
                self.start(node)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Every node is killed before any is waited for."""
        with signals.held():
            for node in self.running.values():
                node.process.kill()
            for node in self.running.values():
                node.process.wait()
            self.running.clear()

    def line_address(self, node: int) -> tuple[str, int]:
        return self.address(node, "line")

    def address(self, node: int, listener: str) -> tuple[str, int]:
        return "127.0.0.1", int(self.addresses[node][listener])

    def log(self, node: int) -> str:
        """All that the node's processes have said so far."""
        return (self.directory / f"{node}.log").read_text(errors="replace")

    def write_config(self, path: Path, addresses: dict[int, dict[str, str | int]]) -> None:
        path.write_text(yaml.safe_dump({"cluster": "local", "data": "data", "nodes": addresses, **self._settings}))

    def config_of(self, node: int) -> Path:
        """The file that this node reads."""
        return self.config

    def start(self, node: int) -> None:
        with signals.held():
            self.running[node] = LocalNode(self.config_of(node), node, self.directory / f"{node}.log")

    def check(self) -> None:
        """Raises LocalError if a node that should run has ended."""
        for node in self.running.values():
            node.check()

    def kill(self, node: int) -> None:
        """SIGKILL."""
        with signals.held():
            self.running.pop(node).kill()

    def stats(self, node: int) -> dict[str, str] | None:
        """What the node says of itself, None if it does not answer. Raises LocalError if it should and has ended."""
        if node in self.running:
            self.running[node].check()
        try:
            return ask_stats(self.line_address(node), _STATS_S, self.tls)
        except NoAnswer:
            return None

    def find_leader(self) -> int:
        """The node that leads, as a majority of all sees it; 0 if there is none now."""
        seen = [stats for node in self.running if (stats := self.stats(node))]
        views = [(int(stats["term"]), int(stats["leader"])) for stats in seen]
        for view in sorted(set(views), reverse=True):
            if view[1] in self.running and views.count(view) > len(self.nodes) // 2:
                return view[1]
        return 0

    def leader(self) -> int:
        """Waits for one. Raises LocalError."""
        return wait_for(self.find_leader, what="an elected leader")

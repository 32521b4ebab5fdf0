"""Real nodes on loopback, and a plain blocking client of the line door."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

TWISTD = [str(Path(sys.executable).parent / "twistd")]
START_S = 20.0


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_for(condition: Callable[[], object], timeout_s: float = START_S, what: str = "the condition") -> object:
    """Poll until `condition` gives something true."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        result = condition()
        if result:
            return result
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come true within {timeout_s} s")


class Closed(Exception):
    """The connection is gone: the outcome of what was asked is unknown."""


class LineClient:
    """One connection to a line door. Any method may raise Closed."""

    def __init__(self, port: int, timeout_s: float = 30.0) -> None:
        try:
            self._socket = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        except OSError as error:
            raise Closed from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")

    def send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise Closed from error

    def line(self) -> bytes:
        """The next line of an answer, without its CRLF."""
        try:
            line = self._file.readline()
        except OSError as error:
            raise Closed from error
        if not line.endswith(b"\r\n"):
            raise Closed
        return line[:-2]

    def data(self, size: int) -> bytes:
        try:
            data = self._file.read(size + 2)
        except OSError as error:
            raise Closed from error
        if len(data) != size + 2:
            raise Closed
        return data[:-2]

    def ask(self, line: bytes) -> bytes:
        self.send(line + b"\r\n")
        return self.line()

    def put(self, body: bytes, pri: int = 0, delay: int = 0, ttr: int = 60) -> int:
        self.send(b"put %d %d %d %d\r\n%b\r\n" % (pri, delay, ttr, len(body), body))
        answer = self.line()
        assert answer.startswith(b"INSERTED "), answer
        return int(answer.split()[1])

    def reserve(self, timeout: int | None = None) -> tuple[int, bytes] | None:
        answer = self.ask(b"reserve" if timeout is None else b"reserve-with-timeout %d" % timeout)
        if answer in (b"TIMED_OUT", b"DEADLINE_SOON"):
            return None
        word, id, size = answer.split()
        assert word == b"RESERVED", answer
        return int(id), self.data(int(size))

    def delete(self, id: int) -> bool:
        return self.ask(b"delete %d" % id) == b"DELETED"

    def stats(self) -> dict[str, str]:
        word, size = self.ask(b"stats").split()
        assert word == b"OK"
        return {key: str(value) for key, value in yaml.load(self.data(int(size)), yaml.BaseLoader).items()}

    def close(self) -> None:
        self._file.close()
        self._socket.close()


class NodeProcess:
    """One `twistd -n raftd`; its output is in `log`."""

    def __init__(self, config: Path, node: int, log: Path) -> None:
        self.log = log
        self._file = log.open("ab")
        arguments = [*TWISTD, "-n", "--pidfile=", "raftd", "--config", str(config), "--node", str(node)]
        self.process = subprocess.Popen(arguments, stdout=self._file, stderr=subprocess.STDOUT, cwd=config.parent)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()
        self._file.close()

    def stop(self) -> float:
        """SIGTERM; how long it took to end, in seconds."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=10)
        self._file.close()
        return time.monotonic() - started


class ProcessCluster:
    """`count` nodes in `directory`; a context that leaves no process behind."""

    def __init__(self, directory: Path, count: int, **settings: object) -> None:
        self.directory = directory
        self.nodes = list(range(1, count + 1))
        ports = free_ports(3 * count)
        self.addresses = {
            node: {"host": "127.0.0.1", "line": ports[3 * place], "client": ports[3 * place + 1], "peer": ports[3 * place + 2]}
            for place, node in enumerate(self.nodes)
        }
        self.config = directory / "cluster.yaml"
        self.config.write_text(yaml.safe_dump({"cluster": "test", "data": "data", "nodes": self.addresses, **settings}))
        self.running: dict[int, NodeProcess] = {}

    def __enter__(self) -> ProcessCluster:
        for node in self.nodes:
            self.start(node)
        return self

    def __exit__(self, *exception: object) -> None:
        for node in list(self.running):
            self.kill(node)

    def log(self, node: int) -> str:
        return (self.directory / f"{node}.log").read_text(errors="replace")

    def start(self, node: int) -> None:
        self.running[node] = NodeProcess(self.config, node, self.directory / f"{node}.log")

    def kill(self, node: int) -> None:
        self.running.pop(node).kill()

    def client(self, node: int) -> LineClient:
        """A client, once the node listens."""

        def connect() -> LineClient | None:
            if self.running[node].process.poll() is not None:
                raise AssertionError(f"node {node} has ended:\n{self.log(node)}")
            try:
                return LineClient(self.addresses[node]["line"])
            except Closed:
                return None

        return wait_for(connect, what=f"node {node} listening")

    def stats(self, node: int) -> dict[str, str] | None:
        """What the node says of itself; None if it does not answer."""
        try:
            client = LineClient(self.addresses[node]["line"], timeout_s=2)
            try:
                return client.stats()
            finally:
                client.close()
        except Closed:
            return None

    def leader(self) -> int:
        """The node that leads, as a majority sees it; waits for one."""

        def agreed() -> int:
            seen = [stats for node in self.running if (stats := self.stats(node))]
            terms = {(stats["term"], stats["leader"]) for stats in seen if stats["leader"] != "0"}
            majority = len(self.nodes) // 2 + 1
            for term, leader in sorted(terms, key=lambda pair: -int(pair[0])):
                if sum((stats["term"], stats["leader"]) == (term, leader) for stats in seen) >= majority and int(leader) in self.running:
                    return int(leader)
            return 0

        return wait_for(agreed, what="a leader")

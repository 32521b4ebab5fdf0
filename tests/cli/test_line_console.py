"""`raftd console`: in a pipe, at a terminal, and when a node goes."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raftd.bench.local import LocalCluster, wait_for
from raftd.cli.line_client import Replies
from raftd.cli.line_console import COMMANDS, readable
from raftd.client import Client
from raftd.wire import line
from tests.cli.test_commands import RAFTD
from tests.client.test_clients import url


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("console"), 2) as cluster:
        cluster.leader()
        yield cluster


def address(cluster: LocalCluster, node: int = 1) -> str:
    host, port = cluster.line_address(node)
    return f"{host}:{port}"


def piped(cluster: LocalCluster, commands: bytes, status: int = 0) -> tuple[bytes, bytes]:
    done = subprocess.run([*RAFTD, "console", address(cluster)], input=commands, capture_output=True, timeout=60, check=False)
    assert done.returncode == status, done
    return done.stdout, done.stderr


def test_a_pipe_gets_every_reply_and_ends(cluster):
    stats, _ = piped(cluster, b"stats\n")
    assert stats.startswith(b"OK ")
    assert b"\ncurrent-jobs-ready: 0\n" in stats
    commands = b"use pipe\r\nput 0 0 60 5\r\nhel\nx\r\nput 5 0 60\nsized by itself\n\nwatch pipe\npeek-ready\nreserve\nreserve-with-timeout 1\nnonsense\n"
    said, _ = piped(cluster, commands)
    pattern = (
        rb"USING pipe\nINSERTED (\d+)\nINSERTED (\d+)\nWATCHING 2\nFOUND \1 5\r\nhel\nx\r\nRESERVED \1 5\r\nhel\nx\r\nRESERVED \2 15\r\n"
    )
    assert re.fullmatch(pattern + rb"sized by itself\r\nUNKNOWN_COMMAND\n", said)
    assert piped(cluster, b"") == (b"", b"")
    assert piped(cluster, b"list-tube-used\nquit\nstats\n") == (b"USING default\n", b"")


def test_a_body_that_ends_too_soon_is_not_sent(cluster):
    said, error = piped(cluster, b"use short\nput 0 0 60 50\ntoo short\n", status=1)
    assert said in (b"", b"USING short\n")
    assert b"put 0 0 60 50: only 10 bytes follow. It was not sent" in error


def test_nobody_there():
    done = subprocess.run([*RAFTD, "console", "127.0.0.1:1"], input=b"stats\n", capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"raftd: 127.0.0.1:1: Connection refused" in done.stderr
    done = subprocess.run([*RAFTD, "console", "x:y"], input=b"", capture_output=True, timeout=60, check=False)
    assert b"the address of a line listener" in done.stderr


def test_output_that_is_closed_ends_it(cluster):
    command = f"printf 'stats\\n%.0s' $(seq 200) | {' '.join(RAFTD)} console {address(cluster)} | head -n 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, timeout=60, check=False)
    assert done.stdout.startswith(b"OK ")
    assert (done.returncode, done.stderr) == (128 + 13, b"")


def test_replies_are_read_while_commands_are_sent(cluster):
    """The node stops reading from who does not read: each waited for the other."""
    with Client(url(cluster)) as queue:
        queue.put("large", bytes(60_000))
    said, _ = piped(cluster, b"use large\n" + b"peek-ready\n" * 2_000)
    assert said.count(b"FOUND ") == 2_000


def test_a_size_beyond_reason(cluster):
    digits = b"9" * 5_000
    assert piped(cluster, b"put 1 0 60 " + digits[:200] + b"\n")[0] == b"BAD_FORMAT\n"
    assert Replies().feed(b"OK " + digits + b"\r\n") == [b"OK " + digits + b"\r\n"]


class Terminal:
    """`raftd console` at a terminal of its own."""

    def __init__(self, home: Path, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        environment = {**os.environ, "XDG_STATE_HOME": str(home), "TERM": "xterm", "COLUMNS": "100", "LINES": "40", "NO_COLOR": "1"}
        self.process = subprocess.Popen(
            [*RAFTD, "console", *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        )
        os.close(theirs)
        self._said = ""

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def until(self, pattern: str) -> re.Match[str]:
        """Read on until it is there; nothing before it is looked at again."""
        deadline = time.monotonic() + 20
        while (found := re.search(pattern, self._said)) is None:
            ready, _, _ = select.select([self._ours], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{pattern!r} is not in {self._said!r}"
            try:
                data = os.read(self._ours, 65_536)
            except OSError:
                data = b""
            assert data, f"{pattern!r} is not in {self._said!r}"
            if b"\x1b[6n" in data:  # where is the cursor?
                os.write(self._ours, b"\x1b[1;1R")
            self._said += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", data.decode(errors="replace"))
        self._said = self._said[found.end() :]
        return found

    def close(self) -> int:
        status = self.process.wait(20)
        os.close(self._ours)
        return status


def test_a_terminal_has_completion_help_history_and_bodies(cluster, tmp_path):
    terminal = Terminal(tmp_path, address(cluster))
    terminal.until("connected to 127.0.0.1")
    terminal.type("help put\r")
    terminal.until(r"PRI DELAY TTR \[BYTES\] +put the next line")
    terminal.type("use termi\r")
    terminal.until("USING termi")
    terminal.type("put 0 0 60\r")
    terminal.until("body>")
    terminal.type("hello there\r")
    terminal.until(r"INSERTED \d+")
    terminal.type("list-tube-u\t")
    terminal.until("sed")  # the rest of it: a slow terminal has drawn the beginning before, and draws only what is new
    terminal.type("\r")
    terminal.until("USING termi")
    terminal.type("peek-ready\r")
    terminal.until(r"FOUND \d+ 11\s+hello there")
    with Client(url(cluster)) as queue:
        terminal.type("watch later\r")
        terminal.until("WATCHING 2")
        terminal.type("reserve\r")
        queue.put("later", "\x1b[31mred")
        terminal.until(r"RESERVED \d+ 8\s+\?\[31mred")  # nothing in a body steers the terminal
    terminal.type("quit\r")
    assert terminal.close() == 0
    history = tmp_path / "raftd" / "console-history"
    assert "peek-ready" in history.read_text()
    assert history.stat().st_mode & 0o777 == 0o600
    terminal = Terminal(tmp_path, address(cluster))
    terminal.until("connected to")
    terminal.type("\x1b[A\x1b[A\x1b[A\x1b[A\r")  # quit, reserve, watch later, peek-ready
    terminal.until("NOT_FOUND")
    terminal.until("raftd>")  # else Ctrl-D would be for nobody
    terminal.type("\x04")
    assert terminal.close() == 0


@pytest.mark.slow
def test_it_goes_on_at_another_node(tmp_path):
    nodes = tmp_path / "nodes"
    nodes.mkdir()
    with LocalCluster(nodes, 3) as cluster:
        cluster.leader()
        terminal = Terminal(tmp_path, address(cluster, 1), address(cluster, 2))
        terminal.until("connected to")
        terminal.type("reserve\r")
        with Client(url(cluster)) as queue:
            wait_for(lambda: queue.stats("default").waiting == 1, 20, "the reserve waits")
        cluster.kill(1)
        terminal.until(rf"\(the connection to {address(cluster, 1)} is lost; no answer to: reserve\)")
        terminal.until(rf"\(connected to {address(cluster, 2)}: `use` and `watch` begin anew\)")
        terminal.type("list-tube-used\r")
        terminal.until("USING default")
        terminal.until("raftd>")
        terminal.type("\x03")
        assert terminal.close() == 0
        commands = b"stats\nreserve\n"
        waiting = subprocess.Popen(
            [*RAFTD, "console", address(cluster, 2)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert waiting.stdin is not None
        assert waiting.stdout is not None
        waiting.stdin.write(commands)
        waiting.stdin.close()
        waiting.stdin = None
        assert waiting.stdout.readline().startswith(b"OK")
        cluster.kill(2)
        _, error = waiting.communicate(timeout=20)
        assert waiting.returncode == 1
        assert b"the connection was lost before all was answered" in error


def test_replies_in_any_pieces():
    data = b"INSERTED 1\r\nRESERVED 7 4\r\na\r\nb\r\nOK 2\r\n{}\r\nFOUND 8 0\r\n\r\nOK x\r\nDELETED\r\n"
    expected = [b"INSERTED 1\r\n", b"RESERVED 7 4\r\na\r\nb\r\n", b"OK 2\r\n{}\r\n", b"FOUND 8 0\r\n\r\n", b"OK x\r\n", b"DELETED\r\n"]
    for size in range(1, 12):
        replies = Replies()
        assert [reply for start in range(0, len(data), size) for reply in replies.feed(data[start : start + size])] == expected
    assert readable(b"RESERVED 7 5\r\n\x1b\xff\r\nb\r\n") == "RESERVED 7 5\n?\\xff\nb"


def test_help_knows_every_command_of_the_protocol():
    assert {name.decode().strip() for name, _ in line._VERBS} == COMMANDS.keys() - {"help", "put"}

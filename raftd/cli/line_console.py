"""`raftd console`: what telnet is to beanstalkd, with history, completion and help."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import BinaryIO

import click

from raftd.cli.common import tls_files
from raftd.cli.line_client import LineClient, NotConnected
from raftd.client.address import HostPort
from raftd.client.connection import printable, where

#: Each command, its arguments, and what it does.
COMMANDS: dict[str, tuple[str, str]] = {
    "put": ("PRI DELAY TTR [BYTES]", "put the next line; with BYTES, so many bytes of the next lines"),
    "use": ("TUBE", "what is put goes to this tube"),
    "watch": ("TUBE", "jobs of this tube are reserved, too"),
    "ignore": ("TUBE", "jobs of this tube are reserved no more"),
    "reserve": ("", "wait for a job"),
    "reserve-with-timeout": ("SECONDS", "wait so long for a job"),
    "reserve-job": ("ID", "take this one"),
    "delete": ("ID", "it is done"),
    "release": ("ID PRI DELAY", "give it back"),
    "bury": ("ID PRI", "put it aside until it is kicked"),
    "touch": ("ID", "its time to run begins anew"),
    "kick": ("COUNT", "make buried jobs of the used tube ready, or if there are none delayed ones"),
    "kick-job": ("ID", "make this one ready"),
    "peek": ("ID", "a job and its body"),
    "peek-ready": ("", "the next that would be reserved from the used tube"),
    "peek-delayed": ("", "the next that is delayed"),
    "peek-buried": ("", "the next that is buried"),
    "pause-tube": ("TUBE SECONDS", "nothing is reserved from it for so long"),
    "stats": ("", "how the node is"),
    "stats-job": ("ID", "how a job is"),
    "stats-tube": ("TUBE", "how a tube is"),
    "list-tubes": ("", "all tubes"),
    "list-tube-used": ("", "the tube that is used"),
    "list-tubes-watched": ("", "the tubes that are watched"),
    "auth": ("USER TOKEN", "say who you are"),
    "quit": ("", "end"),
    "help": ("[COMMAND]", "this"),
}
_WIDTH = max(len(f"{name} {arguments}") for name, (arguments, _) in COMMANDS.items()) + 2
_PUT_NUMBERS = 3
#: More than the size of any body has.
_SIZE_DIGITS = 10
LINE_PORT = 11300


def help_of(name: str) -> str:
    """Of one command, or of all."""
    rows = COMMANDS if name not in COMMANDS else {name: COMMANDS[name]}
    return "\n".join(f"{f'{command} {arguments}':{_WIDTH}}{does}" for command, (arguments, does) in rows.items())


def readable(reply: bytes) -> str:
    """A reply for a terminal, which nothing in it may steer."""
    text = reply.decode(errors="backslashreplace").replace("\r\n", "\n").removesuffix("\n")
    return "\n".join(map(printable, text.split("\n")))


def put_command(words: list[bytes], body: bytes) -> bytes:
    """`put` with the size of its body."""
    return b" ".join([*words[: 1 + _PUT_NUMBERS], b"%d" % len(body)])


def asks_for_a_body(words: list[bytes]) -> bool:
    """Whether this is a put that does not say how large its body is: that is the next line, then."""
    return bool(words) and words[0] == b"put" and len(words) == 1 + _PUT_NUMBERS


def body_bytes(words: list[bytes]) -> int | None:
    """The size of the body that follows, None if none does."""
    is_put = len(words) == 2 + _PUT_NUMBERS and words[0] == b"put" and words[-1].isdigit() and len(words[-1]) < _SIZE_DIGITS
    return int(words[-1]) if is_put else None


# -- in a pipe ----------------------------------------------------------------------------------


def run_piped(addresses: list[HostPort], commands: BinaryIO) -> None:
    """Send what is read, print what is answered, until all is. Raises NotConnected."""
    client = LineClient(addresses, _print_reply, lambda text: None, goes_on=False, tls=tls_files(None))
    client.connect()
    try:
        while line := commands.readline():
            line = line.rstrip(b"\r\n")
            words = line.split()
            if not words:
                continue
            if words == [b"quit"]:
                break
            if asks_for_a_body(words):
                body = commands.readline().rstrip(b"\r\n")
                client.send(put_command(words, body), body)
            elif (size := body_bytes(words)) is not None:
                body = commands.read(size)
                if len(body) < size:
                    raise NotConnected(f"{line.decode(errors='replace')}: only {len(body)} bytes follow. It was not sent")
                commands.readline()
                client.send(line, body)
            else:
                client.send(line)
        if not client.wait():
            hint = "Is it a line listener, does it want TLS, or another certificate?"
            raise NotConnected(f"{where(client.address)}: the connection was lost before all was answered. {hint}")
    finally:
        client.close()


def _print_reply(reply: bytes) -> None:
    if sys.stdout.isatty():
        print(readable(reply), flush=True)
        return
    sys.stdout.buffer.write(reply.replace(b"\r\n", b"\n") if not reply.startswith((b"RESERVED ", b"FOUND ")) else reply)
    sys.stdout.buffer.flush()


# -- at a terminal ------------------------------------------------------------------------------


def run_interactive(addresses: list[HostPort]) -> None:
    """Until `quit`, Ctrl-D or Ctrl-C. Raises NotConnected if no node can be reached at first."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory
    from prompt_toolkit.patch_stdout import patch_stdout

    client = LineClient(
        addresses,
        lambda reply: print(readable(reply), flush=True),
        lambda text: print(f"({printable(text)})", flush=True),
        tls=tls_files(None),
    )
    client.connect()
    print(f"connected to {where(client.address)}; `help` shows the commands, Ctrl-D ends", flush=True)
    completer = WordCompleter(
        list(COMMANDS), meta_dict={name: f"{arguments}: {does}" for name, (arguments, does) in COMMANDS.items()}, sentence=True
    )
    session: PromptSession[str] = PromptSession(
        history=FileHistory(str(_history_file())), completer=completer, auto_suggest=AutoSuggestFromHistory(), complete_while_typing=False
    )
    try:
        with patch_stdout():
            while True:
                text = session.prompt("raftd> ").strip()
                if text == "quit":
                    return
                if text.split(" ")[0] in ("help", "?"):
                    print(help_of(text.partition(" ")[2].strip()), flush=True)
                elif text:
                    _send(client, session, text)
    except (EOFError, KeyboardInterrupt):
        return
    finally:
        client.close()


def _send(client: LineClient, session: object, text: str) -> None:
    from prompt_toolkit import prompt

    command = text.encode(errors="surrogateescape")
    words, size = command.split(), body_bytes(command.split())
    body: bytes | None = None
    if asks_for_a_body(words):
        body = prompt("body> ").encode(errors="surrogateescape")
        command = put_command(words, body)
    elif size is not None:
        body = prompt("body> ").encode(errors="surrogateescape")
        while len(body) < size:
            body += b"\r\n" + prompt("  ... ").encode(errors="surrogateescape")
        if len(body) > size:
            print(f"(the body has {len(body)} bytes, not {size}: nothing was sent. `put` without a size counts them)", flush=True)
            return
    try:
        client.send(command, body)
    except NotConnected as error:
        print(f"({error})", flush=True)


def _history_file() -> Path:
    """Where the lines of before are kept, for this user alone."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "raftd"
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = state / "console-history"
    path.touch(mode=0o600)
    return path


@click.command("console", short_help="Type commands of the line protocol.")
@click.argument("addresses", nargs=-1, metavar="[HOST:PORT]...")
def line_console(addresses: tuple[str, ...]) -> None:
    """A line client of the node at HOST:PORT, a line listener, or of the next of these when its connection is lost
    (127.0.0.1:11300).

    A put may leave out the size of its body, which is the next line then. At a terminal it has history, completion (Tab) and help. In a
    pipe it sends what it reads and ends when all is answered: `echo stats | raftd console`.
    """
    from raftd.cli.common import parse_endpoint, working

    found = [parse_endpoint(address, LINE_PORT, "line") for address in addresses] or [("127.0.0.1", LINE_PORT)]
    with working():
        if sys.stdin.isatty() and sys.stdout.isatty():
            run_interactive(found)
        else:
            run_piped(found, sys.stdin.buffer)

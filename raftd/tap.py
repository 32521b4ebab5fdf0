"""`twistd raftd`: the options, and the service made from them."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

from twisted.logger import Logger
from twisted.python import usage

from raftd.config import DEFAULT, DEFAULT_NODE, Config, check, check_exposure, choose_node, load, place
from raftd.errors import ConfigError


def _refuse(reason: str) -> NoReturn:
    """One clear line and status 1; UsageError would print the whole usage around it."""
    # by now twistd may have made sys.stderr part of its log
    print(f"raftd: {reason}", file=sys.__stderr__, flush=True)
    raise SystemExit(1)


class Options(usage.Options):
    """What `twistd raftd` takes."""

    longdesc = "A replicated job queue that speaks the beanstalkd protocol. Without --config: one node on 127.0.0.1:11300."
    optParameters = [  # noqa: RUF012 - Twisted's interface
        ["config", "c", None, "The cluster's configuration file (YAML)."],
        ["node", "n", None, "Which of the file's nodes to be."],
        ["data", "d", None, "Where to keep data, instead of what the file says."],
        ["join", "j", None, "HOST:PORT, the client listener of any member: become one of its cluster, as node --node."],
        ["host", None, None, "With --join and without --config: the address at which the others find this node.  [default: 127.0.0.1]"],
        ["line", None, None, "Likewise: the port of its line listener.  [default: 11300]"],
        ["client", None, None, "Likewise: the port of its client listener.  [default: 11301]"],
        ["peer", None, None, "Likewise: the port of its peer listener.  [default: 11302]"],
        ["http", None, None, "Likewise: the port of its HTTP listener.  [default: 11303]"],
        ["log-format", None, "text", "How the log is written: text, or json, an object a line."],
    ]

    optFlags = [["insecure", None, "Likewise: other machines may reach this node without TLS."]]  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.config: Config
        self.node = 0
        #: Who votes in the cluster that this node joins; None: the nodes of the configuration.
        self.voters: tuple[int, ...] | None = None
        self.note = ""

    def postOptions(self) -> None:
        try:
            self._choose_log()
            self._read()
        except ConfigError as error:
            _refuse(str(error))

    def _choose_log(self) -> None:
        if self["log-format"] not in ("text", "json"):
            raise ConfigError(f"--log-format {self['log-format']}: expected text or json")
        twistd = getattr(self, "parent", None)
        if self["log-format"] == "json" and twistd is not None:
            if twistd.get("syslog") or twistd.get("logger"):
                raise ConfigError("--log-format json goes to standard output or a file: leave out --syslog and --logger of twistd")
            from raftd.server.jsonlog import choose  # only who wants it needs it

            twistd["logger"] = choose(twistd)

    def _read(self) -> None:
        own = {name: self[name] for name in _OWN if self[name] is not None}
        if self["insecure"]:
            own["insecure"] = "true"
        if own and (self["join"] is None or self["config"] is not None):
            raise ConfigError(f"--{next(iter(own))} goes with --join and without --config; a configuration file says where its nodes are")
        if self["join"] is None or self["config"] is not None:
            self.config = load(self["config"], self["data"])
            self.node = choose_node(self.config, self["node"])
        else:
            self.config, self.node = _only(self["node"], own, self["data"])
        check_exposure(self.config, self.node)
        if self["join"] is not None:
            from raftd.server.join import join  # only who joins needs it

            self.config, self.voters, self.note = join(_parse_host_port(self["join"]), self.config, self.node, self["config"] is not None)


_OWN = ("host", "line", "client", "peer", "http")


def _only(node: str | None, own: dict[str, str], data: str | None) -> tuple[Config, int]:
    """A configuration of this node alone, from options."""
    if node is None or not node.isascii() or not node.isdigit() or not int(node):
        raise ConfigError("--join needs --node ID: an id that no node of the cluster ever had, from 1 on")
    for name, value in own.items():
        if name not in ("host", "insecure") and not (value.isascii() and value.isdigit()):
            raise ConfigError(f"--{name} {value}: expected a port")
    ports = {name: value if name == "host" else int(value) for name, value in own.items() if name != "insecure"}
    raw = {**DEFAULT, "nodes": {int(node): {**DEFAULT_NODE, **ports}}, "insecure": "insecure" in own}
    return place(check(raw), os.getcwd(), data), int(node)


def _parse_host_port(value: str) -> tuple[str, int]:
    host, colon, port = value.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit()) or not 1 <= int(port) <= 65_535:
        raise ConfigError(f"--join {value}: expected HOST:PORT, the client listener of a member")
    return host.strip("[]"), int(port)


class CannotStart(Exception):
    """Why a daemon did not start. Its parent prints the first hundred characters; the log has all of it."""


def makeService(options: Options) -> Any:
    """The service of one node. What it needs is imported only now, and `twistd --help` stays quick."""
    from raftd.server.reactor import install

    install()  # before anything asks for one
    from raftd.server.service import build

    parent = getattr(options, "parent", None) or {}
    in_foreground = bool(parent.get("nodaemon"))

    def cannot_start(reason: str) -> None:
        if not in_foreground:
            Logger("raftd").critical("{reason}", reason=reason)
            raise CannotStart(reason)
        pidfile = parent.get("pidfile")
        if pidfile and os.path.exists(pidfile):
            os.unlink(pidfile)  # twistd leaves it behind on SystemExit
        _refuse(reason)

    if options.note:
        Logger("raftd").info("--join: {note}", note=options.note)
    return build(options.config, options.node, cannot_start, options.voters)

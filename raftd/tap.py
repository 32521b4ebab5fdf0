"""`twistd raftd`: the options, and the service made from them."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

from twisted.logger import Logger
from twisted.python import usage

from raftd.config import Config, choose_node, load
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
    ]

    def __init__(self) -> None:
        super().__init__()
        self.config: Config
        self.node = 0

    def postOptions(self) -> None:
        try:
            self.config = load(self["config"], self["data"])
            self.node = choose_node(self.config, self["node"])
        except ConfigError as error:
            _refuse(str(error))


class CannotStart(Exception):
    """Why a daemon did not start. Its parent prints the first hundred characters; the log has all of it."""


def makeService(options: Options) -> Any:
    """The service of one node. What it needs is imported only now, and `twistd --help` stays quick."""
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

    return build(options.config, options.node, cannot_start)

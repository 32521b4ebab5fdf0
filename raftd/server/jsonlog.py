"""`--log-format json`: the log, a JSON object a line, for programs that collect logs.

Every line has `time`, `level`, `system` and `message`; the values in the message have fields of their own, and what is an event of
`/events` has its name in `event` and the same fields as there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from twisted.logger import ILogObserver, LogEvent, formatEvent
from twisted.python.logfile import LogFile
from zope.interface import implementer

_OWN = ("time", "level", "system", "message")


@implementer(ILogObserver)
class JsonObserver:
    """Writes to `file`, a line at a time."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __call__(self, event: LogEvent) -> None:
        self._file.write(as_line(event))
        self._file.flush()


def as_line(event: LogEvent) -> str:
    level = event.get("log_level")
    line: dict[str, object] = {
        "time": datetime.fromtimestamp(event.get("log_time", 0), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": level.name if level is not None else "info",
        "system": str(event.get("log_namespace", "-")),
        "message": formatEvent(event),
    }
    failure = event.get("log_failure")
    if failure is not None:
        line["traceback"] = failure.getTraceback()
    for name, value in event.items():
        # of Twisted's older log all keys are its own; "text" is a message once more
        if not name.startswith("log_") and name not in _OWN and name != "text" and "log_legacy" not in event:
            line[name] = value if isinstance(value, (str, int, float, list)) else str(value)
    return json.dumps(line, default=str) + "\n"


_options: Mapping[str, Any] = {}


def choose(options: Mapping[str, Any]) -> str:
    """Let `twistd` with these options log so. Returns what it takes for `--logger`: a name, which it looks up and calls."""
    global _options
    _options = options
    return f"{__name__}.{make_observer.__name__}"


def make_observer() -> JsonObserver:
    """For where the options of `twistd` say that the log goes."""
    name = _options.get("logfile")
    if name == "-" or (not name and _options.get("nodaemon")):
        return JsonObserver(sys.stdout)
    return JsonObserver(LogFile.fromFullPath(name or "twistd.log"))

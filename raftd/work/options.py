"""What a worker is asked to do."""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn

import msgspec

log = logging.getLogger("raftd.work")


#: How long (seconds) a worker goes on telling the cluster what became of a job, if no node answers: nothing else is of more use.
TELL_S = 86_400.0


class Options(msgspec.Struct, frozen=True):
    """`retry_delay_s`: until a failed job is ready again. `at_once`: jobs that are worked at the same time; `prefetch`: jobs that are held,
    at least as many. `grace_s`: how long jobs may go on after the worker was told to stop."""

    url: str | None
    tubes: tuple[str, ...]
    retry_delay_s: float
    at_once: int
    prefetch: int
    grace_s: float
    shows_tracebacks: bool


def end_now(status: int) -> NoReturn:
    """Without waiting for threads and tasks that still work."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)


class Connected:
    """Says in the log when no node could be asked for some seconds, and when one can again."""

    _PATIENCE_S = 3.0

    def __init__(self) -> None:
        self._since_s: float | None = None
        self._was_said = False

    def look(self, trouble: str, now_s: float) -> None:
        """`trouble`: why no node can be asked, "" if one can."""
        if not trouble:
            if self._was_said:
                log.warning("connected again")
            self._since_s, self._was_said = None, False
            return
        if self._since_s is None:
            self._since_s = now_s
        if now_s - self._since_s >= self._PATIENCE_S and not self._was_said:
            self._was_said = True
            log.warning("no node can be asked, and this goes on trying: %s", trouble)

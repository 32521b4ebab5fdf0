"""Twisted's epoll reactor with what a turn of the node needs: to run once after all that one poll has brought, and cheaply.

Two things differ from Twisted's. `soon` calls at the end of the poll under way, or of the next one, without a place among the timers.
And an event goes to its connection directly, not inside a logging context of its own: raftd's log lines name their source themselves.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.main import installReactor
from twisted.logger import Logger


class TurnReactor(EPollReactor):
    """The reactor of a node."""

    _log = Logger("raftd")

    def __init__(self) -> None:
        super().__init__()
        self._soon: list[tuple[Callable[..., object], tuple[object, ...]]] = []

    def soon(self, call: Callable[..., object], *arguments: object) -> None:
        """Call it when everything that the poll under way has brought is handled; if none is, after the next, which does not wait.
        What a call asks for itself comes after one more poll."""
        self._soon.append((call, arguments))

    def timeout(self) -> float | None:
        return 0 if self._soon else super().timeout()

    def doPoll(self, timeout: float | None) -> None:
        selectables = self._selectables
        try:
            events = self._poller.poll(-1 if timeout is None else timeout, len(selectables))
        except InterruptedError:
            return
        for descriptor, event in events:
            selectable = selectables.get(descriptor)
            if selectable is not None:  # else one of the events before has closed it
                self._doReadOrWrite(selectable, descriptor, event)
        if self._soon:
            calls, self._soon = self._soon, []
            for call, arguments in calls:
                try:
                    call(*arguments)
                except Exception:
                    self._log.failure("a bug in raftd: the process continues")

    doIteration = doPoll


def install() -> None:
    """Make it the reactor of this process, unless another was chosen already, with `twistd --reactor`, say."""
    if "twisted.internet.reactor" not in sys.modules:
        installReactor(TurnReactor())


def soon_of(reactor: Any) -> Callable[..., object]:
    """What calls a function with arguments after the current poll of `reactor`, whichever it is."""
    return reactor.soon if isinstance(reactor, TurnReactor) else partial(reactor.callLater, 0)

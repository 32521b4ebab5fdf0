"""Twisted's epoll reactor with what a turn of the node needs: to run once after all that has arrived, and cheaply.

Three things differ from Twisted's. `soon` calls when a poll brings nothing more, without a place among the timers. An event goes to
its connection directly, not inside a logging context of its own: raftd's log lines name their source themselves. And it measures its
pauses.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.main import installReactor
from twisted.logger import Logger

#: Polls between two runs of what waits, at most; and the time after which no more follows (seconds): a crowd that connects or
#: leaves must not hold back ticks.
MOST_POLLS = 16
LONGEST_POLLS_S = 0.002


class Pauses:
    """How long timers wait while the reactor works, at most since this was made: `longest_s`, and how much of such a time its thread has
    worked, rather than waited for a processor or a disk: `longest_work_s`. `clocks` gives both times in seconds."""

    def __init__(self, clocks: Callable[[], tuple[float, float]]) -> None:
        self.longest_s = 0.0
        self.longest_work_s = 0.0
        self._clocks = clocks
        self._began = clocks()

    def begin(self) -> None:
        """A poll has returned."""
        self._began = self._clocks()

    def end(self) -> None:
        """All timers that are due have run."""
        now, began = self._clocks(), self._began
        self.longest_s = max(self.longest_s, now[0] - began[0])
        self.longest_work_s = max(self.longest_work_s, now[1] - began[1])


class TurnReactor(EPollReactor):
    """The reactor of a node."""

    _log = Logger("raftd")

    def __init__(self) -> None:
        super().__init__()
        self._soon: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()
        #: Kept from when it is given.
        self.pauses: Pauses | None = None

    def soon(self, call: Callable[..., object], *arguments: object) -> None:
        """Call it when the sockets have nothing more to read, or after MOST_POLLS or LONGEST_POLLS_S. Answers to clients bring their next
        commands at once, one after the other: a turn for all of them costs little more than a turn for the first. What a call asks for
        itself comes after one more poll."""
        self._soon.append((call, arguments))

    def timeout(self) -> float | None:
        return 0 if self._soon else super().timeout()

    def doPoll(self, timeout: float | None) -> None:
        selectables = self._selectables
        wait_s = -1 if timeout is None else timeout
        until_s = 0.0
        if self.pauses is not None:
            self.pauses.end()
        for number in range(MOST_POLLS):
            try:
                events = self._poller.poll(wait_s, len(selectables))
            except InterruptedError:
                events = []
            if number == 0 and self.pauses is not None:
                self.pauses.begin()
            for descriptor, event in events:
                selectable = selectables.get(descriptor)
                if selectable is not None:  # else one of the events before has closed it
                    self._doReadOrWrite(selectable, descriptor, event)
            if not events or not self._soon:
                break
            wait_s = 0  # is there more?
            now_s = self.seconds()
            until_s = until_s or now_s + LONGEST_POLLS_S
            if now_s >= until_s:
                break
        for _ in range(len(self._soon)):
            call, arguments = self._soon.popleft()
            try:
                call(*arguments)
            except Exception:  # as Twisted does with timers: one call must not stop the others
                self._log.failure("a bug in raftd: the process continues")

    doIteration = doPoll


def install() -> None:
    """Make it the reactor of this process, unless another was chosen already, with `twistd --reactor`, say."""
    if "twisted.internet.reactor" not in sys.modules:
        installReactor(TurnReactor())


def soon_of(reactor: Any) -> Callable[..., object]:
    """What calls a function with arguments after the current poll of `reactor`, whichever it is."""
    return reactor.soon if isinstance(reactor, TurnReactor) else partial(reactor.callLater, 0)

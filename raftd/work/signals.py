"""The signals that tell a worker to stop, and their names."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

#: Of a worker process of its own.
STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: Of one that a parent tells, so that a signal to all of them is not heard twice (systemd sends it to each).
STOP_BY_PARENT = signal.SIGUSR1

_registered: list[int] = []
_forking = threading.local()
_has_parent = False


def on_stop(call: Callable[[int], object]) -> None:
    """`call` it with the number of each signal that says stop. Processes that are forked later hear them as ever."""
    if _has_parent:
        _handle(STOP, lambda number: None)
        _handle((STOP_BY_PARENT,), call)
    else:
        _handle(STOP, call)


def only_by_parent() -> None:
    """Before `on_stop`, in a process whose parent tells it to stop: the other signals do nothing. They are not ignored, or commands that it
    starts would ignore them."""
    global _has_parent
    _has_parent = True
    _handle(STOP, lambda number: None)
    signal.signal(STOP_BY_PARENT, lambda number, frame: os._exit(0))  # it has not begun


def _handle(numbers: tuple[signal.Signals, ...], call: Callable[[int], object]) -> None:
    def handler(number: int, frame: FrameType | None) -> None:
        call(number)

    for known in numbers:
        signal.signal(known, handler)
    if not _registered:
        os.register_at_fork(before=_hold_back, after_in_parent=_let_through, after_in_child=_as_ever)
    _registered.extend(numbers)


def _hold_back() -> None:
    """One that comes while a process is forked, and its handlers are the worker's still, would be lost there: nothing would end it."""
    _forking.masks = [*getattr(_forking, "masks", []), signal.pthread_sigmask(signal.SIG_BLOCK, _registered)]


def _let_through() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.masks.pop())


def _as_ever() -> None:
    for number in _registered:
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    _let_through()


def name_of(number: int) -> str:
    """SIGKILL, or for one that has none its number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

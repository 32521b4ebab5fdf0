"""What a command has started ends with it, also on a signal: Ctrl-C, SIGTERM and SIGHUP become SystemExit, which
passes every `finally`, with 128 and the signal's number as status."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_AGAIN_S = 0.01
_depth = 0
_pending: int | None = None


def end_in_order() -> None:
    """From now on."""

    def end(number: int, frame: object) -> None:
        global _pending
        if _depth:
            _pending = number
            return
        for any_number in _NUMBERS:  # cleaning up is quick, and is not interrupted by a second Ctrl-C
            signal.signal(any_number, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for number in _NUMBERS:
        signal.signal(number, end)
    sys.unraisablehook = _end_all_the_same


def _end_all_the_same(unraisable: sys.UnraisableHookArgs) -> None:
    """A signal that comes while Python runs a destructor or a callback of the garbage collector raises into nothing: once more, then,
    a moment later."""
    if not isinstance(unraisable.exc_value, SystemExit):
        sys.__unraisablehook__(unraisable)
        return
    status = unraisable.exc_value.code

    def end(number: int, frame: object) -> None:
        raise SystemExit(status)

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)


@contextmanager
def held() -> Iterator[None]:
    """A signal waits until this is over: in the middle of starting a process it would leave an unknown process."""
    global _depth, _pending
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
    if not _depth and _pending is not None:
        number, _pending = _pending, None
        signal.raise_signal(number)

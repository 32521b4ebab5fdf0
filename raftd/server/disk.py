"""The disk of a node: a thread that does one job after the other; short writes to a fast disk are done at once."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from time import perf_counter
from typing import Any

from raftd.server.reactor import soon_of

_Job = tuple[Callable[[], None], Callable[[BaseException | None], None]]

#: A job that took no longer (seconds) was fast: less than handing it to the thread and back takes on a busy machine.
_FAST_S = 0.0005
#: The disk is fast after so many fast jobs without a slow one, so one that stalls now and then stops the reactor once.
_FAST_JOBS = 16


class DiskThread:
    """Started by its first job, which is after twistd has forked. A daemon thread: a disk that hangs must
    not keep the process from ending."""

    def __init__(self, reactor: Any, name: str) -> None:
        self._name = name
        self._reactor = reactor
        self._soon = soon_of(reactor)
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._thread: Thread | None = None
        self._fast_jobs = 0  # without a slow one
        self._queued = 0

    def run(self, job: Callable[[], None], done: Callable[[BaseException | None], None], is_small: bool = False) -> None:
        """Run `job` in the thread; `done` is called in the reactor with what it raised, or None. If it `is_small`, and the disk is fast
        and idle, `job` runs in the reactor's next turn, when what was written to sockets in this one has left."""
        if is_small and self._fast_jobs >= _FAST_JOBS and not self._queued:
            self._soon(self._run_here, job, done)
            return
        if self._thread is None:
            self._thread = Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        self._queued += 1
        self._jobs.put((job, done))

    def _run_here(self, job: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        done(self._run(job))

    def _run(self, job: Callable[[], None]) -> BaseException | None:
        """Run `job` and see how fast it is; return what it raised."""
        began_s = perf_counter()
        try:
            job()
        except BaseException as raised:  # passed on: the process must not continue after any error
            return raised
        self._fast_jobs = self._fast_jobs + 1 if perf_counter() - began_s < _FAST_S else 0
        return None

    def _work(self) -> None:
        while True:
            job, done = self._jobs.get()
            self._reactor.callFromThread(self._finished, done, self._run(job))

    def _finished(self, done: Callable[[BaseException | None], None], error: BaseException | None) -> None:
        self._queued -= 1
        done(error)

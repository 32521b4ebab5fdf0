"""A thread for the disk, which does one job after the other."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any

_Job = tuple[Callable[[], None], Callable[[BaseException | None], None]]


class DiskThread:
    """Started by its first job, which is after twistd has forked. A daemon thread: a disk that hangs must
    not keep the process from ending."""

    def __init__(self, reactor: Any, name: str) -> None:
        self._name = name
        self._reactor = reactor
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._thread: Thread | None = None

    def run(self, job: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        """Run `job` in the thread; `done` is called in the reactor with what it raised, or None."""
        if self._thread is None:
            self._thread = Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        self._jobs.put((job, done))

    def _work(self) -> None:
        while True:
            job, done = self._jobs.get()
            error: BaseException | None = None
            try:
                job()
            except BaseException as raised:  # passed on: the process must not continue after any error
                error = raised
            self._reactor.callFromThread(done, error)

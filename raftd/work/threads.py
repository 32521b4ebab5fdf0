"""The worker for functions that are called in threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from raftd.client.blocking import Client, Job, Jobs
from raftd.errors import RaftdError
from raftd.work.options import TELL_S, Connected, Options, log
from raftd.work.outcome import line, not_called, outcome_of
from raftd.work.signals import on_stop

_LOOK_S = 1.0
#: Who is told to end at once gives its jobs back within this time (seconds), or not.
_AT_ONCE_S = 0.5


class Threads:
    """Works jobs until SIGTERM or SIGINT: then it reserves no more, and what is being worked may end in its grace. After that, or a second
    signal, jobs that are not done are released, which is no failed attempt."""

    def __init__(self, options: Options, function: Callable[[Job], Any]) -> None:
        self._options = options
        self._function = function
        self._client = Client(options.url, name="raftd work", timeout=TELL_S)
        self._working: dict[Job, float] = {}  # since when
        #: Signals, and threads that have ended, with what has ended them.
        self._told: SimpleQueue[int | tuple[threading.Thread, BaseException | None]] = SimpleQueue()
        self._threads: set[threading.Thread] = set()

    def run(self) -> int:
        """The exit status: 0 if everything that was begun has been done. Raises RaftdError."""
        on_stop(self._told.put)
        log.info("working jobs of %s, %d at a time", ", ".join(self._options.tubes), self._options.at_once)
        try:
            jobs = self._client.jobs(*self._options.tubes, prefetch=self._options.prefetch)
            for number in range(self._options.at_once):
                thread = threading.Thread(target=self._work_all, args=(jobs,), name=f"worker {number + 1}", daemon=True)
                self._threads.add(thread)
                thread.start()
            self._wait(float("inf"))
            jobs.stop()
            if self._working:
                log.warning("stopping: %d jobs have %g s to end", len(self._working), self._options.grace_s)
            signalled = self._wait(time.monotonic() + self._options.grace_s)
            return self._leave(signalled)
        finally:
            closing = threading.Thread(target=self._client.close, daemon=True)
            closing.start()
            closing.join(_AT_ONCE_S if self._working else None)

    def _wait(self, until_s: float) -> int:
        """Until a signal comes, no thread works, or the time is over; the signal, or 0. Raises what has ended a thread."""
        connected = Connected()
        while self._threads and (left_s := until_s - time.monotonic()) > 0:
            try:
                told = self._told.get(timeout=min(left_s, _LOOK_S))
            except Empty:
                connected.look(self._client.trouble, time.monotonic())
                continue
            if isinstance(told, int):
                return told
            thread, error = told
            self._threads.discard(thread)
            if error is not None:
                raise error
        return 0

    def _leave(self, signalled: int) -> int:
        """Say which jobs are released: the end of the client does it."""
        for job, began_s in list(self._working.items()):
            log.warning(line(job, began_s, "released, for the worker stops"))
        if signalled:
            return 128 + signalled
        return 1 if self._working else 0

    def _work_all(self, jobs: Jobs) -> None:
        error: BaseException | None = None
        try:
            for job in jobs:
                self._work(job)
        except BaseException as reason:  # whatever it is, the worker must not go on without this thread
            error = reason
        finally:
            self._told.put((threading.current_thread(), error))

    def _work(self, job: Job) -> None:
        began_s = self._working[job] = time.monotonic()
        error: BaseException | None = None
        try:
            error = not_called(self._function(job))
        except BaseException as raised:  # sys.exit(), too, fails the job and does not end the worker
            error = raised
        outcome = outcome_of(error, self._options.retry_delay_s)
        try:
            outcome.tell(job)
            outcome.say(job, began_s, error, self._options.shows_tracebacks)
        except RaftdError as reason:
            outcome.say_unheard(job, began_s, reason)
        finally:
            del self._working[job]

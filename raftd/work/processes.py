"""Several worker processes: one that ends by itself is started again, and they end together."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import NoReturn

from raftd.work.options import end_now
from raftd.work.signals import STOP, STOP_BY_PARENT, name_of, only_by_parent

#: Between two starts in the same place (seconds).
_AGAIN_S = 1.0
#: The exit status of what would end the same way again: the command line is wrong.
USAGE_STATUS = 2
_SIGNALS = (*STOP, signal.SIGCHLD)


class Processes:
    """`count` processes that each do `run`, which gives their exit status. No thread may have been started."""

    def __init__(self, count: int, run: Callable[[], int]) -> None:
        self._run = run
        self._signals: SimpleQueue[int] = SimpleQueue()
        self._running: dict[int, int] = {}  # pid to the pipe that tells it to stop
        self._stops = 0
        self._to_start = [0.0] * count  # when, by the monotonic clock
        self._status = 0

    def run(self) -> int:
        """Until all have ended; the exit status is the highest of theirs after they were told to stop."""
        for known in _SIGNALS:
            signal.signal(known, lambda number, frame: self._signals.put(number))
        while self._running or self._to_start:
            now_s = time.monotonic()
            for due_s in [due_s for due_s in self._to_start if due_s <= now_s]:
                self._to_start.remove(due_s)
                self._start()
            try:
                number = self._signals.get(timeout=min(self._to_start, default=now_s + _AGAIN_S) - now_s if self._to_start else None)
            except Empty:
                continue
            if number == signal.SIGCHLD:
                self._reap()
            else:
                self._stop(number)
        return self._status

    def _stop(self, number: int) -> None:
        self._stops += 1
        if self._stops > 1:
            self._status = 128 + number
        self._to_start.clear()
        for pipe in self._running.values():
            with suppress(OSError):  # it has just ended
                os.write(pipe, b"s")

    def _reap(self) -> None:
        while self._running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            if pid not in self._running:
                continue
            os.close(self._running.pop(pid))
            code = os.waitstatus_to_exitcode(status)
            if self._status == USAGE_STATUS or self._stops > 1:
                continue
            if self._stops:
                self._status = max(self._status, code if code >= 0 else 128 - code)
            elif code == USAGE_STATUS:
                self._status = code
                self._stop(signal.SIGTERM)
            else:
                how = f"status {code}" if code >= 0 else name_of(-code)
                self._say(f"worker process {pid} has ended with {how}: another is started")
                self._to_start.append(time.monotonic() + _AGAIN_S)

    @staticmethod
    def _say(text: str) -> None:
        """As the log has it. This process has none: modules of the workers may set up one of their own."""
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')},000 raftd.work[{os.getpid()}]: {text}", file=sys.stderr, flush=True)

    def _start(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        told, tell = os.pipe()
        pid = os.fork()
        if pid:
            self._running[pid] = tell
            os.close(told)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            return
        try:
            for pipe in (tell, *self._running.values()):
                os.close(pipe)
            self._be_a_worker(told)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)

    def _be_a_worker(self, told: int) -> NoReturn:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        only_by_parent()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

        def listen() -> None:
            while os.read(told, 1):
                stopping.set()
                os.kill(os.getpid(), STOP_BY_PARENT)
            if not stopping.is_set():  # the parent has ended, however that was
                os.kill(os.getpid(), STOP_BY_PARENT)

        stopping = threading.Event()

        threading.Thread(target=listen, daemon=True).start()
        try:
            status = self._run()
        except SystemExit as end:
            if not isinstance(end.code, int | None):
                print(end.code, file=sys.stderr)
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        end_now(status)

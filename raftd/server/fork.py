"""The copy of this process that writes a snapshot: a million jobs are copied in the time that fork takes.

The child shares the parent's memory until one of them changes a page. It does nothing but write: it gives up every descriptor
that it has inherited (the lock, the listeners, the clients), takes no signal of the parent's, logs nothing, dies with the
parent, and ends without running anything that the parent has registered.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from twisted.internet.abstract import FileDescriptor
from twisted.internet.main import CONNECTION_DONE
from twisted.logger import Logger
from twisted.python.failure import Failure

from raftd.limits import MOST_DESCRIPTORS
from raftd.storage.snapshots import Done

#: A snapshot whose file has not grown for so long (seconds) is given up: longer than the fsync of a large one takes on a slow disk.
SNAPSHOT_STALL_S = 120.0

_PR_SET_PDEATHSIG = 1
_NICE = 5  # the parent's clients come first
_REPORT_BYTES = 4_096


class _Report(FileDescriptor):
    """The reading end of the pipe to the child: it ends when the child does."""

    def __init__(self, reactor: Any, descriptor: int, ended: Callable[[bytes], None]) -> None:
        super().__init__(reactor)
        self._descriptor = descriptor
        self._ended = ended
        self._said = b""
        os.set_blocking(descriptor, False)
        self.startReading()

    def fileno(self) -> int:
        return self._descriptor

    def doRead(self) -> Exception | None:
        said = os.read(self._descriptor, _REPORT_BYTES)
        self._said += said
        return None if said else CONNECTION_DONE

    def connectionLost(self, reason: Failure) -> None:
        super().connectionLost(reason)
        os.close(self._descriptor)
        self._descriptor = -1
        self._ended(self._said)


class ForkCopier:
    """One copy at a time."""

    _log = Logger("raftd.snapshot")

    def __init__(self, reactor: Any, stall_s: float = SNAPSHOT_STALL_S) -> None:
        """A copy whose file has not grown for `stall_s` is given up."""
        self._reactor = reactor
        self._stall_s = stall_s
        #: How long this process has stood still in forks, ever, and how much of that its thread has worked.
        self.forked_s = 0.0
        self.forked_work_s = 0.0
        # looked up before the fork: afterwards a lock of the loader may be held by a thread that is not there
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl

    def write(self, path: str, parts: Callable[[], Iterator[bytes]], done: Done) -> None:
        """See `Copier`. An error says why there is no file, or none that counts."""
        parent = os.getpid()
        started_s, worked_s = time.monotonic(), time.thread_time()
        try:
            report, report_to = os.pipe()
        except OSError as error:  # no descriptors
            self._reactor.callLater(0, done, error)
            return
        try:
            child = os.fork()
        except OSError as error:  # no memory
            os.close(report)
            os.close(report_to)
            self._reactor.callLater(0, done, error)
            return
        if child == 0:
            self._be_child(parent, report_to, path, parts)
        forked_s = time.monotonic() - started_s
        self.forked_s += forked_s
        self.forked_work_s += time.thread_time() - worked_s
        os.close(report_to)

        is_given_up = False
        watch: Any = None

        def ended(said: bytes) -> None:
            _, status = os.waitpid(child, 0)
            if is_given_up:
                return
            watch.cancel()
            took_s = time.monotonic() - started_s
            if os.waitstatus_to_exitcode(status) == 0:
                self._log.info(
                    "the copy of this process was made in {fork} ms; it took {seconds} s and {own} of memory of its own",
                    fork=round(forked_s * 1000, 1),
                    seconds=round(took_s, 2),
                    own=said.decode(),
                )
                done(None)
            else:
                why = said.decode("utf-8", "replace") or f"it ended with status {os.waitstatus_to_exitcode(status)}"
                done(OSError(f"the copy of this process that wrote it has failed: {why}"))

        def poll(before: int) -> None:
            nonlocal is_given_up, watch
            size = _size(path)
            if size > before:
                watch = self._reactor.callLater(self._stall_s, poll, size)
                return
            is_given_up = True
            os.kill(child, signal.SIGKILL)  # not reaped yet: the number is still its own
            done(OSError(f"the copy of this process that wrote it was ended: its file has not grown for {self._stall_s:g} s"))

        watch = self._reactor.callLater(self._stall_s, poll, -1)
        _Report(self._reactor, report, ended)

    def _be_child(self, parent: int, report_to: int, path: str, parts: Callable[[], Iterator[bytes]]) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)  # it has died already
            gc.disable()
            null = os.open(os.devnull, os.O_RDWR)
            for descriptor in range(3):
                os.dup2(null, descriptor)
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            os.closerange(3, report_to)
            os.closerange(report_to + 1, MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft)
            os.nice(_NICE)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb", buffering=1 << 20) as file:
                for part in parts():
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            os.write(report_to, _own_memory().encode())
            os._exit(0)
        except BaseException as error:
            os.write(report_to, str(error).encode()[:_REPORT_BYTES])
        finally:
            os._exit(1)


def _size(path: str) -> int:
    """0 if there is no such file yet."""
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


def _own_memory() -> str:
    """Return the memory that this process does not share."""
    try:
        with open("/proc/self/smaps_rollup", encoding="ascii") as file:
            kib = sum(int(line.split()[1]) for line in file if line.startswith("Private_"))
    except OSError:
        return "an unknown amount"
    return f"{kib >> 10} MB"

"""Producers and workers that continue through any failure, and record every answer.

Each is a thread with a plain beanstalkd client (greenstalk) that knows nothing of raftd; when its connection is
lost it goes to the next node. What a client cannot know is kept apart from what it knows: a put whose answer never
came may have happened, and so may a delete.
"""

from __future__ import annotations

import itertools
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable

import greenstalk

#: How greenstalk says that a connection is gone: in the middle of an answer it finds its own assumption wrong.
from raftd.client import HostPort

_LOST = (OSError, AssertionError)

_ANSWER_S = 20.0
_RECONNECT_S = 0.02
_RESERVE_S = 1
_JOIN_S = 40.0
_POLL_S = 0.05


def connect(address: HostPort) -> greenstalk.Client[bytes]:
    """A client that waits a bounded time for any answer. Raises OSError."""
    connection = socket.create_connection(address, timeout=_ANSWER_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return greenstalk.Client(connection, encoding=None)


class Workload:
    """`producers` and `workers` spread over the line listeners at `addresses`.

    `pause_s` is the longest that a producer rests between two puts.
    """

    def __init__(self, addresses: list[HostPort], producers: int, workers: int, pause_s: float = 0.004) -> None:
        self._addresses = addresses
        self._pause_s = pause_s
        #: Jobs whose put was answered, with the moment (monotonic seconds) of the answer.
        self.acknowledged: dict[bytes, float] = {}
        #: How many puts were never answered. Their jobs may be there or not, and are worked if they are.
        self.unanswered_puts = 0
        #: How often the delete of each job was answered with DELETED: more than once would be a double.
        self.worked: Counter[bytes] = Counter()
        #: Jobs whose delete was asked for and never answered: gone, or given to another worker.
        self.perhaps_worked: set[bytes] = set()
        #: How often each job was handed out: more than once if a worker's connection was lost while it held it.
        self.handed_out: Counter[bytes] = Counter()
        #: What ended a thread that should not have ended.
        self.errors: list[BaseException] = []
        self._stop_putting = threading.Event()
        self._stop_working = threading.Event()
        self._lock = threading.Lock()
        self._producers = [self._thread(self._produce, number) for number in range(producers)]
        self._workers = [self._thread(self._work, number) for number in range(workers)]

    def _thread(self, target: Callable[[int], None], number: int) -> threading.Thread:
        def run() -> None:
            try:
                target(number)
            except BaseException as error:  # a thread must not die unseen
                self.errors.append(error)

        return threading.Thread(target=run, daemon=True)

    # -- for who watches ----------------------------------------------------------------------

    def start(self) -> None:
        for thread in self._producers + self._workers:
            thread.start()

    def stop_putting(self) -> None:
        """Stop the producers after their current answers, without waiting."""
        self._stop_putting.set()

    def finish_putting(self) -> None:
        """Every producer has ended. Raises TimeoutError."""
        self.stop_putting()
        self._join(self._producers)

    def finish(self, timeout_s: float = 60.0) -> None:
        """Let the workers empty the queue, then end them. Raises TimeoutError, or what ended a thread before."""
        self.finish_putting()
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self.missing() and not self.errors:
            time.sleep(_POLL_S)  # for other threads, which have no event for it
        self._stop_working.set()
        self._join(self._workers)
        if self.errors:
            raise self.errors[0]

    def _join(self, threads: list[threading.Thread]) -> None:
        for thread in threads:
            thread.join(_JOIN_S)
            if thread.is_alive():
                raise TimeoutError(f"a client has waited {_JOIN_S:g} s for an answer")

    def missing(self) -> set[bytes]:
        """Acknowledged, and not worked, as far as is known now."""
        with self._lock:
            return set(self.acknowledged) - set(self.worked) - self.perhaps_worked

    def counts(self) -> tuple[int, int]:
        """How many were put and acknowledged so far, and how many of those were worked."""
        with self._lock:
            return len(self.acknowledged), len(self.acknowledged.keys() & self.worked.keys())

    def doubled(self) -> int:
        """Deletes that were answered with DELETED for a job that was deleted already."""
        return sum(self.worked.values()) - len(self.worked)

    def longest_gap_s(self, since: float, until: float) -> float:
        """The longest time between two acknowledged puts of anybody, between two moments."""
        with self._lock:
            times = sorted(at for at in self.acknowledged.values() if since <= at <= until)
        return max(later - earlier for earlier, later in itertools.pairwise([since, *times, until]))

    # -- the threads --------------------------------------------------------------------------

    def _connect(self, number: int, stop: threading.Event) -> greenstalk.Client[bytes] | None:
        for place in itertools.count(number):
            if stop.is_set():
                break
            try:
                return connect(self._addresses[place % len(self._addresses)])
            except OSError:
                stop.wait(_RECONNECT_S)
        return None

    def _produce(self, number: int) -> None:
        client, pause = None, random.Random(number)
        for count in itertools.count(1):
            client = client or self._connect(number, self._stop_putting)
            if client is None or self._stop_putting.is_set():
                return
            body = b"producer %d job %d" % (number, count)
            try:
                client.put(body)
            except _LOST:
                client.close()
                client = None
                with self._lock:
                    self.unanswered_puts += 1
                continue
            with self._lock:
                self.acknowledged[body] = time.monotonic()
            self._stop_putting.wait(pause.random() * self._pause_s)

    def _work(self, number: int) -> None:
        client = None
        while not self._stop_working.is_set():
            client = client or self._connect(number, self._stop_working)
            if client is None:
                return
            job = None
            try:
                job = client.reserve(_RESERVE_S)
                with self._lock:
                    self.handed_out[job.body] += 1
                client.delete(job)
                with self._lock:
                    self.worked[job.body] += 1
            except (greenstalk.TimedOutError, greenstalk.DeadlineSoonError, greenstalk.NotFoundError):
                pass  # nothing to do now; or the job was given to another worker meanwhile
            except _LOST:
                client.close()
                client = None
                if job is not None:
                    with self._lock:
                        self.perhaps_worked.add(job.body)

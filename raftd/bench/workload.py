"""Producers and workers that continue through any failure, and record every answer.

Each is a thread with a client of its own. What a client cannot know is kept apart from what it knows: a put whose answer never came may
have happened, and so may a delete.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable

from raftd.client.address import HostPort
from raftd.client.blocking import Client
from raftd.client.errors import LostReservation, OutcomeUnknown, TimedOut, Unreachable

_TUBE = "default"
_TIMEOUT_S = 20.0
_RESERVE_S = 1.0
_JOIN_S = 40.0
_POLL_S = 0.05
#: What became of it is not known.
_LOST = (OutcomeUnknown, TimedOut)


class Workload:
    """`producers` and `workers` spread over the listeners at `addresses`.

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

    def _client(self, number: int) -> Client:
        """It begins at one of the nodes and learns of the others."""
        host, port = self._addresses[number % len(self._addresses)]
        return Client(f"raftd://{host}:{port}", timeout=_TIMEOUT_S)

    def _produce(self, number: int) -> None:
        pause = random.Random(number)
        with self._client(number) as client:
            for count in itertools.count(1):
                if self._stop_putting.is_set():
                    return
                body = b"producer %d job %d" % (number, count)
                try:
                    client.put(_TUBE, body)
                except _LOST:
                    with self._lock:
                        self.unanswered_puts += 1
                    continue
                except Unreachable:
                    continue
                with self._lock:
                    self.acknowledged[body] = time.monotonic()
                self._stop_putting.wait(pause.random() * self._pause_s)

    def _work(self, number: int) -> None:
        with self._client(number) as client:
            while not self._stop_working.is_set():
                try:
                    job = client.reserve(_TUBE, timeout=_RESERVE_S)
                except (Unreachable, *_LOST):
                    continue
                if job is None:
                    continue
                with self._lock:
                    self.handed_out[job.body] += 1
                try:
                    job.delete()
                except LostReservation:
                    continue  # it was given to another worker meanwhile
                except (Unreachable, *_LOST):
                    with self._lock:
                        self.perhaps_worked.add(job.body)
                    continue
                with self._lock:
                    self.worked[job.body] += 1

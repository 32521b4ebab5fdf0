"""Producers and workers that go on through any failure, and remember what they were told."""

from __future__ import annotations

import random
import threading
import time

from tests.processes.harness import Closed, LineClient, ProcessCluster


class Load:
    """`producers` and `workers` threads spread over the nodes. An acknowledged put is in `acknowledged`;
    a job whose delete was acknowledged is in `worked`; one whose delete was asked for and never answered may
    be gone too, and is in `perhaps_worked`."""

    def __init__(self, cluster: ProcessCluster, producers: int, workers: int) -> None:
        self.cluster = cluster
        self.acknowledged: dict[bytes, float] = {}
        self.worked: dict[bytes, int] = {}
        self.perhaps_worked: set[bytes] = set()
        self.stop_putting = threading.Event()
        self.stop_working = threading.Event()
        self.errors: list[BaseException] = []
        self._lock = threading.Lock()
        self._producers = [self._thread(self._produce, number) for number in range(producers)]
        self._workers = [self._thread(self._work, number) for number in range(workers)]

    def _thread(self, target, number: int) -> threading.Thread:
        def run() -> None:
            try:
                target(number)
            except BaseException as error:  # a thread must not die unseen
                self.errors.append(error)

        return threading.Thread(target=run, daemon=True)

    def start(self) -> None:
        for thread in self._producers + self._workers:
            thread.start()

    def finish_putting(self) -> None:
        self.stop_putting.set()
        for thread in self._producers:
            thread.join(timeout=40)
            assert not thread.is_alive(), "a producer hangs"

    def finish(self, timeout_s: float = 60) -> None:
        """Let the workers empty the queue."""
        self.finish_putting()
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self.missing():
            time.sleep(0.1)
        self.stop_working.set()
        for thread in self._workers:
            thread.join(timeout=40)
        assert self.errors == []

    def missing(self) -> set[bytes]:
        """Acknowledged, and never worked."""
        with self._lock:
            return set(self.acknowledged) - set(self.worked) - self.perhaps_worked

    def longest_gap_s(self, since: float, until: float) -> float:
        """The longest time between two acknowledged puts of anybody."""
        with self._lock:
            times = sorted(at for at in self.acknowledged.values() if since <= at <= until)
        return max(later - earlier for earlier, later in zip([since, *times], [*times, until], strict=True))

    def _connect(self, number: int, stop: threading.Event) -> LineClient | None:
        place = number
        while not stop.is_set():
            node = self.cluster.nodes[place % len(self.cluster.nodes)]
            place += 1
            try:
                return LineClient(self.cluster.addresses[node]["line"], timeout_s=10)
            except Closed:
                stop.wait(0.02)
        return None

    def _produce(self, number: int) -> None:
        client, count, pause = None, 0, random.Random(number)
        while not self.stop_putting.is_set():
            client = client or self._connect(number, self.stop_putting)
            if client is None:
                return
            count += 1
            body = b"producer %d job %d" % (number, count)
            try:
                client.put(body)
            except Closed:
                client = None
                continue
            with self._lock:
                self.acknowledged[body] = time.monotonic()
            self.stop_putting.wait(pause.random() * 0.004)

    def _work(self, number: int) -> None:
        client = None
        while not self.stop_working.is_set():
            client = client or self._connect(number, self.stop_working)
            if client is None:
                return
            job = None
            try:
                job = client.reserve(1)
                if job is not None and client.delete(job[0]):
                    with self._lock:
                        self.worked[job[1]] = self.worked.get(job[1], 0) + 1
            except Closed:
                client = None
                if job is not None:
                    with self._lock:
                        self.perhaps_worked.add(job[1])

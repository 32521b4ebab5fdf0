"""A `Workload` of plain beanstalkd clients (greenstalk), which know nothing of raftd: when a connection is lost, its client goes to the
next node."""

from __future__ import annotations

import itertools
import random
import socket
import threading
import time

import greenstalk

from raftd.bench.workload import Workload
from raftd.client.address import HostPort

#: How greenstalk says that a connection is gone: in the middle of an answer it finds its own assumption wrong.
_LOST = (OSError, AssertionError)
_ANSWER_S = 20.0
_RECONNECT_S = 0.02
_RESERVE_S = 1


def connect(address: HostPort) -> greenstalk.Client[bytes]:
    """A client that waits a bounded time for any answer. Raises OSError."""
    connection = socket.create_connection(address, timeout=_ANSWER_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return greenstalk.Client(connection, encoding=None)


class LineWorkload(Workload):
    """At line listeners."""

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

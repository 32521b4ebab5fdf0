"""The thread of the disk: long jobs in the thread, short writes to a fast disk in the reactor's turn."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from time import perf_counter

from raftd.server.disk import DiskThread


class HandReactor:
    """Calls what it was asked to when the test says so."""

    def __init__(self) -> None:
        self.soon: deque[Callable[[], None]] = deque()
        self.came = threading.Semaphore(0)

    def callLater(self, seconds: float, call: Callable[..., None], *args: object) -> None:
        assert seconds == 0
        self.soon.append(lambda: call(*args))
        self.came.release()

    def callFromThread(self, call: Callable[..., None], *args: object) -> None:
        self.callLater(0, call, *args)

    def turn(self) -> None:
        assert self.came.acquire(timeout=10)
        self.soon.popleft()()


class Jobs:
    def __init__(self) -> None:
        self.reactor = HandReactor()
        self.disk = DiskThread(self.reactor, "test-disk")

    def run(self, is_small: bool = True, work: Callable[[], None] = lambda: None) -> bool:
        """Run one job to its end; whether it ran in this thread."""
        here: list[bool] = []
        ended: list[BaseException | None] = []

        def job() -> None:
            here.append(threading.current_thread() is threading.main_thread())
            work()

        self.disk.run(job, ended.append, is_small)
        assert not here or not here[0]  # never before the reactor's next turn
        while not ended:
            self.reactor.turn()
        self.error = ended[0]
        return here[0]

    def until_here(self) -> None:
        for _ in range(1_000):  # a busy machine may make some of them slow
            if self.run():
                return
        raise AssertionError("no small job ran in the reactor's turn")


def slow() -> None:
    until = perf_counter() + 0.002
    while perf_counter() < until:
        pass


def test_small_jobs_run_in_the_turn_once_the_disk_is_known_to_be_fast():
    jobs = Jobs()
    assert not jobs.run()
    jobs.until_here()
    assert not jobs.run(is_small=False)


def test_after_a_slow_job_the_next_run_in_the_thread():
    jobs = Jobs()
    jobs.until_here()
    jobs.run(work=slow)
    assert not jobs.run()
    jobs.until_here()


def test_an_error_is_handed_over_wherever_the_job_ran():
    def fails() -> None:
        raise OSError("no such luck")

    jobs = Jobs()
    assert not jobs.run(work=fails)
    assert isinstance(jobs.error, OSError)
    jobs.until_here()
    jobs.run(work=fails)
    assert isinstance(jobs.error, OSError)

"""The worker for `async def` functions, each job a task."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from raftd.client.asynchronous import AsyncClient, AsyncJob
from raftd.errors import RaftdError
from raftd.work.options import TELL_S, Connected, Options, end_now, log
from raftd.work.outcome import line, outcome_of
from raftd.work.signals import on_stop

_LOOK_S = 1.0
#: So long (seconds) tasks may take to end once they are cancelled, and who is told to end at once.
_CANCELLED_S = 3.0
_AT_ONCE_S = 0.5


class Tasks:
    """As `Threads`. A job that is lost, or not done when its grace is over, has its task cancelled."""

    def __init__(self, options: Options, function: Callable[[AsyncJob], Awaitable[Any]]) -> None:
        self._options = options
        self._function = function
        self._tasks: set[asyncio.Task[None]] = set()
        self._signals: asyncio.Queue[int] = asyncio.Queue()
        self._signalled = 0

    async def run(self) -> int:
        """The exit status: 0 if everything that was begun has been done. Raises RaftdError."""
        loop = asyncio.get_running_loop()
        on_stop(lambda number: self._signal(loop, number))
        log.info("working jobs of %s, %d at a time", ", ".join(self._options.tubes), self._options.at_once)
        async with AsyncClient(self._options.url, name="raftd work", timeout=TELL_S) as client:
            looking = loop.create_task(self._look(client))
            taking = loop.create_task(self._take(client))
            first = loop.create_task(self._signals.get())
            await asyncio.wait({taking, first}, return_when=asyncio.FIRST_COMPLETED)
            taking.cancel()
            with suppress(asyncio.CancelledError):
                await taking
            if self._tasks:
                log.warning("stopping: %d jobs have %g s to end", len(self._tasks), self._options.grace_s)
            second = loop.create_task(self._signals.get())
            await self._until_done(self._options.grace_s, second)
            status = 128 + second.result() if second.done() else int(bool(self._tasks))
            for task in self._tasks:
                task.cancel("the worker stops")
            await self._until_done(_AT_ONCE_S if second.done() else _CANCELLED_S)
            for task in self._tasks:
                task.cancel("the worker stops")  # commands that do not end by themselves are killed now
            await self._until_done(_AT_ONCE_S)
            looking.cancel()
        return status

    def _signal(self, loop: asyncio.AbstractEventLoop, number: int) -> None:
        """The loop is told; one that a function blocks is not waited for."""
        self._signalled += 1
        longest_s = self._options.grace_s + 2 * _CANCELLED_S if self._signalled == 1 else _CANCELLED_S
        ending = threading.Timer(longest_s, end_now, (128 + number,))
        ending.daemon = True
        ending.start()
        loop.call_soon_threadsafe(self._signals.put_nowait, number)

    async def _until_done(self, seconds: float, *others: asyncio.Task[Any]) -> None:
        """Until no job is being worked, one of the others is done, or the time is over."""
        deadline_s = time.monotonic() + seconds
        while self._tasks and not any(other.done() for other in others) and (left_s := deadline_s - time.monotonic()) > 0:
            await asyncio.wait({*self._tasks, *others}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)

    async def _look(self, client: AsyncClient) -> None:
        connected = Connected()
        while True:
            connected.look(client.trouble, time.monotonic())
            await asyncio.sleep(_LOOK_S)  # nothing tells of it

    async def _take(self, client: AsyncClient) -> None:
        free = asyncio.Semaphore(self._options.at_once)
        jobs = client.jobs(*self._options.tubes, prefetch=self._options.prefetch)
        try:
            while True:
                await free.acquire()
                job = await anext(jobs)
                task = asyncio.create_task(self._work(job))
                job.when_lost(task.cancel)
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                task.add_done_callback(lambda task: free.release())
        finally:
            jobs.stop()

    async def _work(self, job: AsyncJob) -> None:
        began_s = time.monotonic()
        error: BaseException | None = None
        try:
            await self._function(job)
        except BaseException as raised:  # sys.exit(), too, fails the job and does not end the worker
            error = raised
            if asyncio.current_task().cancelling():  # type: ignore[union-attr]  # by this worker, whatever the function makes of it
                await self._stopped(job, began_s)
                return
        outcome = outcome_of(error, self._options.retry_delay_s)
        try:
            told = outcome.tell(job)
            if told is not None:
                await told
            outcome.say(job, began_s, error, self._options.shows_tracebacks)
        except RaftdError as reason:
            outcome.say_unheard(job, began_s, reason)

    async def _stopped(self, job: AsyncJob, began_s: float) -> None:
        if job.lost:
            log.warning(line(job, began_s, "cancelled, for it is held no more: another worker may have it"))
            return
        with suppress(RaftdError):
            await job.release()
        log.warning(line(job, began_s, "released, for the worker stops"))

"""The client for asyncio: every call is awaited.

>>> import asyncio
>>> from raftd.client import AsyncClient
>>> async def work():
...     async with AsyncClient() as queue:  # at $RAFTD_URL, or the node of this machine
...         await queue.put("mail", "hello")
...         async for job in queue.jobs("mail", prefetch=8):
...             async with job:  # success deletes it, an exception fails it
...                 print(job.text)
...             return
>>> asyncio.run(work())
hello
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import datetime
from random import SystemRandom
from types import TracebackType
from typing import Any, Self, TypeVar

from raftd.client import calls
from raftd.client.address import addresses_of, url_or_default
from raftd.client.calls import (
    Body,
    Call,
    Finished,
    JobInfo,
    JobView,
    OnlyOne,
    Policies,
    PolicyDocument,
    ScheduleDocument,
    ScheduleInfo,
    Stats,
    Step,
    TubePolicy,
    Until,
)
from raftd.client.core import Core, Held, Subscription
from raftd.client.credentials import credentials_of
from raftd.client.errors import LostReservation, OutcomeUnknown, Unreachable
from raftd.client.retry import Retry
from raftd.client.tls import files_of, why
from raftd.jobs import replies as r
from raftd.jobs.asks import Action, Selection

T = TypeVar("T")

_CONNECT_S = 2.0
_CLOSE_S = 3.0


class AsyncJob(JobView):
    """A reserved job. As a context (`async with`): success deletes it, an exception fails it, a cancellation releases it. It is touched
    until it is done. Every method raises LostReservation if it is held no more."""

    def __init__(self, client: AsyncClient, held: Held) -> None:
        super().__init__(held.job)
        self._client = client
        self._held = held

    @property
    def lost(self) -> bool:
        """It is held no more, though it was not done: another worker may have it."""
        return self._held.lost

    @property
    def is_held(self) -> bool:
        """It is neither done nor lost."""
        return self._client.core.is_held(self._held)

    def when_lost(self, call: Callable[[], object]) -> None:
        """`call` is called once, when the cluster says that the job is held no more."""
        self._held.when_lost = call
        if self._held.lost:
            call()

    async def delete(self, result: Body = b"") -> None:
        """It is done. `result`: what came of it, kept for a while if the policy of its tube says so."""
        await self._client._finish(self._held, calls.deleted(self, result))

    async def release(self, delay: float = 0, priority: int | None = None) -> None:
        """Another worker is to do it; no failed attempt."""
        await self._client._finish(self._held, calls.released(self, delay, priority))

    async def snooze(self, delay: float) -> None:
        """It is to be done later; no failed attempt."""
        await self.release(delay)

    async def fail(self, error: BaseException | str = "", delay: float = 0, *, unless_backoff: bool = False) -> None:
        """The attempt has failed; `error` is kept with the job. It waits for `delay`, or 0: as long as the policy of its tube says;
        `unless_backoff`: for `delay` only if that says nothing."""
        await self._client._finish(self._held, calls.failed(self, error, delay, unless_backoff))

    async def bury(self, error: BaseException | str = "", priority: int | None = None) -> None:
        """Put it aside until it is kicked; `error` is kept with the job."""
        await self._client._finish(self._held, calls.buried(self, priority, error))

    async def touch(self) -> None:
        """Its time to run begins anew. This happens by itself, too."""
        await self._client._about(self._held, calls.touched(self))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.is_held:
            if error is None:
                await self.delete()
            elif isinstance(error, Exception):
                await self.fail(error)
            else:
                await self.release()  # the worker is told to stop: that is no failure of the job
        elif error is None and self.lost:
            raise LostReservation(f"job {self.id} is held no more: another worker may have it")


class AsyncClient:
    """A client of the cluster at `url` (see `addresses_of`), for one event loop; it connects as a context, or with the first call.

    `timeout`: how long a call may take (seconds), and a reserve so long after its own timeout. Calls raise `Unreachable`, `TimedOut`,
    `OutcomeUnknown` or `Refused`, all of them `RaftdError`."""

    #: What makes its `core`; one that records stands in for it where a run is judged.
    core_type: type[Core] = Core

    def __init__(
        self, url: str | None = None, *, name: str = "", timeout: float = 30.0, retry: Retry | None = None, cluster: str = ""
    ) -> None:
        self.core = self.core_type(addresses_of(url), name, SystemRandom(), retry or Retry(), cluster)
        self._tls = files_of(url_or_default(url))
        self._credentials = credentials_of(url_or_default(url))
        if self._tls is not None:
            self._tls.context()  # fails now if they cannot be used; each connection reads them anew
        self._timeout_s = timeout
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._stopped = False

    # -- jobs ---------------------------------------------------------------------------------

    async def put(
        self,
        tube: str,
        body: Body,
        *,
        delay: float = 0,
        run_at: datetime | None = None,
        ttr: float | None = None,
        priority: int | None = None,
        key: str | None = None,
    ) -> int:
        """Put a job; its id. With a `key` that was used within the hour, for the same, nothing is put, and the id is that of then.
        `run_at`: when it is ready, instead of a `delay`. Without a time to run, or a priority, it has that of the tube's policy, or 60
        seconds, and 65,536."""
        return (await self._call(calls.put(tube, [body], calls.delay_until(run_at, delay), ttr, priority, key)))[0]

    async def put_unique(
        self,
        tube: str,
        body: Body,
        unique: str,
        *,
        until: Until = "deleted",
        unique_for: float | None = None,
        delay: float = 0,
        run_at: datetime | None = None,
        ttr: float | None = None,
        priority: int | None = None,
        key: str | None = None,
    ) -> OnlyOne:
        """Put a job, unless the tube has one that was put with the same `unique`: (id, is_new). `until` that is deleted, or dead; or until
        it is reserved for the first time; for `unique_for` seconds at most. The rest is as with `put`."""
        delay = calls.delay_until(run_at, delay)
        return await self._call(calls.put_unique(tube, body, delay, ttr, priority, key, unique, until, unique_for))

    async def put_many(
        self,
        tube: str,
        bodies: Iterable[Body],
        *,
        delay: float = 0,
        ttr: float | None = None,
        priority: int | None = None,
        key: str | None = None,
    ) -> list[int]:
        """Put up to 1,000 jobs at once, all or none; their ids."""
        return await self._call(calls.put(tube, bodies, delay, ttr, priority, key))

    async def reserve(self, *tubes: str, timeout: float | None = None) -> AsyncJob | None:
        """The most urgent job of these tubes; None if there is none within `timeout` (None: wait for ever)."""
        found = await self.reserve_many(*tubes, count=1, timeout=timeout)
        return found[0] if found else None

    async def reserve_many(self, *tubes: str, count: int, timeout: float | None = None) -> list[AsyncJob]:
        """Up to `count` jobs that are ready (100 at most), or the first that is within `timeout`."""
        jobs = await self._call(calls.reserve(tubes or ("default",), count, timeout))
        return [AsyncJob(self, self.core.held[job.id, job.token]) for job in jobs if (job.id, job.token) in self.core.held]

    def jobs(self, *tubes: str, prefetch: int = 1) -> AsyncJobs:
        """Jobs of these tubes as they come, for ever, or until they are stopped or the client is closed. Up to `prefetch` are held at a
        time: each that was taken must be done before another comes."""
        self._begin_loop()
        return AsyncJobs(self, list(tubes or ("default",)), prefetch)

    async def delete(self, job: int, token: int = 0) -> None:
        """Delete a job that nobody holds, or the one that was reserved with this token. Raises NotFound."""
        await self._call(calls.delete(job, token))

    async def release(self, job: int, token: int, delay: float = 0, priority: int | None = None) -> None:
        """Release the job that was reserved with this token. Raises NotFound."""
        await self._call(calls.release(job, token, delay, priority))

    async def bury(self, job: int, token: int, error: str = "", priority: int | None = None) -> None:
        """Bury the job that was reserved with this token. Raises NotFound."""
        await self._call(calls.bury(job, token, priority, error))

    async def kick(self, tube: str, count: int = 1) -> int:
        """Make buried jobs of the tube ready, or if there are none delayed ones; how many."""
        return await self._call(calls.kick(tube, count))

    async def kick_job(self, job: int) -> None:
        """Make a buried or delayed job ready. Raises NotFound."""
        await self._call(calls.kick_job(job))

    async def peek(self, job: int) -> JobInfo | None:
        """How a job is; None if there is none."""
        return await self._call(calls.peek(job))

    async def result(self, job: int) -> Finished | None:
        """What came of a job that a worker has finished; None if its tube retains none, or not for so long."""
        return await self._call(calls.result(job))

    async def peek_next(self, tube: str, state: str = "ready") -> JobInfo | None:
        """The job that would be reserved next, or the next that is delayed or buried."""
        return await self._call(calls.peek_next(tube, state))

    async def pause(self, tube: str, seconds: float) -> None:
        """Nothing is reserved from the tube for so long; 0 ends that. Raises NotFound."""
        await self._call(calls.pause(tube, seconds))

    async def stats(self, tube: str) -> Stats | None:
        """How a tube is; None if there is none."""
        return await self._call(calls.stats(tube))

    async def tubes(self) -> AsyncIterator[Stats]:
        """All tubes, by name."""
        after, has_more = "", True
        while has_more:
            found, has_more = await self._call(calls.tubes(after))
            for tube in found:
                yield tube
            after = found[-1].tube if found else after

    # -- policies of tubes (docs/queues.md) ----------------------------------------------------

    async def set_policy(self, tube: str, policy: PolicyDocument | Mapping[str, Any] | None, version: int | None = None) -> int:
        """What the tube does by itself from now on; None: nothing. With a `version`, only if its policy has that one (0: if it has none).
        Returns the new version. Raises Conflict, and Refused for a policy that cannot be."""
        return await self.set_policies({tube: policy}, {} if version is None else {tube: version})

    async def set_policies(self, policies: Policies, versions: Mapping[str, int] | None = None) -> int:
        """Many, by tube: all of them or none."""
        return await self._call(calls.set_policies(policies, versions or {}))

    async def policy(self, tube: str) -> TubePolicy | None:
        """That of a tube; None if it has none."""
        return await self._call(calls.policy(tube))

    async def policies(self) -> AsyncIterator[TubePolicy]:
        """All, by the names of their tubes."""
        after, has_more = "", True
        while has_more:
            found, has_more = await self._call(calls.policies(after))
            for policy in found:
                yield policy
            after = found[-1].tube if found else after

    async def count_dead(
        self, tube: str, *, error: str = "", origin: str = "", older: float = 0, newer: float | None = None
    ) -> tuple[int, Selection]:
        """How many jobs of the tube are buried, or dead letters: whose last error has `error` in it, that died in the tube `origin`, that
        are dead or buried for `older` seconds at least and `newer` at most. The result says how many and which: give that to `replay`, and
        what dies or is buried later is not touched."""
        part = await self._call(calls.count_dead(Selection(tube, error, origin), older, newer, 0))
        count = part.found
        while part.after is not None:
            part = await self._call(calls.count_dead(part.which, 0, None, part.after))
            count += part.found
        return count, part.which

    async def replay(self, which: Selection, action: Action = "move", to: str = "") -> tuple[int, int]:
        """Move the dead and buried jobs that `count_dead` has found `to` a tube, or each to where it died; or `kick` those that are
        buried; or `delete` them. In steps, of which nothing is done twice, whatever happens meanwhile. The result says how many were, and
        how many could not be: their tube is full, or there is nowhere to go."""
        done = skipped = 0
        after: int | None = 0
        while after is not None:
            step = await self.replay_step(which, action, to, after)
            done, skipped, after = done + step.done, skipped + step.skipped, step.after
        return done, skipped

    async def replay_step(self, which: Selection, action: Action = "move", to: str = "", after: int = 0) -> Step:
        """One step of `replay`, of the jobs with ids behind `after`."""
        return await self._call(calls.replay(which, action, to, after))

    # -- schedules (docs/queues.md) ------------------------------------------------------------

    async def set_schedule(self, name: str, schedule: ScheduleDocument | Mapping[str, Any] | None, version: int | None = None) -> int:
        """Put jobs by themselves, as the schedule says; None: no more. With a `version`, only if it has that one (0: if there is none).
        Returns the new version. Raises Conflict, and Refused for a schedule that cannot be."""
        return await self._call(calls.set_schedule(name, schedule, version))

    async def pause_schedule(self, name: str) -> None:
        """Occurrences from now on are not put. Raises NotFound."""
        await self._call(calls.pause_schedule(name, True))

    async def resume_schedule(self, name: str) -> None:
        """It goes on with the next occurrence. Raises NotFound."""
        await self._call(calls.pause_schedule(name, False))

    async def run_schedule(self, name: str) -> int:
        """Put its job now; the id. Raises NotFound."""
        return await self._call(calls.run_schedule(name))

    async def schedule(self, name: str) -> ScheduleInfo | None:
        """How it is; None if there is none."""
        found, _ = await self._call(calls.schedules(name, ""))
        return found[0] if found else None

    async def schedules(self) -> AsyncIterator[ScheduleInfo]:
        """All, by name, without their bodies."""
        after, has_more = "", True
        while has_more:
            found, has_more = await self._call(calls.schedules("", after))
            for schedule in found:
                yield schedule
            after = found[-1].name if found else after

    # -- the end ------------------------------------------------------------------------------

    async def close(self) -> None:
        """End the session: jobs that are held, and not done, are released."""
        await self._end(keeps_jobs=False)

    async def leave(self) -> None:
        """End the session, but not its reservations: jobs that are held stay so until their time to run ends, for those who know their
        tokens. Raises OutcomeUnknown if no node says so: then they may be given back."""
        if not isinstance(await self._end(keeps_jobs=True), r.Ended):
            raise OutcomeUnknown(calls.NOT_LEFT)

    @property
    def trouble(self) -> str:
        """Why no node can be asked now, "" if one can. It is tried again by itself."""
        return self.core.trouble

    async def _end(self, keeps_jobs: bool) -> object:
        if self._stopped or self._loop is None:
            self._stopped = True
            return None
        ended = asyncio.Event()
        results: list[object] = []

        def done(result: object) -> None:
            results.append(result)
            ended.set()

        self.core.close(self._now_s, done, keeps_jobs)
        self._flush()
        try:
            async with asyncio.timeout(_CLOSE_S):
                await ended.wait()
        except TimeoutError:
            pass
        self._stopped = True
        self.core.abandon()
        if self._timer is not None:
            self._timer.cancel()
        if self._dialling is not None:
            self._dialling.cancel()
        if self._transport is not None:
            self._transport.abort()
        return results[0] if results else None

    async def __aenter__(self) -> Self:
        self._begin_loop()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    # -- calling ------------------------------------------------------------------------------

    async def _call(self, call: Call[T]) -> T:
        def begin(deadline_s: float, done: Callable[[Any], None]) -> None:
            if callable(call.what):
                self.core.read(call.what, deadline_s, done, self._now_s)
            else:
                self.core.ask(call.what, self._now_s, deadline_s, done)

        return await self._wait(call, begin)

    async def _finish(self, held: Held, call: Call[None]) -> None:
        what: Any = call.what
        await self._wait(call, lambda deadline_s, done: self.core.finish(held, what, self._now_s, deadline_s, done))

    async def _about(self, held: Held, call: Call[None]) -> None:
        what: Any = call.what
        await self._wait(call, lambda deadline_s, done: self.core.about(held, what, self._now_s, deadline_s, done))

    async def _wait(self, call: Call[T], begin: Callable[[float, Callable[[Any], None]], None]) -> T:
        if self._stopped:
            raise Unreachable("the client is closed")
        loop = self._begin_loop()
        told: asyncio.Future[Any] = loop.create_future()

        def done(reply: Any) -> None:
            if not told.done():
                told.set_result(reply)
            else:
                self.core.unwanted(reply)  # the caller was cancelled

        waits_s = float("inf") if call.waits_s is None else call.waits_s
        begin(self._now_s + self._timeout_s + waits_s, done)
        self._flush()
        try:
            reply = await told
        except asyncio.CancelledError:
            if told.done() and not told.cancelled():
                self.core.unwanted(told.result())
            self.core.forget(done, self._now_s)
            self._flush()
            raise
        if isinstance(reply, Exception):
            raise reply
        return call.parse(reply)

    # -- the loop -----------------------------------------------------------------------------

    @property
    def _now_s(self) -> float:
        assert self._loop is not None
        return self._loop.time()

    def _begin_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
            self._tick()
        elif self._loop is not loop:
            raise RuntimeError("an AsyncClient belongs to the event loop that it was first used in")
        return loop

    def _tick(self) -> None:
        if self._stopped or self._loop is None:
            return
        if not self.core.tick(self._now_s):
            self._drop("")
        if self.core.wants_connection(self._now_s) and self._dialling is None:
            self._dialling = self._loop.create_task(self._dial())
        self._flush()
        self._timer = self._loop.call_at(max(self.core.next_tick(), self._now_s + 0.001), self._tick)

    async def _dial(self) -> None:
        assert self._loop is not None
        host, port = self.core.address
        try:
            async with asyncio.timeout(_CONNECT_S):
                context = self._tls.context() if self._tls is not None else None
                await self._loop.create_connection(lambda: _Connection(self), host, port, ssl=context)
        except (OSError, TimeoutError, ValueError) as error:
            self.core.lost(self._now_s, f"{host}:{port}: {_why(error)}")
        finally:
            self._dialling = None

    def _made(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.core.connected(self._now_s, self._credentials.read())
        self._flush()

    def _received(self, data: bytes) -> None:
        if not self.core.received(data, self._now_s):
            self._drop("")
        self._flush()

    def _lost(self, transport: asyncio.Transport, why: str) -> None:
        if transport is self._transport:
            self._transport = None
            self.core.lost(self._now_s, why)

    def _drop(self, why: str) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        self.core.lost(self._now_s, why)

    def _flush(self) -> None:
        data = self.core.output()
        if data and self._transport is not None:
            self._transport.write(data)


class AsyncJobs:
    """Jobs as they come, for any number of tasks that iterate over it. Once it is stopped, or nobody refers to it, what was not taken is
    released."""

    def __init__(self, client: AsyncClient, tubes: list[str], prefetch: int) -> None:
        self._client = client
        self._more = asyncio.Event()
        self._subscription = Subscription(tubes, prefetch, self._more.set)
        calls.check_subscription(tubes, prefetch)
        client.core.subscribe(self._subscription, client._now_s)
        client._flush()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AsyncJob:
        """Waits for the next job. Raises StopAsyncIteration when there will be none."""
        subscription = self._subscription
        while True:
            if subscription.is_closed:
                raise StopAsyncIteration
            while subscription.ready:
                held = subscription.ready.popleft()
                if not held.lost:
                    return AsyncJob(self._client, held)
            if subscription.error is not None:
                raise subscription.error
            self._more.clear()
            await self._more.wait()

    def stop(self) -> None:
        """There will be no more: whoever waits for one is told."""
        if not self._subscription.is_closed:
            self._client.core.unsubscribe(self._subscription, self._client._now_s)
            self._client._flush()
            self._more.set()

    def __del__(self) -> None:
        self.stop()


def _why(error: Exception) -> str:
    """Why there is no connection: asyncio's own words name the address once more."""
    is_plain = isinstance(error, OSError) and error.errno and type(error).__module__ != "ssl"
    return os.strerror(error.errno) if is_plain else why(error) or "timed out"  # type: ignore[attr-defined]


class _Connection(asyncio.Protocol):
    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._client._made(self._transport)

    def data_received(self, data: bytes) -> None:
        if self._client._transport is self._transport:
            self._client._received(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._client._lost(self._transport, str(error) if error is not None else "the node has closed the connection")

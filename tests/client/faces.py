"""The three clients under one way of calling, so that one suite tests them all: every call waits for its result."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.epollreactor import EPollReactor

from raftd.client import AsyncClient, AsyncJob, Client, Job, TwistedClient, TwistedJob

#: Longer than any call of the tests takes.
PATIENCE_S = 60


class _Waited:
    """Of a client or a job: calls wait, jobs that they give are of this kind too."""

    def __init__(self, inner: Any, wait: Callable[[Callable[[], Any]], Any]) -> None:
        self.inner = inner
        self._wait = wait

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.inner, name)
        if not callable(value):
            return value
        return lambda *args, **keywords: self._wrapped(self._wait(lambda: value(*args, **keywords)))

    def _wrapped(self, result: Any) -> Any:
        if isinstance(result, list):
            return [self._wrapped(one) for one in result]
        return _Waited(result, self._wait) if isinstance(result, AsyncJob | TwistedJob) else result

    def jobs(self, *tubes: str, prefetch: int = 1) -> Iterator[Any]:
        if isinstance(self.inner, AsyncClient):

            async def begin() -> Any:
                return self.inner.jobs(*tubes, prefetch=prefetch)

            async def stop() -> None:
                jobs.stop()

            jobs = self._wait(begin)
            try:
                while True:
                    yield self._wrapped(self._wait(jobs.__anext__))
            except StopAsyncIteration:
                return
            finally:
                self._wait(stop)
        found = self._wait(lambda: self.inner.jobs(*tubes, prefetch=prefetch))
        try:
            while True:
                yield self._wrapped(self._wait(found.get))
        finally:
            self._wait(found.stop)

    def tubes(self) -> list[Any]:
        if isinstance(self.inner, AsyncClient):

            async def all_of_them() -> list[Any]:
                return [tube async for tube in self.inner.tubes()]

            return self._wait(all_of_them)
        return self._wait(self.inner.tubes)

    def policies(self) -> list[Any]:
        if isinstance(self.inner, AsyncClient):

            async def all_of_them() -> list[Any]:
                return [policy async for policy in self.inner.policies()]

            return self._wait(all_of_them)
        return self._wait(self.inner.policies)

    def schedules(self) -> list[Any]:
        if isinstance(self.inner, AsyncClient):

            async def all_of_them() -> list[Any]:
                return [schedule async for schedule in self.inner.schedules()]

            return self._wait(all_of_them)
        return self._wait(self.inner.schedules)


def _in_asyncio() -> Callable[[Callable[[], Any]], Any]:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    def wait(call: Callable[[], Any]) -> Any:
        async def awaited() -> Any:
            return await call()

        return asyncio.run_coroutine_threadsafe(awaited(), loop).result(PATIENCE_S)

    return wait


def _in_a_reactor() -> tuple[Any, Callable[[Callable[[], Any]], Any]]:
    reactor = EPollReactor()
    threading.Thread(target=reactor.run, args=(False,), daemon=True).start()

    def wait(call: Callable[[], Any]) -> Any:
        told = threading.Event()
        result: list[Any] = []

        def done(value: Any) -> None:
            result.append(value)
            told.set()

        def begin() -> None:
            try:
                value = call()
            except Exception as error:  # whatever the call raises belongs to the thread that waits
                done(error)
                return
            if isinstance(value, Deferred):
                value.addCallbacks(done, lambda failure: done(failure.value))
            else:
                done(value)

        reactor.callFromThread(begin)
        assert told.wait(PATIENCE_S)
        if isinstance(result[0], BaseException):
            raise result[0]
        return result[0]

    return reactor, wait


def blocking(url: str, **options: Any) -> Any:
    return Client(url, **options)


def asynchronous(url: str, **options: Any) -> Any:
    return _Waited(AsyncClient(url, **options), _in_asyncio())


def deferred(url: str, **options: Any) -> Any:
    reactor, wait = _in_a_reactor()
    client: Any = _Waited(TwistedClient(url, reactor=reactor, **options), wait)
    client.startService()
    client.close = client.stopService
    return client


FACES = {"Client": blocking, "AsyncClient": asynchronous, "TwistedClient": deferred}
__all__ = ["FACES", "Job"]

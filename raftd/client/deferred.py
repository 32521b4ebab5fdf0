"""The client for Twisted: every call gives a Deferred. It is a Service, so it starts and stops with an application.

>>> from twisted.internet.task import react
>>> from raftd.client import TwistedClient
>>> async def work(reactor):
...     queue = TwistedClient()  # at $RAFTD_URL, or the node of this machine
...     queue.startService()  # or queue.setServiceParent(application)
...     await queue.put("mail", "hello")
...     job = await queue.reserve("mail", timeout=10)
...     print(job.text)
...     await job.delete()
...     await queue.stopService()
>>> react(work)  # doctest: +IGNORE_EXCEPTION_DETAIL
Traceback (most recent call last):
SystemExit: 0
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from random import SystemRandom
from typing import Any, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ClientFactory, Protocol, connectionDone
from twisted.python.failure import Failure

from raftd.client import calls
from raftd.client.address import addresses_of, url_or_default
from raftd.client.calls import (
    Body,
    Call,
    Counted,
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
from raftd.client.errors import OutcomeUnknown, Unreachable
from raftd.client.retry import Retry
from raftd.client.tls import TlsFiles, files_of
from raftd.jobs import replies as r
from raftd.jobs.asks import Action, Selection

T = TypeVar("T")

_CONNECT_S = 2
_CLOSE_S = 3.0


class TwistedJob(JobView):
    """A reserved job. It is touched until it is done. Every Deferred fails with LostReservation if it is held no more."""

    def __init__(self, client: TwistedClient, held: Held) -> None:
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

    def delete(self, result: Body = b"") -> Deferred[None]:
        """It is done. `result`: what came of it, kept for a while if the policy of its tube says so."""
        return self._client._finish(self._held, calls.deleted(self, result))

    def release(self, delay: float = 0, priority: int | None = None) -> Deferred[None]:
        """Another worker is to do it; no failed attempt."""
        return self._client._finish(self._held, calls.released(self, delay, priority))

    def snooze(self, delay: float) -> Deferred[None]:
        """It is to be done later; no failed attempt."""
        return self.release(delay)

    def fail(self, error: BaseException | str = "", delay: float = 0, *, unless_backoff: bool = False) -> Deferred[None]:
        """The attempt has failed; `error` is kept with the job. It waits for `delay`, or 0: as long as the policy of its tube says;
        `unless_backoff`: for `delay` only if that says nothing."""
        return self._client._finish(self._held, calls.failed(self, error, delay, unless_backoff))

    def bury(self, error: BaseException | str = "", priority: int | None = None) -> Deferred[None]:
        """Put it aside until it is kicked; `error` is kept with the job."""
        return self._client._finish(self._held, calls.buried(self, priority, error))

    def touch(self) -> Deferred[None]:
        """Its time to run begins anew. This happens by itself, too."""
        return self._client._about(self._held, calls.touched(self))


class TwistedClient(Service):
    """A client of the cluster at `url` (see `addresses_of`). It connects once it is started.

    `timeout`: how long a call may take (seconds), and a reserve so long after its own timeout. Calls fail with `Unreachable`, `TimedOut`,
    `OutcomeUnknown` or `Refused`, all of them `RaftdError`."""

    #: What makes its `core`; one that records stands in for it where a run is judged.
    core_type: type[Core] = Core

    def __init__(
        self,
        url: str | None = None,
        *,
        name: str = "",
        timeout: float = 30.0,
        retry: Retry | None = None,
        cluster: str = "",
        reactor: Any = None,
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor  # not before: importing it installs it
        self._reactor: Any = reactor
        self.core = self.core_type(addresses_of(url), name, SystemRandom(), retry or Retry(), cluster)
        self._tls = files_of(url_or_default(url))
        self._credentials = credentials_of(url_or_default(url))
        if self._tls is not None:
            secure(self._tls)  # fails now if they cannot be used; each connection reads them anew
        self._timeout_s = timeout
        self._timer: Any = None
        self._connection: _Connection | None = None
        self._connector: Any = None

    # -- jobs ---------------------------------------------------------------------------------

    def put(
        self,
        tube: str,
        body: Body,
        *,
        delay: float = 0,
        run_at: datetime | None = None,
        ttr: float | None = None,
        priority: int | None = None,
        key: str | None = None,
    ) -> Deferred[int]:
        """Put a job; its id. With a `key` that was used within the hour, for the same, nothing is put, and the id is that of then.
        `run_at`: when it is ready, instead of a `delay`. Without a time to run, or a priority, it has that of the tube's policy, or 60
        seconds, and 65,536."""
        return self._call(calls.put(tube, [body], calls.delay_until(run_at, delay), ttr, priority, key)).addCallback(lambda ids: ids[0])

    def put_unique(
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
    ) -> Deferred[OnlyOne]:
        """Put a job, unless the tube has one that was put with the same `unique`: (id, is_new). `until` that is deleted, or dead; or until
        it is reserved for the first time; for `unique_for` seconds at most. The rest is as with `put`."""
        delay = calls.delay_until(run_at, delay)
        return self._call(calls.put_unique(tube, body, delay, ttr, priority, key, unique, until, unique_for))

    def put_many(
        self,
        tube: str,
        bodies: Iterable[Body],
        *,
        delay: float = 0,
        ttr: float | None = None,
        priority: int | None = None,
        key: str | None = None,
    ) -> Deferred[list[int]]:
        """Put up to 1,000 jobs at once, all or none; their ids."""
        return self._call(calls.put(tube, bodies, delay, ttr, priority, key))

    def reserve(self, *tubes: str, timeout: float | None = None) -> Deferred[TwistedJob | None]:
        """The most urgent job of these tubes; None if there is none within `timeout` (None: wait for ever)."""
        return self.reserve_many(*tubes, count=1, timeout=timeout).addCallback(lambda found: found[0] if found else None)

    def reserve_many(self, *tubes: str, count: int, timeout: float | None = None) -> Deferred[list[TwistedJob]]:
        """Up to `count` jobs that are ready (100 at most), or the first that is within `timeout`."""
        held = self.core.held
        return self._call(calls.reserve(tubes or ("default",), count, timeout)).addCallback(
            lambda jobs: [TwistedJob(self, held[job.id, job.token]) for job in jobs if (job.id, job.token) in held]
        )

    def jobs(self, *tubes: str, prefetch: int = 1) -> TwistedJobs:
        """Jobs of these tubes as they come. Up to `prefetch` are held at a time: each that was taken must be done before another comes."""
        calls.check_subscription(list(tubes or ("default",)), prefetch)
        return TwistedJobs(self, list(tubes or ("default",)), prefetch)

    def delete(self, job: int, token: int = 0) -> Deferred[None]:
        """Delete a job that nobody holds, or the one that was reserved with this token. Raises NotFound."""
        return self._call(calls.delete(job, token))

    def release(self, job: int, token: int, delay: float = 0, priority: int | None = None) -> Deferred[None]:
        """Release the job that was reserved with this token. Raises NotFound."""
        return self._call(calls.release(job, token, delay, priority))

    def bury(self, job: int, token: int, error: str = "", priority: int | None = None) -> Deferred[None]:
        """Bury the job that was reserved with this token. Raises NotFound."""
        return self._call(calls.bury(job, token, priority, error))

    def kick(self, tube: str, count: int = 1) -> Deferred[int]:
        """Make buried jobs of the tube ready, or if there are none delayed ones; how many."""
        return self._call(calls.kick(tube, count))

    def kick_job(self, job: int) -> Deferred[None]:
        """Make a buried or delayed job ready. Fails with NotFound."""
        return self._call(calls.kick_job(job))

    def peek(self, job: int) -> Deferred[JobInfo | None]:
        """How a job is; None if there is none."""
        return self._call(calls.peek(job))

    def result(self, job: int) -> Deferred[Finished | None]:
        """What came of a job that a worker has finished; None if its tube retains none, or not for so long."""
        return self._call(calls.result(job))

    def peek_next(self, tube: str, state: str = "ready") -> Deferred[JobInfo | None]:
        """The job that would be reserved next, or the next that is delayed or buried."""
        return self._call(calls.peek_next(tube, state))

    def pause(self, tube: str, seconds: float) -> Deferred[None]:
        """Nothing is reserved from the tube for so long; 0 ends that. Fails with NotFound."""
        return self._call(calls.pause(tube, seconds))

    def stats(self, tube: str) -> Deferred[Stats | None]:
        """How a tube is; None if there is none."""
        return self._call(calls.stats(tube))

    async def _all_tubes(self) -> list[Stats]:
        all_found: list[Stats] = []
        has_more = True
        while has_more:
            found, has_more = await self._call(calls.tubes(all_found[-1].tube if all_found else ""))
            all_found += found
        return all_found

    def tubes(self) -> Deferred[list[Stats]]:
        """All tubes, by name."""
        return Deferred.fromCoroutine(self._all_tubes())

    # -- policies of tubes (docs/queues.md) ----------------------------------------------------

    def set_policy(self, tube: str, policy: PolicyDocument | Mapping[str, Any] | None, version: int | None = None) -> Deferred[int]:
        """What the tube does by itself from now on; None: nothing. With a `version`, only if its policy has that one (0: if it has none).
        Gives the new version. Fails with Conflict; raises Refused for a policy that cannot be."""
        return self.set_policies({tube: policy}, {} if version is None else {tube: version})

    def set_policies(self, policies: Policies, versions: Mapping[str, int] | None = None) -> Deferred[int]:
        """Many, by tube: all of them or none."""
        return self._call(calls.set_policies(policies, versions or {}))

    def policy(self, tube: str) -> Deferred[TubePolicy | None]:
        """That of a tube; None if it has none."""
        return self._call(calls.policy(tube))

    def policies(self) -> Deferred[list[TubePolicy]]:
        """All, by the names of their tubes."""
        return Deferred.fromCoroutine(self._all_policies())

    async def _all_policies(self) -> list[TubePolicy]:
        all_found: list[TubePolicy] = []
        has_more = True
        while has_more:
            found, has_more = await self._call(calls.policies(all_found[-1].tube if all_found else ""))
            all_found += found
        return all_found

    def count_dead(
        self, tube: str, *, error: str = "", origin: str = "", older: float = 0, newer: float | None = None
    ) -> Deferred[tuple[int, Selection]]:
        """How many jobs of the tube are buried, or dead letters: whose last error has `error` in it, that died in the tube `origin`, that
        are dead or buried for `older` seconds at least and `newer` at most. The result says how many and which: give that to `replay`, and
        what dies or is buried later is not touched."""
        return Deferred.fromCoroutine(self._count_dead(calls.count_dead(Selection(tube, error, origin), older, newer, 0)))

    async def _count_dead(self, first: Call[Counted]) -> tuple[int, Selection]:
        part = await self._call(first)
        count = part.found
        while part.after is not None:
            part = await self._call(calls.count_dead(part.which, 0, None, part.after))
            count += part.found
        return count, part.which

    def replay(self, which: Selection, action: Action = "move", to: str = "") -> Deferred[tuple[int, int]]:
        """Move the dead and buried jobs that `count_dead` has found `to` a tube, or each to where it died; or `kick` those that are
        buried; or `delete` them. In steps, of which nothing is done twice, whatever happens meanwhile. The result says how many were, and
        how many could not be: their tube is full, or there is nowhere to go."""
        return Deferred.fromCoroutine(self._replay(which, action, to))

    async def _replay(self, which: Selection, action: Action, to: str) -> tuple[int, int]:
        done = skipped = 0
        after: int | None = 0
        while after is not None:
            step = await self.replay_step(which, action, to, after)
            done, skipped, after = done + step.done, skipped + step.skipped, step.after
        return done, skipped

    def replay_step(self, which: Selection, action: Action = "move", to: str = "", after: int = 0) -> Deferred[Step]:
        """One step of `replay`, of the jobs with ids behind `after`."""
        return self._call(calls.replay(which, action, to, after))

    # -- schedules (docs/queues.md) ------------------------------------------------------------

    def set_schedule(self, name: str, schedule: ScheduleDocument | Mapping[str, Any] | None, version: int | None = None) -> Deferred[int]:
        """Put jobs by themselves, as the schedule says; None: no more. With a `version`, only if it has that one (0: if there is none).
        Gives the new version. Raises Conflict, and Refused for a schedule that cannot be."""
        return self._call(calls.set_schedule(name, schedule, version))

    def pause_schedule(self, name: str) -> Deferred[None]:
        """Occurrences from now on are not put. Raises NotFound."""
        return self._call(calls.pause_schedule(name, True))

    def resume_schedule(self, name: str) -> Deferred[None]:
        """It goes on with the next occurrence. Raises NotFound."""
        return self._call(calls.pause_schedule(name, False))

    def run_schedule(self, name: str) -> Deferred[int]:
        """Put its job now; the id. Raises NotFound."""
        return self._call(calls.run_schedule(name))

    def schedule(self, name: str) -> Deferred[ScheduleInfo | None]:
        """How it is; None if there is none."""
        return self._call(calls.schedules(name, "")).addCallback(lambda found: found[0][0] if found[0] else None)

    def schedules(self) -> Deferred[list[ScheduleInfo]]:
        """All, by name, without their bodies."""
        return Deferred.fromCoroutine(self._all_schedules())

    async def _all_schedules(self) -> list[ScheduleInfo]:
        all_found: list[ScheduleInfo] = []
        has_more = True
        while has_more:
            found, has_more = await self._call(calls.schedules("", all_found[-1].name if all_found else ""))
            all_found += found
        return all_found

    # -- the service --------------------------------------------------------------------------

    def startService(self) -> None:
        # Twisted has no types for it.
        super().startService()  # type: ignore[no-untyped-call]
        self._tick()

    def stopService(self) -> Deferred[None]:
        """End the session: jobs that are held, and not done, are released."""
        return self._end(keeps_jobs=False).addCallback(lambda result: None)

    def leave(self) -> Deferred[None]:
        """End the session, but not its reservations: jobs that are held stay so until their time to run ends, for those who know their
        tokens. Fails with OutcomeUnknown if no node says so: then they may be given back."""

        def check(result: object) -> None:
            if not isinstance(result, r.Ended):
                raise OutcomeUnknown(calls.NOT_LEFT)

        return self._end(keeps_jobs=True).addCallback(check)

    @property
    def trouble(self) -> str:
        """Why no node can be asked now, "" if one can. It is tried again by itself."""
        return self.core.trouble

    def _end(self, keeps_jobs: bool) -> Deferred[Any]:
        ended: Deferred[Any] = Deferred()
        self.core.close(self._now_s, lambda result: None if ended.called else ended.callback(result), keeps_jobs)
        self._flush()
        ended.addTimeout(_CLOSE_S, self._reactor)

        def stop(result: object) -> object:
            # Twisted has no types for it.
            super(TwistedClient, self).stopService()  # type: ignore[no-untyped-call]
            self.core.abandon()
            if self._timer is not None and self._timer.active():
                self._timer.cancel()
            if self._connection is not None:
                self._connection.transport.abortConnection()
            elif self._connector is not None:
                self._connector.stopConnecting()
            return None if isinstance(result, Failure) else result

        return ended.addBoth(stop)

    # -- calling ------------------------------------------------------------------------------

    def _call(self, call: Call[T]) -> Deferred[T]:
        def begin(deadline_s: float, done: Callable[[Any], None]) -> None:
            if callable(call.what):
                self.core.read(call.what, deadline_s, done, self._now_s)
            else:
                self.core.ask(call.what, self._now_s, deadline_s, done)

        return self._wait(call, begin)

    def _finish(self, held: Held, call: Call[None]) -> Deferred[None]:
        what: Any = call.what
        return self._wait(call, lambda deadline_s, done: self.core.finish(held, what, self._now_s, deadline_s, done))

    def _about(self, held: Held, call: Call[None]) -> Deferred[None]:
        what: Any = call.what
        return self._wait(call, lambda deadline_s, done: self.core.about(held, what, self._now_s, deadline_s, done))

    def _wait(self, call: Call[T], begin: Callable[[float, Callable[[Any], None]], None]) -> Deferred[T]:
        def cancelled(told: Deferred[Any]) -> None:
            self.core.forget(done, self._now_s)
            self._flush()

        told: Deferred[Any] = Deferred(cancelled)

        def done(reply: Any) -> None:
            if told.called:
                self.core.unwanted(reply)
            elif isinstance(reply, Exception):
                told.errback(reply)
            else:
                told.callback(reply)

        waits_s = float("inf") if call.waits_s is None else call.waits_s
        begin(self._now_s + self._timeout_s + waits_s, done)
        self._flush()
        return told.addCallback(call.parse)

    # -- the reactor --------------------------------------------------------------------------

    @property
    def _now_s(self) -> float:
        return float(self._reactor.seconds())

    def _tick(self) -> None:
        if not self.core.tick(self._now_s):
            self._drop("")
        if self.core.wants_connection(self._now_s) and self._connector is None:
            host, port = self.core.address
            try:
                factory = _Dial(self) if self._tls is None else secure(self._tls)(_Dial(self), host)
            except ValueError as error:
                self.core.lost(self._now_s, str(error))
            else:
                self._connector = self._reactor.connectTCP(host, port, factory, timeout=_CONNECT_S)
        self._flush()
        if self.core.is_closed:
            return
        self._timer = self._reactor.callLater(max(0.001, self.core.next_tick() - self._now_s), self._tick)

    def _made(self, connection: _Connection) -> None:
        self._connection, self._connector = connection, None
        self.core.connected(self._now_s, self._credentials.read())
        self._flush()

    def _failed(self, why: str) -> None:
        self._connector = None
        self.core.lost(self._now_s, why)

    def _received(self, connection: _Connection, data: bytes) -> None:
        if connection is self._connection:
            if not self.core.received(data, self._now_s):
                self._drop("")
            self._flush()

    def _lost(self, connection: _Connection, why: str) -> None:
        if connection is self._connection:
            self._connection = None
            self.core.lost(self._now_s, why)

    def _drop(self, why: str) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.transport.abortConnection()
        self.core.lost(self._now_s, why)

    def _flush(self) -> None:
        data = self.core.output()
        if data and self._connection is not None:
            self._connection.transport.write(data)


class TwistedJobs:
    """Jobs as they come: `get` gives the next. `stop` ends it, and releases what was not taken."""

    def __init__(self, client: TwistedClient, tubes: list[str], prefetch: int) -> None:
        self._client = client
        self._waiting: deque[Deferred[TwistedJob]] = deque()
        self._subscription = Subscription(tubes, prefetch, self._arrived)
        client.core.subscribe(self._subscription, client._now_s)
        client._flush()

    def get(self) -> Deferred[TwistedJob]:
        """The next job. Fails with Unreachable when there will be none: this, or the client, was stopped."""
        next_job: Deferred[TwistedJob] = Deferred(self._waiting.remove)
        self._waiting.append(next_job)
        self._arrived()
        return next_job

    def stop(self) -> None:
        self._client.core.unsubscribe(self._subscription, self._client._now_s)
        self._client._flush()
        self._arrived()

    def _arrived(self) -> None:
        subscription = self._subscription
        while self._waiting:
            if subscription.is_closed or subscription.error is not None:
                self._waiting.popleft().errback(subscription.error or Unreachable("these jobs were stopped"))
            elif subscription.ready:
                held = subscription.ready.popleft()
                if not held.lost:
                    self._waiting.popleft().callback(TwistedJob(self._client, held))
            else:
                return


def secure(files: TlsFiles) -> Callable[[Any, str], Any]:
    """What puts TLS with a host around a factory. Raises ValueError for files that cannot be used."""
    from twisted.internet import ssl as typed
    from twisted.protocols.tls import TLSMemoryBIOFactory

    def read(name: str) -> bytes:
        with open(name, "rb") as file:
            return file.read()

    ssl: Any = typed
    try:
        trusted = own = None
        if files.ca is not None:
            mark = b"-----BEGIN CERTIFICATE-----"
            authorities = [ssl.Certificate.loadPEM(mark + part) for part in read(files.ca).split(mark)[1:]]
            if not authorities:
                raise ValueError("there is no certificate")
            trusted = ssl.trustRootFromCertificates(authorities)
        if files.certificate is not None:
            own = ssl.PrivateCertificate.loadPEM(read(files.certificate) + read(files.key or files.certificate))
    except Exception as error:  # OpenSSL and Twisted have many
        names = ", ".join(name for name in files if name is not None)
        raise ValueError(f"{names}: {getattr(error, 'strerror', None) or error}: expected certificates and a key in PEM") from None

    more = {"trustRoot": trusted} if trusted is not None else {}

    def around(factory: Any, host: str) -> Any:
        try:
            options = ssl.optionsForClientTLS(host, clientCertificate=own, **more)
        except Exception as error:  # OpenSSL and Twisted have many
            raise ValueError(f"{files.certificate or host}: {error}") from None
        return TLSMemoryBIOFactory(options, True, factory)

    return around


def _why(reason: Failure) -> str:
    """Why a connection was lost, without OpenSSL's tuples."""
    error: Any = reason.value
    parts = error.args[0] if type(error).__module__.startswith("OpenSSL") and error.args else None
    return "; ".join(str(part[2]) for part in parts) if isinstance(parts, list) else str(reason.getErrorMessage())


class _Connection(Protocol):
    transport: Any

    def __init__(self, client: TwistedClient) -> None:
        self._client = client

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        self._client._made(self)

    def dataReceived(self, data: bytes) -> None:
        self._client._received(self, data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._client._lost(self, _why(reason))


class _Dial(ClientFactory):
    noisy = False

    def __init__(self, client: TwistedClient) -> None:
        self._client = client

    def buildProtocol(self, addr: object) -> _Connection:
        return _Connection(self._client)

    def clientConnectionFailed(self, connector: object, reason: Failure) -> None:
        self._client._failed(reason.getErrorMessage())

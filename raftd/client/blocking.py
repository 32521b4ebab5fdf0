"""The client for threads: every call waits for its result.

    >>> from raftd.client import Client
    >>> with Client() as queue:  # at $RAFTD_URL, or the node of this machine
    ...     id = queue.put("mail", "hello")
    ...     job = queue.reserve("mail", timeout=10)
    ...     print(job.text, job.attempts)
    ...     job.delete()
    ...     for job in queue.jobs("mail"):
    ...         with job:  # success deletes it, an exception fails it
    ...             print(job.text)  # and so on, for ever
    ...         break
    hello 0
    another

One thread of its own does all I/O, so held jobs are touched while workers are busy.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
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
from raftd.client.tls import SecureSocket, files_of, why
from raftd.jobs import replies as r
from raftd.jobs.asks import Action, Selection

T = TypeVar("T")

_RECV_BYTES = 256 << 10
_CLOSE_S = 3.0


class Job(JobView):
    """A reserved job. As a context: success deletes it, an exception fails it. It is touched until it is done. Every method raises
    LostReservation if it is held no more."""

    def __init__(self, client: Client, held: Held) -> None:
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
        with self._client._lock:
            return self._client.core.is_held(self._held)

    def when_lost(self, call: Callable[[], object]) -> None:
        """`call` is called once in the thread of the client: it must not wait, when the cluster says that the job is held no more."""
        with self._client._lock:
            self._held.when_lost = call
            is_lost = self._held.lost
        if is_lost:
            call()

    def delete(self, result: Body = b"") -> None:
        """It is done. `result`: what came of it, kept for a while if the policy of its tube says so."""
        self._client._finish(self._held, calls.deleted(self, result))

    def release(self, delay: float = 0, priority: int | None = None) -> None:
        """Another worker is to do it; no failed attempt."""
        self._client._finish(self._held, calls.released(self, delay, priority))

    def snooze(self, delay: float) -> None:
        """It is to be done later; no failed attempt."""
        self.release(delay)

    def fail(self, error: BaseException | str = "", delay: float = 0, *, unless_backoff: bool = False) -> None:
        """The attempt has failed; `error` is kept with the job. It waits for `delay`, or 0: as long as the policy of its tube says;
        `unless_backoff`: for `delay` only if that says nothing."""
        self._client._finish(self._held, calls.failed(self, error, delay, unless_backoff))

    def bury(self, error: BaseException | str = "", priority: int | None = None) -> None:
        """Put it aside until it is kicked; `error` is kept with the job."""
        self._client._finish(self._held, calls.buried(self, priority, error))

    def touch(self) -> None:
        """Its time to run begins anew. This happens by itself, too."""
        self._client._about(self._held, calls.touched(self))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.is_held:
            if error is None:
                self.delete()
            elif isinstance(error, Exception):
                self.fail(error)
            else:
                self.release()  # the worker is told to stop: that is no failure of the job
        elif error is None and self.lost:
            raise LostReservation(f"job {self.id} is held no more: another worker may have it")


class Client:
    """A client of the cluster at `url` (see `addresses_of`), for any number of threads.

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
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._socket: socket.socket | SecureSocket | None = None
        self._is_connecting = False  # or shaking hands
        self._unsent = b""
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="raftd client", daemon=True)
        self._thread.start()

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
    ) -> int:
        """Put a job; its id. With a `key` that was used within the hour, for the same, nothing is put, and the id is that of then.
        `run_at`: when it is ready, instead of a `delay`. Without a time to run, or a priority, it has that of the tube's policy, or 60
        seconds, and 65,536."""
        return self._call(calls.put(tube, [body], calls.delay_until(run_at, delay), ttr, priority, key))[0]

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
    ) -> OnlyOne:
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
    ) -> list[int]:
        """Put up to 1,000 jobs at once, all or none; their ids."""
        return self._call(calls.put(tube, bodies, delay, ttr, priority, key))

    def reserve(self, *tubes: str, timeout: float | None = None) -> Job | None:
        """The most urgent job of these tubes; None if there is none within `timeout` (None: wait for ever)."""
        found = self.reserve_many(*tubes, count=1, timeout=timeout)
        return found[0] if found else None

    def reserve_many(self, *tubes: str, count: int, timeout: float | None = None) -> list[Job]:
        """Up to `count` jobs that are ready (100 at most), or the first that is within `timeout`."""
        jobs = self._call(calls.reserve(tubes or ("default",), count, timeout))
        with self._lock:
            return [Job(self, self.core.held[job.id, job.token]) for job in jobs if (job.id, job.token) in self.core.held]

    def jobs(self, *tubes: str, prefetch: int = 1) -> Jobs:
        """Jobs of these tubes as they come, for ever, or until they are stopped or the client is closed. Up to `prefetch` are held at a
        time: each that was taken must be done before another comes."""
        return Jobs(self, list(tubes or ("default",)), prefetch)

    def delete(self, job: int, token: int = 0) -> None:
        """Delete a job that nobody holds, or the one that was reserved with this token. Raises NotFound."""
        self._call(calls.delete(job, token))

    def release(self, job: int, token: int, delay: float = 0, priority: int | None = None) -> None:
        """Release the job that was reserved with this token. Raises NotFound."""
        self._call(calls.release(job, token, delay, priority))

    def bury(self, job: int, token: int, error: str = "", priority: int | None = None) -> None:
        """Bury the job that was reserved with this token. Raises NotFound."""
        self._call(calls.bury(job, token, priority, error))

    def kick(self, tube: str, count: int = 1) -> int:
        """Make buried jobs of the tube ready, or if there are none delayed ones; how many."""
        return self._call(calls.kick(tube, count))

    def kick_job(self, job: int) -> None:
        """Make a buried or delayed job ready. Raises NotFound."""
        self._call(calls.kick_job(job))

    def peek(self, job: int) -> JobInfo | None:
        """How a job is; None if there is none."""
        return self._call(calls.peek(job))

    def result(self, job: int) -> Finished | None:
        """What came of a job that a worker has finished; None if its tube retains none, or not for so long."""
        return self._call(calls.result(job))

    def peek_next(self, tube: str, state: str = "ready") -> JobInfo | None:
        """The job that would be reserved next, or the next that is delayed or buried."""
        return self._call(calls.peek_next(tube, state))

    def pause(self, tube: str, seconds: float) -> None:
        """Nothing is reserved from the tube for so long; 0 ends that. Raises NotFound."""
        self._call(calls.pause(tube, seconds))

    def stats(self, tube: str) -> Stats | None:
        """How a tube is; None if there is none."""
        return self._call(calls.stats(tube))

    def tubes(self) -> Iterator[Stats]:
        """All tubes, by name."""
        after, has_more = "", True
        while has_more:
            found, has_more = self._call(calls.tubes(after))
            yield from found
            after = found[-1].tube if found else after

    # -- policies of tubes (docs/queues.md) ----------------------------------------------------

    def set_policy(self, tube: str, policy: PolicyDocument | Mapping[str, Any] | None, version: int | None = None) -> int:
        """What the tube does by itself from now on; None: nothing. With a `version`, only if its policy has that one (0: if it has none).
        Returns the new version. Raises Conflict, and Refused for a policy that cannot be."""
        return self.set_policies({tube: policy}, {} if version is None else {tube: version})

    def set_policies(self, policies: Policies, versions: Mapping[str, int] | None = None) -> int:
        """Many, by tube: all of them or none."""
        return self._call(calls.set_policies(policies, versions or {}))

    def policy(self, tube: str) -> TubePolicy | None:
        """That of a tube; None if it has none."""
        return self._call(calls.policy(tube))

    def policies(self) -> Iterator[TubePolicy]:
        """All, by the names of their tubes."""
        after, has_more = "", True
        while has_more:
            found, has_more = self._call(calls.policies(after))
            yield from found
            after = found[-1].tube if found else after

    def count_dead(
        self, tube: str, *, error: str = "", origin: str = "", older: float = 0, newer: float | None = None
    ) -> tuple[int, Selection]:
        """How many jobs of the tube are buried, or dead letters: whose last error has `error` in it, that died in the tube `origin`, that
        are dead or buried for `older` seconds at least and `newer` at most. The result says how many and which: give that to `replay`, and
        what dies or is buried later is not touched."""
        part = self._call(calls.count_dead(Selection(tube, error, origin), older, newer, 0))
        count = part.found
        while part.after is not None:
            part = self._call(calls.count_dead(part.which, 0, None, part.after))
            count += part.found
        return count, part.which

    def replay(self, which: Selection, action: Action = "move", to: str = "") -> tuple[int, int]:
        """Move the dead and buried jobs that `count_dead` has found `to` a tube, or each to where it died; or `kick` those that are
        buried; or `delete` them. In steps, of which nothing is done twice, whatever happens meanwhile. The result says how many were, and
        how many could not be: their tube is full, or there is nowhere to go."""
        done = skipped = 0
        after: int | None = 0
        while after is not None:
            step = self.replay_step(which, action, to, after)
            done, skipped, after = done + step.done, skipped + step.skipped, step.after
        return done, skipped

    def replay_step(self, which: Selection, action: Action = "move", to: str = "", after: int = 0) -> Step:
        """One step of `replay`, of the jobs with ids behind `after`."""
        return self._call(calls.replay(which, action, to, after))

    # -- schedules (docs/queues.md) ------------------------------------------------------------

    def set_schedule(self, name: str, schedule: ScheduleDocument | Mapping[str, Any] | None, version: int | None = None) -> int:
        """Put jobs by themselves, as the schedule says; None: no more. With a `version`, only if it has that one (0: if there is none).
        Returns the new version. Raises Conflict, and Refused for a schedule that cannot be."""
        return self._call(calls.set_schedule(name, schedule, version))

    def pause_schedule(self, name: str) -> None:
        """Occurrences from now on are not put. Raises NotFound."""
        self._call(calls.pause_schedule(name, True))

    def resume_schedule(self, name: str) -> None:
        """It goes on with the next occurrence. Raises NotFound."""
        self._call(calls.pause_schedule(name, False))

    def run_schedule(self, name: str) -> int:
        """Put its job now; the id. Raises NotFound."""
        return self._call(calls.run_schedule(name))

    def schedule(self, name: str) -> ScheduleInfo | None:
        """How it is; None if there is none."""
        found, _ = self._call(calls.schedules(name, ""))
        return found[0] if found else None

    def schedules(self) -> Iterator[ScheduleInfo]:
        """All, by name, without their bodies."""
        after, has_more = "", True
        while has_more:
            found, has_more = self._call(calls.schedules("", after))
            yield from found
            after = found[-1].name if found else after

    # -- the end ------------------------------------------------------------------------------

    def close(self) -> None:
        """End the session: jobs that are held, and not done, are released."""
        self._end(keeps_jobs=False)

    def leave(self) -> None:
        """End the session, but not its reservations: jobs that are held stay so until their time to run ends, for those who know their
        tokens. Raises OutcomeUnknown if no node says so: then they may be given back."""
        if not isinstance(self._end(keeps_jobs=True), r.Ended):
            raise OutcomeUnknown(calls.NOT_LEFT)

    def _end(self, keeps_jobs: bool) -> object:
        if os.getpid() != self._pid:
            return None
        ended = threading.Event()
        results: list[object] = []

        def done(result: object) -> None:
            results.append(result)
            ended.set()

        with self._lock:
            if self._stopped:
                return None
            self.core.close(time.monotonic(), done, keeps_jobs)
            self._flush()
        ended.wait(_CLOSE_S)
        with self._lock:
            self._stopped = True
            self.core.abandon()
            self._changed.notify_all()
        self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(_CLOSE_S)
        return results[0] if results else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def trouble(self) -> str:
        """Why no node can be asked now, "" if one can. It is tried again by itself."""
        with self._lock:
            return self.core.trouble

    # -- calling ------------------------------------------------------------------------------

    def _call(self, call: Call[T]) -> T:
        return self._wait(call, lambda now_s, deadline_s, done: self._begin(call, now_s, deadline_s, done))

    def _begin(self, call: Call[Any], now_s: float, deadline_s: float, done: Callable[[Any], None]) -> None:
        if callable(call.what):
            self.core.read(call.what, deadline_s, done, now_s)
        else:
            self.core.ask(call.what, now_s, deadline_s, done)

    def _finish(self, held: Held, call: Call[None]) -> None:
        what: Any = call.what
        self._wait(call, lambda now_s, deadline_s, done: self.core.finish(held, what, now_s, deadline_s, done))

    def _about(self, held: Held, call: Call[None]) -> None:
        what: Any = call.what
        self._wait(call, lambda now_s, deadline_s, done: self.core.about(held, what, now_s, deadline_s, done))

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError("this client was made before a fork: make one in each process")

    def _wait(self, call: Call[T], begin: Callable[[float, float, Callable[[Any], None]], None]) -> T:
        if threading.current_thread() is self._thread:
            raise RuntimeError("a callback of the client must not wait for the client")
        self._check_process()
        told = threading.Event()
        result: list[Any] = []

        def done(reply: Any) -> None:
            result.append(reply)
            told.set()

        with self._lock:
            if self._stopped:
                raise Unreachable("the client is closed")
            now_s = time.monotonic()
            waits_s = float("inf") if call.waits_s is None else call.waits_s
            begin(now_s, now_s + self._timeout_s + waits_s, done)
            self._flush()
        try:
            told.wait()
        except BaseException:  # the caller is interrupted
            with self._lock:
                if told.is_set():
                    self.core.unwanted(result[0])
                else:
                    self.core.forget(done, time.monotonic())
                self._flush()
            raise
        reply = result[0]
        if isinstance(reply, Exception):
            raise reply
        return call.parse(reply)

    # -- the thread ---------------------------------------------------------------------------

    def _wake(self) -> None:
        with suppress(BlockingIOError, OSError):
            self._wake_out.send(b"x")

    def _flush(self) -> None:
        """Send what the core has to say: here, while the socket takes it, because that is sooner than the thread. The lock is held."""
        self._unsent += self.core.output()
        if self._socket is None or self._is_connecting or not self._unsent:
            self._wake()
            return
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._wake()
            return
        self._unsent = self._unsent[sent:]
        if self._unsent:
            self._wake()

    def _run(self) -> None:
        try:
            self._serve()
        finally:  # whatever has ended it, nobody must wait for ever
            with self._lock:
                self._stopped = True
                self.core.abandon()
                self._changed.notify_all()

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._wake_in, select.POLLIN)
        while True:
            with self._lock:
                if self._stopped:
                    self._drop("the client is closed")
                    break
                now_s = time.monotonic()
                if self.core.wants_connection(now_s):
                    self._connect(now_s)
                wait_s = max(0.0, self.core.next_tick() - now_s)
                there, events = self._socket, 0
                if there is not None:
                    events = self._events(there)
                    poll.register(there, events)
            ready = dict(poll.poll(wait_s * 1000 + 1))
            with self._lock:
                with suppress(BlockingIOError):
                    while self._wake_in.fileno() in ready and self._wake_in.recv(4096):
                        pass
                if there is not None:
                    poll.unregister(there)
                    if there is self._socket and there.fileno() in ready:
                        self._ready(ready[there.fileno()])
                now_s = time.monotonic()
                if now_s >= self.core.next_tick() and not self.core.tick(now_s):
                    self._drop("")
                self._flush_or_drop()
        self._wake_in.close()
        self._wake_out.close()

    def _events(self, there: socket.socket | SecureSocket) -> int:
        """What the socket waits for."""
        if not self._is_connecting:
            return select.POLLIN | (select.POLLOUT if self._unsent else 0)
        return select.POLLIN if isinstance(there, SecureSocket) and not there.wants_to_write else select.POLLOUT

    def _connect(self, now_s: float) -> None:
        host, port = self.core.address
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self._socket = made = socket.socket(family, kind, protocol)
            made.setblocking(False)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._is_connecting = True
            self._unsent = b""
            made.connect(address)
        except BlockingIOError:
            pass
        except (OSError, UnicodeError) as error:
            self._drop(f"{host}:{port}: {getattr(error, 'strerror', None) or error}")
            return
        self.core.connected(now_s, self._credentials.read())

    def _is_connected(self, there: socket.socket | SecureSocket, host: str) -> bool:
        """One step on the way. Raises OSError."""
        if isinstance(there, SecureSocket):
            return there.shake_hands()
        error = there.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
        if self._tls is None:
            return True
        self._socket = secure = SecureSocket(there, self._tls.context(), host)
        return secure.shake_hands()

    def _ready(self, events: int) -> None:
        assert self._socket is not None
        if self._is_connecting:
            host, port = self.core.address
            try:
                self._is_connecting = not self._is_connected(self._socket, host)
            except (OSError, ValueError) as error:
                self._drop(f"{host}:{port}: {why(error)}")
                return
            if self._is_connecting:
                return
        if events & (select.POLLIN | select.POLLHUP | select.POLLERR):
            try:
                data = self._socket.recv(_RECV_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                self._drop(why(error))
                return
            if not data:
                self._drop("the node has closed the connection")
            elif not self.core.received(data, time.monotonic()):
                self._drop("")
            elif isinstance(self._socket, SecureSocket) and self._socket.is_at_end:
                self._drop("the node has closed the connection")

    def _flush_or_drop(self) -> None:
        self._unsent += self.core.output()
        if self._socket is None or self._is_connecting or not self._unsent:
            return
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            return
        except OSError as error:
            self._drop(why(error))
            return
        self._unsent = self._unsent[sent:]

    def _drop(self, why: str) -> None:
        """`why`: "" if the core knows."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._unsent = b""
        self.core.lost(time.monotonic(), why)
        self.core.output()


class Jobs:
    """Jobs as they come, for any number of threads that iterate over it. Once it is stopped, or nobody refers to it, what was not taken is
    released."""

    def __init__(self, client: Client, tubes: list[str], prefetch: int) -> None:
        client._check_process()
        self._client = client
        self._subscription = Subscription(tubes, prefetch, client._changed.notify_all)
        calls.check_subscription(tubes, prefetch)
        with client._lock:
            client.core.subscribe(self._subscription, time.monotonic())
            client._flush()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Job:
        """Waits for the next job. Raises StopIteration when there will be none."""
        client, subscription = self._client, self._subscription
        client._check_process()
        with client._lock:
            while True:
                if client._stopped or subscription.is_closed:
                    raise StopIteration
                while subscription.ready:
                    held = subscription.ready.popleft()
                    if not held.lost:
                        return Job(client, held)
                if subscription.error is not None:
                    raise subscription.error
                client._changed.wait()

    def stop(self) -> None:
        """There will be no more: whoever waits for one is told."""
        client = self._client
        if os.getpid() != client._pid:
            return  # a copy, in another process
        with client._lock:
            if not self._subscription.is_closed:
                client.core.unsubscribe(self._subscription, time.monotonic())
                client._changed.notify_all()
                client._flush()

    def __del__(self) -> None:
        self.stop()

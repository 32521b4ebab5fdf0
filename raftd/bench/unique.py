"""The Python clients under `raftd chaos`: every job is put once, and worked once, whatever happens to the nodes.

Producers are threads with a `Client`, workers are tasks of an event loop with `AsyncClient`s. What each sends and hears is recorded on its
way, below the client, so that what the client makes of it is judged as well.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from random import Random
from typing import Any

import msgspec

from raftd.client.address import HostPort
from raftd.client.asynchronous import AsyncClient, AsyncJob
from raftd.client.blocking import Client
from raftd.client.core import Core
from raftd.client.credentials import NO_CREDENTIALS, Credentials
from raftd.client.errors import LostReservation, OutcomeUnknown, TimedOut, Unreachable
from raftd.errors import RaftdError
from raftd.jobs import replies as r
from raftd.jobs.asks import Held
from raftd.sim.client_model import ASK, TO_ASK
from raftd.sim.history import Call
from raftd.wire import client as w
from raftd.wire.frames import FrameDecoder

_TUBE = "unique"
_TTR_S = 8.0
_TIMEOUT_S = 6.0
_PREFETCH = 6
#: Producers rest while so many jobs wait, and look so often (seconds) whether they still do.
_BACKLOG = 400
_LOOK_S = 0.01
#: Jobs of a put without a key.
_TOGETHER = 4
#: How long a job is worked (seconds): most for a moment, some so long that a node may die meanwhile.
_SHORT_S = 0.01
_LONG_S = 1.5
_LONG = 0.03
_FAILS = 0.02
_JOIN_S = 60.0


class RecordedCore(Core):
    """The core of a client, which keeps what it asks and what it is answered."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.calls: list[Call] = []
        self._known: dict[tuple[bytes, int], Call] = {}
        self._sent, self._heard = FrameDecoder(), FrameDecoder()

    def connected(self, now_s: float, credentials: Credentials = NO_CREDENTIALS) -> None:
        super().connected(now_s, credentials)
        self._sent, self._heard = FrameDecoder(), FrameDecoder()
        for decoder in (self._sent, self._heard):
            decoder.greeted()

    def output(self) -> bytes:
        data = super().output()
        self._sent.feed(data)
        while (body := self._sent.next_frame()) is not None:
            request = None if body.startswith(b"raftd-client") else w.decode_request(body)
            if isinstance(request, w.AskRequest) and (self.token, request.id) not in self._known:
                what = msgspec.msgpack.decode(msgspec.msgpack.encode(request.what))
                call = self._known[self.token, request.id] = Call([ASK, self.token, request.id], time.monotonic(), asks=what)
                self.calls.append(call)
        return data

    def received(self, data: bytes, now_s: float) -> bool:
        self._heard.feed(data)
        token, is_hello = self.token, not self.is_attached
        while (body := self._heard.next_frame()) is not None:
            if not is_hello:
                self._note(token, w.decode_answer(body))
            is_hello = False
        return super().received(data, now_s)

    def _note(self, token: bytes, answer: w.Answer) -> None:
        call = self._known.get((token, answer.id))
        if call is None:
            return  # to a read
        told, now_s = [TO_ASK, answer.id, msgspec.msgpack.decode(msgspec.msgpack.encode(answer.reply))], time.monotonic()
        index = 0 if isinstance(answer.reply, w.Failed) else answer.index  # 0: certainly not applied
        if isinstance(answer.reply, r.Pushed) or call.answered is not None:
            self.calls.append(Call(call.what, call.asked, answered=now_s, index=index, answer=told, asks=call.asks))
        else:
            call.answered, call.index, call.answer = now_s, index, told


class _Producer(Client):
    core_type = RecordedCore


class _Worker(AsyncClient):
    core_type = RecordedCore


class Unique:
    """`problems` has what no client may be told. Numbers by name are in `counts`."""

    def __init__(self, pause_s: float) -> None:
        """`pause_s`: between two puts of a producer, on average."""
        self.counts: Counter[str] = Counter()
        self._pause_s = pause_s
        self._errors: list[BaseException] = []
        self._lock = threading.Lock()
        self._stop_putting = threading.Event()
        self._put: dict[str, int] = {}  # body to id, acknowledged
        self._perhaps_put: set[str] = set()
        self._not_put: set[str] = set()
        self._given: dict[str, int] = {}  # body to id, as a worker got it
        self._doubled: set[str] = set()
        self._worked: Counter[str] = Counter()
        self._perhaps_worked: set[str] = set()
        self._crossing: set[Held] = set()  # held when the node of their worker died
        self._stop_working = asyncio.Event()
        self._producers: list[_Producer] = []
        self._workers: list[_Worker] = []
        self._putting: list[threading.Thread] = []
        self._loop = asyncio.new_event_loop()
        self._working = threading.Thread(target=self._guarded, args=(self._work_all,), daemon=True)

    # -- for who watches ----------------------------------------------------------------------

    def start(self, addresses: list[HostPort], producers: int, workers: int) -> None:
        """All that many, each at any of the client listeners."""
        url = "raftd://" + ",".join(f"{host}:{port}" for host, port in addresses)
        self._producers = [_Producer(url, name=f"producer {number}", timeout=_TIMEOUT_S) for number in range(producers)]
        self._workers = [_Worker(url, name=f"worker {number}", timeout=_TIMEOUT_S) for number in range(workers)]
        self._putting = [threading.Thread(target=self._guarded, args=(self._produce, number), daemon=True) for number in range(producers)]
        for thread in (*self._putting, self._working):
            thread.start()

    def node_dies(self, address: HostPort) -> None:
        """What workers connected there hold is to stay theirs."""

        async def mark() -> None:
            for worker in self._workers:
                if not worker.trouble and worker.core.address == address:
                    self._crossing.update(worker.core.held)

        if not self._errors:
            asyncio.run_coroutine_threadsafe(mark(), self._loop).result(_JOIN_S)

    def stop_putting(self) -> None:
        self._stop_putting.set()

    @property
    def is_done(self) -> bool:
        """Whether nothing more is put, and everything has been worked."""
        if self._errors:
            return True
        with self._lock:
            missing = self._put.keys() - self._worked.keys() - self._perhaps_worked
        return not missing and not any(thread.is_alive() for thread in self._putting)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop_working.set)
        self._working.join(_JOIN_S)

    @property
    def _cores(self) -> list[Any]:
        return [client.core for client in self._producers] + [client.core for client in self._workers]

    @property
    def calls(self) -> list[Call]:
        return [call for core in self._cores for call in core.calls]

    @property
    def resumed(self) -> int:
        """How often a session was resumed."""
        return sum(core.resumed for core in self._cores)

    @property
    def problems(self) -> list[str]:
        found = [f"bug: a client ended with {type(error).__name__}: {error}" for error in self._errors]
        found += [f"lost: {body}" for body in sorted(self._put.keys() - self._worked.keys() - self._perhaps_worked)]
        found += [f"duplicated: {body}" for body in sorted(self._doubled | {body for body, times in self._worked.items() if times > 1})]
        found += [f"phantom: {body} was certainly not put, it was said" for body in sorted(self._not_put & self._given.keys())]
        found += [f"phantom: {body} was never put" for body in sorted(self._given.keys() - self._put.keys() - self._perhaps_put)]
        return found

    def summary(self) -> dict[str, int]:
        """What became of the jobs, for people."""
        return {
            "unique jobs put by Python clients": len(self._put),
            "of them worked": len(self._put.keys() & self._worked.keys()),
            "of them perhaps worked": len(self._put.keys() & self._perhaps_worked - self._worked.keys()),
            "perhaps put": len(self._perhaps_put - self._put.keys()),
            "duplicated": len(self._doubled) + sum(times > 1 for times in self._worked.values()),
            **self.counts,
        }

    # -- the clients --------------------------------------------------------------------------

    def _guarded(self, run: Any, *args: Any) -> None:
        try:
            run(*args)
        except BaseException as error:  # a thread must not die unseen
            self._errors.append(error)

    def _produce(self, number: int) -> None:
        random = Random(number)
        count = 0
        with self._producers[number] as client:
            while not self._stop_putting.is_set():
                count += 1
                name = f"producer {number} job {count}"
                if count % 2:
                    self._put_some(client, [name], f"{number} {count}")
                else:
                    self._put_some(client, [f"{name} of {_TOGETHER}, {place}" for place in range(_TOGETHER)], None)
                self._stop_putting.wait(random.expovariate(1 / self._pause_s))
                while len(self._put) - len(self._worked) > _BACKLOG and not self._stop_putting.is_set():
                    self._stop_putting.wait(_LOOK_S)  # a long queue makes judging slow

    def _put_some(self, client: Client, bodies: list[str], key: str | None) -> None:
        """All or none. With a key it is repeated until it is answered."""
        while True:
            try:
                ids = client.put_many(_TUBE, bodies, ttr=_TTR_S, key=key)
            except (OutcomeUnknown, TimedOut, Unreachable) as error:
                self.counts[f"puts that ended with {type(error).__name__}"] += 1
                if key is not None and not (self._stop_putting.is_set() and isinstance(error, Unreachable)):
                    with self._lock:
                        self._perhaps_put.update(bodies)
                    continue
                is_certain = isinstance(error, Unreachable) and bodies[0] not in self._perhaps_put
                with self._lock:
                    (self._not_put if is_certain else self._perhaps_put).update(bodies)
                return
            with self._lock:
                self._put.update(zip(bodies, ids, strict=True))
            return

    def _work_all(self) -> None:
        self._loop.run_until_complete(self._work())
        self._loop.close()

    async def _work(self) -> None:
        tasks = [asyncio.create_task(self._take(worker, Random(number))) for number, worker in enumerate(self._workers)]
        stop = asyncio.create_task(self._stop_working.wait())
        await asyncio.wait([stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                self._errors.append(result)
        for worker in self._workers:
            await worker.close()

    async def _take(self, worker: _Worker, random: Random) -> None:
        tasks: set[asyncio.Task[None]] = set()
        try:
            async for job in worker.jobs(_TUBE, prefetch=_PREFETCH):
                task = asyncio.create_task(self._work_one(job, random))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        finally:
            await asyncio.gather(*tasks)

    async def _work_one(self, job: AsyncJob, random: Random) -> None:
        body = job.text
        with self._lock:
            if self._given.setdefault(body, job.id) != job.id:
                self._doubled.add(body)
        await asyncio.sleep(_LONG_S * random.random() if random.random() < _LONG else _SHORT_S * random.random())
        fails = random.random() < _FAILS
        try:
            await (job.fail("it failed") if fails else job.delete())
        except LostReservation:
            self.counts["reservations lost"] += 1
            return
        except (OutcomeUnknown, TimedOut, Unreachable) as error:
            self.counts[f"ends of jobs that ended with {type(error).__name__}"] += 1
            if not fails and not isinstance(error, Unreachable):
                with self._lock:
                    self._perhaps_worked.add(body)
            return
        except RaftdError as error:
            self._errors.append(error)
            return
        if (job.id, job.token) in self._crossing:
            self.counts["reservations kept across the death of the worker's node"] += 1
        if not fails:
            with self._lock:
                self._worked[body] += 1

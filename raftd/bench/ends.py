"""Policies and schedules under `raftd chaos`: every job ends exactly once as done or dead, after no more attempts than its tube allows, and
a schedule of one a second puts one job for each second.

Workers fail at random. What each client sends and hears is recorded, as by `unique.py`, so the model judges unique keys too.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

from raftd.bench.unique import RecordedCore
from raftd.client import Client, Job, JobInfo, LostReservation, OutcomeUnknown, ScheduleInfo, TimedOut, Unreachable
from raftd.client.address import HostPort
from raftd.sim.history import Call

_TUBE, _SHORT, _BEATS, _DEAD = "ends", "ends.short", "ends.beats", "ends.dead"
_MOST_ATTEMPTS = 3
_POLICIES = {
    _TUBE: {"max_attempts": _MOST_ATTEMPTS, "backoff": [0.05, 0.2], "dead_letter": _DEAD, "concurrency": 8},
    _SHORT: {"ttl_s": 1, "on_expire": "dead_letter", "dead_letter": _DEAD},
    _BEATS: {"max_attempts": _MOST_ATTEMPTS, "dead_letter": _DEAD, "retain_s": 60},
}
_SCHEDULE = "beat"
_EVERY_MS = 1_000
_TIMEOUT_S = 6.0
_TTR_S = 4.0
_FAILS = 0.4
_PRODUCERS = 4
_WORKERS = 3
_PREFETCH = 4
#: Between two puts (seconds): a long queue, and many dead jobs, make judging slow.
_PUT_PAUSE_S = 0.04
#: Between two looks at what is not done yet (seconds).
_LOOK_S = 0.1
_JOIN_S = 60.0
_UNKNOWN = (OutcomeUnknown, TimedOut, Unreachable)


class _Recorded(Client):
    core_type = RecordedCore


class Ends:
    """`problems` has what may not be. Numbers by name are in `counts`."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.is_done = False
        self._is_set, self._stop_putting, self._stop_working = threading.Event(), threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._put: set[int] = set()
        self._worked: Counter[int] = Counter()
        self._perhaps_worked: set[int] = set()
        self._seen: ScheduleInfo | None = None  # once it had put something
        self._clients: list[_Recorded] = []
        self._threads: list[threading.Thread] = []

    # -- for who watches ----------------------------------------------------------------------

    def start(self, addresses: list[HostPort]) -> None:
        url = "raftd://" + ",".join(f"{host}:{port}" for host, port in addresses)
        names = [f"{role} {number} of ends" for role, count in (("producer", _PRODUCERS), ("worker", _WORKERS)) for number in range(count)]
        self._clients = [_Recorded(url, name=name, timeout=_TIMEOUT_S) for name in names]
        runs: list[Callable[[], None]] = [self._manage]
        runs += [partial(self._produce, number) for number in range(_PRODUCERS)]
        runs += [partial(self._work, client) for client in self._clients[_PRODUCERS:]]
        self._threads = [threading.Thread(target=self._guarded, args=(run,), daemon=True) for run in runs]
        for thread in self._threads:
            thread.start()

    def stop_putting(self) -> None:
        self._stop_putting.set()

    def close(self) -> None:
        self._stop_working.set()
        for client in self._clients:
            client.close()
        for thread in self._threads:
            thread.join(_JOIN_S)

    @property
    def calls(self) -> list[Call]:
        cores: list[Any] = [client.core for client in self._clients]
        return [call for core in cores for call in core.calls]

    @property
    def resumed(self) -> int:
        """How often a session was resumed."""
        return sum(client.core.resumed for client in self._clients)

    def summary(self) -> dict[str, int]:
        """What became of the jobs, for people."""
        return {"jobs put into tubes with policies": len(self._put), **self.counts}

    # -- the clients --------------------------------------------------------------------------

    def _guarded(self, run: Callable[[], None]) -> None:
        try:
            run()
        except BaseException as error:  # a thread must not die unseen
            if not self._stop_working.is_set():
                self.problems.append(f"bug: a client ended with {type(error).__name__}: {error}")
                self.is_done = True

    def _until_known(self, call: Callable[[], Any]) -> Any:
        """What may be asked again is, until it is answered."""
        while True:
            try:
                return call()
            except _UNKNOWN:
                if self._stop_working.is_set():
                    raise

    def _manage(self) -> None:
        """Policies and the schedule, and at the end what became of all."""
        client = self._clients[0]
        self._until_known(lambda: client.set_policies(_POLICIES))
        self._until_known(lambda: client.set_schedule(_SCHEDULE, {"tube": _BEATS, "body": "beat", "every_s": _EVERY_MS / 1000}))
        self._is_set.set()
        while self._seen is None and not self._stop_putting.wait(_EVERY_MS / 1000):
            schedule = self._until_known(lambda: client.schedule(_SCHEDULE))
            self._seen = schedule if schedule.put else None
        self._stop_putting.wait()
        for thread in self._threads[1 : 1 + _PRODUCERS]:
            thread.join(_JOIN_S)
        self._until_known(lambda: client.pause_schedule(_SCHEDULE))
        self._see_all_end(client)
        self._judge_schedule(client)
        self.is_done = True

    def _produce(self, number: int) -> None:
        client, random, count = self._clients[number], Random(number), 0
        self._is_set.wait()
        while not self._stop_putting.is_set():
            count += 1
            name = f"ends {number} {count}"
            if count % 10 == 0:
                self._put_one(lambda key: client.put(_SHORT, key, delay=3, key=key), name)
            elif count % 10 == 5:
                self._put_one(partial(self._put_unique, client, f"kind {random.randrange(3)}"), name)
            else:
                self._put_one(lambda key: client.put(_TUBE, key, ttr=_TTR_S, key=key), name)
            self._stop_putting.wait(random.expovariate(1 / _PUT_PAUSE_S))

    def _put_unique(self, client: Client, kind: str, key: str) -> int:
        return client.put_unique(_TUBE, key, kind, ttr=_TTR_S, key=key).id

    def _put_one(self, put: Callable[[str], int], key: str) -> None:
        id = self._until_known(lambda: put(key))
        with self._lock:
            self._put.add(id)

    def _work(self, client: Client) -> None:
        random = Random(client.core.token)
        for job in client.jobs(_TUBE, _SHORT, _BEATS, prefetch=_PREFETCH):
            if job.attempts >= _MOST_ATTEMPTS:
                self.problems.append(f"attempts: job {job.id} is given after {job.attempts} failed attempts")
            self._end(job, random.random() < _FAILS)

    def _end(self, job: Job, fails: bool) -> None:
        try:
            if fails:
                job.fail("it failed")
            else:
                job.delete("done")
        except LostReservation:
            self.counts["of these, reservations lost"] += 1
            return
        except _UNKNOWN as error:
            if not fails and not isinstance(error, Unreachable):
                with self._lock:
                    self._perhaps_worked.add(job.id)
            return
        if not fails and job.tube != _BEATS:
            with self._lock:
                self._worked[job.id] += 1

    # -- judging ------------------------------------------------------------------------------

    def _see_all_end(self, client: Client) -> None:
        """Each job is done, or a dead letter."""
        open_ids = set(self._put)
        while open_ids and not self._stop_working.is_set():
            for id in sorted(open_ids):
                job: JobInfo | None = self._until_known(partial(client.peek, id))
                with self._lock:
                    is_worked, perhaps = bool(self._worked[id]), id in self._perhaps_worked
                if job is None and (is_worked or perhaps):
                    self.counts["of them done"] += 1
                elif job is not None and job.tube == _DEAD and not is_worked:
                    self.counts[f"of them dead: {job.death}"] += 1
                    if job.death == "attempts" and job.death_attempts != _MOST_ATTEMPTS:
                        self.problems.append(f"attempts: job {id} is dead after {job.death_attempts}")
                elif job is not None and job.tube == _DEAD:
                    self.problems.append(f"duplicated: job {id} is done, and dead")
                else:
                    continue  # it is worked, or its worker has not noted yet that it is done
                open_ids.discard(id)
            self._stop_working.wait(_LOOK_S)
        self.problems += [f"lost: job {id} of a tube with a policy has no end" for id in sorted(open_ids)]
        self.problems += [f"duplicated: job {id} was done twice" for id, times in self._worked.items() if times > 1]

    def _judge_schedule(self, client: Client) -> None:
        schedule = self._until_known(lambda: client.schedule(_SCHEDULE))
        beats = self._until_known(lambda: client.stats(_BEATS))
        wanted = schedule.put
        if self._seen is not None and self._seen.last is not None:
            wanted = self._seen.put + round((schedule.last - self._seen.last).total_seconds() * 1000 / _EVERY_MS)
        if not schedule.put == wanted == beats.total_jobs or schedule.skipped:
            told = f"{schedule.put} times, skipped {schedule.skipped}, put {beats.total_jobs} jobs"
            self.problems.append(f"schedule: one a second was due {wanted} times, and is said to have put {told}")
        self.counts["seconds of a schedule, each put once"] = schedule.put

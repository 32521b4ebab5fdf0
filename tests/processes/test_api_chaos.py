"""Jobs over HTTP while nodes are killed: every key becomes one job, and every job is worked once, by somebody who was told that it is his."""

from __future__ import annotations

import http.client
import json
import os
import random
import threading
import time
from collections import Counter

import pytest

from raftd.bench.local import wait_for
from tests.processes.harness import ProcessCluster

SECONDS = float(os.environ.get("RAFTD_CHAOS_S", "20"))
_PRODUCERS, _WORKERS = 4, 4
#: Longer than anybody is ever kept from deleting what he holds; a job whose holder was never told of it comes again after that.
_TTR_S = 30
_PAUSE_S = 0.01  # the workers are to keep up
_JSON = {"Content-Type": "application/json"}


class Asker(threading.Thread):
    """Asks one thing after the other, each until somebody has answered, at whatever node that is."""

    def __init__(self, cluster: ProcessCluster, number: int, over: threading.Event) -> None:
        super().__init__()
        self.number = number
        self.asked_again = 0
        self.error: BaseException | None = None
        self._cluster = cluster
        self._over = over
        self._random = random.Random(number)
        self._connection: http.client.HTTPConnection | None = None

    def once(self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> tuple[int, dict] | None:
        """None: nobody knows."""
        try:
            if self._connection is None:
                node = self._random.choice(self._cluster.nodes)
                self._connection = http.client.HTTPConnection(*self._cluster.address(node, "http"), timeout=10)
            self._connection.request(method, path, json.dumps(body) if body is not None else None, {**_JSON, **(headers or {})})
            answer = self._connection.getresponse()
            text = answer.read()
            if answer.status == 503:
                self._hang_up()
                return None
            return answer.status, json.loads(text) if text else {}
        except (OSError, http.client.HTTPException):
            self._hang_up()
            return None

    def until_known(self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> tuple[int, dict]:
        while (answer := self.once(method, path, body, headers)) is None:
            self.asked_again += 1
            time.sleep(0.05)  # a node that is away gives no event to wait for
        return answer

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def run(self) -> None:
        try:
            self.work()
        except BaseException as error:
            self.error = error
        finally:
            self._hang_up()

    def work(self) -> None:
        raise AssertionError("a producer or a worker")


class Producer(Asker):
    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.put: dict[str, list[int]] = {}

    def work(self) -> None:
        while not self._over.is_set():
            key = f"producer {self.number} key {len(self.put)}".replace(" ", "-")
            jobs = [{"body": f"{key} job {place}", "ttr_s": _TTR_S} for place in range(self._random.randint(1, 3))]
            status, said = self.until_known("POST", "/v1/tubes/t/jobs", jobs, {"Idempotency-Key": key})
            assert status == 201, said
            self.put[key] = said["ids"]
            self._over.wait(_PAUSE_S)


class Worker(Asker):
    """Whoever is not told whether his deletion was done asks again: the job is gone then, and it was he who had it."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.done: list[tuple[int, str]] = []

    def work(self) -> None:
        idle = 0
        while not self._over.is_set() or idle < 3:
            answer = self.once("POST", "/v1/reserve", {"tubes": ["t"], "count": 3, "timeout_s": 1})
            jobs = answer[1]["jobs"] if answer is not None else []
            idle = idle + 1 if answer is not None and not jobs else 0
            for job in jobs:
                status, said = self.until_known("DELETE", f"/v1/jobs/{job['id']}?token={job['token']}")
                if status == 409:  # the node's gateway was closed before it could say that the answer had left: it was given back
                    continue
                assert status in (204, 404), said
                self.done.append((job["id"], job["body"]))


@pytest.mark.load
def test_no_job_is_lost_or_done_twice_while_nodes_are_killed(tmp_path, capsys):
    over, produced = threading.Event(), threading.Event()
    chooser = random.Random(7)
    kills = 0
    with ProcessCluster(tmp_path, 3) as cluster:
        cluster.leader()
        producers = [Producer(cluster, number, produced) for number in range(_PRODUCERS)]
        workers = [Worker(cluster, 100 + number, over) for number in range(_WORKERS)]
        for asker in (*producers, *workers):
            asker.start()
        until_s = time.monotonic() + SECONDS
        while time.monotonic() < until_s:
            victim = chooser.choice(cluster.nodes)
            cluster.kill(victim)
            kills += 1
            produced.wait(chooser.uniform(0.2, 1.5))
            cluster.start(victim)
            wait_for(lambda: cluster.stats(victim), what="the node being back")  # noqa: B023
            produced.wait(chooser.uniform(0.5, 2))
        produced.set()
        for producer in producers:
            producer.join(30)
        wait_for(lambda: _is_empty(cluster), timeout_s=60, what="the queue being worked off")
        over.set()
        for worker in workers:
            worker.join(60)
        stats = cluster.stats(cluster.leader())
    assert [asker.error for asker in (*producers, *workers) if asker.error is not None] == []
    put = {f"{key} job {place}": id for producer in producers for key, ids in producer.put.items() for place, id in enumerate(ids)}
    done = Counter(body for worker in workers for _, body in worker.done)
    assert set(done) - set(put) == set(), "worked, and never put"
    assert set(put) - set(done) == set(), "lost"
    assert [body for body, times in done.items() if times > 1] == [], "worked twice"
    assert len(set(put.values())) == len(put)
    assert all(put[body] == id for worker in workers for id, body in worker.done)
    assert int(stats["total-jobs"]) == len(put), "put twice"
    again = sum(asker.asked_again for asker in (*producers, *workers))
    with capsys.disabled():
        print(
            f"\n  {SECONDS} s over HTTP, {kills} nodes killed: {len(put)} jobs put and worked, {again} calls asked again, 0 lost, 0 twice"
        )


def _is_empty(cluster: ProcessCluster) -> bool:
    stats = cluster.stats(cluster.leader())
    return stats["current-jobs-ready"] == stats["current-jobs-reserved"] == "0"

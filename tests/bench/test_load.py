"""What the load counts, against servers that answer by script; and what is made of it."""

from __future__ import annotations

import io
import itertools
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest
from rich.console import Console

from raftd.bench.ask import ask_stats
from raftd.bench.load import Result, Spec, run
from raftd.bench.loaders.connection import LoadError
from raftd.bench.rates import cpu_time_s
from raftd.bench.rounds import Measured, Round
from raftd.bench.workload import Workload
from raftd.cli.demo import Demo
from raftd.client.connection import NoAnswer

GREETING = [b"USING t", b"WATCHING 2", b"WATCHING 1"]


class Scripted:
    """A server on loopback with one connection at a time, which `serve` is given as a file."""

    def __init__(self, serve: Callable[[io.BufferedRWPair], None]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self._serve = serve
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        connection, _ = self._listener.accept()
        with connection, connection.makefile("rwb", buffering=0) as file:
            try:
                self._serve(file)
            except OSError:
                pass  # the load is over

    def __enter__(self) -> Scripted:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._listener.close()
        self._thread.join(10)
        assert not self._thread.is_alive()


def answering(*answers: bytes) -> Callable[[io.BufferedRWPair], None]:
    """After the greeting, answers command after command with `answers`, the last one again and again; bodies are no commands."""

    def serve(file: io.BufferedRWPair) -> None:
        left = [*GREETING, *answers]
        while line := file.readline():
            if line.startswith(b"put "):
                file.readline()
            file.write(left[0] + b"\r\n")
            if len(left) > 1:
                left.pop(0)

    return serve


def load(spec: Spec) -> Result:
    """What a load gives by a clock of its own: each look at it takes a millisecond, however slow the machine is."""
    moments = itertools.count(step=1_000_000)
    return run(spec, now_ns=lambda: next(moments))


def spec(address: tuple[str, int], **changes: object) -> Spec:
    values = {
        "connections": 1,
        "in_flight": 1,
        "body_bytes": 3,
        "work": "put",
        "warm_up_s": 0.0,
        "seconds": 0.05,
        "tubes": ("t",),
        **changes,
    }
    return Spec([address], **values)


def test_every_answered_put_is_counted():
    with Scripted(answering(b"INSERTED 1")) as server:
        result = load(spec(server.address, in_flight=4))
    assert sum(result.latencies.values()) > 0
    assert result.seconds == pytest.approx(0.05, abs=0.01)


def test_a_cycle_is_put_reserve_delete():
    served = []

    def serve(file: io.BufferedRWPair) -> None:
        while line := file.readline():
            if line.startswith(b"put "):
                file.readline()
            served.append(line.split()[0])
            word = {
                b"put": b"INSERTED 7",
                b"reserve": b"RESERVED 7 3\r\nxxx",
                b"delete": b"DELETED",
                b"use": b"USING t",
                b"ignore": b"WATCHING 1",
            }
            file.write(word.get(served[-1], b"WATCHING 2") + b"\r\n")

    with Scripted(serve) as server:
        result = load(spec(server.address, work="cycle", in_flight=2))
    assert served[3:9] == [b"put", b"put", b"reserve", b"reserve", b"delete", b"delete"]
    assert sum(result.latencies.values()) == pytest.approx(served.count(b"delete"), abs=2)


@pytest.mark.parametrize(
    ("work", "answers", "complaint"),
    [
        ("put", [b"OUT_OF_MEMORY"], "OUT_OF_MEMORY"),
        ("cycle", [b"DRAINING"], "DRAINING"),
        ("cycle", [b"INSERTED 1", b"TIMED_OUT"], "TIMED_OUT"),
        ("cycle", [b"INSERTED 1", b"RESERVED 1 3\r\nxxx", b"NOT_FOUND"], "NOT_FOUND"),
    ],
)
def test_a_wrong_answer_ends_the_measurement(work, answers, complaint):
    with Scripted(answering(*answers)) as server, pytest.raises(LoadError, match=complaint):
        load(spec(server.address, work=work))


def test_a_lost_connection_ends_the_measurement():
    def serve(file: io.BufferedRWPair) -> None:
        for answer in GREETING:
            file.readline()
            file.write(answer + b"\r\n")

    with Scripted(serve) as server, pytest.raises((LoadError, ConnectionResetError)):
        load(spec(server.address))


def test_rates_and_quantiles():
    one = Measured()
    one.add(Round(Counter({10: 98, 500: 1, 1_000: 1}), 2.0, 0.3, [0.01, 0.004, 0.006]))
    assert one.rate == 50
    assert (one.leader_us, one.follower_us, one.all_us) == (100, 50, 200)
    assert [round(one.quantile_s(fraction), 6) for fraction in (0.5, 0.98, 0.99, 0.999)] == [0.0001, 0.0001, 0.005, 0.01]
    one.add(Round(Counter({10: 400}), 2.0, 0.2, []))  # another node leads at its end: its processor time says nothing
    one.add(Round(Counter({10: 2}), 2.0, 0.2, [0.0, 0.0, 0.0]))
    assert (one.rate, one.busiest) == (50, 0.3)
    assert one.leader_us == 50


def test_processor_time_is_that_of_the_process():
    before = cpu_time_s(os.getpid())
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    assert cpu_time_s(os.getpid()) - before >= 0.08


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"UNKNOWN_COMMAND\r\n", "does not speak the beanstalkd protocol"),
        (b"", "it closes the connection; a node that has all the clients"),
        (b"OK 99999999999\r\n", "does not speak"),
        (b"x" * 100_000, "does not speak"),
        (b"OK " + b"9" * 5_000 + b"\r\n", "does not speak"),
        (b"OK 500\r\n---\ncurrent-jobs-ready: 1\n", "does not speak"),
        (b"OK 6\r\n[1, 2]\r\n", "cannot be read"),
        (b"OK 8\r\n---\na: 1\r\n", "cannot be read"),
    ],
)
def test_strange_answers_to_stats_are_no_answer(answer, complaint):
    def serve(file: io.BufferedRWPair) -> None:
        file.readline()
        file.write(answer)

    with Scripted(serve) as server, pytest.raises(NoAnswer, match=complaint):
        ask_stats(server.address, 5)


def test_a_server_that_dribbles_is_not_waited_for():
    def serve(file: io.BufferedRWPair) -> None:
        while file.write(b"x"):
            time.sleep(0.05)  # it is slow, that is the point

    began = time.monotonic()
    with Scripted(serve) as server:
        with pytest.raises(NoAnswer, match="timed out"):
            ask_stats(server.address, 0.3)
        assert time.monotonic() - began < 5


def test_no_answer_controls_the_terminal():
    stats = b"---\ncurrent-jobs-ready: 1\nrole: \x1b[31mleader\n"

    def serve(file: io.BufferedRWPair) -> None:
        file.readline()
        file.write(b"OK %d\r\n%b\r\n" % (len(stats), stats))

    with Scripted(serve) as server:
        assert ask_stats(server.address, 5) == {"current-jobs-ready": "1", "role": "?[31mleader"}


@pytest.mark.parametrize(("worked", "good"), [({b"a": 1, b"b": 1}, True), ({b"a": 1}, False), ({b"a": 2, b"b": 1}, False)])
def test_the_demo_is_good_only_if_nothing_is_lost_or_doubled(worked, good):
    demo = Demo(Console(file=io.StringIO()))
    demo._load = Workload([], 0, 0)
    demo._load.acknowledged = {b"a": 1.0, b"b": 2.0}
    demo._load.worked.update(worked)
    assert demo._conclude() is good


def test_the_longest_gap_counts_both_ends():
    load = Workload([], 0, 0)
    load.acknowledged = {b"a": 10.0, b"b": 10.5, b"c": 20.0}
    assert load.longest_gap_s(9.8, 12.0) == 1.5
    assert load.longest_gap_s(9.0, 10.6) == 1.0
    assert load.longest_gap_s(11.0, 12.0) == 1.0

"""The servers that `raftd bench` measures, and its clients for them: real ones, as Debian has them."""

from __future__ import annotations

import itertools
import os
import signal

import pytest

from raftd.bench import load
from raftd.bench.loaders.amqp import AmqpConnection
from raftd.bench.local import LocalError, wait_for
from raftd.bench.servers import OTHERS, Missing, raftd_server


def work_of(server, work, **changes):
    """What a short load of this kind gives, with jobs in a tube of its own."""
    server.prepare(f"tube-{work}")
    values = {"connections": 4, "in_flight": 3, "body_bytes": 20, "warm_up_s": 0.2, "seconds": 0.5, **changes}
    spec = load.Spec(server.addresses, work=work, tubes=(f"tube-{work}",), protocol=server.protocol, tls=server.tls, **values)
    moments = itertools.count(step=1_000_000)
    # each look at the clock takes a millisecond, however slow the machine is; an open loop is about time itself
    return load.run(spec) if spec.rate is not None else load.run(spec, now_ns=lambda: next(moments))


@pytest.mark.load
@pytest.mark.parametrize("name", [name for name in OTHERS if name != "raftd-tls"])
def test_a_server_is_measured_with_every_work(name, tmp_path):
    try:
        with OTHERS[name](tmp_path) as server:
            before = server.counts()
            for work in ("put", "cycle", "handoff"):
                result = work_of(server, work)
                assert sum(result.latencies.values()) > 0, work
                assert result.unanswered >= 0
            assert len(server.processes()) == (1 if name == "beanstalkd" else 3)
            assert server.counts().since(before).fsyncs is None
            server.check()
    except Missing as missing:
        pytest.skip(str(missing))


def test_raftd_is_measured_with_every_work(tmp_path):
    with raftd_server(tmp_path, 1) as server:
        before = server.counts()
        for work in ("put", "cycle", "handoff"):
            assert sum(work_of(server, work).latencies.values()) > 0, work
        done = server.counts().since(before)
        assert done.fsyncs
        assert done.turns
        assert server.name == "raftd, 1 node"


def test_raftd_is_measured_with_tls(tmp_path):
    with OTHERS["raftd-tls"](tmp_path) as server:
        assert server.tls is not None
        assert sum(work_of(server, "cycle").latencies.values()) > 0
        assert server.counts().fsyncs
        assert server.name == "raftd with TLS, 3 nodes"


def test_an_open_loop_keeps_its_rate(tmp_path):
    with raftd_server(tmp_path, 1) as server:
        result = work_of(server, "put", rate=200.0, in_flight=1, warm_up_s=0.0, seconds=1.0)
    assert 100 <= sum(result.latencies.values()) <= 201


def test_a_server_that_has_ended_is_named(tmp_path):
    with raftd_server(tmp_path, 1) as server:
        os.kill(server.processes()[0], signal.SIGKILL)
        with pytest.raises(LocalError, match="node 1 ended with status -9"):
            wait_for(server.check)


def test_confirms_in_any_order_are_counted_once():
    connection = AmqpConnection.__new__(AmqpConnection)
    connection.puts_done, connection._confirmed, connection._confirmed_above = 0, 0, set()
    counted = []
    for tag, is_multiple in ((2, False), (1, False), (5, False), (4, True), (7, True)):
        connection._confirm(tag, is_multiple)
        counted.append(connection.puts_done)
    assert counted == [1, 2, 3, 5, 7]

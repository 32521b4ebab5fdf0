"""The line listener beside a real beanstalkd: the same bytes to both, the same answers back.

Job ids are mapped by order of appearance, and what depends on time or on the machine is masked.
ORACLE_STREAMS and ORACLE_START choose the random streams (2,000 for a release; a part of them here).
"""

from __future__ import annotations

import os
import random
import re
import shutil
import socket
import subprocess

import pytest

from raftd.bench.local import free_ports, wait_for
from tests.processes.harness import LineClient, ProcessCluster
from tests.processes.test_faces import _try

BEANSTALKD = shutil.which("beanstalkd")
START = int(os.environ.get("ORACLE_START", "1"))
STREAMS = int(os.environ.get("ORACLE_STREAMS", "40"))
#: Statistics that only raftd has, of any answer: they are left out of the comparison.
OURS = ("node", "role", "term", "leader", "commit-index", "applied-index", "nodes")
_OUR_LINES = re.compile(rb"^(%b): .*\n" % "|".join(OURS).encode(), re.MULTILINE)
MASKED = re.compile(rb"^(age|time-left|pause-time-left|file): .*$", re.MULTILINE)
QUOTED = re.compile(rb'^(tube|name): "(.*)"$', re.MULTILINE)  # beanstalkd quotes them from 1.13 on; Debian's is 1.12

pytestmark = pytest.mark.skipif(
    BEANSTALKD is None, reason="beanstalkd is not installed, so nothing can be compared with it (Debian: beanstalkd)"
)


class Side:
    """One of the two servers, with its connections and its own ids for the jobs of a stream."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.connections: dict[int, LineClient] = {}
        self.ids: list[int] = []

    def connection(self, number: int) -> LineClient:
        if number not in self.connections:
            self.connections[number] = LineClient(self.port)
        return self.connections[number]

    def close(self) -> None:
        for client in self.connections.values():
            client.close()
        self.connections.clear()

    def say(self, number: int, text: bytes) -> bytes:
        """Send, with <k> standing for the id of the k-th job of this stream; one whole answer, ids mapped back."""

        def id_of(match: re.Match[bytes]) -> bytes:
            place = int(match[1])
            return b"%d" % (self.ids[place] if place < len(self.ids) else 10**15 + place)

        client = self.connection(number)
        client.send(re.sub(rb"<(\d+)>", id_of, text))
        return self.answer(client)

    def answer(self, client: LineClient) -> bytes:
        line = client.line()
        words = line.split(b" ")
        if words[0] == b"INSERTED":
            self.ids.append(int(words[1]))
            return b"INSERTED <%d>" % (len(self.ids) - 1)
        if words[0] in (b"RESERVED", b"FOUND"):
            body = client.data(int(words[2]))
            return b"%b <%d> %b\n%b" % (words[0], self.ids.index(int(words[1])), words[2], body)
        if words[0] == b"OK":
            size = int(words[1])
            text = client.data(size)
            if b"\nid: " in text and b"\ntube: " in text:
                id = int(re.search(rb"\nid: (\d+)", text)[1])
                text = text.replace(b"id: %d" % id, b"id: <%d>" % self.ids.index(id))
            if b"\n- " in text:
                # ours are in order of insertion; beanstalkd moves the last one to the place of one that goes
                return b"OK %d\n" % size + b"\n".join(sorted(text.split(b"\n")))
            masked = MASKED.sub(rb"\1: -", _OUR_LINES.sub(b"", text))
            return b"OK\n" + QUOTED.sub(rb"\1: \2", masked)
        return line


@pytest.fixture
def sides(servers):
    """Both servers, empty before and after."""
    yield servers
    forget(servers)


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    directory = tmp_path_factory.mktemp("oracle")
    (port,) = free_ports(1)
    oracle = subprocess.Popen([BEANSTALKD, "-l", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL)
    try:
        with ProcessCluster(directory, 1) as cluster:
            wait_for(lambda: _try(port), what="beanstalkd").close()
            cluster.client(1).close()
            yield Side(port), Side(cluster.addresses[1]["line"])
    finally:
        oracle.kill()
        oracle.wait()


def both(sides, number: int, text: bytes) -> bytes:
    oracle, ours = (side.say(number, text) for side in sides)
    assert ours == oracle, f"connection {number} said {text!r}"
    return ours


def forget(sides) -> None:
    """Delete what the stream has left, and every connection."""
    for side in sides:
        side.close()
        wait_for(lambda side=side: _stats(side)["current-connections"] == "1", what="the connections being gone")
        cleaner = LineClient(side.port)
        for id in side.ids:
            cleaner.ask(b"delete %d" % id)
        cleaner.close()
        side.ids.clear()
        stats = _stats(side)
        assert [stats[f"current-jobs-{state}"] for state in ("ready", "reserved", "delayed", "buried")] == ["0"] * 4


def _stats(side: Side) -> dict[str, str]:
    client = LineClient(side.port)
    try:
        return client.stats()
    finally:
        client.close()


# -- written by hand ---------------------------------------------------------------------------

EXCHANGES = {
    "life of a job": [
        b"put 10 0 100 5\r\nhello\r\n",
        b"stats-job <0>\r\n",
        b"peek <0>\r\n",
        b"reserve\r\n",
        b"touch <0>\r\n",
        b"stats-job <0>\r\n",
        b"release <0> 5 0\r\n",
        b"reserve-job <0>\r\n",
        b"reserve-job <0>\r\n",
        b"bury <0> 7\r\n",
        b"stats-job <0>\r\n",
        b"peek-buried\r\n",
        b"kick 10\r\n",
        b"kick-job <0>\r\n",
        b"stats-job <0>\r\n",
        b"delete <0>\r\n",
        b"delete <0>\r\n",
        b"stats-job <0>\r\n",
    ],
    "delays": [
        b"put 1 100 100 1\r\na\r\n",
        b"put 1 50 100 1\r\nb\r\n",
        b"peek-delayed\r\n",
        b"peek-ready\r\n",
        b"kick-job <0>\r\n",
        b"kick 1\r\n",
        b"stats-tube default\r\n",
        b"reserve-with-timeout 0\r\n",
        b"release <0> 9 100\r\n",
        b"stats-job <0>\r\n",
        b"reserve-job <0>\r\n",
    ],
    "tubes": [
        b"use t1\r\n",
        b"list-tube-used\r\n",
        b"watch t2\r\n",
        b"watch t2\r\n",
        b"list-tubes-watched\r\n",
        b"list-tubes\r\n",
        b"ignore default\r\n",
        b"ignore t3\r\n",
        b"ignore t2\r\n",
        b"stats-tube t1\r\n",
        b"stats-tube t2\r\n",
        b"stats-tube default\r\n",
        b"stats-tube gone\r\n",
        b"pause-tube t1 100\r\n",
        b"pause-tube gone 1\r\n",
        b"stats-tube t1\r\n",
        b"pause-tubet1 0\r\n",
        b"stats-tube t1\r\n",
    ],
    "pauses": [
        b"put 1 0 100 1\r\na\r\n",
        b"pause-tube default 100\r\n",
        b"reserve-with-timeout 0\r\n",
        b"peek-ready\r\n",
        b"reserve-job <0>\r\n",
        b"pause-tube default 0\r\n",
    ],
    "errors": [
        line + b"\r\n"
        for line in (
            *(b"", b"nonsense", b"PUT 1 1 1 1", b"put", b"put 1 1 1", b"put 1 1 1 a", b"put -1 1 1 1", b"put 1 1 1 4294967296"),
            *(b"peek", b"peek ", b"peek x", b"peek 1x", b"peek 0", b"peek-ready ", b"peek-readyx", b"peek-delayed 1", b"peek-buried x"),
            *(b"reserve ", b"reserve x", b"reserve-with-timeout", b"reserve-job"),
            *(b"reserve-job x", b"reserve-job 1x", b"delete", b"delete ", b"delete -1", b"delete 1 ", b"delete 18446744073709551616"),
            *(
                b"release",
                b"release 1",
                b"release 1 1",
                b"release 1 1 1 ",
                b"release 1 1 x",
                b"bury",
                b"bury 1",
                b"bury 1 x",
                b"bury 1 1 1",
            ),
            *(b"kick", b"kick ", b"kick x", b"kick -1", b"kick 10abc", b"kick +2", b"kick-job", b"kick-job x", b"kick-job 1 "),
            *(
                b"touch",
                b"touch x",
                b"touch 1 ",
                b"use",
                b"use ",
                b"use -x",
                b"use a b",
                b"use  a",
                b"use " + b"x" * 201,
                b"use " + b"x" * 200,
            ),
            *(
                b"watch",
                b"watch ",
                b"watch a b",
                b"ignore",
                b"ignore ",
                b"ignore default",
                b"statsx",
                b"stats ",
                b"stats-job",
                b"stats-job x",
            ),
            *(
                b"stats-tube",
                b"stats-tube ",
                b"stats-tube a b",
                b"list-tubesx",
                b"list-tubes ",
                b"list-tube-used x",
                b"list-tubes-watched x",
            ),
            *(
                b"pause-tube",
                b"pause-tube x",
                b"pause-tube x y",
                b"pause-tube default -1",
                b"pause-tube  default 0",
                b"pause-tube default 0 ",
            ),
            *(b"x" * 222, b"x" * 223, b"x" * 500, b"use a\0b", b"delete " + b"0" * 210 + b"1"),
        )
        if len(line) != 223  # a CRLF split at byte 224 stalls beanstalkd: there we are better
    ],
    "bodies": [
        b"put 1 0 100 0\r\n\r\n",
        b"put 1 0 100 4\r\n\r\n\r\n\r\n",
        b"put 1 0 100 65535\r\n" + b"x" * 65_535 + b"\r\n",
        b"put 1 0 100 65536\r\n" + b"x" * 65_536 + b"\r\n",
        b"put  1  0  0100  1\r\na\r\n",
        b"put 1 0 0 1\r\na\r\n",
        b"stats-job <4>\r\n",
        b"peek <1>\r\n",
        b"put 4294967295 0 4294967295 1\r\na\r\n",
        b"stats-job <5>\r\n",
    ],
    "urgency": [
        b"put 1023 0 100 1\r\na\r\n",
        b"put 1024 0 100 1\r\nb\r\n",
        b"stats-tube default\r\n",
        b"reserve\r\n",
        b"reserve\r\n",
        b"stats-tube default\r\n",
        b"bury <1> 1\r\n",
        b"bury <0> 2\r\n",
        b"peek-buried\r\n",
        b"stats-tube default\r\n",
        b"kick 1\r\n",
        b"stats-tube default\r\n",
    ],
}


@pytest.mark.parametrize("name", EXCHANGES)
def test_the_same_bytes_get_the_same_answers(sides, name):
    both(sides, 1, b"list-tube-used\r\n")
    for text in EXCHANGES[name]:
        both(sides, 1, text)


def test_a_wait_ends_the_same_way(sides):
    for side in sides:
        waiter, producer = side.connection(1), side.connection(2)
        waiter.send(b"watch a\r\n")
        assert side.answer(waiter) == b"WATCHING 2"
        waiter.send(b"reserve\r\nlist-tube-used\r\n")
        wait_for(lambda producer=producer: b"current-waiting: 1" in _stats_tube(producer), what="the wait")
        assert side.say(2, b"put 1 0 100 1\r\na\r\n") == b"INSERTED <0>"
        assert side.answer(waiter) == b"RESERVED <0> 1\na"
        assert side.answer(waiter) == b"USING default"
        waiter.send(b"reserve-with-timeout 1\r\n")
        assert side.answer(waiter) == b"TIMED_OUT"


def _stats_tube(client: LineClient) -> bytes:
    word, size = client.ask(b"stats-tube default").split()
    assert word == b"OK"
    return client.data(int(size))


def test_half_close_is_answered_to_the_end(sides):
    for side in sides:
        with socket.create_connection(("127.0.0.1", side.port), timeout=10) as client:
            client.sendall(b"put 1 0 100 1\r\na\r\nuse t\r\nreserve\r\ndelete 999999999\r\nreserve\r\nlist-tube-used\r\n")
            client.shutdown(socket.SHUT_WR)
            got = b""
            while data := client.recv(4096):
                got += data
        id = int(re.match(rb"INSERTED (\d+)", got)[1])
        assert got.startswith(b"INSERTED %d\r\nUSING t\r\nRESERVED %d 1\r\na\r\nNOT_FOUND\r\n" % (id, id)), side.port
        side.ids.append(id)
        assert got.endswith(b"TIMED_OUT\r\nUSING t\r\n")


def test_stats_have_the_same_keys_and_the_same_counts(sides):
    keys, values = [], []
    for side in sides:
        client = LineClient(side.port)
        before = client.stats()
        for line in (
            b"use x",
            b"watch x",
            b"peek-ready",
            b"reserve-with-timeout 0",
            b"reserve-job 999999999",
            b"kick-job 999999999",
            b"kick 1",
        ):
            client.ask(line)
        id = client.put(b"body")
        client.ask(b"put 0 0 0 99999\r\n" + b"x" * 99_999)
        assert client.delete(id)
        after = client.stats()
        keys.append([key for key in after if key not in OURS])
        # connections of the test before may end meanwhile
        counted = [key for key in after if key.startswith(("cmd-", "total-jobs", "current-")) and key != "current-connections"]
        values.append({key: int(after[key]) - int(before[key]) for key in counted})
        client.close()
    assert keys[1] == keys[0]
    assert values[1] == values[0]


# -- random ------------------------------------------------------------------------------------


def random_command(choose: random.Random, jobs: int) -> bytes:
    id = b"<%d>" % choose.randrange(max(1, jobs + 1))
    tube = choose.choice([b"default", b"a", b"b"])
    pri = choose.choice([0, 1, 1023, 1024, 5000])
    # delays that end at one moment of a millisecond clock are in order of id; beanstalkd's clock is finer
    delay = choose.choice([0, 0, 0, 1000 + choose.randrange(1_000_000)])
    body = choose.choice([b"", b"x", b"some body", b"a\r\nb"])
    return choose.choice(
        [
            *[b"put %d %d 1000 %d\r\n%b\r\n" % (pri, delay, len(body), body)] * 5,
            *[b"reserve-with-timeout 0\r\n"] * 4,
            b"reserve-job %b\r\n" % id,
            *[b"delete %b\r\n" % id] * 2,
            *[b"release %b %d %d\r\n" % (id, pri, delay)] * 2,
            *[b"bury %b %d\r\n" % (id, pri)] * 2,
            b"touch %b\r\n" % id,
            b"kick %d\r\n" % choose.randrange(4),
            b"kick-job %b\r\n" % id,
            *[b"use %b\r\n" % tube, b"watch %b\r\n" % tube, b"ignore %b\r\n" % tube],
            b"pause-tube %b %d\r\n" % (tube, choose.choice([0, 1000])),
            *[b"peek %b\r\n" % id, b"peek-ready\r\n", b"peek-delayed\r\n", b"peek-buried\r\n"],
            *[b"stats-job %b\r\n" % id, b"stats-tube %b\r\n" % tube],
            *[b"list-tubes\r\n", b"list-tubes-watched\r\n", b"list-tube-used\r\n"],
            b"put 1 1 1 1\r\nabc\r\n",
        ]
    )


def test_random_streams_over_three_connections(sides):
    for stream in range(START, START + STREAMS):
        choose = random.Random(stream)
        for number in (1, 2, 3):
            both(sides, number, b"list-tube-used\r\n")
        for _ in range(100):
            number = choose.randrange(1, 4)
            text = random_command(choose, len(sides[0].ids))
            if text.startswith(b"put 1 1 1 1\r\nabc"):
                # what is left over of the body is a command of its own: two answers
                both(sides, number, b"put 1 1 1 1\r\nabc")
                both(sides, number, b"\r\n")
            else:
                both(sides, number, text)
        both(sides, 1, b"pause-tube default 0\r\n")
        forget(sides)

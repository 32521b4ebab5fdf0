"""`python -m tests.decoders.strangers --inputs 1000000 --seed 1`: so many changed inputs from clients who show nothing that is good, to the
line, client and HTTP listeners of a node whose cluster has users, each over a connection of its own.

None may change or learn anything, raise anything, or be kept after it has gone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from random import Random
from typing import Any

from twisted.internet.task import Clock

from raftd.limits import FRAME_BYTES
from raftd.server.authentication import Authentication
from raftd.server.http.callers import Callers
from raftd.server.http.sessions import BrowserSessions
from raftd.server.http.site import Call, Site
from raftd.wire import client as w
from raftd.wire.frames import frame
from tests.decoders.__main__ import peak_bytes
from tests.decoders.mutate import load_corpus, mutated
from tests.server.calls import router_of
from tests.server.harness import Listener, Listeners, make_users

SECRET = b"nobody may read this"
TOKEN = "raftd-none-of-theirs"
_HTTP = [
    b"GET /v1/stats HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer raftd-x\r\n\r\n",
    b"GET /v1/jobs/1 HTTP/1.1\r\nHost: a\r\nAuthorization: Basic cm9vdDpyYWZ0ZC14\r\n\r\n",
    b"POST /v1/tubes/t/jobs HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n" + b'{"body":"x"}',
    b"POST /v1/reserve HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n" + b'{"tubes":["t"]}',
    b"DELETE /v1/session HTTP/1.1\r\nHost: a\r\nCookie: raftd-1=x\r\nRaftd-Page: y\r\n\r\nGET /v1/session HTTP/1.1\r\nHost: a\r\n\r\n",
    b'GET /v1/backup HTTP/1.1\r\nHost: a\r\nCookie: __Host-raftd-1=x; a="b\r\n\r\nGET /v1/series HTTP/1.1\r\nHost: a\r\nCookie: raftd-1=\r\n\r\n',
    b"GET /metrics HTTP/1.1\r\nHost: a\r\nAuthorization: Digest x\r\n\r\nGET /events HTTP/1.1\r\nHost: a\r\n\r\n",
]
_LINES = [b"auth root x\r\nput 0 0 60 1\r\nx\r\n", b"reserve\r\n", b"peek 1\r\nauth root raftd-x\r\nstats\r\n", b"list-tubes\r\nquit\r\n"]


class Fuzzed:
    """One node, a job, a user, and listeners that may be told anything."""

    def __init__(self) -> None:
        self.listeners = Listeners(1)
        self.cluster = self.listeners.cluster
        self.node = self.cluster[1]
        self._prepare()
        clock: Any = self.cluster.scheduler
        self.authentication = Authentication(clock)
        counters = self.listeners.counters[1]
        sessions = BrowserSessions(clock, "sim", 1)
        callers = Callers(self.node, clock, self.authentication, sessions)
        self._router = router_of(self.node, clock, counters, sessions)
        limiter = self.listeners.limiter[1]
        self._http_clock = Clock()  # twisted.web resets its timers, which those of a simulation cannot
        self._site = Site(
            self._http_clock, limiter, counters, self.authentication, lambda call: callers.find(call, self._dispatch), frozenset("a")
        )
        self._site.node = self.node
        self.before = self.state()

    def _prepare(self) -> None:
        there = self.listeners.line()
        there.send(b"use hidden-tube\r\nput 0 0 60 %d\r\n%b\r\n" % (len(SECRET), SECRET))
        there.hang_up()
        self.cluster.run(100)
        make_users(self.listeners, TOKEN)

    def _dispatch(self, call: Call) -> None:
        if not self._router.handles(call):
            call.say(404, {})

    def state(self) -> list[object]:
        machine = self.node.machine
        users = [(user.name, list(user.tokens)) for user in machine.access.users.values()]
        sessions = [len(machine.clients.sessions), sum(len(row.sessions) for row in machine.gateways.values())]
        return [sorted(machine.jobs), sorted(machine.tubes), users, len(machine.access.records), sessions]

    def tell(self, name: str, data: bytes, ms: float) -> bytes:
        if name == "http":
            listener = Listener(self.cluster, self._site.buildProtocol(None))
        else:
            listener = self.listeners.line() if name == "line" else self.listeners.client()
        said = listener.send(data, ms)
        self._http_clock.advance(ms / 1_000)
        if not listener.is_closed or listener.protocol is not None:
            listener.hang_up()
        return said + listener.later(0)


def run(inputs: int, seed: int) -> Counter[str]:
    """How many of each listener. Raises AssertionError with the input."""
    random = Random(seed)
    corpus = load_corpus()
    hellos = [data for data in corpus["client"] if data.startswith(b"raftd")]
    hellos += [w.encode_hello(w.SessionHello("sim", b"t" * 16, "x", "raftd-x"))[4:], w.encode_hello(w.ClientHello("sim"))[4:]]
    parts = {"line": corpus["line"] + _LINES, "client": hellos, "http": _HTTP}
    fuzzed = Fuzzed()
    counts: Counter[str] = Counter()
    peak = 0
    for number in range(inputs):
        name = random.choice(("line", "line", "client", "client", "http"))
        some = parts[name]
        data = mutated(random.choice(some), some, random)
        if name == "client":
            data = frame(data[:8_000]) + random.choice([b"", *map(frame, corpus["client"][:5])])
        try:
            said = fuzzed.tell(name, data, 1 if number % 50 else 50)
        except Exception as error:  # any of them is what is looked for
            raise AssertionError(f"{name}: {type(error).__name__}: {error}, for {data.hex()}") from error
        assert b"HTTP/1.1 500" not in said, f"{name}: a bug: {data.hex()}"
        assert SECRET not in said, f"{name}: {data.hex()}"
        assert b"hidden-tube" not in said or b"hidden-tube" in data, f"{name}: {data.hex()}"
        counts[name] += 1
        if number == min(1_000, inputs // 2):
            peak = peak_bytes()
    fuzzed.cluster.run(60_000)
    assert fuzzed.state() == fuzzed.before
    assert not any(fuzzed.node.pending.values()), fuzzed.node.pending
    assert peak_bytes() - peak <= FRAME_BYTES, f"{peak_bytes() - peak:,} bytes more than at first"
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description="Changed inputs from strangers.")
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    began = time.monotonic()
    try:
        counts = run(asked.inputs, asked.seed)
    except AssertionError as wrong:
        sys.exit(str(wrong)[:4_000])
    print(f"strangers: {dict(counts)}, seed {asked.seed}: nothing changed, nothing told; {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()

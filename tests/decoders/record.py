"""Record the corpus anew: `python -m tests.decoders.record`. Three real nodes are put to work, and what goes over their connections and
onto their disks is kept, a few of each kind and size."""

from __future__ import annotations

import socket
import threading
from collections import defaultdict
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, cast

import msgspec
from twisted.internet import reactor as _reactor
from twisted.internet.threads import blockingCallFromThread

from raftd.bench.chaos import ProxiedCluster
from raftd.bench.local import wait_for
from raftd.bench.proxy import Link
from raftd.bench.unique import RecordedCore
from raftd.client.blocking import Client
from raftd.client.core import Core
from raftd.jobs.machine import StateMachine
from raftd.jobs.snapshot import dump
from raftd.raft.messages import Configuration, EntryKind
from raftd.sim.disk import MemoryFileSystem
from raftd.storage.filesystem import RealFileSystem
from raftd.storage.log import SegmentedLog
from raftd.storage.records import ID_BYTES
from raftd.storage.snapshots import Meta, encode
from tests.decoders.mutate import CORPUS

reactor = cast(Any, _reactor)
_OF_A_KIND = 3
_MOST_BYTES = 6_000
#: An entry at which the queue is still small.
_EARLY = 40


class _Kept:
    """Examples, by what they are for."""

    def __init__(self) -> None:
        self.found: dict[str, dict[tuple[int, int], list[bytes]]] = defaultdict(lambda: defaultdict(list))

    def keep(self, what: str, data: bytes, kind: int = 0) -> None:
        some = self.found[what][kind, len(data).bit_length()]
        if 0 < len(data) <= _MOST_BYTES and len(some) < _OF_A_KIND and data not in some:
            some.append(bytes(data))

    def all(self) -> dict[str, list[bytes]]:
        return {what: [data for some in kinds.values() for data in some] for what, kinds in sorted(self.found.items())}


def _kind(body: bytes) -> int:
    """Of a message: its tag, which is the first in its array."""
    return body[1] if len(body) > 1 else 0


class _Core(RecordedCore):
    kept: _Kept

    def output(self) -> bytes:
        data = Core.output(self)
        self._sent.feed(data)
        while (body := self._sent.next_frame()) is not None:
            self.kept.keep("client", body, body[-1] if body.startswith(b"raftd") else _kind(body) + 256 * self._what(body))
        return data

    def _what(self, body: bytes) -> int:
        """Of an ask: its own tag."""
        fields = msgspec.msgpack.decode(body)
        return int(fields[4][0]) if fields[0] == 20 else 0

    def received(self, data: bytes, now_s: float) -> bool:
        self._heard.feed(data)
        while (body := self._heard.next_frame()) is not None:
            fields = None if body.startswith(b"raftd") else msgspec.msgpack.decode(body)
            self.kept.keep("answer", body, 0 if fields is None else int(fields[-1][0]))
        return Core.received(self, data, now_s)


class _Client(Client):
    core_type = _Core


_LINES = (
    b"use mail\r\nput 5 0 60 5\r\nhello\r\nput 1 2 3 0\r\n\r\nwatch mail\r\nreserve-with-timeout 0\r\nstats\r\n",
    b"reserve-job 1\r\nrelease 1 7 0\r\nreserve\r\ntouch 1\r\nbury 1 3\r\nkick 10\r\nkick-job 1\r\npeek 1\r\npeek-ready\r\n",
    b"peek-delayed\r\npeek-buried\r\npause-tube mail 0\r\nstats-job 1\r\nstats-tube mail\r\nlist-tubes\r\nlist-tube-used\r\n",
    b"list-tubes-watched\r\nignore default\r\ndelete 1\r\nnonsense\r\nput 0 0 0 70000\r\n" + b"x" * 300 + b"\r\nquit\r\n",
)


def _work(cluster: ProxiedCluster, kept: _Kept) -> None:
    url = "raftd://" + ",".join(f"127.0.0.1:{cluster.address(node, 'client')[1]}" for node in cluster.nodes)
    with _Client(url) as client:
        for number in range(120):
            client.put_many(
                "mail", [b"job %d" % number + b"." * (number * 7 % 300)] * (number % 4 + 1), key=f"key {number}", delay=number % 3
            )
        for number in range(30):
            job = client.reserve("mail", "other", timeout=1)
            assert job is not None
            job.touch()
            (job.delete, job.release, lambda job=job: job.fail("it broke", 1), job.bury)[number % 4]()
        for taken, job in enumerate(client.jobs("mail", prefetch=8)):
            job.delete()
            if taken == 40:
                break
        client.kick("mail", 3)
        client.pause("mail", 0)
        client.stats("mail")
        client.peek_next("mail")
        list(client.tubes())
        policy = {"max_attempts": 2, "backoff": [1, 5], "dead_letter": "dead", "max_jobs": 5, "rate": 9, "retain_s": 60}
        client.set_policies({"policy": policy, "other": None})
        client.put_unique("policy", "only", "kind", until="reserved", unique_for=60)
        only = client.reserve("policy", timeout=1)
        if only is not None:
            only.delete("done")
            client.result(only.id)
        client.policy("policy")
        list(client.policies())
        client.replay(client.count_dead("mail", error="broke", origin="mail", newer=60)[1], "move", "again")
        client.set_schedule("beat", {"tube": "beats", "body": "beat", "every_s": 0.5, "catch_up": "one"})
        client.set_schedule("daily", {"tube": "beats", "cron": "30 6 * * 1-5", "zone": "Europe/Berlin"})
        client.pause_schedule("daily")
        client.run_schedule("beat")
        list(client.schedules())
        client.reserve("none", timeout=0.1)
    for lines in _LINES:
        kept.keep("line", lines)
        with socket.create_connection(cluster.line_address(1), timeout=10) as connection:
            connection.sendall(lines)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass


def _keep_files(directory: Path, kept: _Kept) -> None:
    """The log, whole and in part, its entries, and the state that they give."""
    machine = StateMachine()
    fs = RealFileSystem()
    entries = SegmentedLog(fs, str(directory / "log"), bytes).recover().entries
    for entry in entries:
        data = entry.data if entry.kind is EntryKind.BATCH else b""
        machine.apply(entry.index, entry.time_ms, data)
        kept.keep("entry", data, _kind(data))
        if entry.index in (_EARLY, len(entries) // 2, len(entries)):
            for piece in dump(machine, 1_000):
                kept.keep("piece", piece, _kind(piece))
        if entry.index == _EARLY:
            meta = Meta("local", Configuration(bytes(16), (1, 2, 3)), machine.applied_index, 1, machine.now_ms)
            kept.found["snapshot"][0, 0].append(b"".join(encode(meta, dump(machine, 1_000))))
    log = MemoryFileSystem()
    log.make_directory("log")
    small = SegmentedLog(log, "log", lambda: b"i" * ID_BYTES)
    small.recover()
    for start in range(0, _EARLY, 4):
        small.prepare(entries[start : start + 4])()
    (name,) = log.names("log")
    kept.found["log"][0, 0].append(log.read(f"log/{name}"))
    kept.found["vote"][0, 0].append((directory / "vote.a").read_bytes())


def main() -> None:
    """Writes the file."""
    kept = _Kept()
    _Core.kept = kept
    carry = Link.carry

    def kept_carry(link: Link, to: Any, data: bytes) -> None:
        body = data[4:]
        kept.keep("peer", body, 0 if body.startswith(b"raftd") else _kind(body))
        carry(link, to, data)

    Link.carry = kept_carry
    thread = threading.Thread(target=reactor.run, kwargs={"installSignalHandlers": False}, daemon=True)
    thread.start()
    with TemporaryDirectory() as directory:
        cluster = blockingCallFromThread(reactor, ProxiedCluster, Path(directory), 3, Random(1))
        config = Path(directory) / "cluster.yaml"
        config.write_text(config.read_text() + "snapshot_log_bytes: 1048576\n")
        cluster.__enter__()
        try:
            wait_for(cluster.find_leader, 20, "a leader")
            _work(cluster, kept)
            cluster.kill(cluster.leader())
            wait_for(cluster.find_leader, 20, "a leader")
            leader = cluster.leader()
            for local in list(cluster.running.values()):
                local.stop()
        finally:
            blockingCallFromThread(reactor, cluster.proxy.close)
            for local in cluster.running.values():
                local.process.kill()
                local.process.wait()
        _keep_files(Path(directory) / "data" / str(leader), kept)
    reactor.callFromThread(reactor.stop)
    thread.join(10)
    CORPUS.write_bytes(msgspec.json.encode(kept.all()))
    print({what: (len(some), sum(map(len, some))) for what, some in kept.all().items()})


if __name__ == "__main__":
    main()

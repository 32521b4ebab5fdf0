"""`raftd bench layers`: processor time per operation of each layer alone, on the same input every time.

What is printed is the best of several runs, in µs, and in *additions*: how many numbers a plain loop adds up in the same time, which
hardly depends on the machine. The baseline is in additions, so a change can be judged in seconds.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from random import Random

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from raftd.jobs import commands as c
from raftd.jobs.budget import COSTS, Share
from raftd.jobs.machine import StateMachine
from raftd.jobs.replies import Inserted, Reserved
from raftd.limits import LIMITS, MAX_JOB_BYTES
from raftd.node.gateway import Gateway
from raftd.raft.core import Raft
from raftd.raft.log import Log
from raftd.raft.messages import AppendEntries, Configuration, Entry, EntryKind, Message
from raftd.raft.ready import HardState
from raftd.storage.records import encode_batch
from raftd.wire import peer
from raftd.wire.frames import FrameDecoder
from raftd.wire.line import LineParser

BASELINE = Path(__file__).with_name("layers.json")
_RUNS = 7
_BODY = b"x" * 200
#: Commands in a batch: about what an entry holds when 64 clients put one job after the other.
_BATCH = 32
_BATCHES = 200
_ADDITIONS = 1_000_000
_NODES = (1, 2, 3)

Layer = Callable[[], int]


def _parser() -> int:
    """Bytes of puts to requests, one put a read."""
    parser = LineParser(MAX_JOB_BYTES)
    line = b"put 0 0 3600 200\r\n%b\r\n" % _BODY
    for _ in range(_BATCH * _BATCHES):
        parser.feed(line)
        assert parser.next_request() is not None
    return _BATCH * _BATCHES


def _gateway() -> int:
    """Puts of as many sessions as a batch has commands, to batches; and the answers back."""
    machine = _machine_with_gateway()
    row = machine.gateways[1]
    gateway = Gateway(1, 1, 500, Share(), COSTS, LIMITS)
    gateway.collect(0)
    gateway.applied(machine, 0)
    sessions = [gateway.open_session(lambda: None) for _ in range(_BATCH)]
    told: list[object] = []
    for seq in range(1, _BATCHES + 1):
        for session in sessions:
            session.submit(c.Put(session.number, 0, 0, 60_000, _BODY), lambda reply, index: told.append(reply))
        assert len(gateway.collect(0)) == 1
        for session in sessions:
            session.answered(Inserted(seq), seq)
        row.seq = seq
        gateway.applied(machine, 0)
    return len(told)


def _payload(seq: int) -> bytes:
    puts: list[c.Command] = [c.Put(session, 0, 0, 60_000, _BODY) for session in range(1, _BATCH + 1)]
    return c.encode_payload(c.Batch(1, 1, seq, puts))


def _codec() -> int:
    """A batch in an AppendEntries, encoded, cut out of the stream, and decoded."""
    decoder = FrameDecoder()
    decoder.greeted()
    for seq in range(1, _BATCHES + 1):
        entry = Entry(1, seq, seq, EntryKind.BATCH, _payload(seq))
        decoder.feed(peer.encode(AppendEntries(1, seq - 1, 1, (entry,), 0, seq, 0, 1, 0)))
        body = decoder.next_frame()
        assert body is not None
        message = peer.decode(body)
        assert isinstance(message, AppendEntries)
        assert c.decode_payload(message.entries[0].data) is not None
    return _BATCH * _BATCHES


def _machine_with_gateway() -> StateMachine:
    machine = StateMachine()
    machine.apply(1, 1, c.encode_payload(c.OpenGateway(1, 1)))
    return machine


def _puts() -> int:
    """The state machine, puts."""
    machine = _machine_with_gateway()
    for seq in range(1, _BATCHES + 1):
        machine.apply(seq + 1, seq + 1, _payload(seq))
    return machine.total_jobs


def _cycles() -> int:
    """The state machine, puts, reserves and deletes."""
    machine = _machine_with_gateway()
    index = 1

    def apply(commands: list[c.Command]) -> list[object]:
        nonlocal index
        index += 1
        return [reply for _, _, reply in machine.apply(index, index, c.encode_payload(c.Batch(1, 1, index - 1, commands))).answers]

    numbers = range(1, _BATCH + 1)
    for _ in range(_BATCHES):
        apply([c.Put(number, 0, 0, 60_000, _BODY) for number in numbers])
        taken = apply([c.Reserve(number, None) for number in numbers])
        apply([c.Delete(number, reply.id) for number, reply in zip(numbers, taken, strict=True) if isinstance(reply, Reserved)])
    assert not machine.jobs
    return _BATCH * _BATCHES


def _raft() -> int:
    """Three cores and no disk: an entry from proposal to commit on all of them."""
    configuration = Configuration(b"c" * 16, _NODES)
    cores = {node: Raft(node, configuration, Log(), HardState(), 1, Random(node), 25, 5) for node in _NODES}
    messages: deque[tuple[int, int, Message]] = deque()

    def settle() -> None:
        """Until nobody has anything to say."""
        is_moving = True
        while is_moving:
            is_moving = False
            for node, core in cores.items():
                if not core.has_work:
                    continue
                is_moving = True
                ready = core.ready()
                if ready.persist is not None:
                    core.persisted(ready.persist.number)
                messages.extend((node, to, message) for to, message in (*ready.send_now, *ready.send_after_persist))
                if ready.apply:
                    core.applied(ready.apply[-1].index)
            while messages:
                sender, to, message = messages.popleft()
                cores[to].step(sender, message)

    for core in cores.values():
        core.set_time(1, 1)
    cores[1].campaign("the bench wants a leader")
    settle()
    data = _payload(1)
    for _ in range(_BATCHES):
        cores[1].propose([(EntryKind.BATCH, data)])
        settle()
    assert cores[1].log.commit_index >= _BATCHES
    return _BATCHES


def _records() -> int:
    """Entries to the bytes of the log."""
    data = _payload(1)
    chain = 0
    for index in range(1, _BATCHES + 1):
        _, chain = encode_batch(b"x" * 8, 0, chain, [Entry(1, index, index, EntryKind.BATCH, data)])
    return _BATCHES


LAYERS: dict[str, Layer] = {
    "parser, a put": _parser,
    "session and gateway, a put": _gateway,
    "codec, a put": _codec,
    "state machine, a put": _puts,
    "state machine, a cycle": _cycles,
    "raft, an entry on three cores": _raft,
    "log records, an entry": _records,
}


def _loop_s() -> float:
    began = time.process_time()
    total = 0
    for number in range(_ADDITIONS):
        total += number
    return time.process_time() - began


def _best_s(layer: Layer) -> float:
    times = []
    for _ in range(_RUNS):
        began = time.process_time()
        count = layer()
        times.append((time.process_time() - began) / count)
    return min(times)


def measure() -> dict[str, tuple[float, float]]:
    """Of each layer: µs an operation, and the same in additions."""
    addition_s = min(_loop_s() for _ in range(_RUNS)) / _ADDITIONS
    return {name: (seconds * 1e6, seconds / addition_s) for name, layer in LAYERS.items() for seconds in [_best_s(layer)]}


def run(save: bool, console: Console) -> None:
    """Measure, and print beside the stored baseline; `save` makes what was measured the baseline."""
    measured = measure()
    before = msgspec.json.decode(BASELINE.read_bytes(), type=dict[str, float]) if BASELINE.exists() else {}
    table = Table(caption="Processor time per operation, in µs and in additions of a plain loop.", box=box.SIMPLE)
    table.add_column("layer", no_wrap=True)
    for heading in ("µs", "additions", "baseline", "ratio"):
        table.add_column(heading, no_wrap=True, justify="right")
    for name, (us, additions) in measured.items():
        known = before.get(name)
        table.add_row(name, f"{us:.2f}", f"{additions:.0f}", f"{known:.0f}" if known else "–", f"{additions / known:.2f}" if known else "–")
    console.print(table)
    if save:
        kept = {name: round(additions, 1) for name, (_, additions) in measured.items()}
        BASELINE.write_bytes(msgspec.json.format(msgspec.json.encode(kept)) + b"\n")

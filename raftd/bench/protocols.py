"""`raftd bench client`: the client protocol beside the line protocol, with batches and with jobs that are pushed.

Each measurement has a cluster of its own: in one that has a million jobs, writing snapshots takes more than anything else.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from raftd.bench import rates
from raftd.bench.load import Protocol
from raftd.bench.loaders.raftd import BATCH
from raftd.bench.local import LocalCluster
from raftd.bench.rounds import Row
from raftd.bench.servers import Server, raftd_server
from raftd.cli.console import wide
from raftd.client.blocking import Client

_NODES = 3
_SIZE = 200
#: What each pair of protocols is to do: connections, and operations under way on each.
_PUTS: dict[Protocol, Row] = {"beanstalkd": Row("put", 64, 64, _SIZE), "raftd": Row("put", 16, 4 * BATCH, _SIZE)}
_ONE_BATCH: dict[Protocol, Row] = {"beanstalkd": Row("put", 64, 64, _SIZE), "raftd": Row("put", 16, BATCH, _SIZE)}
_WORK: dict[Protocol, Row] = {"beanstalkd": Row("work", 64, 1, _SIZE), "raftd": Row("work", 64, 32, _SIZE)}
_NAMES: dict[Protocol, str] = {"beanstalkd": "line protocol", "raftd": "client protocol"}
PAIRS = (_PUTS, _ONE_BATCH, _WORK)
#: More than can be worked in a second.
_JOBS_PER_SECOND = 50_000
_JOBS_AT_ONCE = 1_000


class Options(msgspec.Struct, frozen=True):
    """What `raftd bench client` was asked for."""

    seconds: float
    rounds: int
    data: Path | None

    @property
    def rates(self) -> rates.Options:
        """For one measurement."""
        return rates.Options("put", _NODES, 1, 1, _SIZE, None, 1, 0, 0, "all", self.seconds, 1, 1, (), False, self.data, None, None)


@contextmanager
def _server(directory: Path, protocol: Protocol, row: Row, seconds: float) -> Iterator[Server]:
    """Three nodes, spoken to by that protocol; for `work` there will be jobs enough."""
    directory.mkdir()
    cluster = LocalCluster(directory, _NODES)
    with raftd_server(directory, _NODES, cluster) as server:
        addresses = [cluster.address(node, "client") for node in cluster.nodes]
        with Client("raftd://" + ",".join(f"{host}:{port}" for host, port in addresses)) as client:

            def prepare(tube: str) -> None:
                wanted = int((seconds + rates.WARM_UP_S) * _JOBS_PER_SECOND) if row.work == "work" else 0
                for _ in range(0, wanted, _JOBS_AT_ONCE):
                    client.put_many(tube, [b"x" * row.size] * _JOBS_AT_ONCE, ttr=3600)
                client.stats(tube)  # whoever comes next is let in

            if protocol == "raftd":
                server = msgspec.structs.replace(server, protocol=protocol, addresses=addresses)
            yield msgspec.structs.replace(server, prepare=prepare)


def run(options: Options, console: Console) -> None:
    """Measure in turns, print medians. Raises LocalError."""
    table = Table(caption="200-byte jobs, three nodes, medians; µs of processor time on all nodes", box=box.SIMPLE)
    for heading in ("line protocol", "per second", "µs", "client protocol", "per second", "µs", "ratio"):
        table.add_column(heading, no_wrap=True, justify="left" if heading.endswith("protocol") else "right")
    with TemporaryDirectory(prefix="raftd-bench-", dir=options.data) as directory:
        top = Path(directory).resolve()
        for number, pair in enumerate(PAIRS):
            found: dict[Protocol, list[tuple[float, float]]] = {protocol: [] for protocol in pair}
            for round_number in range(1, options.rounds + 1):
                for protocol, row in pair.items():
                    with _server(top / f"{number}-{round_number}-{protocol}", protocol, row, options.seconds) as server:
                        one = rates.measure(server, row, options.rates)
                    found[protocol].append((one.operations / one.seconds, sum(one.cpu_s) * 1e6 / max(1, one.operations)))
                    said = f"{row.title:26} round {round_number}  {_NAMES[protocol]:16} {found[protocol][-1][0]:10,.0f} /s"
                    console.print(said, highlight=False, soft_wrap=True)
            medians = {protocol: [statistics.median(values) for values in zip(*rounds, strict=True)] for protocol, rounds in found.items()}
            cells = [(pair[protocol].title, f"{rate:,.0f}", f"{cpu_us:.1f}") for protocol, (rate, cpu_us) in medians.items()]
            table.add_row(*cells[0], *cells[1], f"{medians['raftd'][0] / medians['beanstalkd'][0]:.2f}")
    wide(console).print(table)

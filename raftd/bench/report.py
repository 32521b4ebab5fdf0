"""The tables, files and pictures that `raftd bench` makes of its measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from raftd.bench.load import Work
from raftd.bench.local import LocalError
from raftd.bench.rounds import Measured, Row
from raftd.cli.console import wide

QUANTILES = (0.5, 0.99, 0.999, 1.0)

#: The rows of `--comparison`: work, connections, requests under way on each.
COMPARISON: tuple[tuple[Work, int, int], ...] = (
    ("put", 64, 64),
    ("put", 256, 1),
    ("put", 64, 1),
    ("cycle", 64, 1),
    ("cycle", 256, 1),
    ("put", 1, 1),
)

_RATES = (
    "Rate: per second, the median of the rounds. Ratio: raftd's rate by that of this server. A cycle is put, reserve, delete; a handoff "
    "is a put at one node, and reserve and delete at another."
)
_COSTS = (
    "Processor time per operation in µs: of the process that leads, of each other, of all together. Load: what the load's busiest process "
    "took of a core. Then per operation, of all processes together: KB written, fsyncs, turns."
)


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def show(measured: dict[tuple[Row, str], Measured], console: Console) -> None:
    """Print everything, as two tables: what clients get, and what it costs."""
    quantiles = [f"p{100 * fraction:g} ms" if fraction < 1 else "max ms" for fraction in QUANTILES]
    rates, costs = _table(_RATES, "rate", "ratio", *quantiles), _table(_COSTS, "leader", "other", "all", "load", "KB", "fsyncs", "turns")
    own: dict[Row, Measured] = {}  # raftd comes first
    for (row, name), one in measured.items():
        first = own.setdefault(row, one)
        ratio = first.rate / one.rate if one is not first else None
        latencies = (f"{one.quantile_s(fraction) * 1e3:.2f}" for fraction in QUANTILES)
        rates.add_row(row.title, name, f"{one.rate:,.0f}", _number(ratio, ".2f"), *latencies)
        per_operation = (
            _number(one.leader_us, ".1f"),
            _number(one.follower_us, ".1f"),
            _number(one.all_us, ".1f"),
            f"{one.busiest:.0%}",
            _number((one.each(one.counts.written_bytes) or 0) / 1024, ".2f"),
            _number(one.each(one.counts.fsyncs), ".3f"),
            _number(one.each(one.counts.turns), ".3f"),
        )
        costs.add_row(row.title, name, *per_operation)
    wide(console).print(rates)
    console.print(costs)
    for (row, name), one in measured.items():
        if row.rate is not None and one.rate < 0.99 * row.rate:
            console.print(f"{row.title}: {name} did not keep up; {one.unanswered:,} operations were under way at the end", highlight=False)


def _table(caption: str, *headings: str) -> Table:
    table = Table(caption=caption, box=box.SIMPLE)
    table.add_column("", no_wrap=True)
    table.add_column("server", no_wrap=True)
    for heading in headings:
        table.add_column(heading, no_wrap=True, justify="right")
    return table


def write_json(measured: dict[tuple[Row, str], Measured], options: object, sync_s: float, path: Path) -> None:
    """All figures as an object, and what was asked for. Times: `cpu_us` has a list for each round, with the µs an operation took of each
    process, the one that leads first. Raises LocalError."""
    rows = [
        {
            "row": row,
            "server": name,
            "rates": one.rates,
            "latencies_ms": {f"{100 * fraction:g}": one.quantile_s(fraction) * 1e3 for fraction in QUANTILES},
            "cpu_us": one.cpu_us,
            "load": one.busiest,
            "operations": one.operations,
            "counts": one.counts,
            "unanswered": one.unanswered,
        }
        for (row, name), one in measured.items()
    ]
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode({"options": options, "sync_ms": sync_s * 1e3, "rows": rows})) + b"\n")
    except OSError as error:
        raise LocalError(f"{path}: {error.strerror}") from None


def pyplot() -> Any:
    """What draws. Raises LocalError if it is not installed."""
    try:
        import matplotlib

        matplotlib.use("svg")
        from matplotlib import pyplot
    except ImportError:
        raise LocalError("--plot needs matplotlib: pip install 'raftd[plot]'") from None
    return pyplot


def plot(measured: dict[tuple[Row, str], Measured], path: Path) -> None:
    """The rates as bars, a group for each row. Raises LocalError."""
    rows = list(dict.fromkeys(row for row, _ in measured))
    names = list(dict.fromkeys(name for _, name in measured))
    figure, panes = pyplot().subplots(1, len(rows), figsize=(2.2 * len(rows) + 1, 3.2), squeeze=False)
    for pane, row in zip(panes[0], rows, strict=True):
        for place, name in enumerate(names):
            one = measured.get((row, name))
            if one is not None:
                pane.bar(place, one.rate, color=f"C{place}", label=name)
        pane.set_title(row.title, fontsize=8)
        pane.set_xticks([])
        pane.tick_params(labelsize=7)
    panes[0][0].set_ylabel("per second", fontsize=8)
    figure.legend(*panes[0][0].get_legend_handles_labels(), loc="lower center", ncols=len(names), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    try:
        figure.savefig(path, format="svg")
    except OSError as error:
        raise LocalError(f"{path}: {error.strerror}") from None

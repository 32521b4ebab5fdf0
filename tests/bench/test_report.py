"""What becomes of measurements: tables, files, pictures."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from rich.console import Console

from raftd.bench import evaluation, report
from raftd.bench.local import LocalError
from raftd.bench.rounds import Measured, Round, Row
from raftd.bench.servers import Counts, raftd_server


def measured() -> dict[tuple[Row, str], Measured]:
    """raftd is twice as fast as another at one row."""
    row, found = Row("put", 64, 1, 200), {}
    for name, count, counts in (("raftd, 3 nodes", 200, Counts(4096, 20, 10)), ("other", 100, Counts(2048))):
        found[row, name] = Measured()
        found[row, name].add(Round(Counter({100: count}), 1.0, 0.1, [0.2, 0.1], counts))
    return found


def test_the_tables_give_ratios_and_costs():
    console = Console(width=140)
    with console.capture() as captured:
        report.show(measured(), console)
    lines = [" ".join(line.split()) for line in captured.get().splitlines()]
    assert "put, 64 conns raftd, 3 nodes 200 – 1.00 1.00 1.00 1.00" in lines
    assert "put, 64 conns other 100 2.00 1.00 1.00 1.00 1.00" in lines
    assert "put, 64 conns raftd, 3 nodes 1000.0 500.0 1500.0 10% 0.02 0.100 0.050" in lines
    assert "put, 64 conns other 2000.0 1000.0 3000.0 10% 0.02 – –" in lines


def test_an_open_loop_that_was_not_kept_is_named():
    row = Row("put", 64, 1, 200, 500.0)
    one = Measured()
    one.add(Round(Counter({100: 400}), 1.0, 0.1, [], Counts(0), 77))
    console = Console(width=140)
    with console.capture() as captured:
        report.show({(row, "slow"): one}, console)
    assert "put, 64 conns, 500/s: slow did not keep up; 77 operations were under way at the end" in captured.get()


def test_the_json_file_has_all_figures(tmp_path):
    report.write_json(measured(), {"nodes": 3}, 0.0002, tmp_path / "figures.json")
    kept = msgspec.json.decode((tmp_path / "figures.json").read_bytes())
    assert kept["sync_ms"] == 0.2
    assert kept["options"] == {"nodes": 3}
    assert [(row["server"], row["rates"], row["operations"]) for row in kept["rows"]] == [
        ("raftd, 3 nodes", [200.0], 200),
        ("other", [100.0], 100),
    ]
    with pytest.raises(LocalError, match="No such file"):
        report.write_json(measured(), {}, 0.0002, tmp_path / "missing" / "figures.json")


def test_the_picture(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib, of the extra `plot`, is not installed")
    report.plot(measured(), tmp_path / "rates.svg")
    assert (tmp_path / "rates.svg").read_text().startswith("<?xml")


def test_the_evaluation_counts_what_every_node_holds(tmp_path):
    with raftd_server(tmp_path, 1) as server:
        point = evaluation.measure(server, 1, 4, 30)
    assert (point.nodes, point.size, point.messages) == (1, 4, 30)
    assert point.put_s > 0
    assert point.consume_s > 0

"""How long nobody's put is answered when the leader is gone."""

from __future__ import annotations

import pytest

from raftd.bench.failover import WAYS, measure
from raftd.bench.servers import raftd_server


@pytest.mark.slow
def test_puts_go_on_after_every_way_to_lose_the_lead(tmp_path):
    said: list[str] = []
    with raftd_server(tmp_path, 3) as server:
        for way in WAYS:
            first = server.processes()[0]
            (gap_s,) = measure(server, way, 1, said.append)
            assert gap_s > 0
            assert server.processes()[0] != first, way
        server.check()
    assert [line.split(",")[2].strip() for line in said] == list(WAYS)

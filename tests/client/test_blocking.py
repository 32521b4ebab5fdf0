"""What only the client for threads has to do with: processes that fork."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from raftd.bench.local import LocalCluster
from raftd.client import Client
from tests.client.test_clients import url


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("blocking"), 1) as cluster:
        cluster.leader()
        yield cluster


def test_a_fork_has_no_part_in_the_client_of_its_parent(cluster):
    with Client(url(cluster)) as queue:
        queue.put_many("fork", ["a", "b"])
        jobs = queue.jobs("fork", prefetch=1)
        held = next(jobs)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                jobs.stop()
                queue.close()
                try:
                    queue.put("fork", "c")
                except RuntimeError as error:
                    status = 0 if "before a fork" in str(error) else 2
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert queue.peek(held.id).state == "reserved"
        held.delete()
        assert next(jobs).text == "b"

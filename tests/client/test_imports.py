"""What importing a client costs its program."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from raftd.bench.local import LocalCluster
from raftd.client import Client, address
from tests.client.test_clients import url

_SHOW = "import sys; print(' '.join(sorted({{name.partition('.')[0] for name in sys.modules}} | {{n for n in sys.modules if n.startswith('raftd')}})))"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("examples"), 1) as cluster:
        cluster.leader()
        yield cluster


@pytest.mark.parametrize(("name", "foreign"), [("Client", set()), ("AsyncClient", set()), ("TwistedClient", {"twisted", "zope"})])
def test_a_client_imports_neither_the_server_nor_a_reactor(name, foreign):
    code = f"from raftd.client import {name}; " + _SHOW.format()
    modules = set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())
    assert "msgspec" in modules
    assert modules & {"twisted", "zope", "yaml", "click", "rich", "prometheus_client", "greenstalk"} == foreign
    assert not {module for module in modules if module.startswith(("raftd.server", "raftd.node", "raftd.storage", "raftd.config"))}
    if name == "Client":
        assert "asyncio" not in modules
    if name == "TwistedClient":
        assert "twisted.internet.reactor" not in modules


def test_an_import_takes_no_longer_than_a_few_of_the_standard_library():
    """The quickest of several, in turns with asyncio: a slow machine is slow for both."""
    code = "import sys, time; began = time.perf_counter(); import {}; print(time.perf_counter() - began)"

    def import_s(module: str) -> float:
        return float(subprocess.run([sys.executable, "-c", code.format(module)], check=True, capture_output=True, text=True).stdout)

    times = [(import_s("raftd.client.blocking"), import_s("asyncio")) for _ in range(7)]
    ours_s, asyncio_s = (min(some) for some in zip(*times, strict=True))
    assert ours_s < 5 * asyncio_s  # it is about as much


def test_no_reactor_is_installed_by_an_import():
    code = "import raftd.client.deferred, sys; print('twisted.internet.reactor' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == "False"


@pytest.mark.parametrize("module", ["client.address", "client.retry", "client.blocking", "client.asynchronous", "client.deferred", "work"])
def test_the_examples_in_docstrings_are_true(module, cluster):
    """Each in a process of its own: one of them runs a reactor."""
    with Client(url(cluster)) as queue:
        while (job := queue.reserve("mail", timeout=0)) is not None:
            job.delete()
        if module == "client.blocking":
            queue.put("mail", "another", priority=1 << 20)
    code = f"import doctest, raftd.{module} as module; print(doctest.testmod(module))"
    environment = {**os.environ, "RAFTD_URL": url(cluster)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, env=environment)
    assert re.fullmatch(r"TestResults\(failed=0, attempted=[1-9]\d*\)\n", done.stdout), done.stdout


def test_an_address_that_is_none_is_told(monkeypatch):
    monkeypatch.setenv("RAFTD_URL", "raftd://a,b:7")
    assert address.addresses_of(None) == [("a", 7), ("b", 7)]
    monkeypatch.delenv("RAFTD_URL")
    assert address.addresses_of(None) == [("127.0.0.1", 11301)]
    for wrong in ("raftd://", "raftd://a:x", "raftd://a:99999", "http://a", "raftd://a,,b"):
        with pytest.raises(ValueError, match="expected"):
            address.addresses_of(wrong)

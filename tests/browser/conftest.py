"""A real browser, and clusters for it to look at. Whatever a page logs as an error, and whatever its policy refuses, fails the test."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from raftd.client import Client
from tests.processes.harness import ProcessCluster


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Debian's, for the browsers that Playwright brings are not to be had everywhere."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium")
    assert path is not None, "chromium is not installed: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens pages, and looks after each at what went wrong in it. `misses`: calls that are refused are part of the test."""
    contexts: list[Any] = []
    wrong: list[str] = []

    def open_page(address: str, view: str = "#/", misses: bool = False, **options: Any) -> Any:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" and not misses else None)
        page.on("dialog", lambda dialog: wrong.append(f"a dialog of the browser: {dialog.message}"))
        page.goto(f"{address}/{view}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def origin(cluster: ProcessCluster, node: int) -> str:
    host, port = cluster.address(node, "http")
    return f"http://{host}:{port}"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessCluster]:
    """Three nodes, for tests that harm none of them."""
    with ProcessCluster(tmp_path_factory.mktemp("browser"), 3) as made:
        made.leader()
        yield made


@pytest.fixture(scope="module")
def queue(cluster: ProcessCluster) -> Iterator[Client]:
    addresses = ",".join("{}:{}".format(*cluster.address(node, "client")) for node in cluster.nodes)
    with Client(f"raftd://{addresses}", timeout=20) as made:
        yield made

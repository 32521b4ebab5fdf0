"""How fast the dashboard is with 10,000 tubes and 1,000,000 jobs, and what ten of them cost a node that is busy with puts.

    python -m tests.browser.measure [--tubes N] [--jobs N]

Prints what it measures. First paints are Chromium's own figures. The time of the server for an update is the processor time of the node
that ten open pages take, by update. Put rates are of 64 connections, without and with ten pages, in turns; the medians count.
"""

from __future__ import annotations

import http.client
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import msgspec

from raftd.bench.load import Result, Spec
from raftd.bench.local import wait_for
from raftd.client import Client
from tests.processes.harness import ProcessCluster

PAGES = 10
ROUNDS = 3
ROUND_S = 4.0
PUT_ROUNDS = 15
IDLE_S = 20.0
_BATCH = 1_000
_SHOWN = "document.querySelector('main h1') && !document.querySelector('main').textContent.includes('Asking')"
VIEWS = ("#/", "#/tubes", "#/tube/t-00077", "#/nodes")


def fill(cluster: ProcessCluster, tubes: int, jobs: int) -> None:
    with Client("raftd://{}:{}".format(*cluster.address(cluster.leader(), "client")), timeout=60) as queue:
        per_tube = jobs // tubes
        for number in range(tubes):
            queue.put_many(f"t-{number:05}", [b'{"n": 1}'] * per_tube)


def processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


class Looker:
    """The stream of a page, read by another process, so that no browser takes the node's processor."""

    _CODE = """
import http.client, json, sys, time
host, port, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
connection = http.client.HTTPConnection(host, port)
connection.request("GET", path)
answer = connection.getresponse()
count = size = 0
while line := answer.readline():
    size += len(line)
    if line.startswith(b"data: "):
        count += 1
        print(count, size, flush=True)
"""

    def __init__(self, cluster: ProcessCluster, node: int, path: str) -> None:
        host, port = cluster.address(node, "http")
        self.process = subprocess.Popen([sys.executable, "-c", self._CODE, host, str(port), path], stdout=subprocess.PIPE, text=True)

    def end(self) -> tuple[int, int]:
        """Updates, and bytes."""
        self.process.terminate()
        said, _ = self.process.communicate()
        count, size = said.splitlines()[-1].split() if said else ("0", "0")
        return int(count), int(size)


def look(cluster: ProcessCluster, node: int) -> list[Looker]:
    sorts = ["ready", "ready", "in", "oldest", "name"] * (PAGES // 5)
    return [Looker(cluster, node, f"/summary?limit=50&sort={sort}") for sort in sorts]


def first_paints(cluster: ProcessCluster, node: int) -> None:
    from playwright.sync_api import sync_playwright

    host, port = cluster.address(node, "http")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        browser.new_page().goto(f"http://{host}:{port}/")  # Chromium itself has started
        for view in VIEWS:
            paints, filled = [], []
            for _ in range(ROUNDS):
                page: Any = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
                page.goto(f"http://{host}:{port}/{view}")
                wait_for(lambda page=page: page.evaluate(_SHOWN), what="the page")
                filled.append(page.evaluate("performance.now()"))
                paints.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
                page.context.close()
            click.echo(f"{view:15} first paint {statistics.median(paints):4.0f} ms, all that it shows {statistics.median(filled):4.0f} ms")
        browser.close()


def updates(cluster: ProcessCluster, node: int) -> None:
    pid = cluster.running[node].process.pid

    def spent() -> float:
        before = processor_s(pid)
        time.sleep(IDLE_S)  # what it takes in this time is what is measured
        return processor_s(pid) - before

    alone = spent()
    lookers = look(cluster, node)
    time.sleep(2)  # until all readers have begun, which is not to be measured
    watched = spent()
    counts = [looker.end() for looker in lookers]
    count = sum(one for one, _ in counts)
    size = sum(one for _, one in counts)
    each_ms = (watched - alone) * 1000 / (PAGES * IDLE_S)
    click.echo(
        f"an update takes {each_ms:.1f} ms of the node's processor time ({PAGES} pages, {IDLE_S:.0f} s) and has {size / max(1, count) / 1024:.0f} KiB"
    )
    host, port = cluster.address(node, "http")
    connection = http.client.HTTPConnection(host, port)
    for path in ("/v1/tubes?sort=ready&limit=50", "/v1/tubes?contains=99&limit=50", "/v1/tubes/t-00077/jobs?limit=50", "/v1/series"):
        took = []
        for _ in range(10):
            began = time.perf_counter()
            connection.request("GET", path)
            json.loads(connection.getresponse().read())
            took.append((time.perf_counter() - began) * 1000)
        click.echo(f"GET {path}: {statistics.median(took):.1f} ms")


def put_rate(cluster: ProcessCluster, node: int) -> float:
    """Of the load of `raftd bench`, in a process of its own."""
    spec = Spec([cluster.line_address(node)], 64, 1, 200, "put", 2.0, ROUND_S)
    command = [sys.executable, "-m", "raftd.bench.load", msgspec.json.encode(spec).decode()]
    load = subprocess.run(command, input=b"\n", stdout=subprocess.PIPE, check=True)
    result = msgspec.json.decode(load.stdout.strip(), type=Result)
    return sum(result.latencies.values()) / result.seconds


@click.command()
@click.option("--tubes", default=10_000, show_default=True)
@click.option("--jobs", default=1_000_000, show_default=True)
def main(tubes: int, jobs: int) -> None:
    with tempfile.TemporaryDirectory() as directory, ProcessCluster(Path(directory), 3) as cluster:
        leader = cluster.leader()
        fill(cluster, tubes, jobs)
        wait_for(lambda: all(cluster.stats(node) for node in cluster.nodes), what="all nodes answering")
        node = next(node for node in cluster.nodes if node != leader)
        first_paints(cluster, node)
        updates(cluster, node)
        rates: dict[str, list[float]] = {"without": [], "with": []}
        for number in range(PUT_ROUNDS):
            for which in ("without", "with") if number % 2 else ("with", "without"):
                lookers = look(cluster, node) if which == "with" else []
                rates[which].append(put_rate(cluster, node))
                for looker in lookers:
                    looker.end()
        alone, watched = (statistics.median(rates[which]) for which in ("without", "with"))
        click.echo(
            f"puts/s of 64 connections: {alone:,.0f} alone, {watched:,.0f} with {PAGES} pages ({watched / alone - 1:+.1%}); all: {rates}"
        )


if __name__ == "__main__":
    main()

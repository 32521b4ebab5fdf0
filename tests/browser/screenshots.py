"""The pictures of the dashboard in `docs/images`: light, dark, and on a phone, of three nodes that have work.

python -m tests.browser.screenshots [--seconds N]
"""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
import time
from pathlib import Path

import click

from raftd.client import Client
from tests.processes.harness import ProcessCluster

IMAGES = Path(__file__).parent.parent.parent / "docs" / "images"
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}
WIDE = {"viewport": {"width": 1280, "height": 960}}

TUBES = ("mail", "mail.bulk", "thumbnails", "invoices", "webhooks", "reports.nightly", "search.index", "exports", "push", "geocode")


def produce(url: str, stop: threading.Event, seed: int) -> None:
    draw = random.Random(seed)
    with Client(url, timeout=20) as queue:
        while not stop.wait(0.05 + 0.05 * abs(draw.gauss(0, 1))):
            tube = TUBES[min(len(TUBES) - 1, int(draw.expovariate(0.5)))]
            queue.put_many(tube, [f'{{"order": {draw.randrange(10**6)}, "to": "ann@example.org"}}'] * draw.randrange(1, 9))
            if draw.random() < 0.05:
                queue.put("reports.nightly", "x", delay=600)


def work(url: str, stop: threading.Event, seed: int) -> None:
    draw = random.Random(seed)
    with Client(url, timeout=20) as queue:
        while not stop.is_set():
            job = queue.reserve(*TUBES[:7], timeout=1)
            if job is None:
                continue
            stop.wait(0.06)
            if draw.random() < 0.03:
                job.fail("ConnectionError: smtp.example.org: connection refused")
            else:
                job.delete()


@click.command()
@click.option("--seconds", default=90, show_default=True, help="How long there is work before.")
def main(seconds: int) -> None:
    from playwright.sync_api import sync_playwright

    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as directory, ProcessCluster(Path(directory), 3) as cluster:
        cluster.leader()
        url = "raftd://" + ",".join("{}:{}".format(*cluster.address(node, "client")) for node in cluster.nodes)
        with Client(url) as queue:
            for tube in TUBES[:4]:
                queue.set_policy(tube, {"max_attempts": 1, "dead_letter": f"{tube}.dead"})
            queue.set_schedule("nightly", {"tube": "reports.nightly", "body": "all", "cron": "0 3 * * *", "zone": "Europe/Berlin"})
        stop = threading.Event()
        busy = [threading.Thread(target=produce, args=(url, stop, seed)) for seed in range(2)]
        busy += [threading.Thread(target=work, args=(url, stop, seed)) for seed in range(5)]
        for thread in busy:
            thread.start()
        time.sleep(seconds)  # so long are the lines in the pictures
        host, port = cluster.address(2, "http")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            for name, view, options in (
                ("light", "#/", {**WIDE, "color_scheme": "light"}),
                ("dark", "#/tubes", {**WIDE, "color_scheme": "dark"}),
                ("phone", "#/tube/mail.dead", PHONE),
            ):
                page = browser.new_context(**options).new_page()
                page.goto(f"http://{host}:{port}/{view}")
                page.locator(".tiles, tbody a").first.wait_for()
                page.wait_for_timeout(3_000)  # until its charts are there
                page.screenshot(path=IMAGES / f"dashboard-{name}.png")
                page.context.close()
                click.echo(f"{IMAGES / f'dashboard-{name}.png'}")
            browser.close()
        stop.set()
        for thread in busy:
            thread.join()


if __name__ == "__main__":
    main()

"""What ships for Prometheus and Grafana, with Debian's Prometheus: it scrapes real nodes, and evaluates every rule."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest
import yaml

from raftd.bench.local import free_ports, wait_for
from tests.processes.harness import ProcessCluster
from tests.processes.test_http import metrics

MONITORING = Path(__file__).parent.parent.parent / "conf/monitoring"
needs_prometheus = pytest.mark.skipif(not shutil.which("prometheus") or not shutil.which("promtool"), reason="prometheus is not installed")


def expressions() -> list[str]:
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]
    panels = json.loads((MONITORING / "grafana.json").read_text())["panels"]
    return [rule["expr"] for rule in rules] + [target["expr"] for panel in panels for target in panel["targets"]]


def test_every_metric_of_the_rules_exists(tmp_path):
    with ProcessCluster(tmp_path, 3) as cluster:
        leader = cluster.leader()
        client = cluster.client(leader)
        client.delete(client.put(b"x"))
        wait_for(lambda: ("raftd_clock_ahead_seconds", ()) in metrics(cluster, leader), what="the clocks being compared")
        there = {name for name, _ in metrics(cluster, leader)}
    there.add("raftd_certificate_expiry_seconds")  # with TLS only (test_tls.py)
    named = {name for expression in expressions() for name in re.findall(r"\b(?:raftd|process)_[a-z_]+\b", expression)}
    assert len(named) > 15
    assert named - there == set()


@needs_prometheus
def test_promtool_finds_nothing_wrong():
    for what in (("rules", "alerts.yml"), ("config", "prometheus.yml")):
        checked = subprocess.run(["promtool", "check", what[0], str(MONITORING / what[1])], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr


@needs_prometheus
def test_prometheus_scrapes_the_nodes_and_evaluates_the_rules(tmp_path):
    with ProcessCluster(tmp_path, 3) as cluster:
        leader = cluster.leader()
        (port,) = free_ports(1)
        config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "200ms", "scrape_timeout": "200ms", "evaluation_interval": "200ms"}
        config["rule_files"] = [str(MONITORING / "alerts.yml")]
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [
            ":".join(map(str, cluster.address(node, "http"))) for node in cluster.nodes
        ]
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))

        def ask(path: str) -> dict:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/{path}", timeout=5) as answer:
                    return json.loads(answer.read())["data"]
            except OSError:
                return {}

        arguments = ["--config.file", str(tmp_path / "prometheus.yml"), "--storage.tsdb.path", str(tmp_path / "tsdb")]
        with (tmp_path / "prometheus.log").open("wb") as log:
            prometheus = subprocess.Popen(
                ["prometheus", *arguments, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path
            )
        try:
            wait_for(lambda: len(ask('query?query=up{job="raftd"}==1').get("result", [])) == 3, what="three nodes scraped")
            found = ask("query?query=max(raftd_leader)")["result"]
            assert int(found[0]["value"][1]) == leader

            def rules() -> list[dict]:
                return [rule for group in ask("rules").get("groups", []) for rule in group["rules"]]

            wait_for(lambda: rules() and all(rule["health"] == "ok" for rule in rules()), what="every rule evaluated")
            assert {rule["name"] for rule in rules() if rule["state"] == "firing"} == set()
            for node in cluster.nodes:
                if node != leader:
                    cluster.kill(node)
            pending = {"RaftdNodeDown", "RaftdNoLeader", "RaftdOneMoreFailureStopsIt"}
            wait_for(lambda: pending <= {rule["name"] for rule in rules() if rule["state"] != "inactive"}, what="the alerts to come")
        finally:
            prometheus.terminate()
            prometheus.wait(timeout=20)

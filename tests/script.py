"""Cluster scripts: what an operator would do and see, as text (in the manner of etcd raft's testdata).

A script is a sequence of blocks, each commands, a line `----`, and what was seen while they ran. Set
RAFTD_REWRITE=1 to write what is seen now into the files; then read the difference.

    cluster N             N nodes, all started
    elect N               node N campaigns first
    leader                run until there is one
    run MS                let time pass
    cut 1 2 | 3           only nodes of one group hear each other
    heal                  all hear each other
    crash N …             SIGKILL and power loss at once
    restart N …
    wipe N                the disk is replaced while the node is down
    stall N / unstall N   its disk does not finish a write / goes on
    rot N                 a byte of its last batch changes while the node is down
    status                what each node says of itself
    jobs N                all jobs, as node N sees them
    same                  run until all nodes have applied the same entries; their states must be equal
    NAME@N VERB …         client NAME, connected to node N, asks: put BODY [pri=] [delay=] [ttr=],
                          use T, watch T, ignore T, reserve [timeout=], delete ID, release ID, bury ID,
                          touch ID, kick N, pause T S, peek ID, stats-job ID
    NAME closes           the client's connection is gone
"""

from __future__ import annotations

import re
from pathlib import Path

from raftd.jobs import commands as c
from raftd.jobs import queries
from raftd.jobs import replies as r
from raftd.jobs.model import Job
from raftd.sim.cluster import SimCluster
from raftd.wire.line import encode_reply


class Script:
    def __init__(self) -> None:
        self.seen: list[str] = []
        self.cluster: SimCluster | None = None
        self.clients: dict[str, Client] = {}

    def block(self, lines: list[str]) -> list[str]:
        self.seen = []
        for line in lines:
            self.command(line)
        return self.seen or ["(nothing)"]

    def command(self, line: str) -> None:
        word, *args = line.split()
        if "@" in word:
            self.ask(word, args)
        elif args == ["closes"]:
            self.clients.pop(word).close()
            self.cluster.run(20)
        else:
            getattr(self, "do_" + word)(*args)

    # -- the cluster --------------------------------------------------------------------------

    def do_cluster(self, count: str) -> None:
        self.cluster = SimCluster(int(count), tell=self.seen_line)
        self.cluster.start()
        self.cluster.run(5)

    def seen_line(self, line: str) -> None:
        self.seen.append(line)

    def do_elect(self, node: str) -> None:
        self.cluster[int(node)].raft.campaign("the script says so")
        self.cluster[int(node)].wake()
        self.cluster.run(100)

    def do_leader(self) -> None:
        if not self.cluster.run(
            10_000, lambda: self.cluster.leader != 0 and self.cluster[self.cluster.leader].raft.has_committed_own_entry
        ):
            self.seen.append("no leader within 10 s")
        self.cluster.run(60)

    def do_run(self, ms: str) -> None:
        self.cluster.run(int(ms))

    def do_cut(self, *words: str) -> None:
        groups: list[set[int]] = [set()]
        for word in words:
            if word == "|":
                groups.append(set())
            else:
                groups[-1].add(int(word))
        self.cluster.partition(*groups)

    def do_heal(self) -> None:
        self.cluster.heal()

    def do_crash(self, *nodes: str) -> None:
        for node in nodes:
            self.cluster.crash(int(node))
            for name in [name for name, client in self.clients.items() if client.node == int(node)]:
                del self.clients[name]

    def do_restart(self, *nodes: str) -> None:
        for node in nodes:
            self.cluster.start(int(node))
            self.seen += [f"node {node}: {note.text}" for note in self.cluster.processes[int(node)].opened.notes]
        self.cluster.run(5)

    def do_wipe(self, node: str) -> None:
        self.cluster.disks[int(node)] = type(self.cluster.disks[1])()

    def do_stall(self, node: str) -> None:
        self.cluster.processes[int(node)].worker.stalled = True

    def do_unstall(self, node: str) -> None:
        self.cluster.processes[int(node)].worker.resume()

    def do_rot(self, node: str) -> None:
        files = self.cluster.disks[int(node)].files
        file = files[max(path for path in files if path.endswith(".log"))]
        file.seen[len(file.seen.rstrip(b"\0")) - 3] ^= 0x20
        file.platter[:] = file.seen

    def do_status(self) -> None:
        for node, process in sorted(self.cluster.processes.items()):
            status = process.node.status()
            self.seen.append(
                f"node {node}: {status['role']} in term {status['term']}, leader {status['leader']}, applied {status['applied-index']}"
            )

    def do_jobs(self, node: str) -> None:
        machine = self.cluster[int(node)].machine
        for id, job in sorted(machine.jobs.items()):
            self.seen.append(f"job {id} {job.body.decode()!r} in {job.tube.name}: {job.state.name.lower()}")
        if not machine.jobs:
            self.seen.append("no jobs")

    def do_same(self) -> None:
        cluster = self.cluster

        def even() -> bool:
            machines = [process.node.machine for process in cluster.processes.values()]
            lasts = {process.node.raft.log.last_index for process in cluster.processes.values()}
            return {machine.applied_index for machine in machines} == lasts and len(lasts) == 1

        if not cluster.run(5_000, even):
            self.seen.append("the nodes do not catch up")
        digests = {process.node.machine.digest() for process in cluster.processes.values()}
        self.seen.append("all nodes are equal" if len(digests) == 1 else "THE NODES DIFFER")

    # -- clients ------------------------------------------------------------------------------

    def ask(self, word: str, args: list[str]) -> None:
        name, node = word.split("@")
        if name not in self.clients:
            self.clients[name] = Client(self, name, int(node))
        verb, *rest = args
        options = dict(item.split("=") for item in rest if "=" in item)
        self.clients[name].ask(verb, [item for item in rest if "=" not in item], options)
        self.cluster.run(20)


class Client:
    def __init__(self, script: Script, name: str, node: int) -> None:
        self.script, self.name, self.node = script, name, node
        self.process = script.cluster.processes[node]
        self.session = self.process.node.open_session(self.lost)

    def lost(self) -> None:
        self.script.seen.append(f"{self.name}: connection closed, outcome unknown")
        self.script.clients.pop(self.name, None)

    def close(self) -> None:
        self.session.close()
        self.process.node.wake()

    def answered(self, result: object, index: int) -> None:
        if isinstance(result, r._Reply):
            text = encode_reply(result).decode().strip().replace("\r\n", " ")
        elif isinstance(result, Job):
            text = f"FOUND {result.id} {result.body.decode()}"
        else:
            text = str(result)
        if self.process.alive:
            self.script.seen.append(f"{self.name}: {text}")

    def ask(self, verb: str, args: list[str], options: dict[str, str]) -> None:
        n = self.session.number
        ms = {key: round(float(value) * 1000) for key, value in options.items() if key != "pri"}
        pri = int(options.get("pri", 100))
        match verb, args:
            case "put", [body]:
                command = c.Put(n, pri, ms.get("delay", 0), ms.get("ttr", 60_000), body.encode())
            case "use", [tube]:
                command = c.Use(n, tube)
            case "watch", [tube]:
                command = c.Watch(n, tube)
            case "ignore", [tube]:
                command = c.Ignore(n, tube)
            case "reserve", []:
                command = c.Reserve(n, ms.get("timeout"))
            case "delete", [id]:
                command = c.Delete(n, int(id))
            case "release", [id]:
                command = c.Release(n, int(id), pri, ms.get("delay", 0))
            case "bury", [id]:
                command = c.Bury(n, int(id), pri)
            case "touch", [id]:
                command = c.Touch(n, int(id))
            case "kick", [count]:
                command = c.Kick(n, int(count))
            case "pause", [tube, seconds]:
                command = c.PauseTube(n, tube, int(seconds) * 1000)
            case "peek", [id]:
                self.session.read(queries.peek(int(id)), self.answered)
                self.process.node.wake()
                return
            case "stats-job", [id]:
                self.session.read(queries.stats_job(int(id)), self.answered)
                self.process.node.wake()
                return
            case _:
                raise ValueError(f"no such command: {verb} {args}")
        self.session.submit(command, self.answered)
        self.process.node.wake()


_BYTES = re.compile(r"\b\d+(?= bytes\b)|(?<=-at-)\d+")


def run_script(path: Path, rewrite: bool = False) -> tuple[str, str]:
    """What the file says and what was seen now, both as text."""
    text = path.read_text()
    script, out = Script(), []
    for block in text.strip().split("\n\n"):
        lines = block.split("\n")
        comments = [line for line in lines if line.startswith("#")]
        lines = [line for line in lines if not line.startswith("#")]
        if not lines:
            out.append(block)
            continue
        commands = lines[: lines.index("----")] if "----" in lines else lines
        out.append("\n".join([*comments, *commands, "----", *script.block(commands)]))
    if script.cluster is not None and script.cluster.failures:
        out.append(f"# a node failed: {script.cluster.failures}")
    seen = _BYTES.sub("…", "\n\n".join(out) + "\n")  # how large a format is, is no part of what a script says
    if rewrite:
        path.write_text(seen)
    return text, seen

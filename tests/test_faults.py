"""Random lives of small clusters: crashes that lose and tear unsynced sectors, cuts, lost and doubled
messages, stalled disks. Then everything heals, and what was acknowledged must be there.

FAULT_SEEDS and FAULT_START choose the seeds; one that fails is replayed with FAULT_SEEDS=1 FAULT_START=it.
"""

from __future__ import annotations

import os
from random import Random

import pytest

from raftd.jobs import commands as c
from raftd.jobs import replies as r
from raftd.sim.cluster import SimCluster

START = int(os.environ.get("FAULT_START", "1"))
SEEDS = range(START, START + int(os.environ.get("FAULT_SEEDS", "12")))


class Life:
    """One cluster under faults, with clients that put, reserve and delete on random nodes."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.cluster = SimCluster(self.random.choice((1, 2, 3, 3, 3, 5)), seed)
        self.nodes = self.cluster.config.voters
        self.acknowledged: dict[int, bytes] = {}
        self.asked_to_delete: set[int] = set()
        self.deleted: set[int] = set()
        self.pending: dict[object, str] = {}
        self.sessions: list = []
        self.count = 0
        self.torn = self.random.random() < 0.7

    def run(self) -> None:
        self.cluster.start()
        for _ in range(60):
            self.random.choice((self.faults, self.load, self.load, self.load))()
            self.cluster.run(self.random.choice((1, 5, 20, 100, 400)))
        self.heal()
        self.check()

    # -- what happens ---------------------------------------------------------------------------

    def load(self) -> None:
        if not self.cluster.processes:
            return
        node = self.random.choice(sorted(self.cluster.processes))
        process = self.cluster.processes[node]
        if self.random.random() < 0.2 and self.sessions:
            process, session = self.sessions.pop(self.random.randrange(len(self.sessions)))
            session.close()
            process.node.wake()
            self.pending = {key: value for key, value in self.pending.items() if key[0] is not session}
            return
        mine = [session for process_, session in self.sessions if process_ is process]
        if mine and self.random.random() < 0.6:
            session = self.random.choice(mine)
        else:
            session = process.node.open_session(lambda: self.lost(process, session))
            self.sessions.append((process, session))
        for _ in range(self.random.randrange(1, 6)):
            self.ask(process, session)
        process.node.wake()

    def lost(self, process, session) -> None:
        self.sessions.remove((process, session))
        self.pending = {key: value for key, value in self.pending.items() if key[0] is not session}

    def ask(self, process, session) -> None:
        self.count += 1
        key = (session, self.count)
        body = b"job %d" % self.count
        number = session.number
        choice = self.random.random()
        if choice < 0.5:
            command: c.Command = c.Put(number, self.random.randrange(3), self.random.choice((0, 0, 300)), 2_000, body)
        elif choice < 0.8:
            command = c.Reserve(number, self.random.choice((0, 0, 200)))
        elif self.acknowledged:
            command = c.Delete(number, self.random.choice(sorted(self.acknowledged)))
            self.asked_to_delete.add(command.id)
        else:
            return
        self.pending[key] = repr(command)

        def done(reply: object, index: int) -> None:
            if not process.alive:
                return
            assert key in self.pending, f"answered twice, or after its session was lost: {command}"
            del self.pending[key]
            if isinstance(reply, r.Inserted):
                assert reply.id not in self.acknowledged, "one id for two jobs"
                self.acknowledged[reply.id] = body
            elif isinstance(reply, r.Reserved):
                assert self.acknowledged.get(reply.id, reply.body) == reply.body
            elif isinstance(reply, r.Deleted):
                assert command.id not in self.deleted, "deleted twice"
                self.deleted.add(command.id)

        session.submit(command, done)

    def faults(self) -> None:
        cluster, random = self.cluster, self.random
        kind = random.randrange(7)
        if kind == 0 and cluster.processes:
            self.crash(random.choice(sorted(cluster.processes)))
        elif kind == 1:
            for node in self.nodes:
                if node not in cluster.processes:
                    cluster.start(node)
        elif kind == 2:
            groups: list[set[int]] = [set(), set()]
            for node in self.nodes:
                groups[random.randrange(2)].add(node)
            cluster.partition(*groups)
        elif kind == 3:
            cluster.heal()
        elif kind == 4:
            rate = random.choice((0.0, 0.05, 0.3))
            cluster.interfere = lambda sender, to, message: 1 if random.random() > rate else random.choice((0, 2))
        elif kind == 5 and cluster.processes:
            cluster.processes[random.choice(sorted(cluster.processes))].worker.stalled = True
        elif kind == 6:
            for process in cluster.processes.values():
                process.worker.go_on()
            if random.random() < 0.2:
                for node in list(cluster.processes):
                    self.crash(node)

    def crash(self, node: int) -> None:
        process = self.cluster.processes[node]
        self.sessions = [(process_, session) for process_, session in self.sessions if process_ is not process]
        alive = {id(session) for _, session in self.sessions}
        self.pending = {key: value for key, value in self.pending.items() if id(key[0]) in alive}
        keep = self.random.choice((0.0, 0.5, 1.0)) if self.torn else 0.0
        self.cluster.crash(node, lambda path, sector: self.random.random() < keep)

    def heal(self) -> None:
        self.cluster.heal()
        self.cluster.interfere = None
        for process in list(self.cluster.processes.values()):
            process.worker.go_on()
        for node in self.nodes:
            if node not in self.cluster.processes:
                self.cluster.start(node)
        # frames may have been lost on connections that stand: that never happens to TCP, so they are made anew
        for one, other in sorted(self.cluster.links):
            self.cluster[one].link_changed(other)

    # -- what must hold -------------------------------------------------------------------------

    def check(self) -> None:
        cluster = self.cluster
        assert cluster.run(20_000, lambda: cluster.leader and cluster[cluster.leader].raft.has_committed_own_entry), (
            "no leader after healing"
        )
        assert cluster.run(20_000, lambda: not self.pending), f"never answered: {self.pending}"

        def even() -> bool:
            raft = cluster[cluster.leader].raft
            return all(cluster[node].machine.applied_index == raft.log.last_index for node in self.nodes)

        assert cluster.run(20_000, even), "the nodes do not catch up"
        assert cluster.failures == []
        assert len({cluster[node].machine.digest() for node in self.nodes}) == 1
        jobs = cluster[1].machine.jobs
        lost = {id for id in self.acknowledged if id not in jobs} - self.asked_to_delete
        assert not lost, f"acknowledged and lost: {lost}"
        assert not self.deleted & set(jobs), "deleted, and there again"
        bodies = [job.body for job in jobs.values()]
        assert len(bodies) == len(set(bodies)), "a put took effect twice"


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_acknowledged_is_lost(seed):
    Life(seed).run()

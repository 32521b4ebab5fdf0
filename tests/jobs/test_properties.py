"""Random lives of the queue, compared with the plain model of the simulator after every entry: answers, order, states, counts.

Sessions, every verb, timers, waits, repeated and missing batches, gateways that die and come again.
"""

from __future__ import annotations

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from raftd.jobs import commands as c
from raftd.jobs import queries
from raftd.jobs.budget import COSTS, Costs
from raftd.jobs.machine import StateMachine
from raftd.jobs.snapshot import Loader, dump
from raftd.sim.compare import describe_machine, describe_model
from raftd.sim.model import Model

NODES = (1, 2)
sessions = st.integers(1, 3)
tubes = st.sampled_from(["default", "a", "b"])
ids = st.integers(1, 12)
pris = st.sampled_from([0, 5, 1023, 1024, 2000])
delays = st.sampled_from([0, 0, 1_000, 3_000])
ttrs = st.sampled_from([0, 1_000, 2_000, 5_000])
tokens = st.one_of(st.just(0), st.just(0), st.integers(1, 15))
commands = st.one_of(
    st.builds(c.Put, sessions, pris, delays, ttrs, st.sampled_from([b"", b"body"]), st.one_of(st.just(""), tubes)),
    st.builds(c.Use, sessions, tubes),
    st.builds(c.Watch, sessions, tubes),
    st.builds(c.Ignore, sessions, tubes),
    st.builds(c.Reserve, sessions, st.sampled_from([None, 0, 1_000, 4_000])),
    st.builds(c.ReserveJob, sessions, ids),
    st.builds(c.Delete, sessions, ids, tokens),
    st.builds(c.Release, sessions, ids, st.one_of(st.none(), pris), delays, tokens),
    st.builds(c.Bury, sessions, ids, st.one_of(st.none(), pris), tokens),
    st.builds(c.Touch, sessions, ids, tokens),
    st.builds(c.Kick, sessions, st.integers(-1, 3)),
    st.builds(c.KickJob, sessions, ids),
    st.builds(c.PauseTube, sessions, tubes, st.sampled_from([0, 1_000, 2_000])),
    st.builds(c.CloseSession, sessions),
    st.builds(c.Leave, sessions),
    st.builds(c.Declare, sessions, tubes),
    st.builds(c.Undeclare, sessions, tubes),
    st.builds(c.PutBack, sessions, ids, tubes, pris, ttrs, st.just(b"back")),
    st.builds(
        c.PutMany,
        sessions,
        tubes,
        st.lists(st.builds(c.NewJob, pris, delays, ttrs, st.just(b"one of many")), min_size=1, max_size=3),
        st.sampled_from(["", "key", "other key"]),
        st.sampled_from([b"", b"asked"]),
        st.sampled_from([False, False, True]),
    ),
)
steps = st.sampled_from([0, 0, 1, 10, 500, 1_000, 2_500])


def restored(pieces: list[bytes], costs: Costs) -> StateMachine:
    loader = Loader(StateMachine(costs))
    for piece in pieces:
        loader.feed(piece)
    return loader.finish()


class QueueLife(RuleBasedStateMachine):
    costs = COSTS

    def __init__(self) -> None:
        super().__init__()
        self.machine = StateMachine(self.costs)
        self.twin = StateMachine(self.costs)  # the same entries on another node
        self.restored = StateMachine(self.costs)  # a node that is started from a snapshot now and then
        self.model = Model(msgspec.structs.asdict(self.costs))
        self.now = 1_000_000
        self.incarnations = dict.fromkeys(NODES, 1)
        self.seqs = dict.fromkeys(NODES, 0)
        self.last: dict[int, c.Batch] = {}
        for node in NODES:
            self.entry(c.OpenGateway(node, 1))

    def entry(self, payload: c.Payload | None, step: int = 0):
        self.now += step
        data = c.encode_payload(payload) if payload is not None else b""
        effects = self.machine.apply(self.machine.applied_index + 1, self.now, data)
        twin = self.twin.apply(self.twin.applied_index + 1, self.now, data)
        assert effects == twin
        assert effects == self.restored.apply(self.restored.applied_index + 1, self.now, data)
        assert list(map(msgspec.msgpack.encode, effects.answers)) == list(map(msgspec.msgpack.encode, self.model.entry(self.now, data)))
        return effects

    @rule(node=st.sampled_from(NODES), batch=st.lists(commands, min_size=1, max_size=6), step=steps)
    def batch(self, node, batch, step):
        self.seqs[node] += 1
        self.last[node] = c.Batch(node, self.incarnations[node], self.seqs[node], batch)
        self.entry(self.last[node], step)

    @rule(step=steps)
    def time_passes(self, step):
        self.entry(None, step)

    @rule()
    def all_nodes_know_every_feature(self):
        self.entry(c.Features(c.FEATURE_LEVEL))

    @rule()
    def a_node_starts_from_a_snapshot(self):
        pieces = list(dump(self.machine))
        assert pieces == list(dump(self.restored))
        self.restored = restored(pieces, self.costs)
        assert self.restored.digest() == self.machine.digest()
        assert describe_machine(self.restored) == describe_machine(self.machine)
        self.describes()

    def describes(self):
        for ours, model in zip(describe_machine(self.machine), describe_model(self.model), strict=True):
            assert ours == model

    @rule(node=st.sampled_from(NODES), step=steps)
    def a_batch_comes_again(self, node, step):
        if node in self.last:
            before = self.machine.gateways[node].seq
            assert not self.entry(self.last[node], step).gaps
            assert self.machine.gateways[node].seq == before

    @rule(node=st.sampled_from(NODES), batch=st.lists(commands, min_size=1, max_size=2))
    def a_batch_is_missing(self, node, batch):
        effects = self.entry(c.Batch(node, self.incarnations[node], self.seqs[node] + 2, batch))
        assert effects.gaps == {node}

    @rule(node=st.sampled_from(NODES), batch=st.lists(commands, min_size=1, max_size=2), older=st.booleans())
    def a_batch_of_another_incarnation(self, node, batch, older):
        other = self.incarnations[node] + (-1 if older else 1)
        effects = self.entry(c.Batch(node, other, 1, batch))
        assert not effects.answers

    @rule(node=st.sampled_from(NODES), step=steps, closed_first=st.booleans())
    def a_gateway_is_replaced(self, node, step, closed_first):
        if closed_first:
            self.entry(c.CloseGateway(node, self.incarnations[node]), step)
            self.entry(c.OpenGateway(node, self.incarnations[node]))  # a late repeat opens nothing
            assert not self.machine.gateways[node].is_open
            self.a_batch_comes_again(node, 0)
        self.incarnations[node] += 1
        self.seqs[node] = 0
        self.last.pop(node, None)
        self.entry(c.OpenGateway(node, self.incarnations[node]))

    @invariant()
    def nodes_agree(self):
        assert self.machine.digest() == self.twin.digest()

    @invariant()
    def states_and_counts_equal_what_looking_finds(self):
        assert sorted(self.machine.jobs) == sorted(self.model.jobs)
        for id, job in self.model.jobs.items():
            got = dict(queries.stats_job(id)(self.machine, self.now, 0, 0))
            for key in ("state", "tube", "pri", "timeouts", "releases", "buries", "kicks", "reserves"):
                assert str(got[key]).strip('"') == str(job[key]), (id, key)
        assert set(self.machine.tubes) == self.model.tubes()
        for name in self.model.tubes():
            got = dict(queries.stats_tube(name)(self.machine, self.now, 0, 0))
            for state in ("ready", "reserved", "delayed", "buried"):
                assert got[f"current-jobs-{state}"] == len(self.model.in_state(state, name)), (name, state)
            assert got["current-jobs-urgent"] == sum(job["pri"] < 1024 for job in self.model.in_state("ready", name))
            assert got["current-waiting"] == len(self.model.waiters(name))
            sessions = [*self.model.sessions.values(), *self.model.closing]
            assert got["current-using"] == sum(session["used"] == name and bool(session["watched"]) for session in sessions)
            assert got["current-watching"] == sum(name in session["watched"] for session in sessions)
            assert got["total-jobs"] == self.model.puts.get(name, 0)
            assert got["cmd-delete"] == self.model.deletes.get(name, 0)
        for key, value in queries.job_counts(self.machine):
            state = key.removeprefix("current-jobs-")
            urgent = sum(job["pri"] < 1024 for job in self.model.in_state("ready"))
            assert value == (urgent if state == "urgent" else len(self.model.in_state(state))), state
        for node, row in self.machine.gateways.items():
            assert row.waiting == sum(bool(session["wait"]) for key, session in self.model.sessions.items() if key[0] == node)
        assert (self.machine.total_jobs, self.machine.job_timeouts) == (self.model.total, self.model.timeouts)

    @invariant()
    def what_is_left_over_is_due(self):
        due = self.machine.next_due_ms()
        assert (due is not None and due <= self.now) == self.model.has_left_over


class SmallBudget(QueueLife):
    """An entry ends after a few things: nearly everything is left over for the next."""

    costs = msgspec.structs.replace(COSTS, entry=150, commands=50, left_over=50, tube=10)


QueueLife.TestCase.settings = SmallBudget.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestQueueLife = QueueLife.TestCase
TestSmallBudget = SmallBudget.TestCase

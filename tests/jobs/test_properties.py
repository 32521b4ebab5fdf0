"""Random lives of the queue, compared with the plain model of the simulator after every entry: answers, order, states, counts.

Sessions, every verb, timers, waits, repeated and missing batches, gateways that die and come again.
"""

from __future__ import annotations

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from raftd.jobs import asks, queries
from raftd.jobs import commands as c
from raftd.jobs.budget import COSTS, Costs
from raftd.jobs.machine import StateMachine
from raftd.jobs.model import State
from raftd.jobs.policy import Policy, PolicyChange
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
CONNECTIONS = [(1, 11), (1, 12), (2, 11)]
connections = st.integers(11, 12)
ask_ids = st.integers(0, 30)
held = st.lists(st.tuples(ids, tokens), max_size=3)
some_tubes = st.lists(tubes, min_size=1, max_size=3)
new_jobs = st.lists(st.builds(asks.NewJob, pris, delays, ttrs, st.just(b"asked")), min_size=1, max_size=4)
whats = st.one_of(
    st.builds(asks.Put, tubes, new_jobs, st.sampled_from(["", "key"]), st.sampled_from([b"", b"asked"])),
    st.builds(asks.Put, tubes, new_jobs),
    st.builds(asks.Reserve, some_tubes, st.integers(1, 3), st.sampled_from([None, 0, 1_000, 4_000])),
    st.builds(asks.Subscribe, some_tubes, st.sampled_from([0, 1, 3, 1_000, 1_001])),
    st.builds(asks.Flow, ask_ids, st.integers(0, 5), st.sampled_from([0, 1, 2, 1_000])),
    st.builds(asks.Cancel, ask_ids),
    st.builds(asks.Delete, held),
    st.builds(asks.Release, held, delays, st.one_of(st.none(), pris)),
    st.builds(asks.Fail, held, delays, st.sampled_from(["", "it broke", "x" * 2_000])),
    st.builds(asks.Bury, held, st.one_of(st.none(), pris), st.sampled_from(["", "no use", "x" * 2_000])),
    st.builds(asks.Touch, held),
    st.builds(asks.Kick, tubes, st.integers(-1, 3)),
    st.builds(asks.KickJobs, st.lists(ids, max_size=3)),
    st.builds(asks.Pause, tubes, st.sampled_from([0, 1_000, 2_000])),
    st.builds(asks.Declare, tubes),
    st.builds(asks.Undeclare, tubes),
    st.builds(asks.End, st.booleans()),
)
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
    st.builds(c.Attach, connections, st.sampled_from([b"one", b"two"])),
    st.builds(c.Attach, connections, st.sampled_from([b"one", b"two"])),
    st.builds(c.Detach, connections),
    *[st.builds(c.Ask, connections, ask_ids, ask_ids, st.lists(ask_ids, max_size=2), whats)] * 6,
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
policies = st.builds(
    Policy,
    max_attempts=st.sampled_from([0, 0, 1, 2]),
    backoff_ms=st.sampled_from([(), (), (500,), (1, 2_000)]),
    backoff_factor=st.sampled_from([0, 1_100, 2_000]),
    backoff_max_ms=st.just(3_000),
    dead_letter=st.sampled_from(["", "", "a", "b", "dead"]),
    ttl_ms=st.sampled_from([0, 0, 1_000, 2_500]),
    on_expire=st.sampled_from(["discard", "dead_letter"]),
    max_jobs=st.sampled_from([0, 0, 0, 1, 3]),
    max_bytes=st.sampled_from([0, 0, 0, 15, 40]),
    overflow=st.sampled_from(["reject", "drop_oldest", "dead_letter_oldest"]),
    rate=st.sampled_from([0, 0, 300, 1_000, 5_000_000]),
    burst=st.sampled_from([1, 1, 3]),
    concurrency=st.sampled_from([0, 0, 1, 2]),
    retain_ms=st.sampled_from([0, 0, 2_000]),
)
changes = st.lists(
    st.builds(PolicyChange, st.sampled_from(["default", "a", "b", "dead"]), st.one_of(st.none(), policies, policies)),
    min_size=1,
    max_size=3,
    unique_by=lambda change: change.tube,
)
uniques = st.builds(asks.Unique, st.sampled_from(["x", "y"]), st.booleans(), st.sampled_from([0, 0, 1_000]))
plans = st.builds(
    asks.Plan,
    st.sampled_from(["a", "b", "dead"]),
    st.builds(asks.NewJob, pris, st.just(0), ttrs, st.just(b"scheduled")),
    every_ms=st.just(1_000),
    skips_overlap=st.booleans(),
)
names = st.sampled_from(["daily", "hourly"])
about_schedules = st.one_of(
    st.builds(asks.SetSchedule, names, st.one_of(st.none(), plans, plans), st.one_of(st.none(), st.integers(0, 3))),
    st.builds(asks.PauseSchedule, names, st.booleans()),
    st.builds(asks.RunSchedule, names),
)
POLICY_TUBES = ("a", "b", "dead")
steps = st.sampled_from([0, 0, 1, 10, 500, 1_000, 2_500])


def restored(pieces: list[bytes], costs: Costs) -> StateMachine:
    loader = Loader(StateMachine(costs))
    for piece in pieces:
        loader.feed(piece)
    return loader.finish()


class Life(RuleBasedStateMachine):
    """A machine, others that apply the same, and the model."""

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

    def run(self, node, batch, step=0):
        self.seqs[node] += 1
        self.last[node] = c.Batch(node, self.incarnations[node], self.seqs[node], batch)
        self.entry(self.last[node], step)

    @rule()
    def all_nodes_know_every_feature(self):
        self.entry(c.Features(c.FEATURE_LEVEL))

    @rule(step=steps)
    def time_passes(self, step):
        self.entry(None, step)

    @rule(changes=changes, step=steps, what=st.sampled_from(["any", "newest", "newest", "ask"]))
    def policies_are_set(self, changes, step, what):
        """By whoever knows the version that a tube has, or does not care."""
        if self.machine.level < c.POLICIES_LEVEL:
            self.all_nodes_know_every_feature()
        if what == "newest":
            known = self.machine.policies.tubes
            changes = [msgspec.structs.replace(one, version=known[one.tube].version if one.tube in known else 0) for one in changes]
        attached = [session for session in self.machine.clients.sessions.values() if session.attached_to is not None]
        if what == "ask" and attached:
            node, number = attached[0].attached_to
            ask = asks.SetPolicies([msgspec.structs.replace(one, version=7) if one.tube == "b" else one for one in changes])
            self.run(node, [c.Ask(number, attached[0].last_id + 1, 0, [], ask)], step)
        else:
            self.run(NODES[0], [c.SetPolicies(1, changes)], step)

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
            watching = [session["watched"] for session in sessions] + [wait["tubes"] for wait in self.model.client_waits()]
            assert got["current-watching"] == sum(name in tubes for tubes in watching)
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


class QueueLife(Life):
    """Every verb."""

    @rule(node=st.sampled_from(NODES), batch=st.lists(commands, min_size=1, max_size=6), step=steps)
    def batch(self, node, batch, step):
        self.run(node, batch, step)

    @rule(connection=st.sampled_from(CONNECTIONS), token=st.sampled_from([b"one", b"two"]), step=steps)
    def a_client_comes(self, connection, token, step):
        self.run(connection[0], [c.Attach(connection[1], token)], step)

    @rule(data=st.data(), step=steps)
    def a_client_goes_on(self, data, step):
        """With the next ask of its session, or an earlier one again; about what it has waiting, and what it holds."""
        attached = [session for session in self.machine.clients.sessions.values() if session.attached_to is not None]
        if not attached:
            return
        session = data.draw(st.sampled_from(attached))
        node, number = session.attached_to
        asked = []
        for place in range(data.draw(st.integers(1, 3))):
            next_id = session.last_id + 1 + place
            id = data.draw(st.sampled_from([next_id] * 5 + sorted(session.waits) + list(session.answers)))
            what = data.draw(whats)
            known = sorted(session.waits)
            if isinstance(what, asks.Flow | asks.Cancel) and known:
                which = data.draw(st.sampled_from(known))
                what = asks.Cancel(which) if isinstance(what, asks.Cancel) else asks.Flow(which, what.received, what.credit)
            elif isinstance(what, asks.OfMany) and not isinstance(what, asks.KickJobs) and len(session.reserved):
                what = msgspec.structs.replace(what, jobs=[(job, token) for token, job in session.reserved][:3])
            elif isinstance(what, asks.End) and data.draw(st.booleans()):
                what = asks.Subscribe(["default", "a"], 2)
            answered = data.draw(st.integers(0, session.last_id))
            asked.append(c.Ask(number, id, answered, data.draw(st.lists(st.integers(0, session.last_id), max_size=2)), what))
        self.run(node, asked, step)

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
        seqs = {node: row.seq for node, row in self.machine.gateways.items()}
        self.entry(c.Batch(node, other, 1, batch))  # what earlier entries left over may be answered
        assert seqs == {node: row.seq for node, row in self.machine.gateways.items()}

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


class PolicyLife(Life):
    """Few verbs, and policies all the time."""

    def __init__(self) -> None:
        super().__init__()
        self.entry(c.Features(c.ACCESS_LEVEL))
        self.run(1, [c.Attach(11, b"worker"), *(c.Watch(1, tube) for tube in POLICY_TUBES)])

    @rule(tube=st.sampled_from(POLICY_TUBES), pri=pris, delay=delays, size=st.sampled_from([1, 1, 10, 30]), count=st.integers(1, 4))
    def jobs_are_put(self, tube, pri, delay, size, count):
        if count == 1:
            self.run(1, [c.Put(1, pri, delay, 1_000, bytes(size), tube)])
        else:
            self.run(1, [c.PutMany(1, tube, [c.NewJob(pri, delay, 1_000, bytes(size))] * count)])

    @rule(
        tube=st.sampled_from(POLICY_TUBES),
        unique=uniques,
        delay=delays,
        key=st.sampled_from(["", "k1", "k2"]),
        step=steps,
        line=st.booleans(),
    )
    def the_only_one_of_its_kind_is_put(self, tube, unique, delay, key, step, line):
        job = c.NewJob(5, delay, 1_000, b"unique")
        if line:
            self.run(1, [c.PutUnique(1, tube, job, unique, key, b"asked")], step)
        else:
            self.ask(asks.Put(tube, [job], key, b"asked", unique), step)

    @rule(how=st.sampled_from(["one", "many", "wait", "by id", "by id"]), data=st.data(), step=steps)
    def jobs_are_reserved(self, how, data, step):
        if how == "by id" and self.machine.jobs:
            self.run(1, [c.ReserveJob(1, data.draw(st.sampled_from(sorted(self.machine.jobs))))], step)
        elif how == "one":
            self.run(1, [c.Reserve(1, 0)], step)
        elif self.client.attached_to is not None:
            self.ask(asks.Reserve(list(POLICY_TUBES), 3, 0) if how == "many" else asks.Subscribe([POLICY_TUBES[0], "dead"], 2), step)

    @rule(
        step=steps,
        data=st.data(),
        what=st.sampled_from(["fail", "fail", "fail later", "release", "bury", "delete", "delete", "session ends"]),
    )
    def a_reservation_ends(self, step, data, what):
        reserved = sorted((job.id, job.token) for job in self.machine.jobs.values() if job.state is State.RESERVED)
        if what == "session ends":
            self.run(1, [c.CloseSession(1), *(c.Watch(1, tube) for tube in POLICY_TUBES)], step)
        elif reserved:
            one = [data.draw(st.sampled_from(reserved))]
            ends = {"fail": asks.Fail(one, 0, "it broke"), "fail later": asks.Fail(one, 1_000, "", step == 0), "release": asks.Release(one)}
            self.ask({**ends, "bury": asks.Bury(one), "delete": asks.Delete(one, b"done")}[what], step)

    @rule(tube=st.sampled_from(POLICY_TUBES), step=steps)
    def jobs_are_kicked(self, tube, step):
        self.ask(asks.Kick(tube, 2), step)

    @rule(
        which=st.builds(
            asks.Selection,
            st.sampled_from(POLICY_TUBES),
            st.sampled_from(["", "", "broke"]),
            st.sampled_from(["", "", "a"]),
            st.sampled_from([0, 0, 1_001_000]),
            st.sampled_from([0, 0, 1_003_000]),
            st.sampled_from([0, 5]),
        ),
        action=st.sampled_from(["move", "move", "kick", "delete"]),
        to=st.sampled_from(["", "", "a", "dead"]),
        after=st.sampled_from([0, 0, 0, 3]),
        line=st.booleans(),
        step=steps,
    )
    def dead_and_buried_jobs_are_replayed(self, which, action, to, after, line, step):
        what = asks.Replay(which, action, to, after)
        if line:
            self.run(1, [c.Replay(1, what)], step)
        else:
            self.ask(what, step)

    @rule(what=about_schedules, line=st.booleans(), step=steps)
    def schedules_are_changed(self, what, line, step):
        if line:
            self.run(1, [c.OfSchedule(1, what)], step)
        else:
            self.ask(what, step)

    @rule(late=st.sampled_from([0, 0, 0, 1]), next_ms=st.sampled_from([0, 5, 100, 100]), puts=st.booleans(), data=st.data())
    def a_leader_ticks(self, late, next_ms, puts, data):
        known = sorted(self.machine.schedules.by_name.values(), key=lambda one: one.name)
        if known:
            one = data.draw(st.sampled_from(known))
            due_ms = one.next_ms - late
            self.entry(c.Tick(one.name, one.version, due_ms, due_ms + next_ms if next_ms else 0, puts))

    @rule(tube=st.sampled_from(POLICY_TUBES), policy=policies, step=steps)
    def a_policy_is_set(self, tube, policy, step):
        self.run(1, [c.SetPolicies(1, [PolicyChange(tube, policy)])], step)

    @invariant()
    def the_model_says_the_same(self):
        self.describes()

    @property
    def client(self):
        return self.machine.clients.by_token[b"worker"]

    def ask(self, what, step):
        id = self.client.last_id + 1
        self.run(1, [c.Ask(11, id, id, [], what)], step)


class SmallBudget(QueueLife):
    """An entry ends after a few things: nearly everything is left over for the next."""

    costs = msgspec.structs.replace(COSTS, entry=150, commands=50, left_over=50, tube=10)


class SmallBudgetOfPolicies(PolicyLife):
    """As `SmallBudget`."""

    costs = SmallBudget.costs


def test_a_tube_whose_last_watcher_ends_is_forgotten_before_the_commands_of_the_entry():
    """A client session ends by its timer, and with it the tube that only it subscribed to; an ask of the same entry makes it again."""
    life = QueueLife()
    life.run(1, [c.Attach(11, b"one"), c.Put(1, 0, 0, 1_000, b"", "b")])
    (one,) = life.machine.clients.sessions.values()
    life.run(1, [c.Ask(11, 1, 0, [], asks.Subscribe(["b"], 1))])
    life.run(1, [c.Ask(11, 2, 0, [], asks.Delete([(job, token) for token, job in one.reserved])), c.Attach(11, b"two")])
    assert life.machine.tubes["b"].total_jobs == 1
    life.run(1, [c.Ask(11, 1, 0, [], asks.Subscribe(["b"], 0))], step=life.machine.settings.session_timeout_ms)
    assert life.machine.tubes["b"].total_jobs == 0
    life.states_and_counts_equal_what_looking_finds()


LIVES = settings().max_examples * 3 // 2
PolicyLife.TestCase.settings = SmallBudgetOfPolicies.TestCase.settings = settings(max_examples=LIVES, stateful_step_count=50)
QueueLife.TestCase.settings = SmallBudget.TestCase.settings = settings(max_examples=LIVES, stateful_step_count=40)
TestQueueLife = QueueLife.TestCase
TestSmallBudget = SmallBudget.TestCase
TestPolicyLife = PolicyLife.TestCase
TestSmallBudgetOfPolicies = SmallBudgetOfPolicies.TestCase

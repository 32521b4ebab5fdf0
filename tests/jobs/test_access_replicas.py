"""Two nodes apply the same commands of users, and changes of users; one of them is made anew from a snapshot after each entry. With small
budgets, so that much is left over from entry to entry.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import msgspec
import pytest

from raftd.jobs import asks
from raftd.jobs import commands as c
from raftd.jobs import rights as g
from raftd.jobs.budget import COSTS
from raftd.jobs.machine import StateMachine
from raftd.jobs.policy import Policy, PolicyChange
from raftd.jobs.rights import Grant, Login, Right
from raftd.jobs.snapshot import dump, load
from tests.jobs.test_access import OPERATOR, ROOT, by_token, token_of
from tests.jobs.test_machine import NOW

SMALL = msgspec.structs.replace(COSTS, entry=400, commands=200, left_over=100)
TUBES = ("mine", "mine2", "theirs", "default")
NAMES = ("ann", "bob")
ENTRIES = 120


class Life:
    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.first_id = 0

    def pick(self, *choices: Callable[[], c.Command | asks.What | g.Change]) -> object:
        return self.random.choice(choices)()

    def login(self) -> Login:
        name = self.random.choice((*NAMES, "root"))
        kinds = (by_token(name), Login("token", name, token_of(name)), Login("certificate", name), Login("password", name, b"d" * 32))
        return self.random.choice((*kinds, kinds[0], Login("node", "node 2"), Login("local", name)))

    def change(self) -> g.Change:
        name = self.random.choice(NAMES)
        grant = Grant(
            self.random.choice(list(Right)[:4]), self.random.choice(("*", "*", "mine*", "theirs", "m*2")), self.random.random() < 0.2
        )
        password = g.Password(b"s" * 16, b"d" * 32)
        changes: list[g.Change] = [
            g.AddUser(name),
            g.RemoveUser(name),
            *[g.AddGrant(name, grant)] * 3,
            g.RemoveGrant(name, grant),
            g.AddToken(name, self.random.choice("xyz"), token_of(name), self.random.choice((0, 0, 50))),
            g.RemoveToken(name, self.random.choice("xyz")),
            g.SetPassword(name, self.random.choice((None, password))),
            g.SetQuota(name, g.Quota(self.random.choice((0, 0, 5)), self.random.choice((0, 10)))),
        ]
        return self.random.choice(changes)

    def command(self) -> c.Command:
        random = self.random
        session, tube, id = random.randrange(1, 7), random.choice(TUBES), random.randrange(1, 40)
        token = random.choice((0, 0, random.randrange(1, 40)))
        job = c.NewJob(1, 0, 1_000, b"j")
        lines: list[c.Command] = [
            c.LogIn(session, self.login()),
            c.CloseSession(session),
            c.Leave(session),
            *[c.Watch(session, tube)] * 3,
            c.Ignore(session, tube),
            c.Use(session, tube),
            *[c.Reserve(session, random.choice((None, 0, 30, 2_000)))] * 3,
            *[c.Put(session, 1, random.choice((0, 0, 20)), 1_000, b"b", tube)] * 4,
            c.PutMany(session, tube, [job] * random.randrange(3), random.choice(("", "key")), b"f"),
            c.Delete(session, id, token),
            c.Release(session, id, 1, 0, token),
            c.Bury(session, id, 1, token),
            c.ReserveJob(session, id),
            c.Kick(session, 3),
            c.PauseTube(session, tube, random.choice((0, 20))),
            c.Declare(session, tube),
            c.SetPolicies(
                session, [PolicyChange(tube, random.choice((None, Policy(max_attempts=1, dead_letter="theirs"), Policy(concurrency=1))))]
            ),
            *[c.ChangeAccess(ROOT, [self.change() for _ in range(random.randrange(1, 3))])] * 2,
        ]
        number = 20 + session
        clients: list[c.Command] = [
            c.AttachAs(number, bytes([random.randrange(4)]) * 16, self.login()),
            c.Attach(number, bytes([random.randrange(4)]) * 16),
            c.Detach(number),
            *[self.ask(number, tube, id, token) for _ in range(5)],
        ]
        return random.choice(lines if random.random() < 0.7 else clients)

    def ask(self, number: int, tube: str, id: int, token: int) -> c.Ask:
        random = self.random
        self.first_id += random.choice((0, 1, 1, 1))
        before = max(1, self.first_id - random.randrange(1, 6))
        whats: list[asks.What] = [
            asks.Subscribe([tube, *TUBES[:1]], random.randrange(1, 5)),
            asks.Reserve([tube], 2, random.choice((None, 0, 30))),
            asks.Reserve(list(TUBES[:2]), 1, None),
            asks.Flow(before, random.randrange(3), random.randrange(3)),
            asks.Cancel(before),
            asks.End(random.random() < 0.5),
            asks.Put(tube, [asks.NewJob(1, 0, 1_000, b"q")]),
            asks.Delete([(id, token)]),
            asks.Fail([(id, token)]),
        ]
        return c.Ask(number, max(1, self.first_id), max(0, self.first_id - random.randrange(12)), [], random.choice(whats))


def begin() -> list[c.Command]:
    every: list[g.Change] = [g.AddGrant("root", Grant(right, "*")) for right in Right]
    ann: list[g.Change] = [g.AddUser("ann"), g.AddToken("ann", "x", token_of("ann"))]
    ann += [g.AddGrant("ann", Grant(right, "*")) for right in (Right.PUT, Right.WORK)]
    logins = [c.LogIn(session, by_token("ann")) for session in range(1, 7)]
    attached = [c.AttachAs(20 + number, bytes([number % 4]) * 16, by_token("ann")) for number in range(1, 4)]
    return [c.ChangeAccess(ROOT, [g.AddUser("root"), *every]), c.LogIn(ROOT, OPERATOR), c.ChangeAccess(ROOT, ann), *logins, *attached]


@pytest.mark.parametrize("seed", range(12))
def test_a_node_that_was_made_from_a_snapshot_says_and_becomes_the_same(seed):
    life, now_ms = Life(seed), NOW
    machine = StateMachine(SMALL)
    machine.level = c.FEATURE_LEVEL
    machine.apply(1, now_ms, c.encode_payload(c.OpenGateway(1, 1)))
    other = load(list(dump(machine)), machine=StateMachine(SMALL))
    granted = refused = 0
    for seq in range(1, ENTRIES):
        now_ms += life.random.choice((0, 1, 10, 500))
        commands = begin() if seq == 1 else [life.command() for _ in range(life.random.randrange(1, 8))]
        data = c.encode_payload(c.Batch(1, 1, seq, commands))
        one, two = (each.apply(each.applied_index + 1, now_ms, data) for each in (machine, other))
        assert one.answers == two.answers
        pieces = list(dump(other))
        assert pieces == list(dump(machine))
        other = load(pieces, machine=StateMachine(SMALL))
        assert other.digest() == machine.digest()
        names = [type(getattr(reply, "reply", reply)).__name__ for _, _, reply in one.answers]
        granted += sum(name in ("Reserved", "Jobs", "Pushed", "Inserted") for name in names)
        refused += names.count("NotAuthorized")
    assert granted > 0
    assert refused > 0

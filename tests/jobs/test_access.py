"""Users, rights, tokens, the audit log: `jobs/access.py`, on one machine."""

from __future__ import annotations

import re
from hashlib import sha256

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftd.jobs import asks
from raftd.jobs import commands as c
from raftd.jobs import replies as r
from raftd.jobs import rights as g
from raftd.jobs.access import NEEDS
from raftd.jobs.budget import COSTS
from raftd.jobs.machine import StateMachine
from raftd.jobs.policy import Policy, PolicyChange
from raftd.jobs.rights import Grant, Login, Right, Tubes
from raftd.jobs.snapshot import dump, load
from raftd.limits import AUDIT_RECORDS, GRANTS_PER_USER
from tests.jobs.test_machine import Queue, put

SESSION = b"s" * 16
OPERATOR = Login("certificate", "root")
ROOT = 90


def token_of(text: str) -> bytes:
    return sha256(text.encode()).digest()


def by_token(text: str) -> Login:
    return Login("token", "", token_of(text))


class Secured(Queue):
    """With an operator, and whoever else is asked for: each has a token of his own name."""

    def __init__(self) -> None:
        super().__init__()
        every = [g.AddGrant("root", Grant(right, "*")) for right in Right]
        assert self.change(g.AddUser("root"), *every) == r.AccessChanged()
        self.as_user(ROOT, OPERATOR)

    def change(self, *changes: g.Change) -> r.Reply:
        return only(self.do(c.ChangeAccess(ROOT, list(changes))))

    def user(self, name: str, *granted: tuple[Right, str], denied: tuple[tuple[Right, str], ...] = ()) -> Login:
        grants = [Grant(*one) for one in granted] + [Grant(*one, True) for one in denied]
        made = self.change(g.AddUser(name), g.AddToken(name, "first", token_of(name)), *(g.AddGrant(name, grant) for grant in grants))
        assert made == r.AccessChanged()
        return by_token(name)

    def as_user(self, session: int, login: Login) -> r.Reply:
        ((_, reply),) = self.do(c.LogIn(session, login))
        return reply


def only(replies: list[tuple[int, r.Reply]]) -> r.Reply:
    ((_, reply),) = replies
    return reply


def test_without_users_nobody_has_to_say_who_he_is():
    queue = Queue()
    assert only(queue.do(put())) == r.Inserted(1)
    assert queue.do(c.LogIn(1, by_token("any"))) == [(1, r.LoggedIn(""))]
    assert only(queue.do(put())) == r.Inserted(2)


def test_with_the_first_user_everybody_has_to():
    queue = Secured()
    assert only(queue.do(put())) == r.NotAuthorized()
    assert only(queue.do(c.Ignore(1, "default"))) == r.NotAuthorized()
    assert queue.as_user(1, by_token("no such token")) == r.NotAuthorized()
    assert queue.as_user(1, queue.user("ann", (Right.PUT, "default"))) == r.LoggedIn("ann")
    assert only(queue.do(put())) == r.Inserted(1)
    assert only(queue.do(c.Reserve(1, 0))) == r.NotAuthorized()


def test_a_grant_that_denies_wins():
    queue = Secured()
    queue.as_user(1, queue.user("ann", (Right.PUT, "*"), denied=((Right.PUT, "pay*"),)))
    assert only(queue.do(c.Put(1, 1, 0, 1_000, b"", "mail"))) == r.Inserted(1)
    assert only(queue.do(c.Put(1, 1, 0, 1_000, b"", "payroll"))) == r.NotAuthorized()


def test_a_change_of_rights_holds_for_the_next_command_of_an_open_connection():
    queue = Secured()
    queue.as_user(1, queue.user("ann", (Right.PUT, "*")))
    assert only(queue.do(put())) == r.Inserted(1)
    queue.change(g.RemoveGrant("ann", Grant(Right.PUT, "*")))
    assert only(queue.do(put())) == r.NotAuthorized()
    queue.change(g.AddGrant("ann", Grant(Right.PUT, "*")))
    assert only(queue.do(put())) == r.Inserted(2)
    queue.change(g.RemoveToken("ann", "first"))
    assert only(queue.do(put())) == r.NotAuthorized()
    assert only(queue.do(c.Ignore(1, "elsewhere"))) == r.NotAuthorized()


def test_a_token_expires_by_log_time():
    queue = Secured()
    queue.change(g.AddUser("ann"), g.AddGrant("ann", Grant(Right.PUT, "*")), g.AddToken("ann", "short", token_of("ann"), 1_000))
    assert queue.as_user(1, by_token("ann")) == r.LoggedIn("ann")
    queue.later(999)
    assert only(queue.do(put())) == r.Inserted(1)
    queue.later(1)
    assert only(queue.do(put())) == r.NotAuthorized()
    assert queue.as_user(1, by_token("ann")) == r.NotAuthorized()


def test_a_token_of_another_user_is_none_of_this_one():
    queue = Secured()
    queue.user("ann")
    queue.user("bob")
    assert queue.as_user(1, Login("token", "bob", token_of("ann"))) == r.NotAuthorized()
    assert queue.as_user(1, Login("token", "ann", token_of("ann"))) == r.LoggedIn("ann")


def test_a_password_that_was_changed_is_good_for_nothing():
    queue = Secured()
    queue.user("ann", (Right.PUT, "*"))
    login = Login("password", "ann", b"digest")
    assert queue.as_user(1, login) == r.NotAuthorized()
    queue.change(g.SetPassword("ann", g.Password(b"salt", b"digest")))
    assert queue.as_user(1, login) == r.LoggedIn("ann")
    queue.change(g.SetPassword("ann", g.Password(b"salt", b"another")))
    assert only(queue.do(put())) == r.NotAuthorized()


def test_a_node_may_do_anything():
    queue = Secured()
    assert queue.as_user(1, Login("node", "node 2")) == r.LoggedIn("node 2")
    assert only(queue.do(put())) == r.Inserted(1)
    assert only(queue.do(c.Operate(1, "remove-member", "3"))) == r.MayOperate()


def test_jobs_come_from_the_watched_tubes_to_which_there_is_a_right():
    queue = Secured()
    queue.as_user(9, OPERATOR)
    queue.do(c.Put(9, 1, 0, 60_000, b"", "default"), c.Put(9, 5, 0, 60_000, b"", "mail"))
    queue.as_user(1, queue.user("ann", (Right.WORK, "mail")))
    assert only(queue.do(c.Watch(1, "payroll"))) == r.NotAuthorized()
    assert only(queue.do(c.Watch(1, "mail"))) == r.Watching(2)
    assert only(queue.do(c.Reserve(1, 0))).id == 2
    assert only(queue.do(c.Reserve(1, 0))) == r.TimedOut()


def test_jobs_of_other_tubes_are_not_there():
    queue = Secured()
    queue.as_user(9, OPERATOR)
    queue.do(c.Put(9, 1, 0, 60_000, b"", "payroll"), c.Put(9, 1, 60_000, 60_000, b"", "payroll"))
    queue.as_user(1, queue.user("ann", (Right.WORK, "mail"), (Right.MANAGE, "mail")))
    for command in (c.ReserveJob(1, 1), c.Delete(1, 1), c.KickJob(1, 2), c.Release(1, 1, 1, 0), c.Bury(1, 1, 1), c.Touch(1, 1)):
        assert only(queue.do(command)) == r.NotFound()
        missing = msgspec.structs.replace(command, id=99)
        assert only(queue.do(missing)) == r.NotFound()
    assert len(queue.machine.jobs) == 2


def test_one_who_works_deletes_what_he_holds_and_one_who_manages_the_rest():
    queue = Secured()
    queue.as_user(1, queue.user("ann", (Right.WORK, "*"), (Right.PUT, "*")))
    queue.as_user(2, queue.user("bob", (Right.MANAGE, "*")))
    queue.do(put(), put())
    assert only(queue.do(c.Delete(1, 2))) == r.NotFound()
    queue.do(c.Reserve(1, 0))
    assert only(queue.do(c.Delete(1, 1))) == r.Deleted()
    assert only(queue.do(c.Delete(2, 2))) == r.Deleted()


def test_a_token_of_a_reservation_does_not_replace_the_right():
    queue = Secured()
    queue.as_user(1, queue.user("ann", (Right.WORK, "*"), (Right.PUT, "*")))
    queue.as_user(2, queue.user("bob", (Right.WORK, "mail")))
    queue.do(put())
    reserved = only(queue.do(c.Reserve(1, 0)))
    assert only(queue.do(c.Delete(2, 1, reserved.token))) == r.NotFound()
    assert only(queue.do(c.Delete(1, 1, reserved.token))) == r.Deleted()


def test_a_worker_that_waits_gets_nothing_once_it_lost_the_right():
    queue = Secured()
    queue.as_user(1, queue.user("ann", (Right.WORK, "default")))
    queue.as_user(2, queue.user("bob", (Right.WORK, "default")))
    queue.as_user(9, OPERATOR)
    queue.do(c.Reserve(1, 5_000), c.Reserve(2, None))
    queue.change(g.RemoveGrant("ann", Grant(Right.WORK, "default")))
    assert queue.do(put(9)) == [(1, r.NotAuthorized()), (2, r.Reserved(1, b"b", 1)), (9, r.Inserted(1))]
    queue.change(g.AddGrant("ann", Grant(Right.WORK, "default")))
    queue.do(put(9))
    assert only(queue.do(c.Reserve(1, 0))).id == 2


def test_a_subscription_gets_nothing_once_it_lost_the_right():
    queue = Secured()
    login = queue.user("ann", (Right.WORK, "default"))
    queue.as_user(9, OPERATOR)
    assert only(queue.do(c.AttachAs(3, b"t" * 16, login))).session == 1
    assert [reply for _, reply in queue.do(c.Ask(3, 1, 1, [], asks.Subscribe(["default"], 10)))] == [r.ToAsk(1, r.Subscribed())]
    assert [type(reply.reply) for _, reply in queue.do(put(9)) if isinstance(reply, r.ToAsk)] == [r.Pushed]
    queue.change(g.RemoveGrant("ann", Grant(Right.WORK, "default")))
    assert queue.do(put(9)) == [(3, r.ToAsk(1, r.NotAuthorized())), (9, r.Inserted(2))]
    assert queue.do(c.Ask(3, 2, 2, [], asks.Reserve(["default"]))) == [(3, r.ToAsk(2, r.NotAuthorized()))]


def test_a_clients_session_is_that_of_the_user_who_made_it():
    queue = Secured()
    ann, bob = queue.user("ann"), queue.user("bob")
    assert isinstance(only(queue.do(c.AttachAs(3, b"t" * 16, ann))), r.Attached)
    assert only(queue.do(c.AttachAs(4, b"t" * 16, bob))) == r.NotAuthorized()
    assert only(queue.do(c.Attach(4, b"t" * 16))) == r.NotAuthorized()
    queue.do(c.Detach(3))
    assert only(queue.do(c.AttachAs(4, b"t" * 16, bob))) == r.NotAuthorized()
    assert only(queue.do(c.AttachAs(5, b"t" * 16, ann))).epoch == 2


def test_a_session_from_before_the_first_user_is_taken_by_whoever_knows_its_token():
    queue = Queue()
    queue.do(c.Attach(2, SESSION))
    change = c.ChangeAccess(1, [g.AddUser("root"), g.AddGrant("root", Grant(Right.OPERATE, "*"))])
    assert queue.do(change) == [(1, r.AccessChanged())]
    assert queue.do(c.Ask(2, 1, 1, [], asks.Put("t", [c.NewJob(1, 0, 1_000, b"")]))) == [(2, r.ToAsk(1, r.NotAuthorized()))]
    assert only(queue.do(c.AttachAs(91, SESSION, OPERATOR), later=1)[-1:]).epoch == 2


def test_policies_and_schedules_reach_no_further_than_rights_do():
    queue = Secured()
    queue.as_user(1, queue.user("ann", (Right.MANAGE, "mail*"), (Right.PUT, "mail*")))
    dead = c.SetPolicies(1, [PolicyChange("mail", Policy(max_attempts=1, dead_letter="payroll"))])
    assert only(queue.do(dead)) == r.NotAuthorized()
    assert isinstance(
        only(queue.do(c.SetPolicies(1, [PolicyChange("mail", Policy(max_attempts=1, dead_letter="mail.dead"))]))), r.PoliciesSet
    )
    plan = asks.Plan("payroll", c.NewJob(1, 0, 1_000, b""), every_ms=1_000)
    assert only(queue.do(c.OfSchedule(1, asks.SetSchedule("beat", plan)))) == r.NotAuthorized()
    queue.as_user(2, OPERATOR)
    assert isinstance(only(queue.do(c.OfSchedule(2, asks.SetSchedule("beat", plan)))), r.ScheduleSet)
    mine = msgspec.structs.replace(plan, tube="mail")
    assert only(queue.do(c.OfSchedule(1, asks.SetSchedule("beat", mine)))) == r.NotAuthorized()
    for what in (asks.RunSchedule("beat"), asks.PauseSchedule("beat", True), asks.SetSchedule("beat", None)):
        assert only(queue.do(c.OfSchedule(1, what))) == r.NotFound()
    assert only(queue.do(c.Replay(1, asks.Replay(asks.Selection("mail"), "move", "payroll")))) == r.NotAuthorized()
    assert only(queue.do(c.Replay(1, asks.Replay(asks.Selection("mail"), "move")))).is_done


def test_the_last_who_may_operate_stays():
    queue = Secured()
    assert queue.change(g.RemoveUser("root")) == r.AccessRefused("no-operator", "")
    assert queue.change(g.RemoveGrant("root", Grant(Right.OPERATE, "*"))) == r.AccessRefused("no-operator", "")
    assert queue.change(g.AddGrant("root", Grant(Right.OPERATE, "*", True))) == r.AccessRefused("no-operator", "")
    queue.user("second", (Right.OPERATE, "*"))
    assert queue.change(g.RemoveUser("root")) == r.AccessChanged()
    assert queue.change(g.AddUser("root")) == r.NotAuthorized()


def test_the_first_user_must_be_able_to_operate():
    queue = Queue()
    assert queue.do(c.ChangeAccess(1, [g.AddUser("ann")])) == [(1, r.AccessRefused("no-operator", ""))]
    assert not queue.machine.access.is_on


REFUSED = {
    "no-user": [g.AddGrant("nobody", Grant(Right.PUT, "*"))],
    "user-exists": [g.AddUser("ann")],
    "no-token": [g.RemoveToken("ann", "second")],
    "token-exists": [g.AddToken("ann", "first", b"x")],
    "no-grant": [g.RemoveGrant("ann", Grant(Right.PUT, "*"))],
    "too-many": [g.AddGrant("ann", Grant(Right.PUT, f"tube{number}")) for number in range(GRANTS_PER_USER + 1)],
}


@pytest.mark.parametrize("why", REFUSED)
def test_all_changes_are_made_or_none(why):
    queue = Secured()
    queue.user("ann")
    before = queue.machine.digest()
    refused = queue.machine.access.change([g.AddUser("bob"), *REFUSED[why]], queue.now, 1)
    assert (refused.why, queue.machine.digest()) == (why, before)


def test_the_same_token_is_nobody_elses():
    queue = Secured()
    queue.user("ann")
    assert queue.change(g.AddToken("root", "copy", token_of("ann"))) == r.AccessRefused("token-exists", "root")
    twice = [g.AddToken("root", "a", b"same"), g.AddToken("ann", "b", b"same")]
    assert queue.change(*twice) == r.AccessRefused("token-exists", "ann")


def test_a_quota_lets_some_seconds_of_it_through_at_once():
    queue = Secured()
    queue.as_user(1, queue.user("ann", (Right.PUT, "*")))
    queue.change(g.SetQuota("ann", g.Quota(jobs_per_s=2)))
    said = [only(queue.do(put())) for _ in range(20)]
    assert said.count(r.OverQuota()) == 20 - 10  # five seconds of it
    queue.later(500)
    assert [type(only(queue.do(put()))) for _ in range(2)] == [r.Inserted, r.OverQuota]


def test_a_quota_of_bytes():
    queue = Secured()
    queue.as_user(1, queue.user("ann", (Right.PUT, "*")))
    queue.change(g.SetQuota("ann", g.Quota(bytes_per_s=100)))
    many = c.PutMany(1, "t", [c.NewJob(1, 0, 1_000, b"x" * 300)] * 2)
    assert [type(only(queue.do(many))) for _ in range(2)] == [r.InsertedMany, r.OverQuota]  # what never comes at once may be put first
    queue.later(5_999)
    assert only(queue.do(many)) == r.OverQuota()
    queue.later(1)
    assert isinstance(only(queue.do(many)), r.InsertedMany)


def test_another_quota_counts_from_now_on():
    """What was put under a quota that is gone went on to be counted."""
    queue = Secured()
    queue.as_user(1, queue.user("ann", (Right.PUT, "*")))
    queue.change(g.SetQuota("ann", g.Quota(jobs_per_s=1)))
    queue.do(c.PutMany(1, "t", [c.NewJob(1, 0, 1_000, b"x")] * 500))
    assert only(queue.do(put())) == r.OverQuota()
    queue.change(g.SetQuota("ann", g.Quota(bytes_per_s=1_000)))
    assert [type(only(queue.do(put()))) for _ in range(2)] == [r.Inserted, r.Inserted]


def test_a_quota_of_declared_tubes():
    queue = Secured()
    queue.as_user(1, queue.user("ann", (Right.MANAGE, "*")))
    queue.change(g.SetQuota("ann", g.Quota(tubes=2)))
    assert [only(queue.do(c.Declare(1, name))) for name in "aabc"] == [r.Declared(True), r.Declared(False), r.Declared(True), r.OverQuota()]
    queue.machine = load(list(dump(queue.machine)))
    assert only(queue.do(c.Declare(1, "c"))) == r.OverQuota()
    assert "c" not in queue.machine.tubes
    assert only(queue.do(c.Undeclare(1, "a"))) == r.Deleted()
    assert only(queue.do(c.Declare(1, "c"))) == r.Declared(True)


def test_what_was_changed_is_recorded_and_by_whom():
    queue = Secured()
    queue.as_user(1, queue.user("ann", (Right.MANAGE, "*")))
    queue.do(c.Declare(1, "mail"), c.Declare(1, "mail"), c.PauseTube(1, "mail", 5_000), c.PauseTube(1, "none", 5_000))
    queue.do(c.SetPolicies(1, [PolicyChange("mail", Policy(max_jobs=5))]))
    queue.do(c.Operate(1, "remove-member", "3"))
    access = queue.machine.access
    records = sorted([*access.records, *access.tube_records], key=lambda record: record.number)
    told = [(record.user, record.node, record.what, record.to) for record in records]
    assert told[:2] == [("", 1, "add-user", "root"), ("", 1, "grant", "root put *")]
    assert told[6:] == [
        ("root", 1, "add-user", "ann"),
        ("root", 1, "create-token", "ann first"),
        ("root", 1, "grant", "ann manage *"),
        ("ann", 1, "declare", "mail"),
        ("ann", 1, "pause", "mail"),
        ("ann", 1, "set-policy", "mail"),
    ]


def test_the_audit_log_forgets_the_oldest():
    queue = Secured()
    queue.as_user(1, OPERATOR)
    for _ in range(AUDIT_RECORDS // 1_000 + 1):
        queue.do(*(c.Operate(1, "look", str(number)) for number in range(1_000)))
    assert len(queue.machine.access.records) == AUDIT_RECORDS
    assert queue.machine.access.records[-1].to == "999"


def test_all_of_it_survives_a_snapshot():
    queue = Secured()
    queue.as_user(1, queue.user("ann", (Right.PUT, "m*"), denied=((Right.PUT, "mine"),)))
    queue.change(g.SetQuota("ann", g.Quota(5, 5_000)), g.SetPassword("ann", g.Password(b"salt", b"digest")))
    queue.do(c.Put(1, 1, 0, 1_000, b"", "mail"))
    again = load(list(dump(queue.machine)))
    assert again.digest() == queue.machine.digest()
    assert list(dump(again)) == list(dump(queue.machine))
    queue.machine = again
    assert only(queue.do(c.Put(1, 1, 0, 1_000, b"", "mail"))) == r.Inserted(2)
    assert only(queue.do(c.Put(1, 1, 0, 1_000, b"", "mine"))) == r.NotAuthorized()
    assert queue.change(g.RemoveToken("ann", "first")) == r.AccessChanged()
    assert only(queue.do(put())) == r.NotAuthorized()


def test_below_level_5_nothing_is_recorded():
    """An older raftd could not read a snapshot with it."""
    queue = Queue(level=c.ACCESS_LEVEL - 1)
    queue.do(c.Declare(1, "mail"))
    assert not queue.machine.access.tube_records


def test_every_command_and_every_ask_says_what_it_needs():
    own = {c.Use, c.PutBack, c.CloseSession, c.Leave, c.Attach, c.AttachAs, c.Detach, c.Ask, c.LogIn, c.OfSchedule}
    schedules = {asks.SetSchedule, asks.PauseSchedule, asks.RunSchedule}
    assert set(NEEDS) | own == set(c.Command.__args__) | (set(asks.What.__args__) - schedules)


# -- found by an attack -------------------------------------------------------------------------


def test_a_session_that_is_gone_is_nobodys_also_on_a_node_that_has_loaded_a_snapshot():
    """What it had shown was lost with a snapshot, so that two nodes gave a job to different sessions."""
    queue = Secured()
    login = queue.user("ann", (Right.WORK, "*"))
    for session in (1, 2):
        queue.as_user(session, login)
        queue.do(*(c.Watch(session, f"t{number}") for number in range(900)))
        queue.do(c.Reserve(session, None))
    queue.as_user(9, OPERATOR)
    queue.machine.costs = queue.machine._costs_since_level_2 = msgspec.structs.replace(COSTS, entry=300, commands=100, left_over=100)
    queue.do(c.CloseSession(1))
    other = load(list(dump(queue.machine)), machine=StateMachine(queue.machine.costs))
    for payload in (c.Batch(1, 1, queue.seq + 1, [c.Put(9, 1, 0, 1_000, b"", "t5")]), None, None, None, None):
        data = c.encode_payload(payload) if payload is not None else b""
        first, second = (machine.apply(machine.applied_index + 1, queue.now, data) for machine in (queue.machine, other))
        assert first.answers == second.answers
        assert queue.machine.digest() == other.digest()


def test_what_was_never_there_is_not_removed_and_not_recorded():
    """It was answered as done, to anybody, and ten thousand records of it pushed all others out."""
    queue = Secured()
    queue.as_user(1, queue.user("ann"))
    before = list(queue.machine.access.records)
    assert only(queue.do(c.OfSchedule(1, asks.SetSchedule("none", None)))) == r.NotFound()
    queue.as_user(2, queue.user("bob", (Right.MANAGE, "*")))
    for _ in range(20):
        queue.do(*(c.PauseTube(2, "default", 0) for _ in range(AUDIT_RECORDS // 20)))
    assert list(queue.machine.access.records)[: len(before)] == before
    assert not any(record.what == "remove-schedule" for record in queue.machine.access.tube_records)


def test_each_user_has_his_own_idempotency_keys():
    queue = Secured()
    queue.as_user(1, queue.user("ann", (Right.PUT, "*")))
    queue.as_user(2, queue.user("bob", (Right.PUT, "*")))
    jobs = [c.NewJob(1, 0, 1_000, b"x")]
    assert only(queue.do(c.PutMany(1, "t", jobs, "order-2", b"f"))) == r.InsertedMany(1, 1, False)
    assert only(queue.do(c.PutMany(2, "t", jobs, "order-2", b"f"))) == r.InsertedMany(2, 1, False)
    assert only(queue.do(c.PutMany(2, "t", jobs, "order-2", b"g"))) == r.KeyReused()
    assert only(queue.do(c.PutMany(1, "t", jobs, "order-2", b"f"))) == r.InsertedMany(1, 1, True)


def test_whatever_puts_counts_for_the_quota():
    queue = Secured()
    queue.as_user(1, queue.user("ann", (Right.PUT, "*"), (Right.MANAGE, "*")))
    queue.change(g.SetQuota("ann", g.Quota(bytes_per_s=10)))
    job = c.NewJob(1, 0, 1_000, b"x" * 1_000)
    queue.do(c.OfSchedule(1, asks.SetSchedule("beat", asks.Plan("t", job, every_ms=1_000))))
    runs = [only(queue.do(c.OfSchedule(1, asks.RunSchedule("beat")))) for _ in range(3)]
    assert [type(reply) for reply in runs] == [r.InsertedMany, r.OverQuota, r.OverQuota]
    queue.later(100_000)
    unique = [only(queue.do(c.PutUnique(1, "u", job, asks.Unique("only")))) for _ in range(3)]
    assert [type(reply) for reply in unique] == [r.InsertedMany, r.OverQuota, r.OverQuota]


def reserving(queue: Secured, login: Login) -> r.ToAsk:
    queue.as_user(9, OPERATOR)
    queue.do(put(9))
    queue.do(c.AttachAs(3, b"t" * 16, login))
    reply = only(queue.do(c.Ask(3, 1, 1, [], asks.Reserve(["default"]))))
    assert [job.id for job in reply.reply.jobs] == [1]
    return reply


def test_a_body_is_not_given_again_to_who_may_not_have_it_any_more():
    queue = Secured()
    given = reserving(queue, queue.user("ann", (Right.WORK, "*")))
    again = c.Ask(3, 1, 1, [], asks.Reserve(["default"]))
    assert only(queue.do(again)) == given
    queue.change(g.RemoveGrant("ann", Grant(Right.WORK, "*")))
    assert only(queue.do(again)) == r.ToAsk(1, r.NotAuthorized())
    queue.change(g.AddGrant("ann", Grant(Right.WORK, "other")))
    assert only(queue.do(again)) == r.ToAsk(1, r.NotAuthorized())


def test_another_user_of_the_same_name_is_another():
    queue = Secured()
    login = queue.user("ann", (Right.WORK, "*"))
    reserving(queue, login)
    queue.change(g.RemoveUser("ann"))
    queue.user("ann", (Right.WORK, "*"))
    assert only(queue.do(c.AttachAs(4, b"t" * 16, login))) == r.NotAuthorized()


def test_a_node_gives_back_what_its_client_could_not_be_told_of():
    queue = Secured()
    queue.as_user(1, queue.user("ann", (Right.PUT, "*"), (Right.WORK, "*")))
    queue.do(put(1), c.Reserve(1, 0), c.Delete(1, 1))
    queue.change(g.RemoveUser("ann"))
    assert only(queue.do(c.PutBack(1, 1, "default", 10, 1_000, b"b"))) == r.Inserted(1)


def test_one_uses_a_tube_with_which_one_may_do_something():
    queue = Secured()
    queue.as_user(1, queue.user("ann", (Right.READ, "mail"), (Right.WORK, "*")))
    assert only(queue.do(c.Use(1, "mail"))) == r.Using("mail")
    assert only(queue.do(c.Use(1, "made-up"))) == r.NotAuthorized()
    assert "made-up" not in queue.machine.tubes


def test_a_reserve_looks_at_rights_once_until_they_change():
    """A long list of tubes, and many grants, made one entry last for seconds."""
    queue = Secured()
    grants = [(Right.WORK, f"{number}*x") for number in range(90)]
    queue.as_user(1, queue.user("ann", (Right.WORK, "t*"), *grants))
    queue.do(*(c.Watch(1, f"t{number}") for number in range(900)))
    queue.do(c.Reserve(1, 0))
    found = queue.machine.gateways[1].sessions[1].permitted
    queue.do(c.Watch(1, "t-more"), c.Reserve(1, 0))
    assert queue.machine.gateways[1].sessions[1].permitted is found
    assert len(found[1]) == 901
    queue.change(g.AddGrant("ann", Grant(Right.WORK, "t1", True)))
    queue.do(c.Reserve(1, 0))
    assert len(queue.machine.gateways[1].sessions[1].permitted[1]) == 900
    queue.do(c.Ignore(1, "t2"), c.Reserve(1, 0))
    assert len(queue.machine.gateways[1].sessions[1].permitted[1]) == 899


PARTS = st.text("ab", max_size=4)


@given(st.lists(st.tuples(PARTS, st.booleans(), PARTS, st.booleans()), max_size=4), st.text("ab", min_size=1, max_size=8))
def test_a_star_stands_for_any_characters_and_a_denial_wins(parts, tube):
    patterns = [(first + "*" * has_star + last, is_denied) for first, has_star, last, is_denied in parts]
    found = [is_denied for pattern, is_denied in patterns if re.fullmatch(pattern.replace("*", ".*"), tube)]
    grants = [Grant(Right.PUT, pattern, is_denied) for pattern, is_denied in patterns]
    assert (tube in Tubes(grants, Right.PUT)) == (found != [] and not any(found))
    assert tube not in Tubes(grants, Right.WORK)

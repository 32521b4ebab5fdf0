"""`/summary` on simulated nodes: what a page is told, how often, and who may hear it; and the table of tubes behind it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest
from twisted.internet.task import Clock

from raftd.jobs import commands as c
from raftd.jobs import rights as g
from raftd.jobs.rights import Login, Right
from raftd.node.series import History
from raftd.passwords import digest_of_token
from raftd.server.http.sessions import BROWSER_SESSIONS, SESSION_S, SESSIONS_PER_USER, BrowserSessions
from raftd.server.http.summary import STUCK_S, SUMMARY_STREAMS, Looking, Summary
from raftd.server.http.tables import ORDER_FRESH_S, TubePage, TubeTable
from raftd.server.reporter import EventReporter
from raftd.server.stats import Counters, own_status
from raftd.sim.cluster import SimCluster
from tests.node.test_loop import Client, follower, started
from tests.server.calls import FakeCall, FakeStream


class Page:
    """Whoever looks at one node of a simulated cluster."""

    def __init__(self, cluster: SimCluster, node: int) -> None:
        self.cluster, self.node = cluster, cluster[node]
        clock: Any = cluster.processes[node].store._clock
        self.history = History(lambda: self.node.machine, self.node.job_events, self.node.gateway.commit_s, self.node.write_s)
        self.reporter = EventReporter(node, Counters(), lambda configuration: None, lambda: None)
        self.summary = Summary(self.node, clock, TubeTable(clock, self.history), self.reporter, lambda node: f"host:{node}")

    def ask(self, path: str, method: str = "GET", login: Login | None = None) -> FakeCall:
        call = FakeCall(method, path, None, {})
        call.login = login
        assert self.summary.handles(call)
        return call

    def look(self, path: str = "/summary", **more: Any) -> FakeStream:
        self.ask(path, **more)
        return self.last.stream

    @property
    def last(self) -> Looking:
        return list(self.summary._looking)[-1]

    def sample(self) -> None:
        for _ in self.history.sample():
            pass


def opened() -> tuple[SimCluster, Page]:
    cluster = started()
    for node in cluster.config.voters:
        cluster[node].statuses.own = lambda node=node: own_status(cluster[node], Counters(), f"host:{node}")
    return cluster, Page(cluster, follower(cluster))


def run(cluster: SimCluster, *commands: c.Command) -> None:
    client = Client(cluster, cluster.leader)
    for command in commands:
        client.submit(msgspec.structs.replace(command, session=client.session.number))
    assert cluster.run(2_000, lambda: len(client.told) == len(commands))
    client.session.close()
    cluster.run(200)


def put(cluster: SimCluster, tube: str, count: int = 1, pri: int = 1) -> None:
    run(cluster, c.PutMany(0, tube, [c.NewJob(pri, 0, 60_000, b"x")] * count))


def newest(stream: FakeStream) -> dict[str, Any]:
    *_, (_, event, data) = stream.told()
    assert event == "summary"
    return data


def names(told: dict[str, Any]) -> list[str]:
    return [row["tube"]["name"] for row in told["tubes"]]


def test_a_page_is_told_at_once_and_then_when_something_happens_but_once_a_second():
    cluster, page = opened()
    stream = page.look()
    cluster.run(10)
    assert len(stream.told()) == 1
    cluster.run(8_050)
    assert len(stream.told()) == 4  # nothing has happened
    assert cluster.run(3_000, lambda: stream.written)
    stream.told()
    cluster.run(1_050)
    put(cluster, "t")
    assert newest(stream)["queue"]["ready"] == 1  # at once: a second has passed
    for _ in range(10):
        put(cluster, "t")
    assert len(stream.told()) in (2, 3)


def test_any_node_tells_of_all_members_and_how_far_each_is():
    cluster, page = opened()
    stream = page.look()
    cluster.run(2_500)
    told = newest(stream)
    assert (told["leader"], told["role"]) == (cluster.leader, "follower")
    for row in told["nodes"]:
        assert row["is_heard"]
        assert row["http"] == f"host:{row['node']}"
        assert row["status"]["role"] == ("leader" if row["node"] == cluster.leader else "follower")
        assert row["match_index"] == (None if row["node"] == cluster.leader else row["status"]["last_index"])
    assert [row["node"] for row in told["nodes"] if row["is_self"]] == [page.node.config.node]


def test_a_member_that_is_gone_is_not_heard_and_without_a_leader_it_says_so():
    cluster, page = opened()
    stream = page.look()
    cluster.run(2_500)
    here = page.node.config.node
    for node in [node for node in cluster.config.voters if node != here]:
        cluster.crash(node)
    cluster.run(6_000)
    told = newest(stream)
    assert told["leader"] == 0
    assert [row["node"] for row in told["nodes"] if row["is_heard"]] == [here]


def test_nobody_is_asked_while_nobody_looks():
    cluster, page = opened()
    stream = page.look()
    cluster.run(1_500)
    assert page.node.statuses.heard
    page.last.stopProducing()
    page.node.statuses.heard.clear()
    cluster.run(3_000)
    assert not page.node.statuses.heard
    assert not page.summary._beat.running
    stream.told()
    cluster.run(2_000)
    assert stream.told() == []


def test_changes_of_roles_are_told_at_once():
    cluster, page = opened()
    stream = page.look()
    cluster.run(10)
    stream.told()
    page.reporter._tell("role", "", role="candidate", term=7, leader=0, reason="why")
    assert cluster.run(1_000, lambda: stream.written)  # as soon as it may cost something again
    assert newest(stream)["roles"][-1] == {**newest_role(page), "role": "candidate", "term": 7, "leader": 0, "reason": "why"}


def newest_role(page: Page) -> dict[str, Any]:
    return msgspec.to_builtins(page.summary._roles[-1])


def test_it_tells_of_the_tubes_that_are_shown_and_of_no_others():
    cluster, page = opened()
    for tube, count in (("a", 1), ("b", 5), ("c", 3)):
        put(cluster, tube, count)
    stream = page.look("/summary?sort=ready&limit=2")
    cluster.run(50)
    told = newest(stream)
    assert names(told) == ["b", "c"]
    assert told["more"]
    stream = page.look(f"/summary?sort=ready&limit=2&after={told['after']}")
    cluster.run(50)
    assert names(newest(stream)) == ["a", "default"]
    stream = page.look("/summary?limit=0&tube=c")
    cluster.run(50)
    told = newest(stream)
    assert (names(told), told["tube"]["tube"]["ready"]) == ([], 3)


def test_points_are_told_when_there_is_a_new_one():
    cluster, page = opened()
    put(cluster, "a")
    page.sample()
    put(cluster, "a", 4)
    page.sample()
    stream = page.look("/summary?contains=a&having=ready")
    cluster.run(50)
    (row,) = newest(stream)["tubes"]
    assert (row["points"], row["tube"]["in_per_s"]) == ([[0, 0], [4, 0]], 0.8)
    cluster.run(2_100)
    assert newest(stream)["tubes"][0]["points"] is None
    page.sample()
    cluster.run(2_100)
    assert newest(stream)["tubes"][0]["points"] == [[0, 0], [4, 0], [0, 0]]


def test_a_page_that_takes_nothing_misses_it_and_is_given_up_in_the_end():
    cluster, page = opened()
    stream = page.look()
    cluster.run(10)
    stream.told()
    page.last.pauseProducing()
    cluster.run(3_000)
    assert stream.told() == []
    page.last.resumeProducing()
    cluster.run(2_100)
    assert newest(stream)["node"]
    page.last.pauseProducing()
    cluster.run((STUCK_S + 2) * 1_000)
    assert stream.is_aborted


@pytest.mark.parametrize("path", ["/summary?limit=201", "/summary?sort=x", "/summary?tube=a+b", "/summary?x=1"])
def test_what_cannot_be_shown_is_refused(path):
    _, page = opened()
    assert page.ask(path).said[0] == 400
    assert page.ask("/summary?sort=ready&after=x").problem_name == "bad-place"


def test_there_are_so_many_pages_and_only_get():
    _, page = opened()
    for _ in range(SUMMARY_STREAMS):
        page.look()
    assert page.ask("/summary").problem_name == "too-many-streams"
    assert page.ask("/summary", "POST").said[0] == 405


def test_who_may_look_at_one_tube_hears_of_it_alone_and_nothing_once_he_may_not():
    cluster, page = opened()
    for tube in ("his", "other"):
        put(cluster, tube)
    operator = [g.AddUser("root"), g.AddGrant("root", g.Grant(Right.OPERATE, g.ALL_TUBES)), g.AddToken("root", "t", b"r" * 32)]
    user = [g.AddUser("ann"), g.AddToken("ann", "t", digest_of_token("x")), g.AddGrant("ann", g.Grant(Right.READ, "his"))]
    run(cluster, c.ChangeAccess(0, [*operator, *user]))
    login = Login("token", "", digest_of_token("x"))
    stream = page.look("/summary?tube=other", login=login)
    cluster.run(50)
    told = newest(stream)
    assert names(told) == ["his"]
    assert (told["tube"], told["queue"], told["nodes"], told["cluster"], told["rates"]) == (None, None, [], None, {})
    assert sorted(told["pages"]) == sorted(str(node) for node in cluster.config.voters if node != page.node.config.node)
    operates = Login("token", "", b"r" * 32)
    root = page.look("/summary?tube=other", login=operates)
    cluster.run(50)
    assert newest(root)["queue"]["ready"] == 2
    run(cluster, c.LogIn(0, operates), c.ChangeAccess(0, [g.RemoveToken("ann", "t")]))
    stream.told()
    cluster.run(2_100)
    assert [event for _, event, _ in stream.told()] == ["over"]
    assert stream.is_finished


# -- the table ------------------------------------------------------------------------------------


def test_the_oldest_of_the_ready_jobs_is_told_whatever_its_priority():
    cluster, page = opened()
    put(cluster, "a", pri=9)
    cluster.run(5_000)
    put(cluster, "a", pri=1)
    machine = page.node.machine
    view = page.summary._table.view(machine, machine.tubes["a"], machine.now_ms)
    assert view.oldest_s == (machine.now_ms - machine.jobs[1].created_ms) / 1000 > 4


def test_an_order_is_made_once_for_all_who_look(monkeypatch):
    cluster, page = opened()
    put(cluster, "a")
    table, machine = page.summary._table, page.node.machine
    now = [1_000.0]
    monkeypatch.setattr("raftd.server.http.tables.time.monotonic", lambda: now[0])

    def names() -> list[str]:
        found: list[list[str]] = []
        table.refresh(
            machine, "ready", lambda: found.append([tube.name for tube in table.page(machine, TubePage(sort="ready"), None).tubes])
        )
        cluster.run(20)
        (one,) = found
        return one

    assert names() == ["a", "default"]
    put(cluster, "default", 2)
    assert names() == ["a", "default"]  # as it was
    now[0] += ORDER_FRESH_S
    assert names() == ["default", "a"]


def test_an_order_of_many_tubes_is_made_in_slices_and_paged_as_one(monkeypatch):
    monkeypatch.setattr("raftd.server.http.tables.RUN_TUBES", 4)
    cluster, page = opened()
    for number in range(11):
        put(cluster, f"t{number:02}", number % 5 + 1)
    table, machine = page.summary._table, page.node.machine
    done: list[int] = []
    for waiting in range(2):
        table.refresh(machine, "ready", lambda waiting=waiting: done.append(waiting))
    assert done == []
    assert cluster.run(100, lambda: done == [0, 1])
    found, after = [], ""
    while True:
        rows = table.page(machine, TubePage(sort="ready", limit=3, after=after, having="ready"), None)
        found += [(-len(tube.ready), tube.name) for tube in rows.tubes]
        after = rows.after
        if not rows.more:
            break
    assert found == sorted(found)
    assert len(found) == 11


@pytest.mark.parametrize("sort", ["name", "ready", "bytes", "in", "oldest", "waiting"])
def test_pages_hold_each_tube_once(sort):
    cluster, page = opened()
    for number in range(7):
        put(cluster, f"t{number}", number % 3 + 1)
    page.sample()
    machine, found, after = page.node.machine, [], ""
    while True:
        rows = page.summary._table.page(machine, TubePage(sort=sort, limit=3, contains="t", after=after), None)
        found += [tube.name for tube in rows.tubes]
        after = rows.after
        if not rows.more:
            break
    assert sorted(found) == sorted(name for name in machine.tubes if "t" in name)


# -- browsers' sessions ---------------------------------------------------------------------------


def test_sessions_end_by_themselves_and_are_bounded():
    clock = Clock()
    sessions = BrowserSessions(clock, "c", 1)
    first = sessions.begin(Login("local", "ann"), "ann", False)
    cookie = sessions.cookie(first, False).partition(";")[0]
    assert sessions.find(cookie, False) is first
    assert sessions.find(f"a=b; {cookie}", False) is first
    assert sessions.find(cookie, True) is None  # over TLS it has another name
    assert BrowserSessions(clock, "another", 1).find(cookie, False) is None
    for _ in range(2 * SESSIONS_PER_USER):
        last = sessions.begin(Login("local", "bob"), "bob", False)
    assert not first.is_over  # nobody ends those of others
    assert not last.is_over
    assert len(sessions._sessions) == 1 + SESSIONS_PER_USER
    for number in range(BROWSER_SESSIONS):
        sessions.begin(Login("local", "x"), str(number), False)
    assert len(sessions._sessions) == BROWSER_SESSIONS
    assert last.is_over
    newest = sessions.begin(Login("local", "ann"), "ann", False)
    clock.advance(SESSION_S)
    assert newest.is_over
    assert sessions.find(sessions.cookie(newest, False).partition(";")[0], False) is None


def test_cookies_of_any_kind_take_no_time():
    sessions = BrowserSessions(Clock(), "c", 1)
    cookie = sessions.cookie(sessions.begin(Login("local", "ann"), "ann", False), False).partition(";")[0]
    for odd in ('prefs={"a":1}', "x", "=v", "a=b c", 'a="' + '\\"' * 1_000 + '"', "é=1", ";;;"):
        assert sessions.find(f"{odd}; {cookie}", False) is not None
    looked = Counter[str]()
    sessions._sessions = type("Counted", (dict,), {"get": lambda self, key: looked.update([key])})()
    sessions.find('a="' + '\\"' * 1_000_000, False)
    assert not looked


@pytest.mark.parametrize(
    "cookies", [None, "", "raftd-1", "raftd-1=", 'raftd-1="', "a=b; =; raftd-1=x", "raftd-1=é", "\0=x", "[]=1; raftd-1=x"]
)
def test_cookies_that_are_none(cookies):
    assert BrowserSessions(Clock(), "c", 1).find(cookies, False) is None

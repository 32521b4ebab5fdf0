"""How the other members are: asked for by who looks, told by who knows the question."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from raftd.jobs.commands import STATUS_LEVEL
from raftd.node.statuses import Statuses
from raftd.wire.peer import AskStatus, TellStatus

TOLD = TellStatus("follower", 5, 1, 12, 11, 10, {}, 1 << 20, 0, 0, 1 << 30, False, False, 3, 60, "1.0", "a:1")


class Member:
    """Node 1 of three."""

    def __init__(self) -> None:
        self.raft: Any = SimpleNamespace(node=1, now_ms=5_000, membership=SimpleNamespace(members={1, 2, 3}))
        self.sent: list[tuple[int, object]] = []
        self.statuses = Statuses(self.raft, lambda node, message: self.sent.append((node, message)))


def test_only_nodes_that_know_the_question_are_asked():
    member = Member()
    member.statuses.ask({2: STATUS_LEVEL - 1, 3: STATUS_LEVEL}.__getitem__)
    assert member.sent == [(3, AskStatus())]


def test_what_is_heard_is_kept_until_its_node_is_no_member():
    member = Member()
    for node in (2, 3):
        member.statuses.receive(node, TOLD)
    assert {node: heard.at_ms for node, heard in member.statuses.heard.items()} == {2: 5_000, 3: 5_000}
    member.raft.membership.members.discard(3)
    member.statuses.ask(lambda node: STATUS_LEVEL)
    assert list(member.statuses.heard) == [2]


def test_a_question_is_answered_once_this_node_can_say_how_it_is():
    member = Member()
    member.statuses.receive(2, AskStatus())
    assert member.sent == []
    member.statuses.own = lambda: TOLD
    member.statuses.receive(2, AskStatus())
    assert member.sent == [(2, TOLD)]

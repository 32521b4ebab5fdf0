"""A node whose wall clock is not the leader's says so: schedules go by the leader's."""

from __future__ import annotations

import msgspec

from raftd.jobs.commands import CLIENTS_LEVEL, POLICIES_LEVEL
from raftd.limits import CLOCK_ANSWER_MS, CLOCK_DIFFERENCE_MS
from raftd.sim.cluster import SimCluster
from raftd.wire.peer import AskClock, TellClock


class Clocks(SimCluster):
    """Two nodes, the wall clock of each `ahead_ms` ahead, and what they say of them."""

    def __init__(self) -> None:
        self.ahead_ms = {1: 0, 2: 0}
        self.told: list[str] = []
        super().__init__(2, tell=self.told.append)

    def wall_s(self, node: int) -> float:
        return super().wall_s(node) + self.ahead_ms[node] / 1000

    def begin(self) -> int:
        """The node that follows, once there is a leader."""
        self.start()
        assert self.run(5_000, lambda: self.leader != 0 and all(process.node.raft.leader for process in self.processes.values()))
        return 3 - self.leader

    def compare(self, node: int, ms: float = 100) -> int | None:
        self[node].compare_clocks()
        self.run(ms)
        return self[node].wall_clock.ahead_ms

    def notes(self) -> list[str]:
        """What was said of clocks since the last time."""
        notes = [line.partition("this node's ")[2] for line in self.told if "wall clock" in line]
        self.told.clear()
        return notes


def test_a_clock_that_is_off_is_noted_once_and_so_is_that_it_is_right_again():
    clocks = Clocks()
    node = clocks.begin()
    assert abs(clocks.compare(node)) < 50
    assert clocks.notes() == []
    clocks.ahead_ms[node] = 2_500
    assert abs(clocks.compare(node) - 2_500) < 50
    clocks.compare(node)
    advice = f"that of node {clocks.leader}, which leads: schedules go by the leader's clock. Is the time of both synchronised (NTP)?"
    assert clocks.notes() == [f"wall clock is 2.5 s ahead of {advice}"]
    clocks.ahead_ms[node] = CLOCK_DIFFERENCE_MS - 100  # about the bound nothing is said again and again
    clocks.compare(node)
    clocks.ahead_ms[node] = CLOCK_DIFFERENCE_MS + 100
    clocks.compare(node)
    assert clocks.notes() == []
    clocks.ahead_ms[node] = 0
    clocks.compare(node)
    assert clocks.notes() == [f"wall clock agrees again with that of node {clocks.leader}, which leads"]
    clocks.ahead_ms[node] = -60_000
    clocks.compare(node)
    assert clocks.notes() == [f"wall clock is 60.0 s behind {advice}"]


def test_the_leader_is_the_measure():
    clocks = Clocks()
    clocks.begin()
    clocks.ahead_ms[clocks.leader] = 5_000
    assert clocks.compare(clocks.leader) == 0
    assert clocks.notes() == []


def test_an_answer_that_takes_long_says_too_little():
    clocks = Clocks()
    node = clocks.begin()
    waiting = []

    def hold(sender: int, to: int, message: object) -> int:
        if not isinstance(message, AskClock):
            return 1
        waiting.append(message)
        return 0

    clocks.network.interfere = hold
    assert clocks.compare(node) is None
    clocks.run(CLOCK_ANSWER_MS)
    (question,) = waiting
    clocks[node].receive(clocks.leader, TellClock(question.asked_ms, 0))
    assert clocks[node].wall_clock.ahead_ms is None


def test_only_the_answer_to_the_last_question_counts_and_only_the_leaders():
    clocks = Clocks()
    node = clocks.begin()
    clocks.network.interfere = lambda sender, to, message: 0 if isinstance(message, AskClock) else 1
    assert clocks.compare(node, 0) is None
    asked_ms = clocks[node].raft.now_ms
    clocks[node].receive(node, TellClock(asked_ms, 0))
    clocks[node].receive(clocks.leader, TellClock(asked_ms - 1, 0))
    assert clocks[node].wall_clock.ahead_ms is None
    clocks[node].receive(clocks.leader, TellClock(asked_ms, clocks[node].raft.wall_ms))
    assert clocks[node].wall_clock.ahead_ms == 0
    clocks[node].receive(clocks.leader, TellClock(asked_ms, 0))  # a second answer
    assert clocks[node].wall_clock.ahead_ms == 0


def test_what_was_known_of_one_leader_says_nothing_of_the_next():
    clocks = Clocks()
    node = clocks.begin()
    clocks.ahead_ms[node] = 3_000
    assert clocks.compare(node) is not None
    clocks.crash(clocks.leader)
    assert clocks.run(5_000, lambda: clocks[node].raft.leader == 0)
    assert clocks.compare(node) is None


def test_a_leader_of_an_older_raftd_is_not_asked():
    clocks = Clocks()
    clocks.config = msgspec.structs.replace(clocks.config, level=CLIENTS_LEVEL)
    asked = []

    def note(sender: int, to: int, message: object) -> int:
        asked.extend([message] if isinstance(message, AskClock) else [])
        return 1

    clocks.network.interfere = note
    node = clocks.begin()
    assert clocks.compare(node) is None
    assert asked == []
    assert CLIENTS_LEVEL < POLICIES_LEVEL

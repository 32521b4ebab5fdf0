"""Seeds of the simulator. SIM_SEEDS and SIM_START choose them; one that fails: raftd sim --seed NUMBER --trace."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from raftd.cli.sim import live, seeds_to_catch
from raftd.errors import CorruptionError
from raftd.sim import mutants
from raftd.sim.minimise import minimise
from raftd.sim.seed import SeedRun
from raftd.sim.swarm import draw, plan
from tests.client import test_core as client_core
from tests.jobs import test_budget as budget
from tests.jobs import test_policies as policies
from tests.node import test_loop as node
from tests.raft import test_elections as elections
from tests.raft import test_membership as membership
from tests.raft import test_replication as replication
from tests.raft import test_snapshots as raft
from tests.storage import test_crash_states as crash_states

START = int(os.environ.get("SIM_START", "1"))
SEEDS = int(os.environ.get("SIM_SEEDS", "5"))
RAFTD = str(Path(sys.executable).parent / "raftd")


def test_no_seed_goes_wrong():
    with ProcessPoolExecutor(2) as pool:
        outcomes = list(pool.map(live, range(START, START + SEEDS)))
    assert {outcome.seed: outcome.violation for outcome in outcomes if outcome.violation} == {}
    assert sum(outcome.elections for outcome in outcomes) > len(outcomes)
    assert sum(outcome.operations for outcome in outcomes) > 100 * len(outcomes)
    assert sum(outcome.unknown for outcome in outcomes) < 0.2 * sum(outcome.operations for outcome in outcomes)


@pytest.mark.parametrize(
    "name",
    [
        *("ack before fsync", "vote not persisted", "commit beyond prev + n", "timers fired in another order"),
        *("read at what the node has applied", "timers without a budget", "a batch of any length", "the timers of waits are not restored"),
    ],
)
def test_a_sample_of_mutants_is_caught(name):
    _, outcome = seeds_to_catch(name, 30)
    assert outcome is not None


CAUGHT_BY = {
    "dead letters in circles": policies.test_dead_jobs_do_not_go_in_circles,
    "snapshot drops a matching tail": raft.test_r29_a_log_with_the_last_entry_of_the_snapshot_stays,
    "snapshots without a directory fsync": lambda: crash_states.all_states(crash_states.taken_over),
    "whole durable log acknowledged": replication.test_r10_identical_entries_are_skipped_and_nothing_is_deleted,
    "truncated configuration stays": membership.test_r24_a_change_that_is_truncated_is_taken_back,
    "an estimate of log time falls": elections.test_an_estimate_follows_a_slower_leader_without_going_back,
    "wall clocks do not wait for a living estimate": lambda: elections.test_a_living_estimate_counts_before_wall_clocks(True),
    "any disk is taken for the node's": node.test_r28_a_wiped_disk_is_refused_by_a_member_that_has_never_met_it,
    "directories that only the one who met them knows": node.test_r28_a_wiped_disk_is_refused_by_a_member_that_has_never_met_it,
    "kick without a budget": budget.test_kicks_of_one_entry_share_its_budget_and_each_moves_something,
    "a turn without an end": node.test_a_turn_ends_once_its_entries_have_cost_enough,
    "incarnation spoken of before it is durable": node.test_a_new_incarnation_is_not_spoken_of_before_it_is_durable,
    "clients of a swapped state wait for ever": node.test_clients_of_a_node_that_loads_a_snapshot_get_what_is_known,
    "left-over tubes are not in the snapshot": budget.test_a_tube_whose_jobs_are_left_over_is_served_alike_after_a_restore,
    "left over without an order": budget.test_left_over_tubes_are_served_in_order,
    "a session of a closed gateway is asked on": node.test_clients_of_a_closed_gateway_are_notified_in_turns,
    "a session made anew is taken for the old one": client_core.test_a_session_that_was_made_anew_is_known_by_its_number,
    "read an entry early": node.test_a_read_waits_until_the_very_entry_it_was_promised_is_applied,
    "entries of the disk sent unseen": raft.test_entries_that_were_replaced_are_not_taken_from_the_disk,
}


@pytest.mark.parametrize("name", sorted(mutants.BY_TESTS))
def test_mutants_that_no_seed_can_be_expected_to_meet_are_caught_by_a_test(name):
    CAUGHT_BY[name]()
    with mutants.applied(name), pytest.raises((AssertionError, CorruptionError, ValueError)):
        CAUGHT_BY[name]()


def test_mutants_leave_nothing_behind():
    before = {name: [owner.__dict__[attribute] for owner, attribute, _ in patches] for name, patches in mutants.MUTANTS.items()}
    for name in mutants.MUTANTS:
        with mutants.applied(name):
            pass
    assert before == {name: [owner.__dict__[attribute] for owner, attribute, _ in patches] for name, patches in mutants.MUTANTS.items()}


def test_a_seed_does_the_same_under_any_hash_seed():
    def hashes(hash_seed: str) -> list[str]:
        code = "from raftd.cli.sim import live\nfor seed in (2, 3, 8, 11): print(live(seed).trace_hash)"
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    first = hashes("1")
    assert first == hashes("4242")
    assert len(set(first)) == 4


def test_the_command_replays_a_seed():
    done = subprocess.run([RAFTD, "sim", "--seed", "2", "--trace"], capture_output=True, text=True, check=True)
    assert "leader in term 1" in done.stdout
    assert "violation: none" in done.stdout
    outcome = live(2)
    assert f"trace hash: {outcome.trace_hash}" in done.stdout


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--trace"], "for one seed"),
        (["--seed", "3", "--mutants"], "leave out --mutants"),
        (["--seed", "3", "--jobs", "2"], "leave out --jobs"),
        (["--mutants", "--start", "4"], "from seed 1 on"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, reason):
    done = subprocess.run([RAFTD, "sim", *options], capture_output=True, text=True, check=False)
    assert (done.returncode, reason in done.stderr) == (2, True)


def test_a_plan_is_cut_down_to_what_goes_wrong():
    options = draw(4)
    with mutants.applied("token not checked"):
        events = plan(options)
        assert SeedRun(options, events).run().violation

        def fails(fewer):
            return bool(SeedRun(options, fewer).run().violation)

        least = minimise(events[:120], fails) if fails(events[:120]) else minimise(events, fails)
        assert len(least) < 10
        for place in range(len(least)):
            assert not fails(least[:place] + least[place + 1 :])

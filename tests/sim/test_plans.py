"""Stored plans: the smallest run that shows a bug. Each passes, and fails with the mutant that it names."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from raftd.cli.sim import load_plan
from raftd.errors import CommandRefused
from raftd.sim import mutants
from raftd.sim.seed import SeedRun

PLANS = sorted((Path(__file__).parent / "plans").glob("*.json"))


WORLDS = 40


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_plan(path):
    """Of the same events in other worlds (delays of messages and disks) one at least shows the bug: a change that moves something by a
    millisecond makes no plan worthless."""
    plan = load_plan(path)
    for world in range(plan.options.seed, plan.options.seed + WORLDS):
        options = msgspec.structs.replace(plan.options, seed=world)
        with mutants.applied(plan.about):
            shows = SeedRun(options, plan.events).run().violation
        if shows:
            assert SeedRun(options, plan.events).run().violation == ""
            return
    raise AssertionError(f"{plan.about}: caught in none of {WORLDS} worlds")


def test_a_file_that_is_no_plan_is_refused(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text('{"options": 1}')
    with pytest.raises(CommandRefused, match="is not a plan"):
        load_plan(path)

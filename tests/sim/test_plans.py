"""Stored plans: the smallest run that shows a bug. Each passes, and fails with the mutant that it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from raftd.cli.sim import load_plan
from raftd.errors import CommandRefused
from raftd.sim import mutants
from raftd.sim.seed import SeedRun

PLANS = sorted((Path(__file__).parent / "plans").glob("*.json"))


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_plan(path):
    plan = load_plan(path)
    assert SeedRun(plan.options, plan.events).run().violation == ""
    with mutants.applied(plan.about):
        assert SeedRun(plan.options, plan.events).run().violation != ""


def test_a_file_that_is_no_plan_is_refused(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text('{"options": 1}')
    with pytest.raises(CommandRefused, match="is not a plan"):
        load_plan(path)

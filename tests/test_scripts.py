"""Every script in tests/scripts: see `script.py` for the commands."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.script import run_script

SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("*.txt"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script(path):
    expected, seen = run_script(path, rewrite=bool(os.environ.get("RAFTD_REWRITE")))
    assert seen == expected

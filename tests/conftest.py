"""Marks the tests that start nodes or run seeds, so that `pytest -m "not slow and not load"` takes less than a minute. Nodes that tests
start run the code of this checkout, whatever is installed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_SLOW = (
    *("bench", "client", "processes", "sim", "work", "test_container.py"),
    *("cli/test_commands.py", "cli/test_files.py", "cli/test_jobs.py", "cli/test_line_console.py"),
)

os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH"))))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are processors: a third of the time, tests wait for nodes."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = Path(__file__).parent
    for item in items:
        path = item.path.relative_to(root)
        if path.parts[0] in _SLOW or str(path) in _SLOW:
            item.add_marker(pytest.mark.slow)

"""Marks the tests that start nodes or run seeds, so that `pytest -m "not slow and not load"` takes less than a minute. Nodes that tests
start run the code of this checkout, whatever is installed. Properties are tried with the same examples each time, so what passes does
not hang on luck; `--hypothesis-profile=search` tries many new ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

_SLOW = (
    *("bench", "client", "processes", "sim", "work", "test_container.py"),
    *("cli/test_commands.py", "cli/test_files.py", "cli/test_jobs.py", "cli/test_line_console.py"),
)

os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH"))))


settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None, max_examples=3_000)
settings.load_profile("same")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are processors: a third of the time, tests wait for nodes."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = Path(__file__).parent
    for item in items:
        path = item.path.relative_to(root)
        if path.parts[0] in _SLOW or str(path) in _SLOW:
            item.add_marker(pytest.mark.slow)

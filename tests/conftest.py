"""Marks the tests that start many processes or run many seeds, so that `pytest -m "not slow"` takes less than a minute."""

from __future__ import annotations

from pathlib import Path

import pytest

_SLOW = ("processes", "sim", "test_container.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = Path(__file__).parent
    for item in items:
        if item.path.relative_to(root).parts[0] in _SLOW:
            item.add_marker(pytest.mark.slow)

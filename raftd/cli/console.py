"""Tables that keep their numbers."""

from __future__ import annotations

from rich.console import Console

_LEAST_COLUMNS = 120


def wide(console: Console) -> Console:
    """The same place to print to, and never so narrow that a table would lose a column: a terminal wraps lines by itself,
    and a pipe or a file has no width."""
    if console.width < _LEAST_COLUMNS:
        console.width = _LEAST_COLUMNS
    return console

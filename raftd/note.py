"""Messages of the pure parts of a node to its operator."""

from __future__ import annotations

from typing import NamedTuple


class Note(NamedTuple):
    """One line for the log and for `/events`. A warning means that an operator should act."""

    text: str
    is_warning: bool = False

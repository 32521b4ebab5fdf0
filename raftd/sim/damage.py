"""Which disk of a run was damaged, and what a node may do because of it."""

from __future__ import annotations


class Damage:
    """Only one voter's disk is ever damaged in a run, so that a good copy exists."""

    def __init__(self) -> None:
        #: The node whose disk was damaged, None until then.
        self.node: int | None = None
        #: The kinds of damage since that node last started.
        self.kinds: list[str] = []

    def add(self, node: int, kind: str) -> None:
        self.node = node
        self.kinds.append(kind)

    def repaired(self, node: int) -> None:
        """`node` has started: it has read its disk, and repaired it."""
        if node == self.node:
            self.kinds.clear()

    def explain(self, node: int) -> str | None:
        """Return why `node` must not refuse to start, or None if the damage explains it."""
        if node != self.node or not self.kinds:
            return "finds its disk damaged, which it is not"
        if len(self.kinds) == 1 and self.kinds[0].endswith("vote"):
            return "has one bad slot of its vote file, and does not start with the other"
        return None

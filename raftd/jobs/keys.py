"""Idempotency keys: which of them were used not long ago, and what the answer was.

They are part of the replicated state, so a repeat is recognised by any node, after any election and after a restart. The window is
bounded twice: by log time, and by how many keys are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from raftd.jobs.replies import InsertedMany, KeyReused
from raftd.limits import KEYS_KEPT

#: How long idempotency keys are kept (milliseconds of log time: an hour). A producer that repeats itself does so within seconds or
#: minutes.
KEY_WINDOW_MS = 3_600_000
#: Keys forgotten at most when one more is remembered.
KEYS_FORGOTTEN = 16


class Used(NamedTuple):
    """`time_ms`: log time of the first use. It put `count` jobs, with ids from `first` on."""

    time_ms: int
    fingerprint: bytes
    first: int
    jobs: int


class Keys:
    """In order of use; `most` are remembered, the same number on every node."""

    def __init__(self, most: int = KEYS_KEPT) -> None:
        self._most = most
        self.used: OrderedDict[str, Used] = OrderedDict()

    def find(self, key: str, now_ms: int) -> Used | None:
        """What `key` was used for within the window."""
        used = self.used.get(key)
        return used if used is not None and now_ms - used.time_ms < KEY_WINDOW_MS else None

    def reply(self, key: str, fingerprint: bytes, now_ms: int) -> InsertedMany | KeyReused | None:
        """The answer to a repeat; None if it is none."""
        used = self.find(key, now_ms)
        if used is None:
            return None
        return InsertedMany(used.first, used.jobs, True) if used.fingerprint == fingerprint else KeyReused()

    def remember(self, key: str, used: Used) -> None:
        """And forget some that are too old or too many: few at a time, so that no entry takes long."""
        self.used.pop(key, None)  # it stood where it would be forgotten with those of its first use
        self.used[key] = used
        for _ in range(KEYS_FORGOTTEN):
            oldest = next(iter(self.used.values()))
            if len(self.used) <= self._most and used.time_ms - oldest.time_ms < KEY_WINDOW_MS:
                return
            self.used.popitem(last=False)

"""How long to wait before the next try."""

from __future__ import annotations

from random import Random

import msgspec


class Retry(msgspec.Struct, frozen=True):
    """Waits that grow from `initial_s` by `factor` up to `longest_s`, in seconds. Each is shortened by a random part of up to `jitter`
    (0 to 1), so that clients who lost the same node do not all come at once.

    >>> retry = Retry(initial_s=0.1, jitter=0)
    >>> [retry.wait_s(failures, Random()) for failures in range(1, 8)]
    [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    """

    initial_s: float = 0.05
    factor: float = 2.0
    longest_s: float = 2.0
    jitter: float = 0.5

    def wait_s(self, failures: int, random: Random) -> float:
        """After so many failures in a row, from 1 on."""
        wait_s = min(self.longest_s, self.initial_s * self.factor ** (min(failures, 64) - 1))
        return wait_s * (1 - self.jitter * random.random())

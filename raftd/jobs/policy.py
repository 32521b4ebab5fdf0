"""What a tube does by itself: a policy, as it stands in the log (docs/queues.md). Times are in milliseconds of log time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal
from zlib import crc32

import msgspec

#: Dead letter tubes in a row that are looked at when a policy is set: in a circle a job would go round for ever.
DEAD_LETTER_TUBES = 8
#: Delays are drawn from within so many thousandths of what the policy says, so that jobs that failed together do not come back together.
_JITTER = 100
#: The factor of a backoff is counted in these.
THOUSANDTHS = 1_000

OnExpire = Literal["discard", "dead_letter"]
Overflow = Literal["reject", "drop_oldest", "dead_letter_oldest"]


class Policy(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True):
    """0, or nothing: no such limit. `backoff_ms`: delays after the first failure, the second and so on, the last for all further ones; with
    a `backoff_factor` (thousandths) there is one, that grows by it up to `backoff_max_ms`. `rate`: thousandths of jobs a second."""

    max_attempts: int = 0
    backoff_ms: tuple[int, ...] = ()
    backoff_factor: int = 0
    backoff_max_ms: int = 0
    dead_letter: str = ""
    ttl_ms: int = 0
    on_expire: OnExpire = "discard"
    max_jobs: int = 0
    max_bytes: int = 0
    overflow: Overflow = "reject"
    rate: int = 0
    burst: int = 1
    concurrency: int = 0
    retain_ms: int = 0
    default_ttr_ms: int = 0
    default_pri: int | None = None

    def delay_ms(self, job: int, attempts: int) -> int:
        """How long `job` waits after so many failed attempts. The same on every node."""
        if not self.backoff_ms:
            return 0
        if self.backoff_factor:
            delay = self.backoff_ms[0]
            for _ in range(attempts - 1):
                if delay >= self.backoff_max_ms:
                    break
                delay = delay * self.backoff_factor // THOUSANDTHS
            delay = min(delay, self.backoff_max_ms)
        else:
            delay = self.backoff_ms[min(attempts, len(self.backoff_ms)) - 1]
        drawn = crc32(b"%d %d" % (job, attempts)) % (2 * _JITTER + 1) - _JITTER
        return delay + delay * drawn // THOUSANDTHS


class PolicyChange(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True):
    """`policy` None: the tube has none any more. `version`: only if the tube's policy has this one (0: if it has none); None: whatever it
    has."""

    tube: str
    policy: Policy | None
    version: int | None = None


#: Why a job was moved to a dead letter tube, or buried: as many attempts have failed as may, its time to live was over, or the tube was
#: full and the job its oldest.
Death = Literal["attempts", "expired", "overflow"]


def leads_in_circle(tube: str, policy_of: Callable[[str], Policy | None]) -> bool:
    """Whether dead jobs of `tube` would come back to it, or go through more tubes than they may."""
    policy = policy_of(tube)
    for _ in range(DEAD_LETTER_TUBES):
        if policy is None or not policy.dead_letter:
            return False
        if policy.dead_letter == tube:
            return True
        policy = policy_of(policy.dead_letter)
    return policy is not None and bool(policy.dead_letter)

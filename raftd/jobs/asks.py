"""What a client asks in its session (docs/protocol.md: Sessions), as it comes over the wire and as it stands in the log.

Unlike the commands of a line, an ask names the tubes it is about, and there may be many under way: each has an id, and is answered
once, whichever connections it takes. Times are in milliseconds of log time, relative.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from raftd.jobs.policy import PolicyChange

Action = Literal["move", "kick", "delete"]

#: A reservation: the id of the job, and the token. Token 0: the job is held by this session, or by nobody.
Held = tuple[int, int]


class NewJob(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True):
    """One of several to be put."""

    pri: int
    delay_ms: int
    ttr_ms: int
    body: bytes


class _Ask(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """Further fields are those of a newer protocol, and ignored."""


class Unique(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True):
    """The job is the only one of its tube with this `key`, until it is deleted or dead, or with `until_reserved` until it is reserved for
    the first time; for `for_ms` at most, 0: for ever."""

    key: str
    until_reserved: bool = False
    for_ms: int = 0


class Put(_Ask, frozen=True, tag=1):
    """All jobs or none. With a `key` that was used not long ago nothing is put, and the answer is that of the first time, if
    `fingerprint`, a digest of the request, is the same too. `unique` (level 4): if there is another job of its kind, nothing is put, and
    the answer has its id. `takes_default_pri`, `takes_default_ttr` (level 4): the priority, or the time to run, is that of the tube's
    policy if it has one."""

    tube: str
    jobs: list[NewJob]
    key: str = ""
    fingerprint: bytes = b""
    unique: Unique | None = None
    takes_default_pri: bool = False
    takes_default_ttr: bool = False


class Reserve(_Ask, frozen=True, tag=2):
    """Up to `count` jobs that are ready, the most urgent first; or the first that is ready within `timeout_ms` (None: ever)."""

    tubes: list[str]
    count: int = 1
    timeout_ms: int | None = 0


class Subscribe(_Ask, frozen=True, tag=3):
    """Push jobs of these tubes, in the order of the list, as long as there is credit: each takes one off."""

    tubes: list[str]
    credit: int


class Flow(_Ask, frozen=True, tag=4):
    """Of a subscription: pushes up to number `received` have arrived, and `credit` more jobs may be pushed. After a session was resumed
    this continues its subscription, and what had not arrived is pushed again."""

    subscription: int
    received: int
    credit: int = 0


class Cancel(_Ask, frozen=True, tag=5):
    """End a reserve that waits, or a subscription. Answered with the jobs that were pushed and are not known to have arrived."""

    ask: int


class Delete(_Ask, frozen=True, tag=6):
    """`result` (level 4): what came of them, kept if the policy of their tube retains finished jobs."""

    jobs: list[Held]
    result: bytes = b""


class Release(_Ask, frozen=True, tag=7):
    """`pri`, here and below: None leaves it as it is."""

    jobs: list[Held]
    delay_ms: int = 0
    pri: int | None = None


class Fail(_Ask, frozen=True, tag=8):
    """As a release, but the attempt counts as failed. `error`: why, kept with the jobs. `unless_backoff` (level 4): if the tube's policy
    has a backoff, that counts and not `delay_ms`."""

    jobs: list[Held]
    delay_ms: int = 0
    error: str = ""
    unless_backoff: bool = False


class Bury(_Ask, frozen=True, tag=9):
    """`error`: why, kept with the jobs."""

    jobs: list[Held]
    pri: int | None = None
    error: str = ""


class Touch(_Ask, frozen=True, tag=10):
    jobs: list[Held]


class Kick(_Ask, frozen=True, tag=11):
    """Buried jobs of the tube become ready, or if there are none delayed ones."""

    tube: str
    count: int


class KickJobs(_Ask, frozen=True, tag=12):
    jobs: list[int]


class Pause(_Ask, frozen=True, tag=13):
    """`pause_ms` 0 ends a pause."""

    tube: str
    pause_ms: int


class Declare(_Ask, frozen=True, tag=14):
    tube: str


class Undeclare(_Ask, frozen=True, tag=15):
    tube: str


class SetPolicies(_Ask, frozen=True, tag=17):
    """Level 4. All of the changes or none; each is of another tube."""

    changes: list[PolicyChange]


class Selection(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True):
    """Jobs of a tube that are buried, or dead letters; whose last error has `error` in it; that died in the tube `origin`; that are dead
    or buried since a moment from `from_ms` to `before_ms` of log time (of a job buried before level 6: that was put then); with ids up to
    `up_to`. 0 and "": any."""

    tube: str
    error: str = ""
    origin: str = ""
    from_ms: int = 0
    before_ms: int = 0
    up_to: int = 0


class Replay(_Ask, frozen=True, tag=18):
    """Level 4. One step: of the next jobs behind `after` those that fit are moved `to` a tube ("": each to where it died), kicked if they
    are buried, or deleted."""

    which: Selection
    action: Action
    to: str = ""
    after: int = 0


class Plan(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True):
    """What a schedule puts, and when, by the leader's wall clock: at the times of a `cron` expression in a `zone`, or every so many
    milliseconds, or once at a moment (since 1970). `puts_missed`: one job for all occurrences that were missed; `skips_overlap`: nothing
    while the job before is still there."""

    tube: str
    job: NewJob
    cron: str = ""
    zone: str = "UTC"
    every_ms: int = 0
    at_ms: int = 0
    puts_missed: bool = False
    skips_overlap: bool = False


class SetSchedule(_Ask, frozen=True, tag=19):
    """Level 4. `plan` None: remove it. `version`: only if it has this one (0: if there is none); None: whatever it has."""

    name: str
    plan: Plan | None
    version: int | None = None


class PauseSchedule(_Ask, frozen=True, tag=20):
    """Level 4."""

    name: str
    is_paused: bool


class RunSchedule(_Ask, frozen=True, tag=21):
    """Level 4. Put its job now."""

    name: str


class End(_Ask, frozen=True, tag=16):
    """The session ends: its jobs are released, which is no failed attempt. `keeps_jobs`: they stay reserved until their time to run ends,
    and belong to whoever knows their tokens."""

    keeps_jobs: bool = False


#: Asks about many jobs.
OfMany = Delete | Release | Fail | Bury | Touch | KickJobs

#: Asks about schedules.
OfSchedules = SetSchedule | PauseSchedule | RunSchedule

#: Asks about tubes.
OfTube = Kick | Pause | Declare | Undeclare | SetPolicies | Replay

What = Put | Reserve | Subscribe | Flow | Cancel | OfMany | OfTube | End | OfSchedules

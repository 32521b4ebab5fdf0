"""What a command is answered with. Each is the beanstalkd answer of the same name. Tags 40 to 52 are those of `wire/client.py`."""

from __future__ import annotations

from typing import Literal

import msgspec

from raftd.jobs.rights import AccessProblem

PolicyProblem = Literal["conflict", "circle", "too-many"]
ScheduleProblem = Literal["conflict", "too-many"]


class _Reply(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False, forbid_unknown_fields=True):
    pass


class Inserted(_Reply, frozen=True, tag=1):
    id: int


class Buried(_Reply, frozen=True, tag=2):
    pass


class Using(_Reply, frozen=True, tag=3):
    tube: str


class Watching(_Reply, frozen=True, tag=4):
    count: int


class NotIgnored(_Reply, frozen=True, tag=5):
    pass


class Reserved(_Reply, frozen=True, tag=6):
    """`token` is greater than that of any earlier reservation of any job: a fence for what the worker writes."""

    id: int
    body: bytes
    token: int


class TimedOut(_Reply, frozen=True, tag=7):
    pass


class DeadlineSoon(_Reply, frozen=True, tag=8):
    pass


class Deleted(_Reply, frozen=True, tag=9):
    pass


class NotFound(_Reply, frozen=True, tag=10):
    pass


class Released(_Reply, frozen=True, tag=11):
    pass


class Touched(_Reply, frozen=True, tag=12):
    pass


class Kicked(_Reply, frozen=True, tag=13):
    """`count` is None for kick-job."""

    count: int | None


class Paused(_Reply, frozen=True, tag=14):
    pass


class JobTooBig(_Reply, frozen=True, tag=15):
    pass


class OutOfMemory(_Reply, frozen=True, tag=16):
    """Certainly not applied: the gateway holds too much already, or the disks are nearly full. Try again later."""


class Declared(_Reply, frozen=True, tag=17):
    is_new: bool


class InsertedMany(_Reply, frozen=True, tag=18):
    """The ids from `first` on, `count` of them. `is_repeat`: they were put when the key was used before."""

    first: int
    count: int
    is_repeat: bool


class KeyReused(_Reply, frozen=True, tag=19):
    """The key was used for something else."""


class NotEmpty(_Reply, frozen=True, tag=20):
    """The tube still has `jobs` jobs."""

    count: int


class Attached(_Reply, frozen=True, tag=21):
    """The connection speaks for the client's session from now on. `session`: its number, another one if it was made anew. `epoch`: so many
    connections have spoken for it. Asks up to `last_id` have been applied."""

    session: int
    epoch: int
    last_id: int


class TakenOver(_Reply, frozen=True, tag=22):
    """Another connection speaks for the session now."""


class Job(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A reserved job. `failures`: attempts that have failed so far."""

    id: int
    token: int
    tube: str
    body: bytes
    pri: int
    ttr_ms: int
    failures: int


class Jobs(_Reply, frozen=True, tag=23):
    """None: the time was over."""

    jobs: list[Job]


class Subscribed(_Reply, frozen=True, tag=24):
    pass


class Pushed(_Reply, frozen=True, tag=25):
    """The job is number `number` of its subscription, from 1."""

    number: int
    job: Job


class Missed(_Reply, frozen=True, tag=26):
    """All is done, but for these jobs: they are gone, or the session holds them no more."""

    jobs: list[int]


class TooMany(_Reply, frozen=True, tag=27):
    """Nothing was done: the session has as many waiting reserves, subscriptions, watched tubes, credit or unconfirmed answers as one
    may have."""


class Flowing(_Reply, frozen=True, tag=28):
    pass


class Ended(_Reply, frozen=True, tag=29):
    pass


class TubeFull(_Reply, frozen=True, tag=31):
    """The tube's policy lets no more in. Nothing was put."""


class PoliciesSet(_Reply, frozen=True, tag=32):
    """All of them have this version now."""

    version: int


class PolicyRefused(_Reply, frozen=True, tag=33):
    """Nothing was changed, because of this tube: its policy has another `version`, its dead letters would go in a circle or through too
    many tubes, or there would be too many policies."""

    why: PolicyProblem
    tube: str
    version: int


class Replayed(_Reply, frozen=True, tag=34):
    """So many jobs were moved, kicked, deleted or counted, and so many that fit could not be. Ask again `after` this id, unless
    `is_done`."""

    done: int
    skipped: int
    after: int
    is_done: bool


class ScheduleSet(_Reply, frozen=True, tag=35):
    """It has this version now."""

    version: int


class ScheduleRefused(_Reply, frozen=True, tag=36):
    """Nothing was changed: the schedule has another `version`, or there would be too many."""

    why: ScheduleProblem
    version: int


class LoggedIn(_Reply, frozen=True, tag=37):
    """The session is that of `user`; "" if nobody has to say who he is."""

    user: str


class NotAuthorized(_Reply, frozen=True, tag=38):
    """Nothing was done: it is not known who asks, or he may not do that."""


class AccessChanged(_Reply, frozen=True, tag=56):
    pass


class AccessRefused(_Reply, frozen=True, tag=53):
    """Nothing was changed, because of this user."""

    why: AccessProblem
    user: str


class OverQuota(_Reply, frozen=True, tag=39):
    """Nothing was done: the user has put as much as he may for now, or has as many tubes."""


class MayOperate(_Reply, frozen=True, tag=55):
    pass


class ToAsk(_Reply, frozen=True, tag=30):
    """`reply` is to ask `id` of a client's session. A subscription has many."""

    id: int
    reply: AskReply


AskReply = (
    InsertedMany
    | KeyReused
    | JobTooBig
    | OutOfMemory
    | Jobs
    | Subscribed
    | Pushed
    | Missed
    | Kicked
    | Paused
    | Declared
    | Deleted
    | NotFound
    | NotEmpty
    | TooMany
    | Flowing
    | Ended
    | TubeFull
    | PoliciesSet
    | PolicyRefused
    | Replayed
    | ScheduleSet
    | ScheduleRefused
    | NotAuthorized
    | OverQuota
)

Reply = (
    Inserted
    | Buried
    | Using
    | Watching
    | NotIgnored
    | Reserved
    | TimedOut
    | DeadlineSoon
    | Deleted
    | NotFound
    | Released
    | Touched
    | Kicked
    | Paused
    | JobTooBig
    | OutOfMemory
    | Declared
    | InsertedMany
    | KeyReused
    | NotEmpty
    | Attached
    | TakenOver
    | ToAsk
    | TubeFull
    | PoliciesSet
    | PolicyRefused
    | Replayed
    | ScheduleSet
    | ScheduleRefused
    | LoggedIn
    | NotAuthorized
    | AccessChanged
    | AccessRefused
    | OverQuota
    | MayOperate
)

#: To what is asked of schedules.
ScheduleReply = ScheduleSet | ScheduleRefused | Paused | NotFound | InsertedMany | TubeFull | OverQuota

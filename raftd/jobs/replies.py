"""What a command is answered with. Each is the beanstalkd answer of the same name."""

from __future__ import annotations

import msgspec


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
)

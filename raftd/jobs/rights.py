"""What a user may do, how one shows who he is, and what can be changed about that, as it stands in the log (docs/security.md). Times are
in milliseconds of log time.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Literal

import msgspec


class Right(StrEnum):
    """To put jobs into tubes; to reserve jobs, and to do what one does with what one holds; to look; to kick, delete, pause, declare, and
    set policies; and, whatever tubes there are, to operate the cluster."""

    PUT = "put"
    WORK = "work"
    READ = "read"
    MANAGE = "manage"
    OPERATE = "operate"


#: Every tube, and the only one that a grant of OPERATE may name.
ALL_TUBES = "*"


class Grant(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True):
    """`right` to the tubes whose names fit `tubes`, in which one `*` stands for any characters; with `is_denied` not to these, whatever
    else is granted."""

    right: Right
    tubes: str
    is_denied: bool = False


class Patterns:
    """Several such names, for many looks."""

    __slots__ = ("_exact", "_others", "_prefixes")

    def __init__(self, patterns: Iterable[str]) -> None:
        split = [pattern.partition("*") for pattern in patterns]
        self._exact = frozenset(first for first, star, _ in split if not star)
        self._prefixes = tuple(first for first, star, last in split if star and not last)
        self._others = [(first, last, len(first) + len(last)) for first, star, last in split if star and last]

    def fit(self, tube: str) -> bool:
        """Whether the name fits one of them."""
        return (
            tube in self._exact
            or tube.startswith(self._prefixes)
            or any(tube.startswith(first) and tube.endswith(last) and len(tube) >= least for first, last, least in self._others)
        )


class Tubes:
    """Those to which a user has one right."""

    __slots__ = ("_denied", "_granted")

    def __init__(self, grants: Iterable[Grant], right: Right) -> None:
        own = [grant for grant in grants if grant.right is right]
        self._granted = Patterns(grant.tubes for grant in own if not grant.is_denied)
        self._denied = Patterns(grant.tubes for grant in own if grant.is_denied)

    def __contains__(self, tube: object) -> bool:
        assert isinstance(tube, str)
        return self._granted.fit(tube) and not self._denied.fit(tube)


#: How it was shown who a client is. `token`, `password`: `proof` is a hash that the state has too. `certificate`: TLS has shown it.
#: `local`: a listener lets in that user alone. `node`: it is a node of the cluster itself, which may do anything.
How = Literal["token", "password", "certificate", "local", "node"]


class Login(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True):
    """Who a client says he is. It is looked at anew with each command: what it was good for may be over. `user` may be empty with a token,
    which has one."""

    how: How
    user: str
    proof: bytes = b""


class Password(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True):
    """`digest`: scrypt's (`raftd/passwords.py`), with this `salt`."""

    salt: bytes
    digest: bytes


class Quota(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True):
    """Jobs, and bytes of bodies, that a user may put in a second; of both, what a few seconds bring may come at once. And connections to
    each node, which bound his commands under way, too; and tubes that he has declared. 0: any number."""

    jobs_per_s: int = 0
    bytes_per_s: int = 0
    connections: int = 0
    tubes: int = 0


class _Change(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False, forbid_unknown_fields=True):
    user: str


class AddUser(_Change, frozen=True, tag=1):
    pass


class RemoveUser(_Change, frozen=True, tag=2):
    pass


class SetPassword(_Change, frozen=True, tag=3):
    """None: he has none any more."""

    password: Password | None


class AddGrant(_Change, frozen=True, tag=4):
    grant: Grant


class RemoveGrant(_Change, frozen=True, tag=5):
    grant: Grant


class AddToken(_Change, frozen=True, tag=6):
    """`digest`: the SHA-256 of its text. `lifetime_ms` 0: it does not expire."""

    token: str
    digest: bytes
    lifetime_ms: int = 0


class RemoveToken(_Change, frozen=True, tag=7):
    token: str


class SetQuota(_Change, frozen=True, tag=8):
    quota: Quota


Change = AddUser | RemoveUser | SetPassword | AddGrant | RemoveGrant | AddToken | RemoveToken | SetQuota

#: Why none of the changes was made: there is no such user, token or grant, or there is already, or there would be too many; or nobody
#: would be left who may operate the cluster.
AccessProblem = Literal["no-user", "user-exists", "no-token", "token-exists", "no-grant", "too-many", "no-operator"]


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True):
    """Number `number` of the audit log: what was done (`what`, a word) to what (`to`), by which user ("": nobody had to say who he is),
    over which node, by the entry `index` of the log, at `time_ms`."""

    number: int
    index: int
    time_ms: int
    user: str
    node: int
    what: str
    to: str

"""Who may do what: users, their rights, and the record of what was changed; a part of the state machine, in a module of its own
(docs/security.md).

In a cluster without users nobody has to say who he is, and everything is allowed. The first user ends that for good: the last one who
may operate cannot be removed. Whether a command is allowed is decided where it is applied, so a change of rights holds for every command
behind it in the log, whichever node it came over. `NEEDS` says what each command needs; a job of a tube to which a session has no right
is not there for it, and is answered as one that never was.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import msgspec

from raftd.jobs import asks
from raftd.jobs import commands as c
from raftd.jobs import replies as r
from raftd.jobs import rights as g
from raftd.jobs.model import NO_NODE, ClientSession, Session, Tube
from raftd.jobs.rights import ALL_TUBES, Grant, Login, Quota, Record, Right, Tubes
from raftd.jobs.schedules import Schedules
from raftd.limits import AUDIT_RECORDS, GRANTS_PER_USER, QUOTA_BURST_S, TOKENS_PER_USER, USERS

#: What a command needs: a right to each of these tubes.
Needs = Iterable[tuple[Right, str]]

_US = 1_000_000
_ALL, _NONE = (Tubes([Grant(Right.READ, tubes) for tubes in names], Right.READ) for names in ([ALL_TUBES], []))


class StateMachine(Protocol):
    """What of it this part needs: see there."""

    applied_index: int
    now_ms: int
    level: int
    access: Access
    schedules: Schedules


class Token(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`expires_ms` 0: never."""

    digest: bytes
    created_ms: int
    expires_ms: int


class User(msgspec.Struct, gc=False):
    """`since`: the entry of the log that made him; another user with this name is not he. `jobs_us`, `bytes_us`: log time in microseconds
    before which all of the quota would be there again."""

    name: str
    since: int
    password: g.Password | None = None
    grants: list[Grant] = []
    tokens: dict[str, Token] = {}
    quota: Quota = Quota()
    jobs_us: int = 0
    bytes_us: int = 0

    def may_everywhere(self, right: Right) -> bool:
        """To all tubes that there are or could be."""
        own = [grant for grant in self.grants if grant.right is right]
        return any(grant.tubes == ALL_TUBES for grant in own) and not any(grant.is_denied for grant in own)

    def copy(self) -> User:
        """A change is made to it, and thrown away if one behind it is refused."""
        return msgspec.structs.replace(self, grants=list(self.grants), tokens=dict(self.tokens))


class Access:
    """All users, and the audit log."""

    def __init__(self) -> None:
        #: Whether one has to say who he is.
        self.is_on = False
        self.users: dict[str, User] = {}
        #: The audit log: of users and members, and of tubes. Who may change a tube cannot push out what was done to rights.
        self.records: deque[Record] = deque(maxlen=AUDIT_RECORDS)
        self.tube_records: deque[Record] = deque(maxlen=AUDIT_RECORDS)
        #: How many tubes that are there each has declared (`identity`).
        self.made: Counter[str] = Counter()
        #: Grows with each change of users.
        self.generation = 0
        self._by_digest: dict[bytes, tuple[str, Token]] = {}
        self._operators: set[str] = set()
        self._tubes: dict[tuple[str, Right], Tubes] = {}  # of users who were asked about since they changed last

    def replace(self, name: str, user: User | None) -> None:
        """From now on `name` is this user; None: there is none of this name."""
        before = self.users.get(name)
        if before is not None:
            for token in before.tokens.values():
                del self._by_digest[token.digest]
        self._operators.discard(name)
        self.generation += 1
        for right in Right:
            self._tubes.pop((name, right), None)
        if user is None:
            self.users.pop(name, None)
        else:
            self.users[name] = user
            self._by_digest.update((token.digest, (name, token)) for token in user.tokens.values())
            if user.may_everywhere(Right.OPERATE):
                self._operators.add(name)
        self.is_on = bool(self.users)

    def user_of(self, login: Login | None, now_ms: int) -> str | None:
        """The name of who this is; None if it is good for nothing, or not any more."""
        if login is None:
            return None
        match login.how:
            case "node":
                return login.user
            case "token":
                name, token = self._by_digest.get(login.proof, ("", None))
                is_good = token is not None and (not token.expires_ms or now_ms < token.expires_ms) and login.user in ("", name)
                return name if is_good else None
        user = self.users.get(login.user)
        if user is None:
            return None
        if login.how == "password" and (user.password is None or user.password.digest != login.proof):
            return None
        return user.name

    def may(self, login: Login | None, right: Right, tube: str, now_ms: int) -> bool:
        """Whether this login has the right to the tube of this name."""
        name = self.user_of(login, now_ms)
        if name is None or login is None:
            return False
        return login.how == "node" or tube in self._tubes_of(name, right)

    def allows(self, login: Login | None, right: Right, tube: str, now_ms: int) -> bool:
        """The same; everything, if nobody has to say who he is."""
        return not self.is_on or self.may(login, right, tube, now_ms)

    def knows(self, login: Login | None, now_ms: int) -> bool:
        """Whether this login is good for anything, or nobody has to say who he is."""
        return not self.is_on or self.user_of(login, now_ms) is not None

    def seen(self, login: Login | None, tubes: Iterable[str], now_ms: int) -> Iterable[str]:
        """Those of the names of `tubes` that this login may look at."""
        if not self.is_on:
            return tubes
        his = self.tubes(login, Right.READ, now_ms)
        return (tube for tube in tubes if tube in his)

    def tubes(self, login: Login | None, right: Right, now_ms: int) -> Tubes:
        """Those to which this login has the right, for many looks."""
        name = self.user_of(login, now_ms)
        if name is None or login is None:
            return _NONE
        return _ALL if login.how == "node" else self._tubes_of(name, right)

    def _tubes_of(self, name: str, right: Right) -> Tubes:
        found = self._tubes.get((name, right))
        if found is None:
            found = self._tubes[name, right] = Tubes(self.users[name].grants, right)
        return found

    def identity(self, login: Login | None, now_ms: int) -> str:
        """What tells this user from all others that there were or will be; "" if it is nobody."""
        name = self.user_of(login, now_ms)
        user = self.users.get(name or "")
        return f"{name} {user.since}" if user is not None else name or ""

    def own_key(self, login: Login | None, key: str, now_ms: int) -> str:
        """An idempotency key as it is kept: each user has his own."""
        return f"{self.identity(login, now_ms)}\n{key}" if self.is_on and key else key

    def may_everywhere(self, login: Login | None, right: Right, now_ms: int) -> bool:
        """Whether this login has the right to every tube."""
        name = self.user_of(login, now_ms)
        if name is None or login is None:
            return False
        return login.how == "node" or self.users[name].may_everywhere(right)

    def change(self, changes: list[g.Change], now_ms: int, index: int) -> r.AccessChanged | r.AccessRefused:
        """All of the changes or none, by entry `index`."""
        changed: dict[str, User | None] = {}
        digests: set[bytes] = set()
        for change in changes:
            user = changed[change.user] if change.user in changed else self.users.get(change.user)
            if user is not None and change.user not in changed:
                user = user.copy()
            if isinstance(change, g.AddToken) and (change.digest in self._by_digest or change.digest in digests):
                return r.AccessRefused("token-exists", change.user)
            if isinstance(change, g.AddToken):
                digests.add(change.digest)
            made = _changed(user, change, now_ms, index)
            if isinstance(made, str):
                return r.AccessRefused(made, change.user)
            changed[change.user] = made
        if len(self.users) + sum((user is not None) - (name in self.users) for name, user in changed.items()) > USERS:
            return r.AccessRefused("too-many", "")
        becoming = any(user is not None and user.may_everywhere(Right.OPERATE) for user in changed.values())
        if not becoming and all(name in changed for name in self._operators):
            return r.AccessRefused("no-operator", "")
        for name, user in changed.items():
            self.replace(name, user)
        return r.AccessChanged()

    def may_make(self, login: Login | None, now_ms: int) -> bool:
        """Whether the quota of the user lets him declare one more tube."""
        user = self.users.get(self.user_of(login, now_ms) or "")
        return user is None or not user.quota.tubes or self.made[self.identity(login, now_ms)] < user.quota.tubes

    def takes(self, login: Login | None, jobs: int, size: int, now_ms: int) -> bool:
        """Whether the quota of the user has room for so many jobs and bytes; then they are counted."""
        name = self.user_of(login, now_ms)
        user = self.users.get(name) if name is not None else None
        if user is None or not (user.quota.jobs_per_s or user.quota.bytes_per_s):
            return True
        now_us, quota = now_ms * 1_000, user.quota
        jobs_us, bytes_us = max(user.jobs_us, now_us), max(user.bytes_us, now_us)
        if quota.jobs_per_s:
            jobs_us += jobs * _US // quota.jobs_per_s
        if quota.bytes_per_s:
            bytes_us += size * _US // quota.bytes_per_s
        # what is more than ever comes at once may be put when nothing was put for as long
        latest_us = now_us + QUOTA_BURST_S * _US
        if any(after > latest_us and before > now_us for before, after in ((user.jobs_us, jobs_us), (user.bytes_us, bytes_us))):
            return False
        user.jobs_us, user.bytes_us = jobs_us, bytes_us
        return True


def _changed(user: User | None, change: g.Change, now_ms: int, index: int) -> User | g.AccessProblem | None:
    """The user as he is then, None if he is gone, or why it cannot be."""
    if isinstance(change, g.AddUser):
        return User(change.user, index) if user is None else "user-exists"
    if user is None:
        return "no-user"
    match change:
        case g.RemoveUser():
            return None
        case g.SetPassword(password=password):
            user.password = password
        case g.SetQuota(quota=quota):
            user.quota, user.jobs_us, user.bytes_us = quota, 0, 0  # what was put under another one is not counted by this
        case g.AddGrant(grant=grant):
            if grant not in user.grants:
                user.grants.append(grant)
        case g.RemoveGrant(grant=grant):
            if grant not in user.grants:
                return "no-grant"
            user.grants.remove(grant)
        case g.AddToken(token=token, digest=digest, lifetime_ms=lifetime_ms):
            if token in user.tokens:
                return "token-exists"
            user.tokens[token] = Token(digest, now_ms, now_ms + lifetime_ms if lifetime_ms else 0)
        case g.RemoveToken(token=token):
            if user.tokens.pop(token, None) is None:
                return "no-token"
    is_over = len(user.grants) > GRANTS_PER_USER or len(user.tokens) > TOKENS_PER_USER
    return "too-many" if is_over else user


# -- what is allowed ----------------------------------------------------------------------------


def refusal(machine: StateMachine, session: Session | ClientSession, command: Any) -> r.NotAuthorized | r.NotFound | None:
    """What a command, or an ask, is answered with if it is not allowed; None if it is."""
    access, login, now_ms = machine.access, session.login, machine.now_ms
    if type(command) is c.PutBack:  # of a node, which gives back what its client could not be told of
        return None
    if access.user_of(login, now_ms) is None:
        return r.NotAuthorized()
    if type(command) is c.Use:
        is_his = any(access.may(login, right, command.tube, now_ms) for right in (Right.PUT, Right.READ, Right.MANAGE))
        return None if is_his else r.NotAuthorized()
    if isinstance(command, c.OfSchedule | asks.PauseSchedule | asks.RunSchedule | asks.SetSchedule):
        what = command.what if isinstance(command, c.OfSchedule) else command
        return _refusal_of_schedule(machine, login, what)
    for right, tube in NEEDS[type(command)](session, command):
        if not access.may(login, right, tube, now_ms):
            return r.NotAuthorized()
    return None


def _refusal_of_schedule(machine: StateMachine, login: Login | None, what: asks.OfSchedules) -> r.NotAuthorized | r.NotFound | None:
    """A schedule is its tube's: whoever sets one must be able to put there, too. One that is not his is not there for him."""
    known = machine.schedules.by_name.get(what.name)
    plan = what.plan if isinstance(what, asks.SetSchedule) else None
    if known is None and plan is None:
        return r.NotFound()
    needs: list[tuple[Right, str]] = []
    if known is not None:
        needs.append((Right.MANAGE, known.plan.tube))
        if isinstance(what, asks.RunSchedule):
            needs.append((Right.PUT, known.plan.tube))
    if plan is not None:
        needs += [(Right.MANAGE, plan.tube), (Right.PUT, plan.tube)]
    if all(machine.access.may(login, right, tube, machine.now_ms) for right, tube in needs):
        return None
    return r.NotAuthorized() if plan is not None else r.NotFound()


def _nothing(session: Any, command: Any) -> Needs:
    """It concerns the session alone, or jobs, which are looked at one by one."""
    return ()


def _of_tube(*rights: Right) -> Callable[[Any, Any], Needs]:
    return lambda session, command: [(right, command.tube) for right in rights]


def _of_tubes(right: Right) -> Callable[[Any, Any], Needs]:
    return lambda session, command: [(right, tube) for tube in command.tubes]


def _of_used(right: Right) -> Callable[[Any, Any], Needs]:
    return lambda session, command: [(right, session.used.name)]


def _of_put(session: Any, put: c.Put) -> Needs:
    return [(Right.PUT, put.tube or session.used.name)]


def _of_policies(session: Any, command: c.SetPolicies | asks.SetPolicies) -> Needs:
    """Dead jobs go into another tube."""
    for change in command.changes:
        yield Right.MANAGE, change.tube
        if change.policy is not None and change.policy.dead_letter:
            yield Right.PUT, change.policy.dead_letter


def _of_replay(session: Any, command: c.Replay | asks.Replay) -> Needs:
    """Back to where they died needs no further right: that tube's policy has sent them here."""
    what = command.what if isinstance(command, c.Replay) else command
    yield Right.MANAGE, what.which.tube
    if what.action == "move" and what.to:
        yield Right.PUT, what.to


def _of_operator(session: Any, command: Any) -> Needs:
    return [(Right.OPERATE, ALL_TUBES)]


#: By the type of a command or an ask. Those about schedules are looked at with the schedule, and `use` needs any right to what one does
#: with the tube that is used.
NEEDS: dict[type, Callable[[Any, Any], Needs]] = {
    c.Put: _of_put,
    c.PutMany: _of_tube(Right.PUT),
    c.PutUnique: _of_tube(Right.PUT),
    c.Watch: _of_tube(Right.WORK),
    c.Ignore: _nothing,
    c.Reserve: _nothing,  # of the tubes on the watch list, those count to which there is a right
    c.ReserveJob: _nothing,
    c.Delete: _nothing,
    c.Release: _nothing,
    c.Bury: _nothing,
    c.Touch: _nothing,
    c.Kick: _of_used(Right.MANAGE),
    c.KickJob: _nothing,
    c.PauseTube: _of_tube(Right.MANAGE),
    c.Declare: _of_tube(Right.MANAGE),
    c.Undeclare: _of_tube(Right.MANAGE),
    c.SetPolicies: _of_policies,
    c.Replay: _of_replay,
    c.Operate: _of_operator,
    c.ChangeAccess: _of_operator,
    asks.Put: _of_tube(Right.PUT),
    asks.Reserve: _of_tubes(Right.WORK),
    asks.Subscribe: _of_tubes(Right.WORK),
    asks.Flow: _nothing,
    asks.Cancel: _nothing,
    asks.End: _nothing,
    asks.Delete: _nothing,
    asks.Release: _nothing,
    asks.Fail: _nothing,
    asks.Bury: _nothing,
    asks.Touch: _nothing,
    asks.Kick: _of_tube(Right.MANAGE),
    asks.KickJobs: _nothing,
    asks.Pause: _of_tube(Right.MANAGE),
    asks.Declare: _of_tube(Right.MANAGE),
    asks.Undeclare: _of_tube(Right.MANAGE),
    asks.SetPolicies: _of_policies,
    asks.Replay: _of_replay,
}


def may(machine: StateMachine, session: Session | ClientSession, right: Right, tube: Tube) -> bool:
    """Whether the session has the right to the tube."""
    return machine.access.allows(session.login, right, tube.name, machine.now_ms)


def permitted(machine: StateMachine, session: Session) -> list[Tube]:
    """The tubes on its watch list to which the session has the right to work. They are found out again when users have changed."""
    access = machine.access
    if session.permitted is None or session.permitted[0] != access.generation:
        tubes = access.tubes(session.login, Right.WORK, machine.now_ms)
        session.permitted = (access.generation, [tube for name, tube in session.watched.items() if name in tubes])
    return session.permitted[1]


def log_in(machine: StateMachine, session: Session, login: Login) -> r.LoggedIn | r.NotAuthorized:
    """The session is this user's from now on; nobody's, if the login is good for nothing."""
    name = machine.access.user_of(login, machine.now_ms)
    session.login = login if name is not None or not machine.access.is_on else None
    session.permitted = None
    return r.LoggedIn(name or "") if session.login is not None else r.NotAuthorized()


# -- what is recorded ---------------------------------------------------------------------------


def record(machine: StateMachine, session: Session | ClientSession, what: Any, user: str | None = None) -> None:
    """Keep in the audit log what was done. `user`: who did it, if he is not called so any more."""
    if machine.level < c.ACCESS_LEVEL:
        return
    if user is None:
        user = machine.access.user_of(session.login, machine.now_ms) or ""
    node = session.key[0] if isinstance(session, Session) else session.attached_to[0] if session.attached_to is not None else NO_NODE
    access = machine.access
    ring = access.records if isinstance(what, c.Operate | c.ChangeAccess) else access.tube_records
    for done, to in RECORDED[type(what)](what):
        number = 1 + max((one[-1].number for one in (access.records, access.tube_records) if one), default=0)
        ring.append(Record(number, machine.applied_index, machine.now_ms, user, node, done, to))


def was_recorded_last(machine: StateMachine, session: Session | ClientSession, what: Any) -> bool:
    """Whether the newest record of tubes says that this user has done the same."""
    records = machine.access.tube_records
    if not records:
        return False
    user, newest = machine.access.user_of(session.login, machine.now_ms) or "", records[-1]
    return [(newest.user, newest.what, newest.to)] == [(user, *recorded) for recorded in RECORDED[type(what)](what)]


Recorded = Iterable[tuple[str, str]]


def _tube(word: str) -> Callable[[Any], Recorded]:
    return lambda command: [(word, command.tube)]


def _policies(command: c.SetPolicies) -> Recorded:
    return [("set-policy" if change.policy is not None else "remove-policy", change.tube) for change in command.changes]


def _set_schedule(what: asks.SetSchedule) -> Recorded:
    return [("set-schedule" if what.plan is not None else "remove-schedule", what.name)]


def _access(what: c.ChangeAccess) -> Recorded:
    for change in what.changes:
        match change:
            case g.AddUser():
                yield "add-user", change.user
            case g.RemoveUser():
                yield "remove-user", change.user
            case g.SetPassword(password=password):
                yield "set-password" if password is not None else "remove-password", change.user
            case g.AddGrant(grant=grant):
                yield "deny" if grant.is_denied else "grant", f"{change.user} {grant.right} {grant.tubes}"
            case g.RemoveGrant(grant=grant):
                yield "remove-denial" if grant.is_denied else "revoke", f"{change.user} {grant.right} {grant.tubes}"
            case g.AddToken(token=token):
                yield "create-token", f"{change.user} {token}"
            case g.RemoveToken(token=token):
                yield "revoke-token", f"{change.user} {token}"
            case g.SetQuota(quota=quota):
                numbers = f"{quota.jobs_per_s} jobs/s {quota.bytes_per_s} bytes/s {quota.connections} connections {quota.tubes} tubes"
                yield "set-quota", f"{change.user} {numbers}"


#: What is kept of which commands and asks.
RECORDED: dict[type, Callable[[Any], Recorded]] = {
    c.PauseTube: _tube("pause"),
    c.Declare: _tube("declare"),
    c.Undeclare: _tube("undeclare"),
    c.SetPolicies: _policies,
    c.Operate: lambda command: [(command.what, command.to)],
    c.ChangeAccess: _access,
    asks.Replay: lambda what: [(f"replay-{what.action}", what.which.tube)],
    asks.SetSchedule: _set_schedule,
    asks.PauseSchedule: lambda what: [("pause-schedule" if what.is_paused else "resume-schedule", what.name)],
    asks.RunSchedule: lambda what: [("run-schedule", what.name)],
}


def describe(access: Access) -> list[object]:
    """For the digest."""
    users = [msgspec.to_builtins(user, builtin_types=(bytes,)) for user in access.users.values()]
    return [users, list(access.records), list(access.tube_records)]

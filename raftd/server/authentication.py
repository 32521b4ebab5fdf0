"""Who a client is: by its certificate, by where it connects from, by a token or a password. What he may do is the state's to say
(`jobs/access.py`); here it is only found out who asks, and whoever guesses is slowed down.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import Any, NamedTuple

from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from raftd.config import is_loopback, node_of, user_of
from raftd.jobs.machine import StateMachine
from raftd.jobs.rights import Login
from raftd.limits import (
    LOGIN_FAILURES,
    LOGIN_FORGOTTEN_S,
    LOGIN_SLOWEST_S,
    PASSWORDS_OF_ADDRESS,
    PASSWORDS_WAITING,
    SALT_BYTES,
    STRANGERS_REMEMBERED,
    TOKEN_CHARACTERS,
)
from raftd.passwords import PASSWORD_BYTES, digest_of_password, digest_of_token
from raftd.server.sockets import is_secure
from raftd.wire.checks import is_user_name

#: How long the answer waits after the first failure that costs time (seconds); each time twice as long.
_FIRST_WAIT_S = 0.1
_NO_SALT = bytes(SALT_BYTES)  # for a user who has no password, or is none

Told = Callable[[Login | None], None]


class Failures:
    """How often somebody has not been who he said, by address, and by user from there: the answer to the next failure comes later. Who is
    who he says never waits."""

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self._counts: OrderedDict[str, tuple[int, float]] = OrderedDict()  # how often, and when last; in the order of that

    def failed(self, *who: str) -> float:
        """Once more; how long the answer must wait (seconds)."""
        now_s: float = self._clock.seconds()
        most = 0
        for one in who:
            count, last_s = self._counts.pop(one, (0, now_s))
            count = count + 1 if now_s - last_s < LOGIN_FORGOTTEN_S else 1
            self._counts[one] = (count, now_s)
            most = max(most, count)
        while len(self._counts) > STRANGERS_REMEMBERED:
            self._counts.popitem(last=False)
        over = most - LOGIN_FAILURES
        return min(LOGIN_SLOWEST_S, _FIRST_WAIT_S * 2.0 ** min(over - 1, 16)) if over > 0 else 0.0

    def forget(self, *who: str) -> None:
        for one in who:
            self._counts.pop(one, None)


class _Asked(NamedTuple):
    """A password to be looked at. `is_wanted`: whether its client is still there."""

    machine: StateMachine
    user: str
    password: str
    is_wanted: Callable[[], bool]
    done: Told


class Authentication:
    """Of one process. `local_user`: who line connections from this machine are, if they do not say otherwise."""

    _log = Logger("raftd")

    def __init__(self, clock: Any, cluster: str = "", local_user: str | None = None) -> None:
        self._failures = Failures(clock)
        self._clock = clock
        self._cluster = cluster
        self._local_user = local_user
        self._passwords: OrderedDict[str, deque[_Asked]] = OrderedDict()  # that wait, by address: these take turns
        self._is_busy = False
        self._connections: Counter[str] = Counter()  # of each user
        self._pool: ThreadPool | None = None  # one thread, made for the first password

    def enters(self, machine: StateMachine, login: Login) -> str | None:
        """One more connection is this user's: his name, which `left` takes back; None if he has as many as he may. "" if he is nobody, as
        far as is known here."""
        name = machine.access.user_of(login, machine.now_ms)
        user = machine.access.users.get(name or "")
        if name is None or user is None:
            return ""
        if 0 < user.quota.connections <= self._connections[name]:
            return None
        self._connections[name] += 1
        return name

    def left(self, name: str) -> None:
        """A connection that has entered is gone, or another user's now."""
        self._connections[name] -= 1
        if self._connections[name] <= 0:
            del self._connections[name]

    def by_certificate(self, transport: Any) -> Login | None:
        """As the certificate at this connection says, if there is one: a node's, or a user's, by its URI (`raftd tls` makes those) or its
        common name. TLS has already seen that an authority of the cluster has signed it."""
        if not is_secure(transport):
            return None
        from raftd.server.tls import name_of, uris_of

        uris = uris_of(transport) or frozenset()
        node = node_of(self._cluster, uris)
        if node is not None:
            return Login("node", f"node {node}")
        name = user_of(self._cluster, uris) or name_of(transport)
        return Login("certificate", name) if name else None

    def by_place(self, host: str | None) -> Login | None:
        """Of a line connection from `host`; None for the host: over the Unix socket."""
        if self._local_user is None or (host is not None and not is_loopback(host)):
            return None
        return Login("local", self._local_user)

    def by_token(self, user: str, token: str) -> Login | None:
        """What the state has to decide about; None for what is none. `user` may be empty."""
        if len(token) > TOKEN_CHARACTERS or (user and not is_user_name(user)):
            return None
        return Login("token", user, digest_of_token(token))

    def by_password(
        self, machine: StateMachine, user: str, password: str, host: str | None, is_wanted: Callable[[], bool], done: Told
    ) -> None:
        """`done` gets what the state has to decide about, None if too many wait. One password is looked at at a time, in a thread: it takes
        memory and time, and as much for a user who does not exist. Addresses take turns."""
        place = _address(host)
        queue = self._passwords.get(place, ())
        is_over = len(queue) >= PASSWORDS_OF_ADDRESS or len(self._passwords) >= PASSWORDS_WAITING
        if is_over or len(password.encode()) > PASSWORD_BYTES or not is_user_name(user):
            done(None if is_over else Login("password", "", b""))
            return
        self._passwords.setdefault(place, deque()).append(_Asked(machine, user, password, is_wanted, done))
        self._next_password()

    def _next_password(self) -> None:
        while self._passwords and not self._is_busy:
            place, queue = self._passwords.popitem(last=False)
            asked = queue.popleft()
            if queue:
                self._passwords[place] = queue  # behind the others
            if asked.is_wanted():
                self._look_at(asked)

    def _look_at(self, asked: _Asked) -> None:
        self._is_busy = True
        known = asked.machine.access.users.get(asked.user)
        salt = known.password.salt if known is not None and known.password is not None else _NO_SALT
        if self._pool is None:
            self._pool = ThreadPool(1, 1, "raftd-passwords")
            self._pool.start()
            self._clock.addSystemEventTrigger("during", "shutdown", self._pool.stop)

        def digested(digest: bytes) -> None:
            self._over(asked.done, Login("password", asked.user, digest))

        def failed(failure: Failure) -> None:
            self._log.error("a password could not be looked at: {why}", why=failure.getErrorMessage())
            self._over(asked.done, None)

        deferToThreadPool(self._clock, self._pool, digest_of_password, asked.password, salt).addCallbacks(digested, failed)

    def _over(self, done: Told, login: Login | None) -> None:
        self._is_busy = False
        try:
            done(login)
        except Exception:  # of one client: the others must have their turn
            self._log.failure("a bug in raftd: what came of a password could not be told")
        self._next_password()

    def decided(self, is_good: bool, host: str | None, user: str) -> float:
        """What became of an attempt; how long its answer must wait (seconds)."""
        place = _address(host)
        who = (place, f"{user} at {place}")
        if is_good:
            self._failures.forget(*who)
            return 0.0
        return self._failures.failed(*who)


def _address(host: str | None) -> str:
    """Of IPv6 the network: whoever has one has all its addresses."""
    if host is None:
        return "the Unix socket"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else host

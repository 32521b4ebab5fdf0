"""Who a client is: by its certificate, by where it connects from, by a token or a password. What he may do is the state's to say
(`jobs/access.py`); here it is only found out who asks, and whoever guesses is slowed down.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import Any

from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from raftd.config import is_loopback, node_of, user_of
from raftd.jobs.machine import StateMachine
from raftd.jobs.rights import Login
from raftd.limits import LOGIN_FAILURES, LOGIN_SLOWEST_S, PASSWORDS_WAITING, SALT_BYTES, STRANGERS_REMEMBERED
from raftd.passwords import PASSWORD_BYTES, digest_of_password, digest_of_token
from raftd.server.sockets import is_secure

#: How much longer each failure makes the wait for the next attempt (seconds), doubled each time.
_FIRST_WAIT_S = 0.1
_NO_SALT = bytes(SALT_BYTES)  # for a user who has no password, or is none

LogIn = Callable[[Login | None], None]


class Attempts:
    """Who has failed to show who he is, by address and by user: the next attempt of either has to wait."""

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, int] = OrderedDict()
        self._free_s: dict[str, float] = {}  # when the next attempt may begin

    def wait_s(self, *who: str) -> float | None:
        """How long this attempt must wait; None: there are too many before it."""
        now_s: float = self._clock.seconds()
        begins_s = max([now_s, *(self._free_s.get(one, 0.0) for one in who)])
        if begins_s - now_s > LOGIN_SLOWEST_S:
            return None
        for one in who:
            over = self._failures.get(one, 0) - LOGIN_FAILURES
            if over >= 0:
                self._free_s[one] = begins_s + min(LOGIN_SLOWEST_S, _FIRST_WAIT_S * 2.0 ** min(over, 16))
        return begins_s - now_s

    def failed(self, *who: str) -> None:
        for one in who:
            self._failures[one] = self._failures.pop(one, 0) + 1
            if len(self._failures) > STRANGERS_REMEMBERED:
                oldest, _ = self._failures.popitem(last=False)
                self._free_s.pop(oldest, None)

    def succeeded(self, *who: str) -> None:
        for one in who:
            self._failures.pop(one, None)
            self._free_s.pop(one, None)


class Authentication:
    """Of one process. `local_user`: who line connections from this machine are, if they do not say otherwise."""

    _log = Logger("raftd")

    def __init__(self, clock: Any, cluster: str = "", local_user: str | None = None) -> None:
        self.attempts = Attempts(clock)
        self._clock = clock
        self._cluster = cluster
        self._local_user = local_user
        self._passwords: deque[tuple[StateMachine, str, str, LogIn]] = deque()  # that wait: one is looked at at a time
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

    def by_token(self, machine: StateMachine, user: str, token: str, host: str | None, done: LogIn) -> None:
        """`done` gets what the state has to decide about; None if there were too many attempts. What the state of this node knows
        waits for nobody."""
        login = Login("token", user, digest_of_token(token))
        if machine.access.user_of(login, machine.now_ms) is not None:
            done(login)
        else:
            self._attempt(host, user, done, lambda: done(login))

    def by_password(self, machine: StateMachine, user: str, password: str, host: str | None, done: LogIn) -> None:
        """As `by_token`. One at a time, in a thread: it takes memory and time, and as much for a user who does not exist."""

        def begin() -> None:
            if len(self._passwords) >= PASSWORDS_WAITING or len(password.encode()) > PASSWORD_BYTES:
                done(None)
                return
            self._passwords.append((machine, user, password, done))
            self._next_password()

        self._attempt(host, user, done, begin)

    def _attempt(self, host: str | None, user: str, done: LogIn, begin: Callable[[], None]) -> None:
        wait_s = self.attempts.wait_s(*_who(host, user))
        if wait_s is None:
            done(None)
        elif wait_s > 0:
            self._clock.callLater(wait_s, begin)
        else:
            begin()

    def _next_password(self) -> None:
        if self._is_busy or not self._passwords:
            return
        self._is_busy = True
        machine, user, password, done = self._passwords.popleft()
        known = machine.access.users.get(user)
        salt = known.password.salt if known is not None and known.password is not None else _NO_SALT
        if self._pool is None:
            self._pool = ThreadPool(1, 1, "raftd-passwords")
            self._pool.start()
            self._clock.addSystemEventTrigger("during", "shutdown", self._pool.stop)

        def digested(digest: bytes) -> None:
            self._is_busy = False
            done(Login("password", user, digest))
            self._next_password()

        def failed(failure: Failure) -> None:
            self._is_busy = False
            self._log.error("a password could not be looked at: {why}", why=failure.getErrorMessage())
            done(None)
            self._next_password()

        deferToThreadPool(self._clock, self._pool, digest_of_password, password, salt).addCallbacks(digested, failed)

    def decided(self, is_good: bool, host: str | None, user: str) -> None:
        """What became of an attempt."""
        (self.attempts.succeeded if is_good else self.attempts.failed)(*_who(host, user))


def _who(host: str | None, user: str) -> tuple[str, ...]:
    """A user who is slowed down everywhere could be kept out by anybody, so it is the user from this address."""
    return (f"at {host or 'the Unix socket'}", *([f"{user} at {host}"] if user else []))

"""All clients of this process together: how many there may be, and how much of a turn is theirs.

One connection is bounded by itself (`protocol.py`). A thousand that flood are bounded here: a turn of the reactor gives
clients CLIENT_TURN_MS; connections with more to say wait in a queue for the next turns, first come, first served.
Between two turns ticks, heartbeats and messages of other nodes have theirs, so no crowd costs the node its lead.
"""

from __future__ import annotations

import resource
import select
from collections import Counter, OrderedDict
from typing import Any, Protocol

from twisted.logger import Logger

from raftd.config import is_loopback
from raftd.limits import MOST_DESCRIPTORS, STRANGER_LINES
from raftd.server.reactor import soon_of

#: How much of one turn of the reactor clients' requests may take (milliseconds). What is left of them waits its turn
#: behind ticks and the other nodes: a crowd must not cost a heartbeat.
CLIENT_TURN_MS = 10
#: So many of them are never clients': the log, other nodes, strangers at the peer listener, listeners. Without
#: a descriptor for its next segment a node would have to end.
RESERVED_DESCRIPTORS = 256
#: Clients that are let in even if that leaves too few: a node without clients is useless.
LEAST_CLIENTS = 16


class LimitedConnection(Protocol):
    """One client."""

    transport: Any

    def resume(self) -> None:
        """Its turn has come."""

    def hung_up(self, is_gone: bool) -> None:
        """While it was not read its client has closed its side, or is gone altogether."""


class ConnectionLimiter:
    """`most` connections at once, on all listeners for clients; half of them from one address, unless it is of this machine."""

    _log = Logger("raftd")

    def __init__(self, clock: Any, most: int) -> None:
        self.most = most
        self._clock = clock
        self._soon = soon_of(clock)
        self._count = 0
        self._by_host: Counter[str] = Counter()
        self._crowded: str | None = None  # the address of which the log has said last that it has too many
        self._is_full = False  # and the log says so
        self._waiting: OrderedDict[LimitedConnection, None] = OrderedDict()
        self._unread: OrderedDict[LimitedConnection, None] = OrderedDict()
        self._lines_left = STRANGER_LINES
        self._lines_second = 0
        self._turn_ends_s: float | None = None  # when this turn's time for clients is over; None: it has not begun

    # -- how many -----------------------------------------------------------------------------

    def admit(self, host: str | None = None) -> bool:
        """Whether one more may connect; if so it is counted until it `left`. `host`: where it comes from, None for a Unix socket."""
        if host is not None and self._by_host[host] >= self.most // 2 and not is_loopback(host):
            if self._crowded != host and self.may_log():
                self._crowded = host
                self._log.warn(
                    "{count} clients from {host} are connected, which is half of all that this process may have open: more from there are "
                    "turned away",
                    count=self._by_host[host],
                    host=host,
                )
            return False
        if self._count >= self.most:
            if not self._is_full:
                self._is_full = True
                self._log.warn(
                    "{most} clients are connected, which is all that this process may have open (ulimit -n, less {reserved} for "
                    "itself): more are turned away",
                    most=self.most,
                    reserved=RESERVED_DESCRIPTORS,
                )
            return False
        self._count += 1
        if host is not None:
            self._by_host[host] += 1
        return True

    def left(self, host: str | None = None) -> None:
        """A connection from `host` that was admitted is gone."""
        self._count -= 1
        if host is not None:
            self._by_host[host] -= 1
            if not self._by_host[host]:
                del self._by_host[host]
        self._is_full = self._is_full and self._count > self.most * 9 // 10  # not a line for each that comes and goes

    # -- how much -----------------------------------------------------------------------------

    def has_time(self, now_s: float) -> bool:
        """Whether this turn has time left for more requests."""
        if self._turn_ends_s is None:
            self._turn_ends_s = now_s + CLIENT_TURN_MS / 1000
            self._soon(self._next_turn)
        return now_s < self._turn_ends_s

    def wait(self, connection: LimitedConnection) -> None:
        """Queue `connection`; it continues in a later turn."""
        self._waiting[connection] = None
        if self._turn_ends_s is None:
            self._turn_ends_s = self._clock.seconds()
            self._soon(self._next_turn)

    def forget(self, connection: LimitedConnection) -> None:
        self._waiting.pop(connection, None)
        self._unread.pop(connection, None)

    def _next_turn(self) -> None:
        """Before anything new is read, those that wait; one that is not done waits again, behind the others."""
        self._turn_ends_s = None
        for _ in range(len(self._waiting)):
            if not self.has_time(self._clock.seconds()):
                break
            connection, _ = self._waiting.popitem(last=False)
            connection.resume()

    # -- who has gone -------------------------------------------------------------------------

    def reading(self, connection: LimitedConnection, is_read: bool) -> None:
        """A connection that is not read hears of no end."""
        if is_read:
            self._unread.pop(connection, None)
        else:
            self._unread[connection] = None

    def check_hangups(self) -> None:
        """Called every HANGUP_CHECK_S: who waits for a job, and is not read meanwhile, may have gone."""
        poll = select.poll()
        places: dict[int, LimitedConnection] = {}
        for connection in self._unread:
            descriptor = connection.transport.fileno() if hasattr(connection.transport, "fileno") else -1
            if descriptor >= 0:
                places[descriptor] = connection
                poll.register(descriptor, select.POLLRDHUP)
        for descriptor, event in poll.poll(0) if places else ():
            places[descriptor].hung_up(bool(event & (select.POLLHUP | select.POLLERR)))

    # -- what is said of them -----------------------------------------------------------------

    def may_log(self) -> bool:
        """Whether the log bears one more line about a stranger in this second."""
        second = int(self._clock.seconds())
        if second != self._lines_second:
            self._lines_second, self._lines_left = second, STRANGER_LINES
        self._lines_left -= 1
        return self._lines_left >= 0


def most_clients() -> int:
    """How many clients the limit on open files allows, once it is raised as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    allowed = MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
    return max(LEAST_CLIENTS, allowed - RESERVED_DESCRIPTORS)

"""The line listener: the beanstalkd protocol on every node. The parser is `wire/line.py`; this is the loop
around it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from raftd.jobs import commands as c
from raftd.jobs import queries as q
from raftd.jobs import replies as r
from raftd.jobs.budget import LONG_ANSWER_STEPS
from raftd.jobs.machine import StateMachine
from raftd.jobs.model import Job
from raftd.jobs.rights import Login
from raftd.node.loop import Node
from raftd.node.session import Session, nothing_scanned
from raftd.server.access import looked_at, seen_always, seen_by_job, seen_by_tube, seen_in_list, seen_in_used, sees_everything
from raftd.server.limiter import ConnectionLimiter
from raftd.server.protocol import ClientConnection, ConnectionFactory
from raftd.server.stats import Counters, stats
from raftd.wire.line import (
    AUTHORIZED,
    DRAINING,
    NOT_AUTHORIZED,
    NOT_FOUND,
    LineParser,
    Request,
    encode_found,
    encode_list,
    encode_reply,
    encode_stats,
)

_REQUEST_BYTES = 64

#: Verbs that are commands in the log: from the session's number and the arguments.
_COMMANDS: dict[str, Callable[..., c.Command]] = {
    "put": lambda n, pri, delay_s, ttr_s, body: c.Put(n, pri, delay_s * 1000, ttr_s * 1000, body),
    "use": c.Use,
    "watch": c.Watch,
    "ignore": c.Ignore,
    "reserve": lambda n: c.Reserve(n, None),
    "reserve-with-timeout": lambda n, timeout_s: c.Reserve(n, timeout_s * 1000),
    "reserve-job": c.ReserveJob,
    "delete": c.Delete,
    "release": lambda n, id, pri, delay_s: c.Release(n, id, pri, delay_s * 1000),
    "bury": c.Bury,
    "touch": c.Touch,
    "kick": c.Kick,
    "kick-job": c.KickJob,
    "pause-tube": lambda n, tube, pause_s: c.PauseTube(n, tube, pause_s * 1000),
}


def _found(job: Job) -> bytes:
    return encode_found(job.id, job.body)


def _using(tube: str) -> bytes:
    return encode_reply(r.Using(tube))


#: Verbs that only look: from the arguments, what to ask the state and how to write what it gives.
_READS: dict[str, Callable[[tuple[Any, ...]], tuple[q.Query, Callable[[Any], bytes]]]] = {
    "peek": lambda args: (q.peek(args[0]), _found),
    "peek-ready": lambda args: (q.peek_ready, _found),
    "peek-delayed": lambda args: (q.peek_delayed, _found),
    "peek-buried": lambda args: (q.peek_buried, _found),
    "stats-job": lambda args: (q.stats_job(args[0]), encode_stats),
    "stats-tube": lambda args: (q.stats_tube(args[0]), encode_stats),
    "list-tubes": lambda args: (q.list_tubes, encode_list),
    "list-tubes-watched": lambda args: (q.list_tubes_watched, encode_list),
    "list-tube-used": lambda args: (q.list_tube_used, _using),
}


#: What of these a client may see, from its session, the query and the arguments.
_SEEN: dict[str, Callable[[Session, q.Query, tuple[Any, ...]], q.Query]] = {
    "peek": lambda session, query, args: seen_by_job(session, query, args[0]),
    "peek-ready": lambda session, query, args: seen_in_used(session, query),
    "peek-delayed": lambda session, query, args: seen_in_used(session, query),
    "peek-buried": lambda session, query, args: seen_in_used(session, query),
    "stats-job": lambda session, query, args: seen_by_job(session, query, args[0]),
    "stats-tube": lambda session, query, args: seen_by_tube(session, query, args[0]),
    "list-tubes": lambda session, query, args: seen_in_list(session, query),
    "list-tubes-watched": lambda session, query, args: seen_always(session, query),
    "list-tube-used": lambda session, query, args: seen_always(session, query),
}
#: What one may say before he has said who he is.
_FOR_STRANGERS = frozenset({"quit", "error"})


def _all_tubes(machine: StateMachine) -> int:
    """Of a list, those that are left out cost, too."""
    return looked_at(machine, len(machine.tubes)) if machine.access.is_on else 0


def _ignored(reply: object, index: int) -> None:
    pass


class LineProtocol(ClientConnection):
    """One client of the line listener."""

    def __init__(self, node: Node, clock: Any, limiter: ConnectionLimiter, counters: Counters) -> None:
        super().__init__(node, clock, limiter)
        self._counters = counters
        self._parser = LineParser(node.max_job_size)
        self._is_producer = False
        self._is_worker = False
        self._is_silent = False  # about who it is, which is known: the state must be told before the first command
        self._sizes: deque[int] = deque()  # of requests without an answer: answers come in the order of requests

    def connectionMade(self) -> None:
        super().connectionMade()
        local = self.authentication.by_place(self.host) if self.session.login is None else None
        if local is not None:
            self.enter(local)
        self._is_silent = self.session.login is not None
        self._counters.connections += 1
        self._counters.total_connections += 1

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self._counters.connections -= 1
        self._counters.producers -= self._is_producer
        self._counters.workers -= self._is_worker

    def _feed(self, data: bytes) -> None:
        # the bodies of strangers are not kept
        self._parser.max_job_size = 0 if self.is_stranger() else self.node.max_job_size
        self._parser.feed(data)

    def _take(self) -> bool:
        request = self._parser.next_request()
        if request is None:
            return False
        self._handle(request)
        return self._parser.has_input

    def _handle(self, request: Request) -> None:
        verb, args = request
        if verb == "auth":
            user, token = args
            self._log_in(str(user), str(token))
            return
        if self._is_silent or self.node.has_users:
            self._say_who()
            if self.is_stranger() and verb not in _FOR_STRANGERS:
                verb, args = "error", (NOT_AUTHORIZED,)
                self.refused(request.verb)
        if verb in _COMMANDS:
            self._counters.commands[verb] += 1
            self._handle_command(verb, args)
        elif verb in _READS:
            self._counters.commands[verb] += 1
            query, encode = _READS[verb](args)
            self._handle_read(verb, _SEEN[verb](self.session, query, args), encode)
        else:
            self._handle_here(verb, args)

    def _say_who(self) -> None:
        """Tell the state, once."""
        login = self.session.login
        if self._is_silent and login is not None and self.node.knows_access:
            self._is_silent = False
            self.session.submit(c.LogIn(self.session.number, login), _ignored)

    def _log_in(self, user: str, token: str) -> None:
        """`auth`: nothing more is read before it is answered."""
        self.began(_REQUEST_BYTES)
        self.hold_back(True)
        self._is_silent = False
        login = self.authentication.by_token(user, token)
        if login is None:
            self._confirmed(user, Login("token", user), False)
        else:
            self.confirm(login, partial(self._confirmed, user, login))

    def _confirmed(self, user: str, login: Login, is_good: bool) -> None:
        if self.is_closed:
            return
        delay_s = self.authentication.decided(is_good, self.host, user)
        if is_good and self.node.knows_access:
            self.session.submit(c.LogIn(self.session.number, login), partial(self._logged_in, user, login))
            self.node.wake()
        elif is_good:  # nobody has to say who he is
            self._in_order(user, login)
        else:
            self._clock.callLater(delay_s, self._in_order, user, None)

    def _in_order(self, user: str, login: Login | None) -> None:
        """What came before is answered first."""
        self.session.local(lambda: None, lambda result, index: self._say_logged_in(user, login))
        self.node.wake()

    def _logged_in(self, user: str, login: Login, reply: object, index: int) -> None:
        self._say_logged_in(user, login if isinstance(reply, r.LoggedIn) else None)

    def _say_logged_in(self, user: str, login: Login | None) -> None:
        if self.is_closed:
            return
        self.session.login = None
        is_good = login is not None and self.enter(login)
        if login is not None and not is_good:
            self.refused("one more connection: he has as many as his quota allows", login)
        elif not is_good:
            self.refused(f"auth {user}")
        self._answer(AUTHORIZED if is_good else NOT_AUTHORIZED)
        self._feed(b"")  # the size that a body may have
        self.hold_back(False)

    def began(self, size: int) -> None:
        super().began(size)
        self._sizes.append(size)

    def _answer(self, line: bytes) -> None:
        """Answer the oldest request."""
        self.answer(line, self._sizes.popleft())

    def _handle_command(self, verb: str, args: tuple[int | str | bytes, ...]) -> None:
        command = _COMMANDS[verb](self.session.number, *args)
        size = _REQUEST_BYTES
        if type(command) is c.Put:
            if not self._is_producer:
                self._is_a_producer()
            size += len(command.body)
            if self._counters.draining:
                self.began(size)
                self.session.local(lambda: DRAINING, self._say)
                self.node.wake()
                return
        elif verb.startswith("reserve"):
            size += self.node.max_job_size  # what its answer may hold
            if not self._is_worker:
                self._is_worker = True
                self._counters.workers += 1
        self.began(size)
        self.session.submit(command, partial(self._replied_to, verb, args) if self.node.has_users else self._replied)
        self.node.wake()

    def _handle_read(self, verb: str, query: q.Query, encode: Callable[[Any], bytes]) -> None:
        size = _REQUEST_BYTES + self.node.max_job_size

        scanned = _all_tubes if verb == "list-tubes" else nothing_scanned

        def done(result: object, index: int) -> None:
            if isinstance(result, r.NotAuthorized):
                self._replied_to(verb, (), result, index)
            else:
                self._answer(NOT_FOUND if result is None else encode(result))

        self.began(size)
        self.session.introduce()
        self.session.read(query, done, scanned)
        self.node.wake()

    def _handle_here(self, verb: str, args: tuple[int | str | bytes, ...]) -> None:
        """What this node answers by itself, when its turn has come."""
        self.began(_REQUEST_BYTES)
        say = self._say
        if verb == "quit":
            self.stop_reading()
            self.session.local(lambda: None, lambda result, index: self.finish())
        elif verb == "stats":
            self._counters.commands[verb] += 1
            self.session.local(self._stats, say, LONG_ANSWER_STEPS)
        else:
            if verb in ("big-put", "open-put"):
                self._counters.commands["put"] += 1
            if verb == "open-put":
                self._is_a_producer()
            self.session.local(lambda: args[0], say)
        self.node.wake()  # the answer may wait for a turn with time for it

    def _stats(self) -> bytes:
        if not sees_everything(self.node, self.session.login):
            self.refused("stats")
            return NOT_AUTHORIZED
        return encode_stats(stats(self.node, self._counters))

    def _is_a_producer(self) -> None:
        if not self._is_producer:
            self._is_producer = True
            self._counters.producers += 1

    def _replied(self, reply: object, index: int) -> None:
        self._answer(encode_reply(reply))  # type: ignore[arg-type]  # a session gives commands their replies

    def _replied_to(self, verb: str, args: tuple[int | str | bytes, ...], reply: object, index: int) -> None:
        """Where there are users, the log says what was refused."""
        if type(reply) is r.NotAuthorized:
            names = [arg for arg in args if isinstance(arg, str)]
            self.refused(" ".join([verb, *names]))
        self._replied(reply, index)

    def _say(self, line: object, index: int) -> None:
        self._answer(line)  # type: ignore[arg-type]  # what `local` was given


class LineServerFactory(ConnectionFactory):
    protocol = LineProtocol

"""What every client does, without I/O: a session, asks that are answered once, jobs that are held, subscriptions, failover.

A face (`blocking.py`, `asynchronous.py`, `deferred.py`) gives it bytes and time, and does what it says:

    connect to `address`            when `wants_connection(now)`
    `connected`, `received`, `lost` what happens to the connection
    `output`                        bytes to send, after each call
    `tick`                          at `next_tick()` at the latest

Whatever is asked has a callback, which is called once, with a result or with an error that says what became of it.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

from raftd.client.address import HostPort
from raftd.client.credentials import NO_CREDENTIALS, Credentials
from raftd.client.errors import LostReservation, NotAuthorized, OutcomeUnknown, OverQuota, Refused, TimedOut, TooLarge, Unreachable
from raftd.client.retry import Retry
from raftd.errors import FrameError, RaftdError, UnknownUser
from raftd.jobs import asks
from raftd.jobs import replies as r
from raftd.limits import JOBS_PER_ASK, MAX_JOB_BYTES_CEILING, SESSION_TOKEN_BYTES, WAITING_RESERVES
from raftd.wire import client as w
from raftd.wire.frames import FrameDecoder

log = logging.getLogger("raftd.client")

#: Called with a reply, or with an error.
Done = Callable[[Any], None]

#: Asks under way at most; more wait here. Nodes read no more than 128.
_IN_FLIGHT = 96
#: A hello must be answered within this time (seconds), or another node is tried: one without a majority says nothing.
_HELLO_S = 2.0
#: After so much silence of the other side (seconds) it is pinged, and after that much more another node is tried.
_PING_S = 1.5
_PATIENCE_S = 2.5
#: A held job is touched when this part of its time to run has passed.
_TOUCH_PART = 1 / 3
#: Pushed bodies of so many bytes are confirmed at once: nodes stop at 1 MiB.
_CONFIRM_BYTES = 256 << 10
#: Deadlines and touches are looked at so often (seconds), while there are any.
_TICK_S = 0.05
#: Members are asked for again so often (seconds).
_MEMBERS_S = 30.0


def _ignore(result: object) -> None:
    pass


def _nothing() -> None:
    pass


class Held:
    """A job that this client has reserved."""

    __slots__ = ("is_unanswered", "job", "lost", "subscribed", "subscription", "touch_s", "when_lost")

    def __init__(self, job: r.Job, now_s: float, subscription: Subscription | None) -> None:
        self.job = job
        #: The reservation has ended, and not by this client.
        self.lost = False
        #: Its end was asked for, and not answered: that may be asked for again.
        self.is_unanswered = False
        #: Called when that is found out while nothing is asked about the job.
        self.when_lost: Callable[[], object] = _nothing
        self.subscription = subscription
        self.subscribed = subscription.id if subscription is not None else 0  # whose credit it has taken
        self.touch_s = now_s + job.ttr_ms / 1000 * _TOUCH_PART

    @property
    def key(self) -> asks.Held:
        return self.job.id, self.job.token


class Subscription:
    """Jobs of some tubes as they come, `prefetch` of them held at a time. `arrived` is called after each that is put into `ready`, and when
    there will be no more."""

    def __init__(self, tubes: list[str], prefetch: int, arrived: Callable[[], None]) -> None:
        self.tubes = tubes
        self.prefetch = prefetch
        self.arrived = arrived
        #: Jobs that have arrived and were not taken yet.
        self.ready: deque[Held] = deque()
        #: Why there will be no more.
        self.error: RaftdError | None = None
        self.is_closed = False
        self.id = 0  # of its ask; 0: it is not known to the cluster
        self.received = 0
        self.unconfirmed_bytes = 0  # received, and the cluster has not been told
        self.returned = 0  # credit of jobs that are finished, not given yet


class _Asked:
    """An ask on its way."""

    __slots__ = ("deadline_s", "done", "id", "was_sent", "what")

    def __init__(self, what: asks.What, deadline_s: float, done: Done) -> None:
        self.what = what
        self.deadline_s = deadline_s
        self.done = done
        self.id = 0  # it has one once it was sent
        self.was_sent = False

    @property
    def can_wait(self) -> bool:
        return isinstance(self.what, asks.Reserve) and self.what.timeout_ms != 0


class _Read:
    __slots__ = ("deadline_s", "done", "request")

    def __init__(self, request: w.Request, deadline_s: float, done: Done) -> None:
        self.request = request
        self.deadline_s = deadline_s
        self.done = done


def _as_error(reply: object) -> object:
    """A refusal that any ask may meet; other replies as they are."""
    match reply:
        case w.Failed(text=text) if w.is_about_who(reply):
            return NotAuthorized(text)
        case w.Failed(text=text):
            return Refused(text)
        case r.NotAuthorized():
            return NotAuthorized("not authorized: this user has no such right, or is none any more (`raftd user whoami`)")
        case r.OverQuota():
            return OverQuota("the quota of this user is used up for now. Nothing was done")
    return reply


class Core:
    """One client. It reads no clock: every call says what time it is, in seconds."""

    def __init__(self, addresses: list[HostPort], name: str, random: Random, retry: Retry, cluster: str = "") -> None:
        self._addresses = list(addresses)
        random.shuffle(self._addresses)
        self._name = name
        self._random = random
        self._retry = retry
        self._cluster = cluster
        #: Names the session.
        self.token = random.randbytes(SESSION_TOKEN_BYTES)
        self._session = 0  # its number in the cluster, 0 before there is one
        self._place = 0  # in the addresses
        self._failures = 0
        self._dial_s = self._ticked_s = 0.0
        self._applied_id = 0  # asks up to this were applied, as the last hello said
        self._why = "no node has been tried yet"
        self._decoder: FrameDecoder | None = None  # of the connection, while there is one
        self._hello_until_s = 0.0
        self._is_attached = False
        self._has_answered = False  # since it was attached
        self._max_job_bytes = MAX_JOB_BYTES_CEILING  # as the last hello said
        self._heard_s = self._said_s = 0.0
        self._members_s = 0.0
        self._out: list[bytes] = []
        self._next_id = 1
        self._unsent: deque[_Asked] = deque()
        self._asked: OrderedDict[int, _Asked] = OrderedDict()  # by id, but for reserves that can wait
        self._waiting: dict[int, _Asked] = {}
        self._reads: dict[int, _Read] = {}
        self._subscriptions: dict[int, Subscription] = {}  # by id
        self._unsubscribed: list[Subscription] = []  # that the cluster does not know
        self.held: dict[asks.Held, Held] = {}
        self.is_closed = False
        self._when_cancelled: Callable[[], object] = _nothing
        #: How often another connection has gone on with the session.
        self.resumed = 0

    # -- the connection -----------------------------------------------------------------------

    @property
    def address(self) -> HostPort:
        """The node to try next."""
        return self._addresses[self._place % len(self._addresses)]

    @property
    def is_attached(self) -> bool:
        """Whether a node has answered the hello."""
        return self._is_attached

    @property
    def trouble(self) -> str:
        """Why no node can be asked now, "" if one can."""
        return "" if self._is_attached else self._why

    def wants_connection(self, now_s: float) -> bool:
        return not self.is_closed and self._decoder is None and now_s >= self._dial_s

    def connected(self, now_s: float, credentials: Credentials = NO_CREDENTIALS) -> None:
        """With what this client shows to be a user."""
        self._decoder = FrameDecoder()
        self._heard_s = self._said_s = now_s
        self._hello_until_s = now_s + _HELLO_S
        self._out = [w.encode_hello(w.SessionHello(self._cluster, self.token, self._name, *credentials))]

    def lost(self, now_s: float, why: str) -> None:
        """The connection has ended, or could not be made; `why` is "" if that was found out here."""
        self._why = why or self._why
        self._failures = 0 if self._has_answered else self._failures + 1
        if self._is_attached and not self.is_closed:
            log.info("the connection to %s:%d is lost: %s", *self.address, self._why)
        self._dial_s = now_s + (self._retry.wait_s(self._failures, self._random) if self._failures else 0)
        self._place += 1
        self._decoder = None
        self._is_attached = self._has_answered = False
        self._out = []

    def output(self) -> bytes:
        """What is to be sent; taken out."""
        if not self._out:
            return b""
        data = b"".join(self._out)
        self._out.clear()
        return data

    def received(self, data: bytes, now_s: float) -> bool:
        """Bytes have arrived. False: the connection is of no use, and must be closed."""
        decoder = self._decoder
        if decoder is None or self.is_closed:
            return False
        self._heard_s = now_s
        decoder.feed(data)
        try:
            while (body := decoder.next_frame()) is not None:
                if not self._is_attached:
                    decoder.greeted()
                    self._attached(w.decode_attached_hello(body), now_s)
                elif not self._answered(w.decode_answer(body), now_s):
                    return False
        except UnknownUser as error:
            self._why = str(error)
            self._refuse_all(NotAuthorized(self._why))
            return False
        except FrameError as error:
            self._why = str(error)
            return False
        self._send(now_s)
        return True

    def _refuse_all(self, error: RaftdError) -> None:
        """Nobody is let in who is not known: who asks must hear that at once. What was sent before has an unknown outcome, and waits."""
        refused = [asked for asked in self._unsent if not asked.was_sent]
        for asked in refused:
            self._unsent.remove(asked)
        reads, self._reads = self._reads, {}
        for subscription in self._unsubscribed:
            subscription.error = error
            subscription.arrived()
        self._unsubscribed = []
        for done in [asked.done for asked in refused] + [read.done for read in reads.values()]:
            done(error)

    def _attached(self, hello: w.AttachedHello, now_s: float) -> None:
        self._is_attached = True
        self._max_job_bytes = hello.max_job_size
        host, port = self.address
        log.info("connected to %s:%d, node %d of cluster %s", host, port, hello.node, hello.cluster)
        calls: list[Callable[[], object]] = []
        if self._session and self._session != hello.session:
            calls = self._session_has_ended()
        elif self._session:
            self.resumed += 1
        self._session = hello.session
        self._applied_id = hello.last_id
        for asked in sorted([*self._asked.values(), *self._waiting.values()], key=lambda asked: asked.id):
            self._say(self._request(asked), now_s)
        for read in self._reads.values():
            self._say(read.request, now_s)
        for subscription in self._subscriptions.values():
            self._flow(subscription)
        for subscription in self._unsubscribed:
            self._subscribe(subscription)
        self._unsubscribed = []
        if now_s >= self._members_s:
            self._members_s = now_s + _MEMBERS_S
            self.read(lambda id: w.MembersRequest(id), now_s + _MEMBERS_S, self._learn)
        for call in calls:  # at last: they may ask for more
            call()

    def _session_has_ended(self) -> list[Callable[[], object]]:
        """Whatever was held is given back. What was asked may have been done; a reserve, or a put with a key, may be asked again. Those who
        must be told are in what this returns."""
        calls: list[Callable[[], object]] = []
        self._unsubscribed += self._subscriptions.values()
        self._subscriptions = {}
        for subscription in self._unsubscribed:
            subscription.id = subscription.received = subscription.returned = 0
            subscription.ready.clear()
        calls += [partial(self._lose, held) for held in self.held.values()]
        before = [*self._asked.values(), *self._waiting.values()]
        self._asked.clear()
        self._waiting.clear()
        again: list[_Asked] = []
        for asked in before:
            if isinstance(asked.what, asks.Reserve) or (isinstance(asked.what, asks.Put) and asked.what.key):
                if asked.done != self._give_back:
                    asked.id = 0
                    again.append(asked)
            else:
                error = OutcomeUnknown("the session ended before there was an answer: it was done, or not")
                calls.append(partial(asked.done, error))
        self._unsent.extendleft(reversed(again))
        self.held = {}
        return calls

    def _learn(self, result: object) -> None:
        """Where the other nodes are."""
        if isinstance(result, w.Members):
            for member in result.configuration.addresses.values():
                if member.client and (member.host, member.client) not in self._addresses:
                    self._addresses.append((member.host, member.client))

    # -- time ---------------------------------------------------------------------------------

    def next_tick(self) -> float:
        """When `tick` is to be called at the latest."""
        if self._decoder is None or self._reads or self._asked or self._waiting or self._unsent or self.held:
            return self._ticked_s + _TICK_S
        if any(subscription.returned for subscription in self._subscriptions.values()):
            return self._ticked_s + _TICK_S
        return min(self._said_s, self._heard_s) + _PING_S if self._is_attached else self._hello_until_s

    def tick(self, now_s: float) -> bool:
        """Time has passed. False: the connection is of no use, and must be closed."""
        self._ticked_s = now_s
        self._expire(now_s)
        if self._decoder is None:
            return True
        if not self._is_attached:
            self._why = f"no answer within {_HELLO_S:g} s: the node has no majority now, or this is no client listener"
            return now_s < self._hello_until_s
        self._touch(now_s)
        for subscription in self._subscriptions.values():
            if subscription.returned:  # the others may take long
                self._flow(subscription)
        self._send(now_s)
        silent_s = now_s - self._heard_s
        if silent_s > _PING_S + _PATIENCE_S:
            self._why = f"the node has said nothing for {silent_s:.1f} s"
            return False
        if (silent_s >= _PING_S and self._said_s <= self._heard_s) or now_s - self._said_s >= _PING_S:
            self._say(w.PingRequest(0), now_s)
        return True

    def _expire(self, now_s: float) -> None:
        """Everything is put in order before anybody is told: who is told may ask for more, or end all."""
        calls: list[Callable[[], object]] = []
        for asked in [asked for asked in self._unsent if asked.deadline_s <= now_s]:
            self._unsent.remove(asked)
            is_unknown = asked.was_sent  # in a session that has ended since
            calls.append(partial(asked.done, OutcomeUnknown("no answer in time") if is_unknown else self._unreachable()))
        for id, asked in [(id, asked) for id, asked in self._asked.items() if asked.deadline_s <= now_s]:
            done, asked.deadline_s = asked.done, now_s + _MEMBERS_S  # its answer is wanted no more, but may come
            asked.done = self._give_back if isinstance(asked.what, asks.Reserve) else _ignore
            if done == asked.done:
                del self._asked[id]
            elif id <= self._applied_id:
                calls.append(partial(done, TimedOut("it was done, and its answer did not come in time")))
            else:
                calls.append(partial(done, OutcomeUnknown("no answer in time: it was done, or not, or may be done yet")))
        for id, asked in [(id, asked) for id, asked in self._waiting.items() if asked.deadline_s <= now_s]:
            done, asked.done, asked.deadline_s = asked.done, self._give_back, now_s + _MEMBERS_S
            if done == self._give_back:
                del self._waiting[id]
            else:
                self._ask(asks.Cancel(id), now_s + _MEMBERS_S, _ignore)
                calls.append(partial(done, r.Jobs([]) if self._is_attached else self._unreachable()))
        for id, read in [(id, read) for id, read in self._reads.items() if read.deadline_s <= now_s]:
            del self._reads[id]
            calls.append(partial(read.done, Unreachable(f"no node has answered in time: {self._why}")))
        for call in calls:
            call()

    def _unreachable(self) -> Unreachable:
        return Unreachable(f"no node could be asked in time: {self._why}")

    def _touch(self, now_s: float) -> None:
        """Hold on to what is held: as long as this runs, no time to run ends."""
        due = [held for held in self.held.values() if held.touch_s <= now_s]
        for start in range(0, len(due), JOBS_PER_ASK):
            some = due[start : start + JOBS_PER_ASK]
            for held in some:
                held.touch_s = now_s + held.job.ttr_ms / 1000 * _TOUCH_PART
            self._ask(asks.Touch([held.key for held in some]), now_s + _MEMBERS_S, partial(self._touched, some))

    def _touched(self, some: list[Held], result: object) -> None:
        if isinstance(result, r.Missed):
            missed = set(result.jobs)
            for held in some:
                if held.job.id in missed and self.held.get(held.key) is held:
                    self._lose(held)

    def _lose(self, held: Held) -> None:
        self.held.pop(held.key, None)
        held.lost = True
        self._returned(held)
        try:
            held.when_lost()
        except Exception:  # what it does must not end the client
            log.exception("what is called when job %d is lost has failed", held.job.id)

    # -- asking -------------------------------------------------------------------------------

    def ask(self, what: asks.What, now_s: float, deadline_s: float, done: Done) -> None:
        """Ask it, once, of whichever node; `done` gets the reply, or an error."""
        if self.is_closed:
            done(Unreachable("the client is closed"))
            return
        self._ask(what, deadline_s, done)
        self._send(now_s)

    def _ask(self, what: asks.What, deadline_s: float, done: Done) -> None:
        self._unsent.append(_Asked(what, deadline_s, done))

    def read(self, make: Callable[[int], w.Request], deadline_s: float, done: Done, now_s: float = 0.0) -> None:
        """Ask for something that changes nothing."""
        id = self._new_id()
        read = _Read(make(id), deadline_s, done)
        w.encode_request(read.request)  # what cannot be sent is nobody's but the caller's
        self._reads[id] = read
        if self._is_attached:
            self._say(read.request, now_s or self._said_s)

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    def _send(self, now_s: float) -> None:
        held_back: list[_Asked] = []
        refused: list[Callable[[], object]] = []
        while self._is_attached and self._unsent and len(self._asked) < _IN_FLIGHT:
            asked = self._unsent.popleft()
            if asked.can_wait and len(self._waiting) >= WAITING_RESERVES:
                held_back.append(asked)
                continue
            if isinstance(asked.what, asks.Put) and any(len(job.body) > self._max_job_bytes for job in asked.what.jobs):
                refused.append(partial(asked.done, TooLarge(f"a job is larger than the {self._max_job_bytes:,} bytes the cluster takes")))
                continue
            asked.id = self._new_id()
            try:
                self._say(self._request(asked), now_s)
            except (ValueError, TypeError, OverflowError, FrameError) as error:  # no number or text that can be sent
                refused.append(partial(asked.done, Refused(f"it cannot be sent: {error}")))
                continue
            asked.was_sent = True
            (self._waiting if asked.can_wait else self._asked)[asked.id] = asked
        self._unsent.extendleft(reversed(held_back))
        for call in refused:
            call()

    def _request(self, asked: _Asked) -> w.AskRequest:
        answered = next(iter(self._asked), asked.id)
        return w.AskRequest(asked.id, min(answered, asked.id), [id for id in self._waiting if id < answered], asked.what)

    def _say(self, request: w.Request, now_s: float) -> None:
        self._said_s = now_s
        self._out.append(w.encode_request(request))

    def _answered(self, answer: w.Answer, now_s: float) -> bool:
        id, reply = answer.id, answer.reply
        self._has_answered = True
        if isinstance(reply, r.Pushed):
            self._pushed(id, reply, now_s)
            return True
        asked = self._asked.pop(id, None) or self._waiting.pop(id, None)
        if asked is not None:
            if isinstance(reply, r.Jobs):
                for job in reply.jobs:
                    self._hold(job, now_s)
            asked.done(_as_error(reply))
        elif (read := self._reads.pop(id, None)) is not None:
            read.done(_as_error(reply))
        elif isinstance(reply, r.Jobs):
            self._release([key for job in reply.jobs if (key := (job.id, job.token)) not in self.held])  # nobody waits for them any more
        elif isinstance(reply, r.TakenOver):
            self._why = "another client has taken the session over"
            self.token = self._random.randbytes(SESSION_TOKEN_BYTES)
            return False
        elif id == 0 and isinstance(reply, w.Failed):
            self._why = reply.text
            return False
        return True

    # -- jobs ---------------------------------------------------------------------------------

    def _hold(self, job: r.Job, now_s: float, subscription: Subscription | None = None) -> Held:
        held = self.held.get((job.id, job.token))
        if held is None:
            held = self.held[job.id, job.token] = Held(job, now_s, subscription)
        return held

    def is_held(self, held: Held) -> bool:
        """Neither done nor lost."""
        return self.held.get(held.key) is held

    def finish(self, held: Held, what: asks.What, now_s: float, deadline_s: float, done: Done) -> None:
        """The last ask about a job that is held: it deletes, releases, fails or buries it."""
        if held.lost:
            done(LostReservation(f"job {held.job.id} is held no more: another worker may have it"))
            return
        is_first = self.held.pop(held.key, None) is not None
        if not is_first and not held.is_unanswered:
            done(Refused(f"job {held.job.id} is done already"))
            return
        held.is_unanswered = False

        def answered(result: object) -> None:
            if is_first:
                self._returned(held)
            held.is_unanswered = isinstance(result, Unreachable | OutcomeUnknown | TimedOut)
            if isinstance(result, r.Missed) and result.jobs:
                held.lost = True
                result = LostReservation(f"job {held.job.id} is held no more: another worker may have it")
            done(result)

        self.ask(what, now_s, deadline_s, answered)

    def about(self, held: Held, what: asks.What, now_s: float, deadline_s: float, done: Done) -> None:
        """An ask about a job that stays held: it touches it."""

        def answered(result: object) -> None:
            if isinstance(result, r.Missed) and result.jobs:
                self._lose(held)
                result = LostReservation(f"job {held.job.id} is held no more: another worker may have it")
            done(result)

        if not self.is_held(held):
            done(LostReservation(f"job {held.job.id} is held no more"))
        else:
            self.ask(what, now_s, deadline_s, answered)

    def _give_back(self, result: object) -> None:
        """Jobs that came too late."""
        if isinstance(result, r.Jobs):
            self._release([(job.id, job.token) for job in result.jobs])

    def _release(self, keys: list[asks.Held]) -> None:
        for key in keys:
            self.held.pop(key, None)
        if keys:
            self._ask(asks.Release(keys), self._said_s + _MEMBERS_S, _ignore)

    def unwanted(self, result: object) -> None:
        """Nobody waits for this any more: jobs that it gives are given back."""
        self._give_back(result)

    def forget(self, done: Done, now_s: float) -> None:
        """The caller wants nothing more of what it asked with this callback. What was not sent yet is not asked; a reserve ends."""
        for asked in [asked for asked in self._unsent if asked.done is done]:
            self._unsent.remove(asked)
        for id, asked in self._waiting.items():
            if asked.done is done:
                asked.done = self._give_back
                self._ask(asks.Cancel(id), now_s + _MEMBERS_S, _ignore)
        for asked in self._asked.values():
            if asked.done is done:
                asked.done = self._give_back if isinstance(asked.what, asks.Reserve) else _ignore
        self._send(now_s)

    def give_all_back(self, now_s: float) -> None:
        """Release whatever is held, uncounted."""
        keys = list(self.held)
        for start in range(0, len(keys), JOBS_PER_ASK):
            self._release(keys[start : start + JOBS_PER_ASK])
        self._send(now_s)

    # -- subscriptions ------------------------------------------------------------------------

    def subscribe(self, subscription: Subscription, now_s: float) -> None:
        if self._is_attached:
            self._subscribe(subscription)
            self._send(now_s)
        else:
            self._unsubscribed.append(subscription)

    def _subscribe(self, subscription: Subscription) -> None:
        def answered(reply: object) -> None:
            if isinstance(reply, r.Subscribed):
                return
            if isinstance(reply, OutcomeUnknown):
                return  # the session has ended: it is asked for again in the next
            self._subscriptions.pop(subscription.id, None)
            subscription.id = 0
            subscription.error = reply if isinstance(reply, RaftdError) else Refused("this client has too many subscriptions")
            subscription.arrived()

        # Its id must be known before anything is pushed, so it gets one at once.
        asked = _Asked(asks.Subscribe(subscription.tubes, subscription.prefetch), float("inf"), answered)
        asked.id = subscription.id = self._new_id()
        asked.was_sent = True
        self._asked[asked.id] = asked
        self._subscriptions[asked.id] = subscription
        self._say(self._request(asked), self._said_s)

    def _pushed(self, id: int, pushed: r.Pushed, now_s: float) -> None:
        subscription = self._subscriptions.get(id)
        if subscription is None or subscription.is_closed:
            held = self._hold(pushed.job, now_s)
            self._release([held.key])
            return
        if pushed.number <= subscription.received:
            return  # it has arrived before the connection was lost
        subscription.received = pushed.number
        subscription.unconfirmed_bytes += len(pushed.job.body)
        subscription.ready.append(self._hold(pushed.job, now_s, subscription))
        if subscription.unconfirmed_bytes >= _CONFIRM_BYTES:
            self._flow(subscription)
        subscription.arrived()

    def _returned(self, held: Held) -> None:
        """One of the jobs of a subscription is done: another may come. Credit is given for several at a time, or with the next tick."""
        subscription = held.subscription
        if subscription is None or subscription.is_closed or subscription.id != held.subscribed:
            return
        subscription.returned += 1
        if subscription.returned >= max(1, subscription.prefetch // 2):
            self._flow(subscription)

    def _flow(self, subscription: Subscription) -> None:
        credit, subscription.returned, subscription.unconfirmed_bytes = subscription.returned, 0, 0
        if subscription.id:
            self._ask(asks.Flow(subscription.id, subscription.received, credit), float("inf"), _ignore)

    def unsubscribe(self, subscription: Subscription, now_s: float) -> None:
        """No more jobs; what was not taken is released, uncounted."""
        subscription.is_closed = True
        keys = [held.key for held in subscription.ready]
        subscription.ready.clear()
        self._release(keys)
        if subscription in self._unsubscribed:
            self._unsubscribed.remove(subscription)
        if self._subscriptions.pop(subscription.id, None) is not None:
            self._ask(asks.Cancel(subscription.id), now_s + _MEMBERS_S, self._give_back_unknown(subscription))
        self._send(now_s)

    def _give_back_unknown(self, subscription: Subscription) -> Done:
        """Of the jobs that a cancelled subscription had pushed, those that have not arrived."""
        known = set(self.held)

        def answered(result: object) -> None:
            if isinstance(result, r.Jobs):
                self._release([(job.id, job.token) for job in result.jobs if (job.id, job.token) not in known])
            if not self._cancels():
                call, self._when_cancelled = self._when_cancelled, _nothing
                call()

        return answered

    def _cancels(self) -> bool:
        """Whether the end of a reserve or of a subscription has been asked for and not answered."""
        return any(isinstance(asked.what, asks.Cancel) for asked in [*self._asked.values(), *self._unsent])

    # -- the end ------------------------------------------------------------------------------

    def close(self, now_s: float, done: Done, keeps_jobs: bool = False) -> None:
        """End the session: what is held is given back, or kept for who knows its tokens. `done` is called once that is answered, or will
        not be."""
        subscriptions = [*self._subscriptions.values(), *self._unsubscribed]
        for subscription in subscriptions:
            subscription.error = Unreachable("the client is closed")
            if keeps_jobs:
                self.unsubscribe(subscription, now_s)
            subscription.is_closed = True
            subscription.ready.clear()
            subscription.arrived()
        self._unsubscribed.clear()
        if not self._session:
            self.is_closed = True  # a hello that is answered now begins nothing, for nobody would end it
            done(Unreachable("there is no session to end"))
        elif keeps_jobs and self._cancels():
            self._when_cancelled = partial(self.ask, asks.End(True), now_s, now_s + _HELLO_S, done)  # what was pushed goes back first
        else:
            self.ask(asks.End(keeps_jobs), now_s, now_s + _HELLO_S, done)

    def abandon(self) -> None:
        """Nothing will be answered any more."""
        self.is_closed = True
        rest = [*self._unsent, *self._asked.values(), *self._waiting.values()]
        self._unsent.clear()
        self._asked.clear()
        self._waiting.clear()
        for asked in rest:
            asked.done(OutcomeUnknown("the client was closed") if asked.was_sent else Unreachable("the client is closed"))
        reads, self._reads = self._reads, {}
        for read in reads.values():
            read.done(Unreachable("the client is closed"))

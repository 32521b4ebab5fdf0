"""The line protocol: bytes in, requests out; replies in, bytes out. It is beanstalkd's.

The parser holds what has arrived until it is asked for the next request, so a connection that must not
run ahead simply stops asking. Bodies that are not wanted are counted away, never kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from raftd.jobs import replies as r
from raftd.wire.buffer import Buffer

#: A line of the line listener with its CRLF, in bytes (beanstalkd's LINE_BUF_SIZE).
LINE_BYTES = 224
#: A tube's name, in bytes (beanstalkd's MAX_TUBE_NAME_LEN less its NUL).
TUBE_NAME_BYTES = 200

BAD_FORMAT = b"BAD_FORMAT\r\n"
UNKNOWN_COMMAND = b"UNKNOWN_COMMAND\r\n"
DRAINING = b"DRAINING\r\n"
NOT_FOUND = b"NOT_FOUND\r\n"
EXPECTED_CRLF = b"EXPECTED_CRLF\r\n"
JOB_TOO_BIG = b"JOB_TOO_BIG\r\n"
#: raftd's own: to a command that one may not give, and to `auth` (docs/security.md).
NOT_AUTHORIZED = b"NOT_AUTHORIZED\r\n"
AUTHORIZED = b"AUTHORIZED\r\n"

_U32 = 0xFFFF_FFFF
_U64 = 0xFFFF_FFFF_FFFF_FFFF
_LONGEST_TIMEOUT_S = 0x7FFF_FFFF
_TUBE = re.compile(rb"[A-Za-z0-9+/;.$_()][A-Za-z0-9\-+/;.$_()]{0,%d}" % (TUBE_NAME_BYTES - 1))
_NUMBER = re.compile(rb" *([0-9]+)")
_LAX_NUMBER = re.compile(rb"[ \t\n\v\f\r]*([+-]?)([0-9]+)")
_PAUSE = re.compile(rb" *([^ ]+) +([0-9]+)")
_AUTH = re.compile(rb"([!-~]+) +([!-~]+)")
_PUT = re.compile(rb" *([0-9]+) +([0-9]+) +([0-9]+) +([0-9]+)")
#: As every client writes it, with numbers that are small enough.
_COMMON_PUT = re.compile(rb"put ([0-9]{1,9}) ([0-9]{1,9}) ([0-9]{1,9}) ([0-9]{1,9})\r\n")


class Request(NamedTuple):
    """A verb with its arguments. The verb "error" has one: the line to answer with; so have "big-put" and
    "open-put", which are puts that count as such but put nothing."""

    verb: str
    args: tuple[int | str | bytes, ...] = ()


class Put(NamedTuple):
    """A put whose body is still arriving."""

    pri: int
    delay_s: int
    ttr_s: int
    size: int


def is_tube_name(name: str) -> bool:
    """Whether every listener accepts it: 1–200 of A-Za-z0-9-+/;.$_() and no leading dash."""
    return name.isascii() and _TUBE.fullmatch(name.encode()) is not None


def _error(line: bytes) -> Request:
    return Request("error", (line,))


def _no_argument(verb: str) -> Callable[[bytes], Request]:
    def parse(rest: bytes) -> Request:
        return Request(verb) if not rest else _error(BAD_FORMAT)

    return parse


def _tube(verb: str) -> Callable[[bytes], Request]:
    def parse(rest: bytes) -> Request:
        return Request(verb, (rest.decode(),)) if _TUBE.fullmatch(rest) else _error(BAD_FORMAT)

    return parse


def _number(verb: str, most: int) -> Callable[[bytes], Request]:
    def parse(rest: bytes) -> Request:
        match = _NUMBER.fullmatch(rest)
        if match is None or int(match[1]) > most:
            return _error(BAD_FORMAT)
        return Request(verb, (int(match[1]),))

    return parse


def _numbers(verb: str, pattern: re.Pattern[bytes]) -> Callable[[bytes], Request]:
    """A job's id, then numbers of 32 bits."""

    def parse(rest: bytes) -> Request:
        match = pattern.fullmatch(rest)
        if match is None:
            return _error(BAD_FORMAT)
        id, *others = map(int, match.groups())
        if id > _U64 or max(others) > _U32:
            return _error(BAD_FORMAT)
        return Request(verb, (id, *others))

    return parse


def _kick(rest: bytes) -> Request:
    """beanstalkd reads this one number with C's strtoul, into 32 bits: signs, any white space, and what follows."""
    match = _LAX_NUMBER.match(rest)
    if match is None or int(match[2]) > _U64:
        return _error(BAD_FORMAT)
    value = -int(match[2]) if match[1] == b"-" else int(match[2])
    return Request("kick", (value & _U32,))


def _pause_tube(rest: bytes) -> Request:
    match = _PAUSE.fullmatch(rest)
    if match is None or not _TUBE.fullmatch(match[1]) or int(match[2]) > _U32:
        return _error(BAD_FORMAT)
    return Request("pause-tube", (match[1].decode(), int(match[2])))


def _auth(rest: bytes) -> Request:
    match = _AUTH.fullmatch(rest)
    return Request("auth", (match[1].decode(), match[2].decode())) if match is not None else _error(BAD_FORMAT)


#: Commands match by prefix, in this order; where the space is part of it, the verb without it is unknown.
_VERBS: list[tuple[bytes, Callable[[bytes], Request]]] = [
    (b"peek ", _number("peek", _U64)),
    (b"peek-ready", _no_argument("peek-ready")),
    (b"peek-delayed", _no_argument("peek-delayed")),
    (b"peek-buried", _no_argument("peek-buried")),
    (b"reserve-with-timeout ", _number("reserve-with-timeout", _LONGEST_TIMEOUT_S)),
    (b"reserve-job ", _number("reserve-job", _U64)),
    (b"reserve", _no_argument("reserve")),
    (b"delete ", _number("delete", _U64)),
    (b"release ", _numbers("release", re.compile(rb" *([0-9]+) +([0-9]+) +([0-9]+)"))),
    (b"bury ", _numbers("bury", re.compile(rb" *([0-9]+) +([0-9]+)"))),
    (b"kick ", _kick),
    (b"kick-job ", _number("kick-job", _U64)),
    (b"touch ", _number("touch", _U64)),
    (b"stats-job ", _number("stats-job", _U64)),
    (b"stats-tube ", _tube("stats-tube")),
    (b"stats", _no_argument("stats")),
    (b"use ", _tube("use")),
    (b"watch ", _tube("watch")),
    (b"ignore ", _tube("ignore")),
    (b"list-tubes-watched", _no_argument("list-tubes-watched")),
    (b"list-tube-used", _no_argument("list-tube-used")),
    (b"list-tubes", _no_argument("list-tubes")),
    (b"quit", lambda rest: Request("quit")),
    (b"pause-tube", _pause_tube),
    (b"auth ", _auth),
]


class LineParser:
    """`feed` bytes, then take requests with `next_request` until it gives None.

    `max_job_size` may change at any time.
    """

    def __init__(self, max_job_size: int) -> None:
        self.max_job_size = max_job_size
        self._buffer = Buffer()
        self._put: Put | None = None  # its body comes next
        self._skip = 0  # bytes of a refused body that are still to be dropped; then …
        self._after_skip: Request | None = None
        self._discarding = False  # an overlong line, up to its end

    def feed(self, data: bytes) -> None:
        self._buffer.feed(data)

    @property
    def has_input(self) -> bool:
        """Whether bytes have arrived that belong to no request so far."""
        return len(self._buffer) > 0

    def next_request(self) -> Request | None:
        """The next request that has arrived whole."""
        if self._put is None and not self._skip and self._after_skip is None and not self._discarding:
            common = self._common_put()
            if common is not None:
                return common
        while True:
            if self._skip:
                skipped = min(self._skip, len(self._buffer))
                self._buffer.skip(skipped)
                self._skip -= skipped
                if self._skip:
                    return None
            if self._after_skip is not None:
                after, self._after_skip = self._after_skip, None
                return after
            if self._put is not None:
                return self._body(self._put)
            line = self._line()
            if line is None:
                return None
            request = self._parse(line)
            if request is not None:
                return request

    def _common_put(self) -> Request | None:
        """A put in its usual form that has arrived whole, in one step: most of what producers send. None for anything else."""
        head = self._buffer.match(_COMMON_PUT)
        if head is None:
            return None
        pri, delay_s, ttr_s, size = map(int, head.groups())
        if size > self.max_job_size:
            return None
        body = self._buffer.take_behind(head, size, b"\r\n")
        return Request("put", (pri, delay_s, ttr_s, body)) if body is not None else None

    def _line(self) -> bytes | None:
        """The next line without its CRLF. An overlong one, once its end is there, comes as a NUL."""
        if not self._discarding:
            end = self._buffer.find(b"\r\n", LINE_BYTES)
            if end >= 0:
                line = self._buffer.take(end)
                self._buffer.skip(2)
                return line
            if len(self._buffer) < LINE_BYTES:
                return None
            self._discarding = True
        end = self._buffer.find(b"\r\n")
        if end < 0:
            self._buffer.skip(len(self._buffer) - 1)  # the last byte may be the CR
            return None
        self._buffer.skip(end + 2)
        self._discarding = False
        return b"\0"

    def _parse(self, line: bytes) -> Request | None:
        if b"\0" in line:
            return _error(BAD_FORMAT)
        if line.startswith(b"put "):
            return self._parse_put(line)
        for prefix, parse in _VERBS:
            if line.startswith(prefix):
                return parse(line[len(prefix) :])
        return _error(UNKNOWN_COMMAND)

    def _parse_put(self, line: bytes) -> Request | None:
        match = _PUT.match(line, len(b"put "))
        if match is None:
            return _error(BAD_FORMAT)
        pri, delay_s, ttr_s, size = map(int, match.groups())
        if max(pri, delay_s, ttr_s, size) > _U32:
            return _error(BAD_FORMAT)
        if size > self.max_job_size:
            self._skip = size + 2
            self._after_skip = Request("big-put", (JOB_TOO_BIG,))
            return None
        if match.end() != len(line):
            return _error(BAD_FORMAT)
        self._put = Put(pri, delay_s, ttr_s, size)
        return None

    def _body(self, put: Put) -> Request | None:
        if len(self._buffer) < put.size + 2:
            return None
        self._put = None
        body = self._buffer.take(put.size)
        if self._buffer.take(2) != b"\r\n":
            return Request("open-put", (EXPECTED_CRLF,))
        return Request("put", (put.pri, put.delay_s, put.ttr_s, body))


_FIXED: dict[type, bytes] = {
    r.Buried: b"BURIED\r\n",
    r.NotIgnored: b"NOT_IGNORED\r\n",
    r.TimedOut: b"TIMED_OUT\r\n",
    r.DeadlineSoon: b"DEADLINE_SOON\r\n",
    r.Deleted: b"DELETED\r\n",
    r.NotFound: NOT_FOUND,
    r.Released: b"RELEASED\r\n",
    r.Touched: b"TOUCHED\r\n",
    r.Paused: b"PAUSED\r\n",
    r.JobTooBig: JOB_TOO_BIG,
    r.OutOfMemory: b"OUT_OF_MEMORY\r\n",
    r.TubeFull: b"OUT_OF_MEMORY\r\n",
    r.OverQuota: b"OUT_OF_MEMORY\r\n",
    r.NotAuthorized: NOT_AUTHORIZED,
    r.LoggedIn: AUTHORIZED,
}


def encode_reply(reply: r.Reply) -> bytes:
    """A reply as beanstalkd writes it."""
    if type(reply) is r.Inserted:
        return b"INSERTED %d\r\n" % reply.id
    fixed = _FIXED.get(type(reply))
    if fixed is not None:
        return fixed
    match reply:
        case r.Reserved(id=id, body=body):
            return b"RESERVED %d %d\r\n%b\r\n" % (id, len(body), body)
        case r.Using(tube=tube):
            return b"USING %b\r\n" % tube.encode()
        case r.Watching(count=count):
            return b"WATCHING %d\r\n" % count
        case r.Kicked(count=kicked):
            return b"KICKED\r\n" if kicked is None else b"KICKED %d\r\n" % kicked
    raise AssertionError(f"no line for {reply!r}")


def encode_found(id: int, body: bytes) -> bytes:
    """The answer to a peek."""
    return b"FOUND %d %d\r\n%b\r\n" % (id, len(body), body)


def encode_list(names: list[str]) -> bytes:
    """The OK answer with a YAML list."""
    body = "---\n" + "".join(f"- {name}\n" for name in names)
    return b"OK %d\r\n%b\r\n" % (len(body), body.encode())


def encode_stats(pairs: list[tuple[str, int | str]]) -> bytes:
    """The OK answer with a YAML dictionary."""
    body = "---\n" + "".join(f"{key}: {value}\n" for key, value in pairs)
    return b"OK %d\r\n%b\r\n" % (len(body.encode()), body.encode())

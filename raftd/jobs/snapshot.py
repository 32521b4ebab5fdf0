"""The whole state of the queue as a sequence of pieces, and back again.

`dump` gives them one by one, each of bounded size, in an order that depends on the state alone: nodes that have applied
the same entries give the same bytes. `Loader` takes them in the same order, as slowly as the caller likes. What can be
counted (jobs by state, who uses a tube) is counted again, and timers are made anew from what they belong to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Literal, TypeVar

import msgspec

from raftd.errors import UNDECODABLE, CorruptionError, TooOld
from raftd.jobs import clients, policies
from raftd.jobs.access import Token, User
from raftd.jobs.asks import Plan
from raftd.jobs.commands import FEATURE_LEVEL, Settings
from raftd.jobs.finished import FinishedJob
from raftd.jobs.keys import Used
from raftd.jobs.machine import StateMachine
from raftd.jobs.model import NO_NODE, URGENT_PRI, ClientSession, Gateway, Job, Mark, Session, State, Tube, Wait
from raftd.jobs.policy import Death, Policy
from raftd.jobs.replies import AskReply
from raftd.jobs.rights import Grant, Login, Password, Quota, Record
from raftd.jobs.schedules import Schedule
from raftd.jobs.timers import Kind
from raftd.limits import ERROR_CHARACTERS, KEY_CHARACTERS, LIMITS

_T = TypeVar("_T")
_ITEM_BYTES = 64  # what an item costs besides its body

#: The place of `deadline_ms` in a row, behind the id and the tube.
_DEADLINE = Job.__struct_fields__.index("deadline_ms") - 2


class _Piece(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False, forbid_unknown_fields=True):
    """Tags up to 31 are used; the next is 32. `dump` gives a piece after those that it refers to, and `_End` last."""


class _Head(_Piece, frozen=True, tag=1):
    applied_index: int
    now_ms: int
    settings: Settings
    settings_index: int
    space_is_scarce: bool
    level: int
    last_id: int
    last_token: int
    total_jobs: int
    job_timeouts: int


#: name, pause_ms, pause_until_ms, total_jobs, cmd_delete, cmd_pause_tube
_TubeRow = tuple[str, int, int, int, int, int]
#: Those of `Job`, with the tube as its number, in order of creation.
_JobRow = tuple[int, int, int, int, int, bytes, int, State, int, tuple[int, int], int, int, int, int, int, int]


class _Tubes(_Piece, frozen=True, tag=2):
    rows: list[_TubeRow]


class _Jobs(_Piece, frozen=True, tag=3):
    rows: list[_JobRow]


class _Buried(_Piece, frozen=True, tag=4):
    """In order of burying."""

    tube: str
    ids: list[int]


class _Gateways(_Piece, frozen=True, tag=5):
    """node, incarnation, is_open, seq"""

    rows: list[tuple[int, int, bool, int]]


class _Session(_Piece, frozen=True, tag=6):
    """In order of opening, gateway by gateway; what it holds follows."""

    key: tuple[int, int]
    used: str
    watched: list[str]
    waiting: bool
    wait_until_ms: int
    soon_ms: int


class _Holds(_Piece, frozen=True, tag=7):
    """(job, token) of the session loaded last, in order of reserving: one may hold a million."""

    reserved: list[tuple[int, int]]


class _Waiters(_Piece, frozen=True, tag=8):
    """In order of asking."""

    tube: str
    keys: list[tuple[int, int]]


class _Closing(_Piece, frozen=True, tag=9):
    """A session that is gone and has reservations to give back; what it holds follows."""

    key: tuple[int, int]


class _Ended(_Piece, frozen=True, tag=23):
    """A session that its client has ended; what it holds follows, to be released. Level 3."""

    key: tuple[int, int]


class _Closed(_Piece, frozen=True, tag=13):
    """A session that is gone and still watches tubes; what it holds follows. Level 2."""

    key: tuple[int, int]
    incarnation: int
    used: str
    watched: list[str]
    waiting: bool
    wait_until_ms: int
    soon_ms: int


class _AllWaiters(_Piece, frozen=True, tag=14):
    """In order of asking, where sessions that are gone are among them: (node, session, incarnation). Level 2."""

    tube: str
    ids: list[tuple[int, int, int]]


class _Clients(_Piece, frozen=True, tag=17):
    """Of the sessions of clients: the number of the last, those whose connection is gone and that are not detached yet. Level 3."""

    last_number: int
    detaching: list[int]


class _Client(_Piece, frozen=True, tag=18):
    """The session of a client; its waits, its answers and what it holds follow. Level 3."""

    number: int
    token: bytes
    epoch: int
    attached_to: tuple[int, int] | None
    until_ms: int
    last_id: int


class _Wait(_Piece, frozen=True, tag=19):
    """Of the client loaded last."""

    ask: int
    tubes: list[str]
    credit: int
    is_subscription: bool
    is_suspended: bool
    until_ms: int
    pushed: int
    unconfirmed: list[tuple[int, int, int]]


#: The ask, and its reply: None for one that gave jobs, which follow as (id, token).
_AnswerRow = tuple[int, AskReply | None, list[tuple[int, int]]]


class _Answers(_Piece, frozen=True, tag=20):
    """Of the client loaded last: to asks, in their order, and to reserves that had waited."""

    rows: list[_AnswerRow]
    late: list[tuple[int, list[tuple[int, int]]]]


class _Waiting(_Piece, frozen=True, tag=21):
    """In order of asking, where clients' sessions are among those who wait: (node, session, incarnation), or (0, client, ask). Level 3."""

    tube: str
    ids: list[tuple[int, int, int]]


class _Errors(_Piece, frozen=True, tag=22):
    """(job, why the last attempt failed). Level 3."""

    rows: list[tuple[int, str]]


#: name, version, policy, next_us, limited_until_ms
_PolicyRow = tuple[str, int, Policy, int, int]
#: The job, and the fields of its `Mark`.
_MarkRow = tuple[int, int, int, bool, Death | Literal[""], int, int, str, str, int, bool]


class _Policies(_Piece, frozen=True, tag=24):
    """In order of setting. Level 4."""

    last_version: int
    died: int
    expired: int
    dropped: int
    rows: list[_PolicyRow]


class _Marks(_Piece, frozen=True, tag=25):
    """Level 4."""

    rows: list[_MarkRow]


class _Finished(_Piece, frozen=True, tag=26):
    """In order of finishing. Level 4."""

    rows: list[tuple[int, FinishedJob]]


#: The fields of a `Schedule`.
_ScheduleRow = tuple[str, int, Plan, bool, int, int, int, int, int]


class _Schedules(_Piece, frozen=True, tag=27):
    """In the order in which they last changed. Level 4."""

    last_version: int
    rows: list[_ScheduleRow]


#: name, since, password, grants, tokens, quota, jobs_us, bytes_us
_UserRow = tuple[str, int, Password | None, list[Grant], list[tuple[str, Token]], Quota, int, int]


class _User(_Piece, frozen=True, tag=28):
    """In order of adding. Level 5."""

    row: _UserRow


class _Logins(_Piece, frozen=True, tag=29):
    """((node, session), login, owner), of clients' sessions with node 0. Level 5."""

    rows: list[tuple[tuple[int, int], Login | None, str]]


class _Records(_Piece, frozen=True, tag=30):
    """Of users and members, or of tubes. Level 5."""

    is_of_tubes: bool
    rows: list[Record]


class _Unmatched(_Piece, frozen=True, tag=15):
    """Tubes with jobs for sessions that wait, in the order in which they are served. Level 2."""

    tubes: list[str]


class _Topics(_Piece, frozen=True, tag=11):
    """In order of declaring."""

    names: list[str]


class _Owners(_Piece, frozen=True, tag=31):
    """(tube, who declared it), of those that were declared by a user. Level 5."""

    rows: list[tuple[str, str]]


class _Keys(_Piece, frozen=True, tag=12):
    """In order of use."""

    rows: list[tuple[str, Used]]


class _End(_Piece, frozen=True, tag=10):
    """Nothing is missing."""


class _Directories(_Piece, frozen=True, tag=16):
    """(node, id of its data directory). Level 2."""

    rows: list[tuple[int, bytes]]


_AnyPiece = (
    _Head
    | _Tubes
    | _Jobs
    | _Buried
    | _Gateways
    | _Session
    | _Holds
    | _Waiters
    | _Closing
    | _Ended
    | _Closed
    | _AllWaiters
    | _Unmatched
    | _Clients
    | _Client
    | _Wait
    | _Answers
    | _Waiting
    | _Errors
    | _Policies
    | _Marks
    | _Finished
    | _Schedules
    | _User
    | _Logins
    | _Records
    | _Owners
    | _Directories
    | _Topics
    | _Keys
    | _End
)
_encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[_AnyPiece] = msgspec.msgpack.Decoder(_AnyPiece)


def dump(machine: StateMachine, piece_bytes: int = LIMITS.snapshot_piece_bytes) -> Iterator[bytes]:
    """The state of `machine`, which must not change meanwhile, in pieces of `piece_bytes` or of one item."""
    few = max(1, piece_bytes // _ITEM_BYTES)
    few_named = max(1, piece_bytes // (_ITEM_BYTES + KEY_CHARACTERS))
    yield _encode(
        _Head(
            machine.applied_index,
            machine.now_ms,
            machine.settings,
            machine.settings_index,
            machine.space_is_scarce,
            machine.level,
            machine.last_id,
            machine.last_token,
            machine.total_jobs,
            machine.job_timeouts,
        )
    )
    numbers = {name: number for number, name in enumerate(machine.tubes)}
    tubes = machine.tubes.values()
    rows = ((tube.name, tube.pause_ms, tube.pause_until_ms, tube.total_jobs, tube.cmd_delete, tube.cmd_pause_tube) for tube in tubes)
    for tube_rows in _several(rows, few_named):
        yield _encode(_Tubes(tube_rows))
    yield from _dump_jobs(machine, numbers, piece_bytes)
    yield from _dump_policies(machine.policies, few_named)
    for tube in tubes:
        for items in _several(tube.buried, few):
            yield _encode(_Buried(tube.name, [id for _, id in items]))
    gateways = [row for _, row in sorted(machine.gateways.items())]
    yield _encode(_Gateways([(row.node, row.incarnation, row.is_open, row.seq) for row in gateways]))
    for row in gateways:
        for session in row.sessions.values():
            waits = (session.waiting, session.wait_until_ms, session.soon_ms)
            yield _encode(_Session(session.key, session.used.name, list(session.watched), *waits))
            yield from _dump_reserved(session, few)
    yield from _dump_clients(machine.clients, few, piece_bytes)
    for gone in machine.closing:
        yield _encode(_closing_piece(gone, machine))
        yield from _dump_reserved(gone, few)
    for tube in tubes:
        yield from _dump_waiters(tube, few)
    for names in _several(machine.unmatched, few_named):
        yield _encode(_Unmatched(names))
    if machine.schedules.last_version:
        yield _encode(_Schedules(machine.schedules.last_version, []))
    yield from _dump_access(machine, few_named)
    for schedule in machine.schedules.by_name.values():  # each has a body
        yield _encode(_Schedules(machine.schedules.last_version, [msgspec.structs.astuple(schedule)]))
    if machine.directories:
        yield _encode(_Directories(sorted(machine.directories.items())))
    for names in _several(machine.topics, few_named):
        yield _encode(_Topics(names))
    for owners in _several(((name, owner) for name, owner in machine.topics.items() if owner), few_named):
        yield _encode(_Owners(owners))
    for keys in _several(machine.keys.used.items(), few_named):
        yield _encode(_Keys(keys))
    yield _encode(_End())


def _dump_waiters(tube: Tube, few: int) -> Iterator[bytes]:
    """In the oldest form that says all."""
    has_clients = any(isinstance(waiter, Wait) for waiter in tube.waiters)
    has_closed = any(isinstance(waiter, Session) and waiter.is_closed for waiter in tube.waiters)
    for waiters in _several(tube.waiters, few):
        if has_clients:
            yield _encode(_Waiting(tube.name, [waiter.id for waiter in waiters]))
        elif has_closed:
            yield _encode(_AllWaiters(tube.name, [waiter.id for waiter in waiters]))
        else:
            yield _encode(_Waiters(tube.name, [waiter.id[:2] for waiter in waiters]))


def _dump_clients(known: clients.Clients, few: int, piece_bytes: int) -> Iterator[bytes]:
    if not known.last_number:
        return
    yield _encode(_Clients(known.last_number, list(known.detaching)))
    for session in known.sessions.values():
        fields = (session.epoch, session.attached_to, session.until_ms, session.last_id)
        yield _encode(_Client(session.number, session.token, *fields))
        for wait in session.waits.values():
            tubes = [tube.name for tube in wait.tubes]
            kind = (wait.is_subscription, wait.is_suspended, wait.until_ms)
            yield _encode(_Wait(wait.ask, tubes, wait.credit, *kind, wait.pushed, list(wait.unconfirmed)))
        for rows in _several(session.answers.items(), max(1, few // 64)):  # each may name hundreds of jobs
            yield _encode(_Answers([(ask, None, kept) if isinstance(kept, list) else (ask, kept, []) for ask, kept in rows], []))
        if session.late_answers:
            yield _encode(_Answers([], sorted(session.late_answers.items())))
        yield from _dump_reserved(session, few)
    for errors in _several(sorted(known.errors.items()), max(1, piece_bytes // (_ITEM_BYTES + ERROR_CHARACTERS))):
        yield _encode(_Errors(errors))


def _dump_policies(known: policies.Policies, few: int) -> Iterator[bytes]:
    """Nothing if there never was one, for an older raftd."""
    counts = (known.last_version, known.died, known.expired, known.dropped)
    rows = ((tube.name, tube.version, tube.policy, tube.next_us, tube.limited_until_ms) for tube in known.tubes.values() if tube.policy)
    for some in _several(rows, few):
        yield _encode(_Policies(*counts, some))
    if known.last_version and not known.tubes:
        yield _encode(_Policies(*counts, []))
    for marks in _several(sorted(known.marks.items()), few):
        yield _encode(_Marks([(id, *msgspec.structs.astuple(mark)) for id, mark in marks]))
    for finished in _several(known.finished.jobs.items(), max(1, few // 64)):  # each may have a result of 4 KiB
        yield _encode(_Finished(finished))


def _dump_access(machine: StateMachine, few: int) -> Iterator[bytes]:
    for user in machine.access.users.values():
        tokens = list(user.tokens.items())
        yield _encode(_User((user.name, user.since, user.password, user.grants, tokens, user.quota, user.jobs_us, user.bytes_us)))
    lines = [
        (session.key, session.login, "")
        for _, row in sorted(machine.gateways.items())
        for session in row.sessions.values()
        if session.login is not None
    ]
    known = ((session.key, session.login, session.owner) for session in machine.clients.sessions.values() if session.owner or session.login)
    for rows in _several(chain(lines, known), few):
        yield _encode(_Logins(rows))
    for is_of_tubes, ring in ((False, machine.access.records), (True, machine.access.tube_records)):
        for records in _several(ring, few):
            yield _encode(_Records(is_of_tubes, records))


def _closing_piece(session: Session | ClientSession, machine: StateMachine) -> _Closing | _Ended | _Closed:
    if isinstance(session, ClientSession) or not session.watched:
        return _Ended(session.key) if session.releases else _Closing(session.key)
    soon, wait = ((due_ms, kind, session.id) for due_ms, kind in ((session.soon_ms, Kind.SOON), (session.wait_until_ms, Kind.WAIT)))
    # A timer of a closed session that has fired does not fire again.
    waits = (session.waiting, wait[0] if wait in machine.timers else 0, soon[0] if soon in machine.timers else 0)
    return _Closed(session.key, session.incarnation, session.used.name, list(session.watched), *waits)


def _several(items: Iterable[_T], most: int) -> Iterator[list[_T]]:
    """Yield `items` in lists of at most `most`: each makes one piece."""
    rest = iter(items)
    while some := list(islice(rest, most)):
        yield some


def _dump_jobs(machine: StateMachine, numbers: dict[str, int], piece_bytes: int) -> Iterator[bytes]:
    rows: list[_JobRow] = []
    size = 0
    for id in sorted(machine.jobs):
        job = machine.jobs[id]
        _, tube, *row = msgspec.structs.astuple(job)
        if not job.has_deadline:  # the field has no meaning then, or is a number that differs between nodes
            row[_DEADLINE] = job.burial if job.state is State.BURIED else 0
        rows.append((id, numbers[tube.name], *row))
        size += len(job.body) + _ITEM_BYTES
        if size >= piece_bytes:
            yield _encode(_Jobs(rows))
            rows, size = [], 0
    if rows:
        yield _encode(_Jobs(rows))


def _dump_reserved(session: Session | ClientSession, few: int) -> Iterator[bytes]:
    for reserved in _several(session.reserved, few):
        yield _encode(_Holds([(id, token) for token, id in reserved]))


def check_level(level: int, known_level: int) -> None:
    """Raises TooOld if a state uses features that this raftd does not know."""
    if level > known_level:
        raise TooOld(
            f"this cluster uses features of level {level}, and this raftd knows those up to level {known_level}: install a newer one"
        )


def load(pieces: Iterable[bytes], known_level: int = FEATURE_LEVEL, machine: StateMachine | None = None) -> StateMachine:
    """Return the state in a snapshot, in `machine` if one is given, which must be new. Raises CorruptionError, and TooOld if the state
    needs a newer raftd."""
    loader = Loader(machine, known_level)
    for piece in pieces:
        loader.feed(piece)
    return loader.finish()


class Loader:
    """Builds a machine from the pieces that `dump` gave, in their order."""

    def __init__(self, machine: StateMachine | None = None, known_level: int = FEATURE_LEVEL) -> None:
        """`machine`: a new one, to load into. `known_level`: the features that this raftd knows."""
        self._known_level = known_level
        self._machine = machine if machine is not None else StateMachine()
        self._tubes: list[Tube] = []
        self._session: Session | ClientSession | None = None  # loaded last
        self._detaching: list[int] = []
        self._is_whole = False

    def feed(self, piece: bytes) -> None:
        """Raises CorruptionError for what `dump` does not give, and TooOld for a state that needs a newer raftd."""
        try:
            decoded = _decoder.decode(piece)
            self._load(decoded)
        except (*UNDECODABLE, KeyError, IndexError) as error:
            raise CorruptionError(f"the snapshot holds a piece that is no part of a queue's state: {error!r}") from None

    def finish(self) -> StateMachine:
        """The machine. Raises CorruptionError if pieces are missing."""
        if not self._is_whole:
            raise CorruptionError("the snapshot ends before the state of the queue does")
        return self._machine

    def _load(self, piece: _AnyPiece) -> None:
        machine = self._machine
        match piece:
            case _Head():
                check_level(piece.level, self._known_level)  # before any piece that only a newer raftd can read
                for name in piece.__struct_fields__:
                    setattr(machine, name, getattr(piece, name))
            case _Tubes():
                for row in piece.rows:
                    self._load_tube(row)
            case _Jobs():
                for job_row in piece.rows:
                    self._load_job(job_row)
            case _Buried():
                self._load_buried(machine.tubes[piece.tube], piece.ids)
            case _Gateways():
                for node, incarnation, is_open, seq in piece.rows:
                    gateway = machine.gateways[node] = Gateway(node, incarnation)
                    gateway.is_open, gateway.seq = is_open, seq
            case _Session():
                self._load_session(piece)
            case _Holds():
                if self._session is None:
                    raise KeyError("no session")
                self._load_holds(self._session, piece.reserved)
            case _Waiters():
                waiters = machine.tubes[piece.tube].waiters
                for node, number in piece.keys:
                    waiters[machine.gateways[node].sessions[number]] = None
            case _AllWaiters():
                waiters = machine.tubes[piece.tube].waiters
                for node, number, incarnation in piece.ids:
                    closed = machine.closed.get((node, number, incarnation))
                    waiters[closed or machine.gateways[node].sessions[number]] = None
            case _Clients() | _Client() | _Wait() | _Answers() | _Waiting() | _Errors():
                self._load_client_piece(piece)
            case _Closing() | _Ended():
                self._session = self._closing_session(piece.key, 0)
                self._session.watched = {}
                self._session.releases = isinstance(piece, _Ended)
            case _Closed():
                self._session = session = self._closing_session(piece.key, piece.incarnation)
                machine.closed[session.id] = session
                self._load_watching(session, piece)
            case _Unmatched():
                machine.unmatched.update((name, machine.tubes[name]) for name in piece.tubes)
            case _Policies():
                known = machine.policies
                known.last_version, known.died, known.expired, known.dropped = piece.last_version, piece.died, piece.expired, piece.dropped
                for policy_row in piece.rows:
                    self._load_policy(policy_row)
            case _Marks():
                for mark_row in piece.rows:
                    self._load_mark(machine.jobs[mark_row[0]], Mark(*mark_row[1:]))
            case _Finished():
                for id, finished in piece.rows:
                    machine.policies.finished.add(id, finished)
            case _Schedules():
                machine.schedules.last_version = piece.last_version
                for schedule_row in piece.rows:
                    machine.schedules.add(Schedule(*schedule_row))
            case _User(row=row):
                name, since, password, grants, tokens, quota, jobs_us, bytes_us = row
                machine.access.replace(name, User(name, since, password, grants, dict(tokens), quota, jobs_us, bytes_us))
            case _Logins():
                for (node, number), login, owner in piece.rows:
                    if node == NO_NODE:
                        client = machine.clients.sessions[number]
                        client.login, client.owner = login, owner
                    else:
                        machine.gateways[node].sessions[number].login = login
            case _Records():
                ring = machine.access.tube_records if piece.is_of_tubes else machine.access.records
                ring.extend(piece.rows)
            case _Directories():
                machine.directories.update(piece.rows)
            case _Topics():
                machine.topics.update(dict.fromkeys(piece.names, ""))
                for name in piece.names:
                    machine.tubes[name].is_declared = True
            case _Owners():
                for name, owner in piece.rows:
                    machine.declare_for(name, owner)
            case _Keys():
                machine.keys.used.update(piece.rows)
            case _End():
                machine.clients.detaching.update((number, machine.clients.sessions[number]) for number in self._detaching)
                self._is_whole = True

    def _load_client_piece(self, piece: _Clients | _Client | _Wait | _Answers | _Waiting | _Errors) -> None:
        machine, known = self._machine, self._machine.clients
        match piece:
            case _Clients():
                known.last_number = piece.last_number
                self._detaching = piece.detaching
            case _Client():
                self._session = session = ClientSession(piece.number, piece.token)
                session.epoch, session.attached_to = piece.epoch, piece.attached_to
                session.until_ms, session.last_id = piece.until_ms, piece.last_id
                known.add(session)
                if session.attached_to is not None:
                    node, number = session.attached_to
                    machine.gateways[node].attached[number] = session
                if session.until_ms:
                    machine.timers.add((session.until_ms, Kind.DETACHED, session.number))
            case _Wait():
                self._load_wait(self._client(), piece)
            case _Answers():
                self._client().answers.update((ask, jobs if reply is None else reply) for ask, reply, jobs in piece.rows)
                self._client().late_answers.update(piece.late)
            case _Waiting():
                waiters = machine.tubes[piece.tube].waiters
                for node, number, of in piece.ids:
                    if node == NO_NODE:
                        waiters[known.sessions[number].waits[of]] = None
                    else:
                        waiters[machine.closed.get((node, number, of)) or machine.gateways[node].sessions[number]] = None
            case _Errors():
                known.errors.update(piece.rows)

    def _client(self) -> ClientSession:
        if not isinstance(self._session, ClientSession):
            raise KeyError("no client")
        return self._session

    def _load_wait(self, session: ClientSession, piece: _Wait) -> None:
        machine = self._machine
        wait = Wait(session, piece.ask, [machine.tubes[name] for name in piece.tubes], piece.credit, piece.is_subscription)
        wait.is_suspended, wait.until_ms, wait.pushed = piece.is_suspended, piece.until_ms, piece.pushed
        wait.unconfirmed.extend(piece.unconfirmed)
        wait.unconfirmed_bytes = sum(size for _, _, size in piece.unconfirmed)
        session.waits[piece.ask] = wait
        clients.count_watching(machine, wait)
        if wait.until_ms:
            machine.timers.add((wait.until_ms, Kind.ASK, wait.id))

    def _load_tube(self, row: _TubeRow) -> None:
        tube = self._machine.tube(row[0])
        _, tube.pause_ms, tube.pause_until_ms, tube.total_jobs, tube.cmd_delete, tube.cmd_pause_tube = row
        self._tubes.append(tube)
        if tube.pause_until_ms:
            self._machine.timers.add((tube.pause_until_ms, Kind.PAUSE, tube.name))

    def _load_policy(self, row: _PolicyRow) -> None:
        tube = self._machine.policies.tubes[row[0]] = self._machine.tubes[row[0]]
        _, tube.version, tube.policy, tube.next_us, tube.limited_until_ms = row
        if tube.limited_until_ms:
            self._machine.timers.add((tube.limited_until_ms, Kind.RATE, tube.name))

    def _load_mark(self, job: Job, mark: Mark) -> None:
        self._machine.policies.marks[job.id] = mark
        policies.count_dead(self._machine, job.tube, mark.death != "")
        if mark.unique:
            self._machine.policies.unique[job.tube.name, mark.unique] = job
        if mark.expires_ms and not mark.is_over:
            self._machine.timers.add((mark.expires_ms, Kind.EXPIRE, job.id))

    def _load_job(self, row: _JobRow) -> None:
        machine = self._machine
        id, tube = row[0], self._tubes[row[1]]
        job = machine.jobs[id] = Job(id, tube, *row[2:])
        tube.jobs += 1
        tube.bytes += len(job.body)
        counts = machine.counts
        if job.state is State.READY:
            tube.ready.add((job.pri, id))
            counts.ready += 1
            if job.pri < URGENT_PRI:
                tube.urgent += 1
                counts.urgent += 1
        elif job.state is State.DELAYED:
            tube.delayed.add((job.deadline_ms, id))
            counts.delayed += 1
            machine.timers.add((job.deadline_ms, Kind.DELAY, id))
        elif job.state is State.RESERVED:
            tube.reserved += 1
            counts.reserved += 1
            machine.timers.add((job.deadline_ms, Kind.TTR, id))
        else:
            counts.buried += 1

    def _load_buried(self, tube: Tube, ids: list[int]) -> None:
        """Numbers in the order of burying that do not say when that was are not in the snapshot: the order is."""
        for id in ids:
            last = tube.buried.greatest()
            job = self._machine.jobs[id]
            job.deadline_ms = max(job.deadline_ms, last[0] + 1 if last is not None else 1)
            tube.buried.add((job.deadline_ms, id))

    def _load_holds(self, session: Session | ClientSession, reserved: list[tuple[int, int]]) -> None:
        jobs = self._machine.jobs
        for id, token in reserved:
            if session.is_closed:  # another session may hold it by now, or it is gone
                session.reserved.add((token, id))
            elif jobs[id].token == token:
                session.add_reservation(jobs[id], jobs)
            else:
                raise KeyError(f"job {id} is not held by token {token}")

    def _load_session(self, piece: _Session) -> None:
        machine, key = self._machine, piece.key
        gateway = machine.gateways[key[0]]
        self._session = gateway.sessions[key[1]] = Session(key, gateway.incarnation, machine.tubes[piece.used])
        gateway.waiting += piece.waiting
        self._load_watching(self._session, piece)

    def _closing_session(self, key: tuple[int, int], incarnation: int) -> Session:
        session = Session(key, incarnation, self._machine.default)
        session.is_closed = True
        self._machine.closing.append(session)
        return session

    def _load_watching(self, session: Session, piece: _Session | _Closed) -> None:
        machine = self._machine
        session.used = machine.tubes[piece.used]
        session.used.using += 1
        session.watched = {name: machine.tubes[name] for name in piece.watched}
        machine.watches += len(piece.watched)
        for tube in session.watched.values():
            tube.watching += 1
        session.waiting, session.wait_until_ms, session.soon_ms = piece.waiting, piece.wait_until_ms, piece.soon_ms
        if piece.wait_until_ms:
            machine.timers.add((piece.wait_until_ms, Kind.WAIT, session.id))
        if piece.soon_ms:
            machine.timers.add((piece.soon_ms, Kind.SOON, session.id))

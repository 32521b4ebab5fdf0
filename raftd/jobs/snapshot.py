"""The whole state of the queue as a sequence of pieces, and back again.

`dump` gives them one by one, each of bounded size, in an order that depends on the state alone: nodes that have applied
the same entries give the same bytes. `Loader` takes them in the same order, as slowly as the caller likes. What can be
counted (jobs by state, who uses a tube) is counted again, and timers are made anew from what they belong to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

import msgspec

from raftd.errors import UNDECODABLE, CorruptionError, TooOld
from raftd.jobs.commands import FEATURE_LEVEL, Settings
from raftd.jobs.keys import Used
from raftd.jobs.machine import StateMachine
from raftd.jobs.model import URGENT_PRI, Gateway, Job, Session, State, Tube
from raftd.jobs.timers import Kind
from raftd.limits import KEY_CHARACTERS, LIMITS

_T = TypeVar("_T")
_ITEM_BYTES = 64  # what an item costs besides its body

#: The place of `deadline_ms` in a row, behind the id and the tube.
_DEADLINE = Job.__struct_fields__.index("deadline_ms") - 2


class _Piece(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False, forbid_unknown_fields=True):
    """Tags up to 16 are used; the next is 17. `dump` gives a piece after those that it refers to, and `_End` last."""


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


class _Unmatched(_Piece, frozen=True, tag=15):
    """Tubes with jobs for sessions that wait, in the order in which they are served. Level 2."""

    tubes: list[str]


class _Topics(_Piece, frozen=True, tag=11):
    """In order of declaring."""

    names: list[str]


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
    | _Closed
    | _AllWaiters
    | _Unmatched
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
    for session in machine.closing:
        yield _encode(_closing_piece(session, machine))
        yield from _dump_reserved(session, few)
    for tube in tubes:
        has_closed = any(session.is_closed for session in tube.waiters)
        for sessions in _several(tube.waiters, few):
            if has_closed:
                yield _encode(_AllWaiters(tube.name, [session.id for session in sessions]))
            else:
                yield _encode(_Waiters(tube.name, [session.key for session in sessions]))
    for names in _several(machine.unmatched, few_named):
        yield _encode(_Unmatched(names))
    if machine.directories:
        yield _encode(_Directories(sorted(machine.directories.items())))
    for names in _several(machine.topics, few_named):
        yield _encode(_Topics(names))
    for keys in _several(machine.keys.used.items(), few_named):
        yield _encode(_Keys(keys))
    yield _encode(_End())


def _closing_piece(session: Session, machine: StateMachine) -> _Closing | _Closed:
    if not session.watched:
        return _Closing(session.key)
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
        if not job.has_deadline:  # the field has no meaning then, and differs between nodes
            row[_DEADLINE] = 0
        rows.append((id, numbers[tube.name], *row))
        size += len(job.body) + _ITEM_BYTES
        if size >= piece_bytes:
            yield _encode(_Jobs(rows))
            rows, size = [], 0
    if rows:
        yield _encode(_Jobs(rows))


def _dump_reserved(session: Session, few: int) -> Iterator[bytes]:
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
        self._session: Session | None = None  # loaded last
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
            case _Closing():
                self._session = self._closing_session(piece.key, 0)
                self._session.watched = {}
            case _Closed():
                self._session = session = self._closing_session(piece.key, piece.incarnation)
                machine.closed[session.id] = session
                self._load_watching(session, piece)
            case _Unmatched():
                machine.unmatched.update((name, machine.tubes[name]) for name in piece.tubes)
            case _Directories():
                machine.directories.update(piece.rows)
            case _Topics():
                machine.topics.update(dict.fromkeys(piece.names))
                for name in piece.names:
                    machine.tubes[name].is_declared = True
            case _Keys():
                machine.keys.used.update(piece.rows)
            case _End():
                self._is_whole = True

    def _load_tube(self, row: _TubeRow) -> None:
        tube = self._machine.tube(row[0])
        _, tube.pause_ms, tube.pause_until_ms, tube.total_jobs, tube.cmd_delete, tube.cmd_pause_tube = row
        self._tubes.append(tube)
        if tube.pause_until_ms:
            self._machine.timers.add((tube.pause_until_ms, Kind.PAUSE, tube.name))

    def _load_job(self, row: _JobRow) -> None:
        machine = self._machine
        id, tube = row[0], self._tubes[row[1]]
        job = machine.jobs[id] = Job(id, tube, *row[2:])
        tube.jobs += 1
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
        """Numbers in the order of burying are not in the snapshot: the order is."""
        for id in ids:
            last = tube.buried.greatest()
            job = self._machine.jobs[id]
            job.deadline_ms = last[0] + 1 if last is not None else 1
            tube.buried.add((job.deadline_ms, id))

    def _load_holds(self, session: Session, reserved: list[tuple[int, int]]) -> None:
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

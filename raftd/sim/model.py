"""The queue once more, as plainly as it can be said: no heaps, no counts kept, everything found by looking.

Written from the protocol, for checking `raftd/jobs/` against: it shares no code with it, not even the structs. Commands are
the lists that stand in the log ([tag, session, …]), answers the lists that stand for replies ([tag, …]).
"""

from __future__ import annotations

from typing import Any

import msgspec

# Tags of payloads, commands and replies, as docs/protocol.md numbers them.
BATCH, OPEN_GATEWAY, CLOSE_GATEWAY, SETTINGS, ROOM, FEATURES = 1, 2, 3, 4, 5, 6
PUT, USE, WATCH, IGNORE, RESERVE, RESERVE_JOB, DELETE = 1, 2, 3, 4, 5, 6, 7
RELEASE, BURY, TOUCH, KICK, KICK_JOB, PAUSE_TUBE, CLOSE_SESSION, DECLARE, PUT_BACK = 8, 9, 10, 11, 12, 13, 14, 15, 16
PUT_MANY, LEAVE, UNDECLARE = 17, 18, 19
INSERTED, USING, WATCHING, NOT_IGNORED, RESERVED, TIMED_OUT = 1, 3, 4, 5, 6, 7
DEADLINE_SOON, DELETED, NOT_FOUND, RELEASED, TOUCHED, KICKED, PAUSED = 8, 9, 10, 11, 12, 13, 14
BURIED, JOB_TOO_BIG, OUT_OF_MEMORY, DECLARED, INSERTED_MANY, KEY_REUSED, NOT_EMPTY = 2, 15, 16, 17, 18, 19, 20

_LEAST_TTR_MS = 1_000
_SOON_MS = 1_000
_MOST_WATCHED = 1_024
_MOST_KICKED = 4_096
_MAX_JOB_BYTES = 65_535
_KEY_WINDOW_MS = 3_600_000
_MOST_KEYS = 100_000

Key = tuple[int, int]  # node, session
Answer = tuple[int, int, list[Any]]


class Model:
    """Feed it committed entries, in order; each gives the answers it causes."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.jobs: dict[int, dict[str, Any]] = {}
        self.sessions: dict[Key, dict[str, Any]] = {}
        self.gateways: dict[int, list[Any]] = {}  # node -> [incarnation, open, seq]
        self.pauses: dict[str, int] = {}
        self.puts: dict[str, int] = {}  # how many jobs were ever put into each tube, while it exists
        self.deletes: dict[str, int] = {}
        self.max_job_bytes = _MAX_JOB_BYTES
        self.room_is_scarce = False
        self.level = 0
        self.topics: list[str] = []
        self.keys: list[tuple[str, int, bytes, list[int]]] = []  # in order of use: key, when, what was asked, ids
        #: Of every batch that took effect: (node, incarnation, seq).
        self.batches: list[tuple[int, int, int]] = []
        self.last_id = self.last_token = self.total = self.timeouts = 0
        self._order = 0  # of waits and of burying
        self._answers: list[Answer] = []
        #: For each answer of the last entry, the command that it is for, without its session.
        self.answered: list[list[Any]] = []
        #: Commands that came while their session waited for a job: no gateway sends any, but one that ends the wait.
        self.passed: list[tuple[Key, list[Any]]] = []

    # -- looking ------------------------------------------------------------------------------

    def tubes(self) -> set[str]:
        names = {"default", *self.topics} | {job["tube"] for job in self.jobs.values()}
        for session in self.sessions.values():
            names |= {session["used"], *session["watched"]}
        return names

    def in_state(self, state: str, tube: str | None = None) -> list[dict[str, Any]]:
        return [job for job in self.jobs.values() if job["state"] == state and tube in (None, job["tube"])]

    def _held_by(self, key: Key) -> list[dict[str, Any]]:
        return sorted((job for job in self.in_state("reserved") if job["holder"] == key), key=lambda job: int(job["token"]))

    def waiters(self, tube: str) -> list[Key]:
        keys = [key for key, session in self.sessions.items() if session["wait"] and tube in session["watched"]]
        return sorted(keys, key=lambda key: int(self.sessions[key]["wait"][0]))

    def _soon(self, key: Key) -> int | None:
        held = [job["deadline"] for job in self._held_by(key)]
        return min(held) - _SOON_MS if held else None

    # -- entries ------------------------------------------------------------------------------

    def entry(self, time_ms: int, data: bytes) -> list[Answer]:
        """Apply one; `data` is empty for one that only lets time pass. Raises ValueError for a log that no leader writes."""
        if time_ms < self.now_ms:
            raise ValueError(f"log time runs back from {self.now_ms} to {time_ms}")
        self.now_ms = time_ms
        self._answers, self.answered = [], []
        while (timer := self._first_due()) is not None:
            self._fire(*timer)
        if data:
            self._payload(msgspec.msgpack.decode(data))
        self._forget_tubes()
        return self._answers

    def _payload(self, payload: list[Any]) -> None:
        match payload:
            case [tag, node, incarnation] if tag == OPEN_GATEWAY:
                row = self.gateways.get(node)
                if row is None or incarnation > row[0]:
                    self._close_all(node)
                    self.gateways[node] = [incarnation, True, 0]
            case [tag, node, incarnation] if tag == CLOSE_GATEWAY:
                row = self.gateways.get(node)
                if row is not None and row[0] == incarnation and row[1]:
                    row[1] = False
                    self._close_all(node)
            case [tag, node, incarnation, seq, commands] if tag == BATCH:
                row = self.gateways.get(node)
                if row is not None and row[1] and row[0] == incarnation and seq == row[2] + 1:
                    row[2] = seq
                    self.batches.append((node, incarnation, seq))
                    for command in commands:
                        self._run(node, command)
            case [tag, max_job_bytes, _] if tag == SETTINGS:
                self.max_job_bytes = max_job_bytes
            case [tag, is_scarce] if tag == ROOM:
                self.room_is_scarce = is_scarce
            case [tag, level] if tag == FEATURES:
                self.level = max(self.level, level)
            case _:
                raise ValueError(f"an unknown payload {payload!r}")

    def _forget_tubes(self) -> None:
        for table in (self.pauses, self.puts, self.deletes):
            for name in table.keys() - self.tubes():
                del table[name]

    def _first_due(self) -> tuple[int, int, Any] | None:
        due: list[tuple[int, int, Any]] = []
        for job in self.jobs.values():
            if job["state"] in ("delayed", "reserved") and job["deadline"] <= self.now_ms:
                due.append((job["deadline"], 0 if job["state"] == "delayed" else 2, job["id"]))
        due += [(until, 1, name) for name, until in self.pauses.items() if until <= self.now_ms]
        for key, session in self.sessions.items():
            if session["wait"]:
                if session["wait"][1] is not None and session["wait"][1] <= self.now_ms:
                    due.append((session["wait"][1], 4, key))
                soon = self._soon(key)
                if soon is not None and soon <= self.now_ms:
                    due.append((soon, 3, key))
        return min(due, default=None)

    def _fire(self, due: int, kind: int, what: Any) -> None:
        if kind == 0:
            self._ready(self.jobs[what])
        elif kind == 1:
            del self.pauses[what]
            self._match(what)
        elif kind == 2:
            self.jobs[what]["timeouts"] += 1
            self.timeouts += 1
            self._ready(self.jobs[what])
        else:
            self._end_wait(what, [TIMED_OUT if kind == 4 else DEADLINE_SOON])

    def _ready(self, job: dict[str, Any]) -> None:
        job["state"] = "ready"
        self._match(job["tube"])

    def _match(self, tube: str) -> None:
        while tube not in self.pauses:
            ready, waiters = self.in_state("ready", tube), self.waiters(tube)
            if not ready or not waiters:
                return
            self._end_wait(waiters[0], self._grant(waiters[0], min(ready, key=_urgency)))

    def _answer(self, key: Key, command: list[Any], reply: list[Any]) -> None:
        self._answers.append((*key, reply))
        self.answered.append(command)

    def _end_wait(self, key: Key, reply: list[Any]) -> None:
        *_, command = self.sessions[key]["wait"]
        self.sessions[key]["wait"] = None
        self._answer(key, command, reply)

    def _grant(self, key: Key, job: dict[str, Any]) -> list[Any]:
        self.last_token += 1
        job |= {"state": "reserved", "holder": key, "token": self.last_token, "deadline": self.now_ms + job["ttr"]}
        job["reserves"] += 1
        return [RESERVED, job["id"], job["body"], self.last_token]

    def _close_all(self, node: int) -> None:
        keys = [key for key in self.sessions if key[0] == node]
        gone = [self._held_by(key) for key in keys]
        for key in keys:  # nobody of them may be given what another of them held
            del self.sessions[key]
        self._forget_tubes()
        for held in gone:
            for job in held:
                self._ready(job)

    # -- commands -----------------------------------------------------------------------------

    def _run(self, node: int, command: list[Any]) -> None:
        tag, number, *args = command
        key = (node, number)
        if tag in (CLOSE_SESSION, LEAVE):
            held = self._held_by(key)
            if tag == LEAVE:
                for job in held:
                    job["holder"] = None
                held = []
            if self.sessions.pop(key, None) is not None:
                self._forget_tubes()
                for job in held:
                    self._ready(job)
            return
        session = self.sessions.setdefault(key, {"used": "default", "watched": ["default"], "wait": None})
        if session["wait"]:
            self._end_wait(key, [TIMED_OUT])
            if [tag, *args[:1]] != [TOUCH, 0]:
                self.passed.append((key, command))
        reply = _VERBS[tag](self, key, session, *args)
        if reply is not None:
            self._answer(key, [tag, *args], reply)
        self._forget_tubes()

    def _put(self, key: Key, session: dict[str, Any], pri: int, delay_ms: int, ttr_ms: int, body: bytes, tube: str) -> list[Any]:
        if len(body) > self.max_job_bytes:
            return [JOB_TOO_BIG]
        if self.room_is_scarce:
            return [OUT_OF_MEMORY]
        return [INSERTED, self._insert(tube or session["used"], pri, delay_ms, ttr_ms, body)]

    def _insert(self, tube: str, pri: int, delay_ms: int, ttr_ms: int, body: bytes) -> int:
        self.last_id += 1
        self.total += 1
        job = self._new_job(self.last_id, tube, pri, ttr_ms, body)
        self.puts[tube] = self.puts.get(tube, 0) + 1
        self._enqueue(job, delay_ms)
        return self.last_id

    def _put_many(
        self, key: Key, session: dict[str, Any], tube: str, jobs: list[list[Any]], name: str, asked: bytes, only_topic: bool
    ) -> list[Any]:
        before = [used for used in self.known_keys() if name and used[0] == name]
        if before:
            _, what, ids = before[0]
            return [INSERTED_MANY, ids[0], len(ids), True] if what == asked else [KEY_REUSED]
        if only_topic and tube not in self.topics:
            return [NOT_FOUND]
        if any(len(body) > self.max_job_bytes for *_, body in jobs):
            return [JOB_TOO_BIG]
        if self.room_is_scarce:
            return [OUT_OF_MEMORY]
        ids = [self._insert(tube, *job) for job in jobs]
        if name:
            self.keys.append((name, self.now_ms, asked, ids))
        return [INSERTED_MANY, ids[0] if ids else self.last_id + 1, len(ids), False]

    def known_keys(self) -> list[tuple[str, bytes, list[int]]]:
        """Those of the window: key, what was asked, ids."""
        return [(name, asked, ids) for name, used, asked, ids in self.keys[-_MOST_KEYS:] if self.now_ms - used < _KEY_WINDOW_MS]

    def _undeclare(self, key: Key, session: dict[str, Any], tube: str) -> list[Any]:
        if tube not in self.topics:
            return [NOT_FOUND]
        jobs = sum(job["tube"] == tube for job in self.jobs.values())
        if jobs:
            return [NOT_EMPTY, jobs]
        self.topics.remove(tube)
        return [DELETED]

    def _new_job(self, id: int, tube: str, pri: int, ttr_ms: int, body: bytes) -> dict[str, Any]:
        job: dict[str, Any] = {"id": id, "tube": tube, "pri": pri, "ttr": max(_LEAST_TTR_MS, ttr_ms), "body": body}
        job |= {"state": "new", "deadline": 0, "holder": (0, 0), "token": 0, "buried": 0}
        job |= dict.fromkeys(("reserves", "timeouts", "releases", "buries", "kicks"), 0)
        self.jobs[id] = job
        return job

    def _declare(self, key: Key, session: dict[str, Any], tube: str) -> list[Any]:
        if tube in self.topics:
            return [DECLARED, False]
        self.topics.append(tube)
        return [DECLARED, True]

    def _put_back(self, key: Key, session: dict[str, Any], id: int, tube: str, pri: int, ttr_ms: int, body: bytes) -> list[Any]:
        if id in self.jobs or id < 1 or id > self.last_id:
            return [NOT_FOUND]
        job = self._new_job(id, tube, pri, ttr_ms, body)
        self._ready(job)
        return [INSERTED, id]

    def _enqueue(self, job: dict[str, Any], delay_ms: int) -> None:
        if delay_ms:
            job |= {"state": "delayed", "deadline": self.now_ms + delay_ms}
        else:
            self._ready(job)

    def _use(self, key: Key, session: dict[str, Any], tube: str) -> list[Any]:
        session["used"] = tube
        return [USING, tube]

    def _watch(self, key: Key, session: dict[str, Any], tube: str) -> list[Any]:
        if tube not in session["watched"]:
            if len(session["watched"]) >= _MOST_WATCHED:
                return [OUT_OF_MEMORY]
            session["watched"].append(tube)
        return [WATCHING, len(session["watched"])]

    def _ignore(self, key: Key, session: dict[str, Any], tube: str) -> list[Any]:
        if session["watched"] == [tube]:
            return [NOT_IGNORED]
        if tube in session["watched"]:
            session["watched"].remove(tube)
        return [WATCHING, len(session["watched"])]

    def _reserve(self, key: Key, session: dict[str, Any], timeout_ms: int | None) -> list[Any] | None:
        ready = [job for job in self.in_state("ready") if job["tube"] in session["watched"] and job["tube"] not in self.pauses]
        if ready:
            return self._grant(key, min(ready, key=_urgency))
        soon = self._soon(key)
        if soon is not None and soon <= self.now_ms:
            return [DEADLINE_SOON]
        if timeout_ms == 0:
            return [TIMED_OUT]
        self._order += 1
        session["wait"] = (self._order, None if timeout_ms is None else self.now_ms + timeout_ms, [RESERVE, timeout_ms])
        return None

    def _reserve_job(self, key: Key, session: dict[str, Any], id: int) -> list[Any]:
        job = self.jobs.get(id)
        return [NOT_FOUND] if job is None or job["state"] == "reserved" else self._grant(key, job)

    def _own(self, key: Key, id: int, token: int) -> dict[str, Any] | None:
        job = self.jobs.get(id)
        if job is None or job["state"] != "reserved":
            return None
        return job if (job["token"] == token if token else job["holder"] == key) else None

    def _delete(self, key: Key, session: dict[str, Any], id: int, token: int) -> list[Any]:
        job = self.jobs.get(id)
        if job is None or ((job["state"] == "reserved" or token) and self._own(key, id, token) is None):
            return [NOT_FOUND]
        del self.jobs[id]
        self.deletes[job["tube"]] = self.deletes.get(job["tube"], 0) + 1
        return [DELETED]

    def _release(self, key: Key, session: dict[str, Any], id: int, pri: int, delay_ms: int, token: int) -> list[Any]:
        job = self._own(key, id, token)
        if job is None:
            return [NOT_FOUND]
        job["pri"] = job["pri"] if pri is None else pri
        job["releases"] += 1
        self._enqueue(job, delay_ms)
        return [RELEASED]

    def _bury(self, key: Key, session: dict[str, Any], id: int, pri: int, token: int) -> list[Any]:
        job = self._own(key, id, token)
        if job is None:
            return [NOT_FOUND]
        self._order += 1
        job |= {"state": "buried", "pri": job["pri"] if pri is None else pri, "buried": self._order}
        job["buries"] += 1
        return [BURIED]

    def _touch(self, key: Key, session: dict[str, Any], id: int, token: int) -> list[Any]:
        job = self._own(key, id, token)
        if job is None:
            return [NOT_FOUND]
        job["deadline"] = self.now_ms + job["ttr"]
        return [TOUCHED]

    def _kick(self, key: Key, session: dict[str, Any], count: int) -> list[Any]:
        buried = sorted(self.in_state("buried", session["used"]), key=lambda job: int(job["buried"]))
        delayed = sorted(self.in_state("delayed", session["used"]), key=lambda job: (job["deadline"], job["id"]))
        kicked = (buried or delayed)[: max(0, min(count, _MOST_KICKED))]
        for job in kicked:
            job["kicks"] += 1
            self._ready(job)
        return [KICKED, len(kicked)]

    def _kick_job(self, key: Key, session: dict[str, Any], id: int) -> list[Any]:
        job = self.jobs.get(id)
        if job is None or job["state"] not in ("buried", "delayed"):
            return [NOT_FOUND]
        job["kicks"] += 1
        self._ready(job)
        return [KICKED, None]

    def _pause_tube(self, key: Key, session: dict[str, Any], tube: str, pause_ms: int) -> list[Any]:
        if tube not in self.tubes():
            return [NOT_FOUND]
        self.pauses.pop(tube, None)
        if pause_ms:
            self.pauses[tube] = self.now_ms + pause_ms
        else:
            self._match(tube)
        return [PAUSED]


def _urgency(job: dict[str, Any]) -> tuple[int, int]:
    return job["pri"], job["id"]


_VERBS: dict[int, Any] = {
    PUT: Model._put,
    USE: Model._use,
    WATCH: Model._watch,
    IGNORE: Model._ignore,
    RESERVE: Model._reserve,
    RESERVE_JOB: Model._reserve_job,
    DELETE: Model._delete,
    RELEASE: Model._release,
    BURY: Model._bury,
    TOUCH: Model._touch,
    KICK: Model._kick,
    KICK_JOB: Model._kick_job,
    PAUSE_TUBE: Model._pause_tube,
    DECLARE: Model._declare,
    PUT_BACK: Model._put_back,
    PUT_MANY: Model._put_many,
    UNDECLARE: Model._undeclare,
}

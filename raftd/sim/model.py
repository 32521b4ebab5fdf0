"""The queue once more, as plainly as it can be said: no heaps, no counts kept, everything found by looking.

Written from the protocol, for checking `raftd/jobs/` against: it shares no code with it, not even the structs. Commands are
the lists that stand in the log ([tag, session, …]), answers the lists that stand for replies ([tag, …]).

Where an entry's budget ends is part of what nodes must agree on, so the model counts steps too, by docs/decisions.md: Bounded work.
"""

from __future__ import annotations

from typing import Any

import msgspec

from raftd.sim import client_model as clients
from raftd.sim import policy_model as policies
from raftd.sim import schedule_model as schedules

# Tags of payloads, commands and replies, as docs/protocol.md numbers them.
BATCH, OPEN_GATEWAY, CLOSE_GATEWAY, SETTINGS, DISK_SPACE, FEATURES, DIRECTORY, TICK = 1, 2, 3, 4, 5, 6, 7, 8
PUT, USE, WATCH, IGNORE, RESERVE, RESERVE_JOB, DELETE = 1, 2, 3, 4, 5, 6, 7
RELEASE, BURY, TOUCH, KICK, KICK_JOB, PAUSE_TUBE, CLOSE_SESSION, DECLARE, PUT_BACK = 8, 9, 10, 11, 12, 13, 14, 15, 16
PUT_MANY, LEAVE, UNDECLARE, ATTACH, DETACH, ASK, SET_POLICIES, PUT_UNIQUE, REPLAY, OF_SCHEDULE = 17, 18, 19, 20, 21, 22, 23, 24, 25, 26
INSERTED, USING, WATCHING, NOT_IGNORED, RESERVED, TIMED_OUT = 1, 3, 4, 5, 6, 7
DEADLINE_SOON, DELETED, NOT_FOUND, RELEASED, TOUCHED, KICKED, PAUSED = 8, 9, 10, 11, 12, 13, 14
BURIED, JOB_TOO_BIG, OUT_OF_MEMORY, DECLARED, INSERTED_MANY, KEY_REUSED, NOT_EMPTY = 2, 15, 16, 17, 18, 19, 20

_LEAST_TTR_MS = 1_000
_SOON_MS = 1_000
_MOST_WATCHED = 1_024
_MOST_KICKED = 4_096
_MAX_JOB_BYTES = 65_535
_SESSION_TIMEOUT_MS = 5_000
_KEY_WINDOW_MS = 3_600_000
_MOST_KEYS = 100_000
_REPLAYS_LEVEL = 6

#: Steps by feature level: the rules before level 2, and since.
_OLD = {
    "entry": 4_096,
    "commands": 0,
    "left_over": 4_096,
    "command": 0,
    "timer": 1,
    "closed": 1,
    "given_back": 1,
    "granted": 0,
    "kicked": 0,
    "job": 0,
    "tube": 0,
    "paused": 0,
    "died": 0,
}
_NEW = {
    "entry": 50_000,
    "commands": 20_000,
    "left_over": 15_000,
    "command": 40,
    "timer": 40,
    "closed": 40,
    "given_back": 40,
    "granted": 40,
    "kicked": 40,
    "job": 20,
    "tube": 1,
    "paused": 30,
    "died": 40,
}

Key = tuple[int, int]  # node, session
Answer = tuple[int, int, list[Any]]


class Model:
    """Feed it committed entries, in order; each gives the answers it causes."""

    def __init__(self, steps: dict[str, int] = _NEW) -> None:
        """`steps`: what things cost since level 2."""
        self._new = steps
        self.cost = _OLD
        self.left = 0  # steps of this part of the entry, for what no command asks for itself
        #: All steps so far.
        self.steps = 0
        #: Sessions that are gone, in this order: those that still use and watch tubes, or hold jobs.
        self.closing: list[dict[str, Any]] = []
        #: Tubes with jobs for sessions that wait, and too few steps to give them.
        self.unmatched: list[str] = []
        self._silent: list[tuple[int, int, tuple[int, int, int]]] = []  # timers of closed sessions: (due, kind, who)
        self.now_ms = 0
        self.jobs: dict[int, dict[str, Any]] = {}
        self.sessions: dict[Key, dict[str, Any]] = {}
        self.gateways: dict[int, list[Any]] = {}  # node -> [incarnation, open, seq]
        self.pauses: dict[str, int] = {}
        self.pause_lengths: dict[str, int] = {}
        self.paused: dict[str, int] = {}  # how often each tube was, while it exists
        self.puts: dict[str, int] = {}  # how many jobs were ever put into each tube, while it exists
        self.deletes: dict[str, int] = {}
        self.max_job_bytes = _MAX_JOB_BYTES
        self.space_is_scarce = False
        self.level = 0
        self.topics: list[str] = []
        self.directories: dict[int, bytes] = {}
        self.keys: list[tuple[str, int, bytes, list[int]]] = []  # in order of use: key, when, what was asked, ids
        #: Of every batch that took effect: (node, incarnation, seq).
        self.batches: list[tuple[int, int, int]] = []
        self.session_timeout_ms = _SESSION_TIMEOUT_MS
        #: Sessions of clients by number, and those whose connection is gone and that still wait.
        self.clients: dict[int, dict[str, Any]] = {}
        self.detaching: list[int] = []
        self.last_client = 0
        self.errors: dict[int, str] = {}
        #: Policies by tube, and how many jobs have ended by one.
        self.policies: dict[str, dict[str, Any]] = {}
        self.last_version = 0
        #: What came of finished jobs that are retained: tube, failed attempts, when, until when, the result.
        self.finished: dict[int, tuple[str, int, int, int, bytes]] = {}
        self.schedules: dict[str, dict[str, Any]] = {}
        self.last_schedule = 0
        self.ended = {"died": 0, "expired": 0, "dropped": 0}
        #: Of every ask that took effect: (token, id, what was asked).
        self.asked: list[tuple[bytes, int, list[Any]]] = []
        self.last_id = self.last_token = self.total = self.timeouts = 0
        self._order = 0  # of waits and of burying
        self._answers: list[Answer] = []
        #: For each answer of the last entry, the command that it is for, without its session.
        self.answered: list[list[Any]] = []
        #: Commands that came while their session waited for a job: no gateway sends any, but one that ends the wait.
        self.passed: list[tuple[Key, list[Any]]] = []

    # -- looking ------------------------------------------------------------------------------

    def tubes(self) -> set[str]:
        names = {"default", *self.topics, *self.policies} | {job["tube"] for job in self.jobs.values()}
        for session in [*self.sessions.values(), *self.closing]:
            names |= {session["used"], *session["watched"]}
        for wait in self.client_waits():
            names |= set(wait["tubes"])
        return names

    def client_waits(self) -> list[dict[str, Any]]:
        """Reserves that wait, and subscriptions, of all clients."""
        return [wait for session in self.clients.values() for wait in session["waits"]]

    def in_state(self, state: str, tube: str | None = None) -> list[dict[str, Any]]:
        return [job for job in self.jobs.values() if job["state"] == state and tube in (None, job["tube"])]

    def held_by(self, key: Key) -> list[dict[str, Any]]:
        return sorted((job for job in self.in_state("reserved") if job["holder"] == key), key=lambda job: int(job["token"]))

    def waiters(self, tube: str) -> list[dict[str, Any]]:
        """Sessions, those that are gone among them, and waits of clients, in order of asking."""
        waiting = [one for one in [*self.sessions.values(), *self.closing] if one["wait"] and tube in one["watched"]]
        waiting += [wait for wait in self.client_waits() if tube in wait["orders"]]
        return sorted(waiting, key=lambda one: int(one["orders"][tube] if "orders" in one else one["wait"][0]))

    @staticmethod
    def waiter_id(waiter: dict[str, Any]) -> tuple[int, int, int]:
        return (0, waiter["client"], waiter["ask"]) if "orders" in waiter else (*waiter["key"], waiter["incarnation"])

    def _soon(self, key: Key) -> int | None:
        held = [job["deadline"] for job in self.held_by(key)]
        return min(held) - _SOON_MS if held else None

    def read(self, question: list[Any], who: Key | None, now_ms: int) -> Any:
        """What a query gives to a session at log time `now_ms`; lists of names are in any order (`sorted`)."""
        name, *args = question
        session = self.sessions.get(who or (0, 0), {"used": "default", "watched": ["default"]})
        used = session["used"]
        match name:
            case "peek":
                found = self.jobs.get(args[0])
            case "peek-ready":
                found = min(self.in_state("ready", used), key=_urgency, default=None)
            case "peek-delayed":
                found = min(self.in_state("delayed", used), key=lambda job: (job["deadline"], job["id"]), default=None)
            case "peek-buried":
                found = min(self.in_state("buried", used), key=lambda job: int(job["buried"]), default=None)
            case "list-tubes":
                return sorted(self.tubes())
            case "list-topics":
                return self.topics
            case "list-tubes-watched":
                return session["watched"]
            case "list-tube-used":
                return used
            case "stats-job":
                return self._stats_job(self.jobs[args[0]], now_ms) if args[0] in self.jobs else None
            case "stats-tube":
                return self._stats_tube(args[0], now_ms) if args[0] in self.tubes() else None
            case _:
                raise ValueError(f"no model of {question}")
        return found["body"] if found is not None else None

    @staticmethod
    def _stats_job(job: dict[str, Any], now_ms: int) -> list[list[Any]]:
        runs = job["state"] in ("delayed", "reserved")
        numbers = {"id": job["id"], "tube": f'"{job["tube"]}"', "state": job["state"], "pri": job["pri"]}
        numbers |= {"age": max(0, now_ms - job["created"]) // 1000, "delay": job["delay"] // 1000, "ttr": job["ttr"] // 1000}
        numbers |= {"time-left": max(0, job["deadline"] - now_ms) // 1000 if runs else 0, "file": 0}
        numbers |= {name: job[name] for name in ("reserves", "timeouts", "releases", "buries", "kicks")}
        return [[name, number] for name, number in numbers.items()]

    def _stats_tube(self, name: str, now_ms: int) -> list[list[Any]]:
        ready = self.in_state("ready", name)
        sessions = [*self.sessions.values(), *self.closing]
        pause, until = self.pause_lengths.get(name, 0), self.pauses.get(name)
        numbers: dict[str, Any] = {"name": f'"{name}"', "current-jobs-urgent": sum(job["pri"] < 1024 for job in ready)}
        numbers |= {f"current-jobs-{state}": len(self.in_state(state, name)) for state in ("ready", "reserved", "delayed", "buried")}
        numbers |= {"total-jobs": self.puts.get(name, 0)}
        numbers |= {"current-using": sum(session["used"] == name and bool(session["watched"]) for session in sessions)}
        watching = [session["watched"] for session in sessions] + [wait["tubes"] for wait in self.client_waits()]
        numbers |= {"current-watching": sum(name in tubes for tubes in watching)}
        numbers |= {"current-waiting": len(self.waiters(name)), "cmd-delete": self.deletes.get(name, 0)}
        numbers |= {"cmd-pause-tube": self.paused.get(name, 0), "pause": pause // 1000 if until is not None else 0}
        numbers |= {"pause-time-left": max(0, until - now_ms) // 1000 if until is not None else 0}
        return [[key, number] for key, number in numbers.items()]

    # -- entries ------------------------------------------------------------------------------

    def entry(self, time_ms: int, data: bytes) -> list[Answer]:
        """Apply one; `data` is empty for one that only lets time pass. Raises ValueError for a log that no leader writes."""
        if time_ms < self.now_ms:
            raise ValueError(f"log time runs back from {self.now_ms} to {time_ms}")
        self.now_ms = time_ms
        self._answers, self.answered = [], []
        self.cost = self._new if self.level >= 2 else _OLD
        self.left = self.cost["left_over"]
        self._match_left_over()
        while self.left > 0 and (timer := self._first_due()) is not None:
            self.spend(self.cost["timer"])
            self._fire(*timer)
            self.forget_tubes()  # a command of this entry may make one of them again
        self._close_sessions()
        self.forget_tubes()
        self.left += self.cost["entry"] - self.cost["commands"] - self.cost["left_over"]
        if data:
            self._payload(msgspec.msgpack.decode(data))
            self._close_sessions()
        self.forget_tubes()
        return self._answers

    @property
    def has_left_over(self) -> bool:
        """Whether the next entry has something to do before its commands, without any time passing."""
        return bool(self.closing or self.detaching or self.unmatched or self._first_due() is not None)

    def spend(self, steps: int) -> None:
        self.left -= steps
        self.steps += steps

    def _payload(self, payload: list[Any]) -> None:
        match payload:
            case [tag, node, incarnation] if tag == OPEN_GATEWAY:
                row = self.gateways.get(node)
                if row is None or incarnation > row[0]:
                    self._close_gateway(node)
                    self.gateways[node] = [incarnation, True, 0]
            case [tag, node, incarnation] if tag == CLOSE_GATEWAY:
                row = self.gateways.get(node)
                if row is not None and row[0] == incarnation and row[1]:
                    row[1] = False
                    self._close_gateway(node)
            case [tag, node, incarnation, seq, commands] if tag == BATCH:
                row = self.gateways.get(node)
                if row is not None and row[1] and row[0] == incarnation and seq == row[2] + 1:
                    row[2] = seq
                    self.batches.append((node, incarnation, seq))
                    for command in commands:
                        self._run(node, command)
            case [tag, max_job_bytes, session_timeout_ms] if tag == SETTINGS:
                self.max_job_bytes, self.session_timeout_ms = max_job_bytes, session_timeout_ms
            case [tag, is_scarce] if tag == DISK_SPACE:
                self.space_is_scarce = is_scarce
            case [tag, level] if tag == FEATURES:
                self.level = max(self.level, level)
            case [tag, node, directory_id] if tag == DIRECTORY:
                self.directories.setdefault(node, directory_id)
            case [tag, *of_schedule] if tag == TICK:
                self.steps += self.cost["command"] + self.cost["job"]
                schedules.tick(self, *of_schedule)
            case _:
                raise ValueError(f"an unknown payload {payload!r}")

    def _is_taken(self, who: tuple[int, int, int]) -> bool:
        """By a session that is gone, and still watches tubes."""
        return any(one["watched"] and (*one["key"], one["incarnation"]) == who for one in self.closing)

    def forget_tubes(self) -> None:
        there = self.tubes()
        self.spend(len(self.pauses.keys() - there) * self.cost["paused"])
        for table in (self.pauses, self.pause_lengths, self.paused, self.puts, self.deletes):
            for name in table.keys() - there:
                del table[name]
        self.unmatched = [name for name in self.unmatched if name in there]

    def _first_due(self) -> tuple[int, int, Any] | None:
        return next((timer for timer in self.timers() if timer[0] <= self.now_ms), None)

    def timers(self) -> list[tuple[int, int, Any]]:
        """All that may fire, in order."""
        found: list[tuple[int, int, Any]] = list(self._silent)
        for job in self.jobs.values():
            if job["state"] in ("delayed", "reserved"):
                found.append((job["deadline"], 0 if job["state"] == "delayed" else 2, job["id"]))
            if job["expires"] and not job["over"]:
                found.append((job["expires"], 8, job["id"]))
        found += [(until, 1, name) for name, until in self.pauses.items()]
        found += [(policy["limited"], 7, name) for name, policy in self.policies.items() if policy["limited"] is not None]
        for session in self.sessions.values():
            found += self._timers_of(session)
        for wait in self.client_waits():
            found += [(wait["until"], 5, (0, wait["client"], wait["ask"]))] if wait["until"] is not None else []
        found += [(client["until"], 6, number) for number, client in self.clients.items() if client["until"] is not None]
        return sorted(found)

    @staticmethod
    def _timers_of(session: dict[str, Any]) -> list[tuple[int, int, tuple[int, int, int]]]:
        """Of one that waits: when its reserve times out, and when it is warned, as far as that was known when last looked."""
        if not session["wait"]:
            return []
        who = (*session["key"], session["incarnation"])
        timers = [] if session["wait"][1] is None else [(session["wait"][1], 4, who)]
        return timers if session["warn"] is None else [*timers, (session["warn"], 3, who)]

    def _fire(self, due: int, kind: int, what: Any) -> None:
        if kind == 0:
            self._ready(self.jobs[what])
        elif kind == 1:
            del self.pauses[what]
            self.match(what)
        elif kind == 2:
            self.jobs[what]["timeouts"] += 1
            self.timeouts += 1
            policies.failed(self, self.jobs[what], 0)
        elif kind == 5:
            clients.time_is_over(self, *what[1:])
        elif kind == 6:
            clients.end(self, self.clients[what])
        elif kind == 7:
            self.policies[what]["limited"] = None
            self.match(what)
        elif kind == 8:
            policies.time_is_over(self, self.jobs[what])
        elif (due, kind, what) in self._silent:
            self._silent.remove((due, kind, what))
        else:
            key = what[:2]
            soon = self._soon(key)
            if kind == 3 and soon != due:
                self.sessions[key]["warn"] = soon  # what it held was touched or taken meanwhile
            else:
                self._end_wait(self.sessions[key], reply=[TIMED_OUT if kind == 4 else DEADLINE_SOON])

    def _ready(self, job: dict[str, Any]) -> None:
        job["state"] = "ready"
        self.match(job["tube"])

    def is_held_back(self, tube: str) -> bool:
        return tube in self.pauses or tube in self.unmatched or policies.holds_back(self, tube)

    def match(self, tube: str) -> None:
        while not self.is_held_back(tube):
            ready, waiters = self.in_state("ready", tube), self.waiters(tube)
            if not ready or not waiters:
                return
            if self.left <= 0 and self.cost["granted"]:
                self.unmatched.append(tube)
                return
            if "orders" in waiters[0]:
                clients.serve(self, tube, waiters[0], min(ready, key=_urgency))
                continue
            if waiters[0] in self.closing:
                self._detach(waiters[0])
                continue
            self._end_wait(waiters[0], min(ready, key=_urgency))

    def _match_left_over(self) -> None:
        while self.unmatched and self.left > 0:
            self.match(self.unmatched.pop(0))

    def next_order(self) -> int:
        self._order += 1
        return self._order

    def answer(self, key: Key, command: list[Any], reply: list[Any]) -> None:
        self._answers.append((*key, reply))
        self.answered.append(command)

    def _end_wait(self, session: dict[str, Any], job: dict[str, Any] | None = None, reply: list[Any] | None = None) -> None:
        """With this job, or this reply; a session that is gone hears nothing."""
        self.spend(len(session["watched"]) * self.cost["tube"])
        *_, command = session["wait"]
        session["wait"] = session["warn"] = None
        if job is not None:
            reply = self.grant(session["key"], job)
        if reply is not None:
            self.answer(session["key"], command, reply)

    def grant(self, key: Key, job: dict[str, Any]) -> list[Any]:
        self.spend(self.cost["granted"])
        self.last_token += 1
        job |= {"state": "reserved", "holder": key, "token": self.last_token, "deadline": self.now_ms + job["ttr"]}
        job["reserves"] += 1
        policies.granted(self, job["tube"])
        policies.reserved(job)
        return [RESERVED, job["id"], job["body"], self.last_token]

    def _close_gateway(self, node: int) -> None:
        gone = [self.sessions.pop(key) for key in list(self.sessions) if key[0] == node]
        for session in gone:  # none of them may get what another of them held
            self.close(session)
        if self.cost is _OLD:
            for session in gone:
                self._detach(session)
        for client in sorted(self.clients.values(), key=lambda client: client["at"] or (0, 0)):
            if client["at"] is not None and client["at"][0] == node:
                clients.detach(self, client)

    def close(self, session: dict[str, Any]) -> None:
        held = self.held_by(session["key"])
        session["held"] = [(job, job["token"]) for job in held]
        for job in held:
            job["holder"] = None  # no session of this key is it any more
        self._silent += self._timers_of(session)
        self.closing.append(session)

    def _close_sessions(self) -> None:
        clients.suspend_detached(self)
        while self.closing and self.left > 0:
            session = self.closing[0]
            if session["watched"]:
                self._detach(session)
            elif session["held"]:
                self.spend(self.cost["given_back"])
                held, token = session["held"].pop(0)
                if held in self.in_state("reserved") and held["token"] == token:
                    if session.get("releases", False):
                        held["releases"] += 1
                        policies.back(self, held, 0)
                    else:
                        policies.failed(self, held, 0)
            else:
                self.spend(self.cost["closed"])
                self.closing.pop(0)

    def _detach(self, session: dict[str, Any]) -> None:
        if session["wait"]:
            who = (*session["key"], session["incarnation"])
            self._silent = [timer for timer in self._silent if timer[2] != who]
            self._end_wait(session)
        self.spend(len(session["watched"]) * self.cost["tube"])
        session["watched"], session["used"] = [], "default"
        self.forget_tubes()

    # -- commands -----------------------------------------------------------------------------

    def _run(self, node: int, command: list[Any]) -> None:
        tag, number, *args = command
        key = (node, number)
        if tag in (CLOSE_SESSION, LEAVE):
            session = self.sessions.pop(key, None)
            if session is not None:
                if tag == LEAVE:
                    for job in self.held_by(key):
                        job["holder"] = None
                self.close(session)
                if self.cost is _OLD:
                    self._detach(session)
                self._close_sessions()
            return
        if tag == ATTACH:
            clients.attach(self, node, number, *args)
            return
        if tag == DETACH:
            client = clients.attached(self, node, number)
            if client is not None:
                clients.detach(self, client)
            self._close_sessions()
            return
        self.steps += self.cost["command"]
        if tag == ASK:
            clients.ask(self, node, number, *args)
            self.forget_tubes()
            return
        if key not in self.sessions and self._is_taken((*key, self.gateways[node][0])):
            return
        session = self.sessions.setdefault(
            key,
            {
                "key": key,
                "incarnation": self.gateways[node][0],
                "used": "default",
                "watched": ["default"],
                "wait": None,
                "warn": None,
                "held": [],
            },
        )
        if session["wait"]:
            self._end_wait(session, reply=[TIMED_OUT])
            if [tag, *args[:1]] != [TOUCH, 0]:
                self.passed.append((key, command))
        reply = _VERBS[tag](self, key, session, *args)
        if reply is not None:
            self.answer(key, [tag, *args], reply)
        self.forget_tubes()

    def _put(self, key: Key, session: dict[str, Any], pri: int, delay_ms: int, ttr_ms: int, body: bytes, tube: str) -> list[Any]:
        if len(body) > self.max_job_bytes:
            return [JOB_TOO_BIG]
        if self.space_is_scarce:
            return [OUT_OF_MEMORY]
        tube = tube or session["used"]
        if not policies.make_room(self, tube, 1, len(body)):
            return [policies.TUBE_FULL]
        return [INSERTED, self.insert(tube, pri, delay_ms, ttr_ms, body)]

    def _put_unique(self, key: Key, session: dict[str, Any], tube: str, job: list[Any], unique: list[Any], name: str, asked: bytes) -> Any:
        return self._put_many(key, session, tube, [job], name, asked, False, unique)

    def insert(self, tube: str, pri: int, delay_ms: int, ttr_ms: int, body: bytes, unique: list[Any] | None = None) -> int:
        self.last_id += 1
        self.total += 1
        job = self._new_job(self.last_id, tube, pri, ttr_ms, body)
        self.puts[tube] = self.puts.get(tube, 0) + 1
        job["delay"] = delay_ms
        policies.entered(self, job)
        if unique is not None:
            policies.make_only(self, job, *unique)
        self.enqueue(job, delay_ms)
        return self.last_id

    def _put_many(
        self,
        key: Key,
        session: dict[str, Any],
        tube: str,
        jobs: list[list[Any]],
        name: str,
        asked: bytes,
        only_topic: bool,
        unique: list[Any] | None = None,
    ) -> list[Any]:
        before = [used for used in self.known_keys() if name and used[0] == name]
        if before:
            _, what, ids = before[0]
            return [INSERTED_MANY, ids[0], len(ids), True] if what == asked else [KEY_REUSED]
        if only_topic and tube not in self.topics:
            return [NOT_FOUND]
        if any(len(body) > self.max_job_bytes for *_, body in jobs):
            return [JOB_TOO_BIG]
        if self.space_is_scarce:
            return [OUT_OF_MEMORY]
        self.steps += len(jobs) * self.cost["job"]
        other = policies.only_one(self, tube, unique[0]) if unique is not None else None
        if other is not None:
            if name:
                self.keys.append((name, self.now_ms, asked, [other["id"]]))
            return [INSERTED_MANY, other["id"], 1, True]
        if not policies.make_room(self, tube, len(jobs), sum(len(body) for *_, body in jobs)):
            return [policies.TUBE_FULL]
        ids = [self.insert(tube, pri, delay_ms, ttr_ms, body, unique) for pri, delay_ms, ttr_ms, body in jobs]
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
        job |= {"created": self.now_ms, "delay": 0}
        job |= {"state": "new", "deadline": 0, "holder": (0, 0), "token": 0, "buried": 0, "buried since": 0}
        job |= dict.fromkeys(("reserves", "timeouts", "releases", "buries", "kicks"), 0) | policies.new_job()
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
        self.finished.pop(id, None)
        policies.entered(self, job)
        self._ready(job)
        return [INSERTED, id]

    def enqueue(self, job: dict[str, Any], delay_ms: int) -> None:
        if delay_ms:
            job |= {"state": "delayed", "deadline": self.now_ms + delay_ms}
            self._left(job["tube"])
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
        self.steps += len(session["watched"]) * self.cost["tube"]
        watched = [tube for tube in session["watched"] if not self.is_held_back(tube)]
        ready = [job for job in self.in_state("ready") if job["tube"] in watched]
        if ready:
            return self.grant(key, min(ready, key=_urgency))
        soon = self._soon(key)
        if soon is not None and soon <= self.now_ms:
            return [DEADLINE_SOON]
        if timeout_ms == 0:
            return [TIMED_OUT]
        self.steps += len(session["watched"]) * self.cost["tube"]
        self._order += 1
        session["wait"] = (self._order, None if timeout_ms is None else self.now_ms + timeout_ms, [RESERVE, timeout_ms])
        session["warn"] = soon
        return None

    def _reserve_job(self, key: Key, session: dict[str, Any], id: int) -> list[Any]:
        job = self.jobs.get(id)
        return [NOT_FOUND] if job is None or job["state"] == "reserved" else self.grant(key, job)

    def own(self, key: Key, id: int, token: int) -> dict[str, Any] | None:
        job = self.jobs.get(id)
        if job is None or job["state"] != "reserved":
            return None
        return job if (job["token"] == token if token else job["holder"] == key) else None

    def _delete(self, key: Key, session: dict[str, Any], id: int, token: int, result: bytes = b"") -> list[Any]:
        job = self.jobs.get(id)
        if job is None or ((job["state"] == "reserved" or token) and self.own(key, id, token) is None):
            return [NOT_FOUND]
        if job["state"] == "reserved":
            policies.done(self, job, result)
        self.remove(job)
        self.deletes[job["tube"]] = self.deletes.get(job["tube"], 0) + 1
        self._left(job["tube"])
        return [DELETED]

    def _release(self, key: Key, session: dict[str, Any], id: int, pri: int, delay_ms: int, token: int) -> list[Any]:
        job = self.own(key, id, token)
        if job is None:
            return [NOT_FOUND]
        job["pri"] = job["pri"] if pri is None else pri
        job["releases"] += 1
        job["delay"] = delay_ms
        policies.back(self, job, delay_ms)
        return [RELEASED]

    def _bury(self, key: Key, session: dict[str, Any], id: int, pri: int, token: int) -> list[Any]:
        job = self.own(key, id, token)
        if job is None:
            return [NOT_FOUND]
        job["pri"] = job["pri"] if pri is None else pri
        job["buries"] += 1
        self.bury(job)
        return [BURIED]

    def bury(self, job: dict[str, Any]) -> None:
        """In the order of burying."""
        self._order += 1
        job |= {"state": "buried", "buried": self._order, "buried since": self.now_ms if self.level >= _REPLAYS_LEVEL else 0}
        self._left(job["tube"])

    def remove(self, job: dict[str, Any]) -> None:
        del self.jobs[job["id"]]
        self.errors.pop(job["id"], None)

    def _left(self, tube: str) -> None:
        """One of its jobs is not reserved any more: of a tube with a policy another may be."""
        if tube in self.policies:
            self.match(tube)

    def _replay(self, key: Key, session: dict[str, Any], what: list[Any]) -> list[Any]:
        return policies.replay(self, key, *what[1:])

    def _set_policies(self, key: Key, session: dict[str, Any], changes: list[Any]) -> list[Any]:
        return policies.set_all(self, changes)

    def _touch(self, key: Key, session: dict[str, Any], id: int, token: int) -> list[Any]:
        job = self.own(key, id, token)
        if job is None:
            return [NOT_FOUND]
        job["deadline"] = self.now_ms + job["ttr"]
        return [TOUCHED]

    def verb(self, tag: int, key: Key, *args: Any) -> Any:
        """A verb of a line, by a session that uses no tube."""
        return _VERBS[tag](self, key, {}, *args)

    def _kick(self, key: Key, session: dict[str, Any], count: int) -> list[Any]:
        return self.kick(session["used"], count)

    def kick(self, tube: str, count: int) -> list[Any]:
        buried = sorted(self.in_state("buried", tube), key=lambda job: int(job["buried"]))
        delayed = sorted(self.in_state("delayed", tube), key=lambda job: (job["deadline"], job["id"]))
        kicked = 0
        for job in (buried or delayed)[: max(0, min(count, _MOST_KICKED))]:
            if not kicked:
                self.left += self.cost["kicked"]  # one is always kicked
            elif self.left <= 0 and self.cost["kicked"]:
                break
            self._kick_one(job)
            kicked += 1
        return [KICKED, kicked]

    def _kick_one(self, job: dict[str, Any]) -> None:
        self.spend(self.cost["kicked"])
        job["kicks"] += 1
        job["state"] = "in no queue"
        policies.kicked(self, job)
        self._ready(job)

    def _kick_job(self, key: Key, session: dict[str, Any], id: int) -> list[Any]:
        job = self.jobs.get(id)
        if job is None or job["state"] not in ("buried", "delayed"):
            return [NOT_FOUND]
        self._kick_one(job)
        return [KICKED, None]

    def _pause_tube(self, key: Key, session: dict[str, Any], tube: str, pause_ms: int) -> list[Any]:
        if tube not in self.tubes():
            return [NOT_FOUND]
        self.pauses.pop(tube, None)
        self.paused[tube] = self.paused.get(tube, 0) + 1
        self.pause_lengths[tube] = pause_ms
        if pause_ms:
            self.pauses[tube] = self.now_ms + pause_ms
        else:
            self.match(tube)
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
    SET_POLICIES: Model._set_policies,
    PUT_UNIQUE: Model._put_unique,
    REPLAY: Model._replay,
    OF_SCHEDULE: lambda model, key, session, what: schedules.ask(model, what),
}

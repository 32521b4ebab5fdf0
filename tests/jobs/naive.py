"""The queue once more, as plainly as it can be said: no heaps, no counts kept, everything found by looking.

Written from the protocol document, sharing no code with `raftd/jobs/` but the command and reply structs.
"""

from __future__ import annotations

from raftd.jobs import commands as c
from raftd.jobs import replies as r


class NaiveQueue:
    def __init__(self) -> None:
        self.now = 0
        self.jobs: dict[int, dict] = {}
        self.sessions: dict[tuple[int, int], dict] = {}
        self.gateways: dict[int, list] = {}  # node -> [incarnation, open, seq]
        self.pauses: dict[str, int] = {}
        self.totals: dict[str, int] = {}
        self.deletes: dict[str, int] = {}
        self.last_id = self.last_token = self.waits = self.timeouts = self.total = 0
        self.answers: list = []

    # -- looking ------------------------------------------------------------------------------

    def tubes(self) -> set[str]:
        names = {"default"} | {job["tube"] for job in self.jobs.values()}
        for session in self.sessions.values():
            names |= {session["used"], *session["watched"]}
        return names

    def in_state(self, state: str, tube: str | None = None) -> list[dict]:
        return [job for job in self.jobs.values() if job["state"] == state and tube in (None, job["tube"])]

    def held_by(self, key: tuple[int, int]) -> list[dict]:
        return sorted((job for job in self.in_state("reserved") if job["holder"] == key), key=lambda job: job["token"])

    def waiters(self, tube: str) -> list[tuple[int, int]]:
        keys = [key for key, session in self.sessions.items() if session["wait"] and tube in session["watched"]]
        return sorted(keys, key=lambda key: self.sessions[key]["wait"][0])

    def soon(self, key: tuple[int, int]) -> int | None:
        held = [job["deadline"] for job in self.held_by(key)]
        return min(held) - 1000 if held else None

    # -- entries ------------------------------------------------------------------------------

    def entry(self, time_ms: int, payload: c.Payload | None) -> list:
        self.now = time_ms
        self.answers = []
        while (timer := self.first_due()) is not None:
            self.fire(*timer)
        if isinstance(payload, c.OpenGateway):
            row = self.gateways.get(payload.node)
            if row is None or payload.incarnation > row[0]:
                self.close_all(payload.node)
                self.gateways[payload.node] = [payload.incarnation, True, 0]
        elif isinstance(payload, c.CloseGateway):
            row = self.gateways.get(payload.node)
            if row is not None and row[0] == payload.incarnation and row[1]:
                row[1] = False
                self.close_all(payload.node)
        elif isinstance(payload, c.Batch):
            row = self.gateways.get(payload.node)
            if row is not None and row[1] and row[0] == payload.incarnation and payload.seq == row[2] + 1:
                row[2] = payload.seq
                for command in payload.commands:
                    self.run(payload.node, command)
        self.forget_tubes()
        return self.answers

    def forget_tubes(self) -> None:
        for table in (self.pauses, self.totals, self.deletes):
            for name in set(table) - self.tubes():
                del table[name]

    def first_due(self):
        due = []
        for job in self.jobs.values():
            if job["state"] == "delayed":
                due.append((job["deadline"], 0, job["id"]))
            if job["state"] == "reserved":
                due.append((job["deadline"], 2, job["id"]))
        due += [(until, 1, name) for name, until in self.pauses.items()]
        for key, session in self.sessions.items():
            if session["wait"]:
                if session["wait"][1] is not None:
                    due.append((session["wait"][1], 4, key))
                if self.soon(key) is not None:
                    due.append((self.soon(key), 3, key))
        first = min(due, default=None)
        return first if first is not None and first[0] <= self.now else None

    def fire(self, due: int, kind: int, what) -> None:
        if kind == 0:
            self.ready(self.jobs[what])
        elif kind == 1:
            del self.pauses[what]
            self.match(what)
        elif kind == 2:
            job = self.jobs[what]
            job["timeouts"] += 1
            self.timeouts += 1
            self.ready(job)
        else:
            self.sessions[what]["wait"] = None
            self.answers.append((*what, r.TimedOut() if kind == 4 else r.DeadlineSoon()))

    def ready(self, job: dict) -> None:
        job["state"] = "ready"
        self.match(job["tube"])

    def match(self, tube: str) -> None:
        while tube not in self.pauses and self.in_state("ready", tube) and self.waiters(tube):
            key = self.waiters(tube)[0]
            job = min(self.in_state("ready", tube), key=lambda job: (job["pri"], job["id"]))
            self.sessions[key]["wait"] = None
            self.answers.append((*key, self.grant(key, job)))

    def grant(self, key, job: dict) -> r.Reserved:
        self.last_token += 1
        job |= {"state": "reserved", "holder": key, "token": self.last_token, "deadline": self.now + job["ttr"]}
        job["reserves"] += 1
        return r.Reserved(job["id"], job["body"], self.last_token)

    def close_all(self, node: int) -> None:
        keys = [key for key in self.sessions if key[0] == node]
        gone = {key: self.held_by(key) for key in keys}
        for key in keys:  # nobody of them may be given what another of them held
            del self.sessions[key]
        self.forget_tubes()
        for held in gone.values():
            for job in held:
                self.ready(job)

    # -- commands -----------------------------------------------------------------------------

    def run(self, node: int, command: c.Command) -> None:
        key = (node, command.session)
        if isinstance(command, c.CloseSession):
            held = self.held_by(key)
            if self.sessions.pop(key, None) is not None:
                self.forget_tubes()
                for job in held:
                    self.ready(job)
            return
        session = self.sessions.setdefault(key, {"used": "default", "watched": ["default"], "wait": None})
        if session["wait"]:
            session["wait"] = None
            self.answers.append((*key, r.TimedOut()))
        before = len(self.answers)
        reply = getattr(self, "do_" + type(command).__name__.lower())(key, session, command)
        if reply is not None:
            self.answers.append((*key, reply))
        del before
        self.forget_tubes()

    def do_put(self, key, session, put):
        tube = put.tube or session["used"]
        self.last_id += 1
        self.total += 1
        self.totals[tube] = self.totals.get(tube, 0) + 1
        job = {"id": self.last_id, "tube": tube, "pri": put.pri, "ttr": max(1000, put.ttr_ms), "body": put.body, "holder": None}
        job |= {
            "state": "new",
            "deadline": 0,
            "token": 0,
            "timeouts": 0,
            "releases": 0,
            "buries": 0,
            "kicks": 0,
            "reserves": 0,
            "buried": 0,
        }
        self.jobs[job["id"]] = job
        if put.delay_ms:
            job |= {"state": "delayed", "deadline": self.now + put.delay_ms}
        else:
            self.ready(job)
        return r.Inserted(job["id"])

    def do_use(self, key, session, use):
        session["used"] = use.tube
        return r.Using(use.tube)

    def do_watch(self, key, session, watch):
        if watch.tube not in session["watched"]:
            session["watched"].append(watch.tube)
        return r.Watching(len(session["watched"]))

    def do_ignore(self, key, session, ignore):
        if session["watched"] == [ignore.tube]:
            return r.NotIgnored()
        if ignore.tube in session["watched"]:
            session["watched"].remove(ignore.tube)
        return r.Watching(len(session["watched"]))

    def do_reserve(self, key, session, reserve):
        ready = [job for job in self.in_state("ready") if job["tube"] in session["watched"] and job["tube"] not in self.pauses]
        if ready:
            return self.grant(key, min(ready, key=lambda job: (job["pri"], job["id"])))
        soon = self.soon(key)
        if soon is not None and soon <= self.now:
            return r.DeadlineSoon()
        if reserve.timeout_ms == 0:
            return r.TimedOut()
        self.waits += 1
        session["wait"] = (self.waits, None if reserve.timeout_ms is None else self.now + reserve.timeout_ms)
        return None

    def do_reservejob(self, key, session, reserve):
        job = self.jobs.get(reserve.id)
        if job is None or job["state"] == "reserved":
            return r.NotFound()
        return self.grant(key, job)

    def own(self, key, id, token):
        job = self.jobs.get(id)
        if job is None or job["state"] != "reserved":
            return None
        return job if (job["token"] == token if token else job["holder"] == key) else None

    def do_delete(self, key, session, delete):
        job = self.jobs.get(delete.id)
        if job is None or ((job["state"] == "reserved" or delete.token) and self.own(key, delete.id, delete.token) is None):
            return r.NotFound()
        del self.jobs[delete.id]
        self.deletes[job["tube"]] = self.deletes.get(job["tube"], 0) + 1
        return r.Deleted()

    def do_release(self, key, session, release):
        job = self.own(key, release.id, release.token)
        if job is None:
            return r.NotFound()
        job["pri"] = release.pri
        job["releases"] += 1
        if release.delay_ms:
            job |= {"state": "delayed", "deadline": self.now + release.delay_ms}
        else:
            self.ready(job)
        return r.Released()

    def do_bury(self, key, session, bury):
        job = self.own(key, bury.id, bury.token)
        if job is None:
            return r.NotFound()
        self.waits += 1
        job |= {"state": "buried", "pri": bury.pri, "buried": self.waits}
        job["buries"] += 1
        return r.Buried()

    def do_touch(self, key, session, touch):
        job = self.own(key, touch.id, touch.token)
        if job is None:
            return r.NotFound()
        job["deadline"] = self.now + job["ttr"]
        return r.Touched()

    def do_kick(self, key, session, kick):
        buried = sorted(self.in_state("buried", session["used"]), key=lambda job: job["buried"])
        delayed = sorted(self.in_state("delayed", session["used"]), key=lambda job: (job["deadline"], job["id"]))
        kicked = (buried or delayed)[: max(0, kick.count)]
        for job in kicked:
            job["kicks"] += 1
            self.ready(job)
        return r.Kicked(len(kicked))

    def do_kickjob(self, key, session, kick):
        job = self.jobs.get(kick.id)
        if job is None or job["state"] not in ("buried", "delayed"):
            return r.NotFound()
        job["kicks"] += 1
        self.ready(job)
        return r.Kicked(None)

    def do_pausetube(self, key, session, pause):
        if pause.tube not in self.tubes():
            return r.NotFound()
        self.pauses.pop(pause.tube, None)
        if pause.pause_ms:
            self.pauses[pause.tube] = self.now + pause.pause_ms
        else:
            self.match(pause.tube)
        return r.Paused()

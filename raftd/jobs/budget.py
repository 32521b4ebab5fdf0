"""How much work an entry and a turn may be: the one place that says so.

Work is counted in steps. One step is what a look at one item of a table costs, about 0.1 µs on a small virtual machine.
Counting, not measuring, keeps every node at the same result: where an entry's budget ends is part of the replicated state.

- Work that a batch asks for has at most `commands` steps, or is one command. The gateway that makes the batch sees to that.
- All else that an entry does has at most `entry - commands` steps: timers that fire, sessions that are closed, jobs that are kicked or
  given to waiting sessions. Of these, what earlier entries left over may use `left_over`. What does not fit is done by the next
  entries; the leader appends them. To a full tube that drops its oldest jobs, each job that is put may drop one beside these.
- Of a turn of the node, entries, reads and answers of the node itself have a share each, so none of them keeps the others waiting. What
  does not fit is done in the next turn.

So the longest entry has `entry` steps and one operation. `tests/jobs/test_budget.py` has the attacks; `raftd bench entries`
measures the times.
"""

from __future__ import annotations

import msgspec

from raftd.jobs import asks
from raftd.jobs.commands import (
    Ask,
    Attach,
    AttachAs,
    Bury,
    ChangeAccess,
    Command,
    Delete,
    Detach,
    Ignore,
    Kick,
    KickJob,
    Put,
    PutMany,
    PutUnique,
    Release,
    Reserve,
    ReserveJob,
    SetPolicies,
    Touch,
    Use,
    Watch,
)
from raftd.jobs.commands import Replay as ReplayCommand
from raftd.limits import ASKED_TUBES, REPLAY_JOBS, REPLAY_LOOKED, Limits


class Costs(msgspec.Struct, frozen=True):
    """Steps. `tube` is for each tube of a watch list that is looked at, `job` for each of several that are put at once, `paused` for a
    paused tube that goes, `died` for each job that a policy moves or drops, besides what else becomes of it."""

    entry: int
    commands: int
    left_over: int
    command: int
    timer: int
    closed: int
    given_back: int
    granted: int
    kicked: int
    job: int
    tube: int
    paused: int
    died: int

    def of(self, command: Command, watched: int) -> int:
        """Steps that `command` asks for, of a session that watches at most `watched` tubes."""
        if type(command) is Reserve:
            return self.command + self.granted + 2 * watched * self.tube
        if type(command) is PutMany:
            return self.command + len(command.jobs) * self.job
        if type(command) is ReserveJob:
            return self.command + self.granted
        if type(command) is Kick or type(command) is KickJob:
            return self.command + self.kicked
        if type(command) is Touch:
            # The touch of no job ends a reserve that waits (`Session.stop_waiting`) in each tube of its watch list.
            return self.command + (0 if command.id else watched * self.tube)
        if type(command) is Ask:
            return self.command + self.of_ask(command.what)
        if type(command) is ReplayCommand:
            return self.command + self.of_ask(command.what)
        if type(command) is PutUnique:
            return self.command + self.job
        if type(command) is SetPolicies:
            return self.command + len(command.changes) * self.job
        if type(command) is ChangeAccess:
            return self.command + len(command.changes) * self.died
        if type(command) is Attach or type(command) is AttachAs or type(command) is Detach:
            return self.command + ASKED_TUBES * self.tube
        return self.command

    def of_ask(self, what: asks.What) -> int:
        """Steps of an ask besides those of any command."""
        match what:
            case asks.Put(jobs=jobs):
                return len(jobs) * self.job
            case asks.Reserve(tubes=tubes, count=count):
                return count * (self.granted + len(tubes) * self.tube) + len(tubes) * self.tube
            case asks.Subscribe(tubes=tubes):
                return 2 * len(tubes) * self.tube
            case asks.Flow() | asks.Cancel() | asks.End():
                return ASKED_TUBES * self.tube
            case asks.Replay():
                return REPLAY_LOOKED * self.tube + REPLAY_JOBS * (self.kicked + self.died)
            case asks.SetPolicies(changes=changes):
                return len(changes) * self.job
            case asks.KickJobs(jobs=ids):
                return len(ids) * self.kicked
            case asks.Kick():
                return self.kicked
            case asks.Delete(jobs=jobs) | asks.Release(jobs=jobs) | asks.Fail(jobs=jobs) | asks.Bury(jobs=jobs) | asks.Touch(jobs=jobs):
                return len(jobs) * self.command
        return 0


#: Feature level 2 and later. An operation is a heap of small things: 40 steps are 4 µs.
COSTS = Costs(
    entry=50_000,
    commands=20_000,
    left_over=15_000,
    command=40,
    timer=40,
    closed=40,
    given_back=40,
    granted=40,
    kicked=40,
    job=20,
    tube=1,
    paused=30,
    died=40,
)

#: Before: 4,096 timers or things given back by an entry, and no bound on what commands cause.
COSTS_BEFORE_LEVEL_2 = Costs(
    entry=4_096,
    commands=0,
    left_over=4_096,
    command=0,
    timer=1,
    closed=1,
    given_back=1,
    granted=0,
    kicked=0,
    job=0,
    tube=0,
    paused=0,
    died=0,
)


#: Commands that ask for no more than any command: those that come most.
PLAIN = frozenset({Put, Delete, Release, Bury, Use, Watch, Ignore})

#: An answer of the node itself: a line, or something long like `stats`.
LINE_STEPS = 100
LONG_ANSWER_STEPS = 600

#: A look at the calendar for what a cron expression means: ten milliseconds for one that is never due, so one a turn.
CALENDAR_STEPS = 25_000

#: A client whose connection is ended because the cluster has given its node up.
ABANDONED_STEPS = 300

#: A read, with its answer; each item of a list that it gives; and each item that it looks at beside those.
READ_STEPS = 200
READ_ITEM_STEPS = 12
SCANNED_STEPS = 2


class Share:
    """What is left of one share of a turn."""

    __slots__ = ("left", "used")

    def __init__(self) -> None:
        self.left = 0
        #: In all turns so far.
        self.used = 0

    def spend(self, steps: int) -> None:
        self.left -= steps
        self.used += steps


class Turn:
    """The shares of a turn of the node."""

    __slots__ = ("_limits", "answers", "entries", "reads")

    def __init__(self, limits: Limits) -> None:
        self.entries = Share()
        self.reads = Share()
        self.answers = Share()
        self._limits = limits
        self.begin()

    def begin(self) -> None:
        limits = self._limits
        self.entries.left, self.reads.left, self.answers.left = limits.apply_steps, limits.reads_steps, limits.answers_steps

    @property
    def used(self) -> int:
        """Steps of all turns so far."""
        return self.entries.used + self.reads.used + self.answers.used

"""What a seed means: how large the cluster is, how bad its world, and what happens when.

Every run draws which faults it knows at all, and how often (swarm testing): a run with everything at once hides what a
run with one thing shows. The plan is drawn beforehand, so that single events can be left out of it.
"""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec

from raftd.jobs.budget import COSTS, Costs
from raftd.sim.network import NetworkConditions

#: How long faults last, in milliseconds, and how many commands clients send meanwhile.
FAULT_MS = 20_000
OPERATIONS = 500

#: What may happen, and how often at most per simulated second when a run knows it.
FAULTS: dict[str, float] = {
    "power": 0.5,  # one machine loses power: what was not synced is lost, or some sectors of it
    "power in a write": 0.4,  # the same between two operations of its storage
    "power at an answer": 0.2,  # of a leader, as soon as it has acknowledged a put
    "kill": 0.4,  # SIGKILL
    "kill in a write": 0.2,
    "power everywhere": 0.1,
    "stop": 0.3,  # SIGSTOP for longer than two election timeouts
    "partition": 0.4,
    "deaf leader": 0.2,  # it hears answers late, then its messages are lost: late answers must not count as new; or it hears none
    "fork": 0.3,  # a leader is cut off, the next one is gone when the links are back: two logs meet in an election
    "one way": 0.2,  # a link is cut in one direction
    "break": 0.3,  # a connection breaks
    "clog": 0.2,  # a link is slow for a while
    "slow disk": 0.15,
    "stalled disk": 0.2,
    "failing disk": 0.15,  # a write or fsync fails: the process must end
    "unreadable disk": 0.05,  # a read fails when it starts
    "full disk": 0.1,  # for a while
    "low disk": 0.2,  # of one or of all, for a while: it says so before it is full
    "damaged disk": 0.3,  # of one voter only, while it is off
    "wall clock": 0.2,  # jumps
    "transfer": 0.3,  # an operator hands the lead to some node
    "orderly stop": 0.1,  # SIGTERM: a leader hands over first
    "add": 0.3,  # a new node, under an id that was never used
    "remove": 0.3,  # any node, the leader among them
    "replace": 0.1,  # one machine is lost for good: it is removed, and another is added under a new id
    "cut in a snapshot": 0.3,  # of a node that was away: its connection, itself or the leader fails when half of it is there
    "rotted transfer": 0.3,  # a bit flips in what has come of a leader's snapshot
    "backup": 0.2,  # an operator takes a copy of the state
    "impossible change": 0.2,  # of the members, or of the lead: it must be refused
    "upgrade": 0.3,  # a node starts again with a raftd that knows more
}
SHAPES = ("one node", "halves", "majorities ring", "bridge")


class Event(msgspec.Struct, frozen=True):
    """Something planned: `numbers` decide the rest when it happens."""

    at_ms: int
    kind: str
    numbers: tuple[int, ...]


class Options(msgspec.Struct, frozen=True):
    """All that a seed has drawn, but the plan."""

    seed: int
    nodes: int
    spares: int  # more of them, which may be added
    election_timeout_ms: int
    heartbeat_ms: int
    session_timeout_ms: int
    conditions: NetworkConditions
    faults: dict[str, float]
    longest_ms: int  # that a fault lasts, or that a machine is off
    disk_us: tuple[int, int]
    sector_bytes: int
    keep: float  # how much of what was not synced survives a loss of power
    clock_rates: tuple[float, ...]
    wall_offsets_s: tuple[int, ...]
    clients: int
    pipeline: int  # commands of one client under way at most
    verbs: dict[str, int]
    aims: float  # the share of faults that aim at the leader
    tubes: int
    snapshot_log_bytes: int
    limits: dict[str, int]
    broken_at_the_end: int  # nodes that stay broken when the others are healed
    budget: int  # place in BUDGETS
    sessions: int = 0  # clients that have one


class Plan(msgspec.Struct, frozen=True):
    """A whole run: what was drawn, and the events that are left of it. Stored as JSON, it means the same after the simulator draws
    other things from its seed. `about`: which bug it shows."""

    options: Options
    events: list[Event]
    about: str = ""


#: Weights of what clients ask.
VERBS = {
    "put": 30,
    "put delayed": 8,
    "reserve": 25,
    "reserve for ever": 2,
    "reserve-job": 3,
    "delete": 20,
    "release": 6,
    "bury": 4,
    "touch": 4,
    "kick": 4,
    "kick-job": 2,
    "use": 4,
    "watch": 4,
    "ignore": 2,
    "pause": 2,
    "declare": 1,
    "put back": 2,
    "put once": 5,
    "undeclare": 1,
    "leave": 2,
    "stop waiting": 2,
    "hostile": 1,
    "crowd": 1,
    "flood": 1,
    "peek": 4,
    "read": 10,
    "disconnect": 5,
}

#: And those with sessions.
SESSION_VERBS = {
    "put": 30,
    "reserve": 25,
    "finish": 35,
    "subscribe": 6,
    "kick": 3,
    "pause": 1,
    "policy": 2,
    "replay": 1,
    "schedule": 1,
    "break": 4,
}

#: Budgets of an entry; a machine is as slow as fits to them. With small ones nearly everything is left over for later entries.
BUDGETS: tuple[Costs, ...] = (
    COSTS,
    msgspec.structs.replace(COSTS, entry=800, commands=300, left_over=250, tube=5),
    msgspec.structs.replace(COSTS, entry=260, commands=100, left_over=80, tube=20),
)

#: Limits that a run may make small, so that it meets them: a field of `Limits`, and what to choose from.
SMALL_LIMITS: dict[str, tuple[int, ...]] = {
    "segment_bytes": (2_000, 20_000),
    "log_mark_bytes": (1, 1_000),
    "log_memory_bytes": (0, 500, 5_000),
    "snapshot_piece_bytes": (500,),
    "snapshot_least_bytes": (0, 2_000),
    "snapshot_chunk_bytes": (1_000, 4_000),
    "append_bytes": (1, 100, 1_000),
    "apply_entries": (1, 8),
    "window_messages": (1, 3),
    "uncommitted_bytes": (2_000,),
    "gateway_in_flight": (1, 2),
    "gateway_bytes": (1_000,),
}


def draw(seed: int) -> Options:
    """The options of a seed."""
    random = Random(f"options {seed}")
    nodes = random.choice((1, 2, 3, 3, 3, 3, 3, 4, 5, 5, 5, 7, 9, 13))
    calm = random.random() < 0.15
    storm = random.choice((1, 1, 1, 3, 6))
    known = {name: round(most * storm * random.uniform(0.2, 1), 3) for name, most in FAULTS.items() if not calm and random.random() < 0.5}
    if nodes == 1:
        known.pop("damaged disk", None)
    spares = random.choice((1, 2, 4)) if known.keys() & {"add", "replace"} else 0
    election_timeout_ms = random.choice((150, 250, 250, 400))
    slowest_ms = random.choice((1, 2, 10, 40))

    def rate(most: float) -> float:
        return round(random.uniform(0, most), 3) if not calm and random.random() < 0.4 else 0.0

    verbs = {name: weight * random.choice((0, 1, 1, 1, 8)) for name, weight in VERBS.items()}
    verbs["put"] = max(verbs["put"], 10)
    limits = {name: random.choice(values) for name, values in SMALL_LIMITS.items() if random.random() < 0.3}
    snapshot_log_bytes = random.choice((1_000, 5_000, 50_000, 1 << 40))
    if snapshot_log_bytes <= 5_000:
        limits.setdefault("segment_bytes", 1_000)  # only whole segments go
        if "cut in a snapshot" in known:
            limits.setdefault("snapshot_chunk_bytes", 1_000)
    return Options(
        seed=seed,
        nodes=nodes,
        spares=spares,
        election_timeout_ms=election_timeout_ms,
        heartbeat_ms=random.choice((20, 50)),
        session_timeout_ms=random.choice((2 * election_timeout_ms, 1_500, 5_000)),
        conditions=NetworkConditions(
            (random.choice((50, 200, 500)), slowest_ms * 1_000), rate(0.1), rate(0.1), rate(0.1), rate(0.3), random.random() < 0.6
        ),
        faults=known,
        longest_ms=random.choice((200, 1_000, 3_000)),
        disk_us=random.choice(((50, 300), (200, 2_000), (1_000, 20_000))),
        sector_bytes=random.choice((512, 4096)),
        keep=random.choice((0.0, 0.5, 0.9)),
        clock_rates=tuple(round(random.uniform(0.98, 1.02), 4) if random.random() < 0.5 else 1.0 for _ in range(nodes + spares)),
        wall_offsets_s=tuple(random.choice((0, 0, 1, -3_600, 86_400)) for _ in range(nodes + spares)),
        clients=random.choice((3, 8, 20)),
        pipeline=random.choice((1, 1, 4, 16)),
        verbs={name: weight for name, weight in verbs.items() if weight},
        aims=random.choice((0.0, 0.5, 0.9)),
        tubes=random.choice((1, 2, 3)),
        snapshot_log_bytes=snapshot_log_bytes,
        limits=limits,
        broken_at_the_end=random.randrange((nodes - 1) // 2 + 1) if random.random() < 0.5 else 0,
        budget=random.choice((0, 0, 1, 2)),
        sessions=random.choice((0, 0, 2, 5)),
    )


def plan(options: Options) -> list[Event]:
    """What happens when, in order."""
    random = Random(f"plan {options.seed}")

    def numbers() -> tuple[int, ...]:
        return tuple(random.randrange(1 << 30) for _ in range(4))

    events = []
    for kind, per_second in options.faults.items():
        at_ms = 0.0
        while (at_ms := at_ms + random.expovariate(per_second) * 1000) < FAULT_MS:
            events.append(Event(int(at_ms), kind, numbers()))
    faults = list(events)
    names, weights = list(options.verbs), list(options.verbs.values())
    for _ in range(OPERATIONS):
        # Some of it in bursts, and some right after something has gone wrong.
        at_ms = random.randrange(FAULT_MS)
        choice = random.random()
        if choice < 0.3:
            at_ms -= at_ms % 500
        elif choice < 0.6 and faults:
            at_ms = random.choice(faults).at_ms + random.randrange(3 * options.election_timeout_ms)
        events.append(Event(at_ms, f"client {random.choices(names, weights)[0]}", numbers()))
    if options.sessions:
        names, weights = list(SESSION_VERBS), list(SESSION_VERBS.values())
        for _ in range(OPERATIONS // 2):
            at_ms = random.randrange(FAULT_MS)
            if random.random() < 0.3 and faults:
                at_ms = random.choice(faults).at_ms + random.randrange(3 * options.election_timeout_ms)
            events.append(Event(at_ms, f"session {random.choices(names, weights)[0]}", numbers()))
    return sorted(events, key=lambda event: event.at_ms)


def describe(options: Options) -> str:
    """All of it, a line each."""
    raw: dict[str, Any] = msgspec.to_builtins(options)
    lines = []
    for name, value in raw.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {number}" for key, number in value.items()) or "none"
        lines.append(f"{name}: {value}")
    return "\n".join(lines)

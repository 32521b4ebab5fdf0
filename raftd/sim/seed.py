"""One seed: a cluster of production code runs its plan, is healed, and must converge.

First safety: twenty seconds of faults and load, every step checked. Then a random majority is healed and the rest stays
broken for good (`convergence.py`).
"""

from __future__ import annotations

from traceback import format_exception

import msgspec

from raftd.sim.checks import Violation
from raftd.sim.convergence import ConvergenceCheck
from raftd.sim.faults import Faults
from raftd.sim.simulation import Simulation
from raftd.sim.swarm import FAULT_MS, Event, Options

_MS = 1_000


class Outcome(msgspec.Struct):
    """What became of a seed. `violation` is empty if nothing was wrong; with fewer than 80 % of the answers known, the history of
    clients proves little (the checks of every step do not need it)."""

    seed: int
    violation: str = ""
    trace_hash: str = ""
    simulated_ms: int = 0
    steps: int = 0
    operations: int = 0
    unknown: int = 0
    elections: int = 0
    entries: int = 0
    faults: dict[str, int] = {}


class SeedRun:
    """A simulation with its plan. `trace` has what happened, a line each, if it was asked for."""

    def __init__(self, options: Options, events: list[Event], keep_trace: bool = False) -> None:
        self._simulation = Simulation(options, keep_trace)
        self._faults = Faults(self._simulation)
        self._options = options
        self._events = events

    @property
    def trace(self) -> list[str]:
        return self._simulation.trace

    def run(self) -> Outcome:
        """Run it all. Nothing is raised: what was wrong is in the outcome."""
        simulation, violation = self._simulation, ""
        try:
            self._run()
        except Violation as wrong:
            violation = str(wrong)
        except Exception as error:  # of the simulator itself, or one that must not be raised here
            violation = f"bug: {error!r}"
            simulation.trace += format_exception(error)
        if violation:
            simulation.note(f"VIOLATION {violation}")
        calls = simulation.calls
        return Outcome(
            self._options.seed,
            violation,
            simulation.trace_hash(),
            simulation.scheduler.now_us // _MS,
            simulation.scheduler.steps,
            len(calls),
            sum(call.answered is None for call in calls),
            simulation.elections,
            len(simulation.checks.committed),
            dict(sorted(simulation.counts.items())),
        )

    def _run(self) -> None:
        simulation = self._simulation
        for node in simulation.nodes:
            simulation.start(node)
        for event in self._events:
            simulation.scheduler.after(event.at_ms * _MS, self._happen, event)
        simulation.pass_time(FAULT_MS)
        check = ConvergenceCheck(simulation)
        check.heal()
        check.converge()
        check.judge()

    def _happen(self, event: Event) -> None:
        clients = self._simulation.clients
        if event.kind == "client crowd":
            for client in clients:  # all at once
                client.do("read", (event.numbers[0], event.numbers[1], 0, event.numbers[3]))
        elif event.kind.startswith("client "):
            clients[event.numbers[0] % len(clients)].do(event.kind.removeprefix("client "), event.numbers)
        elif event.kind.startswith("session "):
            sessions = self._simulation.sessions
            sessions[event.numbers[0] % len(sessions)].do(event.kind.removeprefix("session "), event.numbers)
        elif not self._simulation.healed:
            self._faults.do(event)

"""`raftd sim`: the real node code under every fault, in virtual time, each run reproducible from its seed."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from hashlib import blake2b
from itertools import chain
from pathlib import Path

import msgspec
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from raftd.errors import UNDECODABLE, CommandRefused
from raftd.sim import mutants
from raftd.sim.minimise import minimise
from raftd.sim.seed import Outcome, SeedRun
from raftd.sim.swarm import Event, Options, Plan, describe, draw, plan

#: Mutants are looked for in clusters up to this size: a larger one finds nothing that a small one does not, slowly.
_MUTANT_NODES = 5


def broken_by(mutant: str | None) -> AbstractContextManager[None]:
    """Production code with this mutant in it, if one is named."""
    return mutants.applied(mutant) if mutant is not None else nullcontext()


def live(seed: int, mutant: str | None = None) -> Outcome:
    """One seed, maybe with a mutant in the code."""
    options = draw(seed)
    gc.disable()  # a run is short, and a seventh of it went there
    try:
        with broken_by(mutant):
            return SeedRun(options, plan(options)).run()
    finally:
        gc.enable()
        gc.collect()


def seeds_to_catch(mutant: str, most: int) -> tuple[int, Outcome | None]:
    """How many seeds were tried until one caught it; None if none did."""
    tried = 0
    likely = mutants.LIKELY_SEEDS.get(mutant)
    for seed in chain([likely] if likely is not None else [], range(1, 100 * most)):
        if draw(seed).nodes > _MUTANT_NODES:
            continue
        tried += 1
        outcome = live(seed, mutant)
        if outcome.violation:
            return tried, outcome
        if tried == most:
            break
    return tried, None


def run_seeds(start: int, count: int, jobs: int, console: Console) -> bool:
    """Many seeds; whether nothing was wrong in any."""
    began = time.monotonic()
    outcomes = []
    for outcome in _with_progress(((seed, None) for seed in range(start, start + count)), count, jobs, console):
        outcomes.append(outcome)
        if outcome.violation:
            console.print(f"[red]seed {outcome.seed}:[/] {_plain(outcome.violation)}", highlight=False, soft_wrap=True)
    _summarise(outcomes, time.monotonic() - began, jobs, console)
    wrong = sorted(outcome.seed for outcome in outcomes if outcome.violation)
    if wrong:
        console.print(f"[red]{len(wrong)} violations[/]; replay one with: raftd sim --seed {wrong[0]} --trace", highlight=False)
    return not wrong


def _plain(text: str) -> str:
    return text.replace("[", "\\[")


@contextmanager
def _workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that end at once when this process is stopped."""
    pool = ProcessPoolExecutor(jobs)
    try:
        yield pool
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def _with_progress(work: Iterator[tuple[int, str | None]], count: int, jobs: int, console: Console) -> Iterator[Outcome]:
    """Outcomes as they come, from `jobs` processes."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress, _workers(jobs) as pool:
        task = progress.add_task("seeds", total=count)
        under_way: set[Future[Outcome]] = set()
        more = True
        while more or under_way:
            while more and len(under_way) < 2 * jobs:
                item = next(work, None)
                if item is None:
                    more = False
                else:
                    under_way.add(pool.submit(live, *item))
            done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            for future in done:
                progress.advance(task)
                yield future.result()


def _summarise(outcomes: list[Outcome], seconds: float, jobs: int, console: Console) -> None:
    faults: Counter[str] = Counter()
    for outcome in outcomes:
        faults.update(outcome.faults)
    simulated_s = sum(outcome.simulated_ms for outcome in outcomes) / 1000
    steps = sum(outcome.steps for outcome in outcomes)
    operations = sum(outcome.operations for outcome in outcomes)
    unknown = sum(outcome.unknown for outcome in outcomes)
    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    rows = {
        "seeds": f"{len(outcomes):,}",
        "simulated hours": f"{simulated_s / 3600:,.1f}",
        "operations asked for": f"{operations:,}",
        "of them never answered": f"{unknown:,} ({unknown / max(1, operations):.1%})",
        "entries committed": f"{sum(outcome.entries for outcome in outcomes):,}",
        "elections won": f"{sum(outcome.elections for outcome in outcomes):,}",
        "violations": f"{sum(bool(outcome.violation) for outcome in outcomes)}",
        "hash of all traces": _hash_of_all(outcomes),
        "events per second and process": f"{steps / seconds / jobs:,.0f}",
        "simulated seconds per second and process": f"{simulated_s / seconds / jobs:,.1f}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    table.add_section()
    for name, number in sorted(faults.items()):
        table.add_row(name, f"{number:,}")
    console.print(table)


def _hash_of_all(outcomes: list[Outcome]) -> str:
    """The same for the same seeds, wherever they run."""
    digest = blake2b(digest_size=8)
    for outcome in sorted(outcomes, key=lambda outcome: outcome.seed):
        digest.update(outcome.trace_hash.encode())
    return digest.hexdigest()


def load_plan(path: Path) -> Plan:
    """Read a plan that was saved. Raises OSError, or CommandRefused if the file holds no plan of this simulator."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Plan)
    except UNDECODABLE as error:
        raise CommandRefused(f"{path} is not a plan of this simulator: {error}") from None


def plan_of(seed: int) -> Plan:
    """Return what a seed draws."""
    options = draw(seed)
    return Plan(options, plan(options))


def replay(what: Plan, with_trace: bool, with_minimum: bool, save: Path | None, console: Console) -> bool:
    """Run a plan; print what it drew, its trace hash and, if asked, its trace and the smallest part of it that still fails. Return
    whether no invariant was violated. Raises OSError if the smallest part cannot be saved."""
    options, events = what.options, what.events
    run = SeedRun(options, events, keep_trace=with_trace)
    outcome = run.run()
    if with_trace:
        for line in run.trace:
            print(line)
    print(describe(options))
    print(f"events planned: {len(events)}")
    print(f"trace hash: {outcome.trace_hash}")
    print(f"violation: {outcome.violation or 'none'}")
    if with_minimum and outcome.violation:
        least = _minimum(options, events, outcome, console)
        if save is not None:
            save.write_bytes(msgspec.json.format(msgspec.json.encode(Plan(options, least, outcome.violation)), indent=1))
    return not outcome.violation


def _minimum(options: Options, events: list[Event], outcome: Outcome, console: Console) -> list[Event]:
    invariant = outcome.violation.partition(":")[0]

    def fails(fewer: list[Event]) -> bool:
        return SeedRun(options, fewer).run().violation.partition(":")[0] == invariant

    with console.status("leaving out …") as status:
        least = minimise(events, fails, lambda left: status.update(f"{left} events left"))
    run = SeedRun(options, least, keep_trace=True)
    run.run()
    print("\nthe least plan that still goes wrong:")
    for event in least:
        print(f"  {event.at_ms:6} ms  {event.kind} {event.numbers}")
    print("\nits trace:")
    for line in run.trace:
        print(line)
    return least


#: The mutants that seeds are expected to catch; tests catch the others.
FOR_SEEDS = [name for name in mutants.MUTANTS if name not in mutants.BY_TESTS]
#: What a mutant ends with whose method has got other arguments since: that shows nothing.
_NO_LONGER_FITS = "TypeError("


def run_mutants(names: Sequence[str], most: int, jobs: int, console: Console) -> bool:
    """Run seeds, at most `most`, with each of these broken variants until one catches it. Return whether all were caught."""
    table = Table(box=box.SIMPLE)
    for heading in ("mutant", "seeds", "caught by"):
        table.add_column(heading)
    escaped = []
    columns = (TextColumn("mutants"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as progress, _workers(jobs) as pool:
        task = progress.add_task("", total=len(names))
        futures = {name: pool.submit(seeds_to_catch, name, most) for name in names}
        for name, future in futures.items():
            tried, outcome = future.result()
            progress.advance(task)
            if outcome is None or _NO_LONGER_FITS in outcome.violation:
                escaped.append(name)
                table.add_row(name, str(tried), "[red]nothing[/]" if outcome is None else "[red]it does not fit the code any more[/]")
            else:
                table.add_row(name, str(tried), _plain(outcome.violation[:90]))
    console.print(table)
    if escaped:
        console.print(f"[red]{len(escaped)} mutants were not caught:[/] {', '.join(escaped)}", highlight=False)
    return not escaped

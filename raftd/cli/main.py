"""What `raftd` takes on the command line. What each command does is imported only when it runs, so that
`raftd --help` is quick."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

import raftd
from raftd.cli.access import audit, grant, init, revoke, token, user
from raftd.cli.common import working
from raftd.cli.files import backup, job, log, recover, restore
from raftd.cli.jobs import bury, delete, kick, peek, put, release, reserve, stats, tubes
from raftd.cli.line_console import line_console
from raftd.cli.operators import leader, member, status
from raftd.cli.schedule import schedule
from raftd.cli.tls import tls
from raftd.cli.tube import tube
from raftd.cli.work import work

_F = TypeVar("_F", bound=Callable[..., Any])


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(raftd.__version__, prog_name="raftd")
def main() -> None:
    """raftd, a replicated job queue. A node is started with `twistd -n raftd`; these are the tools around it."""


for command in (
    put,
    work,
    line_console,
    reserve,
    delete,
    release,
    bury,
    kick,
    peek,
    tubes,
    stats,
    tube,
    schedule,
    status,
    member,
    leader,
    log,
    job,
    backup,
    restore,
    recover,
    tls,
    init,
    user,
    token,
    grant,
    revoke,
    audit,
):
    main.add_command(command)


@main.command(short_help="Three nodes, a leader killed twice: is anything lost?")
def demo() -> None:
    """Start three nodes, put and work jobs through all of them, kill the leader twice; count what is lost.

    Takes half a minute. Ends with status 0 only if every acknowledged job was worked, once.
    """
    from rich.console import Console

    from raftd.cli.demo import Demo

    with working():
        good = Demo(Console()).run()
    raise SystemExit(0 if good else 1)


_WORK = "Puts; or put, reserve and delete; or the same with put at one node and the rest at another."
_AGAINST = "Measure this server too, in turns; several may be given. Those that are not installed are left out."
_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)


def _option(*names: str, default: object, help: str, kind: Any) -> Callable[[_F], _F]:
    return click.option(*names, type=kind, default=default, show_default=True, help=help)


_DATA = click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Keep the nodes' data below this directory, on its disk.  [default: where temporary files go]",
)


@main.group(invoke_without_command=True, short_help="Measure jobs per second and latencies.")
@_option("--work", default="both", kind=click.Choice(["put", "cycle", "handoff", "both"]), help=_WORK)
@_option("--connections", "-c", default=64, kind=click.IntRange(1, 10_000), help="Clients at once.")
@_option("--in-flight", "-k", default=1, kind=click.IntRange(1, 1_000), help="Requests under way on each connection.")
@_option("--size", default=200, kind=click.IntRange(0, 65_535), help="Bytes in the body of a job.")
@click.option("--rate", type=click.FloatRange(1), help="Begin so many a second, done or not, and count from when each should have begun.")
@_option("--tubes", default=1, kind=click.IntRange(1, 1_000_000), help="Spread over so many tubes.")
@_option("--waiting", default=0, kind=click.IntRange(0, 10_000_000), help="Jobs that wait from the beginning.")
@_option("--idle", default=0, kind=click.IntRange(0, 50_000), help="Connections that do nothing.")
@_option("--to", default="all", kind=click.Choice(["all", "leader"]), help="The nodes that clients connect to.")
@_option("--seconds", default=4.0, kind=click.FloatRange(0.1, 600), help="Length of a round, after one second of warming up.")
@_option("--rounds", default=3, kind=click.IntRange(1, 100), help="Rounds of each work, the servers in turns.")
@_option("--nodes", default=3, kind=click.IntRange(1, 13), help="Size of the cluster.")
@_option("--processes", default=1, kind=click.IntRange(1, 16), help="Processes that make the load.")
@click.option("--against", type=click.Choice(["beanstalkd", "nats", "rabbitmq", "raftd-tls", "all"]), multiple=True, help=_AGAINST)
@click.option("--comparison", is_flag=True, help="The rows of docs/performance.md, instead of --work, --connections and --in-flight.")
@click.option("--json", type=_FILE, help="Write all figures to this file.")
@click.option("--plot", type=_FILE, help="Draw the rates into this SVG file; needs `pip install 'raftd[plot]'`.")
@_DATA
@click.pass_context
def bench(context: click.Context, /, **asked: Any) -> None:
    """Measure jobs per second and latencies of a cluster started for it on this machine. Takes a minute or so."""
    from rich.console import Console

    from raftd.bench import rates
    from raftd.bench.servers import OTHERS

    if context.invoked_subcommand is not None:
        if any(_is_given(name) for name in asked):
            raise click.UsageError(f"give the options of `bench {context.invoked_subcommand}` behind its name")
        return
    if "all" in asked["against"]:
        asked["against"] = tuple(name for name in OTHERS if name != "raftd-tls")
    options = rates.Options(**asked)
    if any(row.connections < options.processes * (2 if row.work == "handoff" else 1) for row in options.rows):
        raise click.UsageError("--connections: each of the --processes needs one at least, for handoffs two")
    if options.comparison and any(_is_given(name) for name in ("work", "connections", "in_flight", "rate")):
        raise click.UsageError("--comparison: its rows say the work, connections, requests in flight and rate")
    if not all(math.isfinite(number) for number in (options.seconds, options.rate or 0)):
        raise click.UsageError("--seconds and --rate: finite numbers are expected")
    for path in (options.json, options.plot):
        if path is not None and not path.parent.is_dir():
            raise click.UsageError(f"{path}: there is no directory {path.parent}")
    if {"nats", "rabbitmq"} & set(options.against) and (options.tubes > 1 or options.waiting or options.idle):
        raise click.UsageError("--tubes, --waiting and --idle: only beside servers that speak beanstalkd's protocol")
    with working():
        rates.run(options, Console())


@bench.command("entries", short_help="The longest entry of each command.")
def bench_entries() -> None:
    """Measure how long the state machine takes for the longest entry of each command, in a queue of a million jobs that makes each as
    expensive as it can be.

    Takes a minute and 2 GB of memory. Exits with status 1 if an entry takes over 10 ms.
    """
    from rich.console import Console

    from raftd.bench.entries import Size, measure, show

    with working():
        good = show(measure(Size(), Console()), Console())
    raise SystemExit(0 if good else 1)


@bench.command("capacity", short_help="Memory, disk and restart of a large queue.")
@_option("--jobs", default=1_000_000, kind=click.IntRange(1, 100_000_000), help="How many.")
@_option("--size", default=200, kind=click.IntRange(0, 65_535), help="Bytes in the body of a job.")
@click.option("--churn", is_flag=True, help="Delete them again, ten thousand at a time, instead of keeping them all.")
@_DATA
def bench_capacity(jobs: int, size: int, churn: bool, data: Path | None) -> None:
    """Fill three nodes on this machine, start them again, and let a fourth catch up; print what it took.

    A million small jobs take some minutes, three gigabytes of memory and as much of disk.
    """
    from rich.console import Console

    from raftd.bench import capacity

    with working():
        capacity.run(jobs, size, churn, data, Console())


@bench.command("evaluation", short_help="Time to put and consume messages, by nodes and sizes.")
@click.option("--nodes", type=click.IntRange(1, 13), multiple=True, help="Sizes of the cluster.  [default: 3, 5, 7, 13]")
@click.option("--messages", type=click.IntRange(1), multiple=True, help="How many.  [default: 50, 100, 200, 500, 1000, 2000]")
@_DATA
@click.option("--plot", type=_FILE, help="Draw them into this SVG file; needs `pip install 'raftd[plot]'`.")
def bench_evaluation(nodes: tuple[int, ...], messages: tuple[int, ...], data: Path | None, plot: Path | None) -> None:
    """Put messages of 4, 200 and 640 bytes one after the other, and consume them, in clusters of several sizes. Takes some minutes."""
    from rich.console import Console

    from raftd.bench import evaluation

    with working():
        evaluation.run(evaluation.Options(nodes or evaluation.NODES, messages or evaluation.MESSAGES, data, plot), Console())


@bench.command("layers", short_help="Processor time of each layer alone.")
@click.option("--save", is_flag=True, help="Make what was measured the baseline, in the source of raftd.")
def bench_layers(save: bool) -> None:
    """Measure the processor time that each layer takes for an operation, beside a stored baseline. Takes some seconds."""
    from rich.console import Console

    from raftd.bench.layers import run

    with working():
        run(save, Console())


@bench.command("failover", short_help="How long puts wait when the leader is gone.")
@_option("--times", default=20, kind=click.IntRange(1, 1_000), help="How often each.")
@click.option("--against", type=click.Choice(["nats"]), multiple=True, help=_AGAINST)
@_DATA
def bench_failover(times: int, against: tuple[str, ...], data: Path | None) -> None:
    """Kill, pause and isolate the leader of three nodes, and make it hand the lead over, while clients put on all of them; print how long
    no put was answered."""
    from rich.console import Console

    from raftd.bench.failover import Options, run

    with working():
        run(Options(times, against, data), Console())


@bench.command("client", short_help="The client protocol beside the line protocol.")
@_option("--seconds", default=3.0, kind=click.FloatRange(0.1, 600), help="Length of a round, after one second of warming up.")
@_option("--rounds", default=3, kind=click.IntRange(1, 100), help="Rounds of each, in turns, each with a new cluster.")
@_DATA
def bench_client(seconds: float, rounds: int, data: Path | None) -> None:
    """Measure puts in batches, and workers whose jobs are pushed to them, beside what connections of the line protocol do one by one."""
    from rich.console import Console

    from raftd.bench.protocols import Options, run

    if not math.isfinite(seconds):
        raise click.UsageError("--seconds: a finite number is expected")
    with working():
        run(Options(seconds, rounds, data), Console())


def _is_given(name: str) -> bool:
    """Whether an option of this command was given, rather than left to its default."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


@main.command(short_help="The real node code under every fault, from a seed.")
@click.option("--seeds", type=click.IntRange(1), default=100, show_default=True, help="How many to run.")
@click.option("--start", type=click.IntRange(0), default=1, show_default=True, help="The first of them.")
@click.option("--jobs", "-j", type=click.IntRange(1, 256), default=os.cpu_count() or 1, show_default="all processors", help="Processes.")
@click.option("--seed", type=click.IntRange(0), help="Run this one, and print what it drew and the hash of its trace.")
@click.option("--trace", is_flag=True, help="With --seed: print everything that happens.")
@click.option("--plan", type=click.Path(dir_okay=False, path_type=Path), help="Run this saved plan instead of a seed.")
@click.option("--minimise", is_flag=True, help="With --seed or --plan: if it fails, the smallest part of its plan that still fails.")
@click.option("--save", type=click.Path(dir_okay=False, path_type=Path), help="With --minimise: write that part to this file.")
@click.option("--mutants", is_flag=True, help="Instead: how many seeds it takes to catch each broken variant (at most --seeds).")
@click.option("--mutant", metavar="NAME", help="As --mutants, for this one; with --seed: run that seed with it.")
def sim(
    seeds: int,
    start: int,
    jobs: int,
    seed: int | None,
    trace: bool,
    plan: Path | None,
    minimise: bool,
    save: Path | None,
    mutants: bool,
    mutant: str | None,
) -> None:
    """Whole clusters of production code on a virtual clock, network and disk, under faults, every invariant checked.

    Ends with status 1 if any is violated, naming the seed; the same seed always does the same.
    """
    from rich.console import Console

    from raftd.cli import sim as runs
    from raftd.sim.mutants import MUTANTS

    if seed is None and plan is None and (trace or minimise):
        raise click.UsageError("--trace and --minimise are for one seed or plan: --seed NUMBER or --plan FILE")
    if seed is not None and plan is not None:
        raise click.UsageError("--seed and --plan: give one of them")
    if save is not None and not minimise:
        raise click.UsageError("--save is for what --minimise finds: give both")
    given = {name for name in ("seeds", "start", "jobs", "mutants") if _is_given(name)}
    if (seed is not None or plan is not None) and given:
        raise click.UsageError(f"--seed and --plan are for one run: leave out --{sorted(given)[0]}")
    if (mutants or mutant is not None) and "start" in given:
        raise click.UsageError("--start: mutants are looked for from seed 1 on")
    if mutant is not None and (mutants or plan is not None):
        raise click.UsageError("--mutant is for --seed or for as many seeds as it takes: leave out --mutants and --plan")
    if mutant is not None and mutant not in MUTANTS:
        raise click.UsageError(f"--mutant {mutant!r}: there is none; raftd/sim/mutants.py has their names")
    console = Console()
    with working():
        if seed is not None:
            with runs.broken_by(mutant):
                good = runs.replay(runs.plan_of(seed), trace, minimise, save, console)
        elif plan is not None:
            good = runs.replay(runs.load_plan(plan), trace, minimise, save, console)
        elif mutants:
            good = runs.run_mutants(runs.FOR_SEEDS, seeds, jobs, console)
        elif mutant is not None:
            good = runs.run_mutants([mutant], seeds, jobs, console)
        else:
            good = runs.run_seeds(start, seeds, jobs, console)
    raise SystemExit(0 if good else 1)


@main.command(short_help="Three real nodes under kills, stops and partitions.")
@_option("--minutes", "-m", default=1.0, kind=click.FloatRange(0.05, 1_440), help="How long.")
def chaos(minutes: float) -> None:
    """Three nodes as processes on this machine, with a proxy between them, are killed, stopped, parted and slowed down, while
    clients put and work jobs. Then all that clients were told is held beside the committed log.

    Ends with status 1 if anything was lost, invented or out of order, or if too little was answered to know.
    """
    from rich.console import Console

    from raftd.bench.chaos import run

    if minutes != minutes:
        raise click.BadParameter("it must be a number", param_hint="--minutes")
    with working():
        good = run(minutes, Console())
    raise SystemExit(0 if good else 1)

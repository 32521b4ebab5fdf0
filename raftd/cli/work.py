"""`raftd work`: a worker for a function or a command."""

from __future__ import annotations

import sys
from typing import Any

import click

from raftd.cli.common import url_option, working

_MOST_PROCESSES = 256
_MOST_THREADS = 1_000


@click.command(short_help="Work jobs with a function or a command.")
@click.argument("function", required=False, metavar="[MODULE:FUNCTION]")
@click.option("--exec", "command", metavar="COMMAND", help="Instead: run this, without a shell, with the body as its standard input.")
@click.option("--tube", "-t", "tubes", multiple=True, help="Of these tubes.  [default: default]")
@click.option("--threads", "-j", type=click.IntRange(1, _MOST_THREADS), default=1, show_default=True, help="Jobs at the same time.")
@click.option("--prefetch", type=click.IntRange(1, 1_000), help="Jobs held at a time, for short ones more.  [default: --threads]")
@click.option("--processes", type=click.IntRange(1, _MOST_PROCESSES), default=1, show_default=True, help="Each with so many threads.")
@click.option("--retry-delay", type=click.FloatRange(0, 1e9), default=1.0, show_default=True, help="Seconds until a failed job is ready.")
@click.option("--grace", type=click.FloatRange(0, 86_400), default=25.0, show_default=True, help="Seconds to end jobs after SIGTERM.")
@click.option("--traceback", is_flag=True, help="Show where a failed job raised its exception.")
@url_option
def work(
    function: str | None,
    command: str | None,
    tubes: tuple[str, ...],
    threads: int,
    prefetch: int | None,
    processes: int,
    retry_delay: float,
    grace: float,
    traceback: bool,
    url: str | None,
) -> None:
    """Call FUNCTION of MODULE, which is looked for in this directory first, with each job of the tubes.

    When it returns the job is done; an exception is a failed attempt, and the job is ready again after --retry-delay. raftd.work has
    exceptions that say otherwise: Snooze(seconds), Retry(seconds), Dead(error). An `async def` is awaited, --threads of them at a time.
    A command (--exec) has done its job when it ends with status 0.

    SIGTERM and Ctrl-C end it: it takes no more jobs, and those that it works have --grace seconds to end. Then, or at a second
    signal, they are released, which is no failed attempt. Ends with status 0 if no job was interrupted, with 1 if some were at the end
    of the grace, with 128 and the signal's number after a second one.
    """
    from raftd.client.calls import check_subscription
    from raftd.client.errors import Refused
    from raftd.work.options import Options

    if function is None and command is None:
        raise click.UsageError("give MODULE:FUNCTION, or --exec COMMAND")
    if function is not None and command is not None:
        raise click.UsageError("MODULE:FUNCTION and --exec: give one of them")
    held = prefetch or threads
    if held < threads:
        raise click.UsageError(f"--prefetch {held}: at least as many as --threads, {threads}")
    try:
        check_subscription(list(tubes) or ["default"], held)
    except Refused as error:
        raise click.UsageError(str(error)) from None
    options = Options(url, tubes or ("default",), retry_delay, threads, held, grace, traceback)

    def run() -> int:
        with working(ends_on_signals=processes == 1):
            try:
                return _run(options, function, command)
            except click.UsageError as error:  # in a process of its own, nobody else would show it
                error.show()
                return error.exit_code

    if processes == 1:
        raise SystemExit(run())
    from raftd.work.processes import Processes

    raise SystemExit(Processes(processes, run).run())


def _run(options: Any, name: str | None, command: str | None) -> int:
    import asyncio
    import logging
    from inspect import iscoroutinefunction

    from raftd.work.options import end_now
    from raftd.work.tasks import Tasks

    function = _command(command) if command is not None else _function(str(name))
    # After the import: a module that sets up logging of its own has its way.
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s[%(process)d]: %(message)s")
    # An object may be called, too; the rule has callable() in mind, and this asks what its method is.
    if iscoroutinefunction(function) or iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004
        with asyncio.Runner() as runner:
            status = runner.run(Tasks(options, function).run())
            if status:
                end_now(status)  # the runner would wait for tasks that do not let themselves be cancelled
        return status
    from raftd.work.threads import Threads

    status = Threads(options, function).run()
    if status:
        end_now(status)
    return status


def _command(text: str) -> Any:
    import shlex
    import shutil

    from raftd.work.command import working as command_working

    try:
        argv = shlex.split(text)
    except ValueError as error:
        raise click.UsageError(f"--exec {text!r}: {error}") from None
    if not argv or shutil.which(argv[0]) is None:
        raise click.UsageError(f"--exec {text!r}: there is no such command")
    return command_working(argv)


def _function(name: str) -> Any:
    import importlib
    from operator import attrgetter

    module, colon, path = name.partition(":")
    if not (module and colon and path):
        raise click.UsageError(f"{name!r}: expected MODULE:FUNCTION, as in tasks:send_mail")
    sys.path.insert(0, "")
    try:
        found = attrgetter(path)(importlib.import_module(module))
    except ModuleNotFoundError as error:
        raise click.UsageError(f"{name!r}: there is no module {error.name!r}, here or installed") from None
    except AttributeError as error:
        raise click.UsageError(f"{name!r}: {error}") from None
    if not callable(found):
        raise click.UsageError(f"{name!r}: it cannot be called")
    return found

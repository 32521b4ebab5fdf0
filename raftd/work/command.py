"""Jobs that a command works: it reads the body at its standard input, and ends with status 0 if the job is done."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable
from contextlib import suppress

from raftd.client.asynchronous import AsyncJob
from raftd.work.signals import name_of

#: A command whose job is lost, or whose worker stops, may take so long (seconds) to end by SIGTERM.
_TERMINATE_S = 1.0


class CommandFailed(Exception):
    """It has ended, but not with status 0."""


def working(argv: list[str]) -> Callable[[AsyncJob], Awaitable[None]]:
    """A function for `Tasks`."""

    async def work(job: AsyncJob) -> None:
        about = {"RAFTD_JOB": job.id, "RAFTD_JOB_TOKEN": job.token, "RAFTD_TUBE": job.tube, "RAFTD_ATTEMPTS": job.attempts}
        environment = {**os.environ, **{name: str(value) for name, value in about.items()}}
        # In a session of its own: Ctrl-C at a terminal is for the worker, which lets its commands end.
        process = await asyncio.create_subprocess_exec(*argv, stdin=PIPE, env=environment, start_new_session=True)
        try:
            await process.communicate(job.body)
        except asyncio.CancelledError:
            await _end(process)
            raise
        status = process.returncode or 0
        if status < 0:
            raise CommandFailed(f"{argv[0]}: ended by {name_of(-status)}")
        if status:
            raise CommandFailed(f"{argv[0]}: ended with status {status}")

    return work


async def _end(process: Process) -> None:
    """With everything it has started. Cancelled once more it ends at once."""
    try:
        with suppress(ProcessLookupError, TimeoutError):
            os.killpg(process.pid, signal.SIGTERM)
            async with asyncio.timeout(_TERMINATE_S):
                await process.wait()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

"""What becomes of a job when its function has ended, and the line in the log that says so."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Generator
from typing import Any, Literal

import msgspec

from raftd.client.calls import JobView, text_of
from raftd.client.connection import printable
from raftd.client.errors import LostReservation
from raftd.errors import RaftdError
from raftd.work import Dead, Retry, Snooze
from raftd.work.options import log

_LONGEST_S = 1e9


class Outcome(msgspec.Struct, frozen=True):
    """`error`: why it has failed or is buried; `delay_s`: when it is to be done again."""

    what: Literal["done", "snoozed", "failed", "buried"]
    error: BaseException | str = ""
    delay_s: float = 0.0
    unless_backoff: bool = False

    def tell(self, job: Any) -> Any:
        """Call what a job offers for this, and return what that returns; nothing if the function has done so itself. Raises RaftdError."""
        if job.lost:
            raise LostReservation("it is held no more, and another worker may have it")
        if not job.is_held:
            return None
        match self.what:
            case "done":
                return job.delete()
            case "snoozed":
                return job.snooze(self.delay_s)
            case "buried":
                return job.bury(self.error)
        return job.fail(self.error, self.delay_s, unless_backoff=self.unless_backoff)

    def say(self, job: JobView, began_s: float, raised: BaseException | None, shows_tracebacks: bool) -> None:
        """In the log."""
        level = logging.WARNING if self.what in ("failed", "buried") else logging.INFO
        shown = raised if shows_tracebacks and self.what == "failed" else None
        log.log(level, line(job, began_s, self.what, self.error), exc_info=shown)

    def say_unheard(self, job: JobView, began_s: float, reason: RaftdError) -> None:
        """In the log: the cluster does not know of it."""
        log.warning(line(job, began_s, f"{self.what}, but that is not known to the cluster, which gives it to another worker", reason))


def not_called(result: object) -> TypeError | None:
    """What to say of a function that has not done its work, but given something that would."""
    if isinstance(result, Coroutine | Generator):
        result.close()
    elif not isinstance(result, Awaitable | AsyncGenerator):
        return None
    return TypeError(
        f"the function gives a {type(result).__name__}, which nobody runs: is it an `async def` behind a decorator, or has it a `yield`?"
    )


def _seconds(seconds: float) -> float:
    """A delay that can be: one that is past is none."""
    return min(max(seconds, 0.0), _LONGEST_S) if seconds == seconds else 0.0


def outcome_of(error: BaseException | None, retry_delay_s: float) -> Outcome:
    """Of a function that has raised this; None: it has returned. `retry_delay_s`: if the error does not say when to try again."""
    match error:
        case None:
            return Outcome("done")
        case Snooze(seconds=seconds):
            return Outcome("snoozed", "", _seconds(seconds))
        case Retry(seconds=seconds, error=reason):
            return Outcome("failed", reason, _seconds(seconds))
        case Dead(error=reason):
            return Outcome("buried", reason)
    return Outcome("failed", error, retry_delay_s, unless_backoff=True)


def line(job: JobView, began_s: float, what: str, more: BaseException | str = "") -> str:
    """Of the log; `began_s` is of the monotonic clock."""
    attempt = f", attempt {job.attempts + 1}" if job.attempts else ""
    said = text_of(more)
    reason = f": {printable(said)}" if said else ""
    return f"job {job.id} of {job.tube}: {what}, {time.monotonic() - began_s:.3f} s{attempt}{reason}"

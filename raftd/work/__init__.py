"""What the function of a worker (`raftd work module:function`) may raise to say what becomes of its job. To return means done; any other
exception is a failed attempt.

    >>> from raftd.work import Dead, Retry, Snooze
    >>> def deliver(job):
    ...     if job.attempts > 5:
    ...         raise Dead("no such address")
    ...     raise Retry(60)
"""

from __future__ import annotations


class Snooze(Exception):
    """The job is to be done in so many seconds; this was no attempt."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"in {seconds:g} s")
        self.seconds = seconds


class Retry(Exception):
    """The attempt has failed, and the job is to be done again in so many seconds; `error` is kept with the job."""

    def __init__(self, seconds: float, error: BaseException | str = "") -> None:
        super().__init__(str(error) or f"again in {seconds:g} s")
        self.seconds = seconds
        self.error = error


class Dead(Exception):
    """To try again is of no use: the job is buried, with `error`, until somebody kicks or deletes it."""

    def __init__(self, error: BaseException | str = "") -> None:
        super().__init__(str(error))
        self.error = error

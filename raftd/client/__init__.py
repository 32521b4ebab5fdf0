"""What Python programs talk to a raftd cluster with: `Client` for threads, `AsyncClient` for asyncio, `TwistedClient` for Twisted.

They know the wire, and nothing of a node's inside; importing this imports none of the three.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raftd.client.asynchronous import AsyncClient, AsyncJob, AsyncJobs
    from raftd.client.blocking import Client, Job, Jobs
    from raftd.client.deferred import TwistedClient, TwistedJob

_MODULES = {
    "Client": "blocking",
    "Job": "blocking",
    "AsyncClient": "asynchronous",
    "AsyncJob": "asynchronous",
    "AsyncJobs": "asynchronous",
    "Jobs": "blocking",
    "TwistedClient": "deferred",
    "TwistedJob": "deferred",
    "Retry": "retry",
    "JobInfo": "calls",
    "Stats": "calls",
    "ScheduleDocument": "calls",
    "ScheduleInfo": "calls",
    "Step": "calls",
    "Finished": "calls",
    "OnlyOne": "calls",
    "TubePolicy": "calls",
    "PolicyDocument": "calls",
    "Backoff": "calls",
}
_ERRORS = {
    "RaftdError",
    "Conflict",
    "KeyReused",
    "LostReservation",
    "NotFound",
    "OutcomeUnknown",
    "Refused",
    "TimedOut",
    "TooLarge",
    "NotAuthorized",
    "OverQuota",
    "TubeFull",
    "Unreachable",
}
__all__ = ["AsyncClient", "AsyncJob", "AsyncJobs", "Client", "Job", "Jobs", "TwistedClient", "TwistedJob"]


def __getattr__(name: str) -> Any:
    """What is imported is what is used: the client for threads needs no asyncio, and none but Twisted's needs Twisted."""
    module = "errors" if name in _ERRORS else _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module 'raftd.client' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"raftd.client.{module}"), name)

"""What can go wrong for a client. The class says what became of the request."""

from __future__ import annotations

from raftd.errors import RaftdError as RaftdError  # their base, for who catches all of them


class Unreachable(RaftdError):
    """No node could be asked in time: certainly not done."""


class TimedOut(RaftdError):
    """Done, but the answer did not come in time."""


class OutcomeUnknown(RaftdError):
    """Done or not: a node was asked, and neither it nor another could tell in time."""


class Refused(RaftdError):
    """The cluster does not do that, and the text says why: certainly not done."""


class NotFound(Refused):
    """There is no such job or tube."""


class TooLarge(Refused):
    """A job is larger than the cluster takes."""


class TubeFull(Refused):
    """No jobs are taken now: the tube's policy lets no more in, or the cluster lacks memory or disk space. Try again later."""


class OverQuota(Refused):
    """The quota of this user is used up: he has put as much as he may for now, or has as many tubes. Try again later."""


class NotAuthorized(Refused):
    """The cluster does not know who asks, or he may not do that."""


class Conflict(Refused):
    """Another has changed it meanwhile."""


class KeyReused(Refused):
    """The key was used for something else."""


class LostReservation(RaftdError):
    """The job is held no more: its time to run was over, or the session has ended. Another worker may have it."""

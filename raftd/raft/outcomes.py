"""How administrative requests end: numbers for programs, text for people."""

from __future__ import annotations

from enum import IntEnum

import msgspec

from raftd.errors import RaftdError


class Outcome(IntEnum):
    """What became of an administrative request. Programs compare these; the text beside one is for people. The numbers are part of
    the peer and the client protocol: one that was released keeps its meaning."""

    DONE = 0
    #: The request may have been carried out or not: the list of members shows which.
    UNKNOWN = 1
    #: The node cannot read or accept the request. Nothing was changed, as with all that follow.
    INVALID = 2
    BUSY = 3
    DRAINING = 4
    NO_LEADER = 5
    NOT_LEADER = 6
    #: The leader has not committed an entry of its own term yet (R23).
    LEADER_NOT_READY = 7
    CHANGE_IN_PROGRESS = 8
    TRANSFER_IN_PROGRESS = 9
    TRANSFER_FAILED = 10
    ALREADY_LEADER = 11
    ALREADY_MEMBER = 12
    ALREADY_VOTER = 13
    NOT_MEMBER = 14
    NOT_VOTER = 15
    #: The id belonged to a member that was removed.
    ID_USED_BEFORE = 16
    ADDRESS_IN_USE = 17
    NOT_CAUGHT_UP = 18
    #: The leader has not heard the node for an election timeout.
    NOT_HEARD = 19
    LAST_VOTER = 20
    #: The voters that would remain could not commit.
    NO_MAJORITY_LEFT = 21
    NO_SNAPSHOT = 22
    #: It is not known who asks, or he may not do that.
    NOT_AUTHORIZED = 23


class AdminResult(msgspec.Struct, frozen=True, gc=False):
    """An outcome, and what to tell the operator about it; no text if the request was carried out."""

    outcome: Outcome
    text: str = ""

    @property
    def is_done(self) -> bool:
        return self.outcome is Outcome.DONE


DONE = AdminResult(Outcome.DONE)


class Refused(RaftdError):
    """An administrative request cannot be carried out. Nothing was changed."""

    def __init__(self, outcome: Outcome, text: str) -> None:
        super().__init__(text)
        self.result = AdminResult(outcome, text)

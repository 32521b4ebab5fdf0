"""A connection that speaks for a client's session: asks in, answers out, in whatever order they come.

The session itself is in the replicated state (`jobs/clients.py`), and lives on when this connection is lost.
"""

from __future__ import annotations

from collections.abc import Callable

from raftd.jobs import asks
from raftd.jobs import replies as r
from raftd.jobs.commands import Ask, Attach, AttachAs, Detach
from raftd.node.session import CommandQueue, SessionOwner, State, size_of

#: Called with the id of an ask, an answer to it, and the index at which it was applied (0: it was not). The answer to `attach`, a refusal
#: of it, and that another connection speaks for the session now, have id 0.
Said = Callable[[int, r.AskReply | r.Attached | r.TakenOver | r.NotAuthorized, int], None]


class ClientSession(CommandQueue):
    """After `attach`, any number of asks may be under way; each is answered once, a subscription besides with what is pushed."""

    def __init__(self, gateway: SessionOwner, number: int, lost: Callable[[], None], said: Said) -> None:
        super().__init__(gateway, number, lost)
        self._said = said
        self._sizes: dict[int, int] = {}  # of asks that are not answered

    def attach(self, token: bytes) -> None:
        """Speak for the session with this token, as the user of `login`."""
        self._queue(Attach(self.number, token) if self.login is None else AttachAs(self.number, token, self.login))

    def ask(self, id: int, answered: int, waiting: list[int], what: asks.What, is_repeat: bool = False) -> None:
        """Put an ask into the log. Nothing if the connection is closed. `is_repeat`: it was applied before, and wants its answer."""
        if self.state is State.CLOSED:
            return
        command = Ask(self.number, id, answered, waiting, what)
        if not is_repeat and self._gateway.refuses(command):
            self._said(id, r.OutOfMemory(), 0)
            return
        size = size_of(command)
        self._sizes[id] = size
        self._count_bytes(size)
        self._queue(command)

    def _queue(self, command: Attach | AttachAs | Ask) -> None:
        if self.state is State.NEW:
            self._advance(State.USED)
        self.queued.append(command)
        self._gateway.enqueue(self)

    def close(self) -> None:
        """The connection is gone: asks that are in no batch yet are dropped, and come again over the next."""
        self._end(self.last_word)

    @property
    def last_word(self) -> Detach:
        """The session is kept."""
        return Detach(self.number)

    def answered(self, reply: r.Reply, index: int) -> None:
        """An answer to an ask; or the connection speaks for the session, or does so no more."""
        if isinstance(reply, r.ToAsk):
            self._count_bytes(-self._sizes.pop(reply.id, 0))
            self._said(reply.id, reply.reply, index)
        elif isinstance(reply, r.Attached | r.TakenOver | r.NotAuthorized):
            self._said(0, reply, index)

    def resume(self) -> None:
        """Nothing of it waits for a turn."""

    def misses_answers(self, later: int, waits_in_state: bool) -> bool:
        """Answers and pushes: the client resumes its session, and hears them again."""
        return self.state is State.REPLICATED

    def _drop(self) -> None:
        super()._drop()
        self._said = _nobody_hears


def _nobody_hears(id: int, reply: object, index: int) -> None:
    pass

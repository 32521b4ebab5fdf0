"""One node as a Twisted service: its listeners, its data directory, its timer; and how it ends.

In order: listen, then lock and read back the data directory, then dial the other nodes. Ports come first, so
that a second start by mistake finds them taken before it has touched anything. Nothing is served before
all of it is there: the reactor runs only then.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterable
from functools import partial
from random import SystemRandom
from typing import TYPE_CHECKING, Any, cast

import msgspec
from twisted.application import internet, service, strports
from twisted.internet import defer, error, task
from twisted.internet.endpoints import HostnameEndpoint, quoteStringArgument
from twisted.logger import Logger
from twisted.python.failure import Failure

from raftd.config import Config, TlsMode, is_loopback
from raftd.errors import ConfigError, StorageError, TooOld
from raftd.jobs.commands import Settings
from raftd.limits import CERTIFICATE_CHECK_S, CLOCK_CHECK_S, HANGUP_CHECK_S, LIMITS, TICK_MS, Limits
from raftd.node.config import NodeConfig
from raftd.node.loop import Node
from raftd.node.series import SAMPLE_S, History
from raftd.raft.messages import Configuration, MemberAddress
from raftd.server.authentication import Authentication
from raftd.server.client import ClientServerFactory
from raftd.server.collector import CycleCollector
from raftd.server.disk import DiskThread
from raftd.server.fork import ForkCopier
from raftd.server.http.callers import Callers
from raftd.server.http.dashboard import DashboardFiles, others_of
from raftd.server.http.operations import Operations
from raftd.server.http.sessions import BrowserSessions
from raftd.server.http.site import NO_PATH, Call, Site
from raftd.server.http.stream import Events
from raftd.server.http.summary import Summary
from raftd.server.http.tables import TubeTable
from raftd.server.http.topics import Topics
from raftd.server.http.v1 import v1
from raftd.server.limiter import ConnectionLimiter, most_clients
from raftd.server.line import LineServerFactory
from raftd.server.peer import PeerFactory, PeerService, PeerTransport, dial
from raftd.server.reactor import Pauses, TurnReactor, soon_of
from raftd.server.reporter import EventReporter
from raftd.server.sockets import remove_stale_socket
from raftd.server.stats import Counters, own_status
from raftd.storage.filesystem import RealFileSystem
from raftd.storage.store import Opened, Store
from raftd.storage.vote import Identity

if TYPE_CHECKING:
    from raftd.server.certificates import Certificates

#: While no leader is known, the log says so this often (seconds).
NO_LEADER_REMINDER_S = 10.0
#: How long a node that was removed stays (seconds), so that the others hear its last words: that this is committed.
LAST_WORDS_S = 0.5
#: How long an orderly stop waits for another node to take the lead (seconds), before the write in flight. Together they must be
#: shorter than two seconds.
HAND_OVER_S = 0.5
#: How long an orderly stop waits for the write in flight (seconds). SIGTERM must end a node in 2 s.
STOP_TIMEOUT_S = 1.0
#: Only whole segments are ever removed: with a smaller bound on the log between two snapshots they are smaller too.
SEGMENTS_PER_SNAPSHOT = 4

_EXIT_FATAL = 70  # EX_SOFTWARE of sysexits.h


def build(config: Config, node: int, cannot_start: Callable[[str], None], voters: tuple[int, ...] | None = None) -> RaftdService:
    """The service on the reactor that this process has chosen, which must not be imported before it has."""
    from twisted.internet import reactor

    use_monotonic_time(reactor)
    return RaftdService(config, node, reactor, cannot_start, voters)


def use_monotonic_time(reactor: Any) -> None:
    """Twisted's reactors count wall-clock time: set back by a minute, no timer would fire for a minute; set
    forward, all would at once. Nothing may be scheduled yet."""
    if reactor.getDelayedCalls():
        raise AssertionError("something is scheduled by wall-clock time already")
    reactor.seconds = time.monotonic


def majority_text(halves: Iterable[Collection[int]]) -> str:
    """Return how many nodes a leader needs: of each half, while a configuration is joint."""
    return " and ".join(f"{len(half) // 2 + 1} of {sorted(half)}" for half in halves)


class RaftdService(service.MultiService):
    """Node `node` of `config`. `cannot_start` is called with the reason, in one line, and does not return. `voters`: those of an existing
    cluster; None to begin a new one with those of the file."""

    _log = Logger("raftd")

    def __init__(
        self,
        config: Config,
        node: int,
        reactor: Any,
        cannot_start: Callable[[str], None],
        voters: tuple[int, ...] | None = None,
        limits: Limits = LIMITS,
    ) -> None:
        super().__init__()
        self.setName("raftd")
        self.config = config
        self.node_id = node
        self.node: Node | None = None
        segment_bytes = min(limits.segment_bytes, config.snapshot_log_bytes // SEGMENTS_PER_SNAPSHOT)
        self._limits = msgspec.structs.replace(limits, segment_bytes=segment_bytes)
        self._reactor = reactor
        self._cannot_start = cannot_start
        self._random = SystemRandom()
        self._voters = tuple(sorted(config.nodes)) if voters is None else voters
        owner = Identity(node, config.cluster, self._voters)
        directory = f"{config.data}/{node}"
        self._copier = ForkCopier(reactor)
        self._store = Store(
            RealFileSystem(),
            directory,
            owner,
            self._random,
            DiskThread(reactor, "raftd-disk"),
            DiskThread(reactor, "raftd-read"),
            self._copier,
            reactor,
            self._fatal,
            self._limits,
        )
        self._peers = PeerTransport(reactor, self._random)
        counters = self._counters = Counters()
        self._reporter = EventReporter(node, counters, self._dial_members, self._was_removed)
        limiter = ConnectionLimiter(reactor, most_clients())
        authentication = Authentication(reactor, config.cluster, config.local_user)
        self._lines = LineServerFactory(reactor, limiter, counters, authentication)
        self._clients = ClientServerFactory(reactor, limiter, counters, authentication)
        names = frozenset([*(place.host for place in config.nodes.values()), *config.http_names])
        self._http = Site(reactor, limiter, counters, authentication, self._serve_http, names)
        self._callers: Callers | None = None
        self._http_handlers: tuple[Callable[[Call], bool], ...] = ()
        self._limiter = limiter
        self._is_sampling = False
        self._certificates = counters.certificates = self._load_certificates()
        hangups = internet.TimerService(HANGUP_CHECK_S, limiter.check_hangups)
        hangups.clock = reactor
        hangups.setServiceParent(self)
        self._diallers: dict[int, tuple[MemberAddress, PeerService]] = {}
        self._ticks: task.LoopingCall | None = None
        self._reminder = internet.TimerService(NO_LEADER_REMINDER_S, self._remind)
        self._reminder.clock = reactor
        self._reminder.setServiceParent(self)
        is_open = config.tls is None and not is_loopback(config.address(node).interface)
        counters.is_insecure = is_open or (config.tls is not None and config.tls.mode is TlsMode.ACCEPT)
        counters.needs_users = config.tls is not None and not config.tls.verify_clients
        self._listen()

    # -- starting -----------------------------------------------------------------------------

    def _load_certificates(self) -> Certificates | None:
        if self.config.tls is None:
            return None
        from raftd.server.certificates import Certificates  # only who has TLS needs OpenSSL

        try:
            certificates = Certificates(self.config.tls.of(self.node_id), self.config.cluster, self.node_id)
        except ConfigError as unusable:
            self._cannot_start(f"tls: {unusable}")
            raise
        self._peers.own_cluster = self.config.cluster
        self._peers.accepts_plain = self.config.tls.mode is TlsMode.ACCEPT
        checks = internet.TimerService(CERTIFICATE_CHECK_S, certificates.check)
        checks.clock = self._reactor
        checks.setServiceParent(self)
        return certificates

    def _secured(self, name: str, factory: Any) -> Any:
        if self._certificates is None or self.config.tls is None:
            return factory
        from raftd.server.tls import SecureListener

        context = self._certificates.peer_context if name == "peer" else self._certificates.client_context
        return SecureListener(name, factory, context, self.config.tls.mode, self._reactor, self._limiter)

    def _listen(self) -> None:
        address = self.config.address(self.node_id)
        factories = {"peer": PeerFactory(self._peers), "line": self._lines, "client": self._clients, "http": self._http}
        for name, factory in factories.items():
            port = getattr(address, name)
            if port is not None:
                place = f"tcp:{port}:interface={quoteStringArgument(address.interface)}:backlog=1024"
                strports.service(place, self._secured(name, factory)).setServiceParent(self)

        if address.line_socket is not None:
            path = quoteStringArgument(address.line_socket)
            strports.service(f"unix:{path}:mode=660:lockfile=0", cast(Any, self._lines)).setServiceParent(self)

    def privilegedStartService(self) -> None:
        path = self.config.address(self.node_id).line_socket
        if path is not None and (reason := remove_stale_socket(path)) is not None:
            self._cannot_start(reason)
            return
        try:
            super().privilegedStartService()
        except error.CannotListenError as taken:
            where = f"{taken.interface}:{taken.port}" if taken.interface is not None else os.fsdecode(taken.port)
            self._cannot_start(f"cannot listen on {where}: {taken.socketError}")

    def startService(self) -> None:
        try:
            opened = self._store.open()
            node = self._make_node(opened)
        except StorageError as unusable:
            self._cannot_start(str(unusable))
            return
        except OSError as unusable:
            self._cannot_start(f"{unusable.filename or self._store.directory}: {unusable.strerror or unusable}")
            return
        super().startService()
        if (certificates := self._certificates) is not None:
            signal.signal(signal.SIGHUP, lambda number, frame: self._reactor.callFromThread(certificates.reload, True))
        signal.signal(signal.SIGUSR1, lambda number, frame: self._reactor.callFromThread(self._drain))
        self.node = self._peers.node = self._lines.node = self._clients.node = self._http.node = node
        self._serve_pages(node)
        self._log.info("{line}", line=self._introduction())
        if self._counters.is_insecure:
            self._log.warn("this node can be reached without TLS: whoever reaches it may do everything (docs/security.md)")
        for note in opened.notes:
            say = self._log.warn if note.is_warning else self._log.info
            say("recovery: {note}", note=note.text)
        if opened.identity.doubtful:
            self._log.warn("this node may have lost entries that it acknowledged: its votes count for less until it has caught up")
        self._dial_members(node.raft.membership.latest)
        self._check_own_address(node.raft.membership.latest)
        clock_checks = internet.TimerService(CLOCK_CHECK_S, node.compare_clocks)
        clock_checks.clock = self._reactor
        clock_checks.setServiceParent(self)
        self._collector = CycleCollector(self._reactor, lambda: node.machine.items)
        self._collector.setServiceParent(self)
        if isinstance(self._reactor, TurnReactor):
            self._reactor.pauses = self._counters.pauses = Pauses(self._clocks)
        self._ticks = task.LoopingCall(self._tick, node)
        self._ticks.clock = self._reactor
        self._ticks.start(TICK_MS / 1000, now=False).addErrback(self._tick_died)

    def _serve_pages(self, node: Node) -> None:
        """What the HTTP listener serves."""
        clock, counters, dashboard = self._reactor, self._counters, self.config.dashboard
        node.statuses.own = partial(own_status, node, counters, self._http_address(self.node_id) or "")
        history = History(lambda: node.machine, node.job_events, node.gateway.commit_s, node.write_s)
        samples = internet.TimerService(SAMPLE_S, self._sample, history)
        samples.clock = clock
        samples.setServiceParent(self)
        table, sessions = TubeTable(clock, history), BrowserSessions(clock, self.config.cluster, self.node_id)
        self._callers = Callers(node, clock, self._http.authentication, sessions)
        self._http_handlers = (
            Topics(node, clock, counters, self.config.topics_leader_only, self._http_address).handles,
            DashboardFiles(dashboard, others_of(self.config)).handles,
            Operations(node, clock, counters).handles,
            v1(node, clock, counters, table, sessions, dashboard).handles,
            Events(node, clock, self._reporter).handles,
            Summary(node, clock, table, self._reporter, self._http_address).handles,
        )

    def _sample(self, history: History) -> None:
        """A slice of it in each turn of the reactor; but not while the last one has not come to its end."""
        if self._is_sampling:
            return
        self._is_sampling = True
        slices = history.sample()

        def go_on() -> None:
            for _ in slices:
                self._reactor.callLater(0, go_on)
                return
            self._is_sampling = False

        go_on()

    def _dial_members(self, configuration: Configuration) -> None:
        """Those with lower ids; the others dial us. Addresses are those of the log; of a cluster that is not born yet, the file's."""
        addresses = {**self._addresses, **configuration.addresses}
        members = {*configuration.voters, *configuration.outgoing, *configuration.learners}
        wanted = {peer: addresses[peer] for peer in members if peer < self.node_id and peer in addresses}
        for peer, (address, dialler) in list(self._diallers.items()):
            if wanted.get(peer) != address:
                del self._diallers[peer]
                defer.maybeDeferred(dialler.disownServiceParent)
        for peer, address in wanted.items():
            if peer not in self._diallers:
                endpoint: Any = HostnameEndpoint(self._reactor, address.host, address.peer)
                if self._certificates is not None and self.config.tls is not None:
                    from raftd.server.tls import SecureEndpoint

                    opened = partial(self._peers.opened_with, peer)
                    endpoint = SecureEndpoint(endpoint, self._certificates.peer_context, self.config.tls.mode, opened)
                dialler = dial(self._peers, peer, endpoint, self._reactor)
                dialler.setServiceParent(self)
                self._diallers[peer] = (address, dialler)

    def _check_own_address(self, configuration: Configuration) -> None:
        known, own = configuration.addresses.get(self.node_id), self._addresses[self.node_id]
        if known is not None and (known.host, known.peer) != (own.host, own.peer):
            self._log.warn(
                "the cluster knows this node at {known}, and it listens at {own}: other nodes may not find it. Start it at the old place, "
                "or replace it by one with a new id (docs/operations.md: Changing the nodes)",
                known=f"{known.host}:{known.peer}",
                own=f"{own.host}:{own.peer}",
            )

    def _was_removed(self) -> None:
        self._log.critical(
            "this node was removed from the cluster: it ends now. Its id is not used again, and its data is of no use any more"
        )
        self._reactor.callLater(LAST_WORDS_S, self._reactor.stop)

    @property
    def _addresses(self) -> dict[int, MemberAddress]:
        return {node: MemberAddress(place.host, place.peer, place.client or 0) for node, place in self.config.nodes.items()}

    def _remind(self) -> None:
        """Log why this node serves no commands."""
        if self.node is None or self.node.raft.leader:
            return
        nodes = sorted(self.node.raft.voters)
        missing = [node for node in nodes if node != self.node_id and node not in self._peers.reachable]
        self._log.warn(
            "no leader: clients' commands wait. Of the nodes {nodes} this one cannot reach {missing}; {needed} are needed",
            nodes=nodes,
            missing=missing or "none",
            needed=majority_text(self.node.raft.membership.halves),
        )

    def _hasten(self, delay_s: float) -> None:
        """The next tick comes after so many seconds."""
        if self._ticks is not None and self._ticks.running:
            self._ticks.interval = delay_s
            self._ticks.reset()

    def _tick(self, node: Node) -> None:
        assert self._ticks is not None
        self._ticks.interval = node.tick() * TICK_MS / 1000
        self._ticks.starttime = self._reactor.seconds()  # counted from here, not from multiples of the interval since the start

    def _clocks(self) -> tuple[float, float]:
        """Monotonic time, and how much this thread has worked; both without forks."""
        return self._reactor.seconds() - self._copier.forked_s, time.thread_time() - self._copier.forked_work_s

    def _tick_died(self, failure: Failure) -> None:
        self._fatal(failure.value or failure)

    def _make_node(self, opened: Opened) -> Node:
        config = self.config
        return Node(
            NodeConfig(
                self.node_id,
                self._voters,
                config.cluster,
                config.election_timeout_ms,
                config.heartbeat_ms,
                Settings(config.max_job_size, config.session_timeout_ms),
                config.snapshot_log_bytes,
                self._addresses,
                config.min_free_disk_bytes,
                limits=self._limits,
            ),
            self._reactor,
            time.time,
            soon_of(self._reactor),
            self._hasten,
            self._peers,
            self._store,
            opened,
            self._random,
            self._reporter,
            self._fatal,
        )

    def _introduction(self) -> str:
        """The one line that says where this node listens and where its data is."""
        address = self.config.address(self.node_id)
        names = ("line", "client", "peer", "http")
        listeners = [f"{name} {address.interface}:{port}" for name in names if (port := getattr(address, name)) is not None]
        if address.line_socket is not None:
            listeners.append(f"line {address.line_socket}")
        where = ", ".join(listeners)
        return f"node {self.node_id} of cluster {self.config.cluster!r} listens on {where}; its data is in {self._store.directory}"

    def _serve_http(self, call: Call) -> None:
        if not self._http_handlers:
            call.problem("not-ready")
        elif call.parts == [NO_PATH]:
            call.problem("bad-request", "the request names no path")
        elif self._callers is not None:
            self._callers.find(call, self._dispatch)

    def _dispatch(self, call: Call) -> None:
        if not any(handles(call) for handles in self._http_handlers):
            call.say(404, {"success": False})

    def _http_address(self, node: int) -> str | None:
        place = self.config.nodes.get(node)
        return f"{place.host}:{place.http}" if place is not None and place.http is not None else None

    def _drain(self) -> None:
        """SIGUSR1, as with beanstalkd: this node refuses puts from now on; all other commands work. It cannot be undone."""
        self._counters.draining = True
        self._log.info("draining: this node refuses puts from now on, until it is started again")

    # -- ending -------------------------------------------------------------------------------

    def stopService(self) -> defer.Deferred[None]:
        """Everything accepted is on disk or was not answered: stop at once, but give the lock back in order."""
        if self.node is None:
            return self._stop()
        handed_over: defer.Deferred[None] = defer.Deferred()
        self.node.hand_over(lambda: None if handed_over.called else handed_over.callback(None))
        handed_over.addTimeout(HAND_OVER_S, self._reactor, onTimeoutCancel=lambda failure, seconds: None)
        return handed_over.addCallback(lambda result: self._stop())

    def _stop(self) -> defer.Deferred[None]:
        stopped: defer.Deferred[None] = defer.Deferred()
        if self._ticks is not None and self._ticks.running:
            self._ticks.stop()
        self._http.stop()
        self._peers.abort_all()  # an orderly close would wait for a peer that does not read
        services = defer.maybeDeferred(super().stopService)
        if self.node is None:
            return services
        too_late = self._reactor.callLater(STOP_TIMEOUT_S, stopped.callback, None)

        def closed() -> None:
            if too_late.active():
                too_late.cancel()
                stopped.callback(None)

        def store_closed() -> None:
            services.addBoth(lambda result: closed())

        self.node.stop(store_closed)
        return stopped

    def _fatal(self, cause: BaseException) -> None:
        """Going on could break a promise: say why, and be gone (R17, R35)."""
        if isinstance(cause, TooOld):
            self._log.critical("FATAL: {error}. This node ends now; it loses nothing", error=cause)
        elif isinstance(cause, OSError):
            self._log.critical(
                "FATAL: the data directory {directory} failed: {error}. This node ends now; it loses nothing that was acknowledged",
                directory=self._store.directory,
                error=cause,
            )
        else:
            self._log.failure("FATAL: a bug in raftd. This node ends now, for it could no longer keep its promises", Failure(cause))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_EXIT_FATAL)

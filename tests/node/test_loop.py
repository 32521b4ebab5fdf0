"""The driver and its gateways, on clusters in memory: exactly once, in order, whatever happens to messages."""

from __future__ import annotations

import errno
import gc
import weakref
from random import Random
from typing import Any

import msgspec
import pytest

from raftd.jobs import commands as c
from raftd.jobs import queries
from raftd.jobs import replies as r
from raftd.jobs.budget import ABANDONED_STEPS, COSTS, LONG_ANSWER_STEPS, Share
from raftd.jobs.machine import StateMachine
from raftd.jobs.snapshot import dump, load
from raftd.limits import HEARTBEAT_MS, LIMITS, SESSION_TIMEOUT_MS, Limits
from raftd.node.compaction import SNAPSHOT_WAITS
from raftd.node.gateway import Gateway
from raftd.raft.messages import AddMember, AppendEntries, EntryKind, InstallSnapshot, MemberAddress, RemoveMember, TransferLead
from raftd.raft.outcomes import DONE, AdminResult, Outcome
from raftd.sim.cluster import SimCluster
from raftd.sim.disk import Disk


def started(count: int = 3, **more) -> SimCluster:
    cluster = SimCluster(count, **more)
    cluster.start()
    assert cluster.run(5_000, lambda: cluster.leader != 0 and cluster[cluster.leader].raft.has_committed_own_entry)
    cluster.run(100)
    return cluster


class Client:
    """A session, and what it was told, in order."""

    def __init__(self, cluster: SimCluster, node: int) -> None:
        self.cluster, self.node = cluster, cluster[node]
        self.lost = False
        self.told: list[Any] = []
        self.indices: list[int] = []
        self.session = self.node.open_session(self._lost)

    def _lost(self) -> None:
        self.lost = True

    def _done(self, result: object, index: int) -> None:
        self.told.append(result)
        self.indices.append(index)

    def put(self, body: bytes, tube: str = "") -> None:
        self.submit(c.Put(self.session.number, 10, 0, 60_000, body, tube))

    def reserve(self, timeout_ms: int | None = 0) -> None:
        self.submit(c.Reserve(self.session.number, timeout_ms))

    def submit(self, command: c.Command) -> None:
        self.session.submit(command, self._done)
        self.node.wake()

    def read(self, query: queries.Query) -> None:
        self.session.read(query, self._done)
        self.node.wake()


def follower(cluster: SimCluster) -> int:
    return next(node for node in cluster.config.voters if node != cluster.leader)


def bodies(cluster: SimCluster, node: int) -> list[bytes]:
    return [job.body for _, job in sorted(cluster[node].machine.jobs.items())]


def test_messages_doubled_and_lost_change_nothing_but_time():
    for seed in range(8):
        random = Random(seed)
        cluster = started(seed=seed + 1)
        cluster.network.interfere = lambda sender, to, message, random=random: random.choice((0, 1, 1, 1, 2))
        clients = [Client(cluster, node) for node in (1, 2, 3)]
        for number in range(30):
            clients[number % 3].put(b"%d" % number)
            cluster.run(random.random() * 20)
        cluster.network.interfere = None
        assert cluster.run(10_000, lambda clients=clients: all(len(client.told) == 10 for client in clients))
        cluster.run(500)
        for node in (1, 2, 3):
            assert sorted(bodies(cluster, node), key=int) == [b"%d" % number for number in range(30)]
        for client in clients:
            assert client.indices == sorted(client.indices)
        assert len({cluster[node].machine.digest() for node in (1, 2, 3)}) == 1


def test_refusals_without_progress_double_the_wait():
    """Seed 3003447: a node that waited for a snapshot was refused and sent its batches again every 20 ms, which kept the leader's log
    growing faster than the snapshot could be sent."""
    gateway = Gateway(1, 1, 500, Share(), COSTS, LIMITS)
    waits = []
    now_ms = 0
    for _ in range(8):
        (forward,) = gateway.collect(now_ms)
        gateway.refused(c.ForwardRefused(1, forward.attempt), now_ms)
        began_ms = now_ms
        while not gateway.collect(now_ms + 1):
            now_ms += 1
        waits.append(now_ms + 1 - began_ms)
        gateway.resend()
        now_ms += 1
    assert waits == [20, 40, 80, 160, 320, 500, 500, 500]
    gateway.leader_changed()
    (forward,) = gateway.collect(now_ms)
    gateway.refused(c.ForwardRefused(1, forward.attempt), now_ms)
    assert gateway.collect(now_ms + 19) == []
    assert gateway.collect(now_ms + 20) != []


def test_batches_keep_their_order_through_refusals():
    cluster = started(limits=Limits(uncommitted_bytes=4_000, batch_bytes=1_500))
    client = Client(cluster, follower(cluster))
    for number in range(60):
        client.put(b"%d" % number + bytes(700))
    assert cluster.run(20_000, lambda: len(client.told) == 60)
    assert [reply.id for reply in client.told] == list(range(1, 61))
    assert [int(body.rstrip(b"\0")) for body in bodies(cluster, cluster.leader)] == list(range(60))


def test_a_gateway_over_its_limit_says_so_for_certain_and_in_order():
    cluster = started(limits=Limits(gateway_bytes=5_000))
    node = follower(cluster)
    client = Client(cluster, node)
    cluster.partition({1}, {2}, {3})
    for _ in range(10):
        client.put(bytes(1_000))
    cluster.run(100)
    assert client.told == []  # in order: those before are not answered yet
    cluster.heal()
    assert cluster.run(10_000, lambda: len(client.told) == 10)
    kinds = [type(reply) for reply in client.told]
    assert kinds[:5] == [r.Inserted] * 5
    assert r.OutOfMemory in kinds
    assert len(bodies(cluster, node)) == kinds.count(r.Inserted)


def test_effects_and_answers_keep_the_order_of_commands():
    cluster = started()
    node = follower(cluster)
    client = Client(cluster, node)
    client.put(b"a")
    client.read(queries.peek(1))
    client.put(b"b")
    client.read(queries.peek(2))
    client.read(queries.peek(3))
    client.reserve(0)
    client.read(queries.stats_job(1))
    cluster.run(200)
    kinds = [type(item).__name__ for item in client.told]
    assert kinds == ["Inserted", "Job", "Inserted", "Job", "NoneType", "Reserved", "list"]
    assert dict(client.told[-1])["state"] == "reserved"


def test_nothing_passes_a_reserve_that_can_wait():
    cluster = started()
    client, other = Client(cluster, 1), Client(cluster, 2)
    client.reserve(None)
    client.put(b"mine")
    client.session.local(lambda: "local", client._done)
    cluster.run(100)
    assert client.told == []
    other.put(b"theirs")
    cluster.run(100)
    assert [type(item) for item in client.told] == [r.Reserved, r.Inserted, str]


def test_a_read_waits_for_a_quorum_and_sees_acknowledged_commands():
    cluster = started()
    writer, reader = Client(cluster, cluster.leader), Client(cluster, follower(cluster))
    writer.put(b"x")
    assert cluster.run(1_000, lambda: writer.told)
    reader.read(queries.peek(1))  # at once: this node may not have applied it yet
    cluster.run(100)
    assert reader.told[0].body == b"x"
    assert reader.indices[0] >= writer.indices[0]
    cluster.partition({1}, {2}, {3})
    reader.read(queries.peek(1))
    cluster.run(3_000)
    assert len(reader.told) == 1
    cluster.heal()
    assert cluster.run(5_000, lambda: len(reader.told) == 2)


def test_a_read_waits_until_the_very_entry_it_was_promised_is_applied():
    cluster = started(limits=Limits(apply_steps=1))  # an entry a turn: every lag happens
    away = follower(cluster)
    writer, reader = Client(cluster, cluster.leader), Client(cluster, away)
    reader.read(queries.peek(1))
    assert cluster.run(1_000, lambda: reader.told)
    cluster.partition({away}, {1, 2, 3} - {away})
    for count in range(1, 11):
        writer.put(b"x")
        assert cluster.run(1_000, lambda count=count: len(writer.told) == count)
    cluster.heal()
    reader.read(queries.peek(10))
    assert cluster.run(5_000, lambda: len(reader.told) == 2)
    assert reader.told[1] is not None
    assert reader.indices[1] >= writer.indices[-1]


def test_a_closed_connection_stops_waiting_and_returns_jobs():
    cluster = started()
    node = follower(cluster)
    gone, other = Client(cluster, node), Client(cluster, cluster.leader)
    gone.reserve(None)
    cluster.run(50)
    other.put(b"x")
    gone.session.close()
    gone.node.wake()
    cluster.run(100)
    assert gone.told == []
    other.reserve(0)
    cluster.run(50)
    assert isinstance(other.told[-1], r.Reserved)


def test_the_leader_sends_the_commit_at_once_to_waiting_clients():
    cluster = started()
    client = Client(cluster, follower(cluster))
    asked = cluster.scheduler.seconds()
    client.put(b"x")
    assert cluster.run(1_000, lambda: client.told)
    assert cluster.scheduler.seconds() - asked < HEARTBEAT_MS / 2000


def test_with_no_timers_and_no_traffic_nothing_is_appended():
    cluster = started()
    before = cluster[cluster.leader].raft.log.last_index
    cluster.run(2_000)
    assert cluster[cluster.leader].raft.log.last_index == before


def test_a_thousand_timers_cost_a_hundred_entries():
    cluster = started()
    client = Client(cluster, 1)
    for number in range(1_000):
        client.submit(c.Put(client.session.number, 0, 1_000 + number, 60_000, b""))
    cluster.run(500)
    before = cluster[cluster.leader].raft.log.last_index
    cluster.run(3_000)
    assert len(cluster[1].machine.tubes["default"].ready) == 1_000
    assert cluster[cluster.leader].raft.log.last_index - before <= 110


def test_the_settings_of_the_leader_become_everybodys():
    cluster = started()
    assert {cluster[node].machine.settings for node in (1, 2, 3)} == {cluster.config.settings}
    assert all(cluster[node].machine.settings_index > 0 for node in (1, 2, 3))


def test_entries_that_are_no_payload_change_nothing_anywhere():
    cluster = started()
    leader = cluster[cluster.leader]
    leader.raft.propose([(EntryKind.BATCH, b"\xc1junk"), (EntryKind.BATCH, b"")])
    leader.wake()
    cluster.run(200)
    assert cluster.failures == []
    assert len({cluster[node].machine.digest() for node in (1, 2, 3)}) == 1


def test_r17_a_node_whose_disk_fails_ends_itself_and_the_rest_goes_on():
    for operation in ("write", "sync"):
        cluster = started()
        victim = cluster.leader
        client = Client(cluster, follower(cluster))

        def fault(what: str, operation: str = operation) -> None:
            if what == operation:
                raise OSError(errno.EIO, "input/output error")

        cluster.disks[victim].fault = fault
        client.put(b"x")
        cluster.run(5_000, lambda client=client: client.told)
        assert [node for node, _ in cluster.failures] == [victim]
        assert isinstance(client.told[0], r.Inserted)


@pytest.mark.parametrize("place", ["tick", "ready", "apply"])
def test_r35_an_exception_inside_a_node_stops_it_loudly(place):
    cluster = started()
    node = cluster[1]

    def bug(*args: object) -> None:
        raise RuntimeError("a bug")

    if place == "apply":
        node.machine.apply = bug
        Client(cluster, 2).put(b"x")
    else:
        setattr(node.raft, place, bug)
    cluster.run(200)
    assert [(number, str(error)) for number, error in cluster.failures] == [(1, "a bug")]


def test_without_a_quorum_clients_that_come_and_go_leave_nothing_behind():
    cluster = started()
    node = follower(cluster)
    cluster.partition({1}, {2}, {3})
    for _ in range(500):
        client = Client(cluster, node)
        client.submit(c.Watch(client.session.number, "t"))
        client.session.close()
    gateway = cluster[node].gateway
    assert (len(gateway._waiting), len(gateway._closes), gateway.held_bytes) == (0, 0, 0)
    cluster.heal()
    cluster.run(2_000)
    assert "t" not in cluster[node].machine.tubes


def test_a_command_on_a_closed_session_is_dropped_and_not_counted():
    cluster = started()
    client = Client(cluster, 1)
    client.session.close()
    client.put(bytes(1_000))
    cluster.run(100)
    assert client.told == []
    assert cluster[1].gateway.held_bytes == 0


def test_puts_held_behind_a_waiting_reserve_count_too():
    cluster = started(limits=Limits(gateway_bytes=5_000))
    client, other = Client(cluster, 1), Client(cluster, 2)
    client.reserve(None)
    for _ in range(10):
        client.put(bytes(1_000))
    assert cluster[1].gateway.refuses(c.Put(1, 0, 0, 1_000, b""))
    other.put(b"x")
    cluster.run(200)
    kinds = [type(reply) for reply in client.told]
    assert kinds == [r.Reserved] + [r.Inserted] * 5 + [r.OutOfMemory] * 5
    assert cluster[1].gateway.held_bytes == 0


def test_a_new_incarnation_is_not_spoken_of_before_it_is_durable():
    """Or the next process could take the same number, and what the one before acknowledged would count for it."""
    cluster = started()
    node = follower(cluster)
    Client(cluster, node).put(b"x")
    cluster.partition({node}, set(cluster.config.voters) - {node})
    cluster.run(6_000)
    heard = []

    def note(sender: int, to: int, message: object) -> int:
        if sender == node:
            heard.append(getattr(message, "incarnation", 1))
        return 1

    cluster.network.interfere = note
    cluster.processes[node].worker.stalled = True
    cluster.heal()
    cluster.run(1_000)
    assert cluster[node].gateway.is_closed
    assert set(heard) == {1}
    assert cluster[node].hello().incarnation == 1
    cluster.processes[node].worker.resume()
    cluster.run(1_000)
    assert 2 in heard
    assert not cluster[node].gateway.is_closed


def test_a_leader_that_was_stopped_for_a_while_gives_nobody_up():
    cluster = started()
    leader = cluster.leader
    client = Client(cluster, follower(cluster))
    client.reserve(None)
    cluster.run(100)
    cluster.pause(7_000)
    cluster.run(300)
    assert cluster.leader == leader
    assert not client.lost
    Client(cluster, leader).put(b"x")
    cluster.run(100)
    assert isinstance(client.told[0], r.Reserved)


def test_a_read_never_sees_the_session_of_an_earlier_process():
    cluster = started()
    node = follower(cluster)
    old = Client(cluster, node)
    old.submit(c.Use(old.session.number, "secret"))
    cluster.run(100)
    cluster.crash(node)
    cluster.network.interfere = lambda sender, to, message: 0 if sender == node and isinstance(message, c.Forward) else 1
    cluster.start(node)
    new = Client(cluster, node)
    assert new.session.number == old.session.number
    new.read(queries.list_tube_used)
    assert cluster.run(2_000, lambda: new.told)
    assert new.told == ["default"]
    assert cluster[node].machine.session(node, new.session.number) is not None  # the old one is still in the state


def test_nodes_of_a_new_cluster_need_equal_configurations():
    cluster = SimCluster(3)
    cluster.start()
    hello = cluster[1].hello()
    assert hello.cluster_id == b""
    accepted = []
    refusal = cluster[2].handle_hello(msgspec.structs.replace(hello, voters=(1, 2, 3, 4)), lambda: accepted.append(True))
    assert "they must be the same everywhere" in refusal.text
    assert accepted == []


def test_who_may_speak_with_a_cluster_that_is_born():
    cluster = started()
    hello = cluster[1].hello()
    accepted = []

    def met(**changes) -> str | None:
        refusal = cluster[2].handle_hello(msgspec.structs.replace(hello, **changes), lambda: accepted.append(True))
        return refusal.text if refusal is not None else None

    assert "is no member of this cluster: `raftd member add`" in met(node=4, cluster_id=b"")
    assert "another cluster of the same name" in met(cluster_id=b"x" * 16)
    assert "which this node is" in met(node=2)
    assert "its disk was wiped or replaced" in met(directory_id=b"y" * 16)
    assert accepted == []
    assert met(voters=(1, 9)) is None  # its file is old: that is no matter any more
    cluster.run(10)
    assert accepted == [True]
    # this node may not know yet who was added since
    assert met(node=4, directory_id=b"z" * 16) is None
    assert 4 not in cluster[2]._store.identity.peers


def test_r28_an_early_hello_is_recognised_by_its_disk():
    cluster = started()
    hello = msgspec.structs.replace(cluster[1].hello(), node=4, directory_id=b"z" * 16)
    node = cluster[follower(cluster)]
    assert node.handle_hello(hello, lambda: None) is None
    results: list[AdminResult] = []
    cluster[cluster.leader].administer(AddMember(4, MemberAddress("127.0.0.1", 7_004)), results.append)
    cluster.run(200)
    assert results == [DONE]
    assert node._store.identity.peers[4] == b"z" * 16
    refusal = node.handle_hello(msgspec.structs.replace(hello, directory_id=b"y" * 16), lambda: None)
    assert "its disk was wiped or replaced" in refusal.text


def test_a_long_frame_of_the_leader_causes_no_election():
    cluster = started()
    quiet = follower(cluster)
    cluster.network.interfere = lambda sender, to, message: 0 if to == quiet and isinstance(message, AppendEntries) else 1
    for _ in range(200):
        cluster[quiet].hearing_from(cluster.leader)
        cluster.run(10)
    assert cluster[quiet].status()["role"] == "follower"


def test_the_first_put_of_a_new_cluster_knows_its_settings():
    cluster = SimCluster(1)
    cluster.config = msgspec.structs.replace(cluster.config, settings=c.Settings(200_000, SESSION_TIMEOUT_MS))
    cluster.start()
    client = Client(cluster, 1)
    client.put(b"x" * 100_000)
    assert cluster.run(5_000, lambda: bool(client.told))
    assert client.told == [r.Inserted(1)]


# -- snapshots ---------------------------------------------------------------------------------


#: A snapshot after every kilobyte, and segments as small.
SMALL_LOGS = Limits(segment_bytes=1_000, snapshot_least_bytes=1_000, snapshot_factor=0)


def purge_beyond(cluster: SimCluster, away: int, writer: Client) -> None:
    """`writer` puts until no log holds what node `away` needs next."""
    had = cluster[away].raft.log.last_index
    while cluster[cluster.leader].raft.log.offset <= had:
        writer.put(b"x" * 100)
        cluster.run(10)


def left_behind(cluster: SimCluster) -> tuple[int, int]:
    """(a node, another) of three; the first is cut off until the others' logs begin behind all that it has."""
    away = follower(cluster)
    other = cluster.leader
    cluster.partition({away}, {1, 2, 3} - {away})
    client = Client(cluster, other)
    had = cluster[away].raft.log.last_index
    for number in range(100):
        client.put(b"%d" % number * 100)
        cluster.run(10)
        if cluster[other].raft.log.offset > had:
            break
    assert cluster[other].raft.log.offset > had
    return away, other


def caught_up(cluster: SimCluster) -> None:
    cluster.heal()
    assert cluster.run(10_000, lambda: len({cluster[node].machine.applied_index for node in (1, 2, 3)}) == 1)
    assert len({cluster[node].machine.digest() for node in (1, 2, 3)}) == 1


def test_a_node_that_was_cut_off_for_too_long_takes_over_a_snapshot():
    cluster = started(limits=SMALL_LOGS)
    away, other = left_behind(cluster)
    caught_up(cluster)
    assert cluster[away].raft.log.offset == cluster[away].raft.snapshot.index
    assert cluster[away].status()["applied-index"] == cluster[other].status()["applied-index"]
    client = Client(cluster, away)
    client.put(b"and it serves")
    cluster.run(200)
    assert type(client.told[0]) is r.Inserted


def test_clients_of_a_node_that_loads_a_snapshot_get_what_is_known():
    """The outcome of what was applied in it is unknown here; who still waits in it goes on waiting; the rest is sent again."""
    cluster = started(limits=SMALL_LOGS)
    away = follower(cluster)
    waits, idle, unknown, later = (Client(cluster, away) for _ in range(4))
    for client in (waits, idle, unknown, later):
        client.submit(c.Watch(client.session.number, "jobs"))
        client.submit(c.Ignore(client.session.number, "default"))
    cluster.run(100)
    waits.reserve(None)
    cluster.run(100)
    others = {1, 2, 3} - {away}
    unknown.put(b"is it there?", "elsewhere")
    cluster.network.cut_off({(node, away) for node in others})  # it arrives, and nothing comes back
    cluster.run(2_000)
    assert unknown.told[2:] == []
    assert any(job.body == b"is it there?" for node in others for job in cluster[node].machine.jobs.values())
    cluster.partition({away}, others)
    later.put(b"asked while alone", "elsewhere")
    writer = Client(cluster, cluster.leader)
    purge_beyond(cluster, away, writer)
    caught_up(cluster)
    cluster.run(500)
    assert unknown.lost
    assert not any(client.lost for client in (waits, idle, later))
    assert waits.told[2:] == []
    assert type(later.told[2]) is r.Inserted
    writer.put(b"for who waits", "jobs")
    cluster.run(500)
    assert type(waits.told[2]) is r.Reserved
    caught_up(cluster)


def test_a_gateway_closed_in_a_snapshot_opens_again():
    cluster = started(limits=SMALL_LOGS)
    away = follower(cluster)
    client = Client(cluster, away)
    client.reserve(None)
    cluster.run(100)
    cluster.partition({away}, {1, 2, 3} - {away})
    cluster.run(SESSION_TIMEOUT_MS + 2_000)
    writer = Client(cluster, cluster.leader)
    purge_beyond(cluster, away, writer)
    caught_up(cluster)
    assert client.lost
    fresh = Client(cluster, away)
    fresh.reserve(0)
    cluster.run(500)
    assert type(fresh.told[0]) is r.Reserved


def test_applied_entries_leave_memory_and_come_from_disk():
    cluster = started(limits=Limits(segment_bytes=1_000, log_memory_bytes=500))
    away = follower(cluster)
    cluster.crash(away)
    client = Client(cluster, cluster.leader)
    for number in range(200):
        client.put(b"%d" % number * 30)
        cluster.run(5)
    cluster.run(500)
    log = cluster[cluster.leader].raft.log
    assert log.last_index - log.forgotten_index < 50
    assert log.offset == 0
    cluster.start(away)
    caught_up(cluster)
    assert len(cluster[away].machine.jobs) == 200


def test_the_log_stays_a_while_for_a_snapshot_that_is_on_its_way():
    """A transfer that takes longer than two snapshots began anew each time, and never came to an end."""
    cluster = started(limits=msgspec.structs.replace(SMALL_LOGS, snapshot_chunk_bytes=100))
    leader, away = cluster.leader, follower(cluster)
    client = Client(cluster, leader)

    def another_generation() -> None:
        before = cluster[leader].raft.snapshot
        for _ in range(200):
            client.put(b"x" * 500)
            client.submit(c.Delete(client.session.number, len(client.told) // 2 + 1))
            cluster.run(20)
            if cluster[leader].raft.snapshot is not before:
                return
        raise AssertionError("no snapshot")

    cluster.crash(away)
    for _ in range(3):
        another_generation()
    # the first pieces arrive, then no more: they are heard, and the transfer stays where it is
    cluster.network.interfere = lambda sender, to, message: 0 if isinstance(message, InstallSnapshot) and message.offset > 0 else 1
    cluster.start(away)
    assert cluster.run(3_000, lambda: (t := cluster[leader].raft.progress[away].transfer) is not None and bool(t.have))
    transfer = cluster[leader].raft.progress[away].transfer
    for _ in range(SNAPSHOT_WAITS):
        another_generation()
        cluster.run(100)
        assert cluster[leader].raft.progress[away].transfer is transfer
    for _ in range(3):
        another_generation()
        cluster.run(100)
    assert cluster[leader].raft.progress[away].transfer is not transfer  # it has had its time
    cluster.network.interfere = None
    assert cluster.run(20_000, lambda: cluster[away].machine.applied_index == cluster[leader].machine.applied_index)


@pytest.mark.parametrize("asked", ["the leader", "another"])
def test_a_removed_leader_transfers_first_and_the_asker_is_answered(asked):
    """A newcomer's test: the node that could have said so was gone, and nobody knew whether it was done."""
    cluster = started()
    leader = cluster.leader
    node = leader if asked == "the leader" else follower(cluster)
    results: list[AdminResult] = []
    cluster[node].administer(RemoveMember(leader), results.append)
    assert cluster.run(1_000, lambda: bool(results))
    assert results == [DONE]
    assert leader not in cluster[node].raft.membership.members
    others = [other for other in cluster.config.voters if other != leader]
    assert any(cluster[other].raft.is_leader for other in others)


def test_r27_a_removed_learner_that_heard_nothing_is_told_when_it_speaks():
    """Seed 4001300: its connections stayed open, so no hello of it was refused, and its clients waited for ever."""
    cluster = started()
    removed: list[object] = []
    cluster.was_removed = removed.append
    results: list[AdminResult] = []
    cluster[cluster.leader].administer(AddMember(4, MemberAddress("sim", 4)), results.append)
    assert cluster.run(3_000, lambda: results == [DONE])
    cluster.network.interfere = lambda sender, to, message: 0 if sender == 4 else 1  # so it never counts as caught up
    cluster.disks[4] = Disk()
    cluster.start(4)
    assert cluster.run(3_000, lambda: cluster[4].raft.leader == cluster.leader)
    cluster.network.interfere = lambda sender, to, message: 0 if 4 in (sender, to) else 1
    cluster[cluster.leader].administer(RemoveMember(4), results.append)
    assert cluster.run(3_000, lambda: results == [DONE, DONE])
    cluster[cluster.leader].administer(TransferLead(follower(cluster)), results.append)  # a new leader knows nothing of node 4
    assert cluster.run(3_000, lambda: results == [DONE, DONE, DONE])
    cluster.network.interfere = None
    Client(cluster, 4).put(b"x")
    assert cluster.run(10_000, lambda: removed == [cluster.processes[4]])


def test_what_an_operator_asks_during_an_election_waits_for_the_leader():
    cluster = started()
    old = cluster.leader
    cluster.crash(old)
    asked = follower(cluster)
    cluster.run(200, lambda: cluster[asked].raft.leader == 0)
    cluster[asked].raft.leader = 0  # it has just heard that there is none
    results: list[AdminResult] = []
    cluster[asked].administer(AddMember(9, MemberAddress("sim", 9)), results.append)
    assert results == []
    assert cluster.run(4_000, lambda: bool(results))
    assert results == [DONE]


def test_without_a_quorum_an_operator_hears_that_there_is_no_leader():
    cluster = started()
    asked = follower(cluster)
    for node in cluster.config.voters:
        if node != asked:
            cluster.crash(node)
    cluster.run(2_000)
    results: list[AdminResult] = []
    cluster[asked].administer(AddMember(9, MemberAddress("sim", 9)), results.append)
    cluster.run(4_000)
    assert results == []
    cluster.run(2_000)
    assert [result.outcome for result in results] == [Outcome.NO_LEADER]


def test_r28_a_wiped_disk_is_refused_by_a_member_that_has_never_met_it():
    cluster = started()
    cluster.run(500)
    directories = {node: process.store.identity.directory_id for node, process in cluster.processes.items()}
    assert [process.node.machine.directories for process in cluster.processes.values()] == [directories] * 3
    store = cluster.processes[1].store
    store.identity = msgspec.structs.replace(store.identity, peers={})  # as of a node that has come later
    hello = msgspec.structs.replace(cluster[2].hello(), directory_id=b"another one 1234")
    refusal = cluster[1].handle_hello(hello, lambda: None)
    assert refusal is not None
    assert "its disk was wiped or replaced" in refusal.text
    assert cluster[1].handle_hello(cluster[2].hello(), lambda: None) is None


@pytest.mark.parametrize("what", ["link_changed", "hearing_from", "administer"])
def test_r35_an_exception_wherever_something_reaches_the_node_ends_it(what, monkeypatch):
    cluster = started()
    node = cluster[cluster.leader]

    def broken(*args: object) -> None:
        raise RuntimeError("a bug")

    if what == "administer":
        monkeypatch.setattr(node._administration, "ask", broken)
        node.administer(RemoveMember(3), lambda reason: None)
    else:
        monkeypatch.setattr(node.raft, what, broken)
        getattr(node, what)(2)
    assert [str(error) for _, error in cluster.failures] == ["a bug"]


def test_clients_of_a_closed_gateway_are_notified_in_turns():
    cluster = started()
    node = cluster[follower(cluster)]
    clients = [Client(cluster, node.config.node) for _ in range(1_000)]
    for client in clients:
        client.put(b"before")
    cluster.run(1_000)
    cluster[cluster.leader].raft.propose([(EntryKind.BATCH, c.encode_payload(c.CloseGateway(node.config.node, node.gateway.incarnation)))])
    cluster[cluster.leader].wake()
    assert cluster.run(1_000, lambda: any(client.lost for client in clients))
    told = [client.lost for client in clients]
    assert 0 < sum(told) <= LIMITS.answers_steps // ABANDONED_STEPS + 1
    late = clients[-1]
    assert not late.lost
    late.put(b"to nobody")
    assert cluster.run(1_000, lambda: all(client.lost for client in clients))
    cluster.run(500)
    assert len(late.told) == 1
    assert node.machine.total_jobs == 1_000
    assert node.gateway.held_bytes == 0
    assert node.machine.gateways[node.config.node].sessions == {}


def test_a_flood_of_local_answers_keeps_no_entry_from_being_applied():
    cluster = started()
    node = cluster[follower(cluster)]
    answered: list[object] = []
    flood = Client(cluster, node.config.node)

    def more(result: object, index: int) -> None:
        answered.append(result)
        flood.session.local(lambda: None, more, LONG_ANSWER_STEPS)

    for _ in range(500):
        flood.session.local(lambda: None, more, LONG_ANSWER_STEPS)
    client = Client(cluster, node.config.node)
    client.put(b"and yet")
    client.read(queries.stats_tube("default"))
    assert cluster.run(1_000, lambda: len(client.told) == 2)
    assert len(answered) > 100
    flood.session.close()


def test_reads_of_a_gateway_that_was_closed_are_answered_to_nobody():
    """They would be read for no session: of the default tube, whatever their clients use."""
    cluster = started()
    away = follower(cluster)
    clients = [Client(cluster, away) for _ in range(200)]
    for client in clients:
        client.submit(c.Use(client.session.number, "mine"))
    cluster.run(500)
    cluster.partition({away}, set(cluster.config.voters) - {away})
    for client in clients:
        client.read(queries.list_tube_used)
    cluster.run(8_000)  # longer than the session timeout of its sessions
    cluster.heal()
    assert cluster.run(5_000, lambda: all(client.lost for client in clients))
    assert {told for client in clients for told in client.told[1:]} <= {"mine"}


def test_r28_a_member_added_after_a_removal_is_known_by_its_disk():
    cluster = started()
    cluster.run(500)
    results: list[AdminResult] = []
    gone = follower(cluster)
    cluster[cluster.leader].administer(RemoveMember(gone), results.append)
    assert cluster.run(3_000, lambda: results == [DONE])
    cluster[cluster.leader].administer(AddMember(4, MemberAddress("sim", 4)), results.append)
    assert cluster.run(3_000, lambda: results == [DONE, DONE])
    cluster.disks[4] = Disk()
    cluster.start(4)
    assert cluster.run(5_000, lambda: all(4 in process.node.machine.directories for process in cluster.processes.values()))


def test_the_state_before_a_leaders_snapshot_goes_in_parts():
    cluster = started()
    client = Client(cluster, cluster.leader)
    for _ in range(20):
        client.submit(c.PutMany(client.session.number, "t", [c.NewJob(1, 0, 60_000, b"x")] * 1_000))
    node = cluster[follower(cluster)]
    assert cluster.run(20_000, lambda: len(node.machine.jobs) == 20_000)
    before = weakref.ref(node.machine)
    gc.collect()
    gc.disable()
    try:
        node._replace_state(load(list(dump(node.machine))))
        assert before() is not None
        cluster.run(1_000)
        assert before() is None
    finally:
        gc.enable()
    assert len(node.machine.jobs) == 20_000


def test_a_turn_ends_once_its_entries_have_cost_enough():
    cluster = started()
    node = cluster[follower(cluster)]
    others = set(cluster.config.voters) - {node.config.node}
    client = Client(cluster, cluster.leader)
    cluster.partition({node.config.node}, others)
    for number in range(200):
        client.submit(c.PutMany(client.session.number, f"t{number}", [c.NewJob(1, 0, 60_000, b"")] * 100))
        cluster.run(2)
    assert cluster.run(2_000, lambda: len(client.told) == 200)
    turn, used = node._turn, []

    def counted() -> None:
        before = node.turn.entries.used
        turn()
        used.append(node.turn.entries.used - before)

    node._turn = counted
    cluster.heal()
    assert cluster.run(5_000, lambda: node.machine.total_jobs == 20_000)
    dearest = COSTS.command + 100 * COSTS.job
    assert LIMITS.apply_steps < max(used) <= LIMITS.apply_steps + 20 * dearest  # as many as one batch has, at most


def pipelined_watches(client: Client) -> None:
    """The same tube again and again, all at once: what is known of its watch list here is an upper bound."""
    for _ in range(5_000):
        client.submit(c.Watch(client.session.number, "a"))
    for _ in range(200):
        client.reserve(0)


def reserves_of_a_long_watch_list(client: Client) -> None:
    for number in range(1_000):
        client.submit(c.Watch(client.session.number, f"t{number}"))
    client.cluster.run(2_000)
    for _ in range(300):
        client.reserve(0)


@pytest.mark.parametrize("ask", [pipelined_watches, reserves_of_a_long_watch_list])
def test_a_session_that_asks_for_much_keeps_no_other_waiting(ask):
    """It goes to the end of the queue when a batch is full."""
    cluster = started()
    node = cluster[follower(cluster)]
    greedy, other = Client(cluster, node.config.node), Client(cluster, node.config.node)
    ask(greedy)
    before = len(greedy.told)
    other.put(b"one job")
    assert cluster.run(500, lambda: len(other.told) == 1)
    assert cluster.run(20_000, lambda: not greedy.session.unanswered)
    assert len(greedy.told) > before


def test_a_command_as_large_as_a_batch_is_not_passed_over_again_and_again():
    """Others always have something to ask before it: it begins the batch after that in which it had no place."""
    gateway = Gateway(1, 1, 500, Share(), COSTS, LIMITS)
    first, large, second = (gateway.open_session(lambda: None) for _ in range(3))

    def ask(session) -> None:
        for _ in range(100):
            session.submit(c.Reserve(session.number, 0), lambda reply, index: None)

    ask(first)
    large.submit(c.PutMany(large.number, "t", [c.NewJob(1, 0, 60_000, b"x")] * 1_000), lambda reply, index: None)
    ask(second)
    for session in (first, second, first, second):
        gateway._make_batch(0)
        ask(session)
    assert not large.queued


@pytest.mark.parametrize("ask", [pipelined_watches, reserves_of_a_long_watch_list])
def test_no_batch_asks_for_more_steps_than_it_may(ask, monkeypatch):
    cluster = started()
    node = cluster[cluster.leader]
    asked: list[int] = []
    apply_batch, charge = StateMachine._apply_batch, StateMachine.charge_to_batch

    def counted(machine: StateMachine, batch: c.Batch) -> None:
        asked.append(0)
        apply_batch(machine, batch)

    def charged(machine: StateMachine, steps: int) -> None:
        asked[-1] += steps
        charge(machine, steps)

    monkeypatch.setattr(StateMachine, "_apply_batch", counted)
    monkeypatch.setattr(StateMachine, "charge_to_batch", charged)
    client = Client(cluster, node.config.node)
    ask(client)
    for id in range(300):
        client.submit(c.Kick(client.session.number, 5))
        client.submit(c.ReserveJob(client.session.number, id))
    assert cluster.run(30_000, lambda: not client.session.unanswered)
    assert 0 < max(asked) <= COSTS.commands


def test_many_clients_that_stop_waiting_at_once_do_not_make_one_long_entry():
    """Each of them waits in a thousand tubes: the touch that ended such a wait was once counted like any command."""
    cluster = started()
    node = cluster[cluster.leader]
    clients = [Client(cluster, node.config.node) for _ in range(80)]
    for client in clients:
        for number in range(1_000):
            client.submit(c.Watch(client.session.number, f"t{number}"))
        client.reserve(None)
    assert cluster.run(30_000, lambda: node.machine.gateways[node.config.node].waiting == len(clients))
    apply, steps = node.machine.apply, []

    def counted(*entry) -> object:
        before = node.machine.steps
        effects = apply(*entry)
        steps.append(node.machine.steps - before)
        return effects

    node.machine.apply = counted
    for client in clients:
        client.session.stop_waiting()
    assert cluster.run(2_000, lambda: not any(client.session.unanswered for client in clients))
    assert 0 < max(steps) <= COSTS.entry


def test_snapshots_are_due_by_what_was_applied_and_not_by_what_could_be():
    """A turn that ends in the middle of its entries counts only those that it has applied."""
    cluster = started(limits=Limits(apply_steps=50))
    node = cluster[cluster.leader]
    counted = 0
    applied = node.compaction.applied

    def count(entries) -> None:
        nonlocal counted
        counted += len(list(entries))
        applied(entries)

    node.compaction.applied = count
    before = node.machine.applied_index
    client = Client(cluster, cluster.leader)
    for number in range(100):
        client.put(b"job %d" % number)
        cluster.run(0.5)
    assert cluster.run(5_000, lambda: len(client.told) == 100)
    assert counted == node.machine.applied_index - before

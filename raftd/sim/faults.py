"""What goes wrong: each fault of the plan, carried out. One that finds nothing to spoil is not counted.

Many faults aim at the leader, if the seed has drawn so.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

from raftd.jobs.commands import FEATURE_LEVEL
from raftd.raft.messages import AddMember, MemberAddress, PromoteMember, RemoveMember, Snapshot, TransferLead
from raftd.raft.outcomes import AdminResult, Outcome
from raftd.sim.checks import Violation
from raftd.sim.disk import DAMAGES
from raftd.sim.process import Process
from raftd.sim.simulation import Simulation
from raftd.sim.swarm import SHAPES, Event

Numbers = tuple[int, ...]

_MS = 1_000
#: Time for clients to connect before a leader is cut off.
_PROBE_MS = 60
_FORK_MS = 3_000
_FORK_LOOK_US = 2_000
_WRITERS = 6
_LOW_MS = 2_000
_LOW_BYTES = (20_000, 200_000, 2_000_000)
#: How long a node is away for its snapshot, and how long one is waited for.
_AWAY_MS = 3_000
_SNAPSHOT_POLL_US = 500
_SNAPSHOT_TRIES = 10_000
_ASK_AGAIN_MS = 1_000
_ASKED = 10


class Faults:
    """`do` an event; Every method below gets the node, its process if it runs, the
    numbers of the event that decide the rest, and how long it may last; it says whether it did anything."""

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim

    def do(self, event: Event) -> None:
        sim, (number, length, *_) = self._sim, event.numbers
        node = sim.nodes[number % len(sim.nodes)]
        if (number >> 8) % 100 < 100 * sim.options.aims:
            node = sim.leader() or node
        ms = 10 + length % sim.options.longest_ms
        if getattr(self, "_" + event.kind.replace(" ", "_"))(node, sim.running.get(node), event.numbers, ms):
            sim.counted(event.kind)
            sim.note(f"fault: {event.kind}, node {node}, {length}")

    # -- processes and machines ---------------------------------------------------------------

    def _power(self, node: int, process: Process | None, numbers: Numbers, ms: int, power: bool = True) -> bool:
        if process is None:
            return False
        self._sim.end(process, power)
        self._sim.start_later(node, ms)
        return True

    def _kill(self, node: int, process: Process | None, numbers: Numbers, ms: int) -> bool:
        return self._power(node, process, numbers, ms, power=False)

    def _power_in_a_write(self, node: int, process: Process | None, numbers: Numbers, ms: int) -> bool:
        self._sim.disks[node].interrupt_in(1 + numbers[2] % 8, power=True)
        return process is not None

    def _kill_in_a_write(self, node: int, process: Process | None, numbers: Numbers, ms: int) -> bool:
        self._sim.disks[node].interrupt_in(1 + numbers[2] % 8, power=False)
        return process is not None

    def _power_at_an_answer(self, node: int, process: Process | None, numbers: Numbers, ms: int) -> bool:
        """A leader loses power as soon as it has acknowledged a put, when no other node may know that it was committed; who reads
        elsewhere must see it."""
        sim = self._sim
        leader = sim.leader()
        others = [other for other in sim.nodes if other != leader]
        if leader is None or not others:
            return False
        leading = sim.running[leader]
        writer = sim.visit(leader, 1)
        readers = [sim.visit(other, 3) for other in others[:4]]
        for reader in readers:
            reader.do("peek", (0, 0, 0, 3))

        def answered() -> None:
            if sim.healed or not leading.alive:
                return
            sim.counted("power at an answer: came")
            sim.end(leading, power=True)
            sim.start_later(leader, 3 * sim.options.election_timeout_ms + ms)
            if numbers[2] % 2:
                self._spoil_the_tail(leader if numbers[2] % 4 == 1 else others[numbers[3] % len(others)], ms)
            for step in range(30):
                for reader in readers:
                    sim.scheduler.after(step * sim.options.election_timeout_ms * _MS // 10, reader.do, "peek", (0, 0, step, 3))

        writer.when_answered = lambda: sim.scheduler.after(0, answered)
        writer.do("put", (0, 0, 0, 3))
        return True

    def _spoil_the_tail(self, node: int, ms: int) -> None:
        """This node loses power too, and its last batch is damaged, which it has just acknowledged: its vote will be wanted while
        it is in doubt. It may lose power again while it starts, or soon after."""
        sim = self._sim
        if self._sim.damage.node not in (None, node) or node in sim.unusable:
            return
        self._power(node, sim.running.get(node), (), ms)
        if self._spoil(node, "rot tail"):
            choice = sim.random.randrange(3)
            if choice == 0:
                sim.disks[node].interrupt_in(1 + sim.random.randrange(15), power=True)
            elif choice == 1:
                sim.scheduler.after((ms + sim.random.randrange(1, 60)) * _MS, self._once_more, node)

    def _once_more(self, node: int) -> None:
        process = self._sim.running.get(node)
        if process is not None and not self._sim.healed:
            self._sim.end(process, power=True)
            self._sim.start_later(node, 10)

    def _transfer(self, node: int, process: Process | None, numbers: Numbers, ms: int) -> bool:
        """Asked at any node, of any node, the leader itself and dead ones among them."""
        asked = self._sim.process_for(numbers[2])
        if asked is None:
            return False
        target = self._sim.nodes[numbers[3] % len(self._sim.nodes)]
        asked.soon(asked.node.administer, TransferLead(target), self._transferred)
        return True

    def _add(self, node: int, process: Process | None, numbers: Numbers, ms: int) -> bool:
        """A new node, which is started when it is known to be a member; sometimes a while later, or never."""
        sim = self._sim
        asked = sim.process_for(numbers[2])
        if asked is None or not sim.spares:
            return False
        new = sim.spares.pop(0)

        def answered(result: AdminResult) -> None:
            sim.counted("add: done" if result.is_done else "add: refused or unknown")
            sim.note(f"node {new} is added: {result}")
            if result.is_done:
                sim.nodes.append(new)
                sim.start_later(new, numbers[3] % sim.options.longest_ms)

        asked.soon(asked.node.administer, AddMember(new, MemberAddress("sim", new)), answered)
        return True

    def _remove(self, node: int, process: Process | None, numbers: Numbers, ms: int) -> bool:
        """Remove a node, unless too few would remain."""
        sim = self._sim
        asked = sim.process_for(numbers[2])
        voters = sim.checks.configuration.voters
        if asked is None or len(voters) <= max(1, len(sim.nodes) // 2) or sim.doubtful() or sim.unusable:
            return False

        def answered(result: AdminResult) -> None:
            sim.counted("remove: done" if result.is_done else "remove: refused or unknown")
            sim.note(f"node {node} is removed: {result}")

        asked.soon(asked.node.administer, RemoveMember(node), answered)
        return True

    def _replace(self, node: int, process: Process | None, numbers: Numbers, ms: int) -> bool:
        """As with damage, only ever one voter's disk is lost. An operator asks until it is done, or has asked often enough."""
        sim = self._sim
        if self._sim.damage.node is not None or not sim.spares or sim.unusable or sim.checks.is_changing:
            return False
        if node not in sim.checks.configuration.voters or len(sim.checks.configuration.voters) < 3:
            return False
        sim.damage.node = node
        if process is not None:
            sim.end(process, power=True)
        sim.unusable.add(node)
        new = sim.spares.pop(0)
        requests: list[AddMember | RemoveMember] = [RemoveMember(node), AddMember(new, MemberAddress("sim", new))]
        if numbers[2] % 2:
            requests.reverse()
        asks = iter(range(_ASKED))

        def ask() -> None:
            if not requests or sim.healed or next(asks, None) is None:
                return
            process = sim.process_for(numbers[3])
            if process is None:
                sim.scheduler.after(_ASK_AGAIN_MS * _MS, ask)
            else:
                process.soon(process.node.administer, requests[0], answered)

        def answered(result: AdminResult) -> None:
            request = requests[0]
            sim.note(f"{request}: {result}")
            if result.outcome in (Outcome.DONE, Outcome.ALREADY_MEMBER, Outcome.NOT_MEMBER):
                sim.counted(f"replace: {'added' if isinstance(request, AddMember) else 'removed'}")
                if isinstance(request, AddMember) and new not in sim.nodes:
                    sim.nodes.append(new)
                    sim.start_later(new, ms)
                del requests[0]
            sim.scheduler.after(_ASK_AGAIN_MS * _MS, ask)

        ask()
        return True

    def _upgrade(self, node: int, process: Process | None, numbers: Numbers, ms: int) -> bool:
        if process is None or process.stopped:  # a stopped process cannot be stopped in order (seed 801225)
            return False
        sim = self._sim
        sim.levels[node] = FEATURE_LEVEL + 1
        if numbers[2] % 2:
            self._orderly_stop(node, process, numbers, 10)
        else:
            self._kill(node, process, numbers, 10)
        return True

    def _transferred(self, result: AdminResult) -> None:
        self._sim.counted("transfer: done" if result.is_done else "transfer: refused, given up or unknown")

    def _orderly_stop(self, node: int, process: Process | None, numbers: Numbers, ms: int) -> bool:
        if process is None or process.stopped:
            return False
        sim = self._sim
        was_leader = process.node.raft.is_leader

        def handed_over() -> None:
            if process.alive:
                gave = was_leader and not process.node.raft.is_leader
                sim.counted("orderly stop: the lead went first" if gave else "orderly stop: at once")
                process.node.stop(stopped)

        def stopped() -> None:
            sim.scheduler.after(0, ended)

        def ended() -> None:
            if process.alive:
                sim.end(process, power=False)
                sim.start_later(node, ms)

        process.soon(process.node.hand_over, handed_over)
        return True

    def _power_everywhere(self, node: int, process: Process | None, numbers: Numbers, ms: int) -> bool:
        return self._lose_all_but(0, ms, 1_000)

    def _lose_all_but(self, spared: int, ms: int, more_ms: int) -> bool:
        sim = self._sim
        lost = [(node, process) for node, process in sorted(sim.running.items()) if node != spared]
        for node, process in lost:
            sim.end(process, power=True)
            sim.start_later(node, ms + sim.random.randrange(more_ms))
        return bool(lost)

    def _stop(self, node: int, process: Process | None, numbers: Numbers, ms: int) -> bool:
        if process is None or process.stopped:
            return False
        process.stop()
        self._sim.scheduler.after((2 * self._sim.options.election_timeout_ms + ms) * _MS, process.resume)
        return True

    def _wall_clock(self, node: int, process: Process | None, numbers: Numbers, ms: int) -> bool:
        self._sim.wall_offset_s[node] += (-3_600, -1, 1, 3_600)[numbers[2] % 4]
        return True

    # -- the network --------------------------------------------------------------------------

    def _cut(self, links: set[tuple[int, int]], ms: int) -> bool:
        network = self._sim.network
        network.cut_off(links)
        self._sim.scheduler.after(ms * _MS, self._end_of_cut, links)
        return bool(links)

    def _end_of_cut(self, links: set[tuple[int, int]]) -> None:
        if self._sim.network.cut is links and not self._sim.healed:
            self._sim.network.heal()

    def _partition(self, node: int, process: Process | None, numbers: Numbers, ms: int) -> bool:
        sim = self._sim
        first = numbers[2] % len(sim.nodes)
        nodes = sim.nodes[first:] + sim.nodes[:first]
        half = len(nodes) // 2
        shape = SHAPES[numbers[3] % len(SHAPES)]
        if shape == "one node":
            hears = {one: {node} if one == node else set(nodes) - {node} for one in nodes}
        elif shape == "halves":
            hears = {one: set(nodes[:half]) if one in nodes[:half] else set(nodes[half:]) for one in nodes}
        elif shape == "bridge":
            hears = {one: set(nodes) if one == node else {node, *(nodes[:half] if one in nodes[:half] else nodes[half:])} for one in nodes}
        else:  # each hears a majority, no two the same
            hears = {one: {nodes[(place + step) % len(nodes)] for step in range(half + 1)} for place, one in enumerate(nodes)}
        links = {(one, other) for one, other in permutations(nodes, 2) if one not in hears[other]}
        if not links:
            return False
        leader = sim.leader()
        if leader is not None and shape in ("one node", "halves"):
            self._probe(leader, _PROBE_MS)
        sim.scheduler.after(_PROBE_MS * _MS, lambda: sim.healed or self._cut(links, ms))
        sim.counted(f"partition: {shape}")
        return True

    def _deaf_leader(self, node: int, process: Process | None, numbers: Numbers, ms: int) -> bool:
        """A leader hears answers late, then its messages are lost; or it hears nothing while all hear it."""
        sim = self._sim
        leader = sim.leader()
        others = [other for other in sim.nodes if other != leader]
        if leader is None or not others:
            return False
        ms += 2 * sim.options.election_timeout_ms
        if numbers[3] % 3 == 0:
            return self._cut({(other, leader) for other in others}, ms)
        timeout_us = sim.options.election_timeout_ms * _MS
        late_us = 3 * timeout_us + numbers[2] % (2 * timeout_us)
        links = {(leader, other) for other in others}

        def later(by_us: int) -> None:
            if not sim.healed:
                sim.network.clogged.update({(other, leader): by_us for other in others})

        for by_us in range(0, late_us, timeout_us // 3):  # step by step: a leader that hears no follower for a timeout steps down
            sim.scheduler.after(by_us, later, by_us)
        sim.scheduler.after(late_us, lambda: sim.healed or self._cut(links, ms))
        self._probe(leader, late_us // _MS)
        return True

    def _probe(self, leader: int, ms: int) -> None:
        """One leader will be cut off in `ms`, and another may be elected: put on one side, read on both, again and again, with
        sessions that are open before."""
        sim = self._sim
        others = [node for node in sim.nodes if node != leader]
        if not others:
            return
        writer = sim.visit(sim.random.choice(others), 3)
        readers = [sim.visit(node, 3) for node in (leader, *others[:3])]

        def read() -> None:
            for reader in readers:  # of the newest job: the number that decides which is 0
                reader.do("peek", (0, 0, 0, 3))

        writer.when_answered = read
        writer.do("put", (0, 0, 0, 3))
        read()
        timeout_us = sim.options.election_timeout_ms * _MS
        for step in range(40):
            at_us = ms * _MS + timeout_us + step * timeout_us // 25
            sim.scheduler.after(at_us, writer.do, "put", (0, 0, step, 3))
            sim.scheduler.after(at_us, read)

    def _fork(self, node: int, process: Process | None, numbers: Numbers, ms: int) -> bool:
        """Two logs with different ends meet in an election: a leader is cut off, with clients that put; another is elected, and
        is gone as soon as the links are back. The one with the longer log may be the one with less."""
        sim = self._sim
        leader = sim.leader()
        if leader is None or len(sim.nodes) < 3:
            return False
        writers = [sim.visit(leader, 8) for _ in range(_WRITERS)]
        for writer in writers:
            writer.do("put", (0, 0, 0, 3))
        links = self._links_of(leader)

        def part() -> None:
            if sim.healed:
                return
            self._cut(links, _FORK_MS)
            for step in range(4):
                for writer in writers:
                    sim.scheduler.after(step * 20 * _MS, writer.do, "put", (0, 0, step, 3))
            poll()

        def poll() -> None:
            if sim.healed or sim.network.cut is not links:
                return
            new = next((other for one, other in sorted(sim.running.items()) if one != leader and other.node.raft.is_leader), None)
            if new is None or (numbers[2] % 4 in (0, 3) and not new.node.raft.has_committed_own_entry):
                sim.scheduler.after(_FORK_LOOK_US, poll)
            elif numbers[2] % 4 == 1:
                self._cut({*links, *self._links_of(new.node_id)}, _FORK_MS)
                self._figure_8(leader, new)
            else:
                sim.end(new, power=True)
                sim.start_later(new.node_id, 4 * sim.options.election_timeout_ms + ms)
                sim.network.heal()
                sim.counted("fork: both sides met")

        sim.scheduler.after(_PROBE_MS * _MS, part)
        return True

    def _links_of(self, node: int) -> set[tuple[int, int]]:
        return {link for other in self._sim.nodes if other != node for link in ((node, other), (other, node))}

    def _figure_8(self, old: int, new: Process) -> None:
        """Paper, figure 8: the newer leader has an entry that no other node has, and is gone; the older one leads again and copies
        what it had to a majority; before that is committed by an entry of its new term it is gone too, and the newer one comes
        back, with an entry of a later term in the same place."""
        sim = self._sim
        timeout_ms = sim.options.election_timeout_ms
        until_us = sim.scheduler.now_us + 10 * timeout_ms * _MS
        term, was_committed = new.node.raft.term, 0

        def wait_for_the_disk() -> None:
            if not new.alive or sim.healed:
                return
            if new.node.raft.log.durable_index < new.node.raft.log.last_index:
                sim.scheduler.after(_FORK_LOOK_US, wait_for_the_disk)
                return
            sim.end(new, power=True)
            sim.network.heal()
            poll()

        def poll() -> None:
            nonlocal was_committed
            process = sim.running.get(old)
            raft = process.node.raft if process is not None else None
            if sim.healed or sim.scheduler.now_us > until_us or raft is None:
                sim.start(new.node_id)
                return
            if raft.is_leader and raft.term > term:
                copied = 1 + sum(progress.match_index > was_committed for progress in raft.progress.values())
                if raft.has_committed_own_entry or copied > len(sim.nodes) // 2:
                    assert process is not None
                    sim.counted(f"fork: figure 8{' (too late)' if raft.has_committed_own_entry else ''}")
                    sim.end(process, power=True)
                    sim.start_later(old, 4 * timeout_ms)
                    sim.start(new.node_id)
                    return
            else:
                was_committed = raft.log.commit_index
            sim.scheduler.after(_FORK_LOOK_US // 10, poll)

        wait_for_the_disk()

    def _one_way(self, node: int, process: Process | None, numbers: Numbers, ms: int) -> bool:
        other = self._sim.nodes[numbers[2] % len(self._sim.nodes)]
        return other != node and self._cut({(node, other)}, ms)

    def _break(self, node: int, process: Process | None, numbers: Numbers, ms: int) -> bool:
        other = self._sim.nodes[numbers[2] % len(self._sim.nodes)]
        return other != node and self._sim.network.break_connection(min(node, other), max(node, other))

    def _clog(self, node: int, process: Process | None, numbers: Numbers, ms: int) -> bool:
        other = self._sim.nodes[numbers[2] % len(self._sim.nodes)]
        clogged = self._sim.network.clogged
        clogged[node, other] = 20_000 + numbers[3] % 800_000
        self._sim.scheduler.after(ms * _MS, clogged.pop, (node, other), None)
        return other != node

    def _send_away(self, node: int, process: Process | None, numbers: Numbers) -> bool:
        """Let a follower be away for so long that it may need a snapshot; whether it is one that can be spared."""
        if process is None or process.node.raft.is_leader or len(self._sim.nodes) < 3:
            return False
        self._sim.end(process, power=bool(numbers[2] & 1))
        self._sim.start_later(node, _AWAY_MS)
        return True

    def _cut_in_a_snapshot(self, node: int, process: Process | None, numbers: Numbers, ms: int) -> bool:
        sim = self._sim
        if not self._send_away(node, process, numbers):
            return False

        def cut() -> bool:
            leader = sim.running.get(sim.leader() or 0)
            transfer = None
            if leader is not None and node in leader.node.raft.progress:
                transfer = leader.node.raft.progress[node].transfer
            if leader is None or transfer is None or not 0 < (transfer.have or 0) < transfer.snapshot.size_bytes:
                return False
            pair = min(node, leader.node_id), max(node, leader.node_id)
            choice = numbers[3] % 4
            sim.counted("cut in a snapshot: came")
            if choice == 0:
                sim.network.break_connection(*pair)
            elif choice == 1:
                self._cut({pair, pair[::-1]}, ms)
            else:
                self._power(node if choice == 2 else leader.node_id, sim.running.get(node) if choice == 2 else leader, numbers, ms)
            return True

        self._try_in_a_snapshot(cut)
        return True

    def _try_in_a_snapshot(self, spoil: Callable[[], bool]) -> None:
        """Once a node that was sent away is back: call `spoil` again and again until it has found a snapshot on its way."""
        sim = self._sim
        tries = iter(range(_SNAPSHOT_TRIES))

        def poll() -> None:
            if not sim.healed and next(tries, None) is not None and not spoil():
                sim.scheduler.after(_SNAPSHOT_POLL_US, poll)

        sim.scheduler.after(_AWAY_MS * _MS, poll)

    def _rotted_transfer(self, node: int, process: Process | None, numbers: Numbers, ms: int) -> bool:
        """Of a node that was away: what it has got of the snapshot is read back before it counts, and asked for again."""
        sim = self._sim
        if not self._send_away(node, process, numbers):
            return False

        def rot() -> bool:
            receiving = sim.running.get(node)
            snapshots = receiving.store.snapshots if receiving is not None else None
            if snapshots is None or not snapshots.is_incomplete or not sim.disks[node].rot_received(sim.random):
                return False
            sim.counted("rotted transfer: came")
            return True

        self._try_in_a_snapshot(rot)
        return True

    def _backup(self, node: int, process: Process | None, numbers: Numbers, ms: int) -> bool:
        """A copy of the state, fetched piece by piece: it is the state of the entry that it says."""
        sim = self._sim
        asked = sim.process_for(numbers[2])
        if asked is None:
            return False
        copied = bytearray()

        def taken(snapshot: Snapshot | None, why_not: str) -> None:
            if snapshot is None:
                sim.counted("backup: there is none")
                return

            def copy(data: bytes) -> None:
                copied.extend(data)
                if len(copied) >= snapshot.size_bytes:
                    sim.checks.backed_up(snapshot.index, bytes(copied))
                    sim.counted("backup: copied")
                elif not asked.alive or not asked.node.copy(snapshot.index, len(copied), copy):
                    sim.counted("backup: gone before all of it was copied")

            copy(b"")

        asked.soon(asked.node.backup, taken)
        return True

    def _impossible_change(self, node: int, process: Process | None, numbers: Numbers, ms: int) -> bool:
        sim = self._sim
        asked = sim.process_for(numbers[2])
        if asked is None:
            return False
        members = sorted(sim.checks.members)
        member, stranger = members[numbers[3] % len(members)], 1_000
        request = (
            AddMember(member, MemberAddress("sim", stranger)),
            AddMember(0, MemberAddress("sim", stranger)),
            AddMember(stranger, MemberAddress("no host name", stranger)),
            RemoveMember(stranger),
            PromoteMember(stranger),
            TransferLead(stranger),
        )[numbers[3] % 6]

        def answered(result: AdminResult) -> None:
            sim.note(f"{request}: {result}")
            if result.is_done and not (isinstance(request, AddMember) and request.node not in sim.checks.members):
                raise Violation(f"R28: {request} was done")

        asked.soon(asked.node.administer, request, answered)
        return True

    # -- disks --------------------------------------------------------------------------------

    def _slow_disk(self, node: int, process: Process | None, numbers: Numbers, ms: int) -> bool:
        self._sim.slow_until_us[node] = self._sim.scheduler.now_us + ms * _MS
        return True

    def _stalled_disk(self, node: int, process: Process | None, numbers: Numbers, ms: int) -> bool:
        if process is None or process.worker.stalled:
            return False
        process.worker.stall()
        self._sim.scheduler.after(ms * _MS, process.worker.resume)
        return True

    def _failing_disk(self, node: int, process: Process | None, numbers: Numbers, ms: int) -> bool:
        self._sim.disks[node].fail_next(("write", "sync")[numbers[2] % 2])
        return process is not None

    def _unreadable_disk(self, node: int, process: Process | None, numbers: Numbers, ms: int) -> bool:
        if not self._power(node, process, numbers, ms):
            return False
        self._sim.disks[node].fail_next("read")
        return True

    def _full_disk(self, node: int, process: Process | None, numbers: Numbers, ms: int) -> bool:
        """For a while, also for the processes that start meanwhile."""
        disk = self._sim.disks[node]
        if disk.is_full:
            return False
        disk.is_full = True
        self._sim.scheduler.after(ms * _MS, disk.make_space)
        return True

    def _low_disk(self, node: int, process: Process | None, numbers: Numbers, ms: int) -> bool:
        sim = self._sim
        for disk in sim.disks.values() if numbers[2] % 2 else [sim.disks[node]]:
            disk.leave_space(_LOW_BYTES[numbers[3] % len(_LOW_BYTES)])
            sim.scheduler.after((_LOW_MS + ms) * _MS, disk.give_space)
        return True

    def _damaged_disk(self, node: int, process: Process | None, numbers: Numbers, ms: int) -> bool:
        """Only ever one voter's, so that a good copy exists. Sometimes all lose power with it, and most come back later: then its
        vote is wanted while it is in doubt. Sometimes it loses power again while it starts."""
        sim = self._sim
        if self._sim.damage.node is not None:
            node = self._sim.damage.node  # the plan does not know whose it is
            process = sim.running.get(node)
        if node in sim.unusable:
            return False
        if numbers[3] % 2:
            self._lose_all_but(node, ms, 3_000)
        self._power(node, process, numbers, ms)
        for place in range(len(DAMAGES)):
            if self._spoil(node, DAMAGES[(numbers[2] + place) % len(DAMAGES)]):
                if numbers[1] % 4 == 0:
                    sim.disks[node].interrupt_in(1 + numbers[1] // 4 % 15, power=True)
                return True
        return False

    def _spoil(self, node: int, kind: str) -> bool:
        """Damage the disk of a node that does not run."""
        on_votes = [one for one in (kind, *self._sim.damage.kinds) if one.endswith("vote")]
        if kind in on_votes and len(on_votes) > 1 and "stale vote" in on_votes:
            return False  # an old copy in one slot, and the other bad too: no node could tell (seed 41092)
        if len(self._sim.checks.configuration.voters) == 1 or self._sim.checks.is_changing:
            return False  # no other node would have a copy
        done = self._sim.disks[node].damage(kind, self._sim.random)
        if done is None:
            return False
        self._sim.damage.add(node, kind)
        self._sim.note(f"damage: {done}")
        self._sim.counted(kind)
        return True

"""The invariants of `docs/rules.md`, checked against a record of the cluster that is kept outside its nodes.

The ghost knows what every node has made durable, every chain of entries that ever existed, what is committed, and what
the plain model makes of it. Cheap checks follow every step of a process; whole states are compared now and then.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple
from zlib import crc32

import msgspec

from raftd.errors import CorruptionError
from raftd.jobs import asks
from raftd.jobs.budget import READ_STEPS, Costs
from raftd.jobs.commands import Ask, Batch, Forward, Payload, Put, PutMany, PutUnique, decode_payload
from raftd.jobs.machine import Effects, StateMachine
from raftd.jobs.snapshot import load
from raftd.raft.membership import decode
from raftd.raft.messages import (
    AppendEntriesReply,
    Configuration,
    Entry,
    EntryKind,
    Message,
    PreVote,
    PreVoteReply,
    RequestVote,
    RequestVoteReply,
    Snapshot,
)
from raftd.raft.quorum import has_majority
from raftd.raft.ready import Base, Persist
from raftd.sim.compare import describe_machine, describe_model, difference
from raftd.sim.disk import Disk
from raftd.sim.model import Model
from raftd.sim.process import Process
from raftd.storage.snapshots import SnapshotReader
from raftd.storage.store import examine_directory
from raftd.storage.vote import VoteFile
from raftd.wire.peer import PeerMessage

#: Every 50th acknowledgement is checked against the disk itself: too costly for each.
_LOOK_AT_DISK = 50
#: How many times what it was set to an election timeout may become.
_MOST_TIMES = 8
#: Monotonic clocks differ by 2 % at most; and what rounding may add up to.
_FASTEST_CLOCK = 1.02
_CLOCK_SLACK_MS = 500
#: One operation that begins within the budget of an entry: measured in commands, and tubes that are visited.
_LONGEST = 4
_MOST_WATCHED = 4 * 12
#: What a turn may take: its shares in entries and one entry beyond them, a read and an answer.
_TURN_ENTRIES = 3
_TURN_SLACK = 1_000


class Violation(AssertionError):
    """An invariant does not hold; the text begins with its number."""


def _require(holds: bool, invariant: str, text: str) -> None:
    if not holds:
        raise Violation(f"{invariant}: {text}")


def _chain(before: int, entry: Entry) -> int:
    head = b"%d %d %d %d" % (entry.term, entry.index, entry.time_ms, entry.kind)
    return crc32(entry.data, crc32(head, before))


class _Place(NamedTuple):
    """A configuration, and the index of its entry."""

    at: int
    configuration: Configuration

    @property
    def halves(self) -> list[tuple[int, ...]]:
        return _halves(self.configuration)


def _halves(configuration: Configuration) -> list[tuple[int, ...]]:
    return [half for half in (configuration.voters, configuration.outgoing) if half]


def _follows(before: Configuration, after: Configuration) -> bool:
    """I10: any quorum of one intersects any of the other."""
    if before.outgoing:
        return after.voters == before.voters and not after.outgoing
    return after.outgoing == before.voters or (after.voters == before.voters and not after.outgoing)


class _Node:
    """What the ghost knows of one machine, through all its processes."""

    def __init__(self) -> None:
        self.durable: list[tuple[int, int]] = []  # (term, chain) of every entry that its storage called durable
        self.durable_term = 0
        self.voted: dict[int, int] = {}  # term -> whom, as it said
        self.durable_vote = (0, 0)
        self.promised = 0  # the last index that it made durable and has not replaced since
        self.owed: tuple[int, int] | None = None  # (index, chain) of a promise that it doubts
        self.incarnation = 0  # the newest that it spoke of
        self.configured = 0  # while it is off: the entry of the newest configuration that it may have


class _ProcessRecord:
    """What the ghost knows of one process."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.chains: list[int] = []
        self.leads: tuple[int, int] | None = None  # (term, since which tick)
        self.commit = 0
        self.applied = 0
        self.used = 0  # steps
        self.asked = 0  # of them since the last turn: those of asks that are an entry's only command
        self.votes: set[tuple[int, int]] = set()  # (term, voter) that it has heard before it led
        self.matches: dict[int, tuple[int, int, int]] = {}  # peer -> (term, incarnation, match), while it leads
        self.configurations: list[_Place] = []
        self.configured = (-1, 0)  # (entry of the newest, when this leader had it), in ticks


class Checks:
    def __init__(self, disks: dict[int, Disk], voters: Collection[int], election_ticks: int, costs: Costs) -> None:
        self.committed: list[Entry] = []
        self.costs = costs
        self.model = Model(msgspec.structs.asdict(costs))
        #: The greatest index of which a client was told.
        self.acknowledged = 0
        self._most_election_ticks = _MOST_TIMES * election_ticks  # however slow votes are
        self._disks = disks
        self._configurations = [_Place(0, Configuration(b"", tuple(voters)))]  # of what is committed
        self._nodes = {node: _Node() for node in disks}
        self._acknowledgements = 0
        self._grants: dict[tuple[int, int], dict[int, bool]] = {}  # (term, candidate) -> voter -> whether it doubts
        self._records: dict[Process, _ProcessRecord] = {}
        self._leaders: dict[int, int] = {}  # term -> node
        self._chains: list[int] = []  # of what is committed
        self._estimates: dict[tuple[int, int, int], int | None] = {}  # (term, candidate, voter) -> log time, as it voted
        self._clock = (0.0, 0)  # the furthest log time that a leader began with, and when, in the world's microseconds
        self._committed_in: list[int] = []  # the term of the leader that committed it
        self._prefixes: dict[tuple[int, int], int] = {}  # (index, term) -> chain
        self._answers: list[list[bytes]] = []  # of the model, by index
        self._steps: list[int] = []  # the same
        self._reads = 0  # answered since the last step of a process
        self._digests: dict[int, str] = {}  # of states of which a snapshot was taken, by index

    # -- who is a member ----------------------------------------------------------------------

    @property
    def configuration(self) -> Configuration:
        """The newest that is committed."""
        return self._configurations[-1].configuration

    @property
    def halves(self) -> list[tuple[int, ...]]:
        """Of each a majority is needed."""
        return self._configurations[-1].halves

    @property
    def members(self) -> set[int]:
        """With learners, and while the configuration is joint with those that leave."""
        return {*self.configuration.voters, *self.configuration.outgoing, *self.configuration.learners}

    @property
    def is_changing(self) -> bool:
        """Whether some log holds a configuration that is not committed, or one is joint; also one of a node that is off (seed 501484)."""
        newest = max(record.configurations[-1].at for record in self._records.values()) if self._records else 0
        newest = max(newest, *(node.configured for node in self._nodes.values()))
        return newest > len(self.committed) or bool(self.configuration.outgoing)

    # -- a process begins and ends ------------------------------------------------------------

    def started(self, process: Process) -> None:
        """It has read its disk. What it promised must be there, or it must say that it doubts: a damaged disk leaves traces."""
        node, opened = self._nodes[process.node_id], process.opened
        node.configured = 0
        record = self._records[process] = _ProcessRecord()
        self._begin_with(record, process.node_id, opened.base)
        if opened.base.index:
            self._compare_restored(process)
        _require(opened.identity.term >= node.durable_term, "I9", f"node {process.node_id} forgot term {node.durable_term}")
        for entry in opened.entries:
            self._extend(record, entry)
        voted = node.voted.get(opened.identity.term, 0)
        _require(voted in (0, opened.identity.voted_for), "I2", f"node {process.node_id} has forgotten that it voted for node {voted}")
        again = opened.identity.incarnation
        _require(again > node.incarnation, "I9", f"node {process.node_id} starts as incarnation {again}, which it was before")
        node.incarnation = again
        if node.promised:
            promise = node.durable[node.promised - 1][1]
            # A snapshot that reaches as far holds whatever was committed there; all else may have been replaced (seed 802879).
            kept = opened.base.index >= node.promised or record.chains[node.promised - 1 : node.promised] == [promise]
            if not kept and opened.identity.doubtful and (node.owed is None or node.owed[0] <= node.promised):
                node.owed = (node.promised, promise)
            _require(
                kept or opened.identity.doubtful, "I8", f"node {process.node_id} has lost entry {node.promised}, which it acknowledged"
            )
        node.durable = [(entry.term, chain) for entry, chain in zip(record.entries, record.chains, strict=True)]
        node.promised = min(node.promised, len(node.durable))
        node.durable_term, node.durable_vote = opened.identity.term, (opened.identity.term, opened.identity.voted_for)
        self._watch_apply(process)
        self._watch_step(process)
        self._watch_snapshots(process)

    def _begin_with(self, record: _ProcessRecord, node: int, base: Base) -> None:
        """A snapshot contains everything up to `base`, which must be committed."""
        index = base.index
        known = self.committed[index - 1].term if 0 < index <= len(self.committed) else 0
        _require(known == base.term, "I14", f"node {node} has a snapshot of entry {index} of term {base.term}, which was not committed")
        record.entries, record.chains = self.committed[:index], self._chains[:index]
        record.configurations = [place for place in self._configurations if place.at <= index]
        record.applied = record.commit = index

    def ended(self, process: Process) -> None:
        record = self._records.pop(process, None)
        if record is not None:
            self._nodes[process.node_id].configured = record.configurations[-1].at

    # -- every step ---------------------------------------------------------------------------

    def stepped(self, process: Process) -> None:
        record = self._records[process]
        raft = process.node.raft
        turn = process.node.turn
        used, record.used = turn.used - record.used, turn.used
        reads, self._reads = self._reads, 0
        used = max(used, reads * READ_STEPS)
        _require(
            process.node.machine.level < 2 or used <= _TURN_ENTRIES * self.costs.entry + _TURN_SLACK + record.asked,
            "cost",
            f"a turn of node {process.node_id} takes {used} steps",
        )
        if used:
            record.asked = 0
        log = raft.log
        entries = record.entries
        in_memory = log.last_index > log.forgotten_index
        if len(entries) != log.last_index or (in_memory and log.entry(len(entries)) is not entries[-1]):
            self._log_changed(process, record)
        if log.commit_index > len(self.committed):
            self._commit_advanced(process, record)
        record.commit = log.commit_index
        node = self._nodes[process.node_id]
        node.promised = max(node.promised, log.durable_index)
        if node.owed is not None and not raft.doubtful:
            self._sound_again(process, node, *node.owed)
        if raft.is_leader:
            self._check_leader(process, record)
        elif record.leads is not None:
            record.leads = None
            record.matches.clear()

    def _sound_again(self, process: Process, node: _Node, index: int, chain: int) -> None:
        """What it may have lost and others committed with its help must be there again."""
        node.owed = None
        if self._chains[index - 1 : index] == [chain]:
            there = [durable for _, durable in node.durable[index - 1 : index]]
            _require(there == [chain], "I7", f"node {process.node_id} doubts no more, and has not got entry {index} back")

    def _log_changed(self, process: Process, record: _ProcessRecord) -> None:
        log = process.node.raft.log
        kept = min(len(record.entries), log.last_index)
        while kept > log.forgotten_index and log.entry(kept) is not record.entries[kept - 1]:
            kept -= 1
        if kept < len(record.entries):
            raft = process.node.raft
            _require(
                not (raft.is_leader and record.leads is not None and record.leads[0] == raft.term),
                "I3",
                f"node {process.node_id} removed an entry of its own while it leads",
            )
            _require(kept >= record.commit, "I14", f"node {process.node_id} removed committed entries behind {kept}")
            del record.entries[kept:], record.chains[kept:]
            while record.configurations[-1].at > kept:
                record.configurations.pop()
            node = self._nodes[process.node_id]
            node.promised = min(node.promised, kept)
        for entry in log.slice(kept + 1, log.last_index):
            self._extend(record, entry)

    def _extend(self, record: _ProcessRecord, entry: Entry) -> None:
        last = record.entries[-1] if record.entries else None
        _require(last is None or entry.time_ms >= last.time_ms, "I9", f"log time runs back at entry {entry.index}")
        chain = _chain(record.chains[-1] if record.chains else 0, entry)
        known = self._prefixes.setdefault((entry.index, entry.term), chain)
        _require(known == chain, "I4", f"two logs differ before entry {entry.index} of term {entry.term}")
        record.entries.append(entry)
        record.chains.append(chain)
        if entry.kind is EntryKind.CONFIG:
            before, place = record.configurations[-1], _Place(entry.index, decode(entry.data))
            _require(_follows(before.configuration, place.configuration), "I10", f"{place} follows {before}: their quorums need not meet")
            record.configurations.append(place)

    def _commit_advanced(self, process: Process, record: _ProcessRecord) -> None:
        commit = process.node.raft.log.commit_index
        known = len(self.committed)
        _require(
            not known or record.chains[known - 1] == self._chains[known - 1],
            "I6",
            f"node {process.node_id} committed another entry {known}",
        )
        holders = [node for node, ghost in self._nodes.items() if ghost.durable[commit - 1 : commit] == [self._place(record, commit)]]
        # A configuration counts from when it is appended: the leader may have committed this entry under any configuration since then.
        first = max(place for place, one in enumerate(record.configurations) if one.at <= commit)
        enough = any(has_majority(one.halves, holders) for one in record.configurations[first:])
        _require(enough, "I7", f"entry {commit} counts as committed, but only {holders} have made it durable")
        for index in range(known + 1, commit + 1):
            entry = record.entries[index - 1]
            self.committed.append(entry)
            if entry.kind is EntryKind.CONFIG:
                self._configurations.append(_Place(index, decode(entry.data)))
            self._chains.append(record.chains[index - 1])
            self._committed_in.append(process.node.raft.term)
            before = self.model.steps
            answers = self.model.entry(entry.time_ms, entry.data if entry.kind is EntryKind.BATCH else b"")
            self._steps.append(self.model.steps - before)
            self._answers.append([msgspec.msgpack.encode(answer) for answer in answers])
            _require(not self.model.passed, "I21", f"a command passes a reserve that waits before it: {self.model.passed}")

    @staticmethod
    def _place(record: _ProcessRecord, index: int) -> tuple[int, int]:
        return record.entries[index - 1].term, record.chains[index - 1]

    def _check_leader(self, process: Process, record: _ProcessRecord) -> None:
        raft = process.node.raft
        if record.leads is None or record.leads[0] != raft.term:
            other = self._leaders.setdefault(raft.term, process.node_id)
            _require(other == process.node_id, "I1", f"nodes {other} and {process.node_id} both lead in term {raft.term}")
            self._check_votes(process.node_id, raft.term, record.configurations[-1].halves)
            self._check_clock(process)
            record.leads = (raft.term, raft.tick_count)
            # in earlier terms: who wakes up may win an election that was over long ago (seeds 1181 and 40053)
            known = max((index for index, term in enumerate(self._committed_in, 1) if term < raft.term), default=0)
            _require(
                not known or record.chains[known - 1 : known] == self._chains[known - 1 : known],
                "I5",
                f"node {process.node_id} leads without committed entry {known}",
            )
        node = process.node_id
        heard = {node}
        at = record.configurations[-1].at
        if record.configured[0] != at:  # since then these are the ones that must be heard
            record.configured = (at, raft.tick_count)
        uncommitted = [place.at for place in record.configurations if place.at > len(self.committed)]
        _require(len(uncommitted) <= 1, "I10", f"node {node} leads with configurations {uncommitted} uncommitted")
        for peer, progress in raft.progress.items():
            match = (raft.term, progress.incarnation, progress.match_index)
            before = record.matches.get(peer)
            if match != before:
                record.matches[peer] = match
                if before is not None and match[2] < before[2] and match[:2] == before[:2]:
                    raise Violation(f"R12: node {node} takes node {peer} to be at {match[2]}, after {before[2]}")
            if match[2] >= progress.next_index:
                raise Violation(f"R12: node {node} sends {progress.next_index} next to node {peer}, which has {match[2]}")
            last_tick = progress.last_heard_tick if progress.last_heard_tick is not None else record.leads[1]
            if raft.tick_count - max(last_tick, record.configured[1]) <= 3 * min(raft.election_ticks, self._most_election_ticks):
                heard.add(peer)
        halves = record.configurations[-1].halves
        if not has_majority(halves, heard):
            raise Violation(f"R7: node {node} still leads, and has heard no majority for three election timeouts")
        if process.unfinished and halves != [(node,)]:
            stalled = raft.tick_count - max(process.unfinished[0], record.leads[1])
            if stalled > 3 * min(raft.election_ticks, self._most_election_ticks):
                raise Violation(f"R34: node {node} still leads, and its disk writes nothing")

    def _check_votes(self, leader: int, term: int, halves: list[tuple[int, ...]]) -> None:
        """A majority of sound votes, or enough votes of any kind that one of them holds every committed entry."""
        if halves == [(leader,)]:
            return
        doubts = self._grants.get((term, leader), {})
        for half in halves:
            granted = [voter for voter in half if voter in doubts]
            sound = sum(not doubts[voter] for voter in granted)
            majority = len(half) // 2 + 1
            enough = sound >= majority or len(granted) >= len(half) - majority + 2
            _require(enough, "I5", f"node {leader} leads in term {term} with {sound} sound votes and {len(granted) - sound} in doubt")

    def _check_clock(self, process: Process) -> None:
        """While one of those whose votes it has heard had an estimate, log time continues (`logtime.py`): not ahead of the
        furthest that any leader would be at by now, nor behind what all of them thought when they voted."""
        node, raft, now_us = process.node_id, process.node.raft, process.world.scheduler.now_us
        clock_ms = raft.clock_ms() or 0
        votes = self._records[process].votes
        estimates = [self._estimates[raft.term, node, voter] for term, voter in votes if term == raft.term]
        known = [estimate for estimate in estimates if estimate is not None]
        at_ms, at_us = self._clock
        furthest_ms = at_ms + (now_us - at_us) * _FASTEST_CLOCK / 1_000
        if known:
            ahead_ms = round(clock_ms - furthest_ms)
            _require(ahead_ms <= _CLOCK_SLACK_MS, "I22", f"node {node} begins with log time {ahead_ms} ms ahead of every earlier leader's")
        if known and len(known) == len(estimates):
            behind_ms = min(known) - clock_ms
            _require(behind_ms <= _CLOCK_SLACK_MS, "I22", f"node {node} begins with log time {behind_ms} ms behind all its voters")
        if clock_ms > furthest_ms:
            self._clock = (clock_ms, now_us)

    # -- what leaves, what is durable ---------------------------------------------------------

    def leaving(self, process: Process, to: int, message: PeerMessage) -> None:
        """A message leaves: what it claims must be durable (I8)."""
        node = self._nodes[process.node_id]
        if isinstance(message, AppendEntriesReply | Forward):
            self._speaks_as(process.node_id, message.incarnation)
        if type(message) is AppendEntriesReply:
            if message.success and message.index:
                record = self._records[process]
                if message.term < process.node.raft.term:
                    # It was true of the log when it was made (seed 101230): that is durable, whatever replaced it since.
                    _require(len(node.durable) >= message.index, "I8", f"node {process.node_id} acknowledges {message.index} too early")
                elif len(record.chains) >= message.index:
                    place = self._place(record, message.index)
                    _require(
                        node.durable[message.index - 1 : message.index] == [place],
                        "I8",
                        f"node {process.node_id} acknowledges entry {message.index}, which is not durable",
                    )
                    self._acknowledgements += 1
                    if self._acknowledgements % _LOOK_AT_DISK == 0:
                        self._check_log_file(process, message.index)
            _require(
                node.durable_term >= message.term or not message.success, "I8", f"node {process.node_id} acknowledges in a term not durable"
            )
        elif type(message) is RequestVote:
            self._votes(process.node_id, message.term, process.node_id, process.node.raft.doubtful)
        elif type(message) is RequestVoteReply and message.granted:
            self._votes(process.node_id, message.term, to, process.node.raft.doubtful)
            # as it was when the vote was given: the disk may have taken long since (seed 1001082)
            self._estimates[message.term, to, process.node_id] = message.clock_ms

    def _speaks_as(self, node: int, incarnation: int) -> None:
        """A new one is durable before anybody hears of it: the next process must not take it again."""
        ghost = self._nodes[node]
        if incarnation <= ghost.incarnation:
            return
        found = VoteFile(self._disks[node].after_power_loss(), f"data/{node}").read()
        known = found.incarnation if found is not None else 0
        _require(known >= incarnation, "I8", f"node {node} speaks as incarnation {incarnation}; a loss of power would leave {known}")
        ghost.incarnation = incarnation

    def _votes(self, voter: int, term: int, candidate: int, doubtful: bool) -> None:
        node = self._nodes[voter]
        self._grants.setdefault((term, candidate), {})[voter] = doubtful
        _require(node.voted.setdefault(term, candidate) == candidate, "I2", f"node {voter} votes for two nodes in term {term}")
        self._check_vote_file(voter, term, candidate)
        # In a later term it can no longer vote in this one.
        durable = node.durable_vote == (term, candidate) or node.durable_term > term
        _require(durable, "I8", f"node {voter} votes for node {candidate} in term {term} before that is durable")

    def _check_vote_file(self, voter: int, term: int, candidate: int) -> None:
        """Whatever the storage says: what would a loss of power leave?"""
        found = VoteFile(self._disks[voter].after_power_loss(), f"data/{voter}").read()
        left = (found.term, found.voted_for) if found is not None else (0, 0)
        holds = left == (term, candidate) or left[0] > term
        _require(holds, "I8", f"node {voter} votes for node {candidate} in term {term}; after a loss of power it would know {left}")

    def _check_log_file(self, process: Process, index: int) -> None:
        node, record = process.node_id, self._records[process]
        try:
            _, left = examine_directory(self._disks[node].after_power_loss(), f"data/{node}")
        except CorruptionError as error:
            raise Violation(f"I8: node {node} acknowledges entry {index}; after a loss of power it could not start: {error}") from None
        place = index - left.base.index - 1
        there = place < 0 or (left.holds_base and left.entries[place : place + 1] == record.entries[index - 1 : index])
        _require(there, "I8", f"node {node} acknowledges entry {index}; after a loss of power it would have {left.last_index} entries")

    def durable(self, node_id: int, persist: Persist) -> None:
        node = self._nodes[node_id]
        if persist.hard_state is not None:
            state = persist.hard_state
            _require(state.term >= node.durable_term, "I9", f"node {node_id} goes back to term {state.term}")
            node.durable_term = state.term
            node.durable_vote = (state.term, state.voted_for)
        if persist.entries:
            first = persist.entries[0].index
            del node.durable[first - 1 :]
            before = node.durable[-1][1] if node.durable else 0
            for entry in persist.entries:
                before = _chain(before, entry)
                node.durable.append((entry.term, before))

    # -- applying -----------------------------------------------------------------------------

    def _watch_apply(self, process: Process) -> None:
        machine = process.node.machine
        apply: Callable[[int, int, bytes], Effects] = machine.apply
        record = self._records[process]

        def checked(index: int, time_ms: int, data: bytes) -> Effects:
            self.stepped(process)
            _require(index == record.applied + 1, "I6", f"node {process.node_id} applies entry {index} after {record.applied}")
            _require(
                index <= len(self.committed) and record.chains[index - 1] == self._chains[index - 1],
                "I6",
                f"node {process.node_id} applies another entry {index} than was committed",
            )
            record.applied = index
            steps = machine.steps
            effects = apply(index, time_ms, data)
            steps = machine.steps - steps
            most = self.costs.entry + _LONGEST * self.costs.command + _MOST_WATCHED * self.costs.tube
            if steps > most:
                longer = self._beside_the_budget(decode_payload(data) if data else None)
                record.asked += longer
                most += longer
            _require(machine.level < 2 or steps <= most, "cost", f"entry {index} takes {steps} steps on node {process.node_id}")
            wanted_steps = self._steps[index - 1]
            _require(steps == wanted_steps, "cost", f"entry {index} counts {steps} steps on node {process.node_id}, not {wanted_steps}")
            answers = [msgspec.msgpack.encode(answer) for answer in effects.answers]
            if answers != self._answers[index - 1]:
                ours = [msgspec.msgpack.decode(answer) for answer in answers]
                wanted = [msgspec.msgpack.decode(answer) for answer in self._answers[index - 1]]
                raise Violation(f"I20: entry {index} gives {ours} on node {process.node_id}, and should give {wanted}")
            return effects

        machine.apply = checked  # type: ignore[method-assign]  # of this one machine, to be watched

    def _beside_the_budget(self, payload: Payload | None) -> int:
        """One ask about many jobs is a batch of its own; and each job that is put into a full tube may push out one, which may push out one
        of the dead letter tube."""
        if not isinstance(payload, Batch):
            return 0
        asked = [command.what for command in payload.commands if isinstance(command, Ask)]
        alone = self.costs.of_ask(asked[0]) if len(payload.commands) == len(asked) == 1 else 0
        puts = sum(isinstance(command, Put | PutUnique) for command in payload.commands)
        puts += sum(len(command.jobs) for command in [*payload.commands, *asked] if isinstance(command, PutMany | asks.Put))
        return alone + 2 * puts * self.costs.died

    def _watch_snapshots(self, process: Process) -> None:
        """I11: what a snapshot restores is the state that was, wherever it was taken."""
        compaction, raft, node, record = process.node.compaction, process.node.raft, process.node_id, self._records[process]
        take, swap, installed = compaction.take, compaction.replace_state, raft.installed

        def checked_take(machine: StateMachine, is_due: bool) -> None:
            digest = machine.digest()
            _require(self._digests.setdefault(machine.applied_index, digest) == digest, "I12", f"node {node} takes another snapshot")
            process.world.counted("(snapshot written)")
            take(machine, is_due)

        def checked_installed(snapshot: Snapshot, base: Base, configuration: Configuration) -> None:
            _require(
                base.index > record.commit, "R29", f"node {node} installs a snapshot of {base.index}, and has committed {record.commit}"
            )
            kept = record.chains[base.index - 1 : base.index] == self._chains[base.index - 1 : base.index]
            _require(not kept, "R29", f"node {node} drops a log that continues the snapshot of entry {base.index}")
            installed(snapshot, base, configuration)
            self._begin_with(record, node, base)
            self._nodes[node].durable = [(entry.term, chain) for entry, chain in zip(record.entries, record.chains, strict=True)]
            self._nodes[node].promised = base.index
            process.world.counted("(snapshot of the leader installed)")

        def checked_swap(machine: StateMachine) -> None:
            swap(machine)
            self._watch_apply(process)
            self._compare_restored(process)

        compaction.take = checked_take  # type: ignore[method-assign]  # of this one node, to be watched
        compaction.replace_state = checked_swap
        raft.installed = checked_installed  # type: ignore[method-assign]  # the same

    def _compare_restored(self, process: Process) -> None:
        machine = process.node.machine
        was = self._digests.get(machine.applied_index)
        _require(machine.digest() == was, "I11", f"node {process.node_id} restores another state at entry {machine.applied_index}")

    def _watch_step(self, process: Process) -> None:
        """R5: a node that hears its leader ignores candidates."""
        raft = process.node.raft
        step: Callable[[int, Message], None] = raft.step

        def checked(sender: int, message: Message) -> None:
            if type(message) is RequestVoteReply and message.granted and not raft.is_leader:  # else it was late (seed 8500136)
                self._records[process].votes.add((message.term, sender))
            if type(message) is AppendEntriesReply:
                step(sender, message)
                progress = raft.progress.get(sender)
                heard = progress is None or message.term < raft.term or progress.incarnation >= message.incarnation
                _require(heard, "R12", f"node {process.node_id} does not see that node {sender} was born again")
                return
            if type(message) not in (PreVote, RequestVote) or (type(message) is RequestVote and message.transfer):
                step(sender, message)
                return
            hears_leader = raft.hears_leader and raft.leader != sender
            term, waiting = raft.term, len(raft.unsent)
            step(sender, message)
            last = raft.unsent[waiting:]
            granted = bool(last) and last[0][0] == sender and isinstance(last[0][1], PreVoteReply) and last[0][1].granted
            _require(
                not hears_leader or (raft.term == term and not (type(message) is PreVote and granted)),
                "R5",
                f"node {process.node_id} hears leader {raft.leader}, and is disturbed by node {sender}",
            )

        raft.step = checked  # type: ignore[method-assign]  # of this one node, to be watched

    # -- clients ------------------------------------------------------------------------------

    def answered(self, index: int, is_read: bool, known_when_asked: int) -> None:
        """A client got an answer of `index`; when it asked, some client had an answer of `known_when_asked`."""
        if is_read:
            self._reads += 1
            _require(
                index >= known_when_asked, "I13", f"a read at {index} does not see {known_when_asked}, acknowledged before it was asked"
            )
        else:
            _require(index <= len(self.committed), "I14", f"entry {index} is acknowledged and not committed")
            self.acknowledged = max(self.acknowledged, index)

    def backed_up(self, index: int, data: bytes) -> None:
        """I11: a copy for an operator is whole, and the state at the entry that it says."""
        disk = Disk(512)
        disk.open("backup").write(0, data)
        reader = SnapshotReader(disk, "backup")
        machine = load(reader.pieces(), max(process.node.config.level for process in self._records))
        known = self._digests.get(index)
        holds = reader.meta.index == machine.applied_index == index and known in (None, machine.digest())
        _require(holds, "I11", f"a backup of entry {index} holds another state")

    # -- whole states -------------------------------------------------------------------------

    def compare_states(self) -> None:
        """I12, and I17 to I24: equal places, equal states; and the state is what the model says."""
        digests: dict[int, tuple[str, int]] = {}
        for process in self._records:
            if not process.alive:
                continue
            machine = process.node.machine
            digest = machine.digest()
            other = digests.setdefault(machine.applied_index, (digest, process.node_id))
            _require(
                other[0] == digest, "I12", f"nodes {other[1]} and {process.node_id} have applied {machine.applied_index}, with two outcomes"
            )
            if machine.applied_index == len(self.committed):
                self._compare_with_model(machine, process.node_id)
        self._compare_recent()

    def _compare_recent(self) -> None:
        """I12: what two nodes remember of the same entries is the same, so that a listener can continue at another node."""
        alive = [process for process in self._records if process.alive]
        if not alive:
            return
        last = min(process.node.machine.applied_index for process in alive)
        first = max(process.node.job_events.known_from for process in alive)
        told = [
            [recent[place] for place in range(recent.after((first, 0)), recent.after((last + 1, 0)))]
            for recent in (process.node.job_events for process in alive)
        ]
        for process, mine in zip(alive, told, strict=True):
            node, other = process.node_id, alive[0].node_id
            _require(mine == told[0], "I12", f"nodes {other} and {node} tell different things of the entries {first} to {last}")

    def _compare_with_model(self, machine: StateMachine, node: int) -> None:
        for ours, model in zip(describe_machine(machine), describe_model(self.model), strict=True):
            if ours != model:
                what, mine, wanted = difference(ours, model)
                raise Violation(f"I17 to I24: node {node} at entry {machine.applied_index} has {what} {mine}, and should have {wanted}")

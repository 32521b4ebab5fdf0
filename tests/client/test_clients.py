"""What all three clients do, against real nodes: one, and three of which some die."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from raftd.bench.local import LocalCluster, wait_for
from raftd.client import (
    Client,
    Conflict,
    KeyReused,
    LostReservation,
    NotFound,
    OutcomeUnknown,
    PolicyDocument,
    Refused,
    ScheduleDocument,
    TooLarge,
    TubeFull,
    Unreachable,
    calls,
)
from raftd.jobs import asks
from tests.client.faces import FACES


@pytest.fixture(scope="module", params=[1, 3], ids=["one node", "three nodes"])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("clients"), request.param) as cluster:
        cluster.leader()
        yield cluster


@pytest.fixture(params=FACES)
def make(request: pytest.FixtureRequest) -> Any:
    return FACES[request.param]


def url(cluster: LocalCluster, *nodes: int) -> str:
    ports = [cluster.address(node, "client")[1] for node in nodes or cluster.nodes]
    return "raftd://" + ",".join(f"127.0.0.1:{port}" for port in ports)


@pytest.fixture
def queue(make: Any, cluster: LocalCluster) -> Iterator[Any]:
    with closing(make(url(cluster), timeout=20)) as queue:
        yield queue


def until_answered(call: Any, seconds: float = 40) -> Any:
    """What `call` returns, asked again while it is not answered within its client's timeout."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return call()
        except (OutcomeUnknown, Unreachable):
            if time.monotonic() > deadline:
                raise


@pytest.fixture
def tube(request: pytest.FixtureRequest) -> str:
    """One of its own for each test."""
    return f"t{abs(hash(request.node.nodeid)):x}"


def test_put_reserve_delete(queue, tube):
    id = queue.put(tube, "hello", priority=5, ttr=30)
    job = queue.reserve(tube, timeout=5)
    assert (job.id, job.tube, job.body, job.text, job.priority, job.ttr, job.attempts) == (id, tube, b"hello", "hello", 5, 30.0, 0)
    assert job.token > 0
    assert not job.lost
    job.delete()
    assert queue.peek(id) is None
    with pytest.raises(Refused, match="done already"):
        job.delete()


def test_no_job_is_no_error(queue, tube):
    began = time.monotonic()
    assert queue.reserve(tube, timeout=0) is None
    assert queue.reserve(tube, timeout=0.3) is None
    assert time.monotonic() - began >= 0.3
    assert queue.reserve_many(tube, count=5, timeout=0) == []


def test_many_at_once(queue, tube):
    ids = queue.put_many(tube, [b"%d" % number for number in range(250)])
    assert len(ids) == 250
    jobs = queue.reserve_many(tube, count=100, timeout=0)
    assert [job.id for job in jobs] == ids[:100]
    for job in jobs[:3]:
        job.delete()
    assert queue.stats(tube).ready == 150
    assert (queue.stats(tube).reserved, queue.stats(tube).total_jobs) == (97, 250)


def test_a_key_puts_once(queue, tube):
    first = queue.put(tube, "a", key=f"order {tube}")
    assert queue.put(tube, "a", key=f"order {tube}") == first
    with pytest.raises(KeyReused):
        queue.put(tube, "b", key=f"order {tube}")


def test_a_failure_counts_and_a_release_does_not(queue, tube):
    id = queue.put(tube, '{"n": 1}')
    job = queue.reserve(tube, timeout=5)
    assert job.json == {"n": 1}
    job.fail(ValueError("it broke"))
    job = queue.reserve(tube, timeout=5)
    assert job.attempts == 1
    assert queue.peek(id).error == "ValueError: it broke"
    job.release()
    job = queue.reserve(tube, timeout=5)
    assert job.attempts == 1
    job.snooze(60)
    assert queue.peek(id).state == "delayed"
    queue.kick_job(id)
    job = queue.reserve(tube, timeout=5)
    assert job.attempts == 1
    job.bury("no use")
    assert queue.peek_next(tube, "buried").id == id
    buried = queue.peek(id)
    assert (buried.error, buried.buried_for < 20) == ("no use", True)
    assert queue.kick(tube, 5) == 1
    assert queue.peek(id).buried_for is None
    queue.delete(id)
    with pytest.raises(NotFound):
        queue.delete(id)
    with pytest.raises(NotFound):
        queue.kick_job(id)


def test_bad_arguments_are_told_at_once(queue, tube):
    for call in (
        lambda: queue.put("-bad", ""),
        lambda: queue.put(tube, "", delay=-1),
        lambda: queue.put(tube, "", priority=1 << 40),
        lambda: queue.put_many(tube, []),
        lambda: queue.reserve_many(tube, count=101, timeout=0),
        lambda: queue.kick(tube, 0),
        lambda: next(iter(queue.jobs(tube, prefetch=0))),
    ):
        with pytest.raises(Refused, match="expected"):
            call()
    with pytest.raises(TooLarge):
        queue.put(tube, bytes(100_000))


def test_pause_and_tubes(queue, tube):
    queue.put(tube, "a")
    queue.pause(tube, 60)
    assert queue.reserve(tube, timeout=0) is None
    assert 50 < queue.stats(tube).pause_left <= 60
    queue.pause(tube, 0)
    with pytest.raises(NotFound):
        queue.pause(f"{tube}-none", 1)
    names = [stats.tube for stats in queue.tubes()]
    assert tube in names
    assert names == sorted(names)


def test_what_a_tube_does_by_itself(queue, tube):
    """A policy is set, seen, changed by one at a time, and does what it says."""
    assert queue.policy(tube) is None
    version = queue.set_policy(tube, {"max_attempts": 1, "dead_letter": f"{tube}.dead", "max_jobs": 2, "backoff": [1, 5.5]})
    known = queue.policy(tube)
    assert (known.tube, known.version) == (tube, version)
    assert known.policy == PolicyDocument(max_attempts=1, dead_letter=f"{tube}.dead", max_jobs=2, backoff=[1.0, 5.5])
    assert queue.stats(tube).policy_version == version
    with pytest.raises(Conflict, match=f"version {version}"):
        queue.set_policy(tube, None, version=0)
    queue.put_many(tube, ["a", "b"])
    with pytest.raises(TubeFull, match="its policy lets no more"):
        queue.put(tube, "c")
    job = queue.reserve(tube, timeout=5)
    job.fail(ValueError("it broke"))
    dead = queue.peek(job.id)
    assert (dead.tube, dead.death, dead.origin, dead.death_attempts, dead.attempts) == (f"{tube}.dead", "attempts", tube, 1, 0)
    assert (dead.error, dead.state, dead.dead_for < 20) == ("ValueError: it broke", "ready", True)
    assert [policy for policy in queue.policies() if policy.tube == tube] == [known]
    assert queue.set_policies({tube: None, f"{tube}.dead": PolicyDocument(ttl_s=60)}, {tube: version}) > version
    assert (queue.policy(tube), queue.policy(f"{tube}.dead").policy.ttl_s) == (None, 60)
    queue.set_policy(f"{tube}.dead", None)


def test_a_job_that_is_the_only_one_of_its_kind(queue, tube):
    first = queue.put_unique(tube, "a", "report")
    assert first.is_new
    assert queue.put_unique(tube, "b", "report", until="reserved", unique_for=60) == (first.id, False)
    queue.reserve(tube, timeout=5).delete()
    assert queue.put_unique(tube, "c", "report", key=f"key {tube}").is_new
    for wrong in ({"unique": ""}, {"unique": "x", "unique_for": 0}, {"unique": "x", "until": "never"}, {"unique": "x" * 300}):
        with pytest.raises(Refused, match=r"unique|until"):
            queue.put_unique(tube, "d", **wrong)


def test_dead_jobs_get_another_chance(queue, tube):
    dead = f"{tube}.dead"
    queue.set_policy(tube, {"max_attempts": 1, "dead_letter": dead})
    for error in ("Timeout: 30 s", "KeyError: 'x'", "Timeout: 60 s"):
        queue.put(tube, error)
        queue.reserve(tube, timeout=5).fail(error)
    assert queue.count_dead(dead, older=1_000)[0] == 0
    count, which = queue.count_dead(dead, error="Timeout", origin=tube, newer=1_000)
    assert count == 2
    queue.put(tube, "later")
    queue.reserve(tube, timeout=5).fail("Timeout: 90 s")
    assert queue.replay(which) == (2, 0)
    assert (queue.stats(tube).ready, queue.stats(dead).ready) == (2, 2)
    assert queue.replay(queue.count_dead(dead)[1], "delete") == (2, 0)
    assert queue.count_dead(dead)[0] == 0
    with pytest.raises(Refused, match="action"):
        queue.replay(which, "burn")
    queue.set_policy(tube, None)


def test_jobs_that_are_put_by_themselves(queue, tube):
    version = queue.set_schedule(tube, {"tube": tube, "body": "tick", "every_s": 0.2, "priority": 5})
    seen = [queue.reserve(tube, timeout=20) for _ in range(3)]
    assert [(job.text, job.priority) for job in seen] == [("tick", 5)] * 3
    known = queue.schedule(tube)
    assert (known.name, known.version, known.is_paused) == (tube, version, False)
    assert known.schedule == ScheduleDocument(tube=tube, body="tick", every_s=0.2, priority=5)
    assert known.put >= 3
    assert known.next > known.last
    assert tube in [schedule.name for schedule in queue.schedules()]
    queue.pause_schedule(tube)
    put = queue.schedule(tube).put
    id = queue.run_schedule(tube)
    assert queue.peek(id).tube == tube
    assert (queue.schedule(tube).put, queue.schedule(tube).is_paused, queue.schedule(tube).next) == (put, True, None)
    queue.resume_schedule(tube)
    with pytest.raises(Conflict):
        queue.set_schedule(tube, None, version=0)
    queue.set_schedule(tube, None, version=version)
    assert queue.schedule(tube) is None
    with pytest.raises(NotFound):
        queue.run_schedule(tube)


@pytest.mark.parametrize(
    ("schedule", "wrong"),
    [
        ({"tube": "t", "cron": "61 * * * *"}, "cron: bad minute"),
        ({"tube": "t", "cron": "* * * * *", "zone": "Europe/Atlantis"}, "no time zone"),
        ({"tube": "t"}, "expected one of them"),
        ({"tube": "t", "every_s": 60, "zone": "Europe/Berlin"}, "zone: it says nothing without cron"),
        ({"tube": "t", "every_s": 0}, "every_s"),
        ({"tube": "t", "evry_s": 5}, "unknown field `evry_s`"),
        ({"tube": "t", "at": "tomorrow"}, "at"),
        ({"tube": "t", "every_s": 60, "body": "a", "base64": "YQ=="}, "body, base64"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_and_the_field_is_named(cluster, tube, schedule, wrong):
    with Client(url(cluster), timeout=20) as queue:
        with pytest.raises(Refused, match=wrong):
            queue.set_schedule(tube, schedule)
        with pytest.raises(Refused, match="name"):
            queue.set_schedule("a b", {"tube": "t", "every_s": 60})
        assert queue.schedule(tube) is None


def test_defaults_of_the_tube_results_and_jobs_for_a_moment(queue, tube):
    queue.set_policy(tube, {"default_ttr_s": 90, "default_priority": 5, "retain_s": 60})
    ids = [queue.put(tube, "a"), queue.put(tube, "b", ttr=30, priority=7), *queue.put_many(tube, ["c"])]
    assert [(job.ttr, job.priority) for job in map(queue.peek, ids)] == [(90, 5), (30, 7), (90, 5)]
    job = queue.reserve(tube, timeout=5)
    job.delete("it went well")
    told = queue.result(job.id)
    assert (told.id, told.tube, told.attempts, told.text, told.age < 20) == (job.id, tube, 0, "it went well", True)
    assert queue.result(ids[1]) is None
    later = queue.put(tube, "d", run_at=datetime.now(UTC) + timedelta(seconds=100))
    assert 80 < queue.peek(later).left <= 100
    assert queue.peek(queue.put(tube, "e", run_at=datetime(2020, 1, 1, tzinfo=UTC))).state == "ready"
    for wrong in ({"run_at": datetime(2020, 1, 1)}, {"run_at": datetime.now(UTC), "delay": 5}):
        with pytest.raises(Refused, match="run_at"):
            queue.put(tube, "f", **wrong)
    queue.set_policy(tube, None)


@pytest.mark.parametrize(
    ("policy", "wrong"),
    [
        ({"max_attemps": 1}, "unknown field `max_attemps`"),
        ({"max_attempts": 0}, "max_attempts: expected a whole number >= 1"),
        ({"max_attempts": "5"}, "max_attempts"),
        ({"ttl_s": -1}, "ttl_s"),
        ({"ttl_s": "1h"}, "ttl_s: expected a number, got text"),
        ({"backoff": {"initial_s": 1, "factor": 0.5}}, "factor"),
        ({"backoff": {"initial_s": 10, "max_s": 5}}, "less than initial_s"),
        ({"dead_letter": "a b"}, "dead_letter"),
        ({"dead_letter": "TUBE"}, "in a circle"),
        ({"on_expire": "dead_letter", "ttl_s": 1}, "on_expire: it needs a dead_letter tube"),
        ({"on_expire": "dead_letter"}, "on_expire: it says nothing without ttl_s"),
        ({"overflow": "drop_oldest"}, "overflow: it says nothing without max_jobs"),
        ({"overflow": "drop"}, "expected reject or drop_oldest or dead_letter_oldest"),
        ({"burst": 5}, "burst: it says nothing without a rate"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_whole_and_the_field_is_named(cluster, tube, policy, wrong):
    policy = {name: tube if value == "TUBE" else value for name, value in policy.items()}
    with Client(url(cluster), timeout=20) as queue:
        with pytest.raises(Refused, match=wrong):
            queue.set_policies({f"{tube}.other": {"max_jobs": 1}, tube: policy})
        assert queue.policy(f"{tube}.other") is None


def test_jobs_are_pushed_and_no_more_than_prefetch_are_held(queue, tube):
    ids = queue.put_many(tube, [b"%d" % number for number in range(40)])
    seen = []
    for job in queue.jobs(tube, prefetch=8):
        assert queue.stats(tube).reserved <= 8
        seen.append(job.id)
        job.delete()
        if len(seen) == len(ids):
            break
    assert seen == ids
    assert queue.peek_next(tube) is None


def test_what_was_pushed_and_not_taken_is_released(queue, tube):
    queue.put_many(tube, [b"%d" % number for number in range(10)])
    jobs = iter(queue.jobs(tube, prefetch=5))
    next(jobs).delete()
    del jobs
    wait_for(lambda: queue.stats(tube).ready == 9, 5, "the others are ready again")
    assert queue.reserve(tube, timeout=0).attempts == 0


def test_a_job_is_touched_while_its_worker_is_busy(queue, tube):
    """Other clients send no heartbeat while a worker is busy."""
    id = queue.put(tube, "long", ttr=3)
    job = queue.reserve(tube, timeout=5)
    wait_for(lambda: queue.peek(id).age > 3.4, 10, "time passes")
    assert (queue.peek(id).state, queue.peek(id).timeouts) == ("reserved", 0)
    job.delete()


def test_close_releases_what_is_held_and_counts_no_failure(make, cluster, queue, tube):
    """With other clients a shutdown counts as a failed attempt."""
    id = queue.put(tube, "a")
    with closing(make(url(cluster))) as other:
        assert other.reserve(tube, timeout=5).id == id
    job = queue.reserve(tube, timeout=5)
    assert (job.id, job.attempts) == (id, 0)
    job.delete()


def test_who_leaves_keeps_its_jobs_reserved_for_their_tokens(make, cluster, queue, tube):
    ids = queue.put_many(tube, ["a", "b", "c", "d"])
    with closing(make(url(cluster))) as other:
        jobs = other.reserve_many(tube, count=4, timeout=5)
        other.leave()
    assert [queue.peek(id).state for id in ids] == ["reserved"] * 4
    a, b, c, d = [job.token for job in jobs]
    with pytest.raises(NotFound, match="another holds it"):
        queue.delete(ids[0])
    with pytest.raises(NotFound, match="not reserved with token"):
        queue.delete(ids[0], b)
    queue.delete(ids[0], a)
    queue.release(ids[1], b, priority=7)
    queue.bury(ids[2], c, "no use")
    assert [(found.state, found.priority) for found in map(queue.peek, ids[1:3])] == [("ready", 7), ("buried", 65536)]
    assert queue.peek(ids[2]).error == "no use"
    with pytest.raises(NotFound, match="not reserved with token"):
        queue.release(ids[1], b)
    with pytest.raises(NotFound):
        queue.bury(ids[3], d + 1)


def test_a_job_that_takes_long_does_not_keep_the_others_from_coming(queue, tube):
    """Credit is given back for several at a time, but not only then."""
    ids = queue.put_many(tube, [b"%d" % number for number in range(12)])
    jobs = iter(queue.jobs(tube, prefetch=8))
    first = [next(jobs) for _ in range(8)]
    first[0].delete()
    assert next(jobs).id == ids[8]
    assert [job.lost for job in first[1:]] == [False] * 7


def test_a_lost_reservation_is_told(make, cluster, queue, tube):
    id = queue.put(tube, "a")
    job = queue.reserve(tube, timeout=5)
    with closing(make(url(cluster))) as other:
        other._call(calls.about(asks.Delete([(job.id, job.token)])))  # whoever knows the token may
    with pytest.raises(LostReservation):
        job.delete()
    assert job.lost
    assert queue.peek(id) is None


def test_nobody_there(make):
    """Other clients hang for ever when the server is gone."""
    with closing(make("raftd://127.0.0.1:1", timeout=0.4)) as queue:
        began = time.monotonic()
        with pytest.raises(Unreachable, match="refused"):
            queue.put("t", "a")
        with pytest.raises(Unreachable):
            queue.stats("t")
        assert time.monotonic() - began < 5
    with pytest.raises(Unreachable, match="closed"):
        queue.put("t", "a")


def test_another_cluster_is_not_used(make, cluster):
    with closing(make(url(cluster), timeout=2, cluster="another")) as queue, pytest.raises(Unreachable, match="asks for cluster 'another'"):
        queue.put("t", "a")


@pytest.fixture
def three(tmp_path: Path) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path, 3) as cluster:
        cluster.leader()
        yield cluster


def test_everything_goes_on_when_the_node_dies(make, three):
    """The node that the client talks to, which may lead: reservations stay, waits go on, subscriptions go on, puts are put once."""
    with closing(make(url(three, 1), timeout=20)) as queue:
        queue.put("mail", "held", ttr=60)
        job = queue.reserve("mail", timeout=10)
        waited: list[Any] = []
        waiting = threading.Thread(target=lambda: waited.append(queue.reserve("later", timeout=30)))
        waiting.start()
        seen: list[int] = []
        ids: list[int] = []

        def work() -> None:
            for one in queue.jobs("stream", prefetch=4):
                seen.append(one.id)
                one.delete()
                if len(seen) == 60:
                    return

        working = threading.Thread(target=work)
        working.start()
        for number in range(60):
            ids.append(queue.put("stream", b"%d" % number))
            if number == 20:
                wait_for(lambda: len(seen) > 5, 20, "jobs are worked")
                three.kill(1)
        working.join(30)
        assert sorted(seen) == ids
        assert ids == list(range(ids[0], ids[0] + 60))  # each was put once
        queue.put("later", "now")
        waiting.join(30)
        assert waited[0].text == "now"
        queue.put("mail", "another")
        job.delete()
        assert queue.stats("mail").deletes == 1
        assert getattr(queue, "inner", queue).core.resumed >= 1


def test_without_a_majority_a_put_is_unknown_or_certainly_not_done(make, three):
    with closing(make(url(three, 1), timeout=3)) as queue:
        until_answered(lambda: queue.put("mail", "a"))
        three.kill(2)
        three.kill(3)
        with pytest.raises((OutcomeUnknown, Unreachable)) as first:
            queue.put("mail", "b")
        assert first.type is OutcomeUnknown  # it was sent
        with pytest.raises((OutcomeUnknown, Unreachable)):
            queue.put("mail", "c")
        three.start(2)
        wait_for(lambda: three.find_leader(), 20, "a leader")
        assert until_answered(lambda: queue.put("mail", "d")) > 0


def test_an_end_is_no_failed_attempt_whatever_is_on_its_way(make, cluster, queue, tube):
    """Jobs that were pushed, or given to a reserve, in the moment of the close counted as failed once."""
    ids = queue.put_many(tube, [b"%d" % number for number in range(20)])
    for number in range(4):
        other = make(url(cluster))
        jobs = iter(other.jobs(tube, prefetch=10))
        if number % 2:
            next(jobs)
        other.close()
        del jobs
    wait_for(lambda: queue.stats(tube).ready == 20, 20, "all are ready again")
    assert [queue.peek(id).attempts for id in ids] == [0] * 20


def test_who_leaves_gives_back_what_was_pushed_and_not_taken(make, cluster, queue, tube):
    ids = queue.put_many(tube, [b"%d" % number for number in range(10)])
    other = make(url(cluster))
    jobs = iter(other.jobs(tube, prefetch=10))
    assert next(jobs).id == ids[0]
    other.leave()
    wait_for(lambda: queue.stats(tube).ready == 9, 20, "the others are ready again")
    assert [queue.peek(id).attempts for id in ids] == [0] * 10
    assert queue.peek(ids[0]).state == "reserved"


def test_iterating_ends_with_the_client(make, cluster, tube):
    with closing(make(url(cluster))) as queue:
        queue.put_many(tube, [b"%d" % number for number in range(10)])
        jobs = iter(queue.jobs(tube, prefetch=5))
        next(jobs)
        queue.close()
        with pytest.raises((StopIteration, Unreachable)):
            next(jobs)


def test_what_is_too_large_harms_no_other_call(queue, tube):
    """It was sent, cut off, and sent again, and all other calls with it."""
    id = queue.put(tube, "held", ttr=1)
    job = queue.reserve(tube, timeout=5)
    with pytest.raises(TooLarge, match="65,535 bytes"):
        queue.put(tube, bytes(3_000_000))
    assert queue.peek(id).state == "reserved"
    job.delete()
    assert getattr(queue, "inner", queue).core.resumed == 0


def test_what_cannot_be_sent_harms_no_other_call(queue, tube):
    queue.put(tube, "a")
    job = queue.reserve(tube, timeout=5)
    for call in (
        lambda: queue.stats("\udcff"),
        lambda: queue.peek_next("\udcff"),
        lambda: queue.put(tube, "a", key="\udcff"),
        lambda: queue.peek(1 << 70),
    ):
        with pytest.raises(Refused):
            call()
    job.fail("\udcff")
    assert queue.peek(job.id).error == "\\udcff"
    assert queue.put(tube, "b") > job.id


def test_the_end_of_a_job_that_was_not_answered_may_be_asked_for_again(make, three, tube):
    with closing(make(url(three, 1), timeout=1)) as queue:
        # the node may have just been started again, and the time is short: ask until it answers
        id = until_answered(lambda: queue.put(tube, "a", ttr=600, key=f"one job of {tube}"))
        job = until_answered(lambda: queue.reserve(tube, timeout=10))
        for node in three.nodes:
            three.kill(node)
        with pytest.raises((OutcomeUnknown, Unreachable)):
            job.delete()
        assert not job.lost
        for node in three.nodes:
            three.start(node)
        wait_for(lambda: three.find_leader(), 20, "a leader")
        with suppress(LostReservation):  # it was done the first time
            until_answered(job.delete)
        assert until_answered(lambda: queue.peek(id)) is None


def test_who_is_told_too_late_that_a_job_is_lost_is_told_all_the_same(make, cluster, queue, tube):
    queue.put(tube, "a", ttr=1)
    job = queue.reserve(tube, timeout=5)
    told = threading.Event()
    getattr(job, "inner", job).when_lost(lambda: 1 // 0)  # it harms nobody
    with closing(make(url(cluster))) as other:
        other.delete(job.id, job.token)
    wait_for(lambda: job.lost, 20, "it is lost")
    getattr(job, "inner", job).when_lost(told.set)
    assert told.wait(5)
    assert queue.put(tube, "b") > job.id

"""What a node keeps of the last minutes to a day."""

from __future__ import annotations

from raftd.histogram import LATENCIES, Histogram
from raftd.jobs import commands as c
from raftd.jobs.machine import StateMachine
from raftd.node.job_events import JobEventBuffer
from raftd.node.series import SAMPLE_S, SAMPLED_TUBES, SPANS, TUBE_POINTS, History, TubeSeries


class Queue:
    """A state machine whose history is sampled."""

    def __init__(self) -> None:
        self.machine = StateMachine()
        self.events = JobEventBuffer(self.machine)
        self.commit_s, self.fsync_s = Histogram(LATENCIES), Histogram(LATENCIES)
        self.history = History(lambda: self.machine, self.events, self.commit_s, self.fsync_s)
        self.entry(c.OpenGateway(1, 1))
        self.seq = 0

    def entry(self, payload: object) -> None:
        self.machine.apply(self.machine.applied_index + 1, self.machine.now_ms + 1, c.encode_payload(payload))

    def run(self, *commands: object) -> None:
        self.seq += 1
        self.entry(c.Batch(1, 1, self.seq, list(commands)))

    def put(self, tube: str, count: int) -> None:
        self.run(c.PutMany(7, tube, [c.NewJob(1, 0, 60_000, b"x")] * count))

    def sample(self, times: int = 1) -> None:
        for _ in range(times):
            for _ in self.history.sample():
                pass


def test_rates_are_what_happened_between_two_samples():
    queue = Queue()
    queue.sample()
    queue.put("mail", 50)
    queue.commit_s.observe(0.004)
    queue.sample()
    newest = queue.history.newest
    assert (newest["put"], newest["taken"], newest["gone"], newest["ready"]) == (50 / SAMPLE_S, 0, 0, 50)
    assert newest["commit_p50_s"] == newest["commit_p99_s"] == 0.005
    assert newest["fsync_p99_s"] != newest["fsync_p99_s"]  # nothing was written: not a number
    queue.run(c.Watch(7, "mail"), c.Reserve(7, 0))
    id = queue.machine.last_token
    queue.run(c.Delete(7, id))
    queue.sample()
    assert (queue.history.newest["taken"], queue.history.newest["gone"], queue.history.newest["ready"]) == (0.2, 0.2, 49)
    (finest, *_) = queue.history.series
    assert finest.of("put") == [0, 10, 0]
    assert finest.of("fsync_p99_s") == [None, None, None]


def test_a_state_that_was_replaced_is_no_burst():
    queue = Queue()
    queue.put("mail", 10)
    queue.sample()
    other = Queue()
    other.put("mail", 5_000)
    queue.machine = other.machine
    queue.events.follow(other.machine)
    queue.sample()
    assert queue.history.points("mail") == []
    assert queue.history.newest["put"] == 0
    assert queue.history.newest["ready"] == 5_000


def test_a_long_span_has_the_mean_of_its_samples_and_the_worst_latency():
    queue = Queue()
    steps = SPANS[1][0] // SAMPLE_S
    for step in range(steps):
        queue.put("mail", 12)
        queue.commit_s.observe(0.001 if step else 0.5)
        queue.sample()
    finest, hours, day = queue.history.series
    assert len(finest.of("put")) == steps
    assert hours.of("put") == [12 / SAMPLE_S]
    assert hours.of("commit_p99_s") == [0.5]
    assert day.of("put") == []


def test_memory_is_bounded():
    queue = Queue()
    queue.sample(SPANS[0][1] * 3)
    assert [len(series.of("put")) for series in queue.history.series] == [SPANS[0][1], 45, 4]


def test_a_tube_is_seen_with_what_came_and_went():
    queue = Queue()
    queue.put("mail", 1)
    queue.sample()
    assert queue.history.points("mail") == [(0, 0)]  # what was before is of no sample
    queue.put("mail", 10)
    queue.sample()
    assert queue.history.rates("mail") == (2.0, 0.0)
    queue.run(c.Watch(7, "mail"), c.Reserve(7, 0), c.Delete(7, 1))
    queue.sample()
    assert queue.history.points("mail") == [(0, 0), (10, 0), (0, 1)]
    queue.sample(2)
    assert queue.history.rates("mail") == (0.0, 0.0)
    assert queue.history.points("mail") == [(0, 0), (10, 0), (0, 1), (0, 0), (0, 0)]
    assert queue.history.points("nothing") == []


def test_points_of_a_tube_that_was_long_unused_are_not_seen_again():
    queue = Queue()
    queue.put("mail", 1)
    queue.sample()
    queue.put("mail", 3)
    queue.sample(TUBE_POINTS + 10)
    assert queue.history.points("mail") == [(0, 0)] * TUBE_POINTS
    queue.put("mail", 4)
    queue.sample()
    assert queue.history.points("mail") == [(0, 0)] * (TUBE_POINTS - 1) + [(4, 0)]


def test_tubes_that_are_gone_are_forgotten_and_too_many_too(monkeypatch):
    queue = Queue()
    for name in "abc":
        queue.put(name, 1)
        queue.sample()
    queue.put("c", 1)
    queue.sample()
    assert set(queue.history._tubes) == set("abc")
    monkeypatch.setattr("raftd.node.series.SAMPLED_TUBES", 2)
    queue.sample()
    assert set(queue.history._tubes) == {"b", "c"}
    del queue.machine.tubes["b"]
    queue.sample()
    assert "b" not in queue.history._tubes


def test_a_busy_tube_is_seen_among_more_than_are_kept(monkeypatch):
    """Those to which nothing happens took the place of those to which something did."""
    monkeypatch.setattr("raftd.node.series.SAMPLED_TUBES", 5)
    queue = Queue()
    for number in range(50):
        queue.put(f"t{number}", 1)
    queue.sample()
    for _ in range(3):
        queue.put("busy", 4)
        queue.sample()
    assert queue.history.points("busy")[-2:] == [(4, 0), (4, 0)]
    assert len(queue.history._tubes) == 5


def test_what_all_tubes_take():
    """The bound in bytes that the documents name: 1 KiB for each of SAMPLED_TUBES."""
    queue = Queue()
    queue.put("mail", 1)
    series = TubeSeries(queue.machine.tubes["mail"], 0)
    size = series.__sizeof__() + series._came.__sizeof__() + series._went.__sizeof__()
    assert size * SAMPLED_TUBES < SAMPLED_TUBES << 10

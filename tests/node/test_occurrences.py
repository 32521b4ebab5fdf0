"""When schedules are due, over both changes of the clock too."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from raftd.jobs.asks import NewJob, Plan
from raftd.node.occurrences import first, following, what_is_wrong_with_times

JOB = NewJob(1, 0, 1_000, b"")
BERLIN = ZoneInfo("Europe/Berlin")


def ms(*moment: int, zone: ZoneInfo = BERLIN) -> int:
    return int(datetime(*moment, tzinfo=zone).timestamp() * 1000)


def times(plan: Plan, after_ms: int, count: int) -> list[str]:
    found = []
    for _ in range(count):
        after_ms = following(plan, after_ms, after_ms)
        found.append(datetime.fromtimestamp(after_ms / 1000, BERLIN).isoformat())
    return found


def test_cron_in_a_time_zone():
    plan = Plan("t", JOB, cron="30 6 * * 1-5", zone="Europe/Berlin")
    assert first(plan, ms(2026, 11, 27, 6, 29)) == ms(2026, 11, 27, 6, 30)
    assert first(plan, ms(2026, 11, 27, 6, 30)) == ms(2026, 11, 30, 6, 30)  # a Monday


def test_a_time_that_the_clock_jumps_over_is_made_up_for_at_once():
    plan = Plan("t", JOB, cron="30 2 * * *", zone="Europe/Berlin")
    assert times(plan, ms(2026, 3, 28, 12), 2) == ["2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"]


def test_a_time_that_comes_twice_counts_once_and_an_interval_goes_on():
    daily = Plan("t", JOB, cron="30 2 * * *", zone="Europe/Berlin")
    assert times(daily, ms(2026, 10, 24, 12), 2) == ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]
    often = Plan("t", JOB, cron="*/30 * * * *", zone="Europe/Berlin")
    assert times(often, ms(2026, 10, 25, 1, 30), 5) == [
        "2026-10-25T02:00:00+02:00",
        "2026-10-25T02:30:00+02:00",
        "2026-10-25T02:00:00+01:00",
        "2026-10-25T02:30:00+01:00",
        "2026-10-25T03:00:00+01:00",
    ]


def test_every_so_often_keeps_its_beat():
    plan = Plan("t", JOB, every_ms=1_000)
    assert first(plan, 500) == 1_500
    assert following(plan, 1_500, 1_500) == 2_500
    assert following(plan, 1_500, 7_600) == 8_500
    assert following(plan, 1_500, 8_500) == 9_500


def test_once_at_a_moment_though_it_is_over():
    plan = Plan("t", JOB, at_ms=1_000)
    assert first(plan, 5_000) == 1_000
    assert following(plan, 1_000, 5_000) == 0


@pytest.mark.parametrize(
    ("plan", "wrong"),
    [
        (Plan("t", JOB), "expected one of them"),
        (Plan("t", JOB, cron="* * * * *", every_ms=5), "expected one of them"),
        (Plan("t", JOB, cron="61 * * * *"), "cron: bad minute"),
        (Plan("t", JOB, cron="* * *"), "has 3 fields"),
        (Plan("t", JOB, cron="* * * * * *"), "has 6 fields"),
        (Plan("t", JOB, cron="* * * * *", zone="localtime"), "there is no time zone"),
        (Plan("t", JOB, cron="0 0 30 2 *"), "cron"),
        (Plan("t", JOB, cron="* * * * *", zone="Europe/Atlantis"), "there is no time zone 'Europe/Atlantis'"),
        (Plan("t", JOB, cron="* * * * *", zone="../../etc/passwd"), "there is no time zone"),
        (Plan("t", JOB, cron="* * * * *", zone="Europe"), "there is no time zone"),
        (Plan("t", JOB, at_ms=1 << 60), "before the year 9999"),
    ],
)
def test_what_can_never_be(plan, wrong):
    assert wrong in what_is_wrong_with_times(plan)


def test_what_can():
    for plan in (Plan("t", JOB, cron="0 0 29 2 *"), Plan("t", JOB, every_ms=100), Plan("t", JOB, at_ms=ms(2026, 1, 1, zone=UTC))):
        assert what_is_wrong_with_times(plan) == ""

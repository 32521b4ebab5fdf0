"""The table of jobs is a dict, but for how it grows."""

from __future__ import annotations

from random import Random

import pytest

from raftd.jobs.model import Job, Tube
from raftd.jobs.table import JobTable


def test_it_does_what_a_dict_does():
    random = Random(1)
    table, plain = JobTable(), {}
    tube = Tube("default")
    for _ in range(20_000):
        id = random.choice((random.randrange(1, 60), random.randrange(1, 1 << 20)))
        if random.random() < 0.6:
            table[id] = plain[id] = Job(id, tube, 0, 0, 1, b"", 0)
        elif id in plain:
            del table[id], plain[id]
        else:
            with pytest.raises(KeyError):
                del table[id]
            with pytest.raises(KeyError):
                table[id]
        assert table.get(id) is plain.get(id)
        assert (id in table) == (id in plain)
        assert len(table) == len(plain)
    assert sorted(table) == sorted(plain)
    for after in (0, 30, *random.sample(sorted(plain), 20), 1 << 20):
        for most in (1, 7, 100_000):
            assert table.ids_after(after, most) == [id for id in sorted(plain) if id > after][:most]
    assert dict(table.items()) == plain
    for id in list(table):
        del table[id]
    assert len(table) == 0
    assert table._pages == {}


def test_many_at_once_across_pages():
    tube = Tube("default")
    table, plain = JobTable(), JobTable()
    first = 1
    for count in (1, 3, 1 << 14, 0, (3 << 14) + 5, 2):
        jobs = [Job(id, tube, 0, 0, 1, b"", 0) for id in range(first, first + count)]
        table.add_all(first, jobs)
        for job in jobs:
            plain.add(job.id, job)
        first += count
        assert len(table) == len(plain)
    assert list(table.items()) == list(plain.items())
    assert list(table._pages) == list(plain._pages)


def test_new_jobs_stand_in_the_order_of_their_ids():
    table = JobTable()
    tube = Tube("default")
    for id in range(1, 100_000):
        table[id] = Job(id, tube, 0, 0, 1, b"", 0)
    assert list(table) == list(range(1, 100_000))

"""Jobs that workers have finished, in tubes whose policy retains them: what came of them can be read for a while (docs/queues.md).

Bounded three times: by the time that the policy says, by how many they are, and by the bytes of their results.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from raftd.limits import FINISHED_BYTES, FINISHED_JOBS

#: Jobs forgotten at most when one more is remembered, so that no entry takes long.
FORGOTTEN = 16


class FinishedJob(NamedTuple):
    """`attempts` had failed before. Readable before `until_ms` of log time."""

    tube: str
    attempts: int
    finished_ms: int
    until_ms: int
    result: bytes


class FinishedJobs:
    """In the order of finishing; `most` of them, with `most_bytes` of results together, the same on every node."""

    def __init__(self, most: int = FINISHED_JOBS, most_bytes: int = FINISHED_BYTES) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self.jobs: OrderedDict[int, FinishedJob] = OrderedDict()
        self.bytes = 0  # of results

    def find(self, id: int, now_ms: int) -> FinishedJob | None:
        job = self.jobs.get(id)
        return job if job is not None and now_ms < job.until_ms else None

    def remember(self, id: int, job: FinishedJob) -> None:
        """And forget some that are too old or too many."""
        self.forget(id)  # a job that was put back, and is finished again
        self.add(id, job)
        for _ in range(FORGOTTEN):
            oldest, its = next(iter(self.jobs.items()))
            if len(self.jobs) <= self._most and self.bytes <= self._most_bytes and job.finished_ms < its.until_ms:
                return
            self.forget(oldest)

    def add(self, id: int, job: FinishedJob) -> None:
        """The newest."""
        self.jobs[id] = job
        self.bytes += len(job.result)

    def forget(self, id: int) -> None:
        job = self.jobs.pop(id, None)
        if job is not None:
            self.bytes -= len(job.result)

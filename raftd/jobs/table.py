"""Jobs by their ids, in pages.

A dict grows by making another and moving everything: with 700,000 jobs that stopped a node for a fifth of a second. A page has
so few that this takes microseconds, and is dropped with its last job.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping

from raftd.jobs.model import Job

_PAGE_BITS = 14


class JobTable(MutableMapping[int, Job]):
    """As a dict; in order of pages, and in a page in order of adding, which for new jobs is that of their ids."""

    __slots__ = ("_count", "_pages")

    def __init__(self) -> None:
        self._pages: dict[int, dict[int, Job]] = {}
        self._count = 0

    def get(self, id: int) -> Job | None:  # type: ignore[override]  # without a default: one branch less
        page = self._pages.get(id >> _PAGE_BITS)
        return page.get(id) if page is not None else None

    def __getitem__(self, id: int) -> Job:
        return self._pages[id >> _PAGE_BITS][id]

    def __contains__(self, id: object) -> bool:
        return isinstance(id, int) and id in self._pages.get(id >> _PAGE_BITS, ())

    def __setitem__(self, id: int, job: Job) -> None:
        page = self._pages.get(id >> _PAGE_BITS)
        if page is None:
            page = self._pages[id >> _PAGE_BITS] = {}
        self._count += id not in page
        page[id] = job

    def add(self, id: int, job: Job) -> None:
        """Set an id that is not there."""
        page = self._pages.get(id >> _PAGE_BITS)
        if page is None:
            page = self._pages[id >> _PAGE_BITS] = {}
        self._count += 1
        page[id] = job

    def add_all(self, first: int, jobs: list[Job]) -> None:
        """`add` for each, with ids from `first` on."""
        id, end = first, first + len(jobs)
        while id < end:
            number = id >> _PAGE_BITS
            stop = min(end, (number + 1) << _PAGE_BITS)
            self._pages.setdefault(number, {}).update(zip(range(id, stop), jobs[id - first : stop - first], strict=True))
            id = stop
        self._count += len(jobs)

    def __delitem__(self, id: int) -> None:
        page = self._pages[id >> _PAGE_BITS]
        del page[id]
        self._count -= 1
        if not page:
            del self._pages[id >> _PAGE_BITS]

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        for number in sorted(self._pages):
            yield from self._pages[number]

    def ids_after(self, id: int, most: int) -> list[int]:
        """Up to `most` ids greater than `id`, in order. Looks at whole pages."""
        found: list[int] = []
        for number in sorted(number for number in self._pages if number >= (id + 1) >> _PAGE_BITS):
            found += sorted(one for one in self._pages[number] if one > id)
            if len(found) >= most:
                break
        return found[:most]

    def dissolve(self) -> Iterator[None]:
        """Let go of all jobs, a page each time."""
        while self._pages:
            self._pages.popitem()
            yield
        self._count = 0

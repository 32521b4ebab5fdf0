"""A sorted collection whose every operation is bounded.

Heaps with lazy removal are cheap on average, but one call may skip or rebuild half a million stale items, and every node
pays that in the same entry. Here an item that is removed is gone. Items live in sorted pages of at most `PAGE_ITEMS`; adding and
removing bisect to the page, then within it, and move at most one page in memory. A list of a thousand pages holds a million items.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any, Generic, TypeVar

#: Moving the half of a page costs about 0.1 µs. Larger pages make that dearer, smaller ones the list of pages longer.
PAGE_ITEMS = 512
#: One with fewer items is joined with a neighbour, if both are small.
_SMALL_PAGE = PAGE_ITEMS // 4

_NONE: list[Any] = []

#: Items must be comparable with each other, and no two may be equal.
T = TypeVar("T", bound=tuple[Any, ...])


class SortedPages(Generic[T]):
    """Distinct items, least first. `add`, `remove`, `in` and `least` are O(log n) and take about a microsecond with a million items."""

    __slots__ = ("_count", "_lasts", "_pages")

    def __init__(self) -> None:
        # Lists only once there is an item: a tube has three of these, most of them empty for ever.
        self._pages: list[list[T]] = _NONE  # none of them is empty
        self._lasts: list[T] = _NONE  # of each page
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        return chain.from_iterable(self._pages)

    def __contains__(self, item: T) -> bool:
        lasts = self._lasts
        place = 0 if lasts and item <= lasts[0] else bisect_left(lasts, item)
        if place == len(lasts):
            return False
        page = self._pages[place]
        return page[bisect_left(page, item)] == item

    def least(self) -> T | None:
        """The least item, None if there is none."""
        return self._pages[0][0] if self._pages else None

    def greatest(self) -> T | None:
        """The greatest item, None if there is none."""
        return self._lasts[-1] if self._lasts else None

    def from_item(self, item: T) -> Iterator[T]:
        """Items that are not less than `item`, least first. Nothing may be added or removed meanwhile."""
        place = bisect_left(self._lasts, item)
        if place < len(self._pages):
            page = self._pages[place]
            yield from islice(page, bisect_left(page, item), None)
            yield from chain.from_iterable(islice(self._pages, place + 1, None))

    def before(self, item: T) -> T | None:
        """The greatest item that is less than `item`, None if there is none."""
        place = bisect_left(self._lasts, item)
        if place < len(self._pages):
            page = self._pages[place]
            at = bisect_left(page, item)
            if at:
                return page[at - 1]
        return self._lasts[place - 1] if place else None

    def add(self, item: T) -> None:
        """Add an item that is not there yet."""
        pages, lasts = self._pages, self._lasts
        self._count += 1
        if pages is _NONE:
            self._pages, self._lasts = [[item]], [item]
            return
        if not lasts or item > lasts[-1]:  # the usual case: later deadlines, newer ids
            if pages and len(pages[-1]) < PAGE_ITEMS:
                pages[-1].append(item)
                lasts[-1] = item
            else:
                pages.append([item])
                lasts.append(item)
            return
        place = bisect_left(lasts, item)
        page = pages[place]
        insort(page, item)
        if len(page) > PAGE_ITEMS:
            upper = page[PAGE_ITEMS // 2 :]
            del page[PAGE_ITEMS // 2 :]
            pages.insert(place + 1, upper)
            lasts.insert(place, page[-1])

    def add_all(self, items: list[T]) -> None:
        """`add` for each: quick if they all belong behind those that are there."""
        items = sorted(items)
        at = 0
        while at < len(items):
            self.add(items[at])
            page, at = self._pages[-1], at + 1
            if page[-1] is items[at - 1] and (some := items[at : at + PAGE_ITEMS - len(page)]):
                page += some
                self._lasts[-1] = some[-1]
                self._count += len(some)
                at += len(some)

    def remove(self, item: T) -> None:
        """Remove an item. Raises KeyError if it is not there."""
        lasts = self._lasts
        # The first page is where most is removed.
        place = 0 if lasts and item <= lasts[0] else bisect_left(lasts, item)
        if place == len(lasts):
            raise KeyError(item)
        page = self._pages[place]
        at = bisect_left(page, item)
        if page[at] != item:
            raise KeyError(item)
        del page[at]
        self._count -= 1
        if len(page) >= _SMALL_PAGE or (page and len(lasts) == 1):
            if at == len(page):
                lasts[place] = page[-1]
        else:
            self._shrunk(place)

    def pop_least(self) -> T:
        """Remove the least item and return it. Raises IndexError if there is none."""
        page = self._pages[0]
        item = page.pop(0)
        self._count -= 1
        if not page:
            del self._pages[0], self._lasts[0]
        return item

    def dissolve(self) -> Iterator[None]:
        """Let go of all items, some pages each time."""
        while self._pages:
            del self._pages[-32:]
            yield
        self._lasts = self._pages = _NONE
        self._count = 0

    def _shrunk(self, place: int) -> None:
        """Drop an empty page; join a small one with a neighbour, so that there are never many small pages."""
        pages, lasts = self._pages, self._lasts
        page = pages[place]
        if not page:
            del pages[place], lasts[place]
            return
        lasts[place] = page[-1]
        if len(pages) == 1:
            return
        for left in (place, place - 1):
            if 0 <= left < len(pages) - 1 and len(pages[left]) + len(pages[left + 1]) <= PAGE_ITEMS // 2:
                pages[left] += pages.pop(left + 1)
                del lasts[left]
                return

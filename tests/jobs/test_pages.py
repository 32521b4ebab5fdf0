"""`SortedPages` beside a sorted list, and what one operation costs at most."""

from __future__ import annotations

from bisect import insort
from random import Random

import pytest

from raftd.jobs.pages import PAGE_ITEMS, SortedPages


def pages_of(items) -> SortedPages[tuple[int, int]]:
    pages: SortedPages[tuple[int, int]] = SortedPages()
    for item in items:
        pages.add(item)
    return pages


@pytest.mark.parametrize("seed", range(5))
def test_it_holds_what_a_sorted_list_holds(seed):
    random = Random(seed)
    pages, plain = pages_of([]), []
    for step in range(20_000):
        growing = (step // 4_000) % 2 == 0
        if not plain or random.random() < (0.8 if growing else 0.2):
            item = (random.randrange(50), random.randrange(1_000_000)) if random.random() < 0.5 else (60, step)
            if item not in pages:
                pages.add(item)
                insort(plain, item)
        elif random.random() < 0.3:
            assert pages.pop_least() == plain.pop(0)
        else:
            item = plain.pop(random.randrange(len(plain)))
            pages.remove(item)
            assert item not in pages
        assert len(pages) == len(plain)
        assert pages.least() == (plain[0] if plain else None)
        assert pages.greatest() == (plain[-1] if plain else None)
        if step % 1_000 == 0:
            assert list(pages) == plain
            assert all(item in pages for item in plain[::50])


def test_an_item_that_is_not_there_cannot_be_removed():
    pages = pages_of([(1, 1), (3, 3)])
    for item in ((0, 0), (2, 2), (4, 4)):
        assert item not in pages
        with pytest.raises(KeyError):
            pages.remove(item)
    assert list(pages) == [(1, 1), (3, 3)]
    with pytest.raises(KeyError):
        pages_of([]).remove((1, 1))


@pytest.mark.parametrize("order", ["first", "last", "every other", "random"])
def test_pages_are_never_large_and_never_many_for_few_items(order):
    count = 40 * PAGE_ITEMS
    items = [(number, 0) for number in range(count)]
    pages = pages_of(items)
    gone = {"first": items, "last": items[::-1], "every other": items[::2] + items[1::2], "random": items[:]}[order]
    if order == "random":
        Random(3).shuffle(gone)
    for number, item in enumerate(gone, 1):
        pages.remove(item)
        if number % 500 == 0:
            sizes = [len(page) for page in pages._pages]
            assert max(sizes, default=0) <= PAGE_ITEMS
            assert len(sizes) <= 2 + 16 * (count - number) // PAGE_ITEMS
    assert pages._pages == pages._lasts == []

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


@pytest.mark.parametrize("seed", range(5))
def test_what_stands_from_an_item_on_and_before_it(seed):
    random = Random(seed)
    plain = sorted({(random.randrange(50), random.randrange(1_000)) for _ in range(3_000)})
    pages = pages_of(plain)
    for item in [*random.sample(plain, 200), (-1, 0), (25, -1), (60, 0)]:
        assert list(pages.from_item(item)) == [other for other in plain if other >= item]
        assert pages.before(item) == max((other for other in plain if other < item), default=None)
    assert list(pages_of([]).from_item((1, 1))) == []
    assert pages_of([]).before((1, 1)) is None


@pytest.mark.parametrize("seed", range(20))
def test_many_at_once_are_as_many_one_by_one(seed):
    random = Random(seed)
    pages, plain = pages_of([]), pages_of([])
    for number in range(30):
        behind = random.random() < 0.7
        some = [(60 if behind else random.randrange(60), number * 2_000 + place) for place in range(random.choice((0, 1, 3, 100, 1_500)))]
        random.shuffle(some)
        pages.add_all(some)
        for item in some:
            plain.add(item)
        assert list(pages) == list(plain)
        assert len(pages) == len(plain)
        assert pages.greatest() == plain.greatest()
    assert max(map(len, pages._pages), default=0) <= PAGE_ITEMS
    for item in list(plain):
        pages.remove(item)
    assert len(pages) == 0


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

"""The changed inputs that every run of the tests makes, and structures that hypothesis makes up."""

from __future__ import annotations

from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.decoders import strangers
from tests.decoders.__main__ import run
from tests.decoders.mutate import load_corpus, mutated
from tests.decoders.targets import TARGETS, use_corpus

_MESSAGES = ("frames", "peer messages", "client requests", "answers", "entries", "snapshot pieces")

numbers = st.one_of(st.integers(0, 60), st.integers(-(1 << 63), (1 << 64) - 1))
leaves = st.one_of(st.none(), st.booleans(), numbers, st.floats(), st.text(max_size=20), st.binary(max_size=20))
structures = st.recursive(
    leaves, lambda inner: st.one_of(st.lists(inner, max_size=8), st.dictionaries(numbers, inner, max_size=3)), max_leaves=30
)
tagged = st.builds(lambda tag, rest: [tag, *rest], st.integers(0, 50), st.lists(structures, max_size=9))


def test_changed_inputs_break_nothing():
    """The whole loop has a million: `python -m tests.decoders`."""
    counts = run(40_000, seed=20_261_127)
    assert sum(counts[name] for name in TARGETS) == 40_000
    for name in TARGETS:
        assert counts[f"{name}, taken"] < counts[name]


@given(tagged, st.randoms(use_true_random=False))
def test_any_structure_is_understood_or_refused(structure, random):
    use_corpus(load_corpus())
    data = msgspec.msgpack.encode(structure)
    for name in _MESSAGES:
        decode, _, _ = TARGETS[name]
        assert decode(data, random) in (True, False)


@pytest.mark.parametrize("depth", [100, 10_000, 1_000_000])
def test_deep_nesting_is_refused(depth):
    use_corpus(load_corpus())
    for data in (b"\x91" * depth, b"\x81\x01" * depth, b"\x94\x14\x01\x01" + b"\x91" * depth):
        for name in _MESSAGES[1:]:
            decode, _, _ = TARGETS[name]
            assert decode(data, Random(1)) is False


def test_the_same_seed_makes_the_same_inputs():
    some = load_corpus()["client"]
    first, second = ([mutated(data, some, Random(7)) for data in some] for _ in range(2))
    assert first == second
    assert first != some


def test_strangers_change_and_learn_nothing():
    assert sum(strangers.run(2_000, 1).values()) == 2_000

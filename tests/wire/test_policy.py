"""Policies as people write them, and as they stand in the log."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftd.jobs.policy import Policy
from raftd.wire.policy import Backoff, PolicyDocument, document_from, document_of, policy_of, what_is_wrong_with

milliseconds = st.integers(1, 10**12)
backoffs = st.one_of(
    st.none(),
    st.lists(milliseconds.map(lambda ms: ms / 1000), min_size=1, max_size=5),
    st.builds(
        Backoff,
        st.integers(10, 5_000).map(lambda ms: ms / 1000),
        st.integers(1_100, 9_000).map(lambda thousandths: thousandths / 1000),
        st.integers(5_000, 10**9).map(lambda ms: ms / 1000),
    ),
)
documents = st.builds(
    PolicyDocument,
    max_attempts=st.one_of(st.none(), st.integers(1, 2**32 - 1)),
    backoff=backoffs,
    dead_letter=st.just("dead"),
    ttl_s=milliseconds.map(lambda ms: ms / 1000),
    on_expire=st.sampled_from(["discard", "dead_letter"]),
    max_jobs=st.integers(1, 10**9),
    max_bytes=st.one_of(st.none(), st.integers(1, 10**12)),
    overflow=st.sampled_from(["reject", "drop_oldest", "dead_letter_oldest"]),
    rate=st.integers(1, 10**9).map(lambda thousandths: thousandths / 1000),
    burst=st.integers(1, 10**6),
    concurrency=st.one_of(st.none(), st.integers(1, 10**6)),
)


@given(documents)
def test_what_is_shown_is_what_was_set(document):
    policy = policy_of(document)
    assert document_of(policy) == document
    assert policy_of(document_of(policy)) == policy
    assert what_is_wrong_with(policy) == ""


def test_a_policy_without_limits():
    assert policy_of(document_from({})) == Policy()
    assert document_of(Policy()) == PolicyDocument()


@pytest.mark.parametrize(
    "policy",
    [
        Policy(max_attempts=-1),
        Policy(ttl_ms=1 << 62),
        Policy(burst=0, rate=1),
        Policy(dead_letter="-"),
        Policy(backoff_ms=(0,)),
        Policy(backoff_ms=(1,) * 101),
        Policy(backoff_ms=(1,), backoff_factor=2_000, backoff_max_ms=10),  # would not grow: 1 ms doubled a thousand times is slow to say
        Policy(backoff_ms=(10,), backoff_factor=1_099, backoff_max_ms=10),
        Policy(backoff_ms=(10, 20), backoff_factor=2_000, backoff_max_ms=100),
        Policy(backoff_max_ms=100),
    ],
)
def test_what_a_client_of_the_wire_may_not_ask_for(policy):
    assert what_is_wrong_with(policy) != ""

"""The times of files, by which they are evicted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from asyncoffload.tiers.fs.recency import AT_ONCE_NS, used_at

NOW = 10**18

moments = st.integers(min_value=NOW, max_value=NOW + 10**12)
depths = st.integers(min_value=0, max_value=100_000)


@given(moments, depths, depths)
def test_what_was_used_at_once_is_ordered_by_depth(now: int, one: int, other: int) -> None:
    later = now - now % AT_ONCE_NS + AT_ONCE_NS - 1
    assert (used_at(now, one) < used_at(later, other)) == (one > other)


@given(moments, depths, depths)
def test_what_was_used_later_counts_as_later(now: int, one: int, other: int) -> None:
    assert used_at(now, one) < used_at(now + AT_ONCE_NS, other)

"""The times of files, by which they are evicted."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from asyncoffload.keys import make_key
from asyncoffload.tiers.fs.recency import AT_ONCE_NS, MAX_DEPTH, Renewals, used_again, used_at

NOW = 16_666_666 * AT_ONCE_NS

moments = st.integers(min_value=NOW, max_value=NOW + 10**12)
depths = st.integers(min_value=0, max_value=100_000)


@given(moments, depths, depths)
def test_what_was_used_at_once_is_ordered_by_depth(now: int, one: int, other: int) -> None:
    later = now - now % AT_ONCE_NS + AT_ONCE_NS - 1
    assert (used_at(now, one) < used_at(later, other)) == (one > other)


@given(moments, depths, depths)
def test_what_was_used_later_counts_as_later(now: int, one: int, other: int) -> None:
    assert used_at(now, one) < used_at(now + AT_ONCE_NS, other)


@given(moments, moments, depths, depths)
def test_what_is_used_again_stays_as_deep_as_it_was(now: int, later: int, depth: int, place: int) -> None:
    assert used_again(used_at(later, place), used_at(now, depth)) == used_at(later, max(place, depth))


@given(moments, moments, depths)
def test_a_time_that_no_tier_gave_says_nothing_about_depth(now: int, later: int, depth: int) -> None:
    foreign = used_at(now, 0) - (MAX_DEPTH + now % MAX_DEPTH) * 1000
    assert used_again(used_at(later, depth), foreign) == used_at(later, depth)


uses = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.integers(1, 12),
        st.lists(st.integers(1, 11), max_size=3),
        st.booleans(),
        st.integers(0, 2 * AT_ONCE_NS),
    ),
    max_size=20,
)
"""Which process uses how many blocks of a prompt, where it cuts them into batches, whether the batches say how deep
they lie, and how many nanoseconds pass until the next one."""


@given(uses)
def test_a_beginning_is_never_older_than_what_follows_it(
    history: list[tuple[int, int, list[int], bool, int]],
) -> None:
    keys = [make_key(bytes([number]) * 16) for number in range(12)]
    processes, times, now = (Renewals(), Renewals()), dict[bytes, int](), NOW
    for process, count, cuts, knows_depth, pause in history:
        ends = sorted({cut for cut in cuts if cut < count} | {count})
        for first, last in zip([0, *ends], ends, strict=False):
            for depth in range(first, last):
                key, renewals = keys[depth], processes[process]
                if key not in times:
                    times[key] = used_at(now, depth)
                    renewals.is_due(key, times[key])
                    continue
                used = used_at(now, depth if knows_depth else depth - first)
                if renewals.is_due(key, used):
                    times[key] = used_again(used, times[key])
        now += pause
        known = [times[key] for key in keys if key in times]
        assert all(earlier > later for earlier, later in pairwise(known))


def test_a_block_is_due_once_a_minute_and_when_the_clock_was_set_back() -> None:
    renewals, key, other = Renewals(), make_key(b"a"), make_key(b"b")
    assert renewals.is_due(key, used_at(NOW, 3))
    assert not renewals.is_due(key, used_at(NOW + AT_ONCE_NS - 1, 5))
    assert renewals.is_due(key, used_at(NOW + AT_ONCE_NS, 5))
    assert not renewals.is_due(key, used_at(NOW, 5)), "a job that has waited since"
    assert renewals.is_due(other, used_at(NOW, 5))
    assert renewals.is_due(other, used_at(NOW + AT_ONCE_NS, 5)), "so it is renewed with the next use"
    assert renewals.is_due(key, used_at(NOW - 5 * AT_ONCE_NS, 5))
    assert not renewals.is_due(key, used_at(NOW - 5 * AT_ONCE_NS, 5))

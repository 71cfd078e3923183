"""The choice between loading and computing, against trying every prefix."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncoffload.core.recompute import Route, weigh

HOST, DISK, REMOTE = -1, 0, 1


def there_after(sources: list[int], nbytes: list[int], routes: dict[int, Route]) -> float:
    """When these blocks are there: every tier delivers its own, one after the other."""
    ends = [0.0]
    for tier, route in routes.items():
        mine = sum(size for source, size in zip(sources, nbytes, strict=True) if source == tier)
        if mine:
            ends.append(route.latency + (route.queued_bytes + mine) / route.bytes_per_second)
    return max(ends)


@given(
    st.lists(st.tuples(st.sampled_from([HOST, DISK, REMOTE]), st.integers(1, 1 << 20)), max_size=24),
    st.tuples(st.floats(1e5, 1e9), st.floats(0, 0.1), st.integers(0, 1 << 24)),
    st.tuples(st.floats(1e5, 1e9), st.floats(0, 0.1), st.integers(0, 1 << 24)),
    st.floats(1e-6, 1.0),
)
def test_no_other_prefix_is_quicker(
    blocks: list[tuple[int, int]],
    disk: tuple[float, float, int],
    remote: tuple[float, float, int],
    seconds_per_block: float,
) -> None:
    sources, nbytes = [source for source, _ in blocks], [size for _, size in blocks]
    routes = {DISK: Route(*disk), REMOTE: Route(*remote)}
    estimate = weigh(sources, nbytes, routes, seconds_per_block)
    totals = [
        there_after(sources[:n], nbytes[:n], routes) + (len(blocks) - n) * seconds_per_block
        for n in range(len(blocks) + 1)
    ]
    assert totals[estimate.blocks] <= min(totals) * (1 + 1e-6)
    assert estimate.found == len(blocks)
    assert math.isclose(estimate.load_seconds + estimate.recompute_seconds, totals[estimate.blocks], abs_tol=1e-9)
    assert math.isclose(estimate.load_all_seconds, there_after(sources, nbytes, routes), abs_tol=1e-9)


def test_what_is_in_host_memory_is_taken_and_what_is_behind_a_slow_tier_is_not() -> None:
    slow = {DISK: Route(bytes_per_second=1e6, latency=0.01)}
    estimate = weigh([HOST] * 3 + [DISK] * 5 + [HOST] * 2, [1 << 20] * 10, slow, seconds_per_block=0.1)
    assert (estimate.blocks, estimate.load_seconds) == (3, 0.0)
    assert estimate.recompute_seconds == pytest.approx(0.7)


def test_a_queue_in_front_makes_computing_worth_while() -> None:
    def blocks(queued_bytes: int) -> int:
        return weigh([DISK] * 4, [1 << 20] * 4, {DISK: Route(1 << 30, 0.001, queued_bytes)}, 0.005).blocks

    assert blocks(0) == 4
    assert blocks(1 << 30) == 0


def test_what_others_have_queued_already_is_there_with_the_queue() -> None:
    route = {DISK: Route(1 << 20, 0.5, queued_bytes=4 << 20)}
    estimate = weigh([DISK] * 5, [0] * 4 + [1 << 20], route, 1e-6)
    assert estimate.blocks == 0
    assert estimate.load_all_seconds == 5.5
    assert weigh([HOST, *[DISK] * 4], [0] * 5, route, 1e-6).load_all_seconds == 4.5


def test_a_tier_of_which_nothing_is_known_is_taken_to_be_quick() -> None:
    assert weigh([DISK] * 4, [1 << 30] * 4, {}, 1e-6).blocks == 4


def test_of_equally_quick_prefixes_the_longest_is_loaded() -> None:
    assert weigh([HOST, HOST], [1, 1], {}, 0.0).blocks == 2
    assert weigh([], [], {}, 1.0).blocks == 0

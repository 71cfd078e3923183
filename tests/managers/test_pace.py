"""What is learned of a tier from the calls that it served."""

from __future__ import annotations

import pytest

from asyncoffload.managers.pace import TierPace

MB = 1_000_000


def served(pace: TierPace, start: float, nbytes: int, *, bandwidth: float, latency: float) -> float:
    """A call on an idle tier; returns when it ended."""
    end = start + latency + nbytes / bandwidth
    pace.began(start)
    pace.ended(nbytes, end)
    return end


def test_nothing_is_said_before_anything_was_seen() -> None:
    pace = TierPace()
    assert pace.route() is None
    pace.began(0.0)
    assert pace.route() is None
    pace.ended(0, 1.0)
    assert pace.route() is None


def test_calls_of_different_sizes_tell_latency_from_bandwidth() -> None:
    pace, now = TierPace(), 0.0
    for nbytes in (MB, 8 * MB, 2 * MB, 16 * MB, 4 * MB):
        now = 1 + served(pace, now, nbytes, bandwidth=100 * MB, latency=0.02)
    route = pace.route()
    assert route is not None
    assert route.bytes_per_second == pytest.approx(100 * MB, rel=1e-6)
    assert route.latency == pytest.approx(0.02, rel=1e-6)


def test_calls_that_are_all_alike_count_as_bandwidth() -> None:
    pace, now = TierPace(), 0.0
    for _ in range(5):
        now = 1 + served(pace, now, MB, bandwidth=100 * MB, latency=0.01)
    route = pace.route()
    assert route is not None
    assert route.bytes_per_second == pytest.approx(50 * MB)
    assert route.latency == 0.0


def test_calls_that_overlap_count_once() -> None:
    pace = TierPace()
    for _ in range(4):
        pace.began(0.0)
    for _ in range(4):
        pace.ended(MB, 0.04)
    route = pace.route()
    assert route is not None
    assert route.bytes_per_second == pytest.approx(100 * MB)


def test_what_is_served_before_is_handed_on() -> None:
    pace = TierPace()
    served(pace, 0.0, MB, bandwidth=MB, latency=0.0)
    route = pace.route(7 * MB)
    assert route is not None
    assert route.queued_bytes == 7 * MB


def test_a_tier_that_is_never_idle_is_learned_too_and_one_that_changes() -> None:
    pace = TierPace()
    pace.began(0.0)  # never ends
    now = 0.0
    for bandwidth in (10 * MB, 50 * MB):
        for _ in range(200):
            pace.began(now)
            now += 5 * MB / bandwidth
            pace.ended(5 * MB, now)
        route = pace.route()
        assert route is not None
        assert route.bytes_per_second == pytest.approx(bandwidth, rel=0.2)

"""When the poller looks again, from the time and from what is expected."""

from __future__ import annotations

import pytest

from asyncoffload.device.poll_timing import FIRST_GUESS, SMALL_BYTES, Pace, pause_before_query


@pytest.mark.parametrize(
    ("now", "ends", "pause"),
    [
        (0.0, [0.0], 0.0),
        (0.0, [0.0009], 0.0),
        (0.0, [0.0011], 0.001),
        (0.0, [0.0045], 0.004),
        (0.0, [5.0], 0.005),
        (0.0, [5.0, 0.0001], 0.0),
        (1.0004, [1.0], 0.0),
        (1.002, [1.0], 0.001),
        (1.016, [1.0], 0.004),
        (9.0, [1.0], 0.005),
        (9.0, [1.0, 9.0002], 0.0),
    ],
    ids=[
        "due",
        "nearly due: spin",
        "never below a millisecond",
        "sleep to the spin window",
        "never above 5 ms",
        "the one due first decides",
        "just late: spin",
        "late: no spinning",
        "later: longer",
        "stuck: 5 ms",
        "one that is stuck does not slow the others",
    ],
)
def test_the_pause_before_the_next_query(now: float, ends: list[float], pause: float) -> None:
    assert pause_before_query(now, ends) == pytest.approx(pause)


def test_a_hand_driven_clock_spins_only_around_the_expected_end() -> None:
    """A transfer expected after 10 ms that takes 14: few sleeps before, a bounded spin, few sleeps after."""
    now, sleeps, spins = 0.0, 0, 0
    while now < 0.014:
        pause = pause_before_query(now, [0.010])
        sleeps, spins = sleeps + (pause > 0), spins + (pause == 0)
        now += pause or 0.00002
    assert sleeps <= 6
    assert spins <= 76


def test_a_pace_learns_the_delay_from_small_and_the_bandwidth_from_large_transfers() -> None:
    pace = Pace()
    assert pace.seconds_for(int(FIRST_GUESS)) == 1.0
    for _ in range(60):
        pace.learn(1, 0.001)
        pace.learn(100 * SMALL_BYTES, 0.101)
    assert pace.seconds_for(0) == pytest.approx(0.001, rel=0.01)
    assert pace.seconds_for(200 * SMALL_BYTES) == pytest.approx(0.201, rel=0.01)


def test_a_pace_believes_its_first_observation_and_averages_later_ones() -> None:
    pace = Pace()
    pace.learn(100 * SMALL_BYTES, 0.1)
    assert pace.seconds_for(100 * SMALL_BYTES) == pytest.approx(0.1)
    for _ in range(8):
        pace.learn(100 * SMALL_BYTES, 0.1)
    pace.learn(100 * SMALL_BYTES, 0.2)
    assert pace.seconds_for(100 * SMALL_BYTES) == pytest.approx(0.125)


def test_a_pace_learns_from_many_as_from_each_of_them() -> None:
    apart, together = Pace(), Pace()
    for pace, transfers in ((apart, 1), (together, 4)):
        pace.learn(0, 0.001 * transfers, transfers)
        pace.learn(10 * SMALL_BYTES * transfers, 0.011 * transfers, transfers)
    assert together.delay == pytest.approx(apart.delay)
    assert together.seconds_per_byte == pytest.approx(apart.seconds_per_byte)

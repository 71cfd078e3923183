"""Several threads together keep to a number of bytes per second."""

from __future__ import annotations

import pytest

from asyncoffload.errors import InvalidArgument
from asyncoffload.tiers.fs.pace import Pace


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def test_each_waits_for_the_bytes_before_its_own() -> None:
    clock = Clock()
    pace = Pace(1000.0, clock=lambda: clock.now, sleep=clock.sleep)
    for _ in range(4):
        pace.spend(500)
    assert clock.slept == [0.5, 0.5, 0.5]


def test_rest_is_not_saved_up() -> None:
    clock = Clock()
    pace = Pace(1000.0, clock=lambda: clock.now, sleep=clock.sleep)
    pace.spend(500)
    clock.now += 60.0
    pace.spend(500)
    assert clock.slept == []
    pace.spend(500)
    assert clock.slept == [0.5]


def test_threads_that_sleep_do_not_hold_each_other_up() -> None:
    clock, slept = Clock(), list[float]()
    pace = Pace(1000.0, clock=lambda: clock.now, sleep=slept.append)  # the others ask while the first still sleeps
    for _ in range(3):
        pace.spend(1000)
    assert slept == [1.0, 2.0]


def test_without_a_limit_nobody_waits() -> None:
    clock = Clock()
    Pace(None, clock=lambda: clock.now, sleep=clock.sleep).spend(1 << 60)
    assert clock.slept == []


def test_a_rate_is_positive() -> None:
    with pytest.raises(InvalidArgument, match="a rate is more than 0 bytes per second, got 0"):
        Pace(0)

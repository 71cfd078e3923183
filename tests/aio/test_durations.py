"""Seconds fall into the right bucket, and snapshots add up."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncoffload.aio.durations import BUCKET_SECONDS, Durations


def test_a_bucket_holds_what_is_not_longer_than_its_bound() -> None:
    durations = Durations([1.0, 2.0])
    for seconds in (0.0, 1.0, 1.5, 2.0, 2.0, 99.0):
        durations.add(seconds)
    snapshot = durations.snapshot()
    assert snapshot.counts == (2, 3, 1)
    assert snapshot.cumulative() == [(1.0, 2), (2.0, 5), (math.inf, 6)]
    assert (snapshot.count, snapshot.seconds) == (6, 105.5)
    assert repr(durations) == "<Durations 6 of 105.5 s together>"


def test_a_snapshot_stays_as_it_is() -> None:
    durations = Durations()
    before = durations.snapshot()
    durations.add(1.0)
    assert (before.count, before.seconds) == (0, 0.0)
    assert before.bounds == BUCKET_SECONDS


@given(st.lists(st.floats(0, 100)))
def test_every_bound_counts_what_is_not_longer(samples: Sequence[float]) -> None:
    durations = Durations()
    for seconds in samples:
        durations.add(seconds)
    for bound, count in durations.snapshot().cumulative():
        assert count == sum(seconds <= bound for seconds in samples)
    assert durations.snapshot().seconds == pytest.approx(math.fsum(samples))

"""How long things took, counted in buckets: cheap enough to enter every one of them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

BUCKET_SECONDS = (
    *(0.0001, 0.00025, 0.0005),
    *(0.001, 0.0025, 0.005),
    *(0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0),
    *(10.0, 30.0),
)
"""From what a hop to a thread costs to what nobody waits for any more, in steps of about two and a half."""


@dataclass(frozen=True, slots=True)
class DurationCounts:
    """A snapshot of :class:`Durations`.

    Attributes:
        bounds: upper bounds of the buckets in seconds, ascending.
        counts: how many durations fell into each bucket, and, last, how many into none.
        seconds: the sum of all durations.
    """

    bounds: Sequence[float]
    counts: Sequence[int]
    seconds: float

    @property
    def count(self) -> int:
        """How many durations there were."""
        return sum(self.counts)

    def cumulative(self) -> list[tuple[float, int]]:
        """For each bound how many durations were not longer; the last bound is infinite."""
        return list(zip((*self.bounds, float("inf")), accumulate(self.counts), strict=True))


class Durations:
    """A histogram of seconds. One thread enters, any thread may take snapshots.

    Args:
        bounds: upper bounds of the buckets in seconds, ascending.
    """

    __slots__ = ("_bounds", "_counts", "_seconds")

    def __init__(self, bounds: Sequence[float] = BUCKET_SECONDS) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._seconds = 0.0

    def add(self, seconds: float) -> None:
        """Something took so long."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._seconds += seconds

    def snapshot(self) -> DurationCounts:
        """What was entered so far."""
        return DurationCounts(self._bounds, tuple(self._counts), self._seconds)

    def __repr__(self) -> str:
        return f"<Durations {sum(self._counts)} of {self._seconds:g} s together>"

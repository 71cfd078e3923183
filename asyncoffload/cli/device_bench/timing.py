"""Stopwatches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class Pairs:
    """Two ways of doing the same, in turns; who goes first changes from round to round."""

    def __init__(self, ours: Callable[[], object], reference: Callable[[], object]) -> None:
        self._ways = (ours, reference)
        self.ours: list[float] = []
        self.reference: list[float] = []

    def measure(self) -> None:
        """One round."""
        ours_first = len(self.ours) % 2 == 0
        for ours in (ours_first, not ours_first):
            taken = seconds(self._ways[0 if ours else 1])
            (self.ours if ours else self.reference).append(taken)

    @property
    def ratios(self) -> Sequence[float]:
        """Per round, how many times as fast as the reference."""
        return [reference / ours for ours, reference in zip(self.ours, self.reference, strict=True)]

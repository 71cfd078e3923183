"""How often each block was offered for storing, so that only what comes back is stored."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from asyncoffload.keys import OffloadKey


class OfferCounts:
    """Admits a block from its ``threshold``-th offer on.

    Args:
        threshold: offers until a block is admitted; 1 admits everything and remembers nothing.
        capacity: how many blocks are remembered; past it, those whose last offer is longest ago are forgotten.
    """

    def __init__(self, threshold: int, capacity: int) -> None:
        self.threshold = threshold
        self._capacity = capacity
        self._counts: OrderedDict[OffloadKey, int] = OrderedDict()

    def admit(self, keys: Iterable[OffloadKey]) -> list[OffloadKey]:
        """Count one offer of each of these blocks, and return those that have had enough of them."""
        if self.threshold <= 1:
            return list(keys)
        counts = self._counts
        admitted = []
        for key in keys:
            count = counts.pop(key, 0) + 1
            counts[key] = count
            if count >= self.threshold:
                admitted.append(key)
        while len(counts) > self._capacity:
            counts.popitem(last=False)
        return admitted

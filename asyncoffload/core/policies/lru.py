"""Least recently used: the default, and hard to beat on prefix traffic."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence

from asyncoffload.core.policies.base import EvictionPolicy
from asyncoffload.keys import OffloadKey


class LRU(EvictionPolicy):
    """Evicts the block whose last insertion or touch is longest ago."""

    def __init__(self) -> None:
        # Not a plain dict: victims leave at its front, and every walk would step over the holes they leave behind.
        self._order: OrderedDict[OffloadKey, None] = OrderedDict()

    def reset(self, capacity: int) -> None:  # noqa: ARG002
        self._order.clear()

    def insert(self, keys: Sequence[OffloadKey]) -> None:
        self._order.update(dict.fromkeys(reversed(keys)))

    def touch(self, keys: Sequence[OffloadKey]) -> None:
        order = self._order
        deque(map(order.move_to_end, filter(order.__contains__, reversed(keys))), maxlen=0)

    def remove(self, keys: Sequence[OffloadKey], *, evicted: bool) -> None:  # noqa: ARG002
        deque(map(self._order.__delitem__, keys), maxlen=0)

    def cold(self) -> Iterator[OffloadKey]:
        return iter(self._order)

    def __repr__(self) -> str:
        return f"<LRU of {len(self._order)} blocks>"

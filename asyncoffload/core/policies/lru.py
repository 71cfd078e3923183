"""Least recently used: the default, and hard to beat on prefix traffic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from asyncoffload.core.policies.base import EvictionPolicy
from asyncoffload.core.policies.recency import RecencyLog
from asyncoffload.keys import OffloadKey
from asyncoffload.types import Int32s


class LRU(EvictionPolicy):
    """Evicts the block whose last insertion or touch is longest ago."""

    def __init__(self) -> None:
        self.reset(1)

    def reset(self, n_slots: int) -> None:
        self._order = RecencyLog(n_slots)

    def insert(self, keys: Sequence[OffloadKey], slots: Int32s) -> None:  # noqa: ARG002
        self._order.use(slots[::-1])

    def touch(self, slots: Int32s) -> None:
        self._order.use(slots[::-1])

    def evict(self, keys: Sequence[OffloadKey], slots: Int32s) -> None:  # noqa: ARG002
        self._order.drop(slots)

    def cold(self) -> Iterator[Int32s]:
        return self._order.cold()

    def __repr__(self) -> str:
        return f"<LRU of {len(self._order)} blocks>"

"""Slots that are being written, and by whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from asyncoffload.keys import OffloadKey
from asyncoffload.types import Int32s, Int64s


@dataclass(frozen=True, slots=True, eq=False)
class Write:
    """Slots that were handed out to be written, and what had to go for them.

    Attributes:
        keys: the blocks to be written.
        slot_array: the slot of each key, in the same order.
        generations: which use of each slot is meant, in the same order; never 0.
        evicted: the keys that left to make room.
        lost: how many of them, the last ones, no tier had a copy of; 0 for a table without tiers.
    """

    keys: Sequence[OffloadKey]
    slot_array: Int32s
    generations: Int64s
    evicted: Sequence[OffloadKey] = ()
    lost: int = 0

    @property
    def slots(self) -> list[int]:
        """The slots as plain integers."""
        return list(self.slot_array.tolist())

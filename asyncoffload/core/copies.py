"""Which blocks of the primary the tiers have copies of, and which they are being given."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from asyncoffload.types import Int32s, Int64s


class Copies:
    """One clean bit for each slot and tier, "this tier has a copy", and one for "it is being given one".

    A slot without a ready block has no clean bit. A copy under way is a reader of its slot, counted among the others
    by whoever counts them.

    Args:
        n_slots: the slots are ``0`` to ``n_slots - 1``.

    Attributes:
        clean: how many slots some tier has a copy of.
        under_way: how many slots some tier is being given a copy of.
    """

    def __init__(self, n_slots: int) -> None:
        self.clean = 0
        self.under_way = 0
        self._has = np.zeros(n_slots, dtype=np.int64)
        self._gets = np.zeros(n_slots, dtype=np.int64)
        self._readers = np.zeros(n_slots, dtype=np.int32)  # the bits of _gets, counted

    def has_any(self, slots: Int32s) -> npt.NDArray[np.bool_]:
        """For each of the slots, whether some tier has a copy."""
        marked: npt.NDArray[np.bool_] = self._has[slots] != 0
        return marked

    def readers(self, slots: Int32s) -> Int32s:
        """For each of the slots, to how many tiers it is being copied."""
        return self._readers[slots]

    def missing(self, slots: Int32s, tier: int) -> Int32s:
        """Those of the slots of which the tier neither has a copy nor is being given one."""
        missing: Int32s = slots[(self._has[slots] | self._gets[slots]) & (1 << tier) == 0]
        return missing

    def idle_and_clean(self, readers: Int32s) -> int:
        """How many slots some tier has a copy of, without those that have readers."""
        return int(np.count_nonzero((readers == 0) & (self._has != 0)))

    def add(self, slots: Int32s, tier: int) -> None:
        """The tier has a copy of these, all different."""
        had = self._has[slots]
        self.clean += len(slots) - int(np.count_nonzero(had))
        self._has[slots] = had | (1 << tier)

    def remove(self, slots: Int32s, tier: int) -> None:
        """The tier has no copy of these, all different."""
        had = self._has[slots]
        left = had & ~(1 << tier)
        self.clean -= int(np.count_nonzero(had)) - int(np.count_nonzero(left))
        self._has[slots] = left

    def forget(self, slots: Int32s) -> int:
        """The blocks in these slots, all different, have left; returns how many of them had a copy."""
        had = int(np.count_nonzero(self._has[slots]))
        self.clean -= had
        self._has[slots] = 0
        return had

    def forget_all(self) -> None:
        """All blocks have left; copies under way go on until they end."""
        self.clean = 0
        self._has[:] = 0

    def begin(self, slots: Int64s, tier: int) -> None:
        """The tier is being given copies of these, all different."""
        readers = self._readers[slots]
        self.under_way += len(slots) - int(np.count_nonzero(readers))
        self._readers[slots] = readers + 1
        self._gets[slots] |= 1 << tier

    def end(self, slots: Int64s, tier: int) -> None:
        """The giving has ended, well or not."""
        readers = self._readers[slots] - 1
        self.under_way -= len(slots) - int(np.count_nonzero(readers))
        self._readers[slots] = readers
        self._gets[slots] &= ~(1 << tier)

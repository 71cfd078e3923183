"""Which blocks of the primary are the coldest, and which of them go to make room."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from asyncoffload.core.copies import Copies
from asyncoffload.core.free_slots import HeldAmong
from asyncoffload.core.policies import EvictionPolicy
from asyncoffload.core.slot_arrays import first
from asyncoffload.types import Int32s

VICTIM_WINDOW = 64
"""How many blocks further a clean victim is looked for before a block without a copy is given up."""


class ColdTail:
    """The ready blocks of a table, coldest first.

    Args:
        policy: knows how cold each slot is.
        readers: how many readers each slot has, copies to tiers included; shape ``(n_slots,)``.
        copies: which slots the tiers have copies of.
        n_tiers: how many tiers there are.
        keep_dirty: whether blocks stay of which no tier has a copy, if there are tiers.
        held_among: those of some slots whose memory is used by somebody who is no reader.
    """

    def __init__(
        self,
        policy: EvictionPolicy,
        readers: Int32s,
        copies: Copies,
        n_tiers: int,
        *,
        keep_dirty: bool,
        held_among: HeldAmong | None,
    ) -> None:
        self._policy = policy
        self._readers = readers
        self._copies = copies
        self._has_tiers = n_tiers > 0
        self._keep_dirty = keep_dirty
        self._held_among = held_among

    def coldest(self, count: int) -> Int32s:
        """The slots of the ``count`` coldest blocks; none that is read but to copy it to a tier."""
        readers, copying = self._readers, self._copies.readers
        return first((slots[readers[slots] == copying(slots)] for slots in self._policy.cold()), count)

    def everything(self) -> Int32s:
        """The slots of all ready blocks."""
        return first(self._policy.cold(), len(self._readers))

    def victims(self, need: int, keep: Int32s, *, some_read: bool) -> Int32s:
        """The slots of ``need`` blocks that nobody uses, or of fewer; rather of some that a tier has a copy of.

        Args:
            need: how many are needed.
            keep: slots that must stay.
            some_read: whether any slot has readers at all.

        Returns:
            Those without a copy come last.
        """
        idle = self._idle(keep, some_read)
        if not self._has_tiers:
            return first(idle, need)
        if self._keep_dirty:
            return first((slots[self._copies.has_any(slots)] for slots in idle), need)
        window = first(idle, need + VICTIM_WINDOW)
        copied = self._copies.has_any(window)
        return np.concatenate((window[copied], window[~copied]))[:need]

    def _idle(self, keep: Int32s, some_read: bool) -> Iterator[Int32s]:
        for slots in self._policy.cold():
            idle = slots[self._readers[slots] == 0] if some_read else slots
            if len(keep):
                idle = idle[~np.isin(idle, keep)]
            if self._held_among is None:
                yield idle
                continue
            for start in range(0, len(idle), VICTIM_WINDOW):  # asking takes a lock: ask only as far as necessary
                piece = idle[start : start + VICTIM_WINDOW]
                held = self._held_among(piece.tolist())
                yield piece[~np.isin(piece, list(held))] if held else piece

"""Slots in the order of their last use, as flat arrays."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from asyncoffload.types import Int32s

WALK = 1024
"""Log entries looked at in one step of a walk."""


class RecencyLog:
    """Slots in the order of their last use, for a few nanoseconds per use.

    Every use is appended to a ring. A slot's place is the position of its last entry; older entries of the slot are
    stale and are passed over. When the ring is full it is rewritten without them: it has two entries per slot, so
    that happens once in ``n_slots`` uses at most.

    Args:
        n_slots: the slots are ``0`` to ``n_slots - 1``.
    """

    def __init__(self, n_slots: int) -> None:
        size = 1 << (2 * n_slots - 1).bit_length()
        self._mask = size - 1
        self._ring = np.zeros(size, dtype=np.int32)
        self._place = np.full(n_slots, -1, dtype=np.int64)
        self._head = 0
        self._tail = 0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def use(self, slots: Int32s) -> None:
        """Make these slots the most recent, the last one most of all."""
        if self._tail + len(slots) - self._head > len(self._ring):
            self._rewrite()
        places = np.arange(self._tail, self._tail + len(slots))
        self._length += int(np.count_nonzero(self._place[slots] < 0))
        self._ring[places & self._mask] = slots
        self._place[slots] = places
        self._tail += len(slots)

    def drop(self, slots: Int32s) -> None:
        """Take these slots out of the order; all of them are in it."""
        self._place[slots] = -1
        self._length -= len(slots)

    def cold(self) -> Iterator[Int32s]:
        """All slots, the least recent first."""
        at = self._head
        while at < self._tail:
            end = min(at + WALK, self._tail)
            slots = self._current(at, end)
            if len(slots):
                yield slots
            elif at == self._head:
                self._head = end
            at = end

    def _current(self, begin: int, end: int) -> Int32s:
        places = np.arange(begin, end)
        slots: Int32s = self._ring[places & self._mask]
        current: Int32s = slots[self._place[slots] == places]
        return current

    def _rewrite(self) -> None:
        slots = self._current(self._head, self._tail)
        self._ring[: len(slots)] = slots
        self._place[slots] = np.arange(len(slots))
        self._head, self._tail = 0, len(slots)

"""Some ready blocks that stay where they are."""

from __future__ import annotations

from collections.abc import Iterable

from asyncoffload.core.block_table import BlockTable
from asyncoffload.keys import OffloadKey


class Kept:
    """Some blocks of the table that stay where they are.

    Keeping costs a set entry. They are pinned only by :meth:`secure`, before something that may evict, so that a step
    in which nothing is evicted pays for no pin.

    Attributes:
        told: blocks that are kept and not pinned yet; to be added to directly.
        slots: those that are pinned, and their slots.
    """

    __slots__ = ("_table", "slots", "told")

    def __init__(self, table: BlockTable) -> None:
        self._table = table
        self.told: set[OffloadKey] = set()
        self.slots: dict[OffloadKey, int] = {}

    def secure(self) -> None:
        """Pin what is not pinned yet."""
        if self.told:
            ready = self._table.ready
            keys = [key for key in self.told if key in ready and key not in self.slots]
            self.told.clear()
            if keys:
                self.slots.update(zip(keys, self._table.pin(keys), strict=True))

    def drop(self, keys: Iterable[OffloadKey]) -> None:
        """Keep these no longer."""
        if self.told:
            self.told.difference_update(keys)
        if self.slots:
            freed = [slot for slot in (self.slots.pop(key, None) for key in keys) if slot is not None]
            if freed:
                self._table.unpin(freed)

    def give_up(self, count: int) -> None:
        """Keep so many of the pinned ones no longer, or all if there are not so many."""
        freed = [self.slots.popitem()[1] for _ in range(min(count, len(self.slots)))]
        if freed:
            self._table.unpin(freed)

    def clear(self) -> None:
        """Keep nothing any more."""
        self.told.clear()
        if self.slots:
            self._table.unpin(list(self.slots.values()))
            self.slots.clear()

    def __len__(self) -> int:
        return len(self.told) + len(self.slots)

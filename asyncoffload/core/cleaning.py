"""How much of the cold tail is kept clean, and when somebody has to look over it again."""

from __future__ import annotations

from asyncoffload.core.block_table import BlockTable

BATCHES = 4
"""Batches of slots that can be had without losing a block: one is being taken, and while the copies that this set going
are under way, there is room for three more."""


class CleanWindow:
    """The coldest blocks of a primary into which every block is written as soon as it is stored.

    What is dirty in it failed to be written, or was put off.

    Args:
        table: the primary.
        blocks: how many of the coldest blocks are kept clean.
    """

    def __init__(self, table: BlockTable, blocks: int) -> None:
        self._table = table
        self._least = blocks
        self._used_at_last = self._used

    @property
    def blocks(self) -> int:
        """How many of the coldest blocks are to be clean now."""
        return self._least

    def due(self) -> bool:
        """Whether enough has happened since the last look over the window; to be asked once per turn."""
        window = self._least
        return self._table.free < window and self._used - self._used_at_last >= max(1, window // 2)

    def looked(self) -> None:
        """Somebody looks over it now."""
        self._used_at_last = self._used

    @property
    def _used(self) -> int:
        """Grows with every slot that is taken."""
        return self._table.evicted - self._table.free


class BatchWindow(CleanWindow):
    """The coldest blocks of a primary whose blocks are written only when they are about to be evicted.

    It is :data:`BATCHES` times as large as what is taken between two turns of the planner, by stores and promotions,
    the most of late: no more than half of the primary, unless one batch is. Free slots are part of it.

    Args:
        table: the primary.
        least: it is as large as that at least, within half of the primary.
    """

    def __init__(self, table: BlockTable, least: int) -> None:
        self._batch = 1
        self._taken = table.evicted - table.free
        super().__init__(table, least)

    @property
    def blocks(self) -> int:
        return self._size - self._table.free

    def due(self) -> bool:
        table = self._table
        taken = table.evicted - table.free
        batch, self._taken = taken - self._taken, taken
        if batch > 0:
            self._batch = max(batch, self._batch - self._batch // 8)
        window = self._size
        return table.free < window and self._used - self._used_at_last >= max(1, window // BATCHES)

    @property
    def _size(self) -> int:
        n_slots, batch = self._table.n_slots, self._batch
        return max(min(batch, n_slots), min(max(self._least, BATCHES * batch), n_slots // 2))

    @property
    def _used(self) -> int:
        """Grows with whatever uses up a clean victim: slots taken, and cold blocks that are touched or read."""
        table = self._table
        return table.evicted - table.free + table.touched + table.pinned - table.copied_to_tiers

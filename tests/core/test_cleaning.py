"""How large the window of clean blocks is, and when it is looked over."""

from __future__ import annotations

import pytest

from asyncoffload.core.block_table import BlockTable
from asyncoffload.core.cleaning import BatchWindow, CleanWindow
from asyncoffload.core.policies import LRU
from asyncoffload.keys import OffloadKey, make_key


def keys_of(n: int, start: int = 0) -> list[OffloadKey]:
    return [make_key(index.to_bytes(4, "big")) for index in range(start, start + n)]


class Stored:
    """A table that is filled batch after batch, as if every copy arrived at once."""

    def __init__(self, n_slots: int) -> None:
        self.table = BlockTable(n_slots, LRU(), n_tiers=1)
        self._next = 0

    def store(self, count: int) -> list[OffloadKey]:
        keys = keys_of(count, self._next)
        self._next += count
        write = self.table.begin_write(keys)
        assert write is not None
        self.table.end_write(write)
        return keys


def looks(window: CleanWindow) -> int | None:
    """How many of the coldest blocks are looked over now; None where it is not due."""
    if not window.due():
        return None
    blocks = window.blocks
    window.looked()
    return blocks


def test_nothing_is_due_while_there_are_free_slots_for_four_batches() -> None:
    stored = Stored(100)
    window = BatchWindow(stored.table, 8)
    sizes = []
    for _ in range(14):
        stored.store(10)
        sizes.append(looks(window))
    assert sizes == [None] * 6 + [10, 20, 30, 40, 40, 40, 40, 40]


def test_the_window_follows_the_batches() -> None:
    stored = Stored(1000)
    window = BatchWindow(stored.table, 8)
    for _ in range(25):
        stored.store(40)
        looks(window)
    assert window.blocks == 160
    stored.store(100)
    assert looks(window) == 400
    for _ in range(60):
        stored.store(10)
        looks(window)
    assert 40 <= window.blocks <= 72


@pytest.mark.parametrize(("batch", "expected"), [(1, 16), (10, 40), (30, 50), (50, 50), (80, 80), (100, 100)])
def test_the_window_is_half_of_the_primary_at_most_unless_one_batch_is_more(batch: int, expected: int) -> None:
    stored = Stored(100)
    window = BatchWindow(stored.table, 16)
    for _ in range(400 // batch):
        stored.store(batch)
        looks(window)
    stored.store(min(batch, stored.table.free) or batch)
    looks(window)
    assert window.blocks + stored.table.free == expected


def test_what_uses_up_clean_victims_makes_it_due() -> None:
    stored = Stored(100)
    window = BatchWindow(stored.table, 8)
    keys: list[OffloadKey] = []
    for _ in range(20):
        keys += stored.store(10)
        looks(window)
    assert not window.due()
    stored.table.touch(keys[-90:-85])
    assert not window.due()
    stored.table.touch(keys[-85:-80])
    assert looks(window) == 40
    slots = stored.table.pin(keys[-80:-70])
    assert looks(window) == 40
    stored.table.unpin(slots)
    assert not window.due()
    stored.table.begin_copies(keys[-70:-50], 0)
    assert not window.due(), "copies make clean victims"


def test_written_through_blocks_have_a_window_of_one_size() -> None:
    stored = Stored(100)
    window = CleanWindow(stored.table, 16)
    sizes = []
    for _ in range(14):
        stored.store(10)
        sizes.append(looks(window))
    assert sizes == [None] * 8 + [16] * 6

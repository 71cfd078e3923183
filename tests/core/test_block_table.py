"""The block table: its rules one by one, then all at once against a naive model."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from asyncoffload.core.block_table import BlockTable
from asyncoffload.core.policies import ARC, LRU, EvictionPolicy
from asyncoffload.core.write import Write
from asyncoffload.errors import InternalError, InvalidArgument
from asyncoffload.keys import OffloadKey


def block(number: int) -> OffloadKey:
    return OffloadKey(b"%08d" % number)


def blocks(*numbers: int) -> list[OffloadKey]:
    return list(map(block, numbers))


def begin(table: BlockTable, *numbers: int) -> Write:
    write = table.begin_write(blocks(*numbers))
    assert write is not None
    return write


def put(table: BlockTable, *numbers: int) -> None:
    table.end_write(begin(table, *numbers))


def conserved(table: BlockTable) -> bool:
    used = len(table.ready) + len(table.writing) + len(table.doomed)
    return used + table.free + table.quarantined == table.n_slots


def test_a_block_being_written_is_neither_readable_nor_evictable() -> None:
    table = BlockTable(2, LRU())
    write = begin(table, 1, 2)
    assert table.prefix(blocks(1, 2)) == 0
    assert table.available == 0
    assert table.begin_write(blocks(3)) is None
    assert table.end_write(write) == blocks(1, 2)
    assert table.prefix(blocks(1, 2, 3)) == 2


def test_the_prefix_ends_at_the_first_hole() -> None:
    table = BlockTable(4, LRU())
    put(table, 1, 3)
    assert table.prefix(blocks(1, 2, 3)) == 1
    assert table.prefix([]) == 0


def test_the_tail_of_a_request_is_evicted_first() -> None:
    table = BlockTable(4, LRU())
    put(table, 1, 2, 3)
    assert begin(table, 4, 5).evicted == blocks(3)


def test_fresh_slots_are_neighbours_in_key_order() -> None:
    table = BlockTable(8, LRU())
    assert begin(table, 1, 2, 3).slots == [0, 1, 2]
    assert begin(table, 4, 5).slots == [3, 4]


def test_a_touch_saves_a_block_and_unknown_keys_are_ignored() -> None:
    table = BlockTable(2, LRU())
    put(table, 1)
    put(table, 2)
    table.touch(blocks(9, 1, 1))
    assert begin(table, 3).evicted == blocks(2)


def test_pins_do_not_change_recency_and_save_from_eviction() -> None:
    table = BlockTable(2, LRU())
    put(table, 1)
    put(table, 2)
    slots = table.pin(blocks(1))
    assert table.available == 1
    assert begin(table, 3).evicted == blocks(2)
    table.unpin(slots)
    assert begin(table, 4).evicted == blocks(1)


def test_a_pin_of_a_block_that_is_not_ready_pins_nothing() -> None:
    table = BlockTable(2, LRU())
    put(table, 1)
    with pytest.raises(KeyError):
        table.pin(blocks(1, 2))
    assert table.pinned == 0


def test_more_unpins_than_pins_are_a_bug() -> None:
    table = BlockTable(2, LRU())
    put(table, 1)
    slots = table.pin(blocks(1))
    table.unpin(slots)
    with pytest.raises(InternalError, match="no reader left"):
        table.unpin(slots)


def test_a_block_is_pinned_once_per_call() -> None:
    table = BlockTable(2, LRU())
    put(table, 1)
    with pytest.raises(InternalError, match="appears twice"):
        table.pin(blocks(1, 1))
    assert table.pinned == 0


def test_a_block_is_unpinned_once_per_call() -> None:
    table = BlockTable(2, LRU())
    put(table, 1)
    (slot,), _ = table.pin(blocks(1)), table.pin(blocks(1))
    with pytest.raises(InternalError, match="appears twice"):
        table.unpin([slot, slot])
    assert table.pinned == 1


def test_a_write_is_all_or_nothing() -> None:
    table = BlockTable(3, LRU())
    put(table, 1, 2)
    table.pin(blocks(1))
    assert table.begin_write(blocks(3, 4, 5)) is None
    assert table.prefix(blocks(1, 2)) == 2
    assert table.free == 1
    assert table.evicted == 0


def test_a_write_never_evicts_its_own_argument() -> None:
    table = BlockTable(3, LRU())
    put(table, 1, 2, 3)
    assert begin(table, 3, 4).evicted == blocks(2)
    assert table.begin_write(blocks(1, 3, 5)) is None


def test_a_write_never_evicts_what_it_is_told_to_keep() -> None:
    table = BlockTable(2, LRU())
    put(table, 1, 2)
    write = table.begin_write(blocks(3), keep=blocks(2, 9))
    assert write is not None
    assert write.evicted == blocks(1)


def test_present_blocks_are_filtered() -> None:
    table = BlockTable(4, LRU())
    put(table, 1)
    begin(table, 2)
    assert begin(table, 1, 2, 3).keys == blocks(3)
    assert begin(table, 1, 2, 3).keys == []


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        (blocks(1, 2, 1), "appears twice"),
        (["a string", *blocks(1)], "not bytes"),
        ([b"abc"], "3 bytes"),
    ],
)
def test_malformed_batches_change_nothing(keys: list[OffloadKey], complaint: str) -> None:
    table = BlockTable(4, LRU())
    with pytest.raises(InvalidArgument, match=complaint):
        table.begin_write(keys)
    assert table.free == 4


def test_a_table_without_slots_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="one slot or more, got 0"):
        BlockTable(0, LRU())


def test_failure_frees_what_was_being_written() -> None:
    table = BlockTable(2, LRU())
    assert table.end_write(begin(table, 1, 2), ok=[True, False]) == blocks(1)
    assert table.free == 1
    assert table.prefix(blocks(1, 2)) == 1


def test_a_write_ends_once() -> None:
    table = BlockTable(1, LRU())
    late = begin(table, 1)
    table.end_write(late, ok=False)
    table_write = begin(table, 1)
    assert table_write.slots == late.slots
    assert table.end_write(late) == []
    assert table.ready == {}
    assert table.end_write(table_write) == blocks(1)
    assert table.end_write(table_write, ok=False) == []
    assert table.prefix(blocks(1)) == 1


def test_a_reset_frees_the_idle_and_dooms_the_held() -> None:
    table = BlockTable(3, LRU())
    put(table, 1, 2)
    slots = table.pin(blocks(1))
    write = begin(table, 3)
    assert table.reset() == blocks(1, 2)
    assert set(table.doomed) == set(blocks(1, 3))
    assert table.free == 1
    assert begin(table, 1, 3).keys == [], "a doomed block is not storable"
    table.unpin(slots)
    assert table.end_write(write) == []
    assert table.doomed == {}
    assert table.free == 3
    assert table.available == 3


def test_a_doomed_block_with_two_readers_goes_with_the_second() -> None:
    table = BlockTable(1, LRU())
    put(table, 1)
    first, second = table.pin(blocks(1)), table.pin(blocks(1))
    table.reset()
    table.unpin(first)
    assert table.free == 0
    table.unpin(second)
    assert table.free == 1


def test_a_second_completion_does_not_free_a_doomed_block_that_is_read() -> None:
    table = BlockTable(1, LRU())
    write = begin(table, 1)
    table.end_write(write)
    table.pin(blocks(1))
    table.reset()
    table.end_write(write, ok=False)
    assert table.free == 0


def test_a_slot_given_back_under_a_transfer_is_quarantined() -> None:
    held = {0}
    table = BlockTable(2, LRU(), held_among=held.intersection)
    table.end_write(begin(table, 1), ok=False)
    assert table.quarantined == 1
    assert begin(table, 2).slots == [1]
    assert table.begin_write(blocks(3)) is None
    held.clear()
    table.release([0, 1])
    assert table.quarantined == 0
    assert begin(table, 3).slots == [0]


def test_a_ready_block_under_a_transfer_is_no_victim() -> None:
    held = {0, 1}
    table = BlockTable(2, LRU(), held_among=held.intersection)
    put(table, 1)
    put(table, 2)
    assert table.begin_write(blocks(3)) is None
    held.remove(1)
    assert begin(table, 3).evicted == blocks(2)


def test_copied_blocks_are_evicted_first_and_the_rest_counts_as_lost() -> None:
    table = BlockTable(3, LRU(), n_tiers=2)
    for number in (1, 2, 3):
        put(table, number)
    table.mark_clean(blocks(2, 9), tier=1)
    write = begin(table, 4, 5)
    assert write.evicted == blocks(2, 1)
    assert write.lost == table.lost == 1
    assert table.evicted == 2


def test_clean_bits_belong_to_one_tier_and_one_life() -> None:
    table = BlockTable(2, LRU(), n_tiers=2)
    put(table, 1)
    put(table, 2)
    table.mark_clean(blocks(1), tier=0)
    assert table.dirty(table.cold.coldest(2), tier=0) == blocks(2)
    assert table.dirty(table.cold.coldest(2), tier=1) == blocks(1, 2)
    assert table.dirty(table.cold.coldest(1), tier=0) == []
    table.mark_dirty(blocks(1, 9), tier=0)
    assert table.dirty(table.cold.coldest(2), tier=0) == blocks(1, 2)
    table.pin(blocks(1))
    assert table.dirty(table.cold.coldest(2), tier=0) == blocks(2)
    table.mark_clean(blocks(2), tier=0)
    table.reset()
    put(table, 2)
    assert table.dirty(table.cold.coldest(2), tier=0) == blocks(2)


def test_victims_are_looked_for_beyond_many_blocks_that_are_held() -> None:
    held = set(range(3000))
    table = BlockTable(3200, LRU(), held_among=held.intersection)
    for number in range(0, 3200, 64):
        put(table, *reversed(range(number, number + 64)))
    write = begin(table, *range(5000, 5100))
    assert not set(write.slots) & held
    assert len(write.evicted) == 100


class TableMachine(RuleBasedStateMachine):
    """Random calls, with what each block should be kept in plain sets and counts."""

    n_slots = 5
    policy: type[EvictionPolicy] = LRU

    def __init__(self) -> None:
        super().__init__()
        self.held: set[int] = set()
        self.table = BlockTable(self.n_slots, self.policy(), n_tiers=1, held_among=self.held.intersection)
        self.order: list[OffloadKey] = []  # ready blocks, coldest first, as LRU has them
        self.clean: set[OffloadKey] = set()
        self.pins: list[list[int]] = []
        self.pinned: list[list[OffloadKey]] = []
        self.writes: list[Write] = []
        self.alive: list[Write] = []  # writes begun since the last reset and not ended
        self.ended: list[Write] = []

    keys = st.lists(st.integers(0, 8).map(block), unique=True, max_size=4)

    def readers(self, key: OffloadKey) -> int:
        return sum(key in pinned for pinned in self.pinned)

    @rule(keys=keys)
    def begin(self, keys: list[OffloadKey]) -> None:
        before = dict(self.table.ready)
        new = [k for k in keys if k not in before and k not in self.table.writing and k not in self.table.doomed]
        idle = [k for k in self.order if not self.readers(k) and k not in keys and before[k] not in self.held]
        need = len(new) - self.table.free
        write = self.table.begin_write(keys)
        if need > len(idle):
            assert write is None
            assert self.table.ready == before
            return
        assert write is not None
        assert list(write.keys) == new
        if self.policy is LRU:
            by_copy = [k for k in idle if k in self.clean] + [k for k in idle if k not in self.clean]
            assert list(write.evicted) == by_copy[: max(0, need)]
        assert set(write.evicted) <= set(idle)
        assert write.lost == len(set(write.evicted) - self.clean)
        assert not set(write.slots) & self.held
        self.order = [k for k in self.order if k not in write.evicted]
        self.clean -= set(write.evicted)
        if new:
            self.writes.append(write)
            self.alive.append(write)

    @precondition(lambda self: self.writes)
    @rule(data=st.data(), ok=st.booleans())
    def end(self, data: st.DataObject, ok: bool) -> None:
        write = self.writes.pop(data.draw(st.integers(0, len(self.writes) - 1)))
        arrived = self.table.end_write(write, ok)
        assert arrived == (list(write.keys) if ok and write in self.alive else [])
        self.alive = [other for other in self.alive if other is not write]
        self.order.extend(reversed(arrived))
        self.ended.append(write)

    @precondition(lambda self: self.ended)
    @rule(data=st.data(), ok=st.booleans())
    def end_again(self, data: st.DataObject, ok: bool) -> None:
        assert self.table.end_write(data.draw(st.sampled_from(self.ended)), ok) == []

    @rule(keys=keys)
    def pin(self, keys: list[OffloadKey]) -> None:
        keys = [key for key in keys if key in self.table.ready]
        self.pins.append(self.table.pin(keys))
        self.pinned.append(keys)

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.pins) - 1))
        self.table.unpin(self.pins.pop(index))
        self.pinned.pop(index)

    @rule(keys=keys)
    def touch(self, keys: list[OffloadKey]) -> None:
        self.table.touch(keys)
        touched = [key for key in reversed(keys) if key in self.order]
        self.order = [key for key in self.order if key not in touched] + touched

    @rule(keys=keys)
    def copy(self, keys: list[OffloadKey]) -> None:
        self.table.mark_clean(keys, 0)
        self.clean |= set(keys) & set(self.order)

    @rule(slot=st.integers(0, n_slots - 1))
    def hold(self, slot: int) -> None:
        if slot in self.table.ready.values() or slot in self.table.writing.values():
            self.held.add(slot)

    @rule()
    def let_go(self) -> None:
        released = list(self.held)
        self.held.clear()
        self.table.release(released)

    @rule()
    def reset(self) -> None:
        assert sorted(self.table.reset()) == sorted(self.order)
        self.order.clear()
        self.clean.clear()
        self.alive.clear()
        for keys in self.pinned:
            keys.clear()

    @invariant()
    def slots_are_conserved(self) -> None:
        assert conserved(self.table)
        places = [*self.table.ready.values(), *self.table.writing.values(), *self.table.doomed.values()]
        assert len(set(places)) == len(places)

    @invariant()
    def the_states_are_the_models(self) -> None:
        assert sorted(self.table.ready) == sorted(self.order)
        assert sorted(self.table.writing) == sorted(key for write in self.alive for key in write.keys)
        assert self.table.pinned == sum(self.readers(key) > 0 for key in self.order)
        dirty = [key for key in self.order if key not in self.clean and not self.readers(key)]
        if self.policy is LRU:
            assert self.table.dirty(self.table.cold.coldest(self.n_slots), 0) == dirty
        else:
            assert sorted(self.table.dirty(self.table.cold.coldest(self.n_slots), 0)) == sorted(dirty)

    def teardown(self) -> None:
        for write in self.writes:
            self.table.end_write(write, ok=False)
        for slots in self.pins:
            self.table.unpin(slots)
        self.let_go()
        self.table.reset()
        assert self.table.free == self.n_slots


class ARCTableMachine(TableMachine):
    policy = ARC


TestTableMachine = TableMachine.TestCase
TestARCTableMachine = ARCTableMachine.TestCase
TestTableMachine.settings = TestARCTableMachine.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None
)

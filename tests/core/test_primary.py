"""The plain manager calls: who may complete what, and what is told."""

from __future__ import annotations

import pytest

from asyncoffload.core.block_table import BlockTable
from asyncoffload.core.policies import LRU
from asyncoffload.core.primary import Primary
from asyncoffload.errors import BlocksUnavailable, InvalidArgument
from asyncoffload.keys import OffloadKey
from asyncoffload.types import CPULoadStoreSpec, PrepareStoreOutput


def blocks(*numbers: int) -> list[OffloadKey]:
    return [OffloadKey(b"%08d" % number) for number in numbers]


def primary(n_slots: int, store_threshold: int = 1) -> Primary:
    return Primary(BlockTable(n_slots, LRU()), store_threshold=store_threshold, block_size=16)


def prepare(primary: Primary, *numbers: int) -> PrepareStoreOutput:
    output = primary.prepare_store(blocks(*numbers))
    assert output is not None
    return output


def put(primary: Primary, *numbers: int) -> None:
    primary.finish_store(primary.claim_store(prepare(primary, *numbers).keys_to_store))


def test_a_load_pair_pins_and_unpins() -> None:
    plan = primary(4)
    put(plan, 1, 2)
    spec = plan.prepare_load(blocks(2, 1))
    assert spec.block_ids.tolist() == [1, 0]
    assert plan.stats().pinned == 2
    plan.complete_load(blocks(1))
    with pytest.raises(InvalidArgument, match="twice"):
        plan.complete_load(blocks(2, 2))
    plan.complete_load(blocks(2, 1, 3))
    assert plan.stats().pinned == 0


def test_a_load_that_lacks_a_block_pins_nothing() -> None:
    plan = primary(4)
    put(plan, 1, 2)
    with pytest.raises(BlocksUnavailable, match="block 2 of 4") as caught:
        plan.prepare_load(blocks(1, 2, 3, 4))
    assert caught.value.ready_prefix == 2
    assert plan.stats().pinned == 0


@pytest.mark.parametrize("keys", [blocks(1, 1), [*blocks(1), "x"], [*blocks(1), bytearray(9)]])
def test_a_load_of_malformed_keys_pins_nothing(keys: list[OffloadKey]) -> None:
    plan = primary(4)
    put(plan, 1)
    with pytest.raises(InvalidArgument):
        plan.prepare_load(keys)
    assert plan.stats().pinned == 0


@pytest.mark.parametrize("wrong", ["x", bytearray(9)])
def test_a_lookup_of_what_is_no_key_says_so(wrong: OffloadKey) -> None:
    plan = primary(4)
    put(plan, 1)
    with pytest.raises(InvalidArgument, match="not bytes"):
        plan.lookup([*blocks(1), wrong])


def test_two_loads_of_one_block_need_two_completions() -> None:
    plan = primary(1)
    put(plan, 1)
    plan.prepare_load(blocks(1))
    plan.prepare_load(blocks(1))
    plan.complete_load(blocks(1))
    assert plan.prepare_store(blocks(2)) is None
    plan.complete_load(blocks(1))
    assert prepare(plan, 2).evicted_keys == blocks(1)


def test_nobody_completes_the_load_of_an_owner() -> None:
    plan = primary(1)
    put(plan, 1)
    pins = plan.begin_load(blocks(1, 2))
    assert pins.keys == blocks(1)
    plan.complete_load(blocks(1))
    assert plan.stats().pinned == 1
    plan.finish_load(pins)
    assert plan.stats().pinned == 0


def test_nobody_completes_the_store_of_an_owner() -> None:
    plan = primary(2)
    write = plan.begin_store(blocks(1))
    assert write is not None
    assert plan.claim_store(blocks(1)).keys == []
    assert plan.claim_store(blocks(1), CPULoadStoreSpec(write.slots, write.generations)).keys == []
    assert plan.lookup(blocks(1)) == 0
    assert plan.finish_store(write) == blocks(1)


def test_a_second_caller_cannot_make_readable_what_it_has_not_written() -> None:
    plan = primary(4)
    first = prepare(plan, 1, 2)
    second = prepare(plan, 1, 2, 3)
    assert second.keys_to_store == blocks(3)
    plan.finish_store(plan.claim_store(second.keys_to_store, second.store_spec))
    assert plan.lookup(blocks(1)) == 0
    assert plan.lookup(blocks(3)) == 1
    plan.finish_store(plan.claim_store(first.keys_to_store, first.store_spec))
    assert plan.lookup(blocks(1, 2, 3)) == 3


def test_a_late_second_completion_by_spec_leaves_the_next_writer_alone() -> None:
    plan = primary(1)
    first = prepare(plan, 1)
    plan.finish_store(plan.claim_store(blocks(1), first.store_spec), ok=False)
    second = prepare(plan, 1)
    assert plan.claim_store(blocks(1), first.store_spec).keys == []
    assert plan.claim_store(blocks(1), second.store_spec).keys == blocks(1)


def test_a_store_of_what_is_there_hands_out_nothing() -> None:
    plan = primary(4)
    put(plan, 1)
    output = prepare(plan, 1)
    assert (len(output.keys_to_store), len(output.store_spec), len(output.evicted_keys)) == (0, 0, 0)
    assert plan.claim_store(output.keys_to_store, output.store_spec).keys == []


def test_part_of_a_store_can_be_completed() -> None:
    plan = primary(4)
    prepare(plan, 1, 2, 3)
    assert plan.finish_store(plan.claim_store(blocks(1, 3, 9))) == blocks(1, 3)
    assert plan.finish_store(plan.claim_store(blocks(1, 2, 3)), ok=False) == []
    assert plan.lookup(blocks(1, 2)) == 1
    assert plan.lookup(blocks(3)) == 1


def test_a_spec_of_another_length_is_refused() -> None:
    plan = primary(4)
    output = prepare(plan, 1, 2)
    with pytest.raises(InvalidArgument, match="1 keys cannot be completed by a spec of 2 slots"):
        plan.claim_store(blocks(1), output.store_spec)


def test_late_completions_after_a_reset_touch_nothing() -> None:
    plan = primary(3)
    put(plan, 1)
    plan.prepare_load(blocks(1))
    late = prepare(plan, 2)
    plan.reset()
    assert prepare(plan, 1, 2, 3).keys_to_store == blocks(3), "held blocks are not storable yet"
    assert plan.finish_store(plan.claim_store(blocks(2), late.store_spec)) == []
    plan.complete_load(blocks(1))
    assert plan.stats().doomed == 0
    again = prepare(plan, 1, 2)
    plan.complete_load(blocks(1))
    assert plan.claim_store(blocks(2), late.store_spec).keys == []
    assert plan.lookup(blocks(1)) == 0
    assert plan.finish_store(plan.claim_store(blocks(1, 2), again.store_spec)) == blocks(1, 2)


def test_generations_grow_and_stand_in_the_spec() -> None:
    plan = primary(1)
    first = prepare(plan, 1)
    plan.finish_store(plan.claim_store(blocks(1)))
    second = prepare(plan, 2)
    assert first.store_spec.block_ids.tolist() == second.store_spec.block_ids.tolist() == [0]
    assert 0 < first.store_spec.generations[0] < second.store_spec.generations[0]


def test_a_block_is_stored_from_its_nth_offer_on() -> None:
    plan = primary(4, store_threshold=3)
    assert prepare(plan, 1, 2).keys_to_store == []
    assert prepare(plan, 1).keys_to_store == []
    assert prepare(plan, 1, 2).keys_to_store == blocks(1)
    assert plan.stats().deferred == 4


def test_the_threshold_does_not_free_a_call_from_keeping_its_own_blocks() -> None:
    plan = primary(1, store_threshold=2)
    prepare(plan, 1)
    put(plan, 1)
    prepare(plan, 2)
    assert plan.prepare_store(blocks(1, 2)) is None
    assert plan.lookup(blocks(1)) == 1


def test_offers_are_forgotten_in_the_order_of_the_last_one() -> None:
    plan = Primary(BlockTable(4, LRU()), store_threshold=2, tracked_offers=2)
    for number in (1, 2, 1, 3):
        plan.offer(blocks(number))
    assert plan.offer(blocks(2)) == []
    assert plan.offer(blocks(3)) == blocks(3)


def test_a_threshold_below_one_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="threshold 0"):
        primary(4, store_threshold=0)


def test_removal_is_told_before_the_store_that_caused_it() -> None:
    plan = primary(2)
    put(plan, 1, 2)
    plan.recording = True
    put(plan, 3)
    plan.reset()
    assert [(event.block_hashes, event.removed) for event in plan.take_events()] == [
        (blocks(2), True),
        (blocks(3), False),
        (blocks(1, 3), True),
    ]
    assert plan.take_events() == []


def test_events_name_medium_and_block_size() -> None:
    plan = primary(2)
    plan.recording = True
    put(plan, 1)
    (event,) = plan.take_events()
    assert (event.medium, event.block_size) == ("CPU", 16)


def test_refusals_and_stores_are_counted() -> None:
    plan = primary(1)
    put(plan, 1)
    assert plan.prepare_store(blocks(2, 3)) is None
    stats = plan.stats()
    assert (stats.refused, stats.stored, stats.ready, stats.free) == (1, 1, 1, 0)

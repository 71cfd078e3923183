"""Blocks that are written to the tiers only when they are about to leave, and what must not leave unwritten."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from asyncoffload.core.ops import Hurry, Op
from asyncoffload.core.policies import POLICIES
from asyncoffload.errors import CapacityError
from asyncoffload.keys import OffloadKey
from asyncoffload.types import RequestContext, Status
from tests.managers.gated_tier import GatedTier, content_of
from tests.managers.tiered_stack import Stack, keys_of, tiered, turns, until

DEMOTE: dict[str, Any] = {"write_policy": "demote"}
REFUSE: dict[str, Any] = {"write_policy": "demote", "dirty_victims": "refuse"}


def written(tier: GatedTier) -> Counter[OffloadKey]:
    """How often each block was handed to a tier."""
    return Counter(key for job in tier.jobs if job.keys and job.priority.name == "CASCADE" for key in job.keys)


async def fill(stack: Stack, batches: int, size: int, start: int = 0) -> list[OffloadKey]:
    """Store batch after batch, with time for the tiers in between."""
    keys = keys_of(batches * size, start)
    for at in range(0, len(keys), size):
        await stack.store(keys[at : at + size])
        await stack.manager.settle()
    return keys


async def test_what_is_stored_stays_where_it_is_while_there_is_room() -> None:
    async with tiered(64, **DEMOTE) as stack:
        await fill(stack, 8, 4)
        assert not stack.tier.jobs


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("size", [1, 3, 8, 16, 31, 32, 48, 64])
async def test_a_tier_that_keeps_up_loses_nothing_and_writes_each_block_once(size: int, policy: str) -> None:
    async with tiered(64, policy=POLICIES[policy](), **DEMOTE) as stack:
        keys = await fill(stack, 640 // size, size)
        stats = stack.manager.stats()
        assert stats.lost == stats.refused == 0
        left = set(keys).difference(stack.manager._primary.table.ready)
        assert len(left) >= 512
        assert left <= set(stack.tier.blocks)
        assert set(written(stack.tier).values()) == {1}


@pytest.mark.parametrize("policy", sorted(POLICIES))
async def test_nothing_is_lost_where_batches_grow_and_old_blocks_are_used_in_between(policy: str) -> None:
    async with tiered(96, policy=POLICIES[policy](), **REFUSE) as stack:
        stored: list[OffloadKey] = []
        for round_, size in enumerate([2, 4, 4, 8, 8, 16, 16, 20, 24] * 4):
            keys = keys_of(size, start=1000 * round_)
            output = await stack.manager.prepare_store(keys)
            assert output is not None
            for key, slot in zip(output.keys_to_store, output.store_spec.block_ids.tolist(), strict=True):
                stack.region.slot(slot)[:] = content_of(key)
            await stack.manager.complete_store(keys)
            await stack.manager.settle()
            stored += keys
            old = stored[round_ * 3 : round_ * 3 + 12]
            await stack.manager.touch(old)
            assert await stack.load(old) == len(old)
            await stack.manager.settle()
        assert stack.manager.stats().lost == 0


async def test_the_hot_half_is_never_written() -> None:
    async with tiered(64, **DEMOTE) as stack:
        keys = await fill(stack, 40, 4)
        assert not set(keys[-32:]) & set(stack.tier.blocks)


async def test_the_window_is_about_four_batches() -> None:
    async with tiered(1024, **DEMOTE) as stack:
        keys = await fill(stack, 40, 64)
        window = set(stack.tier.blocks) & set(stack.manager._primary.table.ready)
        assert window == set(keys[-1024:][: len(window)])
        assert 3 * 64 <= len(window) <= 5 * 64


async def test_a_block_that_came_back_is_not_written_again() -> None:
    async with tiered(16, **DEMOTE) as stack:
        keys = await fill(stack, 16, 2)
        for _ in range(3):
            assert await stack.load(keys[:4]) == 4
            await fill(stack, 16, 2, start=1000)
            assert not set(keys[:4]) & stack.manager._primary.table.ready.keys()
            await stack.manager.reset()
        assert all(count == 1 for key, count in written(stack.tier).items() if key in keys)


async def test_a_block_that_is_stored_again_is_not_written_again_where_the_tier_tells_what_it_has() -> None:
    async with tiered(16, **DEMOTE) as stack:
        stack.tier.knows = True
        keys = await fill(stack, 16, 2)
        await fill(stack, 16, 2, start=1000)
        again = [key for key in keys if key not in stack.manager._primary.table.ready][:8]
        await stack.store(again)
        await stack.manager.settle()
        await fill(stack, 16, 2, start=2000)
        assert written(stack.tier).total() == len(written(stack.tier))
        assert stack.manager.stats().lost == 0
        assert await stack.load(again) == 8


async def test_a_block_that_the_tier_gave_up_is_written_again() -> None:
    async with tiered(16, **DEMOTE) as stack:
        keys = await fill(stack, 16, 1)
        assert keys[0] in stack.tier.blocks
        del stack.tier.blocks[keys[0]]
        stack.tier.events.removed(keys[:1])
        await stack.manager.take_events()
        await fill(stack, 1, 1, start=500)
        assert stack.manager.stats().lost == 0
        await stack.manager.touch(keys[:1])
        await fill(stack, 16, 1, start=1000)
        assert keys[0] in stack.tier.blocks or keys[0] in stack.manager._primary.table.ready


async def test_every_tier_gets_a_block_and_it_is_lost_only_if_none_has_it() -> None:
    async with tiered(16, n_tiers=2, **REFUSE) as stack:

        def fault(call: str) -> None:
            if call == "store":
                raise OSError(5, "io")

        keys = await fill(stack, 16, 2)
        gone = set(keys).difference(stack.manager._primary.table.ready)
        assert gone <= set(stack.tiers[0].blocks) & set(stack.tiers[1].blocks)
        stack.tiers[0].fault = fault
        more = await fill(stack, 16, 2, start=1000)
        gone = set(more).difference(stack.manager._primary.table.ready)
        assert not gone & set(stack.tiers[0].blocks)
        assert gone <= set(stack.tiers[1].blocks)
        assert stack.manager.stats().lost == stack.manager.stats().refused == 0


async def test_what_a_slow_tier_has_not_got_in_time_is_dropped_and_counted() -> None:
    async with tiered(16, cascading=4, **DEMOTE) as stack:
        stack.tier.stores.shut()
        for at in range(0, 64, 4):
            await stack.store(keys_of(4, at))
        stats = stack.manager.stats()
        assert stats.lost == stats.evicted == 48
        assert stats.dirty == 16
        assert stats.refused == 0


async def test_a_store_without_clean_victims_is_refused_until_a_tier_has_taken_some() -> None:
    async with tiered(8, **REFUSE) as stack:
        stack.tier.stores.shut()
        keys = keys_of(8)
        await stack.store(keys)
        new = keys_of(3, start=50)
        assert await stack.manager.prepare_store(new) is None
        with pytest.raises(CapacityError):
            await stack.store(new)
        storing = asyncio.create_task(stack.store(new, wait=True))
        await turns(100)
        assert not storing.done()
        stack.tier.stores.open()
        await storing
        gone = set(keys).difference(stack.manager._primary.table.ready)
        assert len(gone) == 3
        assert gone <= set(stack.tier.blocks)
        assert stack.manager.stats().lost == 0
        await stack.manager.settle()
        assert await stack.manager.prepare_store(keys_of(1, start=90)) is not None
        await stack.manager.complete_store(keys_of(1, start=90), success=False)


async def test_a_store_as_large_as_the_primary_waits_for_all_of_it() -> None:
    async with tiered(8, cascading=2, **REFUSE) as stack:
        await stack.store(keys_of(8))
        await stack.store(keys_of(8, start=50), wait=True)
        assert set(stack.tier.blocks) >= set(keys_of(8))
        await stack.store(keys_of(6, start=100) + keys_of(2, start=50), wait=True)
        assert stack.manager.stats().lost == 0


async def test_many_stores_wait_in_line_and_all_get_room() -> None:
    async with tiered(12, cascading=3, **REFUSE) as stack:
        stack.tier.stores.shut()
        stores = [asyncio.create_task(stack.store(keys_of(5, start=10 * n), wait=True)) for n in range(30)]
        await turns(100)
        stack.tier.stores.open()
        await asyncio.gather(*stores)
        stats = stack.manager.stats()
        assert (stats.stored, stats.lost) == (150, 0)
        assert set(written(stack.tier).values()) == {1}


@pytest.mark.parametrize("status", [Status.FAILED, Status.SHED, Status.CANCELLED, Status.TIMED_OUT])
async def test_where_no_tier_takes_anything_nobody_waits_in_vain(status: Status) -> None:
    async with tiered(8, **REFUSE) as stack:
        stack.tier.keep(keys_of(2, start=900))
        stack.tier.outcomes = dict.fromkeys(keys_of(2000), status)
        await stack.store(keys_of(8))
        for start in (50, 60):
            waiting = [stack.store(keys_of(2, start), wait=True), stack.store(keys_of(2, start + 5), wait=True)]
            for result in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(result, CapacityError)
                assert "no tier has the others" in str(result)
        async with stack.manager.loading(keys_of(2, start=900)) as lease:
            assert (len(lease.keys), lease.stopped_by) == (0, Status.SHED)
        assert stack.manager.stats().lost == 0
        stack.tier.outcomes = {}
        await stack.store(keys_of(4, start=70), wait=True)
        assert await stack.load(keys_of(2, start=900)) == 2


async def test_a_tier_that_takes_some_and_refuses_the_rest_lets_a_store_through_that_fits() -> None:
    keys = keys_of(8)
    async with tiered(8, **REFUSE) as stack:
        stack.tier.outcomes = dict.fromkeys(keys[3:], Status.FAILED)
        await stack.store(keys)
        await stack.store(keys_of(3, start=50), wait=True)
        with pytest.raises(CapacityError, match="no tier has the others"):
            await stack.store(keys_of(6, start=60), wait=True)
        assert stack.manager.stats().lost == 0
        stack.tier.outcomes = {}


async def test_a_store_waits_for_readers_of_clean_blocks_though_the_tiers_take_nothing() -> None:
    keys = keys_of(8)
    async with tiered(8, **REFUSE) as stack:
        await stack.store(keys[:4])
        await stack.manager.flush()
        stack.tier.outcomes = dict.fromkeys(keys_of(100), Status.FAILED)
        await stack.store(keys[4:])
        async with stack.manager.loading(keys[:4]):
            storing = asyncio.create_task(stack.store(keys_of(2, start=50), wait=True))
            await turns(100)
            assert not storing.done()
        await storing
        stack.tier.outcomes = {}


async def test_a_load_waits_for_a_clean_victim() -> None:
    wanted = keys_of(4, start=900)
    async with tiered(8, **REFUSE) as stack:
        stack.tier.keep(wanted)
        stack.tier.stores.shut()
        await stack.store(keys_of(8))
        loading = asyncio.create_task(stack.load(wanted))
        await turns(100)
        assert not loading.done()
        stack.tier.stores.open()
        assert await loading == 4
        assert stack.manager.stats().lost == 0


async def test_a_deadline_ends_the_waiting_for_clean_victims() -> None:
    async with tiered(4, **REFUSE) as stack:
        stack.tier.stores.shut()
        await stack.store(keys_of(4))
        with pytest.raises(CapacityError, match="deadline"):
            await stack.store(keys_of(1, start=50), RequestContext(deadline=-1.0), wait=True)


async def test_what_a_tier_turns_out_to_have_makes_room_at_once() -> None:
    keys = keys_of(8)
    async with tiered(8, **REFUSE) as stack:
        stack.tier.stores.shut()
        await stack.store(keys)
        stack.tier.keep(keys)
        stack.tier.knows = True
        await stack.store(keys_of(3, start=50))
        stack.tier.stores.open()
        assert stack.manager.stats().lost == 0


async def test_flush_writes_everything_and_settle_only_what_is_on_its_way() -> None:
    async with tiered(64, cascading=4, n_tiers=2, **DEMOTE) as stack:
        keys = await fill(stack, 10, 4)
        assert not stack.tier.jobs
        assert stack.manager.stats().dirty == 40
        async with stack.manager.loading(keys[:3]):
            await stack.manager.flush()
        assert [set(tier.blocks) for tier in stack.tiers] == [set(keys)] * 2
        assert stack.manager.stats().dirty == 0
        await stack.manager.flush()
        assert all(set(written(tier).values()) == {1} for tier in stack.tiers)


async def test_flush_goes_on_while_others_store() -> None:
    keys = keys_of(40)
    async with tiered(48, cascading=2, **DEMOTE) as stack:
        await stack.store(keys)
        stack.tier.stores.shut()
        flushing = asyncio.create_task(stack.manager.flush())
        await stack.tier.stores.reached()
        await stack.store(keys_of(8, start=100))
        stack.tier.stores.open()
        await flushing
        assert set(keys) <= set(stack.tier.blocks)


async def test_flush_ends_though_a_tier_refuses() -> None:
    async with tiered(16, cascading=4, **DEMOTE) as stack:
        stack.tier.outcomes = dict.fromkeys(keys_of(16), Status.SHED)
        await stack.store(keys_of(16))
        await stack.manager.flush()
        assert stack.manager.stats().dirty == 16


async def test_closing_writes_what_is_on_its_way_and_nothing_else() -> None:
    stack = Stack(64, **DEMOTE)
    await stack.store(keys_of(32))
    await stack.manager.aclose()
    assert not stack.tier.blocks
    stack.assert_nothing_left()


async def test_closing_ends_the_waiting_for_clean_victims() -> None:
    stack = Stack(8, **REFUSE)
    stack.tier.stores.shut()
    await stack.store(keys_of(8))
    waiting = asyncio.create_task(stack.store(keys_of(2, start=50), wait=True))
    await until(lambda: stack.tier.running)
    closing = asyncio.create_task(stack.manager.aclose())
    await asyncio.wait([waiting])
    assert waiting.exception() is not None
    stack.tier.stores.open()
    await closing
    stack.assert_nothing_left()


async def test_waiting_for_clean_victims_does_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    async with tiered(8, **REFUSE) as stack:
        stack.tier.stores.shut()
        await stack.store(keys_of(8))
        storing = asyncio.create_task(stack.store(keys_of(4, start=50), wait=True))
        await stack.tier.stores.reached()
        stack.tier.keep(keys_of(4, start=900))
        loading = asyncio.create_task(stack.load(keys_of(4, start=900)))
        await turns()
        planned = 0
        real = stack.manager._planner.take

        def counting(max_blocks: int | None = None) -> list[Op | Hurry]:
            nonlocal planned
            planned += 1
            return real(max_blocks)

        monkeypatch.setattr(stack.manager._planner, "take", counting)
        await turns(500)
        assert planned < 3
        stack.tier.stores.open()
        await storing
        assert await loading == 4


@pytest.mark.parametrize("capacity", [1, 3, 5])
async def test_a_tier_smaller_than_what_must_be_clean_is_not_written_over_and_over(capacity: int) -> None:
    async with tiered(8, cascading=2, **REFUSE) as stack:
        tier, room = stack.tier, capacity

        def give_up_the_oldest(_: str) -> None:
            surplus = list(tier.blocks)[:-room] if len(tier.blocks) > room else []
            for key in surplus:
                del tier.blocks[key]
            if surplus:
                tier.events.removed(surplus)

        tier.fault = give_up_the_oldest
        await stack.store(keys_of(8))
        with pytest.raises(CapacityError, match="no tier has the others"):
            await stack.store(keys_of(8, start=50), wait=True)
        await stack.manager.settle()
        assert written(tier).total() < 100
        await stack.store(keys_of(1, start=70), wait=True)
        assert stack.manager.stats().lost == 0
        tier.fault = lambda _: None

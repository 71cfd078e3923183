"""More wanted than there is: every call ends, with a hit, a miss, what it has, or a clear refusal."""

from __future__ import annotations

import asyncio

import pytest

from asyncoffload.errors import BlocksUnavailable, CapacityError
from asyncoffload.types import ANONYMOUS, Priority, RequestContext, Status
from tests.managers.gated_tier import content_of
from tests.managers.tiered_stack import keys_of, tiered, turns


async def test_64_loaders_of_16_blocks_in_20_slots_get_all_1024_blocks() -> None:
    keys = keys_of(64 * 16)
    async with tiered(20) as stack:
        stack.tier.keep(keys)
        got = await asyncio.gather(*(stack.load(keys[n * 16 : n * 16 + 16]) for n in range(64)))
        assert got == [16] * 64


async def test_two_requests_of_16_blocks_in_20_slots_both_end() -> None:
    keys = keys_of(32)
    async with tiered(20) as stack:
        stack.tier.keep(keys)
        assert list(await asyncio.gather(stack.load(keys[:16]), stack.load(keys[16:]))) == [16, 16]


async def test_a_request_larger_than_the_primary_ends_with_what_it_has() -> None:
    keys = keys_of(30)
    async with tiered(20) as stack:
        stack.tier.keep(keys)
        async with stack.manager.loading(keys) as lease:
            assert list(lease.keys) == keys[:20]
            assert lease.stopped_by is Status.SHED
            stack.check(lease.keys, lease.spec)
        with pytest.raises(BlocksUnavailable) as caught:
            await stack.manager.prepare_load(keys)
        assert caught.value.ready_prefix == 20
        assert await stack.manager.lookup(keys) == 30
        with pytest.raises(CapacityError, match="never"):
            await stack.store(keys_of(21, start=100))


async def test_a_primary_full_of_held_blocks_keeps_loaders_waiting_until_some_are_given_back() -> None:
    held, wanted = keys_of(4), keys_of(4, start=100)
    async with tiered(4) as stack:
        await stack.store(held)
        await stack.manager.settle()
        stack.tier.keep(wanted)
        await stack.manager.prepare_load(held)
        assert await stack.load(wanted, RequestContext(deadline=-1.0)) == 0
        with pytest.raises(CapacityError):
            await stack.store(wanted)
        loader = asyncio.create_task(stack.load(wanted))
        await turns()
        assert not loader.done()
        await stack.manager.complete_load(held)
        assert await loader == 4


async def test_a_waiter_for_room_and_a_loader_both_get_their_turn() -> None:
    held, wanted, new = keys_of(4), keys_of(3, start=100), keys_of(3, start=200)
    async with tiered(4) as stack:
        stack.tier.keep(held + wanted)
        async with stack.manager.loading(held):
            loader = asyncio.create_task(stack.load(wanted))

            async def store() -> int:
                async with stack.manager.storing(new, wait=True) as lease:
                    for key, slot in zip(lease.keys, lease.spec.block_ids.tolist(), strict=True):
                        stack.region.slot(slot)[:] = content_of(key)
                    return len(lease.keys)

            storer = asyncio.create_task(store())
            await turns()
            assert not loader.done()
            assert not storer.done()
        assert await loader == 3
        assert await storer == 3


async def test_loaders_who_hold_what_others_need_do_not_wait_for_each_other_for_ever() -> None:
    keys = keys_of(40)
    async with tiered(20, promoting=1) as stack:
        stack.tier.keep(keys)
        got = await asyncio.gather(*(stack.load(keys[n * 8 : n * 8 + 8] + keys[32:]) for n in range(4)))
        assert all(n >= 8 for n in got)
        assert max(got) == 16


async def test_a_tier_slower_than_the_stores_lets_every_store_end() -> None:
    async with tiered(16, cascading=4) as stack:
        stack.tier.stores.shut()

        async def store(start: int) -> None:
            async with stack.manager.storing(keys_of(4, start), wait=True) as lease:
                for key, slot in zip(lease.keys, lease.spec.block_ids.tolist(), strict=True):
                    stack.region.slot(slot)[:] = content_of(key)

        await asyncio.gather(*(store(start) for start in range(0, 400, 4)))
        assert stack.manager.stats().stored == 400
        counts = stack.manager.tier_counts()["t0"]
        assert counts["in_flight"] + counts["shed"] >= 400


async def test_a_store_waits_for_blocks_on_their_way_to_a_tier() -> None:
    async with tiered(4, cascading=4) as stack:
        stack.tier.stores.shut()
        await stack.store(keys_of(4))

        async def store(ctx: RequestContext) -> int:
            async with stack.manager.storing(keys_of(2, start=50), ctx, wait=True) as lease:
                return len(lease.keys)

        waiting = asyncio.create_task(store(ANONYMOUS))
        await stack.tier.stores.reached()
        with pytest.raises(CapacityError, match="deadline"):
            await store(RequestContext(deadline=-1.0))
        assert not waiting.done()
        stack.tier.stores.open()
        assert await waiting == 2


async def test_at_a_standstill_the_youngest_gives_up_and_the_others_go_on() -> None:
    keys = keys_of(48)
    async with tiered(16) as stack:
        stack.tier.keep(keys)
        await stack.store(keys[32:])
        await stack.manager.settle()
        wanted = [keys[:8], keys[8:12] + keys[32:40], keys[12:16] + keys[40:]]
        assert await asyncio.gather(*map(stack.load, wanted)) == [8, 12, 0]


async def test_the_least_urgent_gives_up_before_the_youngest() -> None:
    keys = keys_of(48)
    async with tiered(16) as stack:
        stack.tier.keep(keys)
        await stack.store(keys[32:])
        await stack.manager.settle()
        patient = asyncio.create_task(stack.load(keys[:4] + keys[32:40], RequestContext(priority=Priority.PREFETCH)))
        await asyncio.sleep(0)
        urgent = asyncio.create_task(stack.load(keys[4:8] + keys[40:]))
        assert await urgent == 12
        assert await patient == 0

"""Voiding the primary while blocks are on the move, and what subscribers hear."""

from __future__ import annotations

import asyncio

import pytest

from asyncoffload.types import OffloadingEvent
from tests.managers.gated_tier import content_of
from tests.managers.tiered_stack import keys_of, tiered, turns, until

Heard = list[tuple[str, bool, int]]


def told(events: list[OffloadingEvent]) -> Heard:
    """Medium, removed, and number of blocks of each event."""
    return [(event.medium, event.removed, len(event.keys)) for event in events]


async def test_reset_under_a_promotion_brings_the_block_anew() -> None:
    keys = keys_of(2)
    async with tiered(4) as stack:
        stack.tier.keep(keys)
        stack.tier.halfway.shut()
        loader = asyncio.create_task(stack.load(keys))
        await stack.tier.halfway.reached()
        await stack.manager.reset()
        stats = stack.manager.stats()
        assert (stats.writing, stats.doomed) == (0, 2)
        stack.tier.halfway.open()
        assert await loader == 2
        assert stack.tier.calls["load"] == 2


async def test_reset_under_a_promotion_that_nobody_wants_leaves_nothing() -> None:
    keys = keys_of(2)
    async with tiered(4) as stack:
        stack.tier.keep(keys)
        stack.tier.halfway.shut()
        loader = asyncio.create_task(stack.load(keys))
        await stack.tier.halfway.reached()
        loader.cancel()
        await stack.manager.reset()
        await turns()
        assert stack.manager.stats().doomed == 2, "its slots are in use"
        stack.tier.halfway.open()
        await until(lambda: stack.manager.stats().free == 4)


async def test_reset_drops_cascades() -> None:
    keys = keys_of(6)
    async with tiered(8) as stack:
        stack.tier.stores.shut()
        await stack.store(keys[:4])
        await stack.tier.stores.reached()
        await stack.store(keys[4:])
        await stack.manager.reset()
        assert stack.manager.stats().doomed == 4, "offers that were not handed out are taken back at once"
        assert stack.tier.running[0].unwanted == set(keys[:4])
        stack.tier.stores.open()
        await stack.manager.settle()
        assert not stack.tier.blocks
        assert stack.manager.tier_counts()["t0"]["shed"] == 6
        await stack.store(keys)
        assert await stack.load(keys) == 6


async def test_a_late_completion_after_a_reset_touches_nothing() -> None:
    keys = keys_of(2)
    async with tiered(4) as stack:
        late = await stack.manager.prepare_store(keys)
        assert late is not None
        async with stack.manager.storing(keys_of(1, start=50)):
            await stack.manager.reset()
            await stack.manager.complete_store(keys, spec=late.store_spec)
            assert await stack.manager.lookup(keys) == 0
            again = await stack.manager.prepare_store(keys)
            assert again is not None
            await stack.manager.complete_store(keys, spec=late.store_spec)
            assert await stack.manager.lookup(keys) == 0, "the old store does not speak for the new one"
            await stack.manager.complete_store(keys, spec=again.store_spec)
            assert await stack.manager.lookup(keys) == 2
        assert await stack.manager.lookup(keys_of(1, start=50)) == 0
        await stack.manager.settle()


async def test_a_lease_over_a_reset_keeps_its_bytes_until_it_ends() -> None:
    keys = keys_of(2)
    async with tiered(2) as stack:
        stack.tier.keep(keys)
        async with stack.manager.loading(keys) as lease:
            await stack.manager.reset()
            stack.check(lease.keys, lease.spec)
            assert await stack.load(keys) == 0, "the voided blocks are still in the way"
            assert stack.manager.stats().doomed == 2
        assert stack.manager.stats().free == 2
        assert await stack.load(keys) == 2


async def test_a_failed_promotion_under_a_reset_ends_the_loader() -> None:
    keys = keys_of(2)
    async with tiered(4) as stack:
        stack.tier.keep(keys)
        stack.tier.loads.shut()
        loader = asyncio.create_task(stack.load(keys))
        await stack.tier.loads.reached()
        await stack.manager.reset()
        stack.tier.blocks.clear()
        stack.tier.loads.open()
        assert await loader == 0


# ---- events


async def test_events_of_all_tiers_in_order() -> None:
    keys, more = keys_of(2), keys_of(2, start=50)
    async with tiered(2, n_tiers=2) as stack:
        assert await stack.manager.take_events() == []
        await stack.store(keys)
        await stack.manager.settle()
        assert told(list(await stack.manager.take_events())) == [
            ("CPU", False, 2),
            ("t0", False, 1),
            ("t0", False, 1),
            ("t1", False, 1),
            ("t1", False, 1),
        ]
        stack.tiers[0].keep(more)
        assert await stack.load(more) == 2
        events = list(await stack.manager.take_events())
        assert told(events) == [("CPU", True, 2), ("CPU", False, 2)]
        assert set(events[0].keys) == set(keys)
        assert list(events[1].keys) == more


async def test_removed_comes_before_stored() -> None:
    async with tiered(4) as stack:
        events = stack.manager.events()
        for start in range(0, 40, 4):
            await stack.store(keys_of(4, start))
            await stack.manager.settle()
        await stack.manager.aclose()
        resident: set[bytes] = set()
        async for event in events:
            if event.medium == "CPU":
                resident = resident - set(event.keys) if event.removed else resident | set(event.keys)
                assert len(resident) <= 4
        assert resident == set(keys_of(4, start=36))


async def test_subscribers_hear_of_cascades_that_end_while_closing() -> None:
    keys = keys_of(2)
    async with tiered(4) as stack:
        events = stack.manager.events()
        await stack.store(keys)
        await stack.manager.aclose()
        assert told([event async for event in events]) == [("CPU", False, 2), ("t0", False, 1), ("t0", False, 1)]


async def test_a_full_subscription_drops_the_oldest_and_says_so() -> None:
    async with tiered(4) as stack:
        events = stack.manager.events(capacity=3)
        for start in range(0, 40, 4):
            await stack.store(keys_of(4, start))
            await stack.manager.settle()
        await stack.manager.aclose()
        heard = [event async for event in events]
        assert len(heard) == 3
        assert heard[0].lost > 0
        assert heard[1].lost == heard[2].lost == 0


async def test_take_events_asks_tiers_that_have_nothing_to_do() -> None:
    keys = keys_of(3)
    async with tiered(4) as stack:
        await stack.manager.take_events()
        stack.tier.events.removed(keys)
        assert told(list(await stack.manager.take_events())) == [("t0", True, 3)]


async def test_a_cancelled_subscriber_loses_nothing() -> None:
    keys = keys_of(2)
    async with tiered(4) as stack:
        events = stack.manager.events()
        waiting = asyncio.ensure_future(anext(events))
        await turns()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await stack.store(keys)
        event = await anext(events)
        assert list(event.keys) == keys
        assert content_of(keys[0]) == bytes(stack.region.slot(stack.manager._primary.table.ready[keys[0]]))

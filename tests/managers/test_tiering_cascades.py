"""Stored blocks go on to every tier: bounded, shed rather than waited for, and offered again."""

from __future__ import annotations

import asyncio

import pytest

from asyncoffload.errors import ConfigError
from asyncoffload.keys import OffloadKey
from asyncoffload.managers.tiering import TieringOffloadingManager
from asyncoffload.memory.region import HostRegion
from asyncoffload.types import Status
from tests.managers.gated_tier import SLOT_BYTES, GatedTier, content_of
from tests.managers.tiered_stack import Stack, keys_of, tiered, turns, until


def cascades(counts: dict[str, int]) -> tuple[int, int, int, int]:
    """In flight, stored, shed, failed."""
    return counts["in_flight"], counts["stored"], counts["shed"], counts["failed"]


def dirty(stack: Stack, count: int) -> list[OffloadKey]:
    """Those of the coldest blocks that the first tier has no copy of."""
    table = stack.manager._primary.table
    return table.dirty(table.cold.coldest(count), 0)


async def test_a_stored_block_arrives_in_every_tier() -> None:
    keys = keys_of(6)
    async with tiered(8, n_tiers=2) as stack:
        await stack.store(keys)
        await stack.manager.settle()
        for tier in stack.tiers:
            assert tier.blocks == {key: content_of(key) for key in keys}
        assert [cascades(counts) for counts in stack.manager.tier_counts().values()] == [(0, 6, 0, 0)] * 2


async def test_settle_waits_for_cascades_and_only_for_them() -> None:
    keys = keys_of(2)
    async with tiered(8) as stack:
        await stack.manager.settle()
        stack.tier.stores.shut()
        await stack.store(keys)
        settling = asyncio.create_task(stack.manager.settle())
        await stack.tier.stores.reached()
        await turns()
        assert not settling.done()
        stack.tier.stores.open()
        await settling
        stack.tier.lookups.shut()
        looking = asyncio.create_task(stack.manager.lookup(keys_of(1, start=50)))
        await stack.tier.lookups.reached()
        await stack.manager.settle()
        stack.tier.lookups.open()
        assert await looking == 0


async def test_a_block_on_its_way_to_a_tier_keeps_its_slot() -> None:
    keys = keys_of(2)
    async with tiered(2) as stack:
        stack.tier.stores.shut()
        await stack.store(keys)
        await stack.tier.stores.reached()
        assert await stack.manager.prepare_store(keys_of(1, start=50)) is None
        assert stack.manager.stats().pinned == 2
        stack.tier.stores.open()
        await stack.manager.settle()
        await stack.store(keys_of(1, start=50))


async def test_a_slow_tier_sheds_instead_of_stalling_stores() -> None:
    async with tiered(16, cascading=4) as stack:
        stack.tier.stores.shut()
        for start in range(0, 64, 4):
            await stack.store(keys_of(4, start))
        assert cascades(stack.manager.tier_counts()["t0"]) == (4, 0, 60, 0)
        stack.tier.stores.open()
        await stack.manager.settle()
        assert set(keys_of(4)) <= set(stack.tier.blocks)


async def test_what_was_shed_is_offered_again_when_there_is_room() -> None:
    keys = keys_of(16)
    async with tiered(16, cascading=4) as stack:
        stack.tier.stores.shut()
        for start in range(0, 12, 2):
            await stack.store(keys[start : start + 2])
        assert cascades(stack.manager.tier_counts()["t0"]) == (4, 0, 8, 0)
        stack.tier.stores.open()
        await stack.manager.settle()
        assert set(stack.tier.blocks) == set(keys[:12])
        await stack.store(keys[12:])
        await stack.manager.settle()
        for start in range(100, 200, 2):
            await stack.store(keys_of(2, start))
            await stack.manager.settle()
        assert stack.manager.stats().lost == 0
        assert set(keys) <= set(stack.tier.blocks)


async def test_a_tier_that_fails_to_store_costs_copies_and_no_errors() -> None:
    keys = keys_of(8)
    async with tiered(8, n_tiers=2) as stack:

        def fault(call: str) -> None:
            if call == "store":
                raise OSError(28, "no space left on device")

        stack.tiers[0].fault = fault
        await stack.store(keys)
        await stack.manager.settle()
        assert cascades(stack.manager.tier_counts()["t0"]) == (0, 0, 0, 8)
        assert set(stack.tiers[1].blocks) == set(keys)
        assert await stack.load(keys) == 8


async def test_a_tier_that_always_fails_is_not_asked_over_and_over() -> None:
    async with tiered(32, cascading=2) as stack:
        stack.tier.miscount = 1
        for start in range(0, 64, 8):
            await stack.store(keys_of(8, start))
        await stack.manager.settle()
        calls = stack.tier.calls["store"]
        await turns(200)
        assert stack.tier.calls["store"] == calls
        assert calls < 64


@pytest.mark.parametrize("status", [Status.SHED, Status.CANCELLED, Status.FAILED, Status.TIMED_OUT])
async def test_a_block_that_the_tier_did_not_take_stays_dirty(status: Status) -> None:
    keys = keys_of(4)
    async with tiered(4) as stack:
        stack.tier.outcomes[keys[0]] = status
        await stack.store(keys)
        await stack.manager.settle()
        in_flight, stored, shed, failed = cascades(stack.manager.tier_counts()["t0"])
        assert (in_flight, stored) == (0, 3)
        expected = {Status.SHED: (2, 0), Status.CANCELLED: (1, 0)}  # what it shed is offered once more, with the rest
        assert (shed, failed) == expected.get(status, (0, 1))
        assert dirty(stack, 4) == [keys[0]]
        await stack.store(keys_of(3, start=50))
        assert stack.manager.stats().lost == 0, "blocks with a copy go first"
        assert await stack.load(keys[:1]) == 1


async def test_a_block_that_a_tier_reports_as_removed_is_written_again() -> None:
    keys = keys_of(4)
    async with tiered(8) as stack:
        await stack.store(keys)
        await stack.manager.settle()
        del stack.tier.blocks[keys[0]]
        stack.tier.events.removed(keys[:1])
        await stack.manager.take_events()
        assert dirty(stack, 8) == keys[:1]
        for start in range(50, 58, 2):
            await stack.store(keys_of(2, start))
            await stack.manager.settle()
        assert keys[0] in stack.tier.blocks


async def test_blocks_below_the_store_threshold_go_nowhere() -> None:
    keys = keys_of(4)
    async with tiered(8, store_threshold=2) as stack:
        await stack.store(keys)
        await stack.manager.settle()
        assert not stack.tier.calls
        await stack.store(keys)
        await stack.manager.settle()
        assert set(stack.tier.blocks) == set(keys)


async def test_a_failed_store_is_not_offered() -> None:
    keys = keys_of(2)
    async with tiered(4) as stack:
        output = await stack.manager.prepare_store(keys)
        assert output is not None
        await stack.manager.complete_store(keys[:1], success=False)
        await stack.manager.complete_store(keys[1:])
        await stack.manager.settle()
        assert list(stack.tier.blocks) == keys[1:]


async def test_nobody_completes_what_was_handed_out_to_somebody_else() -> None:
    keys = keys_of(2)
    async with tiered(4) as stack:
        stack.tier.keep(keys[1:])
        stack.tier.halfway.shut()
        async with stack.manager.storing(keys[:1]):
            loader = asyncio.create_task(stack.load(keys[1:]))
            await stack.tier.halfway.reached()
            await stack.manager.complete_store(keys)
            await stack.manager.complete_load(keys)
            assert stack.manager.stats().writing == 2, "neither the lease's block nor the promotion's"
            stack.region.slot(stack.manager._primary.table.writing[keys[0]])[:] = content_of(keys[0])
        stack.tier.halfway.open()
        assert await loader == 1
        assert await stack.load(keys) == 2


async def test_the_cascades_bound_is_a_quarter_of_the_primary_by_default() -> None:
    region = HostRegion(16, SLOT_BYTES)
    tier = GatedTier(region.view)
    async with TieringOffloadingManager(region, [tier]) as manager:
        tier.stores.shut()
        async with manager.storing(keys_of(10)):
            pass
        assert manager.tier_counts()["gated"]["in_flight"] == 4
        await until(lambda: tier.running)
        tier.stores.open()


def test_two_tiers_of_one_name_are_refused() -> None:
    region = HostRegion(1, SLOT_BYTES)
    for names in (["disk", "disk"], ["CPU"]):
        with pytest.raises(ConfigError, match="a name of its own"):
            TieringOffloadingManager(region, [GatedTier(region.view, name) for name in names])

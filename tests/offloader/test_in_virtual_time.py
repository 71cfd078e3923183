"""A whole stack on virtual time: a slow tier's seconds pass at once, and copies by threads take none of them."""

from __future__ import annotations

import asyncio

import pytest

from asyncoffload import KVLayout, LoadResult, Offloader, SecondaryTierManager
from asyncoffload.testing import SlowTier, Speed
from tests.offloader.rig import Device, MemoryTier, at_rest, keys_of, only_in_tiers, settings

MINUTE = 60.0
POLLING = 0.05
"""Seconds that the poller of copies may let pass: it sleeps a few milliseconds at a time."""


def tape(layout: KVLayout, view: memoryview) -> SecondaryTierManager:
    """A block a minute."""
    return SlowTier(MemoryTier(layout, view), layout, load=Speed(layout.block_bytes / MINUTE))


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.mark.virtual_time
async def test_a_load_takes_the_time_of_its_tier() -> None:
    device, keys = Device(8), keys_of("tape", 8)
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches, tiers=[tape]) as offloader:
        await only_in_tiers(offloader, device, keys)
        began = now()
        assert await offloader.load(keys, range(8)) == LoadResult(8, {"gated": 8})
        assert device.holds(keys, range(8))
        assert 8 * MINUTE <= now() - began <= 8 * MINUTE + POLLING


@pytest.mark.virtual_time
async def test_a_timeout_of_minutes_ends_a_load_and_the_blocks_come_all_the_same() -> None:
    device, keys = Device(8), keys_of("late", 8)
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches, tiers=[tape]) as offloader:
        await only_in_tiers(offloader, device, keys)
        patient = asyncio.create_task(offloader.load(keys, range(8)))
        began = now()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.5 * MINUTE):
                await offloader.load(keys, range(8))
        assert now() == began + 2.5 * MINUTE
        assert (await patient).blocks == 8
        assert await at_rest(offloader)
        assert 8 * MINUTE <= now() - began <= 8 * MINUTE + POLLING

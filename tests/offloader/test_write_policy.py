"""When blocks go to the tiers, and what happens to stores that find only unwritten ones."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from asyncoffload import Offloader
from asyncoffload.sync import SyncOffloader
from tests.offloader.rig import Device, Kept, keys_of, settings


async def store_in_turn(offloader: Offloader, device: Device, n: int, size: int) -> int:
    """Store requests one after the other, with time for the tiers in between; returns how many blocks were stored."""
    stored = 0
    for number in range(n):
        keys = keys_of(f"request {number}", size)
        device.fill(keys, range(size))
        stored += (await offloader.store(keys, range(size))).stored
        await offloader.settle()
    return stored


@pytest.mark.parametrize("dirty_victims", ["drop", "refuse"])
async def test_demotion_writes_what_leaves_and_flush_the_rest(tmp_path: Path, dirty_victims: str) -> None:
    device = Device(16)
    plan = settings(
        device,
        48,
        slice_blocks=4,
        write_policy="demote",
        dirty_victims=dirty_victims,
        tiers=[{"type": "fs", "root_dir": tmp_path}],
    )
    async with Offloader(plan, kv_caches=device.kv_caches) as offloader:
        assert await store_in_turn(offloader, device, 20, 8) == 160
        stats = offloader.stats()
        assert stats.primary.lost == 0
        assert stats.primary.evicted <= stats.tiers["fs"]["stored"] < 160
        await offloader.flush()
        assert offloader.stats().tiers["fs"]["stored"] == 160
        assert offloader.stats().primary.dirty == 0
        for number in range(20):
            device.poison()
            keys = keys_of(f"request {number}", 8)
            assert (await offloader.load(keys, range(8))).blocks == 8
            assert device.holds(keys, range(8))
        assert offloader.stats().tiers["fs"]["stored"] == 160


async def test_a_store_waits_for_the_tier_or_is_shed_where_that_takes_nothing() -> None:
    device, kept = Device(16), Kept()
    plan = settings(device, 8, slice_blocks=4, write_policy="demote", dirty_victims="refuse")
    async with Offloader(plan, kv_caches=device.kv_caches, tiers=[kept]) as offloader:
        first, second = keys_of("first", 8), keys_of("second", 8)
        device.fill(first, range(8))
        kept.tier.before.store.shut()
        await offloader.store(first, range(8))
        storing = asyncio.create_task(offloader.store(second, range(8)))
        await kept.tier.before.store.reached()
        assert not storing.done()
        kept.tier.faults.answers("store", OSError(28, "no space left on device"))
        kept.tier.before.store.open()
        assert (await storing).shed == 8
        assert offloader.stats().primary.lost == 0
        kept.tier.faults.behave()
        assert (await offloader.store(second, range(8))).stored == 8
        assert offloader.stats().primary.lost == 0


def test_the_facade_flushes() -> None:
    device = Device(16)
    plan = settings(device, 48, write_policy="demote", tiers=[{"type": "memory"}])
    offloader = SyncOffloader(plan, kv_caches=device.kv_caches)
    try:
        keys = keys_of("request", 8)
        device.fill(keys, range(8))
        offloader.wait([offloader.submit_store(keys, range(8))])
        assert offloader.stats().primary.dirty == 8
        offloader.flush()
        assert offloader.stats().primary.dirty == 0
        offloader.get_finished()
    finally:
        offloader.shutdown()

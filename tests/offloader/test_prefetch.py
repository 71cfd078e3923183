"""Blocks that are brought into host memory for a load that will come."""

from __future__ import annotations

import asyncio

import pytest

from asyncoffload import InvalidArgument, Offloader, Priority, RequestContext
from asyncoffload.types import Status
from tests.offloader.rig import Device, Kept, at_rest, keys_of, only_in_tiers, settings, turns


async def test_what_was_prefetched_is_loaded_from_host_memory() -> None:
    device, kept = Device(16), Kept()
    keys = keys_of("soon", 8)
    async with Offloader(settings(device, 32), kv_caches=device.kv_caches, tiers=[kept]) as offloader:
        await only_in_tiers(offloader, device, keys)
        brought = await offloader.prefetch(keys)
        assert (brought.blocks, brought.by_tier, brought.stopped_by) == (8, {"gated": 8}, None)
        assert offloader.ready(keys) == 8
        assert device.untouched(range(16))
        assert await at_rest(offloader)
        assert (await offloader.load(keys, range(8))).by_tier == {"CPU": 8}
        assert device.holds(keys, range(8))
        assert (await offloader.prefetch(keys)).by_tier == {"CPU": 8}
        assert offloader.stats().verbs["prefetch"].ok == 2


async def test_it_ends_with_the_first_block_that_nobody_has() -> None:
    device, kept = Device(16), Kept()
    keys = keys_of("partly", 8)
    async with Offloader(settings(device, 32), kv_caches=device.kv_caches, tiers=[kept]) as offloader:
        await only_in_tiers(offloader, device, keys[:3])
        brought = await offloader.prefetch(keys)
        assert (brought.blocks, brought.stopped_by) == (3, Status.MISSING)


async def test_it_fills_no_more_than_half_of_host_memory() -> None:
    device, kept = Device(16), Kept()
    keys = keys_of("much", 16)
    async with Offloader(settings(device, 16), kv_caches=device.kv_caches, tiers=[kept]) as offloader:
        await only_in_tiers(offloader, device, keys)
        brought = await offloader.prefetch(keys)
        assert (brought.blocks, brought.stopped_by) == (8, None)
        assert offloader.ready(keys) == 8


async def test_it_is_patient_until_somebody_waits_for_the_same_block() -> None:
    device, kept = Device(16), Kept()
    keys = keys_of("patient", 4)
    async with Offloader(settings(device, 32), kv_caches=device.kv_caches, tiers=[kept]) as offloader:
        await only_in_tiers(offloader, device, keys)
        with kept.tier.before.load.shut():
            prefetch = asyncio.create_task(offloader.prefetch(keys))
            job = await kept.tier.before.load.arrival()
            assert job.priority is Priority.PREFETCH
            load = asyncio.create_task(offloader.load(keys, range(4)))
            await turns()
            assert [job.priority] == [Priority.DEMAND]
            assert kept.tier.before.load.unseen == 0
        assert (await load).blocks == (await prefetch).blocks == 4
        assert device.holds(keys, range(4))


async def test_it_is_never_more_urgent_than_its_context_says() -> None:
    device, kept = Device(16), Kept()
    keys = keys_of("idle", 4)
    async with Offloader(settings(device, 32), kv_caches=device.kv_caches, tiers=[kept]) as offloader:
        await only_in_tiers(offloader, device, keys)
        with kept.tier.before.load.shut():
            context = RequestContext(priority=Priority.HOUSEKEEPING)
            prefetch = asyncio.create_task(offloader.prefetch(keys, context))
            assert (await kept.tier.before.load.arrival()).priority is Priority.HOUSEKEEPING
        assert (await prefetch).blocks == 4


async def test_cancelled_it_leaves_at_once_and_brings_no_more_than_was_begun() -> None:
    device, kept = Device(16), Kept()
    keys = keys_of("cancelled", 8)
    async with Offloader(settings(device, 32), kv_caches=device.kv_caches, tiers=[kept]) as offloader:
        await only_in_tiers(offloader, device, keys)
        with kept.tier.before.load.shut():
            prefetch = asyncio.create_task(offloader.prefetch(keys))
            job = await kept.tier.before.load.arrival()
            prefetch.cancel()
            with pytest.raises(asyncio.CancelledError):
                await prefetch
            assert job.unwanted == set(job.keys)
        assert await at_rest(offloader)


async def test_what_is_malformed_is_refused() -> None:
    device = Device(16)
    async with Offloader(settings(device, 32), kv_caches=device.kv_caches) as offloader:
        with pytest.raises(InvalidArgument, match="KV-cache group 1"):
            await offloader.prefetch(keys_of("group", 2, groups=2))
        assert (await offloader.prefetch([])).blocks == 0

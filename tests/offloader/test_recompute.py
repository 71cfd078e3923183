"""Load or recompute, in virtual time: the estimates are those of a tier whose speed is known to the byte."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from asyncoffload import InvalidArgument, KVLayout, Offloader, SecondaryTierManager
from asyncoffload.testing import LoopClock, SlowTier, Speed
from asyncoffload.tiers.example import ExampleSecondaryTierManager
from asyncoffload.types import Status
from tests.offloader.rig import Device, keys_of, only_in_tiers, settings

BLOCK_BYTES = 64 << 10
TOKENS = 16
BANDWIDTH, LATENCY = 1e6, 2.0
STATED_ERROR = 0.1
"""How far estimates may be from what happens, as a share of it."""


def slow_tier(layout: KVLayout, view: memoryview) -> SecondaryTierManager:
    inner = ExampleSecondaryTierManager(layout, view, "slow")
    return SlowTier(inner, layout, load=Speed(BANDWIDTH, LATENCY), clock=LoopClock())


def stack(device: Device, slots: int = 96, **others: object) -> Offloader:
    loop = asyncio.get_running_loop()
    plan = settings(device, slots, block_size=TOKENS, **others)
    return Offloader(plan, kv_caches=device.kv_caches, tiers=[slow_tier], clock=loop.time)


async def learn(offloader: Offloader, device: Device) -> None:
    """Load prompts of several lengths, so that the tier's speed becomes known."""
    for length in (4, 48, 12, 32):
        keys = keys_of(f"learning {length}", length)
        await only_in_tiers(offloader, device, keys)
        assert (await offloader.load(keys, range(length))).blocks == length


def rate_for(seconds_per_block: float) -> float:
    return TOKENS / seconds_per_block


@pytest.mark.virtual_time
@pytest.mark.parametrize("length", [2, 8, 40])
@pytest.mark.parametrize("ratio", [0.25, 0.8, 1.25, 4.0])
async def test_the_quicker_way_is_taken_and_the_estimate_holds(length: int, ratio: float) -> None:
    """``ratio`` is how long computing takes, of the time of loading."""
    device = Device(64, shape=(BLOCK_BYTES // 2,))
    async with stack(device) as offloader:
        await learn(offloader, device)
        keys = keys_of("asked for", length)
        await only_in_tiers(offloader, device, keys)
        seconds = LATENCY + length * BLOCK_BYTES / BANDWIDTH
        loop = asyncio.get_running_loop()
        began = loop.time()
        result = await offloader.load(keys, range(length), prefill_rate=rate_for(ratio * seconds / length))
        took = loop.time() - began
        assert result.estimate is not None
        assert result.estimate.found == length
        assert result.estimate.load_all_seconds == pytest.approx(seconds, rel=STATED_ERROR)
        assert result.blocks == result.estimate.blocks == (length if ratio > 1 else 0)
        assert result.stopped_by is None
        assert took == pytest.approx(seconds if ratio > 1 else 0.0, rel=STATED_ERROR, abs=1e-6)


@pytest.mark.virtual_time
async def test_what_is_in_host_memory_is_loaded_all_the_same() -> None:
    device = Device(64, shape=(BLOCK_BYTES // 2,))
    async with stack(device) as offloader:
        await learn(offloader, device)
        keys = keys_of("half", 24)
        await only_in_tiers(offloader, device, keys)
        await offloader.prefetch(keys[:10])
        result = await offloader.load(keys, range(24), prefill_rate=rate_for(1e-5))
        assert (result.blocks, result.by_tier) == (10, {"CPU": 10})
        assert device.holds(keys[:10], range(10))


@pytest.mark.virtual_time
async def test_a_queue_before_the_request_counts() -> None:
    device = Device(64, shape=(BLOCK_BYTES // 2,))
    async with stack(device, slots=160) as offloader:
        await learn(offloader, device)
        others, keys = keys_of("others", 48), keys_of("mine", 8)
        await only_in_tiers(offloader, device, [*others, *keys])
        alone = LATENCY + 8 * BLOCK_BYTES / BANDWIDTH
        rate = rate_for(1.2 * alone / 8)
        busy = asyncio.create_task(offloader.load(others, range(8, 56)))
        await asyncio.sleep(LATENCY / 2)
        behind = await offloader.load(keys, range(8), prefill_rate=rate)
        assert behind.blocks == 0
        await busy
        assert (await offloader.load(keys, range(8), prefill_rate=rate)).blocks == 8


@pytest.mark.virtual_time
@pytest.mark.parametrize("promoting", [8, 16])
async def test_what_waits_in_line_counts_like_what_is_on_its_way(promoting: int) -> None:
    device = Device(64, shape=(BLOCK_BYTES // 2,))
    async with stack(device, slots=256, promotion_bytes=promoting * BLOCK_BYTES) as offloader:
        await learn(offloader, device)
        others, keys = [keys_of(f"others {n}", 32) for n in range(4)], keys_of("mine", 8)
        for one in (*others, keys):
            await only_in_tiers(offloader, device, one)
        busy = [asyncio.create_task(offloader.load(one, range(8, 40))) for one in others]
        await asyncio.sleep(0.01)
        result = await offloader.load(keys, range(8), prefill_rate=rate_for(1e-3))
        assert result.estimate is not None
        assert (result.blocks, result.estimate.found) == (0, 8)
        expected = LATENCY + (4 * 32 + 8) * BLOCK_BYTES / BANDWIDTH
        assert result.estimate.load_all_seconds == pytest.approx(expected, rel=STATED_ERROR)
        await asyncio.gather(*busy)


@pytest.mark.virtual_time
@pytest.mark.parametrize("promoting", [16, 256])
async def test_what_is_less_urgent_does_not_count(promoting: int) -> None:
    device = Device(64, shape=(BLOCK_BYTES // 2,))
    async with stack(device, slots=256, promotion_bytes=promoting * BLOCK_BYTES) as offloader:
        await learn(offloader, device)
        others, keys = keys_of("others", 100), keys_of("mine", 8)
        for start in range(0, 100, 50):
            await only_in_tiers(offloader, device, others[start : start + 50])
        await only_in_tiers(offloader, device, keys)
        busy = asyncio.create_task(offloader.prefetch(others))
        await asyncio.sleep(0.01)
        result = await offloader.load(keys, range(8), prefill_rate=rate_for(1e-3))
        assert result.estimate is not None
        assert result.estimate.load_all_seconds == pytest.approx(LATENCY + 8 * BLOCK_BYTES / BANDWIDTH, STATED_ERROR)
        await busy


@pytest.mark.virtual_time
@pytest.mark.parametrize("promoting", [8, 256])
async def test_blocks_that_others_are_fetching_already_count_once(promoting: int) -> None:
    device = Device(64, shape=(BLOCK_BYTES // 2,))
    async with stack(device, slots=256, promotion_bytes=promoting * BLOCK_BYTES) as offloader:
        await learn(offloader, device)
        keys = keys_of("shared", 32)
        await only_in_tiers(offloader, device, keys)
        first = asyncio.create_task(offloader.load(keys, range(32)))
        await asyncio.sleep(0.01)
        result = await offloader.load(keys, range(32, 64), prefill_rate=rate_for(1e-3))
        assert result.estimate is not None
        expected = LATENCY + 32 * BLOCK_BYTES / BANDWIDTH
        assert result.estimate.load_all_seconds == pytest.approx(expected, rel=STATED_ERROR)
        await first


@pytest.mark.virtual_time
async def test_a_prefix_that_ends_for_another_reason_says_so() -> None:
    device = Device(64, shape=(BLOCK_BYTES // 2,))
    async with stack(device) as offloader:
        await learn(offloader, device)
        keys = keys_of("partly", 12)
        await only_in_tiers(offloader, device, keys[:5])
        result = await offloader.load(keys, range(12), prefill_rate=rate_for(100.0))
        assert (result.blocks, result.stopped_by) == (5, Status.MISSING)
        assert result.estimate is not None
        assert (result.estimate.found, result.estimate.recompute_seconds) == (5, 0.0)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
async def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    device = Device(8)
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches) as offloader:
        with pytest.raises(InvalidArgument, match="tokens per second above 0"):
            await offloader.load(keys_of("rate", 1), [0], prefill_rate=rate)


@pytest.mark.parametrize("rate", [5e-324, 1e-308, "10", [1.0]])
async def test_a_rate_with_which_nothing_can_be_weighed_is_refused(rate: float) -> None:
    device = Device(8)
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches) as offloader:
        with pytest.raises(InvalidArgument, match="tokens per second above 0"):
            await offloader.load(keys_of("rate", 1), [0], prefill_rate=rate)


@pytest.mark.parametrize("rate", [10**400, float("inf"), np.float32(1e9)])
async def test_who_computes_at_once_loads_only_what_is_there(rate: float) -> None:
    device = Device(8)
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches) as offloader:
        keys = keys_of("rate", 2)
        device.fill(keys, range(2))
        await offloader.store(keys, range(2))
        assert (await offloader.load(keys, range(2), prefill_rate=rate)).blocks == 2


@pytest.mark.virtual_time
async def test_a_block_that_is_just_being_stored_does_not_bring_in_all_that_is_behind_it() -> None:
    device = Device(64, shape=(BLOCK_BYTES // 2,))
    async with stack(device, slots=256) as offloader:
        await learn(offloader, device)
        keys = keys_of("asked for", 64)
        await only_in_tiers(offloader, device, keys[5:])
        device.fill(keys[:4], range(4))
        await offloader.store(keys[:4], range(4))

        async def storing() -> None:
            async with offloader._manager.storing([keys[4]]):
                await asyncio.sleep(0.05)

        store = asyncio.create_task(storing())
        await asyncio.sleep(0.01)
        loop = asyncio.get_running_loop()
        began = loop.time()
        result = await offloader.load(keys, range(64), prefill_rate=rate_for(0.01))
        assert result.estimate is not None
        assert (result.estimate.found, result.blocks, result.stopped_by) == (4, 5, None)
        assert loop.time() - began < 0.1
        await store


@pytest.mark.virtual_time
async def test_what_is_left_to_be_computed_is_counted() -> None:
    device = Device(64, shape=(BLOCK_BYTES // 2,))
    async with stack(device) as offloader:
        await learn(offloader, device)
        keys = keys_of("half", 24)
        await only_in_tiers(offloader, device, keys[:20])
        await offloader.prefetch(keys[:10])
        before = offloader.stats().blocks
        await offloader.load(keys, range(24), prefill_rate=rate_for(1e-5))
        await offloader.load(keys[6:], range(18), prefill_rate=rate_for(100.0))
        after = offloader.stats().blocks
        assert before is not None
        assert after is not None
        assert before.computed == 0
        assert after.computed == 14
        assert after.missed[Status.MISSING] - before.missed[Status.MISSING] == 4

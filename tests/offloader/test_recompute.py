"""Load or recompute, in virtual time: the estimates are those of a tier whose speed is known to the byte."""

from __future__ import annotations

import asyncio

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


def stack(device: Device, slots: int = 96) -> Offloader:
    loop = asyncio.get_running_loop()
    plan = settings(device, slots, block_size=TOKENS)
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
        busy = asyncio.create_task(offloader.prefetch(others))
        await asyncio.sleep(LATENCY / 2)
        behind = await offloader.load(keys, range(8), prefill_rate=rate)
        assert behind.blocks == 0
        await busy
        assert (await offloader.load(keys, range(8), prefill_rate=rate)).blocks == 8


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

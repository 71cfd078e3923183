"""What an offloader says of itself: events, statistics, settle and repr."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np

from asyncoffload import Offloader
from asyncoffload.core.policies import ARC, LRU
from asyncoffload.types import Int32s
from tests.offloader.rig import Device, Kept, keys_of, only_in_tiers, settings, turns


async def test_events_of_all_tiers_in_order_and_the_end() -> None:
    device, kept = Device(8), Kept()
    first, second = keys_of("first", 4), keys_of("second", 4)
    offloader = Offloader(settings(device, 4, block_size=32), kv_caches=device.kv_caches, tiers=[kept])
    events = offloader.events()
    for keys in (first, second):
        await offloader.store(keys, range(4))
        await offloader.settle()
    await offloader.aclose()
    heard = [(event.medium, event.removed, key) async for event in events for key in event.keys]
    assert heard == [
        *(("CPU", False, key) for key in first),
        *(("gated", False, key) for key in first),
        *(("CPU", True, key) for key in reversed(first)),
        *(("CPU", False, key) for key in second),
        *(("gated", False, key) for key in second),
    ]


async def test_a_slow_subscriber_is_told_what_it_lost() -> None:
    device = Device(8)
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches) as offloader:
        events = offloader.events(capacity=2)
        for key in keys_of("events", 5):
            await offloader.store([key], [0])
        assert [event.lost for event in events.take()] == [3, 0]


async def test_settle_returns_when_the_tiers_have_what_was_stored() -> None:
    device, kept = Device(8), Kept()
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches, tiers=[kept]) as offloader:
        await offloader.settle()
        with kept.tier.before.store.shut():
            await offloader.store(keys_of("settle", 8), range(8))
            settling = asyncio.create_task(offloader.settle())
            await turns()
            assert not settling.done()
            assert offloader.stats().tiers["gated"]["in_flight"] == 8
        await settling
        assert kept.tier.memory.get_num_blocks() == 8


async def test_statistics_of_all_parts() -> None:
    device, kept = Device(8), Kept()
    keys = keys_of("stats", 8)
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches, tiers=[kept]) as offloader:
        await only_in_tiers(offloader, device, keys)
        await offloader.load(keys, range(8))
        stats = offloader.stats()
        assert stats.slot_bytes == 32
        assert (stats.primary.slots, stats.primary.ready, stats.primary.stored) == (8, 8, 16)
        assert {"promoted": 8, "stored": 8, "blocks": 8, "bytes": 256}.items() <= stats.tiers["gated"].items()


async def test_its_repr_tells_the_state() -> None:
    device, kept = Device(8), Kept()
    offloader = Offloader(settings(device, 8), kv_caches=device.kv_caches, tiers=[kept])
    assert repr(offloader).startswith("<Offloader open: HostRegion(8 slots x 32 bytes, 0 held), OffloadingWorker(GPU")
    with kept.tier.before.store.shut():
        await offloader.store(keys_of("repr", 4), range(4))
        await kept.tier.before.store.arrival()
        assert "4 held" in repr(offloader)
        assert "4 ready (4 pinned)" in repr(offloader)
        assert "tiers gated" in repr(offloader)
    await offloader.aclose()
    assert repr(offloader).startswith("<Offloader closed: HostRegion(8 slots x 32 bytes, closed)")


async def test_a_policy_of_ones_own_decides_who_leaves() -> None:
    class NewestFirst(LRU):
        def cold(self) -> Iterator[Int32s]:
            yield np.concatenate([*super().cold()])[::-1]

    device = Device(8)
    keys, last = keys_of("policy", 4), keys_of("last", 1)
    for policy, left in ((NewestFirst(), keys[0]), (LRU(), keys[3]), (ARC(), keys[3])):
        async with Offloader(settings(device, 4), kv_caches=device.kv_caches, policy=policy) as offloader:
            await offloader.store(keys, range(4))
            await offloader.store(last, [4])
            assert [key for key in keys if not await offloader.lookup([key])] == [left]


def test_the_layout_is_read_from_settings_and_tensors() -> None:
    device = Device(8, groups=(2, 1), factor=3)
    layout = Offloader(settings(device, 8, model="m", block_size=8), kv_caches=device.kv_caches).layout
    assert (layout.model, layout.dtype, layout.tokens_per_block, layout.block_bytes) == ("m", "uint8[16]", 24, 96)

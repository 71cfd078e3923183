"""Many requests at the same time in a small primary, and namespaces that never meet."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from asyncoffload import LoadResult, Offloader, RequestContext, StoreResult
from asyncoffload.types import Status
from tests.offloader.rig import Device, Kept, at_rest, keys_of, only_in_tiers, settings, turns


@pytest.mark.parametrize("slots", [4, 20, 64])
@pytest.mark.parametrize("tier", ["memory", "fs"])
async def test_dozens_of_overlapping_requests_all_get_right_bytes(tmp_path: Path, slots: int, tier: str) -> None:
    requests, length = 32, 12
    device = Device(requests * length)
    plan = settings(
        device, slots, slice_blocks=4, tiers=[{"type": tier} | ({"root_dir": tmp_path} if tier == "fs" else {})]
    )
    # Requests share prefixes: the tree that conversations with common beginnings make.
    tree = [keys_of("root", 4) + keys_of(f"branch {n % 4}", 4) + keys_of(f"leaf {n}", 4) for n in range(requests)]
    async with Offloader(plan, kv_caches=device.kv_caches) as offloader:

        async def request(n: int) -> int:
            keys, blocks = tree[n], range(n * length, (n + 1) * length)
            loaded = 0
            for _ in range(4):
                device.poison(blocks)
                result = await offloader.load(keys, blocks)
                loaded += result.blocks
                assert device.holds(keys[: result.blocks], blocks)
                assert device.untouched(blocks[result.blocks :])
                device.fill(keys[result.blocks :], blocks[result.blocks :])
                stored = await offloader.store(keys, blocks)
                assert stored.stored + stored.present == length
            return loaded

        assert sum(await asyncio.gather(*map(request, range(requests)))) > 0
        assert await at_rest(offloader)


async def test_more_loaders_than_slots_all_get_all_their_blocks() -> None:
    loaders, length = 64, 16
    device, kept = Device(loaders * length), Kept()
    order = random.Random(7).sample(range(loaders), loaders)
    async with Offloader(settings(device, 20), kv_caches=device.kv_caches, tiers=[kept]) as offloader:
        keys = [keys_of(f"loader {n}", length) for n in range(loaders)]
        for part in keys:
            await only_in_tiers(offloader, device, part)
        blocks = [range(n * length, (n + 1) * length) for n in range(loaders)]
        results = await asyncio.gather(*(offloader.load(keys[n], blocks[n]) for n in order))
        assert [result.blocks for result in results] == [length] * loaders
        assert all(device.holds(keys[n], blocks[n]) for n in range(loaders))
        assert await at_rest(offloader)


async def test_two_requests_that_are_each_nearly_as_large_as_the_primary_both_end() -> None:
    device, kept = Device(64), Kept()
    async with Offloader(settings(device, 20), kv_caches=device.kv_caches, tiers=[kept]) as offloader:
        first, second = keys_of("first", 16), keys_of("second", 16)
        for keys in (first, second):
            await only_in_tiers(offloader, device, keys)
        results = await asyncio.gather(offloader.load(first, range(16)), offloader.load(second, range(16, 32)))
        assert [result.blocks for result in results] == [16, 16]
        assert device.holds(first + second, range(32))


async def test_stores_of_the_same_blocks_at_the_same_time_write_each_once() -> None:
    device = Device(64)
    keys = keys_of("same", 8)
    async with Offloader(settings(device, 16), kv_caches=device.kv_caches) as offloader:
        stores = []
        for n in range(8):
            blocks = range(8 * n, 8 * n + 8)
            device.fill(keys, blocks)
            stores.append(offloader.store(keys, blocks))
        results = await asyncio.gather(*stores)
        assert sum(result.stored for result in results) == 8
        assert sum(result.present for result in results) == 56
        device.poison()
        assert (await offloader.load(keys, range(8))).blocks == 8
        assert device.holds(keys, range(8))


async def test_a_load_waits_for_a_store_of_its_blocks_that_is_under_way() -> None:
    device = Device(16)
    keys = keys_of("meanwhile", 8)
    async with Offloader(settings(device, 16), kv_caches=device.kv_caches) as offloader:
        device.poison()
        device.fill(keys, range(8))
        storing = asyncio.create_task(offloader.store(keys, range(8)))
        while not offloader.stats().primary.writing:
            await turns(1)
        assert (await offloader.load(keys, range(8, 16))).blocks == 8
        assert device.holds(keys, range(8, 16))
        assert await storing == StoreResult(8, 0, 0)


async def test_what_one_namespace_stored_is_a_miss_for_the_other_in_every_tier(tmp_path: Path) -> None:
    device = Device(16)
    keys = keys_of("namespaces", 8)
    ours, theirs = RequestContext(namespace="ours"), RequestContext(namespace="theirs")
    tiers = [{"type": "memory"}, {"type": "fs", "root_dir": tmp_path}]
    async with Offloader(settings(device, 16, tiers=tiers), kv_caches=device.kv_caches) as offloader:
        device.fill(keys, range(8))
        await offloader.store(keys, range(8), ours)
        device.poison()
        for only in (None, frozenset[str](), frozenset({"memory"}), frozenset({"fs"})):
            if only is not None:
                await offloader.settle()
                await offloader._manager.reset()
            for stranger in ("theirs", "", "our", "ours "):
                ctx = RequestContext(namespace=stranger, tiers=only)
                assert await offloader.lookup(keys, ctx) == 0
                assert await offloader.load(keys, range(8), ctx) == LoadResult(0, {}, Status.MISSING)
                assert device.untouched(range(16))
            expected = 0 if only == frozenset() else 8
            assert await offloader.lookup(keys, RequestContext(namespace="ours", tiers=only)) == expected
        assert (await offloader.load(keys, range(8), ours)).blocks == 8
        assert device.holds(keys, range(8))
        assert await offloader.store(keys, range(8), theirs) == StoreResult(8, 0, 0)


async def test_a_tier_that_is_slower_than_the_stores_sheds_and_never_stalls_them() -> None:
    device, kept = Device(64), Kept()
    plan = settings(device, 16, cascade_blocks=4)
    async with Offloader(plan, kv_caches=device.kv_caches, tiers=[kept]) as offloader:
        with kept.tier.before.store.shut():
            for n in range(8):
                keys = keys_of(f"fast {n}", 8)
                device.fill(keys, range(8))
                assert await offloader.store(keys, range(8)) == StoreResult(8, 0, 0)
            counts = offloader.stats().tiers["gated"]
            assert counts["in_flight"] == 4
            assert counts["shed"] >= 60
            assert offloader.stats().primary.lost > 0
        device.poison()
        last = keys_of("fast 7", 8)
        assert (await offloader.load(last, range(8))).blocks == 8
        assert device.holds(last, range(8))
        assert await at_rest(offloader)

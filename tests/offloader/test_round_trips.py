"""Blocks there and back through every combination of layout and tier: each byte is compared."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from asyncoffload import LoadResult, Offloader, StoreResult
from asyncoffload.types import Status
from tests.offloader.rig import Device, at_rest, keys_of, settings

FS = {"type": "fs", "io_threads": 2}
MEMORY = {"type": "memory"}


@pytest.mark.parametrize("factor", [1, 3])
@pytest.mark.parametrize("groups", [(2,), (2, 1, 3)], ids=["one group", "three groups"])
@pytest.mark.parametrize("tiers", ["none", "memory", "fs", "memory and fs"])
async def test_every_byte_comes_back(tmp_path: Path, tiers: str, groups: tuple[int, ...], factor: int) -> None:
    device = Device(120, groups=groups, factor=factor)
    keys = keys_of("round trip", 30, len(groups))
    blocks = random.Random(factor).sample(range(120), 30 * factor)
    chosen = [
        tier | ({"root_dir": tmp_path} if tier is FS else {}) for tier in (MEMORY, FS) if str(tier["type"]) in tiers
    ]
    async with Offloader(settings(device, 40, tiers=chosen), kv_caches=device.kv_caches) as offloader:
        device.poison()
        device.fill(keys, blocks)
        assert await offloader.store(keys, blocks) == StoreResult(stored=30, present=0, shed=0)
        assert await offloader.lookup(keys) == 30
        device.poison()
        assert await offloader.load(keys, blocks) == LoadResult(30, {"CPU": 30})
        assert device.holds(keys, blocks)
        assert await at_rest(offloader)
        assert all(tier["stored"] == 30 for tier in offloader.stats().tiers.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int8, torch.float8_e4m3fn])
async def test_any_type_of_element_and_shape_of_page(tmp_path: Path, dtype: torch.dtype) -> None:
    device = Device(16, shape=(2, 4, 8), dtype=dtype)
    keys, blocks = keys_of(dtype, 8), list(range(3, 11))
    fs = FS | {"root_dir": tmp_path}
    async with Offloader(settings(device, 8, tiers=[fs]), kv_caches=device.kv_caches) as offloader:
        assert str(dtype).removeprefix("torch.") in offloader.layout.dtype
        device.fill(keys, blocks)
        await offloader.store(keys, blocks)
    async with Offloader(settings(device, 8, tiers=[fs]), kv_caches=device.kv_caches) as offloader:
        device.poison()
        assert await offloader.load(keys, blocks) == LoadResult(8, {"fs": 8})
        assert device.holds(keys, blocks)


async def test_only_the_named_blocks_are_written() -> None:
    device = Device(32)
    keys, blocks, others = keys_of("named", 8), list(range(0, 16, 2)), [*range(1, 16, 2), *range(16, 32)]
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches) as offloader:
        device.fill(keys, blocks)
        await offloader.store(keys, blocks)
        device.poison()
        await offloader.load(keys, blocks)
        assert device.holds(keys, blocks)
        assert device.untouched(others)


async def test_kv_caches_may_be_a_flat_list_of_layers_with_gaps_between_blocks() -> None:
    backing = torch.zeros(8, 48, dtype=torch.uint8)
    layers = [backing[:, :16], backing[:, 24:40]]
    async with Offloader({"host_bytes": 8 * 32}, kv_caches=layers) as offloader:
        backing[:4] = torch.arange(4 * 48, dtype=torch.uint8).reshape(4, 48)
        before = backing.clone()
        await offloader.store(keys_of("gaps", 4), range(4))
        backing.fill_(0xDB)
        await offloader.load(keys_of("gaps", 4), range(4, 8))
        assert torch.equal(backing[4:, :16], before[:4, :16])
        assert torch.equal(backing[4:, 24:40], before[:4, 24:40])
        assert (backing[4:, 16:24] == 0xDB).all()


@pytest.mark.parametrize("slots", [1, 2, 7, 20])
async def test_a_request_may_be_larger_than_host_memory(tmp_path: Path, slots: int) -> None:
    device = Device(100)
    keys, blocks = keys_of("large", 100), random.Random(slots).sample(range(100), 100)
    fs = FS | {"root_dir": tmp_path}
    device.fill(keys, blocks)
    plan = settings(device, slots, tiers=[fs])
    async with Offloader(plan, kv_caches=device.kv_caches) as offloader:
        for start in range(0, 100, slots):
            part = slice(start, start + slots)
            assert (await offloader.store(keys[part], blocks[part])).shed == 0
            await offloader.settle()
        assert (await offloader.store(keys, blocks)).shed == 0
        device.poison()
        result = await offloader.load(keys, blocks)
        assert result.blocks == 100
        assert result.stopped_by is None
        assert sum(result.by_tier.values()) == 100
        assert device.holds(keys, blocks)
        assert await at_rest(offloader)


async def test_the_prefix_ends_before_the_first_block_that_nobody_has() -> None:
    device = Device(40)
    keys, blocks = keys_of("hole", 40), list(range(40))
    async with Offloader(settings(device, 40), kv_caches=device.kv_caches) as offloader:
        device.fill(keys, blocks)
        await offloader.store(keys[:20], blocks[:20])
        await offloader.store(keys[21:], blocks[21:])
        device.poison()
        assert await offloader.lookup(keys) == 20
        assert await offloader.load(keys, blocks) == LoadResult(20, {"CPU": 20}, Status.MISSING)
        assert device.holds(keys[:20], blocks[:20])
        assert device.untouched(blocks[20:])
        device.fill(keys, blocks)
        assert await offloader.store(keys, blocks) == StoreResult(stored=1, present=39, shed=0)
        assert await offloader.load(keys, blocks) == LoadResult(40, {"CPU": 40})


async def test_the_answer_says_how_many_blocks_came_from_where(tmp_path: Path) -> None:
    device = Device(24)
    keys, blocks = keys_of("whence", 24), list(range(24))
    fs, memory = FS | {"root_dir": tmp_path}, MEMORY
    device.fill(keys, blocks)
    async with Offloader(settings(device, 24, tiers=[fs]), kv_caches=device.kv_caches) as offloader:
        await offloader.store(keys[:16], blocks[:16])
    async with Offloader(settings(device, 24, tiers=[memory, fs]), kv_caches=device.kv_caches) as offloader:
        await offloader.store(keys[:4], blocks[:4])
        device.poison()
        assert await offloader.load(keys, blocks) == LoadResult(16, {"CPU": 4, "fs": 12}, Status.MISSING)
        assert device.holds(keys[:16], blocks[:16])
        assert await offloader.load(keys[:16], blocks[:16]) == LoadResult(16, {"CPU": 16})


async def test_a_request_of_nothing_moves_nothing() -> None:
    device = Device(4)
    async with Offloader(settings(device, 4), kv_caches=device.kv_caches) as offloader:
        assert await offloader.lookup([]) == 0
        assert await offloader.load([], []) == LoadResult(0, {})
        assert await offloader.store([], []) == StoreResult(0, 0, 0)


async def test_device_blocks_may_be_an_array_a_tensor_or_a_range() -> None:
    device = Device(8)
    keys = keys_of("forms", 4)
    async with Offloader(settings(device, 4), kv_caches=device.kv_caches) as offloader:
        device.fill(keys, range(4))
        await offloader.store(keys, range(4))
        for blocks in (torch.arange(4, 8), torch.arange(4, 8).numpy(), (4, 5, 6, 7)):
            device.poison()
            assert (await offloader.load(keys, blocks)).blocks == 4  # type: ignore[arg-type]
            assert device.holds(keys, range(4, 8))


async def test_a_block_is_stored_from_its_second_offer_on_if_the_settings_say_so() -> None:
    device = Device(8)
    keys, blocks = keys_of("twice", 8), list(range(8))
    async with Offloader(settings(device, 8, store_threshold=2), kv_caches=device.kv_caches) as offloader:
        device.fill(keys, blocks)
        assert await offloader.store(keys, blocks) == StoreResult(stored=0, present=8, shed=0)
        assert await offloader.lookup(keys) == 0
        assert await offloader.store(keys, blocks) == StoreResult(stored=8, present=0, shed=0)
        device.poison()
        assert (await offloader.load(keys, blocks)).blocks == 8
        assert device.holds(keys, blocks)


async def test_what_one_stored_the_next_serves_after_a_restart(tmp_path: Path) -> None:
    device = Device(64, groups=(1, 2), factor=2)
    keys, blocks = keys_of("restart", 32, 2), list(range(64))
    plan = settings(device, 32, tiers=[FS | {"root_dir": tmp_path}])
    async with Offloader(plan, kv_caches=device.kv_caches) as offloader:
        device.fill(keys, blocks)
        await offloader.store(keys, blocks)
    async with Offloader(plan, kv_caches=device.kv_caches) as offloader:
        device.poison()
        assert await offloader.lookup(keys) == 32
        assert await offloader.load(keys, blocks) == LoadResult(32, {"fs": 32})
        assert device.holds(keys, blocks)
    other_model = {**plan, "model": "another"}
    async with Offloader(other_model, kv_caches=device.kv_caches) as offloader:
        assert await offloader.lookup(keys) == 0


async def test_several_offloaders_serve_in_one_loop_and_share_a_root(tmp_path: Path) -> None:
    devices = [Device(16), Device(16)]
    plan = settings(devices[0], 16, tiers=[FS | {"root_dir": tmp_path}])
    keys, blocks = keys_of("shared", 16), list(range(16))
    async with (
        Offloader(plan, kv_caches=devices[0].kv_caches) as writer,
        Offloader(plan, kv_caches=devices[1].kv_caches) as reader,
    ):
        devices[0].fill(keys, blocks)
        await writer.store(keys, blocks)
        await writer.settle()
        devices[1].poison()
        assert await reader.load(keys, blocks) == LoadResult(16, {"fs": 16})
        assert devices[1].holds(keys, blocks)

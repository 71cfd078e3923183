"""Copies and tiers that fail: never wrong bytes, nothing stuck, and the next call works."""

from __future__ import annotations

import errno
from glob import glob
from pathlib import Path
from typing import Literal

import pytest

from asyncoffload import LoadResult, Offloader, StoreResult, TransferError
from asyncoffload.types import Status
from tests.offloader.rig import CopyGate, Device, Kept, Leaks, at_rest, keys_of, only_in_tiers, settings


async def test_a_copy_from_the_device_that_fails_stores_nothing() -> None:
    device, gate, kept = Device(16), CopyGate(), Kept()
    keys = keys_of("bad store", 16)
    plan = settings(device, 16, slice_blocks=4)
    async with Offloader(plan, kv_caches=device.kv_caches, handler=gate.handler, tiers=[kept]) as offloader:
        device.fill(keys, range(16))
        gate.failing = {"store"}
        with pytest.raises(TransferError, match=r"from GPU to CPU failed.*the test broke this copy") as failure:
            await offloader.store(keys, range(16))
        assert failure.value.tier == "CPU"
        assert await offloader.lookup(keys) == 0
        assert await at_rest(offloader)
        assert kept.tier.memory.get_num_blocks() == 0
        gate.failing = set()
        assert await offloader.store(keys, range(16)) == StoreResult(16, 0, 0)
        device.poison()
        assert (await offloader.load(keys, range(16))).blocks == 16
        assert device.holds(keys, range(16))


async def test_a_copy_to_the_device_that_fails_is_the_callers_to_know_and_the_blocks_stay() -> None:
    device, gate, kept = Device(16), CopyGate(), Kept()
    keys = keys_of("bad load", 16)
    plan = settings(device, 8)
    async with Offloader(plan, kv_caches=device.kv_caches, handler=gate.handler, tiers=[kept]) as offloader:
        for part in (slice(0, 8), slice(8, 16)):
            await only_in_tiers(offloader, device, keys[part])
        gate.failing = {"load"}
        with pytest.raises(TransferError, match="from CPU to GPU failed"):
            await offloader.load(keys, range(16))
        device.poison()
        assert await at_rest(offloader)
        assert device.untouched(range(16))
        gate.failing = set()
        assert (await offloader.load(keys, range(16))).blocks == 16
        assert device.holds(keys, range(16))


@pytest.mark.parametrize("verb", ["lookup", "load", "store"])
async def test_a_tier_that_raises_costs_misses_and_no_errors(verb: Literal["lookup", "load", "store"]) -> None:
    device, kept = Device(8), Kept(hints=verb != "lookup")
    keys, more = keys_of("tier", 4), keys_of("more", 4)
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches, tiers=[kept]) as offloader:
        await only_in_tiers(offloader, device, keys)
        kept.tier.faults.raises(verb, OSError(errno.EIO, "the test broke this tier"))
        loaded = await offloader.load(keys, range(4))
        assert loaded.blocks == (4 if verb == "store" else 0)
        assert loaded.stopped_by is (None if verb == "store" else Status.FAILED)
        device.fill(more, range(4, 8))
        assert (await offloader.store(more, range(4, 8))).stored == 4
        assert await at_rest(offloader)
        assert offloader.stats().tiers["gated"]["failed"] == (4 if verb == "store" else 0)
        kept.tier.faults.behave()
        device.poison()
        assert (await offloader.load(keys, range(4))).blocks == 4
        assert device.holds(keys, range(4))


async def test_a_block_that_is_bad_in_one_tier_is_taken_from_the_next() -> None:
    device, near, far = Device(8), Kept(name="near"), Kept(name="far")
    keys = keys_of("next", 8)
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches, tiers=[near, far]) as offloader:
        await only_in_tiers(offloader, device, keys)
        near.tier.faults.damage(keys[2:5])
        assert await offloader.load(keys, range(8)) == LoadResult(8, {"near": 5, "far": 3})
        assert device.holds(keys, range(8))
        assert await at_rest(offloader)


async def test_damaged_truncated_and_missing_files_shorten_the_prefix(tmp_path: Path) -> None:
    device = Device(16)
    plan = settings(device, 16, tiers=[{"type": "fs", "root_dir": tmp_path}])
    keys = keys_of("files", 16)
    device.fill(keys, range(16))
    async with Offloader(plan, kv_caches=device.kv_caches) as offloader:
        await offloader.store(keys, range(16))
    paths = [Path(glob(f"{tmp_path}/**/{key[:-4].hex()}.bin", recursive=True)[0]) for key in keys]
    flipped = bytearray(paths[12].read_bytes())
    flipped[len(flipped) // 2] ^= 1
    paths[12].write_bytes(flipped)
    paths[8].write_bytes(paths[8].read_bytes()[:-9])
    for expected in (8, 12):
        async with Offloader(plan, kv_caches=device.kv_caches) as offloader:
            device.poison()
            loaded = await offloader.load(keys, range(16))
            assert (loaded.blocks, loaded.by_tier) == (expected, {"fs": expected})
            # A file of the wrong size may be found out by a look at the directory already.
            assert loaded.stopped_by in (Status.CORRUPT, Status.MISSING)
            assert device.holds(keys[:expected], range(expected))
            assert device.untouched(range(expected, 16))
            device.fill(keys, range(16))
            await offloader.store(keys[: expected + 1], range(expected + 1))
    paths[15].unlink()
    async with Offloader(plan, kv_caches=device.kv_caches) as offloader:
        assert await offloader.load(keys, range(16)) == LoadResult(15, {"fs": 15}, Status.MISSING)
        assert device.holds(keys[:15], range(15))


async def test_a_root_that_vanishes_while_it_is_used_costs_misses(tmp_path: Path) -> None:
    leaks, device = Leaks(), Device(8)
    root = tmp_path / "root"
    plan = settings(device, 4, tiers=[{"type": "fs", "root_dir": root}])
    keys, more = keys_of("vanish", 4), keys_of("vanished", 4)
    async with Offloader(plan, kv_caches=device.kv_caches) as offloader:
        await only_in_tiers(offloader, device, keys)
        for path in sorted(root.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        assert (await offloader.load(keys, range(4))).blocks == 0
        device.fill(more, range(4))
        assert (await offloader.store(more, range(4))).stored == 4
        device.poison()
        assert (await offloader.load(more, range(4))).blocks == 4
        assert device.holds(more, range(4))
        assert await at_rest(offloader)
    assert leaks.none()

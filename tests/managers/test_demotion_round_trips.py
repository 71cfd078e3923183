"""Demotion over the tiers that are shipped: what leaves host memory comes back, byte for byte, and is written once."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from asyncoffload.core.policies import POLICIES
from asyncoffload.testing.slots import some_keys
from tests.managers.test_tiering_round_trips import LAYOUT, Primary, block_files


def demoting(n_slots: int, *tiers: str, root: Path, **options: Any) -> Primary:
    """A primary whose blocks are written when they are cold, with the default bound on what is on its way."""
    return Primary(n_slots, *tiers, root=root, cascade_blocks=None, write_policy="demote", **options)


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("tier", ["memory", "fs"])
async def test_batch_after_batch_nothing_is_lost_and_every_store_finds_room(
    tmp_path: Path, tier: str, policy: str
) -> None:
    keys = some_keys(LAYOUT, 240)
    primary = demoting(40, tier, root=tmp_path, policy=POLICIES[policy](), dirty_victims="refuse")
    manager = primary.manager
    try:
        for start in range(0, len(keys), 8):
            batch = keys[start : start + 8]
            assert await manager.prepare_store(batch) is not None
            await manager.complete_store(batch, success=False)
            await primary.store(batch)
            await manager.settle()
        stats = manager.stats()
        assert (stats.stored, stats.lost, stats.refused) == (240, 0, 0)
        written = manager.tier_counts()[tier]["stored"]
        assert stats.evicted <= written <= stats.evicted + 32
        for start in range(0, len(keys), 16):
            served = await primary.load(keys[start : start + 16])
            assert sum(served.values()) == 16
            await manager.settle()
        assert manager.tier_counts()[tier]["stored"] <= len(keys)
    finally:
        await primary.close()


async def test_each_block_has_one_file_that_is_written_once(tmp_path: Path) -> None:
    keys = some_keys(LAYOUT, 96)
    primary = demoting(24, "fs", root=tmp_path)
    try:
        for start in range(0, 96, 4):
            await primary.store(keys[start : start + 4])
            await primary.manager.settle()
        assert 72 <= len(block_files(tmp_path)) <= 88
        inodes = {file: file.stat().st_ino for file in block_files(tmp_path)}
        for start in range(0, 96, 4):
            assert sum((await primary.load(keys[start : start + 4])).values()) == 4
            await primary.store(keys[start : start + 4])
            await primary.manager.settle()
        assert all(file.stat().st_ino == inode for file, inode in inodes.items())
        await primary.manager.flush()
        assert len(block_files(tmp_path)) == 96
        assert primary.manager.tier_counts()["fs"]["stored"] == 96
    finally:
        await primary.close()


async def test_what_was_flushed_serves_the_next_process(tmp_path: Path) -> None:
    keys = some_keys(LAYOUT, 20)
    primary = demoting(40, "fs", root=tmp_path)
    await primary.store(keys)
    await primary.manager.flush()
    await primary.close()
    primary = demoting(40, "fs", root=tmp_path)
    try:
        assert await primary.load(keys) == {"fs": 20}
        await primary.store(keys)
        await primary.manager.flush()
        assert primary.manager.tier_counts()["fs"]["stored"] == 0
    finally:
        await primary.close()


@pytest.mark.parametrize("tiers", [("memory",), ("fs",), ("memory", "fs")])
async def test_many_callers_at_once_lose_nothing_where_dirty_blocks_stay(
    tmp_path: Path, tiers: tuple[str, ...]
) -> None:
    keys, dice = some_keys(LAYOUT, 400), random.Random(3)
    primary = demoting(48, *tiers, root=tmp_path, dirty_victims="refuse")

    async def request() -> None:
        start = dice.randrange(0, 384)
        prompt = keys[start : start + dice.randrange(1, 16)]
        await primary.load(prompt)
        await primary.store(prompt)

    try:
        for _ in range(12):
            await asyncio.gather(*(request() for _ in range(16)))
        assert primary.manager.stats().lost == 0
        await primary.manager.settle()
    finally:
        await primary.close()

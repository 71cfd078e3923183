"""The manager over the tiers that are shipped: real memory, real files, every byte checked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asyncoffload.keys import OffloadKey
from asyncoffload.managers.tiering import TieringOffloadingManager
from asyncoffload.memory.region import HostRegion
from asyncoffload.testing.slots import content_of, small_layout, some_keys
from asyncoffload.tiers.base import SecondaryTierManager
from asyncoffload.tiers.example import ExampleSecondaryTierManager
from asyncoffload.tiers.fs.manager import FileSystemTierManager
from asyncoffload.types import CPULoadStoreSpec, KVLayout, RequestContext, Status

LAYOUT: KVLayout = small_layout()
SLOT_BYTES = 8192


def block(key: OffloadKey) -> bytes:
    """The content of a key's block."""
    return content_of(key, LAYOUT.group_bytes(key[-1]))


def block_files(root: Path) -> list[Path]:
    """The files of all blocks below a directory."""
    return sorted(root.rglob("*.bin"))


class Primary:
    """A region, and a manager over tiers that are made for it."""

    def __init__(self, n_slots: int, *tiers: str, root: Path, **options: Any) -> None:
        self.region = HostRegion(n_slots, SLOT_BYTES)
        self.tiers: list[SecondaryTierManager] = [
            FileSystemTierManager(LAYOUT, self.region.view, "fs", str(root), 2, 2)
            if tier == "fs"
            else ExampleSecondaryTierManager(LAYOUT, self.region.view)
            for tier in tiers
        ]
        self.manager = TieringOffloadingManager(self.region, self.tiers, **{"cascade_blocks": n_slots, **options})

    async def close(self) -> None:
        """Close everything, the region last."""
        await self.manager.aclose()
        for tier in self.tiers:
            await tier.aclose()
        self.region.close()

    async def store(self, keys: Sequence[OffloadKey]) -> None:
        """Store blocks with their content."""
        async with self.manager.storing(keys, wait=True) as lease:
            for key, slot in zip(lease.keys, lease.spec.block_ids.tolist(), strict=True):
                content = block(key)
                self.region.slot(slot)[: len(content)] = content

    def check(self, keys: Sequence[OffloadKey], spec: CPULoadStoreSpec) -> None:
        """Make sure that slots hold the content of these keys."""
        for key, slot in zip(keys, spec.block_ids.tolist(), strict=True):
            content = block(key)
            assert bytes(self.region.slot(slot)[: len(content)]) == content

    async def load(self, keys: Sequence[OffloadKey], ctx: RequestContext | None = None) -> dict[str, int]:
        """Load blocks, part by part; returns how many came from where."""
        async with self.manager.loading(keys, ctx or RequestContext(), streaming=True) as lease:
            async for part in lease.parts():
                self.check(part.keys, part.spec)
            self.check(lease.keys, lease.spec)
            return dict(lease.by_tier)


async def test_out_to_memory_and_files_and_back(tmp_path: Path) -> None:
    keys = some_keys(LAYOUT, 96)
    primary = Primary(16, "memory", "fs", root=tmp_path)
    try:
        for start in range(0, 96, 8):
            await primary.store(keys[start : start + 8])
            await primary.manager.settle()
        assert primary.manager.stats().lost == 0
        assert await primary.manager.lookup(keys) == 96
        for start in range(0, 80, 8):
            got = await primary.load(keys[start : start + 8])
            assert got == {"memory": 8}
        for start in range(80, 96, 8):
            got = await primary.load(keys[start : start + 8], RequestContext(tiers=frozenset({"fs"})))
            assert got == {"fs": 8}
    finally:
        await primary.close()


async def test_many_loaders_at_once_over_files(tmp_path: Path) -> None:
    keys = some_keys(LAYOUT, 128)
    primary = Primary(24, "fs", root=tmp_path)
    try:
        for start in range(0, 128, 8):
            await primary.store(keys[start : start + 8])
            await primary.manager.settle()
        await primary.manager.reset()
        results = await asyncio.gather(*(primary.load(keys[n * 4 : n * 4 + 16]) for n in range(28)))
        assert [sum(result.values()) for result in results] == [16] * 28
    finally:
        await primary.close()


async def test_files_serve_the_next_process(tmp_path: Path) -> None:
    keys = some_keys(LAYOUT, 12)
    first = Primary(16, "fs", root=tmp_path)
    try:
        await first.store(keys)
    finally:
        await first.close()
    second = Primary(16, "fs", root=tmp_path)
    try:
        assert await second.manager.lookup(keys) == 12
        assert await second.load(keys) == {"fs": 12}
    finally:
        await second.close()


async def test_a_damaged_file_is_replaced_by_the_copy_of_another_tier(tmp_path: Path) -> None:
    keys = some_keys(LAYOUT, 8)
    primary = Primary(8, "fs", "memory", root=tmp_path)
    try:
        await primary.store(keys)
        await primary.manager.settle()
        await primary.manager.reset()
        files = block_files(tmp_path)
        assert len(files) == 8
        for file in files[:3]:
            damaged = bytearray(file.read_bytes())
            damaged[-1] ^= 1
            damaged[len(damaged) // 2] ^= 0xFF
            file.write_bytes(damaged)
        got = await primary.load(keys)
        assert got == {"fs": 5, "memory": 3}
        assert primary.manager.tier_counts()["fs"][f"refused_{Status.CORRUPT.value}"] == 3
    finally:
        await primary.close()


async def test_cancelled_loaders_leave_no_late_write(tmp_path: Path) -> None:
    keys = some_keys(LAYOUT, 64)
    primary = Primary(16, "fs", root=tmp_path)
    try:
        for start in range(0, 64, 8):
            await primary.store(keys[start : start + 8])
            await primary.manager.settle()
        for turn in range(25):
            loaders = [asyncio.create_task(primary.load(keys[n * 8 : n * 8 + 8])) for n in range(8)]
            for _ in range(turn):
                await asyncio.sleep(0)
            for loader in loaders[turn % 2 :: 2]:
                loader.cancel()
            results = await asyncio.gather(*loaders, return_exceptions=True)
            for result in results:
                assert isinstance(result, asyncio.CancelledError) or sum(result.values()) == 8  # type: ignore[union-attr]
            resident = primary.manager._primary.table.ready
            for key, slot in resident.items():
                primary.check([key], CPULoadStoreSpec([slot]))
    finally:
        await primary.close()

"""Processes that are killed while they store: what they had stored is there and whole, what they left is collected."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from asyncoffload.core.layout import directory_name
from asyncoffload.keys import OffloadKey
from asyncoffload.testing import TierLaws
from asyncoffload.testing.kills import StoringChild
from asyncoffload.tiers.base import SecondaryTierManager
from asyncoffload.tiers.fs.manager import FileSystemTierManager
from asyncoffload.tiers.fs.owner import Owner, owner_of
from asyncoffload.types import KVGroup, KVLayout

KILLS = 50


class LargeBlocks(TierLaws):
    """Blocks whose writing takes a while, so that a kill hits it."""

    __test__ = False
    persistent = True

    def layout(self) -> KVLayout:
        return KVLayout("kills", "bfloat16", 16, (KVGroup((6 << 20,)),))

    def make_tier(self, layout: KVLayout, view: memoryview, place: Path) -> SecondaryTierManager:
        return FileSystemTierManager(layout, view, "fs", place, 1, 4)

    async def raw_read(self, tier: SecondaryTierManager, key: OffloadKey) -> bytes | None:
        raise NotImplementedError

    async def raw_write(self, tier: SecondaryTierManager, key: OffloadKey, payload: bytes) -> None:
        raise NotImplementedError

    async def raw_delete(self, tier: SecondaryTierManager, key: OffloadKey) -> None:
        raise NotImplementedError

    async def raw_damage(self, tier: SecondaryTierManager, key: OffloadKey) -> None:
        raise NotImplementedError


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_fifty_kills(tmp_path: Path) -> None:
    laws, chance, with_leftovers = LargeBlocks(), random.Random(1), 0
    directory = tmp_path / directory_name(laws.layout())
    directory.mkdir()
    neighbour = Owner(str(directory))
    beside = directory / f"config.json.{neighbour.name}.tmp"
    beside.touch()
    upcoming = StoringChild(laws, tmp_path, "kill 0")
    try:
        for number in range(1, KILLS + 1):
            # The next one gets ready while what this one leaves is looked at.
            child, upcoming = upcoming, StoringChild(laws, tmp_path, f"kill {number}")
            with child:
                child.wait_for_batches(chance.randrange(1, 4))
                child.wait(chance.uniform(0, 0.01))
                child.kill()
            with_leftovers += bool(leftovers(directory, neighbour))
            asyncio.run(laws.check_after_kill(tmp_path, child))
            asyncio.run(collect(laws, tmp_path))
            assert not leftovers(directory, neighbour)
            assert not list(directory.rglob("*.bad"))
            assert beside.exists()
            assert os.listdir(directory / "owners") == [neighbour.name]
            remove_blocks(directory)
    finally:
        upcoming.kill()
        neighbour.leave()
    assert with_leftovers >= KILLS // 2, f"only {with_leftovers} of {KILLS} kills hit a write: the test shows nothing"


async def collect(laws: LargeBlocks, place: Path) -> None:
    """A tier that has looked through all of its directory."""
    async with laws.serving(place) as (tier, _):
        assert isinstance(tier, FileSystemTierManager)
        await tier.scanned()
        sizes = sizes_of_blocks(place)
        assert (tier.stats()["blocks"], tier.stats()["bytes"]) == (len(sizes), sum(sizes))


def leftovers(directory: Path, neighbour: Owner) -> list[Path]:
    """Temporary files of others than the neighbour."""
    return [path for path in directory.rglob("*.tmp") if owner_of(path.name) != neighbour.name]


def sizes_of_blocks(place: Path) -> list[int]:
    return [block.stat().st_size for block in place.rglob("*.bin")]


def remove_blocks(directory: Path) -> None:
    for path in directory.rglob("*.bin"):
        path.unlink()

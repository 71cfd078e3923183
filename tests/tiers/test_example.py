"""The example tier under the laws."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import xxhash

from asyncoffload.keys import OffloadKey
from asyncoffload.testing import TierLaws
from asyncoffload.tiers.base import SecondaryTierManager
from asyncoffload.tiers.example import ExampleSecondaryTierManager
from asyncoffload.types import KVLayout


class TestExampleTier(TierLaws):
    def make_tier(self, layout: KVLayout, view: memoryview, place: Path) -> SecondaryTierManager:  # noqa: ARG002
        return ExampleSecondaryTierManager(layout, view)

    async def raw_read(self, tier: SecondaryTierManager, key: OffloadKey) -> bytes | None:
        kept = _blocks(tier).get(key)
        return kept[0].tobytes() if kept else None

    async def raw_write(self, tier: SecondaryTierManager, key: OffloadKey, payload: bytes) -> None:
        _blocks(tier)[key] = (np.frombuffer(payload, np.uint8).copy(), xxhash.xxh3_64_intdigest(payload))

    async def raw_delete(self, tier: SecondaryTierManager, key: OffloadKey) -> None:
        _blocks(tier).pop(key, None)

    async def raw_damage(self, tier: SecondaryTierManager, key: OffloadKey) -> None:
        _blocks(tier)[key][0][0] ^= 1


def _blocks(tier: SecondaryTierManager) -> dict[OffloadKey, tuple[np.ndarray, int]]:
    return cast("ExampleSecondaryTierManager", tier)._blocks


async def test_counts_its_blocks(tmp_path: Path) -> None:
    laws = TestExampleTier()
    async with laws.serving(tmp_path) as (tier, slots):
        from asyncoffload.testing.slots import some_keys

        await tier.store(slots.store_job(some_keys(slots.layout, 3)))
        assert cast("ExampleSecondaryTierManager", tier).get_num_blocks() == 3
        assert tier.stats()["blocks"] == 3
        assert "3 blocks" in repr(tier)

"""The example of a tier of one's own keeps the laws, and runs."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import cast

import pytest
from own_tier import CompressedTier, main

from asyncoffload import KVLayout, OffloadKey, SecondaryTierManager
from asyncoffload.testing import TierLaws


def _blocks(tier: SecondaryTierManager) -> dict[OffloadKey, bytes]:
    return cast("CompressedTier", tier)._blocks


class TestCompressedTier(TierLaws):
    def make_tier(self, layout: KVLayout, view: memoryview, place: Path) -> SecondaryTierManager:  # noqa: ARG002
        return CompressedTier(layout, view)

    async def raw_read(self, tier: SecondaryTierManager, key: OffloadKey) -> bytes | None:
        compressed = _blocks(tier).get(key)
        try:
            return None if compressed is None else zlib.decompress(compressed)
        except zlib.error:
            return b""

    async def raw_write(self, tier: SecondaryTierManager, key: OffloadKey, payload: bytes) -> None:
        _blocks(tier)[key] = zlib.compress(payload)

    async def raw_delete(self, tier: SecondaryTierManager, key: OffloadKey) -> None:
        _blocks(tier).pop(key, None)

    async def raw_damage(self, tier: SecondaryTierManager, key: OffloadKey) -> None:
        damaged = bytearray(_blocks(tier)[key])
        damaged[-1] ^= 1  # within the checksum, which no reading of the rest can make up for
        _blocks(tier)[key] = bytes(damaged)


async def test_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    await main()
    assert capsys.readouterr().out == "8 blocks loaded, by tier: {'zlib': 8}\n"


def test_the_page_about_tiers_shows_this_one() -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs" / "writing-a-tier.md").read_text()
    example, laws = (root / "examples" / "own_tier.py").read_text(), Path(__file__).read_text()
    assert example[example.index("Slot = ") : example.index("async def main")].strip() in page
    assert laws[laws.index("def _blocks") : laws.index("async def test_it_runs")].strip() in page

"""The example of a tier of one's own keeps the laws, and runs."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import cast

import own_tier
import pytest
import xxhash
from own_tier import SQLiteTier, main

from asyncoffload import KVLayout, OffloadKey, SecondaryTierManager
from asyncoffload.testing import TierLaws


def _execute(tier: SecondaryTierManager, statement: str, *values: object) -> list[tuple[bytes, ...]]:
    with closing(sqlite3.connect(cast("SQLiteTier", tier)._path, isolation_level=None)) as db:
        return db.execute(statement, values).fetchall()


class TestSQLiteTier(TierLaws):
    persistent = True

    @pytest.fixture(autouse=True)
    def _children_find_the_examples(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYTHONPATH", str(Path(own_tier.__file__).parent))

    def make_tier(self, layout: KVLayout, view: memoryview, place: Path) -> SecondaryTierManager:
        return SQLiteTier(layout, view, place / "blocks.db")

    async def raw_read(self, tier: SecondaryTierManager, key: OffloadKey) -> bytes | None:
        rows = _execute(tier, "select bytes from blocks where key = ?", key)
        return rows[0][0] if rows else None

    async def raw_write(self, tier: SecondaryTierManager, key: OffloadKey, payload: bytes) -> None:
        _execute(tier, "replace into blocks values (?, ?, ?)", key, xxhash.xxh3_128_digest(payload), payload)

    async def raw_delete(self, tier: SecondaryTierManager, key: OffloadKey) -> None:
        _execute(tier, "delete from blocks where key = ?", key)

    async def raw_damage(self, tier: SecondaryTierManager, key: OffloadKey) -> None:
        payload = bytearray(await self.raw_read(tier, key) or b"")
        payload[0] ^= 1
        _execute(tier, "update blocks set bytes = ? where key = ?", bytes(payload), key)


async def test_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    await main(tmp_path)
    assert capsys.readouterr().out.splitlines() == [
        "first run: 0 blocks loaded, by tier: {}",
        "second run: 8 blocks loaded, by tier: {'sqlite': 8}",
    ]

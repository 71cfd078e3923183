"""What is visible is whole, and visible in time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from asyncoffload.testing.laws.base import HIT, MISS, WRONG_BYTES, Laws, statuses
from asyncoffload.testing.slots import content_of, some_keys
from asyncoffload.types import Status


class VisibilityLaws(Laws):
    """What is visible is whole, and visible in time."""

    @pytest.mark.asyncio
    async def test_visible_when_the_store_returns(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            keys = some_keys(slots.layout, 4)
            assert list(await tier.lookup(keys)) == [MISS] * 4
            await tier.store(slots.store_job(keys))
            assert list(await tier.lookup(keys)) == [HIT] * 4

    @pytest.mark.asyncio
    async def test_whatever_is_visible_while_it_is_stored_is_whole(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            keys = some_keys(slots.layout, 32)
            storing = asyncio.create_task(tier.store(slots.store_job(keys)))
            while not storing.done():
                seen = [key for key, found in zip(keys, await tier.lookup(keys), strict=True) if found is HIT]
                for key in seen:
                    assert await self.raw_read(tier, key) == content_of(key, slots.nbytes(key))
                result = await tier.load(slots.load_job(seen, first_slot=32))
                assert statuses(result) == [Status.DONE] * len(seen)
                assert slots.have(seen, first_slot=32), WRONG_BYTES
                await asyncio.sleep(0)
            assert (await storing).success

"""What goes in comes out, and nothing else does."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from asyncoffload.testing.laws.base import HIT, MISS, N_SLOTS, TOUCHED, WRONG_BYTES, Laws, statuses
from asyncoffload.testing.slots import content_of, some_keys
from asyncoffload.types import Status, TransferJob


class RoundTripLaws(Laws):
    """What goes in comes out, and nothing else does."""

    @pytest.mark.asyncio
    async def test_what_was_stored_is_loaded(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            keys = some_keys(slots.layout, 8)
            job = slots.store_job(keys)
            result = await tier.store(job)
            assert (result.job_id, list(result.keys), result.tier) == (job.job_id, keys, tier.tier_type)
            assert statuses(result) == [Status.DONE] * 8
            slots.guard(range(N_SLOTS))
            backwards = keys[::-1]
            result = await tier.load(slots.load_job(backwards, first_slot=20))
            assert statuses(result) == [Status.DONE] * 8
            assert slots.have(backwards, first_slot=20), WRONG_BYTES
            assert slots.are_untouched([*range(20), *range(28, N_SLOTS)]), TOUCHED

    @pytest.mark.asyncio
    async def test_storage_has_what_was_stored(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            keys = some_keys(slots.layout, 4)
            await tier.store(slots.store_job(keys))
            for key in keys:
                assert await self.raw_read(tier, key) == content_of(key, slots.nbytes(key))

    @pytest.mark.asyncio
    async def test_what_storage_has_is_found_and_loaded(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            keys = some_keys(slots.layout, 4)
            for key in keys:
                await self.raw_write(tier, key, content_of(key, slots.nbytes(key)))
            assert list(await tier.lookup(keys)) == [HIT] * 4
            assert statuses(await tier.load(slots.load_job(keys))) == [Status.DONE] * 4
            assert slots.have(keys), WRONG_BYTES

    @pytest.mark.asyncio
    async def test_what_is_not_there_is_missing(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            keys = some_keys(slots.layout, 3)
            assert list(await tier.lookup(keys)) == [MISS] * 3
            assert not any(map(tier.hint, keys))
            assert statuses(await tier.load(slots.load_job(keys))) == [Status.MISSING] * 3

    @pytest.mark.asyncio
    async def test_nothing_to_do_is_done(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, _):
            assert list(await tier.lookup([])) == []
            assert statuses(await tier.store(TransferJob([], []))) == []
            assert statuses(await tier.load(TransferJob([], []))) == []

    @pytest.mark.asyncio
    async def test_storing_what_is_there_is_done_and_changes_nothing(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            keys = some_keys(slots.layout, 4)
            await tier.store(slots.store_job(keys))
            slots.guard(range(4))
            assert statuses(await tier.store(TransferJob(keys, range(4)))) == [Status.DONE] * 4
            assert statuses(await tier.load(slots.load_job(keys))) == [Status.DONE] * 4
            assert slots.have(keys), WRONG_BYTES

    @pytest.mark.asyncio
    async def test_storing_the_same_at_once_is_done_for_all(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            keys = some_keys(slots.layout, 4)
            jobs = [slots.store_job(keys, first_slot=4 * index) for index in range(4)]
            for result in await asyncio.gather(*map(tier.store, jobs)):
                assert statuses(result) == [Status.DONE] * 4
            assert statuses(await tier.load(slots.load_job(keys))) == [Status.DONE] * 4
            assert slots.have(keys), WRONG_BYTES

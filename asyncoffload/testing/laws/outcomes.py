"""What happened to a block is a value, and one bad block does not spoil the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncoffload.errors import InvalidArgument, TierIOError
from asyncoffload.testing.laws.base import MISS, N_SLOTS, Laws, statuses
from asyncoffload.testing.slots import some_keys
from asyncoffload.types import Status, TransferJob


class OutcomeLaws(Laws):
    """What happened to a block is a value, and one bad block does not spoil the others."""

    @pytest.mark.asyncio
    async def test_each_key_has_its_own_outcome(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            keys = some_keys(slots.layout, 8)
            stored = [key for index, key in enumerate(keys) if index != 2]
            await tier.store(slots.store_job(stored))
            await self.raw_damage(tier, keys[3])
            await self.raw_delete(tier, keys[6])
            job = slots.load_job(keys)
            job.unwanted.add(keys[7])
            result = await tier.load(job)
            expected = [Status.DONE] * 8
            expected[2] = expected[6] = Status.MISSING
            expected[3] = Status.CORRUPT
            assert statuses(result)[:7] == expected[:7]
            assert result.outcomes[7].status in (Status.CANCELLED, Status.DONE)
            assert all(slots.hold(index, keys[index]) for index, outcome in enumerate(result.outcomes) if outcome.ok)

    @pytest.mark.asyncio
    async def test_a_damaged_block_is_corrupt_reported_and_replaceable(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            (key,) = some_keys(slots.layout, 1)
            await tier.store(slots.store_job([key]))
            tier.take_events()
            await self.raw_damage(tier, key)
            (outcome,) = (await tier.load(slots.load_job([key]))).outcomes
            assert outcome.status is Status.CORRUPT
            assert outcome.error is not None
            assert [(list(e.keys), e.removed, e.medium) for e in tier.take_events()] == [([key], True, tier.tier_type)]
            assert list(await tier.lookup([key])) == [MISS]
            assert statuses(await tier.store(slots.store_job([key]))) == [Status.DONE]
            assert statuses(await tier.load(slots.load_job([key]))) == [Status.DONE]
            assert slots.hold(0, key)

    @pytest.mark.asyncio
    async def test_unwanted_keys_do_not_disturb_the_others(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            keys = some_keys(slots.layout, 8)
            job = slots.store_job(keys)
            job.unwanted.update(keys[::2])
            result = await tier.store(job)
            assert statuses(result)[1::2] == [Status.DONE] * 4
            assert set(statuses(result)[::2]) <= {Status.DONE, Status.CANCELLED}
            kept = [key for key, outcome in zip(keys, result.outcomes, strict=True) if outcome.ok]
            assert statuses(await tier.load(slots.load_job(kept))) == [Status.DONE] * len(kept)

    @pytest.mark.asyncio
    async def test_errors_are_values(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            keys = some_keys(slots.layout, 4)
            await tier.store(slots.store_job(keys[:2]))
            broken = self.broken_storage(tier)
            if broken is None:
                pytest.skip("this tier's storage cannot refuse")
            with broken:
                stored = await tier.store(slots.store_job(keys[2:]))
                loaded = await tier.load(slots.load_job(keys[:2]))
            for outcome in (*stored.outcomes, *loaded.outcomes):
                assert outcome.status is Status.FAILED
                assert isinstance(outcome.error, TierIOError)
                assert outcome.error.errno is not None
            assert statuses(await tier.store(slots.store_job(keys))) == [Status.DONE] * 4
            assert statuses(await tier.load(slots.load_job(keys))) == [Status.DONE] * 4

    @pytest.mark.asyncio
    async def test_slots_that_do_not_exist_are_refused(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            keys = some_keys(slots.layout, 2)
            for slot in (-1, N_SLOTS):
                for verb in (tier.store, tier.load):
                    with pytest.raises(InvalidArgument, match=str(slot)):
                        await verb(TransferJob(keys, [0, slot]))

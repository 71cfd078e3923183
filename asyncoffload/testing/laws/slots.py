"""Whoever returns is done with the slots of its job."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from asyncoffload.testing.laws.base import HIT, TOUCHED, Laws, cancelled_after, checkpoints, statuses, turns
from asyncoffload.testing.slots import some_keys
from asyncoffload.types import Status


class SlotLaws(Laws):
    """Whoever returns is done with the slots of its job."""

    @pytest.mark.asyncio
    async def test_a_cancelled_load_never_writes_later(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            keys = some_keys(slots.layout, 16)
            await tier.store(slots.store_job(keys))
            for round_, count in enumerate(checkpoints()):
                job = slots.load_job(keys, first_slot=16 * (round_ % 4))
                in_time = await cancelled_after(count, tier.load, job)
                slots.guard(job.slots)
                await tier.drain()
                assert slots.are_untouched(job.slots), TOUCHED
                if not in_time:
                    break
        assert slots.are_untouched(job.slots), TOUCHED

    @pytest.mark.asyncio
    async def test_a_cancelled_store_never_reads_later(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            for count in checkpoints():
                keys = some_keys(slots.layout, 16, count)
                job = slots.store_job(keys)
                in_time = await cancelled_after(count, tier.store, job)
                slots.guard(job.slots)
                await tier.drain()
                result = await tier.load(slots.load_job(keys, first_slot=16))
                assert set(statuses(result)) <= {Status.DONE, Status.MISSING}
                assert all(slots.hold(16 + index, keys[index]) for index, o in enumerate(result.outcomes) if o.ok)
                if not in_time:
                    assert result.success
                    break

    @pytest.mark.asyncio
    async def test_a_cancelled_lookup_leaves_the_tier_serving(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            keys = some_keys(slots.layout, 16)
            for count in range(16):
                looking = asyncio.ensure_future(tier.lookup(keys))
                await turns(count)
                looking.cancel()
                await asyncio.wait([looking])
            assert statuses(await tier.store(slots.store_job(keys))) == [Status.DONE] * 16
            assert list(await tier.lookup(keys)) == [HIT] * 16

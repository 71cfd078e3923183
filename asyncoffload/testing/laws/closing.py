"""The end: everything ends, says so, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from pathlib import Path

import pytest

from asyncoffload.errors import ClosedError
from asyncoffload.testing.laws.base import N_SLOTS, TOUCHED, WRONG_BYTES, Laws, statuses
from asyncoffload.testing.slots import some_keys
from asyncoffload.types import Status


class ClosingLaws(Laws):
    """The end: everything ends, says so, and leaves nothing behind."""

    @pytest.mark.asyncio
    async def test_drain_returns_when_everything_has_ended(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            keys = some_keys(slots.layout, 16)
            storing = asyncio.ensure_future(tier.store(slots.store_job(keys)))
            await asyncio.sleep(0)
            await tier.drain()
            slots.guard(range(16))
            await asyncio.wait([storing])
            assert statuses(await tier.load(slots.load_job(keys))) == [Status.DONE] * 16
            assert slots.have(keys), WRONG_BYTES

    @pytest.mark.asyncio
    async def test_a_closed_tier_says_so(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            keys = some_keys(slots.layout, 2)
            await tier.store(slots.store_job(keys))
            await tier.aclose()
            with pytest.raises(ClosedError):
                await tier.lookup(keys)
            with pytest.raises(ClosedError):
                await tier.store(slots.store_job(keys))
            with pytest.raises(ClosedError):
                await tier.load(slots.load_job(keys))
            await tier.aclose()

    @pytest.mark.parametrize("drain", [True, False])
    @pytest.mark.asyncio
    async def test_closing_ends_every_job(self, tmp_path: Path, drain: bool) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            kept = some_keys(slots.layout, 8)
            await tier.store(slots.store_job(kept))
            stores = [
                asyncio.ensure_future(tier.store(slots.store_job(some_keys(slots.layout, 8, n), 8 * n)))
                for n in range(1, 4)
            ]
            loads = [asyncio.ensure_future(tier.load(slots.load_job(kept, 8 * n))) for n in range(4, 8)]
            await asyncio.sleep(0)
            await tier.aclose(drain=drain)
            slots.guard(range(N_SLOTS))
            for result in await asyncio.gather(*stores, *loads, return_exceptions=True):
                if isinstance(result, BaseException):
                    assert isinstance(result, ClosedError)
                else:
                    assert set(statuses(result)) <= {Status.DONE, Status.CANCELLED}
            assert slots.are_untouched(range(N_SLOTS)), TOUCHED

    @pytest.mark.asyncio
    async def test_nothing_is_left_behind(self, tmp_path: Path) -> None:
        async def once() -> None:
            async with self.serving(tmp_path) as (tier, slots):
                keys = some_keys(slots.layout, 8)
                await tier.store(slots.store_job(keys))
                await tier.load(slots.load_job(keys))

        await once()
        gc.collect()
        threads, descriptors = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            await once()
        gc.collect()
        for thread in set(threading.enumerate()) - threads:
            thread.join(10)
            assert not thread.is_alive(), f"{thread} outlives its tier"
        assert len(os.listdir("/proc/self/fd")) <= descriptors

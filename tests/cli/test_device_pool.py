"""Device blocks are lent in order of arrival and always come back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from asyncoffload.cli.device_pool import DevicePool
from asyncoffload.errors import CapacityError


async def _hold(pool: DevicePool, blocks: int, got: asyncio.Queue[Sequence[int]], leave: asyncio.Event) -> None:
    async with pool.lent(blocks) as taken:
        got.put_nowait(taken)
        await leave.wait()


async def test_no_block_is_lent_twice() -> None:
    pool = DevicePool(5)
    async with pool.lent(2) as some, pool.lent(3) as others:
        assert sorted([*some, *others]) == [0, 1, 2, 3, 4]
    async with pool.lent(5):
        pass


async def test_a_large_request_is_not_overtaken() -> None:
    pool, got, leave = DevicePool(4), asyncio.Queue[Sequence[int]](), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        async with pool.lent(3):
            for blocks in (4, 1):
                group.create_task(_hold(pool, blocks, got, leave))
            await asyncio.sleep(0)
            assert "2 requests waiting" in repr(pool)
            assert got.empty()
        assert len(await got.get()) == 4
        assert got.empty()
        leave.set()
        assert len(await got.get()) == 1


@pytest.mark.parametrize("woken", [False, True], ids=["waiting", "already woken"])
async def test_a_cancelled_request_gives_its_turn_away(woken: bool) -> None:
    pool, got, leave = DevicePool(2), asyncio.Queue[Sequence[int]](), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        async with pool.lent(1):
            first = group.create_task(_hold(pool, 2, got, leave))
            second = group.create_task(_hold(pool, 1, got, leave))
            await asyncio.sleep(0)
            if not woken:
                first.cancel()
                assert len(await got.get()) == 1
        if woken:
            first.cancel()
            assert len(await got.get()) == 1
        leave.set()
        await second
    assert "2 of 2 blocks free, 0 requests" in repr(pool)


async def test_what_can_never_fit_is_refused() -> None:
    with pytest.raises(CapacityError, match="3 blocks does not fit 2 device blocks"):
        async with DevicePool(2).lent(3):
            pass

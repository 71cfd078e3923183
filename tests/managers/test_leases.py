"""Leases end with their block, whatever ends it."""

from __future__ import annotations

import asyncio

import pytest

from asyncoffload.errors import InternalError, LeaseClosedError
from asyncoffload.keys import OffloadKey
from asyncoffload.managers.cpu import CPUOffloadingManager


def blocks(*numbers: int) -> list[OffloadKey]:
    return [OffloadKey(b"%08d" % number) for number in numbers]


async def test_a_store_lease_makes_its_blocks_readable() -> None:
    async with CPUOffloadingManager(2) as manager:
        async with manager.storing(blocks(1, 2)) as lease:
            assert lease.keys == blocks(1, 2)
            assert lease.spec.block_ids.tolist() == [0, 1]
            assert await manager.lookup(blocks(1)) == 0
        assert await manager.lookup(blocks(1, 2)) == 2
        async with manager.storing(blocks(1, 3)) as lease:
            assert lease.keys == blocks(3)
            assert lease.evicted_keys == blocks(2)


async def test_a_store_lease_left_by_an_exception_stores_nothing() -> None:
    async with CPUOffloadingManager(2) as manager:
        with pytest.raises(RuntimeError, match="copy"):
            async with manager.storing(blocks(1)):
                raise RuntimeError("copy")
        assert await manager.lookup(blocks(1)) == 0
        assert manager.stats().free == 2


async def test_a_store_lease_left_by_cancellation_stores_nothing() -> None:
    async with CPUOffloadingManager(2) as manager:
        entered = asyncio.Event()

        async def hold() -> None:
            async with manager.storing(blocks(1)):
                entered.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(hold())
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert manager.stats().free == 2


async def test_a_load_lease_holds_the_ready_prefix() -> None:
    async with CPUOffloadingManager(3) as manager:
        async with manager.storing(blocks(1, 2)):
            pass
        async with manager.loading(blocks(1, 2, 3, 4)) as lease:
            assert lease.keys == blocks(1, 2)
            assert [(part.keys, part.spec.block_ids.tolist()) async for part in lease.parts()] == [
                (blocks(1, 2), [0, 1])
            ]
            assert manager.stats().pinned == 2
        assert manager.stats().pinned == 0


async def test_a_load_lease_of_nothing_is_empty() -> None:
    async with CPUOffloadingManager(3) as manager, manager.loading(blocks(1), streaming=True) as lease:
        assert list(lease.keys) == []
        assert len(lease.spec) == 0
        assert [part async for part in lease.parts()] == []


async def test_paired_calls_do_not_end_a_lease() -> None:
    async with CPUOffloadingManager(1) as manager:
        async with manager.storing(blocks(1)) as lease:
            await manager.complete_store(blocks(1))
            await manager.complete_store(blocks(1), spec=lease.spec)
            assert await manager.lookup(blocks(1)) == 0
        async with manager.loading(blocks(1)):
            await manager.complete_load(blocks(1))
            assert manager.stats().pinned == 1


async def test_an_ended_lease_raises() -> None:
    async with CPUOffloadingManager(2) as manager:
        async with manager.storing(blocks(1)) as stored:
            pass
        async with manager.loading(blocks(1)) as loaded:
            pass
        for lease in (stored, loaded):
            with pytest.raises(LeaseClosedError, match="ended"):
                _ = lease.spec
            with pytest.raises(LeaseClosedError, match="ended"):
                _ = lease.keys
        with pytest.raises(LeaseClosedError):
            await anext(loaded.parts())


async def test_a_reset_under_a_store_lease_voids_it() -> None:
    async with CPUOffloadingManager(1) as manager:
        async with manager.storing(blocks(1)):
            await manager.reset()
        assert await manager.lookup(blocks(1)) == 0
        assert manager.stats().free == 1


async def break_under_a_lease(manager: CPUOffloadingManager, error: Exception | None) -> None:
    async with manager.storing(blocks(1)):
        manager._fail(RuntimeError("planted"))
        if error is not None:
            raise error


async def test_a_broken_manager_does_not_hide_the_exception_of_the_block() -> None:
    with pytest.raises(KeyError, match="own"):
        await break_under_a_lease(CPUOffloadingManager(1), KeyError("own"))
    with pytest.raises(InternalError, match="planted"):
        await break_under_a_lease(CPUOffloadingManager(1), None)

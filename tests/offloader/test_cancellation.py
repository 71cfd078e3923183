"""The cancellation table row by row, with copies and tiers that the tests hold up."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import anyio
import pytest

from asyncoffload import Offloader
from tests.offloader.rig import CopyGate, Device, Kept, at_rest, keys_of, only_in_tiers, settings, turns


async def test_a_load_whose_copy_is_queued_raises_at_once_and_never_starts() -> None:
    device, gate = Device(16), CopyGate()
    keys = keys_of("queued", 8)
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches, handler=gate.handler) as offloader:
        device.fill(keys, range(8))
        await offloader.store(keys, range(8))
        device.poison()
        with gate.shut():
            running = asyncio.create_task(offloader.load(keys[:4], range(4)))
            await gate.arrived.acquire()
            queued = asyncio.create_task(offloader.load(keys[4:], range(8, 12)))
            await turns()
            queued.cancel()
            with pytest.raises(asyncio.CancelledError):
                await queued
        assert (await running).blocks == 4
        assert device.holds(keys[:4], range(4))
        assert device.untouched(range(4, 16))
        assert await at_rest(offloader)


@pytest.mark.parametrize("verb", ["load", "store"])
async def test_a_call_whose_copy_runs_raises_when_nothing_touches_its_blocks_any_more(verb: str) -> None:
    device, gate = Device(16), CopyGate()
    keys, new = keys_of("running", 8), keys_of("running store", 8)
    async with Offloader(settings(device, 16), kv_caches=device.kv_caches, handler=gate.handler) as offloader:
        device.fill(keys, range(8))
        await offloader.store(keys, range(8))
        device.poison()
        device.fill(new, range(8, 16))
        with gate.shut():
            call: Coroutine[Any, Any, object]
            call = offloader.load(keys, range(8)) if verb == "load" else offloader.store(new, range(8, 16))
            task = asyncio.create_task(call)
            await gate.arrived.acquire()
            for _ in range(3):
                task.cancel()
                await turns()
                assert not task.done()
        with pytest.raises(asyncio.CancelledError):
            await task
        device.poison()
        assert await at_rest(offloader)
        assert await offloader.lookup(new) == 0
        assert (await offloader.load(keys, range(8))).blocks == 8
        assert device.holds(keys, range(8))
        assert device.untouched(range(8, 16))


async def test_a_load_that_waits_for_a_tier_raises_at_once_and_its_slots_stay_held() -> None:
    device, kept = Device(16), Kept()
    keys = keys_of("tier", 4)
    async with Offloader(settings(device, 4), kv_caches=device.kv_caches, tiers=[kept]) as offloader:
        await only_in_tiers(offloader, device, keys)
        with kept.tier.before.load.shut():
            alone = asyncio.create_task(offloader.load(keys, range(4)))
            job = await kept.tier.before.load.arrival()
            alone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await alone
            assert all(map(offloader._region.is_held, job.slots))
            assert job.unwanted == set(job.keys)
        assert await at_rest(offloader)
        assert device.untouched(range(16))


async def test_who_shares_a_promotion_gets_his_blocks_when_others_leave() -> None:
    device, kept = Device(32), Kept()
    keys = keys_of("shared", 4)
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches, tiers=[kept]) as offloader:
        await only_in_tiers(offloader, device, keys)
        with kept.tier.before.load.shut():
            sharers = [asyncio.create_task(offloader.load(keys, range(4 * n, 4 * n + 4))) for n in range(8)]
            await kept.tier.before.load.arrival()
            for sharer in sharers[:-1]:
                sharer.cancel()
            await asyncio.wait(sharers[:-1])
            assert all(sharer.cancelled() for sharer in sharers[:-1])
        assert (await sharers[-1]).by_tier == {"gated": 4}
        assert device.holds(keys, range(28, 32))
        assert device.untouched(range(28))
        assert await at_rest(offloader)


async def test_a_store_that_waits_for_room_raises_at_once_and_loses_its_place() -> None:
    device, gate = Device(16), CopyGate()
    first, second, third = (keys_of(name, 4) for name in ("first", "second", "third"))
    async with Offloader(settings(device, 4), kv_caches=device.kv_caches, handler=gate.handler) as offloader:
        with gate.shut():
            running = asyncio.create_task(offloader.store(first, range(4)))
            await gate.arrived.acquire()
            waiting = asyncio.create_task(offloader.store(second, range(4, 8)))
            behind = asyncio.create_task(offloader.store(third, range(8, 12)))
            await turns()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert (await running).stored == 4
        assert (await behind).stored == 4
        assert await offloader.lookup(second) == 0
        assert await at_rest(offloader)


async def test_anyio_scopes_that_have_expired_already() -> None:
    device = Device(8)
    keys = keys_of("anyio", 4)
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches) as offloader:
        device.fill(keys, range(4))
        with anyio.move_on_after(0) as scope:
            await offloader.store(keys, range(4))
        assert scope.cancelled_caught
        with pytest.raises(TimeoutError), anyio.fail_after(0):
            await offloader.store(keys, range(4))
        await offloader.store(keys, range(4))
        device.poison()
        with pytest.raises(TimeoutError), anyio.fail_after(0):
            await offloader.load(keys, range(4))
        await turns()
        device.poison()
        assert (await offloader.load(keys, range(4))).blocks == 4
        assert device.holds(keys, range(4))
        assert await at_rest(offloader)


async def test_a_task_group_that_fails_takes_its_loads_along_and_leaves_the_device_alone() -> None:
    device, gate = Device(64), CopyGate()
    keys = keys_of("group", 8)
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches, handler=gate.handler) as offloader:
        device.fill(keys, range(8))
        await offloader.store(keys, range(8))
        device.poison()

        async def fail() -> None:
            await gate.arrived.acquire()
            asyncio.get_running_loop().call_soon(gate.open)
            raise LookupError

        async def serve() -> None:
            async with asyncio.TaskGroup() as group:
                for n in range(8):
                    group.create_task(offloader.load(keys, range(8 * n, 8 * n + 8)))
                group.create_task(fail())

        with gate.shut(), pytest.raises(ExceptionGroup):
            await serve()
        device.poison()
        await turns()
        assert device.untouched(range(64))
        assert await at_rest(offloader)


async def test_a_timeout_of_the_caller_ends_the_waiting_for_a_tier() -> None:
    device, kept = Device(8), Kept()
    keys = keys_of("timeout", 4)
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches, tiers=[kept]) as offloader:
        await only_in_tiers(offloader, device, keys)
        with kept.tier.before.load.shut(), pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await offloader.load(keys, range(4))
        assert await at_rest(offloader)
        assert (await offloader.load(keys, range(4))).blocks == 4
        assert device.holds(keys, range(4))

"""What happens at the same time within one call, and that it is bounded."""

from __future__ import annotations

import asyncio

import pytest

from asyncoffload import Offloader
from asyncoffload.offloader.pipeline import Pipeline, Stretch, pipeline
from asyncoffload.types import Status
from tests.offloader.rig import CopyGate, Device, Kept, at_rest, keys_of, only_in_tiers, settings, turns


async def test_while_a_stretch_is_copied_the_next_is_promoted_but_no_more() -> None:
    device, kept, gate = Device(16), Kept(), CopyGate()
    keys = keys_of("ahead", 16)
    plan = settings(device, 16, slice_blocks=1)
    async with Offloader(plan, kv_caches=device.kv_caches, tiers=[kept], handler=gate.handler) as offloader:
        await only_in_tiers(offloader, device, keys)
        with gate.shut():
            loading = asyncio.create_task(offloader.load(keys, range(16)))
            assert list((await kept.tier.before.load.arrival()).keys) == keys[:4]
            await gate.arrived.acquire()
            assert list((await kept.tier.before.load.arrival()).keys) == keys[4:8]
            await turns(50)
            assert not kept.tier.before.load.unseen
            assert device.untouched(range(16))
        assert (await loading).blocks == 16
        assert device.holds(keys, range(16))
        assert await at_rest(offloader)


async def test_blocks_reach_the_device_while_those_behind_them_are_on_their_way() -> None:
    device, kept = Device(8), Kept()
    keys = keys_of("behind", 8)
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches, tiers=[kept]) as offloader:
        await only_in_tiers(offloader, device, keys)
        assert (await offloader.load(keys[:3], range(3))).blocks == 3
        device.poison()
        with kept.tier.before.load.shut():
            loading = asyncio.create_task(offloader.load(keys, range(8)))
            while not device.holds(keys[:3], range(3)):
                await turns(1)
            assert not loading.done()
            assert device.untouched(range(3, 8))
        assert (await loading).blocks == 8
        assert device.holds(keys, range(8))


async def test_two_slices_of_a_store_are_under_way() -> None:
    device, gate = Device(16), CopyGate()
    keys = keys_of("slices", 16)
    plan = settings(device, 16, slice_blocks=4)
    async with Offloader(plan, kv_caches=device.kv_caches, handler=gate.handler) as offloader:
        device.fill(keys, range(16))
        with gate.shut():
            storing = asyncio.create_task(offloader.store(keys, range(16)))
            await gate.arrived.acquire()
            await turns(50)
            assert offloader.stats().primary.writing == 8
        assert (await storing).stored == 16


async def test_a_store_does_not_wait_for_room_that_only_it_can_give_back() -> None:
    device = Device(64)
    keys = keys_of("itself", 64)
    async with Offloader(settings(device, 4), kv_caches=device.kv_caches) as offloader:
        async with asyncio.timeout(30):
            assert (await offloader.store(keys, range(64))).stored == 64
        assert await at_rest(offloader)


async def test_a_stretch_that_fails_takes_the_one_behind_it_along() -> None:
    ended: list[int] = []

    async def move(stretch: Stretch) -> None:
        stretch.secure(1)
        try:
            await turns(3 + stretch.start)
            if stretch.start == 1:
                raise LookupError
        finally:
            ended.append(stretch.start)

    async def run(stretches: Pipeline) -> None:
        for start in range(5):
            await stretches.advance(Stretch((), start))

    with pytest.raises(LookupError):
        async with pipeline(move) as stretches:
            await run(stretches)
    assert ended == [0, 1, 2]


async def test_a_stretch_that_ends_before_it_has_said_anything_has_failed() -> None:
    async def move(stretch: Stretch) -> None:  # noqa: ARG001
        raise LookupError

    stretch = Stretch((), 0)
    with pytest.raises(LookupError):
        async with pipeline(move) as stretches:
            assert (await stretches.advance(stretch)).stopped_by is Status.FAILED

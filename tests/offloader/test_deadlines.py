"""Deadlines end the waiting: a load gives the prefix that made it, a store sheds the rest."""

from __future__ import annotations

import asyncio
import time

import pytest

from asyncoffload import LoadResult, Offloader, RequestContext, StoreResult
from asyncoffload.types import Status
from tests.offloader.rig import CopyGate, Device, Kept, at_rest, keys_of, only_in_tiers, settings, turns


def until(seconds: float) -> RequestContext:
    return RequestContext(deadline=time.monotonic() + seconds)


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 0.002])
async def test_a_load_gives_what_is_there_by_then(seconds: float) -> None:
    device, kept = Device(8), Kept()
    keys = keys_of("late", 8)
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches, tiers=[kept]) as offloader:
        await only_in_tiers(offloader, device, keys)
        assert (await offloader.load(keys[:3], range(3))).blocks == 3
        device.poison()
        with kept.tier.before.load.shut():
            result = await offloader.load(keys, range(8), until(seconds))
            assert result == LoadResult(3, {"CPU": 3}, Status.TIMED_OUT)
            assert device.holds(keys[:3], range(3))
            assert device.untouched(range(3, 8))
        assert await at_rest(offloader)
        assert (await offloader.load(keys, range(8), until(60))).blocks == 8


async def test_a_lookup_answers_with_what_it_knows_by_then() -> None:
    device, kept = Device(8), Kept(hints=False)
    keys = keys_of("look", 8)
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches, tiers=[kept]) as offloader:
        await only_in_tiers(offloader, device, keys)
        assert (await offloader.load(keys[:3], range(3))).blocks == 3
        with kept.tier.before.lookup.shut():
            assert await offloader.lookup(keys, until(0.002)) == 3
        assert await offloader.lookup(keys) == 8
        assert await at_rest(offloader)


async def test_a_store_sheds_what_finds_no_room_by_then() -> None:
    device, gate = Device(16), CopyGate()
    plan = settings(device, 8, slice_blocks=2)
    old, new = keys_of("old", 6), keys_of("new", 6)
    async with Offloader(plan, kv_caches=device.kv_caches, handler=gate.handler) as offloader:
        device.fill(old, range(6))
        await offloader.store(old, range(6))
        device.fill(new, range(6, 12))
        with gate.shut():
            reading = asyncio.create_task(offloader.load(old, range(10, 16)))
            await gate.arrived.acquire()
            storing = asyncio.create_task(offloader.store(new, range(6, 12), until(0.02)))
            await turns()
            while len(offloader._manager._room):
                await turns(1)
        # Two slots were free and the others read from: one slice got in.
        assert await storing == StoreResult(stored=2, present=0, shed=4)
        assert (await reading).blocks == 6
        device.poison()
        assert (await offloader.load(new, range(6))).blocks == 2
        assert device.holds(new[:2], range(2))
        assert await at_rest(offloader)


async def test_a_deadline_in_the_past_stores_what_needs_no_waiting() -> None:
    device = Device(8)
    keys = keys_of("past", 8)
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches) as offloader:
        assert await offloader.store(keys, range(8), until(-1)) == StoreResult(8, 0, 0)
        assert await offloader.store(keys, range(8), until(-1)) == StoreResult(0, 8, 0)

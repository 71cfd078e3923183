"""A load that is handed through layer by layer, from host memory and from a slower tier."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
import torch

from asyncoffload import InvalidArgument, LayerArrival, Offloader, TransferError
from asyncoffload.keys import OffloadKey
from asyncoffload.types import Status
from tests.offloader.rig import CopyGate, Device, Kept, at_rest, keys_of, only_in_tiers, settings, turns

LAYERS = 4


def big_pages(n_blocks: int = 8) -> Device:
    """So large that each layer of four blocks is a copy of its own."""
    return Device(n_blocks, groups=(LAYERS,), shape=(1 << 19,))


async def test_layers_of_blocks_in_host_memory_arrive_in_order_while_the_load_runs() -> None:
    device = big_pages()
    keys = keys_of("layers", 4)
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches) as offloader:
        device.fill(keys, range(4))
        await offloader.store(keys, range(4))
        device.poison()
        arrival = LayerArrival()
        async with asyncio.TaskGroup() as group:
            load = group.create_task(offloader.load(keys, range(4, 8), arrival=arrival))
            coming = await arrival.under_way()
            assert (coming.blocks, coming.stopped_by) == (4, None)
            for layer in range(LAYERS):
                await arrival.layer(layer)
                tensor = device.kv_caches[0][layer]
                assert torch.equal(tensor[4:], _stored(device, keys, layer))
        assert load.result() == coming
        assert device.holds(keys, range(4, 8))
        assert await at_rest(offloader)


async def test_layers_of_blocks_from_a_slower_tier() -> None:
    device, kept = big_pages(), Kept()
    keys = keys_of("slow layers", 8)
    async with Offloader(settings(device, 16), kv_caches=device.kv_caches, tiers=[kept]) as offloader:
        await only_in_tiers(offloader, device, keys)
        arrival = LayerArrival()
        with kept.tier.before.load.shut():
            load = asyncio.create_task(offloader.load(keys, range(8), arrival=arrival))
            waiting = asyncio.create_task(arrival.layer(0))
            await kept.tier.before.load.arrival()
            await turns(50)
            assert not waiting.done()
            assert device.untouched(range(8))
        await waiting
        for layer in range(LAYERS):
            await arrival.layer(layer)
        assert (await load).by_tier == {"gated": 8}
        assert device.holds(keys, range(8))
        assert await at_rest(offloader)


async def test_a_request_larger_than_host_memory_arrives_in_stretches() -> None:
    device, kept = Device(32, groups=(LAYERS,)), Kept()
    keys = keys_of("stretches", 32)
    async with Offloader(settings(device, 4), kv_caches=device.kv_caches, tiers=[kept]) as offloader:
        await only_in_tiers(offloader, device, keys)
        arrival = LayerArrival()
        load = asyncio.create_task(offloader.load(keys, range(32), arrival=arrival))
        await arrival.layer(LAYERS - 1)
        assert device.holds(keys, range(32))
        assert (await load).blocks == 32


async def test_a_prefix_that_ends_early_says_so_before_its_layers_are_there() -> None:
    device, gate = Device(8), CopyGate()
    keys = keys_of("short", 8)
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches, handler=gate.handler) as offloader:
        device.fill(keys, range(8))
        await offloader.store(keys[:3], range(3))
        device.poison()
        arrival = LayerArrival()
        with gate.shut():
            load = asyncio.create_task(offloader.load(keys, range(8), arrival=arrival))
            coming = await arrival.under_way()
            assert (coming.blocks, coming.stopped_by) == (3, Status.MISSING)
            assert device.untouched(range(8))
            assert not load.done()
        await arrival.layer(1)
        assert await load == coming
        assert device.untouched(range(3, 8))


async def test_a_copy_that_fails_is_told_by_the_layer_and_by_the_load() -> None:
    device, gate = Device(8), CopyGate()
    keys = keys_of("failing", 4)
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches, handler=gate.handler) as offloader:
        device.fill(keys, range(4))
        await offloader.store(keys, range(4))
        gate.failing.add("load")
        arrival = LayerArrival()
        load = asyncio.create_task(offloader.load(keys, range(4), arrival=arrival))
        with pytest.raises(TransferError):
            await arrival.layer(0)
        with pytest.raises(TransferError):
            await load
        assert await at_rest(offloader)


async def test_a_cancelled_load_lets_nobody_wait_for_its_layers() -> None:
    device, kept = Device(8), Kept()
    keys = keys_of("cancelled", 4)
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches, tiers=[kept]) as offloader:
        await only_in_tiers(offloader, device, keys)
        arrival = LayerArrival()
        with kept.tier.before.load.shut():
            load = asyncio.create_task(offloader.load(keys, range(4), arrival=arrival))
            waiting = asyncio.create_task(arrival.layer(0))
            await kept.tier.before.load.arrival()
            load.cancel()
            with pytest.raises(asyncio.CancelledError):
                await load
            with pytest.raises(TransferError, match="cancelled"):
                await waiting
        assert await at_rest(offloader)


async def test_an_arrival_serves_one_load_and_says_how_it_is_used() -> None:
    device = Device(8)
    keys = keys_of("once", 2)
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches) as offloader:
        arrival = LayerArrival()
        assert "not passed to a load" in repr(arrival)
        with pytest.raises(InvalidArgument, match="await under_way"):
            arrival.wait(0, None)
        assert (await offloader.load(keys, range(2), arrival=arrival)).blocks == 0
        await arrival.layer(0)
        assert "under way" in repr(arrival)
        with pytest.raises(InvalidArgument, match="make another"):
            await offloader.load(keys, range(2), arrival=arrival)


async def test_leaving_a_layer_that_is_awaited_leaves_the_load_alone() -> None:
    device, gate = Device(8), CopyGate()
    keys = keys_of("left", 4)
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches, handler=gate.handler) as offloader:
        device.fill(keys, range(4))
        await offloader.store(keys, range(4))
        device.poison()
        arrival = LayerArrival()
        with gate.shut():
            load = asyncio.create_task(offloader.load(keys, range(4), arrival=arrival))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await arrival.layer(0)
        assert (await load).blocks == 4
        assert device.holds(keys, range(4))


def _stored(device: Device, keys: Sequence[OffloadKey], layer: int) -> torch.Tensor:
    """What a layer of these keys looks like on the device: it is compared with what was computed."""
    fresh = Device(len(keys), groups=(LAYERS,), shape=tuple(device.kv_caches[0][0].shape[1:]))
    fresh.fill(keys, range(len(keys)))
    return fresh.kv_caches[0][layer]

"""Loads that arrive layer by layer: the order, what each layer tells, and what a failure takes along."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.batch_copy import copy_one_by_one
from asyncoffload.device.cpu import CPUDevice
from asyncoffload.errors import InvalidArgument, TransferError
from asyncoffload.memory.region import HostRegion
from asyncoffload.types import CPULoadStoreSpec, GPULoadStoreSpec, KVGroup, KVLayout
from asyncoffload.workers.addressing import KVAddresses
from asyncoffload.workers.caches import LayerCache
from asyncoffload.workers.device_host import DeviceHostHandler
from asyncoffload.workers.transfers import DeviceHostTransfer

PAGE = 1 << 20
LAYERS = 4
BLOCKS = 2


class Steps:
    """A batch copy that waits for a permit before each copy into a layer, and may fail at one."""

    def __init__(self, caches: list[torch.Tensor]) -> None:
        self._starts = [cache.data_ptr() for cache in caches]
        self._permits = threading.Semaphore(0)
        self.failing_layer: int | None = None
        self.order: list[int] = []

    def __call__(self, batch: CopyBatch) -> None:
        layer = max(index for index, start in enumerate(self._starts) if start <= batch.dst[0])
        assert self._permits.acquire(timeout=30)
        self.order.append(layer)
        if layer == self.failing_layer:
            raise OSError(5, "no")
        copy_one_by_one(batch)

    def permit(self, pieces: int = 1000) -> None:
        self._permits.release(pieces)


class Rig:
    """Four layers of blocks of a mebibyte, and a region whose slots hold other bytes for each layer."""

    def __init__(self, layer_order: list[tuple[int, int]] | None = None) -> None:
        storage = torch.zeros(LAYERS, BLOCKS, PAGE, dtype=torch.uint8)
        self.caches = list(storage.unbind(0))
        self.region = HostRegion(BLOCKS, LAYERS * PAGE)
        self.region.tensor.copy_(torch.arange(1, LAYERS + 1).repeat_interleave(PAGE).to(torch.uint8))
        self.steps = Steps(self.caches)
        layout = KVLayout("m", "uint8", 16, (KVGroup((PAGE,) * LAYERS),))
        # One thread, and pieces as large as a layer's part: a permit is a layer.
        self.handler = DeviceHostHandler(
            [self.caches],
            self.region,
            layout,
            layer_order=layer_order,
            device=CPUDevice(1, batch_copy=self.steps, piece_bytes=BLOCKS * PAGE),
        )

    def load(self, job_id: int = 1) -> DeviceHostTransfer:
        spec = CPULoadStoreSpec(range(BLOCKS)), GPULoadStoreSpec(range(BLOCKS))
        return self.handler.submit(job_id, spec, by_layer=True)

    def arrived(self) -> list[bool]:
        return [bool((cache == layer + 1).all()) for layer, cache in enumerate(self.caches)]

    async def close(self) -> None:
        self.steps.permit()
        await self.handler.aclose()


async def test_each_layer_is_told_when_it_is_there_and_those_behind_it_are_not() -> None:
    rig = Rig()
    try:
        transfer = rig.load()
        for layer in range(LAYERS):
            assert not transfer.layer_event(layer).query()
            rig.steps.permit(1)
            await transfer.layer(layer)
            assert transfer.layer_event(layer).query()
            assert rig.arrived() == [index <= layer for index in range(LAYERS)]
            assert transfer.done() == (layer == LAYERS - 1)
        assert (await transfer).transfer_size == LAYERS * BLOCKS * PAGE
    finally:
        await rig.close()


async def test_layers_come_in_the_order_in_which_the_model_runs_them() -> None:
    rig = Rig(layer_order=[(0, 2), (0, 0), (0, 3), (0, 1)])
    try:
        transfer = rig.load()
        rig.steps.permit(1)
        await transfer.layer(0)
        assert rig.arrived() == [False, False, True, False]
        rig.steps.permit()
        assert (await transfer).success
        assert rig.steps.order == [2, 0, 3, 1]
    finally:
        await rig.close()


async def test_a_layer_that_fails_takes_along_those_behind_it_and_none_before() -> None:
    rig = Rig()
    rig.steps.failing_layer = 1
    try:
        transfer = rig.load()
        rig.steps.permit()
        await transfer.layer(0)
        for layer in range(1, LAYERS):
            with pytest.raises(TransferError, match="no"):
                await transfer.layer(layer)
            with pytest.raises(TransferError, match="no"):
                transfer.layer_event(layer).synchronize()
            with pytest.raises(TransferError, match="no"):
                transfer.layer_event(layer).query()
        result = await transfer
        assert (result.success, result.transfer_size) == (False, 0)
        rig.steps.failing_layer = None
        assert (await rig.handler.transfer(1, (CPULoadStoreSpec([0]), GPULoadStoreSpec([0])))).success
    finally:
        await rig.close()


async def test_an_owner_cancelled_between_two_layers_leaves_with_the_rest_never_started() -> None:
    rig = Rig()
    try:
        transfer = rig.load()
        rig.steps.permit(1)
        await transfer.layer(0)
        owner = asyncio.ensure_future(transfer)
        await asyncio.sleep(0)
        owner.cancel()
        await asyncio.sleep(0)
        rig.steps.permit()
        with pytest.raises(asyncio.CancelledError):
            await owner
        assert not any(rig.region.is_held(slot) for slot in range(BLOCKS))
        assert rig.steps.order in ([0], [0, 1])
        assert rig.arrived()[2:] == [False, False]
        with pytest.raises(TransferError, match="stopped"):
            await transfer.layer(3)
    finally:
        await rig.close()


async def test_waiting_for_a_layer_and_leaving_does_not_touch_the_transfer() -> None:
    rig = Rig()
    try:
        transfer = rig.load()
        waiting = asyncio.create_task(transfer.layer(3))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        rig.steps.permit()
        assert (await transfer).success
    finally:
        await rig.close()


async def test_queued_by_layer_and_taken_back() -> None:
    rig = Rig()
    try:
        first, second = rig.load(1), rig.load(2)
        second.stop()
        assert second.done()
        assert not second.result().success
        rig.steps.permit()
        assert (await first).success
        assert len(rig.steps.order) == LAYERS
    finally:
        await rig.close()


async def test_a_transfer_that_was_not_submitted_by_layer_brings_every_layer_at_its_end() -> None:
    rig = Rig()
    try:
        rig.steps.permit()
        spec = CPULoadStoreSpec([0]), GPULoadStoreSpec([0])
        transfer = rig.handler.submit(1, spec)
        await transfer.layer(0)
        assert transfer.done()
        with pytest.raises(InvalidArgument, match="layer 4 does not exist: there are 4"):
            await transfer.layer(LAYERS)
        with pytest.raises(InvalidArgument, match="layer -1 does not exist"):
            transfer.layer_event(-1)
    finally:
        await rig.close()


def test_small_layers_share_a_part_and_groups_follow_the_order() -> None:
    caches: list[list[LayerCache]] = [
        [torch.zeros(8, 64, dtype=torch.uint8) for _ in range(3)],
        [(torch.zeros(8, 32, dtype=torch.uint8), torch.zeros(8, 32, dtype=torch.uint8)) for _ in range(2)],
    ]
    layout = KVLayout("m", "uint8", 16, (KVGroup((64,) * 3), KVGroup((32,) * 4)))
    order = [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2)]
    addresses = KVAddresses(caches, HostRegion(8, 192), layout, layer_order=order)
    device = GPULoadStoreSpec([0, 1, 5, 6], group_sizes=[2, 2])
    fragments = addresses.load(CPULoadStoreSpec([0, 1, 2, 3]), device)
    assert [(part.end, part.nbytes) for part in fragments.load_by_layer(1)] == [(n, 128) for n in range(1, 6)]
    assert [(part.end, part.nbytes) for part in fragments.load_by_layer(200)] == [(2, 256), (4, 256), (5, 128)]
    assert [(part.end, part.nbytes) for part in fragments.load_by_layer(1 << 20)] == [(5, 640)]
    whole = fragments.load()
    parts = [part.batch() for part in fragments.load_by_layer(1)]
    assert sorted(dst for part in parts for dst in part.dst.tolist()) == sorted(whole.dst.tolist())
    k, v = caches[1][0]
    assert sorted(parts[1].dst.tolist()) == sorted(x.data_ptr() + 32 * block for x in (k, v) for block in (5, 6))


@pytest.mark.parametrize("order", [[(0, 0)], [(0, 0), (0, 0)], [(0, 0), (0, 2)], [(0, 0), (0, 1), (0, 2)]])
def test_an_order_that_does_not_name_each_layer_once_is_refused(order: list[tuple[int, int]]) -> None:
    layout = KVLayout("m", "uint8", 16, (KVGroup((4, 4)),))
    caches = [[torch.zeros(2, 4, dtype=torch.uint8) for _ in range(2)]]
    with pytest.raises(InvalidArgument, match=r"name each pair \(group, layer\) from \(0, 0\) to \(0, 1\) once"):
        KVAddresses(caches, HostRegion(2, 8), layout, layer_order=order)

"""Small transfers are not stuck behind large ones, and what touches the same memory keeps its order all the same."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
import torch

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.batch_copy import copy_one_by_one
from asyncoffload.device.cpu import CPUDevice
from asyncoffload.memory.region import HostRegion
from asyncoffload.types import CPULoadStoreSpec, GPULoadStoreSpec, KVGroup, KVLayout, TransferSpec
from asyncoffload.workers.device_host import DeviceHostHandler

PAGE = 64
BLOCKS = 16
BULK = 4 * PAGE
"""Transfers of five blocks and more are large here."""


class Held:
    """A batch copy that holds up large batches until the test lets them go."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.arrived = threading.Semaphore(0)

    def __call__(self, batch: CopyBatch) -> None:
        if batch.total_bytes > BULK:
            self.arrived.release()
            assert self.free.wait(30)
        copy_one_by_one(batch)


class Rig:
    def __init__(self) -> None:
        self.cache = torch.arange(BLOCKS, dtype=torch.uint8)[:, None].repeat(1, PAGE)
        self.region = HostRegion(BLOCKS, PAGE)
        self.region.tensor.fill_(0xEE)
        self.held = Held()
        layout = KVLayout("m", "uint8", 16, (KVGroup((PAGE,)),))
        device = CPUDevice(3, batch_copy=self.held)
        self.handler = DeviceHostHandler([[self.cache]], self.region, layout, device=device, bulk_bytes=BULK)

    def slots(self) -> list[int]:
        return [int(slot[0]) for slot in self.region.tensor]

    async def close(self) -> None:
        self.held.free.set()
        await self.handler.aclose()


def store(blocks: list[int], slots: list[int]) -> tuple[GPULoadStoreSpec, CPULoadStoreSpec]:
    return GPULoadStoreSpec(blocks), CPULoadStoreSpec(slots)


def load(slots: list[int], blocks: list[int]) -> tuple[CPULoadStoreSpec, GPULoadStoreSpec]:
    return CPULoadStoreSpec(slots), GPULoadStoreSpec(blocks)


@pytest.mark.parametrize("direction", [store, load])
async def test_a_small_transfer_passes_a_large_one(direction: Callable[[list[int], list[int]], TransferSpec]) -> None:
    rig = Rig()
    try:
        large = rig.handler.submit(1, direction(list(range(8)), list(range(8))))
        assert await asyncio.get_running_loop().run_in_executor(None, rig.held.arrived.acquire)
        assert (await rig.handler.transfer(2, direction([9], [9]))).success
        assert not large.done()
        rig.held.free.set()
        assert (await large).success
    finally:
        await rig.close()


async def test_small_ones_that_touch_what_a_large_one_writes_come_after_it() -> None:
    rig = Rig()
    try:
        rig.handler.submit(1, store(list(range(8)), list(range(8))))
        over = rig.handler.submit(2, store([12], [3]))
        back = rig.handler.submit(3, load([5], [15]))
        assert not over.done()
        assert not back.done()
        rig.held.free.set()
        assert (await over).success
        assert (await back).success
        assert rig.slots()[:8] == [0, 1, 2, 12, 4, 5, 6, 7]
        assert int(rig.cache[15][0]) == 5
    finally:
        await rig.close()


async def test_a_large_one_that_touches_what_a_small_one_writes_comes_after_it() -> None:
    rig = Rig()
    try:
        rig.handler.submit(1, store(list(range(8)), list(range(8))))  # holds the small one back
        rig.handler.submit(2, store([12], [3]))
        last = rig.handler.submit(3, store([9] * 5 + [10], [8, 3, 10, 11, 12, 13]))
        rig.held.free.set()
        assert (await last).success
        assert rig.slots()[:4] == [0, 1, 2, 9]
    finally:
        await rig.close()


async def test_equals_of_one_lane_end_in_the_order_of_submission() -> None:
    rig = Rig()
    try:
        rig.held.free.set()
        for job_id in range(200):
            rig.handler.submit(job_id, store([job_id % BLOCKS], [job_id % BLOCKS]))
        await rig.handler.wait(range(200))
        assert [result.job_id for result in rig.handler.get_finished()] == list(range(200))
    finally:
        await rig.close()

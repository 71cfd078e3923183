"""Routing, the bool interface, and asking every handler."""

from __future__ import annotations

import asyncio
import logging

import pytest
import torch

from asyncoffload.device.cpu import CPUDevice
from asyncoffload.errors import InvalidArgument, TransferError
from asyncoffload.memory.region import HostRegion
from asyncoffload.types import CPULoadStoreSpec, GPULoadStoreSpec, KVGroup, KVLayout, LoadStoreSpec
from asyncoffload.workers.device_host import DeviceHostHandler
from asyncoffload.workers.worker import OffloadingWorker

PAGE = 32


class OtherCPUSpec(CPULoadStoreSpec):
    @staticmethod
    def medium() -> str:
        return "OTHER"


class TapeSpec(LoadStoreSpec):
    @staticmethod
    def medium() -> str:
        return "TAPE"


def new_handler() -> DeviceHostHandler:
    cache = torch.arange(8, dtype=torch.uint8)[:, None].repeat(1, PAGE)
    return DeviceHostHandler([[cache]], HostRegion(4, PAGE), KVLayout("m", "uint8", 16, (KVGroup((PAGE,)),)))


def new_worker(handler: DeviceHostHandler) -> OffloadingWorker:
    worker = OffloadingWorker()
    worker.register_handler(GPULoadStoreSpec, CPULoadStoreSpec, handler)
    worker.register_handler(CPULoadStoreSpec, GPULoadStoreSpec, handler)
    return worker


async def test_one_handler_serves_both_directions() -> None:
    worker = new_worker(new_handler())
    try:
        stored = await worker.transfer(1, (GPULoadStoreSpec([1]), CPULoadStoreSpec([2])))
        loaded = await worker.submit(2, (CPULoadStoreSpec([2]), GPULoadStoreSpec([3])))
        assert stored.transfer_type == ("GPU", "CPU")
        assert loaded.transfer_type == ("CPU", "GPU")
        assert len(worker.handlers) == 1
    finally:
        await worker.aclose()


async def test_a_second_handler_for_a_pair_is_refused() -> None:
    worker, other = new_worker(new_handler()), new_handler()
    with pytest.raises(InvalidArgument, match="already serves GPU to CPU"):
        worker.register_handler(GPULoadStoreSpec, CPULoadStoreSpec, other)
    await worker.aclose()
    await other.aclose()


async def test_a_pair_that_nobody_serves_is_refused_by_every_verb() -> None:
    worker = new_worker(new_handler())
    spec = (TapeSpec(), GPULoadStoreSpec([0]))
    message = "no handler serves TAPE to GPU: register one .served: GPU to CPU, CPU to GPU."
    try:
        with pytest.raises(InvalidArgument, match=message):
            worker.submit(1, spec)
        with pytest.raises(InvalidArgument, match=message):
            await worker.transfer(1, spec)
        with pytest.raises(InvalidArgument, match=message):
            worker.transfer_async(1, spec)
    finally:
        await worker.aclose()


async def test_what_a_handler_raises_is_logged_and_becomes_false(caplog: pytest.LogCaptureFixture) -> None:
    worker = new_worker(new_handler())
    bad = (GPULoadStoreSpec([99]), CPULoadStoreSpec([0]))
    try:
        with caplog.at_level(logging.ERROR):
            assert worker.transfer_async(1, bad) is False
        assert "device block 99 does not exist" in caplog.text
        assert worker.transfer_async(2, (GPULoadStoreSpec([1]), CPULoadStoreSpec([0]))) is True
        with pytest.raises(InvalidArgument):
            worker.submit(3, bad)
        await worker.wait([1, 2, 3])
        assert [result.job_id for result in worker.get_finished()] == [2]
    finally:
        await worker.aclose()


def test_driven_in_steps_without_an_event_loop() -> None:
    worker = new_worker(new_handler())
    assert worker.transfer_async(1, (GPULoadStoreSpec([1]), CPULoadStoreSpec([0])))
    assert worker.transfer_async(2, (GPULoadStoreSpec([2]), CPULoadStoreSpec([1])))
    worker.synchronize([2, 1, 77])
    assert [result.job_id for result in worker.get_finished()] == [1, 2]
    assert worker.get_finished() == []
    asyncio.run(worker.aclose())


async def test_wait_asks_every_handler() -> None:
    first, second = new_handler(), new_handler()
    worker = new_worker(first)
    worker.register_handler(GPULoadStoreSpec, OtherCPUSpec, second)
    try:
        first.submit(1, (GPULoadStoreSpec([1]), CPULoadStoreSpec([0])))
        worker.submit(2, (GPULoadStoreSpec([1]), OtherCPUSpec([0])))
        await worker.wait([1, 2])
        assert {result.job_id for result in worker.get_finished()} == {1, 2}
    finally:
        await worker.aclose()


async def test_transfer_raises_what_went_wrong() -> None:
    cache = torch.zeros(1, PAGE, dtype=torch.uint8)

    def broken(_: object) -> None:
        raise OSError(5, "broken")

    layout = KVLayout("m", "uint8", 16, (KVGroup((PAGE,)),))
    handler = DeviceHostHandler([[cache]], HostRegion(1, PAGE), layout, device=CPUDevice(batch_copy=broken))
    worker = new_worker(handler)
    try:
        with pytest.raises(TransferError, match=r"transfer 1 from GPU to CPU failed: .*broken"):
            await worker.transfer(1, (GPULoadStoreSpec([0]), CPULoadStoreSpec([0])))
    finally:
        await worker.aclose()

"""What is refused before anything is launched, and how transfers report themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest
import torch

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.batch_copy import copy_one_by_one
from asyncoffload.device.cpu import CPUDevice
from asyncoffload.errors import (
    ClosedError,
    InvalidArgument,
    TransferError,
    TransferNotFinished,
    WrongLoopError,
)
from asyncoffload.memory.region import HostRegion
from asyncoffload.types import CPULoadStoreSpec, GPULoadStoreSpec, KVGroup, KVLayout, LoadStoreSpec
from asyncoffload.workers.device_host import DeviceHostHandler

PAGE = 64


class TapeSpec(LoadStoreSpec):
    @staticmethod
    def medium() -> str:
        return "TAPE"


def layout(groups: int = 2, factor: int = 2) -> KVLayout:
    return KVLayout("m", "uint8", 16, (KVGroup((PAGE,)),) * groups, block_size_factor=factor)


def caches(groups: int = 2) -> list[list[torch.Tensor]]:
    return [[torch.zeros(8, PAGE, dtype=torch.uint8)] for _ in range(groups)]


def device(ids: Sequence[int], sizes: Sequence[int], indices: Sequence[int] = (0, 0)) -> GPULoadStoreSpec:
    return GPULoadStoreSpec(ids, sizes, indices)


BAD_SPECS: list[tuple[LoadStoreSpec, LoadStoreSpec, str]] = [
    (device([8], [1, 0]), CPULoadStoreSpec([0]), "device block 8 does not exist"),
    (device([0], [1, 0]), CPULoadStoreSpec([4]), "slot 4 does not exist"),
    (device([0, 1, 2], [3, 0]), CPULoadStoreSpec([1, 1]), "slot 1 is a destination twice"),
    (device([0, 0], [1, 1]), CPULoadStoreSpec([1, 1]), "slot 1 is a destination twice"),
    (CPULoadStoreSpec([0]), device([3, 3], [2, 0]), "device block 3 is a destination twice"),
    (CPULoadStoreSpec([9]), device([3], [1, 0]), "slot 9 does not exist"),
    (CPULoadStoreSpec([0]), device([-0, 9], [2, 0]), "device block 9 does not exist"),
    (GPULoadStoreSpec([0]), CPULoadStoreSpec([0]), "has 1 groups, the layout 2"),
    (device([0, 1, 2], [3, 0]), CPULoadStoreSpec([0]), "fill 2 offloaded blocks of 2, but 1 slots"),
    (device([0, 1], [2, 0], [1, 0]), CPULoadStoreSpec([0]), "fill 2 offloaded blocks of 2, but 1 slots"),
    (device([0], [1, 0]), CPULoadStoreSpec([0, 1]), "fill 1 offloaded blocks of 2, but 2 slots"),
    (CPULoadStoreSpec([0]), CPULoadStoreSpec([1]), "not CPU to CPU"),
    (TapeSpec(), device([0], [1, 0]), "not TAPE to GPU"),
]


@pytest.mark.parametrize(("source", "destination", "message"), BAD_SPECS)
async def test_a_bad_spec_is_refused_and_launches_nothing(
    source: LoadStoreSpec, destination: LoadStoreSpec, message: str
) -> None:
    launched: list[CopyBatch] = []
    region = HostRegion(4, 2 * PAGE)
    handler = DeviceHostHandler(caches(), region, layout(), device=CPUDevice(batch_copy=launched.append))
    try:
        with pytest.raises(InvalidArgument, match=message):
            handler.submit(1, (source, destination))
    finally:
        await handler.aclose()
    assert not launched
    assert not any(map(region.is_held, range(4)))


def test_negative_ids_are_refused_even_when_written_into_a_spec_later() -> None:
    handler = DeviceHostHandler(caches(), HostRegion(4, 2 * PAGE), layout())
    spec = device([0], [1, 0])
    spec.block_ids[0] = -1
    with pytest.raises(InvalidArgument, match="device block -1 does not exist"):
        handler.submit(1, (spec, CPULoadStoreSpec([0])))


def test_the_same_block_id_in_two_groups_means_two_blocks() -> None:
    handler = DeviceHostHandler(caches(), HostRegion(4, 2 * PAGE), layout())
    handler.submit(1, (CPULoadStoreSpec([0, 1]), device([3, 3], [1, 1])))
    handler.synchronize([1])
    assert [result.success for result in handler.get_finished()] == [True]
    asyncio.run(handler.aclose())


BAD_CACHES: list[tuple[Callable[[], list[list[torch.Tensor]]], str]] = [
    (lambda: caches(1), "1 groups of KV caches for a layout of 2"),
    (lambda: [[], []], "0 tensors for a layout of 1"),
    (lambda: [[torch.zeros(8, PAGE + 1, dtype=torch.uint8)]] * 2, f"has {PAGE + 1} bytes, the layout says {PAGE}"),
    (lambda: [[torch.zeros(8, PAGE, dtype=torch.int16)]] * 2, f"has {2 * PAGE} bytes, the layout says {PAGE}"),
    (lambda: [[torch.zeros(8, 2 * PAGE, dtype=torch.uint8)[:, ::2]]] * 2, "are not contiguous"),
    (lambda: [[torch.zeros(PAGE, dtype=torch.uint8).expand(8, PAGE)]] * 2, "overlap: 0 bytes apart"),
    (lambda: [[torch.zeros(0, PAGE, dtype=torch.uint8)]] * 2, "the first dimension counts blocks"),
    (lambda: [[torch.zeros(8, PAGE, dtype=torch.uint8, device="meta")]] * 2, "lies on meta"),
]


@pytest.mark.parametrize(("make", "message"), BAD_CACHES)
def test_caches_that_do_not_fit_the_layout_are_refused(
    make: Callable[[], list[list[torch.Tensor]]], message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        DeviceHostHandler(make(), HostRegion(4, 2 * PAGE), layout())


def test_layers_of_one_group_have_the_same_number_of_blocks() -> None:
    two_layers = KVLayout("m", "uint8", 16, (KVGroup((PAGE, PAGE)),))
    uneven = [[torch.zeros(8, PAGE, dtype=torch.uint8), torch.zeros(7, PAGE, dtype=torch.uint8)]]
    with pytest.raises(InvalidArgument, match="has 7 blocks, the first one has 8"):
        DeviceHostHandler(uneven, HostRegion(4, 2 * PAGE), two_layers)


def test_slots_must_hold_an_offloaded_block() -> None:
    with pytest.raises(InvalidArgument, match=f"slots of {PAGE} bytes cannot hold offloaded blocks of {2 * PAGE}"):
        DeviceHostHandler(caches(), HostRegion(4, PAGE), layout())


def test_a_handler_belongs_to_the_first_loop_that_uses_it() -> None:
    handler = DeviceHostHandler(caches(1), HostRegion(4, PAGE), layout(1, 1))

    async def store(job_id: int) -> None:
        await handler.transfer(job_id, (GPULoadStoreSpec([0]), CPULoadStoreSpec([0])))

    asyncio.run(store(1))
    with pytest.raises(WrongLoopError):
        asyncio.run(store(2))
    with pytest.raises(WrongLoopError):
        asyncio.run(handler.aclose())


async def test_a_result_before_the_end_and_an_id_twice_in_flight() -> None:
    held = _Held()
    handler = DeviceHostHandler(caches(1), HostRegion(4, PAGE), layout(1, 1), device=CPUDevice(batch_copy=held))
    spec = (GPULoadStoreSpec([0]), CPULoadStoreSpec([0]))
    try:
        transfer = handler.submit(1, spec)
        with pytest.raises(TransferNotFinished, match="transfer 1 has not ended"):
            transfer.result()
        with pytest.raises(InvalidArgument, match="job 1 is in flight"):
            handler.submit(1, spec)
        held.gate.set_result(None)
        assert (await transfer).success
        assert transfer.result().success
        assert (await handler.submit(1, spec)).success
    finally:
        await handler.aclose()
    with pytest.raises(ClosedError):
        handler.submit(2, spec)


class _Held:
    def __init__(self) -> None:
        from concurrent.futures import Future

        self.gate: Future[None] = Future()

    def __call__(self, batch: CopyBatch) -> None:
        self.gate.result(timeout=30)
        copy_one_by_one(batch)


async def test_a_failing_copy_fails_its_own_transfer_only() -> None:
    cache, region = caches(1), HostRegion(4, PAGE)
    bad_source = cache[0][0].data_ptr() + 3 * PAGE

    def fail_for_block_3(batch: CopyBatch) -> None:
        if bad_source in batch.src:
            raise OSError(5, "broken")
        copy_one_by_one(batch)

    handler = DeviceHostHandler(cache, region, layout(1, 1), device=CPUDevice(batch_copy=fail_for_block_3))
    try:
        outcomes = await asyncio.gather(
            *(handler.transfer(n, (GPULoadStoreSpec([n]), CPULoadStoreSpec([n % 4]))) for n in range(8)),
            return_exceptions=True,
        )
        handler.submit(9, (GPULoadStoreSpec([3]), CPULoadStoreSpec([0])))
        await handler.wait([9])
        (finished,) = handler.get_finished()
    finally:
        await handler.aclose()
    assert [isinstance(outcome, TransferError) for outcome in outcomes] == [n == 3 for n in range(8)]
    assert (finished.job_id, finished.success, finished.transfer_size) == (9, False, 0)
    assert isinstance(finished.error, TransferError)
    assert isinstance(finished.error.__cause__, OSError)
    assert not any(map(region.is_held, range(4)))


async def test_each_result_is_given_once_to_its_owner_or_to_get_finished() -> None:
    handler = DeviceHostHandler(caches(1), HostRegion(8, PAGE), layout(1, 1))
    try:
        transfers = [handler.submit(n, (GPULoadStoreSpec([n]), CPULoadStoreSpec([n]))) for n in range(8)]
        await transfers[4]
        handler.synchronize(range(8))
        await transfers[6]
        assert transfers[2].result().success
        assert [result.job_id for result in handler.get_finished()] == [0, 1, 3, 5, 7]
        assert handler.get_finished() == []
        await handler.wait([0, 99])
    finally:
        await handler.aclose()

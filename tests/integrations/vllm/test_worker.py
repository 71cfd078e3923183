"""The worker's side: every transfer is reported once, a failing one is tried again, a gap is refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.batch_copy import copy_one_by_one
from asyncoffload.device.cpu import CPUDevice
from asyncoffload.errors import InvalidArgument, TransferError
from asyncoffload.memory.region import HostRegion
from asyncoffload.sync.worker import SyncOffloadingWorker
from asyncoffload.types import CPULoadStoreSpec, GPULoadStoreSpec, KVGroup, KVLayout
from asyncoffload.workers.device_host import DeviceHostHandler
from tests.integrations.vllm.stack_rig import device

pytest.importorskip("vllm.v1.kv_offload.base", reason="vLLM is not installed")

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

PAGE, BLOCKS = 64, 8


class Copier:
    """Copies that fail, or wait, when they are told to."""

    def __init__(self) -> None:
        self.failures = 0
        self.calls = 0
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, batch: CopyBatch) -> None:
        assert self.gate.wait(30)
        self.calls += 1
        if self.failures:
            self.failures -= 1
            raise OSError("a copy that fails")
        copy_one_by_one(batch)


class Rig:
    """A worker over one group of one layer."""

    def __init__(self, factor: int) -> None:
        from asyncoffload.integrations.vllm.worker import AsyncOffloadingWorker

        self.copier = Copier()
        self.tensor = torch.arange(BLOCKS * PAGE, dtype=torch.int32).to(torch.uint8).view(BLOCKS, PAGE)
        self.region = HostRegion(BLOCKS, factor * PAGE)
        layout = KVLayout("m", "uint8", 16, (KVGroup((PAGE,)),), block_size_factor=factor)
        handler = DeviceHostHandler([[self.tensor]], self.region, layout, device=CPUDevice(1, batch_copy=self.copier))
        worker = SyncOffloadingWorker()
        worker.register_handler(GPULoadStoreSpec, CPULoadStoreSpec, handler)
        worker.register_handler(CPULoadStoreSpec, GPULoadStoreSpec, handler)
        self.closed = 0
        self.worker = AsyncOffloadingWorker(worker, factor, on_shutdown=self._close)

    def _close(self) -> None:
        self.closed += 1
        self.region.close()


@pytest.fixture
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    rig = Rig(getattr(request, "param", 1))
    yield rig
    rig.copier.gate.set()
    rig.worker.shutdown()
    rig.worker.shutdown()
    assert rig.closed == 1


def slots(*numbers: int) -> Any:
    from asyncoffload.integrations.vllm.slots import Slots

    return Slots(np.array(numbers, dtype=np.int32))


def test_submission_returns_at_once_and_waiting_does_not_consume(rig: Rig) -> None:
    rig.copier.gate.clear()
    assert rig.worker.submit_store(1, device([0, 1]), slots(5, 6))
    assert rig.worker.submit_store(2, device([2]), slots(7))
    assert rig.worker.get_finished() == []
    rig.copier.gate.set()
    rig.worker.wait({1, 2, 77})
    assert bytes(rig.region.slot(6)) == bytes(rig.tensor[1].numpy())
    results = rig.worker.get_finished()
    assert [(result.job_id, result.success, result.transfer_size) for result in results] == [
        (1, True, 2 * PAGE),
        (2, True, PAGE),
    ]
    assert rig.worker.get_finished() == []


def test_a_copy_that_fails_is_tried_again_before_the_wait_for_it_ends(rig: Rig) -> None:
    rig.copier.failures = 2
    assert rig.worker.submit_store(1, device([3]), slots(0))
    rig.worker.wait({1})
    assert rig.copier.calls == 3
    assert bytes(rig.region.slot(0)) == bytes(rig.tensor[3].numpy())
    assert [result.success for result in rig.worker.get_finished()] == [True]


def test_one_that_goes_on_failing_ends_the_engine(rig: Rig) -> None:
    rig.copier.failures = 3
    assert rig.worker.submit_load(9, slots(0), device([3]))
    with pytest.raises(TransferError, match=r"transfer 9 .*Slots\(\[0\]\) failed 3 times.*a copy that fails"):
        rig.worker.wait({9})


def test_one_that_cannot_be_launched_ends_the_engine(rig: Rig) -> None:
    with pytest.raises(TransferError, match=r"transfer 4 .* could not be launched"):
        rig.worker.submit_load(4, slots(BLOCKS), device([3]))


@pytest.mark.parametrize("rig", [2], indirect=True)
def test_a_store_of_parts_of_chunks_is_refused(rig: Rig) -> None:
    for blocks, index, places in (([0, 1], 1, (0, 1)), ([0, 1, 2], 0, (0, 1)), ([0], 0, (0,))):
        with pytest.raises(InvalidArgument, match=r"stores parts of chunks.*leave out blocks_per_chunk"):
            rig.worker.submit_store(1, device(blocks, index), slots(*places))
    assert rig.worker.submit_store(1, device([0, 1, 4, 5], 2), slots(3, 2))
    rig.worker.wait({1})
    assert bytes(rig.region.slot(2)) == bytes(rig.tensor[4:6].numpy())


def test_shutdown_waits_for_what_runs(rig: Rig) -> None:
    rig.copier.gate.clear()
    assert rig.worker.submit_store(1, device([2]), slots(7))
    threading.Timer(0.01, rig.copier.gate.set).start()
    rig.worker.shutdown()
    assert rig.copier.calls == 1

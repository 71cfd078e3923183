"""All ways of copying below the streams of a device: in windows, in pieces, and with a copy that is stopped."""

from __future__ import annotations

from contextlib import closing
from typing import get_args

import numpy as np
import pytest

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.base import Direction
from asyncoffload.device.cuda.device import CudaDevice
from asyncoffload.device.cuda.driver import Driver
from asyncoffload.device.cuda.engines.choice import EngineChoice
from asyncoffload.device.cuda.engines.choosing import Thresholds
from asyncoffload.device.cuda.engines.compiled_kernel import CompiledKernel
from tests.device.cuda.engines.rig import POISON, fake_compiler
from tests.device.cuda.fake import Fake, memory

KIB = 1024
N_PAGES, PAGE = 4096, 2 * KIB
N_COPIES, PAGES_PER_COPY = 40, 100


@pytest.mark.parametrize("direction", get_args(Direction))
def test_copies_of_all_kinds_arrive_through_a_device(fake: Fake, driver: Driver, direction: Direction) -> None:
    size, rng = N_PAGES * PAGE, np.random.default_rng(0)
    compute, device_address, host_address = driver.create_stream(), driver.alloc_device(size), driver.alloc_pinned(size)
    kernel = CompiledKernel(driver, 0, compiler=fake_compiler)
    thresholds = Thresholds(few_fragments=8, long_host_run=16 * KIB)
    choice = EngineChoice(driver, 0, pinned=True, kernel=kernel, thresholds=thresholds, staging_bytes=64 * KIB)
    cuda = CudaDevice(
        0,
        pinned=True,
        driver=driver,
        current_stream=lambda: compute,
        choose=choice,
        window_bytes=128 * KIB,
        piece_bytes=64 * KIB,
    )
    on_device, on_host = memory(device_address, size), memory(host_address, size)
    source, destination = (on_device, on_host) if direction == "store" else (on_host, on_device)
    source[:], destination[:] = rng.integers(0, 256, size, dtype=np.uint8), POISON
    expected = destination.reshape(N_PAGES, PAGE).copy()
    with closing(cuda):
        streams = [cuda.stream("urgent", direction), cuda.stream("bulk", direction)]
        device_pages = rng.permutation(N_PAGES)[: N_COPIES * PAGES_PER_COPY].reshape(N_COPIES, PAGES_PER_COPY)
        host_pages = np.arange(N_COPIES * PAGES_PER_COPY).reshape(N_COPIES, PAGES_PER_COPY)
        copies, events, pages_of_copies = [], [], []
        for i in range(N_COPIES):
            n = int(rng.choice([3, 20, PAGES_PER_COPY]))
            device_side, host_side = device_pages[i, :n], host_pages[i, :n]
            if i % 3 == 1:
                host_side = host_side[rng.permutation(n)]  # no runs
            nbytes = np.full(n, PAGE if i % 4 else PAGE - 4)  # not in words, at times
            if i % 4 == 0:
                nbytes += 4 * (i % 8 == 0)
            device, host = device_address + device_side * PAGE, host_address + host_side * PAGE
            to, places = (
                (host, (host_side, device_side)) if direction == "store" else (device, (device_side, host_side))
            )
            batch = CopyBatch(to, host if direction == "load" else device, nbytes)
            copies.append(streams[i % 2].copy(batch, keep_alive=None))
            events.append(cuda.event())
            events[-1].record(streams[i % 2])
            pages_of_copies.append((*places, int(nbytes[0])))
        stopped = copies[-1]
        streams[(N_COPIES - 1) % 2].stop(stopped)
        for event in events:
            event.synchronize()
        for copy, (to, at, length) in zip(copies, pages_of_copies, strict=True):
            assert copy.ended
            if copy is not stopped:
                assert copy.complete
                expected[to, :length] = source.reshape(N_PAGES, PAGE)[at, :length]
        got = destination.reshape(N_PAGES, PAGE)
        touched_by_stopped = pages_of_copies[-1][0]
        expected[touched_by_stopped] = got[touched_by_stopped]
        assert np.array_equal(got, expected)
        used = {name for name, count in choice.counts().items() if count.batches}
        assert used == ({"batched", "kernel", "staged"} if direction == "load" else {"batched", "kernel"})
    assert choice._descriptors.in_use == 0
    assert fake.count("modules") == 0
    assert fake.count("pinned_allocations") == 1
    assert fake.count("device_allocations") == 1

"""The laws of streams and events on a real device, beside torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
import torch

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.base import Direction
from asyncoffload.device.cuda.copy import CudaCopy
from asyncoffload.device.cuda.device import CudaDevice
from asyncoffload.device.cuda.event import CudaEvent
from asyncoffload.device.cuda.stream import CudaStream
from asyncoffload.errors import InvalidArgument

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]

PAGE = 64 << 10
N_PAGES = 256
SLOW = 200_000_000
"""Cycles of a kernel that does nothing: about a tenth of a second."""


def keep_busy() -> None:
    """Give the current stream a slow kernel."""
    torch.cuda._sleep(SLOW)  # type: ignore[no-untyped-call]


def another_stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


class TorchRig:
    """Pages on both sides as torch allocates them, and a device over them."""

    def __init__(self, *, pinned: bool = True) -> None:
        self.on_device = torch.zeros(N_PAGES, PAGE, dtype=torch.uint8, device="cuda:0")
        self.on_host = torch.zeros(N_PAGES, PAGE, dtype=torch.uint8, pin_memory=pinned)
        torch.cuda.synchronize()
        self.device = CudaDevice(0, pinned=pinned, window_bytes=1 << 20, piece_bytes=256 << 10)

    def batch(self, direction: Direction, pages: list[int], *, part: slice = slice(None)) -> CopyBatch:
        offsets = np.array(pages, dtype=np.int64) * PAGE + (part.start or 0)
        device, host = self.on_device.data_ptr() + offsets, self.on_host.data_ptr() + offsets
        nbytes = np.full(len(pages), (part.stop or PAGE) - (part.start or 0), dtype=np.int64)
        return CopyBatch(host, device, nbytes) if direction == "store" else CopyBatch(device, host, nbytes)

    def submit(self, stream: CudaStream, *pages: int) -> tuple[CudaCopy, CudaEvent]:
        copy = stream.copy(self.batch(stream.direction, list(pages)), keep_alive=self)
        event = self.device.event()
        event.record(stream)
        return copy, event


@pytest.fixture
def rig() -> Iterator[TorchRig]:
    rig = TorchRig()
    with closing(rig.device):
        yield rig


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("fragment", [8, 520, 4096, PAGE])
def test_bytes_go_there_and_back(pinned: bool, fragment: int) -> None:
    rig = TorchRig(pinned=pinned)
    with closing(rig.device):
        rig.on_device.random_(0, 256)
        wanted = rig.on_device.cpu()
        pages, part = torch.randperm(N_PAGES)[:200].tolist(), slice(16, 16 + min(fragment, PAGE - 16))
        for direction in ("store", "load"):
            stream, event = rig.device.stream(direction, direction), rig.device.event()
            copy = stream.copy(rig.batch(direction, pages, part=part), keep_alive=rig)
            event.record(stream)
            event.synchronize()
            assert copy.complete, copy
            if direction == "store":
                rig.on_device.zero_()
        for found in (rig.on_host, rig.on_device.cpu()):
            expected = torch.zeros_like(wanted)
            expected[pages, part] = wanted[pages, part]
            assert torch.equal(found, expected)


def test_a_store_behind_a_slow_kernel_reads_what_comes_after_it(rig: TorchRig) -> None:
    stream = rig.device.stream("stores", "store")
    keep_busy()
    rig.on_device.fill_(7)
    copy, event = rig.submit(stream, *range(0, N_PAGES, 2))
    assert not event.query()
    event.synchronize()
    assert copy.complete
    assert (rig.on_host[::2] == 7).all()


def test_a_load_behind_a_slow_kernel_is_not_seen_by_it(rig: TorchRig) -> None:
    stream = rig.device.stream("loads", "load")
    rig.on_host.fill_(9)
    keep_busy()
    before = rig.on_device.clone()
    _, event = rig.submit(stream, *range(N_PAGES))
    event.synchronize()
    assert (before == 0).all()
    assert (rig.on_device == 9).all()


def test_the_model_can_wait_for_a_load_on_the_device(rig: TorchRig) -> None:
    stores, loads = rig.device.stream("stores", "store"), rig.device.stream("loads", "load")
    rig.on_host.fill_(9)
    after = torch.zeros_like(rig.on_device)
    with torch.cuda.stream(another_stream()):
        keep_busy()
        _, slow = rig.submit(stores, 0)
    loads.wait_for(stores, stores.position)
    _, event = rig.submit(loads, *range(1, 13))  # within the window, so it is launched as a whole
    event.wait(torch.cuda.current_stream())
    after.copy_(rig.on_device)
    assert not slow.query()
    torch.cuda.synchronize()
    assert (after[1:13] == 9).all()
    event.synchronize()


def test_directions_and_streams_do_not_wait_for_each_other(rig: TorchRig) -> None:
    stores, loads = rig.device.stream("stores", "store"), rig.device.stream("loads", "load")
    with torch.cuda.stream(another_stream()):
        keep_busy()
        _, slow = rig.submit(stores, 0)
    _, event = rig.submit(loads, 1)
    event.synchronize()
    assert not slow.query()


def test_a_stop_ends_a_copy_with_what_is_launched(rig: TorchRig) -> None:
    stream = rig.device.stream("stores", "store")
    rig.on_device.fill_(7)
    keep_busy()
    copy, event = rig.submit(stream, *range(N_PAGES))
    stream.stop(copy)
    event.synchronize()
    assert not copy.complete
    assert (rig.on_host[:4] == 7).all()
    assert (rig.on_host[-4:] == 0).all()


def test_copies_are_refused_within_a_capture_and_go_on_beside_it(rig: TorchRig) -> None:
    stream = rig.device.stream("stores", "store")
    static, graph = torch.zeros(16, device="cuda:0"), torch.cuda.CUDAGraph()
    captured, beside = another_stream(), another_stream()
    rig.on_device.fill_(7)
    torch.cuda.synchronize()
    keep_busy()
    _, running = rig.submit(stream, *range(0, N_PAGES, 2))  # more than a window
    with torch.cuda.stream(captured):
        graph.capture_begin()  # in the global mode
        static += 1
        with pytest.raises(InvalidArgument, match="captured into a CUDA graph"):
            rig.submit(stream, 1)
        with pytest.raises(InvalidArgument, match="cannot wait for"):
            running.wait(captured)
        assert not running.query()
        with torch.cuda.stream(beside):
            _, event = rig.submit(stream, 1)
        running.synchronize()
        event.synchronize()
        static += 1
        graph.capture_end()
    graph.replay()
    torch.cuda.synchronize()
    assert (static == 2).all()
    assert (rig.on_host[::2] == 7).all()
    assert (rig.on_host[1] == 7).all()


def test_ten_thousand_copies_take_nothing_of_the_device_s_memory(rig: TorchRig) -> None:
    streams = [rig.device.stream(direction, direction) for direction in ("store", "load")]
    found = []
    for _ in range(10):
        events = [rig.submit(streams[i % 2], i % N_PAGES)[1] for i in range(1000)]
        for event in events:
            event.synchronize()
        found.append((rig.device._shared.marks.made, torch.cuda.mem_get_info(0)[0]))
    assert found[1:] == found[1:2] * 9

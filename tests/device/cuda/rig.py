"""A CUDA device over the fake driver, with memory on both sides, and a plain way of copying that a test can steer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.base import Direction, EngineCount
from asyncoffload.device.cuda.copy import CudaCopy
from asyncoffload.device.cuda.device import CudaDevice
from asyncoffload.device.cuda.driver import Driver
from asyncoffload.device.cuda.event import CudaEvent
from asyncoffload.device.cuda.stream import CudaStream
from tests.device.cuda.fake import Fake, memory

PAGE = 4096
"""What one piece holds in these tests."""

N_PAGES = 64


@dataclass(frozen=True, slots=True)
class Launch:
    """One call of :meth:`PlainLauncher.launch`."""

    stream: int
    direction: Direction
    nbytes: int
    source_final: bool
    thread: int


class CountedReservation:
    def __init__(self, launcher: PlainLauncher) -> None:
        self._launcher = launcher

    def release(self) -> None:
        with self._launcher.releases:
            self._launcher.reserved -= 1
            self._launcher.releases.notify_all()


class PlainLauncher:
    """Queues batches by one call of the driver each, writes down what it did, and calls a hook before it does."""

    def __init__(self, driver: Driver) -> None:
        self.launches: list[Launch] = []
        self.reserved = 0
        self.releases = threading.Condition()
        self.closed = False
        self.before: Callable[[CopyBatch], object] = lambda _: None
        self._driver = driver

    def prepare(self, stream: int, direction: Direction) -> None: ...

    def launch(self, batch: CopyBatch, stream: int, *, direction: Direction, source_final: bool) -> CountedReservation:
        self.launches.append(Launch(stream, direction, batch.total_bytes, source_final, threading.get_ident()))
        self.before(batch)
        self._driver.copy_batch(batch.dst, batch.src, batch.nbytes, stream, source_final=source_final)
        with self.releases:
            self.reserved += 1
        return CountedReservation(self)

    def counts(self) -> Mapping[str, EngineCount]:
        nbytes = sum(launch.nbytes for launch in self.launches)
        return {"plain": EngineCount(len(self.launches), len(self.launches), nbytes)}

    def close(self) -> None:
        self.closed = True


class Rig:
    """One device with :data:`N_PAGES` pages of its own, as many of the host, and a stream of the model's.

    Attributes:
        compute: the driver stream that is the current one of every thread.
        on_device, on_host: the bytes, page by page.
    """

    def __init__(self, fake: Fake, driver: Driver, *, pinned: bool, **options: Any) -> None:
        self.fake = fake
        self.driver = driver
        self.compute = driver.create_stream()
        self.launcher = PlainLauncher(driver)
        self._pageable = np.zeros(0 if pinned else N_PAGES * PAGE, dtype=np.uint8)
        self._device_address = driver.alloc_device(N_PAGES * PAGE)
        self._host_address = driver.alloc_pinned(N_PAGES * PAGE) if pinned else self._pageable.ctypes.data
        self.on_device = memory(self._device_address, N_PAGES * PAGE).reshape(N_PAGES, PAGE)
        self.on_host = memory(self._host_address, N_PAGES * PAGE).reshape(N_PAGES, PAGE)
        self.on_device[:], self.on_host[:] = 0, 0
        settings: dict[str, Any] = {"window_bytes": 4 * PAGE, "piece_bytes": PAGE, "choose": self.launcher} | options
        self.device = CudaDevice(0, pinned=pinned, driver=driver, current_stream=lambda: self.compute, **settings)

    def batch(self, direction: Direction, *pages: int) -> CopyBatch:
        """Copies of whole pages, each to its like on the other side."""
        offsets = np.array(pages, dtype=np.int64) * PAGE
        device, host = self._device_address + offsets, self._host_address + offsets
        nbytes = np.full(len(pages), PAGE, dtype=np.int64)
        return CopyBatch(host, device, nbytes) if direction == "store" else CopyBatch(device, host, nbytes)

    def submit(self, stream: CudaStream, *pages: int) -> tuple[CudaCopy, CudaEvent]:
        """A copy of pages, and the event behind it."""
        copy, event = stream.copy(self.batch(stream.direction, *pages), keep_alive=self), self.device.event()
        event.record(stream)
        return copy, event

    def compute_fills(self, page: int, value: int) -> None:
        """Give the compute stream a kernel that fills a page of the device."""
        self.fake.fill(self.compute, self._device_address + page * PAGE, PAGE, value)

    def fail_copies_to_host(self, page: int, code: int = 719) -> None:
        """Let the device fail when it runs a copy to this page."""
        self.fake.fail_copy_to(self._host_address + page * PAGE, code)

    def all_is_given_back(self) -> bool:
        """Whether, in a moment, no event is in use and nothing is reserved. Nothing may be under way."""
        marks, launcher = self.device._shared.marks, self.launcher
        with marks._lock:
            if not marks._all_back.wait_for(lambda: not marks.lent, 30):
                return False
        with launcher.releases:
            return launcher.releases.wait_for(lambda: not launcher.reserved, 30)

    def pages_run(self, stream: CudaStream) -> list[int]:
        """The pages copied so far in a stream, in the order in which that ended."""
        handle = stream._queue._handle
        base = self._host_address if stream.direction == "store" else self._device_address
        return [(done.dst - base) // PAGE for done in self.fake.executed() if done.stream == handle]

    def hold(self, stream: CudaStream) -> None:
        self.fake.hold(stream._queue._handle)

    def release(self, stream: CudaStream) -> None:
        self.fake.release(stream._queue._handle)

    def step(self, stream: CudaStream, operations: int) -> None:
        self.fake.step(stream._queue._handle, operations)


@contextmanager
def rig_over(fake: Fake, driver: Driver, *, pinned: bool = True, **options: Any) -> Iterator[Rig]:
    """A rig; what is held is released before its device is closed."""
    rig = Rig(fake, driver, pinned=pinned, **options)
    with closing(rig.device):
        try:
            yield rig
        finally:
            fake.release()
            fake.release(rig.compute)

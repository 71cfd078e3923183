"""Scattered fragments in device memory and in pinned host memory, over the fake driver or a real one."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.base import Direction
from asyncoffload.device.cuda.driver import Driver
from asyncoffload.device.cuda.engines.base import CopyEngine
from asyncoffload.device.cuda.engines.choice import EngineChoice
from asyncoffload.device.cuda.engines.compiled_kernel import Code
from tests.device.cuda.fake import memory

POISON = 0xA5
GAP = 64
"""Bytes behind every fragment that no copy may touch."""


class Scattered:
    """Fragments at shuffled places on the device, and in host memory in runs of neighbours.

    Attributes:
        nbytes: of each fragment.
    """

    def __init__(
        self, driver: Driver, nbytes: Sequence[int], *, run: int, skew: int, seed: int, registered: bool
    ) -> None:
        """``run`` fragments lie side by side in host memory; all begin ``skew`` bytes behind a multiple of 16. The host
        memory is the driver's, or was pinned by registration."""
        self.nbytes = np.array(nbytes, dtype=np.int64)
        self._driver = driver
        self._rng = np.random.default_rng(seed)
        room = self.nbytes + skew
        room += -room % 16 + GAP
        order = self._rng.permutation(len(room))
        on_device = np.empty(len(room), dtype=np.int64)
        on_device[order] = np.cumsum(room[order]) - room[order]
        first_of_run = np.arange(len(room)) // run * run
        ends = np.cumsum(self.nbytes)
        within = ends - self.nbytes - (ends - self.nbytes)[first_of_run]
        on_host = (np.cumsum(room) - room)[first_of_run] + within
        self.size = int(room.sum())
        self.device_address = driver.alloc_device(self.size)
        self._mirror_address = driver.alloc_pinned(self.size)
        self._mirror = memory(self._mirror_address, self.size)
        self._mapped = mmap.mmap(-1, self.size) if registered else None
        if self._mapped is None:
            self.host_address = driver.alloc_pinned(self.size)
        else:
            self.host_address = np.frombuffer(self._mapped, dtype=np.uint8).ctypes.data
            driver.register(self.host_address, -(-self.size // mmap.PAGESIZE) * mmap.PAGESIZE)
        self.host = memory(self.host_address, self.size)
        self._on_device, self._on_host = on_device + skew, on_host + skew
        self.stream = driver.create_stream()

    def batch(self, direction: Direction) -> CopyBatch:
        device, host = self.device_address + self._on_device, self.host_address + self._on_host
        return CopyBatch(host, device, self.nbytes) if direction == "store" else CopyBatch(device, host, self.nbytes)

    def fill(self, direction: Direction) -> None:
        """Random bytes at the source, poison at the destination."""
        for is_device in (True, False):
            if is_device == (direction == "store"):
                values = self._rng.integers(0, 256, self.size, dtype=np.uint8)
            else:
                values = np.full(self.size, POISON, dtype=np.uint8)
            self._write(is_device, values)

    def check(self, direction: Direction) -> None:
        """Wait for the stream; every fragment has arrived, and nothing else was touched."""
        self._driver.synchronize_stream(self.stream)
        device, host = self._read(True), self._read(False)
        source, destination = (device, host) if direction == "store" else (host, device)
        at_source, at = (self._on_device, self._on_host) if direction == "store" else (self._on_host, self._on_device)
        expected = np.full(self.size, POISON, dtype=np.uint8)
        for begin, place, nbytes in zip(at_source.tolist(), at.tolist(), self.nbytes.tolist(), strict=True):
            expected[place : place + nbytes] = source[begin : begin + nbytes]
        assert np.array_equal(destination, expected)

    def round_trip(self, engine: CopyEngine | EngineChoice, direction: Direction) -> None:
        """Launch, wait, compare, give back what was reserved."""
        self.fill(direction)
        reservation = engine.launch(self.batch(direction), self.stream, direction=direction, source_final=False)
        self.check(direction)
        if reservation is not None:
            reservation.release()

    def free(self) -> None:
        self._driver.synchronize_stream(self.stream)
        self._driver.destroy_stream(self.stream)
        self._driver.free_device(self.device_address)
        self._driver.free_pinned(self._mirror_address)
        if self._mapped is None:
            self._driver.free_pinned(self.host_address)
        else:
            self._driver.unregister(self.host_address)

    def _write(self, is_device: bool, values: npt.NDArray[np.uint8]) -> None:
        if not is_device:
            self.host[:] = values
            return
        self._mirror[:] = values
        self._driver.copy_one(self.device_address, self._mirror.ctypes.data, self.size, self.stream)
        self._driver.synchronize_stream(self.stream)

    def _read(self, is_device: bool) -> npt.NDArray[np.uint8]:
        if not is_device:
            return self.host.copy()
        self._driver.copy_one(self._mirror.ctypes.data, self.device_address, self.size, self.stream)
        self._driver.synchronize_stream(self.stream)
        return self._mirror.copy()


@contextmanager
def scattered(
    driver: Driver, nbytes: Sequence[int], *, run: int = 8, skew: int = 0, seed: int = 0, registered: bool = False
) -> Iterator[Scattered]:
    fragments = Scattered(driver, nbytes, run=run, skew=skew, seed=seed, registered=registered)
    try:
        yield fragments
    finally:
        fragments.free()


def fake_compiler(capability: int, paired: bool) -> Code:
    """The fake driver takes any image and knows the one kernel."""
    return Code(f"sm_{capability}, {paired}".encode(), "copy_fragments", 0, "")

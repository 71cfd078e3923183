"""A driver with something to copy: the same on the fake device and on a real one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from asyncoffload.device.cuda.driver import Driver
from asyncoffload.types import Int64s
from tests.device.cuda.fake import memory

Bytes = npt.NDArray[np.uint8]


@dataclass
class Machine:
    """A driver, its context, a stream, and the memory that a test has asked for.

    Attributes:
        slow_bytes: so many that the device is still copying them when the next calls have returned.
    """

    driver: Driver
    context: int
    stream: int
    slow_bytes: int
    _pinned: list[int] = field(default_factory=list)
    _on_device: list[int] = field(default_factory=list)

    def pinned(self, nbytes: int, value: int | None = None) -> Bytes:
        """Pinned host memory, of one byte value or random."""
        self._pinned.append(self.driver.alloc_pinned(nbytes))
        array = memory(self._pinned[-1], nbytes)
        array[:] = np.random.default_rng(nbytes).integers(0, 256, nbytes, dtype=np.uint8) if value is None else value
        return array

    def on_device(self, nbytes: int, value: int = 0xEE) -> int:
        """Device memory of one byte value; its address."""
        self._on_device.append(self.driver.alloc_device(nbytes))
        address = self._on_device[-1]
        self.driver.copy_one(address, at(self.pinned(nbytes, value)), nbytes, self.stream)
        self.driver.synchronize_stream(self.stream)
        return address

    def read(self, address: int, nbytes: int) -> Bytes:
        """What device memory holds, once everything in the stream has ended."""
        copy = self.pinned(nbytes, 0)
        self.driver.copy_one(at(copy), address, nbytes, self.stream)
        self.driver.synchronize_stream(self.stream)
        return copy

    def free(self) -> None:
        """Wait for the stream and give everything back."""
        self.driver.synchronize_stream(self.stream)
        for address in self._pinned:
            self.driver.free_pinned(address)
        for address in self._on_device:
            self.driver.free_device(address)
        self.driver.destroy_stream(self.stream)
        self.driver.release_primary_context(0)


def new_machine(driver: Driver, *, slow_bytes: int = 1 << 20) -> Machine:
    """One on the first device, whose context is current on this thread afterwards."""
    context = driver.retain_primary_context(0)
    driver.bind(context)
    return Machine(driver, context, driver.create_stream(), slow_bytes)


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.gpu)])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """On the fake device and, with marker ``gpu``, on a real one."""
    if request.param == "real":
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("torch sees no CUDA device")
        machine = new_machine(Driver(), slow_bytes=256 << 20)
    else:
        machine = new_machine(Driver(request.getfixturevalue("fake").library))
    yield machine
    machine.free()


def at(array: npt.NDArray[Any]) -> int:
    """The address of an array."""
    return int(array.ctypes.data)


def int64s(*values: int) -> Int64s:
    """One array of a batch."""
    return np.array(values, dtype=np.int64)

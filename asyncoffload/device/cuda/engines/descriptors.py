"""What a copy kernel reads to know what to copy: arrays in pinned memory, from a pool of bounded size."""

from __future__ import annotations

import ctypes
import threading
from typing import Final

import numpy as np

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.cuda.driver import Driver
from asyncoffload.errors import CapacityError
from asyncoffload.types import Int64s

CAPACITIES: Final = (128, 512, 2048, 8192)
"""Fragments that a buffer has room for. Three sizes of slack each way keep what is in use close to what is needed."""

MAX_FRAGMENTS: Final = CAPACITIES[-1]
"""The most that one kernel launch copies."""

POOL_BYTES: Final = 16 << 20
"""Pinned memory of a pool: the descriptors of 2.8 GB of transfers in fragments of 4 KiB."""

_SLAB_BYTES: Final = 192 << 10  # a multiple of every buffer's size
_BYTES_PER_FRAGMENT: Final = 24


class Descriptors:
    """Room for the descriptors of one launch; a :class:`~asyncoffload.device.cuda.engines.base.Reservation`.

    Attributes:
        dst, src, words: addresses, and lengths in words of 8 bytes; int64 arrays of shape ``(n,)`` in pinned memory.
    """

    __slots__ = ("_buffer", "_pool", "dst", "n", "src", "words")

    def __init__(self, pool: DescriptorPool, buffer: Int64s, n: int) -> None:
        self._pool: DescriptorPool | None = pool
        self._buffer = buffer
        self.n = n
        self.dst, self.src, self.words = buffer.reshape(3, -1)[:, :n]

    def release(self) -> None:
        """Give the room back, once the kernel has ended; idempotent."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool._give_back(self._buffer)

    def abandon(self) -> None:
        """Keep the room out of use until the pool is closed: nobody will know when what may read it has ended."""
        self._pool = None


class DescriptorPool:
    """Hands out pinned buffers; grows on demand up to a bound, and gives nothing back to the driver before the end.

    Safe on any thread.

    Args:
        max_bytes: the bound. Who finds it reached copies in a way that needs no descriptors.
    """

    def __init__(self, driver: Driver, *, max_bytes: int = POOL_BYTES) -> None:
        self._driver = driver
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._slabs: list[int] = []
        self._free: dict[int, list[Int64s]] = {capacity: [] for capacity in CAPACITIES}
        self._in_use = 0

    def take(self, n: int) -> Descriptors:
        """Room for ``n`` descriptors, 1 to :data:`MAX_FRAGMENTS`.

        Raises:
            CapacityError: the bound is reached.
            DeviceError: the driver has no pinned memory to give.
        """
        capacity = next(capacity for capacity in CAPACITIES if n <= capacity)
        with self._lock:
            free = self._free[capacity]
            if not free:
                self._grow(capacity)
            self._in_use += 1
            return Descriptors(self, free.pop(), n)

    def prepare(self) -> None:
        """Allocate some room of every size now.

        Raises:
            DeviceError: as :meth:`take`.
        """
        with self._lock:
            for capacity, free in self._free.items():
                if not free and self.nbytes + _SLAB_BYTES <= self._max_bytes:
                    self._grow(capacity)

    @property
    def nbytes(self) -> int:
        """Pinned memory held."""
        return len(self._slabs) * _SLAB_BYTES

    @property
    def in_use(self) -> int:
        """Buffers handed out and not given back."""
        return self._in_use

    def close(self) -> None:
        """Give all memory back to the driver, once nothing is in use; idempotent."""
        with self._lock:
            for free in self._free.values():
                free.clear()
            while self._slabs:
                self._driver.free_pinned(self._slabs.pop())

    def __repr__(self) -> str:
        return f"DescriptorPool({self.nbytes} of {self._max_bytes} bytes, {self._in_use} in use)"

    def _grow(self, capacity: int) -> None:
        if self.nbytes + _SLAB_BYTES > self._max_bytes:
            raise CapacityError(f"{self!r} has no room for {capacity} more descriptors: release some first")
        address = self._driver.alloc_pinned(_SLAB_BYTES)
        self._slabs.append(address)
        words = np.ctypeslib.as_array((ctypes.c_int64 * (_SLAB_BYTES // 8)).from_address(address))
        self._free[capacity].extend(words.reshape(-1, capacity * _BYTES_PER_FRAGMENT // 8))

    def _give_back(self, buffer: Int64s) -> None:
        with self._lock:
            self._in_use -= 1
            self._free[len(buffer) * 8 // _BYTES_PER_FRAGMENT].append(buffer)


def cut(batch: CopyBatch, max_bytes: int) -> CopyBatch:
    """The same copies with none longer than ``max_bytes``, in the same order; empty ones are left out."""
    if len(batch) and not batch.nbytes.all():
        some = batch.nbytes != 0
        batch = CopyBatch(batch.dst[some], batch.src[some], batch.nbytes[some])
    longest = int(batch.nbytes.max(initial=0))
    if longest <= max_bytes:
        return batch
    if longest == int(batch.nbytes.min()) and longest % max_bytes == 0:
        offsets = np.arange(0, longest, max_bytes)
        dst, src = ((array[:, np.newaxis] + offsets).ravel() for array in (batch.dst, batch.src))
        return CopyBatch(dst, src, np.full(len(dst), max_bytes, dtype=np.int64))
    parts = -(-batch.nbytes // max_bytes)
    whole = np.repeat(np.arange(len(batch)), parts)
    offset = (np.arange(len(whole)) - np.repeat(np.cumsum(parts) - parts, parts)) * max_bytes
    return CopyBatch(
        batch.dst[whole] + offset, batch.src[whole] + offset, np.minimum(batch.nbytes[whole] - offset, max_bytes)
    )

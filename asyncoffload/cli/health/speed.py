"""How fast the disk is, by block size and by number of threads, as bare threads find it."""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from asyncoffload.cli.fs_bench.raw import BareThreads, RawFiles

BLOCK_SIZES = (64 << 10, 256 << 10, 1 << 20, 4 << 20)
THREAD_COUNTS = (2, 4, 8, 16, 32)

_PAYLOAD_BYTES = 64 << 20
"""Memory that is written over and over."""


@dataclass(frozen=True, slots=True)
class Speed:
    """What bare threads reached, in bytes of payload per second.

    Attributes:
        block_bytes: bytes of a block.
        n_threads: threads that moved them.
        store: written.
        load: read.
    """

    block_bytes: int
    n_threads: int
    store: float
    load: float


class SpeedProbe:
    """Measures a disk below a directory that belongs to the caller.

    Args:
        place: the directory.
        direct: pass by the page cache.
        nbytes: bytes to move in each measurement, at most.
        seconds: how long a measurement takes in each direction, at most.
    """

    def __init__(self, place: str, *, direct: bool, nbytes: int, seconds: float) -> None:
        self._place = os.path.join(place, "speed")
        self._raw = RawFiles(direct=direct)
        self._nbytes, self._seconds = nbytes, seconds
        self._memory = memoryview(mmap.mmap(-1, min(nbytes, _PAYLOAD_BYTES)))
        np.frombuffer(self._memory, np.uint8)[:] = np.frombuffer(
            np.random.default_rng(0).bytes(len(self._memory)), np.uint8
        )

    def by_size(self, sizes: Sequence[int], n_threads: int, progress: Callable[[], None]) -> Iterator[Speed]:
        """The speed with blocks of each size, as each is known."""
        return (self._measure(size, n_threads, progress) for size in sizes)

    def by_threads(self, block_bytes: int, counts: Sequence[int], progress: Callable[[], None]) -> Iterator[Speed]:
        """The speed with each number of threads, as each is known."""
        return (self._measure(block_bytes, count, progress) for count in counts)

    def _measure(self, block_bytes: int, n_threads: int, progress: Callable[[], None]) -> Speed:
        n = max(1, self._nbytes // block_bytes)
        in_memory = max(1, len(self._memory) // block_bytes)
        payloads = [self._memory[i % in_memory * block_bytes :][:block_bytes] for i in range(n)]
        os.mkdir(self._place)
        try:
            paths = [os.path.join(self._place, str(index)) for index in range(n)]
            wrote = BareThreads(n_threads, self._raw.write, paths, payloads, limit=self._seconds).join()
            count = len(wrote.each)
            read = BareThreads(n_threads, self._raw.read, paths[:count], payloads[:count], limit=self._seconds).join()
        finally:
            shutil.rmtree(self._place, ignore_errors=True)  # an error would hide an interrupt
        progress()
        return Speed(block_bytes, n_threads, wrote.bytes_per_second, read.bytes_per_second)

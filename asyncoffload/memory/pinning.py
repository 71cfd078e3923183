"""What the framework asks of whoever pins host memory, and the life of pinned memory.

Pinned memory is what a device reads and writes by itself. Its pages must outlive their use by the device, not only
that by Python: were they unmapped while they are pinned, the device would go on using them when their addresses belong
to somebody else.
"""

from __future__ import annotations

import logging
import mmap
import threading
import time
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from asyncoffload.errors import OffloadError
from asyncoffload.memory.first_touch import first_touch
from asyncoffload.types import Int64s

_log = logging.getLogger(__name__)


class Pinned(Protocol):
    """Memory that was to be pinned, until it is released."""

    @property
    def error(self) -> OffloadError | None:
        """Why the memory is not pinned after all; None: all of it is."""

    @property
    def seams(self) -> Int64s:
        """The addresses within the memory, ascending, that no single copy may cross: where its pieces meet."""

    def release(self) -> None:
        """Undo it, also what is left of a failed attempt. Blocks; nothing may be in flight on the memory.

        Raises:
            OffloadError: some of the memory is still pinned, and has to stay mapped.
        """


class Pinner(Protocol):
    """Pins host memory for a device."""

    def pin(self, address: int, nbytes: int, slot_bytes: int) -> Pinned:
        """Pin all of the memory or, as told by :attr:`Pinned.error`, nothing. Blocks, about 0.1 s per GB.

        Args:
            address: page-aligned, and mapped until the result was released.
            slot_bytes: no slot of that size, counted from ``address`` on, may have a seam inside.
        """


@dataclass(frozen=True, slots=True)
class PinReport:
    """How an attempt at pinning went.

    Attributes:
        nbytes: bytes that were to be pinned.
        touch_threads, touch_seconds: threads that made the pages present first, and how long that took.
        pin_seconds: how long the pinning took after that.
        error: why the memory is pageable; None: it is pinned.
    """

    nbytes: int
    touch_threads: int
    touch_seconds: float
    pin_seconds: float
    error: OffloadError | None

    @property
    def bytes_per_second(self) -> float:
        """The rate of both together."""
        return self.nbytes / max(self.touch_seconds + self.pin_seconds, 1e-9)


_stays_mapped: Final[dict[int, mmap.mmap]] = {}
"""By identity, memory whose addresses must not be given to anybody else."""


def keep_mapped(memory: mmap.mmap) -> None:
    """Let the memory stay mapped without anybody's reference."""
    _stays_mapped[id(memory)] = memory


class MemoryPin:
    """The pinning of one memory: one attempt, and its end. Methods may be called on any thread, and block it."""

    def __init__(self) -> None:
        self.report: PinReport | None = None
        self._lock = threading.Lock()
        self._pinned: Pinned | None = None

    @property
    def holds(self) -> bool:
        """Whether all of the memory is pinned."""
        pinned = self._pinned
        return pinned is not None and pinned.error is None

    @property
    def seams(self) -> Int64s:
        """As :attr:`Pinned.seams`; none where nothing is pinned."""
        pinned = self._pinned
        return np.empty(0, dtype=np.int64) if pinned is None else pinned.seams

    def attempt(
        self, memory: mmap.mmap, nbytes: int, slot_bytes: int, pinner: Pinner, touch_threads: int, *, zeros: bool
    ) -> None:
        """Touch and pin the memory's first ``nbytes``, with a warning where that fails; nothing after the first time.

        Raises:
            CapacityError: the machine has not as much memory as was mapped.
        """
        address = address_of(memory)
        with self._lock:
            if self.report is not None:
                return
            began = time.perf_counter()
            first_touch(address, nbytes, touch_threads, zeros=zeros)
            touched = time.perf_counter()
            keep_mapped(memory)
            self._pinned = pinned = pinner.pin(address, nbytes, slot_bytes)
            ended = time.perf_counter()
            self.report = PinReport(nbytes, touch_threads, touched - began, ended - touched, pinned.error)
            if pinned.error is not None:
                self._release(memory, pinned)
        if pinned.error is not None:
            _log.warning(
                "%d bytes of host memory stay pageable, which makes copies to and from the device several times "
                "slower: %s. Ask for fewer slots, or let this process (its container) lock that much memory",
                nbytes,
                pinned.error,
            )

    def undo(self, memory: mmap.mmap) -> None:
        """Unpin; what stays pinned stays mapped, with a warning. Nothing may be in flight."""
        with self._lock:
            pinned = self._pinned
            failure = None if pinned is None else self._release(memory, pinned)
        if failure is not None:
            _log.warning("%d bytes of host memory stay mapped, for they stay pinned: %s", len(memory), failure)

    def _release(self, memory: mmap.mmap, pinned: Pinned) -> OffloadError | None:
        try:
            pinned.release()
        except OffloadError as error:
            return error
        self._pinned = None
        _stays_mapped.pop(id(memory), None)
        return None

    def forget(self) -> None:
        """There is no such pinning in this process, which was forked from the one that has it."""
        self._lock = threading.Lock()
        self._pinned = self.report = None


def address_of(memory: mmap.mmap) -> int:
    """Where the memory is mapped."""
    return int(np.frombuffer(memory, dtype=np.uint8).ctypes.data)

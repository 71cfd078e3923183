"""Host memory pinned for CUDA devices, by registration in pieces of bounded size."""

from __future__ import annotations

import logging
import math
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np

from asyncoffload.device.cuda.driver import Driver
from asyncoffload.errors import DeviceError
from asyncoffload.types import Int64s

_log = logging.getLogger(__name__)

PIECE_BYTES: Final = 2 << 30
"""Single registrations of 512 GiB fail, and while the driver locks the pages of one, it serves nobody else."""

HALVINGS: Final = 5
"""How often a piece that is refused is halved before its memory counts as not to be had."""

_SHUTTING_DOWN = 4


def piece_unit(slot_bytes: int, page_bytes: int = mmap.PAGESIZE) -> int:
    """The least number of bytes that ends both a slot and a page: what pieces consist of.

    A copy may not leave its registration, so none ends within a slot; and a page belongs to one registration only.
    """
    return math.lcm(slot_bytes, page_bytes)


class CudaPinner:
    """Pins host memory for every CUDA device of this process.

    Args:
        driver: the driver.
        ordinal: the device whose context the registrations belong to; retained while anything is pinned.
        piece_bytes: about how much is registered by one call.
    """

    def __init__(self, driver: Driver, ordinal: int, *, piece_bytes: int = PIECE_BYTES) -> None:
        self._driver = driver
        self._ordinal = ordinal
        self._piece_bytes = piece_bytes

    def pin(self, address: int, nbytes: int, slot_bytes: int) -> CudaPinned:
        """Register the memory in pieces that end with a slot and with a page, or nothing of it.

        Blocks, about 0.1 s per GB where the pages are present, and several times as long otherwise. A piece that the
        driver refuses is tried in halves; if that does not help, all pieces are given back, the last one first, and
        the result says why.

        Args:
            address: page-aligned, and mapped until the result was released.
            nbytes: bytes from there on; they may end within a page, of which nobody else may pin the rest.
            slot_bytes: the slots begin at ``address``.
        """
        pinned = CudaPinned(self._driver, self._ordinal)
        pinned._register(address, nbytes, piece_unit(slot_bytes), self._piece_bytes)
        return pinned

    def __repr__(self) -> str:
        return f"CudaPinner({self._driver!r}, device {self._ordinal})"


class CudaPinned:
    """Registered memory. Made by :meth:`CudaPinner.pin`.

    Attributes:
        error: why nothing is pinned; None: all of it is.
    """

    def __init__(self, driver: Driver, ordinal: int) -> None:
        self.error: DeviceError | None = None
        self._driver = driver
        self._ordinal = ordinal
        self._context = 0
        self._pieces: list[tuple[int, int]] = []
        self._ends: tuple[int, int] = (0, 0)

    @property
    def seams(self) -> Int64s:
        """Addresses, ascending, int64 of shape ``(n,)``, that no copy may cross."""
        borders = {border for start, nbytes in self._pieces for border in (start, start + nbytes)}
        return np.array(sorted(borders.difference(self._ends)), dtype=np.int64)

    @property
    def pieces(self) -> int:
        """How many registrations there are."""
        return len(self._pieces)

    def release(self) -> None:
        """Undo all registrations, the last one first; those that fail can be tried again. Blocks.

        Raises:
            DeviceError: some of the memory is still registered, and must stay mapped.
        """
        failure = self._unregister()
        if failure is not None:
            left = sum(nbytes for _, nbytes in self._pieces)
            raise DeviceError(
                f"{left} bytes of host memory could not be unpinned: {failure}", code=failure.code, lost=failure.lost
            ) from failure

    def __repr__(self) -> str:
        state = f"failed: {self.error}" if self.error else f"{sum(nbytes for _, nbytes in self._pieces)} bytes"
        return f"CudaPinned({state}, {self.pieces} registrations)"

    def _register(self, address: int, nbytes: int, unit: int, piece_bytes: int) -> None:
        self._ends = (address, address + nbytes)
        try:
            self._context = self._driver.retain_primary_context(self._ordinal)
            with self._bound():
                self._register_pieces(address, address + nbytes, unit, piece_bytes)
        except DeviceError as error:
            left = self._unregister()
            also = "" if left is None else f"; what had been pinned of it could not be unpinned: {left}"
            self.error = DeviceError(f"{error}{also}", code=error.code, lost=error.lost)
            self.error.__cause__ = error

    def _register_pieces(self, start: int, end: int, unit: int, piece_bytes: int) -> None:
        piece = _whole_units(piece_bytes, unit)
        least = max(piece_bytes >> HALVINGS, 1)
        while start < end:
            nbytes = min(piece, end - start)
            try:
                self._driver.register(start, nbytes)
            except DeviceError as error:
                smaller = _whole_units(nbytes // 2, unit)
                if error.lost or not least <= smaller < nbytes:
                    raise
                _log.info("a piece of %d bytes was refused, trying %d: %s", nbytes, smaller, error)
                piece = smaller
                continue
            self._pieces.append((start, nbytes))
            start += nbytes

    def _unregister(self) -> DeviceError | None:
        """Give back what can be given back, and the context with the last of it. Returns the first failure."""
        if not self._context:
            return None
        failure: DeviceError | None = None
        try:
            with self._bound():
                for piece in reversed(self._pieces.copy()):
                    try:
                        self._driver.unregister(piece[0])
                    except DeviceError as error:
                        if error.code == _SHUTTING_DOWN:
                            raise
                        failure = failure or error
                    else:
                        self._pieces.remove(piece)
            if not self._pieces:
                self._context = 0
                self._driver.release_primary_context(self._ordinal)
        except DeviceError as error:
            if error.code == _SHUTTING_DOWN:  # the process ends: the driver has let go of everything
                self._pieces.clear()
                self._context = 0
                return None
            failure = failure or error
        return failure

    @contextmanager
    def _bound(self) -> Iterator[None]:
        """Make the context current, and hand the thread back as it was: torch takes the context for its device."""
        previous = self._driver.bind(self._context)
        try:
            yield
        finally:
            self._driver.bind(previous)


def _whole_units(nbytes: int, unit: int) -> int:
    return max(nbytes // unit, 1) * unit

"""Copies by the driver's own calls: many in one call, or one by one. The copy engines of the device perform them."""

from __future__ import annotations

import numpy as np

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.base import Direction
from asyncoffload.device.cuda.driver import MAX_COPIES_PER_CALL, Driver


class BatchedEngine:
    """One driver call for up to :data:`~asyncoffload.device.cuda.driver.MAX_COPIES_PER_CALL` copies.

    A call costs the thread about half a microsecond per copy. The driver never merges neighbours.
    """

    name = "batched"

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def prepare(self, stream: int, direction: Direction) -> None:
        """Nothing to do."""

    def launch(self, batch: CopyBatch, stream: int, *, direction: Direction, source_final: bool) -> None:
        """See :meth:`CopyEngine.launch`; the batch's arrays may be reused at once."""
        # A store's source is what compute writes: read before the stream's waits, it would be stale.
        source_final = source_final and direction == "load"
        for first in range(0, len(batch), MAX_COPIES_PER_CALL):
            part = batch[first : first + MAX_COPIES_PER_CALL]
            dst, src, nbytes = map(np.ascontiguousarray, (part.dst, part.src, part.nbytes))
            self._driver.copy_batch(dst, src, nbytes, stream, source_final=source_final)

    def close(self) -> None:
        """Nothing to free."""

    def __repr__(self) -> str:
        return f"BatchedEngine({self._driver!r})"


class PlainEngine:
    """One asynchronous driver call per copy, about 2 microseconds each; on any driver, from and to any memory."""

    name = "plain"

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def prepare(self, stream: int, direction: Direction) -> None:
        """Nothing to do."""

    def launch(self, batch: CopyBatch, stream: int, *, direction: Direction, source_final: bool) -> None:  # noqa: ARG002
        """See :meth:`CopyEngine.launch`; with pageable host memory it blocks, without the GIL, while bytes move."""
        copy_one = self._driver.copy_one
        for dst, src, nbytes in zip(batch.dst.tolist(), batch.src.tolist(), batch.nbytes.tolist(), strict=True):
            copy_one(dst, src, nbytes, stream)

    def close(self) -> None:
        """Nothing to free."""

    def __repr__(self) -> str:
        return f"PlainEngine({self._driver!r})"

"""A driver stream that takes batches of copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from asyncoffload.core.coalesce import CopyBatch, coalesce
from asyncoffload.device.base import Direction
from asyncoffload.device.cuda.copy import CudaCopy
from asyncoffload.device.cuda.driver import MAX_COPIES_PER_CALL
from asyncoffload.device.cuda.launch_queue import LaunchQueue
from asyncoffload.device.cuda.pools import Mark
from asyncoffload.device.cuda.shared import Shared
from asyncoffload.errors import DeviceError, InvalidArgument, TransferError

_NOTHING: Final = CopyBatch(*(np.empty(0, dtype=np.int64) for _ in range(3)))


class CudaStream:
    """Copies one after the other, in the order of submission. Made by :meth:`CudaDevice.stream`; from any thread.

    Attributes:
        name: for people.
        direction: of all its copies.
    """

    def __init__(self, shared: Shared, name: str, direction: Direction) -> None:
        self.name = name
        self.direction: Direction = direction
        self._shared = shared
        self._queue = LaunchQueue(shared, name, direction)
        self._last = CudaCopy(self._queue, 0)
        self._last._over = True

    @property
    def position(self) -> int:
        """The number of the last copy submitted."""
        return self._last.position

    def copy(self, batch: CopyBatch | Callable[[], CopyBatch], *, keep_alive: object) -> CudaCopy:
        """Queue a batch behind what this stream has, and behind what the calling thread has given to the device.

        The work of the calling thread's current stream so far comes first, on the device; nobody waits for it here.
        What the window has room for is launched before this returns, unless host memory is pageable: then the driver
        may block, and another thread launches.

        Args:
            batch: what to copy, or a function that tells, called on this thread. Nobody else may write the memory
                involved until the copy has ended. A function that fails fails its copy alone.
            keep_alive: owns that memory; referenced until the copy has ended.

        Raises:
            ClosedError: the device was closed.
            InvalidArgument: the thread's current stream is being captured into a graph.
            DeviceError: the device was lost, or the driver cannot mark the current stream. Nothing was queued.
        """
        shared = self._shared
        shared.require_open()
        pieces, error = self._plan(batch)
        caller = shared.current_stream()
        with shared.bound():
            before = self._mark(caller)
            with shared.lock:
                try:
                    shared.require_open()
                except BaseException:
                    shared.marks.give_back(before)
                    raise
                copy = CudaCopy(self._queue, self._last.position + 1, pieces, keep_alive, before)
                copy.error = error
                turn = self._queue.push(copy)
                self._last = copy
            if turn:
                self._queue.launch_ready()
        return copy

    def wait_for(self, other: CudaStream, position: int) -> None:
        """What is submitted from now on starts after the copies of ``other`` up to ``position`` have ended.

        The next copy is kept until they are launched; from then on the device waits.

        Raises:
            InvalidArgument: the other stream belongs to another device.
        """
        if other._shared is not self._shared:
            raise InvalidArgument(f"{self!r} can wait for streams of its own device, not for {other!r}")
        self._queue.wait_for(other._queue, position)

    def withdraw(self, copy: CudaCopy) -> bool:
        """Take a copy back if nothing of it was launched; it has then ended, incomplete. Returns whether it was so."""
        return self._queue.withdraw(copy)

    def stop(self, copy: CudaCopy) -> None:
        """Withdraw the copy or, where some of it was launched, let it end with that."""
        self._queue.stop(copy)

    def __repr__(self) -> str:
        return f"CudaStream({self.name}, {self.direction}, {self.position} copies, {self._queue!r})"

    def _mark(self, caller: int) -> Mark:
        """Mark what the calling thread has given to its stream so far."""
        shared = self._shared
        try:
            if shared.driver.is_capturing(caller):
                raise InvalidArgument(
                    f"the current stream is being captured into a CUDA graph, which a copy in {self.name!r} cannot be "
                    "part of: submit before or after the capture, or under another stream"
                )
            mark = shared.marks.take()
            try:
                shared.driver.record_event(mark.handle, caller)
            except BaseException:
                shared.marks.give_back(mark)
                raise
        except DeviceError as error:
            if error.lost:
                shared.lose(error)
            raise
        return mark

    def _plan(
        self, batch: CopyBatch | Callable[[], CopyBatch]
    ) -> tuple[Sequence[tuple[CopyBatch, int]], TransferError | None]:
        """Cut a batch into pieces. One without copies has a piece, too: it takes its turn as others do."""
        try:
            made = batch if isinstance(batch, CopyBatch) else batch()
            pieces = coalesce(
                made,
                piece_bytes=self._shared.piece_bytes,
                piece_copies=MAX_COPIES_PER_CALL,
                seams=self._shared.seams,
            )
            pieces = pieces or (made,)
            return [(piece, piece.total_bytes) for piece in pieces], None
        except Exception as cause:
            error = TransferError(f"a copy failed: {cause}")
            error.__cause__ = cause
            return [(_NOTHING, 0)], error

"""Streams, copies and events of the CPU as a device: the surface of their CUDA kin, and what belongs to each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.errors import TransferError

if TYPE_CHECKING:
    from asyncoffload.device.cpu import CPUDevice


class Copy:
    """A batch of copies in a stream.

    Attributes:
        position: its number in the stream, from 1.
        ended: nothing touches its memory any more, and nothing will.
        complete: every byte was copied.
        error: why a part of it failed.
        ended_at: seconds of the device's clock, once ended.
    """

    def __init__(self, position: int, make_batch: Callable[[], CopyBatch] | None, keep_alive: object = None) -> None:
        self.position = position
        self.ended = False
        self.error: TransferError | None = None
        self.ended_at = 0.0
        self._waiting_for: tuple[tuple[CPUStream, int], ...] = ()
        self._make_batch = make_batch
        self._pieces: Sequence[CopyBatch] | None = None  # until a thread has planned them
        self._keep_alive = keep_alive
        self._given_out = 0
        self._copied = 0
        self._running = 0
        self._stopped = False

    @property
    def complete(self) -> bool:
        return self.ended and self._pieces is not None and self._copied == len(self._pieces)

    @property
    def started(self) -> bool:
        """Whether a thread was given any part of it to copy."""
        return self._given_out > 0

    def __repr__(self) -> str:
        state = "ended" if self.ended else f"{self._copied} of {len(self._pieces or ()) or '?'} pieces"
        return f"Copy({self.position}, {state}{f', {self.error}' if self.error else ''})"


class CPUStream:
    """Copies one after the other, in the order of submission. Made by :meth:`CPUDevice.stream`."""

    def __init__(self, device: CPUDevice, name: str) -> None:
        self.name = name
        self._device = device
        self._queue: deque[Copy] = deque()
        self._last = Copy(0, None)
        self._last.ended = True
        self._waits: list[tuple[CPUStream, int]] = []

    @property
    def position(self) -> int:
        """The number of the last copy submitted."""
        return self._last.position

    def copy(self, batch: CopyBatch | Callable[[], CopyBatch], *, keep_alive: object) -> Copy:
        """Queue a batch.

        Args:
            batch: what to copy. Nobody else may write the memory involved until the copy has ended. Or a function
                that tells: a thread of the device calls it, and the caller is spared some tens of microseconds.
            keep_alive: owns that memory; referenced until the copy has ended.

        Raises:
            ClosedError: the device was closed.
        """
        return self._device._submit(self, batch, keep_alive)

    def wait_for(self, other: CPUStream, position: int) -> None:
        """What is submitted from now on starts after the copies of ``other`` up to ``position`` have ended."""
        self._waits.append((other, position))

    def withdraw(self, copy: Copy) -> bool:
        """Take a copy back if it has not started; it then has ended, incomplete. Returns whether that was so."""
        return self._device._withdraw(self, copy)

    def stop(self, copy: Copy) -> None:
        """Withdraw the copy or, where it runs, let it end after the pieces that are running now."""
        self._device._stop(self, copy)

    def __repr__(self) -> str:
        return f"CPUStream({self.name}, {len(self._queue)} of {self.position} copies to go)"

    def _has_passed(self, position: int) -> bool:
        return not self._queue or self._queue[0].position > position

    def _head(self) -> Copy | None:
        """The oldest copy if a thread may take a piece of it now."""
        if not self._queue:
            return None
        head = self._queue[0]
        if head._stopped or (head._running > 0 if head._pieces is None else head._given_out == len(head._pieces)):
            return None
        return head if all(stream._has_passed(position) for stream, position in head._waiting_for) else None


class CPUEvent:
    """A mark behind the last copy of a stream, with the surface of ``torch.cuda.Event``.

    It has passed when that copy has ended; a copy that was withdrawn ends at once, whatever lies before it.
    """

    def __init__(self) -> None:
        self._stream: CPUStream | None = None
        self._copy: Copy | None = None

    def record(self, stream: CPUStream) -> None:
        """Mark everything submitted to the stream so far."""
        self._stream, self._copy = stream, stream._last

    def query(self) -> bool:
        """Whether the marked copy has ended; True when nothing was recorded.

        Raises:
            TransferError: it has ended by failing.
        """
        copy = self._copy
        if copy is None:
            return True
        if copy.ended and copy.error is not None:
            raise copy.error
        return copy.ended

    def synchronize(self) -> None:
        """Block the thread, without the GIL, until the marked copy has ended.

        Raises:
            TransferError: it has ended by failing.
        """
        if self._stream is not None and self._copy is not None:
            self._stream._device._join(self._copy)
        self.query()

    def wait(self, stream: CPUStream) -> None:
        """Make what is submitted to ``stream`` from now on start after the marked copy."""
        if self._stream is not None and self._copy is not None:
            stream.wait_for(self._stream, self._copy.position)

    def __repr__(self) -> str:
        return f"CPUEvent({self._copy!r})"

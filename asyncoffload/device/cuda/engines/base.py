"""What a stream asks of a way of copying."""

from __future__ import annotations

from typing import Protocol

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.base import Direction


class Reservation(Protocol):
    """Memory that queued copies read while they run."""

    def release(self) -> None:
        """Give it back. Only once the copies have ended, whether well or not; idempotent, on any thread."""


class CopyEngine(Protocol):
    """One way to copy. Calls come from any thread, with the device's context current, for one stream one at a time."""

    @property
    def name(self) -> str:
        """``"batched"``, ``"plain"``, ``"kernel"``, ``"staged"`` or ``"torch"``."""

    def prepare(self, stream: int, direction: Direction) -> None:
        """Allocate and compile what copies in this stream will need, while nothing is in a hurry.

        Raises:
            DeviceError: the device or its driver refuses.
        """

    def launch(self, batch: CopyBatch, stream: int, *, direction: Direction, source_final: bool) -> Reservation | None:
        """Queue all copies of a batch in a stream, without waiting for any.

        Args:
            stream: the driver's handle; not the legacy stream.
            direction: which side of the copies is the device.
            source_final: the source may be read before what is queued ahead in the stream has ended. Engines are free
                to make no use of it.

        Returns:
            What the caller releases once the copies have ended; None where they need nothing.

        Raises:
            CapacityError: what the copies need is all in use; nothing was queued.
            DeviceError: the driver refuses a call. Some of the copies may be queued; queueing the whole batch again
                in this stream, in any way, sets it right.
        """

    def close(self) -> None:
        """Free what the engine holds, once all its copies have ended; idempotent."""

"""What a handler asks of a device: streams of batched copies, and events that mark them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.events import DeviceEvent
from asyncoffload.errors import TransferError

Direction = Literal["store", "load"]
"""From the device to host memory, or back."""


class Copy(Protocol):
    """A batch of copies in a stream."""

    @property
    def position(self) -> int:
        """Its number in the stream, from 1."""

    @property
    def started(self) -> bool:
        """Whether any of it was given to the device."""

    @property
    def ended(self) -> bool:
        """Whether nothing touches its memory any more, and nothing will. May ask the device."""

    @property
    def complete(self) -> bool:
        """Whether every byte was copied."""

    @property
    def error(self) -> TransferError | None:
        """Why a part of it failed."""

    @property
    def ended_at(self) -> float:
        """Seconds of the device's clock, once ended."""


class CopyStream(Protocol):
    """Copies one after the other, in the order of submission. Made by :meth:`CopyDevice.stream`."""

    @property
    def position(self) -> int:
        """The number of the last copy submitted."""

    def copy(self, batch: CopyBatch | Callable[[], CopyBatch], *, keep_alive: object) -> Any:
        """Queue a batch behind what this stream has, and behind what the calling thread has given to the device.

        Args:
            batch: what to copy, or a function that tells. Nobody else may write the memory involved until the copy
                has ended.
            keep_alive: owns that memory; referenced until the copy has ended.

        Returns:
            A :class:`Copy`.

        Raises:
            ClosedError: the device was closed.
            InvalidArgument: the calling thread is in a state in which nothing can be submitted; it says which.
        """

    def wait_for(self, other: Any, position: int) -> None:
        """What is submitted from now on starts after the copies of ``other``, of this device, up to ``position``."""

    def withdraw(self, copy: Any) -> bool:
        """Take a copy back if it has not started; it then has ended, incomplete. Returns whether that was so."""

    def stop(self, copy: Any) -> None:
        """Withdraw the copy or, where it runs, let it end with what runs of it now."""


@dataclass(frozen=True, slots=True)
class EngineCount:
    """What one way of copying has done.

    Attributes:
        batches, fragments, nbytes: calls, contiguous copies within them, bytes moved.
    """

    batches: int = 0
    fragments: int = 0
    nbytes: int = 0


class CopyDevice(Protocol):
    """Copies between the blocks of one device and host memory."""

    def reaches(self, device: torch.device) -> bool:
        """Whether it copies from and to the memory of tensors on this device of torch's."""

    def stream(self, name: str, direction: Direction) -> Any:
        """A new :class:`CopyStream` for copies of one direction."""

    def event(self) -> DeviceEvent:
        """A new event, to be recorded in a stream of this device: it marks the last copy submitted there."""

    def close(self) -> None:
        """Withdraw what has not started and free everything; idempotent.

        Blocks until what runs has ended: let the copies end first.
        """

    def engines(self) -> Mapping[str, EngineCount]:
        """The ways of copying by name, and what each has done so far."""

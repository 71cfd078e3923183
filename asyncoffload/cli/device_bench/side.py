"""What the measurements need of the device they are made on; :mod:`cpu_side` and :mod:`cuda_side` have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from asyncoffload.device.base import CopyDevice, Direction
from asyncoffload.device.events import DeviceEvent
from asyncoffload.memory.region import HostRegion, PinReport


class RawCopies(Protocol):
    """The fastest single copies there are, of a fixed number of bytes; each call returns when the bytes are there."""

    def one(self, direction: Direction) -> None:
        """One contiguous copy."""

    def both(self) -> None:
        """One in each direction at once."""


class Span(Protocol):
    """Some steps of the compute."""

    def ended(self) -> bool:
        """Whether they have ended."""

    def seconds(self) -> float:
        """How long they took on the device; blocks until they have ended."""


class Compute(Protocol):
    """What stands for the model: matrix products, one after the other, on a stream of their own."""

    def start(self, steps: int) -> Span:
        """So many products; on a device this returns at once."""

    def wait_for(self, event: DeviceEvent) -> None:
        """What is started from now on begins after the event."""


class Ends(Protocol):
    """Tells when transfers of one handler had ended, on the clock of :func:`time.perf_counter`."""

    def mark(self, event: DeviceEvent) -> None:
        """The next transfer to be asked about was just submitted and ends with this event."""

    def ended_at(self) -> float:
        """Seconds; the transfer has ended."""


class Side(Protocol):
    """A device."""

    kind: str
    """``"cpu"`` or ``"cuda"``."""

    raw_name: str
    """What :meth:`raw` does, as in ``0.95 x memcpy``."""

    def facts(self) -> Mapping[str, str]:
        """What machine this is, by name."""

    def tensor(self, *shape: int) -> torch.Tensor:
        """A new uint8 tensor on the device."""

    def region(self, n_slots: int, slot_bytes: int) -> HostRegion:
        """Host memory as fit for the device as can be, with every page touched."""

    def copy_device(
        self, engine: str | None = None, *, caches: Sequence[torch.Tensor] = (), region: HostRegion | None = None
    ) -> CopyDevice:
        """What a handler of these caches and this region copies with: by one engine only, or by its own choice."""

    def engine_names(self) -> Sequence[str]:
        """The engines that there are."""

    def reason(self, device: CopyDevice, direction: Direction, engine: str) -> str:
        """Why the device chose this engine the last time it did."""

    def settle(self) -> None:
        """Block until the device has nothing to do for this thread."""

    def raw(self, nbytes: int) -> AbstractContextManager[RawCopies]:
        """Copies to compare with."""

    def compute(self, size: int) -> AbstractContextManager[Compute]:
        """Products of square matrices of this many rows."""

    def ends(self, caches: Sequence[torch.Tensor], region: HostRegion) -> tuple[CopyDevice, Ends]:
        """A device to copy with, and what tells when its copies ended."""

    def pin(self, nbytes: int, *, touch: bool) -> PinReport:
        """Pin fresh memory and give it back.

        Args:
            touch: let several threads touch its pages first.

        Raises:
            OffloadError: it cannot be pinned.
        """

    def close(self) -> None:
        """Free what was opened for all measurements."""

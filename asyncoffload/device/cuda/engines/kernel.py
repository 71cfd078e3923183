"""Copies by a kernel that reads or writes host memory over the link: one launch for thousands of small fragments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.base import Direction
from asyncoffload.device.cuda.engines.base import Reservation
from asyncoffload.device.cuda.engines.descriptors import MAX_FRAGMENTS, DescriptorPool, Descriptors, cut
from asyncoffload.errors import InvalidArgument
from asyncoffload.types import Int64s

WORD_BYTES: Final = 8


class FragmentKernel(Protocol):
    """Copies fragments between any addresses that the device can reach."""

    max_fragment_bytes: int
    """The longest fragment it takes, a multiple of 16."""

    def warm_up(self) -> None:
        """Compile, load and try it; blocks. Idempotent.

        Raises:
            DeviceError: it cannot be used on this device.
        """

    def launch(self, descriptors: Descriptors, stream: int, *, paired: bool, in_device_memory: bool) -> None:
        """Queue the copies in a stream. They read the descriptors while they run.

        Args:
            paired: all addresses and lengths are multiples of 16 bytes.
            in_device_memory: both sides of all copies are.

        Raises:
            DeviceError: the driver refuses; nothing was queued.
        """

    def close(self) -> None:
        """Free it, once nothing of it runs; idempotent."""


class KernelEngine:
    """Gather and scatter between device memory and pinned host memory by a kernel.

    Takes addresses and lengths that are multiples of 8 bytes, on pinned memory whose address is the same on the
    device.
    """

    name = "kernel"

    def __init__(self, kernel: FragmentKernel, descriptors: DescriptorPool) -> None:
        self._kernel = kernel
        self._descriptors = descriptors

    def prepare(self, stream: int, direction: Direction) -> None:  # noqa: ARG002
        """Compile and load the kernel, allocate descriptors; blocks."""
        self._kernel.warm_up()
        self._descriptors.prepare()

    def launch(self, batch: CopyBatch, stream: int, *, direction: Direction, source_final: bool) -> Reservation | None:  # noqa: ARG002
        """See :meth:`CopyEngine.launch`.

        Raises:
            InvalidArgument: an address or a length is not a multiple of 8; nothing was queued.
        """
        require_words(batch)
        fragments = cut(batch, self._kernel.max_fragment_bytes)
        parts = [fragments[first : first + MAX_FRAGMENTS] for first in range(0, len(fragments), MAX_FRAGMENTS)]
        reservation = Launches(self._descriptors, parts)
        with reservation:
            for descriptors, part in zip(reservation.descriptors, parts, strict=True):
                paired = fill(descriptors, part.dst, part.src, part.nbytes)
                self._kernel.launch(descriptors, stream, paired=paired, in_device_memory=False)
                reservation.one_queued()
        return reservation

    def close(self) -> None:
        """Nothing to free: the kernel and the descriptors belong to whoever made them."""

    def __repr__(self) -> str:
        return f"KernelEngine({self._kernel!r}, {self._descriptors!r})"


class Launches:
    """The descriptors of the launches of one batch, a :class:`~asyncoffload.device.cuda.engines.base.Reservation`.

    A ``with`` block that is left with an error gives them back, except those that something queued will read: nobody
    will know when, so they stay out of use until the pool is closed.

    Raises:
        CapacityError: there is no room for all of them; none is taken.
    """

    def __init__(self, pool: DescriptorPool, parts: Sequence[CopyBatch]) -> None:
        self.descriptors: list[Descriptors] = []
        self._queued = 0
        try:
            for part in parts:
                self.descriptors.append(pool.take(len(part)))
        except BaseException:
            self.release()
            raise

    def one_queued(self) -> None:
        """The next of the launches was queued."""
        self._queued += 1

    def release(self) -> None:
        """See :meth:`Reservation.release`."""
        for descriptors in self.descriptors:
            descriptors.release()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is not None:
            for descriptors in self.descriptors[: self._queued]:
                descriptors.abandon()
            self.release()


def require_words(batch: CopyBatch) -> None:
    """Refuse what a kernel that moves words cannot copy.

    Raises:
        InvalidArgument: an address or a length is not a multiple of 8.
    """
    if not in_words(batch):
        raise InvalidArgument(
            "a kernel copies words of 8 bytes, and an address or a length of this batch is no multiple of 8: "
            "use driver copies"
        )


def in_words(batch: CopyBatch) -> bool:
    """Whether all addresses and lengths are multiples of 8 bytes."""
    return not _low_bits(batch.dst, batch.src, batch.nbytes) % WORD_BYTES


def fill(descriptors: Descriptors, dst: Int64s, src: Int64s, nbytes: Int64s) -> bool:
    """Write the descriptors of copies; returns whether all addresses and lengths are multiples of 16."""
    descriptors.dst[:], descriptors.src[:] = dst, src
    np.right_shift(nbytes, 3, out=descriptors.words)
    return not _low_bits(dst, src, nbytes) % (2 * WORD_BYTES)


def _low_bits(*arrays: Int64s) -> int:
    return int(np.bitwise_or.reduce([np.bitwise_or.reduce(array) if len(array) else 0 for array in arrays]))

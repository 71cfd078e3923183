"""Copies of long host runs to or from a buffer on the device, and a kernel that spreads or gathers them there.

The link then carries a few large copies, at its full speed, and the many small ones stay in device memory, which is
twenty times as fast. It pays where fragments that are scattered on the device lie side by side in host memory.

A load reads ahead: while the kernel spreads one part, the copy engine fetches the next. It may, since what it writes
is a buffer that nobody else knows; only the kernel touches the pages, in the order of the stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.base import Direction
from asyncoffload.device.cuda.driver import Driver
from asyncoffload.device.cuda.engines.base import CopyEngine, Reservation
from asyncoffload.device.cuda.engines.descriptors import MAX_FRAGMENTS, DescriptorPool, cut
from asyncoffload.device.cuda.engines.kernel import FragmentKernel, Launches, fill, require_words
from asyncoffload.device.cuda.engines.staging import Lanes
from asyncoffload.types import Int64s

STAGING_BYTES: Final = 17 << 20
"""A piece of 16 MiB, and the fragment by which it may be longer."""

_NOWHERE: Final[Int64s] = np.empty(0, dtype=np.int64)


@dataclass(slots=True, eq=False)
class _Stage:
    """A part of a batch that fits into the buffer: its copies over the link, and those within device memory."""

    host: CopyBatch
    device: CopyBatch


class StagedEngine:
    """Staged copies: two buffers of device memory for each stream, used in turns.

    Takes addresses and lengths that are multiples of 8 bytes.

    Args:
        runs: copies the host runs.
        staging_bytes: size of each of the two buffers of a stream; what is longer goes through it in turns.
        seams: where host memory that neighbours other host memory was pinned apart from it: no copy crosses.
    """

    name = "staged"

    def __init__(
        self,
        driver: Driver,
        kernel: FragmentKernel,
        descriptors: DescriptorPool,
        runs: CopyEngine,
        *,
        staging_bytes: int = STAGING_BYTES,
        seams: Iterable[int] = (),
    ) -> None:
        self._kernel = kernel
        self._descriptors = descriptors
        self._runs = runs
        self._lanes = Lanes(driver, staging_bytes)
        self._seams = np.array(sorted(map(int, seams)), dtype=np.int64)

    def prepare(self, stream: int, direction: Direction) -> None:  # noqa: ARG002
        """Compile the kernel, allocate descriptors and the stream's buffers; blocks."""
        self._kernel.warm_up()
        self._descriptors.prepare()
        self._lanes.of(stream)

    def launch(self, batch: CopyBatch, stream: int, *, direction: Direction, source_final: bool) -> Reservation | None:
        """See :meth:`CopyEngine.launch`.

        Raises:
            InvalidArgument: an address or a length is not a multiple of 8; nothing was queued.
        """
        require_words(batch)
        fragments = cut(batch, self._kernel.max_fragment_bytes)
        lane = self._lanes.of(stream)
        parts = split(fragments, max_bytes=self._lanes.slot_bytes, max_fragments=MAX_FRAGMENTS)
        slots = lane.slots(len(parts))
        stages = [_staged(part, slot.address, direction, self._seams) for part, slot in zip(parts, slots, strict=True)]
        reservation = Launches(self._descriptors, [stage.device for stage in stages])
        with reservation:
            for descriptors, stage, slot in zip(reservation.descriptors, stages, slots, strict=True):
                within, host = stage.device, stage.host
                paired = fill(descriptors, within.dst, within.src, within.nbytes)
                if direction == "load":
                    fetch = partial(self._runs.launch, host, direction=direction, source_final=False)
                    # What was queued before this batch is waited for once: its parts need not wait for each other.
                    lane.fill_ahead(slot, stream, fetch, at_once=source_final or stage is not stages[0])
                    self._kernel.launch(descriptors, stream, paired=paired, in_device_memory=True)
                    reservation.one_queued()
                else:
                    self._kernel.launch(descriptors, stream, paired=paired, in_device_memory=True)
                    reservation.one_queued()
                    self._runs.launch(host, stream, direction=direction, source_final=False)
                lane.empties(slot, stream)
        return reservation

    @property
    def nbytes(self) -> int:
        """Device memory held."""
        return self._lanes.nbytes

    def close(self) -> None:
        """Free the buffers; idempotent. Blocks until the device has come to rest."""
        self._lanes.close()

    def __repr__(self) -> str:
        return f"StagedEngine({self.nbytes} bytes of buffers, {self._kernel!r})"


def split(batch: CopyBatch, *, max_bytes: int, max_fragments: int) -> Sequence[CopyBatch]:
    """Cut a batch between its copies into parts of bounded size; no copy may be longer than ``max_bytes``."""
    ends, parts, first = np.cumsum(batch.nbytes), [], 0
    while first < len(batch):
        before = int(ends[first - 1]) if first else 0
        last = min(int(np.searchsorted(ends, before + max_bytes, side="right")), first + max_fragments)
        parts.append(batch[first:last])
        first = last
    return parts


def host_runs(host: Int64s, nbytes: Int64s, seams: Int64s = _NOWHERE) -> Int64s:
    """The indices at which runs of neighbouring host memory begin, in the order given: int64 of shape ``(runs,)``.

    Args:
        host: addresses, shape ``(n,)``.
        nbytes: lengths, shape ``(n,)``.
        seams: ascending addresses at which a run ends even where its neighbour follows.
    """
    if not len(host):
        return _NOWHERE
    begins = np.empty(len(host), dtype=np.bool_)
    begins[0] = True
    np.not_equal(host[1:], host[:-1] + nbytes[:-1], out=begins[1:])
    if len(seams):
        within = np.searchsorted(seams, host, side="right")
        begins[1:] |= within[1:] != within[:-1]
    return np.flatnonzero(begins)


def _staged(part: CopyBatch, buffer: int, direction: Direction, seams: Int64s) -> _Stage:
    places = buffer + np.cumsum(part.nbytes) - part.nbytes
    host = part.src if direction == "load" else part.dst
    heads = host_runs(host, part.nbytes, seams)
    lengths = np.add.reduceat(part.nbytes, heads)
    if direction == "load":
        return _Stage(CopyBatch(places[heads], host[heads], lengths), CopyBatch(part.dst, places, part.nbytes))
    return _Stage(CopyBatch(host[heads], places[heads], lengths), CopyBatch(places, part.src, part.nbytes))

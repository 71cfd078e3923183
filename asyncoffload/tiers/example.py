"""A tier in about a hundred lines: what an author of a tier reads first.

It keeps blocks in host memory. That is of little use in production, but it is a complete tier: outcomes per key,
verified loads, cancellation between blocks, events, closing. ``tests/tiers/test_example.py`` puts it under
:class:`asyncoffload.testing.TierLaws`, which is all that a tier of your own needs to do as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from asyncoffload.errors import ClosedError, CorruptBlockError
from asyncoffload.keys import OffloadKey, group_of
from asyncoffload.tiers.base import SecondaryTierManager, check_job, checked_shape
from asyncoffload.tiers.event_log import EventLog
from asyncoffload.types import (
    ANONYMOUS,
    CANCELLED,
    DONE,
    MISSING,
    JobResult,
    KeyOutcome,
    KVLayout,
    LookupResult,
    OffloadingEvent,
    RequestContext,
    Status,
    TransferJob,
)

Bytes = npt.NDArray[np.uint8]


class ExampleSecondaryTierManager(SecondaryTierManager):
    """Keeps blocks in host memory, without a bound.

    Each block is copied on the event loop's thread, with a turn of the loop between two blocks: a copy cannot be
    interrupted, so a cancelled job never touches its slots again. A tier with real input and output hands its blocks
    to threads instead, and waits for them: see :class:`asyncoffload.tiers.fs.manager.FileSystemTierManager`.

    Args:
        layout: what the bytes of a block mean.
        primary_kv_view: the primary's slots, shape ``(n_slots, slot_bytes)``, format ``B``, writable.
        tier_type: the tier's name.

    Raises:
        InvalidArgument: the view is none of slots, or they are too small.
    """

    def __init__(self, layout: KVLayout, primary_kv_view: memoryview, tier_type: str = "memory") -> None:
        checked_shape(primary_kv_view, layout)
        self.tier_type = tier_type
        self._layout = layout
        self._slots: Bytes = np.asarray(primary_kv_view)
        self._blocks: dict[OffloadKey, tuple[Bytes, int]] = {}
        self._events = EventLog(tier_type, layout.tokens_per_block)
        self._idle = asyncio.Event()
        self._idle.set()
        self._running = 0
        self._closed = False

    def get_num_blocks(self) -> int:
        """How many blocks are kept."""
        return len(self._blocks)

    async def lookup(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> Sequence[LookupResult]:  # noqa: ARG002
        self._check_open()
        return [LookupResult.HIT if self.hint(key) else LookupResult.MISS for key in keys]

    def hint(self, key: OffloadKey) -> bool:
        return key in self._blocks

    async def store(self, job: TransferJob) -> JobResult:
        return await self._each_block(job, self._store_block)

    async def load(self, job: TransferJob) -> JobResult:
        return await self._each_block(job, self._load_block)

    def take_events(self) -> Sequence[OffloadingEvent]:
        return self._events.take()

    def stats(self) -> Mapping[str, float]:
        return {"blocks": len(self._blocks), "bytes": sum(block.nbytes for block, _ in list(self._blocks.values()))}

    async def drain(self) -> None:
        await self._idle.wait()

    async def aclose(self, *, drain: bool = True, drain_timeout: float = 10.0, timeout: float | None = None) -> None:  # noqa: ARG002
        self._closed = True
        await self.drain()
        self._blocks.clear()
        self._slots = np.empty((0, 0), np.uint8)  # whoever owns the memory may give it back

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._blocks)} blocks, {self._running} jobs running"
        return f"<{type(self).__name__} {self.tier_type!r}: {state}>"

    async def _each_block(self, job: TransferJob, move: Callable[[OffloadKey, Bytes], KeyOutcome]) -> JobResult:
        """Move the blocks of a job one by one; whoever waits elsewhere gets a turn after each."""
        self._check_open()
        check_job(job, self._layout, len(self._slots))
        self._running += 1
        self._idle.clear()
        try:
            outcomes: list[KeyOutcome] = []
            for key, slot in zip(job.keys, job.slots, strict=True):
                await asyncio.sleep(0)
                skip = self._closed or key in job.unwanted
                nbytes = self._layout.group_bytes(group_of(key))
                outcomes.append(CANCELLED if skip else move(key, self._slots[slot, :nbytes]))
            return JobResult(job.job_id, job.keys, outcomes, self.tier_type)
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    def _store_block(self, key: OffloadKey, slot: Bytes) -> KeyOutcome:
        if key not in self._blocks:
            self._blocks[key] = (slot.copy(), xxhash.xxh3_64_intdigest(slot.data))
            self._events.appeared([key])
        return DONE

    def _load_block(self, key: OffloadKey, slot: Bytes) -> KeyOutcome:
        if key not in self._blocks:
            return MISSING
        block, checksum = self._blocks[key]
        if xxhash.xxh3_64_intdigest(block.data) != checksum:
            del self._blocks[key]
            self._events.removed([key])
            return KeyOutcome(Status.CORRUPT, CorruptBlockError(f"block {key.hex()} has changed in memory"))
        np.copyto(slot, block)
        return DONE

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"tier {self.tier_type!r} is closed: make a new one")

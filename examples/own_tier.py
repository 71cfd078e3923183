"""A tier of one's own: blocks in memory, compressed.

Compressing takes time, so each block is a task of a thread pool. The pool also keeps the law of tiers: whoever awaits a
job, cancelled or not, goes on only when nothing touches the slots of the job any more. zlib's own checksum tells a
block that has changed.

Run it as it stands: ``python examples/own_tier.py``. ``tests/examples/test_own_tier.py`` puts it under the laws that
``asyncoffload.testing`` ships for tiers.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

import asyncoffload as ao
from asyncoffload import KeyOutcome, KVLayout, LookupResult, Offloader, OffloadKey, Status
from asyncoffload.tiers.base import check_job
from asyncoffload.tiers.event_log import EventLog

Slot = np.ndarray[Any, np.dtype[np.uint8]]
Move = Callable[[OffloadKey, Slot], KeyOutcome]


class CompressedTier(ao.SecondaryTierManager):
    """Keeps more blocks in the same memory, for some processor time."""

    def __init__(self, layout: KVLayout, primary_kv_view: memoryview, tier_type: str = "zlib") -> None:
        self.tier_type = tier_type
        self._layout = layout
        self._slots: Slot = np.asarray(primary_kv_view)
        self._blocks: dict[OffloadKey, bytes] = {}
        self._pool = ao.DualQueueThreadPool(1, 1)
        self._events = EventLog(tier_type, layout.tokens_per_block)

    async def lookup(self, keys: Sequence[OffloadKey], ctx: ao.RequestContext = ao.ANONYMOUS) -> Sequence[LookupResult]:
        await self._pool.room(0)  # which raises when the pool is closed
        return [LookupResult.HIT if key in self._blocks else LookupResult.MISS for key in keys]

    async def store(self, job: ao.TransferJob) -> ao.JobResult:
        return await self._run(job, self._pool.enqueue_store, self._compress)

    async def load(self, job: ao.TransferJob) -> ao.JobResult:
        return await self._run(job, self._pool.enqueue_load, self._decompress)

    def take_events(self) -> Sequence[ao.OffloadingEvent]:
        return self._events.take()

    async def drain(self) -> None:
        await self._pool.wait_idle()

    async def aclose(self, *, drain: bool = True, drain_timeout: float = 10.0, timeout: float | None = None) -> None:
        await self._pool.aclose(drain=drain, drain_timeout=drain_timeout, timeout=timeout)

    async def _run(self, job: ao.TransferJob, enqueue: Any, move: Move) -> ao.JobResult:
        check_job(job, self._layout, len(self._slots))
        tasks = [partial(self._block, job, key, slot, move) for key, slot in zip(job.keys, job.slots, strict=True)]
        before = self._blocks.keys() & job.keys
        try:
            results = await enqueue(job.job_id, len(tasks), tasks, priority=job.priority)
        finally:
            after = self._blocks.keys() & job.keys
            self._events.appeared([*(after - before)])
            self._events.removed([*(before - after)])
        return ao.JobResult(job.job_id, job.keys, [*map(_outcome, results)], self.tier_type)

    def _block(self, job: ao.TransferJob, key: OffloadKey, slot: int, move: Move) -> KeyOutcome:
        nbytes = self._layout.group_bytes(ao.group_of(key))
        return ao.CANCELLED if key in job.unwanted else move(key, self._slots[slot, :nbytes])

    def _compress(self, key: OffloadKey, slot: Slot) -> KeyOutcome:
        if key not in self._blocks:
            self._blocks[key] = zlib.compress(slot.data, level=1)
        return ao.DONE

    def _decompress(self, key: OffloadKey, slot: Slot) -> KeyOutcome:
        if key not in self._blocks:
            return ao.MISSING
        try:
            slot[:] = np.frombuffer(zlib.decompress(self._blocks[key]), np.uint8)
        except (zlib.error, ValueError):
            del self._blocks[key]
            return KeyOutcome(Status.CORRUPT, ao.CorruptBlockError(f"block {key.hex()} has changed in memory"))
        return ao.DONE


def _outcome(result: KeyOutcome | Status | BaseException) -> KeyOutcome:
    """What became of a block; a Status is the pool's word on a task that never ran."""
    if isinstance(result, KeyOutcome):
        return result
    return KeyOutcome(result) if isinstance(result, Status) else KeyOutcome(Status.FAILED, result)


async def main() -> None:
    kv_caches = [torch.randint(0, 8, (8, 16, 256), dtype=torch.uint8) for _ in range(4)]
    before = [layer.clone() for layer in kv_caches]
    keys = [ao.make_key(bytes([n])) for n in range(8)]
    async with Offloader({"host_bytes": "64KiB"}, kv_caches=kv_caches, tiers=[CompressedTier]) as offloader:
        for n in range(8):  # host memory holds four of these blocks: the tier has to give the rest
            await offloader.store(keys[n : n + 1], [n])
            await offloader.settle()
        for layer in kv_caches:
            layer.zero_()
        loaded = await offloader.load(keys, range(8))
        print(f"{loaded.blocks} blocks loaded, by tier: {dict(sorted(loaded.by_tier.items()))}")
    assert all(torch.equal(layer, old) for layer, old in zip(kv_caches, before, strict=True))


if __name__ == "__main__":
    asyncio.run(main())

"""A tier of one's own: blocks as rows of a SQLite database.

SQLite blocks the thread that calls it, so each block is a task of a thread pool. The pool also keeps the law of tiers:
whoever awaits a job, cancelled or not, goes on only when nothing touches the slots of the job any more.

Run it as it stands: ``python examples/own_tier.py``. ``tests/examples/test_own_tier.py`` puts it under the laws that
``asyncoffload.testing`` ships for tiers.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

import asyncoffload as ao
from asyncoffload import KeyOutcome, KVLayout, LookupResult, Offloader, OffloadKey, Status

Slot = np.ndarray[Any, np.dtype[np.uint8]]


class SQLiteTier(ao.SecondaryTierManager):
    """Keeps each block as a row with a checksum; a row is there as a whole or not at all."""

    def __init__(self, layout: KVLayout, primary_kv_view: memoryview, path: Path, tier_type: str = "sqlite") -> None:
        self.tier_type = tier_type
        self._layout = layout
        self._slots: Slot = np.asarray(primary_kv_view)
        self._path = path
        self._db: sqlite3.Connection | None = None
        self._lock = threading.Lock()
        self._pool = ao.DualQueueThreadPool(1, 1)
        self._changes: deque[tuple[OffloadKey, bool]] = deque(maxlen=4096)

    async def start(self) -> None:
        await self._pool.enqueue_load(0, 1, [lambda: self._execute("select 1")])

    async def lookup(self, keys: Sequence[OffloadKey], ctx: ao.RequestContext = ao.ANONYMOUS) -> Sequence[LookupResult]:
        (found,) = await self._pool.enqueue_load(0, 1, [lambda: [bool(self._rows(key)) for key in keys]])
        if not isinstance(found, list):
            raise ao.TierUnavailable(f"{self._path} cannot be searched: {found}")
        return [LookupResult.HIT if there else LookupResult.MISS for there in found]

    async def store(self, job: ao.TransferJob) -> ao.JobResult:
        return await self._each(job, self._pool.enqueue_store, self._store_block)

    async def load(self, job: ao.TransferJob) -> ao.JobResult:
        return await self._each(job, self._pool.enqueue_load, self._load_block)

    def hurry(self, job_id: int, priority: ao.Priority) -> None:
        self._pool.hurry(job_id, priority)

    def take_events(self) -> Sequence[ao.OffloadingEvent]:
        block_size, events = self._layout.tokens_per_block, []
        while self._changes:
            key, removed = self._changes.popleft()
            events.append(ao.OffloadingEvent([key], block_size, self.tier_type, removed))
        return events

    async def drain(self) -> None:
        await self._pool.wait_idle()

    async def aclose(self, *, drain: bool = True, drain_timeout: float = 10.0, timeout: float | None = None) -> None:
        try:
            await self._pool.aclose(drain=drain, drain_timeout=drain_timeout, timeout=timeout)
        finally:
            if self._db is not None and not self._pool.stats().unfinished_jobs:
                self._db.close()

    async def _each(
        self, job: ao.TransferJob, enqueue: Any, move: Callable[[OffloadKey, Slot], KeyOutcome]
    ) -> ao.JobResult:
        """Make each block of a job a task of the pool, and its result an outcome."""
        if wrong := [slot for slot in job.slots if not 0 <= slot < len(self._slots)]:
            raise ao.InvalidArgument(f"slot {wrong[0]} is not one of the {len(self._slots)} slots of the primary")

        def task(key: OffloadKey, slot: int) -> KeyOutcome:
            nbytes = self._layout.group_bytes(ao.group_of(key))
            return ao.CANCELLED if key in job.unwanted else move(key, self._slots[slot, :nbytes])

        tasks = [partial(task, key, slot) for key, slot in zip(job.keys, job.slots, strict=True)]
        results = await enqueue(job.job_id, len(tasks), tasks, priority=job.priority)
        return ao.JobResult(job.job_id, job.keys, [_outcome(result) for result in results], self.tier_type)

    def _execute(self, statement: str, *values: object) -> list[tuple[bytes, ...]]:
        """Run a statement in a thread of the pool; the first one opens the database."""
        with self._lock:
            if self._db is None:
                self._db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
                self._db.execute("pragma synchronous = off")  # after a power cut, checksums tell what is torn
                self._db.execute("create table if not exists blocks (key blob primary key, checksum blob, bytes blob)")
            return self._db.execute(statement, values).fetchall()

    def _rows(self, key: OffloadKey) -> list[tuple[bytes, ...]]:
        return self._execute("select checksum, bytes from blocks where key = ?", key)

    def _store_block(self, key: OffloadKey, slot: Slot) -> KeyOutcome:
        insert = "insert or ignore into blocks values (?, ?, ?) returning key"
        if self._execute(insert, key, xxhash.xxh3_128_digest(slot.data), slot.tobytes()):
            self._changes.append((key, False))
        return ao.DONE

    def _load_block(self, key: OffloadKey, slot: Slot) -> KeyOutcome:
        rows = self._rows(key)
        if not rows:
            return ao.MISSING
        ((checksum, payload),) = rows
        if len(payload) != slot.nbytes or xxhash.xxh3_128_digest(payload) != checksum:
            self._execute("delete from blocks where key = ?", key)
            self._changes.append((key, True))
            return KeyOutcome(Status.CORRUPT, ao.CorruptBlockError(f"block {key.hex()} has changed on disk"))
        np.copyto(slot, np.frombuffer(payload, np.uint8))
        return ao.DONE


def _outcome(result: KeyOutcome | BaseException | Status) -> KeyOutcome:
    """A task answers with an outcome or raises; for one that it never ran, the pool answers CANCELLED or SHED."""
    if isinstance(result, BaseException):
        return KeyOutcome(Status.FAILED, result)
    return result if isinstance(result, KeyOutcome) else KeyOutcome(result)


async def main(root: Path) -> None:
    kv_caches = [torch.rand(8, 16, 256) for _ in range(4)]
    before = [layer.clone() for layer in kv_caches]
    keys = [ao.make_key(bytes([n])) for n in range(8)]
    for run in ("first", "second"):
        tiers = [lambda layout, view: SQLiteTier(layout, view, root / "blocks.db")]
        async with Offloader({"host_bytes": "16MiB"}, kv_caches=kv_caches, tiers=tiers) as offloader:
            loaded = await offloader.load(keys, range(8))
            print(f"{run} run: {loaded.blocks} blocks loaded, by tier: {dict(loaded.by_tier)}")
            await offloader.store(keys, range(8))
        if run == "first":
            for layer in kv_caches:
                layer.zero_()
    assert all(torch.equal(layer, old) for layer, old in zip(kv_caches, before, strict=True))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(main(Path(directory)))

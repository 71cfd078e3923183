"""A tier of one's own: blocks as rows of a SQLite database.

SQLite blocks the thread that calls it, so all calls go to one thread that belongs to the tier. What makes it a tier is
``_call``: it returns, or raises, only when that thread no longer touches the slots of a job.

Run it as it stands: ``python examples/own_tier.py``. ``tests/examples/test_own_tier.py`` puts it under the laws that
``asyncoffload.testing`` ships for tiers.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import xxhash

import asyncoffload as ao
from asyncoffload import KeyOutcome, LookupResult, Offloader, Status

T = TypeVar("T")
Work = Callable[[threading.Event], T]


class SQLiteTier(ao.SecondaryTierManager):
    """Keeps each block as a row with a checksum; a row is there as a whole or not at all."""

    def __init__(self, layout: ao.KVLayout, primary_kv_view: memoryview, path: Path, tier_type: str = "sqlite") -> None:
        self.tier_type = tier_type
        self._layout = layout
        self._slots = np.asarray(primary_kv_view)
        self._path = path
        self._thread = ThreadPoolExecutor(1, "sqlite-tier", initializer=self._open)
        self._events = ao.EventLog(tier_type, layout.tokens_per_block)
        self._closed = False
        self._dropped = threading.Event()

    async def start(self) -> None:
        await self._call(lambda _: None)

    async def lookup(
        self, keys: Sequence[ao.OffloadKey], ctx: ao.RequestContext = ao.ANONYMOUS
    ) -> Sequence[LookupResult]:
        return await self._call(lambda _: [LookupResult.HIT if self._row(key) else LookupResult.MISS for key in keys])

    async def store(self, job: ao.TransferJob) -> ao.JobResult:
        return await self._move(job, self._store_block)

    async def load(self, job: ao.TransferJob) -> ao.JobResult:
        return await self._move(job, self._load_block)

    def take_events(self) -> Sequence[ao.OffloadingEvent]:
        return self._events.take()

    async def drain(self) -> None:
        await ao.outlive(asyncio.wrap_future(self._thread.submit(lambda: None)))

    async def aclose(self, *, drain: bool = True, drain_timeout: float = 10.0, timeout: float | None = None) -> None:
        if not self._closed:
            self._closed = True
            if not drain:
                self._dropped.set()
            self._ended = self._thread.submit(lambda: self._db.close())
            self._thread.shutdown(wait=False)
        await ao.outlive(asyncio.wrap_future(self._ended), stop=self._dropped.set)

    async def _move(self, job: ao.TransferJob, move: Callable[[ao.OffloadKey, Any], KeyOutcome]) -> ao.JobResult:
        """Move the blocks of a job one by one, in the tier's thread, until it is asked to stop."""
        if wrong := [slot for slot in job.slots if not 0 <= slot < len(self._slots)]:
            raise ao.InvalidArgument(f"slot {wrong[0]} is not one of the {len(self._slots)} slots of the primary")

        def each_block(stop: threading.Event) -> list[KeyOutcome]:
            outcomes = []
            for key, slot in zip(job.keys, job.slots, strict=True):
                if stop.is_set() or self._dropped.is_set() or key in job.unwanted:
                    outcomes.append(ao.CANCELLED)
                    continue
                try:
                    outcomes.append(move(key, self._slots[slot, : self._layout.group_bytes(ao.group_of(key))]))
                except sqlite3.Error as error:
                    outcomes.append(KeyOutcome(Status.FAILED, error))
            return outcomes

        return ao.JobResult(job.job_id, job.keys, await self._call(each_block), self.tier_type)

    async def _call(self, work: Work[T]) -> T:
        """Do something in the tier's thread; cancelled, it raises when the thread is really done with it."""
        if self._closed:
            raise ao.ClosedError(f"tier {self.tier_type!r} is closed: make a new one")
        stop = threading.Event()
        running = self._thread.submit(work, stop)

        def give_up() -> None:
            stop.set()
            running.cancel()  # which works as long as it has not begun

        return await ao.outlive(asyncio.wrap_future(running), give_up)

    def _open(self) -> None:
        self._db = sqlite3.connect(self._path, isolation_level=None)
        self._db.execute("pragma journal_mode = wal")
        self._db.execute("create table if not exists blocks (key blob primary key, checksum blob, bytes blob)")

    def _row(self, key: ao.OffloadKey) -> tuple[bytes, bytes] | None:
        row: tuple[bytes, bytes] | None = self._db.execute(
            "select checksum, bytes from blocks where key = ?", (key,)
        ).fetchone()
        return row

    def _store_block(self, key: ao.OffloadKey, slot: Any) -> KeyOutcome:
        row = (key, xxhash.xxh3_128_digest(slot), slot.tobytes())
        if self._db.execute("insert or ignore into blocks values (?, ?, ?)", row).rowcount:
            self._events.appeared([key])
        return ao.DONE

    def _load_block(self, key: ao.OffloadKey, slot: Any) -> KeyOutcome:
        row = self._row(key)
        if row is None:
            return ao.MISSING
        checksum, payload = row
        if len(payload) != slot.nbytes or xxhash.xxh3_128_digest(payload) != checksum:
            self._db.execute("delete from blocks where key = ?", (key,))
            self._events.removed([key])
            return KeyOutcome(Status.CORRUPT, ao.CorruptBlockError(f"block {key.hex()} has changed on disk"))
        np.copyto(slot, np.frombuffer(payload, np.uint8))
        return ao.DONE


async def main(root: Path) -> None:
    kv_caches = [torch.rand(8, 16, 256) for _ in range(4)]
    before = [layer.clone() for layer in kv_caches]
    keys = [ao.make_key(bytes([n])) for n in range(8)]
    for run in ("first", "second"):
        tiers = [lambda layout, view: SQLiteTier(layout, view, root / "blocks.db")]
        async with Offloader({"host_bytes": "1MiB"}, kv_caches=kv_caches, tiers=tiers) as offloader:
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

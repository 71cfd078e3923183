"""The file system tier: blocks as files, one each."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from asyncoffload.aio.dual_queue import DualQueueThreadPool
from asyncoffload.aio.pool_stats import PoolStats
from asyncoffload.aio.waiting import outlive
from asyncoffload.errors import ClosedError, TierUnavailable
from asyncoffload.keys import OffloadKey
from asyncoffload.tiers.base import SecondaryTierManager, check_job, checked_shape
from asyncoffload.tiers.event_log import EventLog
from asyncoffload.tiers.fs.blockfile import make_block_files
from asyncoffload.tiers.fs.directio import slots_are_aligned
from asyncoffload.tiers.fs.durable_moving import DurableMover
from asyncoffload.tiers.fs.explaining import findings
from asyncoffload.tiers.fs.format import file_bytes
from asyncoffload.tiers.fs.index import BlockIndex
from asyncoffload.tiers.fs.jobs import RunningJobs
from asyncoffload.tiers.fs.ledger import Ledger
from asyncoffload.tiers.fs.moving import BlockMover
from asyncoffload.tiers.fs.outcomes import SHED_BY
from asyncoffload.tiers.fs.quota import Bounds, free_bytes
from asyncoffload.tiers.fs.recency import Renewals
from asyncoffload.tiers.fs.residence import Residence
from asyncoffload.tiers.fs.space import BlockSpace, DirectIO, MakeFiles
from asyncoffload.tiers.fs.syncing import Durability, SyncGroups
from asyncoffload.tiers.fs.watch import Watch
from asyncoffload.types import (
    ANONYMOUS,
    SHED,
    Findings,
    JobResult,
    KeyOutcome,
    KVLayout,
    LookupResult,
    OffloadingEvent,
    Priority,
    RequestContext,
    Status,
    TransferJob,
)

IO_TIMEOUT = 10.0
"""Seconds: a hundred times what a busy disk needs for a block, and less than most clients wait."""

PORTION = 256
"""Names that are looked at in one call."""


class FileSystemTierManager(SecondaryTierManager):
    """Keeps each block in a file of its own, checksummed, below one directory per layout and rank.

    Processes may share a root. What they must not share, blocks whose bytes mean something else, is kept apart by the
    directory's name, by its ``config.json`` and by the header of every block. Files survive the process; a block is
    committed when it has its name. By default nothing is synced to the device, because a torn block is merely a miss.

    A load into a slot is verified there; a file that is not the block it should be is set aside and its key CORRUPT.

    Args:
        layout: what the bytes of a block mean.
        primary_kv_view: the primary's slots, shape ``(n_slots, slot_bytes)``, format ``B``, C-contiguous, writable.
        tier_type: the tier's name.
        root_dir: where to keep files; made if it is not there.
        n_read_threads, n_write_threads: I/O threads that load, or store, first; without ``pool``.
        pool: the I/O pool; the tier makes one, and closes it, if it is given none.
        io_timeout: seconds that the move of a single block, or another call to the file system, may take. What takes
            longer is given up, and the tier answers misses until the file system answers; None: wait for ever.
        max_queued_bytes: bytes queued in each direction above which jobs are SHED; None for no bound; without ``pool``.
        bound_loads: whether the bound holds for loads as well as for stores; without ``pool``.
        direct_io: bypass the page cache: ``"auto"`` where file system and slots allow it, ``"on"`` or not at all,
            ``"off"``.
        quota: bytes that the files below the root may take, those of all processes, layouts and ranks together; None
            for no bound. Of several processes on one root the smallest quota holds.
        min_free: bytes to leave free on the file system; None: write until it is full. With a quota or this, the files
            that were used longest ago are removed to make room; without both, nothing is ever removed.
        durability: ``"fsync"``: a store is DONE when its block would survive a loss of power; ``"none"``: when the
            operating system has it. Either way a block that such a loss has torn is CORRUPT, never wrong.
        clock: seconds, monotonic.
        now: nanoseconds since the epoch; the times of files.
        free: bytes free on the file system of a directory.
        make_files: what writes and reads the files.

    Raises:
        ConfigError: the quota does not hold a single block, or ``min_free`` is negative.
        InvalidArgument: the view is none of slots, or they are too small.
    """

    def __init__(
        self,
        layout: KVLayout,
        primary_kv_view: memoryview,
        tier_type: str,
        root_dir: str | os.PathLike[str],
        n_read_threads: int = 16,
        n_write_threads: int = 16,
        *,
        pool: DualQueueThreadPool | None = None,
        max_queued_bytes: int | None = 1 << 30,
        bound_loads: bool = True,
        direct_io: DirectIO = "auto",
        quota: int | None = None,
        min_free: int | None = None,
        durability: Durability = "none",
        io_timeout: float | None = IO_TIMEOUT,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], int] = time.time_ns,
        free: Callable[[str], int] = free_bytes,
        make_files: MakeFiles = make_block_files,
    ) -> None:
        self._n_slots, self._slot_bytes = checked_shape(primary_kv_view, layout)
        self.tier_type = tier_type
        self._layout = layout
        self._view = primary_kv_view.cast("B")
        payload_bytes = [layout.group_bytes(group) for group in range(len(layout.groups))]
        self._space = BlockSpace(
            os.fspath(root_dir),
            layout,
            direct_io=direct_io,
            aligned=slots_are_aligned(primary_kv_view),
            make_files=make_files,
            bounds=Bounds(quota, min_free, file_bytes(max(payload_bytes))),
            free=free,
            durability=durability,
        )
        self._owns_pool = pool is None
        self._pool = pool or DualQueueThreadPool(
            n_read_threads, n_write_threads, max_queued_bytes=max_queued_bytes, bound_loads=bound_loads, clock=clock
        )
        self._clock, self._now = clock, now
        self._renewals = Renewals()
        self._syncs = SyncGroups(f"asyncoffload-{tier_type}-sync", clock) if durability == "fsync" else None
        self._index = BlockIndex(lambda key: file_bytes(self._mover.payload_bytes(key)))
        mover = self._space, self._view, self._slot_bytes, payload_bytes, tier_type, self._renewals
        self._mover = DurableMover(*mover, self._syncs, self._index.__contains__) if self._syncs else BlockMover(*mover)
        self._jobs = RunningJobs(self._pool, self._mover.payload_bytes, now, self._syncs)
        self._watch = Watch(tier_type, io_timeout, self._jobs, self._space.probe, clock, self._syncs)
        self._io_timeout = io_timeout
        self._ledger = Ledger(self._index, EventLog(tier_type, layout.tokens_per_block), clock)
        self._residence = Residence(
            tier_type, self._space, self._index, self._ledger, self._watch, self._jobs, io_timeout, clock
        )
        self._clerk = self._residence.clerk
        self._closing = asyncio.Lock()
        self._closed = False
        self._left = False
        self._storing: dict[OffloadKey, asyncio.Future[None]] = {}

    def __repr__(self) -> str:
        state = "closed" if self._closed else "serving" if self._residence.is_open else "not started"
        return (
            f"<{type(self).__name__} {self.tier_type!r} {state}, {len(self._index)} blocks in {self._space.directory}>"
        )

    async def start(self) -> None:
        """Open the directory, and begin to look through what it holds.

        Cancellation: leaves at once; opening goes on, and closing waits for it.

        Raises:
            ConfigError: the directory cannot be used, or holds blocks of another sort; the message shows both.
            TierUnavailable: the file system is in trouble, or does not answer.
            ClosedError: the tier was closed.
        """
        self._check_open()
        await self._residence.open()

    async def scanned(self) -> None:
        """Return when the index knows everything that lay in the directory at the start.

        Cancellation: leaves at once; the scan goes on.
        """
        await self.start()
        await self._residence.until_scanned()

    async def lookup(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> Sequence[LookupResult]:  # noqa: ARG002
        """As the base class; keys that the index does not know cost one look at the disk for all of them.

        While the file system does not answer, everything is a MISS. Cancellation: raises at once.
        """
        self._check_open()
        if not self._watch.is_paused:
            await self.start()
            unknown = self._index.unknown(keys, self._clock())
            for first in range(0, len(unknown), PORTION):
                await self._find(unknown[first : first + PORTION])
        return [LookupResult.HIT if self.hint(key) else LookupResult.MISS for key in keys]

    async def _find(self, unknown: Sequence[OffloadKey]) -> None:
        self._ledger.counts["probed"] += len(unknown)
        with self._index.look() as look, suppress(TierUnavailable):
            found = await self._clerk.run(partial(self._space.which_exist, unknown))
            look.found(found)
            self._index.missed(set(unknown).difference(found), self._clock())

    async def _look_after(self, known: Sequence[OffloadKey]) -> None:
        """Strike out blocks that are not there, whoever removed them, in one look at the disk for many."""
        for first in range(0, len(known), PORTION):
            keys = known[first : first + PORTION]
            with self._index.look() as look, suppress(TierUnavailable):
                self._ledger.missed(look, await self._clerk.run(partial(self._space.which_are_gone, keys)))

    def hint(self, key: OffloadKey) -> bool:
        return key in self._index and not self._refuses(key)

    async def store(self, job: TransferJob) -> JobResult:
        """As the base class. A block is on disk, under its name, when its outcome is DONE; with
        ``durability="fsync"`` it survives a loss of power then."""
        await self._ready_for(job)
        if self._syncs is None and not self._watch.is_paused:
            await self._look_after([key for key in job.keys if key in self._index])
        while theirs := {self._storing[key] for key in job.keys if key in self._storing and not self._refuses(key)}:
            await asyncio.wait(theirs, timeout=self._io_timeout)  # by then, theirs may hang
            self._check_open()
        refused = set(filter(self._refuses, job.keys))
        again = self._syncs is not None  # a block that is there need not be durable
        todo = [i for i, key in enumerate(job.keys) if (again or key not in self._index) and key not in refused]
        stored = asyncio.get_running_loop().create_future()
        self._storing.update((job.keys[index], stored) for index in todo)
        self._watch.look_after()
        try:
            outcomes = await self._jobs.store(job, todo, self._mover.store, self._settle_store)
        finally:
            for index in todo:
                del self._storing[job.keys[index]]
            stored.set_result(None)
        paused = dict.fromkeys(refused, SHED_BY["pause"])
        self._ledger.refused("store", paused)
        outcomes = [paused.get(key, outcome) for key, outcome in zip(job.keys, outcomes, strict=True)]
        if self._watch.is_paused:
            self._ledger.counts["shed_by_pause"] += outcomes.count(SHED)
        return JobResult(job.job_id, job.keys, outcomes, self.tier_type)

    async def load(self, job: TransferJob) -> JobResult:
        """As the base class. A file that is not what was stored is set aside, and its key CORRUPT."""
        await self._ready_for(job)
        refused = {key: self._watch.refusal(key) for key in job.keys if self._refuses(key)}
        todo = [index for index, key in enumerate(job.keys) if key not in refused]
        self._watch.look_after()
        outcomes = await self._jobs.load(job, todo, self._mover.load, self._ledger.loaded)
        self._ledger.refused("load", refused)
        outcomes = [refused.get(key, outcome) for key, outcome in zip(job.keys, outcomes, strict=True)]
        return JobResult(job.job_id, job.keys, outcomes, self.tier_type)

    def hurry(self, job_id: int, priority: Priority) -> None:
        self._pool.hurry(job_id, priority)

    async def touch(self, keys: Sequence[OffloadKey]) -> None:
        """As the base class; blocks that were used within the same minute cost nothing. Cancellation: raises at
        once."""
        self._check_open()
        if self._watch.is_paused:
            return
        await self.start()
        due = self._renewals.due(keys, self._now(), self._index.__contains__)
        for first in range(0, len(due), PORTION):
            with suppress(TierUnavailable):
                await self._clerk.run(partial(self._space.touch, due[first : first + PORTION]))

    async def explain(self, key: OffloadKey) -> Findings:
        """As the base class, with what lies beside it and what is written in the root's journal; a look at the disk.

        Cancellation: raises at once.
        """
        self._check_open()
        seen = self._ledger.history(key)
        if not self._watch.is_paused:
            await self.start()
            with suppress(TierUnavailable):
                return await self._clerk.run(partial(findings, self._space, key, self.tier_type, seen))
        return Findings(history=seen)

    def take_events(self) -> Sequence[OffloadingEvent]:
        return self._ledger.events.take()

    def stats(self) -> Mapping[str, float]:
        """``blocks`` and ``bytes`` on disk, whether ``direct_io`` is used, whether the old blocks were all
        ``scanned``, whether the tier is ``paused`` because its file system does not answer, ``hanging_calls``,
        ``leftovers_removed``, and since the start: ``hung_calls``, blocks ``shed_by_pause``, keys ``probed``, and for
        each direction and status the number of keys, such as ``load_corrupt``. With bounds also those of
        :meth:`BlockSpace.bound_stats`, with ``durability="fsync"`` those of :meth:`SyncGroups.stats`."""
        return {
            "blocks": len(self._index),
            "bytes": self._index.nbytes,
            "direct_io": float(self._residence.is_open and self._space.files.direct),
            "scanned": float(self._residence.scanned),
            "shed_by_pause": 0,
            **self._ledger.counts,
            **self._space.bound_stats(),
            **(self._syncs.stats() if self._syncs else {}),
            "paused": float(self._watch.is_paused),
            "hung_calls": self._watch.hung,
            "hanging_calls": self._jobs.hanging.total(),
            "leftovers_removed": self._residence.leftovers_removed,
        }

    def pool_stats(self) -> PoolStats:
        return self._pool.stats()

    async def drain(self) -> None:
        """As the base class. Cancellation: leaves at once; the jobs go on."""
        await self._jobs.ended()

    async def aclose(self, *, drain: bool = True, drain_timeout: float = 10.0, timeout: float | None = None) -> None:
        self._closed = True
        if not self._left:
            closing = asyncio.create_task(self._close(drain, drain_timeout, timeout), name=f"{self.tier_type}: close")
            await outlive(closing, self._jobs.stop)

    async def _close(self, drain: bool, drain_timeout: float, timeout: float | None) -> None:
        async with self._closing:
            if self._left:
                return
            self._jobs.stop(keep_stores=drain)
            if drain:
                await self._jobs.ended(drain_timeout)
                self._jobs.stop()
            patience = self._io_timeout if timeout is None else timeout  # for what touches no slots
            left = await self._residence.end_work(patience)
            await self._jobs.ended(timeout)
            self._watch.stop()
            if self._jobs:
                left.append(f"moves blocks of jobs {self._jobs.names}, whose slots must not be used")
            if not left:
                if self._owns_pool:
                    await self._pool.aclose(drain=False)
                left = await self._residence.leave(patience)
            if left:
                raise TierUnavailable(
                    f"tier {self.tier_type!r}, {patience} seconds after closing, still {' and '.join(left)}: "
                    "close again to go on waiting"
                )
            if self._syncs is not None:
                self._syncs.shutdown()
            self._view.release()
            self._left = True

    def _refuses(self, key: OffloadKey) -> bool:
        return self._watch.is_paused or key in self._jobs.hanging

    async def _ready_for(self, job: TransferJob) -> None:
        self._check_open()
        check_job(job, self._layout, self._n_slots)
        if not self._watch.is_paused:
            await self.start()

    def _settle_store(self, keys: Sequence[OffloadKey], outcomes: Sequence[KeyOutcome]) -> None:
        if not self._ledger.stored(keys, outcomes):
            self._residence.lost()
        if self._syncs is not None:  # a look at the disk may have found what could not be made durable and is gone
            self._index.remove(key for key, o in zip(keys, outcomes, strict=True) if o.status is Status.FAILED)
        self._residence.room_is_wanted()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"tier {self.tier_type!r} is closed: make a new one")

"""The file system tier: blocks as files, one each."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from asyncoffload.aio.dual_queue import DualQueueThreadPool
from asyncoffload.aio.io_threads import IOThreads
from asyncoffload.aio.pool_stats import PoolStats
from asyncoffload.aio.waiting import outlive
from asyncoffload.errors import ClosedError, InvalidArgument, TierUnavailable
from asyncoffload.keys import OffloadKey
from asyncoffload.tiers.base import SecondaryTierManager, check_job
from asyncoffload.tiers.event_log import EventLog
from asyncoffload.tiers.fs.blockfile import BlockFiles
from asyncoffload.tiers.fs.directio import slots_are_aligned
from asyncoffload.tiers.fs.format import BlockFormat, file_bytes
from asyncoffload.tiers.fs.housekeeping import EVICTING_THREADS, Housekeeping
from asyncoffload.tiers.fs.index import BlockIndex
from asyncoffload.tiers.fs.jobs import RunningJobs
from asyncoffload.tiers.fs.ledger import Ledger
from asyncoffload.tiers.fs.moving import BlockMover
from asyncoffload.tiers.fs.opening import open_space
from asyncoffload.tiers.fs.quota import Bounds, free_bytes
from asyncoffload.tiers.fs.recency import Renewals, used_at
from asyncoffload.tiers.fs.space import BlockSpace, DirectIO, MakeFiles
from asyncoffload.types import (
    ANONYMOUS,
    JobResult,
    KeyOutcome,
    KVLayout,
    LookupResult,
    OffloadingEvent,
    Priority,
    RequestContext,
    TransferJob,
)

T = TypeVar("T")


def make_block_files(block_format: BlockFormat, owner: str, direct: bool) -> BlockFiles:
    """What a tier uses unless it is given something else: the operating system's own calls."""
    return BlockFiles(block_format, owner, direct=direct)


class FileSystemTierManager(SecondaryTierManager):
    """Keeps each block in a file of its own, checksummed, below one directory per layout and rank.

    Processes may share a root. What they must not share, blocks whose bytes mean something else, is kept apart by the
    directory's name, by its ``config.json`` and by the header of every block. Files survive the process; a block is
    committed when it has its name, and nothing is synced to the device, because a torn block is merely a miss.

    A load into a slot is verified there; a file that is not the block it should be is set aside and its key CORRUPT.

    Args:
        layout: what the bytes of a block mean.
        primary_kv_view: the primary's slots, shape ``(n_slots, slot_bytes)``, format ``B``, C-contiguous, writable.
        tier_type: the tier's name.
        root_dir: where to keep files; made if it is not there.
        n_read_threads, n_write_threads: I/O threads that load, or store, first; without ``pool``.
        pool: the I/O pool; the tier makes one, and closes it, if it is given none.
        max_queued_bytes: bytes queued in each direction above which jobs are SHED; None for no bound; without ``pool``.
        bound_loads: whether the bound holds for loads as well as for stores; without ``pool``.
        direct_io: bypass the page cache: ``"auto"`` where file system and slots allow it, ``"on"`` or not at all,
            ``"off"``.
        quota: bytes that the files below the root may take, those of all processes, layouts and ranks together; None
            for no bound. Of several processes on one root the smallest quota holds.
        min_free: bytes to leave free on the file system; None: write until it is full. With a quota or this, the files
            that were used longest ago are removed to make room; without both, nothing is ever removed.
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
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], int] = time.time_ns,
        free: Callable[[str], int] = free_bytes,
        make_files: MakeFiles = make_block_files,
    ) -> None:
        if primary_kv_view.ndim != 2 or primary_kv_view.format != "B" or primary_kv_view.readonly:
            raise InvalidArgument(
                "the primary's view must be writable bytes of shape (n_slots, slot_bytes), got "
                f"format {primary_kv_view.format!r}, shape {primary_kv_view.shape}: pass HostRegion.view"
            )
        self._n_slots, self._slot_bytes = primary_kv_view.shape or (0, 0)
        if self._slot_bytes < layout.block_bytes:
            raise InvalidArgument(
                f"slots of {self._slot_bytes} bytes cannot hold the layout's blocks of {layout.block_bytes} bytes: "
                "make the primary with the same layout"
            )
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
        )
        self._owns_pool = pool is None
        self._pool = pool or DualQueueThreadPool(
            n_read_threads, n_write_threads, max_queued_bytes=max_queued_bytes, bound_loads=bound_loads
        )
        self._clerk = IOThreads(2, name=f"asyncoffload-{tier_type}-metadata")
        self._keeper = IOThreads(EVICTING_THREADS, name=f"asyncoffload-{tier_type}-housekeeping")
        self._clock, self._now = clock, now
        self._renewals = Renewals(clock)
        self._mover = BlockMover(self._space, self._view, self._slot_bytes, payload_bytes, tier_type, self._renewals)
        self._jobs = RunningJobs(self._pool, self._mover.payload_bytes, now)
        self._index = BlockIndex(lambda key: file_bytes(self._mover.payload_bytes(key)))
        self._ledger = Ledger(self._index, EventLog(tier_type, layout.tokens_per_block), clock)
        self._starting = asyncio.Lock()
        self._started = False
        self._closed = False
        self._left = False
        self._scan: asyncio.Task[None] | None = None
        self._housekeeping: Housekeeping | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._storing: dict[OffloadKey, asyncio.Future[None]] = {}

    def __repr__(self) -> str:
        state = "closed" if self._closed else "serving" if self._started else "not started"
        return (
            f"<{type(self).__name__} {self.tier_type!r} {state}, {len(self._index)} blocks in {self._space.directory}>"
        )

    async def start(self) -> None:
        """Open the directory, and begin to look through what it holds.

        If cancelled: raises when the operating system's calls that are under way have ended.

        Raises:
            ConfigError: the directory cannot be used, or holds blocks of another sort; the message shows both.
            TierUnavailable: the file system is in trouble.
            ClosedError: the tier was closed.
        """
        self._check_open()
        if self._started:
            return
        async with self._starting:
            self._check_open()
            if not self._started:
                await self._stop_background()
                await open_space(self._space, self._clerk)
                self._keep_house()
                self._started = True
                self._scan = asyncio.create_task(self._look_through(), name=f"{self.tier_type}: scan")

    async def scanned(self) -> None:
        """Return when the index knows everything that lay in the directory at the start.

        If cancelled: leaves at once; the scan goes on.
        """
        await self.start()
        if self._scan is not None:
            await asyncio.wait([self._scan])

    async def lookup(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> Sequence[LookupResult]:  # noqa: ARG002
        """As the base class; keys that the index does not know cost one look at the disk for all of them.

        If cancelled: raises at once.
        """
        await self.start()
        unknown = self._index.unknown(keys, self._clock())
        if unknown:
            self._ledger.counts["probed"] += len(unknown)
            with self._index.look() as left:
                found = await self._in_clerk(partial(self._space.which_exist, unknown))
                self._index.add(key for key in found if key not in left)
            self._index.missed(set(unknown).difference(found), self._clock())
        return [LookupResult.HIT if key in self._index else LookupResult.MISS for key in keys]

    def hint(self, key: OffloadKey) -> bool:
        return key in self._index

    async def store(self, job: TransferJob) -> JobResult:
        """As the base class. A block is on disk, under its name, when its outcome is DONE."""
        await self._ready_for(job)
        while theirs := {self._storing[key] for key in job.keys if key in self._storing}:
            await asyncio.wait(theirs)
            self._check_open()
        todo = [index for index, key in enumerate(job.keys) if key not in self._index]
        stored = asyncio.get_running_loop().create_future()
        self._storing.update((job.keys[index], stored) for index in todo)
        try:
            outcomes = await self._jobs.store(job, todo, self._mover.store, self._settle_store)
        finally:
            for index in todo:
                del self._storing[job.keys[index]]
            stored.set_result(None)
        return JobResult(job.job_id, job.keys, outcomes, self.tier_type)

    async def load(self, job: TransferJob) -> JobResult:
        """As the base class. A file that is not what was stored is set aside, and its key CORRUPT."""
        await self._ready_for(job)
        everything = range(len(job.keys))
        outcomes = await self._jobs.load(job, everything, self._mover.load, self._ledger.loaded)
        return JobResult(job.job_id, job.keys, outcomes, self.tier_type)

    def hurry(self, job_id: int, priority: Priority) -> None:
        self._pool.hurry(job_id, priority)

    async def touch(self, keys: Sequence[OffloadKey]) -> None:
        """As the base class; blocks that were touched within the last minute cost nothing. If cancelled: raises at
        once."""
        await self.start()
        batch = self._now()
        due = [(key, used_at(batch, place)) for place, key in enumerate(keys) if self._renewals.is_due(key)]
        if due:
            await self._in_clerk(partial(self._space.touch, [key for key, _ in due], [used for _, used in due]))

    def take_events(self) -> Sequence[OffloadingEvent]:
        return self._ledger.events.take()

    def stats(self) -> Mapping[str, float]:
        """``blocks`` and ``bytes`` on disk, whether ``direct_io`` is used, whether the old blocks were all
        ``scanned``, ``leftovers_removed``, and since the start: keys ``probed``, and for each direction and status
        the number of keys, such as ``load_corrupt``. With bounds also those of :meth:`BlockSpace.bound_stats`."""
        return {
            "blocks": len(self._index),
            "bytes": self._index.nbytes,
            "direct_io": float(self._started and self._space.files.direct),
            "scanned": float(self._scan is not None and self._scan.done()),
            **self._ledger.counts,
            **self._space.bound_stats(),
            "leftovers_removed": self._space.leftovers_removed
            + (self._housekeeping.leftovers_removed if self._housekeeping else 0),
        }

    def pool_stats(self) -> PoolStats:
        return self._pool.stats()

    async def drain(self) -> None:
        """As the base class. If cancelled: leaves at once; the jobs go on."""
        await self._jobs.ended()

    async def aclose(self, *, drain: bool = True, drain_timeout: float = 10.0, timeout: float | None = None) -> None:
        self._closed = True
        if not self._left:
            closing = asyncio.create_task(self._close(drain, drain_timeout, timeout), name=f"{self.tier_type}: close")
            await outlive(closing, self._jobs.stop)

    async def _close(self, drain: bool, drain_timeout: float, timeout: float | None) -> None:
        async with self._starting:
            if self._left:
                return
            self._jobs.stop(keep_stores=drain)
            if drain:
                await self._jobs.ended(drain_timeout)
                self._jobs.stop()
            await self._stop_background()
            await self._jobs.ended(timeout)
            if self._jobs:
                raise TierUnavailable(
                    f"tier {self.tier_type!r} still moves blocks of jobs {self._jobs.names} after {timeout} seconds: "
                    "their slots must not be used; close again to go on waiting"
                )
            if self._owns_pool:
                await self._pool.aclose(drain=False)
            if self._space.is_open:
                await outlive(asyncio.get_running_loop().run_in_executor(self._clerk, self._space.leave))
            self._clerk.shutdown(wait=False)
            self._keeper.shutdown(wait=False)
            self._view.release()
            self._left = True

    async def _ready_for(self, job: TransferJob) -> None:
        await self.start()
        check_job(job, self._layout, self._n_slots)

    def _settle_store(self, keys: Sequence[OffloadKey], outcomes: Sequence[KeyOutcome]) -> None:
        if not self._ledger.stored(keys, outcomes):
            self._started = False  # the next call makes the directory anew
        if self._housekeeping is not None and self._space.allowance.waits:
            self._housekeeping.wake()

    def _keep_house(self) -> None:
        """With bounds, begin to keep them; without, nothing is ever removed."""
        if not self._space.bounds or self._space.evictor is None:
            return
        self._housekeeping = Housekeeping(
            self._space.root,
            self._space.allowance,
            self._space.evictor,
            self._keeper,
            self._report_evicted,
            self._ledger.complaints,
        )
        self._keeping = asyncio.create_task(self._housekeeping.run(), name=f"{self.tier_type}: housekeeping")

    def _report_evicted(self) -> None:
        """Enter what the housekeeping removed; it may have been anybody's."""
        assert self._space.evictor is not None
        assert self._housekeeping is not None
        if self._housekeeping.account_is_lost:
            self._started = False  # the next call opens it anew
        removed = self._space.evictor.take_removed()
        self._ledger.evicted([key for path in removed if (key := self._space.key_at(path)) is not None])

    async def _look_through(self) -> None:
        """Enter the blocks of earlier processes into the index; the tier serves meanwhile."""
        try:
            for parent in await self._in_clerk(self._space.fan_out):
                began = time.monotonic()
                with self._index.look() as left:
                    found = await self._in_clerk(partial(self._space.look_through, parent))
                    pause = time.monotonic() - began
                    for first in range(0, len(found), 256):
                        self._index.add(key for key in found[first : first + 256] if key not in left)
                        await asyncio.sleep(0)
                await asyncio.sleep(pause)  # half of the time belongs to others
            await self._in_clerk(self._space.finish_looking)
        except OSError as error:
            self._ledger.complaints.add("scan", f"looking through {self._space.directory} ended early: {error}")

    async def _stop_background(self) -> None:
        if self._scan is not None:
            self._scan.cancel()
            await asyncio.wait([self._scan])
        if self._housekeeping is not None and self._keeping is not None:
            self._housekeeping.stop()
            await asyncio.wait([self._keeping])
            self._housekeeping = self._keeping = None

    async def _in_clerk(self, call: Callable[[], T]) -> T:
        """Run a short call about names in a thread; when cancelled, leave it to itself."""
        return await asyncio.get_running_loop().run_in_executor(self._clerk, call)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"tier {self.tier_type!r} is closed: make a new one")

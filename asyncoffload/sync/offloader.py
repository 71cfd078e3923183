"""A whole stack for engines that are driven in steps."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from asyncoffload.aio.loop_thread import LoopThread
from asyncoffload.config import OffloaderSettings
from asyncoffload.core.policies import EvictionPolicy
from asyncoffload.core.recompute import Estimate
from asyncoffload.errors import ClosedError, TierUnavailable
from asyncoffload.keys import OffloadKey, keys_within
from asyncoffload.offloader.offloader import HandlerFactory, Offloader, TierFactory
from asyncoffload.offloader.results import LoadResult, StoreResult
from asyncoffload.offloader.stats import OffloaderStats
from asyncoffload.offloader.wiring import KVCaches
from asyncoffload.sync.closing import close_on
from asyncoffload.sync.jobs import LoopJobs
from asyncoffload.sync.probing import Probes
from asyncoffload.types import ANONYMOUS, Explanation, Int32s, KVLayout, LookupResult, RequestContext, Status

START_SECONDS = 30.0
"""How long the constructor waits for the tiers."""

MAX_BLOCKS_PER_COLLECTION = 1024


@dataclass(frozen=True, slots=True)
class OffloadResult:
    """How a load or a store ended.

    Attributes:
        job_id: what ``submit_load``, ``submit_prefetch`` or ``submit_store`` returned.
        is_store: whether it was the last of these.
        success: nothing failed. If not, the device blocks of a load are undefined, and of a store some may be missing.
        blocks: of a load, the length of the prefix that is in the device blocks, of a prefetch, of that in host memory;
            of a store, how many blocks the primary has now that it had not before.
        by_tier: where the blocks of a load came from; ``"CPU"`` is the primary.
        stopped_by: why not all blocks were moved; None when they were, when they were there already, or when no more
            was asked for, as :class:`~asyncoffload.LoadResult` says.
        error: what failed, or ``CancelledError`` for a job that was cancelled.
        estimate: how long a prefix was worth loading; None where that was not asked for.
    """

    job_id: int
    is_store: bool
    success: bool
    blocks: int = 0
    by_tier: Mapping[str, int] = field(default_factory=dict)
    stopped_by: Status | None = None
    error: BaseException | None = None
    estimate: Estimate | None = None


@dataclass(slots=True, eq=False)
class _Work:
    job_id: int
    is_store: bool
    move: Callable[[], Awaitable[LoadResult | StoreResult]]
    cancelled: bool = False
    task: asyncio.Task[Any] | None = None

    def cancel(self) -> None:
        self.cancelled = True
        if self.task is not None:
            self.task.cancel()


class SyncOffloader:
    """An :class:`~asyncoffload.Offloader` for callers that know nothing of event loops. Any thread may call.

    Device blocks belong to a job from its submission until :meth:`wait` has returned or its result was handed out: an
    engine writes nothing into them, and reads nothing from those of a load. They are copied by threads, not in the
    order of work that the engine has queued on a device: submit a store when its blocks have been computed.

    In a process that was forked from the one that made it, every call raises
    :class:`~asyncoffload.errors.WrongLoopError`.

    Args:
        settings, kv_caches, policy, tiers, handler, clock: as :class:`~asyncoffload.Offloader` takes them.
        loop: by default the loop that all facades of this process share.

    Raises:
        ConfigError, InvalidArgument, CapacityError: as ``Offloader``.
        TierUnavailable: a tier cannot be reached, or did not start within 30 seconds.
    """

    def __init__(
        self,
        settings: OffloaderSettings | Mapping[str, object],
        *,
        kv_caches: KVCaches,
        policy: EvictionPolicy | None = None,
        tiers: Sequence[TierFactory] = (),
        handler: HandlerFactory | None = None,
        loop: LoopThread | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loop = LoopThread.shared() if loop is None else loop
        self._offloader = Offloader(
            settings, kv_caches=kv_caches, policy=policy, tiers=tiers, handler=handler, clock=clock
        )
        self._probes = {tier.tier_type: Probes(tier, self._loop, clock) for tier in self._offloader.tiers}
        self._jobs: LoopJobs[_Work, OffloadResult] = LoopJobs(self._loop, self._run, _n_blocks)
        self._ids = itertools.count(1)
        self._closed = False
        try:
            self._loop.run(self._offloader.__aenter__, START_SECONDS)
        except TimeoutError:
            raise TierUnavailable(f"{self._offloader!r} did not start within {START_SECONDS} seconds") from None

    @property
    def layout(self) -> KVLayout:
        """What the bytes of a block mean, as read from settings and tensors."""
        return self._offloader.layout

    def __repr__(self) -> str:
        ended = self._jobs.uncollected
        running = len(self._jobs) - ended
        return f"<{type(self).__name__}: {running} jobs running, {ended} to be collected, {self._offloader!r}>"

    # ---- the hot calls

    def lookup(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> int | None:
        """How many of the leading blocks some tier holds; None while tiers are being asked: ask again next step.

        Advice, at once; it moves nothing. The load tells what was really there.

        Raises:
            InvalidArgument: keys are malformed.
            ClosedError, WrongLoopError, InternalError: shut down; the process was forked; the loop's thread has ended.
        """
        self._check_open()
        keys = keys_within(ctx.namespace, keys)
        n_found = self._offloader.ready(keys)
        probes = [probe for name, probe in self._probes.items() if ctx.tiers is None or name in ctx.tiers]
        waiting = False
        # Beyond the first unknown key, too, so that tiers are asked for all of them at once.
        for key in islice(keys, n_found, None):
            answer = LookupResult.HIT if self._offloader.ready((key,)) else _best(probes, key)
            if answer is LookupResult.MISS:
                break
            waiting = waiting or answer is LookupResult.RETRY
            n_found += 1
        return None if waiting else n_found

    def submit_load(
        self,
        keys: Sequence[OffloadKey],
        device_blocks: Sequence[int] | Int32s,
        ctx: RequestContext = ANONYMOUS,
        *,
        prefill_rate: float | None = None,
    ) -> int:
        """Bring the longest prefix that can be had into the device blocks; returns the job's id at once.

        Whatever is wrong, with the arguments or later, is told by the result.

        Args:
            prefill_rate: tokens per second that the request computes: load or recompute, as :meth:`Offloader.load`.

        Raises:
            ClosedError, WrongLoopError, InternalError: as :meth:`lookup`.
        """
        load = self._offloader.load
        return self._submit(False, partial(load, tuple(keys), _own(device_blocks), ctx, prefill_rate=prefill_rate))

    def submit_prefetch(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> int:
        """Bring the longest prefix that can be had into host memory, patiently, as :meth:`Offloader.prefetch`.

        Returns the job's id at once; otherwise as :meth:`submit_load`.
        """
        return self._submit(False, partial(self._offloader.prefetch, tuple(keys), ctx))

    def submit_store(
        self, keys: Sequence[OffloadKey], device_blocks: Sequence[int] | Int32s, ctx: RequestContext = ANONYMOUS
    ) -> int:
        """Copy those of the blocks that are absent into host memory, and from there, later, to the slower tiers.

        Returns the job's id at once; otherwise as :meth:`submit_load`.
        """
        return self._submit(True, partial(self._offloader.store, tuple(keys), _own(device_blocks), ctx))

    def cancel(self, job_ids: Iterable[int]) -> None:
        """Nobody wants these jobs any more: what runs of them ends early. Unknown ids are ignored; returns at once.

        Each still has its one result; its device blocks are free when that was handed out, or after :meth:`wait`.
        """
        for work in self._jobs.running(job_ids).values():
            self._loop.post(work.cancel)

    def get_finished(self) -> list[OffloadResult]:
        """The jobs that have ended and were not handed out before, oldest end first.

        As many as have 1,024 blocks together, or one if that alone has more; call again for the rest.

        Raises:
            WrongLoopError: the process was forked.
            InternalError: the loop's thread has ended, and all that ended before it has been handed out.
        """
        return self._jobs.collect(MAX_BLOCKS_PER_COLLECTION)

    def has_pending_work(self) -> bool:
        """Whether a job is running, or has a result that was not handed out."""
        return len(self._jobs) > 0

    # ---- less often

    def wait(self, job_ids: Iterable[int], timeout: float | None = None) -> None:
        """Block until nothing touches the device blocks of these jobs; their results stay to be collected.

        Ids of no running job are ignored.

        Raises:
            TierUnavailable: some still run after ``timeout`` seconds; names them.
            WrongLoopError, InternalError: the process was forked; the loop's thread has ended.
        """
        if late := self._jobs.wait(job_ids, timeout):
            raise TierUnavailable(
                f"jobs {', '.join(map(str, late))} still run after {timeout} seconds: "
                "their device blocks must not be used; wait again to go on waiting"
            )

    def settle(self, timeout: float | None = None) -> None:
        """Block until every block that is on its way to a slower tier now has arrived there or was shed.

        Raises:
            TierUnavailable: some are still on their way after ``timeout`` seconds.
            ClosedError: the offloader was shut down.
            WrongLoopError, InternalError: as :meth:`wait`.
        """
        self._until_in_tiers(self._offloader.settle, timeout)

    def flush(self, timeout: float | None = None) -> None:
        """Copy every block of host memory to the slower tiers that have none of it, and block until that has ended.

        What is stored meanwhile is not waited for.

        Raises:
            TierUnavailable: some are still on their way after ``timeout`` seconds.
            ClosedError: the offloader was shut down.
            WrongLoopError, InternalError: as :meth:`wait`.
        """
        self._until_in_tiers(self._offloader.flush, timeout)

    def explain(self, key: OffloadKey, ctx: RequestContext = ANONYMOUS) -> Explanation:
        """Where a block is, was, when and why it left; see :meth:`Offloader.explain`. Blocks while tiers are asked.

        Raises:
            InvalidArgument: the key is malformed.
            ClosedError, WrongLoopError, InternalError: as :meth:`lookup`.
        """
        self._check_open()
        return self._loop.run(lambda: self._offloader.explain(key, ctx))

    def stats(self) -> OffloaderStats:
        """Where the stack stands."""
        return self._offloader.stats()

    def shutdown(self, timeout: float = 30.0) -> None:
        """Drop what is queued, wait for what runs, close the stack. It always ends; results stay to be collected.

        Blocks that no slower tier has yet are lost with host memory: :meth:`flush` before brings them there.

        Raises:
            TierUnavailable: something still runs after ``timeout`` seconds; its device blocks must stay, and host
                memory stays mapped. Call again to go on waiting.
            WrongLoopError, InternalError: as :meth:`wait`.
        """
        self._closed = True
        close_on(self._loop, lambda: self._close(timeout), timeout, self._left)

    # ---- inside

    def _left(self, behind: str, why: str) -> str:
        jobs = ", ".join(map(str, self._jobs.running())) or "none"
        return f"the offloader {behind}, with jobs {jobs}: {why}; its host memory stays mapped: {self._offloader!r}"

    def _until_in_tiers(self, copying: Callable[[], Coroutine[Any, Any, None]], timeout: float | None) -> None:
        try:
            self._loop.run(copying, timeout)
        except TimeoutError:
            raise TierUnavailable(f"blocks are still on their way to the tiers after {timeout} seconds") from None

    def _submit(self, is_store: bool, move: Callable[[], Awaitable[LoadResult | StoreResult]]) -> int:
        self._check_open()
        job_id = next(self._ids)
        self._jobs.submit(job_id, _Work(job_id, is_store, move))
        return job_id

    def _check_open(self) -> None:
        self._loop.check()
        if self._closed:
            raise ClosedError("the offloader was shut down: make a new one")

    async def _run(self, work: _Work) -> OffloadResult:
        work.task = asyncio.current_task()
        try:
            if work.cancelled:
                raise asyncio.CancelledError
            result = await work.move()
        except (Exception, asyncio.CancelledError) as error:  # each job has its one result, whatever happens
            return OffloadResult(work.job_id, work.is_store, False, error=error)
        return _told(work, result)

    async def _close(self, timeout: float) -> None:
        for work in self._jobs.running().values():
            work.cancel()
        await self._offloader.aclose(drain=False, timeout=timeout)
        await self._jobs.ended()


def _best(probes: Iterable[Probes], key: OffloadKey) -> LookupResult:
    """HIT if one tier has it, else RETRY if one is being asked; all are asked at once."""
    best = LookupResult.MISS
    for probe in probes:
        answer = probe.lookup(key)
        if answer is LookupResult.HIT:
            return answer
        if answer is LookupResult.RETRY:
            best = answer
    return best


def _own(device_blocks: Sequence[int] | Int32s) -> Sequence[int] | Int32s:
    """A copy, since the caller may use its own for something else at once."""
    return device_blocks.copy() if isinstance(device_blocks, np.ndarray) else tuple(device_blocks)


def _told(work: _Work, result: LoadResult | StoreResult) -> OffloadResult:
    if isinstance(result, LoadResult):
        return OffloadResult(
            work.job_id, False, True, result.blocks, result.by_tier, result.stopped_by, estimate=result.estimate
        )
    return OffloadResult(work.job_id, True, True, result.stored, {}, Status.SHED if result.shed else None)


def _n_blocks(result: OffloadResult) -> int:
    return result.blocks

"""A tier around another one: passes everything on, and keeps the laws for what it holds back itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Generic, TypeVar

from asyncoffload.aio.pool_stats import PoolStats
from asyncoffload.aio.waiting import outlive
from asyncoffload.errors import ClosedError, TierUnavailable
from asyncoffload.keys import OffloadKey
from asyncoffload.tiers.base import SecondaryTierManager
from asyncoffload.types import (
    ANONYMOUS,
    CANCELLED,
    Findings,
    JobResult,
    LookupResult,
    OffloadingEvent,
    Priority,
    RequestContext,
    TransferJob,
)

Tier = TypeVar("Tier", bound=SecondaryTierManager)


class WrappedTier(SecondaryTierManager, Generic[Tier]):
    """Behaves as the tier inside. Derived classes change :meth:`_lookup`, :meth:`_store` and :meth:`_load`.

    What a derived class holds back counts as work of this tier: draining waits for it. In :meth:`_queued` it counts as
    queued, so that closing drops it with a result; else it counts as running, and closing waits for it.

    Put a tier under the laws as it is, and not in here: what it does wrong when it drains or closes would be cured.

    Args:
        inner: the tier; it is closed with this one.

    Attributes:
        inner: the tier inside.
    """

    def __init__(self, inner: Tier) -> None:
        self.inner = inner
        self.tier_type = inner.tier_type
        self._closing = False
        self._dropping: set[bool] = set()  # loads, stores or both: by whether it is a store
        self._jobs: dict[asyncio.Future[None], tuple[int, bool]] = {}  # and whether it is a store
        self._in_queue: dict[asyncio.Future[None], bool] = {}
        self._inner_closing: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        state = "closed, " if self._closing else ""
        return f"<{type(self).__name__} {state}{len(self._jobs)} jobs under way, around {self.inner!r}>"

    async def start(self) -> None:
        self._check_open()
        await self.inner.start()

    async def lookup(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> Sequence[LookupResult]:
        self._check_open()
        return await self._lookup(keys, ctx)

    async def store(self, job: TransferJob) -> JobResult:
        return await self._run(job, self._store, is_store=True)

    async def load(self, job: TransferJob) -> JobResult:
        return await self._run(job, self._load, is_store=False)

    def hint(self, key: OffloadKey) -> bool:
        return self.inner.hint(key)

    def hurry(self, job_id: int, priority: Priority) -> None:
        self.inner.hurry(job_id, priority)

    async def touch(self, keys: Sequence[OffloadKey]) -> None:
        await self.inner.touch(keys)

    async def explain(self, key: OffloadKey) -> Findings:
        self._check_open()
        return await self.inner.explain(key)

    def take_events(self) -> Sequence[OffloadingEvent]:
        return self.inner.take_events()

    def stats(self) -> Mapping[str, float]:
        return self.inner.stats()

    def pool_stats(self) -> PoolStats | None:
        return self.inner.pool_stats()

    async def drain(self) -> None:
        if self._jobs:
            await asyncio.wait(set(self._jobs))
        await self.inner.drain()

    async def aclose(self, *, drain: bool = True, drain_timeout: float = 10.0, timeout: float | None = None) -> None:
        self._closing = True
        await outlive(asyncio.ensure_future(self._close(drain, drain_timeout, timeout)), self._hurry_closing)

    async def _lookup(self, keys: Sequence[OffloadKey], ctx: RequestContext) -> Sequence[LookupResult]:
        return await self.inner.lookup(keys, ctx)

    async def _store(self, job: TransferJob) -> JobResult:
        return await self.inner.store(job)

    async def _load(self, job: TransferJob) -> JobResult:
        return await self.inner.load(job)

    async def _queued(self, waiting: Coroutine[Any, Any, None], *, is_store: bool) -> bool:
        """Wait before the job, or the next part of it, begins; False when the tier closes and the job is dropped."""
        if is_store in self._dropping:
            waiting.close()
            return False
        task = asyncio.ensure_future(waiting)
        self._in_queue[task] = is_store
        try:
            await task
        except asyncio.CancelledError:
            me = asyncio.current_task()
            if me is None or me.cancelling() or is_store not in self._dropping:
                raise
            return False
        finally:
            del self._in_queue[task]
        return True

    def _dropped(self, job: TransferJob) -> JobResult:
        return JobResult(job.job_id, job.keys, [CANCELLED] * len(job.keys), self.tier_type)

    async def _run(
        self, job: TransferJob, move: Callable[[TransferJob], Awaitable[JobResult]], *, is_store: bool
    ) -> JobResult:
        self._check_open()
        ended = asyncio.get_running_loop().create_future()
        self._jobs[ended] = job.job_id, is_store
        try:
            return await move(job)
        finally:
            del self._jobs[ended]
            ended.set_result(None)

    async def _close(self, drain: bool, drain_timeout: float, timeout: float | None) -> None:
        self._drop_queued(keep_stores=drain)
        stores = {ended for ended, (_, is_store) in self._jobs.items() if is_store}
        if drain and stores:
            await asyncio.wait(stores, timeout=drain_timeout)
            self._drop_queued()
        self._inner_closing = asyncio.ensure_future(
            self.inner.aclose(drain=drain, drain_timeout=drain_timeout, timeout=timeout)
        )
        await asyncio.wait([self._inner_closing])
        if not self._inner_closing.cancelled():  # by _hurry_closing
            self._inner_closing.result()
        if self._jobs:
            await asyncio.wait(set(self._jobs), timeout=timeout)
        if self._jobs:
            jobs = ", ".join(str(job_id) for job_id, _ in self._jobs.values())
            raise TierUnavailable(
                f"tier {self.tier_type!r} still holds jobs {jobs} after {timeout} seconds: open its gates, close again"
            )

    def _hurry_closing(self) -> None:
        self._drop_queued()
        if self._inner_closing is not None:
            self._inner_closing.cancel()

    def _drop_queued(self, *, keep_stores: bool = False) -> None:
        self._dropping |= {False} if keep_stores else {False, True}
        for task, is_store in list(self._in_queue.items()):
            if is_store in self._dropping:
                task.cancel()

    def _check_open(self) -> None:
        if self._closing:
            raise ClosedError(f"tier {self.tier_type!r} is closed: make a new one")

"""A tier with the latency and the bandwidth that a test wants, on the clock that it wants."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from asyncoffload.errors import InvalidArgument
from asyncoffload.keys import OffloadKey, group_of
from asyncoffload.testing.clocks import Clock, LoopClock
from asyncoffload.testing.tiers.wrapped import Tier, WrappedTier
from asyncoffload.types import CANCELLED, JobResult, KeyOutcome, KVLayout, LookupResult, RequestContext, TransferJob


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast one direction of a tier is.

    Attributes:
        bandwidth: bytes per second.
        latency: seconds before the first byte of a job moves. Latencies of several jobs pass at the same time.
    """

    bandwidth: float = math.inf
    latency: float = 0.0

    def __post_init__(self) -> None:
        if not (self.bandwidth > 0 and self.latency >= 0):
            raise InvalidArgument(f"a speed has a bandwidth above 0 and a latency of 0 or more, got {self}")


class SlowTier(WrappedTier[Tier]):
    """Passes everything on to the tier inside, after the time that it takes.

    Each direction is one line: blocks pass one after the other, first come first served, those of several jobs in
    turn. A block moves when its time has passed, in one call of the tier inside: a job that is cancelled, or a key that
    is not wanted any more, is noticed between two blocks.

    Args:
        inner: the tier; it is closed with this one.
        layout: says how many bytes a block has.
        load, store: the speed of each direction.
        lookup_seconds: how long a lookup takes, whatever the number of keys.
        clock: what the seconds pass on; by default that of the running loop, which may be a virtual one.
    """

    def __init__(
        self,
        inner: Tier,
        layout: KVLayout,
        *,
        load: Speed = Speed(),
        store: Speed = Speed(),
        lookup_seconds: float = 0.0,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(inner)
        self._layout = layout
        self._clock = clock or LoopClock()
        self._lookup_seconds = lookup_seconds
        self._loads = _Line(load, self._clock)
        self._stores = _Line(store, self._clock)

    async def _lookup(self, keys: Sequence[OffloadKey], ctx: RequestContext) -> Sequence[LookupResult]:
        await self._clock.sleep(self._lookup_seconds)
        self._check_open()
        return await super()._lookup(keys, ctx)

    async def _store(self, job: TransferJob) -> JobResult:
        return await self._block_by_block(job, self._stores, super()._store, is_store=True)

    async def _load(self, job: TransferJob) -> JobResult:
        return await self._block_by_block(job, self._loads, super()._load, is_store=False)

    async def _block_by_block(
        self, job: TransferJob, line: _Line, move: Callable[[TransferJob], Awaitable[JobResult]], *, is_store: bool
    ) -> JobResult:
        outcomes: list[KeyOutcome] = []
        latency = line.speed.latency if job.keys else 0.0
        if latency and not await self._queued(self._clock.sleep(latency), is_store=is_store):
            return self._dropped(job)
        for key, slot in zip(job.keys, job.slots, strict=True):
            nbytes = self._layout.group_bytes(group_of(key))
            if key in job.unwanted or not await self._queued(line.pass_block(nbytes), is_store=is_store):
                outcomes.append(CANCELLED)
                continue
            block = TransferJob([key], [slot], job.priority, job.deadline, job.unwanted, job.job_id)
            outcomes += (await move(block)).outcomes
        return JobResult(job.job_id, job.keys, outcomes, self.tier_type)


class _Line:
    """One block after the other."""

    def __init__(self, speed: Speed, clock: Clock) -> None:
        self.speed = speed
        self._clock = clock
        self._free_at = -math.inf

    async def pass_block(self, nbytes: int) -> None:
        """Return when the block has passed. Cancellation: leaves at once; its time on the line is lost."""
        now = self._clock()
        self._free_at = max(now, self._free_at) + nbytes / self.speed.bandwidth
        await self._clock.sleep(self._free_at - now)

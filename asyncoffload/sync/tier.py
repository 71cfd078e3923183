"""A secondary tier for callers that know nothing of event loops."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

from asyncoffload.aio.loop_thread import LoopThread
from asyncoffload.errors import ClosedError, TierUnavailable, TransferError
from asyncoffload.keys import OffloadKey
from asyncoffload.sync.closing import close_on
from asyncoffload.sync.jobs import LoopJobs
from asyncoffload.sync.probing import Probes
from asyncoffload.tiers.base import SecondaryTierManager
from asyncoffload.tiers.event_log import MAX_EVENTS
from asyncoffload.types import (
    ANONYMOUS,
    CANCELLED,
    JobResult,
    KeyOutcome,
    LookupResult,
    OffloadingEvent,
    RequestContext,
    Status,
    TransferJob,
)

MAX_KEYS_PER_COLLECTION = 1024
"""Keys whose results one call of ``get_finished`` hands out: what follows from them is the caller's time, too."""

_Work = tuple[TransferJob, bool]
"""A job, and whether it is a store."""


class SyncSecondaryTier:
    """Wraps a tier: submit jobs, collect their results, ask for keys. Any thread may call.

    No call waits, except :meth:`drain_jobs` and :meth:`shutdown`: the others leave a note for the loop's thread, or
    pick up what it left. Each job has exactly one result, in the order in which the jobs ended. The slots of a job
    belong to the tier until :meth:`drain_jobs` has returned or the job's result was handed out.

    In a process that was forked from the one that made it, every call raises
    :class:`~asyncoffload.errors.WrongLoopError`: make the tier and its facade anew there.

    Args:
        tier: the tier; from now on it belongs to the facade's loop, and :meth:`shutdown` closes it.
        loop: by default the loop that all facades of this process share.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        tier: SecondaryTierManager,
        *,
        loop: LoopThread | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tier = tier
        self._loop = LoopThread.shared() if loop is None else loop
        self._probes = Probes(tier, self._loop, clock)
        self._jobs: LoopJobs[_Work, JobResult] = LoopJobs(self._loop, self._run, _n_keys)
        self._events: deque[OffloadingEvent] = deque()
        self._wants_events = False
        self._closed = False

    @property
    def tier_type(self) -> str:
        """The tier's name."""
        return self._tier.tier_type

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return (
            f"<{type(self).__name__} {self.tier_type!r} {state}: {len(self._jobs) - self._jobs.uncollected} jobs "
            f"running, {self._jobs.uncollected} to be collected, {len(self._probes)} keys asked for>"
        )

    def start(self, timeout: float | None = None) -> None:
        """Start the tier, so that what is wrong with it shows now and not in the first job; blocks.

        Raises:
            ConfigError, TierUnavailable: what the tier found; TierUnavailable also after ``timeout`` seconds.
            ClosedError, WrongLoopError, InternalError: as the other calls.
        """
        self._check_open()
        try:
            self._loop.run(self._tier.start, timeout)
        except TimeoutError:
            raise TierUnavailable(f"tier {self.tier_type!r} did not start within {timeout} seconds") from None

    # ---- the hot calls

    def lookup(self, key: OffloadKey, ctx: RequestContext = ANONYMOUS) -> LookupResult:
        """HIT, MISS, or RETRY: ask again, the tier is being asked.

        A HIT is what the tier believes; the load verifies it. A key whose load failed is a MISS until it is stored
        again. A miss is believed for a second, and for another one while the tier is asked anew, so that a caller who
        asks every step sees the blocks of neighbours, but no second RETRY.

        Raises:
            ClosedError: the tier was shut down.
            WrongLoopError, InternalError: the process was forked; the loop's thread has ended.
        """
        if self._closed or not self._loop.alive:
            self._check_open()
        if ctx.tiers is not None and self.tier_type not in ctx.tiers:
            return LookupResult.MISS
        return self._probes.lookup(key)

    def submit_store(self, job: TransferJob) -> None:
        """Keep the blocks that lie in the job's slots; returns at once.

        Raises:
            InvalidArgument: a job of that id is running, or its result was not collected yet; nothing was submitted.
            ClosedError, WrongLoopError, InternalError: as :meth:`lookup`.
        """
        self._check_open()
        self._jobs.submit(job.job_id, (job, True))

    def submit_load(self, job: TransferJob) -> None:
        """Bring blocks into the job's slots, verified; returns at once. Raises what :meth:`submit_store` does."""
        self._check_open()
        self._jobs.submit(job.job_id, (job, False))

    def cancel(self, job_ids: Iterable[int]) -> None:
        """Nobody wants these jobs any more: what has not begun of them is skipped. Unknown ids are ignored.

        Each still has its one result, in which the skipped keys are CANCELLED; collect it before their slots are used.
        """
        for job, _ in self._jobs.running(job_ids).values():
            job.unwanted.update(job.keys)

    def get_finished(self) -> list[JobResult]:
        """The jobs that have ended and were not handed out before, oldest end first.

        As many as have 1,024 keys together, or one if that alone has more; call again for the rest.

        Raises:
            WrongLoopError: the process was forked.
            InternalError: the loop's thread has ended, and all that ended before it has been handed out.
        """
        return self._jobs.collect(MAX_KEYS_PER_COLLECTION)

    get_finished_jobs = get_finished

    def has_pending_work(self) -> bool:
        """Whether a job is running, or has a result that was not handed out."""
        return len(self._jobs) > 0

    # ---- less often

    def touch(self, keys: Sequence[OffloadKey]) -> None:
        """The blocks were used elsewhere: a tier that evicts should keep them longer. Returns at once."""
        self._check_open()
        kept = tuple(keys)
        self._loop.post(lambda: self._loop.spawn(self._tier.touch(kept)))

    def forget_request(self, request_id: str) -> None:  # noqa: ARG002 (answers do not say who asked)
        """A request has ended: answers that nobody has asked for lately are forgotten. Returns at once."""
        self._loop.post(self._probes.forget_stale)

    def take_events(self) -> Sequence[OffloadingEvent]:
        """Blocks that appeared or left since the last call; what happened just now may come with the next one.

        Events are collected from the first call on; the tier keeps a bounded number of earlier ones.
        """
        self._wants_events = True
        self._loop.post(self._pull_events)
        return [self._events.popleft() for _ in range(len(self._events))]

    def stats(self) -> Mapping[str, float]:
        """The tier's counters and gauges by name."""
        return self._tier.stats()

    def drain_jobs(self, timeout: float | None = None) -> None:
        """Block until every job that was submitted before the call has ended; their results stay to be collected.

        Raises:
            TierUnavailable: jobs still run after ``timeout`` seconds, and may touch their slots; names them.
            WrongLoopError, InternalError: the process was forked; the loop's thread has ended.
        """
        if late := self._jobs.wait(timeout=timeout):
            raise TierUnavailable(
                f"tier {self.tier_type!r} still moves blocks of jobs {', '.join(map(str, late))} after {timeout} "
                "seconds: their slots must not be used; drain again to go on waiting"
            )

    def shutdown(self, timeout: float = 30.0) -> None:
        """Drop what is queued, wait for what runs, close the tier. It always ends; results stay to be collected.

        Raises:
            TierUnavailable: something still runs after ``timeout`` seconds and may touch its slots, so the memory must
                stay; names the jobs. Call again to go on waiting.
            WrongLoopError, InternalError: the process was forked; the loop's thread has ended.
        """
        self._closed = True
        close_on(self._loop, lambda: self._close(timeout), timeout, self._left)

    # ---- inside, on the caller's thread

    def _left(self, behind: str, why: str) -> str:
        left = self._jobs.running()
        n_blocks = sum(len(job.keys) for job, _ in left.values())
        return (
            f"tier {self.tier_type!r} {behind}, with jobs {', '.join(map(str, left)) or 'none'} of {n_blocks} blocks: "
            f"their slots must not be used, nor their memory be given back: {why}"
        )

    def _check_open(self) -> None:
        self._loop.check()
        if self._closed:
            raise ClosedError(f"tier {self.tier_type!r} was shut down: make a new one")

    # ---- inside, on the loop's thread

    async def _run(self, work: _Work) -> JobResult:
        job, is_store = work
        try:
            outcomes = (await (self._tier.store(job) if is_store else self._tier.load(job))).outcomes
            if len(outcomes) != len(job.keys):
                what = f"the tier answered for {len(outcomes)} of {len(job.keys)} keys"
                raise TransferError(what, tier=self.tier_type, failed_keys=job.keys)
            return self._told(job, is_store, outcomes)
        except asyncio.CancelledError:  # the loop is being stopped
            return self._told(job, is_store, [CANCELLED] * len(job.keys))
        except Exception as error:  # whatever a tier raises is a failure of its job: it has exactly one result
            return self._told(job, is_store, [KeyOutcome(Status.FAILED, error)] * len(job.keys))

    def _told(self, job: TransferJob, is_store: bool, outcomes: Sequence[KeyOutcome]) -> JobResult:
        """Take note of what became of a job. Raises what comes of answers that are none."""
        result = JobResult(job.job_id, job.keys, outcomes, self.tier_type)
        (self._probes.stored if is_store else self._probes.loaded)(result)
        if self._wants_events:
            self._loop.loop.call_soon(self._pull_events)
        return result

    async def _close(self, timeout: float) -> None:
        await self._tier.aclose(drain=False, timeout=timeout)
        await self._jobs.ended()

    def _pull_events(self) -> None:
        if len(self._events) < MAX_EVENTS:
            self._events.extend(self._tier.take_events())


def _n_keys(result: JobResult) -> int:
    return len(result.keys)

"""One op, one tier call, one answer: the part that every conductor of the planner shares."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from asyncoffload.core.ops import Hurry, Op, OpKind
from asyncoffload.keys import OffloadKey
from asyncoffload.memory.region import HostRegion
from asyncoffload.tiers.base import SecondaryTierManager
from asyncoffload.tiers.complaints import Complaints
from asyncoffload.types import LookupResult, OffloadingEvent, RequestContext, Status, TransferJob

logger = logging.getLogger(__name__)

WHATEVER_A_TIER_RAISES = (Exception, asyncio.CancelledError)
"""By a plain call, in which nobody can have cancelled us."""

_TROUBLE = frozenset({Status.CORRUPT, Status.FAILED, Status.TIMED_OUT})


class OpRunner:
    """Turns planned ops into tier calls and tier answers into statuses.

    A tier that raises, or answers for the wrong number of keys, has failed for all keys of the op: that is a miss or a
    dirty block, never an error of a caller.

    Args:
        tiers: the secondary tiers, by the planner's indices.
        region: the primary's memory; an op's slots are held in it until the tier's coroutine has ended.
    """

    def __init__(
        self,
        tiers: Sequence[SecondaryTierManager],
        region: HostRegion,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tiers = tuple(tiers)
        self._region = region
        self._jobs: dict[int, TransferJob] = {}
        self._complaints = Complaints(logger, clock)

    async def run(self, op: Op) -> list[Status]:
        """Call the op's tier; returns one status per key.

        Cancellation: raises when the tier's coroutine has ended, which by the law of tiers is when nothing touches
        the op's slots any more.
        """
        tier = self._tiers[op.tier]
        trouble = Status.FAILED
        try:
            statuses = await self._probe(tier, op) if op.kind is OpKind.PROBE else await self._transfer(tier, op)
            if len(statuses) == len(op.keys):
                return statuses
            self._complain(tier, op.kind.value, f"answered for {len(statuses)} of {len(op.keys)} keys")
        except TimeoutError as error:
            trouble = Status.TIMED_OUT
            self._complain(tier, op.kind.value, repr(error))
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            self._complain(tier, op.kind.value, f"cancelled itself: {error!r}")
        except Exception as error:  # whatever a tier raises is a failure of that tier, not of the stack above it
            self._complain(tier, op.kind.value, repr(error))
        return [trouble] * len(op.keys)

    def hurry(self, advice: Hurry) -> None:
        """Pass on that a more urgent caller waits for a running op."""
        job = self._jobs.get(advice.op_id)
        if job is not None:
            tier = self._tiers[advice.tier]
            job.priority = advice.priority
            try:
                tier.hurry(job.job_id, advice.priority)
            except WHATEVER_A_TIER_RAISES as error:
                self._complain(tier, "hurry", repr(error))

    def hint_of(self, tier: SecondaryTierManager) -> Callable[[OffloadKey], bool]:
        """The tier's ``hint``; where it raises, the tier does not know."""

        def hint(key: OffloadKey) -> bool:
            try:
                return tier.hint(key)
            except WHATEVER_A_TIER_RAISES as error:
                self._complain(tier, "hint", repr(error))
                return False

        return hint

    def take_events(self, tier: int) -> Sequence[OffloadingEvent]:
        """What appeared in a tier and left it since the last call."""
        try:
            return self._tiers[tier].take_events()
        except WHATEVER_A_TIER_RAISES as error:
            self._complain(self._tiers[tier], "take_events", repr(error))
            return ()

    async def _probe(self, tier: SecondaryTierManager, op: Op) -> list[Status]:
        answers = await tier.lookup(op.keys, RequestContext(priority=op.priority, deadline=op.deadline))
        return [Status.DONE if answer is LookupResult.HIT else Status.MISSING for answer in answers]

    async def _transfer(self, tier: SecondaryTierManager, op: Op) -> list[Status]:
        job = TransferJob(op.keys, op.slots, op.priority, op.deadline, op.unwanted)
        self._jobs[op.op_id] = job
        try:
            with self._region.hold(op.slots):
                result = await (tier.load(job) if op.kind is OpKind.PROMOTE else tier.store(job))
        finally:
            del self._jobs[op.op_id]
        broken = [outcome for outcome in result.outcomes if outcome.status in _TROUBLE]
        if broken:
            first = broken[0]
            self._complain(
                tier,
                op.kind.value,
                f"{len(broken)} of {len(op.keys)} blocks {first.status.value}, the first: {first.error}",
            )
        return [outcome.status for outcome in result.outcomes]

    def _complain(self, tier: SecondaryTierManager, call: str, what: str) -> None:
        self._complaints.add(f"{tier.tier_type} {call}", f"tier {tier.tier_type}: {call}: {what}")

"""One op, one tier call, one answer: the part that every conductor of the planner shares."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from asyncoffload.core.ops import Hurry, Op, OpKind
from asyncoffload.core.recompute import Route
from asyncoffload.keys import OffloadKey, group_of
from asyncoffload.managers.call_counts import CallCounts
from asyncoffload.managers.pace import TierPace
from asyncoffload.managers.tier_call import Settle, TierCall
from asyncoffload.memory.region import HostRegion
from asyncoffload.tiers.base import SecondaryTierManager
from asyncoffload.tiers.complaints import Complaints
from asyncoffload.types import (
    JobResult,
    KeyOutcome,
    LookupResult,
    OffloadingEvent,
    RequestContext,
    Status,
    TransferJob,
)

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
        group_bytes: bytes of a block of each group, to count what is moved; by default those of a slot.

    Attributes:
        calls: for each tier what its calls have come to.
    """

    def __init__(
        self,
        tiers: Sequence[SecondaryTierManager],
        region: HostRegion,
        *,
        group_bytes: Sequence[int] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tiers = tuple(tiers)
        self._region = region
        self._clock = clock
        self._group_bytes = tuple(group_bytes) or (region.slot_bytes,)
        self.calls = [{kind: CallCounts() for kind in OpKind} for _ in tiers]
        self._paces = [TierPace() for _ in tiers]
        self._jobs: dict[int, TransferJob] = {}
        self._complaints = Complaints(logger, clock)

    async def run(self, op: Op, settle: Settle) -> None:
        """Call the op's tier, and ``settle`` the op, with one status per key: exactly once, whatever happens.

        It returns when the tier's coroutine has ended, which by the law of tiers is when nothing touches the op's
        slots any more. The op is settled then, or as soon as the tier abandons the job.

        Cancellation: raises when the tier's coroutine has ended; the op is then settled as CANCELLED.
        """
        call = TierCall(op, self.calls[op.tier][op.kind], self._paces[op.tier], self.bytes_of, self._clock, settle)
        try:
            await self._conduct(op, call)
        finally:
            call.ended()

    def bytes_of(self, keys: Sequence[OffloadKey]) -> int:
        """Bytes of these blocks together."""
        if len(self._group_bytes) == 1:
            return self._group_bytes[0] * len(keys)
        return sum(self._group_bytes[group_of(key)] for key in keys)

    def routes(self, ahead: Mapping[int, Sequence[OffloadKey]]) -> dict[int, Route]:
        """How the tiers have delivered of late, by index; without those that have delivered nothing yet.

        Args:
            ahead: by tier, the blocks that it delivers before.
        """
        routes = {tier: pace.route(self.bytes_of(ahead.get(tier, ()))) for tier, pace in enumerate(self._paces)}
        return {tier: route for tier, route in routes.items() if route is not None}

    async def _conduct(self, op: Op, call: TierCall) -> None:
        tier, trouble = self._tiers[op.tier], Status.FAILED
        try:
            if op.kind is OpKind.PROBE:
                answers = await tier.lookup(op.keys, RequestContext(priority=op.priority, deadline=op.deadline))
                statuses = [Status.DONE if answer is LookupResult.HIT else Status.MISSING for answer in answers]
                self._answer(op, call, statuses)
            else:
                self._take(op, call, (await self._transfer(tier, op, call)).outcomes)
        except TimeoutError as error:
            trouble = Status.TIMED_OUT
            self._complain(op, repr(error))
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            self._complain(op, f"cancelled itself: {error!r}")
        except Exception as error:  # whatever a tier raises is a failure of that tier, not of the stack above it
            self._complain(op, repr(error))
        call.failed(trouble)

    async def _transfer(self, tier: SecondaryTierManager, op: Op, call: TierCall) -> JobResult:
        job = TransferJob(op.keys, op.slots, op.priority, op.deadline, op.unwanted, depths=op.depths or None)
        job.report = partial(self._abandon, op, call)
        self._jobs[op.op_id] = job
        try:
            with self._region.hold(op.slots):
                return await (tier.load(job) if op.kind is OpKind.PROMOTE else tier.store(job))
        finally:
            job.report = None
            del self._jobs[op.op_id]

    def _abandon(self, op: Op, call: TierCall, outcomes: Sequence[KeyOutcome]) -> None:
        self._region.held_among(op.slots)  # so that the region says when they are let go at last
        self._take(op, call, outcomes, abandoned=True)

    def _take(self, op: Op, call: TierCall, outcomes: Sequence[KeyOutcome], *, abandoned: bool = False) -> None:
        if not call.settled:
            broken = [outcome for outcome in outcomes if outcome.status in _TROUBLE]
            if broken:
                what = f"{len(broken)} of {len(op.keys)} blocks {broken[0].status.value}"
                self._complain(op, f"{what}, the first: {broken[0].error}")
            for key, outcome in zip(op.keys, outcomes, strict=False):  # of a wrong number of them none counts
                if not outcome.ok and (reason := outcome.why or str(outcome.error or "")):
                    op.reasons[key] = reason
            self._answer(op, call, [outcome.status for outcome in outcomes], abandoned=abandoned)

    def _answer(self, op: Op, call: TierCall, statuses: Sequence[Status], *, abandoned: bool = False) -> None:
        if len(statuses) == len(op.keys):
            call.answered(statuses, abandoned=abandoned)
        else:
            self._complain(op, f"answered for {len(statuses)} of {len(op.keys)} keys")

    def hurry(self, advice: Hurry) -> None:
        """Pass on that a more urgent caller waits for a running op."""
        job = self._jobs.get(advice.op_id)
        if job is not None:
            tier = self._tiers[advice.tier]
            job.priority = advice.priority
            try:
                tier.hurry(job.job_id, advice.priority)
            except WHATEVER_A_TIER_RAISES as error:
                self._complain_of(tier, "hurry", repr(error))

    def hint_of(self, tier: SecondaryTierManager) -> Callable[[OffloadKey], bool]:
        """The tier's ``hint``; where it raises, the tier does not know."""

        def hint(key: OffloadKey) -> bool:
            try:
                return tier.hint(key)
            except WHATEVER_A_TIER_RAISES as error:
                self._complain_of(tier, "hint", repr(error))
                return False

        return hint

    def take_events(self, tier: int) -> Sequence[OffloadingEvent]:
        """What appeared in a tier and left it since the last call."""
        try:
            return self._tiers[tier].take_events()
        except WHATEVER_A_TIER_RAISES as error:
            self._complain_of(self._tiers[tier], "take_events", repr(error))
            return ()

    def _complain(self, op: Op, what: str) -> None:
        self._complain_of(self._tiers[op.tier], op.kind.value, what)

    def _complain_of(self, tier: SecondaryTierManager, call: str, what: str) -> None:
        self._complaints.add(f"{tier.tier_type} {call}", f"tier {tier.tier_type}: {call}: {what}")

"""One op, one tier call, one answer: the part that every conductor of the planner shares."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from asyncoffload.core.ops import Hurry, Op, OpKind
from asyncoffload.core.recompute import Route
from asyncoffload.keys import OffloadKey, group_of
from asyncoffload.managers.call_counts import CallCounts
from asyncoffload.managers.pace import TierPace
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

    async def run(self, op: Op) -> list[Status]:
        """Call the op's tier; returns one status per key.

        Cancellation: raises when the tier's coroutine has ended, which by the law of tiers is when nothing touches
        the op's slots any more.
        """
        calls = self.calls[op.tier][op.kind]
        began_at = self._clock()
        calls.began()
        pace = self._paces[op.tier] if op.kind is OpKind.PROMOTE else None
        nbytes = moved = 0
        if pace is not None:
            pace.began(nbytes := self.bytes_of(op.keys), began_at)
        try:
            statuses, moved = await self._call(op, calls)
            return statuses
        finally:
            now = self._clock()
            calls.ended(now - began_at)
            if pace is not None:
                pace.ended(nbytes, moved, now)

    def bytes_of(self, keys: Sequence[OffloadKey]) -> int:
        """Bytes of these blocks together."""
        if len(self._group_bytes) == 1:
            return self._group_bytes[0] * len(keys)
        return sum(self._group_bytes[group_of(key)] for key in keys)

    def routes(self) -> dict[int, Route]:
        """How the tiers have delivered of late, by index; without those that have delivered nothing yet."""
        routes = {tier: pace.route() for tier, pace in enumerate(self._paces)}
        return {tier: route for tier, route in routes.items() if route is not None}

    async def _call(self, op: Op, calls: CallCounts) -> tuple[list[Status], int]:
        """The statuses, and the bytes of the blocks that were moved."""
        tier = self._tiers[op.tier]
        trouble = Status.FAILED
        try:
            statuses = await self._probe(tier, op) if op.kind is OpKind.PROBE else await self._transfer(tier, op)
            if len(statuses) == len(op.keys):
                moved = 0
                if op.kind is not OpKind.PROBE:
                    done = [key for key, status in zip(op.keys, statuses, strict=True) if status is Status.DONE]
                    moved = self.bytes_of(done)
                calls.answered(statuses, moved)
                return statuses, moved
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
        calls.failed(trouble, len(op.keys))
        return [trouble] * len(op.keys), 0

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

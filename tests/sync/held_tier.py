"""A tier whose work stops where the test says, and goes on when the test says."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from asyncoffload.keys import OffloadKey, make_key
from asyncoffload.testing import Gate
from asyncoffload.tiers.base import SecondaryTierManager
from asyncoffload.tiers.event_log import EventLog
from asyncoffload.types import (
    ANONYMOUS,
    CANCELLED,
    DONE,
    MISSING,
    JobResult,
    KeyOutcome,
    LookupResult,
    OffloadingEvent,
    RequestContext,
    Status,
    TransferJob,
)

TIMEOUT = 30


class HeldTier(SecondaryTierManager):
    """Keeps blocks in a dict; each block takes a turn of the loop.

    Attributes:
        blocks: what is kept.
        knows: whether ``hint`` tells what is kept.
        lookups, jobs: gates before each lookup, and before each block of a job.
        asked: the keys of each lookup.
        touching: slots that are being touched now.
        outcomes: what becomes of these keys, instead of the truth.
        fault: called at the begin of each call with its name; what it raises, the call raises.
        closing: a gate in ``aclose``.
    """

    def __init__(self, n_slots: int) -> None:
        self.tier_type = "held"
        self.blocks: dict[OffloadKey, int] = {}
        self.knows = False
        self.lookups: Gate[Sequence[OffloadKey]] = Gate()
        self.jobs: Gate[OffloadKey] = Gate()
        self.closing: Gate[None] = Gate()
        self.asked: list[Sequence[OffloadKey]] = []
        self.touched: list[Sequence[OffloadKey]] = []
        self.touching: set[int] = set()
        self.slots: list[int] = [0] * n_slots
        self.outcomes: dict[OffloadKey, Status] = {}
        self.fault: Callable[[str], None] = lambda _: None
        self.miscount = 0
        self.closed = False
        self._events = EventLog("held", 16)

    async def lookup(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> Sequence[LookupResult]:  # noqa: ARG002
        self.asked.append(keys)
        await self.lookups.passing(keys)
        self.fault("lookup")
        answers = [LookupResult.HIT if key in self.blocks else LookupResult.MISS for key in keys]
        return answers[: len(answers) - self.miscount]

    def hint(self, key: OffloadKey) -> bool:
        self.fault("hint")
        return self.knows and key in self.blocks

    async def store(self, job: TransferJob) -> JobResult:
        self.fault("store")
        return await self._each_block(job, self._store_block)

    async def load(self, job: TransferJob) -> JobResult:
        self.fault("load")
        return await self._each_block(job, self._load_block)

    async def touch(self, keys: Sequence[OffloadKey]) -> None:
        self.touched.append(keys)
        self.fault("touch")

    def take_events(self) -> Sequence[OffloadingEvent]:
        return self._events.take()

    async def aclose(self, *, drain: bool = True, drain_timeout: float = 10.0, timeout: float | None = None) -> None:  # noqa: ARG002
        self.closed = True
        await self.closing.passing(None)
        self.fault("aclose")

    async def _each_block(self, job: TransferJob, move: Callable[[OffloadKey, int], KeyOutcome]) -> JobResult:
        outcomes = []
        for key, slot in zip(job.keys, job.slots, strict=True):
            self.touching.add(slot)
            try:
                await self.jobs.passing(key)
                outcomes.append(CANCELLED if self.closed or key in job.unwanted else move(key, slot))
            finally:
                self.touching.discard(slot)
        return JobResult(job.job_id, job.keys, outcomes[: len(outcomes) - self.miscount], self.tier_type)

    def _store_block(self, key: OffloadKey, slot: int) -> KeyOutcome:
        if key in self.outcomes:
            return KeyOutcome(self.outcomes[key])
        self.blocks[key] = self.slots[slot]
        self._events.appeared([key])
        return DONE

    def _load_block(self, key: OffloadKey, slot: int) -> KeyOutcome:
        if key in self.outcomes:
            return KeyOutcome(self.outcomes[key])
        if key not in self.blocks:
            return MISSING
        self.slots[slot] = self.blocks[key]
        return DONE


def some_keys(n: int, first: int = 0) -> list[OffloadKey]:
    return [make_key(number.to_bytes(8, "big")) for number in range(first, first + n)]

"""A tier that does what the test wants, when the test wants it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from hashlib import blake2b
from typing import TypeVar

from asyncoffload.aio.waiting import outlive
from asyncoffload.errors import ClosedError
from asyncoffload.keys import OffloadKey
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
    Priority,
    RequestContext,
    Status,
    TransferJob,
)

T = TypeVar("T")
Move = Callable[[OffloadKey, int], Awaitable[KeyOutcome]]

SLOT_BYTES = 64


def content_of(key: OffloadKey) -> bytes:
    """The bytes that every block of this key has, wherever it is."""
    return blake2b(key, digest_size=SLOT_BYTES).digest()


class GatedTier(SecondaryTierManager):
    """Keeps blocks in a dict, with a gate before each call and one in the middle of each block.

    It obeys the law of tiers: a coroutine that has begun to touch a slot ends only when it is done with it.

    Attributes:
        blocks: what is kept; tests put blocks in, take them out, and damage them.
        knows: whether ``hint`` tells what is kept.
        calls: how often each method was called.
        asked: the keys of each ``lookup``.
        jobs: every job of ``store`` and ``load``, in order.
        running: the jobs that have begun and not ended.
        lookups, loads, stores: gates before the work of a call.
        halfway: a gate in the middle of the writing of each loaded block.
        fault: called with the method's name; what it raises, the method raises.
        outcomes: what becomes of these keys, instead of the truth.
        miscount: how many answers too many (or too few) every call gives.
    """

    def __init__(self, primary_kv_view: memoryview, tier_type: str = "gated") -> None:
        self.tier_type = tier_type
        self.blocks: dict[OffloadKey, bytes] = {}
        self.knows = False
        self.calls: Counter[str] = Counter()
        self.asked: list[Sequence[OffloadKey]] = []
        self.jobs: list[TransferJob] = []
        self.running: list[TransferJob] = []
        self.hurried: list[tuple[int, Priority]] = []
        self.lookups: Gate[Sequence[OffloadKey]] = Gate()
        self.loads: Gate[TransferJob] = Gate()
        self.stores: Gate[TransferJob] = Gate()
        self.halfway: Gate[OffloadKey] = Gate()
        self.fault: Callable[[str], None] = lambda _: None
        self.outcomes: dict[OffloadKey, Status] = {}
        self.miscount = 0
        self.events = EventLog(tier_type, 0)
        self.closed = False
        self._slots = primary_kv_view.cast("B")

    def keep(self, keys: Sequence[OffloadKey]) -> None:
        """Put blocks in, with the right content."""
        self.blocks.update((key, content_of(key)) for key in keys)

    def open_all(self) -> None:
        """Open every gate."""
        self.lookups.open()
        self.loads.open()
        self.stores.open()
        self.halfway.open()

    async def lookup(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> Sequence[LookupResult]:  # noqa: ARG002
        self._called("lookup")
        self.asked.append(list(keys))
        await self.lookups.passing(keys)
        answers = [LookupResult.HIT if key in self.blocks else LookupResult.MISS for key in keys]
        return self._miscounted(answers, LookupResult.HIT)

    async def load(self, job: TransferJob) -> JobResult:
        return await self._run("load", job, self.loads, self._load_block)

    async def store(self, job: TransferJob) -> JobResult:
        return await self._run("store", job, self.stores, self._store_block)

    def hint(self, key: OffloadKey) -> bool:
        self.fault("hint")
        return self.knows and key in self.blocks

    def hurry(self, job_id: int, priority: Priority) -> None:
        self._called("hurry")
        self.hurried.append((job_id, priority))

    def take_events(self) -> Sequence[OffloadingEvent]:
        self.fault("take_events")
        return self.events.take()

    async def aclose(self, *, drain: bool = True, drain_timeout: float = 10.0, timeout: float | None = None) -> None:  # noqa: ARG002
        self.closed = True

    def _called(self, name: str) -> None:
        self.calls[name] += 1
        if self.closed:
            raise ClosedError(f"{self.tier_type} is closed")
        self.fault(name)

    async def _run(self, name: str, job: TransferJob, gate: Gate[TransferJob], move: Move) -> JobResult:
        self._called(name)
        self.jobs.append(job)
        self.running.append(job)
        try:
            await gate.passing(job)
            outcomes = await outlive(asyncio.ensure_future(self._each_block(job, move)))
        finally:
            self.running.remove(job)
        return JobResult(job.job_id, job.keys, self._miscounted(outcomes, DONE), self.tier_type)

    async def _each_block(self, job: TransferJob, move: Move) -> list[KeyOutcome]:
        outcomes = []
        for key, slot in zip(job.keys, job.slots, strict=True):
            if key in job.unwanted:
                outcomes.append(CANCELLED)
            elif key in self.outcomes:
                outcomes.append(KeyOutcome(self.outcomes[key]))
            else:
                outcomes.append(await move(key, slot * SLOT_BYTES))
        return outcomes

    async def _load_block(self, key: OffloadKey, start: int) -> KeyOutcome:
        block = self.blocks.get(key)
        if block is None:
            return MISSING
        middle, end = start + SLOT_BYTES // 2, start + SLOT_BYTES
        self._slots[start:middle] = block[: SLOT_BYTES // 2]
        await self.halfway.passing(key)
        self._slots[middle:end] = block[SLOT_BYTES // 2 :]
        return DONE if block == content_of(key) else KeyOutcome(Status.CORRUPT)

    async def _store_block(self, key: OffloadKey, start: int) -> KeyOutcome:
        self.blocks[key] = bytes(self._slots[start : start + SLOT_BYTES])
        self.events.appeared([key])
        return DONE

    def _miscounted(self, answers: list[T], extra: T) -> list[T]:
        return [*answers, *[extra] * self.miscount][: len(answers) + self.miscount]

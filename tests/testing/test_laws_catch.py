"""The laws are worth something: each breach is caught by the law that forbids it."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from asyncoffload.keys import OffloadKey
from asyncoffload.testing import FaultyTier, GatedTier, TierLaws
from asyncoffload.tiers.base import SecondaryTierManager
from asyncoffload.tiers.example import Bytes, ExampleSecondaryTierManager
from asyncoffload.types import (
    DONE,
    JobResult,
    KeyOutcome,
    KVLayout,
    OffloadingEvent,
    Status,
    TransferJob,
)
from tests.testing.around import LawsAround
from tests.tiers import test_example

MakeTier = Callable[[KVLayout, memoryview], SecondaryTierManager]


class Laws(LawsAround):
    """The laws over some tier that is derived from the example."""

    inside = test_example.TestExampleTier()

    def __init__(self, make_tier: MakeTier) -> None:
        self._make_tier = make_tier

    def make_tier(self, layout: KVLayout, view: memoryview, place: Path) -> SecondaryTierManager:  # noqa: ARG002
        return self._make_tier(layout, view)


class Unverified(ExampleSecondaryTierManager):
    """Hands out whatever it finds."""

    def _load_block(self, key: OffloadKey, slot: Bytes) -> KeyOutcome:
        if key in self._blocks:
            np.copyto(slot, self._blocks[key][0])
            return DONE
        return super()._load_block(key, slot)


class WritesBehindTheBlock(ExampleSecondaryTierManager):
    """Clears the rest of the slot."""

    def _load_block(self, key: OffloadKey, slot: Bytes) -> KeyOutcome:
        outcome = super()._load_block(key, slot)
        if outcome.ok:
            whole = next(row for row in self._slots if np.shares_memory(row, slot))
            whole[len(slot) :] = 0
        return outcome


class Escapes(ExampleSecondaryTierManager):
    """Leaves its work behind when it is cancelled, and does not know of it."""

    async def load(self, job: TransferJob) -> JobResult:
        working = asyncio.ensure_future(super().load(job))
        self._running = 0
        return await asyncio.shield(working)

    async def drain(self) -> None:
        for _ in range(100):
            await asyncio.sleep(0)


class TellsNoOne(ExampleSecondaryTierManager):
    """Loses blocks in silence."""

    def take_events(self) -> list[OffloadingEvent]:
        return [event for event in super().take_events() if not event.removed]


class StopsAtTheFirst(ExampleSecondaryTierManager):
    """One missing block spoils those behind it."""

    async def load(self, job: TransferJob) -> JobResult:
        result = await super().load(job)
        bad = next((index for index, outcome in enumerate(result.outcomes) if not outcome.ok), len(job.keys))
        outcomes = [*result.outcomes[:bad], *[KeyOutcome(Status.FAILED)] * (len(job.keys) - bad)]
        return JobResult(result.job_id, result.keys, outcomes, result.tier)


class ServesAfterTheEnd(ExampleSecondaryTierManager):
    """Does not know that it was closed."""

    def _check_open(self) -> None:
        return


class AnnouncesTooEarly(ExampleSecondaryTierManager):
    """Answers HIT for what it has only begun to store."""

    def __init__(self, layout: KVLayout, primary_kv_view: memoryview) -> None:
        super().__init__(layout, primary_kv_view)
        self._begun: set[OffloadKey] = set()

    async def store(self, job: TransferJob) -> JobResult:
        self._begun.update(job.keys)
        return await super().store(job)

    def hint(self, key: OffloadKey) -> bool:
        return key in self._begun or super().hint(key)


class HoldsTheLoop(ExampleSecondaryTierManager):
    """Never lets anybody else have a turn."""

    async def _each_block(self, job: TransferJob, move: Callable[[OffloadKey, Bytes], KeyOutcome]) -> JobResult:
        self._check_open()
        slots = [self._slots[slot, : self._layout.block_bytes] for slot in job.slots]
        outcomes = [move(key, slot) for key, slot in zip(job.keys, slots, strict=True)]
        return JobResult(job.job_id, job.keys, outcomes, self.tier_type)


def raises_instead(layout: KVLayout, view: memoryview) -> SecondaryTierManager:
    """An exception where an outcome belongs."""
    tier = FaultyTier(ExampleSecondaryTierManager(layout, view))
    tier.raises("load", OSError(errno.EIO, "raised by the tier"))
    return tier


def loses_in_silence(layout: KVLayout, view: memoryview) -> SecondaryTierManager:
    """Says that it has stored what it has not."""
    tier = FaultyTier(ExampleSecondaryTierManager(layout, view))
    tier.answers("store", Status.MISSING, calls=[3])
    return tier


def never_ends(layout: KVLayout, view: memoryview) -> SecondaryTierManager:
    """Says that it is drained while a job is under way."""
    return NeverDrained(ExampleSecondaryTierManager(layout, view))


class NeverDrained(GatedTier[ExampleSecondaryTierManager]):
    async def drain(self) -> None:
        return

    async def _store(self, job: TransferJob) -> JobResult:
        for _ in range(100):
            await asyncio.sleep(0)
        return await super()._store(job)


Law = Callable[[TierLaws, Path], Awaitable[None]]
CORRUPT_IS_DONE = "'done'> (is|!=) <Status.CORRUPT"


@pytest.mark.parametrize(
    ("breach", "law", "reason"),
    [
        (Unverified, TierLaws.test_a_damaged_block_is_corrupt_reported_and_replaceable, CORRUPT_IS_DONE),
        (Unverified, TierLaws.test_each_key_has_its_own_outcome, CORRUPT_IS_DONE),
        (WritesBehindTheBlock, TierLaws.test_what_was_stored_is_loaded, "the bytes behind them were written to"),
        (Escapes, TierLaws.test_a_cancelled_load_never_writes_later, "did not belong to, or not any more"),
        (never_ends, TierLaws.test_drain_returns_when_everything_has_ended, "does not hold the bytes of its key"),
        (TellsNoOne, TierLaws.test_a_damaged_block_is_corrupt_reported_and_replaceable, r"assert \[\] == \[\("),
        (StopsAtTheFirst, TierLaws.test_each_key_has_its_own_outcome, "'failed'> != <Status.MISSING"),
        (ServesAfterTheEnd, TierLaws.test_a_closed_tier_says_so, "DID NOT RAISE.*ClosedError"),
        (AnnouncesTooEarly, TierLaws.test_whatever_is_visible_while_it_is_stored_is_whole, "assert None =="),
        (HoldsTheLoop, TierLaws.test_the_loop_is_not_held_up, "nobody else had a turn"),
        (raises_instead, TierLaws.test_what_is_not_there_is_missing, "raised by the tier"),
        (loses_in_silence, TierLaws.test_visible_when_the_store_returns, "'miss'> != <LookupResult.HIT"),
    ],
)
async def test_breach_is_caught_for_what_it_is(tmp_path: Path, breach: MakeTier, law: Law, reason: str) -> None:
    await law(Laws(ExampleSecondaryTierManager), tmp_path)
    with pytest.raises((AssertionError, OSError, pytest.fail.Exception), match=reason):
        await law(Laws(breach), tmp_path)


def test_the_model_finds_wrong_bytes(tmp_path_factory: pytest.TempPathFactory) -> None:
    def check() -> None:
        for _ in range(5):  # a time may pass by chance
            Laws(Unverified).test_any_sequence_of_calls_agrees_with_a_model(tmp_path_factory)

    with pytest.raises(AssertionError):
        check()

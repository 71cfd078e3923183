"""The laws are worth something: each breach is caught by the law that forbids it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
import xxhash

from asyncoffload.errors import TransferError
from asyncoffload.keys import OffloadKey
from asyncoffload.testing import TierLaws
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

MakeTier = Callable[[KVLayout, memoryview], ExampleSecondaryTierManager]


class Laws(TierLaws):
    """The laws over some tier that is derived from the example."""

    __test__ = False

    def __init__(self, make_tier: MakeTier) -> None:
        self._make_tier = make_tier

    def make_tier(self, layout: KVLayout, view: memoryview, place: Path) -> SecondaryTierManager:  # noqa: ARG002
        return self._make_tier(layout, view)

    async def raw_read(self, tier: SecondaryTierManager, key: OffloadKey) -> bytes | None:
        assert isinstance(tier, ExampleSecondaryTierManager)
        return tier._blocks[key][0].tobytes() if key in tier._blocks else None

    async def raw_write(self, tier: SecondaryTierManager, key: OffloadKey, payload: bytes) -> None:
        assert isinstance(tier, ExampleSecondaryTierManager)
        tier._blocks[key] = (np.frombuffer(payload, np.uint8).copy(), xxhash.xxh3_64_intdigest(payload))

    async def raw_delete(self, tier: SecondaryTierManager, key: OffloadKey) -> None:
        assert isinstance(tier, ExampleSecondaryTierManager)
        tier._blocks.pop(key, None)

    async def raw_damage(self, tier: SecondaryTierManager, key: OffloadKey) -> None:
        assert isinstance(tier, ExampleSecondaryTierManager)
        tier._blocks[key][0][0] ^= 1


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


class RaisesInstead(ExampleSecondaryTierManager):
    """An exception where an outcome belongs."""

    async def load(self, job: TransferJob) -> JobResult:
        result = await super().load(job)
        result.raise_for_failures()
        return result


Law = Callable[[TierLaws, Path], Awaitable[None]]


@pytest.mark.parametrize(
    ("breach", "law"),
    [
        (Unverified, TierLaws.test_a_damaged_block_is_corrupt_reported_and_replaceable),
        (Unverified, TierLaws.test_each_key_has_its_own_outcome),
        (WritesBehindTheBlock, TierLaws.test_what_was_stored_is_loaded),
        (Escapes, TierLaws.test_a_cancelled_load_never_writes_later),
        (TellsNoOne, TierLaws.test_a_damaged_block_is_corrupt_reported_and_replaceable),
        (StopsAtTheFirst, TierLaws.test_each_key_has_its_own_outcome),
        (ServesAfterTheEnd, TierLaws.test_a_closed_tier_says_so),
        (AnnouncesTooEarly, TierLaws.test_whatever_is_visible_while_it_is_stored_is_whole),
        (HoldsTheLoop, TierLaws.test_the_loop_is_not_held_up),
        (RaisesInstead, TierLaws.test_what_is_not_there_is_missing),
    ],
)
async def test_breach_is_caught(tmp_path: Path, breach: MakeTier, law: Law) -> None:
    await law(Laws(ExampleSecondaryTierManager), tmp_path)
    with pytest.raises((AssertionError, TransferError, pytest.fail.Exception)):
        await law(Laws(breach), tmp_path)


def test_the_model_finds_wrong_bytes(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(AssertionError):
        Laws(Unverified).test_any_sequence_of_calls_agrees_with_a_model(tmp_path_factory)

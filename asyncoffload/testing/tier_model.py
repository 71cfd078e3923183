"""A tier against a model that fits on a page, under any sequence of calls and accidents that hypothesis thinks of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from asyncoffload.keys import OffloadKey
from asyncoffload.testing.slots import Slots, content_of, some_keys
from asyncoffload.testing.tier_hooks import TierHooks
from asyncoffload.types import JobResult, LookupResult, Status

T = TypeVar("T")

N_KEYS = 8
INDICES = strategies.lists(strategies.integers(0, N_KEYS - 1), unique=True, max_size=N_KEYS)
ONE = strategies.integers(0, N_KEYS - 1)
TURNS = strategies.integers(0, 40)


class Block(Enum):
    """What the model knows of a block."""

    ABSENT = "absent"
    KEPT = "kept"
    UNSURE = "stored by a call that was cancelled, or gone behind the tier's back: there and whole, or not there"
    DAMAGED = "damaged behind the tier's back"
    PERHAPS_MENDED = "damaged, and then stored by a call that was cancelled"


LOADS_AS = {
    Block.ABSENT: {Status.MISSING},
    Block.KEPT: {Status.DONE},
    Block.UNSURE: {Status.DONE, Status.MISSING},
    Block.DAMAGED: {Status.CORRUPT, Status.MISSING},
    Block.PERHAPS_MENDED: {Status.DONE, Status.CORRUPT, Status.MISSING},
}
LOOKS_AS = {
    Block.ABSENT: {LookupResult.MISS},
    Block.KEPT: {LookupResult.HIT},
    Block.UNSURE: set(LookupResult),
    Block.DAMAGED: set(LookupResult),
    Block.PERHAPS_MENDED: set(LookupResult),
}


def check_against_model(hooks: TierHooks, new_place: Callable[[], Path]) -> None:
    """Drive tiers made by ``hooks`` through random histories; each in a place of its own.

    Raises:
        AssertionError: the tier and the model disagree; hypothesis shows the shortest history that it found.
    """
    run_state_machine_as_test(
        lambda: TierMachine(hooks, new_place()),  # type: ignore[arg-type]
        settings=settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            report_multiple_bugs=False,  # several would come as a group, which is no AssertionError
            suppress_health_check=list(HealthCheck),
        ),
    )


class TierMachine(RuleBasedStateMachine):
    """One history of a tier. Every block's bytes follow from its key, as with real KV blocks."""

    def __init__(self, hooks: TierHooks, place: Path) -> None:
        super().__init__()
        self._hooks = hooks
        self._place = place
        self._runner = asyncio.Runner()
        self._slots = Slots(hooks.layout(), 2 * N_KEYS)
        self._keys = some_keys(self._slots.layout, N_KEYS)
        self._model = dict.fromkeys(self._keys, Block.ABSENT)
        self._start()

    def teardown(self) -> None:
        self._run(self._tier.aclose())
        self._runner.close()

    @rule(indices=INDICES)
    def store(self, indices: list[int]) -> None:
        keys = self._some(indices)
        result = self._run(self._tier.store(self._slots.store_job(keys)))
        assert [outcome.status for outcome in result.outcomes] == [Status.DONE] * len(keys)
        self._stored(keys)

    @rule(indices=INDICES, unwanted=INDICES)
    def store_with_some_unwanted(self, indices: list[int], unwanted: list[int]) -> None:
        job = self._slots.store_job(self._some(indices))
        job.unwanted.update(self._some(unwanted))
        result = self._run(self._tier.store(job))
        for key, outcome in zip(result.keys, result.outcomes, strict=True):
            assert outcome.ok or (outcome.status is Status.CANCELLED and key in job.unwanted)
        self._stored(result.successful_keys)

    @rule(indices=INDICES, turns=TURNS)
    def cancel_a_store(self, indices: list[int], turns: int) -> None:
        job = self._slots.store_job(self._some(indices))
        if self._run(_cancelled(self._tier.store(job), turns)) is None:
            after = {Block.ABSENT: Block.UNSURE, Block.DAMAGED: Block.PERHAPS_MENDED}
            for key in job.keys:
                self._model[key] = after.get(self._model[key], self._model[key])
        else:
            self._stored(list(job.keys))
        self._slots.guard(job.slots)

    @rule(indices=INDICES)
    def load(self, indices: list[int]) -> None:
        result = self._run(self._tier.load(self._slots.load_job(self._some(indices))))
        self._loaded(result)

    @rule(indices=INDICES, turns=TURNS)
    def cancel_a_load(self, indices: list[int], turns: int) -> None:
        job = self._slots.load_job(self._some(indices))
        result = self._run(_cancelled(self._tier.load(job), turns))
        if result is not None:
            self._loaded(result)
        self._slots.guard(job.slots)
        self._run(self._tier.drain())
        assert self._slots.are_untouched(job.slots)

    @rule(indices=INDICES)
    def lookup(self, indices: list[int]) -> None:
        keys = self._some(indices)
        for key, found in zip(keys, self._run(self._tier.lookup(keys)), strict=True):
            assert found in LOOKS_AS[self._model[key]]

    @rule(index=ONE)
    def delete_behind_its_back(self, index: int) -> None:
        key = self._keys[index]
        self._run(self._hooks.raw_delete(self._tier, key))
        if self._model[key] is not Block.ABSENT:
            self._model[key] = Block.UNSURE

    @rule(index=ONE)
    def damage_behind_its_back(self, index: int) -> None:
        key = self._keys[index]
        if self._model[key] is Block.KEPT and self._run(self._hooks.raw_read(self._tier, key)) is not None:
            self._run(self._hooks.raw_damage(self._tier, key))
            self._model[key] = Block.DAMAGED

    @precondition(lambda self: self._hooks.persistent)
    @rule()
    def restart(self) -> None:
        self._run(self._tier.aclose())
        self._start()

    def _start(self) -> None:
        self._tier = self._hooks.make_tier(self._slots.layout, self._slots.view, self._place)
        self._run(self._tier.start())

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(call)

    def _some(self, indices: list[int]) -> list[OffloadKey]:
        return [self._keys[index] for index in indices]

    def _stored(self, keys: list[OffloadKey]) -> None:
        for key in keys:
            raw = self._run(self._hooks.raw_read(self._tier, key))
            if raw == content_of(key, self._slots.nbytes(key)):
                self._model[key] = Block.KEPT
            else:  # a tier may go by what it knows, and that may be outdated
                assert self._model[key] in (Block.UNSURE, Block.DAMAGED, Block.PERHAPS_MENDED)

    def _loaded(self, result: JobResult) -> None:
        for slot, (key, outcome) in enumerate(zip(result.keys, result.outcomes, strict=True)):
            assert outcome.status in LOADS_AS[self._model[key]]
            assert not outcome.ok or self._slots.hold(slot, key)
            self._model[key] = Block.KEPT if outcome.ok else Block.ABSENT


async def _cancelled(call: Coroutine[Any, Any, JobResult], turns: int) -> JobResult | None:
    """Cancel a call after so many turns of the loop; its result if it had one."""
    task = asyncio.create_task(call)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    return None if task.cancelled() else task.result()

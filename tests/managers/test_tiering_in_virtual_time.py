"""Deadlines and drains of the manager over a slow tier, to the second, in no time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from asyncoffload.errors import TierUnavailable
from asyncoffload.managers.tiering import TieringOffloadingManager
from asyncoffload.memory.region import HostRegion
from asyncoffload.testing import FaultyTier, SlowTier, Speed, VirtualTimeLoop
from asyncoffload.tiers.example import ExampleSecondaryTierManager
from asyncoffload.types import KVGroup, KVLayout, RequestContext, Status
from tests.managers.tiered_stack import keys_of

NBYTES = 64
LAYOUT = KVLayout("m", "uint8", 16, (KVGroup((NBYTES,)),))
ONE_PER_SECOND = Speed(NBYTES)
KEYS = keys_of(16)

Slow = SlowTier[FaultyTier[ExampleSecondaryTierManager]]


def now() -> float:
    return asyncio.get_running_loop().time()


@asynccontextmanager
async def manager_over(
    load: Speed, store: Speed, *, promoting: int = 2, n_slots: int = 16
) -> AsyncIterator[tuple[TieringOffloadingManager, Slow]]:
    """A manager whose time is the loop's, over one tier of these speeds."""
    region = HostRegion(n_slots, NBYTES)
    tier = SlowTier(
        FaultyTier(ExampleSecondaryTierManager(LAYOUT, region.view), seed=3), LAYOUT, load=load, store=store
    )
    manager = TieringOffloadingManager(
        region, [tier], promotion_bytes=promoting * NBYTES, clock=asyncio.get_running_loop().time
    )
    try:
        yield manager, tier
    finally:
        await manager.aclose()


async def keep_only_in_the_tier(manager: TieringOffloadingManager) -> None:
    async with manager.storing(KEYS):
        pass
    await manager.settle()
    await manager.reset()


@pytest.mark.virtual_time
async def test_a_deadline_leaves_what_has_come_by_then() -> None:
    async with manager_over(ONE_PER_SECOND, Speed()) as (manager, _):
        await keep_only_in_the_tier(manager)
        began = now()
        async with manager.loading(KEYS, RequestContext(deadline=began + 9.5)) as lease:
            assert len(lease.keys) == 8, "promotions of two blocks, at a block a second"
        assert now() == began + 9.5
        async with manager.loading(KEYS, RequestContext(deadline=began + 60)) as lease:
            assert len(lease.keys) == 16
        assert now() == began + 16, "what was under way went on, and nothing was loaded twice"


@pytest.mark.virtual_time
async def test_a_drain_ends_in_time_and_what_is_written_stays() -> None:
    async with manager_over(Speed(), ONE_PER_SECOND) as (manager, tier):
        async with manager.storing(KEYS):
            pass
        await manager.aclose(drain_timeout=5.5)
        assert tier.stats()["blocks"] == 5
        assert now() == 6.0, "the block that was being written at the deadline is awaited"


@pytest.mark.virtual_time
async def test_closing_without_a_drain_is_immediate() -> None:
    async with manager_over(Speed(), Speed(1e-6)) as (manager, _):
        async with manager.storing(KEYS):
            pass
        await manager.aclose(drain=False)
        assert now() == 0


def test_a_history_of_many_callers_is_the_same_each_time() -> None:
    async def history() -> list[tuple[float, int, int]]:
        log: list[tuple[float, int, int]] = []
        dice = random.Random(11)

        async def caller(number: int, manager: TieringOffloadingManager) -> None:
            for _ in range(6):
                await asyncio.sleep(dice.expovariate(0.2))
                first = dice.randrange(12)
                keys = KEYS[first : first + dice.randrange(1, 5)]
                async with manager.loading(keys, RequestContext(deadline=now() + dice.uniform(0, 8))) as lease:
                    log.append((now(), number, len(keys) - len(lease.keys)))

        async with manager_over(ONE_PER_SECOND, ONE_PER_SECOND, n_slots=6) as (manager, tier):
            for start in range(0, 16, 4):
                async with manager.storing(KEYS[start : start + 4]):
                    pass
                await asyncio.sleep(10)
            tier.inner.answers("load", Status.FAILED, chance=0.2)
            tier.inner.raises("lookup", TierUnavailable("away"), chance=0.1)
            async with asyncio.TaskGroup() as group:
                for number in range(12):
                    group.create_task(caller(number, manager))
        return log

    def run() -> list[tuple[float, int, int]]:
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            return runner.run(history())

    first = run()
    assert run() == first
    assert {missing for _, _, missing in first} == {0, 1, 2, 3, 4}

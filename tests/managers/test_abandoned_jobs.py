"""A tier says that a call hangs: who waits goes on, and the slots come back when the tier has let go of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from asyncoffload.errors import CapacityError
from asyncoffload.types import DONE, MISSING, DirtyVictims, KeyOutcome, Status
from tests.managers.gated_tier import GatedTier
from tests.managers.tiered_stack import Stack, keys_of, tiered, turns, until

LATE = KeyOutcome(Status.TIMED_OUT)


def abandon(tier: GatedTier, outcomes: Sequence[KeyOutcome]) -> None:
    tier.running[-1].abandon(outcomes)


async def stuck_load(stack: Stack, n: int) -> asyncio.Task[int]:
    """A load of ``n`` blocks whose promotion has begun to write into its slots."""
    stack.tier.keep(keys_of(n))
    stack.tier.halfway.shut()
    loading = asyncio.create_task(stack.load(keys_of(n)))
    await stack.tier.halfway.reached()
    return loading


async def test_who_waits_is_told_at_once() -> None:
    async with tiered(8) as stack:
        loading = await stuck_load(stack, 4)
        abandon(stack.tier, [LATE] * 4)
        assert await loading == 0
        assert stack.manager.stats().quarantined == 4
        assert stack.manager.tier_counts()["t0"]["refused_timed_out"] == 1, "the prefix ends there"


async def test_what_had_arrived_counts() -> None:
    async with tiered(8) as stack:
        stack.tier.keep(keys_of(4))
        stack.tier.halfway.shut(after=2)
        loading = asyncio.create_task(stack.load(keys_of(4)))
        await stack.tier.halfway.reached()
        abandon(stack.tier, [DONE, DONE, LATE, LATE])
        assert await loading == 2
        assert stack.manager.stats().quarantined == 2
        assert await stack.load(keys_of(2)) == 2


async def test_slots_come_back_when_the_call_returns() -> None:
    async with tiered(4) as stack:
        loading = await stuck_load(stack, 4)
        abandon(stack.tier, [LATE] * 4)
        await loading
        assert await stack.manager.prepare_store(keys_of(1, 10)) is None
        stack.tier.halfway.open()
        await until(lambda: stack.manager.stats().free == 4)
        await stack.store(keys_of(4, 10))
        assert await stack.load(keys_of(4, 10)) == 4


async def test_what_the_tier_says_later_is_of_no_account() -> None:
    async with tiered(8) as stack:
        loading = await stuck_load(stack, 4)
        job = stack.tier.running[-1]
        abandon(stack.tier, [LATE] * 4)
        abandon(stack.tier, [DONE] * 4)
        await loading
        stack.tier.halfway.open()
        await until(lambda: not stack.tier.running)
        job.abandon([DONE] * 4)
        assert stack.manager.stats().ready == 0
        assert stack.manager.call_stats()["t0"]["load"].blocks[Status.TIMED_OUT] == 4
        assert await stack.load(keys_of(4)) == 4, "the tier has them all the same"


async def test_an_answer_for_the_wrong_number_of_blocks_is_none() -> None:
    async with tiered(8) as stack:
        loading = await stuck_load(stack, 4)
        abandon(stack.tier, [LATE] * 3)
        await turns()
        assert not loading.done()
        stack.tier.halfway.open()
        assert await loading == 4


async def test_a_block_is_asked_of_the_next_tier() -> None:
    async with tiered(8, 2) as stack:
        stack.tiers[1].keep(keys_of(4))
        loading = await stuck_load(stack, 4)
        abandon(stack.tier, [LATE] * 4)
        assert await loading == 4
        assert stack.manager.tier_counts()["t1"]["promoted"] == 4


async def test_nobody_waits_for_slots_that_do_not_come_back() -> None:
    async with tiered(4) as stack:
        loading = await stuck_load(stack, 4)
        abandon(stack.tier, [LATE] * 4)
        await loading
        stack.tier.keep(keys_of(2, 10))
        async with asyncio.timeout(5):
            assert await stack.load(keys_of(2, 10)) == 0


async def test_who_waits_for_slots_when_a_promotion_is_abandoned_is_told() -> None:
    async with tiered(4) as stack:
        loading = await stuck_load(stack, 4)
        stack.tier.keep(keys_of(2, 10))
        waiting = asyncio.create_task(stack.load(keys_of(2, 10)))
        await turns()
        assert not waiting.done()
        abandon(stack.tier, [LATE] * 4)
        async with asyncio.timeout(5):
            assert await waiting == 0
        await loading


async def test_a_cascade_ends_and_its_blocks_can_be_read_and_cannot_be_evicted() -> None:
    async with tiered(4) as stack:
        stack.tier.stores.shut()
        await stack.store(keys_of(4))
        await stack.tier.stores.reached()
        abandon(stack.tier, [LATE] * 4)
        await stack.manager.settle()
        assert await stack.load(keys_of(4)) == 4
        assert await stack.manager.prepare_store(keys_of(1, 10)) is None
        stack.tier.stores.open()
        await until(lambda: not stack.tier.running)
        await turns()
        await stack.store(keys_of(1, 10))


async def test_loads_that_need_the_slots_of_a_cascade_that_hangs_miss() -> None:
    async with tiered(4) as stack:
        stack.tier.stores.shut()
        await stack.store(keys_of(4))
        await stack.tier.stores.reached()
        abandon(stack.tier, [MISSING] * 4)
        stack.tier.keep(keys_of(2, 10))
        async with asyncio.timeout(5):
            assert await stack.load(keys_of(2, 10)) == 0


@pytest.mark.parametrize("dirty_victims", ["drop", "refuse"])
async def test_no_store_waits_for_more_slots_than_there_may_be(dirty_victims: DirtyVictims) -> None:
    async with tiered(8, dirty_victims=dirty_victims) as stack:
        stack.tier.stores.shut()
        await stack.store(keys_of(3))
        await stack.tier.stores.reached()
        waiting = asyncio.create_task(stack.store(keys_of(6, 10), wait=True))
        await turns()
        assert not waiting.done()
        abandon(stack.tier, [LATE] * 3)
        with pytest.raises(CapacityError, match="1 too many of them"):
            await waiting
        with pytest.raises(CapacityError, match="1 too many of them"):
            await stack.store(keys_of(6, 10), wait=True)
        assert "calls of a tier that hang had too many" in str(await stack.manager.explain(keys_of(1, 10)[0]))
        await stack.store([*keys_of(3), *keys_of(5, 20)], wait=True)
        stack.tier.stores.open()
        await until(lambda: not stack.tier.running)
        await turns()
        await stack.store(keys_of(6, 10), wait=True)


async def test_a_store_waits_for_slots_that_do_come_back() -> None:
    async with tiered(8) as stack:
        stack.tier.stores.shut()
        await stack.store(keys_of(3))
        await stack.tier.stores.reached()
        abandon(stack.tier, [LATE] * 3)
        stack.tier.stores.open()
        await until(lambda: not stack.tier.running)
        await stack.store(keys_of(4, 10))
        async with stack.manager.loading(keys_of(4, 10)):
            waiting = asyncio.create_task(stack.store(keys_of(5, 20), wait=True))
            await turns()
            assert not waiting.done()
        await waiting

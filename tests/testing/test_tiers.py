"""What gated, faulty and slow tiers do when they are told to."""

from __future__ import annotations

import asyncio
import errno
import inspect
import math
import os
from collections.abc import Callable

import pytest

from asyncoffload.errors import ClosedError, CorruptBlockError, InvalidArgument, TierIOError, TierUnavailable
from asyncoffload.keys import OffloadKey
from asyncoffload.testing import (
    FaultyTier,
    GatedTier,
    ManualClock,
    Slots,
    SlowTier,
    Speed,
    WrappedTier,
    small_layout,
    some_keys,
)
from asyncoffload.tiers.base import SecondaryTierManager
from asyncoffload.tiers.example import ExampleSecondaryTierManager
from asyncoffload.types import DONE, JobResult, KeyOutcome, LookupResult, Priority, Status

LAYOUT = small_layout()
KEYS = some_keys(LAYOUT, 8)
HIT, MISS = LookupResult.HIT, LookupResult.MISS


def memory(slots: Slots) -> ExampleSecondaryTierManager:
    return ExampleSecondaryTierManager(slots.layout, slots.view)


def statuses(result: JobResult) -> list[Status]:
    return [outcome.status for outcome in result.outcomes]


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_everything_that_a_tier_can_do_is_passed_on() -> None:
    surface = {name for name, member in inspect.getmembers(SecondaryTierManager, callable) if not name.startswith("_")}
    assert surface <= vars(WrappedTier).keys()


async def test_what_is_passed_on_arrives() -> None:
    slots = Slots(LAYOUT, 8)
    async with WrappedTier(memory(slots)) as tier:
        await tier.store(slots.store_job(KEYS))
        assert tier.stats() == tier.inner.stats()
        assert tier.pool_stats() is None
        tier.hurry(1, Priority.DEMAND)
        await tier.touch(KEYS)
        assert tier.hint(KEYS[0])
        assert "0 jobs under way, around <ExampleSecondary" in repr(tier)


# Gates.


async def test_a_job_before_a_gate_has_not_begun() -> None:
    slots = Slots(LAYOUT, 16)
    async with GatedTier(memory(slots)) as tier:
        with tier.before.store.shut():
            job = slots.store_job(KEYS)
            storing = asyncio.create_task(tier.store(job))
            assert await tier.before.store.arrival() is job
            draining = asyncio.create_task(tier.drain())
            await turns()
            assert not draining.done(), "a job that is held is under way"
            assert list(await tier.lookup(KEYS)) == [MISS] * 8
            storing.cancel()
            await asyncio.wait([storing])
            assert storing.cancelled()
            await draining
        await tier.store(job)
        with tier.before.lookup.shut():
            looking = asyncio.create_task(tier.lookup(KEYS))
            await tier.before.lookup.reached()
        assert list(await looking) == [HIT] * 8


async def test_a_job_behind_its_blocks_keeps_its_slots_until_it_is_let_out() -> None:
    slots = Slots(LAYOUT, 16)
    async with GatedTier(memory(slots)) as tier:
        await tier.store(slots.store_job(KEYS))
        with tier.after.load.shut():
            loading = asyncio.create_task(tier.load(slots.load_job(KEYS)))
            await tier.after.load.reached()
            assert slots.have(KEYS)
            loading.cancel()
            await turns()
            assert not loading.done()
        await asyncio.wait([loading])
        assert loading.cancelled()


@pytest.mark.parametrize("drain", [True, False])
async def test_closing_drops_what_is_queued_and_waits_for_what_runs(drain: bool) -> None:
    slots = Slots(LAYOUT, 32)
    tier = GatedTier(memory(slots))
    await tier.store(slots.store_job(KEYS))
    gates = tier.before.load.shut(), tier.before.store.shut(), tier.after.load.shut(after=0)
    tier.before.load.shut(after=1)
    running = asyncio.create_task(tier.load(slots.load_job(KEYS)))
    await tier.after.load.reached()
    queued = asyncio.create_task(tier.load(slots.load_job(KEYS, first_slot=8)))
    storing = asyncio.create_task(tier.store(slots.store_job(some_keys(LAYOUT, 4, "new"), first_slot=16)))
    await tier.before.load.reached()
    await tier.before.store.reached()
    closing = asyncio.create_task(tier.aclose(drain=drain))
    assert set(statuses(await queued)) == {Status.CANCELLED}
    if drain:
        await turns()
        assert not storing.done()
        tier.before.store.open()
    assert set(statuses(await storing)) == {Status.DONE if drain else Status.CANCELLED}
    await turns()
    assert not closing.done()
    with pytest.raises(ClosedError):
        await tier.lookup(KEYS)
    for gate in gates:
        gate.open()
    assert (await running).success
    await closing


async def test_past_its_timeout_closing_says_what_is_held() -> None:
    slots = Slots(LAYOUT, 8)
    tier = GatedTier(memory(slots))
    with tier.after.store.shut():
        job = slots.store_job(KEYS)
        storing = asyncio.create_task(tier.store(job))
        await tier.after.store.reached()
        with pytest.raises(TierUnavailable, match=f"still holds jobs {job.job_id} after 0 seconds"):
            await tier.aclose(drain=False, timeout=0)
    await tier.aclose()
    assert (await storing).success


async def test_a_cancelled_close_drops_the_queue_and_awaits_the_rest() -> None:
    slots = Slots(LAYOUT, 8)
    tier = GatedTier(memory(slots))
    tier.before.store.shut()
    storing = asyncio.create_task(tier.store(slots.store_job(KEYS)))
    await tier.before.store.reached()
    closing = asyncio.create_task(tier.aclose())
    await turns()
    closing.cancel()
    await asyncio.wait([closing])
    assert closing.cancelled()
    assert set(statuses(await storing)) == {Status.CANCELLED}


# Faults.


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (Status.SHED, Status.SHED),
        (Status.FAILED, Status.FAILED),
        (Status.TIMED_OUT, Status.TIMED_OUT),
        (OSError(errno.EIO, "i/o error"), Status.FAILED),
        (TimeoutError(errno.ETIMEDOUT, "late"), Status.TIMED_OUT),
        (KeyOutcome(Status.FAILED, ValueError("odd")), Status.FAILED),
    ],
)
async def test_chosen_keys_fail_and_the_blocks_stay(outcome: Status | KeyOutcome | OSError, status: Status) -> None:
    slots = Slots(LAYOUT, 16)
    async with FaultyTier(memory(slots), primary_kv_view=slots.view) as tier:
        with tier.answers("store", outcome, keys=KEYS[:2]):
            assert statuses(await tier.store(slots.store_job(KEYS))) == [status] * 2 + [Status.DONE] * 6
        assert list(await tier.lookup(KEYS)) == [MISS] * 2 + [HIT] * 6
        await tier.store(slots.store_job(KEYS))
        with tier.answers("load", outcome, keys=KEYS[:2]) as rule:
            result = await tier.load(slots.load_job(KEYS))
            assert statuses(result) == [status] * 2 + [Status.DONE] * 6
            assert rule.hits == 2
        assert slots.have(KEYS[2:], first_slot=2)
        assert set(slots.read(0)) == {0xFA}, "nobody gets away with using a slot whose load has failed"
        if status is Status.FAILED:
            error = result.outcomes[0].error
            assert isinstance(error, ValueError) or (isinstance(error, TierIOError) and error.errno == errno.EIO)
        assert statuses(await tier.load(slots.load_job(KEYS))) == [Status.DONE] * 8


@pytest.mark.parametrize("how", ["planned", "by hand", "when stored"])
@pytest.mark.parametrize("status", [Status.CORRUPT, Status.MISSING])
async def test_blocks_rot_or_vanish_and_can_be_stored_again(how: str, status: Status) -> None:
    slots, bad = Slots(LAYOUT, 16), KEYS[:2]
    async with FaultyTier(memory(slots), block_size=16) as tier:
        if how == "when stored":
            tier.answers("store", status, keys=bad)
        assert statuses(await tier.store(slots.store_job(KEYS))) == [Status.DONE] * 8
        if how == "planned":
            tier.answers("load", status, keys=bad)
        elif how == "by hand":
            (tier.damage if status is Status.CORRUPT else tier.lose)(bad)
        result = await tier.load(slots.load_job(KEYS))
        assert statuses(result) == [status] * 2 + [Status.DONE] * 6
        assert status is Status.MISSING or isinstance(result.outcomes[0].error, CorruptBlockError)
        tier.behave()
        assert known(tier, bad) == set()
        assert list(await tier.lookup(KEYS)) == [MISS] * 2 + [HIT] * 6
        assert not any(map(tier.hint, bad))
        assert statuses(await tier.load(slots.load_job(bad))) == [Status.MISSING] * 2
        assert statuses(await tier.store(slots.store_job(KEYS))) == [Status.DONE] * 8
        assert known(tier, bad) == set(bad)
        assert statuses(await tier.load(slots.load_job(KEYS))) == [Status.DONE] * 8
        assert slots.have(KEYS)


async def test_damage_lasts_until_it_is_found_out_or_the_block_is_lost() -> None:
    slots = Slots(LAYOUT, 8)
    async with FaultyTier(memory(slots)) as tier:
        await tier.store(slots.store_job(KEYS))
        tier.damage(KEYS[:2])
        tier.lose(KEYS[1:2])
        assert (await tier.store(slots.store_job(KEYS))).success
        assert statuses(await tier.load(slots.load_job(KEYS))) == [Status.CORRUPT] + [Status.DONE] * 7


def known(tier: SecondaryTierManager, before: list[OffloadKey]) -> set[OffloadKey]:
    """What the events since the last call leave of some keys, of which nothing was known, or all was lost."""
    there: set[OffloadKey] = set()
    for event in tier.take_events():
        (there.difference_update if event.removed else there.update)(event.keys)
    return there.intersection(before)


async def test_a_tier_inside_that_loses_a_block_again_is_not_reported_twice() -> None:
    slots = Slots(LAYOUT, 8)
    async with FaultyTier(FaultyTier(memory(slots))) as tier:
        await tier.store(slots.store_job(KEYS))
        tier.take_events()
        tier.lose(KEYS[:2])
        tier.inner.lose(KEYS[1:3])
        removed = [key for event in tier.take_events() for key in event.keys]
        assert sorted(removed) == sorted(KEYS[:3])
        assert list(await tier.lookup(KEYS)) == [MISS] * 3 + [HIT] * 5


async def test_lookups_lie_as_planned() -> None:
    slots = Slots(LAYOUT, 8)
    async with FaultyTier(memory(slots)) as tier:
        await tier.store(slots.store_job(KEYS[:4]))
        tier.answers("lookup", Status.MISSING, keys=KEYS[:1])
        tier.answers("lookup", DONE, keys=KEYS[7:])
        assert list(await tier.lookup(KEYS)) == [MISS, HIT, HIT, HIT, MISS, MISS, MISS, HIT]


async def test_whole_calls_raise_as_planned() -> None:
    slots = Slots(LAYOUT, 8)
    async with FaultyTier(memory(slots)) as tier:
        tier.raises("lookup", TierUnavailable("away"), calls=[2])
        tier.raises("store", OSError(errno.EIO, os.strerror(errno.EIO)), times=1)
        assert list(await tier.lookup(KEYS)) == [MISS] * 8
        with pytest.raises(TierUnavailable, match="away"):
            await tier.lookup(KEYS)
        assert list(await tier.lookup(KEYS)) == [MISS] * 8
        with pytest.raises(OSError, match="Input/output"):
            await tier.store(slots.store_job(KEYS))
        assert (await tier.store(slots.store_job(KEYS))).success


async def test_a_seed_decides_for_each_key_whatever_the_order() -> None:
    async def outcomes(seed: int, order: Callable[[list[OffloadKey]], list[OffloadKey]]) -> dict[OffloadKey, Status]:
        slots, keys = Slots(LAYOUT, 64), order(some_keys(LAYOUT, 64))
        async with FaultyTier(memory(slots), seed=seed) as tier:
            tier.answers("store", Status.SHED, chance=0.3)
            result = await tier.store(slots.store_job(keys))
            return dict(zip(keys, statuses(result), strict=True))

    once = await outcomes(1, list)
    assert await outcomes(1, lambda keys: keys[::-1]) == once
    assert await outcomes(2, list) != once
    assert 5 < list(once.values()).count(Status.SHED) < 35
    with pytest.raises(InvalidArgument, match="between 0 and 1, got 2"):
        FaultyTier(memory(Slots(LAYOUT, 1))).answers("load", Status.SHED, chance=2)


# Time.


@pytest.mark.virtual_time
async def test_blocks_take_the_time_of_their_bytes() -> None:
    now, slots = asyncio.get_running_loop().time, Slots(LAYOUT, 32)
    keys = [key for key in KEYS if slots.nbytes(key) == 8192]
    inner, load, store = memory(slots), Speed(8192, latency=1.0), Speed(4096)
    async with SlowTier(inner, LAYOUT, load=load, store=store, lookup_seconds=0.25) as tier:
        await tier.store(slots.store_job(keys))
        assert now() == 8.0
        halves = slots.load_job(keys[:2]), slots.load_job(keys[2:], first_slot=2)
        await asyncio.gather(*map(tier.load, halves))
        assert slots.have(keys)
        assert now() == 13.0, "both latencies pass at once, the blocks one after the other"
        await tier.lookup(keys)
        assert now() == 13.25


async def test_what_is_cancelled_or_unwanted_is_noticed_between_blocks() -> None:
    clock, slots = ManualClock(), Slots(LAYOUT, 16)
    keys = [key for key in KEYS if slots.nbytes(key) == 8192]
    speed = Speed(8192)
    async with SlowTier(memory(slots), LAYOUT, load=speed, clock=clock) as tier:
        await tier.store(slots.store_job(keys))
        job = slots.load_job(keys)
        loading = asyncio.create_task(tier.load(job))
        await turns()
        clock.advance(1)
        await turns()
        assert slots.hold(0, keys[0])
        assert slots.are_untouched(range(1, 4))
        job.unwanted.add(keys[2])
        clock.advance(1)
        await turns()
        clock.advance(1)
        assert statuses(await loading) == [Status.DONE, Status.DONE, Status.CANCELLED, Status.DONE]
        loading = asyncio.create_task(tier.load(slots.load_job(keys)))
        await turns()
        assert clock.sleeping == 1
        loading.cancel()
        await asyncio.wait([loading])
        assert clock.sleeping == 0
        assert slots.are_untouched(range(4))


async def test_closing_a_slow_tier_does_not_wait_for_queued_loads() -> None:
    clock, slots = ManualClock(), Slots(LAYOUT, 16)
    tier = SlowTier(memory(slots), LAYOUT, load=Speed(1.0), store=Speed(latency=5.0), clock=clock)
    storing = asyncio.create_task(tier.store(slots.store_job(KEYS)))
    await turns()
    clock.advance(5)
    assert (await storing).success
    loading = asyncio.create_task(tier.load(slots.load_job(KEYS)))
    storing = asyncio.create_task(tier.store(slots.store_job(KEYS, first_slot=8)))
    await turns()
    await tier.aclose(drain=False)
    assert set(statuses(await loading)) == set(statuses(await storing)) == {Status.CANCELLED}


def test_speeds_that_are_none_are_refused() -> None:
    for bandwidth, latency in ((0, 0), (math.nan, 0), (1, -1), (1, math.nan)):
        with pytest.raises(InvalidArgument, match="bandwidth above 0"):
            Speed(bandwidth, latency)

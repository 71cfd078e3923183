"""What a manager counts of the calls of its tiers, and of what they shed."""

from __future__ import annotations

import asyncio

from asyncoffload.keys import make_key
from asyncoffload.managers.call_counts import CallCounts, CallStats
from asyncoffload.managers.tiering import TieringOffloadingManager
from asyncoffload.memory.region import HostRegion
from asyncoffload.types import Status
from tests.managers.gated_tier import SLOT_BYTES, GatedTier
from tests.managers.tiered_stack import Stack, keys_of, tiered, turns


def _blocks(stats: CallStats) -> dict[Status, int]:
    return {status: count for status, count in stats.blocks.items() if count}


def test_counting() -> None:
    counts = CallCounts()
    counts.began()
    counts.began()
    assert counts.snapshot().in_flight == 2
    counts.answered([Status.DONE, Status.FAILED, Status.DONE, Status.SHED], 30)
    counts.ended(1.0)
    counts.failed(Status.TIMED_OUT, 5)
    counts.ended(2.0)
    stats = counts.snapshot()
    assert _blocks(stats) == {Status.DONE: 2, Status.FAILED: 1, Status.SHED: 1, Status.TIMED_OUT: 5}
    assert (stats.in_flight, stats.failed, stats.nbytes) == (0, 1, 30)
    assert (stats.durations.count, stats.durations.seconds) == (2, 3.0)


def _calls(stack: Stack) -> dict[str, CallStats]:
    return stack.manager.call_stats()["t0"]


async def test_calls_of_each_kind_their_blocks_bytes_and_seconds() -> None:
    async with tiered(8) as stack:
        stack.tier.stores.shut()
        await stack.store(keys_of(6))
        await stack.tier.stores.reached()
        stack.clock.now += 2.0
        assert _calls(stack)["store"].in_flight == 1
        stack.tier.stores.open()
        await stack.manager.settle()
        store = _calls(stack)["store"]
        assert (store.in_flight, _blocks(store), store.nbytes) == (0, {Status.DONE: 6}, 6 * SLOT_BYTES)
        assert (store.durations.count, store.durations.seconds) == (1, 2.0)
        await stack.manager.reset()
        stack.tier.outcomes = {keys_of(6)[4]: Status.CORRUPT}
        assert await stack.load(keys_of(8)) == 4
        lookup, load = _calls(stack)["lookup"], _calls(stack)["load"]
        assert _blocks(lookup) == {Status.DONE: 6, Status.MISSING: 2}
        assert lookup.nbytes == 0
        assert _blocks(load) == {Status.DONE: load.nbytes // SLOT_BYTES, Status.CORRUPT: 1}
        assert load.failed == 0


async def test_a_call_that_raises_or_miscounts_has_failed() -> None:
    async with tiered(8) as stack:
        stack.tier.miscount = 1
        await stack.store(keys_of(3))
        await stack.manager.settle()
        stack.tier.miscount = 0

        def fault(call: str) -> None:
            if call == "lookup":
                raise TimeoutError("slow")

        stack.tier.fault = fault
        assert await stack.manager.lookup(keys_of(2, start=50)) == 0
        stack.tier.fault = lambda _: None
        calls = _calls(stack)
        assert (calls["store"].failed, _blocks(calls["store"]), calls["store"].nbytes) == (1, {Status.FAILED: 3}, 0)
        assert (calls["lookup"].failed, _blocks(calls["lookup"])) == (1, {Status.TIMED_OUT: 2})


async def test_bytes_are_those_of_the_groups() -> None:
    region = HostRegion(8, SLOT_BYTES)
    tier = GatedTier(region.view)
    manager = TieringOffloadingManager(region, [tier], group_bytes=[10, 3])
    keys = [make_key(bytes(8), 0), make_key(bytes(8), 1), make_key(b"b" * 8, 1)]
    async with manager.storing(keys):
        pass
    await manager.settle()
    assert manager.call_stats()["gated"]["store"].nbytes == 16
    await manager.aclose()


async def test_what_is_shed_is_counted_by_what_it_ran_into() -> None:
    keys = keys_of(6)
    async with tiered(8, cascading=4) as stack:
        stack.tier.outcomes = {keys[1]: Status.SHED}
        await stack.store(keys)
        await turns()
        shed = stack.manager.shed_counts()["t0"]
        assert shed["cascade_blocks"] == 2
        assert shed["tier"] >= 1
        stack.tier.outcomes = {}
        await stack.store(keys_of(1, start=50))
        await stack.manager.settle()
        before = stack.manager.shed_counts()["t0"]
        stack.tier.stores.shut()
        await stack.store(keys_of(1, start=60))
        await stack.tier.stores.reached()
        closing = asyncio.create_task(stack.manager.aclose(drain=False))
        await turns()
        stack.tier.stores.open()
        await closing
        after = stack.manager.shed_counts()["t0"]
        assert after == {**before, "dropped": before["dropped"] + 1}
        assert sum(after.values()) == stack.manager.tier_counts()["t0"]["shed"]

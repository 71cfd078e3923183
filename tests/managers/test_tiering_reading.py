"""Blocks that lie in the tiers: found, promoted, shared, and had from the next tier where one cannot give them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from asyncoffload.core.tickets import Ticket
from asyncoffload.errors import BlocksUnavailable, InvalidArgument
from asyncoffload.keys import OffloadKey
from asyncoffload.types import LookupResult, Priority, RequestContext, Status
from tests.managers.gated_tier import content_of
from tests.managers.tiered_stack import Stack, keys_of, tiered, turns, until


async def test_lookup_is_the_prefix_over_all_tiers_and_moves_nothing() -> None:
    keys = keys_of(10)
    async with tiered(16, n_tiers=2) as stack:
        await stack.store(keys[:2])
        stack.tiers[0].keep(keys[2:5])
        stack.tiers[1].keep(keys[5:8])
        assert await stack.manager.lookup(keys) == 8
        assert await stack.manager.lookup(keys[3:]) == 5
        assert await stack.manager.lookup(keys[8:]) == 0
        assert stack.manager.stats().ready == 2
        assert not any(tier.calls["load"] for tier in stack.tiers)


async def test_lookup_of_resident_blocks_asks_nobody() -> None:
    keys = keys_of(3)
    async with tiered(8) as stack:
        await stack.store(keys)
        await stack.manager.settle()
        assert await stack.manager.lookup(keys) == 3
        assert not stack.tier.calls["lookup"]


async def test_concurrent_askers_share_one_probe_per_batch_and_tier() -> None:
    keys = keys_of(12)
    async with tiered(16, n_tiers=2) as stack:
        stack.tiers[1].keep(keys)
        lengths = await asyncio.gather(*(stack.manager.lookup(keys[n:]) for n in range(6)))
        assert lengths == [12 - n for n in range(6)]
        assert [tier.asked for tier in stack.tiers] == [[keys], [keys]]


async def test_who_asks_while_a_probe_runs_joins_it() -> None:
    keys = keys_of(4)
    async with tiered(8) as stack:
        stack.tier.keep(keys)
        stack.tier.lookups.shut()
        first = asyncio.create_task(stack.manager.lookup(keys))
        await stack.tier.lookups.reached()
        second = asyncio.create_task(stack.load(keys))
        await turns()
        stack.tier.lookups.open()
        assert list(await asyncio.gather(first, second)) == [4, 4]
        assert stack.tier.calls["lookup"] == 1


async def test_a_hint_saves_the_probe() -> None:
    keys = keys_of(4)
    async with tiered(8) as stack:
        stack.tier.keep(keys)
        stack.tier.knows = True
        assert await stack.load(keys) == 4
        assert not stack.tier.calls["lookup"]


async def test_concurrent_loaders_share_promotions() -> None:
    keys = keys_of(8)
    async with tiered(16) as stack:
        stack.tier.keep(keys)
        assert await asyncio.gather(*(stack.load(keys) for _ in range(20))) == [8] * 20
        assert [list(job.keys) for job in stack.tier.jobs] == [keys]


async def test_parts_arrive_while_later_promotions_still_run() -> None:
    keys = keys_of(6)
    async with tiered(16, promoting=2) as stack:
        await stack.store(keys[:1])
        await stack.manager.settle()
        stack.tier.keep(keys)
        stack.tier.loads.shut()
        async with stack.manager.loading(keys, streaming=True) as lease:
            parts = lease.parts()
            part = await anext(parts)
            assert list(part.keys) == keys[:1]
            await stack.tier.loads.reached()
            stack.tier.loads.open()
            stack.tier.halfway.shut()
            await stack.tier.halfway.reached()
            assert list(lease.keys) == keys[:1]
            stack.tier.halfway.open()
            arrived = list(part.keys)
            async for part in parts:
                stack.check(part.keys, part.spec)
                arrived += part.keys
            assert arrived == list(lease.keys) == keys
            assert lease.by_tier == {"CPU": 1, "t0": 5}
            assert lease.stopped_by is None


async def test_the_first_part_is_readable_while_the_next_promotion_is_under_way() -> None:
    keys = keys_of(4)
    async with tiered(16, promoting=2) as stack:
        stack.tier.keep(keys)
        stack.tier.halfway.shut(after=2)
        async with stack.manager.loading(keys, streaming=True) as lease:
            parts = lease.parts()
            part = await anext(parts)
            await stack.tier.halfway.reached()
            assert list(part.keys) == keys[:2]
            stack.check(part.keys, part.spec)
            stack.tier.halfway.open()
            assert [list(part.keys) async for part in parts] == [keys[2:]]


async def test_two_readers_of_one_lease_both_see_every_part() -> None:
    keys = keys_of(4)
    async with tiered(16, promoting=2) as stack:
        stack.tier.keep(keys)
        async with stack.manager.loading(keys, streaming=True) as lease:

            async def read() -> int:
                return sum([len(part.keys) async for part in lease.parts()])

            assert list(await asyncio.gather(read(), read())) == [4, 4]


async def test_prepare_load_holds_all_until_it_is_completed() -> None:
    keys = keys_of(5)
    async with tiered(8) as stack:
        stack.tier.keep(keys)
        spec = await stack.manager.prepare_load(keys)
        stack.check(keys, spec)
        assert stack.manager.stats().pinned == 5
        await stack.manager.complete_load(keys)
        assert stack.manager.stats().pinned == 0


async def test_prepare_load_without_one_of_the_blocks_holds_nothing() -> None:
    keys = keys_of(5)
    async with tiered(8) as stack:
        stack.tier.keep([key for key in keys if key != keys[3]])
        with pytest.raises(BlocksUnavailable) as caught:
            await stack.manager.prepare_load(keys)
        assert caught.value.ready_prefix == 3
        assert stack.manager.stats().pinned == 0


async def test_promotions_are_bounded_by_bytes() -> None:
    keys = keys_of(20)
    async with tiered(32, promoting=3) as stack:
        stack.tier.keep(keys)
        stack.tier.halfway.shut()
        loaders = [asyncio.create_task(stack.load(keys[n : n + 5])) for n in range(0, 20, 5)]
        await stack.tier.halfway.reached()
        await turns()
        assert stack.manager.stats().writing == 3
        assert sum(len(job.keys) for job in stack.tier.running) == 3
        stack.tier.halfway.open()
        assert await asyncio.gather(*loaders) == [5] * 4
        assert max(len(job.keys) for job in stack.tier.jobs) == 3


async def test_nothing_behind_a_missing_block_is_promoted() -> None:
    keys = keys_of(12)
    async with tiered(16) as stack:
        stack.tier.keep([key for key in keys if key != keys[5]])
        async with stack.manager.loading(keys) as lease:
            assert list(lease.keys) == keys[:5]
            assert lease.stopped_by is Status.MISSING
        assert [key for job in stack.tier.jobs for key in job.keys] == keys[:5]


@pytest.mark.parametrize("trouble", [Status.MISSING, Status.CORRUPT, Status.FAILED, Status.TIMED_OUT, Status.SHED])
async def test_a_block_that_one_tier_cannot_give_comes_from_the_next(trouble: Status) -> None:
    keys = keys_of(4)
    async with tiered(8, n_tiers=2) as stack:
        for tier in stack.tiers:
            tier.keep(keys)
        stack.tiers[0].outcomes[keys[1]] = trouble
        async with stack.manager.loading(keys) as lease:
            stack.check(lease.keys, lease.spec)
            assert lease.by_tier == {"t0": 3, "t1": 1}
        assert stack.manager.tier_counts()["t0"][f"refused_{trouble.value}"] == 1


async def test_a_damaged_block_is_never_handed_out() -> None:
    keys = keys_of(4)
    async with tiered(8, n_tiers=2) as stack:
        for tier in stack.tiers:
            tier.keep(keys)
            tier.blocks[keys[2]] = bytes(len(content_of(keys[2])))
        async with stack.manager.loading(keys) as lease:
            assert list(lease.keys) == keys[:2]
            assert lease.stopped_by is Status.CORRUPT


async def test_a_vanished_block_is_a_miss() -> None:
    keys = keys_of(4)
    async with tiered(8) as stack:
        stack.tier.keep(keys)
        stack.tier.loads.shut()
        loader = asyncio.create_task(stack.load(keys))
        await stack.tier.loads.reached()
        del stack.tier.blocks[keys[1]]
        stack.tier.loads.open()
        assert await loader == 1


def raising(error: BaseException, *calls: str) -> Callable[[str], None]:
    """A fault that hits some of a tier's methods."""

    def fault(call: str) -> None:
        if call in calls:
            raise error

    return fault


ERRORS = [
    RuntimeError("broken"),
    OSError(5, "input/output error"),
    TimeoutError(),
    asyncio.CancelledError(),
    KeyError(),
]


@pytest.mark.parametrize("call", ["lookup", "load", "hint", "take_events", "hurry"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_a_tier_that_raises_costs_misses_only(call: str, error: BaseException) -> None:
    keys = keys_of(4)
    async with tiered(8, n_tiers=2) as stack:
        for tier in stack.tiers:
            tier.keep(keys)
        stack.tiers[0].fault = raising(error, call)
        stack.tiers[0].loads.shut()
        patient = asyncio.create_task(stack.load(keys, RequestContext(priority=Priority.PREFETCH)))
        await turns()
        urgent = asyncio.create_task(stack.load(keys))
        await turns()
        stack.tiers[0].loads.open()
        assert list(await asyncio.gather(patient, urgent)) == [4, 4]


@pytest.mark.parametrize("miscount", [-1, 1])
async def test_a_tier_that_answers_for_the_wrong_number_of_keys_has_failed(miscount: int) -> None:
    keys = keys_of(4)
    async with tiered(8, n_tiers=2) as stack:
        for tier in stack.tiers:
            tier.keep(keys)
        stack.tiers[0].miscount = miscount
        assert await stack.manager.lookup(keys) == 4
        async with stack.manager.loading(keys) as lease:
            stack.check(lease.keys, lease.spec)
            assert lease.by_tier == {"t1": 4}
        stack.tiers[0].knows = True
        assert await stack.load(keys_of(1, start=50)) == 0


async def test_a_closed_tier_costs_misses_only() -> None:
    keys = keys_of(4)
    async with tiered(8) as stack:
        stack.tier.keep(keys)
        await stack.tier.aclose()
        assert await stack.manager.lookup(keys) == 0
        assert await stack.load(keys) == 0
        await stack.store(keys)
        await stack.manager.settle()
        assert stack.manager.tier_counts()["t0"]["failed"] == 4
        assert await stack.load(keys) == 4


async def test_an_answer_other_than_hit_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = keys_of(2)
    async with tiered(8) as stack:

        async def lookup(*_: object) -> list[LookupResult]:
            return [LookupResult.HIT, LookupResult.RETRY]

        stack.tier.keep(keys)
        monkeypatch.setattr(stack.tier, "lookup", lookup)
        assert await stack.load(keys) == 1


async def test_only_the_named_tiers_serve_a_call() -> None:
    keys = keys_of(3)
    async with tiered(8, n_tiers=2) as stack:
        stack.tiers[1].keep(keys)
        assert await stack.manager.lookup(keys, RequestContext(tiers=frozenset({"t0"}))) == 0
        assert await stack.manager.lookup(keys, RequestContext(tiers=frozenset())) == 0
        assert await stack.load(keys, RequestContext(tiers=frozenset({"t0"}))) == 0
        assert not stack.tiers[1].calls
        assert await stack.load(keys, RequestContext(tiers=frozenset({"t1"}))) == 3
        with pytest.raises(InvalidArgument, match="there is no tier disk; there are t0, t1"):
            await stack.manager.lookup(keys, RequestContext(tiers=frozenset({"disk"})))
        with pytest.raises(InvalidArgument, match="there is no tier disk"):
            await stack.load(keys, RequestContext(tiers=frozenset({"disk"})))


async def test_malformed_keys_are_refused_before_anything_happens() -> None:
    (key,) = keys_of(1)
    async with tiered(8) as stack:
        with pytest.raises(InvalidArgument, match="appears twice"):
            await stack.load([key, key])
        with pytest.raises(InvalidArgument, match="not bytes"):
            await stack.manager.prepare_load([key, "key"])  # type: ignore[list-item]
        assert not stack.tier.calls


async def test_a_more_urgent_sharer_hurries_the_job() -> None:
    keys = keys_of(2)
    async with tiered(8) as stack:
        stack.tier.keep(keys)
        stack.tier.loads.shut()
        patient = asyncio.create_task(stack.load(keys, RequestContext(priority=Priority.PREFETCH)))
        await stack.tier.loads.reached()
        (job,) = stack.tier.running
        assert job.priority == int(Priority.PREFETCH)
        urgent = asyncio.create_task(stack.load(keys))
        await until(lambda: stack.tier.hurried)
        assert stack.tier.hurried == [(job.job_id, Priority.DEMAND)]
        assert job.priority == int(Priority.DEMAND)
        stack.tier.loads.open()
        assert list(await asyncio.gather(patient, urgent)) == [2, 2]


async def test_loaders_wait_for_a_store_under_way_instead_of_asking_the_tiers() -> None:
    keys = keys_of(2)
    async with tiered(8) as stack:
        async with stack.manager.storing(keys) as lease:
            loader = asyncio.create_task(stack.load(keys))
            await turns()
            assert await stack.manager.lookup(keys) == 0, "advice does not wait"
            for key, slot in zip(lease.keys, lease.spec.block_ids.tolist(), strict=True):
                stack.region.slot(slot)[:] = content_of(key)
        assert await loader == 2
        assert not stack.tier.calls["lookup"]


async def test_a_failed_store_sends_its_waiters_to_the_tiers() -> None:
    keys = keys_of(2)
    async with tiered(8) as stack:
        stack.tier.keep(keys)
        output = await stack.manager.prepare_store(keys)
        assert output is not None
        loader = asyncio.create_task(stack.load(keys))
        await turns()
        await stack.manager.complete_store(keys, success=False)
        assert await loader == 2


async def test_long_requests_are_planned_in_pieces() -> None:
    keys = keys_of(1000)
    async with tiered(1024) as stack:
        stack.tier.keep(keys)
        assert await stack.manager.lookup(keys) == 1000
        assert await stack.load(keys) == 1000
        assert max(map(len, stack.tier.asked)) <= 128
        assert max(len(job.keys) for job in stack.tier.jobs) == 64


async def test_callers_who_come_together_are_planned_in_turns() -> None:
    async with tiered(4096) as stack:
        turn, planned = 0, Counter[int]()
        extend = stack.manager._planner.extend

        def counting(ticket: Ticket, keys: Sequence[OffloadKey]) -> None:
            planned[turn] += len(keys)
            extend(ticket, keys)

        stack.manager._planner.extend = counting  # type: ignore[method-assign]
        callers = [asyncio.create_task(stack.load(keys_of(256, start))) for start in range(0, 4096, 256)]
        while not all(caller.done() for caller in callers):
            await asyncio.sleep(0)
            turn += 1
        assert max(planned.values()) <= 2 * 64, "the caller who counts the turns may come before or after"
        assert len(planned) >= 8


async def test_a_deadline_ends_the_lease_at_the_prefix_it_has() -> None:
    keys = keys_of(6)
    async with tiered(16, promoting=2) as stack:
        stack.tier.keep(keys)
        stack.tier.halfway.shut(after=2)
        async with stack.manager.loading(keys, RequestContext(deadline=10.0), streaming=True) as lease:
            parts = lease.parts()
            await anext(parts)
            await stack.tier.halfway.reached()
            stack.clock.now = 11.0
            assert [part async for part in parts] == []
            assert list(lease.keys) == keys[:2]
            assert lease.stopped_by is Status.TIMED_OUT
            stack.check(lease.keys, lease.spec)
            (job,) = stack.tier.running
            assert job.deadline == 10.0
            assert job.unwanted == set(keys[2:4])
        assert stack.manager.stats().writing == 2, "the slots are the tier's until it has ended"


async def test_a_deadline_in_the_past_gives_what_is_there_at_once() -> None:
    keys = keys_of(4)
    late = RequestContext(deadline=-1.0)
    async with tiered(8) as stack:
        await stack.store(keys[:2])
        stack.tier.keep(keys)
        stack.tier.lookups.shut()
        assert await stack.manager.lookup(keys, late) == 2
        assert await stack.load(keys, late) == 2
        with pytest.raises(BlocksUnavailable) as caught:
            await stack.manager.prepare_load(keys, late)
        assert caught.value.ready_prefix == 2


async def test_a_background_read_does_not_touch() -> None:
    keys = keys_of(6)
    async with tiered(4) as stack:
        await stack.store(keys[:4])
        await stack.manager.settle()
        assert await stack.load(keys[2:4]) == 2
        await stack.store(keys[4:])
        assert await stack.manager.lookup(keys[:1]) == 1
        resident = [key for key in keys if key in stack.manager._primary.table.ready]
        assert resident == [*keys[:2], *keys[4:]]


async def test_a_promoted_block_is_clean_where_it_came_from() -> None:
    keys = keys_of(4)
    async with tiered(4, n_tiers=2) as stack:
        stack.tiers[0].keep(keys)
        assert await stack.load(keys) == 4
        await stack.store(keys_of(4, start=100))
        assert stack.manager.stats().lost == 0


def sources(stack: Stack) -> Counter[str]:
    """How many blocks each tier gave."""
    return Counter({name: counts["promoted"] for name, counts in stack.manager.tier_counts().items()})


async def test_faster_tiers_are_asked_first() -> None:
    keys = keys_of(4)
    async with tiered(8, n_tiers=3) as stack:
        for tier in stack.tiers[1:]:
            tier.keep(keys)
        assert await stack.load(keys) == 4
        assert sources(stack) == {"t0": 0, "t1": 4, "t2": 0}
        assert not stack.tiers[2].calls["lookup"]

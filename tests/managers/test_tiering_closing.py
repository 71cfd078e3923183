"""Closing under load, and a plan that turns out to be broken: nobody is left waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from asyncoffload.core.ops import Op, OpKind
from asyncoffload.errors import BlocksUnavailable, ClosedError, InternalError, TierUnavailable, WrongLoopError
from asyncoffload.managers import conducting
from asyncoffload.managers.tier_call import Settle
from asyncoffload.managers.tiering import TieringOffloadingManager
from asyncoffload.memory.region import HostRegion
from asyncoffload.types import Status
from tests.managers.gated_tier import SLOT_BYTES, GatedTier
from tests.managers.tiered_stack import Stack, keys_of, tiered, turns, until


async def busy(stack: Stack) -> list[asyncio.Task[Any]]:
    """Callers in every kind of wait: for a probe, a promotion, a slot, for room, for cascades."""
    held, stored, loaded = keys_of(4), keys_of(4, start=50), keys_of(12, start=100)
    stack.tier.keep(loaded)
    await stack.store(held)
    await stack.manager.settle()
    await stack.manager.prepare_load(held)
    stack.tier.stores.shut()
    await stack.store(stored)
    stack.tier.halfway.shut()
    stack.tier.knows = True

    async def store() -> None:
        async with stack.manager.storing(keys_of(6, start=200), wait=True):
            pass

    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(stack.load(loaded[n : n + 4])) for n in range(0, 12, 4)]
    await stack.tier.halfway.reached()
    stack.tier.knows = False
    stack.tier.lookups.shut()
    tasks.append(asyncio.create_task(stack.manager.lookup(keys_of(4, start=500))))
    tasks.append(asyncio.create_task(stack.load(keys_of(4, start=300))))
    tasks.append(asyncio.create_task(stack.manager.prepare_load(keys_of(4, start=400))))
    tasks.append(asyncio.create_task(store()))
    tasks.append(asyncio.create_task(stack.manager.settle()))
    await stack.tier.lookups.reached()
    assert not any(task.done() for task in tasks)
    return tasks


@pytest.mark.parametrize("drain", [True, False])
async def test_closing_under_load_ends_everybody(drain: bool) -> None:
    async with tiered(12) as stack:
        *loaders, looking, unknown, paired, storing, settling = await busy(stack)
        closing = asyncio.create_task(stack.manager.aclose(drain=drain))
        assert await asyncio.gather(*loaders, unknown) == [0] * 4
        assert await looking == 0
        with pytest.raises(BlocksUnavailable):
            await paired
        with pytest.raises(ClosedError):
            await storing
        await turns()
        assert not closing.done(), "work on slots is awaited"
        cascade, promotion = stack.tier.running
        assert promotion.unwanted == set(promotion.keys)
        assert cascade.unwanted == (set() if drain else set(cascade.keys))
        stack.tier.open_all()
        await closing
        await settling
        assert all((key in stack.tier.blocks) == drain for key in cascade.keys)
        await stack.manager.complete_load(keys_of(4))
        with pytest.raises(ClosedError):
            await stack.manager.lookup(keys_of(1))


async def test_a_cancelled_close_drops_cascades_and_still_waits_for_what_runs() -> None:
    keys = keys_of(4)
    async with tiered(8) as stack:
        stack.tier.stores.shut()
        await stack.store(keys)
        await stack.tier.stores.reached()
        closing = asyncio.create_task(stack.manager.aclose())
        await turns()
        assert not stack.tier.running[0].unwanted
        closing.cancel()
        await turns()
        assert not closing.done()
        assert stack.tier.running[0].unwanted == set(keys)
        stack.tier.stores.open()
        await asyncio.wait([closing])
        assert closing.cancelled()
        assert not stack.tier.blocks


async def test_draining_has_a_time_limit() -> None:
    keys = keys_of(4)
    async with tiered(8) as stack:
        stack.tier.stores.shut()
        await stack.store(keys)
        closing = asyncio.create_task(stack.manager.aclose(drain_timeout=0))
        await stack.tier.stores.reached()
        await until(lambda: stack.tier.running[0].unwanted)
        stack.tier.stores.open()
        await closing
        assert stack.manager.tier_counts()["t0"]["shed"] == 4


async def test_a_block_stored_just_before_closing_still_arrives() -> None:
    keys = keys_of(4)
    async with tiered(8) as stack:
        await stack.store(keys)
        await stack.manager.aclose()
        assert set(stack.tier.blocks) == set(keys)


async def test_past_its_time_limit_closing_names_what_runs_and_can_be_repeated() -> None:
    async with tiered(12) as stack:
        tasks = await busy(stack)
        with pytest.raises(TierUnavailable, match=r"t0 <Op .* CASCADE .*, t0 <Op .* PROMOTE"):
            await stack.manager.aclose(drain=False, timeout=0)
        with pytest.raises(TierUnavailable):
            await stack.manager.aclose(drain_timeout=0, timeout=0)
        stack.tier.open_all()
        await stack.manager.aclose()
        await stack.manager.aclose()
        await asyncio.wait(tasks)
        for task in tasks:
            task.exception()
        await stack.manager.complete_load(keys_of(4))


async def test_closing_that_takes_long_says_what_it_waits_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(conducting, "LONG_CLOSE", 0.0)
    keys = keys_of(2)
    async with tiered(4) as stack:
        stack.tier.stores.shut()
        await stack.store(keys)
        closing = asyncio.create_task(stack.manager.aclose())
        await until(lambda: caplog.records)
        assert "closing waits for t0 <Op" in caplog.text
        stack.tier.stores.open()
        await closing


async def test_a_store_that_ends_after_closing_is_not_offered_any_more() -> None:
    keys = keys_of(2)
    async with tiered(4) as stack:
        async with stack.manager.storing(keys):
            await stack.manager.aclose()
        await turns()
        assert not stack.tier.calls
        assert stack.manager.stats().ready == 2


async def test_a_lease_outlives_closing() -> None:
    keys = keys_of(2)
    async with tiered(4) as stack:
        stack.tier.keep(keys)
        async with stack.manager.loading(keys) as lease:
            await stack.manager.aclose()
            stack.check(lease.keys, lease.spec)
            assert len(lease.keys) == 2
            assert lease.stopped_by is None


# ---- a broken plan


def plant(stack: Stack, method: str) -> None:
    """Make one of the planner's methods raise from now on."""

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("planted")

    setattr(stack.manager._planner, method, broken)


async def provoke_take(stack: Stack) -> None:
    await stack.manager.touch(keys_of(1))


async def provoke_settle(stack: Stack) -> None:
    stack.tier.lookups.open()


async def provoke_open(stack: Stack) -> None:
    with pytest.raises(InternalError):
        await stack.load(keys_of(1, start=900))


async def provoke_close(stack: Stack) -> None:
    task = asyncio.create_task(stack.load(keys_of(1, start=900)))
    await turns()
    task.cancel()


BREAKS: list[tuple[str, Callable[[Stack], Awaitable[None]]]] = [
    ("take", provoke_take),
    ("take_woken", provoke_take),
    ("settle", provoke_settle),
    ("open", provoke_open),
    ("close", provoke_close),
]


@pytest.mark.parametrize(("method", "provoke"), BREAKS, ids=[method for method, _ in BREAKS])
async def test_a_broken_plan_ends_every_waiting_call_and_every_later_one(
    method: str, provoke: Callable[[Stack], Awaitable[None]]
) -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    stack = Stack(12)
    tasks = await busy(stack)
    plant(stack, method)
    await provoke(stack)
    for task in tasks:
        with pytest.raises(InternalError, match="planted"):
            await task
    for later in (
        stack.manager.lookup(keys_of(1)),
        stack.load(keys_of(1)),
        stack.manager.prepare_load(keys_of(1)),
        stack.store(keys_of(1)),
        stack.manager.complete_load(keys_of(4)),
        stack.manager.touch(keys_of(1)),
        stack.manager.settle(),
        stack.manager.reset(),
        stack.manager.take_events(),
    ):
        with pytest.raises(InternalError):
            await later
    closing = asyncio.create_task(stack.manager.aclose())
    await turns()
    assert not closing.done(), "slots in use are awaited even so"
    assert all(job.unwanted == set(job.keys) for job in stack.tier.running)
    stack.tier.open_all()
    await closing
    assert not stack.manager._running
    assert not any(map(stack.region.is_held, range(12)))
    assert "broken" in repr(stack.manager)
    assert not complaints


async def test_who_leaves_a_lease_of_a_broken_plan_is_told() -> None:
    stack = Stack(4)
    await stack.store(keys_of(2))
    await stack.manager.settle()
    with pytest.raises(InternalError):
        async with stack.manager.loading(keys_of(2)):
            plant(stack, "close")
    await stack.manager.aclose()


async def test_an_exception_of_the_caller_is_not_hidden_by_a_broken_plan() -> None:
    stack = Stack(4)

    async def fail() -> None:
        async with stack.manager.loading(keys_of(2)):
            plant(stack, "close")
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    await stack.manager.aclose()


async def test_an_op_that_is_settled_wrongly_is_a_bug_that_is_reported() -> None:
    stack = Stack(4)
    stack.tier.keep(keys_of(2))

    async def run(op: Op, settle: Settle) -> None:
        extra = op.kind is OpKind.PROMOTE
        settle(op, [Status.DONE] * (len(op.keys) + extra), abandoned=False)

    stack.manager._runner.run = run  # type: ignore[method-assign]
    with pytest.raises(InternalError, match="settled with 3 statuses"):
        await stack.load(keys_of(2))
    await stack.manager.aclose()


def test_a_manager_belongs_to_one_loop() -> None:
    region = HostRegion(4, SLOT_BYTES)
    tier = GatedTier(region.view)
    manager = TieringOffloadingManager(region, [tier])
    assert asyncio.run(manager.lookup(keys_of(1))) == 0
    for call in (
        manager.lookup(keys_of(1)),
        manager.prepare_load(keys_of(1)),
        manager.loading(keys_of(1)).__aenter__(),
        manager.storing(keys_of(1)).__aenter__(),
        manager.settle(),
        manager.take_events(),
        manager.reset(),
        manager.aclose(),
    ):
        with pytest.raises(WrongLoopError):
            asyncio.run(call)


async def test_the_end_of_the_loop_leaves_no_task_behind() -> None:
    stack = Stack(4)
    stack.tier.keep(keys_of(2))
    stack.tier.loads.shut()
    loader = asyncio.create_task(stack.load(keys_of(2)))
    await stack.tier.loads.reached()
    for task in list(stack.manager._running.values()):
        task.cancel()
    assert await loader == 0
    await stack.manager.aclose()
    stack.assert_nothing_left()

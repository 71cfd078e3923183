"""Who waits may leave at once; the work belongs to the manager, and its slots to the work until it has ended."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import pytest

from asyncoffload.core.write import Write
from asyncoffload.errors import BlocksUnavailable, CapacityError, LeaseClosedError, TierUnavailable
from asyncoffload.memory.region import SlotHold
from asyncoffload.types import CPULoadStoreSpec, RequestContext
from tests.managers.gated_tier import SLOT_BYTES, GatedTier, content_of
from tests.managers.tiered_stack import CANARY, Stack, keys_of, tiered, turns, until


async def cancelled(task: asyncio.Task[object]) -> None:
    """Cancel a task, and make sure that it leaves within a few turns of the loop."""
    task.cancel()
    await until(task.done)
    assert task.cancelled()


def half_written(stack: Stack, tier: GatedTier) -> list[int]:
    """The slots that a tier has begun to write and not finished."""
    half = SLOT_BYTES // 2
    return [
        slot
        for job in tier.running
        for key, slot in zip(job.keys, job.slots, strict=True)
        if bytes(stack.region.slot(slot)) == content_of(key)[:half] + CANARY[half:]
    ]


WAITS: list[Callable[[Stack], Awaitable[object]]] = [
    lambda stack: stack.load(keys_of(4)),
    lambda stack: stack.manager.prepare_load(keys_of(4)),
]


@pytest.mark.parametrize("wait", WAITS, ids=["loading", "prepare_load"])
async def test_a_cancelled_waiter_leaves_while_the_tier_is_in_the_middle_of_a_write(
    wait: Callable[[Stack], Awaitable[object]],
) -> None:
    keys = keys_of(4)
    async with tiered(4) as stack:
        stack.guard()
        stack.tier.keep(keys)
        stack.tier.halfway.shut()
        waiter = asyncio.ensure_future(wait(stack))
        await stack.tier.halfway.reached()
        (job,) = stack.tier.running
        await cancelled(waiter)

        assert job.unwanted == set(keys), "the tier is told that nobody wants the blocks"
        assert all(map(stack.region.is_held, job.slots))
        assert len(half_written(stack, stack.tier)) == 1
        assert stack.manager.stats().writing == 4, "the slots stay with the op"
        with pytest.raises(CapacityError):
            await stack.store(keys_of(1, start=100))

        stack.tier.halfway.open()
        await until(lambda: not stack.tier.running)
        assert stack.tier.calls["load"] == 1
        await until(lambda: not stack.manager._running)
        assert stack.manager.stats().writing == 0
        assert [bytes(stack.region.slot(slot)) for slot in job.slots[1:]] == [CANARY] * 3, "dropped between blocks"
        await stack.store(keys_of(3, start=100))


async def test_a_cancelled_lookup_leaves_while_the_probe_runs() -> None:
    keys = keys_of(4)
    async with tiered(4) as stack:
        stack.tier.lookups.shut()
        waiter = asyncio.create_task(stack.manager.lookup(keys))
        await stack.tier.lookups.reached()
        await cancelled(waiter)
        assert stack.tier.lookups.waiting == 1


async def test_a_cancelled_waiter_whose_promotion_is_queued_never_starts_it() -> None:
    keys = keys_of(4)
    async with tiered(8, promoting=2) as stack:
        stack.tier.keep(keys)
        stack.tier.halfway.shut()
        running = asyncio.create_task(stack.load(keys[:2]))
        await stack.tier.halfway.reached()
        queued = asyncio.create_task(stack.load(keys[2:]))
        await turns()
        await cancelled(queued)
        stack.tier.halfway.open()
        assert await running == 2
        await turns()
        assert [list(job.keys) for job in stack.tier.jobs] == [keys[:2]]


async def test_one_of_several_sharers_leaves_and_the_others_get_their_blocks() -> None:
    keys = keys_of(4)
    async with tiered(4) as stack:
        stack.tier.keep(keys)
        stack.tier.halfway.shut()
        sharers = [asyncio.create_task(stack.load(keys)) for _ in range(3)]
        await stack.tier.halfway.reached()
        await cancelled(sharers[1])
        (job,) = stack.tier.running
        assert not job.unwanted
        stack.tier.halfway.open()
        assert [await sharers[0], await sharers[2]] == [4, 4]
        assert stack.tier.calls["load"] == 1


async def test_only_what_nobody_else_wants_is_dropped() -> None:
    keys = keys_of(4)
    async with tiered(4) as stack:
        stack.tier.keep(keys)
        stack.tier.loads.shut()
        long, short = asyncio.create_task(stack.load(keys)), asyncio.create_task(stack.load(keys[:2]))
        await stack.tier.loads.reached()
        await cancelled(long)
        (job,) = stack.tier.running
        assert job.unwanted == set(keys[2:])
        stack.tier.loads.open()
        assert await short == 2


async def test_who_joins_while_the_tier_drops_gets_the_blocks_all_the_same() -> None:
    keys = keys_of(4)
    async with tiered(4) as stack:
        stack.tier.keep(keys)
        stack.tier.halfway.shut()
        sharers = [asyncio.create_task(stack.load(keys)) for _ in range(2)]
        await stack.tier.halfway.reached()
        for sharer in sharers:
            await cancelled(sharer)
        (job,) = stack.tier.running
        stack.tier.halfway.open()
        await until(lambda: not stack.tier.running)
        assert job.unwanted == set(keys)
        again = asyncio.create_task(stack.load(keys))
        assert await again == 4
        assert not stack.manager.tier_counts()["t0"].get("refused_cancelled")


async def test_who_joins_before_the_tier_has_looked_costs_no_second_promotion() -> None:
    keys = keys_of(4)
    async with tiered(4) as stack:
        stack.tier.keep(keys)
        stack.tier.loads.shut()
        first = asyncio.create_task(stack.load(keys))
        await stack.tier.loads.reached()
        await cancelled(first)
        again = asyncio.create_task(stack.load(keys))
        await turns()
        (job,) = stack.tier.running
        assert not job.unwanted
        stack.tier.loads.open()
        assert await again == 4
        assert stack.tier.calls["load"] == 1


async def test_leaving_a_streaming_lease_early_drops_what_is_under_way() -> None:
    keys = keys_of(4)
    async with tiered(8, promoting=2) as stack:
        stack.tier.keep(keys)
        stack.tier.loads.shut(after=1)
        async with stack.manager.loading(keys, streaming=True) as lease:
            await anext(lease.parts())
            await stack.tier.loads.reached()
        (job,) = stack.tier.running
        assert job.unwanted == set(keys[2:])
        assert stack.manager.stats().pinned == 0


async def test_who_reads_parts_of_a_lease_that_ends_is_told() -> None:
    keys = keys_of(4)
    async with tiered(8) as stack:
        stack.tier.loads.shut()
        stack.tier.keep(keys)
        async with stack.manager.loading(keys, streaming=True) as lease:

            async def read() -> None:
                async for _ in lease.parts():
                    pass

            reader = asyncio.create_task(read())
            await stack.tier.loads.reached()
        with pytest.raises(LeaseClosedError):
            await reader
        with pytest.raises(LeaseClosedError):
            _ = lease.keys


async def test_an_exception_inside_a_lease_passes_and_gives_everything_back() -> None:
    keys = keys_of(4)
    async with tiered(4) as stack:
        stack.tier.keep(keys)
        with pytest.raises(ZeroDivisionError):
            async with stack.manager.loading(keys):
                raise ZeroDivisionError
        assert stack.manager.stats().pinned == 0


async def test_a_timeout_of_the_caller_is_a_cancellation() -> None:
    keys = keys_of(4)
    async with tiered(4) as stack:
        stack.tier.keep(keys)
        stack.tier.halfway.shut()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await stack.load(keys)
        await turns()

        async def load_until_the_tier_writes() -> None:
            async with asyncio.timeout(None) as limit:
                writing = asyncio.create_task(stack.tier.halfway.reached())
                writing.add_done_callback(lambda _: limit.reschedule(0))
                await stack.load(keys)

        with pytest.raises(TimeoutError):
            await load_until_the_tier_writes()
        (job,) = stack.tier.running
        assert job.unwanted == set(keys)


async def test_an_anyio_scope_is_left_at_once() -> None:
    keys = keys_of(4)
    async with tiered(4) as stack:
        stack.tier.keep(keys)
        stack.tier.halfway.shut()
        async with anyio.create_task_group() as group:
            group.start_soon(stack.load, keys)
            group.start_soon(stack.manager.lookup, keys)
            await stack.tier.halfway.reached()
            group.cancel_scope.cancel()
        assert stack.tier.halfway.waiting == 1
        with anyio.move_on_after(0):
            await stack.load(keys)
        assert stack.tier.halfway.waiting == 1


async def test_closing_in_a_cancelled_anyio_scope_waits_for_what_runs() -> None:
    keys = keys_of(4)
    async with tiered(4) as stack:
        stack.tier.keep(keys)
        stack.tier.halfway.shut()
        loader = asyncio.create_task(stack.load(keys))
        await stack.tier.halfway.reached()

        async def close() -> None:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await stack.manager.aclose()

        closing = asyncio.create_task(close())
        await turns()
        assert not closing.done()
        assert stack.tier.running
        stack.tier.halfway.open()
        await closing
        assert not stack.tier.running
        assert await loader == 0


async def test_cancelling_settle_leaves_the_cascades_alone() -> None:
    keys = keys_of(4)
    async with tiered(8) as stack:
        stack.tier.stores.shut()
        await stack.store(keys)
        settling = asyncio.create_task(stack.manager.settle())
        await stack.tier.stores.reached()
        await cancelled(settling)
        (job,) = stack.tier.running
        assert not job.unwanted
        stack.tier.stores.open()
        await stack.manager.settle()
        assert set(stack.tier.blocks) == set(keys)


async def test_a_failed_store_does_not_hand_out_a_slot_that_is_still_read_from_the_device() -> None:
    (key,) = keys_of(1)
    async with tiered(1) as stack:

        async def fail_to_store() -> SlotHold:
            with suppress(RuntimeError):
                async with stack.manager.storing([key]) as lease:
                    hold = stack.region.hold(lease.spec.block_ids)
                    hold.__enter__()
                    raise RuntimeError("the device failed")
            return hold

        transfer = await fail_to_store()
        assert stack.manager.stats().quarantined == 1
        waiting = asyncio.create_task(stack.store(keys_of(1, start=100)))
        await until(waiting.done)
        assert isinstance(waiting.exception(), CapacityError)
        transfer.__exit__(None, None, None)
        await until(lambda: stack.manager.stats().free == 1)
        await stack.store(keys_of(1, start=100))


async def test_a_lease_left_with_a_transfer_still_running_keeps_its_slot_from_others() -> None:
    keys, others = keys_of(2), keys_of(2, start=100)
    async with tiered(2) as stack:
        stack.tier.keep(keys + others)
        async with stack.manager.loading(keys) as lease:
            slots = lease.spec.block_ids
            transfer = stack.region.hold(slots[:1])
            transfer.__enter__()
        loader = asyncio.create_task(stack.load(others))
        await until(lambda: len(stack.tier.jobs) == 2)
        assert list(stack.tier.jobs[1].slots) == [int(slots[1])]
        await turns()
        assert not loader.done()
        stack.check(keys[:1], CPULoadStoreSpec(slots[:1]))
        transfer.__exit__(None, None, None)
        assert await loader == 2


async def test_a_waiter_for_room_is_woken_when_a_transfer_ends_on_another_thread() -> None:
    keys, others = keys_of(2), keys_of(2, start=100)
    async with tiered(2) as stack:
        await stack.store(keys)
        await stack.manager.settle()
        transfer = stack.region.hold([0, 1])
        transfer.__enter__()

        async def store() -> None:
            async with stack.manager.storing(others, wait=True) as lease:
                for key, slot in zip(lease.keys, lease.spec.block_ids.tolist(), strict=True):
                    stack.region.slot(slot)[:] = content_of(key)

        waiting = asyncio.create_task(store())
        await turns()
        assert not waiting.done()
        thread = threading.Thread(target=transfer.__exit__, args=(None, None, None))
        thread.start()
        await waiting
        thread.join()
        assert await stack.load(others) == 2


async def test_waiting_for_slots_that_are_in_use_does_not_spin() -> None:
    keys, others = keys_of(2), keys_of(2, start=100)
    async with tiered(2) as stack:
        await stack.store(keys)
        await stack.manager.settle()
        planned = 0
        real = stack.manager._primary.begin_store

        def counting(*args: Any, **kwargs: Any) -> Write | None:
            nonlocal planned
            planned += 1
            return real(*args, **kwargs)

        stack.manager._primary.begin_store = counting  # type: ignore[method-assign]
        with stack.region.hold([0, 1]):
            waiting = asyncio.create_task(stack.manager.storing(others, wait=True).__aenter__())
            stack.tier.keep(others)
            loader = asyncio.create_task(stack.load(others))
            await turns(500)
            assert planned < 10
            await cancelled(waiting)
        assert await loader == 2


async def test_an_op_outlives_the_time_limit_of_closing_and_keeps_its_slots() -> None:
    keys = keys_of(4)
    async with tiered(4) as stack:
        stack.guard()
        stack.tier.keep(keys)
        stack.tier.halfway.shut()
        loader = asyncio.create_task(stack.load(keys))
        await stack.tier.halfway.reached()
        with pytest.raises(TierUnavailable, match=r"t0 <Op .* PROMOTE"):
            await stack.manager.aclose(timeout=0)
        assert await loader == 0
        assert all(map(stack.region.is_held, stack.tier.running[0].slots))
        stack.tier.halfway.open()
        await stack.manager.aclose()


async def test_a_late_deadline_costs_a_slot_for_a_while_and_never_a_byte() -> None:
    keys, others = keys_of(2), keys_of(2, start=100)
    async with tiered(2) as stack:
        stack.tier.keep(keys + others)
        stack.tier.halfway.shut()
        stack.clock.now = 5.0
        with pytest.raises(BlocksUnavailable):
            await stack.manager.prepare_load(keys, RequestContext(deadline=4.0))
        patient = asyncio.create_task(stack.load(others))
        await stack.tier.halfway.reached()
        stack.tier.halfway.open()
        assert await patient == 2

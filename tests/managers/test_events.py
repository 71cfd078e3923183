"""Events: who asks gets them, bounded, and hears of what was lost."""

from __future__ import annotations

import asyncio
import gc

import pytest

from asyncoffload.errors import InvalidArgument
from asyncoffload.keys import OffloadKey
from asyncoffload.managers.cpu import CPUOffloadingManager


def blocks(*numbers: int) -> list[OffloadKey]:
    return [OffloadKey(b"%08d" % number) for number in numbers]


async def put(manager: CPUOffloadingManager, *numbers: int) -> None:
    async with manager.storing(blocks(*numbers)):
        pass


async def test_events_are_off_until_asked_for() -> None:
    async with CPUOffloadingManager(4, block_size=16) as manager:
        await put(manager, 1)
        assert await manager.take_events() == []
        await put(manager, 2)
        (event,) = await manager.take_events()
        assert (event.keys, event.removed, event.medium, event.block_size) == (blocks(2), False, "CPU", 16)
        assert await manager.take_events() == []


async def test_the_removed_event_comes_before_the_stored_event() -> None:
    async with CPUOffloadingManager(1) as manager:
        events = manager.events()
        await put(manager, 1)
        await put(manager, 2)
        told = [await anext(events) for _ in range(3)]
        assert [(event.keys, event.removed) for event in told] == [
            (blocks(1), False),
            (blocks(1), True),
            (blocks(2), False),
        ]


async def test_each_subscriber_has_its_own_queue() -> None:
    async with CPUOffloadingManager(4) as manager:
        first, second = manager.events(), manager.events()
        await put(manager, 1)
        assert (await anext(first)).keys == blocks(1)
        assert (await anext(second)).keys == blocks(1)


async def test_overflow_drops_the_oldest_and_says_how_many() -> None:
    async with CPUOffloadingManager(8) as manager:
        slow, batch = manager.events(capacity=2), manager.events(capacity=1)
        for number in range(5):
            await put(manager, number)
        told = await anext(slow)
        assert (told.keys, told.lost) == (blocks(3), 3)
        assert (await anext(slow)).lost == 0
        (last,) = batch.take()
        assert (last.keys, last.lost) == (blocks(4), 4)
        assert "0 of 1 waiting" in repr(batch)


async def test_a_waiting_subscriber_is_woken_and_a_cancelled_one_loses_nothing() -> None:
    async with CPUOffloadingManager(4) as manager:
        events = manager.events()
        cancelled = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        await put(manager, 1)
        assert (await waiting).keys == blocks(1)


async def test_closing_the_manager_ends_the_iteration_after_the_last_event() -> None:
    manager = CPUOffloadingManager(4)
    events = manager.events()
    await put(manager, 1)
    await manager.aclose()
    assert [event.keys async for event in events] == [blocks(1)]
    assert [event async for event in manager.events()] == []


async def test_a_closed_subscription_takes_no_more() -> None:
    async with CPUOffloadingManager(4) as manager:
        events = manager.events()
        events.close()
        await put(manager, 1)
        assert [event async for event in events] == []


async def test_a_subscription_that_nobody_holds_ends() -> None:
    async with CPUOffloadingManager(4) as manager:
        manager.events()
        gc.collect()
        assert len(manager._hub._subscriptions) == 0


def test_a_queue_needs_room_for_one_event() -> None:
    with pytest.raises(InvalidArgument, match="got 0"):
        CPUOffloadingManager(1).events(capacity=0)

"""Who waits for blocks to reach the tiers waits for those that there are, not for those that others go on storing."""

from __future__ import annotations

import asyncio

import pytest

from asyncoffload.errors import ClosedError, InternalError
from asyncoffload.keys import OffloadKey
from asyncoffload.types import Status, WritePolicy
from tests.managers.gated_tier import GatedTier
from tests.managers.tiered_stack import Stack, keys_of, tiered, turns, until


class Full(dict[OffloadKey, Status]):
    """The outcomes of a tier that sheds what it has no room for, and makes room little by little."""

    def __init__(self, tier: GatedTier) -> None:
        super().__init__()
        self._tier = tier
        self._room = 10

    async def make_room(self) -> None:
        while True:
            await asyncio.sleep(0.3)
            self._room += 5

    def __contains__(self, _: object) -> bool:
        return len(self._tier.blocks) >= self._room

    def __getitem__(self, _: OffloadKey) -> Status:
        return Status.SHED


@pytest.mark.parametrize("verb", ["settle", "flush"])
async def test_what_is_stored_afterwards_is_not_waited_for(verb: str) -> None:
    async with tiered(16) as stack:
        stack.tier.stores.shut()
        await stack.store(keys_of(2))
        waiting = asyncio.create_task(getattr(stack.manager, verb)())
        await stack.tier.stores.reached()
        await stack.store(keys_of(2, start=10))
        await stack.tier.stores.reached(2)
        await turns()
        assert not waiting.done()
        stack.tier.stores.let_pass()
        await waiting
        assert stack.tier.stores.waiting == 1
        stack.tier.stores.open()


@pytest.mark.parametrize("write_policy", ["write_through", "demote"])
@pytest.mark.parametrize("verb", ["settle", "flush"])
async def test_it_ends_though_more_is_stored_than_the_tier_takes(write_policy: WritePolicy, verb: str) -> None:
    keys = keys_of(12)
    async with tiered(48, cascading=2, write_policy=write_policy) as stack:
        stack.tier.stores.shut()
        await stack.store(keys)
        await stack.store(keys_of(36, start=50))
        waiting = asyncio.create_task(getattr(stack.manager, verb)())
        await turns()
        for start in range(100, 2000, 3):
            await stack.manager.touch(keys)  # so that they never become cold
            await stack.store(keys_of(3, start))
            stack.tier.stores.let_pass()
            await turns(8)
            if waiting.done():
                break
        assert waiting.done()
        assert write_policy == "demote" or set(keys) <= set(stack.tier.blocks)
        assert verb == "settle" or set(keys) <= set(stack.tier.blocks)
        stack.tier.stores.open()


@pytest.mark.parametrize("write_policy", ["write_through", "demote"])
@pytest.mark.parametrize("verb", ["settle", "flush"])
async def test_it_ends_though_a_tier_fails_all_that_is_stored_meanwhile(write_policy: WritePolicy, verb: str) -> None:
    async with tiered(48, cascading=4, write_policy=write_policy) as stack:
        stack.tier.outcomes = dict.fromkeys(keys_of(2000), Status.FAILED)
        stack.tier.stores.shut()
        await stack.store(keys_of(12))
        waiting = asyncio.create_task(getattr(stack.manager, verb)())
        await turns()
        for start in range(20, 2000, 2):
            await stack.store(keys_of(2, start))
            await turns(4)
            stack.tier.stores.let_pass()
            await turns(4)
            if waiting.done():
                break
        assert waiting.done()
        stack.tier.stores.open()
        stack.tier.outcomes = {}


async def test_what_waits_in_line_is_waited_for() -> None:
    keys = keys_of(6)
    async with tiered(16, cascading=2) as stack:
        stack.tier.stores.shut()
        await stack.store(keys)
        settling = asyncio.create_task(stack.manager.settle())
        for _ in range(2):
            await stack.tier.stores.reached()
            stack.tier.stores.let_pass()
            await turns()
            assert not settling.done()
        stack.tier.stores.open()
        await settling
        assert set(stack.tier.blocks) == set(keys)


async def test_several_wait_each_for_its_own() -> None:
    async with tiered(32) as stack:
        stack.tier.stores.shut()
        waiting = []
        for number in range(4):
            await stack.store(keys_of(2, start=10 * number))
            waiting.append(asyncio.create_task(stack.manager.settle()))
            await stack.tier.stores.reached(number + 1)
        for number in range(4):
            assert [one.done() for one in waiting] == [True] * number + [False] * (4 - number)
            stack.tier.stores.let_pass()
            await waiting[number]


async def test_who_leaves_is_not_waited_for_and_nothing_is_left_of_it() -> None:
    keys = keys_of(6)
    async with tiered(16, cascading=2, write_policy="demote") as stack:
        stack.tier.stores.shut()
        await stack.store(keys)
        flushing = asyncio.create_task(stack.manager.flush())
        await stack.tier.stores.reached()
        flushing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await flushing
        assert not stack.manager._planner._cascades._pledges
        assert not stack.manager._pledges
        stack.tier.stores.open()
        await until(lambda: set(stack.tier.blocks) == set(keys))


async def test_a_reset_ends_the_waiting_for_what_was_in_line() -> None:
    async with tiered(16, cascading=2) as stack:
        stack.tier.stores.shut()
        await stack.store(keys_of(8))
        settling = asyncio.create_task(stack.manager.settle())
        await stack.tier.stores.reached()
        await stack.manager.reset()
        stack.tier.stores.open()
        await settling
        assert stack.tier.calls["store"] == 1


async def test_closing_ends_the_waiting() -> None:
    stack = Stack(16, cascading=2)
    stack.tier.stores.shut()
    await stack.store(keys_of(8))
    settling = asyncio.create_task(stack.manager.settle())
    await stack.tier.stores.reached()
    closing = asyncio.create_task(stack.manager.aclose(drain=False))
    await turns()
    stack.tier.stores.open()
    await closing
    await settling
    stack.assert_nothing_left()
    with pytest.raises(ClosedError):
        await stack.manager.settle()


async def test_a_broken_plan_is_told_to_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = Stack(16)
    stack.tier.stores.shut()
    await stack.store(keys_of(2))
    settling = asyncio.create_task(stack.manager.settle())
    await stack.tier.stores.reached()

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(stack.manager._planner, "settle", broken)
    stack.tier.stores.open()
    with pytest.raises(InternalError):
        await settling
    await stack.manager.aclose()


@pytest.mark.virtual_time
async def test_flush_gives_a_tier_time_to_make_room() -> None:
    keys = keys_of(40)
    async with tiered(48, cascading=8, write_policy="demote") as stack:
        full = stack.tier.outcomes = Full(stack.tier)
        await stack.store(keys)
        making_room = asyncio.create_task(full.make_room())
        await stack.manager.flush()
        making_room.cancel()
        assert set(stack.tier.blocks) == set(keys)
        assert stack.manager.stats().dirty == 0


@pytest.mark.virtual_time
async def test_flush_ends_when_a_tier_takes_no_more() -> None:
    keys = keys_of(16)
    async with tiered(16, cascading=4, write_policy="demote") as stack:
        stack.tier.outcomes = dict.fromkeys(keys[:9], Status.SHED)
        await stack.store(keys)
        await stack.manager.flush()
        assert set(stack.tier.blocks) == set(keys[9:])
        assert stack.manager.stats().dirty == 9
        stack.tier.outcomes = {}


async def test_what_a_tier_shed_is_offered_to_it_once_more() -> None:
    keys = keys_of(4)
    async with tiered(16) as stack:
        stack.tier.outcomes[keys[0]] = Status.SHED
        await stack.store(keys)
        await stack.manager.settle()
        assert stack.tier.calls["store"] == 2
        assert stack.manager.tier_counts()["t0"]["shed"] == 2
        stack.tier.outcomes = {}

"""ByteBudget: in order of arrival, never over the limit."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncoffload.aio.byte_budget import ByteBudget
from asyncoffload.errors import ClosedError


async def turns(n: int = 3) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


def test_fits_up_to_the_limit() -> None:
    budget = ByteBudget(100)
    budget.take(60)
    assert budget.fits(40)
    assert not budget.fits(41)
    assert ByteBudget(None).fits(1 << 60)


def test_the_oversized_fits_alone_and_the_weightless_always() -> None:
    budget = ByteBudget(100)
    assert budget.fits(1000)
    budget.take(1000)
    assert not budget.fits(1)
    assert budget.fits(0)


async def test_waiters_are_served_in_order() -> None:
    budget = ByteBudget(100)
    budget.take(100)
    served: list[int] = []

    async def wait(nbytes: int) -> None:
        await budget.room(nbytes)
        budget.take(nbytes)
        served.append(nbytes)

    tasks = [asyncio.create_task(wait(nbytes)) for nbytes in (90, 10, 20)]
    await turns()
    budget.release(50)
    await turns()
    assert served == []  # the small ones do not overtake
    assert not budget.fits(60)
    budget.release(50)
    await turns()
    assert served == [90, 10]
    budget.release(90)
    await asyncio.gather(*tasks)
    assert served == [90, 10, 20]


async def test_promised_room_is_not_given_away() -> None:
    budget = ByteBudget(100)
    budget.take(100)
    waiter = asyncio.create_task(budget.room(80))
    await turns()
    budget.release(100)
    assert not budget.fits(30)
    assert budget.fits(20)
    await waiter
    assert budget.fits(100)


@pytest.mark.parametrize("promised", [False, True])
async def test_a_cancelled_waiter_leaves_no_trace(promised: bool) -> None:
    budget = ByteBudget(100)
    budget.take(100)
    waiter = asyncio.create_task(budget.room(100))
    next_one = asyncio.create_task(budget.room(50))
    await turns()
    if promised:
        budget.release(60)
        budget.release(40)
    waiter.cancel()
    if not promised:
        budget.release(60)
    with pytest.raises(asyncio.CancelledError):
        await waiter
    await next_one
    assert budget.used == (0 if promised else 40)
    assert budget.fits(100 - budget.used)


async def test_closing_turns_everybody_away() -> None:
    budget = ByteBudget(10)
    budget.take(10)
    waiters = [asyncio.create_task(budget.room(5)) for _ in range(2)]
    await turns()
    waiters[0].cancel()
    budget.close()
    with pytest.raises(asyncio.CancelledError):
        await waiters[0]
    with pytest.raises(ClosedError, match="waited"):
        await waiters[1]
    with pytest.raises(ClosedError):
        await budget.room(1)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 150)), max_size=60))
def test_the_limit_holds_and_nobody_is_forgotten(steps: list[tuple[int, int]]) -> None:
    async def run() -> None:
        budget = ByteBudget(100)
        held: list[int] = []
        waiting: list[asyncio.Task[None]] = []

        async def wait(nbytes: int) -> None:
            await budget.room(nbytes)
            assert budget.fits(nbytes)
            budget.take(nbytes)
            held.append(nbytes)

        for action, number in steps:
            match action:
                case 0:
                    waiting.append(asyncio.create_task(wait(number)))
                case 1 if held:
                    budget.release(held.pop(number % len(held)))
                case 2 if waiting:
                    waiting[number % len(waiting)].cancel()
                case _:
                    await turns()
            assert budget.used == sum(held)
            assert budget.used <= 100 or len(held) == 1
        while not all(task.done() for task in waiting):
            await turns()
            if held:
                budget.release(held.pop())
        assert budget.used == sum(held)
        for nbytes in held:
            budget.release(nbytes)
        assert budget.fits(100)

    asyncio.run(run())

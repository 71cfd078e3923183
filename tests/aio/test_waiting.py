"""outlive(): the work ends first, then the waiter."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest

from asyncoffload.aio.waiting import outlive


async def turns(n: int = 5) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


async def test_returns_the_result() -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(outlive(future))
    await turns()
    future.set_result(7)
    assert await task == 7


async def test_returns_a_result_that_is_there_already() -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    future.set_result(7)
    assert await outlive(future) == 7


async def test_raises_the_error_of_the_work() -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    future.set_exception(OSError("disk"))
    with pytest.raises(OSError, match="disk"):
        await outlive(future)


async def test_a_cancelled_waiter_stops_the_work_once_and_waits_for_its_end() -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    stops: list[bool] = []
    task = asyncio.create_task(outlive(future, lambda: stops.append(future.done())))
    await turns()
    for _ in range(3):
        task.cancel()
        await turns()
    assert not task.done()
    assert stops == [False]
    future.set_result(7)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not future.cancelled()


async def test_a_cancellation_hides_the_error_of_the_work_without_a_warning() -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(outlive(future))
    await turns()
    task.cancel()
    await turns()
    future.set_exception(OSError("disk"))
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_awaited_task_is_not_cancelled() -> None:
    go = asyncio.Event()

    async def work() -> int:
        await go.wait()
        return 7

    inner = asyncio.create_task(work())
    task = asyncio.create_task(outlive(inner))
    await turns()
    task.cancel()
    await turns()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert inner.result() == 7


async def test_a_timeout_fires_after_the_end_of_the_work() -> None:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[int] = loop.create_future()

    def stop() -> None:
        loop.call_soon(future.set_result, 7)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await outlive(future, stop)
    assert future.done()


async def test_a_timeout_inside_a_cancelled_task_keeps_the_cancellation() -> None:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[int] = loop.create_future()

    async def work() -> None:
        async with asyncio.timeout(0):
            await outlive(future)

    task = asyncio.create_task(work())
    await turns()
    task.cancel()
    await turns()
    future.set_result(7)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_sleeps_inside_a_cancelled_anyio_scope() -> None:
    wakings = 0

    class Counting(asyncio.Future[int]):
        def add_done_callback(self, *args: Any, **kwargs: Any) -> None:
            nonlocal wakings
            wakings += 1
            super().add_done_callback(*args, **kwargs)

    future = Counting()

    async def end_much_later() -> None:
        await turns(500)
        future.set_result(7)

    helper = asyncio.create_task(end_much_later())
    with anyio.CancelScope() as scope:
        scope.cancel()
        await outlive(future)
    assert scope.cancelled_caught
    assert future.done()
    assert wakings <= 20
    await helper

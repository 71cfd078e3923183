"""Cancelling a call after some turns of the event loop, in each of the ways that asyncio programs know."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import anyio

from tests.offloader.rig import turns

T = TypeVar("T")

Strike = Callable[[int, Coroutine[Any, Any, T]], Awaitable[T | None]]


async def by_task_cancel(n: int, call: Coroutine[Any, Any, T]) -> T | None:
    """``task.cancel()``. None when the call was cancelled; one that has not ended by then has to be."""
    task = asyncio.create_task(call)
    await turns(n)
    was_running = task.cancel()
    try:
        result = await task
    except asyncio.CancelledError:
        return None
    assert not was_running, "a cancellation was swallowed"
    return result


async def by_repeated_cancel(n: int, call: Coroutine[Any, Any, T]) -> T | None:
    """``task.cancel()`` again and again, as an impatient caller does."""
    task = asyncio.create_task(call)
    await turns(n)
    while task.cancel():
        await turns(1)
    return None if task.cancelled() else task.result()


async def by_timeout(n: int, call: Coroutine[Any, Any, T]) -> T | None:
    """``asyncio.timeout``."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(None) as limit:
            _after(n, lambda: limit.reschedule(loop.time()))
            return await call
    except TimeoutError:
        return None


async def by_scope(n: int, call: Coroutine[Any, Any, T]) -> T | None:
    """A cancel scope of anyio, which cancels its task once per turn until the task has left it."""
    result: T | None = None
    with anyio.CancelScope() as scope:
        _after(n, scope.cancel)
        result = await call
    return None if scope.cancelled_caught else result


STRIKES = [by_task_cancel, by_repeated_cancel, by_timeout, by_scope]


def _after(n: int, strike: Callable[[], None]) -> None:
    if n == 0:
        _unless_late(strike)
    else:
        asyncio.get_running_loop().call_soon(_after, n - 1, strike)


def _unless_late(strike: Callable[[], None]) -> None:
    try:
        strike()
    except RuntimeError:  # asyncio.timeout says so when its block has ended
        return

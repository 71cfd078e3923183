"""Waiting for work that cannot be taken back: the only place that holds back a ``CancelledError``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import anyio

T = TypeVar("T")


async def outlive(future: asyncio.Future[T] | asyncio.Task[T], stop: Callable[[], object] | None = None) -> T:
    """Wait until ``future`` has ended, whatever happens to the waiting task, and return its result.

    A thread that writes into memory, or a copy engine, does not end because somebody stopped waiting. Whoever owns
    that memory therefore has to see the end of the work before it may move on.

    Cancellation: the future is never cancelled. At the first cancellation ``stop`` is called once, to ask the work to
    end early; further ones are swallowed; when the future has ended, the first one is raised, and the future's own
    result or exception is given up.
    """
    try:
        if not future.done():
            await asyncio.wait([future])
    except asyncio.CancelledError:
        if stop is not None:
            stop()
        # A cancelled anyio scope cancels its task again in every loop iteration until the task leaves the scope.
        # The shield keeps those away, so that this loop sleeps instead of spinning.
        with anyio.CancelScope(shield=True):
            while not future.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # counts as retrieved: the cancellation is what the caller gets to see
        raise
    return future.result()

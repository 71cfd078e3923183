"""How a request moves: stretch by stretch, the slots of the next being secured while the last is copied."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from asyncoffload.aio.waiting import outlive
from asyncoffload.keys import OffloadKey
from asyncoffload.types import Status


class Stretch:
    """A part of a request that one task moves: it secures slots under a lease, then copies.

    Attributes:
        keys: its keys.
        start: how many keys of the request lie before it.
        secured: set once the attributes below say what they will say.
        blocks: how many blocks are, or were, copied.
        by_tier: how many of them came from where; for loads.
        stopped_by: why these are all.
    """

    def __init__(self, keys: Sequence[OffloadKey], start: int) -> None:
        self.keys = keys
        self.start = start
        self.secured = asyncio.Event()
        self.blocks = 0
        self.by_tier: Mapping[str, int] = {}
        self.stopped_by: Status | None = Status.FAILED

    def secure(
        self, blocks: int, *, by_tier: Mapping[str, int] | None = None, stopped_by: Status | None = None
    ) -> None:
        """Called by the task: this is what it has slots for."""
        self.blocks, self.by_tier, self.stopped_by = blocks, by_tier or {}, stopped_by
        self.secured.set()


class Pipeline:
    """The stretches of one request, at most two of them under way; see :func:`pipeline`."""

    def __init__(self, move: Callable[[Stretch], Coroutine[Any, Any, None]]) -> None:
        self._move = move
        self._tasks: list[asyncio.Task[None]] = []

    async def advance(self, stretch: Stretch) -> Stretch:
        """Start the next stretch; returns when it is secured and the one before it has ended.

        Raises:
            Exception: whatever ended the stretch before. What ends this one is raised later; it secures nothing.
        """
        self._tasks.append(asyncio.create_task(self._run(stretch)))
        await stretch.secured.wait()
        await self._ended(self._tasks[-2:-1])
        return stretch

    async def drain(self) -> None:
        """Wait until the stretches under way have ended.

        Raises:
            Exception: whatever ended one of them.
        """
        await self._ended(self._tasks[-2:])

    async def stop(self) -> None:
        """Cancel the stretches under way, and wait until they have ended."""
        self._cancel()
        await outlive(asyncio.gather(*self._tasks[-2:], return_exceptions=True))

    async def _run(self, stretch: Stretch) -> None:
        try:
            await self._move(stretch)
        finally:
            stretch.secured.set()

    async def _ended(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        for task in tasks:
            await outlive(task, self._cancel)

    def _cancel(self) -> None:
        for task in self._tasks[-2:]:
            task.cancel()


@asynccontextmanager
async def pipeline(move: Callable[[Stretch], Coroutine[Any, Any, None]]) -> AsyncIterator[Pipeline]:
    """Move the stretches of a request, each in a task of its own that ``move`` makes, for the length of a block.

    The tasks work on the caller's memory: however the block is left, it is left when all of them have ended.

    Cancellation, and any other exception, cancels the tasks that are under way.
    """
    stretches = Pipeline(move)
    try:
        yield stretches
        await stretches.drain()
    except BaseException:
        await stretches.stop()
        raise

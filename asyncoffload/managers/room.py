"""Waiting for room in the primary tier, in arrival order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from asyncoffload.keys import OffloadKey


class RoomWaiter:
    """One caller who waits until there may be room for these blocks.

    Attributes:
        keys: the blocks.
        keep: blocks that must not go to make room for them.
    """

    def __init__(self, keys: Sequence[OffloadKey], keep: Sequence[OffloadKey]) -> None:
        self.keys = keys
        self.keep = keep
        self._turn: asyncio.Future[None] | None = None

    async def turn(self) -> None:
        """Wait to be called up once more.

        Raises:
            ClosedError, InternalError: nobody will be called up any more.
        """
        self._turn = asyncio.get_running_loop().create_future()
        await self._turn

    def call_up(self) -> None:
        """There may be room."""
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(None)

    def fail(self, error: Exception) -> None:
        """There is nothing to wait for any more."""
        if self._turn is not None and not self._turn.done():
            self._turn.set_exception(error)


class RoomQueue:
    """Callers who wait for room. Only the first is ever called up, and it keeps its place until it leaves.

    Being called up is a reason to try, not a grant: room that is nobody's yet cannot leak when its waiter is cancelled
    at that very moment.
    """

    def __init__(self) -> None:
        self._waiters: deque[RoomWaiter] = deque()

    def __len__(self) -> int:
        return len(self._waiters)

    @property
    def first(self) -> RoomWaiter | None:
        """Whose turn it is; None where nobody waits."""
        return self._waiters[0] if self._waiters else None

    def join(self, keys: Sequence[OffloadKey], keep: Sequence[OffloadKey]) -> RoomWaiter:
        """Queue up for these blocks, for which those to keep must not go."""
        waiter = RoomWaiter(keys, keep)
        self._waiters.append(waiter)
        return waiter

    def leave(self, waiter: RoomWaiter) -> None:
        """Give up one's place, served or not."""
        self._waiters.remove(waiter)

    def fail(self, cause: Callable[[], Exception]) -> None:
        """End the waiting of everybody, each with an error of his own."""
        for waiter in self._waiters:
            waiter.fail(cause())

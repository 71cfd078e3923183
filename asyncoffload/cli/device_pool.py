"""Device blocks, lent to requests: what the block allocator of a serving engine does."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from asyncoffload.errors import CapacityError


class DevicePool:
    """Hands out device blocks, whole requests at a time, in order of arrival; belongs to one event loop."""

    def __init__(self, blocks: int) -> None:
        self.size = blocks
        self._free = list(range(blocks))
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def __repr__(self) -> str:
        return f"<DevicePool {len(self._free)} of {self.size} blocks free, {len(self._waiting)} requests waiting>"

    @asynccontextmanager
    async def lent(self, blocks: int) -> AsyncIterator[Sequence[int]]:
        """This many device blocks for as long as the block runs. Cancelling a waiting call gives its turn away.

        Raises:
            CapacityError: the pool will never have so many.
        """
        if blocks > self.size:
            raise CapacityError(f"a request of {blocks} blocks does not fit {self.size} device blocks: give it more")
        await self._turn(blocks)
        taken = [self._free.pop() for _ in range(blocks)]
        self._admit()
        try:
            yield taken
        finally:
            self._free += taken
            self._admit()

    async def _turn(self, blocks: int) -> None:
        if not self._waiting and blocks <= len(self._free):
            return
        turn = asyncio.get_running_loop().create_future()
        entry = (blocks, turn)
        self._waiting.append(entry)
        try:
            await turn
        except asyncio.CancelledError:
            self._waiting.remove(entry)
            self._admit()
            raise
        self._waiting.remove(entry)

    def _admit(self) -> None:
        """Wake the first in line once there is room; it takes its blocks itself and then wakes the next."""
        if self._waiting and self._waiting[0][0] <= len(self._free) and not self._waiting[0][1].done():
            self._waiting[0][1].set_result(None)

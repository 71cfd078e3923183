"""Clocks for tests: what time it is, and a way to wait for later."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from typing import Protocol


class Clock(Protocol):
    """Tells the time in seconds, as every ``clock=`` argument of the library expects, and lets a coroutine wait."""

    def __call__(self) -> float:
        """Seconds, monotonic."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait on this clock. Cancellation: leaves at once."""
        ...


class LoopClock:
    """The running loop's own clock: real time on a usual loop, virtual time on a :class:`VirtualTimeLoop`.

    It is read where a loop runs. To what reads a clock in threads, as the file tier does, pass ``loop.time``.
    """

    def __call__(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class ManualClock:
    """Seconds that pass when the test says so, on any loop. One loop waits on it.

    Args:
        now: what it shows at first.
    """

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self._sleeping: list[tuple[float, int, asyncio.Future[None]]] = []
        self._serial = itertools.count()

    def __call__(self) -> float:
        return self.now

    @property
    def sleeping(self) -> int:
        """How many coroutines wait on it."""
        return sum(not woken.done() for _, _, woken in self._sleeping)

    def advance(self, seconds: float) -> None:
        """Let time pass; whoever waited for a moment up to the new time goes on, in the order of those moments."""
        self.now += seconds
        while self._sleeping and self._sleeping[0][0] <= self.now:
            woken = heapq.heappop(self._sleeping)[2]
            if not woken.done():
                woken.set_result(None)

    async def sleep(self, seconds: float) -> None:
        """Wait until :meth:`advance` has brought the time. Cancellation: leaves at once."""
        woken = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleeping, (self.now + seconds, next(self._serial), woken))
        self.advance(0.0)
        await woken

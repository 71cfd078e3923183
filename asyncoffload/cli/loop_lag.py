"""How late the event loop is: what everything else on the loop feels of the work beside it."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

SAMPLE_SECONDS = 0.005


class LoopLag:
    """Late wake-ups of a coroutine that asks to sleep a few milliseconds, again and again.

    Attributes:
        samples: seconds by which each wake-up was late.
    """

    def __init__(self, *, interval: float = SAMPLE_SECONDS, clock: Callable[[], float] = time.perf_counter) -> None:
        self.samples: array[float] = array("d")
        self._interval = interval
        self._clock = clock

    @asynccontextmanager
    async def sampling(self) -> AsyncIterator[None]:
        """Sample for as long as the block runs; leaving it, also by cancellation, ends the sampling."""
        task = asyncio.create_task(self._sample(), name="loop lag")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _sample(self) -> None:
        while True:
            due = self._clock() + self._interval
            await asyncio.sleep(self._interval)
            # uvloop rounds its timers to a millisecond, so that a wake-up can be early.
            self.samples.append(max(0.0, self._clock() - due))

"""How late the event loop is: what everything else on the loop feels of the work beside it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class LateWakeUps:
    """Measures, again and again, by how much a short sleep is too long.

    Args:
        record: called on the loop with the seconds by which each wake-up was late.
        interval: seconds of one sleep.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        record: Callable[[float], object],
        *,
        interval: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._record = record
        self._interval = interval
        self._clock = clock
        self._due: float | None = None

    @property
    def overdue(self) -> float:
        """Seconds by which the wake-up that is due now is late, so far; any thread, also while the loop is stuck."""
        due = self._due
        return 0.0 if due is None else max(0.0, self._clock() - due)

    @asynccontextmanager
    async def sampling(self) -> AsyncIterator[None]:
        """Sample for as long as the block runs; leaving it, also by cancellation, ends the sampling."""
        task = asyncio.create_task(self._sample(), name="loop lag")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            self._due = None

    async def _sample(self) -> None:
        while True:
            self._due = due = self._clock() + self._interval
            await asyncio.sleep(self._interval)
            # uvloop rounds its timers to a millisecond, so that a wake-up can be early.
            self._record(max(0.0, self._clock() - due))

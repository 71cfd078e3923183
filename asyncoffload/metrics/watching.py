"""What a stack does not count itself: its event loop, and the blocks that come and go."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager

from asyncoffload.aio.durations import Durations
from asyncoffload.aio.loop_lag import LateWakeUps
from asyncoffload.metrics import catalogue
from asyncoffload.metrics.readings import Reading
from asyncoffload.types import OffloadingEvent

LAG_SECONDS = 0.05
"""Between two samples of the event loop's lag: twenty wake-ups a second cost a thousandth of a processor."""


class LoopWatch:
    """How late the event loop is.

    Args:
        interval: seconds between two samples.
    """

    def __init__(self, *, interval: float = LAG_SECONDS) -> None:
        self._lag = Durations()
        self._wake_ups = LateWakeUps(self._lag.add, interval=interval)

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Take samples of the running loop for the length of the block."""
        async with self._wake_ups.sampling():
            yield

    def readings(self) -> Iterator[Reading]:
        """Any thread."""
        yield catalogue.LOOP_LAG, (), self._lag.snapshot()
        yield catalogue.LOOP_STALLED, (), self._wake_ups.overdue


class EventCounts:
    """Blocks that appeared in tiers and left them, as events tell.

    Args:
        tiers: the names of all tiers, to begin with 0.
    """

    def __init__(self, tiers: Iterable[str]) -> None:
        self._appeared = Counter(dict.fromkeys(tiers, 0))
        self._removed = self._appeared.copy()
        self._lost = 0

    async def count(self, events: AsyncIterable[OffloadingEvent]) -> None:
        """Count these events, until there will be no more. Cancellation: leaves at once."""
        async for event in events:
            (self._removed if event.removed else self._appeared)[event.medium] += len(event.keys)
            self._lost += event.lost

    def readings(self) -> Iterator[Reading]:
        """Any thread."""
        for metric, counts in ((catalogue.TIER_APPEARED, self._appeared), (catalogue.TIER_REMOVED, self._removed)):
            for tier, count in counts.copy().items():
                yield metric, (tier,), count
        yield catalogue.EVENTS_LOST, (), self._lost

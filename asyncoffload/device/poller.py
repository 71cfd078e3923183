"""From device events to futures: the only place where a coroutine waits for a device."""

from __future__ import annotations

import asyncio
import time
from bisect import insort
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from asyncoffload.device.events import DeviceEvent, probe
from asyncoffload.device.poll_timing import Pace, pause_before_query
from asyncoffload.errors import ClosedError, TransferError, WrongLoopError


@dataclass(slots=True, eq=False)
class _Watch:
    event: DeviceEvent
    position: int
    nbytes: int
    start: float
    not_ended_at: float
    ended: asyncio.Future[TransferError | None]


@dataclass(slots=True, eq=False)
class _Stream:
    watches: deque[_Watch] = field(default_factory=deque)
    pace: Pace = field(default_factory=Pace)
    last_end: float = 0.0

    def expected_end(self) -> float:
        oldest = self.watches[0]
        return max(oldest.start, self.last_end) + self.pace.seconds_for(oldest.nbytes)

    def learn(self, watch: _Watch, now: float) -> None:
        """The watched work ended between the last query that said no and now. Take the middle: with ``now``, an
        estimate that makes the poller oversleep would confirm itself for ever."""
        start = max(watch.start, self.last_end)
        self.last_end = max((watch.not_ended_at + now) / 2, start)
        self.pace.learn(watch.nbytes, self.last_end - start)


@dataclass(frozen=True, slots=True)
class PollerStats:
    """Counters since the poller was made.

    Attributes:
        queries: events asked.
        spins, sleeps: pauses of one turn of the loop, and of a millisecond or more.
        settled: waiters that learned the end of their event.
        waiting: waiters now.
    """

    queries: int
    spins: int
    sleeps: int
    settled: int
    waiting: int


class EventPoller:
    """Settles futures when device events have passed; one timer for all of them, and none while nobody waits.

    Of each stream only the oldest watched event is queried: those behind it cannot have passed before. It belongs to
    the event loop of the first waiter.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._streams: dict[Hashable, _Stream] = {}
        self._timer: asyncio.Handle | None = None
        self._timer_due = 0.0
        self._closed = False
        self._queries = self._spins = self._sleeps = self._settled = 0

    def watch(
        self, event: DeviceEvent, *, stream: Hashable, position: int, nbytes: int
    ) -> asyncio.Future[TransferError | None]:
        """A future that gets None when the event has passed, or the error by which the work before it failed.

        Cancelling the future ends the watch and nothing else.

        Args:
            stream: names the stream the event was recorded in.
            position: orders the events of one stream: they pass in ascending order.
            nbytes: bytes moved between the event before and this one, for the estimate.

        Raises:
            WrongLoopError: the poller belongs to another event loop.
            ClosedError: the poller was closed.
        """
        loop = asyncio.get_running_loop()
        if self._closed:
            raise ClosedError("the event poller was closed")
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise WrongLoopError("the event poller belongs to another event loop: make one per loop")
        now = self._clock()
        watch = _Watch(event, position, nbytes, now, now, loop.create_future())
        known = self._streams.setdefault(stream, _Stream())
        insort(known.watches, watch, key=lambda other: other.position)
        self._arm()
        return watch.ended

    async def completed(self, event: DeviceEvent, *, stream: Hashable, position: int, nbytes: int) -> None:
        """Wait until the event has passed. Cancellation ends the waiting, not the work.

        Raises:
            TransferError: the work before the event failed.
            WrongLoopError, ClosedError: as :meth:`watch`; ClosedError also when the poller is closed meanwhile.
        """
        error = await self.watch(event, stream=stream, position=position, nbytes=nbytes)
        if error is not None:
            raise error

    def withdrawn(self, event: DeviceEvent) -> None:
        """The work behind the event was taken back: settle its waiters now, out of turn."""
        for stream in self._streams.values():
            for watch in [watch for watch in stream.watches if watch.event is event]:
                stream.watches.remove(watch)
                self._settle(watch, None)

    def close(self) -> None:
        """Whose event has passed learns it now, whoever else waits gets :class:`ClosedError`; idempotent."""
        self._query_oldest()
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for stream in self._streams.values():
            for watch in stream.watches:
                if not watch.ended.done():
                    watch.ended.set_exception(ClosedError("the event poller was closed while an event was awaited"))
            stream.watches.clear()

    def stats(self) -> PollerStats:
        """The counters."""
        waiting = sum(len(stream.watches) for stream in self._streams.values())
        return PollerStats(self._queries, self._spins, self._sleeps, self._settled, waiting)

    def __repr__(self) -> str:
        return f"EventPoller({'closed' if self._closed else self.stats()})"

    def _arm(self) -> None:
        """Set the timer for the next query, unless an earlier one is set."""
        busy = [stream.expected_end() for stream in self._streams.values() if stream.watches]
        if not busy or self._loop is None:
            return
        now = self._clock()
        pause = pause_before_query(now, busy)
        if self._timer is not None:
            if self._timer_due <= now + pause:
                return
            self._timer.cancel()
        self._timer_due = now + pause
        if pause:
            self._sleeps += 1
            self._timer = self._loop.call_later(pause, self._query_oldest)
        else:
            self._spins += 1
            self._timer = self._loop.call_soon(self._query_oldest)

    def _query_oldest(self) -> None:
        self._timer = None
        for stream in self._streams.values():
            while stream.watches:
                watch = stream.watches[0]
                if not watch.ended.done():
                    self._queries += 1
                    passed, error = probe(watch.event)
                    if not passed:
                        watch.not_ended_at = self._clock()
                        break
                    stream.learn(watch, self._clock())
                    self._settle(watch, error)
                stream.watches.popleft()
        self._arm()

    def _settle(self, watch: _Watch, error: TransferError | None) -> None:
        if not watch.ended.done():
            self._settled += 1
            watch.ended.set_result(error)

"""From device events to futures: the only place where a coroutine waits for a device."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from asyncoffload.device.events import DeviceEvent
from asyncoffload.device.watchlist import Watchlist
from asyncoffload.errors import ClosedError, TransferError, WrongLoopError


@dataclass(frozen=True, slots=True)
class PollerStats:
    """Counters since the poller was made.

    Attributes:
        queries: events asked.
        spins, sleeps: pauses of one turn of the loop, and of a millisecond or more.
        settled: waiters that learned the end of their event.
        waiting: waiters now.
        mean_overshoot: seconds between the end of an event and its notice, estimated: half of the time since the last
            query that said no. 0.0 while none has passed.
    """

    queries: int
    spins: int
    sleeps: int
    settled: int
    waiting: int
    mean_overshoot: float = 0.0


class EventPoller:
    """Settles futures when device events have passed; one timer for all of them, and none while nobody waits.

    What it asks, and when, is :class:`~asyncoffload.device.watchlist.Watchlist`'s to decide. An error that says that
    the device is lost settles every waiter: one poller serves one device. It belongs to the event loop of the first
    waiter.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watchlist = Watchlist[asyncio.Future[TransferError | None]](clock)
        self._timer: asyncio.Handle | None = None
        self._timer_due = 0.0
        self._closed = False
        self._spins = self._sleeps = self._settled = 0

    def watch(
        self, event: DeviceEvent, *, stream: Hashable = None, position: int = 0, nbytes: int = 0
    ) -> asyncio.Future[TransferError | None]:
        """A future that gets None when the event has passed, or the error by which the work before it failed.

        Cancelling the future ends the watch and nothing else.

        Args:
            stream: names the stream the event was recorded in; by default a stream that has no other event.
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
        ended: asyncio.Future[TransferError | None] = loop.create_future()
        self._watchlist.add(event, ended, stream=stream, position=position, nbytes=nbytes)
        self._arm()
        return ended

    def withdrawn(self, event: DeviceEvent) -> None:
        """The work behind the event was taken back: settle its waiters now, out of turn."""
        for ended in self._watchlist.take(event):
            self._settle(ended, None)

    def close(self) -> None:
        """Whose event has passed learns it now, whoever else waits gets :class:`ClosedError`; idempotent."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._look()
        for ended in self._watchlist.take_all():
            ended.set_exception(ClosedError("the event poller was closed while an event was awaited"))

    def stats(self) -> PollerStats:
        """The counters."""
        watchlist = self._watchlist
        return PollerStats(
            watchlist.queries,
            self._spins,
            self._sleeps,
            self._settled,
            len(watchlist),
            watchlist.overshoot / watchlist.noticed if watchlist.noticed else 0.0,
        )

    def __repr__(self) -> str:
        return f"EventPoller({'closed' if self._closed else self.stats()})"

    def _arm(self) -> None:
        """Set the timer for the next look, unless an earlier one is set."""
        now = self._clock()
        if self._timer is not None and self._timer_due <= now:
            return
        pause = self._watchlist.pause()
        if pause is None or self._loop is None:
            return
        due = now + pause
        if self._timer is not None:
            if self._timer_due <= due:
                return
            self._timer.cancel()
        self._timer_due = due
        if pause:
            self._timer = self._loop.call_later(pause, self._slept)
        else:
            self._timer = self._loop.call_soon(self._spun)

    def _spun(self) -> None:
        self._spins += 1
        self._wake()

    def _slept(self) -> None:
        self._sleeps += 1
        self._wake()

    def _wake(self) -> None:
        self._timer = None
        self._look()
        self._arm()

    def _look(self) -> None:
        for ended in self._watchlist.look():
            self._settle(ended.waiter, ended.error)

    def _settle(self, ended: asyncio.Future[TransferError | None], error: TransferError | None) -> None:
        if not ended.done():
            self._settled += 1
            ended.set_result(error)

"""Which device events to ask, when, and what their answers say: the decisions of the poller, without a loop."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from asyncoffload.device.events import DeviceEvent, probe
from asyncoffload.device.poll_timing import Pace, pause_before_query
from asyncoffload.errors import DeviceError, TransferError


class Waiter(Protocol):
    """Who wants to know; an ``asyncio.Future`` is one."""

    def done(self) -> bool:
        """Whether it wants to know no more."""


WaiterT = TypeVar("WaiterT", bound=Waiter)


@dataclass(slots=True, eq=False)
class Watch(Generic[WaiterT]):
    """A waiter for an event, since ``start`` seconds."""

    event: DeviceEvent
    waiter: WaiterT
    position: int
    nbytes: int
    start: float


@dataclass(frozen=True, slots=True)
class Ended(Generic[WaiterT]):
    """A waiter that is to be told that its event has passed, or why the work before it failed."""

    waiter: WaiterT
    error: TransferError | None


@dataclass(slots=True, eq=False)
class _Stream(Generic[WaiterT]):
    watches: deque[Watch[WaiterT]] = field(default_factory=deque)
    pace: Pace = field(default_factory=Pace)
    last_end: float = 0.0
    not_ended_at: float = 0.0
    prune_at: int = 64

    def add(self, watch: Watch[WaiterT]) -> None:
        if len(self.watches) >= self.prune_at:  # waiters that gave up behind an event that never passes
            self.watches = deque(watch for watch in self.watches if not watch.waiter.done())
            self.prune_at = 2 * len(self.watches) + 64
        if not self.watches or self.watches[-1].position <= watch.position:
            self.watches.append(watch)
        else:
            insort(self.watches, watch, key=lambda other: other.position)

    def expected_end(self) -> float:
        oldest = self.watches[0]
        return max(oldest.start, self.last_end) + self.pace.seconds_for(oldest.nbytes)

    def learn(self, ended: list[Watch[WaiterT]], now: float) -> float:
        """Take in that these, one after the other, ended since the last query that said no; tell how late that is seen.

        Returns:
            Seconds between their ends and now, added up: the ends are taken to lie evenly in between. With ``now``
            for their ends, an estimate that makes the poller oversleep would confirm itself for ever.
        """
        oldest_end = max(ended[0].start, self.not_ended_at)
        unseen = max(now - oldest_end, 0.0)
        start = max(ended[0].start, self.last_end)
        self.last_end = max(oldest_end + unseen * len(ended) / (len(ended) + 1), start)
        self.pace.learn(sum(watch.nbytes for watch in ended), self.last_end - start, len(ended))
        return unseen * len(ended) / 2


class Watchlist(Generic[WaiterT]):
    """The events that somebody waits for, by stream.

    Of each stream only the oldest event is asked: those behind it cannot have passed before.

    Args:
        clock: seconds.

    Attributes:
        queries: events asked.
        overshoot: seconds between the ends of events and their notice, estimated, added up.
        noticed: how many ends that sum is made of.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.queries = 0
        self.overshoot = 0.0
        self.noticed = 0
        self._clock = clock
        self._streams: dict[Hashable, _Stream[WaiterT]] = {}

    def __len__(self) -> int:
        return sum(not watch.waiter.done() for stream in self._streams.values() for watch in stream.watches)

    def add(self, event: DeviceEvent, waiter: WaiterT, *, stream: Hashable, position: int, nbytes: int) -> None:
        """Watch an event for a waiter. Stream None: in no order with any other."""
        watch = Watch(event, waiter, position, nbytes, self._clock())
        self._streams.setdefault(watch if stream is None else stream, _Stream()).add(watch)

    def pause(self) -> float | None:
        """Seconds until the next look; 0.0: one turn of the event loop. None: there is nothing to look at."""
        expected = [stream.expected_end() for stream in self._streams.values() if stream.watches]
        return pause_before_query(self._clock(), expected) if expected else None

    def look(self) -> list[Ended[WaiterT]]:
        """Ask the oldest event of each stream, those behind it once it has passed, and take out who is to be told.

        Waiters that are done are forgotten. An error that says that the device is lost is everybody's.
        """
        told: list[Ended[WaiterT]] = []
        for name, stream in tuple(self._streams.items()):
            lost = self._look_at(stream, told)
            if lost is not None:
                told += (Ended(waiter, _shared(lost)) for waiter in self.take_all())
                break
            if not stream.watches and isinstance(name, Watch):
                del self._streams[name]
        return told

    def take(self, event: DeviceEvent) -> list[WaiterT]:
        """Take out the waiters for an event."""
        taken = []
        for stream in self._streams.values():
            for watch in [watch for watch in stream.watches if watch.event is event]:
                stream.watches.remove(watch)
                taken.append(watch.waiter)
        return [waiter for waiter in taken if not waiter.done()]

    def take_all(self) -> list[WaiterT]:
        """Take out every waiter."""
        watches = [watch for stream in self._streams.values() for watch in stream.watches]
        self._streams.clear()
        return [watch.waiter for watch in watches if not watch.waiter.done()]

    def _look_at(self, stream: _Stream[WaiterT], told: list[Ended[WaiterT]]) -> DeviceError | None:
        passed: list[Watch[WaiterT]] = []
        lost: DeviceError | None = None
        asked_at = self._clock()
        while stream.watches and lost is None:
            watch = stream.watches[0]
            if not watch.waiter.done():
                self.queries += 1
                ended, error = probe(watch.event)
                if not ended:
                    break
                told.append(Ended(watch.waiter, error))
                if error is None:
                    passed.append(watch)
                elif isinstance(error, DeviceError) and error.lost:
                    lost = error
            stream.watches.popleft()
        if passed:
            self.overshoot += stream.learn(passed, self._clock())
            self.noticed += len(passed)
        stream.not_ended_at = asked_at
        return lost


def _shared(error: DeviceError) -> DeviceError:
    """The same news for one more waiter: one exception raised in many tasks would collect all their tracebacks."""
    news = DeviceError(f"the device is lost to every transfer: {error}", code=error.code, lost=True)
    news.__cause__ = error
    return news

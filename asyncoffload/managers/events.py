"""Events for whoever asked for them: bounded, so that a slow subscriber costs itself events and nobody memory."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from asyncoffload.errors import InvalidArgument
from asyncoffload.types import OffloadingEvent


class EventSubscription:
    """One subscriber's events from the moment of subscribing on: an async iterator.

    It ends when the manager has closed and all has been delivered, or after :meth:`close`. A full queue drops its
    oldest event; the next one to be delivered says in ``lost`` how many were.

    Cancellation: a cancelled ``__anext__`` takes nothing; no event is lost by it.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise InvalidArgument(f"a subscription holds one event or more, got {capacity}")
        self._queue: deque[OffloadingEvent] = deque()
        self._capacity = capacity
        self._lost = 0
        self._closed = False
        self._changed = asyncio.Event()

    def take(self) -> list[OffloadingEvent]:
        """All events that wait to be delivered, oldest first."""
        taken = list(self._queue)
        self._queue.clear()
        if taken and self._lost:
            taken[0] = replace(taken[0], lost=self._lost)
            self._lost = 0
        return taken

    def close(self) -> None:
        """Take no further event. What waits can still be taken. Idempotent."""
        self._closed = True
        self._changed.set()

    def put(self, event: OffloadingEvent) -> None:
        """Called by the manager: queue an event."""
        if self._closed:
            return
        if len(self._queue) == self._capacity:
            self._queue.popleft()
            self._lost += 1
        self._queue.append(event)
        self._changed.set()

    def __aiter__(self) -> EventSubscription:
        return self

    async def __anext__(self) -> OffloadingEvent:
        while not self._queue:
            if self._closed:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        event = self._queue.popleft()
        if self._lost:
            event, self._lost = replace(event, lost=self._lost), 0
        return event

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<EventSubscription {state}: {len(self._queue)} of {self._capacity} waiting, {self._lost} lost>"


class EventHub:
    """Hands each event to every subscription that somebody still holds."""

    def __init__(self) -> None:
        self._subscriptions: weakref.WeakSet[EventSubscription] = weakref.WeakSet()

    def subscribe(self, capacity: int) -> EventSubscription:
        """A new subscription of at most ``capacity`` waiting events. One that nobody holds any more just ends."""
        subscription = EventSubscription(capacity)
        self._subscriptions.add(subscription)
        return subscription

    def publish(self, events: Iterable[OffloadingEvent]) -> None:
        """Hand out these events, in order."""
        for event in events:
            for subscription in self._subscriptions:
                subscription.put(event)

    def close(self) -> None:
        """End every subscription once it has delivered what waits."""
        for subscription in self._subscriptions:
            subscription.close()

"""A bounded record of the blocks that came and went."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from asyncoffload.keys import OffloadKey
from asyncoffload.types import OffloadingEvent

MAX_EVENTS = 4096
"""Events kept for a reader who does not come: one per job, so minutes of traffic, and a few megabytes at most."""


class EventLog:
    """Events of one medium between two calls of :meth:`take`. When it is full, the oldest is dropped and counted.

    Attributes:
        medium: the medium.
    """

    def __init__(self, medium: str, block_size: int, *, max_events: int = MAX_EVENTS) -> None:
        self.medium = medium
        self._block_size = block_size
        self._max_events = max_events
        self._events: deque[OffloadingEvent] = deque()
        self._lost = 0

    def appeared(self, keys: Sequence[OffloadKey]) -> None:
        """Blocks became loadable."""
        self._add(keys, removed=False)

    def removed(self, keys: Sequence[OffloadKey]) -> None:
        """Blocks can no longer be loaded."""
        self._add(keys, removed=True)

    def take(self) -> list[OffloadingEvent]:
        """Everything since the last call, oldest first; the first event says how many were lost before it."""
        events, self._events = list(self._events), deque()
        if events and self._lost:
            first = events[0]
            events[0] = OffloadingEvent(first.keys, first.block_size, first.medium, first.removed, lost=self._lost)
            self._lost = 0
        return events

    def _add(self, keys: Sequence[OffloadKey], *, removed: bool) -> None:
        if not keys:
            return
        if len(self._events) == self._max_events:
            self._events.popleft()
            self._lost += 1
        self._events.append(OffloadingEvent(tuple(keys), self._block_size, self.medium, removed))

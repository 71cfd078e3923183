"""The order in which found blocks are promoted: first come, first served within each priority."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from asyncoffload.core.tickets import Fetch, FetchState
from asyncoffload.types import Priority


class PromotionQueue:
    """Fetches that wait for a slot and for budget.

    Entries are never searched for: a fetch that left, or was queued again with more urgency, leaves a stale entry
    behind, which is skipped when it comes up.
    """

    def __init__(self) -> None:
        self._lines: dict[Priority, deque[Fetch]] = {priority: deque() for priority in sorted(Priority)}

    def push(self, fetch: Fetch) -> None:
        """Queue a found fetch at the end of its priority's line."""
        fetch.state = FetchState.QUEUED
        fetch.line = fetch.priority
        self._lines[fetch.line].append(fetch)

    def head(self) -> Fetch | None:
        """The fetch that is next, or None."""
        line = self._line()
        return line[0] if line else None

    def take(self, limit: int) -> list[Fetch]:
        """Remove up to ``limit`` fetches from the front that come from one tier, in order."""
        batch: list[Fetch] = []
        line = self._line()
        while line and len(batch) < limit:
            fetch = line[0]
            if _waits(fetch):
                if batch and fetch.tier != batch[0].tier:
                    break
                fetch.state = FetchState.PROMOTING
                batch.append(fetch)
            line.popleft()
        return batch

    def put_back(self, batch: Sequence[Fetch]) -> None:
        """Return a batch that was taken to the front of its line."""
        for fetch in reversed(batch):
            fetch.state = FetchState.QUEUED
            self._lines[fetch.line].appendleft(fetch)

    def _line(self) -> deque[Fetch] | None:
        for line in self._lines.values():
            while line and not _waits(line[0]):
                line.popleft()
            if line:
                return line
        return None

    def __len__(self) -> int:
        return sum(_waits(fetch) for line in self._lines.values() for fetch in line)


def _waits(fetch: Fetch) -> bool:
    return fetch.state is FetchState.QUEUED and bool(fetch.waiters)

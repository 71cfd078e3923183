"""Promotions: which found blocks get a slot of the primary next, by turns, and first come, first served within each."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush

from asyncoffload.core.keeping import Turn
from asyncoffload.core.primary import Primary
from asyncoffload.core.tickets import Fetch, FetchState
from asyncoffload.core.write import Write
from asyncoffload.keys import OffloadKey
from asyncoffload.types import Status

MAX_PROMOTION_BLOCKS = 64
"""Blocks of one promotion: few enough that the copy of one to the device overlaps with the reading of the next."""


class Promotions:
    """Fetches that wait for a slot and for budget, and the budget.

    Queue entries are never searched for: a fetch that left, or was queued again with more urgency, leaves a stale
    entry behind, which is skipped when it comes up.

    Args:
        primary: where the slots come from.
        limit: how many blocks may be on their way at a time.
    """

    def __init__(self, primary: Primary, limit: int) -> None:
        self._primary = primary
        self._limit = max(1, limit)
        self._in_flight = 0
        self._lines: dict[Turn, deque[Fetch]] = {}
        self._turns: list[Turn] = []  # of the lines; a heap

    def push(self, fetches: Iterable[Fetch]) -> None:
        """Queue found fetches, each at the end of its turn's line."""
        for fetch in fetches:
            fetch.state = FetchState.QUEUED
            self._line(fetch.turn).append(fetch)

    @property
    def head(self) -> Fetch | None:
        """The fetch that is next, or None."""
        line = self._first_line()
        return line[0] if line else None

    @property
    def room(self) -> int:
        """How many blocks the next promotion may have, as far as the budget goes; nobody may want so many."""
        line = self._first_line()
        return min(self._limit - self._in_flight, MAX_PROMOTION_BLOCKS, 0 if line is None else len(line))

    def begin(self) -> tuple[list[Fetch], Write] | None:
        """Give slots to the next fetches, all from one tier; fewer where memory that is still in use keeps slots back.

        Returns:
            None where the budget is spent, or no slot can be had at present.
        """
        room = min(self._primary.table.available, self._limit - self._in_flight, MAX_PROMOTION_BLOCKS)
        while room > 0:
            batch = self._take(room)
            write = self._primary.begin_store([fetch.key for fetch in batch])
            if write is not None:
                self._in_flight += len(batch)
                return batch, write
            self.put_back(batch)
            room = len(batch) // 2
        return None

    def put_back(self, batch: Sequence[Fetch]) -> None:
        """Queue fetches in front of the others of their turn."""
        for fetch in reversed(batch):
            fetch.state = FetchState.QUEUED
            self._line(fetch.turn).appendleft(fetch)

    def withdraw(self) -> list[Fetch]:
        """Take whoever has the same turn as the next one out of the line."""
        line = self._first_line() or ()
        fetches = list(dict.fromkeys(filter(_waits, line)))
        if line:
            del self._lines[heappop(self._turns)]
        return fetches

    def end(self, write: Write, statuses: Sequence[Status]) -> list[OffloadKey]:
        """A promotion has ended; returns the blocks that are ready now."""
        self._in_flight -= len(statuses)
        return self._primary.finish_store(write, [status is Status.DONE for status in statuses])

    def _take(self, limit: int) -> list[Fetch]:
        batch: list[Fetch] = []
        while len(batch) < limit and (line := self._first_line()) is not None:
            first = batch[0] if batch else line[0]
            if line[0].tier != first.tier or line[0].turn[0] != first.turn[0]:
                break
            while line and len(batch) < limit:
                fetch = line[0]
                if _waits(fetch):
                    if fetch.tier != first.tier:
                        return batch
                    fetch.state = FetchState.PROMOTING
                    batch.append(fetch)
                line.popleft()
        return batch

    def _line(self, turn: Turn) -> deque[Fetch]:
        line = self._lines.get(turn)
        if line is None:
            line = self._lines[turn] = deque()
            heappush(self._turns, turn)
        return line

    def _first_line(self) -> deque[Fetch] | None:
        while self._turns:
            line = self._lines[self._turns[0]]
            while line and not _waits(line[0]):
                line.popleft()
            if line:
                return line
            del self._lines[heappop(self._turns)]
        return None

    def __len__(self) -> int:
        return sum(_waits(fetch) for line in self._lines.values() for fetch in line)


def _waits(fetch: Fetch) -> bool:
    return fetch.state is FetchState.QUEUED and bool(fetch.waiters)

"""Promotions: which found blocks get a slot of the primary next, by turns, and first come, first served within each.

The urgent come first, but now and then a promotion goes to those whom they overtake, so that nobody waits for ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from heapq import heappop, heappush

from asyncoffload.core.keeping import Turn
from asyncoffload.core.primary import Primary
from asyncoffload.core.tickets import Fetch, FetchState
from asyncoffload.core.write import Write
from asyncoffload.keys import OffloadKey
from asyncoffload.types import Status

MAX_PROMOTION_BLOCKS = 64
"""Blocks of one promotion: few enough that the copy of one to the device overlaps with the reading of the next."""

OVERTAKEN = 7
"""Promotions that may overtake a priority while it waits; the next one is its own."""


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
        self._turns: dict[int, list[Turn]] = {}  # of the lines, by priority; heaps
        self._overtaken: dict[int, int] = {}  # by priority: promotions of others while it waited

    def push(self, fetches: Iterable[Fetch]) -> None:
        """Queue found fetches, each at the end of its turn's line."""
        for fetch in fetches:
            fetch.state = FetchState.QUEUED
            self._line(fetch.turn).append(fetch)

    @property
    def head(self) -> Fetch | None:
        """The fetch that is next, or None."""
        return next((self._lines[turn][0] for turn in self._first_turns()), None)

    @property
    def room(self) -> int:
        """How many blocks the next promotion may have, as far as the budget goes; nobody may want so many."""
        line = next((len(self._lines[turn]) for turn in self._first_turns()), 0)
        return min(self._limit - self._in_flight, MAX_PROMOTION_BLOCKS, line)

    def begin(self) -> tuple[list[Fetch], Write] | None:
        """Give slots to the next fetches, all from one tier; fewer where memory that is still in use keeps slots back.

        Returns:
            None where the budget is spent, or no slot can be had at present.
        """
        room = min(self._primary.table.available, self._limit - self._in_flight, MAX_PROMOTION_BLOCKS)
        priorities = [priority for priority, _ in self._first_turns()] if room > 0 else []
        chosen = max(priorities, key=self._claim, default=None)
        while room > 0 and chosen is not None:
            batch = self._take(room, chosen)
            write = self._primary.begin_store([fetch.key for fetch in batch])
            if write is not None:
                self._in_flight += len(batch)
                self._overtaken = {one: self._overtaken.get(one, 0) + 1 for one in priorities if one != chosen}
                return batch, write
            self.put_back(batch)
            room = len(batch) // 2
        return None

    def put_back(self, batch: Sequence[Fetch]) -> None:
        """Queue fetches in front of the others of their turn."""
        for fetch in reversed(batch):
            fetch.state = FetchState.QUEUED
            self._line(fetch.turn).appendleft(fetch)

    def ahead_of(self, priority: int) -> Iterator[Fetch]:
        """Those in line whose turn comes before that of a new wish of this priority."""
        for turn, line in self._lines.items():
            if turn[0] <= priority:
                yield from dict.fromkeys(fetch for fetch in line if fetch.turn == turn and _waits(fetch))

    def withdraw(self) -> list[Fetch]:
        """Take whoever has the same turn as the next one out of the line."""
        turn = next(self._first_turns(), None)
        if turn is None:
            return []
        heappop(self._turns[turn[0]])
        return list(dict.fromkeys(filter(_waits, self._lines.pop(turn))))

    def end(self, write: Write, statuses: Sequence[Status]) -> list[OffloadKey]:
        """A promotion has ended; returns the blocks that are ready now."""
        self._in_flight -= len(statuses)
        return self._primary.finish_write(write, [status is Status.DONE for status in statuses])

    def _claim(self, priority: int) -> tuple[int, int]:
        """The greatest is served next: whoever was overtaken too often, then the most urgent."""
        return max(0, self._overtaken.get(priority, 0) - OVERTAKEN + 1), -priority

    def _take(self, limit: int, priority: int) -> list[Fetch]:
        batch: list[Fetch] = []
        while len(batch) < limit and (turn := self._first_turn(priority)) is not None:
            line = self._lines[turn]
            first = batch[0] if batch else line[0]
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
            heappush(self._turns.setdefault(turn[0], []), turn)
        return line

    def _first_turns(self) -> Iterator[Turn]:
        """The next turn of each priority that waits, the most urgent first."""
        for priority in sorted(self._turns):
            turn = self._first_turn(priority)
            if turn is not None:
                yield turn

    def _first_turn(self, priority: int) -> Turn | None:
        turns = self._turns.get(priority, [])
        while turns:
            line = self._lines[turns[0]]
            while line and not _waits(line[0]):
                line.popleft()
            if line:
                return turns[0]
            del self._lines[heappop(turns)]
        self._turns.pop(priority, None)
        return None

    def __len__(self) -> int:
        return sum(_waits(fetch) for line in self._lines.values() for fetch in line)


def comes_before(fetch: Fetch, priority: int) -> bool:
    """Whether a block is on its way already, or in line for it, as urgently as a wish of this priority."""
    if fetch.state is FetchState.PROMOTING:
        return fetch.op is not None and fetch.op.priority <= priority
    return fetch.state is FetchState.QUEUED and fetch.turn[0] <= priority


def _waits(fetch: Fetch) -> bool:
    return fetch.state is FetchState.QUEUED and bool(fetch.waiters)

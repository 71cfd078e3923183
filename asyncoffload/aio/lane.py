"""One direction of the pool: what is queued in it, in order of urgency, and the bound on it."""

from __future__ import annotations

import asyncio
import itertools
from typing import TypeAlias

from asyncoffload.aio.byte_budget import ByteBudget
from asyncoffload.aio.slices import Slice, SliceBounds

Entry: TypeAlias = tuple[float, int, Slice]
"""Due time, sequence, payload. Sequences differ, so payloads are never compared."""


class Lane:
    """The loads, or the stores, of a pool.

    Entries are never searched for: cancelling and hurrying leave a stale one behind, which is passed over when its
    turn comes.

    Attributes:
        entries: the queue; stale entries included.
        budget: the bytes that are queued.
        bounds: how jobs are cut.
        queued, running, shed: slices queued, slices in a thread, tasks turned away so far.
        empty: set while nothing but stale entries is queued.
    """

    def __init__(self, max_queued_bytes: int | None, bounds: SliceBounds) -> None:
        self.entries: asyncio.PriorityQueue[Entry] = asyncio.PriorityQueue()
        self.budget = ByteBudget(max_queued_bytes)
        self.bounds = bounds
        self.queued = 0
        self.running = 0
        self.shed = 0
        self.empty = asyncio.Event()
        self.empty.set()
        self._sequence = itertools.count()

    def put(self, piece: Slice, due: float) -> None:
        """Queue a slice."""
        piece.queued = True
        self.queued += 1
        self.empty.clear()
        self.budget.take(piece.nbytes)
        self.requeue(piece, due)

    def requeue(self, piece: Slice, due: float) -> None:
        """Give a queued slice another place; its old entry becomes stale."""
        piece.due = due
        self.entries.put_nowait((due, next(self._sequence), piece))

    def take(self, n_workers: int) -> tuple[Slice | None, bool]:
        """Take the first entry out of the queue, which is not empty.

        What is taken gets shorter as the queue does, down to the least that is worth a hop, so that the workers come
        to the end together and not one long slice after the others. This is guided self-scheduling (Polychronopoulos
        and Kuck, 1987), with every worker's next turn counted in.

        Returns:
            The slice, None when the entry was stale; and whether its end was cut off and queued on its own.
        """
        due, sequence, piece = self.entries.get_nowait()
        if not piece.queued or due != piece.due:
            return None, False
        turns = 2 * n_workers * piece.nbytes // max(1, self.budget.used)
        length = self.bounds.length(len(piece.tasks), piece.nbytes, max(1, turns))
        was_cut = length < len(piece.tasks)
        if was_cut:
            rest = piece.split(length)
            rest.queued, rest.due = True, due
            self.queued += 1
            self.entries.put_nowait((due, sequence, rest))
        piece.queued = False
        self._left(piece)
        return piece, was_cut

    def drop(self, piece: Slice) -> int:
        """Take a queued slice out, wherever it stands; how many tasks were in it."""
        n = piece.drop()
        self._left(piece)
        return n

    def _left(self, piece: Slice) -> None:
        self.queued -= 1
        if not self.queued:
            self.empty.set()
        self.budget.release(piece.nbytes)

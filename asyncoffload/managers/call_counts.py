"""What the calls of a tier have come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from asyncoffload.aio.durations import DurationCounts, Durations
from asyncoffload.types import Status


@dataclass(frozen=True, slots=True)
class CallStats:
    """The calls of one method of one tier, since the start.

    Attributes:
        durations: how long those took that have ended.
        in_flight: how many have not.
        failed: how many of those that have ended raised, or answered for the wrong number of blocks.
        blocks: blocks of the calls that have ended, by what became of them; of a ``lookup``, DONE or MISSING.
        nbytes: bytes of the blocks that were moved.
    """

    durations: DurationCounts
    in_flight: int
    failed: int
    blocks: Mapping[Status, int]
    nbytes: int


class CallCounts:
    """Counts the calls of one method of one tier. The event loop counts, any thread may ask."""

    __slots__ = ("_blocks", "_durations", "_failed", "_in_flight", "_nbytes")

    def __init__(self) -> None:
        self._durations = Durations()
        self._in_flight = 0
        self._failed = 0
        self._blocks = dict.fromkeys(Status, 0)
        self._nbytes = 0

    def began(self) -> None:
        """A call has begun."""
        self._in_flight += 1

    def ended(self, seconds: float) -> None:
        """A call has ended."""
        self._in_flight -= 1
        self._durations.add(seconds)

    def answered(self, statuses: Sequence[Status], nbytes: int = 0) -> None:
        """A call told what became of its blocks, of which so many bytes were moved."""
        self._nbytes += nbytes
        left = len(statuses)
        for status in Status:
            if not left:
                return
            if count := statuses.count(status):
                self._blocks[status] += count
                left -= count

    def failed(self, status: Status, n_blocks: int) -> None:
        """A call told nothing that can be used: that is what became of its blocks."""
        self._failed += 1
        self._blocks[status] += n_blocks

    def snapshot(self) -> CallStats:
        """What was counted so far."""
        return CallStats(self._durations.snapshot(), self._in_flight, self._failed, self._blocks.copy(), self._nbytes)

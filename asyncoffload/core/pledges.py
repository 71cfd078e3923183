"""Pledges: what was on its way to the tiers at one moment, which ends though others go on storing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from asyncoffload.keys import OffloadKey


class Pledge:
    """All that is in line for some tiers, and in flight to them, when it is made.

    Attributes:
        parts: one for each tier.
        over: all of it has ended, well or not.
    """

    __slots__ = ("over", "parts")

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        self.over = False


class Part:
    """What a pledge has at one tier.

    Args:
        line: what waits to be offered.
        flying: what is in flight.
        flushed: the line stands in no other line as well.

    Attributes:
        line: what waits to be offered.
        flying: what is in flight.
        flushed: what was in line at first, where that stands in no other line.
        shed: what the tier has shed of it; it is offered that once more.
    """

    __slots__ = ("flushed", "flying", "line", "shed")

    def __init__(self, line: Iterable[OffloadKey], flying: Iterable[OffloadKey], *, flushed: bool) -> None:
        self.line = deque(line)
        self.flying = set(flying)
        self.flushed = tuple(self.line) if flushed else ()
        self.shed: set[OffloadKey] = set()

    def offered(self, keys: Sequence[OffloadKey], in_flight: set[OffloadKey]) -> None:
        """These have left the line; those that are in flight now are waited for."""
        self.flying.update(in_flight.intersection(keys))

    def landed(self, keys: Sequence[OffloadKey], shed: Iterable[OffloadKey] = ()) -> None:
        """These are no longer in flight, and some of them were shed."""
        if self.flying:
            again = [key for key in shed if key in self.flying and key not in self.shed]
            self.line.extend(again)
            self.shed.update(again)
            self.flying.difference_update(keys)

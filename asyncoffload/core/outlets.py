"""What one tier is given: the blocks that wait for it, those in flight, and what came of the others."""

from __future__ import annotations

from collections import deque

from asyncoffload.core.pledges import Part
from asyncoffload.keys import OffloadKey

OVERTAKEN = 7
"""How often in a row cold blocks may go before the others that wait; the next time it is the others' turn."""


class Outlet:
    """What one tier takes.

    Args:
        most: how many blocks may be put off; of more, those that have waited longest leave the line.

    Attributes:
        cold: what was dirty in the cold tail when it was last looked over and waits to be offered, coldest first.
        parts: what somebody waits for, oldest first.
        put_off: what was stored, or shed, and it had no room for.
        waiting: blocks offered and not handed out yet, with their pinned slots.
        in_flight: blocks offered or handed out; no block is twice.
        refuses: of the last batch it took nothing; it is offered nothing again before it takes something.
        another_chance: but for once, since the cold tail was looked over.
        stored, failed: counts of blocks.
        over_limit, refused, dropped: counts of blocks that were shed: because too many were in flight, by the tier,
            and because offers were taken back.
    """

    def __init__(self, most: int) -> None:
        self.cold: deque[OffloadKey] = deque()
        self.parts: list[Part] = []
        self.put_off: deque[OffloadKey] = deque(maxlen=most)
        self.waiting: list[tuple[OffloadKey, int]] = []
        self.in_flight: set[OffloadKey] = set()
        self.refuses = False
        self.another_chance = False
        self.stored = self.failed = 0
        self.over_limit = self.refused = self.dropped = 0
        self._overtaken = 0

    @property
    def willing(self) -> bool:
        """Whether it may be offered something."""
        return not self.refuses or self.another_chance

    @property
    def shed(self) -> int:
        """Blocks that were put off, whatever the reason."""
        return self.over_limit + self.refused + self.dropped

    @property
    def in_line(self) -> bool:
        """Whether something waits to be offered."""
        return bool(self.cold or self.put_off) or any(part.line for part in self.parts)

    def next_in_line(self, room: int) -> tuple[list[OffloadKey], Part | None]:
        """Take those who are next out of line: cold ones, unless they have gone before the others too often.

        Returns:
            They, and whose part they are.
        """
        part = next((part for part in self.parts if part.line), None)
        others = () if self.refuses else self.put_off if part is None else part.line
        if self.cold and self.willing and (not others or self._overtaken < OVERTAKEN):
            self._overtaken += bool(others)
            return _first_of(self.cold, room), None
        self._overtaken = 0
        return _first_of(others, room) if others else [], part

    def clear(self) -> None:
        """Nobody waits any more."""
        for line in (self.cold, self.put_off, *(part.line for part in self.parts)):
            line.clear()


def _first_of(line: deque[OffloadKey], count: int) -> list[OffloadKey]:
    return [line.popleft() for _ in range(min(count, len(line)))]

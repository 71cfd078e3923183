"""What a conductor keeps ready for callers who search, as far as the planner must know of it."""

from __future__ import annotations

from typing import Protocol

Turn = tuple[int, int]
"""Whose turn it is: a priority, and within it who came first; the smaller one goes first."""

FIRST = 0
"""The place of callers who are not put in order among each other."""


class Keeper(Protocol):
    """Keeps ready blocks pinned that searches have found and not used yet.

    Searches pin nothing by themselves. Without a keeper who puts them in order, a few of them that do not fit into the
    primary together would evict each other's blocks again and again, and none would ever have all of its own.
    """

    def slots(self) -> set[int]:
        """The slots that are pinned."""

    def give_way(self, turn: Turn, blocks: int) -> bool:
        """Unpin blocks of whoever comes later than this turn, the last one first, until so many slots can be had.

        Returns:
            Whether any slot can be had now.
        """

    def keeps_for_others(self, turn: Turn) -> bool:
        """Whether something is still kept for another turn than this one."""

    def still_asks(self, turn: Turn) -> bool:
        """Whether whoever has this turn still asks, as far as the conductor can tell."""


class KeepsNothing:
    """For conductors whose callers hold what they wait for."""

    def slots(self) -> set[int]:
        """None."""
        return set()

    def give_way(self, turn: Turn, blocks: int) -> bool:  # noqa: ARG002
        """There is nothing to give."""
        return False

    def keeps_for_others(self, turn: Turn) -> bool:  # noqa: ARG002
        """There is nothing."""
        return False

    def still_asks(self, turn: Turn) -> bool:  # noqa: ARG002
        """Everybody counts."""
        return True

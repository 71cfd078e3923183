"""When a block was last used: the time of its file, which all processes see and which survives them.

It is coarse on purpose. What was used within the same minute counts as used at once, so a process renews the time of a
block once a minute at most, and most loads cost no system call for it. The deeper in its prompt a block lies, the
earlier it counts as used, by a microsecond each: whoever loses the end of a prefix still has its beginning, while the
other way round nothing would be left of use. Since every use of a block is one of all that come before it, and renews
those as well unless it was done this minute, a beginning is never older than what follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from asyncoffload.keys import OffloadKey

AT_ONCE_NS = 60_000_000_000
STEP_NS = 1_000

MAX_DEPTH = 1_000_000
"""Blocks: what would be deeper has a time that no tier gave it."""


def used_at(now: int, depth: int) -> int:
    """The time that a block gets, in nanoseconds since the epoch.

    Args:
        now: the time, in nanoseconds since the epoch.
        depth: how many blocks of its prompt come before it.
    """
    return now - now % AT_ONCE_NS - depth * STEP_NS


def used_again(used: int, before: int) -> int:
    """The time that a block gets which has one: as deep in its prompt as either says.

    Who uses some blocks of a prompt need not know how many come before them; who stored them may have known.

    Args:
        used: what it would get, in nanoseconds since the epoch.
        before: what it has.
    """
    return _minute_of(used) - max(_depth_of(used), _depth_of(before)) * STEP_NS


def _minute_of(used: int) -> int:
    return used + -used % AT_ONCE_NS


def _depth_of(used: int) -> int:
    depth = -used % AT_ONCE_NS // STEP_NS
    return depth if depth < MAX_DEPTH else 0


class Renewals:
    """Remembers which blocks this process has used this minute. Any thread.

    Two threads that ask at the same moment may both be told to renew, which does no harm.
    """

    def __init__(self) -> None:
        self._now: tuple[int, set[OffloadKey]] = 0, set()

    def is_due(self, key: OffloadKey, used: int) -> bool:
        """Whether a block that is used should be renewed; if so, it counts as renewed.

        Args:
            key: the block.
            used: when it was used, as :func:`used_at` says.
        """
        minute = _minute_of(used)
        renewed = self._renewed(minute)
        if key in renewed:
            return False
        if self._now[0] == minute:  # otherwise it has waited, and is renewed again when it is used this minute
            renewed.add(key)
        return True

    def due(
        self, keys: Iterable[OffloadKey], now: int, is_known: Callable[[OffloadKey], bool]
    ) -> list[tuple[OffloadKey, int]]:
        """Those of the blocks to renew that are known, and the time that each gets; they count as renewed.

        Args:
            keys: blocks that are used now, in the order of their prompt.
            now: the time, in nanoseconds since the epoch.
            is_known: whether there is such a block.
        """
        renewed = self._renewed(_minute_of(used_at(now, 0)))
        due = [(key, used_at(now, place)) for place, key in enumerate(keys) if key not in renewed and is_known(key)]
        renewed.update(key for key, _ in due)
        return due

    def _renewed(self, minute: int) -> set[OffloadKey]:
        """The blocks that were renewed this minute, or the next one if that has begun."""
        this, renewed = self._now
        if minute != this and not 0 < this - minute <= AT_ONCE_NS:
            renewed = set()
            self._now = minute, renewed
        return renewed

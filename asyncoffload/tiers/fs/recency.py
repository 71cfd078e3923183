"""When a block was last used: the time of its file, which all processes see and which survives them.

It is coarse on purpose. A process renews the time of a block at most once in :data:`RENEW_SECONDS`, so most loads cost
no system call for it. And what was used within the same few seconds counts as used at once, the deeper in its prompt a
block lies the earlier, by a microsecond each: a prompt moves in several batches, and whoever loses the end of a prefix
still has its beginning, while the other way round nothing would be left of use.
"""

from __future__ import annotations

from collections.abc import Callable

from asyncoffload.keys import OffloadKey

RENEW_SECONDS = 60.0
AT_ONCE_NS = 5_000_000_000
STEP_NS = 1_000


def used_at(now: int, depth: int) -> int:
    """The time that a block gets, in nanoseconds since the epoch.

    Args:
        now: the time, in nanoseconds since the epoch.
        depth: how many blocks of its prompt come before it.
    """
    return now - now % AT_ONCE_NS - depth * STEP_NS


class Renewals:
    """Remembers which blocks this process has renewed lately. Any thread.

    Two threads that ask at the same moment may both be told to renew, which does no harm.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._renewed: set[OffloadKey] = set()
        self._until = clock() + RENEW_SECONDS

    def is_due(self, key: OffloadKey) -> bool:
        """Whether a block that is used now should be renewed; if so, it counts as renewed."""
        now = self._clock()
        if now >= self._until:
            self._renewed = set()
            self._until = now + RENEW_SECONDS
        renewed = self._renewed
        if key in renewed:
            return False
        renewed.add(key)
        return True

"""When to look at device events again: pure functions of the time and of what is expected.

asyncio has no timer below a millisecond: a timer of 50 microseconds fires after about 1.1 ms, and uvloop rounds half a
millisecond down to nothing, which is a busy loop in disguise. So there are two honest ways to wait: to spin through
the event loop, for the last moments before an expected end, or to sleep a millisecond or more.
"""

from __future__ import annotations

from collections.abc import Iterable

SHORTEST_SLEEP = 0.001
LONGEST_SLEEP = 0.02
SPIN_BEFORE = 0.0005
SPIN_AFTER = 0.0005

FIRST_GUESS = 4e9
"""Bytes per second before anything was learned: too slow for most devices, so that the first guess oversleeps little
and does not spin long."""


def pause_before_query(now: float, expected_ends: Iterable[float]) -> float:
    """Seconds to sleep before the next query; 0.0 means one turn of the event loop.

    The pause spins in a window around the earliest expected end. Before it, it sleeps up to it; after it, the
    expectation was wrong, and the pause grows with the lateness. Sleeps last 1 to 20 ms.

    Args:
        now: seconds.
        expected_ends: when the oldest work of each stream should end, on the same clock; at least one.
    """
    left = min(expected_ends) - now
    if -SPIN_AFTER <= left <= SPIN_BEFORE:
        return 0.0
    wait = left - SPIN_BEFORE if left > 0 else -left / 4
    return min(max(wait, SHORTEST_SLEEP), LONGEST_SLEEP)


class Pace:
    """How fast a stream moves bytes: an exponentially weighted mean of what was observed."""

    def __init__(self) -> None:
        self.bytes_per_second = FIRST_GUESS
        self._learned = False

    def learn(self, nbytes: int, seconds: float) -> None:
        """Take in that ``nbytes`` took ``seconds``."""
        if nbytes <= 0 or seconds <= 0:
            return
        observed = nbytes / seconds
        self.bytes_per_second = (3 * self.bytes_per_second + observed) / 4 if self._learned else observed
        self._learned = True

    def seconds_for(self, nbytes: int) -> float:
        """How long ``nbytes`` should take."""
        return nbytes / self.bytes_per_second

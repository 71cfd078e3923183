"""When to look at device events again: pure functions of the time and of what is expected.

asyncio has no timer below a millisecond: a timer of 50 microseconds fires after about 1.1 ms, and uvloop rounds half a
millisecond down to nothing, which is a busy loop in disguise. So there are two honest ways to wait: to spin through
the event loop, for the last moments before an expected end, or to sleep a millisecond or more.
"""

from __future__ import annotations

from collections.abc import Iterable

SHORTEST_SLEEP = 0.001
LONGEST_SLEEP = 0.005
SPIN_BEFORE = 0.001
SPIN_AFTER = 0.0005
OVERSLEEP = 0.0005
"""How early a sleep should end: about what timers come late."""

FIRST_GUESS = 4e9
"""Bytes per second before anything was learned."""

SMALL_BYTES = 1 << 20
"""Below this, how long a transfer takes says more about the way there and back than about bandwidth."""


def pause_before_query(now: float, expected_ends: Iterable[float]) -> float:
    """Seconds to sleep before the next query; 0.0 means one turn of the event loop.

    Around the earliest expected end, and while no sleep would be over before it, the poller spins. Earlier it sleeps
    up to that window; later the expectation was wrong, and the pause grows with the lateness. Sleeps last 1 to 5 ms.

    Args:
        now: seconds.
        expected_ends: when the oldest work of each stream should end, on the same clock; at least one.
    """
    left = min(expected_ends) - now
    if -SPIN_AFTER <= left <= SPIN_BEFORE:
        return 0.0
    wait = left - OVERSLEEP if left > 0 else -left / 4
    return min(max(wait, SHORTEST_SLEEP), LONGEST_SLEEP)


class Pace:
    """How long the transfers of a stream take: a delay that all have, and their bytes at a bandwidth.

    Both are exponentially weighted means of what was observed: the delay of small transfers, the bandwidth of others.
    """

    def __init__(self) -> None:
        self.delay = 0.0
        self.seconds_per_byte = 1 / FIRST_GUESS

    def learn(self, nbytes: int, seconds: float) -> None:
        """Take in that ``nbytes`` took ``seconds``."""
        if nbytes < SMALL_BYTES:
            observed = max(seconds - nbytes * self.seconds_per_byte, 0.0)
            self.delay += (observed - self.delay) / 4
        else:
            observed = max(seconds - self.delay, 0.0) / nbytes
            self.seconds_per_byte += (observed - self.seconds_per_byte) / 4

    def seconds_for(self, nbytes: int) -> float:
        """How long ``nbytes`` should take."""
        return self.delay + nbytes * self.seconds_per_byte

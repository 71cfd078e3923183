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

NEWEST_WEIGHS = 0.25
"""The least that an observation counts against all before it."""

SMALL_BYTES = 1 << 20
"""Below this, how long a transfer takes says more about the way there and back than about bandwidth."""


def pause_before_query(now: float, expected_ends: Iterable[float]) -> float:
    """Seconds to sleep before the next query; 0.0 means one turn of the event loop.

    Of each stream: around the expected end of its oldest work, and while no sleep would be over before it, the poller
    spins. Earlier it sleeps up to that window; later the expectation was wrong, and the pause grows with the lateness.
    Sleeps last 1 to 5 ms. The stream that needs the shortest pause decides: one that is stuck must not make the
    others wait.

    Args:
        now: seconds.
        expected_ends: when the oldest work of each stream should end, on the same clock; at least one.
    """
    return min(_pause_for(end - now) for end in expected_ends)


def _pause_for(left: float) -> float:
    if -SPIN_AFTER <= left <= SPIN_BEFORE:
        return 0.0
    wait = left - OVERSLEEP if left > 0 else -left / 4
    return min(max(wait, SHORTEST_SLEEP), LONGEST_SLEEP)


class Pace:
    """How long the transfers of a stream take: a delay that all have, and their bytes at a bandwidth.

    Both are means of what was observed: the delay of small transfers, the bandwidth of others. The first few
    observations weigh alike, later ones weigh less the older they are.
    """

    def __init__(self) -> None:
        self.delay = 0.0
        self.seconds_per_byte = 1 / FIRST_GUESS
        self._delays = self._bandwidths = 0

    def learn(self, nbytes: int, seconds: float, transfers: int = 1) -> None:
        """Take in that ``transfers`` one after the other, of ``nbytes`` together, took ``seconds``."""
        if nbytes < SMALL_BYTES * transfers:
            observed = max(seconds - nbytes * self.seconds_per_byte, 0.0) / transfers
            self._delays += 1
            self.delay += (observed - self.delay) * max(1 / self._delays, NEWEST_WEIGHS)
        else:
            observed = max(seconds - self.delay * transfers, 0.0) / nbytes
            self._bandwidths += 1
            self.seconds_per_byte += (observed - self.seconds_per_byte) * max(1 / self._bandwidths, NEWEST_WEIGHS)

    def seconds_for(self, nbytes: int) -> float:
        """How long ``nbytes`` should take."""
        return self.delay + nbytes * self.seconds_per_byte

"""A limit on bytes per second that several threads keep together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from asyncoffload.errors import InvalidArgument


class Pace:
    """Makes threads wait so that together they move no more than so many bytes per second. Any thread.

    Args:
        bytes_per_second: the limit; None for none.
        clock: seconds, monotonic.
        sleep: waits for so many seconds, in the calling thread.
    """

    def __init__(
        self,
        bytes_per_second: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        if bytes_per_second is not None and bytes_per_second <= 0:
            raise InvalidArgument(f"a rate is more than 0 bytes per second, got {bytes_per_second}")
        self._rate = bytes_per_second
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._free_at = 0.0

    def spend(self, nbytes: int) -> None:
        """Wait for the turn of these bytes; they may be moved when it returns."""
        if self._rate is None:
            return
        with self._lock:
            now = self._clock()
            turn = max(now, self._free_at)
            self._free_at = turn + nbytes / self._rate
        if turn > now:
            self._sleep(turn - now)

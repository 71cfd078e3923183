"""Every sample of the event loop's lag in a run, for its percentiles."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable

from asyncoffload.aio.loop_lag import LateWakeUps

SAMPLE_SECONDS = 0.005


class LoopLag(LateWakeUps):
    """Late wake-ups of a coroutine that asks to sleep a few milliseconds, again and again.

    Attributes:
        samples: seconds by which each wake-up was late.
    """

    def __init__(self, *, interval: float = SAMPLE_SECONDS, clock: Callable[[], float] = time.perf_counter) -> None:
        self.samples: array[float] = array("d")
        super().__init__(self.samples.append, interval=interval, clock=clock)
